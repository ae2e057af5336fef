//! The other hosts of the site: from what their records say to peers of a plan.
//!
//! What a plan needs of a record is remembered ([`KnownHost`]), and outlives the record: a host that fell silent keeps
//! its place in the plan. Its agent may have died while its datapath goes on, and this agent may have been restarted
//! where the others can't be asked; packets must not stop for either. Lanes that no longer exist do no harm: their
//! keys died with their process.

use super::{ApplicationKey, Family, Inputs, PlanError, inner_mtu, network_vni};
use crate::agent::cluster::record::{LaneGeneration, NetworkRecord, NetworkSettings, RecordBody};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use tidegate_stack::plan::{
    Generation, HostOrdinal, NetworkKind, Peer, PeerId, PeerNetworks, Reach, RemoteLane, Vni,
};

/// What a plan needs of another host's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct KnownHost {
    /// Its number in the site.
    pub(crate) ordinal: HostOrdinal,
    /// Its underlay addresses, preferred first.
    pub(crate) addresses: Vec<IpAddr>,
    /// Its lanes.
    pub(crate) generations: Vec<LaneGeneration>,
    /// Its address plan.
    pub(crate) network: NetworkSettings,
    /// The networks that it takes part in.
    pub(crate) networks: Vec<NetworkRecord>,
}

/// The other hosts, by name.
pub(crate) type KnownHosts = BTreeMap<String, KnownHost>;

impl KnownHost {
    /// What a record says.
    pub(crate) fn of(body: &RecordBody) -> Self {
        let mut generations = body.generations.clone();
        generations.retain(|generation| !generation.lanes.is_empty());
        generations.sort_by_key(|generation| generation.number);
        Self {
            ordinal: body.ordinal,
            addresses: body.addresses.clone(),
            generations,
            network: body.network,
            networks: body.networks.clone(),
        }
    }
}

/// What is known after the records of those who live have come: theirs, and what was known of the silent ones. One
/// that is silent and whose ordinal another host has by now was replaced, and is forgotten.
pub(crate) fn learn(known: &KnownHosts, live: KnownHosts) -> KnownHosts {
    let taken: BTreeSet<_> = live.values().map(|host| host.ordinal).collect();
    let mut learned = known.clone();
    learned.retain(|_, host| !taken.contains(&host.ordinal));
    learned.extend(live);
    learned
}

/// What keeps a host, or a network of it, out of the plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Conflict {
    /// It claims this host's ordinal.
    #[error(
        "host {host} has ordinal {ordinal}, which is this host's own: nothing passes to it; give one of the two another \
         `ordinal`"
    )]
    OwnOrdinal {
        /// The host.
        host: String,
        /// The ordinal of both.
        ordinal: HostOrdinal,
    },
    /// It claims the ordinal of another one that was there before.
    #[error(
        "{other} and host {host} both have ordinal {ordinal}: nothing passes to {host}; give one of the two another \
         `ordinal`"
    )]
    SameOrdinal {
        /// The host.
        host: String,
        /// Who has the ordinal already.
        other: String,
        /// The ordinal of both.
        ordinal: HostOrdinal,
    },
    /// One number stands for two networks.
    #[error(
        "VNI {vni} is the network of {ours} here and of {theirs} on host {host}: it is not joined with {host}; set \
         `network.vni` in the document of one of the two"
    )]
    SameVni {
        /// The host.
        host: String,
        /// The number.
        vni: Vni,
        /// The network here.
        ours: ApplicationKey,
        /// The network there.
        theirs: ApplicationKey,
    },
    /// One network has two numbers.
    #[error(
        "the network of {network} has VNI {ours} here and {theirs} on host {host}: it is not joined with {host}; apply \
         the same document on both"
    )]
    OtherVni {
        /// The host.
        host: String,
        /// The network.
        network: ApplicationKey,
        /// The number here.
        ours: Vni,
        /// The number there.
        theirs: Vni,
    },
    /// The address plans differ.
    #[error(
        "`network.{key}` is {ours} here and {theirs} on host {host}: no network is joined with {host}; it must be the \
         same on all hosts of a site"
    )]
    Settings {
        /// The host.
        host: String,
        /// Which key.
        key: &'static str,
        /// The prefix here.
        ours: Ipv4Net,
        /// The prefix there.
        theirs: Ipv4Net,
    },
}

impl Conflict {
    /// Whom it keeps out.
    pub(crate) fn host(&self) -> &str {
        match self {
            Self::OwnOrdinal { host, .. }
            | Self::SameOrdinal { host, .. }
            | Self::SameVni { host, .. }
            | Self::OtherVni { host, .. }
            | Self::Settings { host, .. } => host,
        }
    }
}

