//! Answers to questions: what is in force, what passed, what was dropped.

use super::api::{
    ApplicationDrops, ApplicationLine, ApplicationList, DatapathStatus, DnsStatus, DropExample, DropLine,
    DropList, InstanceLine, InstanceList, NetworkLine, NetworkList, OutsideNames, ProcessStatus,
    RemoteInstanceLine, Status, UnderlayStatus,
};
use super::attachments::addresses;
use super::journal::Record;
use super::{Agent, Refusal, Response, reconcile};
use crate::sys::process::Process;
use std::net::IpAddr;
use tidegate_stack::drop::DropReason;
use tidegate_stack::flow::{Arrival, Verdict};
use tidegate_stack::plan::{Network, NetworkKind, PeerId, PortId, Vni};
use tidegate_stack::snapshot::Policy;
use tidegate_stack::stats::{self, Report};
use tidegate_stack::wire::Endpoints;

impl Agent {
    /// `show apps`.
    pub(super) fn applications(&self) -> Response {
        let lines = self
            .intent
            .applications
            .iter()
            .map(|(key, document)| ApplicationLine {
                tenant: key.tenant.clone(),
                application: key.name.clone(),
                version: document.version.clone(),
                services: document
                    .services
                    .iter()
                    .map(|service| service.name.clone())
                    .collect(),
                instances: self
                    .intent
                    .record
                    .attachments
                    .iter()
                    .filter(|attachment| attachment.application == *key)
                    .count(),
            });
        Response::Applications(ApplicationList {
            applications: lines.collect(),
        })
    }

    /// `show networks`.
    pub(super) fn networks(&self) -> Response {
        let networks = reconcile::networks(&self.host, &self.intent.applications);
        let lines = networks.into_values().map(|network| NetworkLine {
            kind: network.kind,
            applications: self.members_of(&network),
            vni: network.vni,
            ipv4_prefix: network.ipv4_prefix(),
            ipv6_prefix: network.ipv6_prefix(),
            ipv4_block: network.numbers.block_ipv4(self.host.ordinal),
            ipv6_block: network.numbers.block_ipv6(self.host.ordinal),
            service_addresses: [
                IpAddr::V4(network.service_ipv4()),
                IpAddr::V6(network.service_ipv6()),
            ],
            application: (network.kind == NetworkKind::Application).then(|| network.name.clone()),
            tenant: network.tenant,
            name: network.name,
        });
        Response::Networks(NetworkList {
            networks: lines.collect(),
        })
    }

    /// `show instances`.
    pub(super) async fn instances(&mut self) -> Response {
        let report = self.datapath.report().await.ok();
        if let Some(report) = &report
            && self.note_readiness(report)
        {
            self.tell_readiness().await;
        }
        let traffic = |port: PortId| {
            let ports = &report.as_ref()?.ports;
            Some(ports.iter().find(|line| line.port == port)?.traffic)
        };
        let mut attachments: Vec<_> = self.intent.record.attachments.iter().collect();
        attachments
            .sort_by_key(|attachment| (&attachment.application, &attachment.service, attachment.number));
        let lines = attachments.into_iter().map(|attachment| InstanceLine {
            tenant: attachment.application.tenant.clone(),
            application: attachment.application.name.clone(),
            instance: attachment.name(),
            port: attachment.port,
            interface: attachment.interface.clone(),
            mtu: attachment.mtu.get(),
            addresses: addresses(&attachment.memberships),
            re_attach_needed: self.re_attach_needed(attachment),
            readiness: self.readiness_line(attachment),
            traffic: traffic(attachment.port),
        });
        let instances = lines.collect();
        let mut elsewhere: Vec<_> = self
            .instances_elsewhere()
            .map(|(host, instance)| RemoteInstanceLine {
                host: host.to_owned(),
                tenant: instance.tenant.clone(),
                application: instance.application.clone(),
                instance: reconcile::instance_name(&instance.service, instance.number),
                addresses: addresses(&instance.addresses),
                ready: instance.ready,
            })
            .collect();
        elsewhere.sort_by(|a, b| {
            let key = |line: &RemoteInstanceLine| {
                (
                    line.tenant.clone(),
                    line.application.clone(),
                    line.instance.clone(),
                    line.host.clone(),
                )
            };
            key(a).cmp(&key(b))
        });
        Response::Instances(InstanceList { instances, elsewhere })
    }

