//! The steady state allocates nothing: port → handover → cut → seal → lane → open → glue → port, on two hosts of one and
//! of two shards, counted by the allocator itself.

#![expect(clippy::unwrap_used, reason = "a test ends at what it didn't expect")]

#[path = "sim/packets.rs"]
#[expect(dead_code, reason = "shared with the simulation")]
mod packets;
#[path = "sim/plans.rs"]
#[expect(dead_code, reason = "shared with the simulation")]
mod plans;

use packets::{Crafted, in_fragments};
use plans::{Shape, Site, lane_key};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::num::NonZeroU8;
use std::sync::Arc;
use std::time::Duration;
use tidegate_stack::egress::{Egress, Handover, LaneKind, Route, ShardId, Slot};
use tidegate_stack::flow::Quotas;
use tidegate_stack::frame::{Batch, Frame, Offload, PoolSizes, Segmentation};
use tidegate_stack::plan::{
    AnswerOrder, Membership, NamedInstance, NamedService, NetworkNames, Plan, PortId,
};
use tidegate_stack::responder::dns::forward::{Resolution, Told};
use tidegate_stack::responder::dns::{Question, Reply};
use tidegate_stack::shard::{Datagrams, Shard, ShardConfig};
use tidegate_stack::snapshot::Snapshot;
use tidegate_stack::time::Instant;
use tidegate_stack::wire::Ecn;

/// Counts what the threads that asked for it allocate.
struct Counting;

thread_local! {
    static COUNTED: Cell<Option<usize>> = const { Cell::new(None) };
}

fn count() {
    // A thread that is ending has no counter any more.
    let _ = COUNTED.try_with(|counted| counted.set(counted.get().map(|count| count + 1)));
}

#[expect(unsafe_code, reason = "an allocator is unsafe by its nature")]
// SAFETY: every call goes on to the system's allocator, unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often `work` allocates.
fn allocations(work: impl FnOnce()) -> usize {
    COUNTED.set(Some(0));
    work();
    COUNTED.replace(None).unwrap_or(0)
}

/// Outputs into memory that is there already.
struct Outputs {
    bytes: Box<[u8]>,
    used: usize,
    /// Batches of datagrams: where they go, where they start, how long they are, their stride.
    batches: Vec<(SocketAddr, usize, usize, usize)>,
    /// What goes to the host's other shards.
    ring: VecDeque<(ShardId, Handover)>,
    handed_over: usize,
    packets: usize,
    payload: usize,
    largest: usize,
}

const BATCHES: usize = 256;

impl Outputs {
    fn new() -> Self {
        Self {
            bytes: vec![0; 1 << 20].into_boxed_slice(),
            used: 0,
            batches: Vec::with_capacity(BATCHES),
            ring: VecDeque::with_capacity(BATCHES),
            handed_over: 0,
            packets: 0,
            payload: 0,
            largest: 0,
        }
    }
}

impl Egress for Outputs {
    type Slot<'a> = Room<'a>;

    fn reserve(&mut self, route: &Route, stride: usize, count: usize) -> Option<Room<'_>> {
        let end = self.used + stride * count.min(64);
        (end <= self.bytes.len() && self.batches.len() < BATCHES).then_some(Room {
            endpoint: route.endpoint,
            outputs: self,
            stride,
            end,
        })
    }

    fn deliver(&mut self, _port: PortId, frame: &Frame) -> bool {
        self.packets += 1;
        self.payload += frame.packet().len();
        self.largest = self.largest.max(frame.packet().len());
        true
    }

    fn handover(&mut self, to: ShardId, handover: Handover) -> Result<(), Handover> {
        self.ring.push_back((to, handover));
        self.handed_over += 1;
        Ok(())
    }
}

struct Room<'a> {
    endpoint: SocketAddr,
    outputs: &'a mut Outputs,
    stride: usize,
    end: usize,
}

impl Slot for Room<'_> {
    fn buffer(&mut self) -> &mut [u8] {
        &mut self.outputs.bytes[self.outputs.used..self.end]
    }

    fn commit(self, used: usize) {
        if used > 0 {
            let batch = (self.endpoint, self.outputs.used, used, self.stride);
            self.outputs.batches.push(batch);
            self.outputs.used += used;
        }
    }
}

/// A shard, and where its lane is.
struct Place {
    host: usize,
    address: SocketAddr,
    shard: Shard,
    outputs: Outputs,
}

