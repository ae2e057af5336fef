//! A service whose `inbound-access` has ten thousand rules of every kind: others' services, prefixes of every length, port
//! ranges. The only one for the sender is the last.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{Ipv4Addr, Ipv6Addr};
use tidegate_stack::plan::{
    Access, Action, Limits, OnDeny, Plan, PortRange, ProtocolMatch, Rule, Selector, Service, ServiceId,
};
use tidegate_stack::wire::{Endpoints, protocol};

use crate::site::{self, LOCAL, NEAR};

const RULES: u32 = 10_000;
/// What the only rule about the sender's service, in the middle, allows.
const BY_SERVICE: u16 = 5432;
/// What the only rule about a prefix around the sender allows.
const BY_PREFIX: u16 = 5433;
/// What the last rule allows.
const BY_LAST: u16 = 5434;

/// One flow, and what is to be decided about it.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) endpoints: Endpoints,
    pub(crate) allowed: bool,
}

/// A host with two instances: `web`, and `db` with the rules.
pub(crate) fn plan(ipv6: bool) -> Plan {
    let mut plan = site::plan(0, 2, 1);
    let addresses = site::Addresses::of(&plan);
    let sender = if ipv6 {
        addresses.ipv6(NEAR)
    } else {
        addresses.ipv4(NEAR)
    };
    "db".clone_into(&mut plan.instances[1].service);
    let mut rules: Vec<Rule> = (0..RULES - 3)
        .map(|number| rule(other(number, ipv6), port_of(number)))
        .collect();
    let around = IpNet::new(sender, if ipv6 { 112 } else { 24 }).map(|prefix| prefix.trunc());
    let middle = rules.len() / 2;
    rules.insert(
        middle,
        rule(Selector::Service(plan.instances[0].service_id()), BY_SERVICE),
    );
    rules.insert(
        middle,
        rule(Selector::Prefix(around.expect("a legal length")), BY_PREFIX),
    );
    rules.push(rule(Selector::Any, BY_LAST));
    plan.services.push(Service {
        id: plan.instances[1].service_id(),
        document: "shop.yaml".into(),
        inbound: Some(Access {
            line: 1,
            on_deny: OnDeny::Drop,
            rules,
        }),
        outbound: None,
        limits: Limits::default(),
    });
    plan
}

/// From `web` to `db`.
pub(crate) fn cases(plan: &Plan, ipv6: bool) -> [Case; 4] {
    let addresses = site::Addresses::of(plan);
    let (source, destination) = if ipv6 {
        (addresses.ipv6(NEAR), addresses.ipv6(LOCAL))
    } else {
        (addresses.ipv4(NEAR), addresses.ipv4(LOCAL))
    };
    [
        ("service", BY_SERVICE, true),
        ("prefix", BY_PREFIX, true),
        ("last", BY_LAST, true),
        ("no-match", 22, false),
    ]
    .map(|(name, destination_port, allowed)| Case {
        name,
        endpoints: Endpoints {
            protocol: protocol::TCP,
            source,
            source_port: 40_000,
            destination,
            destination_port,
        },
        allowed,
    })
}

fn rule(other: Selector, port: u16) -> Rule {
    Rule {
        line: 2,
        other,
        protocols: vec![ProtocolMatch::Tcp(vec![PortRange {
            first: port,
            last: port,
        }])],
        action: Action::Allow,
    }
}

/// Ports that no case uses.
fn port_of(number: u32) -> u16 {
    6_000 + u16::try_from(number % 50_000).unwrap_or(0)
}

/// A fifth are services, a fifth everybody, the rest prefixes of every length around and beside the sender.
fn other(number: u32, ipv6: bool) -> Selector {
    match number % 5 {
        0 => Selector::Service(ServiceId {
            tenant: "acme".into(),
            application: format!("application-{}", number % 100),
            service: format!("service-{number}"),
        }),
        1 => Selector::Any,
        _ if ipv6 => {
            let address = Ipv6Addr::from_bits((0xfd << 120) | (u128::from(number) << 64));
            let length = u8::try_from(1 + number % 128).unwrap_or(128);
            Selector::Prefix(Ipv6Net::new_assert(address, length).trunc().into())
        }
        _ => {
            let address = Ipv4Addr::from_bits(0xac13_0000 | (number << 3));
            let length = u8::try_from(1 + number % 32).unwrap_or(32);
            Selector::Prefix(Ipv4Net::new_assert(address, length).trunc().into())
        }
    }
}
