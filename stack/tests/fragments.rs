//! Datagrams in fragments, from the sender's device to the receiver's: whole where they are judged, and nothing that
//! isn't whole gets any further. `cargo test -p tidegate-stack --features simulation --test fragments`.

#![expect(clippy::unwrap_used, reason = "a test ends at what it didn't expect")]

mod sim;
#[macro_use]
#[path = "sim/shapes.rs"]
mod shapes;

use sim::far_end::{FarEnd, ethernet};
use sim::packets::{Crafted, Packet, fragment, in_fragments, put_together};
use sim::plans::Site;
use sim::world::{At, H1, H1_BLUE, H1_SECOND, H2, World};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use tidegate_stack::drop::DropReason;
use tidegate_stack::frame::checksum::Sum;
use tidegate_stack::plan::PortId;
use tidegate_stack::wire::MacAddr;

in_every_shape! {
    a_ping_of_4000_bytes_is_answered_across_hosts_in_either_order_of_its_parts,
    a_ping_of_3000_bytes_to_the_service_address_is_answered,
    instances_of_a_host_exchange_datagrams_in_parts,
    a_datagram_is_judged_whole_and_denied_once,
    parts_may_be_shuffled_and_doubled,
    a_datagram_whose_parts_overlap_is_dropped_with_all_of_them_rfc_5722,
    tiny_first_parts_are_dropped_rfc_7112_rfc_3128,
    a_flood_of_first_parts_is_bounded_and_stops_nobody_else,
    parts_that_stay_alone_are_counted_when_their_time_is_over,
    a_spoofed_part_never_meets_the_others,
}

const START: [usize; 2] = [20, 40];

/// Lets an instance send packets, one by one.
fn send_all(world: &mut World, from: At, packets: impl IntoIterator<Item = Vec<u8>>) {
    for packet in packets {
        world.instance(from).inject(packet.into());
        world.run_for(Duration::from_millis(1));
    }
    world.run_for(Duration::from_millis(50));
}

/// The reply to an echo request, as a kernel makes it.
fn reply_to(request: &[u8], ipv6: bool) -> Vec<u8> {
    let mut reply = request.to_vec();
    let (addresses, length) = if ipv6 { (8, 16) } else { (12, 4) };
    let middle = addresses + length;
    let (left, right) = reply.split_at_mut(middle);
    left[addresses..].swap_with_slice(&mut right[..length]);
    reply[START[usize::from(ipv6)]] = if ipv6 { 129 } else { 0 };
    reply
}

fn forget_greetings(world: &mut World) {
    for at in [H1, H1_SECOND, H2] {
        world.instance(at).deaf = true;
        world.received(at);
    }
}

fn all_is_quiet(world: &World) {
    for host in [0, 1] {
        assert_eq!(world.all_drops(host), []);
        assert_eq!(world.report(host).frames_in_use, 0, "frames come back");
    }
}

fn a_ping_of_4000_bytes_is_answered_across_hosts_in_either_order_of_its_parts() {
    for ipv6 in [false, true] {
        for reversed in [false, true] {
            let mut world = World::quiet();
            forget_greetings(&mut world);
            let start = START[usize::from(ipv6)];
            let request = world.between(H1, H2, ipv6).echo(9, &vec![0x5a; 4000]);
            let reply = reply_to(&request, ipv6);
            for (from, to, whole) in [(H1, H2, request), (H2, H1, reply)] {
                let mut parts = in_fragments(&whole, 77, 1_344);
                assert_eq!(parts.len(), 3);
                if reversed {
                    parts.reverse();
                }
                send_all(&mut world, from, parts);
                let received = world.received(to);
                assert_eq!(received.len(), 3);
                assert!(received.iter().all(|packet| packet.bytes.len() <= 1_390));
                assert_eq!(put_together(&received), whole[start..], "{ipv6} {reversed}");
            }
            let flows = world.report(0).flows;
            assert_eq!(flows, 1, "request and reply are of one flow");
            all_is_quiet(&world);
        }
    }
}

fn a_ping_of_3000_bytes_to_the_service_address_is_answered() {
    for ipv6 in [false, true] {
        let mut world = World::quiet();
        forget_greetings(&mut world);
        let own = world.instance(H1).address(ipv6);
        let service = match own {
            IpAddr::V4(_) => Ipv4Addr::new(172, 19, 0, 1).into(),
            IpAddr::V6(own) => IpAddr::V6(((own.to_bits() >> 64 << 64) | 1).into()),
        };
        let request = Crafted::new(own, service).echo(9, &vec![0x5a; 3000]);
        send_all(&mut world, H1, in_fragments(&request, 0x1234, 1_000));
        let received = world.received(H1);
        assert!(received.len() > 1, "the device doesn't take it whole");
        assert!(received.iter().all(|packet| packet.bytes.len() <= 1_390));
        let message = put_together(&received);
        assert_eq!(message[0], if ipv6 { 129 } else { 0 });
        assert_eq!(message[4..], request[START[usize::from(ipv6)] + 4..]);
        let mut sum = match ipv6 {
            true => Sum::pseudo_header(service, own, 58, u32::try_from(message.len()).unwrap()),
            false => Sum::default(),
        };
        sum.add(&message);
        assert!(sum.is_correct());
        all_is_quiet(&world);
    }
}

