//! Who is told, and how, that packets wait for too long.

use super::*;
use crate::frame::checksum::{Sum, checksum};
use crate::wire::Ecn;

const SUPER_PACKET: Offload = Offload {
    segmentation: Segmentation::Tcp {
        size: 1_338,
        ecn: false,
    },
    partial_checksum: Some((20, 16)),
};
const SEGMENTS: usize = 10;

fn train() -> Vec<u8> {
    tcp(WEB_ON_1, WEB_ON_2, &[7; 1_338 * (SEGMENTS - 1) + 1])
}

fn with_ecn(mut packet: Vec<u8>) -> Vec<u8> {
    Headers::parse(&packet)
        .unwrap()
        .set_ecn(&mut packet, Ecn::Capable0);
    packet
}

/// Two hosts that know each other's instances, with nothing under way.
fn acquainted() -> (Host, Host) {
    let (mut first, mut second) = pair();
    first.send(&tcp(WEB_ON_1, WEB_ON_2, b"neighbours meet"), Offload::NONE);
    settle(&mut first, &mut second);
    second.out.delivered.clear();
    (first, second)
}

#[test]
fn a_super_packet_of_a_standing_port_loses_its_last_segment_once() {
    let (mut first, mut second) = acquainted();
    first.shard.relieve_port();
    first.send(&train(), SUPER_PACKET);
    assert_eq!(first.out.datagrams.len(), SEGMENTS - 1);
    first.send(&train(), SUPER_PACKET);
    assert_eq!(first.out.datagrams.len(), 2 * SEGMENTS - 1);
    settle(&mut first, &mut second);
    let shortened = &second.out.delivered[0].1;
    assert_eq!(shortened.len(), 40 + 1_338 * (SEGMENTS - 1));
    assert_eq!(first.drops(DropReason::StandingQueue), 1);
    assert_eq!(second.shard.report().drops, vec![]);
}

#[test]
fn a_shortened_super_packet_is_a_right_one() {
    let (mut first, _second) = acquainted();
    first.shard.relieve_port();
    first.send(&tcp(WEB_ON_1, [172, 19, 1, 3], &[7; 1_338 * 3]), SUPER_PACKET);
    let (_, delivered, offload) = first.out.delivered.pop().expect("delivered");
    assert_eq!(offload, SUPER_PACKET);
    assert_eq!(delivered.len(), 40 + 1_338 * 2);
    let headers = Headers::parse(&delivered).unwrap();
    assert_eq!(headers.total_length, delivered.len());
    assert_eq!(checksum(&delivered[..20]), [0, 0]);
    let pseudo = Sum::pseudo_header(headers.source, headers.destination, 6, 20 + 1_338 * 2);
    assert_eq!(delivered[36..38], pseudo.folded());
}

#[test]
fn where_the_transport_takes_marks_nothing_is_lost() {
    let (mut first, mut second) = acquainted();
    first.shard.relieve_port();
    first.send(&with_ecn(train()), SUPER_PACKET);
    settle(&mut first, &mut second);
    let (_, delivered, _) = second.out.delivered.pop().expect("delivered");
    assert_eq!(Headers::parse(&delivered).unwrap().ecn(), Ecn::Congested);
    assert_eq!(delivered.len(), train().len());

    second.shard.relieve_lane();
    first.send(&with_ecn(train()), SUPER_PACKET);
    settle(&mut first, &mut second);
    let delivered = std::mem::take(&mut second.out.delivered);
    let marks = delivered
        .iter()
        .filter(|(_, packet, _)| Headers::parse(packet).unwrap().ecn() == Ecn::Congested);
    assert_eq!(marks.count(), 1);
    let payload: usize = delivered.iter().map(|(_, packet, _)| packet.len() - 40).sum();
    assert_eq!(payload, train().len() - 40);
    for host in [&first, &second] {
        assert_eq!(host.shard.report().drops, vec![]);
    }
}

#[test]
fn one_segment_of_bulk_behind_a_standing_lane_is_left_out() {
    let (mut first, mut second) = acquainted();
    second.shard.relieve_lane();
    first.send(&tcp(WEB_ON_1, WEB_ON_2, b"a request"), Offload::NONE);
    first.send(&train(), SUPER_PACKET);
    settle(&mut first, &mut second);
    assert_eq!(second.drops(DropReason::StandingQueue), 1);
    let delivered: usize = second
        .out
        .delivered
        .iter()
        .map(|(_, packet, _)| packet.len() - 40)
        .sum();
    assert_eq!(delivered, 9 + 1_338 * (SEGMENTS - 2) + 1);
}

#[test]
fn small_packets_other_transports_and_the_ends_of_connections_are_spared() {
    let (mut first, mut second) = acquainted();
    let mut reset = tcp(WEB_ON_1, WEB_ON_2, &[7; 1_300]);
    reset[33] |= crate::wire::tcp_flags::RST;
    let mut datagram = Vec::new();
    PacketBuilder::ipv4(WEB_ON_1, WEB_ON_2, 64)
        .udp(5_000, 5_000)
        .write(&mut datagram, &[7; 1_300])
        .unwrap();
    let spared = [tcp(WEB_ON_1, WEB_ON_2, &[7; 900]), datagram, reset];
    second.shard.relieve_lane();
    for packet in &spared {
        first.shard.relieve_port();
        first.send(packet, Offload::NONE);
    }
    settle(&mut first, &mut second);
    assert_eq!(second.out.delivered.len(), spared.len());
    // A port's sender is told by what was waiting, not by what comes later; a lone segment is left out whole.
    first.send(&tcp(WEB_ON_1, WEB_ON_2, &[7; 1_300]), Offload::NONE);
    assert_eq!(first.drops(DropReason::StandingQueue), 0);
    first.shard.relieve_port();
    first.send(&tcp(WEB_ON_1, WEB_ON_2, &[7; 1_300]), Offload::NONE);
    assert_eq!(first.drops(DropReason::StandingQueue), 1);
}
