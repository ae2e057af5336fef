//! Why a flow is allowed or not, told in names: the walk of [`judge`](Policy::judge) with a witness that keeps what it
//! sees. Names and places in documents are looked up afterwards; the walk doesn't know them.

use super::judge::{Finding, Ground, Witness};
use super::policy::Policy;
use super::services::ServiceSlot;
use crate::drop::DropReason;
use crate::flow::{Answer, Arrival, Hop, Verdict};
use crate::plan::{
    Access, Action, NetworkKind, OnDeny, PeerId, PortId, ProtocolMatch, Selector, Service, ServiceId, Vni,
};
use crate::wire::Endpoints;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;

/// A verdict, and every step that led to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// What [`Policy::judge`] says about the same flow.
    pub verdict: Verdict,
    /// The steps, in their order; the last one decided.
    pub steps: Vec<Step>,
}

/// One step of the walk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The flow is in this network.
    Network(NetworkName),
    /// This host has no such network.
    UnknownNetwork {
        /// Its number.
        vni: Vni,
    },
    /// The destination lies in none of the networks that the source may use.
    Outside {
        /// The destination.
        destination: IpAddr,
    },
    /// The source belongs to where the packet came from.
    Source {
        /// Its address.
        address: IpAddr,
        /// Where it is.
        place: Place,
        /// Its service, when that is known.
        service: Option<ServiceId>,
    },
    /// It doesn't.
    SourceRefused {
        /// Its address.
        address: IpAddr,
        /// Why.
        reason: DropReason,
    },
    /// The destination is the appliance itself.
    ServiceAddress {
        /// The address.
        address: IpAddr,
        /// What answers; `None`: nothing does for this protocol, this port, or from there.
        answer: Option<Answer>,
    },
    /// The destination is known.
    Target {
        /// Its address.
        address: IpAddr,
        /// Where it is.
        place: Place,
        /// Its service, when that is known.
        service: Option<ServiceId>,
    },
    /// It isn't.
    NoTarget {
        /// Its address.
        address: IpAddr,
        /// Why.
        reason: DropReason,
    },
    /// What `outbound-access` of the source's service says.
    Outbound {
        /// The service.
        service: Option<ServiceId>,
        /// On what ground.
        basis: Basis,
    },
    /// What `inbound-access` of the target's service says.
    Inbound {
        /// The service.
        service: Option<ServiceId>,
        /// On what ground.
        basis: Basis,
    },
}

/// A network, as users know it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NetworkName {
    /// Its number.
    pub vni: Vni,
    /// What it joins.
    pub kind: NetworkKind,
    /// Its tenant.
    pub tenant: String,
    /// The application's name, or the shared network's.
    pub name: String,
}

/// Where an address is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// An instance of this host.
    Instance {
        /// Its port.
        port: PortId,
        /// Its name.
        name: String,
    },
    /// Behind a tunnel.
    Peer {
        /// The other end.
        peer: PeerId,
        /// Its name.
        name: String,
    },
}

/// A place in a document.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Citation {
    /// The document, as whoever applied it named it.
    pub document: String,
    /// The line, from 1.
    pub line: u32,
}

/// On what ground rules allow a flow, or deny it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Basis {
    /// Allowed here: the flow started elsewhere, and its outbound rules were judged there.
    Elsewhere,
    /// Allowed here: no service is known at that end; whoever it belongs to judges for itself.
    Unknown,
    /// Allowed: the service has no such list, so every member of its networks may.
    NoList,
    /// A rule says so.
    Rule {
        /// Where the list begins.
        list: Citation,
        /// The rule's line.
        line: u32,
        /// What it does.
        action: Action,
        /// Whom it means.
        other: Selector,
        /// What it means; empty: everything.
        protocols: Vec<ProtocolMatch>,
    },
    /// Allowed: no rule matches, and the flow stays inside the application's own network.
    OwnNetwork {
        /// Where the list begins.
        list: Citation,
    },
    /// Denied: no rule matches.
    NoRule {
        /// Where the list begins.
        list: Citation,
        /// What the sender hears.
        on_deny: OnDeny,
    },
}

/// Keeps what it sees.
#[derive(Default)]
struct Notes(Vec<Finding>);

impl Witness for Notes {
    fn see(&mut self, finding: Finding) {
        self.0.push(finding);
    }
}

