//! What the fuzz targets share: one host with a live session, and the peer at its other end.
//!
//! A [`Rig`] lives for many inputs, so that they cost microseconds; then a new one takes over, so that no session
//! grows old. A crash that doesn't come again from its input alone needs those before it: run the corpus.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU8;
use std::sync::Arc;
use std::time::Duration;
use tidegate_stack::egress::{Egress, Handover, LaneKind, Route, ShardId, Slot};
use tidegate_stack::flow::Quotas;
use tidegate_stack::frame::checksum::checksum;
use tidegate_stack::frame::{Batch, Frame, Offload, PoolSizes, Segmentation};
use tidegate_stack::plan::{
    AnswerOrder, ForeignReach, HostOrdinal, Instance, InstanceIndex, Membership, Mtu, NamedInstance,
    NamedPort, NamedService, Network, NetworkKind, NetworkNames, NetworkNumbers, Peer, PeerId, PeerNetworks,
    Plan, PortId, PortProtocol, PrivateKey, Reach, Text, Vni, site_ipv6_prefix, vtep_address,
};
use tidegate_stack::shard::{Datagrams, Shard, ShardConfig};
use tidegate_stack::snapshot::Snapshot;
use tidegate_stack::time::Instant;
use tidegate_stack::wire::{Ecn, Headers, MacAddr};
use tidegate_stack::wireguard::{
    DATA_OVERHEAD, HandshakeOutcome, Lane, Message, NoiseTunnel, Train, Tunnel, TunnelIndex,
};

/// Inputs that one rig takes.
const INPUTS: u32 = 20_000;
const VNI: u32 = 4242;

/// A host, and the peer at the other end of its tunnel.
pub struct Rig {
    shard: Shard,
    outputs: Outputs,
    batch: Batch,
    tunnel: NoiseTunnel,
    now: Instant,
    inputs: u32,
    plan: Plan,
}

impl Default for Rig {
    fn default() -> Self {
        Self::new()
    }
}

impl Rig {
    /// A host that has just greeted its peer.
    pub fn new() -> Self {
        let now = Instant::ZERO;
        let plan = plan();
        let config = ShardConfig {
            id: ShardId(0),
            count: NonZeroU8::MIN,
            lane_key: PrivateKey::from_bytes([0x5a; 32]),
            seed: 1,
            flows: 256,
            quotas: Arc::new(Quotas::of_host(256)),
            frames: PoolSizes {
                small: 128,
                large: 16,
            },
        };
        let lane = Lane::new(&key(2), now);
        let mut rig = Self {
            shard: Shard::new(config),
            outputs: Outputs::default(),
            batch: Batch::new(1),
            tunnel: NoiseTunnel::new(
                &lane,
                TunnelIndex::from_low_bits(7),
                &key(1).public_key(),
                None,
                None,
                now,
            ),
            now,
            inputs: 0,
            plan,
        };
        let snapshot: Arc<Snapshot> = Snapshot::compile(&rig.plan, None);
        rig.shard.install(snapshot, now, &mut rig.outputs);
        rig.settle();
        assert!(rig.tunnel.is_ready());
        rig
    }

    /// Makes ready for the next input.
    pub fn next(&mut self) {
        self.inputs += 1;
        if self.inputs == INPUTS {
            *self = Self::new();
        }
        self.now = self.now + Duration::from_millis(5);
        if self.shard.poll_timeout().is_some_and(|at| at <= self.now) {
            self.shard.handle_timeout(self.now, &mut self.outputs);
        }
    }

    /// A packet from the instance.
    pub fn from_port(&mut self, packet: &[u8], offload: Offload) {
        self.batch.clear();
        if let Some(frame) = self.batch.vacant() {
            frame.fill(packet, offload);
            self.batch.advance();
        }
        self.shard
            .handle_port(PortId(0), &mut self.batch, self.now, &mut self.outputs);
        self.settle();
    }

    /// Plaintext of the peer.
    pub fn from_peer(&mut self, plaintext: &[u8]) {
        let datagram = self.sealed(plaintext);
        self.from_lane(&datagram);
    }

