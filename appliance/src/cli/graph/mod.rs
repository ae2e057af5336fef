//! `graph`: who may talk to whom, and why, as text, JSON, a drawing, or for Graphviz.

mod dot;
mod drawing;
mod layout;

use super::Places;
use super::client::AgentClient;
use super::output::{self, Form};
use crate::agent::api::{Graph, GraphEdge, GraphService, Request, Response};
use clap::Args;

/// Arguments of `graph`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tidegate graph\n  tidegate graph -o svg > site.svg\n  tidegate graph -o dot | dot -Tpdf > site.pdf"
)]
pub(crate) struct GraphVerb {
    /// This application's services alone, and whoever may reach them or is reached.
    #[arg(long)]
    application: Option<String>,
    /// Its tenant.
    #[arg(long, requires = "application")]
    tenant: Option<String>,
}

/// Prints who may talk to whom.
pub(crate) fn graph(places: &Places, form: Form, arguments: &GraphVerb) -> anyhow::Result<()> {
    let Response::Graph(graph) = AgentClient::connect(&places.agent_socket())?.ask(&Request::Graph, &[])?
    else {
        anyhow::bail!("the agent answered another question: are `tidegate` and the agent of one version?");
    };
    let graph = arguments.part_of(graph);
    match form {
        Form::Dot => output::write_line(&dot::render(&graph)),
        Form::Svg => output::write_line(&drawing::render(&graph)),
        Form::Text | Form::Json | Form::Yaml => output::print(form, &graph, render),
    }
}

impl GraphVerb {
    fn part_of(&self, graph: Graph) -> Graph {
        let Some(application) = &self.application else {
            return graph;
        };
        let is_meant = |name: &str| {
            name.split_once('/').is_some_and(|(tenant, rest)| {
                rest.split('/').next() == Some(application)
                    && self.tenant.as_ref().is_none_or(|wanted| wanted == tenant)
            })
        };
        let edges: Vec<_> = graph
            .edges
            .into_iter()
            .filter(|edge| is_meant(&edge.from) || is_meant(&edge.to))
            .collect();
        let services: Vec<_> = graph
            .services
            .into_iter()
            .filter(|service| {
                let name = full_name(service);
                is_meant(&service.application)
                    || edges.iter().any(|edge| edge.from == name || edge.to == name)
            })
            .collect();
        let networks = graph.networks.into_iter().filter(|network| {
            network.applications.iter().any(|name| is_meant(name))
                || services.iter().any(|service| service.application == network.name)
        });
        Graph {
            networks: networks.collect(),
            services,
            edges,
        }
    }
}

/// How edges name a service.
pub(super) fn full_name(service: &GraphService) -> String {
    format!("{}/{}", service.application, service.service)
}

/// For people: every network, its services, and who may reach each of them.
fn render(graph: &Graph) -> String {
    if graph.networks.is_empty() {
        return "no application is in force here: `tidegate apply` a document first".to_owned();
    }
    let mut text = String::new();
    for network in &graph.networks {
        if !text.is_empty() {
            text.push('\n');
        }
        let kind = if network.shared {
            "shared network"
        } else {
            "application"
        };
        text.push_str(&format!("{kind} {}", network.name));
        if network.shared {
            text.push_str(&format!(", joined by {}", network.applications.join(", ")));
        }
        text.push('\n');
        let members = graph
            .services
            .iter()
            .filter(|service| network.applications.contains(&service.application));
        for service in members {
            text.push_str(&render_service(graph, &network.name, network.shared, service));
        }
    }
    text
}

