use super::*;
use crate::frame::checksum::checksum;

/// An IPv4 packet with options, whose header says what `word` says about fragments.
fn ipv4(number: u8, word: u16, options: &[u8], data: &[u8]) -> Vec<u8> {
    let header = IPV4_HEADER + options.len();
    let mut packet = vec![0; header];
    packet[0] = 0x40 | (header / 4) as u8;
    packet[2..4].copy_from_slice(&((header + data.len()) as u16).to_be_bytes());
    packet[4..6].copy_from_slice(&[0xbe, 0xef]);
    packet[6..8].copy_from_slice(&word.to_be_bytes());
    packet[8..10].copy_from_slice(&[64, number]);
    packet[12..20].copy_from_slice(&[172, 19, 1, 2, 172, 19, 2, 2]);
    packet[IPV4_HEADER..].copy_from_slice(options);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum);
    [&packet, data].concat()
}

/// An IPv6 packet with a fragment header.
fn ipv6(number: u8, word: u16, data: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; IPV6_HEADER + 8];
    packet[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, 44, 64]);
    packet[4..6].copy_from_slice(&((8 + data.len()) as u16).to_be_bytes());
    packet[23] = 1;
    packet[39] = 2;
    packet[40] = number;
    packet[42..44].copy_from_slice(&word.to_be_bytes());
    packet[44..48].copy_from_slice(&[1, 2, 3, 4]);
    [&packet, data].concat()
}

/// A part that begins `units` · 8 bytes into its datagram.
fn part(ipv6_too: bool, number: u8, units: u16, more: bool, data: &[u8]) -> Vec<u8> {
    if ipv6_too {
        ipv6(number, units << 3 | u16::from(more), data)
    } else {
        ipv4(number, units | if more { MORE_FRAGMENTS } else { 0 }, &[], data)
    }
}

fn transport(packet: &[u8]) -> Result<Transport, DropReason> {
    Headers::parse(packet).map(|headers| headers.transport)
}

const TCP: [u8; 20] = [
    0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 1, 0, 0, 0, 0, 0,
];

#[test]
fn no_part_of_a_datagram_ends_behind_the_longest_one() {
    // IPv4 counts its header in, IPv6 doesn't.
    for (ipv6, last) in [(false, 8187), (true, 8189)] {
        let ends_at = |units| transport(&part(ipv6, protocol::UDP, units, false, &[0; 16]));
        assert_eq!(ends_at(last), Ok(Transport::Fragment));
        assert_eq!(ends_at(last + 1), Err(DropReason::Malformed));
    }
}

#[test]
fn every_part_but_the_last_carries_a_multiple_of_eight_bytes_rfc_8200_4_5() {
    for ipv6 in [false, true] {
        for (more, length, expected) in [
            (true, 64, Ok(Transport::Fragment)),
            (true, 60, Err(DropReason::Malformed)),
            (false, 60, Ok(Transport::Fragment)),
            (false, 0, Err(DropReason::Malformed)),
            (true, 0, Err(DropReason::Malformed)),
        ] {
            let packet = part(ipv6, protocol::UDP, 9, more, &vec![0; length]);
            assert_eq!(transport(&packet), expected, "{ipv6} {more} {length}");
        }
    }
}

#[test]
fn a_first_part_has_the_whole_transport_header_rfc_7112() {
    for ipv6 in [false, true] {
        let icmp = if ipv6 { protocol::ICMPV6 } else { protocol::ICMP };
        for (number, length, expected) in [
            (protocol::TCP, 16, Err(DropReason::FragmentHeader)),
            (protocol::TCP, 24, Ok(Transport::Fragment)),
            (protocol::UDP, 8, Ok(Transport::Fragment)),
            (icmp, 8, Ok(Transport::Fragment)),
            (132, 8, Ok(Transport::Fragment)),
        ] {
            let packet = part(ipv6, number, 0, true, &vec![0; length]);
            assert_eq!(transport(&packet), expected, "{ipv6} {number} {length}");
        }
    }
}

#[test]
fn a_tcp_part_that_could_lie_over_the_flags_is_dropped_rfc_3128() {
    for more in [false, true] {
        let tiny = part(false, protocol::TCP, 1, more, &[0; 32]);
        assert_eq!(transport(&tiny), Err(DropReason::FragmentHeader));
        let udp = part(false, protocol::UDP, 1, more, &[0; 32]);
        assert_eq!(transport(&udp), Ok(Transport::Fragment));
    }
}

#[test]
fn an_atomic_fragment_is_an_ordinary_packet_rfc_6946() {
    let headers = Headers::parse(&ipv6(protocol::TCP, 0, &TCP)).unwrap();
    assert!(matches!(
        headers.transport,
        Transport::Tcp {
            destination_port: 80,
            ..
        }
    ));
    assert_eq!(headers.protocol, protocol::TCP);
    assert_eq!((headers.transport_offset, headers.payload_offset), (48, 68));
    assert_eq!(headers.identification, 0, "it has the home of its flow");
    assert!(!headers.dont_fragment);
    let field = headers.fragment.unwrap();
    assert_eq!((field.data_offset, field.is_part()), (48, false));
    // Nothing follows that could bring the rest.
    let short = ipv6(protocol::TCP, 0, &TCP[..16]);
    assert_eq!(transport(&short), Err(DropReason::Malformed));
}

#[test]
fn a_part_says_where_its_data_belongs() {
    for (packet, identification, data_offset) in [
        (part(false, protocol::UDP, 9, true, &[0; 16]), 0xbeef, 20),
        (part(true, protocol::UDP, 9, true, &[0; 16]), 0x0102_0304, 48),
    ] {
        let headers = Headers::parse(&packet).unwrap();
        let expected = FragmentField {
            offset: 72,
            more: true,
            data_offset,
        };
        assert_eq!(headers.fragment, Some(expected));
        assert_eq!(headers.identification, identification);
        assert_eq!(headers.transport_offset, data_offset);
    }
}

#[test]
fn options_that_are_carried_are_parsed_through() {
    let packet = ipv4(protocol::TCP, 0x4000, &[148, 4, 0, 0, 1, 1, 0, 0], &TCP);
    let mut headers = Headers::parse(&packet).unwrap();
    assert_eq!((headers.transport_offset, headers.payload_offset), (28, 48));
    assert!(matches!(headers.transport, Transport::Tcp { .. }));
    let mut changed = packet.clone();
    headers.set_ecn(&mut changed, Ecn::Congested);
    headers.decrement_hop_limit(&mut changed);
    assert_eq!(Headers::parse(&changed), Ok(headers), "its checksum follows");
}

#[test]
fn options_that_are_not_carried_are_told_from_lengths_that_contradict() {
    let route = ipv4(protocol::TCP, 0, &[131, 7, 4, 1, 2, 3, 4, 0], &TCP);
    assert_eq!(transport(&route), Err(DropReason::IpOptions));
    let mut longer_than_all = ipv4(protocol::TCP, 0, &[1, 1, 1, 0], &[]);
    longer_than_all[0] = 0x4f;
    assert_eq!(transport(&longer_than_all), Err(DropReason::Malformed));
    let mut damaged = ipv4(protocol::TCP, 0, &[1, 1, 1, 0], &TCP);
    damaged[21] = 7;
    assert_eq!(transport(&damaged), Err(DropReason::BadChecksum));
}
