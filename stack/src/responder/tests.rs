//! The answers as other implementations read them: smoltcp with all its checks on, etherparse to make what is asked.

use super::*;
use crate::plan::Mtu;
use etherparse::PacketBuilder;
use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire;
use std::net::{Ipv4Addr, Ipv6Addr};

const A4: Ipv4Addr = Ipv4Addr::new(172, 19, 1, 2);
const B4: Ipv4Addr = Ipv4Addr::new(172, 19, 0, 1);
const A6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 1, 2);
const B6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 1);
const A_MAC: MacAddr = MacAddr::of(A4);
const B_MAC: MacAddr = MacAddr::of(B4);

fn built<T>(
    builder: T,
    payload: &[u8],
    write: impl FnOnce(T, &mut Vec<u8>, &[u8]) -> Result<(), etherparse::err::packet::BuildWriteError>,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(builder, &mut bytes, payload).unwrap();
    bytes
}

fn echo4(payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv4(A4.octets(), B4.octets(), 9).icmpv4_echo_request(7, 1);
    built(builder, payload, |b, out, p| b.write(out, p))
}

fn echo6(payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv6(A6.octets(), B6.octets(), 9).icmpv6_echo_request(7, 1);
    built(builder, payload, |b, out, p| b.write(out, p))
}

fn udp4(payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv4(A4.octets(), B4.octets(), 9).udp(4000, 53);
    built(builder, payload, |b, out, p| b.write(out, p))
}

fn udp6(payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv6(A6.octets(), B6.octets(), 9).udp(4000, 53);
    built(builder, payload, |b, out, p| b.write(out, p))
}

/// An IPv4 packet that smoltcp accepts, addresses checked.
fn icmp4(packet: &[u8], from: Ipv4Addr, to: Ipv4Addr) -> wire::Icmpv4Repr<'_> {
    let ip = wire::Ipv4Packet::new_checked(packet).unwrap();
    assert!(ip.verify_checksum());
    assert_eq!(usize::from(ip.total_len()), packet.len());
    assert_eq!((ip.src_addr(), ip.dst_addr()), (from, to));
    assert_eq!(ip.hop_limit(), 64);
    let icmp = wire::Icmpv4Packet::new_checked(&packet[20..]).unwrap();
    wire::Icmpv4Repr::parse(&icmp, &ChecksumCapabilities::default()).unwrap()
}

fn icmp6(packet: &[u8], from: Ipv6Addr, to: Ipv6Addr) -> wire::Icmpv6Repr<'_> {
    let ip = wire::Ipv6Packet::new_checked(packet).unwrap();
    assert_eq!(ip.total_len(), packet.len());
    assert_eq!((ip.src_addr(), ip.dst_addr()), (from, to));
    let icmp = wire::Icmpv6Packet::new_checked(&packet[40..]).unwrap();
    wire::Icmpv6Repr::parse(&from, &to, &icmp, &ChecksumCapabilities::default()).unwrap()
}

fn answer(make: impl FnOnce(&mut [u8]) -> Option<usize>) -> Option<Vec<u8>> {
    let mut out = vec![0xaa; 65_600];
    let length = make(&mut out)?;
    out.truncate(length);
    Some(out)
}

fn error_about(packet: &[u8], error: icmp::IcmpError) -> Option<Vec<u8>> {
    let source = if packet[0] >> 4 == 4 {
        IpAddr::V4(B4)
    } else {
        IpAddr::V6(B6)
    };
    answer(|out| icmp::error(error, source, packet, out))
}

#[test]
fn echo_requests_of_any_length_come_back() {
    for length in [0, 1, 56, 1362, 9000, 65_000] {
        let payload: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
        let reply = answer(|out| icmp::echo_reply(&echo4(&payload), out)).unwrap();
        assert_eq!(
            icmp4(&reply, B4, A4),
            wire::Icmpv4Repr::EchoReply {
                ident: 7,
                seq_no: 1,
                data: &payload
            }
        );
        let reply = answer(|out| icmp::echo_reply(&echo6(&payload), out)).unwrap();
        assert_eq!(
            icmp6(&reply, B6, A6),
            wire::Icmpv6Repr::EchoReply {
                ident: 7,
                seq_no: 1,
                data: &payload
            }
        );
    }
}

