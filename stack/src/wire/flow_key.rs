//! The name of a flow: one entry for both directions.

use crate::plan::Vni;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

/// A packet's addresses, as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// IP protocol number.
    pub protocol: u8,
    /// Source address.
    pub source: IpAddr,
    /// Source port; the identifier of an echo; 0 without ports.
    pub source_port: u16,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port; the identifier of an echo; 0 without ports.
    pub destination_port: u16,
}

impl Endpoints {
    /// The same packet's answer.
    pub fn reversed(self) -> Self {
        Self {
            protocol: self.protocol,
            source: self.destination,
            source_port: self.destination_port,
            destination: self.source,
            destination_port: self.source_port,
        }
    }
}

/// Which way a packet of a flow goes, seen from the key's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the lower end to the higher one.
    Up,
    /// From the higher end to the lower one.
    Down,
}

impl Direction {
    /// The other way.
    pub const fn opposite(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }
}

/// The canonical five-tuple and the network: equal for both directions. It is packed: a table has a million of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    low: [u64; 2],
    high: [u64; 2],
    low_port: u16,
    high_port: u16,
    /// The VNI, and the protocol in the lowest byte.
    network: u32,
}

impl FlowKey {
    /// The key of a packet, and which way the packet goes.
    pub fn of(vni: Vni, endpoints: &Endpoints) -> (Self, Direction) {
        let source = (bits(endpoints.source), endpoints.source_port);
        let destination = (bits(endpoints.destination), endpoints.destination_port);
        let (low, high, direction) = if source <= destination {
            (source, destination, Direction::Up)
        } else {
            (destination, source, Direction::Down)
        };
        (
            Self {
                low: low.0,
                high: high.0,
                low_port: low.1,
                high_port: high.1,
                network: (vni.get() << 8) | u32::from(endpoints.protocol),
            },
            direction,
        )
    }

    /// The network.
    pub fn vni(&self) -> Vni {
        // It was one when the key was made.
        Vni::try_from(u64::from(self.network >> 8)).unwrap_or(Vni::MIN)
    }

    /// The IP protocol number.
    pub fn protocol(&self) -> u8 {
        self.network as u8
    }

    /// The addresses of a packet that goes in `direction`.
    pub fn endpoints(&self, direction: Direction) -> Endpoints {
        let up = Endpoints {
            protocol: self.protocol(),
            source: address(self.low),
            source_port: self.low_port,
            destination: address(self.high),
            destination_port: self.high_port,
        };
        match direction {
            Direction::Up => up,
            Direction::Down => up.reversed(),
        }
    }

    /// Addresses, ports, VNI and protocol in network order: what homes are made of.
    pub(super) fn octets(&self) -> [u8; 40] {
        let mut octets = [0; 40];
        for (part, word) in octets
            .chunks_exact_mut(8)
            .zip(self.low.into_iter().chain(self.high))
        {
            part.copy_from_slice(&word.to_be_bytes());
        }
        octets[32..34].copy_from_slice(&self.low_port.to_be_bytes());
        octets[34..36].copy_from_slice(&self.high_port.to_be_bytes());
        octets[36..].copy_from_slice(&self.network.to_be_bytes());
        octets
    }
}

impl Hash for FlowKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for word in self.low.into_iter().chain(self.high) {
            state.write_u64(word);
        }
        let ports = (u32::from(self.low_port) << 16) | u32::from(self.high_port);
        state.write_u64((u64::from(self.network) << 32) | u64::from(ports));
    }
}

/// IPv4 addresses as IPv4-mapped ones, which no packet carries as such.
fn bits(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(address) => [0, 0xffff_0000_0000 | u64::from(address.to_bits())],
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            [(bits >> 64) as u64, bits as u64]
        }
    }
}

fn address([high, low]: [u64; 2]) -> IpAddr {
    std::net::Ipv6Addr::from_bits((u128::from(high) << 64) | u128::from(low)).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_forty_bytes_and_gives_back_what_it_was_made_of() {
        assert_eq!((size_of::<FlowKey>(), align_of::<FlowKey>()), (40, 8));
        for (source, destination) in [("172.19.1.2", "172.19.2.2"), ("fd00::2:2", "fd00::1:2")] {
            let endpoints = Endpoints {
                protocol: 6,
                source: source.parse().unwrap(),
                source_port: 40_000,
                destination: destination.parse().unwrap(),
                destination_port: 80,
            };
            for endpoints in [endpoints, endpoints.reversed()] {
                let (key, direction) = FlowKey::of(Vni::MAX, &endpoints);
                assert_eq!((key.vni(), key.endpoints(direction)), (Vni::MAX, endpoints));
            }
        }
    }
}
