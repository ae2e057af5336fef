//! What a network lets through, what it changes on the way, and what it says about the rest.

#![expect(clippy::unwrap_used, reason = "a test ends at what it didn't expect")]

mod sim;
#[macro_use]
#[path = "sim/shapes.rs"]
mod shapes;

use sim::link::Conditions;
use sim::packets::{
    Crafted, Packet, ecn, hop_limit, icmp_type, in_fragments, lengths, payloads, put_together, udp_of_length,
};
use sim::plans::Site;
use sim::world::{H1, H1_BLUE, H1_SECOND, H2, H2_BLUE, World};
use std::net::IpAddr;
use std::time::Duration;
use tidegate_stack::drop::DropReason;
use tidegate_stack::frame::{Offload, Segmentation};
use tidegate_stack::plan::PortId;
use tidegate_stack::wire::Ecn;

in_every_shape! {
    the_hop_limit_falls_by_one_between_two_instances,
    congestion_marks_of_the_underlay_reach_the_instance,
    the_congestion_field_of_an_instance_reaches_the_underlay,
    what_is_too_big_for_the_tunnel_is_told_to_its_sender,
    the_service_address_answers_pings_and_dns,
    an_application_reaches_its_own_instances_and_no_others,
    every_wrong_packet_of_an_instance_is_dropped_under_its_reason,
    an_error_of_the_far_instance_comes_back_to_who_caused_it,
    a_packet_that_may_be_fragmented_arrives_in_fragments,
    a_datagram_in_fragments_arrives_whole,
    a_super_packet_of_too_long_segments_is_told_to_its_sender,
    errors_are_told_no_oftener_than_the_limit,
    a_changed_policy_cuts_the_flows_that_it_no_longer_allows,
}

