//! Who is where: the ports, networks, peers and services of a plan, made to be looked up.

use super::owners::Limited;
use super::services::{ApplicationSlot, ServiceEntry, ServiceSlot, Services};
use crate::flow::{QuotaSlot, Quotas};
use crate::plan::{
    HostOrdinal, Instance, Member, Mtu, Network, NetworkKind, NetworkNumbers, PeerId, PeerNetworks, Plan,
    PortId, Reach, Service, ServiceId, Vni,
};
use crate::wire::{Endpoints, Headers};
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

type Map<K, V> = HashMap<K, V, FixedState>;

/// Slots of a network's blocks by ordinal: nobody.
const NOBODY: u32 = u32::MAX;

/// A port's place in a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PortSlot(pub u32);

/// Compiled policy and routes.
pub struct Policy {
    epoch: u64,
    pub(super) source: Source,
    ports: Vec<PortEntry>,
    port_slots: Map<PortId, PortSlot>,
    networks: Map<Vni, NetworkEntry>,
    peers: Map<PeerId, PeerEntry>,
    pub(super) services: Services,
    pub(super) limited: Limited,
}

/// What a policy is compiled from: to compare, and to tell what things are called.
#[derive(PartialEq, Eq)]
pub(super) struct Source {
    ordinal: HostOrdinal,
    pub(super) networks: Vec<Network>,
    pub(super) services: Vec<Service>,
    /// In the order of the ports.
    pub(super) instances: Vec<Instance>,
    pub(super) members: Vec<Member>,
    peers: Vec<(PeerId, PeerEntry)>,
}

/// A port.
pub struct PortEntry {
    /// Its number.
    pub id: PortId,
    /// Largest packet its device takes.
    pub mtu: Mtu,
    /// Whether its device takes super-packets and partial checksums.
    pub offloads: bool,
    /// The service of its instance.
    pub service: Option<ServiceSlot>,
    /// The networks it is in; the application's own first.
    pub memberships: Vec<MemberEntry>,
}

/// A port's membership in a network.
#[derive(Clone, Copy, Debug)]
pub struct MemberEntry {
    /// The network.
    pub vni: Vni,
    /// The network's prefixes.
    pub numbers: NetworkNumbers,
    /// The port's IPv4 address.
    pub ipv4: Ipv4Addr,
    /// The port's IPv6 address.
    pub ipv6: Ipv6Addr,
}

impl PortEntry {
    /// The network that a packet of its instance is in: the one whose prefix covers the destination, else the one whose
    /// address the source is (it wants out). Its source may still be another one's.
    pub fn network_of(&self, endpoints: &Endpoints) -> Option<&MemberEntry> {
        let covering = self
            .memberships
            .iter()
            .find(|member| member.covers(endpoints.destination));
        covering.or_else(|| {
            self.memberships
                .iter()
                .find(|member| member.owns(endpoints.source))
        })
    }
}

impl MemberEntry {
    /// Whether an address belongs to the network's prefixes.
    pub fn covers(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.numbers.ipv4_prefix.contains(&address),
            IpAddr::V6(address) => self.numbers.ipv6_prefix.contains(&address),
        }
    }

    /// Whether an address is the port's own.
    pub fn owns(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.ipv4 == address,
            IpAddr::V6(address) => self.ipv6 == address,
        }
    }

    /// The appliance's address in the network, of the family of `like`.
    pub fn service_address(&self, like: IpAddr) -> IpAddr {
        match like {
            IpAddr::V4(_) => self.numbers.service_ipv4().into(),
            IpAddr::V6(_) => self.numbers.service_ipv6().into(),
        }
    }
}

