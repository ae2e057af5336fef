//! `trace`: what would become of a packet, by the very walk that the datapath's shards take. The agent compiles the plan
//! that is in force and has the judge explain itself; a datapath that is away is not needed for that.

use super::api::{FlowEndLine, NamedInstance, Trace, TraceList, TraceQuery, TraceVerdict};
use super::flows::{Known, Names, Whereabouts};
use super::{Agent, Refusal, Response, reconcile};
use std::net::IpAddr;
use std::sync::Arc;
use tidegate_stack::drop::DropReason;
use tidegate_stack::flow::{Arrival, Verdict};
use tidegate_stack::plan::{Plan, Vni};
use tidegate_stack::snapshot::{Policy, Snapshot};
use tidegate_stack::wire::{Endpoints, protocol};

/// The port that a client is given in a trace that names none: the first of the dynamic range (RFC 6335 §6).
const CLIENT_PORT: u16 = 49_152;
/// Most targets of one trace: a service of more instances is traced to the first ones.
const TARGETS: usize = 16;

impl Agent {
    /// `trace`.
    pub(super) async fn trace(&mut self, query: &TraceQuery) -> Result<Response, Refusal> {
        let snapshot = self.compiled(&self.intent)?;
        let names = self.names();
        let source = source(
            &query.from.who,
            query.application.as_deref(),
            query.tenant.as_deref(),
            &names,
        )?;
        let targets = seen_here(source, targets(query, &names, source)?)?;
        // Without a datapath the trace is what it would do.
        let live = self.live_flows().await.unwrap_or_default();
        let mut traces = Vec::new();
        for target in targets.iter().take(TARGETS) {
            let (vni, endpoints) = packet(query, source, target, snapshot.policy())?;
            let mut trace = self.explained(snapshot.policy(), source, target, vni, &endpoints, &names);
            let of_it = |flow: &&tidegate_stack::stats::FlowReport| {
                Some(flow.vni) == vni
                    && flow.packet.protocol == endpoints.protocol
                    && flow.packet.source == endpoints.source
                    && flow.packet.destination == endpoints.destination
                    && flow.packet.destination_port == endpoints.destination_port
                    && query.from.port.is_none_or(|port| port == flow.packet.source_port)
            };
            trace.live = live.iter().find(of_it).map(|flow| self.flow_line(flow, &names));
            traces.push(trace);
        }
        Ok(Response::Traces(TraceList { traces }))
    }

    /// The snapshot of an intent, as the datapath compiles it.
    pub(super) fn compiled(&self, intent: &super::Intent) -> Result<Arc<Snapshot>, Refusal> {
        self.plan_of(intent).map(|plan| Snapshot::compile(&plan, None))
    }

    /// The plan of an intent.
    pub(super) fn plan_of(&self, intent: &super::Intent) -> Result<Plan, Refusal> {
        reconcile::plan(&self.inputs(intent))
            .map_err(|errors| Refusal::of_all(errors.0.iter().map(ToString::to_string).collect()))
    }

    fn explained(
        &self,
        policy: &Policy,
        source: &Known,
        target: &Target<'_>,
        vni: Option<Vni>,
        endpoints: &Endpoints,
        names: &Names,
    ) -> Trace {
        let mut steps = Vec::new();
        let has_ports = matches!(endpoints.protocol, protocol::TCP | protocol::UDP);
        let end = |address, port, peer: Option<&str>| FlowEndLine {
            address,
            port: if has_ports { port } else { 0 },
            instance: vni
                .and_then(|vni| names.behind(vni, address))
                .cloned()
                .or_else(|| {
                    target
                        .known
                        .filter(|_| address == endpoints.destination)
                        .map(|known| known.name.clone())
                })
                .or_else(|| (address == endpoints.source).then(|| source.name.clone())),
            peer: peer.map(str::to_owned),
        };
        let verdict = match (&source.place, vni) {
            (Whereabouts::Here(port), _) => {
                let explanation = policy.explain_from_port(*port, endpoints);
                steps.extend(explanation.steps.iter().map(ToString::to_string));
                explanation.verdict
            }
            (Whereabouts::Host { peer: Some(peer), .. }, Some(vni)) => {
                let explanation = policy.explain(vni, endpoints, Arrival::Tunnel(*peer));
                steps.extend(explanation.steps.iter().map(ToString::to_string));
                explanation.verdict
            }
            (Whereabouts::Host { host, .. }, _) => {
                steps.push(format!(
                    "{} is on host {host}: nothing of it arrives here",
                    source.name
                ));
                Verdict::Deny(DropReason::NoPeer)
            }
        };
        if let (None, Some(known)) = (vni, target.known) {
            let (from, to) = (application_of(&source.name), application_of(&known.name));
            steps.insert(0, format!("{from} and {to} share no network: name one in both documents (`network.shared-application-network`)"));
        }
        let reason = match verdict {
            Verdict::Deny(reason) | Verdict::Reject(reason) => Some(reason),
            Verdict::Forward { .. } | Verdict::Answer(_) => None,
        };
        let host = |known: &Known| match &known.place {
            Whereabouts::Here(_) => None,
            Whereabouts::Host { host, .. } => Some(host.clone()),
        };
        Trace {
            network: vni.map(|vni| self.network_of(vni)),
            protocol: endpoints.protocol,
            source: end(endpoints.source, endpoints.source_port, host(source).as_deref()),
            destination: end(
                endpoints.destination,
                endpoints.destination_port,
                target.known.and_then(host).as_deref(),
            ),
            verdict: match verdict {
                Verdict::Forward { .. } => TraceVerdict::Forwarded,
                Verdict::Answer(_) => TraceVerdict::Answered,
                Verdict::Deny(_) | Verdict::Reject(_) => TraceVerdict::Denied,
            },
            rejected: matches!(verdict, Verdict::Reject(_)),
            reason: reason.map(|reason| reason.label().to_owned()),
            explanation: reason.map(|reason| reason.explanation().to_owned()),
            steps,
            live: None,
        }
    }
}