impl Policy {
    /// Decides a new flow as [`Policy::judge`] does, and says why.
    pub fn explain(&self, vni: Vni, endpoints: &Endpoints, arrival: Arrival) -> Explanation {
        let mut notes = Notes::default();
        let verdict = self
            .walk(vni, endpoints, arrival, &mut notes)
            .unwrap_or_else(|verdict| verdict);
        let steps = notes.0.into_iter();
        Explanation {
            verdict,
            steps: steps.map(|finding| self.tell(vni, endpoints, finding)).collect(),
        }
    }

    fn tell(&self, vni: Vni, endpoints: &Endpoints, finding: Finding) -> Step {
        let Endpoints {
            source, destination, ..
        } = *endpoints;
        match finding {
            Finding::Network => self
                .network_name(vni)
                .map_or(Step::UnknownNetwork { vni }, Step::Network),
            Finding::Outside => Step::Outside { destination },
            Finding::Source { hop, service } => Step::Source {
                address: source,
                place: self.place(hop),
                service: self.service_id(service),
            },
            Finding::NoSource(reason) => Step::SourceRefused {
                address: source,
                reason,
            },
            Finding::ServiceAddress(answer) => Step::ServiceAddress {
                address: destination,
                answer,
            },
            Finding::Target { hop, service } => Step::Target {
                address: destination,
                place: self.place(hop),
                service: self.service_id(service),
            },
            Finding::NoTarget(reason) => Step::NoTarget {
                address: destination,
                reason,
            },
            Finding::Outbound(service, ground) => Step::Outbound {
                service: self.service_id(service),
                basis: self.basis(service, |service| service.outbound.as_ref(), ground),
            },
            Finding::Inbound(service, ground) => Step::Inbound {
                service: self.service_id(service),
                basis: self.basis(service, |service| service.inbound.as_ref(), ground),
            },
        }
    }

    /// A network, as users know it.
    pub fn network_name(&self, vni: Vni) -> Option<NetworkName> {
        self.network_names().find(|network| network.vni == vni)
    }

    /// All networks, as users know them.
    pub fn network_names(&self) -> impl Iterator<Item = NetworkName> {
        self.source.networks.iter().map(|network| NetworkName {
            vni: network.vni,
            kind: network.kind,
            tenant: network.tenant.clone(),
            name: network.name.clone(),
        })
    }

    fn place(&self, hop: Hop) -> Place {
        match hop {
            Hop::Port(slot) => {
                let instance = self.source.instances.get(slot.0 as usize);
                Place::Instance {
                    port: instance.map_or(PortId(u32::MAX), |instance| instance.port),
                    name: instance.map(|instance| instance.name.clone()).unwrap_or_default(),
                }
            }
            Hop::Tunnel(peer) => Place::Peer {
                peer,
                name: self.peer(peer).map(|peer| peer.name.clone()).unwrap_or_default(),
            },
        }
    }

    fn service_id(&self, slot: Option<ServiceSlot>) -> Option<ServiceId> {
        slot.and_then(|slot| Some(self.service(slot)?.id.clone()))
    }