fn instances_of_a_host_exchange_datagrams_in_parts() {
    for ipv6 in [false, true] {
        let mut world = World::quiet();
        forget_greetings(&mut world);
        let whole = world.between(H1, H1_SECOND, ipv6).udp((4000, 4001), &[7; 5000]);
        for identification in 0..8 {
            send_all(&mut world, H1, in_fragments(&whole, identification, 1_000));
            let received = world.received(H1_SECOND);
            assert_eq!(put_together(&received), whole[START[usize::from(ipv6)]..]);
        }
        assert_eq!(world.report(0).flows, 1);
        all_is_quiet(&world);
    }
}

fn a_datagram_is_judged_whole_and_denied_once() {
    for ipv6 in [false, true] {
        let mut world = World::quiet();
        forget_greetings(&mut world);
        let nobody = match world.instance(H1).address(ipv6) {
            IpAddr::V4(_) => Ipv4Addr::new(172, 19, 1, 99).into(),
            IpAddr::V6(own) => IpAddr::V6((own.to_bits() & !0xffff | 99).into()),
        };
        let own = world.instance(H1).address(ipv6);
        let whole = Crafted::new(own, nobody).udp((4000, 4001), &[7; 3000]);
        send_all(&mut world, H1, in_fragments(&whole, 3, 1_000));
        assert_eq!(world.all_drops(0), [(DropReason::NoInstance, 1)]);
        let last = world.report(0).drops[0].last.unwrap();
        let packet = last.packet.unwrap();
        assert_eq!((last.port, packet.destination), (Some(PortId(0)), nobody));
        assert_eq!((packet.source_port, packet.destination_port), (4000, 4001));
        assert_eq!(world.report(0).frames_in_use, 0);
    }
}

fn parts_may_be_shuffled_and_doubled() {
    for ipv6 in [false, true] {
        let mut world = World::quiet();
        forget_greetings(&mut world);
        let whole = world.between(H1, H2, ipv6).udp((4000, 4001), &[7; 5000]);
        let parts = in_fragments(&whole, 3, 1_000);
        let order = [3, 3, 1, 5, 1, 0, 2, 2, 4];
        send_all(&mut world, H1, order.map(|index| parts[index].clone()));
        assert_eq!(
            put_together(&world.received(H2)),
            whole[START[usize::from(ipv6)]..]
        );
        assert_eq!(world.all_drops(0), [(DropReason::FragmentOverlap, 3)]);
    }
}

fn a_datagram_whose_parts_overlap_is_dropped_with_all_of_them_rfc_5722() {
    for ipv6 in [false, true] {
        let mut world = World::quiet();
        forget_greetings(&mut world);
        let whole = world.between(H1, H2, ipv6).udp((4000, 4001), &[7; 3000]);
        let (header, _) = whole.split_at(START[usize::from(ipv6)]);
        let [first, second, third, last] = in_fragments(&whole, 3, 800).try_into().unwrap();
        let over = fragment(header, 3, 792, true, &[6; 16]);
        send_all(&mut world, H1, [first, second, over, third, last]);
        assert_eq!(world.received(H2), []);
        assert_eq!(world.all_drops(0), [(DropReason::FragmentOverlap, 5)]);
        assert_eq!(world.all_drops(1), []);
        // Another datagram of the same flow isn't concerned.
        send_all(&mut world, H1, in_fragments(&whole, 4, 800));
        assert_eq!(put_together(&world.received(H2)), whole[header.len()..]);
    }
}

fn tiny_first_parts_are_dropped_rfc_7112_rfc_3128() {
    for ipv6 in [false, true] {
        let mut world = World::quiet();
        forget_greetings(&mut world);
        let whole = world.between(H1, H2, ipv6).tcp((4000, 80), 1, &[7; 40]);
        let (header, data) = whole.split_at(START[usize::from(ipv6)]);
        let tiny = fragment(header, 3, 0, true, &data[..16]);
        let rest = fragment(header, 3, 16, false, &data[16..]);
        send_all(&mut world, H1, [tiny, rest]);
        assert_eq!(world.drops(0, DropReason::FragmentHeader), 1);
        if !ipv6 {
            // It would lie over the flags.
            send_all(&mut world, H1, [fragment(header, 4, 8, false, &data[8..])]);
            assert_eq!(world.drops(0, DropReason::FragmentHeader), 2);
        }
        assert_eq!(world.received(H2), []);
    }
}