/// To whom a packet goes.
struct Target<'a> {
    /// The instance, when it is one that this host knows.
    known: Option<&'a Known>,
    /// The address that was asked for, when it was one.
    address: Option<IpAddr>,
}

fn application_of(name: &NamedInstance) -> String {
    format!("{}/{}", name.tenant, name.application)
}

/// A name's parts: tenant and application, where it has them.
struct Asked<'a> {
    tenant: Option<&'a str>,
    application: Option<&'a str>,
    name: &'a str,
}

impl<'a> Asked<'a> {
    fn of(who: &'a str, application: Option<&'a str>, tenant: Option<&'a str>) -> Result<Self, Refusal> {
        let parts: Vec<&str> = who.split('/').collect();
        let (tenant, application, name) = match parts.as_slice() {
            [name] => (tenant, application, *name),
            [application, name] => (tenant, Some(*application), *name),
            [tenant, application, name] => (Some(*tenant), Some(*application), *name),
            _ => {
                return Err(Refusal::because(format!(
                    "`{}` isn't a name: write `instance`, `application/instance` or `tenant/application/instance`",
                    who
                )));
            }
        };
        Ok(Self {
            tenant,
            application,
            name,
        })
    }

    fn means(&self, known: &Known) -> bool {
        let name = &known.name;
        (name.instance == self.name || name.service == self.name)
            && self.application.is_none_or(|wanted| wanted == name.application)
            && self.tenant.is_none_or(|wanted| wanted == name.tenant)
    }
}

/// The one instance that sends: `who`, which is looked for in an application where it names none.
pub(super) fn source<'a>(
    who: &str,
    application: Option<&str>,
    tenant: Option<&str>,
    names: &'a Names,
) -> Result<&'a Known, Refusal> {
    let found: Vec<&Known> = match who.parse::<IpAddr>() {
        Ok(address) => {
            let fits = |known: &&Known| {
                known.has(address)
                    && application.is_none_or(|wanted| wanted == known.name.application)
                    && tenant.is_none_or(|wanted| wanted == known.name.tenant)
            };
            names.iter().filter(fits).collect()
        }
        Err(_) => {
            let asked = Asked::of(who, application, tenant)?;
            names.iter().filter(|known| asked.means(known)).collect()
        }
    };
    let is_one_service = |found: &[&Known]| {
        found.windows(2).all(|pair| match pair {
            [a, b] => {
                (&a.name.tenant, &a.name.application, &a.name.service)
                    == (&b.name.tenant, &b.name.application, &b.name.service)
            }
            _ => true,
        })
    };
    match found.as_slice() {
        [] => Err(Refusal::not_found(format!(
            "no instance `{who}` is known here: `tidegate show instances` lists them"
        ))),
        // Of a service any instance will do; one of this host says more.
        found if is_one_service(found) => {
            let here = found
                .iter()
                .find(|known| matches!(known.place, Whereabouts::Here(_)));
            here.or(found.first())
                .copied()
                .ok_or_else(|| Refusal::not_found(who))
        }
        found => {
            let all: Vec<_> = found.iter().map(|known| known.name.to_string()).collect();
            Err(Refusal::because(format!(
                "`{who}` can be {}: write the full name, or give --application",
                all.join(", ")
            )))
        }
    }
}

