//! What must stand in front of a packet that came out of a tunnel.

use crate::drop::DropReason;
use crate::plan::Vni;
use crate::wire::vxlan::{self, EtherType};
use crate::wire::{Ecn, Headers, MacAddr, Transport};
use std::net::Ipv4Addr;
use std::ops::Range;

/// A packet without its VXLAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decapsulated {
    /// Its network.
    pub vni: Vni,
    /// What it is.
    pub ether_type: EtherType,
    /// Source MAC address.
    pub source: MacAddr,
    /// Destination MAC address.
    pub destination: MacAddr,
    /// The congestion field of the VXLAN packet's own IP header.
    pub ecn: Ecn,
    /// Where the Ethernet frame starts in the plaintext.
    pub frame: Range<usize>,
    /// Where the packet starts in the plaintext.
    pub packet: Range<usize>,
}

/// Takes apart what a tunnel opened: an IPv4 packet from `far` to `near`, UDP to port 4789, the I flag set.
pub fn decap(plain: &[u8], far: Ipv4Addr, near: Ipv4Addr) -> Result<Decapsulated, DropReason> {
    let outer = Headers::parse(plain).map_err(|_| DropReason::NotVxlan)?;
    let Transport::Udp {
        destination_port: vxlan::PORT,
        ..
    } = outer.transport
    else {
        return Err(DropReason::NotVxlan);
    };
    if outer.source != far || outer.destination != near {
        return Err(DropReason::NotVxlan);
    }
    let parsed = vxlan::parse(&plain[outer.payload_offset..outer.total_length])?;
    let frame = outer.payload_offset + vxlan::HEADER;
    Ok(Decapsulated {
        vni: parsed.vni,
        ether_type: parsed.ether_type,
        source: parsed.source,
        destination: parsed.destination,
        ecn: outer.ecn(),
        frame: frame..outer.total_length,
        packet: frame + vxlan::ETHERNET_HEADER..outer.total_length,
    })
}
