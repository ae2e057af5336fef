//! One core's whole dataplane: run to completion, nothing shared but [`Quotas`].
//!
//! The walk of a packet, in the order of the files:
//! 1. [`Shard::handle_port`] (`from_port`): parse → the source must be the port's own → flow, or judge → is this the
//!    flow's home, else hand the packet over, as it came → hop limit → size → next hop: another port, or
//! 2. `to_tunnel`: neighbour's MAC → the tunnel with the home's lane, and its session → cut → VXLAN → seal into the
//!    socket's buffer.
//! 3. [`Shard::handle_lane`] (`from_lane`): which tunnel → open → VXLAN off → is the peer a member, is the source in
//!    its block → flow, or judge → glue.
//!    A sender chooses the lane by the flow's home: what came by one is never handed over.
//! 4. [`Shard::flush`]: what was glued goes to its ports.
//! 5. `answers`: what the appliance says by itself, and how a denial is told to its sender; `names`: DNS; `readiness`: what
//!    it asks instances.
//!
//! What another shard read comes by [`Shard::handle_handover`], and goes the way of 1. A flow is kept where its home is,
//! one with a foreign peer on shard 0, which has the foreign lane: so what is to be sealed is never handed over. A packet
//! that is denied or answered is so by the shard that read it.
//!
//! `fragments`: a datagram in fragments is put together before anything is done to it, on the shard where its fragments
//! have their home.
//!
//! `relief`: a sender whose packets wait for too long is told by one of them, of a port or of a lane.
//!
//! The verbs are called by a worker (devices and sockets) or by a simulation (links).

mod answers;
mod counters;
mod flows;
mod fragments;
mod from_lane;
mod from_port;
mod listing;
mod names;
mod pick_up;
mod readiness;
mod relief;
mod to_tunnel;

use crate::drop::DropReason;
use crate::egress::{Egress, Handover, LaneKind, ShardId};
use crate::event::Event;
use crate::flow::{Arrival, FlowTable, Quotas, Verdict};
use crate::frame::{Batch, Coalescer, Deliver, Frame, FramePool, PoolSizes};
use crate::overlay::Neighbours;
use crate::plan::{PeerId, PortId, PrivateKey};
use crate::responder::RateLimit;
use crate::responder::readiness::Prober;
use crate::snapshot::{Policy, Snapshot};
use crate::stats::{PortReport, Report};
use crate::time::Instant;
use crate::wire::Ecn;
use crate::wire::fragments::{Bounds, Reassembly};
use crate::wireguard::{Peers, TICK_INTERVAL, Tunnel, TunnelIndex, TunnelPlace};
use counters::Counters;
use from_port::Came;
use names::Dns;
use pick_up::PickUp;
use relief::Relief;
use std::net::SocketAddr;
use std::num::NonZeroU8;
use std::sync::Arc;
use to_tunnel::TrainBuffer;

/// What a shard is made with.
#[derive(Clone)]
pub struct ShardConfig {
    /// Which shard of its datapath it is.
    pub id: ShardId,
    /// How many shards its datapath has, this one among them.
    pub count: NonZeroU8,
    /// The key of its own lane. It is drawn at each start, and lives as long as the shard.
    pub lane_key: PrivateKey,
    /// Seeds the hashes of tables and the choice of identifiers: random in a daemon, fixed in a simulation.
    pub seed: u64,
    /// Most flows.
    pub flows: usize,
    /// What each network may have of the flows of all shards. One for the datapath: shards share nothing else.
    pub quotas: Arc<Quotas>,
    /// Frames of its pool.
    pub frames: PoolSizes,
}

/// Datagrams that arrived together from one source (UDP GRO): equal strides, the last may be shorter.
#[derive(Clone, Copy, Debug)]
pub struct Datagrams<'a> {
    /// The lane that they came to.
    pub lane: LaneKind,
    /// The far end. An IPv4 address is written as one, never mapped into IPv6.
    pub source: SocketAddr,
    /// The congestion field of the outer IP header.
    pub ecn: Ecn,
    /// Length of every datagram but the last.
    pub stride: usize,
    /// The datagrams, one behind the other.
    pub bytes: &'a [u8],
}

