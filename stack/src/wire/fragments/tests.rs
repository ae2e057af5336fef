use super::*;
use crate::frame::{PoolSizes, fragment};
use crate::plan::Mtu;
use crate::wire::Transport;
use proptest::prelude::*;

const SMALL_BOUNDS: Bounds = Bounds {
    datagrams: 4,
    per_source: 2,
    fragments: 8,
};

/// Reassembly, its pool, and what was lost.
struct Bench {
    reassembly: Reassembly,
    pool: FramePool,
    now: Instant,
    lost: Vec<(DropReason, u16)>,
}

impl Bench {
    fn new(bounds: Bounds) -> Self {
        Self {
            reassembly: Reassembly::new(bounds, 7),
            pool: FramePool::new(PoolSizes { small: 4, large: 4 }),
            now: Instant::ZERO,
            lost: Vec::new(),
        }
    }

    fn push_from(&mut self, origin: Origin, packet: &[u8]) -> Result<Option<Vec<u8>>, DropReason> {
        let headers = Headers::parse(packet).unwrap();
        assert_eq!(headers.transport, Transport::Fragment);
        let lost = &mut self.lost;
        let outcome = self.reassembly.push(
            (Vni::MIN, origin),
            packet,
            &headers,
            &mut self.pool,
            self.now,
            |gone| lost.push((gone.reason, gone.fragments)),
        );
        outcome.map(|whole| {
            whole.map(|frame| {
                let bytes = frame.packet().to_vec();
                self.pool.recycle(frame);
                bytes
            })
        })
    }

    fn push(&mut self, packet: &[u8]) -> Result<Option<Vec<u8>>, DropReason> {
        self.push_from(Origin::Port(PortId(0)), packet)
    }

    fn pass(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
        let lost = &mut self.lost;
        self.reassembly
            .expire(self.now, |gone| lost.push((gone.reason, gone.fragments)));
    }

    fn is_empty(&self) -> bool {
        self.reassembly.datagrams() == 0 && self.reassembly.bytes() == 0 && self.pool.in_use() == 0
    }
}

/// What the fragments of a test have in common.
#[derive(Clone, Copy)]
struct Sender {
    ipv6: bool,
    host: u8,
    identification: u16,
    ecn: u8,
}

const V4: Sender = Sender {
    ipv6: false,
    host: 2,
    identification: 1,
    ecn: 0,
};
const V6: Sender = Sender { ipv6: true, ..V4 };

impl Sender {
    fn part(self, at: usize, more: bool, data: &[u8]) -> Vec<u8> {
        let at = at as u16;
        let mut packet = if self.ipv6 {
            let mut header = vec![0; 48];
            header[0] = 0x60;
            header[1] = self.ecn << 4;
            header[4..6].copy_from_slice(&(8 + data.len() as u16).to_be_bytes());
            header[6] = 44;
            header[7] = 64;
            header[23] = self.host;
            header[39] = 9;
            header[40] = 17;
            header[42..44].copy_from_slice(&(at | u16::from(more)).to_be_bytes());
            header[46..48].copy_from_slice(&self.identification.to_be_bytes());
            header
        } else {
            let mut header = vec![0; 20];
            header[0] = 0x45;
            header[1] = self.ecn;
            header[2..4].copy_from_slice(&(20 + data.len() as u16).to_be_bytes());
            header[4..6].copy_from_slice(&self.identification.to_be_bytes());
            header[6..8].copy_from_slice(&(at / 8 + if more { 0x2000 } else { 0 }).to_be_bytes());
            header[8..10].copy_from_slice(&[64, 17]);
            header[12..20].copy_from_slice(&[172, 19, 1, self.host, 172, 19, 2, 2]);
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum);
            header
        };
        packet.extend_from_slice(data);
        packet
    }

    /// A datagram of UDP in three parts of 24, 24 and 9 bytes.
    fn three(self) -> [Vec<u8>; 3] {
        let data = datagram(57);
        [
            self.part(0, true, &data[..24]),
            self.part(24, true, &data[24..48]),
            self.part(48, false, &data[48..]),
        ]
    }

    fn named(self, identification: u16) -> Self {
        Self {
            identification,
            ..self
        }
    }
}

