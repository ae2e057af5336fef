//! What a host is meant to do, whole: plain data, made of types that cannot hold an illegal value.
//!
//! The agent merges documents, records and attachments into a [`Plan`]; the datapath compiles it into a
//! [`Snapshot`](crate::snapshot::Snapshot). Equal plans give no new epoch, so a plan is kept in one order:
//! [`Plan::normalise`] sorts it.

mod access;
mod keys;
mod names;
mod numbering;
mod readiness;
mod types;

pub use access::{
    Access, Action, Limits, Member, OnDeny, PortRange, ProtocolMatch, Rule, Selector, Service, ServiceId,
};
pub use keys::{KeyError, PresharedKey, PrivateKey, PublicKey};
pub use names::{AnswerOrder, NamedInstance, NamedPort, NamedService, NetworkNames, PortProtocol, Text};
pub use numbering::{
    BLOCK_LENGTH_APPLICATION, BLOCK_LENGTH_SHARED, NetworkNumbers, derive_vni, shared_prefix_index,
    site_ipv6_prefix, vtep_address,
};
pub use readiness::{HttpPath, HttpPathError, Readiness, ReadinessQuestion};
pub use types::{
    HostOrdinal, IllegalValue, InstanceIndex, Mtu, PeerId, PortId, ProbeFailures, ProbeInterval, Vni,
};

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// A host's whole intent.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// This host's ordinal in its site: it owns the blocks of that number, and the VTEP address.
    pub ordinal: HostOrdinal,
    /// The networks that this host takes part in, by VNI.
    pub networks: Vec<Network>,
    /// What documents say about services: those that have rules or limits, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Service>,
    /// The instances attached here, by port.
    pub instances: Vec<Instance>,
    /// The instances of other hosts, by network and address. There are none when nothing depends on who they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<Member>,
    /// What can be asked for by name, by network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<NetworkNames>,
    /// The other ends of tunnels, by id.
    pub peers: Vec<Peer>,
    /// The key of the foreign lane: the one WireGuard endpoint whose key and port are fixed.
    pub foreign_lane_key: PrivateKey,
}

/// A network: an isolated overlay with one VNI and a routing instance of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Its VXLAN network identifier (RFC 7348 §5).
    pub vni: Vni,
    /// Whether it belongs to one application or joins several.
    pub kind: NetworkKind,
    /// The tenant that it belongs to.
    pub tenant: String,
    /// The application's name, or the shared network's.
    pub name: String,
    /// Addresses and blocks.
    pub numbers: NetworkNumbers,
}

/// What a network joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkKind {
    /// The instances of one application.
    Application,
    /// Every application that names it.
    Shared,
}

/// An instance attached to this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// The port that its TUN device is.
    pub port: PortId,
    /// The tenant of its application.
    pub tenant: String,
    /// Its application.
    pub application: String,
    /// Its service.
    pub service: String,
    /// Its own name, `<service>-<n>`.
    pub name: String,
    /// The networks it is in, and its addresses there; the application's own network first.
    pub memberships: Vec<Membership>,
    /// The MTU of its device.
    pub mtu: Mtu,
    /// Whether its device takes super-packets and partial checksums (it was opened with a virtio header).
    pub offloads: bool,
    /// How it is asked whether it takes requests; `None`: it does as soon as it is attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Readiness>,
}

/// An instance's addresses in one network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// The network.
    pub vni: Vni,
    /// The instance's IPv4 address in it.
    pub ipv4: Ipv4Addr,
    /// The instance's IPv6 address in it.
    pub ipv6: Ipv6Addr,
}

impl Instance {
    /// Whether another one is the same to policy and routes, to which readiness is nothing.
    pub fn is_placed_as(&self, other: &Self) -> bool {
        let Self {
            port,
            tenant,
            application,
            service,
            name,
            memberships,
            mtu,
            offloads,
            readiness: _,
        } = self;
        *port == other.port
            && *tenant == other.tenant
            && *application == other.application
            && *service == other.service
            && *name == other.name
            && *memberships == other.memberships
            && *mtu == other.mtu
            && *offloads == other.offloads
    }

    /// Its service.
    pub fn service_id(&self) -> ServiceId {
        ServiceId {
            tenant: self.tenant.clone(),
            application: self.application.clone(),
            service: self.service.clone(),
        }
    }
}

