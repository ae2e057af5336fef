//! Two tunnels and the datagrams between them.

mod gaps;
mod other;

use super::*;
use crate::plan::{PresharedKey, PrivateKey};
use std::net::SocketAddr;

const NOW: Instant = Instant::ZERO;

struct End {
    lane: Lane,
    tunnel: NoiseTunnel,
    now: Instant,
}

fn source(last: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, last], 51_820))
}

fn index(number: u32) -> TunnelIndex {
    TunnelIndex::from_low_bits(number)
}

fn pair_with(keepalive: Option<u16>, preshared: [Option<PresharedKey>; 2]) -> [End; 2] {
    let lanes = [1, 2].map(|byte| Lane::new(&PrivateKey::from_bytes([byte; 32]), NOW));
    let keys = [lanes[1].public_key(), lanes[0].public_key()];
    let mut ends =
        lanes
            .into_iter()
            .zip(keys)
            .zip(preshared)
            .zip([7, 9])
            .map(|(((lane, key), preshared), id)| End {
                tunnel: NoiseTunnel::new(&lane, index(id), &key, preshared.as_ref(), keepalive, NOW),
                lane,
                now: NOW,
            });
    [ends.next().unwrap(), ends.next().unwrap()]
}

fn pair() -> [End; 2] {
    pair_with(None, [None, None])
}

impl End {
    fn initiate(&mut self) -> Vec<u8> {
        let mut out = [0; 256];
        let length = self.tunnel.initiate(&mut out, self.now);
        out[..length].to_vec()
    }

    fn handshake(&mut self, datagram: &[u8]) -> (HandshakeOutcome, Vec<u8>) {
        let mut out = [0; 256];
        let outcome = self.tunnel.handle_handshake(datagram, &mut out, self.now);
        let length = match outcome {
            HandshakeOutcome::Reply(length) | HandshakeOutcome::Established { reply: length } => length,
            HandshakeOutcome::Nothing | HandshakeOutcome::Drop(_) => 0,
        };
        (outcome, out[..length].to_vec())
    }

    fn open(&mut self, datagram: &[u8]) -> (Opened, Vec<u8>) {
        let mut out = vec![0; 2048];
        let opened = self.tunnel.open(datagram, &mut out, self.now);
        if let Opened::Packet(length) = opened {
            out.truncate(length);
        }
        (opened, out)
    }

    fn seal(&mut self, bytes: &[u8], stride: usize) -> Vec<Vec<u8>> {
        let mut out = vec![0; bytes.len() + 64 * DATA_OVERHEAD];
        let sealed = self.tunnel.seal(&Train { bytes, stride }, &mut out, self.now);
        assert_eq!(sealed.packets, bytes.len().div_ceil(stride));
        out[..sealed.bytes]
            .chunks(stride + DATA_OVERHEAD)
            .map(<[u8]>::to_vec)
            .collect()
    }
}

/// A session that `first` began.
fn establish([first, second]: &mut [End; 2]) {
    let initiation = first.initiate();
    assert_eq!(initiation.len(), INITIATION_LENGTH);
    let (outcome, response) = second.handshake(&initiation);
    assert_eq!(outcome, HandshakeOutcome::Reply(RESPONSE_LENGTH));
    assert!(
        !second.tunnel.is_ready(),
        "a responder's session waits for its confirmation"
    );
    let (outcome, keepalive) = first.handshake(&response);
    assert_eq!(outcome, HandshakeOutcome::Established { reply: DATA_OVERHEAD });
    assert!(first.tunnel.is_ready());
    assert_eq!(second.open(&keepalive).0, Opened::Keepalive);
    assert!(second.tunnel.is_ready());
}

fn packet(length: u16) -> Vec<u8> {
    let mut bytes = vec![0xa5; usize::from(length)];
    bytes[0] = 0x45;
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    bytes
}

