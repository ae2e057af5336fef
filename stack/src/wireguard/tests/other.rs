//! Another implementation at the far end: boringtun.

use super::*;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;

const OURS: [u8; 32] = [1; 32];
const THEIRS: [u8; 32] = [2; 32];

fn ours_and_theirs(preshared_key: Option<[u8; 32]>) -> (NoiseTunnel, Tunn) {
    let lane = Lane::new(&PrivateKey::from_bytes(OURS), NOW);
    let key = PrivateKey::from_bytes(THEIRS).public_key();
    let preshared = preshared_key.map(PresharedKey::from_bytes);
    let ours = NoiseTunnel::new(&lane, index(7), &key, preshared.as_ref(), None, NOW);
    let theirs = Tunn::new(
        x25519::StaticSecret::from(THEIRS),
        x25519::PublicKey::from(*lane.public_key().as_bytes()),
        preshared_key,
        None,
        9,
        None,
    );
    (ours, theirs)
}

fn written(result: TunnResult<'_>) -> Vec<u8> {
    match result {
        TunnResult::WriteToNetwork(datagram) => datagram.to_vec(),
        other => panic!("{other:?}"),
    }
}

fn exchange(ours: &mut NoiseTunnel, theirs: &mut Tunn) {
    for _ in 0..100 {
        let mut out = [0; 2048];
        let bytes = packet(100);
        let train = Train {
            bytes: &bytes,
            stride: 100,
        };
        let sealed = ours.seal(&train, &mut out, NOW);
        assert_eq!(sealed.packets, 1);
        match theirs.decapsulate(None, &out[..sealed.bytes], &mut [0; 2048]) {
            TunnResult::WriteToTunnelV4(packet, _) => assert_eq!(packet, &bytes[..]),
            other => panic!("{other:?}"),
        }
        let sealed = written(theirs.encapsulate(&bytes, &mut out));
        let mut opened = [0; 2048];
        assert_eq!(ours.open(&sealed, &mut opened, NOW), Opened::Packet(100));
        assert_eq!(opened[..100], bytes);
    }
}

#[test]
fn a_session_that_this_end_begins_with_boringtun_carries_packets() {
    for preshared_key in [None, Some([5; 32])] {
        let (mut ours, mut theirs) = ours_and_theirs(preshared_key);
        let (mut out, mut room) = ([0; 256], [0; 2048]);
        let length = ours.initiate(&mut out, NOW);
        let response = written(theirs.decapsulate(None, &out[..length], &mut room));
        let outcome = ours.handle_handshake(&response, &mut out, NOW);
        assert_eq!(outcome, HandshakeOutcome::Established { reply: DATA_OVERHEAD });
        let confirmed = theirs.decapsulate(None, &out[..DATA_OVERHEAD], &mut room);
        assert!(matches!(confirmed, TunnResult::Done));
        exchange(&mut ours, &mut theirs);
    }
}

#[test]
fn a_session_that_boringtun_begins_carries_packets() {
    for preshared_key in [None, Some([5; 32])] {
        let (mut ours, mut theirs) = ours_and_theirs(preshared_key);
        let (mut out, mut room) = ([0; 256], [0; 2048]);
        let initiation = written(theirs.format_handshake_initiation(&mut room, false));
        let outcome = ours.handle_handshake(&initiation, &mut out, NOW);
        assert_eq!(outcome, HandshakeOutcome::Reply(RESPONSE_LENGTH));
        let keepalive = written(theirs.decapsulate(None, &out[..RESPONSE_LENGTH], &mut room));
        assert_eq!(ours.open(&keepalive, &mut out, NOW), Opened::Keepalive);
        exchange(&mut ours, &mut theirs);
    }
}

