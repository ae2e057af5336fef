//! What a peer that isn't ours may say, and what is made of it: a kernel's VTEP with its own MAC addresses, and a peer
//! with a valid key that lies.

#![expect(clippy::unwrap_used, reason = "a test ends at what it didn't expect")]

mod sim;

use sim::far_end::{FAR_VTEP, FarEnd, NEAR_VTEP, VNI_FLAG, ethernet, vxlan, vxlan_between};
use sim::packets::{Crafted, Packet};
use sim::plans::Site;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;
use tidegate_stack::drop::DropReason;
use tidegate_stack::plan::PeerNetworks;
use tidegate_stack::responder::arp::{self, Arp, Operation};
use tidegate_stack::responder::icmp::{self, IcmpError};
use tidegate_stack::responder::ndp::{self, Ndp};
use tidegate_stack::wire::MacAddr;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// What a kernel chose for a container of the far end.
const CONTAINER_MAC: MacAddr = MacAddr([0x5e, 0x8a, 1, 2, 3, 4]);
const CONTAINER_4: Ipv4Addr = Ipv4Addr::new(172, 19, 2, 9);
const OWN_4: Ipv4Addr = Ipv4Addr::new(172, 19, 1, 2);
const OWN_MAC: MacAddr = MacAddr::of(OWN_4);

fn far_end() -> FarEnd {
    FarEnd::new(Site::default())
}

/// The container's address beside the first instance's.
fn container_6(own: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits((own.to_bits() >> 64 << 64) | 0x2_0009)
}

fn own_6(far_end: &mut FarEnd) -> Ipv6Addr {
    match far_end.instance(0).address(true) {
        IpAddr::V6(own) => own,
        IpAddr::V4(own) => panic!("{own}"),
    }
}

/// Addresses of the container and of the first instance.
fn addresses(far_end: &mut FarEnd, ipv6: bool) -> (IpAddr, IpAddr) {
    if ipv6 {
        let own = own_6(far_end);
        (container_6(own).into(), own.into())
    } else {
        (CONTAINER_4.into(), OWN_4.into())
    }
}

fn frame_of(message: impl FnOnce(&mut [u8]) -> Option<usize>) -> Vec<u8> {
    let mut out = vec![0; 256];
    let length = message(&mut out).unwrap();
    out.truncate(length);
    out
}

/// What the container answers to a question of the host.
fn answer_of_container(question: &[u8]) -> Vec<u8> {
    if let Some(asked) = arp::parse(question) {
        assert_eq!(asked.operation, Operation::Request);
        assert_eq!((asked.sender_mac, asked.sender_ip), (OWN_MAC, OWN_4));
        assert_eq!(question[..6], MacAddr::BROADCAST.0);
        return frame_of(|out| {
            arp::reply(
                CONTAINER_MAC,
                asked.target_ip,
                asked.sender_mac,
                asked.sender_ip,
                out,
            )
        });
    }
    let Some(Ndp::Solicitation {
        sender_ip,
        sender_mac,
        target,
    }) = ndp::parse(question)
    else {
        panic!("neither ARP nor neighbour discovery: {question:?}");
    };
    assert_eq!(sender_mac, Some(OWN_MAC));
    assert_eq!(question[..6], MacAddr::solicited_node(target).0);
    frame_of(|out| ndp::advertise(CONTAINER_MAC, target, OWN_MAC, sender_ip, out))
}

#[test]
fn a_container_is_asked_for_before_it_is_sent_to() {
    for ipv6 in [false, true] {
        let mut far_end = far_end();
        let (container, own) = addresses(&mut far_end, ipv6);
        let packet = Crafted::new(own, container).udp((4000, 4001), b"to a container");
        for _ in 0..3 {
            far_end.instance(0).inject(packet.clone().into());
        }
        let heard = far_end.hear();
        assert_eq!(heard.len(), 1, "one question for three packets");
        let answer = answer_of_container(&heard[0]);
        let heard = far_end.say_frame(&answer);
        assert_eq!(heard.len(), 3);
        for frame in heard {
            assert_eq!(frame[..6], CONTAINER_MAC.0);
            assert_eq!(frame[6..12], OWN_MAC.0);
            assert_eq!(frame[12..14], if ipv6 { IPV6 } else { IPV4 }.to_be_bytes());
            let mut expected = packet.clone();
            let mut headers = tidegate_stack::wire::Headers::parse(&expected).unwrap();
            headers.decrement_hop_limit(&mut expected);
            assert_eq!(frame[14..], expected);
        }
    }
}

#[test]
fn a_container_that_nobody_has_is_given_up() {
    let mut far_end = far_end();
    let packet = Crafted::new(OWN_4.into(), CONTAINER_4.into()).udp((4000, 4001), b"?");
    for _ in 0..10 {
        far_end.instance(0).inject(packet.clone().into());
    }
    let questions = far_end.pass(Duration::from_secs(10));
    assert_eq!(questions.len(), 3);
    assert_eq!(
        far_end.drops(DropReason::NoNeighbour) + far_end.drops(DropReason::NeighbourQueueFull),
        10
    );
    assert_eq!(far_end.report().neighbours, 0);
    assert_eq!(far_end.report().frames_in_use, 0);
}

