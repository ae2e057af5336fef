//! Benches of the packet path, named `<action>/<family>/<path>`, each with its count of heap allocations.
//!
//! | bench | one iteration is |
//! |---|---|
//! | `parse/…` | one packet |
//! | `find/…` | 32 looks, as for a batch of packets, into a table of 10,000 flows or of a million |
//! | `judge/…` | the decision about one new flow; `10k-rules`: to a service with ten thousand of them |
//! | `seal/…` | one super-packet cut, encapsulated and sealed |
//! | `open/…` | the same datagrams opened, checked and glued again |
//! | `forward/…` | one super-packet from an instance to another of the same host |
//! | `compile/…` | one plan of 200 instances and 20 peers, or with ten thousand rules |
//! | `answer/…` | one query for a name of 100 services: parsed, found, answered; `through` a shard, from packet to packet; by hickory-proto for comparison, without the finding |

#![expect(clippy::expect_used, reason = "a bench ends at what it didn't expect")]

mod allocations;
mod names;
mod packets;
mod rules;
mod site;

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput};
use tidegate_stack::flow::{
    Arrival, Flow, FlowTable, Hop, Owners, QuotaSlot, Quotas, Segment, Tracking, Verdict,
};
use tidegate_stack::plan::{PeerId, PortId};
use tidegate_stack::snapshot::{PortSlot, Snapshot};
use tidegate_stack::time::Instant;
use tidegate_stack::wire::{Endpoints, FlowKey, Headers};

use crate::allocations::{per_input, per_iteration};
use crate::site::{FAR, LOCAL, NEAR, Pair, plan};

/// Packets that are read at once.
const BATCH: usize = 32;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    parse(&mut criterion);
    find(&mut criterion);
    judge(&mut criterion);
    judge_rules(&mut criterion);
    seal(&mut criterion);
    open(&mut criterion);
    forward(&mut criterion);
    compile(&mut criterion);
    names::answer(&mut criterion);
    criterion.final_summary();
}

fn parse(criterion: &mut Criterion) {
    let site = site::Addresses::of(&plan(0, 1, 1));
    for (family, source, destination) in [
        ("ipv4", site.ipv4(NEAR), site.ipv4(LOCAL)),
        ("ipv6", site.ipv6(NEAR), site.ipv6(LOCAL)),
    ] {
        let segment = packets::tcp(source, destination, (40_000, 80), 1, &[0x5a; 1300]);
        let name = format!("parse/{family}/tcp");
        per_iteration(&name, || black_box(Headers::parse(black_box(&segment))));
        criterion.bench_function(&name, |bencher| {
            bencher.iter(|| Headers::parse(black_box(&segment)))
        });
    }
}

fn find(criterion: &mut Criterion) {
    let plan = plan(0, 1, 1);
    let addresses = site::Addresses::of(&plan);
    let vni = plan.networks[0].vni;
    let packet = packets::tcp(addresses.ipv4(NEAR), addresses.ipv4(FAR), (1, 80), 1, &[]);
    let headers = Headers::parse(&packet).expect("a packet of our own making");
    let segment = Segment::of(&headers, &packet);
    // Ports count up, and when there are no more, so do addresses.
    let key = |number: u32| {
        let host = u8::try_from(number >> 16).expect("fewer than 256 hosts");
        let endpoints = Endpoints {
            source: IpAddr::from([172, 19, 1, host]),
            source_port: number as u16,
            ..headers.endpoints()
        };
        FlowKey::of(vni, &endpoints)
    };
    told(
        "find: bytes of a table for a million flows",
        FlowTable::bytes(1_000_000),
    );
    let mut group = criterion.benchmark_group("find");
    group.throughput(Throughput::Elements(BATCH as u64));
    for (flows, size) in [(10_000, "10k"), (1_000_000, "1m")] {
        let mut table = FlowTable::new(flows as usize, 1, Arc::new(Quotas::new(flows)));
        for number in 0..flows {
            let (key, opener) = key(number);
            let flow = Flow {
                key,
                epoch: 1,
                seen: Instant::ZERO,
                packets: [1, 0],
                bytes: [40, 0],
                tracking: Tracking::begin(&headers, segment.as_ref()),
                hops: [Hop::Tunnel(PeerId(1)), Hop::Port(PortSlot(0))],
                tunnel: None,
                origin: Arrival::Port(PortId(0)),
                home: 0,
                // A network has three quarters of a table at most.
                owners: Owners {
                    network: QuotaSlot(number as u16 % 2),
                    services: [None; 2],
                },
                opener,
                revoked: false,
            };
            table.insert(flow, Instant::ZERO).expect("there is room");
        }
        for (path, from) in [("hit", 0), ("miss", flows)] {
            let name = format!("ipv4/{path}-{size}");
            let keys: Vec<FlowKey> = (from..from + flows).map(|number| key(number).0).collect();
            // A stride that visits every key and no neighbours: what a cache sees of real traffic.
            let mut next = 0;
            let mut batch = move || {
                std::array::from_fn::<_, BATCH, _>(|_| {
                    next = (next + 7919) % keys.len();
                    Some(keys[next])
                })
            };
            per_iteration(&format!("find/{name}"), || black_box(table.find_all(&batch())));
            group.bench_function(&name, |bencher| {
                bencher.iter_batched(
                    &mut batch,
                    |keys| table.find_all(black_box(&keys)),
                    BatchSize::SmallInput,
                );
            });
        }
    }
    group.finish();
}