/// Room for the plaintext of one datagram: the longest there is.
const LONGEST_PLAINTEXT: usize = 65_536;

/// One core's whole dataplane.
pub struct Shard {
    id: ShardId,
    count: NonZeroU8,
    snapshot: Option<Arc<Snapshot>>,
    flows: FlowTable,
    pick_up: PickUp,
    neighbours: Neighbours,
    peers: Peers,
    reassembly: Reassembly,
    coalescer: Coalescer,
    glue: bool,
    pool: FramePool,
    train: TrainBuffer,
    plaintext: Box<[u8]>,
    counters: Counters,
    dns: Dns,
    prober: Prober,
    icmp_errors: RateLimit,
    resets: RateLimit,
    relief: Relief,
    next_tick: Option<Instant>,
}

impl Shard {
    /// A shard without a plan: it drops everything. All its memory is claimed here.
    pub fn new(config: ShardConfig) -> Self {
        Self {
            id: config.id,
            count: config.count,
            snapshot: None,
            flows: FlowTable::new(config.flows, config.seed, config.quotas),
            pick_up: PickUp::default(),
            neighbours: Neighbours::new(config.seed),
            peers: Peers::new(config.id, config.count, &config.lane_key, config.seed),
            reassembly: Reassembly::new(Bounds::of_shard(config.count), config.seed),
            coalescer: Coalescer::new(),
            glue: true,
            pool: FramePool::new(config.frames),
            train: TrainBuffer::new(),
            plaintext: vec![0; LONGEST_PLAINTEXT].into_boxed_slice(),
            counters: Counters::default(),
            dns: Dns::new(config.count, config.seed),
            prober: Prober::new(config.id.0, config.count.get(), config.seed),
            icmp_errors: RateLimit::icmp_errors(),
            resets: RateLimit::resets(),
            relief: Relief::default(),
            next_tick: None,
        }
    }

    /// Whether packets out of tunnels are glued to super-packets; they are unless this is called with `false`.
    pub fn set_glue(&mut self, glue: bool) {
        self.glue = glue;
    }

    /// Puts a snapshot in force and gives the old one back, to be dropped elsewhere. New peers are greeted at once.
    pub fn install(
        &mut self,
        snapshot: Arc<Snapshot>,
        now: Instant,
        egress: &mut impl Egress,
    ) -> Option<Arc<Snapshot>> {
        let policy = Arc::clone(snapshot.policy());
        let same_lanes = self
            .snapshot
            .as_ref()
            .is_some_and(|former| Arc::ptr_eq(former.lanes(), snapshot.lanes()));
        let same_policy = self
            .snapshot
            .as_ref()
            .is_some_and(|former| Arc::ptr_eq(former.policy(), snapshot.policy()));
        policy.limit(self.flows.quotas());
        self.pick_up.install(snapshot.lanes(), now);
        if !same_lanes || !same_policy {
            let installed = self.peers.install(&policy, snapshot.lanes(), now);
            for frame in installed.orphans {
                self.counters.drop(DropReason::NoPeer);
                self.pool.recycle(frame);
            }
            self.neighbours.retain(|key, peer| {
                policy
                    .peer(peer)
                    .is_some_and(|entry| entry.networks.contains(key.vni))
                    && policy
                        .network(key.vni)
                        .is_some_and(|network| network.covers(key.address))
            });
            self.recycle_given_up();
            self.dns.install(&policy);
            self.counters
                .keep_ports(policy.ports().iter().map(|port| port.id));
            self.counters.keep_applications(policy.application_networks());
            let turn = &mut Turn {
                policy: &policy,
                now,
                egress,
            };
            self.greet(&installed.greet, turn);
        }
        let same_checks = self
            .snapshot
            .as_ref()
            .is_some_and(|former| Arc::ptr_eq(former.checks(), snapshot.checks()));
        if !same_checks {
            let turn = &mut Turn {
                policy: &policy,
                now,
                egress,
            };
            self.with_prober(turn, |prober, send| prober.install(snapshot.checks(), now, send));
        }
        self.next_tick.get_or_insert(now + TICK_INTERVAL);
        self.snapshot.replace(snapshot)
    }

