//! Which rules are never reached, because earlier ones match everything that they do.
//!
//! The first rule that matches decides. So a rule is dead when, for everything it matches, an earlier one matches,
//! too: one with the same selector or a wider one, and the same protocols and ports or more, be it one rule or several
//! together. What selectors of different kinds have in common isn't looked for (which addresses a service has is no
//! document's matter).
//!
//! A hostile document must not cost more than its own size: what was matched so far is kept as disjoint ranges by
//! selector, and only a dead rule is compared with those before it one by one.

use super::access::{RuleDocument, SelectorDocument};
use super::decode::Value;
use ipnet::IpNet;
use std::collections::{BTreeMap, HashMap};
use tidegate_stack::plan::{Action, PortRange, ProtocolMatch};

/// How many lines are named of the rules that make one unreachable together.
const LINES_NAMED: usize = 5;
const EVERY_PORT: PortRange = PortRange {
    first: 0,
    last: u16::MAX,
};

/// Reports every rule that is never reached, at its place.
pub(super) fn report_unreachable(rules: &[(Value<'_>, RuleDocument)]) {
    let mut before: HashMap<&SelectorDocument, Matched> = HashMap::new();
    for (index, (value, rule)) in rules.iter().enumerate() {
        let matched = Matched::by(rule);
        let covering: Vec<_> = wider(&rule.other)
            .iter()
            .filter_map(|selector| before.get(selector))
            .collect();
        if !value.report().is_full() && matched.is_within(&covering) {
            let earlier: Vec<_> = rules.iter().take(index).map(|(_, rule)| rule).collect();
            report(value, rule, &matched, &earlier);
        }
        before.entry(&rule.other).or_default().add(&matched);
    }
}

fn report(value: &Value<'_>, rule: &RuleDocument, matched: &Matched, earlier: &[&RuleDocument]) {
    let wider = wider(&rule.other);
    let overlapping: Vec<_> = earlier
        .iter()
        .filter(|other| wider.contains(&other.other))
        .map(|other| (*other, Matched::by(other)))
        .filter(|(_, other)| other.overlaps(matched))
        .collect();
    let alone = overlapping
        .iter()
        .find(|(_, theirs)| matched.is_within(&[theirs]));
    let does = |action| match action {
        Action::Allow => "allows",
        Action::Deny => "denies",
    };
    let contrary = alone.filter(|(other, theirs)| {
        other.other == rule.other && theirs == matched && other.action != rule.action
    });
    if let Some((other, _)) = contrary {
        value.refuse_with::<()>(
            format!(
                "contradicts the rule in line {}, which {} the very same",
                other.line,
                does(other.action)
            ),
            "the first rule that matches decides: remove one of them",
        );
    } else if let Some((other, _)) = alone {
        value.refuse_with::<()>(
            format!(
                "is never reached: the rule in line {} {} everything that it matches",
                other.line,
                does(other.action)
            ),
            "the first rule that matches decides: put the narrower one first, or remove it",
        );
    } else {
        let lines: Vec<_> = overlapping
            .iter()
            .take(LINES_NAMED)
            .map(|(other, _)| other.line.to_string())
            .collect();
        let more = if overlapping.len() > LINES_NAMED {
            " and others"
        } else {
            ""
        };
        value.refuse_with::<()>(
            format!(
                "is never reached: the rules in lines {}{more} match together everything that it does",
                lines.join(", ")
            ),
            "the first rule that matches decides: put it before them, or remove it",
        );
    }
}

/// The selectors that match everything which this one does, itself first.
fn wider(selector: &SelectorDocument) -> Vec<SelectorDocument> {
    let mut wider = vec![selector.clone()];
    match selector {
        SelectorDocument::Any => return wider,
        SelectorDocument::Service(service) => wider.push(SelectorDocument::Application {
            tenant: service.tenant.clone(),
            application: service.application.clone(),
        }),
        SelectorDocument::Prefix(prefix) => {
            let shorter = (0..prefix.prefix_len())
                .rev()
                .filter_map(|length| IpNet::new(prefix.addr(), length).ok());
            wider.extend(shorter.map(|prefix| SelectorDocument::Prefix(prefix.trunc())));
        }
        SelectorDocument::Application { .. } | SelectorDocument::Network(_) => {}
    }
    wider.push(SelectorDocument::Any);
    wider
}

/// What rules match, apart from whom.
#[derive(Default, PartialEq)]
struct Matched {
    tcp: Ports,
    udp: Ports,
    icmp: bool,
    /// Protocols that have no name in a document.
    others: bool,
}

impl Matched {
    fn by(rule: &RuleDocument) -> Self {
        let mut matched = Self::default();
        if rule.protocols.is_empty() {
            matched.tcp.add(EVERY_PORT);
            matched.udp.add(EVERY_PORT);
            matched.icmp = true;
            matched.others = true;
        }
        for protocol in &rule.protocols {
            match protocol {
                ProtocolMatch::Tcp(ranges) => matched.tcp.add_all(ranges),
                ProtocolMatch::Udp(ranges) => matched.udp.add_all(ranges),
                ProtocolMatch::Icmp => matched.icmp = true,
            }
        }
        matched
    }

    fn add(&mut self, other: &Self) {
        other.tcp.ranges().for_each(|range| self.tcp.add(range));
        other.udp.ranges().for_each(|range| self.udp.add(range));
        self.icmp |= other.icmp;
        self.others |= other.others;
    }

    /// Whether all of it is in one or another of these.
    fn is_within(&self, others: &[&Self]) -> bool {
        let any = |has: fn(&Self) -> bool| others.iter().any(|other| has(other));
        let tcp: Vec<_> = others.iter().map(|other| &other.tcp).collect();
        let udp: Vec<_> = others.iter().map(|other| &other.udp).collect();
        (!self.icmp || any(|other| other.icmp))
            && (!self.others || any(|other| other.others))
            && self.tcp.is_within(&tcp)
            && self.udp.is_within(&udp)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.icmp && other.icmp
            || self.others && other.others
            || self.tcp.overlaps(&other.tcp)
            || self.udp.overlaps(&other.udp)
    }
}

/// Disjoint ranges that don't touch, the last port by the first.
#[derive(Default, PartialEq)]
struct Ports(BTreeMap<u16, u16>);

impl Ports {
    fn ranges(&self) -> impl Iterator<Item = PortRange> {
        self.0.iter().map(|(first, last)| PortRange {
            first: *first,
            last: *last,
        })
    }

    /// No ranges are all ports, as in a rule.
    fn add_all(&mut self, ranges: &[PortRange]) {
        if ranges.is_empty() {
            self.add(EVERY_PORT);
        }
        ranges.iter().for_each(|range| self.add(*range));
    }

    fn add(&mut self, range: PortRange) {
        let PortRange { mut first, mut last } = range;
        while let Some((begin, end)) = self.touching(first, last) {
            self.0.remove(&begin);
            first = first.min(begin);
            last = last.max(end);
        }
        self.0.insert(first, last);
    }

    /// A range that has a port of this one, or the one beside it.
    fn touching(&self, first: u16, last: u16) -> Option<(u16, u16)> {
        let (begin, end) = self.0.range(..=last.saturating_add(1)).next_back()?;
        (*end >= first.saturating_sub(1)).then_some((*begin, *end))
    }

    fn overlaps(&self, other: &Self) -> bool {
        other.0.iter().any(|(first, last)| {
            let below = self.0.range(..=*last).next_back();
            below.is_some_and(|(_, end)| end >= first)
        })
    }

    fn is_within(&self, others: &[&Self]) -> bool {
        self.0.iter().all(|(first, last)| {
            let mut next = *first;
            loop {
                let reach = others.iter().filter_map(|other| other.reach(next)).max();
                match reach {
                    None => return false,
                    Some(reach) if reach >= *last => return true,
                    Some(reach) => next = reach + 1,
                }
            }
        })
    }

    /// The last port of the range that this one is in.
    fn reach(&self, port: u16) -> Option<u16> {
        let (_, last) = self.0.range(..=port).next_back()?;
        (*last >= port).then_some(*last)
    }
}