#[test]
fn a_train_arrives_packet_by_packet_without_its_padding() {
    let mut ends = pair();
    establish(&mut ends);
    let (whole, last) = (packet(95), packet(41));
    let mut train = whole.clone();
    train.push(0);
    train.extend_from_slice(&whole);
    train.push(0);
    train.extend_from_slice(&last);
    let datagrams = ends[0].seal(&train, 96);
    assert_eq!(datagrams.iter().map(Vec::len).collect::<Vec<_>>(), [128, 128, 73]);
    for (datagram, packet) in datagrams.iter().zip([&whole, &whole, &last]) {
        assert!(
            matches!(Message::classify(datagram), Some(Message::Data { receiver, .. }) if receiver.tunnel() == index(9))
        );
        assert_eq!(
            ends[1].open(datagram),
            (Opened::Packet(packet.len()), packet.clone())
        );
    }
}

#[test]
fn only_what_fits_is_sealed() {
    let mut ends = pair();
    establish(&mut ends);
    let train = [packet(64), packet(64), packet(64)].concat();
    let mut out = [0; 2 * 96 + 95];
    let sealed = ends[0].tunnel.seal(
        &Train {
            bytes: &train,
            stride: 64,
        },
        &mut out,
        NOW,
    );
    assert_eq!(
        sealed,
        Sealed {
            packets: 2,
            bytes: 2 * 96
        }
    );
}

#[test]
fn without_a_session_nothing_is_sealed_and_one_handshake_begins() {
    let [mut first, _] = pair();
    let mut out = [0; 256];
    let train = packet(64);
    let sealed = first.tunnel.seal(
        &Train {
            bytes: &train,
            stride: 64,
        },
        &mut out,
        NOW,
    );
    assert_eq!(sealed, Sealed::default());
    assert_eq!(out, [0; 256]);
    assert_eq!(first.initiate().len(), INITIATION_LENGTH);
    assert_eq!(first.initiate().len(), 0);
}

#[test]
fn both_ends_may_begin_at_once() {
    let [mut first, mut second] = pair();
    let (one, two) = (first.initiate(), second.initiate());
    let (_, answer_to_two) = first.handshake(&two);
    let (_, answer_to_one) = second.handshake(&one);
    assert!(first.initiate().is_empty(), "its answer is under way");
    let (_, from_first) = first.handshake(&answer_to_one);
    let (_, from_second) = second.handshake(&answer_to_two);
    assert_eq!(second.open(&from_first).0, Opened::Keepalive);
    assert_eq!(first.open(&from_second).0, Opened::Keepalive);
    for _ in 0..2 {
        let sealed = first.seal(&packet(64), 64);
        assert_eq!(second.open(&sealed[0]).0, Opened::Packet(64));
        let sealed = second.seal(&packet(64), 64);
        assert_eq!(first.open(&sealed[0]).0, Opened::Packet(64));
    }
}

#[test]
fn a_datagram_is_opened_once_and_only_whole() {
    let mut ends = pair();
    establish(&mut ends);
    let datagrams = ends[0].seal(&packet(64), 64);
    let mut damaged = datagrams[0].clone();
    damaged[40] ^= 1;
    assert_eq!(
        ends[1].open(&damaged).0,
        Opened::Drop(DropReason::Unauthenticated)
    );
    assert_eq!(ends[1].open(&datagrams[0]).0, Opened::Packet(64));
    assert_eq!(ends[1].open(&datagrams[0]).0, Opened::Drop(DropReason::Replayed));
}

#[test]
fn what_is_no_ip_packet_is_not_let_out() {
    let mut ends = pair();
    establish(&mut ends);
    let datagrams = ends[0].seal(&[0x15; 64], 64);
    assert_eq!(ends[1].open(&datagrams[0]).0, Opened::Drop(DropReason::NotVxlan));
}

#[test]
fn a_preshared_key_must_be_the_same() {
    let key = |byte| Some(PresharedKey::from_bytes([byte; 32]));
    establish(&mut pair_with(None, [key(3), key(3)]));
    let [mut first, mut second] = pair_with(None, [key(3), key(4)]);
    let (_, response) = second.handshake(&first.initiate());
    assert_eq!(
        first.handshake(&response).0,
        HandshakeOutcome::Drop(DropReason::Unauthenticated)
    );
    assert!(!first.tunnel.is_ready());
}