/// Everybody whom the target means.
fn targets<'a>(query: &TraceQuery, names: &'a Names, source: &Known) -> Result<Vec<Target<'a>>, Refusal> {
    let who = &query.to.who;
    if let Ok(address) = who.parse::<IpAddr>() {
        let behind = source.networks().find_map(|vni| names.known_behind(vni, address));
        return Ok(vec![Target {
            known: behind,
            address: Some(address),
        }]);
    }
    let asked = Asked::of(who, query.application.as_deref(), query.tenant.as_deref())?;
    let means: Vec<&Known> = names.iter().filter(|known| asked.means(known)).collect();
    // A short name means the sender's own application, as it does in DNS.
    let own: Vec<&Known> = means
        .iter()
        .filter(|known| {
            asked.application.is_some() || application_of(&known.name) == application_of(&source.name)
        })
        .copied()
        .collect();
    let chosen = if own.is_empty() { means } else { own };
    if chosen.is_empty() {
        return Err(Refusal::not_found(format!(
            "no instance or service `{who}` is known here: `tidegate show instances` lists them; an address will do, too"
        )));
    }
    let target = |known| Target {
        known: Some(known),
        address: None,
    };
    Ok(chosen.into_iter().map(target).collect())
}

/// Those targets to which a packet of the source passes by this host.
fn seen_here<'a>(source: &Known, mut targets: Vec<Target<'a>>) -> Result<Vec<Target<'a>>, Refusal> {
    let Whereabouts::Host { host, .. } = &source.place else {
        return Ok(targets);
    };
    let elsewhere = |known: &Known| matches!(known.place, Whereabouts::Host { .. });
    targets.retain(|target| !target.known.is_some_and(elsewhere));
    if targets.is_empty() {
        return Err(Refusal::because(format!(
            "neither {} nor the target is on this host: ask on host {host}, where the flow would start",
            source.name
        )));
    }
    Ok(targets)
}

/// The packet that is traced, and the network that it would be in.
fn packet(
    query: &TraceQuery,
    source: &Known,
    target: &Target<'_>,
    policy: &Policy,
) -> Result<(Option<Vni>, Endpoints), Refusal> {
    let number = query.protocol.unwrap_or(match (query.to.port, query.ipv6) {
        (Some(_), _) => protocol::TCP,
        (None, false) => protocol::ICMP,
        (None, true) => protocol::ICMPV6,
    });
    let vni = match (target.address, target.known) {
        (Some(address), _) => source.networks().find(|vni| {
            policy
                .network(*vni)
                .is_some_and(|network| network.covers(address))
        }),
        (None, known) => known.and_then(|known| source.network_with(known)),
    };
    let ipv6 = match target.address {
        Some(address) => address.is_ipv6(),
        // Application networks reuse IPv4 addresses: without a network in common only IPv6 names the target.
        None => query.ipv6 || vni.is_none(),
    };
    let of = |known: &Known, vni: Option<Vni>| known.address(vni, ipv6);
    let destination = target
        .address
        .or_else(|| target.known.and_then(|known| of(known, vni)));
    let given = query
        .from
        .who
        .parse::<IpAddr>()
        .ok()
        .filter(|address| address.is_ipv6() == ipv6);
    let vni = vni.or_else(|| {
        let destination = destination?;
        let covers = |vni: &Vni| {
            policy
                .network(*vni)
                .is_some_and(|network| network.covers(destination))
        };
        source.networks().find(covers)
    });
    let from = given.or_else(|| of(source, vni));
    let (Some(from), Some(destination)) = (from, destination) else {
        return Err(Refusal::because(format!(
            "{} has no address of that family in a network with the target",
            source.name
        )));
    };
    let has_ports = matches!(number, protocol::TCP | protocol::UDP);
    let is_icmp = matches!(number, protocol::ICMP | protocol::ICMPV6);
    let number = match (is_icmp, ipv6) {
        (true, true) => protocol::ICMPV6,
        (true, false) => protocol::ICMP,
        (false, _) => number,
    };
    let client = query.from.port.unwrap_or(CLIENT_PORT);
    let endpoints = Endpoints {
        protocol: number,
        source: from,
        source_port: if has_ports || is_icmp { client } else { 0 },
        destination,
        destination_port: match (has_ports, is_icmp) {
            (true, _) => query.to.port.unwrap_or(0),
            (false, true) => client,
            (false, false) => 0,
        },
    };
    Ok((vni, endpoints))
}
