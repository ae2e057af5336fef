//! The site of the simulation: two hosts, two applications with identical addresses.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use tidegate_stack::plan::{
    ForeignReach, Generation, HostOrdinal, Instance, InstanceIndex, Membership, Mtu, Network, NetworkKind,
    NetworkNumbers, Peer, PeerId, PeerNetworks, Plan, PortId, PrivateKey, Reach, RemoteLane, derive_vni,
    site_ipv6_prefix,
};

/// The family of the addresses between the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Underlay {
    V4,
    V6,
}

/// What the hosts are to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Foreign peers, of so many shards.
    Foreign([u8; 2]),
    /// Hosts of one site, of so many shards.
    Shards([u8; 2]),
}

thread_local! {
    static SHAPE: Cell<Shape> = const { Cell::new(Shape::Foreign([1, 1])) };
}

/// Runs a story in sites of a shape: [`Site::default`] has it from then on, on this thread.
pub(crate) fn shaped(shape: Shape, story: impl FnOnce()) {
    SHAPE.set(shape);
    story();
    SHAPE.set(Shape::Foreign([1, 1]));
}

/// The datapath starts of a host that its peers have been told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) newest: u64,
    /// Whether the one before it is told too.
    pub(crate) former: bool,
}

/// What the site is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    pub(crate) underlay: Underlay,
    /// The underlay's.
    pub(crate) mtu: u16,
    /// Whether the instances' devices take super-packets.
    pub(crate) offloads: bool,
    /// Seconds between persistent keepalives.
    pub(crate) keepalive: Option<u16>,
    /// The application whose network alone the peers are members of.
    pub(crate) members_of: Option<&'static str>,
    pub(crate) shape: Shape,
    /// Per host.
    pub(crate) told: [Told; 2],
}

impl Default for Site {
    fn default() -> Self {
        Self {
            underlay: Underlay::V4,
            mtu: 1500,
            offloads: false,
            keepalive: None,
            members_of: None,
            shape: SHAPE.get(),
            told: [Told {
                newest: 1,
                former: false,
            }; 2],
        }
    }
}

/// The instances of each host, by port: the first two are `shop`'s, the third is `blue`'s with the addresses of the
/// first.
const INSTANCES: [(&str, u64); 3] = [("shop", 2), ("shop", 3), ("blue", 2)];
const SITE: &str = "store-42";
const TENANT: &str = "acme";

impl Site {
    /// IP and UDP between the hosts.
    pub(crate) fn outer_headers(&self) -> usize {
        match self.underlay {
            Underlay::V4 => 28,
            Underlay::V6 => 48,
        }
    }

    /// Largest packet between instances of two hosts: without IP, UDP, WireGuard, and IPv4, UDP, VXLAN, Ethernet.
    pub(crate) fn inner_mtu(&self) -> u16 {
        self.mtu - u16::try_from(self.outer_headers()).unwrap() - 32 - 50
    }

    /// Shards of a host.
    pub(crate) fn shards(&self, host: usize) -> u8 {
        match self.shape {
            Shape::Foreign(shards) | Shape::Shards(shards) => shards[host],
        }
    }

    /// Where a host's lane of a datapath start listens.
    pub(crate) fn lane_address(&self, host: usize, generation: u64, shard: u8) -> SocketAddr {
        let mut address = self.address(host);
        address.set_port(address.port() + 1 + 64 * u16::from(generation % 2 == 1) + u16::from(shard));
        address
    }

    fn reach(&self, host: usize) -> Reach {
        if let Shape::Foreign(_) = self.shape {
            return Reach::Foreign(ForeignReach {
                public_key: key(host).public_key(),
                preshared_key: None,
                endpoint: Some(self.address(host)),
                keepalive: self.keepalive,
            });
        }
        let Told { newest, former } = self.told[host];
        let generation = |number| Generation {
            number,
            lanes: (0..self.shards(host))
                .map(|shard| RemoteLane {
                    public_key: lane_key(host, number, shard).public_key(),
                    endpoint: self.lane_address(host, number, shard),
                })
                .collect(),
        };
        Reach::Site((newest - u64::from(former)..=newest).map(generation).collect())
    }

    /// Where a host's foreign lane listens.
    pub(crate) fn address(&self, host: usize) -> SocketAddr {
        let number = u8::try_from(11 + host).unwrap();
        let ip = match self.underlay {
            Underlay::V4 => IpAddr::from([192, 0, 2, number]),
            Underlay::V6 => IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, u16::from(number)]),
        };
        SocketAddr::new(ip, 51820)
    }

    /// A host's plan.
    pub(crate) fn plan(&self, host: usize) -> Plan {
        let other = 1 - host;
        let mtu = Mtu::try_from(u64::from(self.inner_mtu())).unwrap();
        let networks: Vec<Network> = ["shop", "blue"].into_iter().map(network).collect();
        let instances = INSTANCES.iter().zip(0..).map(|((application, index), port)| {
            let network = networks
                .iter()
                .find(|network| network.name == *application)
                .unwrap();
            let index = InstanceIndex::try_from(*index).unwrap();
            let (ipv4, ipv6) = network.numbers.instance(ordinal(host), index).unwrap();
            Instance {
                port: PortId(port),
                tenant: TENANT.into(),
                application: (*application).into(),
                service: "web".into(),
                name: format!("web-{port}"),
                memberships: vec![Membership {
                    vni: network.vni,
                    ipv4,
                    ipv6,
                }],
                mtu,
                offloads: self.offloads,
                readiness: None,
            }
        });
        let mut plan = Plan {
            services: Vec::new(),
            members: Vec::new(),
            names: Vec::new(),
            ordinal: ordinal(host),
            instances: instances.collect(),
            networks,
            peers: vec![Peer {
                id: PeerId(1),
                name: format!("h{}", other + 1),
                ordinal: ordinal(other),
                reach: self.reach(other),
                networks: self.members_of.map_or(PeerNetworks::All, |application| {
                    PeerNetworks::Only([network(application).vni].into())
                }),
                mtu,
            }],
            foreign_lane_key: key(host),
        };
        plan.normalise();
        plan
    }
}

/// A host's static key.
pub(crate) fn key(host: usize) -> PrivateKey {
    PrivateKey::from_bytes([u8::try_from(host + 1).unwrap(); 32])
}

/// The key of a lane of a datapath start.
pub(crate) fn lane_key(host: usize, generation: u64, shard: u8) -> PrivateKey {
    let mut bytes = [0x40; 32];
    bytes[0] = u8::try_from(host).unwrap();
    bytes[1] = u8::try_from(generation).unwrap();
    bytes[2] = shard;
    PrivateKey::from_bytes(bytes)
}

fn ordinal(host: usize) -> HostOrdinal {
    HostOrdinal::try_from(host as u64 + 1).unwrap()
}

fn network(application: &str) -> Network {
    let vni = derive_vni(TENANT, NetworkKind::Application, application);
    Network {
        vni,
        kind: NetworkKind::Application,
        tenant: TENANT.into(),
        name: application.into(),
        numbers: NetworkNumbers::application("172.19.0.0/16".parse().unwrap(), site_ipv6_prefix(SITE), vni),
    }
}