fn render_service(graph: &Graph, network: &str, shared: bool, service: &GraphService) -> String {
    let name = full_name(service);
    let shown = if shared { &name } else { &service.service };
    let instances = match service.instances.len() {
        0 => "no instance".to_owned(),
        1 => "1 instance".to_owned(),
        count => format!("{count} instances"),
    };
    let who = match (&service.inbound, &service.outbound) {
        (None, None) => "every member may reach it".to_owned(),
        (Some(place), None) => format!("inbound-access at {place}"),
        (None, Some(place)) => format!("every member may reach it; outbound-access at {place}"),
        (Some(inbound), Some(outbound)) => {
            format!("inbound-access at {inbound}, outbound-access at {outbound}")
        }
    };
    let mut text = format!("  {shown:<24} {instances:<14} {who}\n");
    let into: Vec<&GraphEdge> = graph
        .edges
        .iter()
        .filter(|edge| edge.network == network && edge.to == name && !edge.is_default())
        .collect();
    for edge in &into {
        let from = edge
            .from
            .strip_prefix(&format!("{network}/"))
            .unwrap_or(&edge.from);
        text.push_str(&format!(
            "    ← {from:<20} {:<24} {}\n",
            edge.passes.join(", "),
            edge.why.join(", ")
        ));
    }
    if into.is_empty() && service.inbound.is_some() {
        text.push_str("    ← nobody\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::api::{DEFAULT, GraphInstance, GraphNetwork};

    pub(super) fn shop() -> Graph {
        let service = |application: &str, service: &str, inbound: Option<&str>| GraphService {
            application: application.to_owned(),
            service: service.to_owned(),
            instances: vec![GraphInstance {
                instance: format!("{service}-1"),
                host: "edge-1".to_owned(),
                addresses: vec!["172.19.1.2".parse().unwrap()],
            }],
            inbound: inbound.map(str::to_owned),
            outbound: None,
        };
        let network = |name: &str, shared, applications: &[&str]| GraphNetwork {
            name: name.to_owned(),
            shared,
            applications: applications.iter().map(|name| (*name).to_owned()).collect(),
        };
        let edge = |network: &str, from: &str, to: &str, passes: &str, why: &str| GraphEdge {
            network: network.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
            passes: vec![passes.to_owned()],
            why: vec![why.to_owned()],
        };
        Graph {
            networks: vec![
                network("acme/historian", false, &["acme/historian"]),
                network("acme/shop", false, &["acme/shop"]),
                network("acme/floor-data", true, &["acme/historian", "acme/shop"]),
            ],
            services: vec![
                service("acme/historian", "store", Some("historian.yaml:4")),
                service("acme/shop", "db", Some("shop.yaml:9")),
                service("acme/shop", "web", None),
            ],
            edges: vec![
                edge(
                    "acme/shop",
                    "acme/shop/web",
                    "acme/shop/db",
                    "tcp 5432",
                    "shop.yaml:11",
                ),
                edge(
                    "acme/shop",
                    "acme/shop/db",
                    "acme/shop/web",
                    "everything",
                    DEFAULT,
                ),
                edge(
                    "acme/floor-data",
                    "acme/shop/web",
                    "acme/historian/store",
                    "tcp 8086",
                    "historian.yaml:6",
                ),
                edge(
                    "acme/floor-data",
                    "acme/historian/store",
                    "acme/shop/web",
                    "everything",
                    DEFAULT,
                ),
            ],
        }
    }

    #[test]
    fn text_tells_who_may_reach_a_guarded_service_and_where_it_is_written() {
        let text = render(&shop());
        let line = text.lines().find(|line| line.contains("← web")).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words, ["←", "web", "tcp", "5432", "shop.yaml:11"]);
        assert!(text.contains("shared network acme/floor-data, joined by acme/historian, acme/shop"));
        assert!(!text.contains("everything"), "defaults go without saying: {text}");
    }

    #[test]
    fn a_part_is_an_application_and_its_neighbours() {
        let part = |application: &str| {
            let verb = GraphVerb {
                application: Some(application.to_owned()),
                tenant: None,
            };
            verb.part_of(shop())
        };
        assert_eq!(
            part("historian").services.len(),
            2,
            "db neither reaches it nor is reached"
        );
        assert_eq!(part("shop").services.len(), 3);
        assert!(part("nothing").services.is_empty());
    }
}
