//! What documents mean, line by line.

use crate::compiled;
use crate::plans::{PEERS, instance, members, network, ordinal, service_id, site};
use std::net::IpAddr;
use std::sync::Arc;
use tidegate_stack::drop::DropReason::{
    InboundDenied, NoInstance, OutboundDenied, ServiceAddress, SourceNotOwn,
};
use tidegate_stack::flow::{Arrival, Verdict};
use tidegate_stack::plan::{
    Access, Action, InstanceIndex, Limits, OnDeny, PeerId, Plan, PortId, PortRange, ProtocolMatch, Rule,
    Selector, Service, ServiceId, Vni,
};
use tidegate_stack::snapshot::{Edges, End, Snapshot, Step};
use tidegate_stack::wire::Endpoints;

/// The applications' own networks, and the shared ones.
const SHOP: usize = 0;
const BLUE: usize = 1;
const PLANT: usize = 2;
const X: usize = 3;
const Y: usize = 4;
const WEB: usize = 0;
const DB: usize = 1;

/// shop/web-1, shop/db-2 and blue/web-3 here, shop/db behind the first peer; shop and blue share x.
fn shop() -> Plan {
    let mut plan = site();
    let x = [true, false];
    plan.instances = vec![
        instance(0, SHOP, WEB, &x),
        instance(1, SHOP, DB, &x),
        instance(2, BLUE, WEB, &x),
    ];
    plan.members.extend(members(0, 2, SHOP, DB, &x));
    plan
}

const WEB_1: Host = Host { ordinal: 1, index: 2 };
const DB_2: Host = Host { ordinal: 1, index: 3 };
const BLUE_3: Host = Host { ordinal: 1, index: 4 };
const FAR_DB: Host = Host {
    ordinal: PEERS[0],
    index: 2,
};
/// Of the foreign peer: no record says what it is.
const STRANGER: Host = Host {
    ordinal: PEERS[2],
    index: 2,
};

#[derive(Clone, Copy)]
struct Host {
    ordinal: u64,
    index: u64,
}

impl Host {
    fn in_network(self, number: usize, ipv6: bool) -> IpAddr {
        let index = InstanceIndex::try_from(self.index).unwrap();
        let (ipv4, ipv6_address) = network(number)
            .numbers
            .instance(ordinal(self.ordinal), index)
            .unwrap();
        if ipv6 { ipv6_address.into() } else { ipv4.into() }
    }

    fn arrival(self) -> Arrival {
        match PEERS.iter().position(|peer| *peer == self.ordinal) {
            Some(peer) => Arrival::Tunnel(PeerId(peer as u32)),
            None => Arrival::Port(PortId(self.index as u32 - 2)),
        }
    }
}

/// What a first packet carries: TCP or UDP to a port, or another protocol by its number.
#[derive(Clone, Copy)]
enum Carried {
    Tcp(u16),
    Udp(u16),
    Protocol(u8),
}
use Carried::{Protocol, Tcp, Udp};

fn endpoints(number: usize, from: Host, to: Host, carried: Carried, ipv6: bool) -> Endpoints {
    let (protocol, destination_port) = match carried {
        Tcp(port) => (6, port),
        Udp(port) => (17, port),
        Protocol(number) => (number, 7),
    };
    Endpoints {
        protocol,
        source: from.in_network(number, ipv6),
        source_port: 40_000,
        destination: to.in_network(number, ipv6),
        destination_port,
    }
}

/// What is decided, of both families alike. `Ok`: it may pass.
fn decided(plan: &Plan, number: usize, from: Host, to: Host, carried: Carried) -> Result<(), Verdict> {
    let policy = compiled(plan);
    let [ipv4, ipv6] = [false, true].map(|ipv6| {
        let endpoints = endpoints(number, from, to, carried, ipv6);
        match policy.judge(network(number).vni, &endpoints, from.arrival()) {
            Verdict::Forward { .. } => Ok(()),
            verdict => Err(verdict),
        }
    });
    assert_eq!(ipv4, ipv6, "of both families alike");
    ipv4
}

const DROPPED_INBOUND: Result<(), Verdict> = Err(Verdict::Deny(InboundDenied));
const DROPPED_OUTBOUND: Result<(), Verdict> = Err(Verdict::Deny(OutboundDenied));

fn tcp(ports: &[(u16, u16)]) -> ProtocolMatch {
    let ranges = ports.iter().map(|(first, last)| PortRange {
        first: *first,
        last: *last,
    });
    ProtocolMatch::Tcp(ranges.collect())
}

