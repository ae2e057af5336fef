//! What a host lets nobody do: speak for others, go on after a revocation, take what others need.

use super::*;
use crate::overlay::Neighbours;
use crate::plan::{Access, Action, Limits, OnDeny, Rule, Selector, Service};
use crate::responder::icmp::{self, IcmpError};
use crate::wireguard::{
    COOKIE_REPLY_LENGTH, INITIATION_LENGTH, Lane, NoiseTunnel, Tunnel, TunnelIndex, WAITING_FOR_SESSION,
};

const SECOND_ON_1: [u8; 4] = [172, 19, 1, 3];

impl Host {
    fn send_from(&mut self, port: PortId, packet: &[u8], offload: Offload) {
        let mut batch = Batch::new(1);
        batch.vacant().unwrap().fill(packet, offload);
        batch.advance();
        self.shard.handle_port(port, &mut batch, now(), &mut self.out);
    }

    /// Puts a plan in force, changed.
    fn change_plan(&mut self, change: impl FnOnce(&mut Plan)) {
        let mut changed = plan(1, 2);
        change(&mut changed);
        let snapshot = Snapshot::compile(&changed, self.shard.snapshot.as_ref());
        self.shard.install(snapshot, now(), &mut self.out);
    }

    /// Takes the session with the peer away.
    fn lose_session(&mut self) {
        self.lose_session_of(1, 2);
    }

    fn lose_session_of(&mut self, own: u8, other: u8) {
        let lane = Lane::new(&key(own), now());
        let tunnel = NoiseTunnel::new(
            &lane,
            TunnelIndex::from_low_bits(1),
            &key(other).public_key(),
            None,
            None,
            now(),
        );
        let index = TunnelIndex::from_low_bits(1);
        assert!(self.shard.set_tunnel(PeerId(1), index, Box::new(tunnel), now()));
    }
}

fn udp(source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(source, destination, 64)
        .udp(5_000, 5_000)
        .write(&mut packet, payload)
        .unwrap();
    packet
}

#[test]
fn an_error_is_believed_only_from_where_the_packet_in_it_went() {
    let (mut first, mut second) = pair();
    let packet = udp(WEB_ON_1, WEB_ON_2, b"?");
    first.send(&packet, Offload::NONE);
    settle(&mut first, &mut second);
    let error_from = |source: [u8; 4]| {
        let mut out = vec![0; 576];
        let length = icmp::error(IcmpError::PortUnreachable, source.into(), &packet, &mut out).unwrap();
        out.truncate(length);
        out
    };
    // A neighbour on the same host, with its own address.
    first.send_from(SECOND_PORT, &error_from(SECOND_ON_1), Offload::NONE);
    assert_eq!(first.out.delivered, vec![]);
    assert_eq!(first.drops(DropReason::NoFlow), 1);
    // The control: who got the packet.
    second.send(&error_from(WEB_ON_2), Offload::NONE);
    settle(&mut first, &mut second);
    assert_eq!(first.out.delivered.len(), 1);
}

#[test]
fn a_partial_checksum_is_not_written_over_addresses() {
    let (mut first, mut second) = pair();
    let address = |own: u8| {
        let (_, ipv6) = shop().numbers.instance(ordinal(own), InstanceIndex::MIN).unwrap();
        ipv6.octets()
    };
    let mut packet = Vec::new();
    PacketBuilder::ipv6(address(1), address(2), 64)
        .udp(5_000, 6_000)
        .write(&mut packet, b"hello")
        .unwrap();
    let partial = |start, offset| Offload {
        segmentation: Segmentation::None,
        partial_checksum: Some((start, offset)),
    };
    // The last two bytes of the source, of the destination, and the source port.
    for (start, offset) in [(8, 14), (24, 14), (40, 0)] {
        first.send(&packet, partial(start, offset));
    }
    assert_eq!(first.drops(DropReason::Malformed), 3);
    assert!(first.out.datagrams.is_empty());
    // The control: the checksum itself.
    first.send(&packet, partial(40, 6));
    settle(&mut first, &mut second);
    assert_eq!(second.out.delivered.len(), 1);
}

