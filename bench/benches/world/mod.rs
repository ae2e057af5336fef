//! Two shards that know each other, outputs that cost nothing, and an allocator that counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;
use tidegate_stack::egress::{Egress, Route, Slot};
use tidegate_stack::flow::{Arrival, Flow, FlowTable, Hop, Tracking};
use tidegate_stack::frame::checksum::{Sum, checksum};
use tidegate_stack::frame::{Batch, Frame, Offload, PoolSizes, Segmentation};
use tidegate_stack::plan::{
    HostOrdinal, Instance, InstanceIndex, Membership, Mtu, Network, NetworkKind, NetworkNumbers, Peer,
    PeerId, PeerNetworks, Plan, PortId, PrivateKey, Vni, derive_vni, site_ipv6_prefix,
};
use tidegate_stack::shard::{Datagrams, Shard, ShardConfig};
use tidegate_stack::snapshot::{PortSlot, Snapshot};
use tidegate_stack::time::Instant;
use tidegate_stack::wire::{Direction, Ecn, Endpoints, FlowKey};

/// Counts what this thread allocates.
pub(crate) struct CountingAllocator;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is handed to the system's allocator unchanged; the counter touches no memory of its own making
// (a const-initialised thread local of a type without a destructor).
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Says how many allocations `work` makes, once it has run before.
#[expect(clippy::print_stdout, reason = "a bench speaks to a terminal")]
pub(crate) fn say_allocations(name: &str, mut work: impl FnMut()) {
    work();
    let before = ALLOCATIONS.with(Cell::get);
    work();
    println!("{name}: {} allocations", ALLOCATIONS.with(Cell::get) - before);
}

const PORT: PortId = PortId(1);

/// Outputs into one buffer, made once.
struct Sink {
    buffer: Vec<u8>,
    used: usize,
    /// What was committed: strides and bytes.
    batches: Vec<(usize, Range<usize>)>,
    /// Whether datagrams are kept; else the buffer is written over and over.
    keep: bool,
}

struct Reserved<'a> {
    sink: &'a mut Sink,
    stride: usize,
    length: usize,
}

impl Egress for Sink {
    type Slot<'a> = Reserved<'a>;

    fn reserve(&mut self, _route: &Route, stride: usize, count: usize) -> Option<Reserved<'_>> {
        if !self.keep {
            self.used = 0;
        }
        Some(Reserved {
            sink: self,
            stride,
            length: stride * count,
        })
    }

    fn deliver(&mut self, _port: PortId, _frame: &Frame) -> bool {
        true
    }
}

impl Slot for Reserved<'_> {
    fn buffer(&mut self) -> &mut [u8] {
        let start = self.sink.used;
        &mut self.sink.buffer[start..start + self.length]
    }

    fn commit(self, used: usize) {
        let start = self.sink.used;
        self.sink.used += used;
        if self.sink.keep && used > 0 {
            self.sink.batches.push((self.stride, start..start + used));
        }
    }
}

/// Datagrams of one stride.
pub(crate) type Sent = Vec<(usize, Vec<u8>)>;

impl Sink {
    fn new() -> Self {
        Self {
            buffer: vec![0; 1 << 18],
            used: 0,
            batches: Vec::with_capacity(64),
            keep: true,
        }
    }

    fn take(&mut self) -> Sent {
        let batches = self
            .batches
            .drain(..)
            .map(|(stride, range)| (stride, self.buffer[range].to_vec()));
        let sent = batches.collect();
        self.used = 0;
        sent
    }
}

/// Two hosts with a session.
pub(crate) struct Pair {
    first: Shard,
    second: Shard,
    out_first: Sink,
    out_second: Sink,
}

fn now() -> Instant {
    Instant::ZERO + Duration::from_secs(1)
}

fn ordinal(number: u8) -> HostOrdinal {
    HostOrdinal::try_from(u64::from(number)).unwrap_or(HostOrdinal::MIN)
}

