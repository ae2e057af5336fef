//! `flows`: what lives in the datapath's tables, with the names that this host knows.

use super::api::{FlowDirection, FlowEndLine, FlowLine, FlowList, FlowQuery, NamedInstance};
use super::{Agent, Refusal, Response, reconcile};
use std::collections::BTreeMap;
use std::net::IpAddr;
use tidegate_stack::plan::{Membership, PeerId, PortId, Vni};
use tidegate_stack::stats::{FlowEnd, FlowReport};

impl Agent {
    /// `flows`.
    pub(super) async fn flows(&mut self, query: &FlowQuery) -> Result<Response, Refusal> {
        let live = self.live_flows().await?;
        let names = self.names();
        let mut flows: Vec<_> = live
            .iter()
            .map(|flow| self.flow_line(flow, &names))
            .filter(|line| query.fits(line))
            .collect();
        flows.sort_by(|a, b| {
            let key = |line: &FlowLine| {
                (
                    line.network.clone(),
                    line.destination.clone(),
                    line.source.clone(),
                )
            };
            key(a).cmp(&key(b))
        });
        let more = flows.len().saturating_sub(query.limit) as u64;
        flows.truncate(query.limit);
        Ok(Response::Flows(FlowList {
            flows,
            more,
            live: live.len() as u64,
        }))
    }

    /// Every live flow, asked for part by part.
    pub(super) async fn live_flows(&mut self) -> Result<Vec<FlowReport>, Refusal> {
        self.wait_for_datapath().await?;
        let shards = self.greeting.as_ref().map_or(0, |greeting| greeting.shards);
        let mut flows = Vec::new();
        for shard in 0..u8::try_from(shards).unwrap_or(u8::MAX) {
            let mut from = Some(0);
            while let Some(begin) = from {
                let page = self.datapath.flows(shard, begin).await;
                let page = page.map_err(Refusal::because)?;
                flows.extend(page.flows);
                from = page.next;
            }
        }
        Ok(flows)
    }

    pub(super) fn flow_line(&self, flow: &FlowReport, names: &Names) -> FlowLine {
        let end = |address, port, end| FlowEndLine {
            address,
            port,
            instance: names.behind(flow.vni, address).cloned(),
            peer: match end {
                FlowEnd::Peer(peer) => Some(self.peer_of(peer)),
                FlowEnd::Port(_) => None,
            },
        };
        let packet = &flow.packet;
        FlowLine {
            network: self.network_of(flow.vni),
            direction: match (flow.origin, flow.target) {
                (FlowEnd::Peer(_), _) => FlowDirection::In,
                (FlowEnd::Port(_), FlowEnd::Peer(_)) => FlowDirection::Out,
                (FlowEnd::Port(_), FlowEnd::Port(_)) => FlowDirection::Local,
            },
            protocol: packet.protocol,
            source: end(packet.source, packet.source_port, flow.origin),
            destination: end(packet.destination, packet.destination_port, flow.target),
            state: flow.state,
            packets: flow.packets,
            bytes: flow.bytes,
            idle_ms: flow.idle_ms,
            shard: flow.shard,
        }
    }

    /// Every instance that this host knows of, here and on hosts that told of themselves.
    pub(super) fn names(&self) -> Names {
        let elsewhere = self.instances_elsewhere().map(|(host, instance)| Known {
            name: NamedInstance {
                tenant: instance.tenant.clone(),
                application: instance.application.clone(),
                service: instance.service.clone(),
                instance: reconcile::instance_name(&instance.service, instance.number),
            },
            place: Whereabouts::Host {
                host: host.to_owned(),
                peer: self.intent.record.peers.get_host(host),
            },
            memberships: instance.addresses.clone(),
        });
        let here = self.intent.record.attachments.iter().map(|attachment| Known {
            name: NamedInstance {
                tenant: attachment.application.tenant.clone(),
                application: attachment.application.name.clone(),
                service: attachment.service.clone(),
                instance: attachment.name(),
            },
            place: Whereabouts::Here(attachment.port),
            memberships: attachment.memberships.clone(),
        });
        let instances: Vec<Known> = here.chain(elsewhere).collect();
        let mut addresses = BTreeMap::new();
        for (number, known) in instances.iter().enumerate() {
            for membership in &known.memberships {
                for address in membership.addresses() {
                    addresses.entry((membership.vni, address)).or_insert(number);
                }
            }
        }
        Names { instances, addresses }
    }
}

/// An instance, where it is, and its addresses.
pub(super) struct Known {
    pub(super) name: NamedInstance,
    pub(super) place: Whereabouts,
    memberships: Vec<Membership>,
}

/// Where an instance is.
pub(super) enum Whereabouts {
    /// On this host.
    Here(PortId),
    /// On another one.
    Host {
        /// Its name.
        host: String,
        /// Its number, when it is in the plan.
        peer: Option<PeerId>,
    },
}

/// Instances, by network and address.
pub(super) struct Names {
    instances: Vec<Known>,
    addresses: BTreeMap<(Vni, IpAddr), usize>,
}

impl Names {
    /// The instance behind an address.
    pub(super) fn behind(&self, vni: Vni, address: IpAddr) -> Option<&NamedInstance> {
        self.known_behind(vni, address).map(|known| &known.name)
    }

    /// The same, with all that is known of it.
    pub(super) fn known_behind(&self, vni: Vni, address: IpAddr) -> Option<&Known> {
        self.instances.get(*self.addresses.get(&(vni, address))?)
    }

    /// All of them, those of this host first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Known> {
        self.instances.iter()
    }
}

impl Known {
    /// Whether an address is its own, in whichever network.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        let mut memberships = self.memberships.iter();
        memberships.any(|membership| membership.addresses().contains(&address))
    }

    /// All its addresses.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        self.memberships.iter().flat_map(Membership::addresses).collect()
    }

    /// Its address in a network, or in its own.
    pub(super) fn address(&self, vni: Option<Vni>, ipv6: bool) -> Option<IpAddr> {
        let mut memberships = self.memberships.iter();
        let membership = match vni {
            Some(vni) => memberships.find(|membership| membership.vni == vni),
            None => memberships.next(),
        }?;
        let [ipv4, ipv6_address] = membership.addresses();
        Some(if ipv6 { ipv6_address } else { ipv4 })
    }

    /// The networks that it is in, its own first.
    pub(super) fn networks(&self) -> impl Iterator<Item = Vni> {
        self.memberships.iter().map(|membership| membership.vni)
    }

    /// The first network that both are in.
    pub(super) fn network_with(&self, other: &Self) -> Option<Vni> {
        self.networks()
            .find(|vni| other.networks().any(|theirs| theirs == *vni))
    }
}
