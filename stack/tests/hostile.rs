//! Any bytes through every door of a host: nothing panics, no buffer is lost, and the host still works afterwards.

#![expect(clippy::unwrap_used, reason = "a test ends at what it didn't expect")]

mod sim;

use proptest::prelude::*;
use sim::far_end::{FarEnd, VNI_FLAG, ethernet, vxlan};
use sim::packets::{Crafted, Packet};
use sim::plans::Site;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use tidegate_stack::frame::{Offload, Segmentation};
use tidegate_stack::responder::{arp, ndp};
use tidegate_stack::wire::{Headers, MacAddr};

const OWN: Ipv4Addr = Ipv4Addr::new(172, 19, 1, 2);
const SECOND: Ipv4Addr = Ipv4Addr::new(172, 19, 1, 3);
const SERVICE: Ipv4Addr = Ipv4Addr::new(172, 19, 0, 1);
const CONTAINER: Ipv4Addr = Ipv4Addr::new(172, 19, 2, 9);
const CONTAINER_MAC: MacAddr = MacAddr([0x5e, 0x8a, 1, 2, 3, 4]);

/// The door that bytes come in by.
#[derive(Clone, Debug)]
enum Door {
    /// A port, with the offloads that the device claims.
    Port(Offload),
    /// A lane, as they are.
    Lane,
    /// A lane, sealed by a peer.
    Peer,
    /// A lane, sealed by a peer, behind correct VXLAN.
    PeerFrame,
}

/// What is done to a seed.
#[derive(Clone, Debug)]
struct Damage {
    changes: Vec<(prop::sample::Index, u8)>,
    cut: Option<prop::sample::Index>,
    /// Whether the IPv4 header's checksum is made good again, `at` bytes in.
    mend: bool,
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>, ip: usize) {
        for (at, value) in &self.changes {
            if !bytes.is_empty() {
                let reach = if value & 1 == 0 {
                    bytes.len()
                } else {
                    bytes.len().min(ip + 60)
                };
                let at = at.index(reach);
                bytes[at] = *value;
            }
        }
        if let Some(end) = self.cut {
            let end = end.index(bytes.len() + 1);
            bytes.truncate(end);
        }
        if self.mend && bytes.len() >= ip + 20 && bytes[ip] >> 4 == 4 {
            bytes[ip + 10..ip + 12].fill(0);
            let sum = tidegate_stack::frame::checksum::checksum(&bytes[ip..ip + 20]);
            bytes[ip + 10..ip + 12].copy_from_slice(&sum);
        }
    }
}

fn door() -> impl Strategy<Value = Door> {
    let segmentation = prop_oneof![
        2 => Just(Segmentation::None),
        2 => (1_u16..3000, any::<bool>()).prop_map(|(size, ecn)| Segmentation::Tcp { size, ecn }),
        1 => (1_u16..3000).prop_map(|size| Segmentation::Udp { size }),
    ];
    let partial = prop_oneof![
        Just(None),
        Just(Some((20, 16))),
        Just(Some((20, 6))),
        any::<(u16, u16)>().prop_map(Some),
    ];
    prop_oneof![
        (segmentation, partial).prop_map(|(segmentation, partial_checksum)| Door::Port(Offload {
            segmentation,
            partial_checksum
        })),
        Just(Door::Lane),
        Just(Door::Peer),
        Just(Door::PeerFrame),
    ]
}

fn damage() -> impl Strategy<Value = Damage> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5);
    (
        changes,
        prop::option::weighted(0.2, any::<prop::sample::Index>()),
        any::<bool>(),
    )
        .prop_map(|(changes, cut, mend)| Damage { changes, cut, mend })
}

/// A packet from an address, of one of the kinds there are; `seed` chooses.
fn packet(from: IpAddr, to: IpAddr, seed: u8, length: usize) -> Vec<u8> {
    let crafted = Crafted {
        dont_fragment: seed & 0x80 == 0,
        ..Crafted::new(from, to)
    };
    let payload = vec![seed; length];
    match seed % 4 {
        0 => crafted.udp((4000, 4001), &payload),
        1 => crafted.tcp((4000, 80), 77, &payload),
        2 => crafted.echo(9, &payload),
        _ => crafted.syn((4000, 53)),
    }
}

