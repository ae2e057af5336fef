//! Random plans of one small site, and flows that are likely to hit something in them.

use crate::routes::{block_holds, instance_at};
use ipnet::IpNet;
use proptest::prelude::*;
use std::fmt;
use std::net::IpAddr;
use tidegate_stack::flow::Arrival;
use tidegate_stack::plan::{
    Access, Action, ForeignReach, HostOrdinal, Instance, InstanceIndex, Limits, Member, Membership, Mtu,
    Network, NetworkKind, NetworkNumbers, OnDeny, Peer, PeerId, PeerNetworks, Plan, PortId, PortRange,
    PrivateKey, ProtocolMatch, Reach, Rule, Selector, Service, ServiceId, Vni, derive_vni, site_ipv6_prefix,
};
use tidegate_stack::wire::Endpoints;

/// This host.
const HERE: u64 = 1;
/// The other hosts, by peer: two of the site, and a foreign one.
pub(crate) const PEERS: [u64; 3] = [2, 3, 200];
const APPLICATIONS: [(&str, &str); 3] = [("acme", "shop"), ("acme", "blue"), ("other", "plant")];
const SERVICES: [&str; 2] = ["web", "db"];
const SHARED: [&str; 2] = ["x", "y"];
/// Ports at which something begins or ends in a rule.
const PORTS: [u16; 7] = [0, 22, 80, 443, 5432, 5433, 65_535];
const PREFIXES: [&str; 11] = [
    "0.0.0.0/0",
    "172.19.0.0/16",
    "172.19.1.0/24",
    "172.19.2.0/24",
    "172.19.1.2/32",
    "172.19.2.9/32",
    "172.19.200.0/25",
    "100.96.0.0/11",
    "::/0",
    "fd00::/8",
    "198.51.100.0/24",
];

pub(crate) fn ordinal(number: u64) -> HostOrdinal {
    HostOrdinal::try_from(number).unwrap()
}

pub(crate) fn service_id(application: usize, service: usize) -> ServiceId {
    let (tenant, application) = APPLICATIONS[application];
    ServiceId {
        tenant: tenant.into(),
        application: application.into(),
        service: SERVICES[service].into(),
    }
}

/// The application networks, then the shared ones.
pub(crate) fn network(number: usize) -> Network {
    let site = site_ipv6_prefix("store-42");
    if let Some((tenant, name)) = APPLICATIONS.get(number) {
        let vni = derive_vni(tenant, NetworkKind::Application, name);
        return Network {
            vni,
            kind: NetworkKind::Application,
            tenant: (*tenant).into(),
            name: (*name).into(),
            numbers: NetworkNumbers::application("172.19.0.0/16".parse().unwrap(), site, vni),
        };
    }
    let index = number - APPLICATIONS.len();
    let vni = derive_vni("acme", NetworkKind::Shared, SHARED[index]);
    Network {
        vni,
        kind: NetworkKind::Shared,
        tenant: "acme".into(),
        name: SHARED[index].into(),
        numbers: NetworkNumbers::shared(
            "100.96.0.0/11".parse().unwrap(),
            u32::try_from(index).unwrap(),
            site,
            vni,
        ),
    }
}

pub(crate) fn memberships(application: usize, shared: &[bool], host: u64, index: u64) -> Vec<Membership> {
    let index = InstanceIndex::try_from(index).unwrap();
    let joined = shared
        .iter()
        .zip(APPLICATIONS.len()..)
        .filter(|(joins, _)| **joins);
    std::iter::once(application)
        .chain(joined.map(|(_, number)| number))
        .map(|number| {
            let network = network(number);
            let (ipv4, ipv6) = network.numbers.instance(ordinal(host), index).unwrap();
            Membership {
                vni: network.vni,
                ipv4,
                ipv6,
            }
        })
        .collect()
}

pub(crate) fn instance(port: u32, application: usize, service: usize, shared: &[bool]) -> Instance {
    let id = service_id(application, service);
    Instance {
        port: PortId(port),
        name: format!("{}-{}", id.service, port + 1),
        tenant: id.tenant,
        application: id.application,
        service: id.service,
        memberships: memberships(application, shared, HERE, u64::from(port) + 2),
        mtu: mtu(),
        offloads: true,
        readiness: None,
    }
}

pub(crate) fn members(
    peer: usize,
    index: u64,
    application: usize,
    service: usize,
    shared: &[bool],
) -> impl Iterator<Item = Member> {
    memberships(application, shared, PEERS[peer], index)
        .into_iter()
        .map(move |membership| Member {
            vni: membership.vni,
            ipv4: membership.ipv4,
            ipv6: membership.ipv6,
            peer: PeerId(peer as u32),
            service: service_id(application, service),
        })
}

fn mtu() -> Mtu {
    Mtu::try_from(1390).unwrap()
}

fn key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number; 32])
}

