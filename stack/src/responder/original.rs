//! The packet that is answered, as far as an answer needs to know it.

use super::{IPV4_HEADER, IPV6_HEADER, PROTOCOL_ICMP, PROTOCOL_ICMPV6};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const DONT_FRAGMENT: u16 = 0x4000;

/// An IP packet, cut to the length that its header says.
pub(super) struct Original<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// What `transport` is, behind all extension headers.
    pub(super) protocol: u8,
    pub(super) transport: &'a [u8],
    pub(super) fragment: Fragment,
    /// What its sender calls it, if its sender lets it be cut: IPv4 without the flag, IPv6 with a fragment header.
    pub(super) identification: Option<u32>,
}

/// Whether a packet is all of a datagram.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fragment {
    Whole,
    First,
    Later,
}

impl<'a> Original<'a> {
    pub(super) fn parse(packet: &'a [u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::parse_ipv4(packet),
            6 => Self::parse_ipv6(packet),
            _ => None,
        }
    }

    fn parse_ipv4(packet: &'a [u8]) -> Option<Self> {
        let header: &[u8; IPV4_HEADER] = packet.first_chunk()?;
        let header_length = usize::from(header[0] & 0x0f) * 4;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header_length < IPV4_HEADER || length < header_length {
            return None;
        }
        let field = u16::from_be_bytes([header[6], header[7]]);
        Some(Self {
            source: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
            destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
            protocol: header[9],
            transport: packet.get(header_length..length)?,
            fragment: Fragment::new(field & 0x1fff, field & 0x2000 != 0),
            identification: (field & DONT_FRAGMENT == 0)
                .then_some(u32::from(u16::from_be_bytes([header[4], header[5]]))),
        })
    }

    fn parse_ipv6(packet: &'a [u8]) -> Option<Self> {
        let header: &[u8; IPV6_HEADER] = packet.first_chunk()?;
        let (_, addresses) = header.split_at(8);
        let (source, destination) = addresses.split_at(16);
        let length = IPV6_HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
        let mut original = Self {
            source: Ipv6Addr::from(<[u8; 16]>::try_from(source).ok()?).into(),
            destination: Ipv6Addr::from(<[u8; 16]>::try_from(destination).ok()?).into(),
            protocol: header[6],
            transport: packet.get(IPV6_HEADER..length)?,
            fragment: Fragment::Whole,
            identification: None,
        };
        original.skip_extensions()?;
        Some(original)
    }

    /// Walks over extension headers (RFC 8200 §4); each takes at least 8 bytes away, so this ends.
    fn skip_extensions(&mut self) -> Option<()> {
        while is_extension(self.protocol) && self.fragment != Fragment::Later {
            let [next, length, high, low, identification @ ..] = *self.transport.first_chunk::<8>()?;
            let skipped = match self.protocol {
                FRAGMENT => {
                    let field = u16::from_be_bytes([high, low]);
                    self.fragment = Fragment::new(field >> 3, field & 1 != 0);
                    self.identification = Some(u32::from_be_bytes(identification));
                    8
                }
                AUTHENTICATION => (usize::from(length) + 2) * 4,
                _ => (usize::from(length) + 1) * 8,
            };
            self.transport = self.transport.get(skipped..)?;
            self.protocol = next;
        }
        Some(())
    }

    /// Whether an ICMP error may tell its sender about it: RFC 1122 §3.2.2, RFC 1812 §4.3.2.7, RFC 4443 §2.4 e.
    /// `to_groups`: packet-too-big is sent about multicast too.
    pub(super) fn may_cause_error(&self, to_groups: bool) -> bool {
        if self.fragment == Fragment::Later || self.is_icmp_error() {
            return false;
        }
        let to_one = match self.destination {
            IpAddr::V4(address) => !address.is_multicast() && !address.is_broadcast(),
            IpAddr::V6(address) => to_groups || !address.is_multicast(),
        };
        let from_one = match self.source {
            // Class E has no hosts (RFC 1112 §4); the limited broadcast is in it.
            IpAddr::V4(address) => {
                !address.is_multicast()
                    && !address.is_unspecified()
                    && !address.is_loopback()
                    && address.octets()[0] < 240
            }
            IpAddr::V6(address) => {
                !address.is_multicast() && !address.is_unspecified() && !address.is_loopback()
            }
        };
        to_one && from_one
    }

    fn is_icmp_error(&self) -> bool {
        let Some(&kind) = self.transport.first() else {
            // Too short to tell: better silent.
            return matches!(self.protocol, PROTOCOL_ICMP | PROTOCOL_ICMPV6);
        };
        match (self.destination, self.protocol) {
            // Everything but the queries: echo, timestamp and router discovery (RFC 792, RFC 1256).
            (IpAddr::V4(_), PROTOCOL_ICMP) => !matches!(kind, 0 | 8 | 9 | 10 | 13..=18),
            // RFC 4443 §2.1: errors have the highest bit clear. Redirects are no cause either.
            (IpAddr::V6(_), PROTOCOL_ICMPV6) => kind < 128 || kind == 137,
            _ => false,
        }
    }
}

impl Fragment {
    const fn new(offset: u16, more: bool) -> Self {
        match (offset, more) {
            (0, false) => Self::Whole,
            (0, true) => Self::First,
            (_, _) => Self::Later,
        }
    }
}

const fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS
    )
}
