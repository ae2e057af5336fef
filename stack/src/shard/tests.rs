//! Two shards on one wire: what goes in at one end comes out at the other.

use super::*;
use crate::egress::{Route, Slot};
use crate::frame::{Offload, Segmentation};
use crate::plan::{
    ForeignReach, HostOrdinal, Instance, InstanceIndex, Membership, Mtu, Network, NetworkKind,
    NetworkNumbers, Peer, PeerId, PeerNetworks, Plan, PrivateKey, Reach, Vni, derive_vni, site_ipv6_prefix,
};
use crate::wire::{Headers, Transport};
use etherparse::PacketBuilder;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

const PORT: PortId = PortId(7);
const SECOND_PORT: PortId = PortId(8);

#[derive(Default)]
struct Outputs {
    datagrams: Vec<(Route, Vec<u8>)>,
    delivered: Vec<(PortId, Vec<u8>, Offload)>,
    /// `None`: other shards take nothing.
    handed_over: Option<Vec<(ShardId, Handover)>>,
}

struct OpenSlot<'a> {
    out: &'a mut Outputs,
    route: Route,
    stride: usize,
    buffer: Vec<u8>,
}

impl Egress for Outputs {
    type Slot<'a> = OpenSlot<'a>;

    fn reserve(&mut self, route: &Route, stride: usize, count: usize) -> Option<OpenSlot<'_>> {
        let buffer = vec![0; stride * count.min(5)];
        Some(OpenSlot {
            out: self,
            route: *route,
            stride,
            buffer,
        })
    }

    fn deliver(&mut self, port: PortId, frame: &Frame) -> bool {
        self.delivered
            .push((port, frame.packet().to_vec(), frame.offload));
        true
    }

    fn handover(&mut self, to: ShardId, handover: Handover) -> Result<(), Handover> {
        match &mut self.handed_over {
            None => Err(handover),
            Some(handed_over) => {
                handed_over.push((to, handover));
                Ok(())
            }
        }
    }
}

impl Slot for OpenSlot<'_> {
    fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    fn commit(self, used: usize) {
        for datagram in self.buffer[..used].chunks(self.stride) {
            self.out.datagrams.push((self.route, datagram.to_vec()));
        }
    }
}

struct Host {
    shard: Shard,
    out: Outputs,
    address: SocketAddr,
}

fn key(ordinal: u8) -> PrivateKey {
    PrivateKey::from_bytes([ordinal; 32])
}

fn ordinal(number: u8) -> HostOrdinal {
    HostOrdinal::try_from(u64::from(number)).unwrap()
}

fn underlay(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 51820))
}

fn shop() -> Network {
    let vni = derive_vni("acme", NetworkKind::Application, "shop");
    Network {
        vni,
        kind: NetworkKind::Application,
        tenant: "acme".into(),
        name: "shop".into(),
        numbers: NetworkNumbers::application("172.19.0.0/16".parse().unwrap(), site_ipv6_prefix("test"), vni),
    }
}

fn instance(port: PortId, own: u8, index: u64) -> Instance {
    let network = shop();
    let (ipv4, ipv6) = network
        .numbers
        .instance(ordinal(own), InstanceIndex::try_from(index).unwrap())
        .unwrap();
    Instance {
        port,
        tenant: "acme".into(),
        application: "shop".into(),
        service: "web".into(),
        name: format!("web-{index}"),
        memberships: vec![Membership {
            vni: network.vni,
            ipv4,
            ipv6,
        }],
        mtu: Mtu::try_from(1390).unwrap(),
        offloads: true,
        readiness: None,
    }
}

fn plan(own: u8, other: u8) -> Plan {
    Plan {
        services: Vec::new(),
        members: Vec::new(),
        names: Vec::new(),
        ordinal: ordinal(own),
        networks: vec![shop()],
        instances: vec![instance(PORT, own, 2), instance(SECOND_PORT, own, 3)],
        peers: vec![Peer {
            id: PeerId(1),
            name: format!("h{other}"),
            ordinal: ordinal(other),
            reach: Reach::Foreign(ForeignReach {
                public_key: key(other).public_key(),
                preshared_key: None,
                endpoint: Some(underlay(other)),
                keepalive: None,
            }),
            networks: PeerNetworks::All,
            mtu: Mtu::try_from(1390).unwrap(),
        }],
        foreign_lane_key: key(own),
    }
}