#[test]
fn only_whole_and_correct_echo_requests_are_answered() {
    for request in [echo4(b"ping"), echo6(b"ping")] {
        let mut damaged = request.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(answer(|out| icmp::echo_reply(&damaged, out)), None);
        let reply = answer(|out| icmp::echo_reply(&request, out)).unwrap();
        assert_eq!(answer(|out| icmp::echo_reply(&reply, out)), None);
        assert_eq!(icmp::echo_reply(&request, &mut vec![0; request.len() - 1]), None);
    }
    let mut fragment = echo4(b"ping");
    fragment[6] = 0x20;
    assert_eq!(answer(|out| icmp::echo_reply(&fragment, out)), None);
}

#[test]
fn errors_quote_as_much_as_fits() {
    let mtu = Mtu::try_from(1390).unwrap();
    for length in [0, 10, 1400, 60_000] {
        let packet = udp4(&vec![7; length]);
        let error = error_about(&packet, icmp::IcmpError::TooBig { mtu }).unwrap();
        assert_eq!(error.len(), (28 + packet.len()).min(576));
        assert_eq!(&error[28..], &packet[..error.len() - 28]);
        let message = wire::Icmpv4Packet::new_checked(&error[20..]).unwrap();
        assert_eq!((message.msg_code(), message.verify_checksum()), (4, true));
        assert_eq!(error[24..28], [0, 0, 5, 110]);

        let packet = udp6(&vec![7; length]);
        let error = error_about(&packet, icmp::IcmpError::TooBig { mtu }).unwrap();
        assert_eq!(error.len(), (48 + packet.len()).min(1280));
        assert_eq!(&error[48..], &packet[..error.len() - 48]);
        assert!(matches!(
            icmp6(&error, B6, A6),
            wire::Icmpv6Repr::PktTooBig { mtu: 1390, .. }
        ));
    }
}

#[test]
fn errors_have_the_codes_of_their_family() {
    use icmp::IcmpError::{HostUnreachable, PortUnreachable, Prohibited, TimeExceeded};
    for (kind, four, six) in [
        (TimeExceeded, [11, 0], [3, 0]),
        (PortUnreachable, [3, 3], [1, 4]),
        (HostUnreachable, [3, 1], [1, 3]),
        (Prohibited, [3, 13], [1, 1]),
    ] {
        let error = error_about(&udp4(b"?"), kind).unwrap();
        icmp4(&error, B4, A4);
        assert_eq!(error[20..22], four);
        let error = error_about(&udp6(b"?"), kind).unwrap();
        icmp6(&error, B6, A6);
        assert_eq!(error[40..42], six);
    }
}

#[test]
fn no_error_about_errors_fragments_and_groups() {
    use icmp::IcmpError::{PortUnreachable, TooBig};
    let mtu = Mtu::MIN;
    for packet in [udp4(b"?"), udp6(b"?")] {
        let error = error_about(&packet, PortUnreachable).unwrap();
        assert_eq!(error_about(&error, PortUnreachable), None);
        assert_eq!(error_about(&error, TooBig { mtu }), None);
    }
    assert!(error_about(&echo4(b"?"), PortUnreachable).is_some());
    assert!(error_about(&echo6(b"?"), PortUnreachable).is_some());

    let changed = |packet: Vec<u8>, at: usize, bytes: &[u8]| {
        let mut packet = packet;
        packet[at..at + bytes.len()].copy_from_slice(bytes);
        packet
    };
    let later = changed(udp4(b"?"), 6, &[0, 1]);
    let first = changed(udp4(b"?"), 6, &[0x20, 0]);
    assert_eq!(error_about(&later, PortUnreachable), None);
    assert!(error_about(&first, PortUnreachable).is_some());
    for source in [[224, 0, 0, 1], [255; 4], [0; 4], [127, 0, 0, 1], [240, 0, 0, 1]] {
        assert_eq!(
            error_about(&changed(udp4(b"?"), 12, &source), PortUnreachable),
            None
        );
    }
    assert_eq!(
        error_about(&changed(udp4(b"?"), 16, &[224, 0, 0, 251]), PortUnreachable),
        None
    );
    assert_eq!(
        error_about(&changed(udp6(b"?"), 8, &[0xff]), PortUnreachable),
        None
    );
    assert_eq!(
        error_about(&changed(udp6(b"?"), 24, &[0xff]), PortUnreachable),
        None
    );
    assert!(error_about(&changed(udp6(b"?"), 24, &[0xff]), TooBig { mtu }).is_some());
    assert_eq!(
        error_about(&udp4(b"?"), PortUnreachable).map(|error| error.len()),
        Some(28 + 29)
    );
    assert_eq!(
        answer(|out| icmp::error(PortUnreachable, IpAddr::V6(B6), &udp4(b"?"), out)),
        None
    );
}

