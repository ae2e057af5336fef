//! What this host is meant to do, from what it was told: documents, attachments and numbers in, a [`Plan`] out.
//!
//! Pure: no file, descriptor, clock or socket is touched, so that the same inputs give the same plan on every start,
//! and a datapath that runs it already is left alone. All contradictions are told at once.

mod allocation;
mod error;
mod names;
mod networks;
mod services;
mod site;
mod underlay_mtu;

pub(crate) use allocation::{Allocations, PeerNumbers, name_in};
pub(crate) use error::{PlanError, PlanErrors};
pub(crate) use networks::{
    Indices, NetworkKey, Networks, memberships, network_numbers, network_vni, networks, shared_numbers,
};
pub(crate) use site::{Conflict, KnownHost, KnownHosts, learn};
pub(crate) use underlay_mtu::{Family, fragments_outside, inner_mtu};

use crate::config::application::ApplicationDocument;
use crate::config::host::{HostDocument, PeerDocument, PeerNetworksDocument};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use tidegate_stack::plan::{
    ForeignReach, Instance, InstanceIndex, Membership, Mtu, NetworkKind, Peer, PeerNetworks, Plan, PortId,
    PresharedKey, PrivateKey, Reach, Readiness, derive_vni,
};

/// What names an application in a site. Written `tenant/name`; neither part can hold a slash.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ApplicationKey {
    /// The tenant.
    pub(crate) tenant: String,
    /// The application's name.
    pub(crate) name: String,
}

impl ApplicationKey {
    /// The key of a document.
    pub(crate) fn of(document: &ApplicationDocument) -> Self {
        Self {
            tenant: document.tenant.clone(),
            name: document.name.clone(),
        }
    }
}

impl fmt::Display for ApplicationKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.tenant, self.name)
    }
}

/// What makes a network namespace the same one, whatever path leads to it: the inode of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Namespace {
    /// Device number of the file.
    pub(crate) device: u64,
    /// Inode number of the file.
    pub(crate) inode: u64,
}

/// An instance that has a device in a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Attachment {
    /// Its application.
    pub(crate) application: ApplicationKey,
    /// Its service.
    pub(crate) service: String,
    /// Its number in the service, from 1.
    pub(crate) number: u32,
    /// The port that its device is.
    pub(crate) port: PortId,
    /// Its index in this host's block of its application's network.
    pub(crate) index: InstanceIndex,
    /// Its indices in this host's blocks of the shared networks that its device was made for, by `tenant/name`.
    #[serde(default)]
    pub(crate) shared: BTreeMap<String, InstanceIndex>,
    /// The namespace that the device was moved into.
    pub(crate) namespace: Namespace,
    /// The device's name there.
    pub(crate) interface: String,
    /// The device's MTU.
    pub(crate) mtu: Mtu,
    /// Whether the device's packets have a virtio header: super-packets and partial checksums can pass.
    pub(crate) offloads: bool,
    /// The addresses that were set inside.
    pub(crate) memberships: Vec<Membership>,
}

impl Attachment {
    /// The instance's name.
    pub(crate) fn name(&self) -> String {
        instance_name(&self.service, self.number)
    }

    /// Its indices.
    pub(crate) fn indices(&self) -> Indices<'_> {
        Indices {
            own: self.index,
            shared: &self.shared,
        }
    }
}

/// The name of a service's instance.
pub(crate) fn instance_name(service: &str, number: u32) -> String {
    format!("{service}-{number}")
}

/// Applications by their keys.
pub(crate) type Applications = BTreeMap<ApplicationKey, ApplicationDocument>;

/// The secrets that a plan carries. No `Debug`.
#[derive(Clone)]
pub(crate) struct Keys {
    /// The foreign lane's.
    pub(crate) foreign_lane: PrivateKey,
    /// Preshared keys by the peer's name.
    pub(crate) preshared: BTreeMap<String, PresharedKey>,
}

/// Everything that a plan follows from.
pub(crate) struct Inputs<'a> {
    /// The host document.
    pub(crate) host: &'a HostDocument,
    /// The application documents in force.
    pub(crate) applications: &'a Applications,
    /// The instances attached here.
    pub(crate) attachments: &'a [Attachment],
    /// The other hosts of the site.
    pub(crate) hosts: &'a KnownHosts,
    /// Those of them that fell silent: their instances aren't told by name.
    pub(crate) silent: &'a BTreeSet<String>,
    /// The instances attached here that are ready, by port. Those of services that aren't asked are, in any case.
    pub(crate) ready: &'a BTreeSet<PortId>,
    /// The numbers of peers, and of those hosts.
    pub(crate) peers: &'a PeerNumbers,
    /// The secrets.
    pub(crate) keys: &'a Keys,
    /// The underlay's MTU, in bytes.
    pub(crate) underlay_mtu: u32,
    /// This host's underlay addresses.
    pub(crate) addresses: &'a [IpAddr],
}

/// The plan that follows from the inputs, in its one order.
///
/// # Errors
/// Every contradiction among them.
pub(crate) fn plan(inputs: &Inputs<'_>) -> Result<Plan, PlanErrors> {
    let mut errors = Vec::new();
    let networks = networks(inputs.host, inputs.applications);
    networks::check(inputs.host, inputs.applications, &networks, &mut errors);
    let services = services::services(inputs, &networks, &mut errors);
    let instances = instances(inputs, &mut errors);
    let mut peers = peers(inputs, &networks, &mut errors);
    let site = site::site(inputs, &networks, &mut errors);
    peers.extend(site.peers);
    if !errors.is_empty() {
        return Err(PlanErrors(errors));
    }
    // Who stands behind an address of another host only matters where rules can tell.
    let ruled = services
        .iter()
        .any(|service| service.inbound.is_some() || service.outbound.is_some());
    let shared = networks.keys().any(|key| key.kind == NetworkKind::Shared);
    let names = names::names(inputs, &networks, &instances, &site.instances);
    let mut plan = Plan {
        services,
        members: if ruled || shared { site.members } else { Vec::new() },
        names,
        ordinal: inputs.host.ordinal,
        networks: networks.into_values().collect(),
        instances,
        peers,
        foreign_lane_key: inputs.keys.foreign_lane.clone(),
    };
    plan.normalise();
    Ok(plan)
}

