//! Two hosts with a session between them, and nothing but memory around.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU8;
use std::sync::Arc;

use tidegate_stack::egress::{Egress, Handover, LaneKind, Route, ShardId, Slot};
use tidegate_stack::flow::Quotas;
use tidegate_stack::frame::{Batch, Frame, Offload, PoolSizes, Segmentation};
use tidegate_stack::plan::{
    ForeignReach, HostOrdinal, Instance, InstanceIndex, Membership, Mtu, Network, NetworkKind,
    NetworkNumbers, Peer, PeerId, PeerNetworks, Plan, PortId, PrivateKey, Reach, derive_vni,
    site_ipv6_prefix,
};
use tidegate_stack::shard::{Datagrams, Shard, ShardConfig};
use tidegate_stack::snapshot::Snapshot;
use tidegate_stack::time::Instant;
use tidegate_stack::wire::Ecn;

use crate::packets;

/// Inner MTU on an underlay of 1500 bytes and IPv4.
const MTU: u16 = 1390;
/// As large as a TUN device gives them with the `gso_max_size` that an instance has.
const SUPER_PACKET_SEGMENTS: usize = 43;

/// Who a packet goes between.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    host: u8,
    index: u8,
}

/// The sender: the first instance of the first host.
pub(crate) const NEAR: Place = Place { host: 0, index: 2 };
/// Another instance of the same host.
pub(crate) const LOCAL: Place = Place { host: 0, index: 3 };
/// The first instance of the other host.
pub(crate) const FAR: Place = Place { host: 1, index: 2 };

/// A host's plan: so many instances of one application, and so many peers, the second host first.
pub(crate) fn plan(host: u8, instances: u8, peers: u8) -> Plan {
    let network = network();
    let member = |index: u8| {
        let index = InstanceIndex::try_from(u64::from(index)).expect("an index of the block");
        let (ipv4, ipv6) = network
            .numbers
            .instance(ordinal(host), index)
            .expect("the block has room");
        Membership {
            vni: network.vni,
            ipv4,
            ipv6,
        }
    };
    let instance = |port: u8| Instance {
        port: PortId(u32::from(port)),
        tenant: "acme".into(),
        application: "shop".into(),
        service: "web".into(),
        name: format!("web-{}", port + 1),
        memberships: vec![member(port + 2)],
        mtu: mtu(),
        offloads: true,
        readiness: None,
    };
    let peer = |number: u8| {
        let other = if number == 0 { 1 - host } else { number + 1 };
        Peer {
            id: PeerId(u32::from(number) + 1),
            name: format!("h{other}"),
            ordinal: ordinal(other),
            reach: Reach::Foreign(ForeignReach {
                public_key: key(other).public_key(),
                preshared_key: None,
                endpoint: Some(address(other)),
                keepalive: None,
            }),
            networks: PeerNetworks::All,
            mtu: mtu(),
        }
    };
    let mut plan = Plan {
        services: Vec::new(),
        members: Vec::new(),
        names: Vec::new(),
        ordinal: ordinal(host),
        instances: (0..instances.max(2)).map(instance).collect(),
        peers: (0..peers).map(peer).collect(),
        networks: vec![network.clone()],
        foreign_lane_key: key(host),
    };
    plan.normalise();
    plan
}

/// Addresses in the network of a plan.
pub(crate) struct Addresses(NetworkNumbers);

impl Addresses {
    /// Those of the first network.
    pub(crate) fn of(plan: &Plan) -> Self {
        Self(plan.networks[0].numbers)
    }

    pub(crate) fn ipv4(&self, place: Place) -> IpAddr {
        self.both(place).0
    }

    pub(crate) fn ipv6(&self, place: Place) -> IpAddr {
        self.both(place).1
    }

    fn both(&self, place: Place) -> (IpAddr, IpAddr) {
        let index = InstanceIndex::try_from(u64::from(place.index)).expect("an index of the block");
        let (ipv4, ipv6) = self
            .0
            .instance(ordinal(place.host), index)
            .expect("the block has room");
        (ipv4.into(), ipv6.into())
    }
}