#[test]
fn an_error_behind_extension_headers_is_seen() {
    let error = error_about(&udp6(b"?"), icmp::IcmpError::PortUnreachable).unwrap();
    let mut hidden = error[..40].to_vec();
    hidden[6] = 60;
    hidden.extend_from_slice(&[58, 0, 1, 4, 0, 0, 0, 0]);
    hidden.extend_from_slice(&error[40..]);
    let length = u16::try_from(hidden.len() - 40).unwrap();
    hidden[4..6].copy_from_slice(&length.to_be_bytes());
    assert_eq!(error_about(&hidden, icmp::IcmpError::TimeExceeded), None);
}

fn reset_of(packet: &[u8]) -> Option<(u32, Option<u32>)> {
    let out = answer(|out| tcp::reset(packet, out))?;
    let (ip, source, destination) = if out[0] >> 4 == 4 {
        assert!(wire::Ipv4Packet::new_checked(&out).unwrap().verify_checksum());
        (20, B4.into(), A4.into())
    } else {
        (40, B6.into(), A6.into())
    };
    let segment = wire::TcpPacket::new_checked(&out[ip..]).unwrap();
    let repr =
        wire::TcpRepr::parse(&segment, &source, &destination, &ChecksumCapabilities::default()).unwrap();
    assert_eq!((repr.src_port, repr.dst_port), (53, 4000));
    assert_eq!(repr.control, wire::TcpControl::Rst);
    Some((
        repr.seq_number.0 as u32,
        repr.ack_number.map(|number| number.0 as u32),
    ))
}

#[test]
fn resets_have_the_numbers_that_the_sender_expects() {
    let four = || PacketBuilder::ipv4(A4.octets(), B4.octets(), 9).tcp(4000, 53, u32::MAX, 9);
    let six = || PacketBuilder::ipv6(A6.octets(), B6.octets(), 9).tcp(4000, 53, u32::MAX, 9);
    for (syn, data, ack) in [
        (
            built(four().syn(), b"", |b, out, p| b.write(out, p)),
            built(four().fin(), b"abc", |b, out, p| b.write(out, p)),
            built(four().ack(77), b"abc", |b, out, p| b.write(out, p)),
        ),
        (
            built(six().syn(), b"", |b, out, p| b.write(out, p)),
            built(six().fin(), b"abc", |b, out, p| b.write(out, p)),
            built(six().ack(77), b"abc", |b, out, p| b.write(out, p)),
        ),
    ] {
        assert_eq!(reset_of(&syn), Some((0, Some(0))));
        assert_eq!(reset_of(&data), Some((0, Some(3))));
        assert_eq!(reset_of(&ack), Some((77, None)));
    }
    assert_eq!(
        reset_of(&built(four().rst(), b"", |b, out, p| b.write(out, p))),
        None
    );
    assert_eq!(reset_of(&udp4(b"?")), None);
}

#[test]
fn arp_is_understood_both_ways() {
    let frame = answer(|out| arp::request(A_MAC, A4, B4, out)).unwrap();
    let ethernet = wire::EthernetFrame::new_checked(&frame).unwrap();
    assert!(ethernet.dst_addr().is_broadcast());
    assert_eq!(ethernet.ethertype(), wire::EthernetProtocol::Arp);
    let repr = wire::ArpRepr::parse(&wire::ArpPacket::new_checked(ethernet.payload()).unwrap()).unwrap();
    assert_eq!(
        repr,
        wire::ArpRepr::EthernetIpv4 {
            operation: wire::ArpOperation::Request,
            source_hardware_addr: wire::EthernetAddress(A_MAC.0),
            source_protocol_addr: A4,
            target_hardware_addr: wire::EthernetAddress([0; 6]),
            target_protocol_addr: B4,
        }
    );
    let asked = arp::parse(&frame).unwrap();
    assert_eq!(
        asked,
        arp::Arp {
            operation: arp::Operation::Request,
            sender_mac: A_MAC,
            sender_ip: A4,
            target_ip: B4
        }
    );
    let reply = answer(|out| arp::reply(B_MAC, B4, asked.sender_mac, asked.sender_ip, out)).unwrap();
    assert_eq!(reply[..6], A_MAC.0);
    assert_eq!(
        arp::parse(&reply),
        Some(arp::Arp {
            operation: arp::Operation::Reply,
            sender_mac: B_MAC,
            sender_ip: B4,
            target_ip: A4
        })
    );
    let mut group = reply.clone();
    group[22] |= 1;
    assert_eq!(arp::parse(&group), None);
    assert_eq!(arp::parse(&reply[..41]), None);
}