#[test]
fn a_flow_ends_with_the_membership_of_who_began_it() {
    let (mut first, _second) = pair();
    first.send(&udp(WEB_ON_1, SECOND_ON_1, b"?"), Offload::NONE);
    first.out.delivered.clear();
    let answer = udp(SECOND_ON_1, WEB_ON_1, b"!");
    first.send_from(SECOND_PORT, &answer, Offload::NONE);
    assert_eq!(first.out.delivered.len(), 1, "the control: while it is a member");
    first.out.delivered.clear();
    // The port stays, its membership doesn't.
    first.change_plan(|plan| plan.instances[0].memberships.clear());
    for _ in 0..2 {
        first.send_from(SECOND_PORT, &answer, Offload::NONE);
    }
    assert_eq!(first.out.delivered, vec![]);
    assert_eq!(first.shard.flows(0, 64, now()).flows, vec![]);
}

#[test]
fn what_waits_for_a_session_does_not_outlive_its_permission() {
    let (mut first, mut second) = pair();
    let packet = udp(WEB_ON_1, WEB_ON_2, b"secret");
    first.send(&packet, Offload::NONE);
    settle(&mut first, &mut second);
    second.out.delivered.clear();
    first.lose_session();
    first.send(&packet, Offload::NONE);
    first.change_plan(|plan| plan.peers[0].networks = PeerNetworks::Only([Vni::MIN].into()));
    settle(&mut first, &mut second);
    assert_eq!(first.drops(DropReason::NoPeer), 1);
    assert_eq!(second.out.delivered, vec![]);
    assert_eq!(first.shard.report().frames_in_use, 0);
}

#[test]
fn what_waits_for_a_session_does_not_outlive_the_rule_that_allowed_it() {
    for denies in [true, false] {
        let (mut first, mut second) = pair();
        first.lose_session();
        first.send(&udp(WEB_ON_1, WEB_ON_2, b"secret"), Offload::NONE);
        first.change_plan(|plan| {
            plan.services.push(Service {
                id: plan.instances[0].service_id(),
                document: "shop.yaml".into(),
                inbound: None,
                outbound: Some(Access {
                    line: 4,
                    on_deny: OnDeny::Drop,
                    rules: vec![Rule {
                        line: 6,
                        other: Selector::Any,
                        protocols: Vec::new(),
                        action: if denies { Action::Deny } else { Action::Allow },
                    }],
                }),
                limits: Limits::default(),
            });
        });
        settle(&mut first, &mut second);
        assert_eq!(second.out.delivered.len(), usize::from(!denies));
        assert_eq!(first.drops(DropReason::NoPeer), u64::from(denies));
    }
}

#[test]
fn what_waits_for_a_session_that_never_comes_is_given_up() {
    let (mut first, mut second) = pair();
    let packet = udp(WEB_ON_1, WEB_ON_2, b"?");
    first.send(&packet, Offload::NONE);
    settle(&mut first, &mut second);
    first.lose_session();
    first.send(&packet, Offload::NONE);
    let passed = |host: &mut Host, seconds| {
        let later = now() + Duration::from_secs(seconds);
        host.shard.handle_timeout(later, &mut host.out);
        host.shard.report().frames_in_use
    };
    assert_eq!(passed(&mut first, 89), 1);
    assert_eq!(passed(&mut first, 90), 0);
    assert_eq!(first.drops(DropReason::NoSession), 1);
}

#[test]
fn what_waits_for_a_session_is_bounded() {
    let (mut first, mut second) = pair();
    let packet = udp(WEB_ON_1, WEB_ON_2, b"?");
    first.send(&packet, Offload::NONE);
    settle(&mut first, &mut second);
    first.lose_session();
    for _ in 0..WAITING_FOR_SESSION + 100 {
        first.send(&packet, Offload::NONE);
    }
    assert_eq!(first.drops(DropReason::NoSession), 100);
    assert_eq!(first.shard.report().frames_in_use, WAITING_FOR_SESSION as u64);
    assert_eq!(first.out.datagrams.len(), 1, "one initiation");
    settle(&mut first, &mut second);
    let received = second.shard.report().peers[0].traffic.received_packets;
    assert_eq!(received, 1 + WAITING_FOR_SESSION as u64);
}