    /// Begins sessions, so that the first packet needn't wait.
    fn greet(&mut self, tunnels: &[TunnelPlace], turn: &mut Turn<'_, impl Egress>) {
        for place in tunnels {
            if let Some(entry) = self.peers.tunnel_mut(*place) {
                to_tunnel::initiate(entry, turn, &mut self.counters);
            }
        }
    }

    /// Puts another tunnel, which receiver indices name by `index`, in the place of a peer's (of the one that packets
    /// with home 0 take), as long as the plan doesn't change it: one without a cipher, for tests that read the wire and
    /// benches that leave the cipher out. False when there is no such peer.
    pub fn set_tunnel(
        &mut self,
        peer: PeerId,
        index: TunnelIndex,
        tunnel: Box<dyn Tunnel>,
        now: Instant,
    ) -> bool {
        self.peers.set_tunnel(peer, index, tunnel, now)
    }

    /// End of a turn, after the sockets were drained: delivers the trains that were glued.
    pub fn flush(&mut self, _now: Instant, egress: &mut impl Egress) {
        let Some(snapshot) = &self.snapshot else { return };
        let mut ports = PortOutput {
            policy: snapshot.policy(),
            egress,
            counters: &mut self.counters,
        };
        self.coalescer.flush(&mut self.pool, &mut ports);
    }

    /// Does what is due at `now`: queries and connections for DNS, questions to instances, sessions, questions to neighbours,
    /// expired flows and fragments.
    pub fn handle_timeout(&mut self, now: Instant, egress: &mut impl Egress) {
        let (Some(due), Some(snapshot)) = (self.next_tick, self.snapshot.clone()) else {
            return;
        };
        let turn = &mut Turn {
            policy: snapshot.policy(),
            now,
            egress,
        };
        self.expire_dns(turn);
        self.ask_instances(turn);
        if now < due {
            return;
        }
        self.next_tick = Some(now + TICK_INTERVAL);
        for entry in self.peers.tunnels_mut() {
            to_tunnel::tick(entry, turn, &mut self.counters);
        }
        while let Some(frame) = self.peers.poll_given_up(now) {
            self.counters.drop(DropReason::NoSession);
            self.pool.recycle(frame);
        }
        let mut questions = Vec::new();
        self.neighbours.tick(now, |asked| questions.push(asked));
        for asked in questions {
            self.ask_neighbour(&asked, turn);
        }
        self.recycle_given_up();
        self.expire_fragments(now);
        self.flows
            .sweep(now, |flow| turn.policy.network(flow.key.vni()).is_some());
    }

    fn recycle_given_up(&mut self) {
        while let Some(frame) = self.neighbours.poll_given_up() {
            self.counters.drop(DropReason::NoNeighbour);
            self.pool.recycle(frame);
        }
    }

