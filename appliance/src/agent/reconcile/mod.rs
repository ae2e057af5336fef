//! What this host is meant to do, from what it was told: documents, attachments and numbers in, a [`Plan`] out.
//!
//! Pure: no file, descriptor, clock or socket is touched, so that the same inputs give the same plan on every start,
//! and a datapath that runs it already is left alone. All contradictions are told at once.

mod allocation;
mod site;
mod underlay_mtu;

pub(crate) use allocation::{Allocations, PeerNumbers};
pub(crate) use site::{Conflict, KnownHost, KnownHosts, learn};
pub(crate) use underlay_mtu::{Family, fragments_outside, inner_mtu};

use crate::config::application::ApplicationDocument;
use crate::config::host::{HostDocument, PeerDocument, PeerNetworksDocument};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use tidegate_stack::plan::{
    ForeignReach, Instance, InstanceIndex, Membership, Mtu, Network, NetworkKind, NetworkNumbers, Peer,
    PeerNetworks, Plan, PortId, PresharedKey, PrivateKey, Reach, Vni, derive_vni, site_ipv6_prefix,
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
    /// Its index in this host's block.
    pub(crate) index: InstanceIndex,
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
    /// The numbers of peers, and of those hosts.
    pub(crate) peers: &'a PeerNumbers,
    /// The secrets.
    pub(crate) keys: &'a Keys,
    /// The underlay's MTU, in bytes.
    pub(crate) underlay_mtu: u32,
    /// This host's underlay addresses.
    pub(crate) addresses: &'a [IpAddr],
}

/// A contradiction among the inputs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    /// Two networks have one number.
    #[error(
        "the networks of {first} and {second} both have VNI {vni}: set `network.vni` in the document of one of them"
    )]
    SameVni {
        /// One application.
        first: ApplicationKey,
        /// The other.
        second: ApplicationKey,
        /// The number of both.
        vni: Vni,
    },
    /// An attached instance's application or service is no longer described.
    #[error(
        "{application} describes no service `{service}`, but its instance {instance} is attached here: detach it first"
    )]
    InstanceWithoutService {
        /// The application.
        application: ApplicationKey,
        /// The service.
        service: String,
        /// The instance.
        instance: String,
    },
    /// An attached instance's index isn't in the host's block.
    #[error("{application} instance {instance}: this host's block has no address with index {index}")]
    OutsideBlock {
        /// The application.
        application: ApplicationKey,
        /// The instance.
        instance: String,
        /// The index.
        index: InstanceIndex,
    },
    /// A peer's entry and an application's document name different numbers for one network.
    #[error(
        "peer {peer} expects VNI {expected} for {application}, whose network has VNI {vni}: set `network.vni: \
         {expected}` in the application's document, or take `vni` out of the peer's entry"
    )]
    PeerVni {
        /// The peer.
        peer: String,
        /// The application.
        application: ApplicationKey,
        /// What the peer's entry says.
        expected: Vni,
        /// The network's number.
        vni: Vni,
    },
    /// A peer claims this host's ordinal.
    #[error(
        "peer {peer} has ordinal {ordinal}, which is this host's own: every host of a site needs another one"
    )]
    PeerOrdinal {
        /// The peer.
        peer: String,
        /// The ordinal of both.
        ordinal: tidegate_stack::plan::HostOrdinal,
    },
    /// A peer was never given a number.
    #[error("peer {peer} has no number yet: restart the agent")]
    PeerWithoutNumber {
        /// The peer.
        peer: String,
    },
}

/// All contradictions of one set of inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlanErrors(pub(crate) Vec<PlanError>);

impl fmt::Display for PlanErrors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                formatter.write_str("\n")?;
            }
            error.fmt(formatter)?;
        }
        Ok(())
    }
}

impl std::error::Error for PlanErrors {}

