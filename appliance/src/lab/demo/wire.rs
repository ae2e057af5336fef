//! What a frame on the underlay is, and whether it may be there: datagrams of WireGuard lanes, and what hosts of an
//! Ethernet say to find each other. Anything else is a stranger, and so is any of these for another address.
//!
//! Pure.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const PROTOCOL_HOP_BY_HOP: u8 = 0;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ICMPV6: u8 = 58;
const ETHERNET_HEADER: usize = 14;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;

/// A transport message of WireGuard: type 4. What follows its header is ciphertext.
const WIREGUARD_TRANSPORT: u8 = 4;
const WIREGUARD_TRANSPORT_HEADER: usize = 16;

/// What there may be on an underlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Underlay {
    /// The prefixes of its addresses.
    pub(super) prefixes: Vec<IpNet>,
    /// The UDP ports of the lanes.
    pub(super) lanes: Vec<RangeInclusive<u16>>,
    /// The UDP ports of the hosts' links to each other.
    pub(super) links: Vec<u16>,
}

/// What a frame is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A WireGuard message of type 1 to 4 (a super-packet goes by its first).
    Lane(u8),
    /// QUIC between two hosts' control ports.
    Link,
    /// ARP, or neighbour or multicast listener discovery, for addresses of the underlay.
    Discovery,
    /// Anything else.
    Stranger(String),
}