fn the_hop_limit_falls_by_one_between_two_instances() {
    for ipv6 in [false, true] {
        for (from, to) in [(H1, H2), (H1, H1_SECOND), (H2, H1)] {
            let mut world = World::quiet();
            let mut crafted = world.between(from, to, ipv6);
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

fn congestion_marks_of_the_underlay_reach_the_instance() {
    let bits = [Ecn::NotCapable, Ecn::Capable1, Ecn::Capable0, Ecn::Congested];
    for ipv6 in [false, true] {
        for inner in bits {
            for outer in bits {
                let mut world = World::quiet();
                let mut crafted = world.between(H1, H2, ipv6);
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

fn the_congestion_field_of_an_instance_reaches_the_underlay() {
    let mut world = World::quiet();
    let mut crafted = world.between(H1, H2, false);
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

fn what_is_too_big_for_the_tunnel_is_told_to_its_sender() {
    for ipv6 in [false, true] {
        let mut world = World::quiet();
        let crafted = world.between(H1, H2, ipv6);
        world.send(H1, udp_of_length(&crafted, 1390));
        assert_eq!(lengths(&world.received(H2)), [1390]);
        assert_eq!(
            world.tally().longest,
            1500 - 28,
            "it fills the underlay's packet, padding and all"
        );
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

fn the_service_address_answers_pings_and_dns() {
    for ipv6 in [false, true] {
        let mut world = World::quiet();
        let own = world.instance(H1).address(ipv6);
        let crafted = Crafted::new(own, service_address(own));
        world.send(H1, crafted.echo(9, b"ping"));
        let question = b"\x02db\x04shop\x08internal\0\0\x01\0\x01";
        let query = [&[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], question].concat();
        world.send(H1, crafted.udp((4000, 53), &query));
        world.send(H1, crafted.syn((4000, 53)));
        let answers = world.received(H1);
        assert_eq!(answers.len(), 3, "{:?}", world.all_drops(0));
        let echo = if ipv6 { (129, 0) } else { (0, 0) };
        assert_eq!(icmp_type(&answers[0].bytes), Some(echo));
        let payload = &answers[1].bytes[if ipv6 { 48 } else { 28 }..];
        assert_eq!(payload[..4], [0x12, 0x34, 0x85, 0x83], "NXDOMAIN, with authority");
        let flags = answers[2].bytes[if ipv6 { 53 } else { 33 }];
        assert_eq!(flags, 0x12, "SYN and ACK");
        world.send(H1, crafted.udp((4000, 54), b"?"));
        assert_eq!(world.received(H1), []);
        assert_eq!(world.drops(0, DropReason::ServiceAddress), 1);
    }
}

fn an_application_reaches_its_own_instances_and_no_others() {
    for ipv6 in [false, true] {
        let mut world = World::quiet();
        // The control: the same packets inside the application arrive.
        for (from, to) in [(H1_BLUE, H2_BLUE), (H1, H2)] {
            let crafted = world.between(from, to, ipv6);
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

fn every_wrong_packet_of_an_instance_is_dropped_under_its_reason() {
    let mut world = World::quiet();
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
fn nothing_that_an_instance_says_is_readable_on_the_wire() {
    let marker = b"TIDEGATE-MARKER-0123456789";
    let mut world = World::quiet();
    let crafted = world.between(H1, H2, false);
    world.link.watch_for(marker);
    for _ in 0..20 {
        world.send(H1, crafted.udp((4000, 4001), marker));
    }
    assert!(world.received(H2).len() > 10);
    assert_eq!(world.tally().types[0], 0, "nothing but WireGuard");
    assert_eq!(world.tally().seen, 0);

    // The control: the same search finds every one when the cipher is taken out.
    world.lay_open();
    world.instance(H2).deaf = true;
    for _ in 0..20 {
        world.send(H1, crafted.udp((4000, 4001), marker));
    }
    assert_eq!((world.received(H2).len(), world.tally().seen), (20, 20));
}

fn an_error_of_the_far_instance_comes_back_to_who_caused_it() {
    for ipv6 in [false, true] {
        let mut world = World::quiet();
        let crafted = world.between(H1, H2, ipv6);
        // Nothing listens there: the stack behind the far port says so.
        world.send(H1, crafted.udp((4000, 4001), b"anybody?"));
        let told = world.received(H1);
        let expected = if ipv6 { (1, 4) } else { (3, 3) };
        assert_eq!(
            told.iter()
                .map(|packet| icmp_type(&packet.bytes))
                .collect::<Vec<_>>(),
            [Some(expected)]
        );
        assert_eq!(hop_limit(&told[0].bytes), 63);

        // Quoting what nobody said makes no way.
        let mut invented = told[0].bytes.clone();
        let quoted_port = if ipv6 { 48 + 40 } else { 28 + 20 };
        invented[quoted_port] ^= 1;
        world.send(H2, invented);
        assert_eq!(world.received(H1), []);
        assert!(world.drops(1, DropReason::NoFlow) + world.drops(1, DropReason::SourceNotOwn) > 0);
    }
}

fn a_packet_that_may_be_fragmented_arrives_in_fragments() {
    let mut world = World::quiet();
    let crafted = Crafted {
        dont_fragment: false,
        ..world.between(H1, H2, false)
    };
    let payload: Vec<u8> = (0..2800_u32).map(|index| (index % 251) as u8).collect();
    world.send(H1, crafted.udp((4000, 4001), &payload));
    let received = world.received(H2);
    assert_eq!(received.len(), 3);
    assert!(lengths(&received).iter().all(|length| *length <= 1390));
    let data = put_together(&received);
    assert_eq!(data[8..], payload);
    assert_eq!(world.tally().too_big, 0);
}

fn a_datagram_in_fragments_arrives_whole() {
    for ipv6 in [false, true] {
        let mut world = World::quiet();
        let crafted = Crafted {
            dont_fragment: false,
            ..world.between(H1, H2, ipv6)
        };
        let whole = crafted.udp((4000, 4001), &[7; 600]);
        for part in in_fragments(&whole, 9, 304) {
            world.send(H1, part);
        }
        let received = world.received(H2);
        assert_eq!(received.len(), 1);
        assert_eq!(put_together(&received), whole[if ipv6 { 40 } else { 20 }..]);
    }
}

fn a_super_packet_of_too_long_segments_is_told_to_its_sender() {
    let mut world = World::with(
        Site {
            offloads: true,
            ..Site::default()
        },
        Conditions::default(),
    );
    let crafted = world.between(H1, H2, false);
    let bytes = crafted.tcp((4000, 80), 1, &[7; 9000]);
    let offload = Offload {
        segmentation: Segmentation::Tcp {
            size: 1460,
            ecn: false,
        },
        partial_checksum: None,
    };
    world.send(H1, Packet { bytes, offload });
    assert_eq!(world.received(H2), []);
    let told = world.received(H1);
    assert_eq!(
        told.iter()
            .map(|packet| icmp_type(&packet.bytes))
            .collect::<Vec<_>>(),
        [Some((3, 4))]
    );
}

fn errors_are_told_no_oftener_than_the_limit() {
    let mut world = World::quiet();
    let crafted = Crafted {
        hop_limit: 1,
        ..world.between(H1, H2, false)
    };
    for _ in 0..500 {
        world.instance(H1).inject(crafted.udp((4000, 4001), b"?").into());
    }
    world.run_for(Duration::from_millis(1));
    let told = world.received(H1).len();
    assert!((50..=52).contains(&told), "{told}");
    assert_eq!(world.drops(0, DropReason::HopLimitExceeded), 500);
}

fn a_changed_policy_cuts_the_flows_that_it_no_longer_allows() {
    let mut world = World::quiet();
    let (local, remote) = (world.between(H1, H1_SECOND, false), world.between(H1, H2, false));
    for crafted in [local, remote] {
        world.send(H1, crafted.udp((4000, 4001), b"before"));
    }
    assert_eq!(
        (world.received(H1_SECOND).len(), world.received(H2).len()),
        (1, 1)
    );
    let epoch = world.report(0).epoch;

    world.change_plan(0, |_| {});
    assert_eq!(world.report(0).epoch, epoch, "an equal plan is no change");
    world.change_plan(0, |plan| {
        plan.instances.retain(|instance| instance.port != PortId(1))
    });
    assert_eq!(world.report(0).epoch, epoch + 1);
    for crafted in [local, remote] {
        world.send(H1, crafted.udp((4000, 4001), b"after"));
    }
    assert_eq!(
        (world.received(H1_SECOND).len(), world.received(H2).len()),
        (0, 1)
    );
    assert_eq!(world.drops(0, DropReason::NoInstance), 1);

    world.change_plan(0, |plan| plan.peers.clear());
    world.send(H1, remote.udp((4000, 4001), b"after"));
    assert_eq!(world.received(H2), []);
    assert_eq!(world.drops(0, DropReason::NoPeer), 1);
    world.change_plan(0, |_| {});
    world.send(H1, local.udp((4000, 4001), b"again"));
    world.send(H1, remote.udp((4000, 4001), b"again"));
    assert_eq!(
        (world.received(H1_SECOND).len(), world.received(H2).len()),
        (1, 1)
    );
}

fn service_address(own: IpAddr) -> IpAddr {
    match own {
        IpAddr::V4(own) => IpAddr::from([own.octets()[0], own.octets()[1], 0, 1]),
        IpAddr::V6(own) => IpAddr::V6(((own.to_bits() >> 64 << 64) | 1).into()),
    }
}
