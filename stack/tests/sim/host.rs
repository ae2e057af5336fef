//! A host: its datapath, or two of them while one takes over from the other, and what the worker is to them.

use super::datapath::Datapath;
use super::instance::Instance;
use super::packets::Packet;
use super::plans::Site;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tidegate_stack::egress::{LaneKind, Route};
use tidegate_stack::frame::Batch;
use tidegate_stack::plan::{PeerId, Plan, PortId};
use tidegate_stack::shard::Datagrams;
use tidegate_stack::snapshot::Snapshot;
use tidegate_stack::stats::{DropReport, Report};
use tidegate_stack::time::Instant;
use tidegate_stack::wire::{Ecn, Headers};
use tidegate_stack::wireguard::{PlainTunnel, TunnelIndex};

/// A socket of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Socket {
    pub(crate) generation: u64,
    pub(crate) shard: u8,
    pub(crate) lane: LaneKind,
}

/// A host of the site.
pub(crate) struct Host {
    number: usize,
    /// Oldest first.
    pub(crate) datapaths: Vec<Datapath>,
    /// Which of them reads the ports.
    reader: usize,
    pub(crate) instances: Vec<Instance>,
    snapshot: Arc<Snapshot>,
    steering: Steering,
    batch: Batch,
    seed: u64,
}

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
            number,
            datapaths: Vec::new(),
            reader: 0,
            instances,
            snapshot: Snapshot::compile(&plan, None),
            steering: Steering::default(),
            batch: Batch::new(8),
            seed,
        };
        host.start(site, 1, now);
        host
    }

    /// Starts another datapath beside those that run.
    pub(crate) fn start(&mut self, site: &Site, generation: u64, now: Instant) {
        let mut datapath = Datapath::start(site, self.number, generation, self.seed + generation);
        datapath.install(&self.snapshot, now);
        self.datapaths.push(datapath);
    }

    /// The newest datapath reads the ports from now on.
    pub(crate) fn switch(&mut self) {
        self.reader = self.datapaths.len() - 1;
    }

    /// Ends the oldest datapath: devices, addresses and connections of instances stay.
    pub(crate) fn end_oldest(&mut self) {
        self.datapaths.remove(0);
        self.reader = self.reader.saturating_sub(1);
    }

    /// Takes the cipher out of the tunnel to the only peer.
    pub(crate) fn lay_open(&mut self, now: Instant) {
        for shard in self
            .datapaths
            .iter_mut()
            .flat_map(|datapath| &mut datapath.shards)
        {
            let index = TunnelIndex::from_low_bits(1);
            let tunnel = PlainTunnel::new(index, index);
            assert!(shard.set_tunnel(PeerId(1), index, Box::new(tunnel), now));
        }
    }

    /// Puts another plan in force.
    pub(crate) fn change_plan(&mut self, plan: &Plan, now: Instant) {
        self.snapshot = Snapshot::compile(plan, Some(&self.snapshot));
        for datapath in &mut self.datapaths {
            datapath.install(&self.snapshot, now);
        }
    }

    /// Datagrams that arrived together.
    pub(crate) fn handle_lane(&mut self, socket: Socket, datagrams: Datagrams<'_>, now: Instant) {
        let mut datapaths = self.datapaths.iter_mut();
        let found = datapaths.find(|datapath| datapath.generation == socket.generation);
        if let Some(datapath) = found {
            datapath.handle_lane(socket.shard, datagrams, now);
        }
    }

    /// The sockets are drained.
    pub(crate) fn flush(&mut self, now: Instant) {
        self.datapaths.iter_mut().for_each(|datapath| datapath.flush(now));
    }

    /// Does what is due, and lets the instances and the shards talk until nobody has anything to say.
    pub(crate) fn settle(&mut self, now: Instant) {
        for datapath in &mut self.datapaths {
            datapath.handle_timeouts(now);
        }
        loop {
            let mut idle = true;
            while let Some((queue, port, packet)) = self.datapaths.iter_mut().find_map(Datapath::delivered) {
                self.steering.learn(port, &packet, queue);
                self.instances[port.0 as usize].receive(packet);
                idle = false;
            }
            for port in 0..self.instances.len() {
                self.instances[port].poll(now);
                idle &= !self.transmit(port, now);
            }
            self.flush(now);
            if idle {
                break;
            }
        }
    }

    /// Lets the shards read what an instance sends, each from its own queue of the port, in the order of sending.
    fn transmit(&mut self, port: usize, now: Instant) -> bool {
        let id = PortId(u32::try_from(port).unwrap());
        let mut next = self.instances[port].transmit();
        let sent = next.is_some();
        while let Some(packet) = next.take() {
            let queues = self.datapaths[self.reader].shards.len();
            let queue = self.steering.queue(id, &packet, queues);
            self.batch.clear();
            next = Some(packet);
            while !self.batch.is_full()
                && let Some(packet) = next.take_if(|packet| self.steering.queue(id, packet, queues) == queue)
                && let Some(frame) = self.batch.vacant()
            {
                frame.fill(&packet.bytes, packet.offload);
                self.batch.advance();
                next = self.instances[port].transmit();
            }
            self.datapaths[self.reader].handle_port(queue, id, &mut self.batch, now);
        }
        sent
    }

    /// The next datagram that leaves.
    pub(crate) fn transmitted(&mut self) -> Option<(Socket, Route, Vec<u8>)> {
        self.datapaths.iter_mut().find_map(|datapath| {
            let (shard, lane, route, datagram) = datapath.transmitted()?;
            let socket = Socket {
                generation: datapath.generation,
                shard,
                lane,
            };
            Some((socket, route, datagram))
        })
    }

    /// When something is due.
    pub(crate) fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        let instances = self
            .instances
            .iter_mut()
            .filter_map(|instance| instance.poll_at(now));
        let datapaths = self.datapaths.iter().filter_map(Datapath::poll_timeout);
        instances.chain(datapaths).min()
    }

    /// What the shards count, added up: the newest datapath's epoch, and each shard's peers.
    pub(crate) fn report(&self) -> Report {
        let mut total = Report::default();
        let mut drops: HashMap<_, DropReport> = HashMap::new();
        for shard in self.datapaths.iter().flat_map(|datapath| &datapath.shards) {
            let report = shard.report();
            total.epoch = report.epoch;
            total.flows += report.flows;
            total.flows_capacity += report.flows_capacity;
            total.frames_in_use += report.frames_in_use;
            total.frames_capacity += report.frames_capacity;
            total.neighbours += report.neighbours;
            total.neighbours_capacity += report.neighbours_capacity;
            total.peers.extend(report.peers);
            for drop in report.drops {
                match drops.get_mut(&drop.reason) {
                    Some(known) => known.packets += drop.packets,
                    None => {
                        drops.insert(drop.reason, drop);
                    }
                }
            }
        }
        total.drops = drops.into_values().collect();
        total.drops.sort_by_key(|drop| drop.reason);
        total
    }
}