fn host(own: u8, other: u8) -> Host {
    host_since(own, other, now())
}

/// A host whose first plan came at `start`.
fn host_since(own: u8, other: u8, start: Instant) -> Host {
    let config = ShardConfig {
        id: ShardId(0),
        count: NonZeroU8::MIN,
        lane_key: key(own),
        seed: 1,
        flows: 64,
        quotas: Arc::new(Quotas::of_host(64)),
        frames: PoolSizes { small: 64, large: 16 },
    };
    let mut host = Host {
        shard: Shard::new(config),
        out: Outputs::default(),
        address: underlay(own),
    };
    let snapshot = Snapshot::compile(&plan(own, other), None);
    host.shard.install(snapshot, start, &mut host.out);
    host
}

fn now() -> Instant {
    Instant::ZERO + Duration::from_secs(100)
}

impl Host {
    fn send(&mut self, packet: &[u8], offload: Offload) {
        let mut batch = Batch::new(1);
        batch.vacant().unwrap().fill(packet, offload);
        batch.advance();
        self.shard.handle_port(PORT, &mut batch, now(), &mut self.out);
    }

    fn drops(&self, reason: DropReason) -> u64 {
        self.shard
            .report()
            .drops
            .iter()
            .filter(|drop| drop.reason == reason)
            .map(|drop| drop.packets)
            .sum()
    }
}

/// Carries datagrams until nobody says anything more.
fn settle(first: &mut Host, second: &mut Host) {
    for _ in 0..20 {
        let (a, b) = (carry(first, second), carry(second, first));
        if a + b == 0 {
            return;
        }
    }
    panic!("the hosts never stop talking");
}

fn carry(from: &mut Host, to: &mut Host) -> usize {
    let datagrams = std::mem::take(&mut from.out.datagrams);
    for (route, bytes) in &datagrams {
        assert_eq!(route.endpoint, to.address);
        let datagrams = Datagrams {
            lane: LaneKind::Foreign,
            source: from.address,
            ecn: route.ecn,
            stride: bytes.len(),
            bytes,
        };
        to.shard.handle_lane(datagrams, now(), &mut to.out);
    }
    to.shard.flush(now(), &mut to.out);
    datagrams.len()
}

fn pair() -> (Host, Host) {
    let (mut first, mut second) = (host(1, 2), host(2, 1));
    settle(&mut first, &mut second);
    (first, second)
}

fn tcp(source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut builder = PacketBuilder::ipv4(source, destination, 64)
        .tcp(40_000, 80, 1_000, 8_192)
        .ack(77);
    builder = if payload.len() > 4000 {
        builder
    } else {
        builder.psh()
    };
    let mut packet = Vec::new();
    builder.write(&mut packet, payload).unwrap();
    packet
}

const WEB_ON_1: [u8; 4] = [172, 19, 1, 2];
const WEB_ON_2: [u8; 4] = [172, 19, 2, 2];

#[test]
fn a_packet_crosses_the_tunnel_with_its_hop_limit_one_lower() {
    let (mut first, mut second) = pair();
    let packet = tcp(WEB_ON_1, WEB_ON_2, b"hello");
    first.send(&packet, Offload::NONE);
    settle(&mut first, &mut second);
    let (port, delivered, offload) = second.out.delivered.pop().expect("delivered");
    assert_eq!((port, offload), (PORT, Offload::NONE));
    let headers = Headers::parse(&delivered).unwrap();
    assert_eq!(headers.hop_limit, 63);
    assert_eq!(delivered[20..], packet[20..]);
    assert!(
        second.shard.report().drops.is_empty(),
        "{:?}",
        second.shard.report().drops
    );
}