    /// A datagram with this plaintext, as the peer seals it.
    pub fn sealed(&mut self, plaintext: &[u8]) -> Vec<u8> {
        let mut out = vec![0; plaintext.len() + DATA_OVERHEAD];
        let sealed = self.tunnel.seal(
            &Train {
                bytes: plaintext,
                stride: plaintext.len().max(1),
            },
            &mut out,
            self.now,
        );
        out.truncate(sealed.bytes);
        out
    }

    /// An initiation by the peer's key, newer than any before. Nobody finishes the handshake.
    pub fn initiation(&mut self) -> Vec<u8> {
        let lane = Lane::new(&key(2), self.now);
        let index = TunnelIndex::from_low_bits(8);
        let mut tunnel = NoiseTunnel::new(&lane, index, &key(1).public_key(), None, None, self.now);
        let mut out = vec![0; 256];
        let length = tunnel.initiate(&mut out, self.now);
        out.truncate(length);
        out
    }

    /// A datagram on the lane.
    pub fn from_lane(&mut self, bytes: &[u8]) {
        self.arrive(bytes);
        self.settle();
    }

    fn arrive(&mut self, bytes: &[u8]) {
        let datagrams = Datagrams {
            lane: LaneKind::Foreign,
            source: far_address(),
            ecn: Ecn::Capable0,
            stride: bytes.len().max(1),
            bytes,
        };
        self.shard.handle_lane(datagrams, self.now, &mut self.outputs);
        self.shard.flush(self.now, &mut self.outputs);
    }

    /// Lets the peer answer what the host says in handshakes.
    fn settle(&mut self) {
        while let Some(datagram) = self.outputs.datagrams.pop() {
            match Message::classify(&datagram) {
                Some(Message::Data { .. }) => {
                    let mut out = vec![0; 65_536];
                    self.tunnel.open(&datagram, &mut out, self.now);
                }
                Some(_) => {
                    let mut out = [0; 256];
                    if let HandshakeOutcome::Reply(length) | HandshakeOutcome::Established { reply: length } =
                        self.tunnel.handle_handshake(&datagram, &mut out, self.now)
                    {
                        self.arrive(&out[..length]);
                    }
                }
                None => panic!("the host said something that isn't WireGuard"),
            }
        }
    }

    /// The service address of the instance's network.
    pub fn service(&self, ipv6: bool) -> IpAddr {
        let numbers = self.plan.networks[0].numbers;
        if ipv6 {
            numbers.service_ipv6().into()
        } else {
            numbers.service_ipv4().into()
        }
    }

    /// What an instance was given last.
    pub fn last_delivered(&self) -> &[u8] {
        &self.outputs.delivered
    }

    /// What the host's names are compiled from.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The addresses of the instance (or, `remote`, of a container of the peer).
    pub fn address(&self, remote: bool, ipv6: bool) -> IpAddr {
        let numbers = self.plan.networks[0].numbers;
        let (ipv4, address) = numbers
            .instance(ordinal(1 + u64::from(remote)), InstanceIndex::MIN)
            .unwrap();
        if ipv6 { address.into() } else { ipv4.into() }
    }
}

/// Lays input over a template: an empty input leaves it good.
pub fn over(template: &[u8], input: &[u8]) -> Vec<u8> {
    let mut bytes = template.to_vec();
    bytes.resize(template.len().max(input.len()), 0);
    for (byte, change) in bytes.iter_mut().zip(input) {
        *byte ^= change;
    }
    bytes
}

/// Makes an IPv4 header's checksum good again.
pub fn mend(packet: &mut [u8]) {
    if packet.len() >= 20 && packet[0] >> 4 == 4 {
        packet[10..12].fill(0);
        let sum = checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum);
    }
}