pub(crate) fn peer(number: usize, networks: PeerNetworks) -> Peer {
    let reach = if number < 2 {
        Reach::Site(Vec::new())
    } else {
        Reach::Foreign(ForeignReach {
            public_key: key(9).public_key(),
            preshared_key: None,
            endpoint: None,
            keepalive: None,
        })
    };
    Peer {
        id: PeerId(number as u32),
        name: format!("h{}", PEERS[number]),
        ordinal: ordinal(PEERS[number]),
        reach,
        networks,
        mtu: mtu(),
    }
}

/// A site with every network, all peers in all of them, and nobody attached.
pub(crate) fn site() -> Plan {
    Plan {
        ordinal: ordinal(HERE),
        networks: (0..APPLICATIONS.len() + SHARED.len()).map(network).collect(),
        services: Vec::new(),
        instances: Vec::new(),
        members: Vec::new(),
        names: Vec::new(),
        peers: (0..PEERS.len())
            .map(|number| peer(number, PeerNetworks::All))
            .collect(),
        foreign_lane_key: key(1),
    }
}

fn an_id() -> impl Strategy<Value = ServiceId> {
    (0..APPLICATIONS.len(), 0..SERVICES.len())
        .prop_map(|(application, service)| service_id(application, service))
}

fn a_vni() -> impl Strategy<Value = Vni> {
    (0..APPLICATIONS.len() + SHARED.len()).prop_map(|number| network(number).vni)
}

fn a_selector() -> impl Strategy<Value = Selector> {
    let named_prefix = prop::sample::select(&PREFIXES[..]).prop_map(|text| text.parse::<IpNet>().unwrap());
    let block = (a_network(), 1_u64..4, any::<bool>()).prop_map(|(network, host, ipv6)| {
        if ipv6 {
            IpNet::V6(network.numbers.block_ipv6(ordinal(host)))
        } else {
            IpNet::V4(network.numbers.block_ipv4(ordinal(host)))
        }
    });
    prop_oneof![
        2 => Just(Selector::Any),
        6 => an_id().prop_map(Selector::Service),
        3 => an_id().prop_map(|id| Selector::Application { tenant: id.tenant, application: id.application }),
        2 => a_vni().prop_map(Selector::Network),
        3 => named_prefix.prop_map(Selector::Prefix),
        2 => block.prop_map(Selector::Prefix),
    ]
}

fn a_network() -> impl Strategy<Value = Network> {
    (0..APPLICATIONS.len() + SHARED.len()).prop_map(network)
}

fn some_ranges() -> impl Strategy<Value = Vec<PortRange>> {
    let port = || prop::sample::select(&PORTS[..]);
    let range = (port(), port()).prop_map(|(a, b)| PortRange {
        first: a.min(b),
        last: a.max(b),
    });
    prop::collection::vec(range, 0..3)
}

fn a_rule() -> impl Strategy<Value = Rule> {
    let protocol = prop_oneof![
        3 => some_ranges().prop_map(ProtocolMatch::Tcp),
        2 => some_ranges().prop_map(ProtocolMatch::Udp),
        1 => Just(ProtocolMatch::Icmp),
    ];
    let action = prop_oneof![2 => Just(Action::Allow), 1 => Just(Action::Deny)];
    (a_selector(), prop::collection::vec(protocol, 0..3), action).prop_map(|(other, protocols, action)| {
        Rule {
            line: 0,
            other,
            protocols,
            action,
        }
    })
}

fn an_access() -> impl Strategy<Value = Option<Access>> {
    let rules = prop::collection::vec(a_rule(), 0..6);
    let access = (rules, any::<bool>(), 1_u32..40).prop_map(|(mut rules, reject, line)| {
        for (rule, line) in rules.iter_mut().zip(line + 2..) {
            rule.line = line;
        }
        Access {
            line,
            on_deny: if reject { OnDeny::Reject } else { OnDeny::Drop },
            rules,
        }
    });
    prop::option::weighted(0.6, access)
}

fn some_services() -> impl Strategy<Value = Vec<Service>> {
    let lists = || prop::option::weighted(0.6, (an_access(), an_access()));
    prop::collection::vec(lists(), APPLICATIONS.len() * SERVICES.len()).prop_map(|services| {
        let described = services.into_iter().enumerate();
        described
            .filter_map(|(number, lists)| {
                let (inbound, outbound) = lists?;
                Some(Service {
                    id: service_id(number / SERVICES.len(), number % SERVICES.len()),
                    document: format!("document-{number}.yaml"),
                    inbound,
                    outbound,
                    limits: Limits::default(),
                })
            })
            .collect()
    })
}

/// A plan that can be printed: what was drawn for it.
pub(crate) struct Drawn(pub(crate) Plan);

impl fmt::Debug for Drawn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let networks: Vec<_> = self.0.peers.iter().map(|peer| &peer.networks).collect();
        formatter
            .debug_struct("Plan")
            .field("services", &self.0.services)
            .field("instances", &self.0.instances)
            .field("members", &self.0.members)
            .field("peers", &networks)
            .finish_non_exhaustive()
    }
}

