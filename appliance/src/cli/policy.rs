//! `policy diff`: what documents would change, before they are applied.

use super::Places;
use super::client::AgentClient;
use super::documents::read_documents;
use super::flows::{protocol_name, render_end};
use super::output::{self, Form};
use crate::agent::api::{GraphEdge, PolicyDiff, PolicyDiffQuery, Request, Response};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Arguments of `policy`.
#[derive(Debug, Args)]
pub(crate) struct PolicyVerb {
    #[command(subcommand)]
    verb: PolicySubverb,
}

#[derive(Debug, Subcommand)]
enum PolicySubverb {
    /// Lists the live flows that documents would cut, and what they would newly allow and deny. Changes nothing.
    #[command(after_help = "Example:\n  tidegate policy diff shop.yaml")]
    Diff {
        /// Application documents, as `apply` takes them; `-` is standard input.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

/// Does what `policy` is asked for.
pub(crate) fn policy(places: &Places, form: Form, arguments: &PolicyVerb) -> anyhow::Result<()> {
    let PolicySubverb::Diff { files } = &arguments.verb;
    let query = PolicyDiffQuery {
        documents: read_documents(files)?,
    };
    match AgentClient::connect(&places.agent_socket())?.ask(&Request::PolicyDiff { query }, &[])? {
        Response::PolicyDiff(diff) => output::print(form, &*diff, render),
        other => Err(AgentClient::unexpected(&other)),
    }
}

fn render(diff: &PolicyDiff) -> String {
    let mut text = String::new();
    if diff.newly_allowed.is_empty() && diff.newly_denied.is_empty() {
        text.push_str("nothing is newly allowed, nothing newly denied\n");
    }
    for edge in &diff.newly_allowed {
        text.push_str(&render_edge('+', edge));
    }
    for edge in &diff.newly_denied {
        text.push_str(&render_edge('-', edge));
    }
    if diff.cut.is_empty() {
        text.push_str(&format!("no live flow would be cut; {} would go on\n", diff.kept));
        return text;
    }
    text.push_str(&format!(
        "{} live flow(s) would be cut, {} would go on:\n",
        diff.cut.len() as u64 + diff.more_cut,
        diff.kept
    ));
    for cut in &diff.cut {
        let flow = &cut.flow;
        text.push_str(&format!(
            "  ✗ {} {} → {} ({}: {})\n",
            protocol_name(flow.protocol),
            render_end(&flow.source),
            render_end(&flow.destination),
            cut.reason,
            cut.because
        ));
    }
    text
}

fn render_edge(sign: char, edge: &GraphEdge) -> String {
    format!(
        "{sign} {} → {} in {}: {} ({})\n",
        edge.from,
        edge.to,
        edge.network,
        edge.passes.join(", "),
        edge.why.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_is_told_with_its_sign_and_its_rule() {
        let edge = |from: &str, passes: &str, why: &str| GraphEdge {
            network: "acme/shop".to_owned(),
            from: from.to_owned(),
            to: "acme/shop/db".to_owned(),
            passes: vec![passes.to_owned()],
            why: vec![why.to_owned()],
        };
        let diff = PolicyDiff {
            cut: Vec::new(),
            more_cut: 0,
            kept: 3,
            newly_allowed: vec![edge("acme/shop/api", "tcp 5432", "shop.yaml:11")],
            newly_denied: vec![edge("acme/shop/web", "udp", "shop.yaml:9")],
        };
        assert_eq!(
            render(&diff),
            "+ acme/shop/api → acme/shop/db in acme/shop: tcp 5432 (shop.yaml:11)\n\
             - acme/shop/web → acme/shop/db in acme/shop: udp (shop.yaml:9)\n\
             no live flow would be cut; 3 would go on\n"
        );
    }
}