impl Membership {
    /// Both addresses.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [IpAddr::V4(self.ipv4), IpAddr::V6(self.ipv6)]
    }
}

/// The other end of tunnels: another host of the site, or a foreign WireGuard peer that speaks VXLAN.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Number by which shards, reports and the agent name it; never reused for another peer while the agent lives.
    pub id: PeerId,
    /// Name from the document, or the host's id.
    pub name: String,
    /// Its ordinal: its blocks, and its VTEP address, the only inner source accepted from it.
    pub ordinal: HostOrdinal,
    /// By which keys and endpoints it is reached.
    pub reach: Reach,
    /// The networks it is a member of.
    pub networks: PeerNetworks,
    /// The inner MTU towards it, by the family of its underlay address.
    pub mtu: Mtu,
}

/// By which keys and endpoints a peer is reached.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// A foreign WireGuard peer: one tunnel, from the foreign lane, on shard 0.
    Foreign(ForeignReach),
    /// A host of the site: the lanes of its datapath's generations, oldest first. Two of them live side by side while
    /// one takes over from the other; none: the host is known, and can't be reached now.
    Site(Vec<Generation>),
}

impl Reach {
    /// The newest start of a site host's datapath.
    pub fn newest_generation(&self) -> Option<u64> {
        match self {
            Self::Foreign(_) => None,
            Self::Site(generations) => generations.iter().map(|generation| generation.number).max(),
        }
    }
}

/// A foreign peer's one lane.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForeignReach {
    /// Its static WireGuard key.
    pub public_key: PublicKey,
    /// Optional symmetric key mixed into the handshake.
    pub preshared_key: Option<PresharedKey>,
    /// Where it is; `None` when only it can begin. It may roam (an authenticated datagram from elsewhere moves it).
    pub endpoint: Option<SocketAddr>,
    /// Seconds between persistent keepalives, when asked for.
    pub keepalive: Option<u16>,
}

/// The lanes of one start of a host's datapath: one for each of its shards, in their order, never none. A flow's
/// packets go to lane `home % lanes.len()`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// The start's number; the higher one is the newer.
    pub number: u64,
    /// Its lanes.
    pub lanes: Vec<RemoteLane>,
}

/// One WireGuard endpoint of another host's shard. Its key lives as long as its datapath.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteLane {
    /// Its key.
    pub public_key: PublicKey,
    /// Where it listens.
    pub endpoint: SocketAddr,
}

/// The networks that a peer is a member of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerNetworks {
    /// Every network of this host.
    All,
    /// These and no others.
    Only(BTreeSet<Vni>),
}

impl PeerNetworks {
    /// Whether the peer is a member of `vni`.
    pub fn contains(&self, vni: Vni) -> bool {
        match self {
            Self::All => true,
            Self::Only(vnis) => vnis.contains(&vni),
        }
    }
}

impl Network {
    /// The appliance's own address in the network, IPv4.
    pub fn service_ipv4(&self) -> Ipv4Addr {
        self.numbers.service_ipv4()
    }

    /// The appliance's own address in the network, IPv6.
    pub fn service_ipv6(&self) -> Ipv6Addr {
        self.numbers.service_ipv6()
    }

    /// The network's whole IPv4 prefix.
    pub fn ipv4_prefix(&self) -> Ipv4Net {
        self.numbers.ipv4_prefix
    }

    /// The network's whole IPv6 prefix.
    pub fn ipv6_prefix(&self) -> Ipv6Net {
        self.numbers.ipv6_prefix
    }
}

impl Plan {
    /// Puts every list into its one order, so that equal intents are equal plans.
    pub fn normalise(&mut self) {
        self.networks.sort_by_key(|network| network.vni);
        self.services.sort_by(|a, b| a.id.cmp(&b.id));
        self.instances.sort_by_key(|instance| instance.port);
        self.members.sort_by_key(|member| (member.vni, member.ipv4));
        self.names.sort_by_key(|names| names.vni);
        for names in &mut self.names {
            names.normalise();
        }
        self.peers.sort_by_key(|peer| peer.id);
    }

    /// The network with this VNI.
    pub fn network(&self, vni: Vni) -> Option<&Network> {
        self.networks.iter().find(|network| network.vni == vni)
    }
}