#[test]
fn a_replayed_initiation_is_refused() {
    let [mut first, mut second] = pair();
    let initiation = first.initiate();
    assert!(matches!(
        second.handshake(&initiation).0,
        HandshakeOutcome::Reply(_)
    ));
    assert_eq!(
        second.handshake(&initiation).0,
        HandshakeOutcome::Drop(DropReason::Replayed)
    );
}

#[test]
fn the_lane_names_who_knocks() {
    let [mut first, mut second] = pair();
    let initiation = first.initiate();
    let mut out = [0; 64];
    let key = first.lane.public_key();
    assert_eq!(
        second.lane.admit(source(1), &initiation, &mut out, NOW),
        Admission::Initiation(key)
    );
    let (_, response) = second.handshake(&initiation);
    assert_eq!(
        first.lane.admit(source(1), &response, &mut out, NOW),
        Admission::Answer
    );
    assert_eq!(
        second.lane.admit(source(1), &response, &mut out, NOW),
        Admission::Drop(DropReason::Unauthenticated),
        "its first MAC is for the other end"
    );
    let mut forged = initiation;
    forged[50] ^= 1;
    assert_eq!(
        second.lane.admit(source(1), &forged, &mut out, NOW),
        Admission::Drop(DropReason::Unauthenticated)
    );
}

#[test]
fn a_tunnel_without_a_cipher_has_the_lengths_of_a_real_one() {
    let (mut near, mut far) = (
        PlainTunnel::new(index(7), index(9)),
        PlainTunnel::new(index(9), index(7)),
    );
    let mut ends = pair();
    establish(&mut ends);
    let mut train = [packet(96), packet(96), packet(41)].concat();
    let sealed = ends[0].seal(&train, 96);
    let mut out = vec![0; 4 * (96 + DATA_OVERHEAD)];
    let plain = near.seal(
        &Train {
            bytes: &train,
            stride: 96,
        },
        &mut out,
        NOW,
    );
    assert_eq!(
        plain,
        Sealed {
            packets: 3,
            bytes: sealed.concat().len()
        }
    );
    for (plain, real) in out[..plain.bytes].chunks(96 + DATA_OVERHEAD).zip(&sealed) {
        let receiver = |datagram| match Message::classify(datagram) {
            Some(Message::Data { receiver, .. }) => receiver.tunnel(),
            other => panic!("{other:?}"),
        };
        assert_eq!((receiver(plain), plain.len()), (receiver(real), real.len()));
        let mut opened = [0; 128];
        let length = real.len() - DATA_OVERHEAD;
        assert_eq!(far.open(plain, &mut opened, NOW), Opened::Packet(length));
        assert_eq!(opened[..length], train[..length]);
        assert_eq!(
            near.open(plain, &mut opened, NOW),
            Opened::Drop(DropReason::Unauthenticated)
        );
        train.drain(..length);
    }
}

/// Lets `seconds` go by in ticks; datagrams of the end's ticks are given to `deliver`.
fn pass(end: &mut End, seconds: u64, mut deliver: impl FnMut(&mut End, Vec<u8>)) {
    for _ in 0..seconds * 4 {
        let datagram = tick(end);
        if !datagram.is_empty() {
            deliver(end, datagram);
        }
    }
}

fn tick(end: &mut End) -> Vec<u8> {
    end.now = end.now + TICK_INTERVAL;
    let mut out = [0; 256];
    let length = end.tunnel.tick(&mut out, end.now);
    out[..length].to_vec()
}

#[test]
fn a_peer_that_never_answers_is_asked_again_by_the_next_packet() {
    let [mut first, _] = pair();
    assert_eq!(first.initiate().len(), INITIATION_LENGTH);
    let mut asked = 0;
    pass(&mut first, 85, |_, datagram| {
        assert_eq!(datagram.len(), INITIATION_LENGTH);
        asked += 1;
    });
    assert!((14..=17).contains(&asked), "{asked} in 85 s");
    pass(&mut first, 10, |_, _| {});
    pass(&mut first, 600, |_, _| {
        panic!("silent until somebody wants to send")
    });
    assert_eq!(first.initiate().len(), INITIATION_LENGTH);
    pass(&mut first, 6, |_, _| asked += 1);
    assert!(asked > 15);
}