fn smoltcp_ndp(frame: &[u8]) -> wire::NdiscRepr<'_> {
    let ip = wire::Ipv6Packet::new_checked(&frame[14..]).unwrap();
    assert_eq!(ip.hop_limit(), 255);
    let icmp = wire::Icmpv6Packet::new_checked(&frame[54..]).unwrap();
    match wire::Icmpv6Repr::parse(
        &ip.src_addr(),
        &ip.dst_addr(),
        &icmp,
        &ChecksumCapabilities::default(),
    ) {
        Ok(wire::Icmpv6Repr::Ndisc(repr)) => repr,
        other => panic!("{other:?}"),
    }
}

#[test]
fn neighbour_discovery_is_understood_both_ways() {
    let frame = answer(|out| ndp::solicit(A_MAC, A6, B6, out)).unwrap();
    assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0, 0, 1]);
    assert_eq!(
        frame[38..54],
        "ff02::1:ff00:1".parse::<Ipv6Addr>().unwrap().octets()
    );
    assert!(matches!(
        smoltcp_ndp(&frame),
        wire::NdiscRepr::NeighborSolicit { target_addr: B6, lladdr: Some(mac) } if mac.as_bytes() == A_MAC.0
    ));
    assert_eq!(
        ndp::parse(&frame),
        Some(ndp::Ndp::Solicitation {
            sender_ip: A6,
            sender_mac: Some(A_MAC),
            target: B6
        })
    );
    let frame = answer(|out| ndp::advertise(B_MAC, B6, A_MAC, A6, out)).unwrap();
    assert_eq!(frame[..6], A_MAC.0);
    assert!(matches!(
        smoltcp_ndp(&frame),
        wire::NdiscRepr::NeighborAdvert { flags, target_addr: B6, lladdr: Some(mac) }
            if mac.as_bytes() == B_MAC.0
                && flags == wire::NdiscNeighborFlags::SOLICITED | wire::NdiscNeighborFlags::OVERRIDE
    ));
    assert_eq!(
        ndp::parse(&frame),
        Some(ndp::Ndp::Advertisement {
            target: B6,
            mac: B_MAC,
            solicited: true
        })
    );
    let to_all = answer(|out| ndp::advertise(B_MAC, B6, A_MAC, Ipv6Addr::UNSPECIFIED, out)).unwrap();
    assert_eq!(to_all[..6], [0x33, 0x33, 0, 0, 0, 1]);
    assert!(matches!(
        ndp::parse(&to_all),
        Some(ndp::Ndp::Advertisement { solicited: false, .. })
    ));
}

#[test]
fn invalid_neighbour_discovery_is_ignored() {
    let frame = answer(|out| ndp::solicit(A_MAC, A6, B6, out)).unwrap();
    let mut routed = frame.clone();
    routed[14 + 7] = 254;
    assert_eq!(ndp::parse(&routed), None);
    let mut damaged = frame.clone();
    damaged[85] ^= 4;
    assert_eq!(ndp::parse(&damaged), None);
    let mut endless = frame.clone();
    endless[79] = 0;
    assert_eq!(ndp::parse(&endless), None);
    let with_address = answer(|out| ndp::solicit(A_MAC, Ipv6Addr::UNSPECIFIED, B6, out)).unwrap();
    assert_eq!(
        ndp::parse(&with_address),
        None,
        "who has no address says no link-layer address"
    );
    assert_eq!(ndp::parse(&frame[..85]), None);
}

proptest! {
    #[test]
    fn no_bytes_make_an_answer_panic(
        seed in 0_usize..6,
        length in 0_usize..200,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        noise in proptest::collection::vec(any::<u8>(), 0..120),
        room in 0_usize..1500,
    ) {
        let mut bytes = match seed {
            0 => echo4(&vec![1; length]),
            1 => echo6(&vec![1; length]),
            2 => udp6(&vec![1; length]),
            3 => answer(|out| arp::request(A_MAC, A4, B4, out)).unwrap(),
            4 => answer(|out| ndp::solicit(A_MAC, A6, B6, out)).unwrap(),
            _ => noise,
        };
        for (at, value) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
        }
        let mut out = vec![0; room];
        icmp::echo_reply(&bytes, &mut out);
        for source in [IpAddr::V4(B4), IpAddr::V6(B6)] {
            for error in [icmp::IcmpError::TimeExceeded, icmp::IcmpError::TooBig { mtu: Mtu::MIN }] {
                icmp::error(error, source, &bytes, &mut out);
            }
        }
        tcp::reset(&bytes, &mut out);
        arp::parse(&bytes);
        ndp::parse(&bytes);
    }
}