/// A packet of many segments, as it comes out of a TUN device.
pub(crate) struct SuperPacket {
    bytes: Vec<u8>,
    offload: Offload,
    /// Bytes that TCP carries with it.
    pub(crate) payload: u64,
}

/// Two hosts; the first one sends.
pub(crate) struct Pair {
    shards: [Shard; 2],
    outputs: [Outputs; 2],
    batch: Batch,
    addresses: Addresses,
}

impl Pair {
    /// With a session between them.
    pub(crate) fn connected() -> Self {
        let config = ShardConfig {
            id: ShardId(0),
            count: NonZeroU8::MIN,
            lane_key: PrivateKey::from_bytes([0x5a; 32]),
            seed: 1,
            flows: 1024,
            quotas: Arc::new(Quotas::of_host(1024)),
            frames: PoolSizes { small: 64, large: 16 },
        };
        let plans = [plan(0, 2, 1), plan(1, 2, 1)];
        let mut pair = Self {
            shards: [Shard::new(config.clone()), Shard::new(config)],
            outputs: [Outputs::default(), Outputs::default()],
            batch: Batch::new(1),
            addresses: Addresses::of(&plans[0]),
        };
        for (host, plan) in plans.iter().enumerate() {
            let snapshot = Snapshot::compile(plan, None);
            pair.shards[host].install(snapshot, Instant::ZERO, &mut pair.outputs[host]);
        }
        // The first packets make the session; then one of each family makes the flows.
        for ipv6 in [false, true] {
            let packet = pair.super_packet(FAR, ipv6);
            pair.hand_in(&packet);
            pair.exchange();
        }
        assert!(pair.outputs[1].delivered > 0, "no session was made");
        pair
    }

    /// From the first instance of the first host.
    pub(crate) fn super_packet(&self, to: Place, ipv6: bool) -> SuperPacket {
        let (address, network_header): (fn(&Addresses, Place) -> IpAddr, u16) = if ipv6 {
            (Addresses::ipv6, 40)
        } else {
            (Addresses::ipv4, 20)
        };
        let size = MTU - network_header - 20;
        let payload = vec![0x5a; usize::from(size) * SUPER_PACKET_SEGMENTS];
        SuperPacket {
            bytes: packets::tcp(
                address(&self.addresses, NEAR),
                address(&self.addresses, to),
                (40_000, 80),
                1000,
                &payload,
            ),
            offload: Offload {
                segmentation: Segmentation::Tcp { size, ecn: false },
                partial_checksum: Some((network_header, packets::TCP_CHECKSUM)),
            },
            payload: payload.len() as u64,
        }
    }

    /// Cut, encapsulated, sealed; what comes out is dropped.
    pub(crate) fn seal(&mut self, packet: &SuperPacket) {
        self.hand_in(packet);
        assert!(self.outputs[0].used > packet.bytes.len(), "nothing was sealed");
        self.outputs[0].clear();
    }

    /// Handed to another instance of the host.
    pub(crate) fn forward(&mut self, packet: &SuperPacket) {
        let before = self.outputs[0].delivered;
        self.hand_in(packet);
        assert!(self.outputs[0].delivered == before + 1, "nothing was delivered");
    }

    /// The datagrams of a packet.
    pub(crate) fn sealed(&mut self, packet: &SuperPacket) -> Vec<Sent> {
        self.hand_in(packet);
        let sent = self.outputs[0].sent();
        self.outputs[0].clear();
        sent
    }

    /// Opened, checked, glued and delivered by the second host.
    pub(crate) fn receive(&mut self, datagrams: &[Sent]) {
        let before = self.outputs[1].delivered;
        for sent in datagrams {
            self.shards[1].handle_lane(sent.datagrams(address(0)), Instant::ZERO, &mut self.outputs[1]);
        }
        self.shards[1].flush(Instant::ZERO, &mut self.outputs[1]);
        assert!(self.outputs[1].delivered > before, "nothing was delivered");
    }

    fn hand_in(&mut self, packet: &SuperPacket) {
        self.batch.clear();
        if let Some(frame) = self.batch.vacant() {
            frame.fill(&packet.bytes, packet.offload);
            self.batch.advance();
        }
        let [shard, _] = &mut self.shards;
        shard.handle_port(PortId(0), &mut self.batch, Instant::ZERO, &mut self.outputs[0]);
    }

