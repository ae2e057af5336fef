//! Hosts of several shards: flows have homes, packets are handed over to them, and one datapath takes over from another.
//! `cargo test -p tidegate-stack --features simulation`.

mod sim;

use sim::link::Conditions;
use sim::packets::{Packet, icmp_type, in_fragments, payloads, put_together};
use sim::plans::{Shape, Site};
use sim::world::{H1, H1_SECOND, H2, World};
use std::time::Duration;
use tidegate_stack::drop::DropReason;
use tidegate_stack::plan::PeerId;
use tidegate_stack::stats::{PeerReport, TunnelReport};

const SHAPES: [[u8; 2]; 5] = [[1, 1], [1, 2], [2, 1], [2, 2], [2, 3]];
/// UDP in IPv4.
const HEADERS: usize = 28;

fn world(shards: [u8; 2]) -> World {
    let site = Site {
        shape: Shape::Shards(shards),
        ..Site::default()
    };
    World::with(site, Conditions::default())
}

fn tunnels(world: &World, host: usize) -> Vec<TunnelReport> {
    let peers = world.report(host).peers;
    peers
        .iter()
        .flat_map(|peer: &PeerReport| peer.tunnels.clone())
        .collect()
}

/// Sends datagrams of as many flows, in the order of their numbers.
fn send_flows(world: &mut World, flows: std::ops::Range<u16>) {
    let crafted = world.between(H1, H2, false);
    for flow in flows {
        let packet = crafted.udp((4000 + flow, 9), &flow.to_be_bytes());
        world.instance(H1).inject(packet.into());
        world.run_for(Duration::from_millis(20));
    }
}