#[test]
fn a_super_packet_is_cut_sealed_opened_and_glued_to_the_same_super_packet() {
    let (mut first, mut second) = pair();
    first.send(&tcp(WEB_ON_1, WEB_ON_2, b"neighbours meet"), Offload::NONE);
    settle(&mut first, &mut second);
    second.out.delivered.clear();
    let payload: Vec<u8> = (0..50_000_u32).map(|n| ((n * 31) >> 3) as u8).collect();
    let packet = tcp(WEB_ON_1, WEB_ON_2, &payload);
    let offload = Offload {
        segmentation: Segmentation::Tcp {
            size: 1338,
            ecn: false,
        },
        partial_checksum: Some((20, 16)),
    };
    first.send(&packet, offload);
    assert_eq!(first.out.datagrams.len(), 50_000_usize.div_ceil(1338));
    settle(&mut first, &mut second);
    assert_eq!(second.out.delivered.len(), 1);
    let (_, delivered, glued) = &second.out.delivered[0];
    assert_eq!(*glued, offload);
    let headers = Headers::parse(delivered).unwrap();
    assert_eq!(&delivered[headers.payload_offset..], &payload[..]);
    assert_eq!(second.shard.report().drops, vec![]);
}

#[test]
fn ipv6_crosses_the_tunnel_too() {
    let (mut first, mut second) = pair();
    let address = |own: u8| {
        shop()
            .numbers
            .instance(ordinal(own), InstanceIndex::MIN)
            .unwrap()
            .1
            .octets()
    };
    let mut packet = Vec::new();
    PacketBuilder::ipv6(address(1), address(2), 64)
        .udp(5_000, 6_000)
        .write(&mut packet, b"hello")
        .unwrap();
    first.send(&packet, Offload::NONE);
    settle(&mut first, &mut second);
    assert_eq!(first.shard.report().drops, vec![]);
    assert_eq!(second.shard.report().drops, vec![]);
    let (port, delivered, _) = second.out.delivered.pop().expect("delivered");
    assert_eq!(port, PORT);
    assert_eq!(Headers::parse(&delivered).unwrap().hop_limit, 63);
    assert_eq!(delivered[8..], packet[8..]);
}

#[test]
fn instances_of_one_host_meet_without_a_tunnel() {
    let (mut first, _second) = pair();
    first.send(&tcp(WEB_ON_1, [172, 19, 1, 3], b"hello"), Offload::NONE);
    let (port, delivered, _) = first.out.delivered.pop().expect("delivered");
    assert_eq!(port, SECOND_PORT);
    assert_eq!(Headers::parse(&delivered).unwrap().hop_limit, 63);
    assert!(first.out.datagrams.is_empty());
}

#[test]
fn what_is_not_allowed_is_dropped_under_its_own_reason() {
    let (mut first, _second) = pair();
    let cases = [
        (WEB_ON_1, [8, 8, 8, 8], DropReason::OutboundDenied),
        ([172, 19, 1, 9], WEB_ON_2, DropReason::SourceNotOwn),
        ([10, 0, 0, 1], [8, 8, 4, 4], DropReason::SourceNotOwn),
        (WEB_ON_1, [172, 19, 1, 77], DropReason::NoInstance),
        (WEB_ON_1, [172, 19, 9, 2], DropReason::NoPeer),
        (WEB_ON_1, [172, 19, 0, 1], DropReason::ServiceAddress),
        ([127, 0, 0, 1], WEB_ON_2, DropReason::SourceMartian),
        (WEB_ON_1, [224, 0, 0, 1], DropReason::Multicast),
    ];
    for (source, destination, reason) in cases {
        let before = first.drops(reason);
        first.send(&tcp(source, destination, b"probe"), Offload::NONE);
        assert_eq!(
            first.drops(reason),
            before + 1,
            "{source:?} to {destination:?} is {}",
            reason.label()
        );
    }
    assert!(first.out.delivered.is_empty());
    assert!(first.out.datagrams.is_empty());
}

