//! The one parse of an IP packet: every offset that later steps use is proven here.
//!
//! IPv4 (RFC 791), IPv6 (RFC 8200), TCP (RFC 9293), UDP (RFC 768), ICMP (RFC 792, RFC 4443). IPv4 options and IPv6
//! extension headers are walked by allow-lists (`options`, `extensions`).
//!
//! A fragment is a packet of its own until [`Reassembly`](super::fragments::Reassembly) has the others. One that is a
//! whole datagram (RFC 6946) is no [`Transport::Fragment`]: it is parsed through, and may be cut again.

use super::extensions::Chain;
use super::{Ecn, Endpoints, options};
use crate::drop::DropReason;
use crate::frame::checksum::Sum;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Numbers of protocols (IANA: Assigned Internet Protocol Numbers).
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

/// Flags in byte 13 of a TCP header (RFC 9293 §3.1).
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement field counts.
    pub const ACK: u8 = 0x10;
    /// Congestion window reduced (RFC 3168).
    pub const CWR: u8 = 0x80;
}

/// What 16 bits of length can say (RFC 791 §3.1, RFC 8200 §4.5).
const LONGEST_DATAGRAM: usize = 65_535;
pub(super) const IPV4_HEADER: usize = 20;
pub(super) const IPV6_HEADER: usize = 40;
/// Bits of the fragment word of an IPv4 header (RFC 791 §3.1).
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const ICMP_HEADER: usize = 8;

/// What stands behind the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A TCP segment, or a super-packet of them.
    Tcp {
        /// Source port.
        source_port: u16,
        /// Destination port.
        destination_port: u16,
        /// [`tcp_flags`].
        flags: u8,
        /// Sequence number of the first byte, or of SYN.
        sequence: u32,
        /// The next sequence number that the sender expects; counts with the flag ACK.
        acknowledgement: u32,
        /// What the sender takes beyond that, not scaled.
        window: u16,
    },
    /// A UDP datagram, or a super-packet of them.
    Udp {
        /// Source port.
        source_port: u16,
        /// Destination port.
        destination_port: u16,
    },
    /// An ICMP echo request or reply.
    Echo {
        /// The identifier: the flow's name (RFC 5508 §3.1).
        identifier: u16,
        /// Whether it asks.
        request: bool,
    },
    /// An ICMP error: a packet is quoted in it.
    IcmpError,
    /// Any other ICMP message.
    IcmpOther,
    /// A part of a datagram (also the first: its ports don't count, so that all parts are one flow).
    Fragment,
    /// Another protocol.
    Other,
}

/// What of its datagram's data a packet carries (RFC 791 §3.2, RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentField {
    /// Where its data stands in the datagram's, in bytes.
    pub offset: usize,
    /// Whether another part follows.
    pub more: bool,
    /// Where its data starts: behind the IPv4 header, or behind the IPv6 fragment header.
    pub data_offset: usize,
}

impl FragmentField {
    /// Whether it is a part, not the whole.
    pub const fn is_part(self) -> bool {
        self.more || self.offset > 0
    }

    /// Whether a part may carry so many bytes: some, and all but the last a multiple of eight.
    pub(super) const fn has_legal_length(self, data: usize) -> bool {
        !self.is_part() || (data > 0 && (!self.more || data.is_multiple_of(8)))
    }
}

/// The proven headers of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol number of the transport; of an IPv6 fragment that of the first header which was cut, equal in all of
    /// them.
    pub protocol: u8,
    /// Traffic class, or type of service.
    pub traffic_class: u8,
    /// Hop limit, or time to live.
    pub hop_limit: u8,
    /// Whether it mustn't be cut on its way: IPv4 with the flag, IPv6 unless its sender cut it (or could have, RFC 6946).
    pub dont_fragment: bool,
    /// The transport.
    pub transport: Transport,
    /// Of a fragment, and of an IPv6 packet whose fragment header says that it is whole.
    pub fragment: Option<FragmentField>,
    /// Which datagram a fragment is part of (RFC 791 §3.1, RFC 8200 §4.5); 0 when it is no fragment.
    pub identification: u32,
    /// Where the transport header starts.
    pub transport_offset: usize,
    /// Where the payload starts: the length of all headers.
    pub payload_offset: usize,
    /// Length of the whole packet by its IP header; bytes behind it are a link's padding.
    pub total_length: usize,
}

impl Headers {
    /// Parses a packet. Every error is a [`DropReason`]: malformed, bad checksum or unsupported.
    pub fn parse(packet: &[u8]) -> Result<Self, DropReason> {
        match packet.first().map(|byte| byte >> 4) {
            Some(4) => Self::parse_ipv4(packet),
            Some(6) => Self::parse_ipv6(packet),
            _ => Err(DropReason::Malformed),
        }
    }