/// A network.
pub struct NetworkEntry {
    /// Its prefixes.
    pub numbers: NetworkNumbers,
    /// Where its flows are counted: the same as long as it exists.
    pub quota: QuotaSlot,
    /// The application whose own network it is.
    pub(super) application: Option<ApplicationSlot>,
    /// Local instances by address.
    instances: Map<IpAddr, PortSlot>,
    /// The services of other hosts' instances by address.
    members: Map<IpAddr, ServiceSlot>,
    /// The member peer that owns each ordinal's block.
    blocks: Box<[u32; 256]>,
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerEntry {
    /// What it is called.
    pub name: String,
    /// Its ordinal.
    pub ordinal: HostOrdinal,
    /// The networks it is a member of.
    pub networks: PeerNetworks,
    /// Largest inner packet towards it.
    pub mtu: Mtu,
    /// Whether it is a host of the site. If so, MAC addresses behind it follow from IP addresses, and flows with it live
    /// where their homes are; those with a foreign peer live on shard 0, which has its lane.
    pub of_site: bool,
}

fn peer_entries(plan: &Plan) -> Vec<(PeerId, PeerEntry)> {
    let entry = |peer: &crate::plan::Peer| PeerEntry {
        name: peer.name.clone(),
        ordinal: peer.ordinal,
        networks: peer.networks.clone(),
        mtu: peer.mtu,
        of_site: matches!(peer.reach, Reach::Site(_)),
    };
    plan.peers.iter().map(|peer| (peer.id, entry(peer))).collect()
}

fn are_placed_alike(former: &[Instance], now: &[Instance]) -> bool {
    let mut pairs = former.iter().zip(now);
    former.len() == now.len() && pairs.all(|(former, now)| former.is_placed_as(now))
}

/// Where the flows of a plan's networks are counted: where they were before, or where nobody's are.
fn quota_slots(plan: &Plan, previous: Option<&Policy>) -> Map<Vni, QuotaSlot> {
    let before = |vni: Vni| Some((vni, previous?.network(vni)?.quota));
    let mut slots: Map<Vni, QuotaSlot> = plan
        .networks
        .iter()
        .filter_map(|network| before(network.vni))
        .collect();
    let taken: BTreeSet<u16> = slots.values().map(|slot| slot.0).collect();
    let mut free = (0..Quotas::SLOTS).filter(|slot| !taken.contains(slot));
    for network in &plan.networks {
        slots
            .entry(network.vni)
            .or_insert_with(|| QuotaSlot(free.next().unwrap_or(Quotas::SLOTS - 1)));
    }
    slots
}

impl Policy {
    /// Compiles the policy of a plan, which comes after `previous`.
    pub fn compile(plan: &Plan, previous: Option<&Self>) -> Self {
        let peers = peer_entries(plan);
        let services = Services::compile(plan);
        let mut quotas = quota_slots(plan, previous);
        let mut networks: Map<Vni, NetworkEntry> = Map::default();
        for network in &plan.networks {
            let mut blocks = Box::new([NOBODY; 256]);
            for (id, peer) in peers
                .iter()
                .filter(|(_, peer)| peer.networks.contains(network.vni))
            {
                blocks[usize::from(peer.ordinal.get())] = id.0;
            }
            let entry = NetworkEntry {
                numbers: network.numbers,
                quota: quotas.remove(&network.vni).unwrap_or_default(),
                application: match network.kind {
                    NetworkKind::Application => services.application_slot(&network.tenant, &network.name),
                    NetworkKind::Shared => None,
                },
                instances: Map::default(),
                members: Map::default(),
                blocks,
            };
            networks.insert(network.vni, entry);
        }
        let mut ports = Vec::with_capacity(plan.instances.len());
        let mut port_slots = Map::default();
        for (slot, instance) in (0..).map(PortSlot).zip(&plan.instances) {
            let mut memberships = Vec::with_capacity(instance.memberships.len());
            for membership in &instance.memberships {
                let Some(network) = networks.get_mut(&membership.vni) else {
                    continue;
                };
                for address in membership.addresses() {
                    network.instances.insert(address, slot);
                }
                memberships.push(MemberEntry {
                    vni: membership.vni,
                    numbers: network.numbers,
                    ipv4: membership.ipv4,
                    ipv6: membership.ipv6,
                });
            }
            port_slots.insert(instance.port, slot);
            ports.push(PortEntry {
                id: instance.port,
                mtu: instance.mtu,
                offloads: instance.offloads,
                service: services.slot(&instance.service_id()),
                memberships,
            });
        }
        for member in &plan.members {
            let Some((network, service)) = networks.get_mut(&member.vni).zip(services.slot(&member.service))
            else {
                continue;
            };
            for address in member.addresses() {
                // A record speaks for its host's own block only.
                let owner = network
                    .owner(address)
                    .and_then(|ordinal| network.peer_of(ordinal));
                if owner == Some(member.peer) && network.covers(address) {
                    network.members.insert(address, service);
                }
            }
        }
        let source = Source {
            ordinal: plan.ordinal,
            networks: plan.networks.clone(),
            services: plan.services.clone(),
            instances: plan.instances.clone(),
            members: plan.members.clone(),
            peers: peers.clone(),
        };
        Self {
            epoch: previous.map_or(1, |previous| previous.epoch + 1),
            source,
            ports,
            port_slots,
            networks,
            peers: peers.into_iter().collect(),
            services,
            limited: Limited::compile(plan, previous.map(|previous| &previous.limited)),
        }
    }

    /// Whether a plan says the same about policy and routes.
    pub fn is_compiled_from(&self, plan: &Plan) -> bool {
        self.source.ordinal == plan.ordinal
            && self.source.networks == plan.networks
            && self.source.services == plan.services
            && are_placed_alike(&self.source.instances, &plan.instances)
            && self.source.members == plan.members
            && self.source.peers == peer_entries(plan)
    }

    /// The number that flows remember.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// This host.
    pub fn ordinal(&self) -> HostOrdinal {
        self.source.ordinal
    }

    /// The place of a port.
    pub fn port_slot(&self, port: PortId) -> Option<PortSlot> {
        self.port_slots.get(&port).copied()
    }