#[test]
fn boringtun_takes_our_cookie_and_we_take_its() {
    // boringtun begins too often for one source.
    let mut lane = Lane::new(&PrivateKey::from_bytes(OURS), NOW);
    let (mut ours, mut theirs) = ours_and_theirs(None);
    let mut room = [0; 2048];
    let mut initiate = |theirs: &mut Tunn| written(theirs.format_handshake_initiation(&mut room, true));
    let cookie = loop {
        let mut out = [0; COOKIE_REPLY_LENGTH];
        let initiation = initiate(&mut theirs);
        if let Admission::CookieReply(_) = lane.admit(source(1), &initiation, &mut out, NOW) {
            break out;
        }
    };
    assert!(matches!(
        theirs.decapsulate(None, &cookie, &mut [0; 256]),
        TunnResult::Done
    ));
    let initiation = initiate(&mut theirs);
    assert!(lane.proves_source(source(1), &initiation, NOW));

    // We begin while boringtun is under load: beyond ten in a second.
    let address = Some(source(1).ip());
    let mut out = [0; 256];
    let mut now = NOW;
    let cookie = loop {
        let length = match ours.initiate(&mut out, now) {
            0 => ours.tick(&mut out, now),
            length => length,
        };
        now = now + Duration::from_secs(6);
        let mut room = [0; 256];
        let reply = written(theirs.decapsulate(address, &out[..length], &mut room));
        if reply.len() == COOKIE_REPLY_LENGTH {
            break reply;
        }
    };
    let kept = ours.handle_handshake(&cookie, &mut out, now);
    assert_eq!(kept, HandshakeOutcome::Nothing);
    let length = ours.tick(&mut out, now);
    assert_eq!(length, INITIATION_LENGTH);
    let response = written(theirs.decapsulate(address, &out[..length], &mut [0; 256]));
    assert_eq!(response.len(), RESPONSE_LENGTH);
}

/// boringtun's clock and ours, 400 virtual seconds at ten packets a second each way.
#[cfg(feature = "simulation")]
mod over_time {
    use super::*;
    use mock_instant::MockClock;

    /// A datagram of boringtun is given to us, and what we answer to it, until nobody has anything to say: packets that
    /// arrived.
    fn to_us(ours: &mut NoiseTunnel, theirs: &mut Tunn, datagram: &[u8], now: Instant) -> usize {
        let mut out = [0; 2048];
        match Message::classify(datagram) {
            None => panic!("not WireGuard"),
            Some(Message::Data { .. }) => match ours.open(datagram, &mut out, now) {
                Opened::Packet(100) => 1,
                Opened::Keepalive => 0,
                other => panic!("{other:?}"),
            },
            Some(_) => match ours.handle_handshake(datagram, &mut out, now) {
                HandshakeOutcome::Reply(length) | HandshakeOutcome::Established { reply: length } => {
                    to_them(ours, theirs, &out[..length], now)
                }
                other => panic!("{other:?}"),
            },
        }
    }

    fn to_them(ours: &mut NoiseTunnel, theirs: &mut Tunn, datagram: &[u8], now: Instant) -> usize {
        match theirs.decapsulate(None, datagram, &mut [0; 2048]) {
            TunnResult::Done => 0,
            TunnResult::WriteToTunnelV4(..) => 1,
            TunnResult::WriteToNetwork(answer) => {
                let answer = answer.to_vec();
                to_us(ours, theirs, &answer, now)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Seconds at which keys were changed, when `we_begin` or they.
    fn talk(we_begin: bool) -> Vec<u64> {
        MockClock::set_time(Duration::from_secs(1));
        let (mut ours, mut theirs) = ours_and_theirs(Some([5; 32]));
        let bytes = packet(100);
        let train = Train {
            bytes: &bytes,
            stride: 100,
        };
        let mut now = NOW;
        let mut out = [0; 2048];
        if we_begin {
            let length = ours.initiate(&mut out, now);
            to_them(&mut ours, &mut theirs, &out[..length], now);
        } else {
            let initiation = written(theirs.format_handshake_initiation(&mut out, false));
            to_us(&mut ours, &mut theirs, &initiation, now);
        }
        let mut changed = Vec::new();
        for tenth in 0..4000_u64 {
            let sealed = ours.seal(&train, &mut out, now);
            assert_eq!(to_them(&mut ours, &mut theirs, &out[..sealed.bytes], now), 1);
            let sealed = written(theirs.encapsulate(&bytes, &mut out));
            assert_eq!(to_us(&mut ours, &mut theirs, &sealed, now), 1);
            let step = Duration::from_millis(100);
            MockClock::advance(step);
            now = now + step;
            let length = ours.tick(&mut out, now);
            if length > 0 {
                assert_eq!(length, INITIATION_LENGTH);
                changed.push(tenth / 10);
                to_them(&mut ours, &mut theirs, &out[..length], now);
            }
            if let TunnResult::WriteToNetwork(datagram) = theirs.update_timers(&mut out) {
                let datagram = datagram.to_vec();
                assert_eq!(datagram.len(), INITIATION_LENGTH);
                changed.push(tenth / 10);
                to_us(&mut ours, &mut theirs, &datagram, now);
            }
        }
        changed
    }

    #[test]
    fn keys_are_changed_with_boringtun_every_two_minutes_without_a_lost_packet() {
        for we_begin in [true, false] {
            let changed = talk(we_begin);
            assert!(
                matches!(changed[..], [119..=121, 239..=242, 359..=363]),
                "{changed:?}, begun by us: {we_begin}"
            );
        }
    }
}