fn allow(other: Selector, protocols: Vec<ProtocolMatch>) -> Rule {
    Rule {
        line: 0,
        other,
        protocols,
        action: Action::Allow,
    }
}

fn deny(other: Selector, protocols: Vec<ProtocolMatch>) -> Rule {
    Rule {
        action: Action::Deny,
        ..allow(other, protocols)
    }
}

/// A list in line 10, its rules from line 12 on.
fn list(rules: Vec<Rule>) -> Option<Access> {
    let rules = rules
        .into_iter()
        .zip(12..)
        .map(|(rule, line)| Rule { line, ..rule });
    Some(Access {
        line: 10,
        on_deny: OnDeny::Drop,
        rules: rules.collect(),
    })
}

fn rule(plan: &mut Plan, id: ServiceId, inbound: Option<Access>, outbound: Option<Access>) {
    plan.services.push(Service {
        id,
        document: "shop.yaml".into(),
        inbound,
        outbound,
        limits: Limits::default(),
    });
    plan.normalise();
}

fn with_inbound(rules: Vec<Rule>) -> Plan {
    let mut plan = shop();
    rule(&mut plan, service_id(SHOP, DB), list(rules), None);
    plan
}

fn with_outbound(rules: Vec<Rule>) -> Plan {
    let mut plan = shop();
    rule(&mut plan, service_id(SHOP, WEB), None, list(rules));
    plan
}

fn service(application: usize, service: usize) -> Selector {
    Selector::Service(service_id(application, service))
}

#[test]
fn without_rules_every_member_of_a_network_reaches_every_other() {
    let plan = shop();
    for carried in [Tcp(22), Udp(5432), Protocol(1), Protocol(58), Protocol(47)] {
        assert_eq!(decided(&plan, SHOP, WEB_1, DB_2, carried), Ok(()));
        assert_eq!(decided(&plan, SHOP, WEB_1, FAR_DB, carried), Ok(()));
        assert_eq!(decided(&plan, SHOP, FAR_DB, WEB_1, carried), Ok(()));
        assert_eq!(decided(&plan, X, BLUE_3, DB_2, carried), Ok(()));
    }
}

#[test]
fn inbound_rules_let_in_whom_they_name_and_nobody_else() {
    let plan = with_inbound(vec![allow(service(SHOP, WEB), vec![tcp(&[(5432, 5432)])])]);
    assert_eq!(decided(&plan, SHOP, WEB_1, DB_2, Tcp(5432)), Ok(()));
    assert_eq!(decided(&plan, SHOP, WEB_1, DB_2, Tcp(22)), DROPPED_INBOUND);
    assert_eq!(decided(&plan, SHOP, WEB_1, DB_2, Udp(5432)), DROPPED_INBOUND);
    assert_eq!(decided(&plan, SHOP, WEB_1, DB_2, Protocol(1)), DROPPED_INBOUND);
    assert_eq!(decided(&plan, X, BLUE_3, DB_2, Tcp(5432)), DROPPED_INBOUND);
    assert_eq!(
        decided(&plan, SHOP, DB_2, WEB_1, Tcp(22)),
        Ok(()),
        "the others are as before"
    );
}

#[test]
fn inbound_rules_count_at_the_origin_too_and_again_where_a_flow_arrives() {
    let plan = with_inbound(vec![allow(service(SHOP, WEB), vec![tcp(&[(5432, 5432)])])]);
    assert_eq!(decided(&plan, SHOP, WEB_1, FAR_DB, Tcp(5432)), Ok(()));
    assert_eq!(decided(&plan, SHOP, WEB_1, FAR_DB, Tcp(22)), DROPPED_INBOUND);
    assert_eq!(
        decided(&plan, SHOP, FAR_DB, DB_2, Tcp(5432)),
        DROPPED_INBOUND,
        "db isn't web"
    );
}

#[test]
fn an_address_without_a_known_service_is_left_to_its_own_host() {
    let mut plan = with_inbound(vec![allow(Selector::Any, vec![tcp(&[(5432, 5432)])])]);
    assert_eq!(decided(&plan, SHOP, WEB_1, STRANGER, Tcp(22)), Ok(()));
    plan.members.clear();
    assert_eq!(decided(&plan, SHOP, WEB_1, FAR_DB, Tcp(22)), Ok(()));
}