/// How the kernel chooses the queue of a multi-queue device: the one that wrote to this flow last, else by a hash that
/// knows nothing of homes.
#[derive(Default)]
struct Steering {
    written: HashMap<(PortId, Ends), usize>,
}

/// Both ends of a flow, sorted.
type Ends = [(IpAddr, u16); 2];

impl Steering {
    fn learn(&mut self, port: PortId, packet: &Packet, queue: usize) {
        if let Some(ends) = ends(packet) {
            self.written.insert((port, ends), queue);
        }
    }

    fn queue(&self, port: PortId, packet: &Packet, queues: usize) -> usize {
        let Some(ends) = ends(packet) else { return 0 };
        let [(_, low), (_, high)] = ends;
        let written = self.written.get(&(port, ends)).copied();
        written.unwrap_or(usize::from(low ^ high)) % queues
    }
}

fn ends(packet: &Packet) -> Option<Ends> {
    let endpoints = Headers::parse(&packet.bytes).ok()?.endpoints();
    let mut ends = [
        (endpoints.source, endpoints.source_port),
        (endpoints.destination, endpoints.destination_port),
    ];
    ends.sort_unstable();
    Some(ends)
}

/// Where a datagram came from, the mark that it carried, and itself.
pub(crate) type Datagram = (SocketAddr, Ecn, Vec<u8>);

/// Groups datagrams as UDP GRO does: equal lengths in a run, the last may be shorter.
pub(crate) fn runs(datagrams: &[Datagram]) -> Vec<std::ops::Range<usize>> {
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
