//! A document's rules, compiled: what the first packet of a flow costs hardly depends on how many there are.
//!
//! A rule of a list stands in a table of its selector: there is one for everybody, one for each network, application,
//! service and prefix that a rule names. The other end of a flow meets a few of them: that of everybody, its network's,
//! its application's, its service's, and those of the prefixes it lies in. In each table the ports of a protocol are cut
//! into disjoint intervals, and each interval knows the first rule that matches it. The first of all these is the list's
//! first match.

use super::services::{ApplicationSlot, ServiceSlot, Services};
use crate::plan::{Access, Action, OnDeny, PortRange, ProtocolMatch, Selector, Vni};
use crate::wire::protocol;
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use ipnet::IpNet;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

type Map<K, V> = HashMap<K, V, FixedState>;

/// No rule: behind every one.
const NO_RULE: u32 = u32::MAX;

/// One end of a flow, as rules about it see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Party {
    /// The service behind it, when that is known.
    pub(super) service: Option<ServiceSlot>,
    /// The service's application.
    pub(super) application: Option<ApplicationSlot>,
    /// The network that the flow is in.
    pub(super) vni: Vni,
    /// Its address, as a prefix of one; a shorter one stands for all addresses in it, `None` for one in no prefix that
    /// rules name.
    pub(super) prefix: Option<IpNet>,
}

/// What a flow carries, as rules see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    /// TCP to this port.
    Tcp(u16),
    /// UDP to this port.
    Udp(u16),
    /// ICMP or ICMPv6.
    Icmp,
    /// Another protocol.
    Other,
}

impl Carried {
    pub(super) const fn of(number: u8, destination_port: u16) -> Self {
        match number {
            protocol::TCP => Self::Tcp(destination_port),
            protocol::UDP => Self::Udp(destination_port),
            protocol::ICMP | protocol::ICMPV6 => Self::Icmp,
            _ => Self::Other,
        }
    }
}

/// The rule that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Match {
    /// Its place in the list.
    pub(super) rule: u32,
    /// What it says.
    pub(super) action: Action,
}

/// A list of rules.
pub(super) struct RuleList {
    pub(super) on_deny: OnDeny,
    actions: Box<[Action]>,
    everybody: PortTable,
    networks: Map<Vni, PortTable>,
    applications: Map<ApplicationSlot, PortTable>,
    services: Map<ServiceSlot, PortTable>,
    ipv4: Prefixes,
    ipv6: Prefixes,
}

impl RuleList {
    /// Compiles a list. Every name that it uses must be known to `services`, or its rule matches nobody.
    pub(super) fn compile(access: &Access, services: &Services) -> Self {
        let mut everybody = Uncompiled::default();
        let mut networks: Map<Vni, Uncompiled> = Map::default();
        let mut applications: Map<ApplicationSlot, Uncompiled> = Map::default();
        let mut named: Map<ServiceSlot, Uncompiled> = Map::default();
        let mut ipv4: Map<IpNet, Uncompiled> = Map::default();
        let mut ipv6: Map<IpNet, Uncompiled> = Map::default();
        for (rule, index) in access.rules.iter().zip(0..NO_RULE) {
            let table = match &rule.other {
                Selector::Any => Some(&mut everybody),
                Selector::Network(vni) => Some(networks.entry(*vni).or_default()),
                Selector::Application { tenant, application } => services
                    .application_slot(tenant, application)
                    .map(|slot| applications.entry(slot).or_default()),
                Selector::Service(id) => services.slot(id).map(|slot| named.entry(slot).or_default()),
                Selector::Prefix(prefix) => {
                    let family = if prefix.addr().is_ipv4() {
                        &mut ipv4
                    } else {
                        &mut ipv6
                    };
                    Some(family.entry(prefix.trunc()).or_default())
                }
            };
            if let Some(table) = table {
                table.add(&rule.protocols, index);
            }
        }
        Self {
            on_deny: access.on_deny,
            actions: access.rules.iter().map(|rule| rule.action).collect(),
            everybody: everybody.compile(),
            networks: compile_all(networks),
            applications: compile_all(applications),
            services: compile_all(named),
            ipv4: Prefixes::compile(ipv4),
            ipv6: Prefixes::compile(ipv6),
        }
    }