fn arrived(packets: &[Packet]) -> Vec<u16> {
    let mut numbers: Vec<u16> = payloads(packets, HEADERS)
        .iter()
        .map(|payload| u16::from_be_bytes([payload[0], payload[1]]))
        .collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn there_is_a_tunnel_for_each_pair_of_shards_that_share_flows_and_it_serves_both_ways() {
    for (shards, pairs) in SHAPES.into_iter().zip([1, 2, 2, 2, 6]) {
        let mut world = world(shards);
        assert_eq!(tunnels(&world, 0), [], "made on first use");
        world.instance(H2).deaf = true;
        send_flows(&mut world, 0..60);
        assert_eq!(arrived(&world.received(H2)), (0..60).collect::<Vec<_>>());
        // The way back is no new way.
        let back = world.between(H2, H1, false);
        world.instance(H1).deaf = true;
        for flow in 0..60_u16 {
            world
                .instance(H2)
                .inject(back.udp((9, 4000 + flow), &flow.to_be_bytes()).into());
        }
        world.run_for(Duration::from_secs(1));
        assert_eq!(arrived(&world.received(H1)), (0..60).collect::<Vec<_>>());
        for host in [0, 1] {
            let tunnels = tunnels(&world, host);
            assert_eq!(tunnels.len(), pairs, "{shards:?} {tunnels:?}");
            assert!(tunnels.iter().all(|tunnel| tunnel.generation == Some(1)));
            assert!(tunnels.iter().all(|tunnel| tunnel.handshake_age_ms.is_some()));
            assert_eq!(world.all_drops(host), [], "{shards:?}");
        }
        assert_eq!(world.report(0).flows, 60, "each flow lives on one shard");
        assert_eq!(world.report(1).flows, 60);
    }
}

/// Nobody loses a packet while one datapath takes over from another, whoever of the two hosts starts anew.
#[test]
fn a_new_datapath_takes_over_without_a_lost_packet() {
    for shards in SHAPES {
        for host in [0, 1] {
            let mut world = world(shards);
            for at in [H1, H2] {
                world.instance(at).deaf = true;
            }
            let (there, back) = (world.between(H1, H2, false), world.between(H2, H1, false));
            let mut sent = 0_u16;
            let mut stream = |world: &mut World, milliseconds: u16| {
                for _ in 0..2 * milliseconds {
                    // Eight flows, each way.
                    let ports = (4000 + sent % 8, 9);
                    world
                        .instance(H1)
                        .inject(there.udp(ports, &sent.to_be_bytes()).into());
                    world
                        .instance(H2)
                        .inject(back.udp((9, ports.0), &sent.to_be_bytes()).into());
                    sent += 1;
                    world.run_for(Duration::from_micros(500));
                }
            };
            stream(&mut world, 300);
            world.start_next(host, true);
            stream(&mut world, 300);
            let generations: Vec<_> = tunnels(&world, 1 - host)
                .iter()
                .filter(|tunnel| tunnel.handshake_age_ms.is_some())
                .map(|tunnel| tunnel.generation)
                .collect();
            assert!(
                generations.contains(&Some(1)) && generations.contains(&Some(2)),
                "{generations:?}"
            );
            world.host(host).switch();
            stream(&mut world, 300);
            world.end_former(host);
            stream(&mut world, 300);
            world.run_for(Duration::from_secs(1));
            let all: Vec<u16> = (0..sent).collect();
            for at in [H1, H2] {
                let arrived = arrived(&world.received(at));
                assert_eq!(arrived.len(), all.len(), "{shards:?}, {host} anew: at {at:?}");
                assert_eq!(arrived, all);
            }
            let former = tunnels(&world, 1 - host);
            assert!(former.iter().all(|tunnel| tunnel.generation == Some(2)));
            for host in [0, 1] {
                assert_eq!(world.all_drops(host), [], "{shards:?}");
            }
        }
    }
}

#[test]
fn a_generation_is_used_only_when_it_answers() {
    let mut world = world([1, 1]);
    world.instance(H2).deaf = true;
    send_flows(&mut world, 0..1);
    // The news of a generation whose lanes nobody has opened yet.
    world.change_plan(0, |plan| {
        let tidegate_stack::plan::Reach::Site(generations) = &mut plan.peers[0].reach else {
            panic!("a host of the site")
        };
        let mut next = generations[0].clone();
        next.number += 1;
        next.lanes[0].public_key = sim::plans::lane_key(1, 2, 0).public_key();
        next.lanes[0].endpoint = "192.0.2.99:9".parse().unwrap();
        generations.push(next);
    });
    for _ in 0..20 {
        send_flows(&mut world, 1..2);
        world.run_for(Duration::from_secs(1));
    }
    assert_eq!(world.received(H2).len(), 21);
    let initiations = world.tally().types[1];
    assert!(
        initiations < 10,
        "{initiations} initiations: the newest is asked again every 5 s"
    );
    assert_eq!(world.all_drops(0), []);
}

#[test]
fn a_datapath_that_dies_is_back_at_once() {
    for shards in SHAPES {
        for host in [0, 1] {
            let mut world = world(shards);
            world.instance(H2).deaf = true;
            send_flows(&mut world, 0..16);
            world.restart(host);
            world.received(H2);
            send_flows(&mut world, 16..32);
            assert_eq!(
                arrived(&world.received(H2)),
                (16..32).collect::<Vec<_>>(),
                "{shards:?} {host} {:?}",
                world.all_drops(0)
            );
        }
    }
}

/// Its first words come before the news of it: it needn't wait until it asks again.
#[test]
fn a_datapath_that_is_faster_than_the_news_of_it_is_greeted() {
    let mut world = world([1, 1]);
    world.instance(H1).deaf = true;
    let back = world.between(H2, H1, false);
    let mut told = None;
    world.change_plan(0, |plan| {
        told = Some(plan.peers[0].reach.clone());
        plan.peers[0].reach = tidegate_stack::plan::Reach::Site(Vec::new());
    });
    world.send(H2, back.udp((9, 4000), b"here I am"));
    assert_eq!(world.drops(0, DropReason::UnknownKey), 1);
    assert_eq!(world.received(H1), []);
    world.change_plan(0, |plan| plan.peers[0].reach = told.unwrap());
    world.run_for(Duration::from_millis(50));
    assert_eq!(payloads(&world.received(H1), HEADERS), [b"here I am"]);
}

#[test]
fn an_error_finds_the_flow_on_its_home() {
    for shards in SHAPES {
        let mut world = world(shards);
        let crafted = world.between(H1, H2, false);
        for flow in 0..16 {
            // Nothing listens there: the stack behind the far port says so.
            world.send(H1, crafted.udp((4000 + flow, 9), b"anybody?"));
        }
        let told = world.received(H1);
        let unreachable = told
            .iter()
            .filter(|packet| icmp_type(&packet.bytes) == Some((3, 3)));
        assert_eq!(unreachable.count(), 16, "{shards:?} {:?}", world.all_drops(1));
    }
}

#[test]
fn all_parts_of_a_datagram_take_the_lane_of_its_flow() {
    for shards in SHAPES {
        for ipv6 in [false, true] {
            let mut world = world(shards);
            world.instance(H2).deaf = true;
            let crafted = world.between(H1, H2, ipv6);
            let mut lanes = std::collections::BTreeSet::new();
            for flow in 0..16_u16 {
                let whole = crafted.udp((4000 + flow, 4001), &[7; 3000]);
                let counts = |world: &World| -> Vec<u64> {
                    let peers = world.report(1).peers;
                    peers.iter().map(|peer| peer.traffic.received_packets).collect()
                };
                let before = counts(&world);
                // Two datagrams of a flow, whose fragments are at home on different shards.
                for identification in [2 * flow, 2 * flow + 1] {
                    for part in in_fragments(&whole, identification.into(), 1000) {
                        world.send(H1, part);
                    }
                }
                let after = counts(&world);
                let by_lane: Vec<u64> = after
                    .iter()
                    .zip(&before)
                    .map(|(after, before)| after - before)
                    .collect();
                // They are cut again to what the tunnel takes.
                assert_eq!(by_lane.iter().max(), Some(&6), "{shards:?} {by_lane:?}");
                lanes.insert(by_lane);
                let received = world.received(H2);
                assert_eq!(received.len(), 6);
                let start = if ipv6 { 40 } else { 20 };
                for parts in received.chunks(3) {
                    assert_eq!(put_together(parts), whole[start..]);
                }
            }
            assert_eq!(
                lanes.len(),
                usize::from(shards[1]),
                "datagrams spread over the lanes"
            );
            for host in [0, 1] {
                assert_eq!(world.all_drops(host), [], "{shards:?}");
                assert_eq!(world.report(host).frames_in_use, 0, "frames come back");
            }
        }
    }
}

#[test]
fn what_finds_no_room_on_its_way_home_is_counted() {
    let mut world = world([2, 2]);
    world.instance(H2).deaf = true;
    send_flows(&mut world, 0..32);
    assert_eq!(arrived(&world.received(H2)).len(), 32);
    world.host(0).datapaths[0].close_rings();
    send_flows(&mut world, 32..64);
    let arrived = arrived(&world.received(H2)).len();
    let refused = world.drops(0, DropReason::HandoverFull);
    assert!(refused > 0 && arrived > 0, "{refused} {arrived}");
    assert_eq!(arrived as u64 + refused, 32);
    assert_eq!(world.report(0).frames_in_use, 0, "frames come back");
}

#[test]
fn instances_of_a_host_meet_on_the_home_of_their_flow() {
    let mut world = world([3, 1]);
    let crafted = world.between(H1, H1_SECOND, false);
    world.instance(H1_SECOND).deaf = true;
    for flow in 0..32_u16 {
        world.send(H1, crafted.udp((4000 + flow, 9), &flow.to_be_bytes()));
    }
    assert_eq!(arrived(&world.received(H1_SECOND)), (0..32).collect::<Vec<_>>());
    let flows: Vec<u64> = world.host(0).datapaths[0]
        .shards
        .iter()
        .map(|shard| shard.report().flows)
        .collect();
    assert_eq!(flows.iter().sum::<u64>(), 32);
    assert!(flows.iter().all(|flows| *flows > 0), "{flows:?}");
}

#[test]
fn flows_with_a_foreign_peer_live_where_its_lane_is() {
    let site = Site {
        shape: Shape::Foreign([2, 1]),
        ..Site::default()
    };
    let mut world = World::with(site, Conditions::default());
    let (there, back) = (world.between(H1, H2, false), world.between(H2, H1, false));
    for at in [H1, H2] {
        world.instance(at).deaf = true;
    }
    for flow in 0..16_u16 {
        world.send(H1, there.udp((4000 + flow, 9), &flow.to_be_bytes()));
        world.send(H2, back.udp((9, 4000 + flow), &flow.to_be_bytes()));
    }
    for at in [H1, H2] {
        assert_eq!(arrived(&world.received(at)), (0..16).collect::<Vec<_>>());
    }
    let reports: Vec<_> = world.host(0).datapaths[0]
        .shards
        .iter()
        .map(|shard| shard.report())
        .collect();
    assert_eq!((reports[0].flows, reports[1].flows), (16, 0));
    assert_eq!((reports[0].peers.len(), reports[1].peers.len()), (1, 0));
    assert_eq!(world.all_drops(0), []);
}

#[test]
fn a_host_whose_lanes_are_gone_is_known_and_out_of_reach() {
    let mut world = world([1, 1]);
    world.change_plan(0, |plan| {
        plan.peers[0].reach = tidegate_stack::plan::Reach::Site(Vec::new());
    });
    send_flows(&mut world, 0..1);
    assert_eq!(world.drops(0, DropReason::NoEndpoint), 1);
    let peers = world.report(0).peers;
    assert_eq!((peers[0].peer, peers[0].endpoint), (PeerId(1), None));
}
