use super::*;
use crate::wire::{Headers, Transport, protocol, quoted};

const OPTIONS: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];
const ROUTE_3: [u8; 8] = [0, 0, 3, 0, 0, 0, 0, 0];
const AUTHENTICATION_24: [u8; 24] = [
    0, 4, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
];
const UDP: [u8; 12] = [0x9c, 0x40, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4];

/// A packet with these headers, each with its number, in front of a transport.
fn chain(headers: &[(u8, &[u8])], number: u8, transport: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; IPV6_HEADER];
    packet[0] = 0x60;
    packet[7] = 64;
    packet[23] = 1;
    packet[39] = 2;
    let mut next_at = 6;
    for (kind, header) in headers {
        packet[next_at] = *kind;
        next_at = packet.len();
        packet.extend_from_slice(header);
    }
    packet[next_at] = number;
    packet.extend_from_slice(transport);
    let payload = u16::try_from(packet.len() - IPV6_HEADER).unwrap();
    packet[4..6].copy_from_slice(&payload.to_be_bytes());
    packet
}

fn udp_behind(headers: &[(u8, &[u8])]) -> Result<Headers, DropReason> {
    Headers::parse(&chain(headers, protocol::UDP, &UDP))
}

fn fragment_header(units: u16, more: bool) -> [u8; 8] {
    let [high, low] = (units << 3 | u16::from(more)).to_be_bytes();
    [0, 0, high, low, 0, 0, 0, 7]
}

#[test]
fn what_is_on_the_list_is_walked_over() {
    let atomic = fragment_header(0, false);
    for headers in [
        &[(HOP_BY_HOP, &OPTIONS[..])][..],
        &[(ROUTING, &ROUTE_3)],
        &[(DESTINATION_OPTIONS, &OPTIONS)],
        &[(AUTHENTICATION, &AUTHENTICATION_24)],
        &[(FRAGMENT, &atomic)],
        &[
            (HOP_BY_HOP, &OPTIONS),
            (DESTINATION_OPTIONS, &OPTIONS),
            (ROUTING, &ROUTE_3),
            (FRAGMENT, &atomic),
            (AUTHENTICATION, &AUTHENTICATION_24),
            (DESTINATION_OPTIONS, &OPTIONS),
        ],
    ] {
        let length: usize = headers.iter().map(|(_, header)| header.len()).sum();
        let parsed = udp_behind(headers).unwrap();
        assert_eq!(parsed.protocol, protocol::UDP);
        assert_eq!(parsed.transport_offset, IPV6_HEADER + length);
        let expected = Transport::Udp {
            source_port: 40_000,
            destination_port: 53,
        };
        assert_eq!(parsed.transport, expected);
    }
}

#[test]
fn what_is_not_on_the_list_is_dropped_never_skipped_over() {
    for kind in [ESP, NO_NEXT_HEADER, MOBILITY, HIP, SHIM6, 253, 254] {
        assert_eq!(
            udp_behind(&[(kind, &OPTIONS)]),
            Err(DropReason::ExtensionHeader),
            "{kind}"
        );
        // Behind a fragment header too, of whichever part.
        for (units, more) in [(0, false), (0, true), (9, true)] {
            let header = fragment_header(units, more);
            let packet = chain(&[(FRAGMENT, &header)], kind, &[0; 64]);
            assert_eq!(
                Headers::parse(&packet),
                Err(DropReason::ExtensionHeader),
                "{kind}"
            );
        }
    }
}

#[test]
fn source_routes_are_dropped_rfc_5095() {
    for kind in [0, 4] {
        let route = [0, 0, kind, 0, 0, 0, 0, 0];
        assert_eq!(udp_behind(&[(ROUTING, &route)]), Err(DropReason::ExtensionHeader));
    }
}

#[test]
fn hop_by_hop_options_are_first_or_not_at_all_rfc_8200_4_1() {
    for before in [(HOP_BY_HOP, &OPTIONS), (DESTINATION_OPTIONS, &OPTIONS)] {
        let headers: &[(u8, &[u8])] = &[(before.0, before.1), (HOP_BY_HOP, &OPTIONS)];
        assert_eq!(udp_behind(headers), Err(DropReason::ExtensionHeader));
    }
}

#[test]
fn there_is_one_fragment_header_at_most() {
    let atomic = fragment_header(0, false);
    let headers: &[(u8, &[u8])] = &[(FRAGMENT, &atomic), (FRAGMENT, &atomic)];
    assert_eq!(udp_behind(headers), Err(DropReason::ExtensionHeader));
}

