//! `policy diff` and `graph`: who may talk to whom, now and after documents that aren't applied yet. Both ask the compiled
//! policy itself.

use super::api::{
    CutFlow, DEFAULT, Graph, GraphEdge, GraphInstance, GraphNetwork, GraphService, PolicyDiff,
    PolicyDiffQuery,
};
use super::applications::parse_all;
use super::flows::{Names, Whereabouts};
use super::reconcile::ApplicationKey;
use super::{Agent, Intent, Refusal, Response};
use std::collections::{BTreeMap, BTreeSet};
use tidegate_stack::flow::{Arrival, Verdict};
use tidegate_stack::plan::{NetworkKind, Plan, PortRange, Service};
use tidegate_stack::snapshot::{Basis, Carrier, Change, Edges, End, NetworkName, Passage, Policy, Snapshot};
use tidegate_stack::stats::{FlowEnd, FlowReport};
use tidegate_stack::wire::Endpoints;

/// Most flows that `policy diff` lists as cut.
const CUT: usize = 1000;

impl Agent {
    /// `policy diff`.
    pub(super) async fn policy_diff(&mut self, query: PolicyDiffQuery) -> Result<Response, Refusal> {
        let parsed = parse_all(&query.documents).map_err(Refusal::of_all)?;
        let mut intent: Intent = self.intent.clone();
        for document in parsed {
            intent
                .applications
                .insert(ApplicationKey::of(&document), document);
        }
        let now = Snapshot::compile(&self.plan_of(&self.intent)?, None);
        let plan = self.plan_of(&intent)?;
        let then = Snapshot::compile(&plan, None);
        let difference = Edges::difference(now.policy(), then.policy());
        let edges = |changes: &[Change], why: &dyn Fn(&Change) -> Vec<String>| {
            let mut edges: Vec<GraphEdge> = Vec::new();
            for change in changes {
                let passes = passes(change.carrier, &change.ports);
                let edge = GraphEdge {
                    network: network_name(&change.network),
                    from: end_name(&change.from),
                    to: end_name(&change.to),
                    passes: vec![passes],
                    why: why(change),
                };
                match edges.last_mut() {
                    Some(last) if is_between_the_same(last, &edge) => last.passes.extend(edge.passes),
                    _ => edges.push(edge),
                }
            }
            for edge in &mut edges {
                edge.passes = summary(std::mem::take(&mut edge.passes));
            }
            edges
        };
        let allowing = then.policy().edges();
        let newly_allowed = edges(&difference.allowed, &|change| grounds_of(&allowing, change));
        let newly_denied = edges(&difference.denied, &|change| lists_of(&plan, change));

        let live = self.live_flows().await?;
        let names = self.names();
        let mut cut = Vec::new();
        let mut kept = 0;
        for flow in &live {
            match becomes(then.policy(), flow) {
                None => kept += 1,
                Some((reason, because)) => cut.push(CutFlow {
                    flow: self.flow_line(flow, &names),
                    reason,
                    because,
                }),
            }
        }
        let more_cut = cut.len().saturating_sub(CUT) as u64;
        cut.truncate(CUT);
        Ok(Response::PolicyDiff(Box::new(PolicyDiff {
            cut,
            more_cut,
            kept,
            newly_allowed,
            newly_denied,
        })))
    }

