//! The other hosts of the site: from what their records say to peers of a plan.
//!
//! What a plan needs of a record is remembered ([`KnownHost`]), and outlives the record: a host that fell silent keeps
//! its place in the plan. Its agent may have died while its datapath goes on, and this agent may have been restarted
//! where the others can't be asked; packets must not stop for either. Lanes that no longer exist do no harm: their
//! keys died with their process.

use super::networks::{NetworkKey, Networks};
use super::{Family, Inputs, PlanError, inner_mtu, instance_name};
use crate::agent::cluster::record::{LaneGeneration, NetworkRecord, NetworkSettings, RecordBody};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use tidegate_stack::plan::{
    Generation, HostOrdinal, Member, Membership, Network, NetworkKind, Peer, PeerId, PeerNetworks, Reach,
    RemoteLane, ServiceId, Vni,
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
    /// The instances attached to it, in the order of their services and addresses.
    #[serde(default)]
    pub(crate) instances: Vec<KnownInstance>,
}

/// What a plan needs to know of another host's instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct KnownInstance {
    /// Its service.
    pub(crate) service: ServiceId,
    /// Its number in the service. 0: it was told when names weren't kept yet, and has none until it is told again.
    #[serde(default)]
    pub(crate) number: u32,
    /// Its addresses, network by network.
    pub(crate) addresses: Vec<Membership>,
    /// Whether it may be sent to.
    #[serde(default)]
    pub(crate) ready: bool,
}

/// An instance of a live host, in one of the networks that are joined with it.
pub(super) struct RemoteInstance {
    pub(super) service: ServiceId,
    pub(super) number: u32,
    pub(super) membership: Membership,
    pub(super) ready: bool,
}

impl RemoteInstance {
    /// The instance's name.
    pub(super) fn name(&self) -> String {
        instance_name(&self.service.service, self.number)
    }
}

/// The other hosts, by name.
pub(crate) type KnownHosts = BTreeMap<String, KnownHost>;

impl KnownHost {
    /// What a record says.
    pub(crate) fn of(body: &RecordBody) -> Self {
        let mut generations = body.generations.clone();
        generations.retain(|generation| !generation.lanes.is_empty());
        generations.sort_by_key(|generation| generation.number);
        let instances = body.instances.iter().map(|instance| KnownInstance {
            service: ServiceId {
                tenant: instance.tenant.clone(),
                application: instance.application.clone(),
                service: instance.service.clone(),
            },
            number: instance.number,
            addresses: instance.addresses.clone(),
            ready: instance.ready,
        });
        let mut instances: Vec<_> = instances.collect();
        instances.sort_by_cached_key(|instance| {
            let addresses = instance.addresses.iter();
            let addresses: Vec<_> = addresses.map(|address| (address.vni, address.ipv4)).collect();
            (instance.service.clone(), addresses, instance.number)
        });
        Self {
            ordinal: body.ordinal,
            addresses: body.addresses.clone(),
            generations,
            network: body.network,
            networks: body.networks.clone(),
            instances,
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
        "VNI {vni} is {ours} here and {theirs} on host {host}: it is not joined with {host}; set {}, or {}",
        ours.setting("vni"), theirs.setting("vni")
    )]
    SameVni {
        /// The host.
        host: String,
        /// The number.
        vni: Vni,
        /// The network here.
        ours: NetworkKey,
        /// The network there.
        theirs: NetworkKey,
    },
    /// One prefix stands for two shared networks.
    #[error(
        "{prefix} is {ours} here and {theirs} on host {host}: no application can be in both; set {}, or {}",
        ours.setting("ipv4-prefix"), theirs.setting("ipv4-prefix")
    )]
    SamePrefix {
        /// The host.
        host: String,
        /// The prefix.
        prefix: Ipv4Net,
        /// The network here.
        ours: NetworkKey,
        /// The network there.
        theirs: NetworkKey,
    },
    /// One shared network has two prefixes.
    #[error(
        "{network} has the prefix {ours} here and {theirs} on host {host}: it is not joined with {host}; apply the \
         same documents on both"
    )]
    OtherPrefix {
        /// The host.
        host: String,
        /// The network.
        network: NetworkKey,
        /// The prefix here.
        ours: Ipv4Net,
        /// The prefix there.
        theirs: Ipv4Net,
    },
    /// One network has two numbers.
    #[error(
        "{network} has VNI {ours} here and {theirs} on host {host}: it is not joined with {host}; apply the same \
         documents on both"
    )]
    OtherVni {
        /// The host.
        host: String,
        /// The network.
        network: NetworkKey,
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
            | Self::SamePrefix { host, .. }
            | Self::OtherPrefix { host, .. }
            | Self::Settings { host, .. } => host,
        }
    }
}

/// What follows from the records of the other hosts.
#[derive(Default)]
pub(super) struct Site {
    /// Them, as peers.
    pub(super) peers: Vec<Peer>,
    /// Their instances, in the networks that are joined with them.
    pub(super) members: Vec<Member>,
    /// The same instances, as far as their hosts aren't silent.
    pub(super) instances: Vec<RemoteInstance>,
    /// What keeps hosts or networks out.
    pub(super) conflicts: Vec<Conflict>,
}

