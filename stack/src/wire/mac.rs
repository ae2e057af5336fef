//! Ethernet addresses (IEEE 802), as they stand inside VXLAN.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Everybody on the segment.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// No address.
    pub const UNSPECIFIED: Self = Self([0; 6]);

    /// The address by formula of whoever has this IPv4 address: `02:74` (locally administered) and its four bytes.
    pub const fn of(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x02, 0x74, a, b, c, d])
    }

    /// Whether it is a group's address; broadcast is one.
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether it can be the address of one interface.
    pub fn is_unicast(self) -> bool {
        !self.is_multicast() && self != Self::UNSPECIFIED
    }

    /// Where a frame for an IP multicast group goes (RFC 1112 §6.4, RFC 2464 §7); `None` for any other address.
    pub fn of_group(group: IpAddr) -> Option<Self> {
        match group {
            IpAddr::V4(group) if group.is_multicast() => {
                let [_, b, c, d] = group.octets();
                Some(Self([0x01, 0x00, 0x5e, b & 0x7f, c, d]))
            }
            IpAddr::V6(group) if group.is_multicast() => {
                let [.., a, b, c, d] = group.octets();
                Some(Self([0x33, 0x33, a, b, c, d]))
            }
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        }
    }

    /// Where a neighbour solicitation for `target` goes: its solicited-node group's address (RFC 4291 §2.7.1).
    pub const fn solicited_node(target: Ipv6Addr) -> Self {
        let [.., b, c, d] = target.octets();
        Self([0x33, 0x33, 0xff, b, c, d])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_follows_from_the_ip_address() {
        assert_eq!(
            MacAddr::of(Ipv4Addr::new(172, 19, 1, 2)).to_string(),
            "02:74:ac:13:01:02"
        );
        assert!(MacAddr::of(Ipv4Addr::UNSPECIFIED).is_unicast());
    }

    #[test]
    fn groups_have_addresses_of_their_own() {
        let of_group = |text: &str| MacAddr::of_group(text.parse().unwrap()).map(|mac| mac.to_string());
        assert_eq!(of_group("224.0.0.251").as_deref(), Some("01:00:5e:00:00:fb"));
        assert_eq!(of_group("ff02::1").as_deref(), Some("33:33:00:00:00:01"));
        assert_eq!(of_group("192.0.2.1"), None);
        let target = "fd00::1:2345:6789".parse().unwrap();
        assert_eq!(MacAddr::solicited_node(target).to_string(), "33:33:ff:45:67:89");
        assert!(MacAddr::solicited_node(target).is_multicast() && MacAddr::BROADCAST.is_multicast());
    }
}