    /// `graph`.
    pub(super) fn graph(&self) -> Result<Response, Refusal> {
        let plan = self.plan_of(&self.intent)?;
        let snapshot = Snapshot::compile(&plan, None);
        let names = self.names();
        let services = self.graph_services(&plan, &names);
        let networks = plan.networks.iter().map(|network| {
            let name = format!("{}/{}", network.tenant, network.name);
            let applications = match network.kind {
                NetworkKind::Application => vec![name.clone()],
                NetworkKind::Shared => {
                    let here = self.members_of(network);
                    let elsewhere = names
                        .iter()
                        .filter(|known| known.networks().any(|vni| vni == network.vni));
                    let elsewhere =
                        elsewhere.map(|known| format!("{}/{}", known.name.tenant, known.name.application));
                    let all: BTreeSet<String> = here.into_iter().chain(elsewhere).collect();
                    all.into_iter().collect()
                }
            };
            GraphNetwork {
                name,
                shared: network.kind == NetworkKind::Shared,
                applications,
            }
        });
        let mut networks: Vec<GraphNetwork> = networks.collect();
        networks.sort_by(|a, b| (a.shared, &a.name).cmp(&(b.shared, &b.name)));
        let edges = snapshot.policy().edges().edges.into_iter().map(|edge| GraphEdge {
            network: network_name(&edge.network),
            from: end_name(&edge.from),
            to: end_name(&edge.to),
            passes: summary(
                edge.passages
                    .iter()
                    .map(|passage| passes(passage.carrier, &passage.ports))
                    .collect(),
            ),
            why: grounds(&edge.passages),
        });
        let mut edges: Vec<GraphEdge> = edges.collect();
        edges.sort();
        Ok(Response::Graph(Graph {
            networks,
            services,
            edges,
        }))
    }

    fn graph_services(&self, plan: &Plan, names: &Names) -> Vec<GraphService> {
        let mut services: BTreeMap<(String, String), Vec<GraphInstance>> = BTreeMap::new();
        for (key, document) in &self.intent.applications {
            for service in &document.services {
                services
                    .entry((key.to_string(), service.name.clone()))
                    .or_default();
            }
        }
        for known in names.iter() {
            let name = &known.name;
            let application = format!("{}/{}", name.tenant, name.application);
            let host = match &known.place {
                Whereabouts::Here(_) => self.host.host_id.clone(),
                Whereabouts::Host { host, .. } => host.clone(),
            };
            let instances = services.entry((application, name.service.clone())).or_default();
            instances.push(GraphInstance {
                instance: name.instance.clone(),
                host,
                addresses: known.addresses(),
            });
        }
        let described = |application: &str, service: &str| {
            plan.services.iter().find(|described| {
                let id = &described.id;
                format!("{}/{}", id.tenant, id.application) == application && id.service == service
            })
        };
        services
            .into_iter()
            .map(|((application, service), mut instances)| {
                instances.sort();
                let described = described(&application, &service);
                let place = |list: fn(&Service) -> Option<u32>| {
                    let described = described?;
                    Some(format!("{}:{}", described.document, list(described)?))
                };
                GraphService {
                    inbound: place(|service| Some(service.inbound.as_ref()?.line)),
                    outbound: place(|service| Some(service.outbound.as_ref()?.line)),
                    application,
                    service,
                    instances,
                }
            })
            .collect()
    }
}

/// What ends a live flow under a policy: the reason, and the step that decides; `None`: it goes on.
fn becomes(policy: &Policy, flow: &FlowReport) -> Option<(String, String)> {
    let packet = &flow.packet;
    let endpoints = Endpoints {
        protocol: packet.protocol,
        source: packet.source,
        source_port: packet.source_port,
        destination: packet.destination,
        destination_port: packet.destination_port,
    };
    let arrival = match flow.origin {
        FlowEnd::Port(port) => Arrival::Port(port?),
        FlowEnd::Peer(peer) => Arrival::Tunnel(peer),
    };
    let explanation = policy.explain(flow.vni, &endpoints, arrival);
    let reason = match explanation.verdict {
        Verdict::Forward { .. } | Verdict::Answer(_) => return None,
        Verdict::Deny(reason) | Verdict::Reject(reason) => reason,
    };
    let because = explanation.steps.last().map(ToString::to_string);
    Some((reason.label().to_owned(), because.unwrap_or_default()))
}

fn is_between_the_same(a: &GraphEdge, b: &GraphEdge) -> bool {
    (&a.network, &a.from, &a.to, &a.why) == (&b.network, &b.from, &b.to, &b.why)
}

fn network_name(network: &NetworkName) -> String {
    format!("{}/{}", network.tenant, network.name)
}

