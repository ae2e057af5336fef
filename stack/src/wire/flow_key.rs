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

/// The canonical five-tuple and the network: equal for both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    pub(super) vni: Vni,
    pub(super) protocol: u8,
    pub(super) low: (u128, u16),
    pub(super) high: (u128, u16),
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
                vni,
                protocol: endpoints.protocol,
                low,
                high,
            },
            direction,
        )
    }
}

impl FlowKey {
    /// The network.
    pub fn vni(&self) -> Vni {
        self.vni
    }

    /// The addresses of a packet that goes in `direction`.
    pub fn endpoints(&self, direction: Direction) -> Endpoints {
        let up = Endpoints {
            protocol: self.protocol,
            source: address(self.low.0),
            source_port: self.low.1,
            destination: address(self.high.0),
            destination_port: self.high.1,
        };
        match direction {
            Direction::Up => up,
            Direction::Down => up.reversed(),
        }
    }
}

impl Hash for FlowKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let tail = (u128::from(self.vni.get()) << 40)
            | (u128::from(self.protocol) << 32)
            | (u128::from(self.low.1) << 16)
            | u128::from(self.high.1);
        state.write_u128(self.low.0);
        state.write_u128(self.high.0);
        state.write_u128(tail);
    }
}

/// IPv4 addresses as IPv4-mapped ones, which no packet carries as such.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => 0xffff_0000_0000 | u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn address(bits: u128) -> IpAddr {
    std::net::Ipv6Addr::from_bits(bits).to_canonical()
}