/// What keeps other hosts of the site, or networks of theirs, out of the plan.
pub(crate) fn conflicts(inputs: &Inputs<'_>) -> Vec<Conflict> {
    let networks = networks(inputs.host, inputs.applications);
    site::site(inputs, &networks, &mut Vec::new()).conflicts
}

/// The MTU for devices of instances: the largest over the underlay's families in use, IPv4's when none is known.
pub(crate) fn instance_mtu(host: &HostDocument, underlay_mtu: u32) -> Mtu {
    let families = host
        .cluster
        .peers
        .iter()
        .filter_map(|peer| peer.endpoint)
        .map(|endpoint| endpoint.ip())
        .chain(host.cluster.hosts().map(|host| host.address))
        .map(Family::of);
    families
        .map(|family| inner_mtu(underlay_mtu, family))
        .max()
        .unwrap_or_else(|| inner_mtu(underlay_mtu, Family::Ipv4))
}

fn instances(inputs: &Inputs<'_>, errors: &mut Vec<PlanError>) -> Vec<Instance> {
    let mut instances = Vec::new();
    for attachment in inputs.attachments {
        let key = &attachment.application;
        let document = inputs.applications.get(key).filter(|document| {
            let mut services = document.services.iter();
            services.any(|service| service.name == attachment.service)
        });
        let Some(document) = document else {
            errors.push(PlanError::InstanceWithoutService {
                application: key.clone(),
                service: attachment.service.clone(),
                instance: attachment.name(),
            });
            continue;
        };
        let memberships = match memberships(inputs.host, document, &attachment.indices()) {
            Ok(memberships) => memberships,
            Err(index) => {
                errors.push(PlanError::OutsideBlock {
                    application: key.clone(),
                    instance: attachment.name(),
                    index,
                });
                continue;
            }
        };
        instances.push(Instance {
            port: attachment.port,
            tenant: key.tenant.clone(),
            application: key.name.clone(),
            service: attachment.service.clone(),
            name: attachment.name(),
            memberships,
            mtu: attachment.mtu,
            offloads: attachment.offloads,
            readiness: asked(inputs.applications, attachment).cloned(),
        });
    }
    instances
}

/// What an instance is asked, to find out whether it is ready.
pub(crate) fn asked<'a>(applications: &'a Applications, attachment: &Attachment) -> Option<&'a Readiness> {
    let mut services = applications.get(&attachment.application)?.services.iter();
    services
        .find(|service| service.name == attachment.service)?
        .readiness
        .as_ref()
}

fn peers(inputs: &Inputs<'_>, networks: &Networks, errors: &mut Vec<PlanError>) -> Vec<Peer> {
    let mut peers = Vec::new();
    for document in &inputs.host.cluster.peers {
        if document.ordinal == inputs.host.ordinal {
            errors.push(PlanError::PeerOrdinal {
                peer: document.name.clone(),
                ordinal: document.ordinal,
            });
        }
        let networks = peer_networks(inputs, networks, document, errors);
        let Some(id) = inputs.peers.get(&document.public_key) else {
            errors.push(PlanError::PeerWithoutNumber {
                peer: document.name.clone(),
            });
            continue;
        };
        let family = document
            .endpoint
            .map_or(Family::Ipv4, |endpoint| Family::of(endpoint.ip()));
        peers.push(Peer {
            id,
            name: document.name.clone(),
            ordinal: document.ordinal,
            reach: Reach::Foreign(ForeignReach {
                public_key: document.public_key,
                preshared_key: inputs.keys.preshared.get(&document.name).cloned(),
                endpoint: document.endpoint,
                keepalive: document.keepalive,
            }),
            networks,
            mtu: inner_mtu(inputs.underlay_mtu, family),
        });
    }
    peers
}

fn peer_networks(
    inputs: &Inputs<'_>,
    networks: &Networks,
    peer: &PeerDocument,
    errors: &mut Vec<PlanError>,
) -> PeerNetworks {
    let PeerNetworksDocument::Only(named) = &peer.networks else {
        return PeerNetworks::All;
    };
    let mut vnis = BTreeSet::new();
    for network in named {
        let key = ApplicationKey {
            tenant: network.tenant.clone(),
            name: network.application.clone(),
        };
        let applied = inputs.applications.get(&key).map(network_vni);
        let vni = match (applied, network.vni) {
            (Some(vni), Some(expected)) if vni != expected => {
                let peer = peer.name.clone();
                errors.push(PlanError::PeerVni {
                    peer,
                    application: key,
                    expected,
                    vni,
                });
                continue;
            }
            (Some(vni), _) | (None, Some(vni)) => vni,
            (None, None) => derive_vni(&key.tenant, NetworkKind::Application, &key.name),
        };
        // The network that it means isn't here; another one that is must not be taken for it.
        let other = networks
            .iter()
            .find(|(_, network)| applied.is_none() && network.vni == vni);
        if let Some((other, _)) = other {
            errors.push(PlanError::PeerOtherNetwork {
                peer: peer.name.clone(),
                application: key,
                other: other.clone(),
                vni,
            });
            continue;
        }
        vnis.insert(vni);
    }
    PeerNetworks::Only(vnis)
}

#[cfg(test)]
mod tests;
