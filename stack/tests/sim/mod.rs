//! Two hosts in virtual time: real shards, real WireGuard, real TCP endpoints (smoltcp), simulated links.
//!
//! A [`world::World`] owns the clock and jumps from one thing that is due to the next. It is deterministic in lengths and
//! times, not in bytes: handshakes draw their keys from the operating system.

#![expect(dead_code, reason = "every test crate uses its own part of the simulation")]
#![expect(clippy::unwrap_used, reason = "a test ends at what it didn't expect")]

pub(crate) mod datapath;
pub(crate) mod far_end;
pub(crate) mod host;
pub(crate) mod instance;
pub(crate) mod link;
pub(crate) mod packets;
pub(crate) mod plans;
pub(crate) mod world;