#[test]
fn a_stranger_is_meant_by_any_by_its_network_and_by_its_prefix_only() {
    let here = network(SHOP).vni;
    let block = network(SHOP).numbers.block_ipv4(ordinal(PEERS[2]));
    let block_ipv6 = network(SHOP).numbers.block_ipv6(ordinal(PEERS[2]));
    let application = Selector::Application {
        tenant: "acme".into(),
        application: "shop".into(),
    };
    for (rules, expected) in [
        (vec![Selector::Any], Ok(())),
        (vec![Selector::Network(here)], Ok(())),
        (
            vec![
                Selector::Prefix(block.into()),
                Selector::Prefix(block_ipv6.into()),
            ],
            Ok(()),
        ),
        (vec![Selector::Network(network(X).vni)], DROPPED_INBOUND),
        (vec![application], DROPPED_INBOUND),
        (vec![service(SHOP, WEB), service(SHOP, DB)], DROPPED_INBOUND),
    ] {
        let plan = with_inbound(rules.into_iter().map(|other| allow(other, Vec::new())).collect());
        assert_eq!(decided(&plan, SHOP, STRANGER, DB_2, Tcp(22)), expected);
    }
}

#[test]
fn an_application_is_all_of_its_services_in_every_network() {
    let plan = with_inbound(vec![allow(
        Selector::Application {
            tenant: "acme".into(),
            application: "blue".into(),
        },
        Vec::new(),
    )]);
    assert_eq!(decided(&plan, X, BLUE_3, DB_2, Tcp(22)), Ok(()));
    assert_eq!(decided(&plan, SHOP, WEB_1, DB_2, Tcp(22)), DROPPED_INBOUND);
}

#[test]
fn a_network_in_a_rule_means_flows_in_that_network() {
    let plan = with_inbound(vec![allow(Selector::Network(network(X).vni), Vec::new())]);
    assert_eq!(decided(&plan, X, WEB_1, DB_2, Tcp(22)), Ok(()));
    assert_eq!(decided(&plan, SHOP, WEB_1, DB_2, Tcp(22)), DROPPED_INBOUND);
}

#[test]
fn the_first_rule_that_matches_decides_whatever_it_names() {
    let plan = with_inbound(vec![
        deny(service(BLUE, WEB), vec![tcp(&[(5000, 6000)])]),
        allow(Selector::Any, vec![tcp(&[(5432, 5432), (80, 80)])]),
        deny(Selector::Network(network(X).vni), Vec::new()),
        allow(service(BLUE, WEB), Vec::new()),
    ]);
    assert_eq!(decided(&plan, X, BLUE_3, DB_2, Tcp(5432)), DROPPED_INBOUND);
    assert_eq!(decided(&plan, X, BLUE_3, DB_2, Tcp(80)), Ok(()));
    assert_eq!(
        decided(&plan, X, BLUE_3, DB_2, Tcp(443)),
        DROPPED_INBOUND,
        "the network's comes before its own"
    );
    assert_eq!(decided(&plan, X, WEB_1, DB_2, Tcp(5432)), Ok(()));
}

#[test]
fn outbound_rules_bind_a_service_in_shared_networks_and_leave_its_own_network_to_it() {
    let plan = with_outbound(vec![allow(service(SHOP, DB), vec![tcp(&[(5432, 5432)])])]);
    assert_eq!(decided(&plan, X, WEB_1, DB_2, Tcp(5432)), Ok(()));
    assert_eq!(decided(&plan, X, WEB_1, DB_2, Tcp(22)), DROPPED_OUTBOUND);
    assert_eq!(decided(&plan, X, WEB_1, BLUE_3, Tcp(5432)), DROPPED_OUTBOUND);
    assert_eq!(
        decided(&plan, SHOP, WEB_1, DB_2, Tcp(22)),
        Ok(()),
        "no rule matches"
    );
    assert_eq!(decided(&plan, X, DB_2, BLUE_3, Tcp(22)), Ok(()), "db has no list");
    let plan = with_outbound(vec![deny(service(SHOP, DB), Vec::new())]);
    assert_eq!(
        decided(&plan, SHOP, WEB_1, DB_2, Tcp(22)),
        DROPPED_OUTBOUND,
        "a rule does"
    );
}