/// An IP packet with a transport header of this protocol and some data.
pub fn template(source: IpAddr, destination: IpAddr, protocol: u8) -> Vec<u8> {
    let mut packet = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = [0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0];
            [&header[..], &source.octets(), &destination.octets()].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let next = if protocol == 1 { 58 } else { protocol };
            [
                &[0x60, 0, 0, 0, 0, 0, next, 64][..],
                &source.octets(),
                &destination.octets(),
            ]
            .concat()
        }
        _ => unreachable!("one family"),
    };
    let start = packet.len();
    match protocol {
        6 => packet.extend_from_slice(&[
            0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0,
        ]),
        17 => packet.extend_from_slice(&[0x9c, 0x40, 0, 53, 0, 40, 0, 0]),
        _ => packet.extend_from_slice(&[if source.is_ipv6() { 128 } else { 8 }, 0, 0, 0, 0, 9, 0, 1]),
    }
    packet.extend_from_slice(&[0x5a; 32]);
    let total = packet.len() as u16;
    if source.is_ipv6() {
        packet[4..6].copy_from_slice(&(total - 40).to_be_bytes());
    } else {
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        mend(&mut packet);
    }
    debug_assert!(Headers::parse(&packet).is_ok_and(|headers| headers.transport_offset == start));
    packet
}

/// A fragment, `at` bytes into a datagram of this protocol.
pub fn fragment(
    (source, destination): (IpAddr, IpAddr),
    (protocol, identification): (u8, u16),
    (at, more): (u16, bool),
    data: &[u8],
) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let length = (20 + data.len() as u16).to_be_bytes();
            let field = (at / 8 | if more { 0x2000 } else { 0 }).to_be_bytes();
            let mut packet = [
                &[0x45, 0][..],
                &length,
                &identification.to_be_bytes(),
                &field,
                &[64, protocol, 0, 0],
                &source.octets(),
                &destination.octets(),
                data,
            ]
            .concat();
            mend(&mut packet);
            packet
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => [
            &[0x60, 0, 0, 0][..],
            &(8 + data.len() as u16).to_be_bytes(),
            &[44, 64],
            &source.octets(),
            &destination.octets(),
            &[protocol, 0],
            &(at & !7 | u16::from(more)).to_be_bytes(),
            &u32::from(identification).to_be_bytes(),
            data,
        ]
        .concat(),
        _ => unreachable!("one family"),
    }
}

/// An Ethernet frame of a container of the peer.
pub fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    let own = MacAddr::of(Ipv4Addr::new(172, 19, 1, 2));
    [&own.0[..], &[0x5e, 1, 2, 3, 4, 5], &kind.to_be_bytes(), payload].concat()
}

/// A VXLAN packet of the peer.
pub fn vxlan(frame: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = VNI.to_be_bytes();
    let udp = (16 + frame.len()) as u16;
    let header = [0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 17, 0, 0];
    let mut packet = [
        &header[..],
        &vtep_address(ordinal(2)).octets(),
        &vtep_address(ordinal(1)).octets(),
        &[0xc0, 0, 0x12, 0xb5],
        &udp.to_be_bytes(),
        &[0, 0, 8, 0, 0, 0, a, b, c, 0],
        frame,
    ]
    .concat();
    let total = packet.len() as u16;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    mend(&mut packet);
    packet
}

/// The offload that a control byte stands for.
pub fn offload(control: u8) -> Offload {
    let size = 1 + u16::from(control >> 4) * 90;
    let segmentation = match control & 3 {
        1 => Segmentation::Tcp {
            size,
            ecn: control & 4 != 0,
        },
        2 => Segmentation::Udp { size },
        _ => Segmentation::None,
    };
    let partial_checksum = match control & 0x0c {
        0x04 => Some((20, 16)),
        0x08 => Some((40, 16)),
        0x0c => Some((u16::from(control), 6)),
        _ => None,
    };
    Offload {
        segmentation,
        partial_checksum,
    }
}

fn key(byte: u8) -> PrivateKey {
    PrivateKey::from_bytes([byte; 32])
}

fn ordinal(number: u64) -> HostOrdinal {
    HostOrdinal::try_from(number).unwrap()
}

fn far_address() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 12], 51820))
}