impl Underlay {
    /// Tells what a frame is, and which of its bytes are readable: everything but ciphertext.
    pub(super) fn classify<'a>(&self, frame: &'a [u8]) -> (Kind, &'a [u8]) {
        let kind = match u16_at(frame, 12) {
            Some(ETHERTYPE_ARP) => self.arp(frame),
            Some(ETHERTYPE_IPV4) => self.ipv4(frame),
            Some(ETHERTYPE_IPV6) => self.ipv6(frame),
            Some(other) => Some((Kind::Stranger(format!("EtherType {other:#06x}")), frame.len())),
            None => None,
        };
        let (kind, readable) =
            kind.unwrap_or_else(|| (Kind::Stranger("a frame cut short".to_owned()), frame.len()));
        (kind, frame.get(..readable).unwrap_or(frame))
    }

    fn arp(&self, frame: &[u8]) -> Option<(Kind, usize)> {
        let sender = ipv4_at(frame, ETHERNET_HEADER + 14)?;
        let target = ipv4_at(frame, ETHERNET_HEADER + 24)?;
        let kind = if self.has(sender) && self.has(target) {
            Kind::Discovery
        } else {
            Kind::Stranger(format!("ARP of {sender} for {target}"))
        };
        Some((kind, frame.len()))
    }

    fn ipv4(&self, frame: &[u8]) -> Option<(Kind, usize)> {
        let header = usize::from(frame.get(ETHERNET_HEADER)? & 0x0f) * 4;
        let protocol = *frame.get(ETHERNET_HEADER + 9)?;
        let source = ipv4_at(frame, ETHERNET_HEADER + 12)?;
        let destination = ipv4_at(frame, ETHERNET_HEADER + 16)?;
        self.datagram(frame, protocol, ETHERNET_HEADER + header, source, destination)
    }

    fn ipv6(&self, frame: &[u8]) -> Option<(Kind, usize)> {
        let source = ipv6_at(frame, ETHERNET_HEADER + 8)?;
        let destination = ipv6_at(frame, ETHERNET_HEADER + 24)?;
        let mut protocol = *frame.get(ETHERNET_HEADER + 6)?;
        let mut at = ETHERNET_HEADER + IPV6_HEADER;
        // Multicast listener reports carry a router alert (RFC 3810 §5).
        if protocol == PROTOCOL_HOP_BY_HOP {
            protocol = *frame.get(at)?;
            at += (usize::from(*frame.get(at + 1)?) + 1) * 8;
        }
        if protocol != PROTOCOL_ICMPV6 {
            return self.datagram(frame, protocol, at, source, destination);
        }
        // Queries and reports of listeners, then neighbour discovery (RFC 2710, RFC 4861, RFC 3810).
        let is_discovery = matches!(*frame.get(at)?, 130..=137 | 143);
        let kind = if is_discovery && self.has(source) && self.has(destination) {
            Kind::Discovery
        } else {
            Kind::Stranger(format!("ICMPv6 from {source} to {destination}"))
        };
        Some((kind, frame.len()))
    }

    fn datagram(
        &self,
        frame: &[u8],
        protocol: u8,
        at: usize,
        source: IpAddr,
        destination: IpAddr,
    ) -> Option<(Kind, usize)> {
        let stranger = |what: String| Some((Kind::Stranger(what), frame.len()));
        if protocol != PROTOCOL_UDP {
            return stranger(format!("protocol {protocol} from {source} to {destination}"));
        }
        let (from, to) = (u16_at(frame, at)?, u16_at(frame, at + 2)?);
        let message = at + UDP_HEADER;
        if [from, to].iter().all(|port| self.links.contains(port))
            && self.has(source)
            && self.has(destination)
        {
            return Some((Kind::Link, frame.len()));
        }
        let is_lane = |port| self.lanes.iter().any(|lanes| lanes.contains(port));
        if ![from, to].iter().all(is_lane) || !self.has(source) || !self.has(destination) {
            return stranger(format!(
                "UDP from {source} port {from} to {destination} port {to}"
            ));
        }
        // A type and three reserved zeroes open every message (whitepaper §5.4).
        match frame.get(message..message + 4)? {
            [kind @ 1..=4, 0, 0, 0] => {
                let readable = if *kind == WIREGUARD_TRANSPORT {
                    message + WIREGUARD_TRANSPORT_HEADER
                } else {
                    frame.len()
                };
                Some((Kind::Lane(*kind), readable))
            }
            opening => stranger(format!("a lane's datagram that begins with {opening:02x?}")),
        }
    }

    fn has(&self, address: IpAddr) -> bool {
        let is_local = match address {
            IpAddr::V4(_) => false,
            IpAddr::V6(address) => {
                address.is_unspecified() || address.is_multicast() || address.is_unicast_link_local()
            }
        };
        is_local || self.prefixes.iter().any(|prefix| prefix.contains(&address))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

fn ipv4_at(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(IpAddr::V4(Ipv4Addr::from(octets)))
}

fn ipv6_at(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(IpAddr::V6(Ipv6Addr::from(octets)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn underlay() -> Underlay {
        let prefixes = vec![
            "192.0.2.0/24".parse().unwrap(),
            "2001:db8:1::/64".parse().unwrap(),
        ];
        Underlay {
            prefixes,
            lanes: vec![51820..=51948],
            links: vec![4668],
        }
    }

    fn ipv4_udp(source: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend(ETHERTYPE_IPV4.to_be_bytes());
        frame.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, PROTOCOL_UDP, 0, 0]);
        frame.extend(source);
        frame.extend([192, 0, 2, 12]);
        frame.extend(51820_u16.to_be_bytes());
        frame.extend(port.to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn transport_message_is_readable_up_to_its_ciphertext() {
        let frame = ipv4_udp(
            [192, 0, 2, 11],
            51820,
            &[&[4, 0, 0, 0][..], &[1; 12], &[2; 32]].concat(),
        );
        let (kind, readable) = underlay().classify(&frame);
        assert_eq!(kind, Kind::Lane(4));
        assert_eq!(readable.len(), frame.len() - 32);
    }

    #[test]
    fn other_ports_addresses_and_openings_are_strangers() {
        let message = [4, 0, 0, 0, 1, 1, 1, 1];
        for frame in [
            ipv4_udp([192, 0, 2, 11], 4789, &message),
            ipv4_udp([172, 19, 1, 2], 51820, &message),
            ipv4_udp([192, 0, 2, 11], 51820, &[8, 0, 0, 0]),
            ipv4_udp([192, 0, 2, 11], 51820, &[4, 0]),
            vec![0; 5],
        ] {
            assert!(
                matches!(underlay().classify(&frame).0, Kind::Stranger(_)),
                "{frame:02x?}"
            );
        }
    }

    #[test]
    fn link_is_between_control_ports() {
        let mut frame = ipv4_udp([192, 0, 2, 11], 4668, &[0xc0; 32]);
        assert!(matches!(underlay().classify(&frame).0, Kind::Stranger(_)));
        frame[34..36].copy_from_slice(&4668_u16.to_be_bytes());
        assert_eq!(underlay().classify(&frame).0, Kind::Link);
    }

    #[test]
    fn arp_may_only_ask_for_underlay_addresses() {
        let arp = |target: [u8; 4]| {
            let mut frame = vec![0; 12];
            frame.extend(ETHERTYPE_ARP.to_be_bytes());
            frame.extend([
                0, 1, 8, 0, 6, 4, 0, 1, 2, 2, 2, 2, 2, 2, 192, 0, 2, 11, 0, 0, 0, 0, 0, 0,
            ]);
            frame.extend(target);
            frame
        };
        assert_eq!(underlay().classify(&arp([192, 0, 2, 12])).0, Kind::Discovery);
        assert!(matches!(
            underlay().classify(&arp([172, 19, 2, 2])).0,
            Kind::Stranger(_)
        ));
    }

    #[test]
    fn listener_report_with_router_alert_is_discovery() {
        let mut frame = vec![0; 12];
        frame.extend(ETHERTYPE_IPV6.to_be_bytes());
        frame.extend([0x60, 0, 0, 0, 0, 28, PROTOCOL_HOP_BY_HOP, 1]);
        frame.extend(Ipv6Addr::UNSPECIFIED.octets());
        frame.extend("ff02::16".parse::<Ipv6Addr>().unwrap().octets());
        frame.extend([PROTOCOL_ICMPV6, 0, 5, 2, 0, 0, 1, 0]);
        frame.extend([143, 0, 0, 0]);
        assert_eq!(underlay().classify(&frame).0, Kind::Discovery);
    }
}
