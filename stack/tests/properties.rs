//! The parse, beside two others: what tidegate reads out of a packet, etherparse and smoltcp read too.

#![expect(clippy::unwrap_used, reason = "a test ends at what it didn't expect")]

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;
use smoltcp::wire::{Ipv4Packet, Ipv6Packet};
use std::net::IpAddr;
use tidegate_stack::drop::DropReason;
use tidegate_stack::frame::{Offload, Segmentation};
use tidegate_stack::wire::{Headers, Transport};

/// What a packet is made of.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Tcp,
    Udp,
    Echo,
}

fn crafted(
    ipv6: bool,
    kind: Kind,
    addresses: [u8; 2],
    ports: (u16, u16),
    hop_limit: u8,
    payload: &[u8],
) -> Vec<u8> {
    let [source, destination] = addresses;
    let mut bytes = Vec::new();
    let ip = if ipv6 {
        let address = |last: u8| {
            let mut octets = [0; 16];
            (octets[0], octets[15]) = (0xfd, last);
            octets
        };
        PacketBuilder::ipv6(address(source), address(destination), hop_limit)
    } else {
        PacketBuilder::ipv4([172, 19, 1, source], [172, 19, 2, destination], hop_limit)
    };
    let written = match (kind, ipv6) {
        (Kind::Tcp, _) => ip.tcp(ports.0, ports.1, 7, 9).ack(3).write(&mut bytes, payload),
        (Kind::Udp, _) => ip.udp(ports.0, ports.1).write(&mut bytes, payload),
        (Kind::Echo, false) => ip.icmpv4_echo_request(ports.0, 1).write(&mut bytes, payload),
        (Kind::Echo, true) => ip.icmpv6_echo_request(ports.0, 1).write(&mut bytes, payload),
    };
    written.unwrap();
    bytes
}

fn packet() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![Just(Kind::Tcp), Just(Kind::Udp), Just(Kind::Echo)];
    (
        any::<bool>(),
        kind,
        any::<[u8; 2]>(),
        any::<(u16, u16)>(),
        any::<u8>(),
        prop::collection::vec(any::<u8>(), 0..200),
    )
        .prop_map(|(ipv6, kind, addresses, ports, hop_limit, payload)| {
            crafted(ipv6, kind, addresses, ports, hop_limit, &payload)
        })
}

/// Packets, some of their bytes changed, cut or lengthened.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (
        packet(),
        changes,
        any::<prop::sample::Index>(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(mut bytes, changes, end, cut, mend)| {
            for (at, value) in changes {
                // The first bytes decide most: they are hit as often as all others together.
                let at = if value & 1 == 0 {
                    at.index(bytes.len())
                } else {
                    at.index(bytes.len().min(60))
                };
                bytes[at] = value;
            }
            if mend && bytes[0] >> 4 == 4 {
                bytes[10..12].fill(0);
                let sum = tidegate_stack::frame::checksum::checksum(&bytes[..20]);
                bytes[10..12].copy_from_slice(&sum);
            }
            if cut {
                bytes.truncate(end.index(bytes.len()) + 1);
            }
            bytes
        })
}