/// A UDP datagram of so many bytes.
fn datagram(length: usize) -> Vec<u8> {
    let mut data: Vec<u8> = (0..length).map(|index| (index * 7 + index / 251) as u8).collect();
    data[..8].copy_from_slice(&[0x9c, 0x40, 0, 53, 0, 0, 0, 0]);
    data[4..6].copy_from_slice(&(length as u16).to_be_bytes());
    data
}

fn permutations() -> [[usize; 3]; 6] {
    [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
}

#[test]
fn a_datagram_is_whole_in_any_order_of_its_parts() {
    for sender in [V4, V6] {
        for order in permutations() {
            let mut bench = Bench::new(SMALL_BOUNDS);
            let parts = sender.three();
            assert_eq!(bench.push(&parts[order[0]]), Ok(None));
            assert_eq!(bench.push(&parts[order[1]]), Ok(None));
            let whole = bench.push(&parts[order[2]]).unwrap().unwrap();
            let headers = Headers::parse(&whole).unwrap();
            let start = if sender.ipv6 { 48 } else { 20 };
            assert_eq!(whole[start..], datagram(57), "{order:?}");
            assert_eq!(headers.total_length, whole.len());
            assert!(matches!(headers.transport, Transport::Udp { .. }));
            assert!(!headers.dont_fragment);
            // Its name survives.
            let name = if sender.ipv6 { &whole[46..48] } else { &whole[4..6] };
            assert_eq!(name, [0, 1]);
            assert!(bench.is_empty() && bench.lost.is_empty());
        }
    }
}

#[test]
fn an_overlap_ends_the_datagram_and_what_still_comes_of_it_rfc_5722() {
    for sender in [V4, V6] {
        for (at, length) in [(16, 16), (0, 48), (8, 8), (16, 40)] {
            let mut bench = Bench::new(SMALL_BOUNDS);
            let [first, second, last] = sender.three();
            assert_eq!(bench.push(&first), Ok(None));
            assert_eq!(bench.push(&last), Ok(None));
            let overlapping = sender.part(at, true, &vec![9; length]);
            assert_eq!(bench.push(&overlapping), Err(DropReason::FragmentOverlap));
            assert_eq!(bench.lost, [(DropReason::FragmentOverlap, 2)]);
            assert_eq!(bench.reassembly.bytes(), 0);
            for part in [&second, &first, &last] {
                assert_eq!(bench.push(part), Err(DropReason::FragmentOverlap));
            }
            // Until its time is over.
            bench.pass(if sender.ipv6 { 60 } else { 30 });
            assert!(bench.is_empty());
            assert_eq!(bench.push(&first), Ok(None));
            assert_eq!(bench.lost.len(), 1);
        }
    }
}

#[test]
fn a_second_end_and_data_behind_the_end_are_contradictions() {
    let [first, second, last] = V4.three();
    for (before, contradiction) in [
        (&last, V4.part(72, false, &[1; 8])),
        (&last, V4.part(64, true, &[1; 8])),
        (&second, V4.part(24, false, &[1; 8])),
        (&second, V4.part(8, false, &[1; 8])),
        // The same bytes, but not the end.
        (&last, V4.part(48, true, &[1; 16])),
    ] {
        let mut bench = Bench::new(SMALL_BOUNDS);
        assert_eq!(bench.push(&first), Ok(None));
        assert_eq!(bench.push(before), Ok(None));
        assert_eq!(bench.push(&contradiction), Err(DropReason::FragmentOverlap));
        assert_eq!(bench.lost, [(DropReason::FragmentOverlap, 2)]);
    }
}

#[test]
fn the_very_same_part_again_is_dropped_alone_rfc_8200_4_5() {
    for sender in [V4, V6] {
        let mut bench = Bench::new(SMALL_BOUNDS);
        let [first, second, last] = sender.three();
        for part in [&last, &first] {
            assert_eq!(bench.push(part), Ok(None));
            assert_eq!(bench.push(part), Err(DropReason::FragmentOverlap));
        }
        assert!(bench.push(&second).unwrap().is_some());
        assert!(bench.lost.is_empty() && bench.is_empty());
        // Other bytes at the same place are an overlap.
        assert_eq!(bench.push(&second), Ok(None));
        let other = sender.part(24, true, &[3; 24]);
        assert_eq!(bench.push(&other), Err(DropReason::FragmentOverlap));
        assert_eq!(bench.lost, [(DropReason::FragmentOverlap, 1)]);
    }
}

#[test]
fn parts_that_never_become_a_datagram_are_counted_when_their_time_is_over() {
    for (sender, seconds) in [(V4, 30), (V6, 60)] {
        let mut bench = Bench::new(SMALL_BOUNDS);
        let [first, second, last] = sender.three();
        assert_eq!(bench.push(&first), Ok(None));
        // The clock is the first one's (RFC 8200 §4.5).
        bench.pass(seconds - 1);
        assert_eq!(bench.push(&second), Ok(None));
        assert!(bench.lost.is_empty());
        bench.pass(1);
        assert_eq!(bench.lost, [(DropReason::FragmentTimeout, 2)]);
        assert!(bench.is_empty());
        assert_eq!(bench.push(&last), Ok(None));
    }
}

#[test]
fn a_part_that_comes_too_late_begins_anew_even_before_anybody_looked() {
    let mut bench = Bench::new(SMALL_BOUNDS);
    let [first, second, last] = V4.three();
    assert_eq!(bench.push(&first), Ok(None));
    assert_eq!(bench.push(&second), Ok(None));
    bench.now = bench.now + IPV4_TIME;
    assert_eq!(bench.push(&last), Ok(None));
    assert_eq!(bench.lost, [(DropReason::FragmentTimeout, 2)]);
    assert_eq!(bench.reassembly.datagrams(), 1);
}

#[test]
fn at_its_bound_a_sources_oldest_datagram_makes_room() {
    for sender in [V4, V6] {
        let mut bench = Bench::new(SMALL_BOUNDS);
        let other = Sender { host: 3, ..sender };
        assert_eq!(bench.push(&other.three()[0]), Ok(None));
        for identification in 1..=3 {
            let [first, second, _] = sender.named(identification).three();
            assert_eq!(bench.push(&first), Ok(None));
            assert_eq!(bench.push(&second), Ok(None));
        }
        assert_eq!(bench.lost, [(DropReason::FragmentLimit, 2)]);
        assert_eq!(bench.reassembly.datagrams(), 3);
        // The oldest is gone, the others and another source's are whole with their rest.
        assert_eq!(
            bench
                .push(&sender.named(2).three()[2])
                .map(|whole| whole.is_some()),
            Ok(true)
        );
        assert_eq!(
            bench
                .push(&sender.named(3).three()[2])
                .map(|whole| whole.is_some()),
            Ok(true)
        );
        assert_eq!(bench.push(&other.three()[1]), Ok(None));
        assert_eq!(
            bench.push(&other.three()[2]).map(|whole| whole.is_some()),
            Ok(true)
        );
        assert!(bench.is_empty());
    }
}

#[test]
fn at_the_bounds_of_all_the_new_part_is_dropped() {
    // Datagrams.
    let mut bench = Bench::new(SMALL_BOUNDS);
    for host in 1..=4 {
        assert_eq!(bench.push(&Sender { host, ..V4 }.three()[0]), Ok(None));
    }
    let fifth = Sender { host: 5, ..V4 }.three();
    assert_eq!(bench.push(&fifth[0]), Err(DropReason::FragmentLimit));
    assert!(bench.lost.is_empty());
    // Fragments, of a datagram that is there and of a new one.
    let mut bench = Bench::new(SMALL_BOUNDS);
    for at in 0..8 {
        assert_eq!(bench.push(&V4.part(at * 8, true, &[0; 8])), Ok(None));
    }
    assert_eq!(
        bench.push(&V4.part(64, true, &[0; 8])),
        Err(DropReason::FragmentLimit)
    );
    assert_eq!(bench.push(&fifth[0]), Err(DropReason::FragmentLimit));
    assert_eq!(bench.reassembly.datagrams(), 1);
    assert_eq!(bench.reassembly.bytes(), 8 * Bounds::BLOCK);
    // Bytes: a long part takes as many blocks as it needs, or none.
    let mut bench = Bench::new(SMALL_BOUNDS);
    assert_eq!(bench.push(&V4.part(0, true, &[0; 12_288])), Ok(None));
    assert_eq!(
        bench.push(&V4.part(12_288, true, &[0; 8_192])),
        Err(DropReason::FragmentLimit)
    );
    assert_eq!(bench.push(&V4.part(12_288, true, &[0; 2_048])), Ok(None));
}

#[test]
fn a_hosts_shards_share_its_bounds() {
    for shards in 1..=64 {
        let share = Bounds::of_shard(NonZeroU8::new(shards).unwrap());
        let shards = u16::from(shards);
        assert!(share.datagrams * shards < Bounds::HOST.datagrams + shards);
        assert!(share.per_source * shards < Bounds::HOST.per_source + shards);
        assert!(share.fragments * shards < Bounds::HOST.fragments + shards);
    }
    assert_eq!(usize::from(Bounds::HOST.fragments) * Bounds::BLOCK, 4 << 20);
}

#[test]
fn datagrams_of_one_name_are_told_apart() {
    let mut bench = Bench::new(Bounds::HOST);
    let [first, second, last] = V4.three();
    let of_tcp = {
        let mut packet = V4.part(24, true, &[6; 24]);
        packet[9] = 6;
        packet[10..12].fill(0);
        let sum = checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum);
        packet
    };
    assert_eq!(bench.push(&first), Ok(None));
    assert_eq!(bench.push(&of_tcp), Ok(None));
    for origin in [Origin::Port(PortId(1)), Origin::Peer(PeerId(0))] {
        assert_eq!(bench.push_from(origin, &second), Ok(None));
    }
    assert_eq!(bench.push(&Sender { host: 3, ..V4 }.three()[1]), Ok(None));
    assert_eq!(bench.push(&V4.named(9).three()[1]), Ok(None));
    assert_eq!(bench.push(&last), Ok(None));
    assert!(bench.push(&second).unwrap().is_some());
    assert_eq!(bench.reassembly.datagrams(), 5);
}

