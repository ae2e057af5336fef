//! The packet inside an ICMP error: only its beginning may be there, and its lengths and checksums mean nothing.

use super::{Endpoints, extensions, protocol};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What a quote tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// The quoted packet's addresses and ports.
    pub endpoints: Endpoints,
    /// The sequence number of a TCP segment, if so much of it is quoted: what an off-path attacker would have to guess
    /// (RFC 5927 §4.1).
    pub tcp_sequence: Option<u32>,
}

/// The packet that an ICMP error (behind its eight bytes of header) quotes. `None` when less than addresses and ports is
/// there, when they stand behind something that isn't understood, or when it isn't the first part of its datagram.
pub fn parse(quote: &[u8]) -> Option<Quoted> {
    let (number, source, destination, transport): (u8, IpAddr, IpAddr, &[u8]) = match quote.first()? >> 4 {
        4 => {
            let header = quote.first_chunk::<20>()?;
            let length = usize::from(header[0] & 0x0f) * 4;
            if length < 20 || u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0 {
                return None;
            }
            let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
            let destination = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
            (header[9], source.into(), destination.into(), quote.get(length..)?)
        }
        6 => {
            let header = quote.first_chunk::<40>()?;
            let source = Ipv6Addr::from(*header[8..].first_chunk::<16>()?);
            let destination = Ipv6Addr::from(*header[24..].first_chunk::<16>()?);
            let (number, transport) = extensions::quoted(quote, header[6])?;
            (number, source.into(), destination.into(), transport)
        }
        _ => return None,
    };
    let word = |at: usize| Some(u16::from_be_bytes(*transport.get(at..)?.first_chunk::<2>()?));
    let (source_port, destination_port) = match (number, source.is_ipv6()) {
        (protocol::TCP | protocol::UDP, _) => (word(0)?, word(2)?),
        (protocol::ICMP, false) | (protocol::ICMPV6, true) => match (transport.first()?, source.is_ipv6()) {
            (0 | 8, false) | (128 | 129, true) => (word(4)?, word(4)?),
            _ => return None,
        },
        _ => (0, 0),
    };
    let endpoints = Endpoints {
        protocol: number,
        source,
        source_port,
        destination,
        destination_port,
    };
    let sequence = transport.get(4..).and_then(|rest| rest.first_chunk::<4>());
    Some(Quoted {
        endpoints,
        tcp_sequence: sequence
            .filter(|_| number == protocol::TCP)
            .map(|bytes| u32::from_be_bytes(*bytes)),
    })
}
