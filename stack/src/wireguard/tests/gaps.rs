//! What an implementation gets wrong easily, and others have: a test for each.

use super::*;
use crate::wireguard::message::COUNTER_LIMIT;
use crate::wireguard::replay::REPLAY_WINDOW;
use crate::wireguard::session::REKEY_AFTER_MESSAGES;

/// An initiation of somebody new to the second of `pair`.
fn stranger(byte: u8, lane: &Lane) -> NoiseTunnel {
    let own = Lane::new(&PrivateKey::from_bytes([byte; 32]), NOW);
    NoiseTunnel::new(&own, index(u32::from(byte)), &lane.public_key(), None, None, NOW)
}

fn admit(end: &mut End, from: SocketAddr, datagram: &[u8]) -> (Admission, Vec<u8>) {
    let mut out = [0; COOKIE_REPLY_LENGTH];
    let admission = end.lane.admit(from, datagram, &mut out, end.now);
    (admission, out.to_vec())
}

/// What `first` sends for this plaintext, as `second` finds it.
fn through([first, second]: &mut [End; 2], plaintext: &[u8]) -> Opened {
    let mut out = vec![0; plaintext.len() + DATA_OVERHEAD];
    let written = first.tunnel.session().seal(plaintext, &mut out);
    assert_eq!(written, Some(out.len()));
    second.open(&out).0
}

#[test]
fn replay_window_takes_what_is_8128_packets_late_once() {
    let mut ends = pair();
    establish(&mut ends);
    // The keepalive that confirmed the session was number 0.
    let late = (0..=REPLAY_WINDOW + 1)
        .map(|_| ends[0].seal(&packet(64), 64).remove(0))
        .collect::<Vec<_>>();
    let (newest, older) = late.split_last().unwrap();
    assert_eq!(ends[1].open(newest).0, Opened::Packet(64));
    let (too_late, in_time) = older.split_at(2);
    for datagram in too_late {
        assert_eq!(ends[1].open(datagram).0, Opened::Drop(DropReason::Replayed));
    }
    assert_eq!(in_time.len() as u64, REPLAY_WINDOW - 1);
    for datagram in in_time {
        assert_eq!(ends[1].open(datagram).0, Opened::Packet(64));
    }
    for datagram in &late {
        assert_eq!(ends[1].open(datagram).0, Opened::Drop(DropReason::Replayed));
    }
}

#[test]
fn a_forged_counter_does_not_move_the_replay_window() {
    let mut ends = pair();
    establish(&mut ends);
    let datagram = ends[0].seal(&packet(64), 64).remove(0);
    let mut forged = datagram.clone();
    forged[8..16].copy_from_slice(&(COUNTER_LIMIT - 1).to_le_bytes());
    assert_eq!(ends[1].open(&forged).0, Opened::Drop(DropReason::Unauthenticated));
    assert_eq!(ends[1].open(&datagram).0, Opened::Packet(64));
}

#[test]
fn counters_beyond_the_limit_are_refused_before_decryption() {
    let mut ends = pair();
    establish(&mut ends);
    let datagram = ends[0].seal(&packet(64), 64).remove(0);
    for counter in [COUNTER_LIMIT, COUNTER_LIMIT + 1, u64::MAX] {
        let mut forged = datagram.clone();
        forged[8..16].copy_from_slice(&counter.to_le_bytes());
        let mut out = [0x77; 256];
        let opened = ends[1].tunnel.open(&forged, &mut out, NOW);
        assert_eq!(opened, Opened::Drop(DropReason::NotWireguard));
        assert_eq!(out, [0x77; 256], "nothing was decrypted");
    }
    assert_eq!(COUNTER_LIMIT, (1_u128 << 64).wrapping_sub((1 << 13) + 1) as u64);
}

#[test]
fn message_limits_end_a_session_and_ask_for_another_before() {
    let mut ends = pair();
    establish(&mut ends);
    for end in &mut ends {
        // Rekey-After-Messages, whoever began.
        end.tunnel.session().count_from(REKEY_AFTER_MESSAGES - 1);
        assert!(tick(end).is_empty());
        end.seal(&packet(64), 64);
    }
    let (first, second) = (tick(&mut ends[0]), tick(&mut ends[1]));
    assert!(first.is_empty(), "Rekey-Timeout after its first initiation");
    assert_eq!(second.len(), INITIATION_LENGTH);
    // Reject-After-Messages.
    ends[0].tunnel.session().count_from(COUNTER_LIMIT - 2);
    let train = [packet(64), packet(64), packet(64)].concat();
    let train = Train {
        bytes: &train,
        stride: 64,
    };
    let mut out = [0; 3 * 96];
    let sealed = ends[0].tunnel.seal(&train, &mut out, NOW);
    assert_eq!(
        sealed,
        Sealed {
            packets: 2,
            bytes: 192
        }
    );
    assert_eq!(ends[1].open(&out[96..192]).0, Opened::Packet(64));
    assert!(!ends[0].tunnel.is_ready());
    assert_eq!(ends[0].tunnel.seal(&train, &mut out, NOW), Sealed::default());
}

