//! The `peers` verb: every other host of the site and every foreign peer, and why one isn't reached.

use super::api::{LaneCounts, PeerKind, PeerLine, PeerList};
use super::cluster::HostStatus;
use super::{Agent, Response, reconcile};
use crate::config::host::PeerDocument;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;
use tidegate_stack::plan::{Generation, Peer, PeerId, PeerNetworks, Reach};
use tidegate_stack::stats::{PeerReport, Report};

/// What is known of a peer, from every side.
struct Facts<'a> {
    planned: Option<&'a Peer>,
    told: Option<&'a PeerReport>,
    link: Option<&'a HostStatus>,
    /// Whether its record is alive.
    live: bool,
    conflicts: Vec<String>,
}

impl Facts<'_> {
    /// Whether a session was asked for and doesn't come. A host of the site is asked for one when there is a packet for
    /// it.
    fn waits_for_session(&self) -> bool {
        self.told
            .is_some_and(|told| told.handshake_age_ms.is_none() && !told.tunnels.is_empty())
    }

    fn silence(&self) -> Option<Duration> {
        self.link?.last_heard.map(|heard| heard.elapsed())
    }
}

impl Agent {
    /// `peers`.
    pub(super) async fn peers(&mut self) -> Response {
        // Without a datapath, too, the site's side can be told.
        let report = match self.wait_for_datapath().await {
            Ok(()) => self.datapath.report().await.ok(),
            Err(_) => None,
        };
        let planned: BTreeMap<PeerId, Peer> = reconcile::plan(&self.inputs(&self.intent))
            .map(|plan| plan.peers)
            .unwrap_or_default()
            .into_iter()
            .map(|peer| (peer.id, peer))
            .collect();
        let foreign = self.host.cluster.peers.iter();
        let mut peers: Vec<_> = foreign
            .map(|peer| self.foreign_line(peer, &planned, report.as_ref()))
            .collect();
        let hosts = self.hosts_of_site();
        peers.extend(
            hosts
                .iter()
                .map(|name| self.host_line(name, &planned, report.as_ref())),
        );
        peers.sort_by_key(|peer| (peer.ordinal.is_none(), peer.ordinal));
        Response::Peers(PeerList { peers })
    }

    /// The other hosts: those in the host document, those that are remembered, and those that live.
    pub(super) fn hosts_of_site(&self) -> BTreeSet<String> {
        let documented = self.host.cluster.hosts().map(|host| &host.host_id);
        let view = &self.site.view;
        documented
            .chain(self.intent.record.hosts.keys())
            .chain(view.hosts.iter().map(|host| &host.host_id))
            .filter(|name| **name != self.host.host_id)
            .cloned()
            .collect()
    }

    fn foreign_line(
        &self,
        document: &PeerDocument,
        planned: &BTreeMap<PeerId, Peer>,
        report: Option<&Report>,
    ) -> PeerLine {
        let id = self.intent.record.peers.get(&document.public_key);
        let facts = Facts {
            planned: id.and_then(|id| planned.get(&id)),
            told: told(report, id),
            link: None,
            live: true,
            conflicts: Vec::new(),
        };
        PeerLine {
            kind: PeerKind::Foreign,
            ordinal: Some(document.ordinal.get()),
            public_key: Some(document.public_key.to_base64()),
            ..self.line(&document.name, &facts, document.endpoint, report.is_some())
        }
    }

