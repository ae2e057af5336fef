//! The shards' reports, added up to the host's.

use std::collections::BTreeMap;
use tidegate_stack::stats::{DropReport, PeerReport, PortReport, Report, Traffic};

/// The sum of the shards' reports. The epoch is the oldest one still in force anywhere.
pub(super) fn add_up(reports: impl IntoIterator<Item = Report>) -> Report {
    let mut reports = reports.into_iter();
    let mut total = reports.next().unwrap_or_default();
    for report in reports {
        total.epoch = total.epoch.min(report.epoch);
        total.flows += report.flows;
        total.flows_capacity += report.flows_capacity;
        total.frames_in_use += report.frames_in_use;
        total.frames_capacity += report.frames_capacity;
        total.neighbours += report.neighbours;
        total.neighbours_capacity += report.neighbours_capacity;
        total.dns.add(&report.dns);
        total.readiness.extend(report.readiness);
        join(&mut total.ports, report.ports, |port| port.port, add_port);
        join(&mut total.peers, report.peers, |peer| peer.peer, add_peer);
        join(&mut total.drops, report.drops, |drop| drop.reason, add_drop);
    }
    // Each port is asked by one shard.
    total.readiness.sort_by_key(|readiness| readiness.port);
    total
}

/// Adds entries with the same key; the result is in the order of keys.
fn join<T, K: Ord>(total: &mut Vec<T>, more: Vec<T>, key: impl Fn(&T) -> K, add: impl Fn(&mut T, T)) {
    let mut entries: BTreeMap<K, T> = total.drain(..).map(|entry| (key(&entry), entry)).collect();
    for entry in more {
        match entries.get_mut(&key(&entry)) {
            Some(known) => add(known, entry),
            None => {
                entries.insert(key(&entry), entry);
            }
        }
    }
    total.extend(entries.into_values());
}

fn add_traffic(total: &mut Traffic, more: Traffic) {
    total.received_packets += more.received_packets;
    total.received_bytes += more.received_bytes;
    total.sent_packets += more.sent_packets;
    total.sent_bytes += more.sent_bytes;
}

fn add_port(total: &mut PortReport, more: PortReport) {
    add_traffic(&mut total.traffic, more.traffic);
}

/// The freshest session speaks for the peer.
fn add_peer(total: &mut PeerReport, more: PeerReport) {
    add_traffic(&mut total.traffic, more.traffic);
    total.tunnels.extend(&more.tunnels);
    let age = |peer: &PeerReport| peer.handshake_age_ms.unwrap_or(u64::MAX);
    if age(&more) < age(total) {
        total.handshake_age_ms = more.handshake_age_ms;
        total.endpoint = more.endpoint;
        total.rtt_ms = more.rtt_ms;
    }
}

fn add_drop(total: &mut DropReport, more: DropReport) {
    total.packets += more.packets;
    total.last = total.last.or(more.last);
    join(
        &mut total.applications,
        more.applications,
        |(vni, _)| *vni,
        |total, more| total.1 += more.1,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_stack::drop::DropReason;
    use tidegate_stack::plan::{PeerId, PortId};
    use tidegate_stack::stats::ReadinessReport;

    fn report(port: u32, age: Option<u64>, drops: u64) -> Report {
        let traffic = Traffic {
            received_packets: 1,
            received_bytes: 2,
            sent_packets: 3,
            sent_bytes: 4,
        };
        Report {
            epoch: 5,
            ports: vec![PortReport {
                port: PortId(port),
                traffic,
            }],
            peers: vec![PeerReport {
                peer: PeerId(1),
                endpoint: None,
                handshake_age_ms: age,
                rtt_ms: None,
                traffic,
                tunnels: Vec::new(),
            }],
            drops: vec![DropReport {
                reason: DropReason::NoPeer,
                packets: drops,
                applications: vec![(tidegate_stack::plan::Vni::MIN, drops)],
                last: None,
            }],
            flows: 7,
            readiness: vec![ReadinessReport {
                port: PortId(port),
                ready: Some(true),
                failures: 0,
                error: None,
                asked: 1,
                postponed: 0,
            }],
            ..Report::default()
        }
    }

    #[test]
    fn one_shard_is_its_own_sum() {
        assert_eq!(add_up([report(1, None, 3)]), report(1, None, 3));
    }

    #[test]
    fn shards_add_up_and_the_freshest_session_speaks() {
        let mut third = report(2, Some(20), 0);
        third.readiness.clear();
        let total = add_up([report(2, None, 3), report(1, Some(9), 4), third]);
        assert_eq!(total.flows, 21);
        let ports: Vec<_> = total
            .ports
            .iter()
            .map(|port| (port.port.0, port.traffic.sent_bytes))
            .collect();
        assert_eq!(ports, [(1, 4), (2, 8)]);
        let asked: Vec<_> = total.readiness.iter().map(|line| line.port.0).collect();
        assert_eq!(asked, [1, 2]);
        assert_eq!(total.peers.len(), 1);
        assert_eq!(total.peers[0].handshake_age_ms, Some(9));
        assert_eq!(total.peers[0].traffic.received_packets, 3);
        assert_eq!(total.drops[0].packets, 7);
        assert_eq!(total.drops[0].applications[0].1, 7);
    }
}