/// Whatever this parse accepts, the others read the same way.
fn agrees(bytes: &[u8]) -> Result<(), TestCaseError> {
    let Ok(headers) = Headers::parse(bytes) else {
        return Ok(());
    };
    prop_assert!(headers.transport_offset <= headers.payload_offset);
    prop_assert!(headers.payload_offset <= headers.total_length && headers.total_length <= bytes.len());
    let packet = &bytes[..headers.total_length];
    match headers.source {
        IpAddr::V4(source) => {
            let ip = Ipv4Packet::new_checked(packet).unwrap();
            prop_assert!(ip.verify_checksum());
            prop_assert_eq!(
                (ip.src_addr(), IpAddr::V4(ip.dst_addr())),
                (source, headers.destination)
            );
            prop_assert_eq!(usize::from(ip.total_len()), headers.total_length);
            prop_assert_eq!(ip.hop_limit(), headers.hop_limit);
            prop_assert_eq!((ip.dscp() << 2) | ip.ecn(), headers.traffic_class);
            prop_assert_eq!(ip.dont_frag(), headers.dont_fragment);
            prop_assert_eq!(
                ip.more_frags() || ip.frag_offset() != 0,
                headers.transport == Transport::Fragment
            );
        }
        IpAddr::V6(source) => {
            let ip = Ipv6Packet::new_checked(packet).unwrap();
            prop_assert_eq!(
                (ip.src_addr(), IpAddr::V6(ip.dst_addr())),
                (source, headers.destination)
            );
            prop_assert_eq!(ip.total_len(), headers.total_length);
            prop_assert_eq!(ip.hop_limit(), headers.hop_limit);
            prop_assert_eq!(ip.traffic_class(), headers.traffic_class);
        }
    }
    let Ok(sliced) = SlicedPacket::from_ip(packet) else {
        // etherparse refuses what can't be read; only what isn't looked into here may be such.
        prop_assert!(
            matches!(
                headers.transport,
                Transport::Other | Transport::IcmpOther | Transport::IcmpError | Transport::Fragment
            ),
            "{:?}",
            headers
        );
        return Ok(());
    };
    let offset = |slice: &[u8]| packet.len() - slice.len();
    match (headers.transport, sliced.transport) {
        (
            Transport::Tcp {
                source_port,
                destination_port,
                ..
            },
            Some(TransportSlice::Tcp(tcp)),
        ) => {
            prop_assert_eq!(
                (tcp.source_port(), tcp.destination_port()),
                (source_port, destination_port)
            );
            prop_assert_eq!(offset(tcp.slice()), headers.transport_offset);
            prop_assert_eq!(offset(tcp.payload()), headers.payload_offset);
        }
        (
            Transport::Udp {
                source_port,
                destination_port,
            },
            Some(TransportSlice::Udp(udp)),
        ) => {
            prop_assert_eq!(
                (udp.source_port(), udp.destination_port()),
                (source_port, destination_port)
            );
        }
        (Transport::Tcp { .. } | Transport::Udp { .. }, other) => {
            prop_assert!(false, "{:?} and {:?}", headers, other);
        }
        (Transport::Echo { .. } | Transport::IcmpError | Transport::IcmpOther, other) => {
            prop_assert!(
                matches!(other, Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_))),
                "{:?} and {:?}",
                headers,
                other
            );
        }
        (Transport::Fragment, _) => {
            let fragmented = match sliced.net {
                Some(NetSlice::Ipv4(ip)) => ip.header().is_fragmenting_payload(),
                Some(NetSlice::Ipv6(_)) => true,
                _ => false,
            };
            prop_assert!(fragmented);
        }
        (Transport::Other, other) => {
            prop_assert!(!matches!(
                other,
                Some(TransportSlice::Tcp(_) | TransportSlice::Udp(_))
            ));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn good_packets_are_read_as_others_read_them(bytes in packet()) {
        let headers = Headers::parse(&bytes);
        prop_assert!(headers.is_ok(), "{:?}", headers);
        agrees(&bytes)?;
    }

    #[test]
    fn damaged_packets_are_read_as_others_read_them_or_not_at_all(bytes in damaged()) {
        agrees(&bytes)?;
    }

    #[test]
    fn no_bytes_make_the_parse_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), version in 0_u8..2) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = [0x45, 0x60][usize::from(version)];
        }
        agrees(&bytes)?;
    }

    #[test]
    fn a_header_survives_its_changes(bytes in packet(), ecn in 0_u8..4) {
        let mut bytes = bytes;
        let mut headers = Headers::parse(&bytes).unwrap();
        let before = headers;
        headers.set_ecn(&mut bytes, tidegate_stack::wire::Ecn::from_bits(ecn));
        headers.decrement_hop_limit(&mut bytes);
        let after = Headers::parse(&bytes);
        prop_assert_eq!(after, Ok(headers));
        prop_assert_eq!(headers.ecn().bits(), ecn);
        prop_assert_eq!(headers.hop_limit, before.hop_limit.saturating_sub(1));
        prop_assert_eq!(headers.traffic_class >> 2, before.traffic_class >> 2);
    }

    #[test]
    fn a_virtio_header_says_what_was_put_in(header in any::<[u8; 10]>()) {
        if let Some(offload) = Offload::from_virtio(&header) {
            let again = Offload::from_virtio(&offload.to_virtio(40, header[1] & 0x7f == 4));
            prop_assert_eq!(again, Some(offload));
            if let Segmentation::Tcp { size, .. } | Segmentation::Udp { size } = offload.segmentation {
                prop_assert!(size > 0);
            }
        }
    }
}

#[test]
fn a_damaged_header_is_told_from_one_that_is_not_understood() {
    let good = crafted(false, Kind::Udp, [2, 2], (1, 2), 64, b"?");
    let changed = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        Headers::parse(&bytes)
    };
    assert_eq!(changed(8, 63), Err(DropReason::BadChecksum));
    assert_eq!(changed(0, 0x46), Err(DropReason::BadChecksum));
    assert_eq!(changed(0, 0x44), Err(DropReason::Malformed));
    assert_eq!(changed(0, 0x55), Err(DropReason::Malformed));
    assert_eq!(
        Headers::parse(&good[..good.len() - 1]),
        Err(DropReason::Malformed)
    );
    assert_eq!(Headers::parse(&[]), Err(DropReason::Malformed));
}