fn underlay(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 51820))
}

fn network() -> Network {
    let vni = derive_vni("acme", NetworkKind::Application, "shop");
    let prefix = ipnet::Ipv4Net::new_assert([172, 19, 0, 0].into(), 16);
    let numbers = NetworkNumbers::application(prefix, site_ipv6_prefix("bench"), vni);
    Network {
        vni,
        kind: NetworkKind::Application,
        tenant: "acme".into(),
        name: "shop".into(),
        numbers,
    }
}

fn instance(own: u8, index: u8) -> Instance {
    let network = network();
    let index_number = InstanceIndex::try_from(u64::from(index)).unwrap_or(InstanceIndex::MIN);
    let (ipv4, ipv6) = network
        .numbers
        .instance(ordinal(own), index_number)
        .unwrap_or_else(|| panic!("index {index} is in the block"));
    Instance {
        port: PortId(u32::from(index) - 1),
        tenant: "acme".into(),
        application: "shop".into(),
        service: "web".into(),
        name: format!("web-{index}"),
        memberships: vec![Membership {
            vni: network.vni,
            ipv4,
            ipv6,
        }],
        mtu: Mtu::try_from(1390).unwrap_or(Mtu::MIN),
        offloads: true,
    }
}

fn plan(own: u8, other: u8, instances: u8) -> Plan {
    let key = |number: u8| PrivateKey::from_bytes([number; 32]);
    Plan {
        ordinal: ordinal(own),
        networks: vec![network()],
        instances: (2..2 + instances).map(|index| instance(own, index)).collect(),
        peers: vec![Peer {
            id: PeerId(1),
            name: format!("h{other}"),
            ordinal: ordinal(other),
            public_key: key(other).public_key(),
            preshared_key: None,
            endpoint: Some(underlay(other)),
            networks: PeerNetworks::All,
            mtu: Mtu::try_from(1390).unwrap_or(Mtu::MIN),
            keepalive: None,
        }],
        foreign_lane_key: key(own),
    }
}

/// A plan with so many instances.
pub(crate) fn plan_with(instances: u8) -> Plan {
    plan(1, 2, instances)
}

impl Pair {
    /// Two hosts that have shaken hands.
    pub(crate) fn new() -> Self {
        let config = ShardConfig {
            seed: 1,
            flows: 65_536,
            frames: PoolSizes { small: 64, large: 16 },
        };
        let mut pair = Self {
            first: Shard::new(config),
            second: Shard::new(config),
            out_first: Sink::new(),
            out_second: Sink::new(),
        };
        pair.first.install(
            Snapshot::compile(&plan(1, 2, 2), None),
            now(),
            &mut pair.out_first,
        );
        pair.second.install(
            Snapshot::compile(&plan(2, 1, 2), None),
            now(),
            &mut pair.out_second,
        );
        pair.settle();
        pair
    }

    /// Sends a first packet, so that neighbours and flows are known; afterwards nothing is kept.
    pub(crate) fn introduce(&mut self, ipv6: bool) {
        let mut batch = Batch::new(1);
        if let Some(frame) = batch.vacant() {
            frame.fill(&packet(ipv6, 40_000, 10), tcp_offload(ipv6, 1338));
        }
        batch.advance();
        self.send(&mut batch);
        self.settle();
        self.out_first.keep = false;
    }

    /// Gives a batch to the first host's port.
    pub(crate) fn send(&mut self, batch: &mut Batch) {
        self.first.handle_port(PORT, batch, now(), &mut self.out_first);
    }

    /// Keeps what is sent from here on.
    pub(crate) fn keep(&mut self) {
        self.out_first.keep = true;
    }

    /// What was kept.
    pub(crate) fn take_datagrams(&mut self) -> Sent {
        self.out_first.take()
    }

