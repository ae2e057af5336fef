//! The packet path, step by step: `<action>/<family>/<path>`. After each time comes the number of heap allocations
//! that one iteration made; on the path it is zero.

mod world;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use tidegate_stack::frame::{Batch, Offload, Segmentation};
use tidegate_stack::plan::Plan;
use tidegate_stack::snapshot::Snapshot;
use tidegate_stack::wire::Headers;
use world::{Pair, flow_key, flow_table, packet, plan_with, say_allocations};

#[global_allocator]
static ALLOCATOR: world::CountingAllocator = world::CountingAllocator;

/// Payload of one segment, at an inner MTU of 1390 and with TCP's time stamps.
const SEGMENT: usize = 1338;
/// The same with IPv6.
const SEGMENT_IPV6: usize = 1318;
/// Segments of a super-packet: what a TUN device with a GSO limit of 59,300 bytes gives.
const SEGMENTS: usize = 44;

fn parse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    for (name, ipv6) in [("tcp4/headers", false), ("tcp6/headers", true)] {
        let packet = packet(ipv6, 40_000, SEGMENT);
        say_allocations(&format!("parse/{name}"), || {
            _ = black_box(Headers::parse(&packet))
        });
        group.bench_function(name, |bencher| {
            bencher.iter(|| Headers::parse(black_box(&packet)))
        });
    }
    group.finish();
}

fn find(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("find");
    for flows in [10_000_u32, 65_536] {
        let table = flow_table(flows);
        let key = |number: u32| flow_key(number).0;
        // A stride that is prime to the number of flows visits all of them, in an order no cache foresees.
        let mut number = 0;
        say_allocations(&format!("find/flow/hit-{flows}"), || _ = table.find(&key(1)));
        group.bench_function(format!("flow/hit-{flows}"), |bencher| {
            bencher.iter(|| {
                number = (number + 7_919) % flows;
                let found = table.find(&key(black_box(number)));
                assert!(found.is_some());
                found
            });
        });
        group.bench_function(format!("flow/miss-{flows}"), |bencher| {
            bencher.iter(|| {
                number = (number + 7_919) % flows;
                table.find(&key(black_box(0x10_0000 + number)))
            });
        });
    }
    group.finish();
}

fn seal(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("seal");
    for (name, ipv6, segments) in [
        ("tcp4/super-packet", false, SEGMENTS),
        ("tcp6/super-packet", true, SEGMENTS),
        ("tcp4/packet", false, 1),
    ] {
        let mut pair = Pair::new();
        let segment = if ipv6 { SEGMENT_IPV6 } else { SEGMENT };
        let packet = packet(ipv6, 40_000, segment * segments);
        let offload = world::tcp_offload(ipv6, segment);
        let mut batch = Batch::new(1);
        pair.introduce(ipv6);
        let mut turn = || {
            batch.clear();
            if let Some(frame) = batch.vacant() {
                frame.fill(&packet, offload);
            }
            batch.advance();
            pair.send(&mut batch);
        };
        say_allocations(&format!("seal/{name}"), &mut turn);
        group.throughput(Throughput::Bytes((segment * segments) as u64));
        group.bench_function(name, |bencher| bencher.iter(&mut turn));
    }
    group.finish();
}

fn open(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("open");
    for (name, ipv6) in [("tcp4/train", false), ("tcp6/train", true)] {
        let pair = std::cell::RefCell::new(Pair::new());
        let segment = if ipv6 { SEGMENT_IPV6 } else { SEGMENT };
        let packet = packet(ipv6, 40_000, segment * SEGMENTS);
        let offload = world::tcp_offload(ipv6, segment);
        pair.borrow_mut().introduce(ipv6);
        pair.borrow_mut().keep();
        let prepare = || {
            let mut batch = Batch::new(1);
            if let Some(frame) = batch.vacant() {
                frame.fill(&packet, offload);
            }
            batch.advance();
            let mut pair = pair.borrow_mut();
            pair.send(&mut batch);
            pair.take_datagrams()
        };
        let datagrams = prepare();
        say_allocations(&format!("open/{name}"), || pair.borrow_mut().receive(&datagrams));
        group.throughput(Throughput::Bytes((segment * SEGMENTS) as u64));
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                prepare,
                |datagrams| pair.borrow_mut().receive(&datagrams),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn compile(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    let plan: Plan = plan_with(100);
    group.bench_function("plan/100-instances", |bencher| {
        bencher.iter(|| Snapshot::compile(black_box(&plan), None));
    });
    group.finish();
}

fn whole_packets(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("forward");
    let mut pair = Pair::new();
    let packet = packet(false, 40_000, 59_000);
    let offload = Offload {
        segmentation: Segmentation::Tcp {
            size: SEGMENT as u16,
            ecn: false,
        },
        partial_checksum: Some((20, 16)),
    };
    let local = world::to_second_port(&packet);
    let mut batch = Batch::new(1);
    let mut turn = || {
        batch.clear();
        if let Some(frame) = batch.vacant() {
            frame.fill(&local, offload);
        }
        batch.advance();
        pair.send(&mut batch);
    };
    say_allocations("forward/tcp4/port-to-port", &mut turn);
    group.bench_function("tcp4/port-to-port", |bencher| bencher.iter(&mut turn));
    group.finish();
}

criterion_group! {
    name = packet_path;
    config = Criterion::default().sample_size(30);
    targets = parse, find, whole_packets, seal, open, compile
}
criterion_main!(packet_path);