    /// The first rule that matches.
    pub(super) fn first_match(&self, other: &Party, carried: Carried) -> Option<Match> {
        let first = self.tables(other).map(|table| table.first(carried)).min()?;
        let action = *self.actions.get(first as usize)?;
        Some(Match { rule: first, action })
    }

    /// The ports at which the first match for `other` may change: of TCP, or of UDP.
    pub(super) fn boundaries(&self, other: &Party, of_tcp: bool) -> impl Iterator<Item = u16> {
        self.tables(other)
            .flat_map(move |table| if of_tcp { &table.tcp } else { &table.udp })
            .map(|interval| interval.first)
    }

    /// The prefixes that its rules name.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        let nested = self.ipv4.nested.iter().chain(&self.ipv6.nested);
        nested.map(|nested| nested.prefix)
    }

    /// The prefixes that its rules name and in which an address lies.
    pub(super) fn prefixes_around(&self, address: IpNet) -> impl Iterator<Item = IpNet> {
        self.family(address).around(address).map(|nested| nested.prefix)
    }

    fn family(&self, prefix: IpNet) -> &Prefixes {
        match prefix {
            IpNet::V4(_) => &self.ipv4,
            IpNet::V6(_) => &self.ipv6,
        }
    }

    /// The tables that `other` meets.
    fn tables(&self, other: &Party) -> impl Iterator<Item = &PortTable> {
        let network = self.networks.get(&other.vni);
        let application = other.application.and_then(|slot| self.applications.get(&slot));
        let service = other.service.and_then(|slot| self.services.get(&slot));
        let prefixes = other.prefix.map(|prefix| self.family(prefix).around(prefix));
        std::iter::once(&self.everybody)
            .chain(network)
            .chain(application)
            .chain(service)
            .chain(prefixes.into_iter().flatten().map(|nested| &nested.table))
    }
}

/// Tables by prefix, of one family. Prefixes lie in each other or beside each other: an address lies in the innermost one
/// that is found by bisection, and in those around it.
struct Prefixes {
    /// Where another prefix becomes the innermost one, ascending.
    changes: Box<[(u128, Option<u32>)]>,
    /// In ascending order, wider ones first.
    nested: Box<[Nested]>,
}

struct Nested {
    prefix: IpNet,
    /// The next one around it.
    around: Option<u32>,
    table: PortTable,
}

impl Prefixes {
    fn compile(tables: Map<IpNet, Uncompiled>) -> Self {
        let mut tables: Vec<(IpNet, Uncompiled)> = tables.into_iter().collect();
        tables.sort_unstable_by_key(|(prefix, _)| (left_bits(*prefix), prefix.prefix_len()));
        let mut changes: Vec<(u128, Option<u32>)> = Vec::with_capacity(tables.len() * 2);
        let mut change = |at: u128, innermost: Option<u32>| match changes.last_mut() {
            Some((before, last)) if *before == at => *last = innermost,
            Some(_) | None => changes.push((at, innermost)),
        };
        // The prefixes in which the sweep is now, each with its last address.
        let mut inside: Vec<(u32, u128)> = Vec::new();
        let mut nested = Vec::with_capacity(tables.len());
        for ((prefix, table), index) in tables.into_iter().zip(0..) {
            let first = left_bits(prefix);
            leave(&mut inside, first, &mut change);
            nested.push(Nested {
                prefix,
                around: inside.last().map(|(around, _)| *around),
                table: table.compile(),
            });
            inside.push((index, first | host_bits(prefix.prefix_len())));
            change(first, Some(index));
        }
        leave(&mut inside, u128::MAX, &mut change);
        Self {
            changes: changes.into(),
            nested: nested.into(),
        }
    }