    fn host_line(&self, name: &str, planned: &BTreeMap<PeerId, Peer>, report: Option<&Report>) -> PeerLine {
        let known = self.intent.record.hosts.get(name);
        let id = self.intent.record.peers.get_host(name);
        let conflicts = reconcile::conflicts(&self.inputs(&self.intent));
        let view = &self.site.view;
        let facts = Facts {
            planned: id.and_then(|id| planned.get(&id)),
            told: told(report, id),
            link: view.hosts.iter().find(|host| host.host_id == name),
            live: view.records.contains_key(name),
            conflicts: conflicts
                .iter()
                .filter(|conflict| conflict.host() == name)
                .map(ToString::to_string)
                .collect(),
        };
        let newest = facts.planned.and_then(newest_generation);
        let endpoint = newest
            .and_then(|generation| generation.lanes.first())
            .map(|lane| lane.endpoint);
        let mut line = self.line(name, &facts, endpoint, report.is_some());
        line.ordinal = known.map(|known| known.ordinal.get());
        line.connected = Some(facts.link.is_some_and(|link| link.connected));
        line.alive = Some(facts.live);
        line.generations = known.map_or_else(Vec::new, |known| {
            known
                .generations
                .iter()
                .map(|generation| generation.number)
                .collect()
        });
        line.lanes = newest.map(|generation| LaneCounts {
            own: self.lanes.as_ref().map_or(0, |lanes| lanes.ports.len()),
            theirs: generation.lanes.len(),
        });
        if known.is_none() {
            line.why.insert(
                0,
                "it never told a record, so its lanes and networks aren't known".to_owned(),
            );
        }
        if let Some(problem) = self.site.link_problem() {
            line.why.insert(0, problem.clone());
        }
        line
    }

    fn line(&self, name: &str, facts: &Facts<'_>, endpoint: Option<SocketAddr>, answers: bool) -> PeerLine {
        let endpoint = facts.told.and_then(|told| told.endpoint).or(endpoint);
        let family = endpoint.map_or(reconcile::Family::Ipv4, |endpoint| {
            reconcile::Family::of(endpoint.ip())
        });
        let mut why = why(facts, endpoint);
        if !answers {
            why.insert(
                0,
                "the datapath doesn't answer: no session can be seen".to_owned(),
            );
        }
        PeerLine {
            name: name.to_owned(),
            kind: PeerKind::Host,
            ordinal: None,
            public_key: None,
            connected: None,
            alive: None,
            control_address: facts.link.map(|link| link.address),
            control_rtt_ms: facts
                .link
                .and_then(|link| link.rtt)
                .map(|rtt| rtt.as_secs_f64() * 1000.0),
            last_heard_ms: facts
                .silence()
                .map(|silence| u64::try_from(silence.as_millis()).unwrap_or(u64::MAX)),
            generations: Vec::new(),
            lanes: None,
            tunnels: facts.told.map_or(0, |told| told.tunnels.len()),
            sessions: facts.told.map_or(0, sessions),
            endpoint,
            handshake_age_ms: facts.told.and_then(|told| told.handshake_age_ms),
            rtt_ms: facts.told.and_then(|told| told.rtt_ms),
            loss_permille: facts.told.and_then(loss),
            mtu: facts
                .planned
                .map_or_else(
                    || reconcile::inner_mtu(self.underlay.mtu, family),
                    |peer| peer.mtu,
                )
                .get(),
            traffic: facts.told.map(|told| told.traffic).unwrap_or_default(),
            why,
        }
    }
}

fn told(report: Option<&Report>, id: Option<PeerId>) -> Option<&PeerReport> {
    report?.peers.iter().find(|line| Some(line.peer) == id)
}

fn newest_generation(peer: &Peer) -> Option<&Generation> {
    match &peer.reach {
        Reach::Site(generations) => generations.last(),
        Reach::Foreign(_) => None,
    }
}

fn sessions(peer: &PeerReport) -> usize {
    let tunnels = peer.tunnels.iter();
    tunnels.filter(|tunnel| tunnel.handshake_age_ms.is_some()).count()
}

/// The worst of its tunnels.
fn loss(peer: &PeerReport) -> Option<u16> {
    peer.tunnels
        .iter()
        .filter_map(|tunnel| tunnel.loss_permille)
        .max()
}