/// Two hosts and what they say to each other.
struct Pair {
    /// The first host's shards, then the second's.
    places: Vec<Place>,
    shards: usize,
    lane: LaneKind,
    plans: [Plan; 2],
    now: Instant,
}

impl Pair {
    fn new(shape: Shape) -> Self {
        let site = Site {
            offloads: true,
            shape,
            ..Site::default()
        };
        let shards = site.shards(0);
        let place = |host: usize, number: u8| Place {
            host,
            address: match shape {
                Shape::Foreign(_) => site.address(host),
                Shape::Shards(_) => site.lane_address(host, 1, number),
            },
            shard: Shard::new(ShardConfig {
                id: ShardId(number),
                count: NonZeroU8::new(shards).unwrap(),
                lane_key: lane_key(host, 1, number),
                seed: 1,
                flows: 64,
                quotas: Arc::new(Quotas::of_host(64)),
                frames: PoolSizes { small: 64, large: 16 },
            }),
            outputs: Outputs::new(),
        };
        let mut pair = Self {
            places: [0, 1]
                .into_iter()
                .flat_map(|host| (0..shards).map(move |number| (host, number)))
                .map(|(host, number)| place(host, number))
                .collect(),
            shards: usize::from(shards),
            lane: match shape {
                Shape::Foreign(_) => LaneKind::Foreign,
                Shape::Shards(_) => LaneKind::Site,
            },
            plans: [0, 1].map(|host| site.plan(host)),
            now: Instant::ZERO,
        };
        for host in [0, 1] {
            let snapshot = Snapshot::compile(&pair.plans[host], None);
            for place in pair.places.iter_mut().filter(|place| place.host == host) {
                place
                    .shard
                    .install(snapshot.clone(), pair.now, &mut place.outputs);
            }
        }
        pair.exchange();
        pair
    }

    /// Lets a host's shard read the packets of a batch from the first instance, and carries everything until it is
    /// quiet.
    fn send(&mut self, host: usize, shard: usize, batch: &mut Batch) {
        let reader = host * self.shards + shard;
        let place = &mut self.places[reader];
        place
            .shard
            .handle_port(PortId(0), batch, self.now, &mut place.outputs);
        // A datagram whose fragments were handed over may be handed over itself.
        while let Some(from) = self
            .places
            .iter()
            .position(|place| !place.outputs.ring.is_empty())
        {
            while let Some((to, handover)) = self.places[from].outputs.ring.pop_front() {
                let place = &mut self.places[host * self.shards + usize::from(to.0)];
                let spent = place
                    .shard
                    .handle_handover(handover, self.now, &mut place.outputs);
                self.places[from].shard.recycle(spent);
            }
        }
        self.exchange();
    }

    fn exchange(&mut self) {
        while let Some(from) = self
            .places
            .iter()
            .position(|place| !place.outputs.batches.is_empty())
        {
            // What was sent leaves while others work on it, and comes back to be filled again.
            let mut batches = std::mem::take(&mut self.places[from].outputs.batches);
            let bytes = std::mem::take(&mut self.places[from].outputs.bytes);
            let source = self.places[from].address;
            for (endpoint, start, length, stride) in batches.drain(..) {
                let mut places = self.places.iter_mut();
                let to = places.find(|place| place.address == endpoint).unwrap();
                let datagrams = Datagrams {
                    lane: self.lane,
                    source,
                    ecn: Ecn::NotCapable,
                    stride,
                    bytes: &bytes[start..start + length],
                };
                to.shard.handle_lane(datagrams, self.now, &mut to.outputs);
            }
            self.places[from].outputs.batches = batches;
            self.places[from].outputs.bytes = bytes;
            self.places[from].outputs.used = 0;
            for place in &mut self.places {
                place.shard.flush(self.now, &mut place.outputs);
            }
        }
    }

    /// The sum over a host's shards.
    fn count(&self, host: usize, what: impl Fn(&Outputs) -> usize) -> usize {
        let places = self.places.iter().filter(|place| place.host == host);
        places.map(|place| what(&place.outputs)).sum()
    }

    fn crafted(&self, from: usize, ipv6: bool) -> Crafted {
        let address =
            |host: usize| self.plans[host].instances[0].memberships[0].addresses()[usize::from(ipv6)];
        Crafted::new(address(from), address(1 - from))
    }
}