#[test]
fn a_chain_has_eight_headers_and_256_bytes_at_most() {
    let many: Vec<(u8, &[u8])> = vec![(DESTINATION_OPTIONS, &OPTIONS); 9];
    assert!(udp_behind(&many[..8]).is_ok());
    assert_eq!(udp_behind(&many), Err(DropReason::ExtensionHeader));
    let long = |units: usize| {
        let mut header = vec![0; units * 8];
        header[1] = units as u8 - 1;
        header
    };
    assert!(udp_behind(&[(DESTINATION_OPTIONS, &long(32))]).is_ok());
    assert_eq!(
        udp_behind(&[(DESTINATION_OPTIONS, &long(33))]),
        Err(DropReason::ExtensionHeader)
    );
}

#[test]
fn lengths_that_contradict_are_malformed() {
    // Longer than the packet.
    let mut beyond = OPTIONS;
    beyond[1] = 9;
    assert_eq!(
        udp_behind(&[(DESTINATION_OPTIONS, &beyond)]),
        Err(DropReason::Malformed)
    );
    // RFC 4302 §2.2: in units of four bytes, and with IPv6 a multiple of eight.
    for length in [0, 1, 3] {
        let mut header = AUTHENTICATION_24;
        header[1] = length;
        assert_eq!(
            udp_behind(&[(AUTHENTICATION, &header)]),
            Err(DropReason::Malformed),
            "{length}"
        );
    }
    let ends_in_header = chain(&[], DESTINATION_OPTIONS, &OPTIONS[..4]);
    assert_eq!(Headers::parse(&ends_in_header), Err(DropReason::Malformed));
}

#[test]
fn a_first_part_has_the_whole_chain_rfc_7112() {
    let first = fragment_header(0, true);
    let mut longer = OPTIONS;
    longer[1] = 3;
    for (headers, transport, expected) in [
        (
            &[(FRAGMENT, &first), (DESTINATION_OPTIONS, &longer)][..],
            8,
            Err(DropReason::FragmentHeader),
        ),
        (
            &[(FRAGMENT, &first), (DESTINATION_OPTIONS, &OPTIONS)],
            0,
            Err(DropReason::FragmentHeader),
        ),
        (
            &[(FRAGMENT, &first), (DESTINATION_OPTIONS, &OPTIONS)],
            8,
            Ok(Transport::Fragment),
        ),
    ] {
        let headers: Vec<(u8, &[u8])> = headers
            .iter()
            .map(|(kind, header)| (*kind, &header[..]))
            .collect();
        let packet = chain(&headers, protocol::UDP, &vec![0; transport]);
        let parsed = Headers::parse(&packet).map(|headers| headers.transport);
        assert_eq!(parsed, expected);
    }
}

#[test]
fn parts_of_one_datagram_have_one_protocol_whatever_stands_in_front_of_the_transport() {
    let (first, later) = (fragment_header(0, true), fragment_header(2, false));
    let first = chain(
        &[(FRAGMENT, &first), (DESTINATION_OPTIONS, &OPTIONS)],
        protocol::UDP,
        &[0; 8],
    );
    let later = chain(&[(FRAGMENT, &later)], DESTINATION_OPTIONS, &[0; 9]);
    for packet in [first, later] {
        let headers = Headers::parse(&packet).unwrap();
        assert_eq!(
            (headers.transport, headers.protocol),
            (Transport::Fragment, DESTINATION_OPTIONS)
        );
        assert_eq!(headers.identification, 7);
    }
}

#[test]
fn a_quote_is_walked_as_a_packet_is_and_no_further() {
    let tcp = [0x9c, 0x40, 0, 80, 0xde, 0xad, 0xbe, 0xef];
    let first = fragment_header(0, true);
    let packet = chain(&[(HOP_BY_HOP, &OPTIONS), (FRAGMENT, &first)], protocol::TCP, &tcp);
    let found = quoted::parse(&packet).unwrap();
    assert_eq!(
        (found.endpoints.source_port, found.endpoints.destination_port),
        (40_000, 80)
    );
    assert_eq!(found.tcp_sequence, Some(0xdead_beef));
    // Too short for the number, and for the ports.
    let found = quoted::parse(&packet[..packet.len() - 1]).unwrap();
    assert_eq!(found.tcp_sequence, None);
    assert_eq!(quoted::parse(&packet[..packet.len() - 5]), None);
    assert_eq!(quoted::parse(&packet[..IPV6_HEADER + 4]), None);
    // Not understood, and not the first part.
    assert_eq!(
        quoted::parse(&chain(&[(ESP, &OPTIONS)], protocol::TCP, &tcp)),
        None
    );
    let later = fragment_header(3, true);
    assert_eq!(
        quoted::parse(&chain(&[(FRAGMENT, &later)], protocol::TCP, &tcp)),
        None
    );
    // A datagram has no sequence number.
    let udp = quoted::parse(&chain(&[], protocol::UDP, &UDP)).unwrap();
    assert_eq!(udp.tcp_sequence, None);
}