fn a_flood_of_first_parts_is_bounded_and_stops_nobody_else() {
    for ipv6 in [false, true] {
        let mut world = World::quiet();
        forget_greetings(&mut world);
        let flood = world.between(H1, H2, ipv6).udp((4000, 4001), &[7; 3000]);
        for identification in 0..300 {
            let first = in_fragments(&flood, identification, 1_000).swap_remove(0);
            world.instance(H1).inject(first.into());
        }
        world.run_for(Duration::from_millis(50));
        // A source has 64 at most on all shards; each shard's own oldest makes room.
        let limited = world.drops(0, DropReason::FragmentLimit);
        assert!((236..250).contains(&limited), "{limited}");
        // Its newest is whole with its rest, and so is another instance's.
        for (from, identification) in [(H1, 299), (H1_SECOND, 1)] {
            let whole = world.between(from, H2, ipv6).udp((4000, 4001), &[7; 3000]);
            let parts = in_fragments(&whole, identification, 1_000);
            send_all(&mut world, from, parts.into_iter().skip(usize::from(from == H1)));
            assert_eq!(
                put_together(&world.received(H2)),
                whole[START[usize::from(ipv6)]..]
            );
        }
        world.run_for(Duration::from_secs(61));
        let late = world.drops(0, DropReason::FragmentTimeout);
        assert_eq!(limited + late, 299, "every part is counted");
        assert_eq!(world.report(0).frames_in_use, 0);
    }
}

fn parts_that_stay_alone_are_counted_when_their_time_is_over() {
    for (ipv6, seconds) in [(false, 30), (true, 60)] {
        let mut world = World::quiet();
        forget_greetings(&mut world);
        let whole = world.between(H1, H2, ipv6).udp((4000, 4001), &[7; 3000]);
        let mut parts = in_fragments(&whole, 3, 1_000);
        let last = parts.pop().unwrap();
        let count = parts.len() as u64;
        send_all(&mut world, H1, parts);
        world.run_for(Duration::from_secs(seconds - 1));
        assert_eq!(world.all_drops(0), []);
        world.run_for(Duration::from_secs(2));
        assert_eq!(world.all_drops(0), [(DropReason::FragmentTimeout, count)]);
        let example = world.report(0).drops[0].last.unwrap();
        assert_eq!(example.packet.unwrap().source, world.instance(H1).address(ipv6));
        send_all(&mut world, H1, [last]);
        assert_eq!(world.received(H2), []);
    }
}

fn a_spoofed_part_never_meets_the_others() {
    for ipv6 in [false, true] {
        let mut world = World::quiet();
        forget_greetings(&mut world);
        let whole = world.between(H1, H2, ipv6).udp((4000, 4001), &[7; 3000]);
        let parts = in_fragments(&whole, 3, 1_000);
        send_all(&mut world, H1, [parts[0].clone()]);
        // A neighbour of the network speaks for it, and one with its address in a network of its own.
        send_all(&mut world, H1_SECOND, [parts[1].clone()]);
        assert_eq!(world.all_drops(0), [(DropReason::SourceNotOwn, 1)]);
        let foreign = world.between(H1_BLUE, H2, ipv6);
        let blue = fragment(
            &foreign.udp((1, 2), &[])[..START[usize::from(ipv6)]],
            3,
            1_000,
            true,
            &[6; 1_000],
        );
        send_all(&mut world, H1_BLUE, [blue]);
        send_all(&mut world, H1, parts[1..].to_vec());
        assert_eq!(
            put_together(&world.received(H2)),
            whole[START[usize::from(ipv6)]..]
        );
    }
}

/// Parts of a container behind a kernel's VTEP, which are put together where they arrive.
#[test]
fn a_peers_datagram_in_parts_arrives_and_one_with_an_overlap_does_not() {
    let mut far_end = FarEnd::new(Site::default());
    let (own, container) = (Ipv4Addr::new(172, 19, 1, 2), Ipv4Addr::new(172, 19, 2, 9));
    far_end.instance(0).deaf = true;
    let whole = Crafted::new(container.into(), own.into()).udp((4000, 4001), &[7; 3000]);
    let say = |far_end: &mut FarEnd, part: &[u8]| {
        far_end.say_frame(&ethernet(
            MacAddr::of(own),
            MacAddr([0x5e, 1, 2, 3, 4, 5]),
            0x0800,
            part,
        ));
    };
    for part in in_fragments(&whole, 7, 1_200).iter().rev() {
        say(&mut far_end, part);
    }
    let received: Vec<Packet> = std::mem::take(&mut far_end.instance(0).received);
    assert_eq!(put_together(&received), whole[20..]);
    assert!(received.iter().all(|packet| packet.bytes.len() <= 1_390));

    let parts = in_fragments(&whole, 8, 1_200);
    say(&mut far_end, &parts[0]);
    say(&mut far_end, &fragment(&whole[..20], 8, 600, true, &[6; 600]));
    say(&mut far_end, &parts[1]);
    say(&mut far_end, &parts[2]);
    assert_eq!(far_end.instance(0).received, []);
    assert_eq!(far_end.drops(DropReason::FragmentOverlap), 4);
    assert_eq!(far_end.report().frames_in_use, 0);
}
