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
    /// The lane's number: the socket that it leaves by.
    pub lane: usize,
    /// The far end. An IPv4 address is written as one, never mapped into IPv6.
    pub endpoint: SocketAddr,
    /// The congestion field of the outer IP header.
    pub ecn: Ecn,
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
}

/// Room for datagrams of one stride.
pub trait Slot {
    /// The room: a whole number of strides.
    fn buffer(&mut self) -> &mut [u8];

    /// Sends what was written: `used` bytes, a whole number of strides but for the last datagram, which may be
    /// shorter and then closes the batch. Zero rolls back.
    fn commit(self, used: usize);
}
