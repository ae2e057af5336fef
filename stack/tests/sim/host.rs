//! A host: one shard, and what the worker is to it.

use super::instance::Instance;
use super::packets::Packet;
use super::plans::Site;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::num::NonZeroU8;
use std::sync::Arc;
use tidegate_stack::egress::{Egress, Handover, Route, ShardId, Slot};
use tidegate_stack::frame::{Batch, Frame, PoolSizes};
use tidegate_stack::plan::{PeerId, Plan, PortId, PrivateKey};
use tidegate_stack::shard::{Datagrams, Shard, ShardConfig};
use tidegate_stack::snapshot::Snapshot;
use tidegate_stack::time::Instant;
use tidegate_stack::wireguard::{PlainTunnel, TunnelIndex};

/// A host of the site.
pub(crate) struct Host {
    pub(crate) shard: Shard,
    pub(crate) instances: Vec<Instance>,
    snapshot: Arc<Snapshot>,
    outputs: Outputs,
    batch: Batch,
    seed: u64,
}

/// What a shard put out and nobody has taken yet.
#[derive(Default)]
struct Outputs {
    datagrams: VecDeque<(Route, Vec<u8>)>,
    delivered: VecDeque<(PortId, Packet)>,
}

/// A slot holds no more, so that a shard must ask more than once for a super-packet.
const SLOT: usize = 7;

impl Host {
    pub(crate) fn new(site: &Site, number: usize, seed: u64, now: Instant) -> Self {
        let plan = site.plan(number);
        let instances = plan
            .instances
            .iter()
            .map(|instance| {
                let mtu = usize::from(instance.mtu.get());
                let seed = seed ^ u64::from(instance.port.0);
                Instance::new(&instance.memberships[0], mtu, instance.offloads, seed, now)
            })
            .collect();
        let mut host = Self {
            shard: Shard::new(config(seed)),
            instances,
            snapshot: Snapshot::compile(&plan, None),
            outputs: Outputs::default(),
            batch: Batch::new(8),
            seed,
        };
        host.install(now);
        host
    }

    /// The datapath dies and another one starts: devices, addresses and connections of instances stay.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.seed += 1;
        self.shard = Shard::new(config(self.seed));
        self.install(now);
    }

    /// Takes the cipher out of the tunnel to the only peer.
    pub(crate) fn lay_open(&mut self) {
        let tunnel = PlainTunnel::new(TunnelIndex::from_low_bits(1), TunnelIndex::from_low_bits(1));
        assert!(self.shard.set_tunnel(PeerId(1), Box::new(tunnel)));
    }

    /// Puts another plan in force.
    pub(crate) fn change_plan(&mut self, plan: &Plan, now: Instant) {
        self.snapshot = Snapshot::compile(plan, Some(&self.snapshot));
        self.install(now);
    }

    fn install(&mut self, now: Instant) {
        self.shard
            .install(Arc::clone(&self.snapshot), now, &mut self.outputs);
    }

    /// Datagrams that arrived together.
    pub(crate) fn handle_lane(&mut self, datagrams: Datagrams<'_>, now: Instant) {
        self.shard.handle_lane(datagrams, now, &mut self.outputs);
    }

    /// The sockets are drained.
    pub(crate) fn flush(&mut self, now: Instant) {
        self.shard.flush(now, &mut self.outputs);
    }

    /// Does what is due, and lets the instances and the shard talk until nobody has anything to say.
    pub(crate) fn settle(&mut self, now: Instant) {
        if self.shard.poll_timeout().is_some_and(|at| at <= now) {
            self.shard.handle_timeout(now, &mut self.outputs);
        }
        loop {
            while let Some((port, packet)) = self.outputs.delivered.pop_front() {
                self.instances[port.0 as usize].receive(packet);
            }
            for port in 0..self.instances.len() {
                self.instances[port].poll(now);
                self.transmit(port, now);
            }
            self.shard.flush(now, &mut self.outputs);
            if self.outputs.delivered.is_empty() {
                break;
            }
        }
    }

    fn transmit(&mut self, port: usize, now: Instant) {
        loop {
            self.batch.clear();
            while !self.batch.is_full()
                && let Some(packet) = self.instances[port].transmit()
                && let Some(frame) = self.batch.vacant()
            {
                frame.fill(&packet.bytes, packet.offload);
                self.batch.advance();
            }
            if self.batch.is_empty() {
                return;
            }
            let id = PortId(u32::try_from(port).unwrap());
            self.shard
                .handle_port(id, &mut self.batch, now, &mut self.outputs);
        }
    }

    /// The next datagram that leaves.
    pub(crate) fn transmitted(&mut self) -> Option<(Route, Vec<u8>)> {
        self.outputs.datagrams.pop_front()
    }

    /// When something is due.
    pub(crate) fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        let instances = self
            .instances
            .iter_mut()
            .filter_map(|instance| instance.poll_at(now));
        instances.chain(self.shard.poll_timeout()).min()
    }
}

fn config(seed: u64) -> ShardConfig {
    ShardConfig {
        id: ShardId(0),
        count: NonZeroU8::MIN,
        lane_key: PrivateKey::from_bytes([0x5a; 32]),
        seed,
        flows: 1024,
        frames: PoolSizes { small: 64, large: 64 },
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

    fn handover(&mut self, _to: ShardId, handover: Handover) -> Result<(), Handover> {
        Err(handover)
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

/// Groups datagrams as UDP GRO does: equal lengths in a run, the last may be shorter.
pub(crate) fn runs(
    datagrams: &[(SocketAddr, tidegate_stack::wire::Ecn, Vec<u8>)],
) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for (index, (source, ecn, bytes)) in datagrams.iter().enumerate() {
        if let Some(run) = runs.last_mut() {
            let (first_source, first_ecn, first) = &datagrams[run.start];
            let (_, _, last) = &datagrams[run.end - 1];
            let fits = last.len() == first.len() && bytes.len() <= first.len() && run.len() < 40;
            if fits && first_source == source && first_ecn == ecn {
                run.end = index + 1;
                continue;
            }
        }
        runs.push(index..index + 1);
    }
    runs
}