/// The other hosts as peers, and what keeps some out.
pub(super) fn peers(inputs: &Inputs<'_>, errors: &mut Vec<PlanError>) -> (Vec<Peer>, Vec<Conflict>) {
    let mut hosts = Vec::new();
    for (name, host) in inputs.hosts {
        match inputs.peers.get_host(name) {
            Some(id) => hosts.push((id, name, host)),
            None => errors.push(PlanError::PeerWithoutNumber { peer: name.clone() }),
        }
    }
    // Who was known first keeps an ordinal that two claim: a newcomer's mistake must not cut what works.
    hosts.sort_by_key(|(id, ..)| *id);
    let mut ordinals: BTreeMap<HostOrdinal, String> = inputs
        .host
        .cluster
        .peers
        .iter()
        .map(|peer| (peer.ordinal, format!("peer {}", peer.name)))
        .collect();
    let mut peers = Vec::new();
    let mut conflicts = Vec::new();
    for (id, name, host) in hosts {
        let ordinal = host.ordinal;
        if ordinal == inputs.host.ordinal {
            let host = name.clone();
            conflicts.push(Conflict::OwnOrdinal { host, ordinal });
        } else if let Some(other) = ordinals.get(&ordinal) {
            conflicts.push(Conflict::SameOrdinal {
                host: name.clone(),
                other: other.clone(),
                ordinal,
            });
        } else {
            ordinals.insert(ordinal, format!("host {name}"));
            peers.push(peer(inputs, id, name, host, &mut conflicts));
        }
    }
    (peers, conflicts)
}

fn peer(
    inputs: &Inputs<'_>,
    id: PeerId,
    name: &str,
    host: &KnownHost,
    conflicts: &mut Vec<Conflict>,
) -> Peer {
    let address = address_of(inputs, name, host);
    let generations = address.map_or_else(Vec::new, |address| {
        host.generations
            .iter()
            .map(|generation| reach(generation, address))
            .collect()
    });
    Peer {
        id,
        name: name.to_owned(),
        ordinal: host.ordinal,
        reach: Reach::Site(generations),
        networks: PeerNetworks::Only(joined_networks(inputs, name, host, conflicts)),
        mtu: inner_mtu(inputs.underlay_mtu, address.map_or(Family::Ipv4, Family::of)),
    }
}

fn reach(generation: &LaneGeneration, address: IpAddr) -> Generation {
    let lanes = generation.lanes.iter().map(|lane| RemoteLane {
        public_key: lane.public_key,
        endpoint: SocketAddr::new(address, lane.port),
    });
    Generation {
        number: generation.number,
        lanes: lanes.collect(),
    }
}

/// Where a host is reached: at the address that the host document has for it when it says that it has that one, else
/// at the first of its own of a family that this host has, too.
fn address_of(inputs: &Inputs<'_>, name: &str, host: &KnownHost) -> Option<IpAddr> {
    let documented = inputs
        .host
        .cluster
        .hosts()
        .find(|document| document.host_id == name)
        .map(|document| document.address);
    let usable = |address: &&IpAddr| {
        let mut ours = inputs.addresses.iter();
        ours.any(|own| own.is_ipv4() == address.is_ipv4())
    };
    documented
        .filter(|address| host.addresses.contains(address))
        .or_else(|| host.addresses.iter().find(usable).copied())
        .or(documented)
        .or_else(|| host.addresses.first().copied())
}

/// The networks that both hosts have, under one name and number.
fn joined_networks(
    inputs: &Inputs<'_>,
    name: &str,
    host: &KnownHost,
    conflicts: &mut Vec<Conflict>,
) -> BTreeSet<Vni> {
    let ours = &inputs.host.network;
    let prefixes = [
        (
            "application-prefix",
            ours.application_prefix,
            host.network.application_prefix,
        ),
        ("shared-prefix", ours.shared_prefix, host.network.shared_prefix),
    ];
    let before = conflicts.len();
    for (key, ours, theirs) in prefixes {
        if ours != theirs {
            conflicts.push(Conflict::Settings {
                host: name.to_owned(),
                key,
                ours,
                theirs,
            });
        }
    }
    // An address would mean one instance here and another there.
    if conflicts.len() > before {
        return BTreeSet::new();
    }
    let mut joined = BTreeSet::new();
    for network in &host.networks {
        let theirs = ApplicationKey {
            tenant: network.tenant.clone(),
            name: network.name.clone(),
        };
        let mut applications = inputs.applications.iter();
        let same_number = applications.find(|(_, document)| network_vni(document) == network.vni);
        let same_name = match network.kind {
            NetworkKind::Application => inputs.applications.get(&theirs),
            NetworkKind::Shared => None,
        };
        match (same_number, same_name.map(network_vni)) {
            (_, Some(ours)) if ours == network.vni => {
                joined.insert(network.vni);
            }
            (_, Some(ours)) => conflicts.push(Conflict::OtherVni {
                host: name.to_owned(),
                network: theirs,
                ours,
                theirs: network.vni,
            }),
            (Some((ours, _)), None) => conflicts.push(Conflict::SameVni {
                host: name.to_owned(),
                vni: network.vni,
                ours: ours.clone(),
                theirs,
            }),
            (None, None) => {}
        }
    }
    joined
}
