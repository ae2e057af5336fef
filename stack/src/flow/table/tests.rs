//! What a full table does, and that everything it counts is given back.

use super::*;
use crate::flow::tcp::tests::{Sent, established};
use crate::flow::{Arrival, Hop, LimitSlot, Tracking};
use crate::plan::{Limits, PortId, Vni};
use crate::snapshot::PortSlot;
use crate::wire::{Endpoints, protocol};
use proptest::prelude::*;
use std::time::Duration;

const SYN: Sent = Sent::syn(1000);

fn opening() -> Tracking {
    Tracking::Tcp(crate::flow::Connection::begin(&SYN.segment()))
}

fn closed() -> Tracking {
    let mut connection = established();
    connection.advance(&Sent::rst(1001).segment(), false).unwrap();
    Tracking::Tcp(connection)
}

fn endpoints(host: u8, port: u16) -> Endpoints {
    Endpoints {
        protocol: protocol::TCP,
        source: std::net::IpAddr::from([172, 19, 1, host]),
        source_port: port,
        destination: "172.19.2.2".parse().unwrap(),
        destination_port: 80,
    }
}

/// Odd ports are of one network, even ones of another.
fn flow(port: u16, tracking: Tracking, seen: u64) -> Flow {
    let (key, opener) = FlowKey::of(Vni::MIN, &endpoints(2, port));
    let hop = Hop::Port(PortSlot(0));
    Flow {
        key,
        epoch: 1,
        seen: at(seen),
        packets: [1, 0],
        bytes: [40, 0],
        tracking,
        hops: [hop, hop],
        tunnel: None,
        origin: Arrival::Port(PortId(0)),
        home: 0,
        owners: Owners {
            network: QuotaSlot(port % 2),
            services: [None; 2],
        },
        opener,
        revoked: false,
    }
}

fn live(port: u16) -> Flow {
    flow(port, Tracking::Tcp(established()), 0)
}

fn at(seconds: u64) -> Instant {
    Instant::ZERO + Duration::from_secs(seconds)
}

fn table(capacity: usize, each: u32) -> FlowTable {
    FlowTable::new(capacity, 1, Arc::new(Quotas::new(each)))
}

fn passing(segment: &Segment, direction: Direction) -> Passing {
    Passing {
        direction,
        segment: Some(*segment),
        packets: 1,
        bytes: 40,
    }
}

#[test]
fn a_million_flows_take_no_more_than_256_mebibytes() {
    const FLOWS: usize = 1_000_000;
    let bytes = FlowTable::bytes(FLOWS);
    assert!(bytes <= 256 << 20, "{bytes}");
    assert_eq!(size_of::<Option<Flow>>(), 192, "three cache lines");
}

#[test]
fn both_directions_find_one_entry() {
    let mut table = table(8, 8);
    let index = table.insert(flow(1000, opening(), 10), Instant::ZERO).unwrap();
    let back = endpoints(2, 1000).reversed();
    let (key, direction) = FlowKey::of(Vni::MIN, &back);
    assert_eq!(table.find(&key), Some(index));
    assert!(table.get(index).unwrap().is_reply(direction));
    let (other, _) = FlowKey::of(Vni::MAX, &back);
    assert_eq!(table.find(&other), None, "another network is another flow");
}

#[test]
fn a_full_table_gives_up_what_is_over_then_the_half_open_then_the_unanswered_then_the_idle() {
    let now = at(20);
    let udp = |answered| Tracking::Udp { answered };
    let in_order = [
        flow(0, closed(), 19),
        flow(1, opening(), 1),
        flow(2, udp(false), 0),
        flow(3, udp(true), 5),
        flow(4, udp(true), 6),
    ];
    let mut table = table(6, 100);
    table.insert(live(5), now).unwrap();
    for flow in in_order.iter().rev() {
        table.insert(flow.clone(), now).unwrap();
    }
    for (number, gone) in (0..).zip(&in_order) {
        assert!(table.find(&gone.key).is_some(), "{number}");
        table.insert(live(100 + number), now).unwrap();
        assert_eq!(table.find(&gone.key), None, "{number}");
    }
    assert_eq!(table.insert(live(200), now), Err(DropReason::FlowTableFull));
    assert_eq!(table.len(), 6);
}

#[test]
fn what_has_expired_leaves_first_even_if_it_was_established() {
    let mut table = table(2, 4);
    let old = live(1);
    table.insert(old.clone(), Instant::ZERO).unwrap();
    let later = at(3 * 3600);
    table
        .insert(flow(2, Tracking::Tcp(established()), 3 * 3600), later)
        .unwrap();
    table.insert(flow(3, opening(), 3 * 3600), later).unwrap();
    assert_eq!(table.find(&old.key), None);
}

#[test]
fn expired_flows_are_swept() {
    let mut table = table(4, 4);
    table.insert(flow(1, opening(), 10), Instant::ZERO).unwrap();
    let stays = table.insert(flow(2, opening(), 20), Instant::ZERO).unwrap();
    table.sweep(at(250), |_| true);
    assert_eq!(table.len(), 1);
    assert!(table.get(stays).is_some());
}