/// What keeps packets from passing, or will when something more fails; nothing when all is well.
fn why(facts: &Facts<'_>, endpoint: Option<SocketAddr>) -> Vec<String> {
    let mut why = facts.conflicts.clone();
    if let Some(problem) = facts.link.and_then(|link| link.problem.as_ref()) {
        why.push(format!("control link: {problem}"));
    }
    let Some(peer) = facts.planned else { return why };
    if !facts.live {
        let since = facts
            .silence()
            .map_or_else(String::new, |silence| format!(" for {} s", silence.as_secs()));
        why.push(format!(
            "it is silent{since}: packets still go to the lanes that it told last"
        ));
    }
    if matches!(&peer.reach, Reach::Site(none) if none.is_empty()) {
        why.push("it told no lanes: no datapath runs there, or its UDP ports are taken".to_owned());
    } else if facts.waits_for_session() {
        why.push(match endpoint {
            Some(endpoint) => format!(
                "no session: is UDP open to {endpoint} and back (`tidegate drops` counts what came and was refused)?"
            ),
            None => "no session: its endpoint isn't known, so only it can begin".to_owned(),
        });
    }
    if matches!(&peer.networks, PeerNetworks::Only(none) if none.is_empty()) && facts.conflicts.is_empty() {
        why.push("no application is on both hosts, so there is nothing to send".to_owned());
    }
    why
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_stack::plan::{HostOrdinal, Mtu, PublicKey, RemoteLane};
    use tidegate_stack::stats::{Traffic, TunnelReport};

    fn peer(generations: Vec<Generation>) -> Peer {
        Peer {
            id: PeerId(1),
            name: "edge-2".to_owned(),
            ordinal: HostOrdinal::try_from(2_u64).unwrap(),
            reach: Reach::Site(generations),
            networks: PeerNetworks::All,
            mtu: Mtu::MIN,
        }
    }

    fn generation() -> Generation {
        Generation {
            number: 1,
            lanes: vec![RemoteLane {
                public_key: PublicKey::from_bytes([1; 32]),
                endpoint: "192.0.2.12:51821".parse().unwrap(),
            }],
        }
    }

    fn report(handshake_age_ms: Option<u64>) -> PeerReport {
        let tunnel = |lane, loss_permille| TunnelReport {
            shard: 0,
            generation: Some(1),
            lane,
            endpoint: None,
            handshake_age_ms,
            rtt_ms: None,
            loss_permille,
        };
        PeerReport {
            peer: PeerId(1),
            endpoint: None,
            handshake_age_ms,
            rtt_ms: None,
            traffic: Traffic::default(),
            tunnels: vec![tunnel(0, Some(2)), tunnel(1, Some(31)), tunnel(2, None)],
        }
    }

    fn facts<'a>(peer: Option<&'a Peer>, told: Option<&'a PeerReport>) -> Facts<'a> {
        Facts {
            planned: peer,
            told,
            link: None,
            live: true,
            conflicts: Vec::new(),
        }
    }

    #[test]
    fn a_peer_with_a_session_has_nothing_to_explain() {
        let (peer, told) = (peer(vec![generation()]), report(Some(5)));
        assert_eq!(why(&facts(Some(&peer), Some(&told)), None), [""; 0]);
        assert_eq!((sessions(&told), loss(&told)), (3, Some(31)));
    }

    #[test]
    fn each_thing_that_is_missing_is_named() {
        let endpoint = Some("192.0.2.12:51821".parse().unwrap());
        let (known, told) = (peer(vec![generation()]), report(None));
        let idle = PeerReport {
            tunnels: Vec::new(),
            ..report(None)
        };
        assert_eq!(
            why(&facts(Some(&known), Some(&idle)), endpoint),
            [""; 0],
            "nothing was sent yet"
        );
        let told = why(&facts(Some(&known), Some(&told)), endpoint).join("\n");
        assert!(
            told.starts_with("no session: is UDP open to 192.0.2.12:51821"),
            "{told}"
        );
        let silent = Facts {
            live: false,
            ..facts(Some(&known), None)
        };
        assert!(why(&silent, endpoint)[0].contains("it is silent"));
        let without = peer(Vec::new());
        assert!(why(&facts(Some(&without), None), None)[0].contains("told no lanes"));
        let status = HostStatus {
            host_id: "edge-2".to_owned(),
            address: "192.0.2.12".parse().unwrap(),
            connected: false,
            rtt: None,
            last_heard: None,
            problem: Some("its certificate has expired".to_owned()),
        };
        let refused = Facts {
            link: Some(&status),
            ..facts(None, None)
        };
        assert_eq!(why(&refused, None), ["control link: its certificate has expired"]);
    }
}