/// What goes in by a door before it is damaged, and where its IP header is.
fn seed_for(far_end: &mut FarEnd, door: &Door, seed: u8, length: usize) -> (Vec<u8>, usize) {
    let ipv6 = seed & 0x40 != 0;
    let own = far_end.instance(0).address(ipv6);
    let neighbour = far_end.instance(1).address(ipv6);
    let container = match own {
        IpAddr::V4(_) => CONTAINER.into(),
        IpAddr::V6(own) => IpAddr::V6((own.to_bits() & !0xffff_ffff | 0x2_0009).into()),
    };
    match door {
        Door::Port(_) => {
            let to =
                [container, neighbour, SERVICE.into()][usize::from(seed >> 2) % if ipv6 { 2 } else { 3 }];
            (packet(own, to, seed, length), 0)
        }
        Door::Lane => {
            let inner = packet(container, own, seed, length.min(1300));
            (far_end.sealed(&vxlan(far_end.vni().get(), VNI_FLAG, &inner)), 0)
        }
        Door::Peer => {
            let inner = packet(container, own, seed, length.min(1300));
            let frame = ethernet(
                MacAddr::of(OWN),
                CONTAINER_MAC,
                if ipv6 { 0x86dd } else { 0x0800 },
                &inner,
            );
            (vxlan(far_end.vni().get(), VNI_FLAG, &frame), 0)
        }
        Door::PeerFrame => match (seed >> 4, container, own) {
            (0 | 1, ..) => (made(|out| arp::request(CONTAINER_MAC, CONTAINER, OWN, out)), 14),
            (4 | 5, IpAddr::V6(container), IpAddr::V6(own)) => {
                (made(|out| ndp::solicit(CONTAINER_MAC, container, own, out)), 14)
            }
            (6 | 7, IpAddr::V6(container), IpAddr::V6(own)) => (
                made(|out| ndp::advertise(CONTAINER_MAC, container, MacAddr::of(OWN), own, out)),
                14,
            ),
            _ => {
                let inner = packet(container, own, seed, length.min(1300));
                let kind = if ipv6 { 0x86dd } else { 0x0800 };
                (ethernet(MacAddr::of(OWN), CONTAINER_MAC, kind, &inner), 14)
            }
        },
    }
}

fn made(message: impl FnOnce(&mut [u8]) -> Option<usize>) -> Vec<u8> {
    let mut out = vec![0; 256];
    let length = message(&mut out).unwrap();
    out.truncate(length);
    out
}

fn enter(far_end: &mut FarEnd, door: &Door, bytes: Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    match door {
        Door::Port(offload) => {
            far_end.instance(0).inject(Packet {
                bytes,
                offload: *offload,
            });
            far_end.hear();
        }
        Door::Lane => {
            far_end.arrive(&bytes);
            far_end.hear();
        }
        Door::Peer => {
            far_end.say(&bytes);
        }
        Door::PeerFrame => {
            far_end.say_frame(&bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn any_bytes_leave_a_host_that_works(
        offloads in any::<bool>(),
        entries in prop::collection::vec((door(), any::<u8>(), 0_usize..5000, damage()), 1..24),
    ) {
        let mut far_end = FarEnd::new(Site { offloads, ..Site::default() });
        for port in 0..3 {
            far_end.instance(port).deaf = true;
        }
        for (door, seed, length, damage) in &entries {
            let (mut bytes, ip) = seed_for(&mut far_end, door, *seed, *length);
            damage.apply(&mut bytes, ip);
            enter(&mut far_end, door, bytes);
            // What is delivered is an IP packet, whole, that the parse understands.
            for port in 0..3 {
                for packet in std::mem::take(&mut far_end.instance(port).received) {
                    let headers = Headers::parse(&packet.bytes);
                    prop_assert!(headers.is_ok_and(|headers| headers.total_length <= packet.bytes.len()));
                }
            }
        }
        far_end.pass(Duration::from_secs(5));
        let report = far_end.report();
        prop_assert_eq!(report.frames_in_use, 0);
        prop_assert!(report.neighbours <= report.neighbours_capacity && report.flows <= report.flows_capacity);

        for port in 0..3 {
            far_end.instance(port).received.clear();
        }
        let good = Crafted::new(CONTAINER.into(), OWN.into()).udp((1, 2), b"still here");
        far_end.say_frame(&ethernet(MacAddr::of(OWN), CONTAINER_MAC, 0x0800, &good));
        prop_assert_eq!(&far_end.instance(0).received, &[Packet::from(good)]);
        let local = Crafted::new(OWN.into(), SECOND.into()).udp((1, 2), b"and here");
        far_end.instance(0).inject(local.into());
        far_end.hear();
        prop_assert_eq!(far_end.instance(1).received.len(), 1);
    }

    #[test]
    fn strangers_leave_a_host_that_works(
        datagrams in prop::collection::vec((0_u8..6, prop::collection::vec(any::<u8>(), 0..200)), 1..40),
    ) {
        let mut far_end = FarEnd::new(Site::default());
        for (kind, mut bytes) in datagrams {
            let length = [0, 148, 92, 64, 32, 0][usize::from(kind)];
            if length > 0 {
                bytes.resize(bytes.len().max(length), 0);
                if kind < 4 {
                    bytes.truncate(length);
                }
                bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
            }
            far_end.arrive(&bytes);
        }
        let good = Crafted::new(CONTAINER.into(), OWN.into()).udp((1, 2), b"still here");
        far_end.say_frame(&ethernet(MacAddr::of(OWN), CONTAINER_MAC, 0x0800, &good));
        prop_assert_eq!(&far_end.instance(0).received, &[Packet::from(good)]);
    }
}