#[test]
fn time_limits_end_a_session_in_both_directions() {
    let mut ends = pair();
    establish(&mut ends);
    let early = ends[1].seal(&packet(64), 64).remove(0);
    let late = ends[1].seal(&packet(64), 64).remove(0);
    // To the nanosecond, without a tick.
    ends[0].now = NOW + Duration::from_secs(180) - Duration::from_nanos(1);
    assert_eq!(ends[0].open(&early).0, Opened::Packet(64));
    assert_eq!(ends[0].seal(&packet(64), 64).len(), 1);
    ends[0].now = NOW + Duration::from_secs(180);
    assert_eq!(ends[0].open(&late).0, Opened::Drop(DropReason::Unauthenticated));
    let train = packet(64);
    let train = Train {
        bytes: &train,
        stride: 64,
    };
    let now = ends[0].now;
    assert_eq!(ends[0].tunnel.seal(&train, &mut [0; 96], now), Sealed::default());
    assert!(!ends[0].tunnel.is_ready(), "the next packet begins a handshake");
    assert_eq!(ends[0].initiate().len(), INITIATION_LENGTH);
}

#[test]
fn padding_is_taken_off_and_none_is_added() {
    let mut ends = pair();
    establish(&mut ends);
    for padding in 0..16 {
        let mut padded = packet(41);
        padded.resize(41 + padding, 0);
        assert_eq!(through(&mut ends, &padded), Opened::Packet(41));
    }
    // Who makes trains pads them to 16, up to the MTU: what is sealed is never longer by more than the overhead.
    let sealed = ends[0].seal(&packet(1389), 1389);
    assert_eq!(sealed[0].len(), 1389 + DATA_OVERHEAD);
}

#[test]
fn datagrams_of_every_type_and_any_length_are_refused_by_name() {
    let mut ends = pair();
    establish(&mut ends);
    let [_, second] = &mut ends;
    for kind in 0..=5_u8 {
        for length in (0..200).chain([1499, 1500, 9000, 65_507]) {
            let mut datagram = vec![0; length];
            datagram.iter_mut().take(1).for_each(|byte| *byte = kind);
            let (admission, _) = admit(second, source(1), &datagram);
            let is_exact = matches!((kind, length), (1, 148) | (2, 92));
            match (kind, length) {
                (3, 64) => assert_eq!(admission, Admission::Answer),
                _ if is_exact => assert_eq!(admission, Admission::Drop(DropReason::Unauthenticated)),
                _ => assert_eq!(admission, Admission::Drop(DropReason::NotWireguard)),
            }
            let (outcome, reply) = second.handshake(&datagram);
            assert!(matches!(outcome, HandshakeOutcome::Drop(_)), "{kind} {length}");
            assert!(reply.is_empty());
            let mut out = vec![0; length];
            let opened = second.tunnel.open(&datagram, &mut out, NOW);
            let expected = match (kind, length) {
                (4, DATA_OVERHEAD..) => DropReason::Unauthenticated,
                _ => DropReason::NotWireguard,
            };
            assert_eq!(opened, Opened::Drop(expected), "{kind} {length}");
        }
    }
}

#[test]
fn buffers_that_are_too_small_are_named_and_nothing_is_lost() {
    let [mut first, mut second] = pair();
    for room in 0..INITIATION_LENGTH {
        assert_eq!(first.tunnel.initiate(&mut vec![0; room], NOW), 0);
    }
    let initiation = first.initiate();
    for room in 0..RESPONSE_LENGTH {
        assert_eq!(
            second
                .tunnel
                .handle_handshake(&initiation, &mut vec![0; room], NOW),
            HandshakeOutcome::Drop(DropReason::NoBuffer)
        );
    }
    let (_, response) = second.handshake(&initiation);
    let (_, keepalive) = first.handshake(&response);
    for room in 0..16 {
        let opened = second.tunnel.open(&keepalive, &mut vec![0; room], NOW);
        assert_eq!(opened, Opened::Drop(DropReason::NoBuffer));
    }
    assert_eq!(second.open(&keepalive).0, Opened::Keepalive);
}