#[test]
fn outbound_rules_are_judged_where_a_flow_starts_only() {
    let mut plan = shop();
    rule(
        &mut plan,
        service_id(SHOP, DB),
        None,
        list(vec![deny(Selector::Any, Vec::new())]),
    );
    assert_eq!(decided(&plan, SHOP, DB_2, WEB_1, Tcp(22)), DROPPED_OUTBOUND);
    assert_eq!(
        decided(&plan, SHOP, FAR_DB, WEB_1, Tcp(22)),
        Ok(()),
        "it was judged there"
    );
}

#[test]
fn empty_protocols_are_everything_and_empty_ports_are_all() {
    let everything = with_inbound(vec![allow(Selector::Any, Vec::new())]);
    let all_tcp = with_inbound(vec![allow(Selector::Any, vec![tcp(&[])])]);
    let pings = with_inbound(vec![allow(Selector::Any, vec![ProtocolMatch::Icmp])]);
    for (carried, of_all_tcp, of_pings) in [
        (Tcp(0), Ok(()), DROPPED_INBOUND),
        (Tcp(65_535), Ok(()), DROPPED_INBOUND),
        (Udp(53), DROPPED_INBOUND, DROPPED_INBOUND),
        (Protocol(1), DROPPED_INBOUND, Ok(())),
        (Protocol(58), DROPPED_INBOUND, Ok(())),
        (Protocol(47), DROPPED_INBOUND, DROPPED_INBOUND),
    ] {
        assert_eq!(decided(&everything, SHOP, WEB_1, DB_2, carried), Ok(()));
        assert_eq!(decided(&all_tcp, SHOP, WEB_1, DB_2, carried), of_all_tcp);
        assert_eq!(decided(&pings, SHOP, WEB_1, DB_2, carried), of_pings);
    }
}

#[test]
fn a_list_without_rules_lets_nobody_in() {
    let plan = with_inbound(Vec::new());
    assert_eq!(decided(&plan, SHOP, WEB_1, DB_2, Tcp(5432)), DROPPED_INBOUND);
}

#[test]
fn a_list_that_rejects_says_so_in_its_verdict() {
    let mut plan = with_inbound(Vec::new());
    plan.services[0].inbound.as_mut().unwrap().on_deny = OnDeny::Reject;
    let verdict = Err(Verdict::Reject(InboundDenied));
    assert_eq!(decided(&plan, SHOP, WEB_1, DB_2, Tcp(5432)), verdict);
    assert_eq!(decided(&plan, SHOP, FAR_DB, DB_2, Tcp(5432)), verdict);
}

#[test]
fn no_rule_lets_anybody_past_the_source_guard_or_to_the_service_address() {
    let mut plan = with_inbound(vec![allow(Selector::Any, Vec::new())]);
    rule(
        &mut plan,
        service_id(SHOP, WEB),
        None,
        list(vec![allow(Selector::Any, Vec::new())]),
    );
    let policy = compiled(&plan);
    let vni = network(SHOP).vni;
    let good = endpoints(SHOP, WEB_1, DB_2, Tcp(5432), false);
    let judge = |endpoints: Endpoints| policy.judge(vni, &endpoints, WEB_1.arrival());
    let source = DB_2.in_network(SHOP, false);
    assert_eq!(judge(Endpoints { source, ..good }), Verdict::Deny(SourceNotOwn));
    let destination = network(SHOP).service_ipv4().into();
    assert_eq!(
        judge(Endpoints { destination, ..good }),
        Verdict::Deny(ServiceAddress)
    );
    let destination = [172, 19, 1, 99].into();
    assert_eq!(
        judge(Endpoints { destination, ..good }),
        Verdict::Deny(NoInstance)
    );
    let destination = [198, 51, 100, 1].into();
    assert_eq!(
        judge(Endpoints { destination, ..good }),
        Verdict::Deny(OutboundDenied)
    );
}

/// shop shares x with blue, blue shares y with plant.
fn chain() -> Plan {
    let mut plan = site();
    plan.instances = vec![
        instance(0, SHOP, WEB, &[true, false]),
        instance(1, BLUE, WEB, &[true, true]),
        instance(2, PLANT, WEB, &[false, true]),
    ];
    plan
}

