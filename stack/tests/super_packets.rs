//! Cutting and gluing: whatever is cut is whole by others' measure, and whatever is glued can be cut to what it was
//! glued from.

#![expect(clippy::unwrap_used, reason = "a test ends at what it didn't expect")]

use etherparse::{PacketBuilder, PacketBuilderStep};
use proptest::prelude::*;
use smoltcp::wire::{IpAddress, Ipv4Packet, TcpPacket, UdpPacket};
use std::collections::BTreeMap;
use std::net::IpAddr;
use tidegate_stack::frame::{
    Coalescer, Deliver, Frame, FramePool, Offload, PoolSizes, Segmentation, Segments, checksum,
};
use tidegate_stack::plan::PortId;
use tidegate_stack::wire::{Headers, tcp_flags};

/// Length of the headers of TCP, by family.
const HEADERS_TCP: [usize; 2] = [40, 60];

/// A flow's addresses: `number` tells flows apart.
fn ip(ipv6: bool, number: u8) -> PacketBuilderStep<etherparse::IpHeaders> {
    if ipv6 {
        let address = |last: u8| {
            let mut octets = [0; 16];
            (octets[0], octets[15]) = (0xfd, last);
            octets
        };
        PacketBuilder::ip(etherparse::IpHeaders::Ipv6(
            etherparse::Ipv6Header {
                source: address(number),
                destination: address(100),
                hop_limit: 64,
                ..Default::default()
            },
            Default::default(),
        ))
    } else {
        PacketBuilder::ip(etherparse::IpHeaders::Ipv4(
            etherparse::Ipv4Header::new(0, 64, 6.into(), [172, 19, 2, number], [172, 19, 1, 2]).unwrap(),
            Default::default(),
        ))
    }
}

fn tcp(ipv6: bool, number: u8, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(ipv6, number)
        .tcp(40_000, 80, sequence, 1000)
        .write(&mut bytes, payload)
        .unwrap();
    let start = HEADERS_TCP[usize::from(ipv6)] - 20;
    bytes[start + 13] = flags;
    finish(&mut bytes, 16);
    bytes
}

fn udp(ipv6: bool, number: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(ipv6, number)
        .udp(40_000, 80)
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}

/// Makes the checksums of a packet that was changed good again.
fn finish(bytes: &mut [u8], checksum_at: usize) {
    if bytes[0] >> 4 == 4 {
        bytes[10..12].fill(0);
        let sum = checksum::checksum(&bytes[..20]);
        bytes[10..12].copy_from_slice(&sum);
    }
    let headers = Headers::parse(bytes).unwrap();
    let start = headers.transport_offset;
    bytes[start + checksum_at..start + checksum_at + 2].fill(0);
    let length = u32::try_from(bytes.len() - start).unwrap();
    let mut sum = checksum::Sum::pseudo_header(headers.source, headers.destination, headers.protocol, length);
    sum.add(&bytes[start..]);
    bytes[start + checksum_at..start + checksum_at + 2].copy_from_slice(&sum.checksum());
}

/// The packets that a frame stands for.
fn cut(bytes: &[u8], offload: Offload) -> Vec<Vec<u8>> {
    let headers = Headers::parse(bytes).unwrap();
    let mut segments = Segments::new(bytes, &headers, offload).unwrap();
    let longest = segments.packet_length();
    let mut packets = Vec::new();
    while segments.remaining() > 0 {
        let mut out = vec![0; longest];
        let expected = segments.next_length();
        let length = segments.write_next(&mut out);
        assert_eq!(length, expected);
        out.truncate(length);
        packets.push(out);
    }
    assert_eq!(segments.write_next(&mut [0; 2048]), 0);
    packets
}

