//! Two hosts in virtual time: real shards, real WireGuard, real TCP endpoints (smoltcp), simulated links.
//!
//! A [`World`] owns the clock and jumps from one thing that is due to the next; boringtun's own clock (mocked, and
//! local to the thread) goes along. It is deterministic in lengths and times, not in bytes: boringtun draws its keys
//! from the operating system.

#![expect(dead_code, reason = "every test crate uses its own part of the simulation")]

mod host;
mod instance;
mod link;
pub(crate) mod packets;
mod plans;
mod world;

pub(crate) use instance::Packet;
pub(crate) use link::Conditions;
pub(crate) use plans::{Site, Underlay};
pub(crate) use world::{At, World};