#[test]
fn with_ipv6_the_first_parts_next_header_counts_alone_rfc_8200_4_5() {
    let mut bench = Bench::new(SMALL_BOUNDS);
    let [first, mut second, last] = V6.three();
    second[40] = 60;
    for part in [&second, &last] {
        assert_eq!(bench.push(part), Ok(None));
    }
    let whole = bench.push(&first).unwrap().unwrap();
    assert_eq!(whole[40], 17);
}

#[test]
fn congestion_marks_of_the_parts_are_joined_rfc_3168_5_3() {
    const CONGESTED: u8 = 0b11;
    for sender in [V4, V6] {
        for (marks, expected) in [
            ([0b10, 0b10, 0b10], Some(0b10)),
            ([0b10, CONGESTED, 0b10], Some(CONGESTED)),
            ([0, 0, 0], Some(0)),
            ([0, CONGESTED, 0], None),
            ([0b10, 0, 0b10], None),
        ] {
            let mut bench = Bench::new(SMALL_BOUNDS);
            let parts = [0, 1, 2].map(|index| {
                Sender {
                    ecn: marks[index],
                    ..sender
                }
                .three()[index]
                    .clone()
            });
            let outcomes = parts.map(|part| bench.push(&part));
            let whole = outcomes[2].as_ref().ok().and_then(|whole| whole.as_deref());
            let joined = whole.map(|whole| Headers::parse(whole).unwrap().ecn().bits());
            assert_eq!(joined, expected, "{marks:?}");
        }
    }
}

