//! The steady state allocates nothing: port → cut → seal → lane → open → glue → port, on two shards, counted by the
//! allocator itself.

#![expect(clippy::unwrap_used, reason = "a test ends at what it didn't expect")]

#[path = "sim/packets.rs"]
#[expect(dead_code, reason = "shared with the simulation")]
mod packets;
#[path = "sim/plans.rs"]
#[expect(dead_code, reason = "shared with the simulation")]
mod plans;

use packets::Crafted;
use plans::Site;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::num::NonZeroU8;
use std::time::Duration;
use tidegate_stack::egress::{Egress, Handover, LaneKind, Route, ShardId, Slot};
use tidegate_stack::frame::{Batch, Frame, Offload, PoolSizes, Segmentation};
use tidegate_stack::plan::{Plan, PortId, PrivateKey};
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
    /// Batches of datagrams: where they start, how long they are, their stride.
    batches: Vec<(usize, usize, usize)>,
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
            packets: 0,
            payload: 0,
            largest: 0,
        }
    }
}

impl Egress for Outputs {
    type Slot<'a> = Room<'a>;

    fn reserve(&mut self, _route: &Route, stride: usize, count: usize) -> Option<Room<'_>> {
        let end = self.used + stride * count.min(64);
        (end <= self.bytes.len() && self.batches.len() < BATCHES).then_some(Room {
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

    fn handover(&mut self, _to: ShardId, handover: Handover) -> Result<(), Handover> {
        Err(handover)
    }
}

struct Room<'a> {
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
            self.outputs.batches.push((self.outputs.used, used, self.stride));
            self.outputs.used += used;
        }
    }
}

/// Two hosts and what they say to each other.
struct Pair {
    shards: [Shard; 2],
    outputs: [Outputs; 2],
    addresses: [SocketAddr; 2],
    plans: [Plan; 2],
    now: Instant,
}

impl Pair {
    fn new() -> Self {
        let site = Site {
            offloads: true,
            ..Site::default()
        };
        let config = ShardConfig {
            id: ShardId(0),
            count: NonZeroU8::MIN,
            lane_key: PrivateKey::from_bytes([0x5a; 32]),
            seed: 1,
            flows: 64,
            frames: PoolSizes { small: 64, large: 16 },
        };
        let mut pair = Self {
            shards: [Shard::new(config.clone()), Shard::new(config)],
            outputs: [Outputs::new(), Outputs::new()],
            addresses: [0, 1].map(|host| site.address(host)),
            plans: [0, 1].map(|host| site.plan(host)),
            now: Instant::ZERO,
        };
        for host in [0, 1] {
            let snapshot = Snapshot::compile(&pair.plans[host], None);
            pair.shards[host].install(snapshot, pair.now, &mut pair.outputs[host]);
        }
        pair.exchange();
        pair
    }

    /// Sends the packets of a batch from a host's first instance, and carries everything until it is quiet.
    fn send(&mut self, host: usize, batch: &mut Batch) {
        self.shards[host].handle_port(PortId(0), batch, self.now, &mut self.outputs[host]);
        self.exchange();
    }

    fn exchange(&mut self) {
        while self.outputs.iter().any(|outputs| !outputs.batches.is_empty()) {
            for from in [0, 1] {
                let to = 1 - from;
                let [first, second] = &mut self.outputs;
                let (sent, theirs) = if from == 0 {
                    (first, second)
                } else {
                    (second, first)
                };
                for (start, length, stride) in sent.batches.drain(..) {
                    let datagrams = Datagrams {
                        lane: LaneKind::Foreign,
                        source: self.addresses[from],
                        ecn: Ecn::NotCapable,
                        stride,
                        bytes: &sent.bytes[start..start + length],
                    };
                    self.shards[to].handle_lane(datagrams, self.now, theirs);
                }
                sent.used = 0;
                self.shards[to].flush(self.now, theirs);
            }
        }
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
    let mut pair = Pair::new();
    for ipv6 in [false, true] {
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
        let mut round = |pair: &mut Pair| {
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
                pair.send(host, &mut batch);
            }
        };
        for _ in 0..8 {
            round(&mut pair);
        }
        let before = (pair.outputs[1].payload, pair.outputs[0].packets);
        let counted = allocations(|| {
            for _ in 0..ROUNDS {
                round(&mut pair);
            }
        });
        let rounds = ROUNDS as usize;
        assert!(
            pair.outputs[1].payload - before.0 > rounds * 55_000,
            "the packets didn't arrive"
        );
        assert_eq!(pair.outputs[0].packets - before.1, rounds);
        assert!(
            pair.outputs[1].largest > 40_000,
            "what arrives is glued: {}",
            pair.outputs[1].largest
        );
        assert_eq!(counted, 0, "allocations in {rounds} rounds, IPv6: {ipv6}");
    }
}

#[test]
fn quiet_ticks_allocate_nothing() {
    let mut pair = Pair::new();
    pair.now = pair.now + Duration::from_secs(1);
    let tick = |pair: &mut Pair| {
        pair.now = pair.now + Duration::from_millis(250);
        for host in [0, 1] {
            pair.shards[host].handle_timeout(pair.now, &mut pair.outputs[host]);
        }
        pair.exchange();
    };
    for _ in 0..4 {
        tick(&mut pair);
    }
    assert_eq!(allocations(|| (0..40).for_each(|_| tick(&mut pair))), 0);
}
