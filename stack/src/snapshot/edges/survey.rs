//! Everybody of some policies, pair by pair, and what passes between them.

use super::super::explain::NetworkName;
use super::super::judge::{Finding, Ground, Witness};
use super::super::policy::Policy;
use super::super::rules::{Party, RuleList};
use super::super::services::{ApplicationSlot, ServiceEntry};
use super::{Carrier, Edges, End};
use crate::plan::{PortRange, ServiceId, Vni};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Two ends, in a network.
pub(super) struct Relation {
    pub(super) network: NetworkName,
    pub(super) from: End,
    pub(super) to: End,
    /// The pairs of what they consist of.
    pub(super) cells: Vec<Cell>,
}

/// Parts of two ends, within which all addresses are alike.
pub(super) struct Cell {
    pub(super) from: Part,
    pub(super) to: Part,
    /// Per policy.
    pub(super) passes: Vec<Vec<Pass>>,
    /// The cell whose prefix is the next one around this one's.
    pub(super) around: Option<usize>,
}

#[derive(Clone)]
pub(super) struct Part {
    pub(super) end: End,
    /// An address that stands for all.
    pub(super) prefix: Option<IpNet>,
}

/// A run of ports that pass on the same grounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pass {
    pub(super) carrier: Carrier,
    pub(super) ports: PortRange,
    pub(super) grounds: Grounds,
}

impl Pass {
    fn continues_with(&self, next: &Self) -> bool {
        (self.carrier, self.grounds) == (next.carrier, next.grounds)
            && self.ports.last.checked_add(1) == Some(next.ports.first)
    }
}

/// Keeps what both lists say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grounds {
    pub(super) outbound: Ground,
    pub(super) inbound: Ground,
}

impl Witness for Grounds {
    fn see(&mut self, finding: Finding) {
        match finding {
            Finding::Outbound(_, ground) => self.outbound = ground,
            Finding::Inbound(_, ground) => self.inbound = ground,
            Finding::Network
            | Finding::Outside
            | Finding::Source { .. }
            | Finding::NoSource(_)
            | Finding::ServiceAddress(_)
            | Finding::Target { .. }
            | Finding::NoTarget(_) => {}
        }
    }
}

/// Asks policies about everybody, relation by relation; how many pairs weren't asked about.
pub(super) fn survey(policies: &[&Policy], mut tell: impl FnMut(&Relation)) -> u64 {
    let mut survey = Survey {
        policies,
        present: Vec::new(),
        asked: 0,
        omitted: 0,
    };
    let networks: BTreeMap<Vni, NetworkName> = policies
        .iter()
        .flat_map(|policy| policy.network_names())
        .map(|name| (name.vni, name))
        .collect();
    for (vni, network) in networks {
        survey.present = policies.iter().map(|policy| policy.services_in(vni)).collect();
        let mut services: BTreeMap<&ServiceId, BTreeSet<IpAddr>> = BTreeMap::new();
        for (service, addresses) in survey.present.iter().flatten() {
            services.entry(*service).or_default().extend(addresses);
        }
        let foreign = policies.iter().any(|policy| policy.has_foreign_member(vni));
        for (service, addresses) in &services {
            for (other, others) in &services {
                tell(&survey.services(&network, (service, addresses), (other, others)));
            }
            if foreign {
                tell(&survey.strangers(&network, service, Direction::Outbound));
                tell(&survey.strangers(&network, service, Direction::Inbound));
            }
        }
    }
    survey.omitted
}

/// Whose list is meant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// The source's.
    Outbound,
    /// The target's.
    Inbound,
}

struct Survey<'a> {
    policies: &'a [&'a Policy],
    /// Per policy: who is in the network at hand, and at which addresses.
    present: Vec<BTreeMap<&'a ServiceId, BTreeSet<IpAddr>>>,
    asked: u64,
    omitted: u64,
}