#[test]
fn a_network_leaves_a_quarter_of_one_shard_to_others_whatever_the_host_has_left() {
    let mut table = table(8, 100);
    for port in [1, 3, 5, 7, 9, 11] {
        table.insert(live(port), Instant::ZERO).unwrap();
    }
    let refused = table.insert(live(13), Instant::ZERO);
    assert_eq!(refused, Err(DropReason::ConnectionLimit));
    let first = table.find(&live(1).key).unwrap();
    assert!(table.insert(live(2), Instant::ZERO).is_ok(), "another network");
    table.remove(first);
    assert!(
        table.insert(live(13), Instant::ZERO).is_ok(),
        "what died gave its place back"
    );
}

#[test]
fn a_network_at_its_bound_gives_up_its_own_flows_and_leaves_room_to_others() {
    let mut table = table(64, 3);
    let quotas = Arc::clone(&table.quotas);
    for port in [1, 3] {
        table.insert(live(port), Instant::ZERO).unwrap();
    }
    for port in [5, 7, 9] {
        table.insert(flow(port, opening(), 10), Instant::ZERO).unwrap();
        assert_eq!((table.len(), quotas.flows(QuotaSlot(1))), (3, 3));
    }
    table.insert(live(11), Instant::ZERO).unwrap();
    let refused = table.insert(live(13), Instant::ZERO);
    assert_eq!(refused, Err(DropReason::ConnectionLimit));
    assert!(table.insert(live(2), Instant::ZERO).is_ok(), "another network");
    // What is of a network that is gone is forgotten.
    table.sweep(Instant::ZERO, |flow| flow.owners.network == QuotaSlot(0));
    assert_eq!((table.len(), quotas.flows(QuotaSlot(1))), (1, 0));
}

#[test]
fn a_source_has_no_more_half_open_connections_than_its_bound_until_one_is_accepted() {
    let mut table = table(8192, 8192);
    for port in 0..HalfOpen::MOST {
        table.insert(flow(port, opening(), 0), Instant::ZERO).unwrap();
    }
    let refused = table.insert(flow(5000, opening(), 0), Instant::ZERO);
    assert_eq!(refused, Err(DropReason::HalfOpenLimit));
    assert!(
        table.insert(live(5001), Instant::ZERO).is_ok(),
        "what is known goes on"
    );
    let index = table.find(&flow(7, opening(), 0).key).unwrap();
    let opener = table.get(index).unwrap().opener;
    for (sent, direction) in [
        (Sent::syn_ack(5000, 1001), opener.opposite()),
        (Sent::data(1001, 5001, 0), opener),
    ] {
        let refused = table.insert(flow(5000, opening(), 0), Instant::ZERO);
        assert_eq!(refused, Err(DropReason::HalfOpenLimit));
        let step = table.advance(index, &passing(&sent.segment(), direction), at(1));
        assert_eq!(step, Ok(Step::Passed));
    }
    assert!(table.insert(flow(5000, opening(), 0), Instant::ZERO).is_ok());
}

#[test]
fn a_service_at_its_limit_is_refused_and_nothing_is_evicted_for_it() {
    let mut table = table(64, 64);
    let slot = LimitSlot::at(3);
    table.quotas.limit(
        slot,
        &Limits {
            connections: Some(2),
            new_connections_per_second: None,
        },
    );
    let of_service = |port| {
        let mut flow = flow(port, opening(), 0);
        flow.owners.services[0] = Some(slot);
        flow
    };
    for port in [1, 3] {
        table.insert(of_service(port), Instant::ZERO).unwrap();
    }
    let refused = table.insert(of_service(5), Instant::ZERO);
    assert_eq!(refused, Err(DropReason::ServiceConnections));
    assert_eq!((table.len(), table.half_open.total()), (2, 2));
    assert_eq!(table.quotas.flows(QuotaSlot(1)), 2);
    let first = table.find(&of_service(1).key).unwrap();
    table.remove(first);
    assert!(table.insert(of_service(5), Instant::ZERO).is_ok());
}

#[test]
fn new_owners_count_what_lives_and_the_former_ones_no_more() {
    let mut table = table(8, 8);
    let index = table.insert(live(1), Instant::ZERO).unwrap();
    let owners = Owners {
        network: QuotaSlot(7),
        services: [Some(LimitSlot::at(2)), None],
    };
    table.assign(index, owners);
    let quotas = Arc::clone(&table.quotas);
    let counted = || {
        [1, 7]
            .map(|slot| quotas.flows(QuotaSlot(slot)))
            .into_iter()
            .chain([quotas.connections(LimitSlot::at(2))])
            .collect::<Vec<_>>()
    };
    assert_eq!(counted(), [0, 1, 1]);
    table.remove(index);
    assert_eq!(counted(), [0, 0, 0]);
}

