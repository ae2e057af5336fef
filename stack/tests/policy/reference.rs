//! The filter once more, as short as it can be said: it walks the plan itself, rule by rule.

use crate::routes;
use std::net::IpAddr;
use tidegate_stack::drop::DropReason::{InboundDenied, OutboundDenied, UnknownVni};
use tidegate_stack::flow::Arrival;
use tidegate_stack::flow::Verdict::{self, Deny, Forward, Reject};
use tidegate_stack::plan::{Access, Action, OnDeny, Plan, ProtocolMatch, Selector};
use tidegate_stack::plan::{Rule, ServiceId, Vni};
use tidegate_stack::wire::Endpoints;

pub(crate) fn judge(plan: &Plan, vni: Vni, e: &Endpoints, arrival: Arrival) -> Result<Verdict, Verdict> {
    let network = plan.network(vni).ok_or(Deny(UnknownVni))?;
    let reply = routes::reply(plan, network, e.source, arrival);
    let [from, to] = [e.source, e.destination].map(|address| routes::service_at(plan, vni, address));
    let described = |id: &Option<ServiceId>| plan.services.iter().find(|s| Some(&s.id) == id.as_ref());
    let starts_here = matches!(arrival, Arrival::Port(_)) && reply.is_ok();
    let outbound = described(&from)
        .and_then(|service| service.outbound.as_ref())
        .filter(|_| starts_here);
    let inbound = described(&to).and_then(|service| service.inbound.as_ref());
    let denied = |list: Option<&Access>, reason| match list.map_or(OnDeny::Drop, |list| list.on_deny) {
        OnDeny::Reject => Reject(reason),
        OnDeny::Drop => Deny(reason),
    };
    if !routes::prefix_holds(network, e.destination) {
        return Err(denied(outbound, OutboundDenied));
    }
    let reply = reply.map_err(Deny)?;
    let original = routes::original(plan, network, e, arrival)?;
    let own = routes::is_own_network(network, &from);
    let allows = |list: &Access, other, address, otherwise| {
        let first = list
            .rules
            .iter()
            .find(|rule| matches(rule, vni, other, address, e));
        first.map_or(otherwise, |rule| rule.action == Action::Allow)
    };
    if outbound.is_some_and(|list| !allows(list, &to, e.destination, own)) {
        return Err(denied(outbound, OutboundDenied));
    }
    if inbound.is_some_and(|list| !allows(list, &from, e.source, false)) {
        return Err(denied(inbound, InboundDenied));
    }
    Ok(Forward { original, reply })
}

/// Whether a rule means a flow with this party at its other end.
pub(crate) fn matches(rule: &Rule, vni: Vni, other: &Option<ServiceId>, at: IpAddr, e: &Endpoints) -> bool {
    let port = e.destination_port;
    let carries = |protocol: &ProtocolMatch| match (protocol, e.protocol) {
        (ProtocolMatch::Tcp(ranges), 6) | (ProtocolMatch::Udp(ranges), 17) => {
            ranges.is_empty()
                || ranges
                    .iter()
                    .any(|range| (range.first..=range.last).contains(&port))
        }
        (ProtocolMatch::Icmp, 1 | 58) => true,
        _ => false,
    };
    let is_meant = match &rule.other {
        Selector::Any => true,
        Selector::Network(of) => *of == vni,
        Selector::Prefix(prefix) => prefix.contains(&at),
        Selector::Service(id) => other.as_ref() == Some(id),
        Selector::Application { tenant, application } => other
            .as_ref()
            .is_some_and(|id| (tenant, application) == (&id.tenant, &id.application)),
    };
    is_meant && (rule.protocols.is_empty() || rule.protocols.iter().any(carries))
}
