//! What a host of a lab would do with a packet, as its own agent explains it: what policy denies, nobody waits for.

use super::Error;
use super::build::Attached;
use super::state::HostFiles;
use crate::agent::api::{Request, Response, Trace, TraceEnd, TraceQuery, TraceVerdict};
use crate::cli::client::AgentClient;
use std::net::IpAddr;
use tidegate_stack::drop::DropReason;

/// What would become of a packet from an instance to an address: a ping, or with a port a TCP connection.
///
/// # Errors
/// When the agent of its host doesn't tell.
pub(super) fn of(lab: &str, from: &Attached, to: IpAddr, port: Option<u16>) -> Result<Trace, Error> {
    let instance = &from.instance;
    let query = TraceQuery {
        from: TraceEnd {
            who: format!(
                "{}/{}/{}-{}",
                instance.tenant, instance.application, instance.service, instance.number
            ),
            port: None,
        },
        to: TraceEnd {
            who: to.to_string(),
            port,
        },
        protocol: None,
        application: None,
        tenant: None,
        ipv6: to.is_ipv6(),
    };
    let refused = |error: anyhow::Error| Error::Refused(format!("asking host {}: {error:#}", instance.host));
    let socket = HostFiles::of(lab, &instance.host).run().join("agent.sock");
    let agent = AgentClient::connect(&socket).map_err(refused)?;
    match agent.ask(&Request::Trace { query }, &[]).map_err(refused)? {
        Response::Traces(list) => list.traces.into_iter().next().ok_or_else(|| {
            Error::Refused(format!(
                "host {} told nothing about a packet to {to}",
                instance.host
            ))
        }),
        other => Err(refused(AgentClient::unexpected(&other))),
    }
}

/// Whether a rule of a document denies it.
pub(super) fn is_denied_by_a_rule(trace: &Trace) -> bool {
    let by_rule = [DropReason::InboundDenied, DropReason::OutboundDenied].map(DropReason::label);
    trace.verdict == TraceVerdict::Denied
        && trace
            .reason
            .as_ref()
            .is_some_and(|reason| by_rule.contains(&reason.as_str()))
}
