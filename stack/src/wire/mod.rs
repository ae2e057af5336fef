//! Bytes on the wire: parsed once, into types that remember what was proven.

mod mac;

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
}