    /// The prefixes in which `inner` lies whole, the innermost one first.
    fn around(&self, inner: IpNet) -> impl Iterator<Item = &Nested> {
        let bits = left_bits(inner);
        let behind = self.changes.partition_point(|(at, _)| *at <= bits);
        let innermost = behind.checked_sub(1).and_then(|index| self.changes.get(index)?.1);
        let nested = |index: Option<u32>| self.nested.get(index? as usize);
        std::iter::successors(nested(innermost), move |within| nested(within.around))
            .filter(move |nested| nested.prefix.prefix_len() <= inner.prefix_len())
    }
}

/// Leaves the prefixes that end before `first`, the innermost one first.
fn leave(inside: &mut Vec<(u32, u128)>, first: u128, change: &mut impl FnMut(u128, Option<u32>)) {
    while let Some((_, last)) = inside.pop_if(|(_, last)| *last < first) {
        change(last + 1, inside.last().map(|(around, _)| *around));
    }
}

/// A prefix's bits, at the left end of 128.
fn left_bits(prefix: IpNet) -> u128 {
    match prefix {
        IpNet::V4(prefix) => u128::from(prefix.network().to_bits()) << 96,
        IpNet::V6(prefix) => prefix.network().to_bits(),
    }
}

/// What is behind a prefix of this length in 128 bits.
const fn host_bits(length: u8) -> u128 {
    match u128::MAX.checked_shr(length as u32) {
        Some(bits) => bits,
        None => 0,
    }
}

/// Of one selector: the first rule for every protocol and port.
struct PortTable {
    tcp: Box<[Interval]>,
    udp: Box<[Interval]>,
    icmp: u32,
    other: u32,
}

/// Ports from `first` to where the next interval begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Interval {
    first: u16,
    rule: u32,
}

impl PortTable {
    fn first(&self, carried: Carried) -> u32 {
        match carried {
            Carried::Tcp(port) => at(&self.tcp, port),
            Carried::Udp(port) => at(&self.udp, port),
            Carried::Icmp => self.icmp,
            Carried::Other => self.other,
        }
    }
}

fn at(intervals: &[Interval], port: u16) -> u32 {
    let behind = intervals.partition_point(|interval| interval.first <= port);
    let interval = behind.checked_sub(1).and_then(|index| intervals.get(index));
    interval.map_or(NO_RULE, |interval| interval.rule)
}

fn compile_all<K: Eq + std::hash::Hash>(tables: Map<K, Uncompiled>) -> Map<K, PortTable> {
    tables
        .into_iter()
        .map(|(key, table)| (key, table.compile()))
        .collect()
}

/// The rules of one selector, as they come.
struct Uncompiled {
    tcp: Vec<(PortRange, u32)>,
    udp: Vec<(PortRange, u32)>,
    icmp: u32,
    other: u32,
}

impl Default for Uncompiled {
    fn default() -> Self {
        Self {
            tcp: Vec::new(),
            udp: Vec::new(),
            icmp: NO_RULE,
            other: NO_RULE,
        }
    }
}

/// Every port.
const ALL_PORTS: PortRange = PortRange {
    first: 0,
    last: u16::MAX,
};

impl Uncompiled {
    fn add(&mut self, protocols: &[ProtocolMatch], rule: u32) {
        if protocols.is_empty() {
            self.tcp.push((ALL_PORTS, rule));
            self.udp.push((ALL_PORTS, rule));
            self.icmp = self.icmp.min(rule);
            self.other = self.other.min(rule);
        }
        for protocol in protocols {
            match protocol {
                ProtocolMatch::Tcp(ranges) => add_ranges(&mut self.tcp, ranges, rule),
                ProtocolMatch::Udp(ranges) => add_ranges(&mut self.udp, ranges, rule),
                ProtocolMatch::Icmp => self.icmp = self.icmp.min(rule),
            }
        }
    }

    fn compile(self) -> PortTable {
        PortTable {
            tcp: intervals(self.tcp),
            udp: intervals(self.udp),
            icmp: self.icmp,
            other: self.other,
        }
    }
}

fn add_ranges(to: &mut Vec<(PortRange, u32)>, ranges: &[PortRange], rule: u32) {
    if ranges.is_empty() {
        to.push((ALL_PORTS, rule));
    }
    to.extend(ranges.iter().map(|range| (*range, rule)));
}

