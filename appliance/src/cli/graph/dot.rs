//! For Graphviz: a cluster for each application, an arrow for each edge that isn't everybody's.

use super::full_name;
use crate::agent::api::Graph;

/// The graph in the DOT language.
pub(super) fn render(graph: &Graph) -> String {
    let mut text = String::from(
        "digraph tidegate {\n  rankdir=LR;\n  node [shape=box, style=rounded, fontname=\"sans-serif\"];\n  edge [fontname=\"sans-serif\", fontsize=10];\n",
    );
    for (number, network) in graph
        .networks
        .iter()
        .filter(|network| !network.shared)
        .enumerate()
    {
        text.push_str(&format!(
            "  subgraph cluster_{number} {{\n    label={};\n",
            quoted(&network.name)
        ));
        let own = graph
            .services
            .iter()
            .filter(|service| service.application == network.name);
        for service in own {
            let guarded = if service.inbound.is_some() {
                ", penwidth=2"
            } else {
                ""
            };
            text.push_str(&format!(
                "    {} [label={}{guarded}];\n",
                quoted(&full_name(service)),
                quoted(&format!(
                    "{}\\n{} instance(s)",
                    service.service,
                    service.instances.len()
                ))
            ));
        }
        text.push_str("  }\n");
    }
    for network in graph.networks.iter().filter(|network| network.shared) {
        text.push_str(&format!(
            "  {} [shape=hexagon, label={}];\n",
            quoted(&network.name),
            quoted(&network.name)
        ));
        let members = graph
            .services
            .iter()
            .filter(|service| network.applications.contains(&service.application));
        for service in members {
            text.push_str(&format!(
                "  {} -> {} [dir=none, style=dashed, color=gray];\n",
                quoted(&full_name(service)),
                quoted(&network.name)
            ));
        }
    }
    for edge in graph.edges.iter().filter(|edge| !edge.is_default()) {
        text.push_str(&format!(
            "  {} -> {} [label={}, tooltip={}];\n",
            quoted(&edge.from),
            quoted(&edge.to),
            quoted(&edge.passes.join(", ")),
            quoted(&edge.why.join(", "))
        ));
    }
    text.push_str("}\n");
    text
}

/// A quoted identifier; a backslash that makes a line break stays.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::super::tests::shop;
    use super::*;

    #[test]
    fn services_are_in_the_cluster_of_their_application() {
        let text = render(&shop());
        assert_eq!(text.matches("subgraph cluster_").count(), 2);
        assert!(text.contains(
            "\"acme/shop/web\" -> \"acme/shop/db\" [label=\"tcp 5432\", tooltip=\"shop.yaml:11\"];"
        ));
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }
}