    /// `status`.
    pub(super) async fn status(&mut self) -> Response {
        let report = self.datapath.report().await.ok();
        let dns = DnsStatus {
            datapath: report.as_ref().map(|report| outside_names(&report.dns)),
            ..self.resolver.status()
        };
        let datapath = match (&self.greeting, report) {
            (Some(greeting), Some(report)) => Some(DatapathStatus {
                process: process_status(greeting.pid),
                boot: format!("{:016x}", greeting.boot),
                shards: greeting.shards,
                epoch: report.epoch,
                plan: self.in_force.map(|digest| format!("{:016x}", digest.0)),
                flows: report.flows,
                flows_capacity: report.flows_capacity,
                frames_in_use: report.frames_in_use,
                frames_capacity: report.frames_capacity,
                ports: report.ports.len(),
                peers_connected: report
                    .peers
                    .iter()
                    .filter(|peer| peer.handshake_age_ms.is_some())
                    .count(),
                drops: report.drops.iter().map(|line| line.packets).sum(),
            }),
            _ => None,
        };
        Response::Status(Box::new(Status {
            host_id: self.host.host_id.clone(),
            site: self.host.site.clone(),
            ordinal: self.host.ordinal.get(),
            public_key: self.keys.foreign_lane.public_key().to_base64(),
            generation: self.lanes.as_ref().map(|lanes| lanes.generation),
            lanes: self
                .lanes
                .as_ref()
                .map_or_else(Vec::new, |lanes| lanes.ports.clone()),
            site_link: self.site_status(),
            lane: self.foreign.as_ref().map(|lane| lane.listen),
            underlay: UnderlayStatus {
                device: self.underlay.device.clone(),
                mtu: self.underlay.mtu,
                tuned: self.intent.record.tuned.is_some(),
            },
            agent: process_status(std::process::id()),
            datapath,
            applications: self.intent.applications.len(),
            instances: self.intent.record.attachments.len(),
            peers: self.host.cluster.peers.len() + self.intent.record.hosts.len(),
            dns,
            problems: self
                .problems
                .iter()
                .chain(self.lane_problems.iter())
                .chain(self.site.problems())
                .chain(self.resolver.problems())
                .chain(&self.boot_problems)
                .cloned()
                .chain(self.overlap_problems())
                .collect(),
        }))
    }

    /// `drops`.
    pub(super) async fn drops(&mut self) -> Result<Response, Refusal> {
        let report = self.report().await?;
        // Rules are told by the filter that is in force now; without one the counters still count.
        let is_by_rule = report.drops.iter().any(|line| is_by_rule(line.reason));
        let policy = is_by_rule.then(|| self.compiled(&self.intent).ok()).flatten();
        let mut drops: Vec<_> = report
            .drops
            .iter()
            .map(|line| DropLine {
                reason: line.reason.label().to_owned(),
                packets: line.packets,
                applications: line
                    .applications
                    .iter()
                    .map(|(vni, packets)| ApplicationDrops {
                        application: self.network_of(*vni),
                        packets: *packets,
                    })
                    .collect(),
                last: line.last.as_ref().map(|last| {
                    let because = policy
                        .as_ref()
                        .and_then(|snapshot| because(snapshot.policy(), line.reason, last));
                    self.named(last, because)
                }),
                explanation: line.reason.explanation().to_owned(),
            })
            .collect();
        drops.sort_by(|a, b| b.packets.cmp(&a.packets).then_with(|| a.reason.cmp(&b.reason)));
        Ok(Response::Drops(DropList { drops }))
    }

    async fn report(&mut self) -> Result<Report, Refusal> {
        self.wait_for_datapath().await?;
        self.datapath.report().await.map_err(Refusal::because)
    }

