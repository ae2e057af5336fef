//! What users count on, in virtual time: connections arrive whole, sessions begin, change and come back.
//! `cargo test -p tidegate-stack --features simulation`.

#![expect(clippy::unwrap_used, reason = "a test ends at what it didn't expect")]

mod sim;
#[macro_use]
#[path = "sim/shapes.rs"]
mod shapes;

use sim::link::Conditions;
use sim::packets::{Packet, payloads};
use sim::plans::{Site, Underlay};
use sim::world::{At, H1, H1_SECOND, H2, World};
use smoltcp::iface::SocketHandle;
use std::time::Duration;
use tidegate_stack::drop::DropReason;
use tidegate_stack::frame::{Offload, Segmentation};
use tidegate_stack::plan::Reach;
use tidegate_stack::time::Instant;

in_every_shape! {
    tcp_arrives_whole_on_a_clean_path,
    tcp_arrives_whole_under_loss_and_reordering,
    tcp_arrives_whole_on_paths_of_every_size,
    super_packets_are_cut_at_the_tunnel_and_glued_behind_it,
    two_instances_of_a_host_exchange_super_packets_whole,
    keys_change_under_traffic_without_a_lost_packet,
    a_silent_peer_is_found_again_when_it_comes_back,
    what_waits_for_a_session_is_bounded_and_arrives_in_order,
    a_connection_outlives_the_restart_of_either_datapath,
    a_udp_super_packet_arrives_as_its_datagrams,
    idle_hosts_say_nothing,
    two_runs_of_one_story_take_the_same_time,
    a_peer_that_moves_is_followed,
}

const PORT: u16 = 80;

/// A TCP connection that carries a known stream from `from` to `to`.
struct Transfer {
    from: At,
    to: At,
    sender: SocketHandle,
    receiver: SocketHandle,
    stream: Vec<u8>,
    sent: usize,
    arrived: Vec<u8>,
}

