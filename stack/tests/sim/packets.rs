//! Packets made by hand (etherparse), and what is read out of those that arrive.

use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, PacketBuilderStep};
use std::net::IpAddr;
use tidegate_stack::frame::Offload;

/// A packet as it crosses a TUN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) bytes: Vec<u8>,
    pub(crate) offload: Offload,
}

impl From<Vec<u8>> for Packet {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            offload: Offload::NONE,
        }
    }
}

/// What the packets of a test have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crafted {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) hop_limit: u8,
    /// The two bits of the congestion field.
    pub(crate) ecn: u8,
    pub(crate) dont_fragment: bool,
}

impl Crafted {
    pub(crate) fn new(source: IpAddr, destination: IpAddr) -> Self {
        Self {
            source,
            destination,
            hop_limit: 64,
            ecn: 0,
            dont_fragment: true,
        }
    }

    fn ip(&self) -> PacketBuilderStep<etherparse::IpHeaders> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = Ipv4Header::new(
                    0,
                    self.hop_limit,
                    IpNumber::UDP,
                    source.octets(),
                    destination.octets(),
                )
                .unwrap();
                header.ecn = etherparse::IpEcn::try_new(self.ecn).unwrap();
                header.dont_fragment = self.dont_fragment;
                header.fragment_offset = IpFragOffset::ZERO;
                PacketBuilder::ip(etherparse::IpHeaders::Ipv4(header, Default::default()))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = Ipv6Header {
                    traffic_class: self.ecn,
                    hop_limit: self.hop_limit,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                };
                PacketBuilder::ip(etherparse::IpHeaders::Ipv6(header, Default::default()))
            }
            _ => panic!("two families"),
        }
    }

    pub(crate) fn udp(&self, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.ip()
            .udp(ports.0, ports.1)
            .write(&mut bytes, payload)
            .unwrap();
        bytes
    }

    pub(crate) fn syn(&self, ports: (u16, u16)) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.ip()
            .tcp(ports.0, ports.1, 1000, 65_535)
            .syn()
            .write(&mut bytes, &[])
            .unwrap();
        bytes
    }

    pub(crate) fn tcp(&self, ports: (u16, u16), sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.ip()
            .tcp(ports.0, ports.1, sequence, 65_535)
            .ack(1)
            .write(&mut bytes, payload)
            .unwrap();
        bytes
    }

    pub(crate) fn echo(&self, identifier: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let ip = self.ip();
        match self.source {
            IpAddr::V4(_) => ip
                .icmpv4_echo_request(identifier, 1)
                .write(&mut bytes, payload)
                .unwrap(),
            IpAddr::V6(_) => ip
                .icmpv6_echo_request(identifier, 1)
                .write(&mut bytes, payload)
                .unwrap(),
        }
        bytes
    }
}

/// A UDP datagram whose whole packet is `length` bytes long.
pub(crate) fn udp_of_length(crafted: &Crafted, length: usize) -> Vec<u8> {
    let headers = if crafted.source.is_ipv6() { 48 } else { 28 };
    crafted.udp((4000, 4001), &vec![0x5a; length - headers])
}

/// A packet as a sender cuts it: parts of up to `size` bytes of data, a multiple of eight.
pub(crate) fn in_fragments(packet: &[u8], identification: u32, size: usize) -> Vec<Vec<u8>> {
    let (header, data) = packet.split_at(if packet[0] >> 4 == 4 { 20 } else { 40 });
    let parts = data.chunks(size).enumerate();
    parts
        .map(|(index, part)| {
            let more = (index + 1) * size < data.len();
            fragment(header, identification, index * size, more, part)
        })
        .collect()
}

/// A fragment: behind an IP header without options or extensions, `at` bytes into its datagram.
pub(crate) fn fragment(header: &[u8], identification: u32, at: usize, more: bool, data: &[u8]) -> Vec<u8> {
    let mut packet = header.to_vec();
    let at = u16::try_from(at).unwrap();
    if header[0] >> 4 == 4 {
        let field = at / 8 + if more { 0x2000 } else { 0 };
        let length = u16::try_from(20 + data.len()).unwrap();
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[4..6].copy_from_slice(&(identification as u16).to_be_bytes());
        packet[6..8].copy_from_slice(&field.to_be_bytes());
        packet[10..12].fill(0);
        let sum = tidegate_stack::frame::checksum::checksum(&packet);
        packet[10..12].copy_from_slice(&sum);
    } else {
        let length = u16::try_from(8 + data.len()).unwrap();
        packet[4..6].copy_from_slice(&length.to_be_bytes());
        packet.extend_from_slice(&[header[6], 0]);
        packet[6] = 44;
        packet.extend_from_slice(&(at | u16::from(more)).to_be_bytes());
        packet.extend_from_slice(&identification.to_be_bytes());
    }
    packet.extend_from_slice(data);
    packet
}

/// The data of the datagram that packets are, whole or in parts, behind the IP header (and the fragment header). Panics
/// when anything is missing or twice there.
pub(crate) fn put_together(packets: &[Packet]) -> Vec<u8> {
    let mut parts: Vec<(usize, bool, &[u8])> = packets
        .iter()
        .map(|packet| match &packet.bytes {
            bytes if bytes[0] >> 4 == 4 => {
                let field = u16::from_be_bytes([bytes[6], bytes[7]]);
                (usize::from(field & 0x1fff) * 8, field & 0x2000 != 0, &bytes[20..])
            }
            bytes if bytes[6] == 44 => {
                let field = u16::from_be_bytes([bytes[42], bytes[43]]);
                (usize::from(field & !7), field & 1 != 0, &bytes[48..])
            }
            bytes => (0, false, &bytes[40..]),
        })
        .collect();
    parts.sort_unstable();
    let mut whole = Vec::new();
    let last = parts.len() - 1;
    for (index, (at, more, data)) in parts.into_iter().enumerate() {
        assert_eq!((at, more), (whole.len(), index < last));
        whole.extend_from_slice(data);
    }
    whole
}

pub(crate) fn hop_limit(packet: &[u8]) -> u8 {
    if packet[0] >> 4 == 4 { packet[8] } else { packet[7] }
}

pub(crate) fn ecn(packet: &[u8]) -> u8 {
    if packet[0] >> 4 == 4 {
        packet[1] & 3
    } else {
        (packet[1] >> 4) & 3
    }
}

/// Type and code of an ICMP message.
pub(crate) fn icmp_type(packet: &[u8]) -> Option<(u8, u8)> {
    match (packet[0] >> 4, packet.get(9), packet.get(6)) {
        (4, Some(1), _) => Some((packet[20], packet[21])),
        (6, _, Some(58)) => Some((packet[40], packet[41])),
        _ => None,
    }
}

/// What UDP datagrams carried, `headers` bytes into each packet.
pub(crate) fn payloads(packets: &[Packet], headers: usize) -> Vec<Vec<u8>> {
    let datagrams = packets.iter().filter(|packet| icmp_type(&packet.bytes).is_none());
    datagrams.map(|packet| packet.bytes[headers..].to_vec()).collect()
}

pub(crate) fn lengths(packets: &[Packet]) -> Vec<usize> {
    packets.iter().map(|packet| packet.bytes.len()).collect()
}
