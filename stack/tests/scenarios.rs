//! What users count on, in virtual time: `cargo test -p tidegate-stack --features simulation`.

#![expect(clippy::unwrap_used, reason = "a test ends at what it didn't expect")]

mod sim;

use sim::instance::Packet;
use sim::link::Conditions;
use sim::packets::{Crafted, ecn, hop_limit, icmp_type, udp_of_length};
use sim::plans::{Site, Underlay};
use sim::world::{At, World};
use smoltcp::iface::SocketHandle;
use std::net::IpAddr;
use std::time::Duration;
use tidegate_stack::drop::DropReason;
use tidegate_stack::frame::{Offload, Segmentation};
use tidegate_stack::time::Instant;
use tidegate_stack::wire::Ecn;

/// Ports: the first two are of one application, the third is of another with the addresses of the first.
const H1: At = (0, 0);
const H1_SECOND: At = (0, 1);
const H1_BLUE: At = (0, 2);
const H2: At = (1, 0);
const H2_BLUE: At = (1, 2);

const PORT: u16 = 80;

fn world(site: Site, conditions: Conditions) -> World {
    World::new(site, conditions, 7)
}

fn quiet() -> World {
    world(Site::default(), Conditions::default())
}

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
    let mut world = world(site, conditions);
    let transfer = Transfer::start(&mut world, H1, H2, ipv6, length);
    transfer.finish(&mut world, Duration::from_secs(3600));
    world
}

#[test]
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

#[test]
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

#[test]
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

#[test]
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