#[test]
fn inner_lengths_that_no_packet_has_are_named_drops() {
    let mut ends = pair();
    establish(&mut ends);
    let refused = Opened::Drop(DropReason::NotVxlan);
    assert_eq!(through(&mut ends, &[]), Opened::Keepalive);
    for length in 1..60_usize {
        for version in 0..16_u8 {
            let mut plaintext = vec![0; length];
            plaintext[0] = version << 4 | 5;
            // The packet is as long as its buffer, by its own account.
            let claims = match version {
                4 => Some((2, length)),
                6 => Some((4, length.saturating_sub(40))),
                _ => None,
            };
            if let Some((at, claimed)) = claims
                && length >= at + 2
            {
                plaintext[at..at + 2].copy_from_slice(&(claimed as u16).to_be_bytes());
            }
            let is_packet = matches!((version, length), (4, 20..) | (6, 40..));
            let expected = if is_packet {
                Opened::Packet(length)
            } else {
                refused
            };
            assert_eq!(through(&mut ends, &plaintext), expected, "{version} {length}");
        }
    }
    // Lengths that lie: too short for a header, longer than what came.
    for claimed in [0_u16, 1, 19, 65, u16::MAX] {
        let mut lying = packet(64);
        lying[2..4].copy_from_slice(&claimed.to_be_bytes());
        assert_eq!(through(&mut ends, &lying), refused, "{claimed}");
    }
    let mut lying = vec![0x60; 64];
    lying[4..6].copy_from_slice(&25_u16.to_be_bytes());
    assert_eq!(through(&mut ends, &lying), refused);
}

#[test]
fn handshakes_of_one_source_are_limited_and_others_go_on() {
    let [_, mut second] = pair();
    let initiation = {
        let mut out = [0; INITIATION_LENGTH];
        stranger(50, &second.lane).initiate(&mut out, NOW);
        out
    };
    // 20,000 a second from one source: a burst of five, then twenty a second get to Diffie–Hellman.
    let mut admitted = 0;
    for number in 0..20_000_u64 {
        second.now = NOW + Duration::from_micros(50 * number);
        match admit(&mut second, source(66), &initiation).0 {
            Admission::Initiation(_) => admitted += 1,
            Admission::CookieReply(COOKIE_REPLY_LENGTH) => {}
            other => panic!("{other:?}"),
        }
        if number % 4000 == 3999 {
            let (admission, _) = admit(&mut second, source(number as u8 / 16), &initiation);
            assert!(
                matches!(admission, Admission::Initiation(_)),
                "a newcomer gets in at once"
            );
        }
    }
    assert_eq!(admitted, 5 + 19);
}

#[test]
fn handshakes_of_one_ipv6_prefix_are_limited_and_others_go_on() {
    let [mut first, mut second] = pair();
    let initiation = first.initiate();
    let from = |prefix: u128, host: u128| {
        let address = std::net::Ipv6Addr::from_bits(0x2001_0db8 << 96 | prefix << 64 | host);
        SocketAddr::from((address, 51_820))
    };
    // Every message from another address of the same /64, for a second.
    let mut admitted = 0;
    for number in 0..20_000_u64 {
        second.now = NOW + Duration::from_micros(50 * number);
        let admission = admit(&mut second, from(1, u128::from(number)), &initiation).0;
        admitted += u32::from(matches!(admission, Admission::Initiation(_)));
        if number % 1000 == 999 {
            let (admission, _) = admit(&mut second, from(2, u128::from(number)), &initiation);
            assert!(matches!(admission, Admission::Initiation(_)), "after {number}");
        }
    }
    assert!(
        admitted <= 128 + 256,
        "{admitted}: what strangers share, but for the half that others find"
    );
}

#[test]
fn a_flood_from_very_many_sources_leaves_the_way_by_cookie() {
    let [mut first, mut second] = pair();
    let initiation = first.initiate();
    let mut admitted = 0;
    for number in 0..20_000_u32 {
        let forged = SocketAddr::from(((0x0a00_0000_u32 + number).to_be_bytes(), 9));
        if matches!(
            admit(&mut second, forged, &initiation).0,
            Admission::Initiation(_)
        ) {
            admitted += 1;
        }
    }
    assert_eq!(admitted, 256, "what strangers share");
    let (admission, cookie) = admit(&mut second, source(1), &initiation);
    assert_eq!(admission, Admission::CookieReply(COOKIE_REPLY_LENGTH));
    assert!(
        matches!(Message::classify(&cookie), Some(Message::CookieReply { receiver }) if receiver.tunnel() == index(7))
    );
    assert_eq!(admit(&mut first, source(2), &cookie).0, Admission::Answer);
    assert_eq!(first.handshake(&cookie).0, HandshakeOutcome::Nothing);
    let with_cookie = retry(&mut first);
    assert!(matches!(
        admit(&mut second, source(1), &with_cookie).0,
        Admission::Initiation(_)
    ));
}