/// The other hosts as peers with members, and what keeps some out.
pub(super) fn site(inputs: &Inputs<'_>, networks: &Networks, errors: &mut Vec<PlanError>) -> Site {
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
    let mut site = Site::default();
    for (id, name, host) in hosts {
        let ordinal = host.ordinal;
        if ordinal == inputs.host.ordinal {
            let host = name.clone();
            site.conflicts.push(Conflict::OwnOrdinal { host, ordinal });
        } else if let Some(other) = ordinals.get(&ordinal) {
            site.conflicts.push(Conflict::SameOrdinal {
                host: name.clone(),
                other: other.clone(),
                ordinal,
            });
        } else {
            ordinals.insert(ordinal, format!("host {name}"));
            let joined = joined_networks(inputs, networks, name, host, &mut site.conflicts);
            let told = told(host, networks, &joined);
            site.members.extend(told.iter().map(|told| member(id, *told)));
            if !inputs.silent.contains(name) {
                site.instances
                    .extend(told.iter().filter_map(|told| remote_instance(*told)));
            }
            site.peers.push(peer(inputs, id, name, host, joined));
        }
    }
    site
}

fn peer(inputs: &Inputs<'_>, id: PeerId, name: &str, host: &KnownHost, joined: BTreeSet<Vni>) -> Peer {
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
        networks: PeerNetworks::Only(joined),
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
    networks: &Networks,
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
    for record in &host.networks {
        let theirs = NetworkKey {
            kind: record.kind,
            tenant: record.tenant.clone(),
            name: record.name.clone(),
        };
        match networks.get(&theirs) {
            Some(ours) => match difference(name, theirs, ours, record) {
                None => drop(joined.insert(record.vni)),
                Some(conflict) => conflicts.push(conflict),
            },
            None => conflicts.extend(collision(name, theirs, networks, record)),
        }
    }
    joined
}

/// What two hosts say differently about one network.
fn difference(host: &str, key: NetworkKey, ours: &Network, theirs: &NetworkRecord) -> Option<Conflict> {
    let host = host.to_owned();
    if ours.vni != theirs.vni {
        return Some(Conflict::OtherVni {
            host,
            network: key,
            ours: ours.vni,
            theirs: theirs.vni,
        });
    }
    let prefix = theirs.ipv4_prefix.filter(|prefix| *prefix != ours.ipv4_prefix());
    prefix.map(|theirs| Conflict::OtherPrefix {
        host,
        network: key,
        ours: ours.ipv4_prefix(),
        theirs,
    })
}

/// What a network of another host, which isn't here, has in common with one that is.
fn collision(
    host: &str,
    theirs: NetworkKey,
    networks: &Networks,
    record: &NetworkRecord,
) -> Option<Conflict> {
    let host = host.to_owned();
    if let Some((ours, _)) = networks.iter().find(|(_, network)| network.vni == record.vni) {
        return Some(Conflict::SameVni {
            host,
            vni: record.vni,
            ours: ours.clone(),
            theirs,
        });
    }
    let prefix = record
        .ipv4_prefix
        .filter(|_| record.kind == NetworkKind::Shared)?;
    let mut shared = networks.iter().filter(|(key, _)| key.kind == NetworkKind::Shared);
    let (ours, _) = shared.find(|(_, network)| network.ipv4_prefix() == prefix)?;
    Some(Conflict::SamePrefix {
        host,
        prefix,
        ours: ours.clone(),
        theirs,
    })
}

/// The instances of a host in the networks that are joined with it. What it says counts as far as it can be true:
/// addresses of its own blocks, each once, and in an application's own network instances of that application.
fn told<'a>(
    host: &'a KnownHost,
    networks: &Networks,
    joined: &BTreeSet<Vni>,
) -> Vec<(&'a KnownInstance, &'a Membership)> {
    let mut ipv4_taken = BTreeSet::new();
    let mut ipv6_taken = BTreeSet::new();
    let mut told = Vec::new();
    for network in networks.values().filter(|network| joined.contains(&network.vni)) {
        let ipv4_block = network.numbers.block_ipv4(host.ordinal);
        let ipv6_block = network.numbers.block_ipv6(host.ordinal);
        for instance in &host.instances {
            let service = &instance.service;
            let belongs = match network.kind {
                NetworkKind::Application => {
                    (&service.tenant, &service.application) == (&network.tenant, &network.name)
                }
                NetworkKind::Shared => true,
            };
            let addresses = instance.addresses.iter();
            let there = addresses.filter(|address| belongs && address.vni == network.vni);
            for address in there {
                let Membership { vni, ipv4, ipv6 } = address;
                let own = ipv4_block.contains(ipv4) && ipv6_block.contains(ipv6);
                if own && ipv4_taken.insert((*vni, *ipv4)) && ipv6_taken.insert((*vni, *ipv6)) {
                    told.push((instance, address));
                }
            }
        }
    }
    told
}

fn member(peer: PeerId, (instance, address): (&KnownInstance, &Membership)) -> Member {
    Member {
        vni: address.vni,
        ipv4: address.ipv4,
        ipv6: address.ipv6,
        peer,
        service: instance.service.clone(),
    }
}

/// `None`: it has no name yet.
fn remote_instance((instance, address): (&KnownInstance, &Membership)) -> Option<RemoteInstance> {
    (instance.number > 0).then(|| RemoteInstance {
        service: instance.service.clone(),
        number: instance.number,
        membership: *address,
        ready: instance.ready,
    })
}
