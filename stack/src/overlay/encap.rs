//! The headers in front of a packet inside a tunnel: IPv4 and UDP between two VTEPs, VXLAN, Ethernet.

use crate::frame::checksum::checksum;
use crate::plan::Vni;
use crate::wire::vxlan::{self, EtherType};
use crate::wire::{Ecn, MacAddr, protocol};
use std::net::Ipv4Addr;

const IPV4: usize = 0;
const UDP: usize = 20;
const VXLAN: usize = 28;
const ETHERNET: usize = 36;
/// Hop limit of the outer header: the far VTEP is the next hop (RFC 5082 would ask for as much).
const HOP_LIMIT: u8 = 64;
/// First source port: the dynamic range (RFC 7348 §5).
const FIRST_SOURCE_PORT: u16 = 49_152;

/// Prepared headers; lengths are filled in for each packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encap([u8; Encap::LENGTH]);

impl Encap {
    /// What it adds to a packet.
    pub const LENGTH: usize = 50;

    /// Headers from this host's VTEP to another one. `entropy` chooses the source port, so that a flow keeps one and
    /// flows differ (RFC 7348 §5). The outer datagram is never fragmented (§4.3), and has no UDP checksum (§5).
    pub fn new(
        source: Ipv4Addr,
        destination: Ipv4Addr,
        vni: Vni,
        source_mac: MacAddr,
        ether_type: EtherType,
        entropy: u16,
    ) -> Self {
        let mut bytes = [0; Self::LENGTH];
        bytes[0] = 0x45;
        bytes[6] = 0x40; // don't fragment
        bytes[8] = HOP_LIMIT;
        bytes[9] = protocol::UDP;
        bytes[12..16].copy_from_slice(&source.octets());
        bytes[16..20].copy_from_slice(&destination.octets());
        bytes[UDP..UDP + 2].copy_from_slice(&(FIRST_SOURCE_PORT | entropy).to_be_bytes());
        bytes[UDP + 2..UDP + 4].copy_from_slice(&vxlan::PORT.to_be_bytes());
        bytes[VXLAN] = vxlan::FLAG_VNI;
        bytes[VXLAN + 4..VXLAN + 7].copy_from_slice(&vni.get().to_be_bytes()[1..]);
        bytes[ETHERNET + 6..ETHERNET + 12].copy_from_slice(&source_mac.0);
        bytes[ETHERNET + 12..ETHERNET + 14].copy_from_slice(&ether_type.number().to_be_bytes());
        Self(bytes)
    }

    /// Sets the destination MAC address.
    pub fn set_destination(&mut self, mac: MacAddr) {
        self.0[ETHERNET..ETHERNET + 6].copy_from_slice(&mac.0);
    }

    /// Sets the congestion field of the outer header: a copy of the inner one (RFC 6040 §4.1, normal mode).
    pub fn set_ecn(&mut self, ecn: Ecn) {
        self.0[IPV4 + 1] = ecn.bits();
    }

    /// Fills in the lengths for packets of `length` bytes (not counting any of these headers).
    pub fn set_length(&mut self, length: usize) {
        let udp = Self::LENGTH - UDP + length;
        let total = u16::try_from(UDP + udp).unwrap_or(u16::MAX);
        let udp = u16::try_from(udp).unwrap_or(u16::MAX);
        self.0[2..4].copy_from_slice(&total.to_be_bytes());
        self.0[UDP + 4..UDP + 6].copy_from_slice(&udp.to_be_bytes());
        self.0[10..12].fill(0);
        let sum = checksum(&self.0[..20]);
        self.0[10..12].copy_from_slice(&sum);
    }

    /// The headers.
    pub fn bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }
}