/// The next initiation, which is due by Rekey-Timeout.
fn retry(end: &mut End) -> Vec<u8> {
    let mut again = Vec::new();
    pass(end, 6, |_, datagram| again = datagram);
    assert_eq!(again.len(), INITIATION_LENGTH);
    again
}

#[test]
fn a_cookie_is_for_one_address_and_port() {
    let [mut first, mut second] = pair();
    let initiation = first.initiate();
    let from = SocketAddr::from(([192, 0, 2, 1], 1000));
    let cookie = loop {
        if let (Admission::CookieReply(_), cookie) = admit(&mut second, from, &initiation) {
            break cookie;
        }
    };
    assert_eq!(first.handshake(&cookie).0, HandshakeOutcome::Nothing);
    let with_cookie = retry(&mut first);
    // Nobody is let in without a proof for a while.
    let mut other_port = from;
    other_port.set_port(1001);
    for other in [other_port, SocketAddr::from(([192, 0, 2, 2], 1000))] {
        assert!(!second.lane.proves_source(other, &with_cookie, NOW), "{other}");
    }
    assert!(second.lane.proves_source(from, &with_cookie, NOW));
    let mapped = SocketAddr::from((std::net::Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped(), 1000));
    assert!(
        second.lane.proves_source(mapped, &with_cookie, NOW),
        "the same, by a socket of both families"
    );
    assert!(matches!(
        admit(&mut second, other_port, &with_cookie).0,
        Admission::CookieReply(_)
    ));
    let later = NOW + Duration::from_secs(120);
    assert!(
        !second.lane.proves_source(from, &with_cookie, later),
        "two minutes are its life"
    );
}

#[test]
fn a_proven_source_is_limited_too() {
    let [mut first, mut second] = pair();
    let initiation = first.initiate();
    let cookie = loop {
        if let (Admission::CookieReply(_), cookie) = admit(&mut second, source(1), &initiation) {
            break cookie;
        }
    };
    first.handshake(&cookie);
    let with_cookie = retry(&mut first);
    for _ in 0..5 {
        assert!(matches!(
            admit(&mut second, source(1), &with_cookie).0,
            Admission::Initiation(_)
        ));
    }
    assert_eq!(
        admit(&mut second, source(1), &with_cookie).0,
        Admission::Drop(DropReason::HandshakeFlood)
    );
}

#[test]
fn a_cookie_reply_to_somebody_else_is_not_kept() {
    let [mut first, mut second] = pair();
    let initiation = first.initiate();
    let cookie = loop {
        if let (Admission::CookieReply(_), cookie) = admit(&mut second, source(1), &initiation) {
            break cookie;
        }
    };
    for at in [4, 8, 40, 63] {
        let mut damaged = cookie.clone();
        damaged[at] ^= 1;
        assert_eq!(
            first.handshake(&damaged).0,
            HandshakeOutcome::Drop(DropReason::Unauthenticated)
        );
    }
    // An older one, to a message that isn't the last.
    retry(&mut first);
    assert_eq!(
        first.handshake(&cookie).0,
        HandshakeOutcome::Drop(DropReason::Unauthenticated)
    );
}

#[test]
fn receiver_indices_are_of_the_random_tunnel_index_and_never_two_sessions_at_once() {
    let lane = Lane::new(&PrivateKey::from_bytes([1; 32]), NOW);
    let key = PrivateKey::from_bytes([2; 32]).public_key();
    let mut tunnel = NoiseTunnel::new(&lane, index(0x00ab_cdef), &key, None, None, NOW);
    let mut out = [0; INITIATION_LENGTH];
    tunnel.initiate(&mut out, NOW);
    assert_eq!(out[5..8], [0xef, 0xcd, 0xab]);
    assert_eq!(TunnelIndex::from_low_bits(0xff00_0001), index(1));
    // The unpredictable 24 bits are drawn by who makes tunnels; a response that names another index is refused.
    let mut response = [0; RESPONSE_LENGTH];
    response[0] = 2;
    for wrong in [0x0000_0001, 0xabcd_ef00, 0xabcd_ef02_u32] {
        response[8..12].copy_from_slice(&wrong.to_le_bytes());
        assert_eq!(
            tunnel.handle_handshake(&response, &mut out, NOW),
            HandshakeOutcome::Drop(DropReason::Unauthenticated)
        );
    }
}