    /// The port at a place.
    pub fn port(&self, slot: PortSlot) -> Option<&PortEntry> {
        self.ports.get(slot.0 as usize)
    }

    /// All ports.
    pub fn ports(&self) -> &[PortEntry] {
        &self.ports
    }

    /// The network with this VNI.
    pub fn network(&self, vni: Vni) -> Option<&NetworkEntry> {
        self.networks.get(&vni)
    }

    /// The own networks of applications.
    pub fn application_networks(&self) -> impl Iterator<Item = Vni> + '_ {
        let networks = self.source.networks.iter();
        networks
            .filter(|network| network.kind == NetworkKind::Application)
            .map(|network| network.vni)
    }

    /// The peer with this number.
    pub fn peer(&self, peer: PeerId) -> Option<&PeerEntry> {
        self.peers.get(&peer)
    }

    /// All peers.
    pub fn peers(&self) -> impl Iterator<Item = &PeerEntry> {
        self.source.peers.iter().map(|(_, peer)| peer)
    }

    /// The place of a service that the plan names.
    pub fn service_slot(&self, id: &ServiceId) -> Option<ServiceSlot> {
        self.services.slot(id)
    }

    /// The service at a place.
    pub fn service(&self, slot: ServiceSlot) -> Option<&ServiceEntry> {
        self.services.get(slot)
    }

    /// The service behind an address: of an instance of this host, or of another one as its record tells.
    pub fn service_behind(&self, network: &NetworkEntry, address: IpAddr) -> Option<ServiceSlot> {
        match network.instance(address) {
            Some(slot) => self.port(slot)?.service,
            None => network.members.get(&address).copied(),
        }
    }

    /// Whether a packet of an instance of this host still goes to a peer: for what has waited, which may have been
    /// judged under another policy.
    pub fn leads_to_peer(&self, vni: Vni, headers: &Headers, peer: PeerId) -> bool {
        self.network(vni).is_some_and(|network| {
            let owner = network.owner(headers.destination);
            network.instance(headers.source).is_some()
                && network.covers(headers.destination)
                && owner.and_then(|ordinal| network.peer_of(ordinal)) == Some(peer)
        })
    }

    /// Whether packets between these addresses go to a foreign peer, or come from one.
    pub fn meets_foreign_peer(&self, vni: Vni, endpoints: &Endpoints) -> bool {
        let is_foreign = |network: &NetworkEntry, address| {
            let peer = network
                .owner(address)
                .and_then(|ordinal| network.peer_of(ordinal));
            peer.and_then(|peer| self.peer(peer))
                .is_some_and(|entry| !entry.of_site)
        };
        self.network(vni).is_some_and(|network| {
            is_foreign(network, endpoints.destination) || is_foreign(network, endpoints.source)
        })
    }
}

impl NetworkEntry {
    /// Whether an address belongs to the network's prefixes.
    pub fn covers(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.numbers.ipv4_prefix.contains(&address),
            IpAddr::V6(address) => self.numbers.ipv6_prefix.contains(&address),
        }
    }

    /// Whether an address is the appliance's own in this network.
    pub fn is_service_address(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address == self.numbers.service_ipv4(),
            IpAddr::V6(address) => address == self.numbers.service_ipv6(),
        }
    }

    /// The local instance with this address.
    pub fn instance(&self, address: IpAddr) -> Option<PortSlot> {
        self.instances.get(&address).copied()
    }

    /// The ordinal in whose block an address lies.
    pub fn owner(&self, address: IpAddr) -> Option<u8> {
        let ordinal = match address {
            IpAddr::V4(address) => {
                let offset = address.to_bits() ^ self.numbers.ipv4_prefix.network().to_bits();
                offset >> (32 - u32::from(self.numbers.ipv4_block_length))
            }
            IpAddr::V6(address) => {
                let offset = address.to_bits() ^ self.numbers.ipv6_prefix.network().to_bits();
                u32::try_from(offset >> 16).ok()?
            }
        };
        u8::try_from(ordinal).ok().filter(|ordinal| *ordinal != 0)
    }

    /// The member peer that owns an ordinal's block.
    pub fn peer_of(&self, ordinal: u8) -> Option<PeerId> {
        let id = self.blocks[usize::from(ordinal)];
        (id != NOBODY).then_some(PeerId(id))
    }

    /// The IPv4 address of the instance that has this address: the one its MAC address is made of. `None` outside
    /// hosts' blocks.
    pub fn ipv4_of(&self, address: IpAddr) -> Option<Ipv4Addr> {
        match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(ipv6) => {
                let ordinal = HostOrdinal::try_from(u64::from(self.owner(address)?)).ok()?;
                let index = u32::try_from(ipv6.to_bits() & 0xffff).ok()?;
                let block = self.numbers.block_ipv4(ordinal);
                Some(Ipv4Addr::from_bits(block.network().to_bits() | index))
            }
        }
    }
}