#[test]
fn two_instances_of_a_host_exchange_super_packets_whole() {
    let mut world = world(
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

#[test]
fn keys_change_under_traffic_without_a_lost_packet() {
    let mut world = quiet();
    let crafted = between(&mut world, H1, H2, false);
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

#[test]
fn a_silent_peer_is_found_again_when_it_comes_back() {
    let mut world = quiet();
    let crafted = between(&mut world, H1, H2, false);
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

#[test]
fn what_waits_for_a_session_is_bounded_and_arrives_in_order() {
    let mut world = quiet();
    let crafted = between(&mut world, H1, H2, false);
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

#[test]
fn a_connection_outlives_the_restart_of_either_datapath() {
    for victim in [0, 1] {
        let mut world = world(
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

#[test]
fn the_hop_limit_falls_by_one_between_two_instances() {
    for ipv6 in [false, true] {
        for (from, to) in [(H1, H2), (H1, H1_SECOND), (H2, H1)] {
            let mut world = quiet();
            let mut crafted = between(&mut world, from, to, ipv6);
            world.send(from, crafted.udp((4000, 4001), b"?"));
            let received = world.received(to);
            assert_eq!(hop_limit(&received[0].bytes), 63, "{from:?} {to:?}");
            crafted.hop_limit = 1;
            world.received(from);
            world.send(from, crafted.udp((4000, 4001), b"?"));
            assert_eq!(world.received(to), []);
            let told: Vec<_> = world
                .received(from)
                .iter()
                .filter_map(|packet| icmp_type(&packet.bytes))
                .collect();
            assert_eq!(told, [if ipv6 { (3, 0) } else { (11, 0) }]);
            assert_eq!(world.drops(from.0, DropReason::HopLimitExceeded), 1);
        }
    }
}

#[test]
fn congestion_marks_of_the_underlay_reach_the_instance() {
    let bits = [Ecn::NotCapable, Ecn::Capable1, Ecn::Capable0, Ecn::Congested];
    for ipv6 in [false, true] {
        for inner in bits {
            for outer in bits {
                let mut world = quiet();
                let mut crafted = between(&mut world, H1, H2, ipv6);
                world.send(H1, crafted.udp((4000, 4001), b"opens the session"));
                world.received(H2);
                world.link.conditions.mark = Some(outer);
                crafted.ecn = inner.bits();
                world.send(H1, crafted.udp((4000, 4001), b"marked"));
                let arrived: Vec<_> = world
                    .received(H2)
                    .iter()
                    .map(|packet| ecn(&packet.bytes))
                    .collect();
                match inner.decapsulated(outer) {
                    Some(joined) => assert_eq!(arrived, [joined.bits()], "{inner:?} under {outer:?}"),
                    None => {
                        assert_eq!(arrived, [0; 0], "{inner:?} under {outer:?}");
                        assert_eq!(world.drops(1, DropReason::EcnMismatch), 1);
                    }
                }
            }
        }
    }
}

#[test]
fn the_congestion_field_of_an_instance_reaches_the_underlay() {
    let mut world = quiet();
    let mut crafted = between(&mut world, H1, H2, false);
    world.send(H1, crafted.udp((4000, 4001), b"opens the session"));
    world.received(H2);
    for bits in 0..4 {
        crafted.ecn = bits;
        world.send(H1, crafted.udp((4000, 4001), b"marked"));
        assert_eq!(
            world
                .received(H2)
                .iter()
                .map(|packet| ecn(&packet.bytes))
                .collect::<Vec<_>>(),
            [bits]
        );
    }
}

#[test]
fn what_is_too_big_for_the_tunnel_is_told_to_its_sender() {
    for ipv6 in [false, true] {
        let mut world = quiet();
        let crafted = between(&mut world, H1, H2, ipv6);
        world.send(H1, udp_of_length(&crafted, 1390));
        assert_eq!(lengths(&world.received(H2)), [1390]);
        world.send(H1, udp_of_length(&crafted, 1391));
        assert_eq!(world.received(H2), []);
        let told = world.received(H1);
        let mtu_at = if ipv6 { 44 } else { 24 };
        let errors: Vec<_> = told
            .iter()
            .filter(|packet| matches!(icmp_type(&packet.bytes), Some((3, 4) | (2, 0))))
            .collect();
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].bytes[mtu_at..mtu_at + 4], 1390_u32.to_be_bytes());
        assert_eq!(world.drops(0, DropReason::PacketTooBig), 1);
        assert_eq!(world.tally().too_big, 0);
    }
}

#[test]
fn the_service_address_answers_pings_and_refuses_dns() {
    for ipv6 in [false, true] {
        let mut world = quiet();
        let own = world.instance(H1).address(ipv6);
        let crafted = Crafted::new(own, service_address(own));
        world.send(H1, crafted.echo(9, b"ping"));
        world.send(H1, crafted.udp((4000, 53), b"query"));
        world.send(H1, crafted.syn((4000, 53)));
        let answers = world.received(H1);
        assert_eq!(answers.len(), 3, "{:?}", world.all_drops(0));
        let (echo, unreachable) = if ipv6 {
            ((129, 0), (1, 4))
        } else {
            ((0, 0), (3, 3))
        };
        assert_eq!(icmp_type(&answers[0].bytes), Some(echo));
        assert_eq!(icmp_type(&answers[1].bytes), Some(unreachable));
        let flags = answers[2].bytes[if ipv6 { 53 } else { 33 }];
        assert_eq!(flags, 0x14, "RST and ACK");
        world.send(H1, crafted.udp((4000, 54), b"?"));
        assert_eq!(world.received(H1), []);
        assert_eq!(world.drops(0, DropReason::ServiceAddress), 1);
    }
}

#[test]
fn an_application_reaches_its_own_instances_and_no_others() {
    for ipv6 in [false, true] {
        let mut world = quiet();
        // The control: the same packets inside the application arrive.
        for (from, to) in [(H1_BLUE, H2_BLUE), (H1, H2)] {
            let crafted = between(&mut world, from, to, ipv6);
            world.send(from, crafted.udp((4000, 4001), b"inside"));
            assert_eq!(
                payloads(&world.received(to), if ipv6 { 48 } else { 28 }),
                [b"inside"]
            );
        }
        for at in [H1_BLUE, H2_BLUE, H1, H2, H1_SECOND] {
            world.received(at);
        }
        // With IPv4 the addresses are the same, and the packet stays inside; with IPv6 each has a prefix of its own.
        let from_shop = world.instance(H1).address(ipv6);
        let to_blue = world.instance(H2_BLUE).address(ipv6);
        world.send(H1, Crafted::new(from_shop, to_blue).udp((4000, 4001), b"probe"));
        let spoofed = world.instance(H1_SECOND).address(ipv6);
        world.send(H1, Crafted::new(spoofed, to_blue).udp((4000, 4001), b"spoof"));
        assert_eq!(world.received(H1_BLUE), []);
        assert_eq!(world.received(H2_BLUE), []);
        assert_eq!(world.drops(0, DropReason::SourceNotOwn), 1);
        if ipv6 {
            assert_eq!(
                world.drops(0, DropReason::OutboundDenied),
                1,
                "{:?}",
                world.all_drops(0)
            );
        } else {
            assert_eq!(payloads(&world.received(H2), 28), [b"probe"]);
        }
    }
}

#[test]
fn every_wrong_packet_of_an_instance_is_dropped_under_its_reason() {
    let mut world = quiet();
    let own = world.instance(H1).address(false);
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    for (source, destination, reason) in [
        (own, address("172.19.1.200"), DropReason::NoInstance),
        (own, address("172.19.77.2"), DropReason::NoPeer),
        (own, address("172.19.0.9"), DropReason::NoInstance),
        (own, address("192.0.2.12"), DropReason::OutboundDenied),
        (own, address("224.0.0.251"), DropReason::Multicast),
        (own, address("255.255.255.255"), DropReason::Multicast),
        (
            address("172.19.1.99"),
            address("172.19.1.3"),
            DropReason::SourceNotOwn,
        ),
    ] {
        let before = world.drops(0, reason);
        world.send(H1, Crafted::new(source, destination).udp((4000, 4001), b"?"));
        assert_eq!(
            world.drops(0, reason),
            before + 1,
            "{source} → {destination}: {:?}",
            world.all_drops(0)
        );
    }
    let mut damaged = Crafted::new(own, address("172.19.1.3")).udp((4000, 4001), b"?");
    damaged[11] ^= 1;
    world.send(H1, damaged);
    assert_eq!(world.drops(0, DropReason::BadChecksum), 1);
    world.send(H1, vec![0x45, 0, 0]);
    assert_eq!(world.drops(0, DropReason::Malformed), 1);
    assert_eq!(world.received(H1_SECOND), []);
}

#[test]
fn a_udp_super_packet_arrives_as_its_datagrams() {
    let mut world = world(
        Site {
            offloads: true,
            ..Site::default()
        },
        Conditions::default(),
    );
    let crafted = between(&mut world, H1, H2, false);
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

#[test]
fn nothing_that_an_instance_says_is_readable_on_the_wire() {
    let marker = b"TIDEGATE-MARKER-0123456789";
    let mut world = quiet();
    let crafted = between(&mut world, H1, H2, false);
    world.link.watch_for(marker);
    for _ in 0..20 {
        world.send(H1, crafted.udp((4000, 4001), marker));
    }
    assert!(world.received(H2).len() > 10);
    assert_eq!(world.tally().types[0], 0, "nothing but WireGuard");
    assert_eq!(world.tally().seen, 0);
}

#[test]
fn idle_hosts_say_nothing() {
    let mut world = quiet();
    let crafted = between(&mut world, H1, H2, false);
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

fn between(world: &mut World, from: At, to: At, ipv6: bool) -> Crafted {
    Crafted::new(
        world.instance(from).address(ipv6),
        world.instance(to).address(ipv6),
    )
}

fn service_address(own: IpAddr) -> IpAddr {
    match own {
        IpAddr::V4(own) => IpAddr::from([own.octets()[0], own.octets()[1], 0, 1]),
        IpAddr::V6(own) => IpAddr::V6(((own.to_bits() >> 64 << 64) | 1).into()),
    }
}

/// What UDP datagrams carried, `headers` bytes into each packet.
fn payloads(packets: &[Packet], headers: usize) -> Vec<Vec<u8>> {
    packets
        .iter()
        .filter(|packet| icmp_type(&packet.bytes).is_none())
        .map(|packet| packet.bytes[headers..].to_vec())
        .collect()
}

fn lengths(packets: &[Packet]) -> Vec<usize> {
    packets.iter().map(|packet| packet.bytes.len()).collect()
}

/// Time starts with the world: nothing here depends on when it is run.
#[test]
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