    fn parse_ipv4(packet: &[u8]) -> Result<Self, DropReason> {
        let header = packet.first_chunk::<IPV4_HEADER>().ok_or(DropReason::Malformed)?;
        let header_length = usize::from(header[0] & 0x0f) * 4;
        let total_length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header_length < IPV4_HEADER || total_length < header_length || total_length > packet.len() {
            return Err(DropReason::Malformed);
        }
        let mut sum = Sum::default();
        sum.add(header);
        sum.add(&packet[IPV4_HEADER..header_length]);
        if !sum.is_correct() {
            return Err(DropReason::BadChecksum);
        }
        options::check(&packet[IPV4_HEADER..header_length])?;
        let word = u16::from_be_bytes([header[6], header[7]]);
        let field = FragmentField {
            offset: usize::from(word & OFFSET) * 8,
            more: word & MORE_FRAGMENTS != 0,
            data_offset: header_length,
        };
        let mut headers = Self {
            source: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
            destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
            protocol: header[9],
            traffic_class: header[1],
            hop_limit: header[8],
            dont_fragment: word & DONT_FRAGMENT != 0,
            transport: Transport::Fragment,
            fragment: field.is_part().then_some(field),
            identification: 0,
            transport_offset: header_length,
            payload_offset: header_length,
            total_length,
        };
        if !field.is_part() {
            headers.parse_transport(&packet[..total_length])?;
            return Ok(headers);
        }
        headers.identification = u32::from(u16::from_be_bytes([header[4], header[5]]));
        let data = total_length - header_length;
        // A part that ends behind the longest datagram belongs to none.
        if !field.has_legal_length(data) || field.offset + total_length > LONGEST_DATAGRAM {
            return Err(DropReason::Malformed);
        }
        let is_tiny = match field.offset {
            0 => data < least_header(headers.protocol, false),
            // It could lie over the flags of the first (RFC 3128 §3).
            8 => headers.protocol == protocol::TCP,
            _ => false,
        };
        if is_tiny {
            return Err(DropReason::FragmentHeader);
        }
        Ok(headers)
    }