impl Survey<'_> {
    /// From one service to another.
    fn services(
        &mut self,
        network: &NetworkName,
        from: (&ServiceId, &BTreeSet<IpAddr>),
        to: (&ServiceId, &BTreeSet<IpAddr>),
    ) -> Relation {
        let senders = self.parts(from, to.0, Direction::Inbound);
        let targets = self.parts(to, from.0, Direction::Outbound);
        let mut cells = Vec::new();
        for sender in &senders {
            for target in &targets {
                cells.extend(self.cell(network.vni, sender.clone(), target.clone(), None));
            }
        }
        Relation {
            network: network.clone(),
            from: whole(from.0),
            to: whole(to.0),
            cells,
        }
    }

    /// Between a service and addresses behind which none is known. They are in the service's list as prefixes, or not at
    /// all.
    fn strangers(&mut self, network: &NetworkName, service: &ServiceId, list: Direction) -> Relation {
        let mut named: Vec<IpNet> = self
            .lists(service, list)
            .flat_map(RuleList::prefixes)
            .filter(|prefix| self.overlaps(network.vni, *prefix))
            .collect();
        named.sort_unstable_by_key(|prefix| (prefix.prefix_len(), *prefix));
        named.dedup();
        let known = Part {
            end: whole(service),
            prefix: None,
        };
        let mut cells: Vec<Cell> = Vec::new();
        let mut places: BTreeMap<IpNet, usize> = BTreeMap::new();
        for prefix in std::iter::once(None).chain(named.into_iter().map(Some)) {
            let stranger = Part {
                end: prefix.map_or(End::Others, End::Prefix),
                prefix,
            };
            let around = prefix.map(|prefix| {
                let mut wider = std::iter::successors(prefix.supernet(), IpNet::supernet);
                wider.find_map(|wider| places.get(&wider)).copied().unwrap_or(0)
            });
            let (from, to) = match list {
                Direction::Inbound => (stranger, known.clone()),
                Direction::Outbound => (known.clone(), stranger),
            };
            if let Some(cell) = self.cell(network.vni, from, to, around) {
                places.extend(prefix.map(|prefix| (prefix, cells.len())));
                cells.push(cell);
            }
        }
        let (from, to) = match list {
            Direction::Inbound => (End::Others, whole(service)),
            Direction::Outbound => (whole(service), End::Others),
        };
        Relation {
            network: network.clone(),
            from,
            to,
            cells,
        }
    }

    /// A service's addresses, parted by which prefixes of the other service's lists they lie in.
    fn parts(
        &self,
        (service, addresses): (&ServiceId, &BTreeSet<IpAddr>),
        other: &ServiceId,
        list: Direction,
    ) -> Vec<Part> {
        let mut alike: BTreeMap<Vec<(usize, IpNet)>, Vec<IpAddr>> = BTreeMap::new();
        for address in addresses {
            let lists = self.lists(other, list).enumerate();
            let around = lists.flat_map(|(index, list)| {
                let around = list.prefixes_around(IpNet::from(*address));
                around.map(move |prefix| (index, prefix))
            });
            alike.entry(around.collect()).or_default().push(*address);
        }
        if alike.len() < 2 {
            let first = addresses.first().copied();
            return vec![Part {
                end: whole(service),
                prefix: first.map(IpNet::from),
            }];
        }
        let part = |addresses: Vec<IpAddr>| Part {
            prefix: addresses.first().copied().map(IpNet::from),
            end: End::Service {
                service: service.clone(),
                addresses,
            },
        };
        alike.into_values().map(part).collect()
    }

    /// What passes between two parts, unless too many were asked about already.
    fn cell(&mut self, vni: Vni, from: Part, to: Part, around: Option<usize>) -> Option<Cell> {
        if self.asked >= Edges::MOST_PAIRS {
            self.omitted += 1;
            return None;
        }
        self.asked += 1;
        let passes = self.policies.iter().zip(&self.present).map(|(policy, present)| {
            let party = |part: &Part| match &part.end {
                End::Service { service, .. } if present.contains_key(service) => {
                    Some(policy.party_of(vni, policy.service_slot(service), part.prefix))
                }
                End::Service { .. } => None,
                End::Prefix(_) | End::Others => policy
                    .has_foreign_member(vni)
                    .then(|| policy.party_of(vni, None, part.prefix)),
            };
            match (party(&from), party(&to)) {
                (Some(source), Some(target)) => policy.passes(&source, &target, source.service.is_some()),
                (None, _) | (_, None) => Vec::new(),
            }
        });
        Some(Cell {
            passes: passes.collect(),
            from,
            to,
            around,
        })
    }

    /// A service's lists, policy by policy.
    fn lists(&self, service: &ServiceId, list: Direction) -> impl Iterator<Item = &RuleList> {
        self.policies.iter().filter_map(move |policy| {
            let entry = policy.service(policy.service_slot(service)?)?;
            match list {
                Direction::Outbound => entry.outbound.as_ref(),
                Direction::Inbound => entry.inbound.as_ref(),
            }
        })
    }

    /// Whether a prefix has addresses of a network.
    fn overlaps(&self, vni: Vni, prefix: IpNet) -> bool {
        let networks = self.policies.iter().filter_map(|policy| policy.network(vni));
        networks.map(|network| network.numbers).any(|numbers| {
            let whole = [IpNet::V4(numbers.ipv4_prefix), IpNet::V6(numbers.ipv6_prefix)];
            whole
                .iter()
                .any(|whole| whole.contains(&prefix) || prefix.contains(whole))
        })
    }
}

