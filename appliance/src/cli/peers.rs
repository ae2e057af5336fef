//! `peers`: the other hosts of the site and foreign peers, and why one isn't reached.

use super::Places;
use super::client::AgentClient;
use super::observe::render_bytes;
use super::output::{self, Form, table};
use crate::agent::api::{PeerKind, PeerLine, PeerList, Request, Response};
use clap::Args;

/// Arguments of `peers`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tidegate peers --why")]
pub(crate) struct Peers {
    /// Tells for each one that isn't reached, or soon may not be, why. (JSON and YAML always do.)
    #[arg(long)]
    why: bool,
}

/// Prints the peers.
pub(crate) fn peers(places: &Places, form: Form, arguments: &Peers) -> anyhow::Result<()> {
    let render = if arguments.why { render_why } else { render_peers };
    match AgentClient::connect(&places.agent_socket())?.ask(&Request::Peers, &[])? {
        Response::Peers(peers) => output::print(form, &peers, render),
        other => Err(AgentClient::unexpected(&other)),
    }
}

fn render_peers(list: &PeerList) -> String {
    let headings = [
        "PEER",
        "ORDINAL",
        "LINK",
        "GENERATION",
        "LANES",
        "ENDPOINT",
        "HANDSHAKE",
        "RTT",
        "LOSS",
        "MTU",
        "RECEIVED / SENT",
    ];
    table(headings, list.peers.iter().map(row))
}

fn row(peer: &PeerLine) -> [String; 11] {
    let none = || "-".to_owned();
    let generations: Vec<_> = peer.generations.iter().map(ToString::to_string).collect();
    [
        peer.name.clone(),
        peer.ordinal.map_or_else(none, |ordinal| ordinal.to_string()),
        link(peer).to_owned(),
        if generations.is_empty() {
            none()
        } else {
            generations.join(",")
        },
        peer.lanes
            .map_or_else(none, |lanes| format!("{}×{}", lanes.own, lanes.theirs)),
        peer.endpoint.map_or_else(none, |endpoint| endpoint.to_string()),
        peer.handshake_age_ms.map_or_else(
            || "no session".to_owned(),
            |age| format!("{:.1} s ago", age as f64 / 1000.0),
        ),
        peer.rtt_ms.map_or_else(none, |rtt| format!("{rtt} ms")),
        peer.loss_permille
            .map_or_else(none, |loss| format!("{}.{} %", loss / 10, loss % 10)),
        peer.mtu.to_string(),
        format!(
            "{} / {}",
            render_bytes(peer.traffic.received_bytes),
            render_bytes(peer.traffic.sent_bytes)
        ),
    ]
}

/// How the control link to a peer is.
fn link(peer: &PeerLine) -> &'static str {
    match (peer.kind, peer.connected, peer.alive) {
        (PeerKind::Foreign, ..) => "foreign",
        (PeerKind::Host, Some(true), _) => "connected",
        // By way of a third host.
        (PeerKind::Host, _, Some(true)) => "alive",
        (PeerKind::Host, ..) => "silent",
    }
}

fn render_why(list: &PeerList) -> String {
    let lines = list.peers.iter().map(|peer| {
        if peer.why.is_empty() {
            return format!("{}: reached\n", peer.name);
        }
        let reasons: String = peer.why.iter().map(|reason| format!("  {reason}\n")).collect();
        format!("{}:\n{reasons}", peer.name)
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::api::LaneCounts;
    use tidegate_stack::stats::Traffic;

    fn host() -> PeerLine {
        PeerLine {
            name: "edge-2".to_owned(),
            kind: PeerKind::Host,
            ordinal: Some(2),
            public_key: None,
            connected: Some(true),
            alive: Some(true),
            control_address: None,
            control_rtt_ms: None,
            last_heard_ms: None,
            generations: vec![4, 5],
            lanes: Some(LaneCounts { own: 2, theirs: 4 }),
            tunnels: 8,
            sessions: 8,
            endpoint: Some("192.0.2.12:51821".parse().unwrap()),
            handshake_age_ms: Some(1500),
            rtt_ms: Some(3),
            loss_permille: Some(12),
            mtu: 1390,
            traffic: Traffic::default(),
            why: Vec::new(),
        }
    }

    #[test]
    fn a_host_is_one_line() {
        let list = PeerList { peers: vec![host()] };
        let text = render_peers(&list);
        let line = text.lines().nth(1).unwrap();
        let cells: Vec<_> = line
            .split("  ")
            .filter(|cell| !cell.is_empty())
            .map(str::trim)
            .collect();
        assert_eq!(
            cells,
            [
                "edge-2",
                "2",
                "connected",
                "4,5",
                "2×4",
                "192.0.2.12:51821",
                "1.5 s ago",
                "3 ms",
                "1.2 %",
                "1390",
                "0 B / 0 B"
            ]
        );
    }

    #[test]
    fn reasons_stand_under_their_peer() {
        let silent = PeerLine {
            connected: Some(false),
            alive: Some(false),
            why: vec!["it is silent".to_owned(), "no session".to_owned()],
            ..host()
        };
        assert_eq!(link(&silent), "silent");
        let list = PeerList {
            peers: vec![host(), silent],
        };
        assert_eq!(
            render_why(&list),
            "edge-2: reached\nedge-2:\n  it is silent\n  no session\n"
        );
    }
}
