//! What the running agent knows: its lanes, its link, every other host, and what is wrong between them. Where none runs,
//! whether the ports that it needs are free, and its networks no LAN's.

use super::{Finding, name_servers, ok, warning};
use crate::agent::api::{PeerLine, Request, Response, Status};
use crate::agent::overlap;
use crate::cli::Places;
use crate::cli::client::AgentClient;
use crate::config::host::HostDocument;
use crate::sys::lane_socket;
use std::net::{Ipv6Addr, SocketAddr};

/// Asks the agent, or looks at the ports.
pub(super) fn findings(document: &HostDocument, places: &Places) -> Vec<Finding> {
    let asked = AgentClient::connect(&places.agent_socket()).and_then(|agent| {
        let status = agent.ask(&Request::Status, &[])?;
        Ok((status, agent.ask(&Request::Peers, &[])?))
    });
    match asked {
        Ok((Response::Status(status), Response::Peers(peers))) => {
            let mut findings = vec![datapath(&status), lanes(&status)];
            findings.extend(link(&status));
            findings.extend(peers.peers.iter().map(peer));
            findings.extend(name_servers::findings(&status.dns));
            findings.extend(status.problems.iter().map(|problem| warning("agent", problem)));
            findings
        }
        Ok((other, _)) => vec![warning("agent", AgentClient::unexpected(&other).to_string())],
        Err(error) => {
            let mut findings = vec![warning("agent", format!("{error:#}"))];
            findings.extend(ports(document));
            findings.push(networks(document));
            findings
        }
    }
}

fn networks(document: &HostDocument) -> Finding {
    let subject = "networks";
    match overlap::problems(document) {
        Ok(problems) if problems.is_empty() => ok(
            subject,
            format!(
                "{} and {} are no LAN of this host",
                document.network.application_prefix, document.network.shared_prefix
            ),
        ),
        Ok(problems) => warning(subject, problems.join("; ")),
        Err(error) => warning(
            subject,
            format!("the addresses of this host aren't known: {error}"),
        ),
    }
}

fn datapath(status: &Status) -> Finding {
    match &status.datapath {
        Some(datapath) => ok(
            "datapath",
            format!(
                "it runs {} shard(s), process {}",
                datapath.shards, datapath.process.pid
            ),
        ),
        None => warning("datapath", "it doesn't answer: nothing passes; see its log"),
    }
}

fn lanes(status: &Status) -> Finding {
    let ports: Vec<_> = status.lanes.iter().map(ToString::to_string).collect();
    match status.generation {
        Some(generation) => ok(
            "lanes",
            format!("generation {generation} listens on UDP {}", ports.join(" ")),
        ),
        None => warning("lanes", "there are none, so nothing passes to other hosts"),
    }
}

fn link(status: &Status) -> Option<Finding> {
    let link = status.site_link.as_ref()?;
    Some(if link.up {
        ok(
            "site link",
            format!(
                "UDP {}, {} of {} hosts connected",
                link.listen, link.hosts_connected, link.hosts_known
            ),
        )
    } else {
        warning("site link", format!("UDP {} isn't bound", link.listen))
    })
}

fn peer(peer: &PeerLine) -> Finding {
    let subject = format!("peer {}", peer.name);
    if peer.why.is_empty() {
        let endpoint = peer
            .endpoint
            .map_or_else(String::new, |endpoint| format!(" at {endpoint}"));
        ok(subject, format!("it is reached{endpoint}"))
    } else {
        warning(subject, peer.why.join("; "))
    }
}

fn ports(document: &HostDocument) -> Vec<Finding> {
    let cluster = &document.cluster;
    let lanes = [0, 1, 65].map(|offset| cluster.wireguard_port + offset);
    let control = cluster.link.as_ref().map(|_| cluster.control_port);
    let taken: Vec<_> = lanes
        .into_iter()
        .chain(control)
        .filter_map(|port| {
            let listen = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
            lane_socket::bind(listen, true).err()
        })
        .map(|error| {
            warning(
                "ports",
                format!("{error}: a tidegate of before, or another program?"),
            )
        })
        .collect();
    if taken.is_empty() {
        vec![ok(
            "ports",
            format!("UDP {} and those after it are free", cluster.wireguard_port),
        )]
    } else {
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::host;
    use std::path::Path;

    #[test]
    fn a_port_in_use_is_found_where_no_agent_runs() {
        let text = "host-id: edge-1\nsite: s\nordinal: 1\ncluster: { wireguard-port: 42310 }\n";
        let document = host::parse(Path::new("host.yaml"), text).unwrap();
        let folder = std::env::temp_dir().join("tidegate-doctor-nobody");
        let places = Places {
            config: folder.join("host.yaml"),
            state_dir: folder.clone(),
            run_dir: folder,
        };
        let text = |findings: &[Finding]| -> String {
            findings
                .iter()
                .map(|finding| format!("{}\n", finding.text))
                .collect()
        };
        let free = text(&findings(&document, &places));
        assert!(
            free.contains("no agent answers") && free.contains("are free"),
            "{free}"
        );
        let _squatter = std::net::UdpSocket::bind("[::]:42311").unwrap();
        let taken = text(&findings(&document, &places));
        assert!(taken.contains("42311"), "{taken}");
    }
}
