//! The one parse of an IP packet: every offset that later steps use is proven here.
//!
//! IPv4 (RFC 791), IPv6 (RFC 8200), TCP (RFC 9293), UDP (RFC 768), ICMP (RFC 792, RFC 4443).

use super::{Ecn, Endpoints};
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

/// Header of IPv6 fragments (RFC 8200 §4.5).
const IPV6_FRAGMENT: u8 = 44;
/// IPv6 extension headers that aren't carried yet: hop-by-hop, routing, ESP, authentication, destination options.
const IPV6_UNSUPPORTED: [u8; 5] = [0, 43, 50, 51, 60];
/// What 16 bits of length can say (RFC 791 §3.1, RFC 8200 §4.5).
const LONGEST_DATAGRAM: usize = 65_535;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const IPV6_FRAGMENT_HEADER: usize = 8;
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

/// The proven headers of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol number of the transport.
    pub protocol: u8,
    /// Traffic class, or type of service.
    pub traffic_class: u8,
    /// Hop limit, or time to live.
    pub hop_limit: u8,
    /// Whether routers mustn't fragment it (always so with IPv6).
    pub dont_fragment: bool,
    /// The transport.
    pub transport: Transport,
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
        let total_length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        match header[0] & 0x0f {
            5 => {}
            0..=4 => return Err(DropReason::Malformed),
            _ => return Err(DropReason::IpOptions),
        }
        if total_length < IPV4_HEADER || total_length > packet.len() {
            return Err(DropReason::Malformed);
        }
        let mut sum = Sum::default();
        sum.add(header);
        if !sum.is_correct() {
            return Err(DropReason::BadChecksum);
        }
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
        let destination = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
        let mut headers = Self {
            source: source.into(),
            destination: destination.into(),
            protocol: header[9],
            traffic_class: header[1],
            hop_limit: header[8],
            dont_fragment: fragment & 0x4000 != 0,
            transport: Transport::Fragment,
            identification: 0,
            transport_offset: IPV4_HEADER,
            payload_offset: IPV4_HEADER,
            total_length,
        };
        // A part that ends behind the longest datagram belongs to none.
        if usize::from(fragment & 0x1fff) * 8 + total_length > LONGEST_DATAGRAM {
            return Err(DropReason::Malformed);
        }
        if fragment & 0x3fff == 0 {
            headers.parse_transport(&packet[..total_length])?;
        } else {
            headers.identification = u32::from(u16::from_be_bytes([header[4], header[5]]));
        }
        Ok(headers)
    }

    fn parse_ipv6(packet: &[u8]) -> Result<Self, DropReason> {
        let header = packet.first_chunk::<IPV6_HEADER>().ok_or(DropReason::Malformed)?;
        let total_length = IPV6_HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
        if total_length > packet.len() {
            return Err(DropReason::Malformed);
        }
        let address = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&header[at..at + 16]);
            IpAddr::V6(Ipv6Addr::from(octets))
        };
        let mut headers = Self {
            source: address(8),
            destination: address(24),
            protocol: header[6],
            traffic_class: (header[0] << 4) | (header[1] >> 4),
            hop_limit: header[7],
            dont_fragment: true,
            transport: Transport::Fragment,
            identification: 0,
            transport_offset: IPV6_HEADER,
            payload_offset: IPV6_HEADER,
            total_length,
        };
        if headers.protocol == IPV6_FRAGMENT {
            let fragment = packet[..total_length]
                .get(IPV6_HEADER..IPV6_HEADER + IPV6_FRAGMENT_HEADER)
                .ok_or(DropReason::Malformed)?;
            let offset = usize::from(u16::from_be_bytes([fragment[2], fragment[3]]) & !7);
            if offset + total_length - IPV6_FRAGMENT_HEADER > IPV6_HEADER + LONGEST_DATAGRAM {
                return Err(DropReason::Malformed);
            }
            headers.protocol = fragment[0];
            headers.identification = u32::from_be_bytes([fragment[4], fragment[5], fragment[6], fragment[7]]);
            headers.transport_offset += IPV6_FRAGMENT_HEADER;
            headers.payload_offset = headers.transport_offset;
        } else if IPV6_UNSUPPORTED.contains(&headers.protocol) {
            return Err(DropReason::ExtensionHeader);
        } else {
            headers.parse_transport(&packet[..total_length])?;
        }
        Ok(headers)
    }

    fn parse_transport(&mut self, packet: &[u8]) -> Result<(), DropReason> {
        let transport = &packet[self.transport_offset..];
        let port = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
        let word = |at: usize| (u32::from(port(at)) << 16) | u32::from(port(at + 2));
        let length = match (self.protocol, self.is_ipv6()) {
            (protocol::TCP, _) => {
                if transport.len() < TCP_HEADER {
                    return Err(DropReason::Malformed);
                }
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
                if transport.len() < UDP_HEADER {
                    return Err(DropReason::Malformed);
                }
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
                if transport.len() < ICMP_HEADER {
                    return Err(DropReason::Malformed);
                }
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
mod tests {
    use super::*;
    use crate::frame::checksum::checksum;

    /// A part of 16 bytes, `units` · 8 bytes into its datagram.
    fn part(units: u16, ipv6: bool) -> Vec<u8> {
        let mut packet = vec![0; if ipv6 { 64 } else { 36 }];
        if ipv6 {
            packet[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 24, 44, 64]);
            packet[40] = protocol::UDP;
            packet[42..44].copy_from_slice(&(units << 3).to_be_bytes());
        } else {
            packet[..4].copy_from_slice(&[0x45, 0, 0, 36]);
            packet[6..8].copy_from_slice(&units.to_be_bytes());
            packet[8..10].copy_from_slice(&[64, protocol::UDP]);
            let sum = checksum(&packet[..20]);
            packet[10..12].copy_from_slice(&sum);
        }
        packet
    }

    #[test]
    fn no_part_of_a_datagram_ends_behind_the_longest_one() {
        // IPv4 counts its header in, IPv6 doesn't.
        for (ipv6, last) in [(false, 8187), (true, 8189)] {
            let good = Headers::parse(&part(last, ipv6));
            assert_eq!(good.map(|headers| headers.transport), Ok(Transport::Fragment));
            assert_eq!(Headers::parse(&part(last + 1, ipv6)), Err(DropReason::Malformed));
        }
    }
}