fn end_name(end: &End) -> String {
    match end {
        End::Service { service, addresses } => {
            let name = format!("{}/{}/{}", service.tenant, service.application, service.service);
            let listed: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            match listed.is_empty() {
                true => name,
                false => format!("{name} at {}", listed.join(", ")),
            }
        }
        End::Prefix(prefix) => prefix.to_string(),
        End::Others => "any".to_owned(),
    }
}

/// `tcp 80,443,8000-8100`; only the protocol where all of it may.
fn passes(carrier: Carrier, ports: &[PortRange]) -> String {
    let all = ports
        .iter()
        .any(|range| range.first <= 1 && range.last == u16::MAX);
    if ports.is_empty() || all {
        return carrier.to_string();
    }
    let range = |range: &PortRange| match range.first == range.last {
        true => range.first.to_string(),
        false => format!("{}-{}", range.first, range.last),
    };
    let ranges: Vec<_> = ports.iter().map(range).collect();
    format!("{carrier} {}", ranges.join(","))
}

/// One word where everything may.
fn summary(mut passes: Vec<String>) -> Vec<String> {
    let everything =
        [Carrier::Tcp, Carrier::Udp, Carrier::Icmp, Carrier::Other].map(|carrier| carrier.to_string());
    if everything.iter().all(|carrier| passes.contains(carrier)) {
        return vec!["everything".to_owned()];
    }
    passes.sort();
    passes.dedup();
    passes
}

/// The places of the rules that allow.
fn grounds(passages: &[Passage]) -> Vec<String> {
    let mut places: BTreeSet<String> = BTreeSet::new();
    for passage in passages {
        places.extend(
            [&passage.outbound, &passage.inbound]
                .into_iter()
                .filter_map(place),
        );
    }
    match places.is_empty() {
        true => vec![DEFAULT.to_owned()],
        false => places.into_iter().collect(),
    }
}

fn place(basis: &Basis) -> Option<String> {
    match basis {
        Basis::Rule { list, line, .. } => Some(format!("{}:{line}", list.document)),
        Basis::Elsewhere
        | Basis::Unknown
        | Basis::NoList
        | Basis::OwnNetwork { .. }
        | Basis::NoRule { .. } => None,
    }
}

/// Why what is newly allowed may pass.
fn grounds_of(edges: &Edges, change: &Change) -> Vec<String> {
    let edge = edges
        .edges
        .iter()
        .find(|edge| edge.network == change.network && edge.from == change.from && edge.to == change.to);
    let passages: Vec<Passage> = edge
        .into_iter()
        .flat_map(|edge| &edge.passages)
        .filter(|passage| passage.carrier == change.carrier)
        .cloned()
        .collect();
    grounds(&passages)
}

/// The lists that no longer allow what is newly denied; none: the network itself is gone for one of the two.
fn lists_of(plan: &Plan, change: &Change) -> Vec<String> {
    let described = |end: &End| match end {
        End::Service { service, .. } => plan.services.iter().find(|described| described.id == *service),
        End::Prefix(_) | End::Others => None,
    };
    let inbound = described(&change.to)
        .and_then(|service| Some(format!("{}:{}", service.document, service.inbound.as_ref()?.line)));
    let outbound = described(&change.from).and_then(|service| {
        Some(format!(
            "{}:{}",
            service.document,
            service.outbound.as_ref()?.line
        ))
    });
    let lists: Vec<String> = inbound.into_iter().chain(outbound).collect();
    match lists.is_empty() {
        true => vec!["no network in common".to_owned()],
        false => lists,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_told_as_documents_write_it() {
        let range = |first, last| PortRange { first, last };
        assert_eq!(
            passes(Carrier::Tcp, &[range(80, 80), range(8000, 8100)]),
            "tcp 80,8000-8100"
        );
        assert_eq!(passes(Carrier::Udp, &[range(0, u16::MAX)]), "udp");
        assert_eq!(passes(Carrier::Icmp, &[]), "icmp");
        let all = ["tcp", "udp", "icmp", "other protocols"].map(str::to_owned);
        assert_eq!(summary(all.to_vec()), ["everything"]);
    }
}