#[test]
fn a_keepalive_keeps_asking_for_ever() {
    let [mut first, _] = pair_with(Some(25), [None, None]);
    let mut last = NOW;
    let mut asked = 0;
    for _ in 0..3600 {
        pass(&mut first, 1, |_, _| asked += 1);
        if asked > 0 {
            last = first.now;
            asked = 0;
        }
        assert!(first.now.saturating_since(last) <= Duration::from_secs(30));
    }
}

#[test]
fn a_keepalive_goes_out_on_an_idle_session() {
    let mut ends = pair_with(Some(25), [None, None]);
    establish(&mut ends);
    let [first, second] = &mut ends;
    let mut heard = 0;
    pass(first, 100, |_, datagram| {
        assert_eq!(second.open(&datagram).0, Opened::Keepalive);
        heard += 1;
    });
    assert!((3..=5).contains(&heard), "{heard} in 100 s");
}

#[test]
fn a_packet_that_nothing_is_sent_back_for_is_acknowledged_after_ten_seconds() {
    let mut ends = pair();
    establish(&mut ends);
    let sealed = ends[0].seal(&packet(64), 64);
    assert_eq!(ends[1].open(&sealed[0]).0, Opened::Packet(64));
    let mut at = Vec::new();
    pass(&mut ends[1], 100, |end, datagram| {
        assert_eq!(datagram.len(), DATA_OVERHEAD);
        at.push(end.now);
    });
    assert_eq!(at, [NOW + Duration::from_secs(10)]);
}

#[test]
fn a_session_that_nobody_answers_in_is_made_anew_after_fifteen_seconds() {
    let mut ends = pair();
    establish(&mut ends);
    ends[0].seal(&packet(64), 64);
    let mut at = None;
    pass(&mut ends[0], 16, |end, datagram| {
        assert_eq!(datagram.len(), INITIATION_LENGTH);
        at.get_or_insert(end.now);
    });
    assert_eq!(at, Some(NOW + Duration::from_secs(15)));
}

/// Both ends send one packet to each other every second, `seconds` long: the seconds in which keys were changed.
fn talk([first, second]: &mut [End; 2], seconds: u64) -> Vec<u64> {
    let mut changed = Vec::new();
    for number in 0..seconds {
        for _ in 0..4 {
            let datagrams = [tick(first), tick(second)];
            for (from, datagram) in datagrams.into_iter().enumerate() {
                let (near, far) = if from == 0 {
                    (&mut *first, &mut *second)
                } else {
                    (&mut *second, &mut *first)
                };
                match datagram.len() {
                    0 => {}
                    INITIATION_LENGTH => {
                        let (_, response) = far.handshake(&datagram);
                        let (outcome, keepalive) = near.handshake(&response);
                        assert!(matches!(outcome, HandshakeOutcome::Established { .. }));
                        assert_eq!(far.open(&keepalive).0, Opened::Keepalive);
                        changed.push(number);
                    }
                    _ => assert_eq!(far.open(&datagram).0, Opened::Keepalive),
                }
            }
        }
        let sealed = first.seal(&packet(64), 64);
        assert_eq!(second.open(&sealed[0]).0, Opened::Packet(64));
        let sealed = second.seal(&packet(64), 64);
        assert_eq!(first.open(&sealed[0]).0, Opened::Packet(64));
    }
    changed
}

#[test]
fn keys_are_changed_every_two_minutes_without_a_lost_packet() {
    let mut ends = pair();
    establish(&mut ends);
    let changed = talk(&mut ends, 400);
    assert!(
        matches!(changed[..], [119..=121, 239..=242, 359..=363]),
        "{changed:?}"
    );
}

#[test]
fn keys_are_changed_by_who_began_even_if_it_only_listens() {
    let mut ends = pair();
    establish(&mut ends);
    let [first, second] = &mut ends;
    let mut began = None;
    for number in 0..140_u64 {
        pass(first, 1, |_, datagram| {
            if datagram.len() == INITIATION_LENGTH {
                began.get_or_insert(number);
            }
        });
        second.now = first.now;
        let sealed = second.seal(&packet(64), 64);
        first.open(&sealed[0]);
    }
    // A keepalive every ten seconds counts as sent.
    assert!(matches!(began, Some(119..=131)), "{began:?}");
}