    /// Gives datagrams to the second host.
    pub(crate) fn receive(&mut self, sent: &Sent) {
        carry(sent, 1, &mut self.second, &mut self.out_second);
    }

    fn settle(&mut self) {
        for _ in 0..10 {
            carry(&self.out_first.take(), 1, &mut self.second, &mut self.out_second);
            carry(&self.out_second.take(), 2, &mut self.first, &mut self.out_first);
        }
    }
}

/// Carries what a host has said to the other one.
fn carry(sent: &Sent, number: u8, to: &mut Shard, out: &mut Sink) {
    for (stride, bytes) in sent {
        let source = underlay(number);
        to.handle_lane(
            Datagrams {
                lane: 0,
                source,
                ecn: Ecn::NotCapable,
                stride: *stride,
                bytes,
            },
            now(),
            out,
        );
    }
    to.flush(now(), out);
}

/// A TCP packet from an instance of the first host to one of the second.
pub(crate) fn packet(ipv6: bool, source_port: u16, payload: usize) -> Vec<u8> {
    let network = network();
    let index = InstanceIndex::MIN;
    let ends = [1, 2].map(|own| network.numbers.instance(ordinal(own), index));
    let [Some(source), Some(destination)] = ends else {
        panic!("the first index is in every block")
    };
    let (source, destination): (IpAddr, IpAddr) = if ipv6 {
        (source.1.into(), destination.1.into())
    } else {
        (source.0.into(), destination.0.into())
    };
    let mut packet = Vec::with_capacity(payload + 60);
    let segment = 20 + payload;
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.extend([0x45, 0]);
            packet.extend(((20 + segment) as u16).to_be_bytes());
            packet.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            let sum = checksum(&packet);
            packet[10..12].copy_from_slice(&sum);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend((segment as u16).to_be_bytes());
            packet.extend([6, 64]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("one family"),
    }
    let transport = packet.len();
    packet.extend(source_port.to_be_bytes());
    packet.extend(80_u16.to_be_bytes());
    packet.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0x20, 0, 0, 0, 0, 0]);
    packet.extend((0..payload).map(|byte| byte as u8));
    let partial = Sum::pseudo_header(source, destination, 6, segment as u32).folded();
    packet[transport + 16..transport + 18].copy_from_slice(&partial);
    packet
}

/// The same packet to the second instance of the first host.
pub(crate) fn to_second_port(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[16..20].copy_from_slice(&[172, 19, 1, 3]);
    packet[10..12].fill(0);
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum);
    packet
}

/// What a TUN device says about such a packet.
pub(crate) fn tcp_offload(ipv6: bool, size: usize) -> Offload {
    Offload {
        segmentation: Segmentation::Tcp {
            size: size as u16,
            ecn: false,
        },
        partial_checksum: Some((if ipv6 { 40 } else { 20 }, 16)),
    }
}

/// A key of a flow table's bench: `number` makes the source.
pub(crate) fn flow_key(number: u32) -> (FlowKey, Direction) {
    let endpoints = Endpoints {
        protocol: 6,
        source: IpAddr::from([172, 19, (number >> 24) as u8, (number >> 16) as u8]),
        source_port: number as u16,
        destination: IpAddr::from([172, 20, 2, 2]),
        destination_port: 80,
    };
    FlowKey::of(Vni::MIN, &endpoints)
}

/// A table with so many flows.
pub(crate) fn flow_table(flows: u32) -> FlowTable {
    let mut table = FlowTable::new(flows as usize, 1);
    for number in 0..flows {
        let (key, opener) = flow_key(number);
        let hop = Hop::Port(PortSlot(0));
        let flow = Flow {
            key,
            epoch: 1,
            origin: Arrival::Port(PORT),
            opener,
            hops: [hop, hop],
            tunnel: None,
            tracking: Tracking::TcpEstablished,
            expires: now() + Duration::from_secs(3600),
        };
        assert!(table.insert(flow, now()).is_some());
    }
    table
}