#[test]
fn an_initiation_alone_moves_no_peer() {
    let (mut first, mut second) = pair();
    let known = first.shard.report().peers[0].endpoint;
    // The peer begins anew, and somebody sends what it sent from elsewhere.
    second.lose_session_of(2, 1);
    second.send(&udp(WEB_ON_2, WEB_ON_1, b"?"), Offload::NONE);
    let (_, initiation) = second.out.datagrams.pop().unwrap();
    first.out.datagrams.clear();
    let elsewhere = Datagrams {
        lane: LaneKind::Foreign,
        source: underlay(66),
        ecn: Ecn::NotCapable,
        stride: initiation.len(),
        bytes: &initiation,
    };
    first.shard.handle_lane(elsewhere, now(), &mut first.out);
    let (route, _) = first.out.datagrams.pop().unwrap();
    assert_eq!(route.endpoint, underlay(66), "the answer goes back there");
    assert_eq!(first.shard.report().peers[0].endpoint, known);
}

#[test]
fn a_flood_of_handshakes_is_counted_and_what_is_established_goes_on() {
    let (mut first, mut second) = pair();
    let stranger = Lane::new(&key(9), now());
    let index = TunnelIndex::from_low_bits(1);
    let mut forged = [0; INITIATION_LENGTH];
    NoiseTunnel::new(&stranger, index, &key(1).public_key(), None, None, now()).initiate(&mut forged, now());
    for _ in 0..1000 {
        let flood = Datagrams {
            lane: LaneKind::Foreign,
            source: underlay(66),
            ecn: Ecn::NotCapable,
            stride: forged.len(),
            bytes: &forged,
        };
        first.shard.handle_lane(flood, now(), &mut first.out);
    }
    assert_eq!(first.drops(DropReason::UnknownKey), 5);
    assert_eq!(first.drops(DropReason::HandshakeFlood), 995);
    let cookies = std::mem::take(&mut first.out.datagrams);
    assert_eq!(cookies.len(), 995);
    assert!(
        cookies
            .iter()
            .all(|(route, bytes)| route.endpoint == underlay(66) && bytes.len() == COOKIE_REPLY_LENGTH),
        "less is sent than came"
    );
    // Meanwhile: what is established, and a peer that begins anew.
    second.lose_session_of(2, 1);
    second.send(&udp(WEB_ON_2, WEB_ON_1, b"?"), Offload::NONE);
    settle(&mut first, &mut second);
    assert_eq!(first.out.delivered.len(), 1);
}

#[test]
fn what_waits_leaves_frames_for_what_passes() {
    let (mut first, mut second) = pair();
    let payload = [7; 20_000];
    let offload = Offload {
        segmentation: Segmentation::Udp { size: 1000 },
        partial_checksum: Some((20, 6)),
    };
    // Nobody has these addresses; each would keep four super-packets.
    for last in 100..200 {
        let packet = udp(WEB_ON_1, [172, 19, 2, last], &payload);
        for _ in 0..4 {
            first.send(&packet, offload);
        }
    }
    first.out.datagrams.clear();
    second.send(&udp(WEB_ON_2, WEB_ON_1, b"passes"), Offload::NONE);
    settle(&mut first, &mut second);
    assert_eq!(first.out.delivered.len(), 1);
}

#[test]
fn bytes_behind_a_packet_stay_behind() {
    let (mut first, _second) = pair();
    let packet = udp(WEB_ON_1, SECOND_ON_1, b"hello");
    let longer = [&packet[..], &[0xee; 3000]].concat();
    first.send(&longer, Offload::NONE);
    let (_, delivered, _) = first.out.delivered.pop().expect("delivered");
    assert_eq!(delivered.len(), packet.len());
}

#[test]
fn a_search_through_a_block_keeps_no_frames() {
    let (mut first, _second) = pair();
    let network = shop().numbers.block_ipv6(ordinal(2)).network().to_bits();
    let (_, source) = shop().numbers.instance(ordinal(1), InstanceIndex::MIN).unwrap();
    let most = Neighbours::CAPACITY as u128;
    for index in 2..most + 10 {
        let target = std::net::Ipv6Addr::from_bits(network | index);
        let mut packet = Vec::new();
        PacketBuilder::ipv6(source.octets(), target.octets(), 64)
            .udp(5_000, 6_000)
            .write(&mut packet, b"?")
            .unwrap();
        first.send(&packet, Offload::NONE);
        first.out.datagrams.clear();
    }
    assert!(
        first.drops(DropReason::NoNeighbour) > 0,
        "what was evicted gives its frame back at once"
    );
}