    /// When [`Shard::handle_timeout`] wants to be called next; `None` before the first plan.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let tick = self.next_tick?;
        let others = [self.dns.poll_timeout(), self.prober.poll_timeout()];
        Some(others.into_iter().flatten().fold(tick, Instant::min))
    }

    /// The next thing that somebody else should know: a hint, as it may get lost.
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.dns.poll_event();
        event.or_else(|| self.prober.poll_event())
    }

    /// The state.
    pub fn report(&self) -> Report {
        let traffic = |(port, traffic): (PortId, _)| PortReport { port, traffic };
        Report {
            epoch: self.snapshot.as_ref().map_or(0, |snapshot| snapshot.epoch()),
            ports: self.counters.ports().map(traffic).collect(),
            peers: self.peers.reports(),
            drops: self.counters.drops().collect(),
            flows: self.flows.len() as u64,
            flows_capacity: self.flows.capacity() as u64,
            frames_in_use: self.pool.in_use() as u64,
            frames_capacity: self.pool.capacity() as u64,
            neighbours: self.neighbours.len() as u64,
            neighbours_capacity: Neighbours::CAPACITY as u64,
            dns: self.dns.report(),
            readiness: self.prober.reports().collect(),
        }
    }

    /// Packets that an instance sent. The batch's frames are changed in place and stay in it.
    pub fn handle_port(&mut self, port: PortId, batch: &mut Batch, now: Instant, egress: &mut impl Egress) {
        let snapshot = self.snapshot.clone();
        let policy = snapshot.as_ref().map(|snapshot| snapshot.policy());
        let entry = policy.and_then(|policy| Some((policy, policy.port(policy.port_slot(port)?)?)));
        let Some((policy, entry)) = entry else {
            return self
                .counters
                .drop_many(DropReason::UnknownPort, batch.filled().len());
        };
        let turn = &mut Turn { policy, now, egress };
        for frame in batch.filled() {
            self.packet_from_port(entry, frame, Came::Read, turn);
        }
        self.relief.port = false;
    }

    /// What another shard passed on. The frame comes back spent: it belongs to that shard, which gets it by
    /// [`Shard::recycle`].
    pub fn handle_handover(&mut self, handover: Handover, now: Instant, egress: &mut impl Egress) -> Frame {
        let Handover::Judge { mut frame, port } = handover;
        let snapshot = self.snapshot.clone();
        let policy = snapshot.as_ref().map(|snapshot| snapshot.policy());
        match policy.and_then(|policy| Some((policy, policy.port(policy.port_slot(port)?)?))) {
            Some((policy, entry)) => {
                let turn = &mut Turn { policy, now, egress };
                self.packet_from_port(entry, &mut frame, Came::HandedOver, turn);
            }
            None => self.counters.drop(DropReason::UnknownPort),
        }
        frame
    }

    /// Takes back a frame that was passed to another shard.
    pub fn recycle(&mut self, frame: Frame) {
        self.pool.recycle(frame);
    }

    /// Datagrams that a lane's socket received.
    pub fn handle_lane(&mut self, datagrams: Datagrams<'_>, now: Instant, egress: &mut impl Egress) {
        let Some(snapshot) = self.snapshot.clone() else {
            self.counters.drop(DropReason::UnknownReceiver);
            return;
        };
        let turn = &mut Turn {
            policy: snapshot.policy(),
            now,
            egress,
        };
        if datagrams.bytes.is_empty() {
            // It has no bytes to be cut by, and is one datagram all the same.
            self.counters.drop(DropReason::NotWireguard);
        }
        for bytes in datagrams.bytes.chunks(datagrams.stride.max(1)) {
            self.datagram_from_lane(&datagrams, bytes, turn);
        }
    }
}

/// What a packet's whole walk needs: what is in force, what time it is, where outputs go.
struct Turn<'a, E: Egress> {
    policy: &'a Policy,
    now: Instant,
    egress: &'a mut E,
}

/// Where glued packets go.
struct PortOutput<'a, E: Egress> {
    policy: &'a Policy,
    egress: &'a mut E,
    counters: &'a mut Counters,
}

impl<E: Egress> Deliver for PortOutput<'_, E> {
    fn deliver(&mut self, port: PortId, frame: &Frame) {
        let Some(entry) = self
            .policy
            .port_slot(port)
            .and_then(|slot| self.policy.port(slot))
        else {
            self.counters.drop(DropReason::UnknownPort);
            return;
        };
        answers::deliver(entry, frame, None, self.egress, self.counters);
    }

    fn no_buffer(&mut self) {
        self.counters.drop(DropReason::NoBuffer);
    }
}

/// What a verdict says when it isn't to go on.
fn denied(verdict: Verdict) -> DropReason {
    match verdict {
        Verdict::Deny(reason) | Verdict::Reject(reason) => reason,
        Verdict::Forward { .. } | Verdict::Answer(_) => DropReason::NoFlow,
    }
}

/// Where a packet that is being handled came from, for the example that a drop leaves behind.
fn example_of(arrival: Arrival) -> crate::stats::DropExample {
    let (port, peer) = match arrival {
        Arrival::Port(port) => (Some(port), None),
        Arrival::Tunnel(peer) => (None, Some(peer)),
    };
    crate::stats::DropExample {
        port,
        peer,
        vni: None,
        application: None,
        packet: None,
    }
}

#[cfg(test)]
mod tests;
