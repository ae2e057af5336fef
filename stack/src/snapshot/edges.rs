//! Who may talk to whom, and why: the rules of a policy, asked about everybody at once.
//!
//! Nothing is decided here. For every ordered pair of services that share a network the walk of
//! [`judge`](Policy::judge) is asked at each port at which its answer may change. Instances of a service differ only by
//! their addresses, and only where a rule names a prefix; addresses that lie in the same of these prefixes are asked about
//! once. What is told holds for hosts that have the same documents: both ends' rules count.
//!
//! A service is in a network when an instance of its application is, or when it is the application's own. Addresses
//! behind which no service is known are asked about where a foreign peer is a member: as the prefixes that the other end's
//! rules name, and as all others.
//!
//! At most [`Edges::MOST_PAIRS`] pairs are asked about; how many more there are is told.

mod survey;

use super::explain::{Basis, NetworkName};
use super::policy::Policy;
use super::rules::Carried;
use crate::plan::{PortRange, ServiceId};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use survey::{Cell, Grounds, Pass, Relation, survey};

/// Who may talk to whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edges {
    /// By network, and by the names of both ends. Who isn't here may not.
    pub edges: Vec<Edge>,
    /// Pairs that nobody asked about, because there are too many.
    pub omitted: u64,
}

/// What may pass from one end to another, in one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// The network.
    pub network: NetworkName,
    /// Who begins.
    pub from: End,
    /// Who is called.
    pub to: End,
    /// What may pass; nothing, where a prefix is an exception from what its surroundings may.
    pub passages: Vec<Passage>,
}

/// One end of an edge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// A service.
    Service {
        /// Which one.
        service: ServiceId,
        /// Its addresses that are meant; empty: all.
        addresses: Vec<IpAddr>,
    },
    /// The addresses of a prefix behind which no service is known, but those in a longer one that is named as well.
    Prefix(IpNet),
    /// All other addresses behind which no service is known.
    Others,
}

/// What is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Carrier {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6.
    Icmp,
    /// Any other protocol.
    Other,
}

/// What may pass, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passage {
    /// The protocol.
    pub carrier: Carrier,
    /// To which ports, in ascending order; empty for protocols without ports.
    pub ports: Vec<PortRange>,
    /// Why it may leave.
    pub outbound: Basis,
    /// Why it may enter.
    pub inbound: Basis,
}

/// What another policy changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// What may pass that might not.
    pub allowed: Vec<Change>,
    /// What may no longer pass.
    pub denied: Vec<Change>,
    /// Pairs that nobody asked about, because there are too many.
    pub omitted: u64,
}

/// What changes between two ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The network.
    pub network: NetworkName,
    /// Who begins.
    pub from: End,
    /// Who is called.
    pub to: End,
    /// The protocol.
    pub carrier: Carrier,
    /// The ports, in ascending order; empty for protocols without ports.
    pub ports: Vec<PortRange>,
}

impl Policy {
    /// Who may talk to whom.
    pub fn edges(&self) -> Edges {
        let mut edges = Vec::new();
        let omitted = survey(&[self], |relation| {
            let passes = |cell: &Cell| cell.passes.first().cloned().unwrap_or_default();
            let edge = |cell: &Cell, (from, to): (&End, &End)| Edge {
                network: relation.network.clone(),
                from: from.clone(),
                to: to.clone(),
                passages: self.passages(&passes(cell), cell),
            };
            let Some(first) = relation.cells.first() else {
                return;
            };
            if relation.cells.iter().all(|cell| cell.passes == first.passes) {
                if !passes(first).is_empty() {
                    edges.push(edge(first, (&relation.from, &relation.to)));
                }
                return;
            }
            for cell in &relation.cells {
                let around = cell
                    .around
                    .and_then(|index| relation.cells.get(index))
                    .map(passes);
                let is_told = match around {
                    Some(around) => around != passes(cell),
                    None => !passes(cell).is_empty(),
                };
                if is_told {
                    edges.push(edge(cell, (&cell.from.end, &cell.to.end)));
                }
            }
        });
        Edges { edges, omitted }
    }

    fn passages(&self, passes: &[Pass], cell: &Cell) -> Vec<Passage> {
        let mut grouped: BTreeMap<(Carrier, usize), (Grounds, Vec<PortRange>)> = BTreeMap::new();
        let mut kinds: Vec<Grounds> = Vec::new();
        for pass in passes {
            let kind = kinds.iter().position(|grounds| *grounds == pass.grounds);
            let kind = kind.unwrap_or_else(|| {
                kinds.push(pass.grounds);
                kinds.len() - 1
            });
            let (_, ports) = grouped
                .entry((pass.carrier, kind))
                .or_insert_with(|| (pass.grounds, Vec::new()));
            ports.push(pass.ports);
        }
        let slot = |end: &End| match end {
            End::Service { service, .. } => self.service_slot(service),
            End::Prefix(_) | End::Others => None,
        };
        let passage =
            |((carrier, _), (grounds, ports)): ((Carrier, usize), (Grounds, Vec<PortRange>))| Passage {
                carrier,
                ports: carrier.told(ports),
                outbound: self.basis(
                    slot(&cell.from.end),
                    |service| service.outbound.as_ref(),
                    grounds.outbound,
                ),
                inbound: self.basis(
                    slot(&cell.to.end),
                    |service| service.inbound.as_ref(),
                    grounds.inbound,
                ),
            };
        grouped.into_iter().map(passage).collect()
    }
}

