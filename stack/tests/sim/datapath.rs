//! A datapath: its shards on one thread, with queues between them in memory.

use super::packets::Packet;
use super::plans::{Site, lane_key};
use std::collections::VecDeque;
use std::num::NonZeroU8;
use std::sync::Arc;
use tidegate_stack::egress::{Egress, Handover, LaneKind, Route, ShardId, Slot};
use tidegate_stack::flow::Quotas;
use tidegate_stack::frame::{Batch, Frame, PoolSizes};
use tidegate_stack::plan::PortId;
use tidegate_stack::shard::{Datagrams, Shard, ShardConfig};
use tidegate_stack::snapshot::Snapshot;
use tidegate_stack::time::Instant;

/// One start of a host's datapath.
pub(crate) struct Datapath {
    pub(crate) generation: u64,
    pub(crate) shards: Vec<Shard>,
    outputs: Vec<Outputs>,
}

/// What a shard put out and nobody has taken yet.
struct Outputs {
    datagrams: VecDeque<(Route, Vec<u8>)>,
    delivered: VecDeque<(PortId, Packet)>,
    handed_over: VecDeque<(ShardId, Handover)>,
    /// Most packets in `handed_over`.
    ring: usize,
}

/// A slot holds no more, so that a shard must ask more than once for a super-packet.
const SLOT: usize = 7;
/// Flows of a shard.
const FLOWS: usize = 1024;
/// Packets between two shards.
const RING: usize = 32;

impl Datapath {
    pub(crate) fn start(site: &Site, host: usize, generation: u64, seed: u64) -> Self {
        let count = NonZeroU8::new(site.shards(host)).unwrap();
        let quotas = Arc::new(Quotas::of_host(FLOWS * usize::from(count.get())));
        let shard = |number: u8| {
            Shard::new(ShardConfig {
                id: ShardId(number),
                count,
                lane_key: lane_key(host, generation, number),
                seed: seed ^ (u64::from(number) << 32),
                flows: FLOWS,
                quotas: Arc::clone(&quotas),
                frames: PoolSizes { small: 64, large: 64 },
            })
        };
        let outputs = || Outputs {
            datagrams: VecDeque::new(),
            delivered: VecDeque::new(),
            handed_over: VecDeque::new(),
            ring: RING,
        };
        Self {
            generation,
            shards: (0..count.get()).map(shard).collect(),
            outputs: (0..count.get()).map(|_| outputs()).collect(),
        }
    }

    /// Nothing can be handed over any more.
    pub(crate) fn close_rings(&mut self) {
        self.outputs.iter_mut().for_each(|outputs| outputs.ring = 0);
    }

    pub(crate) fn install(&mut self, snapshot: &Arc<Snapshot>, now: Instant) {
        for (shard, outputs) in self.shards.iter_mut().zip(&mut self.outputs) {
            shard.install(Arc::clone(snapshot), now, outputs);
        }
    }

    /// Datagrams that arrived together at a shard's lane.
    pub(crate) fn handle_lane(&mut self, shard: u8, datagrams: Datagrams<'_>, now: Instant) {
        let shard = usize::from(shard);
        self.shards[shard].handle_lane(datagrams, now, &mut self.outputs[shard]);
    }

    /// Packets of a port that a shard read; then all shards work off what was handed over.
    pub(crate) fn handle_port(&mut self, shard: usize, port: PortId, batch: &mut Batch, now: Instant) {
        self.shards[shard].handle_port(port, batch, now, &mut self.outputs[shard]);
        // A datagram whose fragments were handed over may be handed over itself.
        while let Some((from, to, handover)) =
            self.outputs.iter_mut().enumerate().find_map(|(from, outputs)| {
                let (to, handover) = outputs.handed_over.pop_front()?;
                Some((from, usize::from(to.0), handover))
            })
        {
            assert_ne!(to, from);
            let spent = self.shards[to].handle_handover(handover, now, &mut self.outputs[to]);
            self.shards[from].recycle(spent);
        }
    }

    /// The sockets are drained.
    pub(crate) fn flush(&mut self, now: Instant) {
        for (shard, outputs) in self.shards.iter_mut().zip(&mut self.outputs) {
            shard.flush(now, outputs);
        }
    }

    pub(crate) fn handle_timeouts(&mut self, now: Instant) {
        for (shard, outputs) in self.shards.iter_mut().zip(&mut self.outputs) {
            if shard.poll_timeout().is_some_and(|at| at <= now) {
                shard.handle_timeout(now, outputs);
            }
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.shards.iter().filter_map(Shard::poll_timeout).min()
    }

    /// The next packet for a port, and the queue that it was written to.
    pub(crate) fn delivered(&mut self) -> Option<(usize, PortId, Packet)> {
        self.outputs.iter_mut().enumerate().find_map(|(queue, outputs)| {
            let (port, packet) = outputs.delivered.pop_front()?;
            Some((queue, port, packet))
        })
    }

    /// The next datagram that leaves, and by which shard's lane.
    pub(crate) fn transmitted(&mut self) -> Option<(u8, LaneKind, Route, Vec<u8>)> {
        (0..).zip(&mut self.outputs).find_map(|(shard, outputs)| {
            let (route, datagram) = outputs.datagrams.pop_front()?;
            Some((shard, route.lane, route, datagram))
        })
    }
}

impl Egress for Outputs {
    type Slot<'a> = Room<'a>;

    fn reserve(&mut self, route: &Route, stride: usize, count: usize) -> Option<Room<'_>> {
        assert!(stride > 0 && count > 0);
        Some(Room {
            buffer: vec![0; stride * count.min(SLOT)],
            stride,
            route: *route,
            datagrams: &mut self.datagrams,
        })
    }

    fn deliver(&mut self, port: PortId, frame: &Frame) -> bool {
        let packet = Packet {
            bytes: frame.packet().to_vec(),
            offload: frame.offload,
        };
        self.delivered.push_back((port, packet));
        true
    }

    fn handover(&mut self, to: ShardId, handover: Handover) -> Result<(), Handover> {
        if self.handed_over.len() >= self.ring {
            return Err(handover);
        }
        self.handed_over.push_back((to, handover));
        Ok(())
    }
}

/// Room for datagrams.
pub(crate) struct Room<'a> {
    buffer: Vec<u8>,
    stride: usize,
    route: Route,
    datagrams: &'a mut VecDeque<(Route, Vec<u8>)>,
}

impl Slot for Room<'_> {
    fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    fn commit(self, used: usize) {
        for datagram in self.buffer[..used].chunks(self.stride) {
            self.datagrams.push_back((self.route, datagram.to_vec()));
        }
    }
}