/// Cuts ranges, which may overlap, into intervals that know the first rule over them: one sweep over the ports at which
/// something begins or ends.
fn intervals(mut ranges: Vec<(PortRange, u32)>) -> Box<[Interval]> {
    ranges.sort_unstable();
    let after = |range: &PortRange| range.last.checked_add(1);
    let mut ports: Vec<u16> = ranges
        .iter()
        .flat_map(|(range, _)| [Some(range.first), after(range)])
        .flatten()
        .collect();
    ports.sort_unstable();
    ports.dedup();
    let mut coming = ranges.into_iter().peekable();
    let mut open = BinaryHeap::new();
    let mut cut: Vec<Interval> = Vec::with_capacity(ports.len());
    for port in ports {
        while let Some((range, rule)) = coming.next_if(|(range, _)| range.first <= port) {
            open.push(Reverse((rule, range.last)));
        }
        while open.peek().is_some_and(|Reverse((_, last))| *last < port) {
            open.pop();
        }
        let rule = open.peek().map_or(NO_RULE, |Reverse((rule, _))| *rule);
        if cut.last().map_or(NO_RULE, |interval| interval.rule) != rule {
            cut.push(Interval { first: port, rule });
        }
    }
    cut.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange { first, last }
    }

    #[test]
    fn of_overlapping_ranges_the_first_rule_counts_at_every_port() {
        let ranges = vec![
            (range(100, 200), 4),
            (range(150, 160), 2),
            (range(0, 0), 7),
            (range(155, 300), 3),
            (range(65_535, 65_535), 1),
            (ALL_PORTS, 9),
        ];
        let cut = intervals(ranges.clone());
        for port in 0..=u16::MAX {
            let matching = |(range, _): &&(PortRange, u32)| (range.first..=range.last).contains(&port);
            let expected = ranges.iter().filter(matching).map(|(_, rule)| *rule).min();
            assert_eq!(at(&cut, port), expected.unwrap_or(NO_RULE), "port {port}");
        }
    }

    #[test]
    fn ports_between_ranges_have_no_rule() {
        let cut = intervals(vec![(range(10, 20), 0), (range(30, 40), 1)]);
        let rules = [9, 10, 20, 21, 29, 30, 40, 41].map(|port| at(&cut, port));
        assert_eq!(rules, [NO_RULE, 0, 0, NO_RULE, NO_RULE, 1, 1, NO_RULE]);
    }

    #[test]
    fn an_address_lies_in_every_prefix_around_it_and_in_no_other() {
        let texts = [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.0.0.0/9",
            "10.64.0.0/10",
            "10.127.255.255/32",
            "10.128.0.0/9",
            "192.0.2.0/24",
            "255.255.255.255/32",
        ];
        let all: Vec<IpNet> = texts.iter().map(|text| text.parse().unwrap()).collect();
        for without in 0..all.len() {
            let named: Vec<IpNet> = all
                .iter()
                .copied()
                .filter(|prefix| *prefix != all[without])
                .collect();
            let prefixes = Prefixes::compile(
                named
                    .iter()
                    .map(|prefix| (*prefix, Uncompiled::default()))
                    .collect(),
            );
            for inner in all.iter().copied().chain([
                "0.0.0.0/32".parse().unwrap(),
                "10.63.255.255/32".parse().unwrap(),
                "10.128.0.0/32".parse().unwrap(),
                "11.0.0.0/32".parse().unwrap(),
                "192.0.3.0/32".parse().unwrap(),
                "255.255.255.254/32".parse().unwrap(),
            ]) {
                let mut around: Vec<IpNet> = prefixes.around(inner).map(|nested| nested.prefix).collect();
                around.reverse();
                let mut expected: Vec<IpNet> = named
                    .iter()
                    .copied()
                    .filter(|prefix| prefix.contains(&inner))
                    .collect();
                expected.sort_by_key(IpNet::prefix_len);
                assert_eq!(around, expected, "{inner} without {}", all[without]);
            }
        }
    }
}