    /// Carries everything until it is quiet.
    fn exchange(&mut self) {
        while self.outputs.iter().any(|outputs| outputs.used > 0) {
            for (from, to) in [(0, 1), (1, 0)] {
                let sent = self.outputs[from].sent();
                self.outputs[from].clear();
                let source = address(u8::try_from(from).expect("one of two"));
                for sent in &sent {
                    self.shards[to].handle_lane(sent.datagrams(source), Instant::ZERO, &mut self.outputs[to]);
                }
                self.shards[to].flush(Instant::ZERO, &mut self.outputs[to]);
            }
        }
    }
}

/// Datagrams that left together.
pub(crate) struct Sent {
    stride: usize,
    bytes: Vec<u8>,
}

impl Sent {
    fn datagrams(&self, source: SocketAddr) -> Datagrams<'_> {
        Datagrams {
            lane: LaneKind::Foreign,
            source,
            ecn: Ecn::NotCapable,
            stride: self.stride,
            bytes: &self.bytes,
        }
    }
}

/// Outputs into memory that is there already.
struct Outputs {
    bytes: Box<[u8]>,
    used: usize,
    /// Where batches begin and end, and their stride.
    batches: Vec<(usize, usize, usize)>,
    delivered: u64,
}

impl Default for Outputs {
    fn default() -> Self {
        Self {
            bytes: vec![0; 1 << 20].into(),
            used: 0,
            batches: Vec::with_capacity(256),
            delivered: 0,
        }
    }
}

impl Outputs {
    fn sent(&self) -> Vec<Sent> {
        let sent = |(start, end, stride): &(usize, usize, usize)| Sent {
            stride: *stride,
            bytes: self.bytes[*start..*end].to_vec(),
        };
        self.batches.iter().map(sent).collect()
    }

    fn clear(&mut self) {
        self.used = 0;
        self.batches.clear();
    }
}

impl Egress for Outputs {
    type Slot<'a> = Room<'a>;

    fn reserve(&mut self, _route: &Route, stride: usize, count: usize) -> Option<Room<'_>> {
        // A send takes 64 datagrams at most (UDP_MAX_SEGMENTS).
        let end = self.used + stride * count.min(64);
        (end <= self.bytes.len()).then_some(Room {
            outputs: self,
            stride,
            end,
        })
    }

    fn deliver(&mut self, _port: PortId, frame: &Frame) -> bool {
        self.delivered += u64::from(!frame.packet().is_empty());
        true
    }

    fn handover(&mut self, _to: ShardId, handover: Handover) -> Result<(), Handover> {
        Err(handover)
    }
}

struct Room<'a> {
    outputs: &'a mut Outputs,
    stride: usize,
    end: usize,
}

impl Slot for Room<'_> {
    fn buffer(&mut self) -> &mut [u8] {
        &mut self.outputs.bytes[self.outputs.used..self.end]
    }

    fn commit(self, used: usize) {
        if used > 0 {
            let start = self.outputs.used;
            self.outputs.used += used;
            self.outputs.batches.push((start, self.outputs.used, self.stride));
        }
    }
}

fn network() -> Network {
    let vni = derive_vni("acme", NetworkKind::Application, "shop");
    let prefix = "172.19.0.0/16".parse().expect("a prefix");
    Network {
        vni,
        kind: NetworkKind::Application,
        tenant: "acme".into(),
        name: "shop".into(),
        numbers: NetworkNumbers::application(prefix, site_ipv6_prefix("store-42"), vni),
    }
}

fn ordinal(host: u8) -> HostOrdinal {
    HostOrdinal::try_from(u64::from(host) + 1).expect("few hosts")
}

fn key(host: u8) -> PrivateKey {
    PrivateKey::from_bytes([host + 1; 32])
}

fn address(host: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 11 + host], 51820))
}

fn mtu() -> Mtu {
    Mtu::try_from(u64::from(MTU)).expect("a legal MTU")
}