fn ends(headers: &Headers) -> (IpAddress, IpAddress) {
    (headers.source.into(), headers.destination.into())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn tcp_is_cut_into_segments_that_others_find_whole(
        ipv6 in any::<bool>(), length in 1_usize..20_000, size in 50_u16..1400, sequence in any::<u32>(),
        flags in any::<u8>(),
    ) {
        let flags = flags & !(tcp_flags::SYN | tcp_flags::RST) | tcp_flags::ACK;
        let payload: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
        let bytes = tcp(ipv6, 9, sequence, flags, &payload);
        let offload = Offload { segmentation: Segmentation::Tcp { size, ecn: false }, partial_checksum: None };
        let packets = cut(&bytes, offload);
        prop_assert_eq!(packets.len(), length.div_ceil(usize::from(size)));
        let mut data = Vec::new();
        let last = packets.len() - 1;
        for (index, packet) in packets.iter().enumerate() {
            let headers = Headers::parse(packet).unwrap();
            prop_assert_eq!(headers.total_length, packet.len());
            if !ipv6 {
                let ip = Ipv4Packet::new_checked(packet).unwrap();
                let first = Ipv4Packet::new_checked(&bytes).unwrap().ident();
                prop_assert!(ip.verify_checksum());
                prop_assert_eq!(usize::from(ip.ident().wrapping_sub(first)), index);
            }
            let segment = TcpPacket::new_checked(&packet[headers.transport_offset..]).unwrap();
            let (source, destination) = ends(&headers);
            prop_assert!(segment.verify_checksum(&source, &destination));
            prop_assert_eq!(segment.seq_number().0 as u32, sequence.wrapping_add(data.len() as u32));
            prop_assert_eq!((segment.psh(), segment.fin()), (
                index == last && flags & tcp_flags::PSH != 0,
                index == last && flags & tcp_flags::FIN != 0,
            ));
            prop_assert_eq!(segment.cwr(), index == 0 && flags & tcp_flags::CWR != 0);
            prop_assert!(segment.ack());
            data.extend_from_slice(segment.payload());
        }
        prop_assert_eq!(data, payload);
    }

    #[test]
    fn udp_is_cut_into_datagrams_that_others_find_whole(
        ipv6 in any::<bool>(), length in 1_usize..20_000, size in 50_u16..1400,
    ) {
        let payload: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
        let offload = Offload { segmentation: Segmentation::Udp { size }, partial_checksum: None };
        let mut data = Vec::new();
        for packet in cut(&udp(ipv6, 9, &payload), offload) {
            let headers = Headers::parse(&packet).unwrap();
            prop_assert_eq!(headers.total_length, packet.len());
            let datagram = UdpPacket::new_checked(&packet[headers.transport_offset..]).unwrap();
            let (source, destination) = ends(&headers);
            prop_assert!(datagram.verify_checksum(&source, &destination));
            prop_assert_eq!(usize::from(datagram.len()), packet.len() - headers.transport_offset);
            data.extend_from_slice(datagram.payload());
        }
        prop_assert_eq!(data, payload);
    }

    #[test]
    fn a_partial_checksum_is_finished(ipv6 in any::<bool>(), payload in prop::collection::vec(any::<u8>(), 0..1300)) {
        for (whole, at) in [(tcp(ipv6, 9, 1, tcp_flags::ACK, &payload), 16), (udp(ipv6, 9, &payload), 6)] {
            let headers = Headers::parse(&whole).unwrap();
            let start = headers.transport_offset;
            let length = u32::try_from(whole.len() - start).unwrap();
            let pseudo =
                checksum::Sum::pseudo_header(headers.source, headers.destination, headers.protocol, length);
            let mut partial = whole.clone();
            partial[start + at..start + at + 2].copy_from_slice(&pseudo.folded());
            let offload = Offload {
                segmentation: Segmentation::None,
                partial_checksum: Some((u16::try_from(start).unwrap(), at as u16)),
            };
            prop_assert_eq!(cut(&partial, offload), [whole]);
        }
    }

    #[test]
    fn what_is_glued_can_be_cut_to_what_it_was(arrivals in prop::collection::vec(arrival(), 1..80)) {
        let mut flows: BTreeMap<u8, u32> = BTreeMap::new();
        let mut sent = Vec::new();
        let mut sink = Sink::default();
        let mut pool = FramePool::new(PoolSizes { small: 32, large: 16 });
        let mut coalescer = Coalescer::new();
        for arrival in &arrivals {
            let packet = arrival.packet(&mut flows);
            if let Ok(headers) = Headers::parse(&packet) {
                coalescer.push(PortId(0), &packet, &headers, &mut pool, &mut sink);
                sent.push(packet);
            }
            if arrival.flush {
                coalescer.flush(&mut pool, &mut sink);
            }
        }
        coalescer.flush(&mut pool, &mut sink);
        prop_assert_eq!(pool.in_use(), 0);
        prop_assert_eq!(sink.no_buffer, 0);

        let received: Vec<Vec<u8>> =
            sink.delivered.iter().flat_map(|(bytes, offload)| cut(bytes, *offload)).collect();
        prop_assert_eq!(received.len(), sent.len());
        let by_flow = |packets: &[Vec<u8>]| {
            let mut flows: BTreeMap<_, Vec<Vec<u8>>> = BTreeMap::new();
            for packet in packets {
                let headers = Headers::parse(packet).unwrap();
                flows.entry((headers.protocol, headers.source)).or_default().push(without_identification(packet));
            }
            flows
        };
        prop_assert_eq!(by_flow(&received), by_flow(&sent));
    }
}

