//! A document's rules, compiled: what the first packet of a flow costs hardly depends on how many there are.
//!
//! A rule of a list stands in a table of its selector: there is one for everybody, one for each network, application,
//! service and prefix that a rule names. The other end of a flow meets a few of them: that of everybody, its network's,
//! its application's, its service's, and for each prefix length that occurs the one of the prefix it lies in. In each
//! table the ports of a protocol are cut into disjoint intervals, and each interval knows the first rule that matches
//! it. The first of all these is the list's first match.

use super::services::{ApplicationSlot, ServiceSlot, Services};
use crate::plan::{Access, Action, OnDeny, PortRange, ProtocolMatch, Selector, Vni};
use crate::wire::protocol;
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use ipnet::IpNet;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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
        let mut ipv4: Map<(u8, u128), Uncompiled> = Map::default();
        let mut ipv6: Map<(u8, u128), Uncompiled> = Map::default();
        for (rule, index) in access.rules.iter().zip(0..NO_RULE) {
            let table = match &rule.other {
                Selector::Any => Some(&mut everybody),
                Selector::Network(vni) => Some(networks.entry(*vni).or_default()),
                Selector::Application { tenant, application } => services
                    .application_slot(tenant, application)
                    .map(|slot| applications.entry(slot).or_default()),
                Selector::Service(id) => services.slot(id).map(|slot| named.entry(slot).or_default()),
                Selector::Prefix(prefix) => {
                    let key = (prefix.prefix_len(), left_bits(*prefix));
                    let family = if prefix.addr().is_ipv4() {
                        &mut ipv4
                    } else {
                        &mut ipv6
                    };
                    Some(family.entry(key).or_default())
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
        self.ipv4.named(true).chain(self.ipv6.named(false))
    }

    /// The prefixes that its rules name and in which an address lies.
    pub(super) fn prefixes_around(&self, address: IpNet) -> impl Iterator<Item = IpNet> {
        let family = if address.addr().is_ipv4() {
            &self.ipv4
        } else {
            &self.ipv6
        };
        family
            .lengths_around(address)
            .filter_map(move |length| Some(IpNet::new(address.addr(), length).ok()?.trunc()))
    }

    /// The tables that `other` meets.
    fn tables(&self, other: &Party) -> impl Iterator<Item = &PortTable> {
        let network = self.networks.get(&other.vni);
        let application = other.application.and_then(|slot| self.applications.get(&slot));
        let service = other.service.and_then(|slot| self.services.get(&slot));
        let prefixes = other.prefix.map(|prefix| {
            let family = if prefix.addr().is_ipv4() {
                &self.ipv4
            } else {
                &self.ipv6
            };
            family.around(prefix)
        });
        std::iter::once(&self.everybody)
            .chain(network)
            .chain(application)
            .chain(service)
            .chain(prefixes.into_iter().flatten())
    }
}

/// Tables by prefix, of one family.
struct Prefixes {
    /// The prefix lengths that occur.
    lengths: Box<[u8]>,
    tables: Map<(u8, u128), PortTable>,
}

impl Prefixes {
    fn compile(tables: Map<(u8, u128), Uncompiled>) -> Self {
        let mut lengths: Vec<u8> = tables.keys().map(|(length, _)| *length).collect();
        lengths.sort_unstable();
        lengths.dedup();
        Self {
            lengths: lengths.into(),
            tables: compile_all(tables),
        }
    }

    fn named(&self, of_ipv4: bool) -> impl Iterator<Item = IpNet> {
        self.tables.keys().filter_map(move |(length, bits)| {
            let address = if of_ipv4 {
                IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(bits >> 96).ok()?))
            } else {
                IpAddr::V6(Ipv6Addr::from_bits(*bits))
            };
            IpNet::new(address, *length).ok()
        })
    }

    /// The tables of the prefixes in which `inner` lies whole.
    fn around(&self, inner: IpNet) -> impl Iterator<Item = &PortTable> {
        let bits = left_bits(inner);
        self.lengths
            .iter()
            .take_while(move |length| **length <= inner.prefix_len())
            .filter_map(move |length| self.tables.get(&(*length, bits & mask(*length))))
    }

    /// The lengths of these prefixes.
    fn lengths_around(&self, inner: IpNet) -> impl Iterator<Item = u8> {
        let bits = left_bits(inner);
        let lengths = self.lengths.iter().copied();
        lengths
            .filter(move |length| *length <= inner.prefix_len())
            .filter(move |length| self.tables.contains_key(&(*length, bits & mask(*length))))
    }
}

/// A prefix's bits, at the left end of 128.
fn left_bits(prefix: IpNet) -> u128 {
    match prefix {
        IpNet::V4(prefix) => u128::from(prefix.network().to_bits()) << 96,
        IpNet::V6(prefix) => prefix.network().to_bits(),
    }
}

const fn mask(length: u8) -> u128 {
    match u128::MAX.checked_shr(length as u32) {
        Some(host_bits) => !host_bits,
        None => u128::MAX,
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
    fn masks_of_every_length_have_as_many_ones() {
        for length in 0..=128 {
            assert_eq!(mask(length).leading_ones(), u32::from(length));
            assert_eq!(mask(length).count_ones(), u32::from(length));
        }
    }
}