/// The plan that follows from the inputs, in its one order.
///
/// # Errors
/// Every contradiction among them.
pub(crate) fn plan(inputs: &Inputs<'_>) -> Result<Plan, PlanErrors> {
    let mut errors = Vec::new();
    let networks = networks(inputs, &mut errors);
    let instances = instances(inputs, &networks, &mut errors);
    let mut peers = peers(inputs, &mut errors);
    peers.extend(site::peers(inputs, &mut errors).0);
    if !errors.is_empty() {
        return Err(PlanErrors(errors));
    }
    let mut plan = Plan {
        services: Vec::new(),
        members: Vec::new(),
        names: Vec::new(),
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
    site::peers(inputs, &mut Vec::new()).1
}

/// The number of an application's network.
pub(crate) fn network_vni(document: &ApplicationDocument) -> Vni {
    document
        .vni
        .unwrap_or_else(|| derive_vni(&document.tenant, NetworkKind::Application, &document.name))
}

/// The addresses of an application's network.
pub(crate) fn network_numbers(host: &HostDocument, document: &ApplicationDocument) -> NetworkNumbers {
    let site = site_ipv6_prefix(&host.site);
    NetworkNumbers::application(host.network.application_prefix, site, network_vni(document))
}

/// The addresses that an instance with `index` has on this host; `None` when the block hasn't that index.
pub(crate) fn memberships(
    host: &HostDocument,
    document: &ApplicationDocument,
    index: InstanceIndex,
) -> Option<Vec<Membership>> {
    let (ipv4, ipv6) = network_numbers(host, document).instance(host.ordinal, index)?;
    Some(vec![Membership {
        vni: network_vni(document),
        ipv4,
        ipv6,
    }])
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

fn networks(inputs: &Inputs<'_>, errors: &mut Vec<PlanError>) -> BTreeMap<ApplicationKey, Network> {
    let mut owners = BTreeMap::<Vni, &ApplicationKey>::new();
    let mut networks = BTreeMap::new();
    for (key, document) in inputs.applications {
        let vni = network_vni(document);
        if let Some(first) = owners.insert(vni, key) {
            errors.push(PlanError::SameVni {
                first: first.clone(),
                second: key.clone(),
                vni,
            });
        }
        let network = Network {
            vni,
            kind: NetworkKind::Application,
            tenant: document.tenant.clone(),
            name: document.name.clone(),
            numbers: network_numbers(inputs.host, document),
        };
        networks.insert(key.clone(), network);
    }
    networks
}

fn instances(
    inputs: &Inputs<'_>,
    networks: &BTreeMap<ApplicationKey, Network>,
    errors: &mut Vec<PlanError>,
) -> Vec<Instance> {
    let mut instances = Vec::new();
    for attachment in inputs.attachments {
        let key = &attachment.application;
        let described = inputs.applications.get(key).is_some_and(|document| {
            document
                .services
                .iter()
                .any(|service| service.name == attachment.service)
        });
        let Some(network) = networks.get(key).filter(|_| described) else {
            errors.push(PlanError::InstanceWithoutService {
                application: key.clone(),
                service: attachment.service.clone(),
                instance: attachment.name(),
            });
            continue;
        };
        let Some((ipv4, ipv6)) = network.numbers.instance(inputs.host.ordinal, attachment.index) else {
            errors.push(PlanError::OutsideBlock {
                application: key.clone(),
                instance: attachment.name(),
                index: attachment.index,
            });
            continue;
        };
        instances.push(Instance {
            port: attachment.port,
            tenant: key.tenant.clone(),
            application: key.name.clone(),
            service: attachment.service.clone(),
            name: attachment.name(),
            memberships: vec![Membership {
                vni: network.vni,
                ipv4,
                ipv6,
            }],
            mtu: attachment.mtu,
            offloads: attachment.offloads,
        });
    }
    instances
}

fn peers(inputs: &Inputs<'_>, errors: &mut Vec<PlanError>) -> Vec<Peer> {
    let mut peers = Vec::new();
    for document in &inputs.host.cluster.peers {
        if document.ordinal == inputs.host.ordinal {
            errors.push(PlanError::PeerOrdinal {
                peer: document.name.clone(),
                ordinal: document.ordinal,
            });
        }
        let networks = peer_networks(inputs, document, errors);
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

fn peer_networks(inputs: &Inputs<'_>, peer: &PeerDocument, errors: &mut Vec<PlanError>) -> PeerNetworks {
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
        vnis.insert(vni);
    }
    PeerNetworks::Only(vnis)
}

#[cfg(test)]
mod tests;