#[test]
fn pages_show_every_flow_once_and_look_at_no_more_places_than_they_are_asked_to() {
    let mut table = table(100, 100);
    let indices: Vec<FlowIndex> = (0..70)
        .map(|port| table.insert(live(port), at(0)).unwrap())
        .collect();
    indices.iter().step_by(2).for_each(|index| table.remove(*index));
    let mut seen = Vec::new();
    let mut next = Some(0);
    while let Some(from) = next {
        let (flows, following) = table.page(from, 7);
        let ports: Vec<u16> = flows
            .map(|flow| flow.key.endpoints(flow.opener).source_port)
            .collect();
        assert!(ports.len() <= 7);
        seen.extend(ports);
        next = following;
    }
    let expected: Vec<u16> = (0..70).filter(|port| port % 2 == 1).collect();
    assert_eq!(seen, expected);
    assert_eq!(table.page(u64::MAX, 10).0.count(), 0);
}

/// What is done to a table.
#[derive(Clone, Debug)]
enum Deed {
    Open(u8, u16),
    PickUp(u16),
    Datagram(u16),
    Segment(u16, bool, u8),
    Remove(u16),
    Sweep(u64),
}

fn deed() -> impl Strategy<Value = Deed> {
    let port = || 0..40_u16;
    prop_oneof![
        (0..3_u8, port()).prop_map(|(service, port)| Deed::Open(service, port)),
        port().prop_map(Deed::PickUp),
        port().prop_map(Deed::Datagram),
        (port(), any::<bool>(), 0..6_u8).prop_map(|(port, reply, kind)| Deed::Segment(port, reply, kind)),
        port().prop_map(Deed::Remove),
        (0..400_u64).prop_map(Deed::Sweep),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn everything_that_was_counted_is_given_back_exactly_once(deeds in prop::collection::vec(deed(), 0..200)) {
        let mut table = table(24, 20);
        let slots = [0, 1, 2].map(LimitSlot::at);
        table.quotas.limit(slots[1], &Limits { connections: Some(4), new_connections_per_second: Some(3) });
        let mut now = Instant::ZERO;
        for deed in deeds {
            now = now + Duration::from_millis(100);
            let made = |port: u16, tracking, service: u8| {
                let mut flow = flow(port, tracking, 0);
                flow.seen = now;
                flow.owners.services = [slots.get(usize::from(service)).copied(), slots.get(usize::from(service) + 1).copied()];
                flow
            };
            match deed {
                Deed::Open(service, port) => {
                    let flow = made(port, opening(), service);
                    if table.find(&flow.key).is_none() {
                        let _ = table.insert(flow, now);
                    }
                }
                Deed::PickUp(port) | Deed::Datagram(port) => {
                    let tracking = if let Deed::PickUp(_) = deed {
                        let segment = Sent::data(1001, 5001, 10).segment();
                        Tracking::Tcp(crate::flow::Connection::pick_up(&segment, port % 3 == 0))
                    } else {
                        Tracking::Udp { answered: port % 3 == 0 }
                    };
                    let flow = made(port, tracking, 1);
                    if table.find(&flow.key).is_none() {
                        let _ = table.insert(flow, now);
                    }
                }
                Deed::Segment(port, reply, kind) => {
                    let key = flow(port, opening(), 0).key;
                    let Some(index) = table.find(&key) else { continue };
                    let sent = match (kind, reply) {
                        (0, false) => Sent::syn(1000),
                        (0, true) => Sent::syn_ack(5000, 1001),
                        (1, false) => Sent::rst(1001),
                        (1, true) => Sent { acknowledgement: 1001, flags: 0x14, ..Sent::rst(5001) },
                        (2, _) => Sent { flags: 0x03, ..SYN },
                        (3, false) => Sent { flags: 0x11, ..Sent::data(1001, 5001, 0) },
                        (3, true) => Sent { flags: 0x11, ..Sent::data(5001, 1001, 0) },
                        (_, false) => Sent::data(1001, 5001, 0),
                        (_, true) => Sent::data(5001, 1001, 0),
                    };
                    let opener = table.get(index).unwrap().opener;
                    let direction = if reply { opener.opposite() } else { opener };
                    let _ = table.advance(index, &passing(&sent.segment(), direction), now);
                }
                Deed::Remove(port) => {
                    if let Some(index) = table.find(&flow(port, opening(), 0).key) {
                        table.remove(index);
                    }
                }
                Deed::Sweep(seconds) => {
                    now = now + Duration::from_secs(seconds);
                    table.sweep(now, |_| true);
                }
            }
            let half_open = table.slots.iter().flatten().filter(|flow| flow.tracking.is_half_open());
            prop_assert_eq!(table.half_open.total(), half_open.count());
            prop_assert_eq!(table.index.len(), table.len());
        }
        table.sweep(now, |_| false);
        prop_assert!(table.is_empty());
        prop_assert_eq!(table.half_open.total(), 0);
        prop_assert!((0..2).all(|slot| table.quotas.flows(QuotaSlot(slot)) == 0));
        prop_assert!(slots.iter().all(|slot| table.quotas.connections(*slot) == 0));
        prop_assert!(table.own.iter().all(|own| *own == 0));
    }
}
