//! Numbers with a meaning and a range.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A number outside the range that its type stands for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {value}, and must be {range}")]
pub struct IllegalValue {
    what: &'static str,
    value: u64,
    range: &'static str,
}

macro_rules! ranged {
    ($(#[$doc:meta])* $name:ident($inner:ty), $what:literal, $low:expr, $high:expr, $range:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "u64", into = "u64")]
        pub struct $name($inner);

        impl $name {
            /// The smallest legal value.
            pub const MIN: Self = Self($low);
            /// The largest legal value.
            pub const MAX: Self = Self($high);

            /// The number itself.
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl TryFrom<u64> for $name {
            type Error = IllegalValue;

            fn try_from(value: u64) -> Result<Self, IllegalValue> {
                match <$inner>::try_from(value) {
                    #[allow(unused_comparisons, clippy::absurd_extreme_comparisons)]
                    Ok(inner) if ($low..=$high).contains(&inner) => Ok(Self(inner)),
                    Ok(_) | Err(_) => Err(IllegalValue { what: $what, value, range: $range }),
                }
            }
        }

        impl From<$name> for u64 {
            fn from(value: $name) -> u64 {
                u64::from(value.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }
    };
}

ranged! {
    /// VXLAN network identifier (RFC 7348 §5): 24 bits, zero is never used.
    Vni(u32), "a VNI", 1, 0xff_ffff, "1 to 16777215"
}
ranged! {
    /// A host's number in its site.
    HostOrdinal(u8), "a host ordinal", 1, 254, "1 to 254"
}
ranged! {
    /// Largest IP packet, in bytes, that a link takes whole. Not below 1280, which IPv6 needs (RFC 8200 §5).
    Mtu(u16), "an MTU", 1280, 65_535, "1280 to 65535"
}
ranged! {
    /// An instance's number in its host's block of a network: 2 is the first.
    InstanceIndex(u8), "an instance index", 2, 254, "2 to 254"
}
ranged! {
    /// Milliseconds from one question whether an instance is ready to the next.
    ProbeInterval(u32), "an interval in milliseconds", 200, 3_600_000, "200 to 3600000"
}
ranged! {
    /// How many failures in a row make an instance not ready.
    ProbeFailures(u8), "a number of failures", 1, 100, "1 to 100"
}

impl ProbeInterval {
    /// What is meant where nothing is said: 5 s.
    pub const USUAL: Self = Self(5_000);
}

impl ProbeFailures {
    /// What is meant where nothing is said.
    pub const USUAL: Self = Self(3);
}

/// The number of a port: one instance's TUN attachment. Never reused while an agent lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PortId(pub u32);

/// The number of a peer, at most 2²⁴−1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PeerId(pub u32);

impl fmt::Display for PortId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}
