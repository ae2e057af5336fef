//! How large a packet inside may be, by the underlay's MTU and family.

use std::net::IpAddr;
use tidegate_stack::plan::Mtu;

/// UDP header (RFC 768).
const UDP: u32 = 8;
/// WireGuard data message: header 16, tag 16.
const WIREGUARD: u32 = 32;
/// Inner IPv4 20, UDP 8, VXLAN 8, Ethernet 14 (RFC 7348 §5).
const VXLAN: u32 = 50;

/// The family of an underlay address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// IPv4: 20 bytes of header.
    Ipv4,
    /// IPv6: 40 bytes of header.
    Ipv6,
}

impl Family {
    /// The family of an address.
    pub(crate) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }

    fn header(self) -> u32 {
        match self {
            Self::Ipv4 => 20,
            Self::Ipv6 => 40,
        }
    }
}

/// The largest packet inside: what the underlay leaves, but never below the 1280 that IPv6 inside needs.
pub(crate) fn inner_mtu(underlay: u32, family: Family) -> Mtu {
    // The number is inside the range by the two bounds.
    Mtu::try_from(u64::from(room(underlay, family)).clamp(Mtu::MIN.into(), Mtu::MAX.into()))
        .unwrap_or(Mtu::MIN)
}

/// Whether datagrams towards a peer may have to be fragmented on the underlay: it leaves less than 1280 bytes.
pub(crate) fn fragments_outside(underlay: u32, family: Family) -> bool {
    room(underlay, family) < u32::from(Mtu::MIN.get())
}

fn room(underlay: u32, family: Family) -> u32 {
    underlay.saturating_sub(family.header() + UDP + WIREGUARD + VXLAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inner_mtu_is_what_the_underlay_leaves_but_never_below_1280() {
        assert_eq!(inner_mtu(1500, Family::Ipv4).get(), 1390);
        assert_eq!(inner_mtu(1500, Family::Ipv6).get(), 1370);
        assert_eq!(inner_mtu(9000, Family::Ipv4).get(), 8890);
        assert_eq!(inner_mtu(1300, Family::Ipv4), Mtu::MIN);
        assert_eq!(inner_mtu(0, Family::Ipv6), Mtu::MIN);
        assert_eq!(inner_mtu(u32::MAX, Family::Ipv4), Mtu::MAX);
        assert!(fragments_outside(1389, Family::Ipv4));
        assert!(!fragments_outside(1390, Family::Ipv4));
    }
}