    fn parse_ipv6(packet: &[u8]) -> Result<Self, DropReason> {
        let header = packet.first_chunk::<IPV6_HEADER>().ok_or(DropReason::Malformed)?;
        let total_length = IPV6_HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
        let packet = packet.get(..total_length).ok_or(DropReason::Malformed)?;
        let chain = Chain::walk(packet, header[6])?;
        let address = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&header[at..at + 16]);
            IpAddr::V6(Ipv6Addr::from(octets))
        };
        let mut headers = Self {
            source: address(8),
            destination: address(24),
            protocol: chain.protocol,
            traffic_class: (header[0] << 4) | (header[1] >> 4),
            hop_limit: header[7],
            dont_fragment: chain.fragment.is_none(),
            transport: Transport::Fragment,
            fragment: chain.fragment.map(|fragment| fragment.field),
            identification: 0,
            transport_offset: chain.end,
            payload_offset: chain.end,
            total_length,
        };
        let Some(part) = chain.fragment.filter(|fragment| fragment.field.is_part()) else {
            headers.parse_transport(packet)?;
            return Ok(headers);
        };
        // RFC 7112 §5: the first part has all headers, the transport's too.
        if part.field.offset == 0 && total_length - chain.end < least_header(chain.protocol, true) {
            return Err(chain.cut_short());
        }
        headers.protocol = part.protocol;
        headers.identification = part.identification;
        headers.transport_offset = part.field.data_offset;
        headers.payload_offset = part.field.data_offset;
        Ok(headers)
    }

    fn parse_transport(&mut self, packet: &[u8]) -> Result<(), DropReason> {
        let transport = &packet[self.transport_offset..];
        let port = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
        let word = |at: usize| (u32::from(port(at)) << 16) | u32::from(port(at + 2));
        if transport.len() < least_header(self.protocol, self.is_ipv6()) {
            return Err(DropReason::Malformed);
        }
        let length = match (self.protocol, self.is_ipv6()) {
            (protocol::TCP, _) => {
                let length = usize::from(transport[12] >> 4) * 4;
                if length < TCP_HEADER || length > transport.len() {
                    return Err(DropReason::Malformed);
                }
                self.transport = Transport::Tcp {
                    source_port: port(0),
                    destination_port: port(2),
                    flags: transport[13],
                    sequence: word(4),
                    acknowledgement: word(8),
                    window: port(14),
                };
                length
            }
            (protocol::UDP, _) => {
                let length = usize::from(port(4));
                if length < UDP_HEADER || length > transport.len() {
                    return Err(DropReason::Malformed);
                }
                self.transport = Transport::Udp {
                    source_port: port(0),
                    destination_port: port(2),
                };
                UDP_HEADER
            }
            (protocol::ICMP, false) | (protocol::ICMPV6, true) => {
                self.transport = icmp_transport(transport[0], port(4), self.is_ipv6());
                ICMP_HEADER
            }
            _ => {
                self.transport = Transport::Other;
                0
            }
        };
        self.payload_offset = self.transport_offset + length;
        Ok(())
    }

    /// Whether it is an IPv6 packet.
    pub fn is_ipv6(&self) -> bool {
        self.source.is_ipv6()
    }

    /// The congestion field.
    pub fn ecn(&self) -> Ecn {
        Ecn::from_bits(self.traffic_class)
    }

    /// What names its flow.
    pub fn endpoints(&self) -> Endpoints {
        let (source_port, destination_port) = match self.transport {
            Transport::Tcp {
                source_port,
                destination_port,
                ..
            }
            | Transport::Udp {
                source_port,
                destination_port,
            } => (source_port, destination_port),
            Transport::Echo { identifier, .. } => (identifier, identifier),
            Transport::IcmpError | Transport::IcmpOther | Transport::Fragment | Transport::Other => (0, 0),
        };
        Endpoints {
            protocol: self.protocol,
            source: self.source,
            source_port,
            destination: self.destination,
            destination_port,
        }
    }

    /// Takes one from the hop limit, in the packet too (the IPv4 header checksum follows, RFC 1624).
    pub fn decrement_hop_limit(&mut self, packet: &mut [u8]) {
        let next = self.hop_limit.saturating_sub(1);
        if self.is_ipv6() {
            packet[7] = next;
        } else {
            let old = [packet[8], packet[9]];
            packet[8] = next;
            let new = [packet[8], packet[9]];
            let checksum = crate::frame::checksum::update([packet[10], packet[11]], old, new);
            packet[10..12].copy_from_slice(&checksum);
        }
        self.hop_limit = next;
    }

    /// Whether it is a message between neighbours on one link, which no router passes on: a redirect or router discovery
    /// (RFC 792, RFC 1256), neighbour discovery and what goes with it (RFC 4890 §4.3.3).
    pub fn stays_on_its_link(&self, packet: &[u8]) -> bool {
        let kind = match self.transport {
            Transport::IcmpError | Transport::IcmpOther => packet.get(self.transport_offset),
            Transport::Tcp { .. }
            | Transport::Udp { .. }
            | Transport::Echo { .. }
            | Transport::Fragment
            | Transport::Other => None,
        };
        match (kind, self.is_ipv6()) {
            (Some(kind), false) => matches!(kind, 5 | 9 | 10),
            (Some(kind), true) => matches!(kind, 130..=137 | 141..=143 | 148 | 149 | 151..=153),
            (None, _) => false,
        }
    }

    /// Sets the congestion field, in the packet too.
    pub fn set_ecn(&mut self, packet: &mut [u8], ecn: Ecn) {
        let class = (self.traffic_class & !0b11) | ecn.bits();
        if class == self.traffic_class {
            return;
        }
        if self.is_ipv6() {
            packet[1] = (packet[1] & 0x0f) | (class << 4);
        } else {
            let old = [packet[0], packet[1]];
            packet[1] = class;
            let new = [packet[0], packet[1]];
            let checksum = crate::frame::checksum::update([packet[10], packet[11]], old, new);
            packet[10..12].copy_from_slice(&checksum);
        }
        self.traffic_class = class;
    }
}

/// The shortest header of a transport; nothing of one that isn't looked into.
const fn least_header(number: u8, ipv6: bool) -> usize {
    match (number, ipv6) {
        (protocol::TCP, _) => TCP_HEADER,
        (protocol::UDP, _) => UDP_HEADER,
        (protocol::ICMP, false) | (protocol::ICMPV6, true) => ICMP_HEADER,
        _ => 0,
    }
}

/// ICMP types (RFC 792; RFC 4443 §2.1: errors are those below 128).
fn icmp_transport(kind: u8, identifier: u16, ipv6: bool) -> Transport {
    match (kind, ipv6) {
        (8, false) | (128, true) => Transport::Echo {
            identifier,
            request: true,
        },
        (0, false) | (129, true) => Transport::Echo {
            identifier,
            request: false,
        },
        (3 | 4 | 5 | 11 | 12, false) | (0..=127, true) => Transport::IcmpError,
        _ => Transport::IcmpOther,
    }
}

#[cfg(test)]
mod tests;