/// A plan of this host.
pub(crate) fn a_plan() -> impl Strategy<Value = Drawn> {
    let joins = prop::collection::vec(prop::array::uniform2(any::<bool>()), APPLICATIONS.len());
    let attached = prop::collection::vec((0..APPLICATIONS.len(), 0..SERVICES.len()), 1..6);
    let elsewhere = prop::collection::vec((0..APPLICATIONS.len(), 0..SERVICES.len(), 0..2_usize), 0..6);
    let absent = prop::collection::vec(prop::collection::vec(any::<bool>(), 5), PEERS.len());
    (some_services(), joins, attached, elsewhere, absent, any::<bool>()).prop_map(
        |(services, joins, attached, elsewhere, absent, all)| {
            let mut plan = site();
            plan.services = services;
            plan.instances = attached
                .iter()
                .zip(0..)
                .map(|((application, service), port)| {
                    instance(port, *application, *service, &joins[*application])
                })
                .collect();
            plan.members = elsewhere
                .iter()
                .zip(2..)
                .flat_map(|((application, service, peer), index)| {
                    members(*peer, index, *application, *service, &joins[*application])
                })
                .collect();
            if !all {
                for (peer, absent) in plan.peers.iter_mut().zip(absent) {
                    let present = plan.networks.iter().zip(absent).filter(|(_, absent)| !absent);
                    peer.networks = PeerNetworks::Only(present.map(|(network, _)| network.vni).collect());
                }
            }
            plan.normalise();
            Drawn(plan)
        },
    )
}

/// A flow's first packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuple {
    pub(crate) vni: Vni,
    pub(crate) endpoints: Endpoints,
    pub(crate) arrival: Arrival,
}

/// Small random numbers out of a large one.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        ((self.0 >> 33) % sides as u64) as usize
    }
}

/// A flow that is likely to hit something in a plan: mostly from where its source is.
pub(crate) fn tuple(plan: &Plan, seed: u64) -> Tuple {
    let mut dice = Dice(seed);
    let from_here = &plan.instances[dice.roll(plan.instances.len())].memberships;
    let from_here = from_here[dice.roll(from_here.len())];
    let ipv6 = dice.roll(2) == 0;
    let (network, source) = if dice.roll(2) == 0 {
        let network = plan.network(from_here.vni).unwrap().clone();
        (network, from_here.addresses()[usize::from(ipv6)])
    } else {
        let network = network(dice.roll(5));
        let source = address(plan, &network, ipv6, &mut dice);
        (network, source)
    };
    let destination = address(plan, &network, ipv6, &mut dice);
    let owner = instance_at(plan, network.vni, source);
    let owner = owner.map(|index| Arrival::Port(plan.instances[index].port));
    let host = PEERS
        .iter()
        .position(|number| block_holds(&network, ordinal(*number), source));
    let right = owner.or(host.map(|peer| Arrival::Tunnel(PeerId(peer as u32))));
    let arrival = match (dice.roll(10), right) {
        (0, _) => Arrival::Port(PortId(dice.roll(6) as u32)),
        (1, _) => Arrival::Tunnel(PeerId(dice.roll(4) as u32)),
        (_, Some(right)) => right,
        (_, None) => Arrival::Port(PortId(0)),
    };
    let protocol = match dice.roll(8) {
        0..=3 => 6,
        4 | 5 => 17,
        6 if ipv6 => 58,
        6 => 1,
        _ => 47,
    };
    let port = PORTS[dice.roll(PORTS.len())];
    let destination_port = match dice.roll(4) {
        0 => port.saturating_add(1),
        1 => port.saturating_sub(1),
        _ => port,
    };
    let known = dice.roll(40) != 0;
    Tuple {
        vni: if known { network.vni } else { Vni::MIN },
        endpoints: Endpoints {
            protocol,
            source,
            source_port: 40_000,
            destination,
            destination_port,
        },
        arrival,
    }
}

fn address(plan: &Plan, network: &Network, ipv6: bool, dice: &mut Dice) -> IpAddr {
    let here = plan.instances.iter().flat_map(|instance| &instance.memberships);
    let here = here
        .filter(|membership| membership.vni == network.vni)
        .map(Membership::addresses);
    let there = plan.members.iter().filter(|member| member.vni == network.vni);
    let known: Vec<IpAddr> = here
        .chain(there.map(Member::addresses))
        .flatten()
        .filter(|address| address.is_ipv6() == ipv6)
        .collect();
    let (ipv4_address, ipv6_address) = match dice.roll(12) {
        0 => (network.numbers.service_ipv4(), network.numbers.service_ipv6()),
        1 => ([198, 51, 100, 7].into(), [0x2001, 0xdb8, 0, 0, 0, 0, 0, 7].into()),
        2..=4 => {
            let host = [HERE, 2, 3, 200, 254][dice.roll(5)];
            let index = InstanceIndex::try_from(2 + dice.roll(9) as u64).unwrap();
            network.numbers.instance(ordinal(host), index).unwrap()
        }
        _ if !known.is_empty() => return known[dice.roll(known.len())],
        _ => network.numbers.instance(ordinal(2), InstanceIndex::MIN).unwrap(),
    };
    if ipv6 {
        ipv6_address.into()
    } else {
        ipv4_address.into()
    }
}