    /// A ground with the words of the document.
    pub(super) fn basis(
        &self,
        slot: Option<ServiceSlot>,
        list: impl FnOnce(&Service) -> Option<&Access>,
        ground: Ground,
    ) -> Basis {
        let described = slot
            .and_then(|slot| self.service(slot)?.described)
            .and_then(|index| self.source.services.get(index));
        let listed = described.and_then(|service| Some((service, list(service)?)));
        let citation = |(service, access): (&Service, &Access)| Citation {
            document: service.document.clone(),
            line: access.line,
        };
        match (ground, listed) {
            (Ground::Elsewhere, _) => Basis::Elsewhere,
            (Ground::Unknown, _) => Basis::Unknown,
            (Ground::NoList, _) | (_, None) => Basis::NoList,
            (Ground::OwnNetwork, Some(listed)) => Basis::OwnNetwork {
                list: citation(listed),
            },
            (Ground::NoRule, Some(listed)) => Basis::NoRule {
                list: citation(listed),
                on_deny: listed.1.on_deny,
            },
            (Ground::Rule(matched), Some(listed)) => {
                let rule = listed.1.rules.get(matched.rule as usize);
                Basis::Rule {
                    list: citation(listed),
                    line: rule.map_or(listed.1.line, |rule| rule.line),
                    action: matched.action,
                    other: rule.map_or(Selector::Any, |rule| rule.other.clone()),
                    protocols: rule.map(|rule| rule.protocols.clone()).unwrap_or_default(),
                }
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => write!(formatter, "network {network}"),
            Self::UnknownNetwork { vni } => write!(formatter, "no network here has VNI {vni}"),
            Self::Outside { destination } => {
                write!(formatter, "{destination} is in none of the source's networks")
            }
            Self::Source {
                address,
                place,
                service,
            } => {
                write!(formatter, "from {address}: {place}, {}", Named(service))
            }
            Self::SourceRefused { address, reason } => {
                write!(formatter, "from {address}: {}", refused(*reason))
            }
            Self::ServiceAddress { address, answer } => {
                let answer = match answer {
                    Some(Answer::Echo) => "which answers pings",
                    Some(Answer::DnsDatagram | Answer::DnsSegment) => "which answers DNS",
                    None => "where nothing answers this",
                };
                write!(formatter, "to {address}: the service address, {answer}")
            }
            Self::Target {
                address,
                place,
                service,
            } => {
                write!(formatter, "to {address}: {place}, {}", Named(service))
            }
            Self::NoTarget { address, reason } => {
                write!(formatter, "to {address}: {}", refused(*reason))
            }
            Self::Outbound { service, basis } => describe(formatter, "outbound", service.as_ref(), basis),
            Self::Inbound { service, basis } => describe(formatter, "inbound", service.as_ref(), basis),
        }
    }
}

/// One line about what a list says, as `inbound-access of acme/shop/db (shop.yaml:14): rule in line 16 allows tcp 5432
/// from service acme/shop/web`.
fn describe(
    formatter: &mut fmt::Formatter<'_>,
    direction: &str,
    service: Option<&ServiceId>,
    basis: &Basis,
) -> fmt::Result {
    write!(formatter, "{direction}-access")?;
    if let Some(service) = service {
        write!(formatter, " of {service}")?;
    }
    match basis {
        Basis::Elsewhere => formatter.write_str(": judged where the flow started"),
        Basis::Unknown => formatter.write_str(": no service is known there, which judges for itself"),
        Basis::NoList => formatter.write_str(": no rules, every member of its networks may"),
        Basis::OwnNetwork { list } => {
            write!(
                formatter,
                " ({list}): no rule matches, allowed inside the application's own network"
            )
        }
        Basis::NoRule { list, .. } => write!(formatter, " ({list}): no rule matches, denied"),
        Basis::Rule {
            list,
            line,
            action,
            other,
            protocols,
        } => {
            let action = match action {
                Action::Allow => "allows",
                Action::Deny => "denies",
            };
            let toward = if direction == "inbound" { "from" } else { "to" };
            write!(formatter, " ({list}): rule in line {line} {action} ")?;
            if protocols.is_empty() {
                formatter.write_str("everything")?;
            }
            for (index, protocol) in protocols.iter().enumerate() {
                let separator = if index == 0 { "" } else { ", " };
                write!(formatter, "{separator}{protocol}")?;
            }
            write!(formatter, " {toward} {other}")
        }
    }
}

/// Why a source or a target is refused, in the words of this flow.
fn refused(reason: DropReason) -> &'static str {
    match reason {
        DropReason::SourceNotOwn => "not an address of the instance that sent it",
        DropReason::UnknownPort => "no instance is attached to that port",
        DropReason::NotMember => "the peer that sent it is no member of the network",
        DropReason::ForeignSource => "not in the block of the peer that sent it",
        DropReason::NoPeer => "no peer has that block",
        DropReason::NoInstance => "no instance has that address",
        other => other.explanation(),
    }
}

/// A service, or that there is none.
struct Named<'a>(&'a Option<ServiceId>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(service) => write!(formatter, "service {service}"),
            None => formatter.write_str("of no known service"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instance { name, .. } => write!(formatter, "{name} here"),
            Self::Peer { name, .. } => write!(formatter, "behind peer {name}"),
        }
    }
}

impl fmt::Display for Citation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.document, self.line)
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            NetworkKind::Application => "of application",
            NetworkKind::Shared => "shared as",
        };
        write!(
            formatter,
            "{kind} {}/{} (VNI {})",
            self.tenant, self.name, self.vni
        )
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(formatter, "{step}")?;
        }
        match self.verdict {
            Verdict::Forward { .. } => formatter.write_str("allowed"),
            Verdict::Answer(_) => formatter.write_str("answered by the appliance"),
            Verdict::Deny(reason) => write!(formatter, "dropped: {}", reason.label()),
            Verdict::Reject(reason) => {
                write!(formatter, "refused, and the sender told so: {}", reason.label())
            }
        }
    }
}