    fn named(&self, example: &stats::DropExample, because: Option<String>) -> DropExample {
        DropExample {
            instance: example.port.map(|port| self.instance_of(port)),
            peer: example.peer.map(|peer| self.peer_of(peer)),
            network: example.vni.map(|vni| self.network_of(vni)),
            packet: example.packet,
            because,
        }
    }

    pub(super) fn instance_of(&self, port: PortId) -> String {
        let attachment = self
            .intent
            .record
            .attachments
            .iter()
            .find(|attachment| attachment.port == port);
        attachment.map_or_else(
            || format!("port {port}"),
            |attachment| format!("{}/{}", attachment.application, attachment.name()),
        )
    }

    pub(super) fn peer_of(&self, id: PeerId) -> String {
        let Record { peers, hosts, .. } = &self.intent.record;
        let mut hosts = hosts.keys();
        if let Some(host) = hosts.find(|name| peers.get_host(name) == Some(id)) {
            return host.clone();
        }
        let mut foreign = self.host.cluster.peers.iter();
        let peer = foreign.find(|peer| peers.get(&peer.public_key) == Some(id));
        peer.map_or_else(|| format!("peer {id}"), |peer| peer.name.clone())
    }

    pub(super) fn network_of(&self, vni: Vni) -> String {
        let networks = reconcile::networks(&self.host, &self.intent.applications);
        let owner = networks.values().find(|network| network.vni == vni);
        owner.map_or_else(
            || format!("VNI {vni}"),
            |network| format!("{}/{}", network.tenant, network.name),
        )
    }

    /// The applications of this host that are in a network.
    pub(super) fn members_of(&self, network: &Network) -> Vec<String> {
        let applications = self.intent.applications.iter();
        let members = applications.filter(|(key, document)| match network.kind {
            NetworkKind::Application => (&key.tenant, &key.name) == (&network.tenant, &network.name),
            NetworkKind::Shared => {
                let mut shared = document.shared.iter();
                shared.any(|shared| {
                    (&shared.name.tenant, &shared.name.name) == (&network.tenant, &network.name)
                })
            }
        });
        members.map(|(key, _)| key.to_string()).collect()
    }
}

fn outside_names(dns: &stats::DnsReport) -> OutsideNames {
    OutsideNames {
        asked: dns.asked,
        cached: dns.cached,
        stale: dns.stale,
        overflown: dns.overflown,
        waiting: dns.waiting,
        remembered: dns.remembered,
        remembered_bytes: dns.remembered_bytes,
    }
}

fn process_status(pid: u32) -> ProcessStatus {
    let usage = Process::running(pid).and_then(|process| process.usage()).ok();
    ProcessStatus {
        pid,
        resident_bytes: usage.map(|usage| usage.resident_bytes),
        cpu_seconds: usage.map(|usage| usage.cpu_seconds),
    }
}

/// Whether a document's rules decide about a reason.
fn is_by_rule(reason: DropReason) -> bool {
    matches!(reason, DropReason::InboundDenied | DropReason::OutboundDenied)
}

/// The rule that denies a packet; `None` when none does any more.
fn because(policy: &Policy, reason: DropReason, example: &stats::DropExample) -> Option<String> {
    let packet = example.packet.as_ref().filter(|_| is_by_rule(reason))?;
    let arrival = match (example.port, example.peer) {
        (Some(port), _) => Arrival::Port(port),
        (None, Some(peer)) => Arrival::Tunnel(peer),
        (None, None) => return None,
    };
    let endpoints = Endpoints {
        protocol: packet.protocol,
        source: packet.source,
        source_port: packet.source_port,
        destination: packet.destination,
        destination_port: packet.destination_port,
    };
    let explanation = policy.explain(example.vni?, &endpoints, arrival);
    match explanation.verdict {
        Verdict::Deny(now) | Verdict::Reject(now) if now == reason => {
            Some(explanation.steps.last()?.to_string())
        }
        Verdict::Deny(_) | Verdict::Reject(_) | Verdict::Forward { .. } | Verdict::Answer(_) => None,
    }
}