impl Transfer {
    fn start(world: &mut World, from: At, to: At, ipv6: bool, length: usize) -> Self {
        let receiver = world.instance(to).listen(PORT);
        let address = world.instance(to).address(ipv6);
        let sender = world.instance(from).connect(address, PORT, 40_000);
        // Every position has bytes of its own: what is lost, doubled or swapped shows.
        let stream = (0..length as u64 / 8 + 1)
            .flat_map(|index| (index.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes())
            .take(length)
            .collect();
        Self {
            from,
            to,
            sender,
            receiver,
            stream,
            sent: 0,
            arrived: Vec::new(),
        }
    }

    fn step(&mut self, world: &mut World) -> bool {
        let socket = world.instance(self.from).socket(self.sender);
        if socket.can_send() && self.sent < self.stream.len() {
            self.sent += socket.send_slice(&self.stream[self.sent..]).unwrap();
            if self.sent == self.stream.len() {
                socket.close();
            }
        }
        let socket = world.instance(self.to).socket(self.receiver);
        while socket.can_recv() {
            let arrived = &mut self.arrived;
            socket
                .recv(|bytes| {
                    arrived.extend_from_slice(bytes);
                    (bytes.len(), ())
                })
                .unwrap();
        }
        self.arrived.len() >= self.stream.len()
    }

    /// Lets it end, and looks at every byte.
    fn finish(mut self, world: &mut World, within: Duration) {
        let end = world.now() + within;
        let done = world.run_until(end, |world| self.step(world));
        let context = format!(
            "{} of {} bytes; {:?} {:?} {:?}",
            self.arrived.len(),
            self.stream.len(),
            world.all_drops(self.from.0),
            world.all_drops(self.to.0),
            world.tally(),
        );
        assert!(done, "unfinished: {context}");
        assert!(self.arrived == self.stream, "wrong bytes: {context}");
    }
}

fn transfer(site: Site, conditions: Conditions, ipv6: bool, length: usize) -> World {
    let mut world = World::with(site, conditions);
    let transfer = Transfer::start(&mut world, H1, H2, ipv6, length);
    transfer.finish(&mut world, Duration::from_secs(3600));
    world
}

fn tcp_arrives_whole_on_a_clean_path() {
    for ipv6 in [false, true] {
        for underlay in [Underlay::V4, Underlay::V6] {
            for offloads in [false, true] {
                let site = Site {
                    underlay,
                    offloads,
                    ..Site::default()
                };
                let world = transfer(site, Conditions::default(), ipv6, 2_000_000);
                assert_eq!(world.tally().too_big, 0);
                for host in [0, 1] {
                    assert_eq!(world.all_drops(host), [], "{ipv6} {underlay:?} {offloads}");
                }
            }
        }
    }
}

fn tcp_arrives_whole_under_loss_and_reordering() {
    for (loss, reorder, duplicate) in [
        (0.01, 0.0, 0.0),
        (0.05, 0.0, 0.0),
        (0.0, 0.05, 0.0),
        (0.02, 0.05, 0.01),
    ] {
        for offloads in [false, true] {
            let conditions = Conditions {
                loss,
                reorder,
                duplicate,
                ..Conditions::default()
            };
            let site = Site {
                offloads,
                ..Site::default()
            };
            let world = transfer(site, conditions, offloads, 400_000);
            assert_eq!(world.tally().lost > 0, loss > 0.0);
            assert_eq!(
                world.drops(1, DropReason::Replayed) > 0,
                duplicate > 0.0,
                "{:?}",
                world.all_drops(1)
            );
        }
    }
}

fn tcp_arrives_whole_on_paths_of_every_size() {
    // 1390 and below 1410: the inner MTU is IPv6's least, 1280, and not below it.
    for (underlay, mtus) in [
        (Underlay::V4, [1390, 1420, 1492, 9000]),
        (Underlay::V6, [1410, 1440, 1500, 9000]),
    ] {
        for mtu in mtus {
            for ipv6 in [false, true] {
                let site = Site {
                    underlay,
                    mtu,
                    offloads: true,
                    ..Site::default()
                };
                let world = transfer(site, Conditions::default(), ipv6, 200_000);
                assert_eq!(world.tally().too_big, 0, "{underlay:?} {mtu}");
            }
        }
    }
}

fn super_packets_are_cut_at_the_tunnel_and_glued_behind_it() {
    let site = Site {
        offloads: true,
        ..Site::default()
    };
    let mut world = transfer(site, Conditions::default(), false, 1_000_000);
    let data = world.tally().types[4];
    assert!(data > 1_000_000 / 1350, "{data} datagrams");
    let received = world.received(H2);
    let largest = received.iter().map(|packet| packet.bytes.len()).max().unwrap();
    assert!(
        largest > 20_000,
        "the largest packet that was delivered has {largest} bytes"
    );
    assert!(
        received.len() < data / 3,
        "{} packets of {data} datagrams",
        received.len()
    );
}

fn two_instances_of_a_host_exchange_super_packets_whole() {
    let mut world = World::with(
        Site {
            offloads: true,
            ..Site::default()
        },
        Conditions::default(),
    );
    let transfer = Transfer::start(&mut world, H1, H1_SECOND, true, 1_000_000);
    transfer.finish(&mut world, Duration::from_secs(60));
    assert_eq!(
        world.tally().sent,
        world.tally().types[1] + world.tally().types[2] + world.tally().types[4]
    );
    let received = world.received(H1_SECOND);
    assert!(received.iter().any(|packet| packet.bytes.len() > 30_000));
    assert!(
        received
            .iter()
            .any(|packet| packet.offload.partial_checksum.is_some())
    );
}

fn keys_change_under_traffic_without_a_lost_packet() {
    let mut world = World::quiet();
    let crafted = world.between(H1, H2, false);
    for number in 0..280_u16 {
        world.send(H1, crafted.udp((4000, 4001), &number.to_be_bytes()));
        world.run_for(Duration::from_millis(950));
    }
    assert_eq!(
        payloads(&world.received(H2), 28),
        (0..280_u16).map(|n| n.to_be_bytes().to_vec()).collect::<Vec<_>>()
    );
    let handshakes = world.tally().types[1];
    // Both ends may begin, each time.
    assert!((3..=8).contains(&handshakes), "{handshakes} initiations in 280 s");
    assert_eq!(world.all_drops(1), []);
}

fn a_silent_peer_is_found_again_when_it_comes_back() {
    let mut world = World::quiet();
    let crafted = world.between(H1, H2, false);
    world.link.conditions.loss = 1.0;
    for _ in 0..200 {
        world.send(H1, crafted.udp((4000, 4001), b"into the void"));
        world.run_for(Duration::from_secs(1));
    }
    world.link.conditions.loss = 0.0;
    world.received(H2);
    world.run_for(Duration::from_secs(6));
    world.send(H1, crafted.udp((4000, 4001), b"again"));
    assert!(
        payloads(&world.received(H2), 28).contains(&b"again".to_vec()),
        "{:?}",
        world.all_drops(0)
    );
}

fn what_waits_for_a_session_is_bounded_and_arrives_in_order() {
    let mut world = World::quiet();
    let crafted = world.between(H1, H2, false);
    for number in 0..40_u8 {
        world
            .instance(H1)
            .inject(crafted.udp((4000, 4001), &[number]).into());
    }
    world.run_for(Duration::from_secs(1));
    let arrived = payloads(&world.received(H2), 28);
    assert!((1..=16).contains(&arrived.len()), "{}", arrived.len());
    assert!(arrived.is_sorted());
    let dropped = world.drops(0, DropReason::NoSession) + world.drops(0, DropReason::NeighbourQueueFull);
    assert_eq!(dropped as usize + arrived.len(), 40, "{:?}", world.all_drops(0));
}

fn a_connection_outlives_the_restart_of_either_datapath() {
    for victim in [0, 1] {
        let mut world = World::with(
            Site {
                offloads: true,
                ..Site::default()
            },
            Conditions::default(),
        );
        let mut transfer = Transfer::start(&mut world, H1, H2, false, 3_000_000);
        let end = world.now() + Duration::from_secs(60);
        world.run_until(end, |world| {
            transfer.step(world) || transfer.arrived.len() > 1_000_000
        });
        let arrived = transfer.arrived.len();
        assert!(arrived < 3_000_000);
        let at = world.now();
        world.restart(victim);
        world.run_until(at + Duration::from_secs(2), |world| {
            transfer.step(world);
            transfer.arrived.len() > arrived + 100_000
        });
        assert!(
            transfer.arrived.len() > arrived + 100_000,
            "2 s after {victim} began anew"
        );
        transfer.finish(&mut world, Duration::from_secs(60));
    }
}

fn a_udp_super_packet_arrives_as_its_datagrams() {
    let mut world = World::with(
        Site {
            offloads: true,
            ..Site::default()
        },
        Conditions::default(),
    );
    let crafted = world.between(H1, H2, false);
    let payload: Vec<u8> = (0..10_500_u32).map(|index| (index % 249) as u8).collect();
    let bytes = crafted.udp((4000, 4001), &payload);
    let offload = Offload {
        segmentation: Segmentation::Udp { size: 1000 },
        partial_checksum: None,
    };
    world.send(H1, Packet { bytes, offload });
    let arrived: Vec<u8> = payloads(&world.received(H2), 28).concat();
    assert_eq!(arrived, payload);
    assert_eq!(world.all_drops(0), []);
}

fn idle_hosts_say_nothing() {
    let mut world = World::quiet();
    let crafted = world.between(H1, H2, false);
    world.send(H1, crafted.udp((4000, 4001), b"?"));
    world.run_for(Duration::from_secs(30));
    let sent = world.tally().sent;
    world.run_for(Duration::from_secs(60));
    assert!(
        world.tally().sent <= sent + 2,
        "{} datagrams more",
        world.tally().sent - sent
    );
}

/// Time starts with the world: nothing here depends on when it is run.
fn two_runs_of_one_story_take_the_same_time() {
    let ends: [Instant; 2] = [(); 2].map(|()| {
        let conditions = Conditions {
            loss: 0.02,
            reorder: 0.02,
            ..Conditions::default()
        };
        let world = transfer(Site::default(), conditions, false, 200_000);
        world.now()
    });
    assert_eq!(ends[0], ends[1]);
}

fn a_peer_that_moves_is_followed() {
    let mut world = World::quiet();
    let crafted = world.between(H1, H2, false);
    world.send(H1, crafted.udp((4000, 4001), b"before"));
    world.received(H2);
    world.move_host(1, "198.51.100.7:1024".parse().unwrap());
    world.send(H1, crafted.udp((4000, 4001), b"lost on the way to the old place"));
    assert_eq!(world.received(H2), []);
    let back = world.between(H2, H1, false);
    world.send(H2, back.udp((4001, 4000), b"from the new place"));
    world.send(H1, crafted.udp((4000, 4001), b"to the new place"));
    assert_eq!(payloads(&world.received(H2), 28), [b"to the new place"]);
}

#[test]
fn a_peer_without_an_endpoint_is_answered_when_it_calls() {
    let mut world = World::quiet();
    forget_greetings(&mut world);
    world.change_plan(0, |plan| {
        let Reach::Foreign(reach) = &mut plan.peers[0].reach else {
            panic!("a foreign peer")
        };
        reach.endpoint = None;
    });
    let crafted = world.between(H1, H2, false);
    let sent = world.tally().sent;
    world.send(H1, crafted.udp((4000, 4001), b"nobody knows where"));
    assert_eq!(world.tally().sent, sent);
    let back = world.between(H2, H1, false);
    for _ in 0..20 {
        world.send(H2, back.udp((4001, 4000), b"here I am"));
        world.run_for(Duration::from_secs(1));
    }
    assert!(
        !world.received(H1).is_empty(),
        "{:?} {:?}",
        world.all_drops(0),
        world.all_drops(1)
    );
    world.send(H1, crafted.udp((4000, 4001), b"there you are"));
    assert!(payloads(&world.received(H2), 28).contains(&b"there you are".to_vec()));
}

#[test]
fn a_key_that_is_no_peers_gets_no_session() {
    let mut world = World::quiet();
    forget_greetings(&mut world);
    world.restart(1);
    world.run_for(Duration::from_secs(20));
    assert!(
        world.drops(0, DropReason::UnknownKey) >= 3,
        "{:?}",
        world.all_drops(0)
    );
    assert_eq!(world.tally().types[2], 0, "no response");
}

/// What hosts say to each other at their start is lost, and the first host has no peers from then on.
fn forget_greetings(world: &mut World) {
    world.link.conditions.loss = 1.0;
    world.run_for(Duration::from_millis(100));
    world.change_plan(0, |plan| plan.peers.clear());
    world.link.conditions.loss = 0.0;
}