fn plan() -> Plan {
    let vni = Vni::try_from(u64::from(VNI)).unwrap();
    let numbers = NetworkNumbers::application(
        "172.19.0.0/16".parse().unwrap(),
        site_ipv6_prefix("store-42"),
        vni,
    );
    let mtu = Mtu::try_from(1390).unwrap();
    let instance = |port: u32| {
        let index = InstanceIndex::try_from(u64::from(port) + 2).unwrap();
        let (ipv4, ipv6) = numbers.instance(ordinal(1), index).unwrap();
        Instance {
            port: PortId(port),
            tenant: "acme".into(),
            application: "shop".into(),
            service: "web".into(),
            name: format!("web-{port}"),
            memberships: vec![Membership { vni, ipv4, ipv6 }],
            mtu,
            offloads: port == 0,
            readiness: None,
        }
    };
    let named = |number: u8| {
        let index = InstanceIndex::try_from(u64::from(number) + 2).unwrap();
        let (ipv4, ipv6) = numbers.instance(ordinal(1), index).unwrap();
        NamedInstance {
            name: format!("web-{number}"),
            ipv4,
            ipv6,
            ready: true,
        }
    };
    Plan {
        services: Vec::new(),
        members: Vec::new(),
        names: vec![NetworkNames {
            vni,
            log: true,
            services: vec![NamedService {
                id: instance(0).service_id(),
                order: AnswerOrder::Rotate,
                ports: vec![NamedPort {
                    name: "http".into(),
                    protocol: PortProtocol::Tcp,
                    port: 80,
                }],
                texts: vec![Text {
                    label: None,
                    text: "build=17".into(),
                }],
                instances: (0..120).map(named).collect(),
            }],
        }],
        ordinal: ordinal(1),
        networks: vec![Network {
            vni,
            kind: NetworkKind::Application,
            tenant: "acme".into(),
            name: "shop".into(),
            numbers,
        }],
        instances: vec![instance(0), instance(1)],
        peers: vec![Peer {
            id: PeerId(1),
            name: "h2".into(),
            ordinal: ordinal(2),
            reach: Reach::Foreign(ForeignReach {
                public_key: key(2).public_key(),
                preshared_key: None,
                endpoint: Some(far_address()),
                keepalive: None,
            }),
            networks: PeerNetworks::All,
            mtu,
        }],
        foreign_lane_key: key(1),
    }
}

/// What the host sends; what it delivers must be a packet.
#[derive(Default)]
struct Outputs {
    datagrams: Vec<Vec<u8>>,
    delivered: Vec<u8>,
}

impl Egress for Outputs {
    type Slot<'a> = Room<'a>;

    fn reserve(&mut self, _route: &Route, stride: usize, count: usize) -> Option<Room<'_>> {
        Some(Room {
            buffer: vec![0; stride * count.min(5)],
            stride,
            datagrams: &mut self.datagrams,
        })
    }

    fn deliver(&mut self, _port: PortId, frame: &Frame) -> bool {
        assert!(
            Headers::parse(frame.packet()).is_ok(),
            "an instance was given what is no packet"
        );
        self.delivered.clear();
        self.delivered.extend_from_slice(frame.packet());
        true
    }

    fn handover(&mut self, _to: ShardId, handover: Handover) -> Result<(), Handover> {
        Err(handover)
    }
}

struct Room<'a> {
    buffer: Vec<u8>,
    stride: usize,
    datagrams: &'a mut Vec<Vec<u8>>,
}

impl Slot for Room<'_> {
    fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    fn commit(self, used: usize) {
        self.datagrams
            .extend(self.buffer[..used].chunks(self.stride).map(<[u8]>::to_vec));
    }
}

/// Walks over the records of a response: each ends inside of it, and the last one ends it.
pub fn check_records(answer: &[u8], records: u16) {
    let mut at = 12;
    if records == 0 {
        return;
    }
    let skip_name = |mut at: usize| loop {
        match answer[at] {
            0 => return at + 1,
            length if length >= 0xc0 => return at + 2,
            length => at += 1 + usize::from(length),
        }
    };
    at = skip_name(at) + 4;
    for _ in 0..records {
        at = skip_name(at) + 10;
        at += usize::from(u16::from_be_bytes([answer[at - 2], answer[at - 1]]));
    }
    assert_eq!(at, answer.len());
}
