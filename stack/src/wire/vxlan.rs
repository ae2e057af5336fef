//! VXLAN's frame format (RFC 7348 §5) and the Ethernet header inside it.

use super::MacAddr;
use crate::drop::DropReason;
use crate::plan::Vni;

/// UDP port of VXLAN (RFC 7348 §5).
pub const PORT: u16 = 4789;
/// Length of the VXLAN header.
pub const HEADER: usize = 8;
/// Length of an Ethernet header.
pub const ETHERNET_HEADER: usize = 14;
/// The I flag: the VNI counts.
pub const FLAG_VNI: u8 = 0x08;

/// What an Ethernet frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EtherType {
    /// IPv4.
    Ipv4,
    /// ARP (RFC 826).
    Arp,
    /// IPv6.
    Ipv6,
}

impl EtherType {
    /// The number on the wire.
    pub const fn number(self) -> u16 {
        match self {
            Self::Ipv4 => 0x0800,
            Self::Arp => 0x0806,
            Self::Ipv6 => 0x86dd,
        }
    }
}

/// A VXLAN packet's two headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The network.
    pub vni: Vni,
    /// Destination MAC address.
    pub destination: MacAddr,
    /// Source MAC address.
    pub source: MacAddr,
    /// What follows.
    pub ether_type: EtherType,
}

/// Parses the payload of a UDP datagram to port 4789; what is carried starts at `HEADER + ETHERNET_HEADER`.
pub fn parse(payload: &[u8]) -> Result<Parsed, DropReason> {
    let header = payload
        .first_chunk::<{ HEADER + ETHERNET_HEADER }>()
        .ok_or(DropReason::NotVxlan)?;
    if header[0] & FLAG_VNI == 0 {
        return Err(DropReason::VxlanFlags);
    }
    let number = u32::from_be_bytes([0, header[4], header[5], header[6]]);
    let vni = Vni::try_from(u64::from(number)).map_err(|_| DropReason::UnknownVni)?;
    let mac = |at: usize| {
        let mut octets = [0; 6];
        octets.copy_from_slice(&header[at..at + 6]);
        MacAddr(octets)
    };
    let ether_type = match u16::from_be_bytes([header[20], header[21]]) {
        0x0800 => EtherType::Ipv4,
        0x0806 => EtherType::Arp,
        0x86dd => EtherType::Ipv6,
        _ => return Err(DropReason::NotOurs),
    };
    Ok(Parsed {
        vni,
        destination: mac(HEADER),
        source: mac(HEADER + 6),
        ether_type,
    })
}