#[test]
fn a_whole_that_no_packet_can_be_is_dropped_with_its_parts() {
    // The end is in bounds behind a header of its own; behind the first one's, with options, it isn't.
    let mut first = V4.part(0, true, &[0; 24]);
    let options = [1; 8];
    first.splice(20..20, options);
    first[0] = 0x47;
    first[2..4].copy_from_slice(&52_u16.to_be_bytes());
    first[10..12].fill(0);
    let sum = checksum(&first[..28]);
    first[10..12].copy_from_slice(&sum);
    let mut bench = Bench::new(Bounds::HOST);
    assert_eq!(bench.push(&first), Ok(None));
    assert_eq!(bench.push(&V4.part(65_512, false, &[0; 3])), Ok(None));
    let middle = vec![0; 65_512 - 24];
    assert_eq!(
        bench.push(&V4.part(24, true, &middle)),
        Err(DropReason::Malformed)
    );
    assert_eq!(bench.lost, [(DropReason::Malformed, 2)]);
    assert!(bench.is_empty());
}

#[test]
fn without_a_frame_for_the_whole_all_parts_are_dropped() {
    let mut bench = Bench::new(SMALL_BOUNDS);
    bench.pool = FramePool::new(PoolSizes { small: 0, large: 0 });
    let [first, second, last] = V4.three();
    assert_eq!(bench.push(&first), Ok(None));
    assert_eq!(bench.push(&second), Ok(None));
    assert_eq!(bench.push(&last), Err(DropReason::NoBuffer));
    assert_eq!(bench.lost, [(DropReason::NoBuffer, 2)]);
    assert!(bench.is_empty());
}