fn judge(criterion: &mut Criterion) {
    let plan = plan(0, 100, 20);
    let addresses = site::Addresses::of(&plan);
    let snapshot = Snapshot::compile(&plan, None);
    let vni = plan.networks[0].vni;
    for (path, destination) in [
        ("remote", addresses.ipv4(FAR)),
        ("local", addresses.ipv4(LOCAL)),
        ("denied", IpAddr::from([198, 51, 100, 1])),
    ] {
        let packet = packets::tcp(addresses.ipv4(NEAR), destination, (40_000, 80), 1, &[]);
        let endpoints = Headers::parse(&packet)
            .expect("a packet of our own making")
            .endpoints();
        let name = format!("judge/ipv4/{path}");
        let judge = || {
            snapshot
                .policy()
                .judge(vni, black_box(&endpoints), Arrival::Port(PortId(0)))
        };
        per_iteration(&name, || black_box(judge()));
        criterion.bench_function(&name, |bencher| bencher.iter(judge));
    }
}

/// The first packet of a flow to a service whose list has ten thousand rules.
fn judge_rules(criterion: &mut Criterion) {
    for ipv6 in [false, true] {
        let plan = rules::plan(ipv6);
        let snapshot = Snapshot::compile(&plan, None);
        let vni = plan.networks[0].vni;
        for case in rules::cases(&plan, ipv6) {
            let name = format!("judge/{}/10k-rules-{}", family(ipv6), case.name);
            let judge = || {
                snapshot
                    .policy()
                    .judge(vni, black_box(&case.endpoints), Arrival::Port(PortId(0)))
            };
            let forwards = matches!(judge(), Verdict::Forward { .. });
            assert_eq!(forwards, case.allowed, "{name}");
            per_iteration(&name, || black_box(judge()));
            criterion.bench_function(&name, |bencher| bencher.iter(judge));
        }
        let name = format!("compile/{}/10k-rules", family(ipv6));
        criterion.bench_function(&name, |bencher| {
            bencher.iter(|| Snapshot::compile(black_box(&plan), None));
        });
    }
}

fn seal(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("seal");
    for ipv6 in [false, true] {
        let mut pair = Pair::connected();
        let super_packet = pair.super_packet(FAR, ipv6);
        let name = format!("{}/super-packet", family(ipv6));
        group.throughput(Throughput::Bytes(super_packet.payload));
        per_iteration(&format!("seal/{name}"), || pair.seal(&super_packet));
        group.bench_function(&name, |bencher| bencher.iter(|| pair.seal(&super_packet)));
    }
    group.finish();
}

fn open(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("open");
    for ipv6 in [false, true] {
        let mut pair = Pair::connected();
        let super_packet = pair.super_packet(FAR, ipv6);
        let name = format!("{}/super-packet", family(ipv6));
        group.throughput(Throughput::Bytes(super_packet.payload));
        // Datagrams are taken only once (the replay window): each iteration has its own.
        let sealed = [pair.sealed(&super_packet), pair.sealed(&super_packet)];
        per_input(&format!("open/{name}"), sealed, |datagrams| {
            pair.receive(&datagrams)
        });
        let cell = std::cell::RefCell::new(pair);
        group.bench_function(&name, |bencher| {
            bencher.iter_batched(
                || cell.borrow_mut().sealed(&super_packet),
                |datagrams| {
                    cell.borrow_mut().receive(&datagrams);
                    datagrams
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn forward(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("forward");
    for ipv6 in [false, true] {
        let mut pair = Pair::connected();
        let super_packet = pair.super_packet(LOCAL, ipv6);
        let name = format!("{}/one-host", family(ipv6));
        group.throughput(Throughput::Bytes(super_packet.payload));
        per_iteration(&format!("forward/{name}"), || pair.forward(&super_packet));
        group.bench_function(&name, |bencher| bencher.iter(|| pair.forward(&super_packet)));
    }
    group.finish();
}

fn compile(criterion: &mut Criterion) {
    let plan = plan(0, 200, 20);
    per_iteration("compile/plan/200-instances", || Snapshot::compile(&plan, None));
    criterion.bench_function("compile/plan/200-instances", |bencher| {
        bencher.iter(|| Snapshot::compile(black_box(&plan), None));
    });
}

#[expect(clippy::print_stdout, reason = "criterion prints beside it")]
fn told(name: &str, figure: usize) {
    println!("{name:<44} {figure}");
}

fn family(ipv6: bool) -> &'static str {
    if ipv6 { "ipv6" } else { "ipv4" }
}
