//! tidegate's network stack: a function of bytes, time and plan.
#![forbid(unsafe_code)]

pub mod drop;
pub mod egress;
pub mod flow;
pub mod frame;
pub mod overlay;
pub mod plan;
pub mod responder;
pub mod shard;
pub mod snapshot;
pub mod stats;
pub mod time;
pub mod wire;
pub mod wireguard;