/// A packet with DF may have any identification (RFC 6864 §4.1).
fn without_identification(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// What happens to a packet before it is glued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    None,
    Damaged,
    Gap,
    Marked,
    Window,
    Finished,
    Pushed,
}

#[derive(Clone, Copy, Debug)]
struct Arrival {
    flow: u8,
    length: usize,
    change: Change,
    flush: bool,
}

fn arrival() -> impl Strategy<Value = Arrival> {
    let length = prop_oneof![6 => Just(1000_usize), 1 => 0_usize..1000, 1 => Just(1001)];
    let change = prop_oneof![
        12 => Just(Change::None),
        1 => Just(Change::Damaged),
        1 => Just(Change::Gap),
        1 => Just(Change::Marked),
        1 => Just(Change::Window),
        1 => Just(Change::Finished),
        1 => Just(Change::Pushed),
    ];
    // More flows than there are trains.
    (0_u8..12, length, change, prop::bool::weighted(0.05)).prop_map(|(flow, length, change, flush)| Arrival {
        flow: flow.min(10),
        length,
        change,
        flush,
    })
}

impl Arrival {
    /// Flows 0 to 3 are UDP, the others TCP; every second one is IPv6.
    fn packet(&self, sequences: &mut BTreeMap<u8, u32>) -> Vec<u8> {
        let ipv6 = self.flow % 2 == 1;
        let sequence = sequences.entry(self.flow).or_insert(u32::MAX - 3000);
        let payload: Vec<u8> = (0..self.length)
            .map(|index| (sequence.wrapping_add(index as u32) % 251) as u8)
            .collect();
        let is_udp = self.flow < 4;
        if self.change == Change::Gap {
            *sequence = sequence.wrapping_add(7);
        }
        let flags = match self.change {
            Change::Finished => tcp_flags::ACK | tcp_flags::FIN,
            Change::Pushed => tcp_flags::ACK | tcp_flags::PSH,
            Change::None | Change::Damaged | Change::Gap | Change::Marked | Change::Window => tcp_flags::ACK,
        };
        let mut packet = if is_udp {
            udp(ipv6, self.flow, &payload)
        } else {
            tcp(ipv6, self.flow, *sequence, flags, &payload)
        };
        *sequence = sequence.wrapping_add(u32::try_from(self.length).unwrap());
        match self.change {
            Change::Marked if ipv6 => packet[1] |= 0x30,
            Change::Marked => {
                packet[1] |= 3;
                packet[10..12].fill(0);
                let sum = checksum::checksum(&packet[..20]);
                packet[10..12].copy_from_slice(&sum);
            }
            Change::Window if !is_udp => {
                packet[HEADERS_TCP[usize::from(ipv6)] - 6] ^= 1;
                finish(&mut packet, 16);
            }
            Change::Damaged => {
                if let Some(last) = packet.last_mut() {
                    *last ^= 1;
                }
            }
            Change::None | Change::Gap | Change::Window | Change::Finished | Change::Pushed => {}
        }
        packet
    }
}

/// What was delivered.
#[derive(Default)]
struct Sink {
    delivered: Vec<(Vec<u8>, Offload)>,
    no_buffer: usize,
}

impl Deliver for Sink {
    fn deliver(&mut self, _port: PortId, frame: &Frame) {
        self.delivered.push((frame.packet().to_vec(), frame.offload));
    }

    fn no_buffer(&mut self) {
        self.no_buffer += 1;
    }
}

#[test]
fn a_stream_is_glued_whole() {
    let mut sink = Sink::default();
    let mut pool = FramePool::new(PoolSizes { small: 4, large: 4 });
    let mut coalescer = Coalescer::new();
    for index in 0..40_u32 {
        let packet = tcp(false, 9, 5 + index * 1350, tcp_flags::ACK, &[7; 1350]);
        let headers = Headers::parse(&packet).unwrap();
        coalescer.push(PortId(0), &packet, &headers, &mut pool, &mut sink);
    }
    coalescer.flush(&mut pool, &mut sink);
    assert_eq!(sink.delivered.len(), 1);
    let (bytes, offload) = &sink.delivered[0];
    assert_eq!(bytes.len(), 40 + 40 * 1350);
    assert_eq!(
        offload.segmentation,
        Segmentation::Tcp {
            size: 1350,
            ecn: false
        }
    );
    assert_eq!(offload.partial_checksum, Some((20, 16)));
    assert!(matches!(Headers::parse(bytes).unwrap().source, IpAddr::V4(_)));
}
