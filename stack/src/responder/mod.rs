//! What the appliance says by itself: ICMP, TCP resets, ARP, neighbour discovery, DNS, and questions whether instances
//! are ready.
//!
//! Every function of the answers is one of bytes: what is answered in, the answer into the caller's buffer, its length out.
//! `None` means that the standard forbids an answer, that there is nothing to answer, or that the buffer is too
//! small. Nothing here sends, and nothing here knows a network: who may be answered is decided before.
//!
//! [`icmp`] and [`tcp`] make IP packets for an instance; [`arp`] and [`ndp`] make Ethernet frames, header included,
//! as they travel inside VXLAN.

pub mod arp;
pub mod dns;
mod endpoint;
pub mod icmp;
pub mod ndp;
mod original;
mod rate;
pub mod readiness;
pub mod tcp;

pub use rate::RateLimit;

use crate::wire::MacAddr;
use std::net::IpAddr;

/// Length of an Ethernet header without a tag.
pub const ETHERNET_HEADER: usize = 14;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_ICMPV6: u8 = 58;
/// Hop limit of what is answered.
const HOP_LIMIT: u8 = 64;

/// Writes an Ethernet header at the start of `out`.
fn write_ethernet(out: &mut [u8; ETHERNET_HEADER], destination: MacAddr, source: MacAddr, kind: u16) {
    out[..6].copy_from_slice(&destination.0);
    out[6..12].copy_from_slice(&source.0);
    out[12..].copy_from_slice(&kind.to_be_bytes());
}

/// The addresses of an IP packet, of one family.
#[derive(Clone, Copy)]
enum Addresses {
    V4([u8; 4], [u8; 4]),
    V6([u8; 16], [u8; 16]),
}

impl Addresses {
    /// `None` when the two are of different families.
    fn new(source: IpAddr, destination: IpAddr) -> Option<Self> {
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                Some(Self::V4(source.octets(), destination.octets()))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                Some(Self::V6(source.octets(), destination.octets()))
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
        }
    }

    const fn header_length(self) -> usize {
        match self {
            Self::V4(..) => IPV4_HEADER,
            Self::V6(..) => IPV6_HEADER,
        }
    }

    /// Writes the header of a packet whose payload fills the rest of `packet`, and gives the payload. `None` when the
    /// packet is shorter than a header, or longer than a header can say.
    fn write_header(self, packet: &mut [u8], protocol: u8, hop_limit: u8) -> Option<&mut [u8]> {
        let length = packet.len();
        let (header, payload) = packet.split_at_mut_checked(self.header_length())?;
        header.fill(0);
        match self {
            // RFC 791 §3.1. Identification is zero: never fragmented here, and DF lets nobody else (RFC 6864 §4.1).
            Self::V4(source, destination) => {
                header[0] = 0x45;
                header[2..4].copy_from_slice(&u16::try_from(length).ok()?.to_be_bytes());
                header[6] = 0x40;
                header[8] = hop_limit;
                header[9] = protocol;
                header[12..16].copy_from_slice(&source);
                header[16..20].copy_from_slice(&destination);
                let checksum = crate::frame::checksum::checksum(header);
                header[10..12].copy_from_slice(&checksum);
            }
            // RFC 8200 §3.
            Self::V6(source, destination) => {
                header[0] = 0x60;
                header[4..6].copy_from_slice(&u16::try_from(payload.len()).ok()?.to_be_bytes());
                header[6] = protocol;
                header[7] = hop_limit;
                header[8..24].copy_from_slice(&source);
                header[24..40].copy_from_slice(&destination);
            }
        }
        Some(payload)
    }
}

#[cfg(test)]
mod tests;