#[test]
fn sharing_is_not_transitive() {
    let plan = chain();
    let policy = compiled(&plan);
    let hosts = [WEB_1, DB_2, BLUE_3];
    assert_eq!(decided(&plan, X, hosts[0], hosts[1], Tcp(80)), Ok(()));
    assert_eq!(decided(&plan, Y, hosts[1], hosts[2], Tcp(80)), Ok(()));
    // Whatever network a packet is said to be in, with whichever of the addresses anybody has.
    let addresses = |host: usize| {
        let memberships = plan.instances[host].memberships.iter();
        memberships.flat_map(|membership| membership.addresses())
    };
    for (from, to) in [(0, 2), (2, 0)] {
        for vni in plan.networks.iter().map(|network| network.vni).chain([Vni::MIN]) {
            for source in addresses(from) {
                for destination in addresses(to).filter(|to| to.is_ipv4() == source.is_ipv4()) {
                    let endpoints = Endpoints {
                        protocol: 6,
                        source,
                        source_port: 40_000,
                        destination,
                        destination_port: 80,
                    };
                    let verdict = policy.judge(vni, &endpoints, hosts[from].arrival());
                    // Own networks reuse addresses: what is forwarded stays with its own application.
                    let own = network([SHOP, BLUE, PLANT][from]).vni;
                    let is_own = matches!(verdict, Verdict::Forward { original, reply } if original == reply)
                        && vni == own;
                    assert!(
                        is_own || !matches!(verdict, Verdict::Forward { .. }),
                        "{verdict:?}"
                    );
                }
            }
        }
    }
    let meet = |from: usize, to: usize| {
        policy.edges().edges.iter().any(|edge| {
            let is = |end: &End, application| matches!(end, End::Service { service, .. } if *service == service_id(application, WEB));
            is(&edge.from, from) && is(&edge.to, to)
        })
    };
    assert!(meet(SHOP, BLUE) && meet(BLUE, PLANT) && !meet(SHOP, PLANT) && !meet(PLANT, SHOP));
}

#[test]
fn leaving_a_shared_network_is_told_as_a_difference() {
    let mut without = chain();
    without.instances[0].memberships.truncate(1);
    let difference = Edges::difference(&compiled(&chain()), &compiled(&without));
    assert_eq!(difference.allowed, []);
    assert!(!difference.denied.is_empty());
    for change in &difference.denied {
        assert_eq!(change.network.vni, network(X).vni);
        let shop = End::Service {
            service: service_id(SHOP, WEB),
            addresses: Vec::new(),
        };
        assert!(change.from == shop || change.to == shop, "{change:?}");
    }
}

#[test]
fn a_line_of_an_explanation_can_be_read_aloud() {
    let plan = with_inbound(vec![allow(
        service(SHOP, WEB),
        vec![tcp(&[(5432, 5432), (80, 90)])],
    )]);
    let policy = compiled(&plan);
    let explain = |carried| {
        let endpoints = endpoints(SHOP, WEB_1, DB_2, carried, false);
        policy.explain(network(SHOP).vni, &endpoints, WEB_1.arrival())
    };
    assert_eq!(
        explain(Tcp(80)).to_string(),
        "network of application acme/shop (VNI 9074535)\n\
         from 172.19.1.2: web-1 here, service acme/shop/web\n\
         to 172.19.1.3: db-2 here, service acme/shop/db\n\
         outbound-access of acme/shop/web: no rules, every member of its networks may\n\
         inbound-access of acme/shop/db (shop.yaml:10): rule in line 12 allows tcp 5432,80-90 from service acme/shop/web\n\
         allowed"
    );
    let denied = explain(Tcp(22));
    assert_eq!(
        denied.steps.last().map(Step::to_string).unwrap(),
        "inbound-access of acme/shop/db (shop.yaml:10): no rule matches, denied"
    );
    let json = serde_json::to_string(&denied).unwrap();
    assert_eq!(
        serde_json::from_str::<tidegate_stack::snapshot::Explanation>(&json).unwrap(),
        denied
    );
}

#[test]
fn changed_rules_and_members_are_a_new_epoch_and_equal_ones_are_not() {
    let plan = with_inbound(vec![allow(Selector::Any, Vec::new())]);
    let first = Snapshot::compile(&plan, None);
    let again = Snapshot::compile(&plan, Some(&first));
    assert!(Arc::ptr_eq(first.policy(), again.policy()));
    let mut changed = plan.clone();
    changed.members.pop();
    assert_eq!(
        Snapshot::compile(&changed, Some(&first)).epoch(),
        first.epoch() + 1
    );
    let mut changed = plan.clone();
    changed.services[0].inbound.as_mut().unwrap().rules[0].action = Action::Deny;
    assert_eq!(
        Snapshot::compile(&changed, Some(&first)).epoch(),
        first.epoch() + 1
    );
}