const ROUNDS: u32 = 200;

#[test]
fn an_allocation_is_counted() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![1_u8]))), 1);
}

#[test]
fn packets_are_moved_without_an_allocation() {
    for shape in [
        Shape::Foreign([1, 1]),
        Shape::Shards([1, 1]),
        Shape::Shards([2, 2]),
    ] {
        for ipv6 in [false, true] {
            moved_without_an_allocation(shape, ipv6);
        }
    }
}

/// Every shard reads the packets of every flow in turn: where there are two, half of them are handed over.
fn moved_without_an_allocation(shape: Shape, ipv6: bool) {
    let mut pair = Pair::new(shape);
    let there = pair.crafted(0, ipv6);
    let back = pair.crafted(1, ipv6);
    let headers = if ipv6 { 60 } else { 40 };
    let offload = Offload {
        segmentation: Segmentation::Tcp {
            size: 1390 - headers,
            ecn: false,
        },
        partial_checksum: Some((headers - 20, 16)),
    };
    let super_packet = there.tcp((40_000, 80), 1000, &vec![0x5a; 55_000]);
    let answer = back.tcp((80, 40_000), 5000, &[]);
    let datagram = there.udp((4000, 4001), &[7; 900]);
    let mut batch = Batch::new(4);
    let mut round = |pair: &mut Pair, reader: usize| {
        for (host, bytes, offload) in [
            (0, &super_packet, offload),
            (1, &answer, Offload::NONE),
            (0, &datagram, Offload::NONE),
        ] {
            batch.clear();
            if let Some(frame) = batch.vacant() {
                frame.fill(bytes, offload);
                batch.advance();
            }
            pair.send(host, reader % pair.shards, &mut batch);
        }
    };
    for number in 0..8 {
        round(&mut pair, number);
    }
    let count = |pair: &Pair| {
        [
            pair.count(1, |outputs| outputs.payload),
            pair.count(0, |outputs| outputs.packets),
            pair.count(0, |outputs| outputs.handed_over),
        ]
    };
    let before = count(&pair);
    let counted = allocations(|| {
        for number in 0..ROUNDS {
            round(&mut pair, number as usize);
        }
    });
    let rounds = ROUNDS as usize;
    let [payload, packets, handed_over] = count(&pair);
    assert!(payload - before[0] > rounds * 55_000, "the packets didn't arrive");
    assert_eq!(packets - before[1], rounds);
    assert_eq!(handed_over - before[2], if pair.shards == 1 { 0 } else { rounds });
    let largest = pair.places.iter().map(|place| place.outputs.largest).max();
    assert!(
        largest.is_some_and(|largest| largest > 40_000),
        "what arrives is glued: {largest:?}"
    );
    assert_eq!(
        counted, 0,
        "allocations in {rounds} rounds, {shape:?}, IPv6: {ipv6}"
    );
}

#[test]
fn datagrams_are_put_together_and_cut_without_an_allocation() {
    for shape in [Shape::Shards([1, 1]), Shape::Shards([2, 2])] {
        for ipv6 in [false, true] {
            put_together_without_an_allocation(shape, ipv6);
        }
    }
}

/// Every shard reads fragments in turn; one datagram of two never becomes whole.
fn put_together_without_an_allocation(shape: Shape, ipv6: bool) {
    let mut pair = Pair::new(shape);
    let whole = pair.crafted(0, ipv6).udp((4000, 4001), &[7; 4000]);
    // What a sender makes of it, by the number of the round.
    let mut rounds = (0..u32::from(u16::MAX)).map(|number| in_fragments(&whole, number, 1_200));
    let mut batch = Batch::new(4);
    let mut round = |pair: &mut Pair, number: usize, parts: &[Vec<u8>]| {
        for (index, part) in parts.iter().skip(number % 2).enumerate() {
            batch.clear();
            if let Some(frame) = batch.vacant() {
                frame.fill(part, Offload::NONE);
                batch.advance();
            }
            pair.send(0, (number + index) % pair.shards, &mut batch);
        }
        pair.now = pair.now + Duration::from_millis(500);
        for place in &mut pair.places {
            place.shard.handle_timeout(pair.now, &mut place.outputs);
        }
        pair.exchange();
    };
    for number in 0..8 {
        round(&mut pair, number, &rounds.next().unwrap());
    }
    let prepared: Vec<_> = rounds.take(ROUNDS as usize).collect();
    let before = pair.count(1, |outputs| outputs.packets);
    let counted = allocations(|| {
        for (number, parts) in prepared.iter().enumerate() {
            round(&mut pair, number, parts);
        }
    });
    // Four fragments for the tunnel carry a datagram, and the port takes them.
    let arrived = pair.count(1, |outputs| outputs.packets) - before;
    assert!(arrived >= ROUNDS as usize / 2 * 3, "{arrived}");
    assert_eq!(counted, 0, "{shape:?}, IPv6: {ipv6}");
}