fn whole(service: &ServiceId) -> End {
    End::Service {
        service: service.clone(),
        addresses: Vec::new(),
    }
}

impl Policy {
    /// The passages between two parties, in the order of protocols and ports.
    fn passes(&self, source: &Party, target: &Party, starts_here: bool) -> Vec<Pass> {
        let list = |party: &Party, list: fn(&ServiceEntry) -> Option<&RuleList>| {
            party.service.and_then(|slot| list(self.service(slot)?))
        };
        let outbound = list(source, |service| service.outbound.as_ref());
        let inbound = list(target, |service| service.inbound.as_ref());
        let mut passes: Vec<Pass> = Vec::new();
        for carrier in [Carrier::Tcp, Carrier::Udp, Carrier::Icmp, Carrier::Other] {
            let mut firsts = BTreeSet::from([0]);
            if let Carrier::Tcp | Carrier::Udp = carrier {
                let of_tcp = carrier == Carrier::Tcp;
                let outbound = outbound
                    .into_iter()
                    .flat_map(|list| list.boundaries(target, of_tcp));
                let inbound = inbound
                    .into_iter()
                    .flat_map(|list| list.boundaries(source, of_tcp));
                firsts.extend(outbound.chain(inbound));
            }
            let mut last = u16::MAX;
            let mut of_carrier = Vec::new();
            for first in firsts.into_iter().rev() {
                let mut grounds = Grounds {
                    outbound: Ground::Elsewhere,
                    inbound: Ground::Unknown,
                };
                let allowed = self.permit(source, target, carrier.to(first), starts_here, &mut grounds);
                if allowed.is_ok() {
                    of_carrier.push(Pass {
                        carrier,
                        ports: PortRange { first, last },
                        grounds,
                    });
                }
                last = first.saturating_sub(1);
            }
            for pass in of_carrier.into_iter().rev() {
                match passes.last_mut() {
                    Some(before) if before.continues_with(&pass) => before.ports.last = pass.ports.last,
                    Some(_) | None => passes.push(pass),
                }
            }
        }
        passes
    }

    /// The services of a network, with their addresses there.
    fn services_in(&self, vni: Vni) -> BTreeMap<&ServiceId, BTreeSet<IpAddr>> {
        let Some(network) = self.network(vni) else {
            return BTreeMap::new();
        };
        let here = self
            .source
            .instances
            .iter()
            .flat_map(|instance| &instance.memberships)
            .filter(|membership| membership.vni == vni)
            .flat_map(|membership| membership.addresses());
        let elsewhere = self
            .source
            .members
            .iter()
            .filter(|member| member.vni == vni)
            .flat_map(|member| member.addresses());
        let mut services: BTreeMap<&ServiceId, BTreeSet<IpAddr>> = BTreeMap::new();
        let mut applications: BTreeSet<ApplicationSlot> = network.application.into_iter().collect();
        for address in here.chain(elsewhere) {
            let service = self.service_behind(network, address);
            if let Some(service) = service.and_then(|slot| self.service(slot)) {
                services.entry(&service.id).or_default().insert(address);
                applications.insert(service.application);
            }
        }
        for service in self.services.iter() {
            if service.described.is_some() && applications.contains(&service.application) {
                services.entry(&service.id).or_default();
            }
        }
        services
    }

    fn has_foreign_member(&self, vni: Vni) -> bool {
        self.network(vni).is_some()
            && self
                .peers()
                .any(|peer| !peer.of_site && peer.networks.contains(vni))
    }
}
