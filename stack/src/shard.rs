//! One core's whole dataplane.

use crate::egress::Egress;
use crate::frame::{Batch, PoolSizes};
use crate::plan::PortId;
use crate::snapshot::Snapshot;
use crate::stats::Report;
use crate::time::Instant;
use crate::wire::Ecn;
use std::net::SocketAddr;
use std::sync::Arc;

/// What a shard is made with.
#[derive(Clone, Copy, Debug)]
pub struct ShardConfig {
    /// Seeds the hashes of tables and the choice of identifiers: random in a daemon, fixed in a simulation.
    pub seed: u64,
    /// Most flows.
    pub flows: usize,
    /// Frames of its pool.
    pub frames: PoolSizes,
}

/// Datagrams that arrived together from one source (UDP GRO): equal strides, the last may be shorter.
pub struct Datagrams<'a> {
    /// The lane's number.
    pub lane: usize,
    /// The far end. An IPv4 address is written as one, never mapped into IPv6.
    pub source: SocketAddr,
    /// The congestion field of the outer IP header.
    pub ecn: Ecn,
    /// Length of every datagram but the last.
    pub stride: usize,
    /// The datagrams, one behind the other.
    pub bytes: &'a [u8],
}

/// Something that the control thread should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {}

/// One core's whole dataplane.
pub struct Shard {}

impl Shard {
    /// A shard without a plan: it drops everything.
    pub fn new(_config: ShardConfig) -> Self {
        Self {}
    }

    /// Puts a snapshot in force and gives the old one back, to be dropped elsewhere.
    pub fn install(
        &mut self,
        _snapshot: Arc<Snapshot>,
        _now: Instant,
        _egress: &mut impl Egress,
    ) -> Option<Arc<Snapshot>> {
        None
    }

    /// Packets that an instance sent. The batch's frames are changed in place and stay in it.
    pub fn handle_port(
        &mut self,
        _port: PortId,
        _batch: &mut Batch,
        _now: Instant,
        _egress: &mut impl Egress,
    ) {
    }

    /// Datagrams that a lane's socket received.
    pub fn handle_lane(&mut self, _datagrams: Datagrams<'_>, _now: Instant, _egress: &mut impl Egress) {}

    /// End of a turn, after the sockets were drained: delivers the trains that were glued.
    pub fn flush(&mut self, _now: Instant, _egress: &mut impl Egress) {}

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, _now: Instant, _egress: &mut impl Egress) {}

    /// When [`Shard::handle_timeout`] wants to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }

    /// The state.
    pub fn report(&self, _now: Instant) -> Report {
        Report::default()
    }
}