#[test]
fn quiet_ticks_allocate_nothing() {
    let mut pair = Pair::new(Shape::Shards([2, 2]));
    let there = pair.crafted(0, false);
    let mut batch = Batch::new(1);
    for port in 0..8 {
        batch.clear();
        if let Some(frame) = batch.vacant() {
            frame.fill(&there.udp((4000 + port, 4001), b"a session"), Offload::NONE);
            batch.advance();
        }
        pair.send(0, 0, &mut batch);
    }
    pair.now = pair.now + Duration::from_secs(1);
    let tick = |pair: &mut Pair| {
        pair.now = pair.now + Duration::from_millis(250);
        for place in &mut pair.places {
            place.shard.handle_timeout(pair.now, &mut place.outputs);
        }
        pair.exchange();
    };
    for _ in 0..4 {
        tick(&mut pair);
    }
    assert_eq!(allocations(|| (0..40).for_each(|_| tick(&mut pair))), 0);
}

/// What a name server said about `www.example.test`: an address.
fn outside() -> Arc<Told> {
    let question = Question::new(b"\x03www\x07example\x04test\0", 1).unwrap();
    let mut message = question.query(7, [0; 32], false);
    message[2] |= 0x80;
    message[7] = 1;
    message.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
    let resolution = Resolution::Reply(Reply::try_from(message).unwrap());
    Arc::new(Told { question, resolution })
}

#[test]
fn queries_are_answered_without_an_allocation() {
    let mut pair = Pair::new(Shape::Shards([1, 1]));
    let plan = &mut pair.plans[0];
    let Membership { vni, ipv4, ipv6 } = plan.instances[0].memberships[0];
    let instance = |number: u8| NamedInstance {
        name: format!("web-{number}"),
        ipv4,
        ipv6,
        ready: true,
    };
    plan.names = vec![NetworkNames {
        vni,
        log: false,
        services: vec![NamedService {
            id: plan.instances[0].service_id(),
            order: AnswerOrder::Rotate,
            ports: Vec::new(),
            texts: Vec::new(),
            instances: (1..=5).map(instance).collect(),
        }],
    }];
    let service = plan.network(vni).unwrap().service_ipv4();
    let snapshot = Snapshot::compile(plan, None);
    let place = &mut pair.places[0];
    place.shard.install(snapshot, pair.now, &mut place.outputs);

    let crafted = Crafted::new(ipv4.into(), service.into());
    let asked = [
        &b"\x03web\x04shop\x08internal\0\0\x01\0\x01"[..],
        b"\x03web\x04shop\x08internal\0\0\x1c\0\x01",
        b"\x06nobody\x04shop\x08internal\0\0\x01\0\x01",
        b"\x03www\x07example\x04test\0\0\x01\0\x01",
        b"\xc0\x0c\0\x01\0\x01",
    ];
    let queries = asked.map(|asked| {
        let message = [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], asked].concat();
        crafted.udp((4000, 53), &message)
    });
    let mut batch = Batch::new(1);
    let mut round = |pair: &mut Pair| {
        for query in &queries {
            batch.clear();
            if let Some(frame) = batch.vacant() {
                frame.fill(query, Offload::NONE);
                batch.advance();
            }
            pair.send(0, 0, &mut batch);
        }
    };
    round(&mut pair);
    // What was found out of the world outside is told again as cheaply as a name inside.
    let place = &mut pair.places[0];
    place
        .shard
        .handle_told(&[outside()], pair.now, &mut place.outputs);
    let before = pair.count(0, |outputs| outputs.packets);
    let counted = allocations(|| (0..ROUNDS).for_each(|_| round(&mut pair)));
    assert_eq!(
        pair.count(0, |outputs| outputs.packets) - before,
        ROUNDS as usize * queries.len()
    );
    assert_eq!(counted, 0);
}
