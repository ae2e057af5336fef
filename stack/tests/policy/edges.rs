//! Who may talk to whom, beside what is decided flow by flow.

use crate::compiled;
use crate::plans::{Drawn, Tuple, a_plan, tuple};
use crate::routes::service_at;
use proptest::prelude::*;
use std::net::IpAddr;
use tidegate_stack::drop::DropReason;
use tidegate_stack::flow::{Arrival, Verdict};
use tidegate_stack::plan::{Member, Plan, PortRange, Reach, ServiceId, Vni};
use tidegate_stack::snapshot::{Carrier, Change, Edge, Edges, End};

type Party = (Option<ServiceId>, IpAddr);

/// How closely an end means a party; `None`: not at all.
fn closeness(end: &End, (service, address): &Party) -> Option<u8> {
    match end {
        End::Service {
            service: named,
            addresses,
        } => {
            let is_meant = addresses.is_empty() || addresses.contains(address);
            (service.as_ref() == Some(named) && is_meant).then_some(0)
        }
        End::Prefix(prefix) => {
            (service.is_none() && prefix.contains(address)).then(|| prefix.prefix_len() + 1)
        }
        End::Others => service.is_none().then_some(0),
    }
}

fn carries(carrier: Carrier, ports: &[PortRange], (protocol, port): (u8, u16)) -> bool {
    let holds = || {
        ports
            .iter()
            .any(|range| (range.first..=range.last).contains(&port))
    };
    match (carrier, protocol) {
        (Carrier::Tcp, 6) | (Carrier::Udp, 17) => holds(),
        (Carrier::Icmp, 1 | 58) => true,
        (Carrier::Other, protocol) => !matches!(protocol, 1 | 6 | 17 | 58),
        _ => false,
    }
}

/// What the edge says that means both parties most closely.
fn allows(edges: &[Edge], vni: Vni, from: &Party, to: &Party, carried: (u8, u16)) -> bool {
    let meant = edges
        .iter()
        .filter(|edge| edge.network.vni == vni)
        .filter_map(|edge| {
            let closeness = closeness(&edge.from, from)? + closeness(&edge.to, to)?;
            Some((closeness, edge))
        });
    let meant: Vec<_> = meant.collect();
    let closest = meant.iter().map(|(closeness, _)| *closeness).max();
    let mut closest = meant.iter().filter(|(closeness, _)| Some(*closeness) == closest);
    let Some((_, edge)) = closest.next() else {
        return false;
    };
    assert!(closest.next().is_none(), "two edges mean the same");
    edge.passages
        .iter()
        .any(|passage| carries(passage.carrier, &passage.ports, carried))
}

fn has_foreign_member(plan: &Plan, vni: Vni) -> bool {
    let mut peers = plan.peers.iter();
    peers.any(|peer| matches!(peer.reach, Reach::Foreign(_)) && peer.networks.contains(vni))
}

fn parties(plan: &Plan, tuple: &Tuple) -> (Party, Party) {
    let vni = tuple.vni;
    let [from, to] = [tuple.endpoints.source, tuple.endpoints.destination].map(|address| {
        let elsewhere = |member: &Member| member.vni == vni && member.addresses().contains(&address);
        // What a host says about a network that it isn't in counts for nothing.
        let by = plan
            .members
            .iter()
            .find(|member| elsewhere(member))
            .map(|member| member.peer);
        let counts = plan
            .peers
            .iter()
            .all(|peer| Some(peer.id) != by || peer.networks.contains(vni));
        (service_at(plan, vni, address).filter(|_| counts), address)
    });
    (from, to)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn an_edge_allows_what_judge_forwards_and_nothing_else(
        Drawn(plan) in a_plan(),
        seeds in prop::collection::vec(any::<u64>(), 50),
    ) {
        let policy = compiled(&plan);
        let edges = policy.edges();
        prop_assert_eq!(edges.omitted, 0);
        for seed in seeds {
            let tuple = tuple(&plan, seed);
            let Tuple { vni, endpoints, arrival } = tuple;
            let forwarded = match policy.judge(vni, &endpoints, arrival) {
                Verdict::Forward { .. } => true,
                Verdict::Deny(reason) | Verdict::Reject(reason) => match reason {
                    DropReason::InboundDenied => false,
                    DropReason::OutboundDenied
                        if crate::routes::prefix_holds(plan.network(vni).unwrap(), endpoints.destination) => false,
                    // No rule decided.
                    _ => continue,
                },
                Verdict::Answer(_) => continue,
            };
            let (from, to) = parties(&plan, &tuple);
            let both_known = from.0.is_some() && to.0.is_some();
            if !both_known && !has_foreign_member(&plan, vni) {
                continue;
            }
            if from.0.is_none() && to.0.is_none() {
                continue;
            }
            let carried = (endpoints.protocol, endpoints.destination_port);
            let allowed = allows(&edges.edges, vni, &from, &to, carried);
            match (arrival, &from.0) {
                // Its outbound rules count where it is.
                (Arrival::Tunnel(_), Some(_)) => prop_assert!(forwarded || !allowed, "{:?}", tuple),
                (Arrival::Tunnel(_), None) | (Arrival::Port(_), _) => prop_assert_eq!(forwarded, allowed, "{:?}", tuple),
            }
        }
    }

    #[test]
    fn a_difference_is_what_one_has_and_the_other_has_not(
        Drawn(old) in a_plan(),
        Drawn(other) in a_plan(),
        seeds in prop::collection::vec(any::<u64>(), 50),
    ) {
        let mut new = old.clone();
        new.services = other.services;
        let policies = [compiled(&old), compiled(&new)];
        let [before, after] = policies.each_ref().map(|policy| policy.edges().edges);
        let difference = Edges::difference(&policies[0], &policies[1]);
        prop_assert_eq!(difference.omitted, 0);
        for seed in seeds {
            let tuple = tuple(&old, seed);
            let (from, to) = parties(&old, &tuple);
            if from.0.is_none() || to.0.is_none() {
                continue;
            }
            let Tuple { vni, endpoints, .. } = tuple;
            let carried = (endpoints.protocol, endpoints.destination_port);
            let has = |changes: &[Change]| {
                changes.iter().filter(|change| change.network.vni == vni).any(|change| {
                    let is_meant = closeness(&change.from, &from).is_some() && closeness(&change.to, &to).is_some();
                    is_meant && carries(change.carrier, &change.ports, carried)
                })
            };
            let [was, is] = [&before, &after].map(|edges| allows(edges, vni, &from, &to, carried));
            prop_assert_eq!(has(&difference.allowed), is && !was, "{:?}", tuple);
            prop_assert_eq!(has(&difference.denied), was && !is, "{:?}", tuple);
        }
    }
}

#[test]
fn a_policy_differs_from_itself_in_nothing() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..50 {
        let Drawn(plan) = proptest::strategy::ValueTree::current(&a_plan().new_tree(&mut runner).unwrap());
        let policy = compiled(&plan);
        assert_eq!(
            Edges::difference(&policy, &policy),
            tidegate_stack::snapshot::Difference::default()
        );
    }
}
