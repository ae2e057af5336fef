//! Where a shard's outputs go: the worker's devices and sockets, or the simulation's links.
//!
//! Ciphertext is written straight into the buffer that the socket sends: reserve → seal → commit. A [`Slot`] that is
//! dropped without a commit rolls back.

use crate::frame::Frame;
use crate::plan::PortId;
use crate::wire::Ecn;
use std::net::SocketAddr;

/// Where a datagram goes, and by which socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// The socket that it leaves by.
    pub lane: LaneKind,
    /// The far end. An IPv4 address is written as one, never mapped into IPv6.
    pub endpoint: SocketAddr,
    /// The congestion field of the outer IP header.
    pub ecn: Ecn,
}

/// A shard's own WireGuard endpoints: which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LaneKind {
    /// Towards the lanes of the site's other hosts: one for each shard, with a key of its own life.
    Site,
    /// Towards foreign peers: its key and port are fixed, and only shard 0 has it.
    Foreign,
}

/// A shard's number in its datapath, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u8);

/// What one shard passes to another.
pub enum Handover {
    /// A packet of a port whose flow lives there, as it came: to be handled as if that shard had read it.
    Judge {
        /// The packet.
        frame: Frame,
        /// The port that it came from.
        port: PortId,
    },
}

/// The outputs of a shard.
pub trait Egress {
    /// Room in an open batch of datagrams.
    type Slot<'a>: Slot
    where
        Self: 'a;

    /// Room for up to `count` datagrams of `stride` bytes each to `route`; it may hold fewer than `count` (the caller
    /// loops), never none. `None` when nothing can be sent there now (the caller counts a drop).
    fn reserve(&mut self, route: &Route, stride: usize, count: usize) -> Option<Self::Slot<'_>>;

    /// Gives a packet to a port's instance. False when the device didn't take it.
    fn deliver(&mut self, port: PortId, frame: &Frame) -> bool;

    /// Passes something to another shard of this datapath. It comes back when that shard's ring is full (the caller
    /// counts a drop). A frame that was passed on returns, spent, by [`Shard::recycle`](crate::shard::Shard::recycle).
    ///
    /// # Errors
    /// The ring is full.
    fn handover(&mut self, to: ShardId, handover: Handover) -> Result<(), Handover>;
}

/// Room for datagrams of one stride.
pub trait Slot {
    /// The room: a whole number of strides.
    fn buffer(&mut self) -> &mut [u8];

    /// Sends what was written: `used` bytes, a whole number of strides but for the last datagram, which may be
    /// shorter and then closes the batch. Zero rolls back.
    fn commit(self, used: usize);
}