#[test]
fn containers_find_our_instances() {
    let mut far_end = far_end();
    let heard = far_end.say_frame(&frame_of(|out| {
        arp::request(CONTAINER_MAC, CONTAINER_4, OWN_4, out)
    }));
    let expected = Arp {
        operation: Operation::Reply,
        sender_mac: OWN_MAC,
        sender_ip: OWN_4,
        target_ip: CONTAINER_4,
    };
    assert_eq!(
        heard.iter().map(|frame| arp::parse(frame)).collect::<Vec<_>>(),
        [Some(expected)]
    );
    assert_eq!(heard[0][..6], CONTAINER_MAC.0);

    let own = own_6(&mut far_end);
    let heard = far_end.say_frame(&frame_of(|out| {
        ndp::solicit(CONTAINER_MAC, container_6(own), own, out)
    }));
    let expected = Ndp::Advertisement {
        target: own,
        mac: OWN_MAC,
        solicited: true,
    };
    assert_eq!(
        heard.iter().map(|frame| ndp::parse(frame)).collect::<Vec<_>>(),
        [Some(expected)]
    );
    assert_eq!(heard[0][..6], CONTAINER_MAC.0);
}

#[test]
fn who_is_not_here_is_not_answered_for() {
    let mut far_end = far_end();
    for target in [
        [172, 19, 1, 77],
        [172, 19, 2, 10],
        [172, 19, 0, 1],
        [192, 0, 2, 1],
    ] {
        let question = frame_of(|out| arp::request(CONTAINER_MAC, CONTAINER_4, target.into(), out));
        assert_eq!(far_end.say_frame(&question), [[0; 0]; 0], "{target:?}");
    }
    assert_eq!(far_end.drops(DropReason::NotOurs), 4);
}

#[test]
fn packets_of_containers_reach_the_instance() {
    for ipv6 in [false, true] {
        let mut far_end = far_end();
        let (container, own) = addresses(&mut far_end, ipv6);
        let packet = Crafted::new(container, own).udp((4000, 4001), b"from a container");
        let kind = if ipv6 { IPV6 } else { IPV4 };
        far_end.say_frame(&ethernet(OWN_MAC, CONTAINER_MAC, kind, &packet));
        let received: Vec<Vec<u8>> = far_end
            .instance(0)
            .received
            .iter()
            .map(|packet| packet.bytes.clone())
            .collect();
        assert_eq!(received, [packet], "the sender's host took the hop");
    }
}

#[test]
fn a_peer_answers_for_its_own_block_only() {
    let mut far_end = far_end();
    let packet = Crafted::new(OWN_4.into(), CONTAINER_4.into()).udp((4000, 4001), b"?");
    far_end.instance(0).inject(packet.into());
    far_end.hear();
    // The first instance's neighbour on the same host, and an address of a third host.
    for claimed in [[172, 19, 1, 3], [172, 19, 3, 9]] {
        far_end.say_frame(&frame_of(|out| {
            arp::reply(CONTAINER_MAC, claimed.into(), OWN_MAC, OWN_4, out)
        }));
    }
    assert_eq!(far_end.report().neighbours, 1, "only the one that was asked for");
    let to_second =
        Crafted::new(OWN_4.into(), IpAddr::from([172, 19, 1, 3])).udp((4000, 4001), b"stays here");
    far_end.instance(0).inject(to_second.into());
    assert_eq!(far_end.hear(), [[0; 0]; 0]);
    assert_eq!(far_end.instance(1).received.len(), 1);
}

