//! The one walk that decides a new flow. Total, and nothing is allowed that no step allows:
//!
//! 1. the network is known, and the destination lies in it;
//! 2. the source belongs to where the packet came from: replies go there;
//! 3. the service address answers the instances of this host by itself;
//! 4. the target is an instance here, or an address of a peer's block;
//! 5. the `outbound-access` of the source's service, only where the flow starts;
//! 6. the `inbound-access` of the target's service, where the flow arrives, and where it starts as well when the service
//!    behind the address is known there. Behind a foreign peer's addresses none is: it judges for itself.
//!
//! What the walk finds is told to a [`Witness`]. The one that forgets everything makes it [`Policy::judge`], the one that
//! keeps it [`Policy::explain`]: there is no second filter to differ from the first.

use super::policy::{NetworkEntry, Policy};
use super::rules::{Carried, Match, Party, RuleList};
use super::services::ServiceSlot;
use crate::drop::DropReason;
use crate::flow::{Answer, Arrival, Hop, Verdict};
use crate::plan::{Action, OnDeny, Vni};
use crate::responder::dns;
use crate::wire::{Endpoints, protocol};
use ipnet::IpNet;
use std::net::IpAddr;

/// What the walk finds, step by step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// The network is looked for.
    Network,
    /// The destination is outside of the network.
    Outside,
    /// Where replies go, and who is there.
    Source { hop: Hop, service: Option<ServiceSlot> },
    /// The source doesn't belong to where the packet came from.
    NoSource(DropReason),
    /// The service address is meant: what answers.
    ServiceAddress(Option<Answer>),
    /// Where the flow goes, and who is there.
    Target { hop: Hop, service: Option<ServiceSlot> },
    /// Nobody is there.
    NoTarget(DropReason),
    /// What the rules of the source's service say.
    Outbound(Option<ServiceSlot>, Ground),
    /// What the rules of the target's service say.
    Inbound(Option<ServiceSlot>, Ground),
}

/// On what ground rules allow a flow, or deny it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Ground {
    /// The flow started elsewhere, and was judged there.
    Elsewhere,
    /// No service is known at that end: it judges for itself.
    Unknown,
    /// The service has no list: every member of its networks.
    NoList,
    /// A rule.
    Rule(Match),
    /// No rule matches, and the flow stays inside the application's own network.
    OwnNetwork,
    /// No rule matches.
    NoRule,
}

impl Ground {
    pub(super) const fn allows(self) -> bool {
        match self {
            Self::Elsewhere | Self::Unknown | Self::NoList | Self::OwnNetwork => true,
            Self::Rule(Match { action, .. }) => matches!(action, Action::Allow),
            Self::NoRule => false,
        }
    }
}

/// Who watches a walk.
pub(super) trait Witness {
    /// A step was taken.
    fn see(&mut self, finding: Finding);
}

/// Watches nothing.
struct Nobody;

impl Witness for Nobody {
    fn see(&mut self, _: Finding) {}
}

impl Policy {
    /// Decides a new flow by its first packet. Total; nothing else decides.
    ///
    /// `vni` is the network that the packet is in: for a port the one whose prefix covers its destination (else the
    /// application's own), for a tunnel the one in its VXLAN header. The source must belong to where the packet came
    /// from: a live flow is judged again by its first packet, and replies go there.
    pub fn judge(&self, vni: Vni, endpoints: &Endpoints, arrival: Arrival) -> Verdict {
        self.walk(vni, endpoints, arrival, &mut Nobody)
            .unwrap_or_else(|verdict| verdict)
    }

    /// The walk. What ends it early is an `Err`.
    pub(super) fn walk(
        &self,
        vni: Vni,
        endpoints: &Endpoints,
        arrival: Arrival,
        witness: &mut impl Witness,
    ) -> Result<Verdict, Verdict> {
        witness.see(Finding::Network);
        let network = self.network(vni).ok_or(Verdict::Deny(DropReason::UnknownVni))?;
        if !network.covers(endpoints.destination) {
            witness.see(Finding::Outside);
            return Err(self.outside(network, endpoints, arrival));
        }
        let reply = self.source(vni, network, endpoints, arrival).map_err(|reason| {
            witness.see(Finding::NoSource(reason));
            Verdict::Deny(reason)
        })?;
        let source = self.party(vni, network, endpoints.source);
        witness.see(Finding::Source {
            hop: reply,
            service: source.service,
        });
        if network.is_service_address(endpoints.destination) {
            let answer = service_answer(endpoints, arrival);
            witness.see(Finding::ServiceAddress(answer));
            return Ok(answer.map_or(Verdict::Deny(DropReason::ServiceAddress), Verdict::Answer));
        }
        let original = self
            .target(network, endpoints.destination, arrival)
            .map_err(|reason| {
                witness.see(Finding::NoTarget(reason));
                Verdict::Deny(reason)
            })?;
        let target = self.party(vni, network, endpoints.destination);
        witness.see(Finding::Target {
            hop: original,
            service: target.service,
        });
        let carried = Carried::of(endpoints.protocol, endpoints.destination_port);
        let starts_here = matches!(arrival, Arrival::Port(_));
        self.permit(&source, &target, carried, starts_here, witness)?;
        Ok(Verdict::Forward { original, reply })
    }

