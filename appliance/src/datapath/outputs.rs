//! Where a shard's packets go: its ports' queues and its lanes' sockets.

use super::lanes::{Lanes, Room};
use super::ports::Ports;
use tidegate_stack::egress::{Egress, Handover, Route, ShardId};
use tidegate_stack::frame::Frame;
use tidegate_stack::plan::PortId;

/// Everything that a shard sends by, and receives from.
pub(super) struct Outputs {
    /// Queues of TUN devices.
    pub(super) ports: Ports,
    /// UDP sockets.
    pub(super) lanes: Lanes,
}

impl Egress for Outputs {
    type Slot<'a> = Room<'a>;

    fn reserve(&mut self, route: &Route, stride: usize, count: usize) -> Option<Room<'_>> {
        self.lanes.reserve(route, stride, count)
    }

    fn deliver(&mut self, port: PortId, frame: &Frame) -> bool {
        self.ports.write(port, frame)
    }

    fn handover(&mut self, _to: ShardId, handover: Handover) -> Result<(), Handover> {
        Err(handover)
    }
}
