//! Bytes on the wire: parsed once, into types that remember what was proven.
//!
//! [`Headers`] is the one parse of a packet; [`fragments`] makes one datagram of many; [`FlowKey`] names its flow, [`home`] says where it lives; [`quoted`] reads the packet inside an ICMP
//! error; [`vxlan`] and [`MacAddr`] belong to what is inside a tunnel.

mod extensions;
mod flow_key;
pub mod fragments;
mod headers;
mod home;
mod mac;
mod options;
pub mod quoted;
pub mod vxlan;

pub use flow_key::{Direction, Endpoints, FlowKey};
pub use headers::{FragmentField, Headers, Transport, protocol, tcp_flags};
pub use home::home;
pub use mac::MacAddr;

/// The congestion field of an IP header (RFC 3168 §5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Ecn {
    /// The transport doesn't take part.
    #[default]
    NotCapable = 0b00,
    /// ECT(1).
    Capable1 = 0b01,
    /// ECT(0).
    Capable0 = 0b10,
    /// A router on the way saw congestion.
    Congested = 0b11,
}

impl Ecn {
    /// The field out of the traffic class (or type of service) byte.
    pub fn from_bits(traffic_class: u8) -> Self {
        match traffic_class & 0b11 {
            0b00 => Self::NotCapable,
            0b01 => Self::Capable1,
            0b10 => Self::Capable0,
            _ => Self::Congested,
        }
    }

    /// The field's two bits.
    pub const fn bits(self) -> u8 {
        self as u8
    }

    /// What the inner header becomes at a tunnel's end when it arrived under `outer` (RFC 6040 §4.2, figure 4);
    /// `None`: the packet is to be dropped.
    pub fn decapsulated(self, outer: Self) -> Option<Self> {
        match (self, outer) {
            (Self::NotCapable, Self::Congested) => None,
            (Self::NotCapable, _) => Some(Self::NotCapable),
            (Self::Congested, _) | (_, Self::Congested) => Some(Self::Congested),
            (Self::Capable0, Self::Capable1) => Some(Self::Capable1),
            (inner, _) => Some(inner),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Ecn::{self, Capable0, Capable1, Congested, NotCapable};

    #[test]
    fn congestion_marks_are_joined_as_figure_4_of_rfc_6040_says() {
        let outer = [NotCapable, Capable0, Capable1, Congested];
        let table: [(Ecn, [Option<Ecn>; 4]); 4] = [
            (
                NotCapable,
                [Some(NotCapable), Some(NotCapable), Some(NotCapable), None],
            ),
            (
                Capable0,
                [Some(Capable0), Some(Capable0), Some(Capable1), Some(Congested)],
            ),
            (
                Capable1,
                [Some(Capable1), Some(Capable1), Some(Capable1), Some(Congested)],
            ),
            (Congested, [Some(Congested); 4]),
        ];
        for (inner, row) in table {
            for (outer, expected) in outer.into_iter().zip(row) {
                assert_eq!(inner.decapsulated(outer), expected, "{inner:?} under {outer:?}");
            }
        }
    }
}