    /// What the rules of both ends say.
    pub(super) fn permit(
        &self,
        source: &Party,
        target: &Party,
        carried: Carried,
        starts_here: bool,
        witness: &mut impl Witness,
    ) -> Result<(), Verdict> {
        let outbound = source
            .service
            .and_then(|slot| self.service(slot)?.outbound.as_ref());
        let ground = if starts_here {
            self.outbound(source, outbound, target, carried)
        } else {
            Ground::Elsewhere
        };
        witness.see(Finding::Outbound(source.service, ground));
        if !ground.allows() {
            return Err(denial(outbound, DropReason::OutboundDenied));
        }
        let service = target.service.and_then(|slot| self.service(slot));
        let inbound = service.and_then(|service| service.inbound.as_ref());
        let ground = match (service, inbound) {
            (None, _) => Ground::Unknown,
            (Some(_), None) => Ground::NoList,
            (Some(_), Some(list)) => list
                .first_match(source, carried)
                .map_or(Ground::NoRule, Ground::Rule),
        };
        witness.see(Finding::Inbound(target.service, ground));
        if !ground.allows() {
            return Err(denial(inbound, DropReason::InboundDenied));
        }
        Ok(())
    }

    fn outbound(&self, source: &Party, list: Option<&RuleList>, target: &Party, carried: Carried) -> Ground {
        let own_network = self.network(source.vni).and_then(|network| network.application);
        match (source.service, list) {
            (None, _) => Ground::Unknown,
            (Some(_), None) => Ground::NoList,
            (Some(_), Some(list)) => match list.first_match(target, carried) {
                Some(rule) => Ground::Rule(rule),
                None if own_network.is_some() && own_network == source.application => Ground::OwnNetwork,
                None => Ground::NoRule,
            },
        }
    }

    /// An address of a network, as rules see it.
    fn party(&self, vni: Vni, network: &NetworkEntry, address: IpAddr) -> Party {
        self.party_of(
            vni,
            self.service_behind(network, address),
            Some(IpNet::from(address)),
        )
    }

    /// One end of a flow, as rules see it.
    pub(super) fn party_of(&self, vni: Vni, service: Option<ServiceSlot>, prefix: Option<IpNet>) -> Party {
        Party {
            service,
            application: service.and_then(|slot| Some(self.service(slot)?.application)),
            vni,
            prefix,
        }
    }

    /// What leaves its network: nobody lets it out yet. Its sender is told so when its service wants that.
    fn outside(&self, network: &NetworkEntry, endpoints: &Endpoints, arrival: Arrival) -> Verdict {
        let port = match arrival {
            Arrival::Port(port) => self.port_slot(port),
            Arrival::Tunnel(_) => None,
        };
        let service = port
            .filter(|slot| network.instance(endpoints.source) == Some(*slot))
            .and_then(|slot| self.service(self.port(slot)?.service?));
        denial(
            service.and_then(|service| service.outbound.as_ref()),
            DropReason::OutboundDenied,
        )
    }

    /// Where replies go.
    fn source(
        &self,
        vni: Vni,
        network: &NetworkEntry,
        endpoints: &Endpoints,
        arrival: Arrival,
    ) -> Result<Hop, DropReason> {
        match arrival {
            Arrival::Port(port) => {
                let slot = self.port_slot(port).ok_or(DropReason::UnknownPort)?;
                let is_own = network.instance(endpoints.source) == Some(slot);
                is_own.then_some(Hop::Port(slot)).ok_or(DropReason::SourceNotOwn)
            }
            Arrival::Tunnel(peer) => {
                let entry = self.peer(peer).ok_or(DropReason::NoPeer)?;
                if !entry.networks.contains(vni) {
                    return Err(DropReason::NotMember);
                }
                let is_own = network.covers(endpoints.source)
                    && network.owner(endpoints.source) == Some(entry.ordinal.get());
                is_own
                    .then_some(Hop::Tunnel(peer))
                    .ok_or(DropReason::ForeignSource)
            }
        }
    }

    /// Where the flow goes. What came out of a tunnel never goes into one.
    fn target(
        &self,
        network: &NetworkEntry,
        destination: IpAddr,
        arrival: Arrival,
    ) -> Result<Hop, DropReason> {
        if let Some(slot) = network.instance(destination) {
            return Ok(Hop::Port(slot));
        }
        let ordinal = match arrival {
            Arrival::Port(_) => network.owner(destination),
            Arrival::Tunnel(_) => None,
        };
        let elsewhere = ordinal.filter(|ordinal| *ordinal != self.ordinal().get());
        let ordinal = elsewhere.ok_or(DropReason::NoInstance)?;
        network
            .peer_of(ordinal)
            .map(Hop::Tunnel)
            .ok_or(DropReason::NoPeer)
    }
}

/// What a list's denial is to its sender.
fn denial(list: Option<&RuleList>, reason: DropReason) -> Verdict {
    match list.map_or(OnDeny::Drop, |list| list.on_deny) {
        OnDeny::Drop => Verdict::Deny(reason),
        OnDeny::Reject => Verdict::Reject(reason),
    }
}

/// The service address answers the instances of this host only: it is on every host.
fn service_answer(endpoints: &Endpoints, arrival: Arrival) -> Option<Answer> {
    match (arrival, endpoints.protocol) {
        (Arrival::Tunnel(_), _) => None,
        (Arrival::Port(_), protocol::ICMP | protocol::ICMPV6) => Some(Answer::Echo),
        (Arrival::Port(_), protocol::UDP) if endpoints.destination_port == dns::PORT => {
            Some(Answer::DnsDatagram)
        }
        (Arrival::Port(_), protocol::TCP) if endpoints.destination_port == dns::PORT => {
            Some(Answer::DnsSegment)
        }
        (Arrival::Port(_), _) => None,
    }
}