#[test]
fn the_service_address_answers_echo() {
    let (mut first, _second) = pair();
    let mut packet = Vec::new();
    PacketBuilder::ipv4(WEB_ON_1, [172, 19, 0, 1], 64)
        .icmpv4_echo_request(5, 1)
        .write(&mut packet, b"ping")
        .unwrap();
    first.send(&packet, Offload::NONE);
    let (port, reply, _) = first.out.delivered.pop().expect("a reply");
    assert_eq!(port, PORT);
    let headers = Headers::parse(&reply).unwrap();
    assert_eq!(
        headers.transport,
        Transport::Echo {
            identifier: 5,
            request: false
        }
    );
    assert_eq!(headers.source, IpAddr::from(Ipv4Addr::new(172, 19, 0, 1)));
}

#[test]
fn a_packet_that_does_not_fit_tells_its_sender_the_mtu() {
    let (mut first, _second) = pair();
    let mut packet = tcp(WEB_ON_1, WEB_ON_2, &[0; 1400]);
    packet[6] |= 0x40;
    packet[10..12].fill(0);
    let sum = crate::frame::checksum::checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum);
    first.send(&packet, Offload::NONE);
    assert_eq!(first.drops(DropReason::PacketTooBig), 1);
    let (_, error, _) = first.out.delivered.pop().expect("an error");
    assert_eq!(error[20..22], [3, 4]);
    assert_eq!(u16::from_be_bytes([error[26], error[27]]), 1390);
}

#[test]
fn a_super_packet_that_may_be_fragmented_is_cut_to_what_the_path_takes() {
    let (mut first, mut second) = pair();
    first.send(&tcp(WEB_ON_1, WEB_ON_2, b"neighbours meet"), Offload::NONE);
    settle(&mut first, &mut second);
    let offload = Offload {
        segmentation: Segmentation::Tcp {
            size: 4_000,
            ecn: false,
        },
        partial_checksum: Some((20, 16)),
    };
    let mut packet = tcp(WEB_ON_1, WEB_ON_2, &[7; 9_000]);
    packet[6] &= !0x40;
    packet[10..12].fill(0);
    let sum = crate::frame::checksum::checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum);
    first.send(&packet, offload);
    assert_eq!(first.out.datagrams.len(), 9_000_usize.div_ceil(1350));
    settle(&mut first, &mut second);
    let (_, delivered, _) = second.out.delivered.pop().expect("delivered");
    assert_eq!(delivered.len(), 9_040);
}

#[test]
fn a_super_packet_of_too_many_segments_is_refused() {
    let (mut first, mut second) = pair();
    let offload = Offload {
        segmentation: Segmentation::Tcp { size: 1, ecn: false },
        partial_checksum: Some((20, 16)),
    };
    first.send(&tcp(WEB_ON_1, WEB_ON_2, b"neighbours meet"), Offload::NONE);
    settle(&mut first, &mut second);
    first.send(&tcp(WEB_ON_1, WEB_ON_2, &[7; 9_000]), offload);
    assert_eq!(first.out.datagrams.len(), 0, "nothing is sealed");
    assert_eq!(first.drops(DropReason::Malformed), 1);
}

#[test]
fn a_changed_policy_is_applied_to_live_flows_and_an_equal_one_is_no_epoch() {
    let (mut first, mut second) = pair();
    first.send(&tcp(WEB_ON_1, WEB_ON_2, b"hello"), Offload::NONE);
    settle(&mut first, &mut second);
    let current = first.shard.snapshot.clone().unwrap();
    let same = Snapshot::compile(&plan(1, 2), Some(&current));
    assert_eq!(same.epoch(), current.epoch());
    let mut without_peer = plan(1, 2);
    without_peer.peers[0].networks = PeerNetworks::Only([Vni::MIN].into());
    let changed = Snapshot::compile(&without_peer, Some(&current));
    assert_eq!(changed.epoch(), current.epoch() + 1);
    first.shard.install(changed, now(), &mut first.out);
    first.out.datagrams.clear();
    first.send(&tcp(WEB_ON_1, WEB_ON_2, b"again"), Offload::NONE);
    assert_eq!(first.drops(DropReason::NoPeer), 1);
    assert!(first.out.datagrams.is_empty());
}

mod denials;
mod guards;
mod names;
mod readiness;
mod relief;