impl Edges {
    /// Most pairs of ends that are asked about.
    pub const MOST_PAIRS: u64 = 65_536;

    /// What may pass under one policy and not under another. Whether an instance is attached isn't what changes: an address
    /// counts for both when it is there under either.
    pub fn difference(old: &Policy, new: &Policy) -> Difference {
        let mut difference = Difference::default();
        difference.omitted = survey(&[old, new], |relation| {
            let changes = |cell: &Cell| {
                let passes = |index: usize| cell.passes.get(index).map_or(&[][..], Vec::as_slice);
                (without(passes(1), passes(0)), without(passes(0), passes(1)))
            };
            let mut tell = |ends: (&End, &End), (allowed, denied): (Vec<Span>, Vec<Span>)| {
                difference.allowed.extend(told(relation, ends, allowed));
                difference.denied.extend(told(relation, ends, denied));
            };
            let mut cells = relation.cells.iter();
            let Some(first) = cells.next().map(changes) else {
                return;
            };
            if cells.all(|cell| changes(cell) == first) {
                return tell((&relation.from, &relation.to), first);
            }
            for cell in &relation.cells {
                tell((&cell.from.end, &cell.to.end), changes(cell));
            }
        });
        difference
    }
}

/// Ports of a protocol.
type Span = (Carrier, PortRange);

/// What of `passes` isn't in `others`; both are in the order of protocols and ports.
fn without(passes: &[Pass], others: &[Pass]) -> Vec<Span> {
    let mut rest = Vec::new();
    for pass in passes {
        let (mut first, last) = (u32::from(pass.ports.first), u32::from(pass.ports.last));
        let mut keep = |first: u32, last: u32| {
            if let (Ok(first), Ok(last)) = (u16::try_from(first), u16::try_from(last))
                && first <= last
            {
                rest.push((pass.carrier, PortRange { first, last }));
            }
        };
        for other in others.iter().filter(|other| other.carrier == pass.carrier) {
            let (from, to) = (u32::from(other.ports.first), u32::from(other.ports.last));
            if to < first || from > last {
                continue;
            }
            if from > first {
                keep(first, from - 1);
            }
            first = to + 1;
        }
        keep(first, last);
    }
    rest
}

fn told(relation: &Relation, (from, to): (&End, &End), spans: Vec<Span>) -> Vec<Change> {
    let mut by_carrier: BTreeMap<Carrier, Vec<PortRange>> = BTreeMap::new();
    for (carrier, ports) in spans {
        by_carrier.entry(carrier).or_default().push(ports);
    }
    let change = |(carrier, ports): (Carrier, Vec<PortRange>)| Change {
        network: relation.network.clone(),
        from: from.clone(),
        to: to.clone(),
        carrier,
        ports: carrier.told(ports),
    };
    by_carrier.into_iter().map(change).collect()
}

impl Carrier {
    const fn to(self, port: u16) -> Carried {
        match self {
            Self::Tcp => Carried::Tcp(port),
            Self::Udp => Carried::Udp(port),
            Self::Icmp => Carried::Icmp,
            Self::Other => Carried::Other,
        }
    }

    /// Ports, where there are any; neighbours joined.
    fn told(self, ports: Vec<PortRange>) -> Vec<PortRange> {
        match self {
            Self::Tcp | Self::Udp => {
                let mut joined: Vec<PortRange> = Vec::with_capacity(ports.len());
                for range in ports {
                    match joined.last_mut() {
                        Some(before) if before.last.checked_add(1) == Some(range.first) => {
                            before.last = range.last;
                        }
                        Some(_) | None => joined.push(range),
                    }
                }
                joined
            }
            Self::Icmp | Self::Other => Vec::new(),
        }
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::Other => "other protocols",
        })
    }
}

impl fmt::Display for End {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service { service, addresses } => {
                write!(formatter, "{service}")?;
                let mut separator = " at ";
                for address in addresses {
                    write!(formatter, "{separator}{address}")?;
                    separator = ", ";
                }
                Ok(())
            }
            Self::Prefix(prefix) => write!(formatter, "{prefix}"),
            Self::Others => formatter.write_str("others"),
        }
    }
}