#[test]
fn a_flood_of_responses_is_tried_a_few_times_only() {
    let [mut first, mut second] = pair();
    let (_, response) = second.handshake(&first.initiate());
    let mut forged = response.clone();
    forged[20] ^= 1;
    for _ in 0..7 {
        assert_eq!(
            first.handshake(&forged).0,
            HandshakeOutcome::Drop(DropReason::Unauthenticated)
        );
    }
    // The right one still fits, as the eighth.
    assert!(matches!(
        first.handshake(&response).0,
        HandshakeOutcome::Established { .. }
    ));
    let [mut first, _] = pair();
    let initiation = first.initiate();
    forged[8..12].copy_from_slice(&initiation[4..8]);
    let outcomes = (0..9).map(|_| first.handshake(&forged).0).collect::<Vec<_>>();
    assert_eq!(outcomes[7], HandshakeOutcome::Drop(DropReason::Unauthenticated));
    assert_eq!(outcomes[8], HandshakeOutcome::Drop(DropReason::HandshakeFlood));
}

#[test]
fn a_flood_of_authenticated_initiations_does_not_evict_the_session_in_use() {
    let mut ends = pair();
    establish(&mut ends);
    let sent_before = ends[0].seal(&packet(64), 64).remove(0);
    // The peer's key in other hands, or a peer gone mad: 600 initiations, each newer than the last.
    let mut answered = 0;
    for number in 0..600_u64 {
        let now = NOW + Duration::from_millis(50 * number);
        let mut mad = NoiseTunnel::new(
            &ends[0].lane,
            index(3),
            &ends[1].lane.public_key(),
            None,
            None,
            now,
        );
        let mut initiation = [0; INITIATION_LENGTH];
        mad.initiate(&mut initiation, now);
        ends[1].now = now;
        answered += u32::from(matches!(
            ends[1].handshake(&initiation).0,
            HandshakeOutcome::Reply(_)
        ));
        ends[0].now = now;
        let sealed = ends[0].seal(&packet(64), 64);
        assert_eq!(ends[1].open(&sealed[0]).0, Opened::Packet(64), "after {number}");
        let sealed = ends[1].seal(&packet(64), 64);
        assert_eq!(ends[0].open(&sealed[0]).0, Opened::Packet(64), "after {number}");
    }
    assert_eq!(answered, 600, "all were authentic, and none too fast");
    assert_eq!(ends[1].open(&sent_before).0, Opened::Packet(64));
}

#[test]
fn authenticated_initiations_of_one_peer_are_limited() {
    let mut ends = pair();
    establish(&mut ends);
    let now = ends[1].now + Duration::from_secs(1);
    ends[1].now = now;
    let outcomes = (0..8)
        .map(|_| {
            let key = ends[1].lane.public_key();
            let mut mad = NoiseTunnel::new(&ends[0].lane, index(3), &key, None, None, now);
            let mut initiation = [0; INITIATION_LENGTH];
            mad.initiate(&mut initiation, now);
            ends[1].handshake(&initiation).0
        })
        .collect::<Vec<_>>();
    let (answered, refused) = outcomes.split_at(5);
    assert!(
        answered
            .iter()
            .all(|outcome| *outcome == HandshakeOutcome::Reply(RESPONSE_LENGTH))
    );
    assert!(
        refused
            .iter()
            .all(|outcome| *outcome == HandshakeOutcome::Drop(DropReason::HandshakeFlood))
    );
}

#[test]
fn an_unconfirmed_session_is_never_sent_in() {
    let mut ends = pair();
    establish(&mut ends);
    let [first, second] = &mut ends;
    let before = second.tunnel.session().own_index;
    first.now = NOW + Duration::from_secs(6);
    second.now = first.now;
    let (_, response) = second.handshake(&first.initiate());
    assert_eq!(second.tunnel.session().own_index, before);
    let sealed = second.seal(&packet(64), 64);
    assert_eq!(first.open(&sealed[0]).0, Opened::Packet(64));
    let (_, keepalive) = first.handshake(&response);
    assert_eq!(second.open(&keepalive).0, Opened::Keepalive);
    assert_ne!(second.tunnel.session().own_index, before);
}

#[test]
fn a_clock_that_goes_back_does_not_hold_up_a_tunnel_that_lives() {
    let [mut first, _] = pair();
    let mut stamps = Vec::new();
    for _ in 0..1000 {
        stamps.push(first.tunnel.stamp());
    }
    assert!(stamps.is_sorted_by(|one, two| one < two));
}
