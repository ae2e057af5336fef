//! VXLAN (RFC 7348) between VTEPs that meet only inside WireGuard.
//!
//! [`Encap`] is what stands in front of a packet that leaves: prepared bytes with lengths to fill in. [`decap`] is
//! what must be there in front of one that arrives. [`Neighbours`] knows the MAC addresses of the far ends.

mod decap;
mod encap;
mod neighbours;

pub use decap::{Decapsulated, decap};
pub use encap::Encap;
pub use neighbours::{Asked, Lookup, NeighbourKey, Neighbours};