#[test]
fn every_lie_of_a_peer_is_dropped_under_its_reason() {
    let mut far_end = far_end();
    let vni = far_end.vni().get();
    let own_6 = own_6(&mut far_end);
    let good = Crafted::new(CONTAINER_4.into(), OWN_4.into()).udp((4000, 4001), b"?");
    let frame = ethernet(OWN_MAC, CONTAINER_MAC, IPV4, &good);
    let ip = |source: [u8; 4], destination: [u8; 4]| {
        let packet = Crafted::new(source.into(), destination.into()).udp((4000, 4001), b"?");
        vxlan(vni, VNI_FLAG, &ethernet(OWN_MAC, CONTAINER_MAC, IPV4, &packet))
    };
    let own = OWN_4.octets();
    let container = CONTAINER_4.octets();
    let mut damaged = frame.clone();
    damaged[14 + 8] ^= 1;
    let mld = Crafted::new(container_6(own_6).into(), "ff02::16".parse().unwrap()).udp((1, 2), b"?");
    let cases: Vec<(Vec<u8>, DropReason)> = vec![
        (vxlan(vni, 0, &frame), DropReason::VxlanFlags),
        (vxlan(vni + 1, VNI_FLAG, &frame), DropReason::UnknownVni),
        (vxlan(0, VNI_FLAG, &frame), DropReason::UnknownVni),
        (vxlan(vni, VNI_FLAG, &frame[..13]), DropReason::NotVxlan),
        (
            vxlan_between(FAR_VTEP, NEAR_VTEP, 4790, vni, VNI_FLAG, &frame),
            DropReason::NotVxlan,
        ),
        (
            vxlan_between([169, 254, 116, 3].into(), NEAR_VTEP, 4789, vni, VNI_FLAG, &frame),
            DropReason::NotVxlan,
        ),
        (
            vxlan_between(FAR_VTEP, [169, 254, 116, 3].into(), 4789, vni, VNI_FLAG, &frame),
            DropReason::NotVxlan,
        ),
        (good.clone(), DropReason::NotVxlan),
        (
            vxlan(vni, VNI_FLAG, &ethernet(OWN_MAC, CONTAINER_MAC, 0x88cc, &good)),
            DropReason::NotOurs,
        ),
        (
            vxlan(vni, VNI_FLAG, &ethernet(OWN_MAC, CONTAINER_MAC, IPV6, &good)),
            DropReason::Malformed,
        ),
        (vxlan(vni, VNI_FLAG, &damaged), DropReason::BadChecksum),
        (ip([172, 19, 3, 9], own), DropReason::ForeignSource),
        (ip([172, 19, 1, 3], own), DropReason::ForeignSource),
        (ip([172, 19, 0, 1], own), DropReason::ForeignSource),
        (ip([192, 0, 2, 9], own), DropReason::ForeignSource),
        (ip([224, 0, 0, 1], own), DropReason::SourceMartian),
        (ip([127, 0, 0, 1], own), DropReason::SourceMartian),
        (ip(container, [172, 19, 1, 77]), DropReason::NoInstance),
        (ip(container, [172, 19, 3, 2]), DropReason::NoInstance),
        (ip(container, [172, 19, 0, 1]), DropReason::ServiceAddress),
        (ip(container, [192, 0, 2, 9]), DropReason::OutboundDenied),
        (ip(container, [224, 0, 0, 251]), DropReason::Multicast),
        (
            vxlan(vni, VNI_FLAG, &ethernet(OWN_MAC, CONTAINER_MAC, IPV6, &mld)),
            DropReason::Multicast,
        ),
    ];
    for (number, (plaintext, reason)) in cases.iter().enumerate() {
        let before = far_end.report().drops;
        assert_eq!(far_end.say(plaintext), [[0; 0]; 0]);
        let moved: Vec<DropReason> = far_end
            .report()
            .drops
            .iter()
            .filter(|after| {
                !before
                    .iter()
                    .any(|drop| drop.reason == after.reason && drop.packets == after.packets)
            })
            .map(|after| after.reason)
            .collect();
        assert_eq!(moved, [*reason], "case {number}");
    }
    for port in 0..3 {
        assert_eq!(far_end.instance(port).received, []);
    }
    // The control: the same generator, truthful.
    far_end.say(&vxlan(vni, VNI_FLAG, &frame));
    assert_eq!(far_end.instance(0).received, [Packet::from(good)]);
}

#[test]
fn a_peer_is_heard_in_the_networks_that_it_is_a_member_of() {
    let site = Site {
        members_of: Some("shop"),
        ..Site::default()
    };
    let plan = site.plan(0);
    let blue = plan
        .networks
        .iter()
        .find(|network| network.name == "blue")
        .unwrap()
        .vni;
    assert!(matches!(&plan.peers[0].networks, PeerNetworks::Only(vnis) if vnis.len() == 1));
    let mut far_end = FarEnd::new(site);
    let packet = Crafted::new(CONTAINER_4.into(), OWN_4.into()).udp((4000, 4001), b"?");
    let frame = ethernet(OWN_MAC, CONTAINER_MAC, IPV4, &packet);
    far_end.say(&vxlan(blue.get(), VNI_FLAG, &frame));
    assert_eq!(far_end.drops(DropReason::NotMember), 1);
    assert_eq!(far_end.instance(2).received, []);
    far_end.say_frame(&frame);
    assert_eq!(far_end.instance(0).received.len(), 1);
    // And what blue sends to the peer's block stays here.
    far_end.instance(2).inject(
        Crafted::new(OWN_4.into(), CONTAINER_4.into())
            .udp((4000, 4001), b"?")
            .into(),
    );
    assert_eq!(far_end.hear(), [[0; 0]; 0]);
    assert_eq!(far_end.drops(DropReason::NoPeer), 1);
}

#[test]
fn a_peer_tells_no_errors_about_packets_that_it_never_got() {
    let mut far_end = far_end();
    let second = IpAddr::from([172, 19, 1, 3]);
    let packet = Crafted::new(OWN_4.into(), second).udp((4000, 4001), b"stays here");
    far_end.instance(1).deaf = true;
    far_end.instance(0).inject(packet.clone().into());
    far_end.hear();
    let mut error = vec![0; 576];
    let length = icmp::error(
        IcmpError::PortUnreachable,
        CONTAINER_4.into(),
        &packet,
        &mut error,
    )
    .unwrap();
    far_end.say_frame(&ethernet(OWN_MAC, CONTAINER_MAC, IPV4, &error[..length]));
    assert_eq!(far_end.drops(DropReason::NoFlow), 1);
    assert_eq!(far_end.instance(0).received, []);
}