/// What the parts of a datagram are cut to, in which order they come, and what is doubled.
fn story() -> impl Strategy<
    Value = (
        bool,
        usize,
        Vec<u16>,
        Vec<prop::sample::Index>,
        Vec<prop::sample::Index>,
    ),
> {
    (
        any::<bool>(),
        9_usize..20_000,
        prop::collection::vec(1_u16..400, 1..12),
        prop::collection::vec(any::<prop::sample::Index>(), 64),
        prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_datagram_is_whole_however_it_was_cut_and_shuffled(
        (ipv6, length, sizes, order, doubled) in story()
    ) {
        let sender = if ipv6 { V6 } else { V4 };
        let data = datagram(length);
        let mut parts = Vec::new();
        let mut at = 0;
        for size in sizes.iter().cycle() {
            let end = (at + usize::from(*size) * 8).min(length);
            parts.push(sender.part(at, end < length, &data[at..end]));
            at = end;
            if at == length {
                break;
            }
        }
        prop_assume!(parts.len() > 1);
        for (index, other) in order.iter().enumerate() {
            let index = index % parts.len();
            let other = other.index(parts.len());
            parts.swap(index, other);
        }
        let last = parts.pop().unwrap();
        for again in doubled {
            let again = parts[again.index(parts.len())].clone();
            parts.push(again);
        }
        let mut bench = Bench::new(Bounds::HOST);
        let mut seen = Vec::new();
        for part in parts {
            let expected = if seen.contains(&part) { Err(DropReason::FragmentOverlap) } else { Ok(None) };
            prop_assert_eq!(bench.push(&part), expected);
            seen.push(part);
        }
        let whole = bench.push(&last).unwrap().unwrap();
        prop_assert_eq!(&whole[if ipv6 { 48 } else { 20 }..], &data);
        prop_assert!(bench.is_empty() && bench.lost.is_empty());

        // And it can be cut again to what is the same datagram.
        let headers = Headers::parse(&whole).unwrap();
        let mut out = Frame::with_capacity(2_048);
        let mut offset = 0;
        let mut again = None;
        while let Some(next) = fragment::write(&whole, &headers, Mtu::try_from(1_390).unwrap(), offset, &mut out) {
            prop_assert!(out.packet().len() <= 1_390);
            let alone = offset == 0 && next == length;
            again = if alone { Some(out.packet().to_vec()) } else { bench.push(out.packet()).unwrap() };
            offset = next;
        }
        prop_assert_eq!(again, Some(whole));
    }

    #[test]
    fn no_fragments_take_more_than_the_bounds(
        packets in prop::collection::vec(
            (any::<bool>(), 0_u8..8, 0_u16..6, 0_usize..64, any::<bool>(), 1_usize..40), 1..200
        )
    ) {
        let mut bench = Bench::new(SMALL_BOUNDS);
        let mut held = 0_usize;
        for (ipv6, host, identification, at, more, units) in packets {
            let sender = Sender { ipv6, host, identification, ecn: 0 };
            // What the transport is doesn't matter here; a first part has its header.
            let outcome = bench.push(&sender.part(at * 8, more || at == 0, &vec![at as u8; units * 8]));
            let lost: usize = bench.lost.drain(..).map(|(_, fragments)| usize::from(fragments)).sum();
            held -= lost;
            // Every one here fits into a block.
            let blocks = bench.reassembly.bytes() / Bounds::BLOCK;
            match outcome {
                Ok(None) => held += 1,
                Ok(Some(_)) => held = blocks,
                Err(_) => {}
            }
            prop_assert!(bench.reassembly.datagrams() <= 4);
            prop_assert!(bench.reassembly.bytes() <= 8 * Bounds::BLOCK);
            prop_assert_eq!(held, blocks, "every fragment is held or counted");
        }
        bench.pass(61);
        prop_assert!(bench.is_empty());
    }
}
