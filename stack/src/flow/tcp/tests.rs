//! What a connection takes, step by step. The whole of it is held against two correct ends in `tests/tcp_model.rs`.

use super::*;

/// A segment that an end sends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) flags: u8,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) window: u16,
    pub(crate) scale: Option<u8>,
    pub(crate) payload: u32,
}

impl Sent {
    const fn new(flags: u8, sequence: u32, acknowledgement: u32, payload: u32) -> Self {
        Self {
            flags,
            sequence,
            acknowledgement,
            window: 8192,
            scale: None,
            payload,
        }
    }

    pub(crate) const fn syn(sequence: u32) -> Self {
        Self::new(SYN, sequence, 0, 0)
    }

    pub(crate) const fn syn_ack(sequence: u32, acknowledgement: u32) -> Self {
        Self::new(SYN | ACK, sequence, acknowledgement, 0)
    }

    pub(crate) const fn data(sequence: u32, acknowledgement: u32, payload: u32) -> Self {
        Self::new(ACK, sequence, acknowledgement, payload)
    }

    pub(crate) const fn rst(sequence: u32) -> Self {
        Self::new(RST, sequence, 0, 0)
    }

    const fn fin(sequence: u32, acknowledgement: u32) -> Self {
        Self::new(FIN | ACK, sequence, acknowledgement, 0)
    }

    const fn told(self, window: u16, scale: Option<u8>) -> Self {
        Self {
            window,
            scale,
            ..self
        }
    }

    pub(crate) fn segment(self) -> Segment {
        let length = self.payload + u32::from(self.flags & SYN != 0) + u32::from(self.flags & FIN != 0);
        Segment {
            flags: self.flags & !(PSH | ECE | tcp_flags::CWR),
            sequence: self.sequence,
            end: self.sequence.wrapping_add(length),
            acknowledgement: self.acknowledgement,
            window: self.window,
            scale: self.scale,
        }
    }
}

/// After a handshake: the opener's next number is 1001, the other end's 5001.
pub(crate) fn established() -> Connection {
    let mut connection = Connection::begin(&Sent::syn(1000).segment());
    for (sent, reply) in [
        (Sent::syn_ack(5000, 1001), true),
        (Sent::data(1001, 5001, 0), false),
    ] {
        assert_eq!(connection.advance(&sent.segment(), reply), Ok(Step::Passed));
    }
    assert_eq!(connection.stage(), Stage::Established);
    connection
}

const OUT: Result<Step, DropReason> = Err(DropReason::TcpOutOfWindow);
const PASSED: Result<Step, DropReason> = Ok(Step::Passed);
const UNCHANGED: Result<Step, DropReason> = Ok(Step::Unchanged);

/// What becomes of a segment; whatever doesn't pass has changed nothing.
#[track_caller]
fn expect(connection: &mut Connection, sent: Sent, reply: bool, expected: Result<Step, DropReason>) {
    let before = *connection;
    assert_eq!(connection.advance(&sent.segment(), reply), expected, "{sent:?}");
    if expected != PASSED {
        assert_eq!(*connection, before, "{sent:?}");
    }
}

#[test]
fn flags_that_no_end_sends_are_told_from_those_that_one_does() {
    let legal = [
        SYN,
        SYN | URG,
        SYN | ACK,
        ACK,
        ACK | URG,
        FIN | ACK,
        FIN | ACK | URG,
        RST,
        RST | ACK,
    ];
    for flags in 0..64 {
        for ignored in [0, PSH, ECE | tcp_flags::CWR] {
            let sent = Sent::new(flags | ignored, 0, 0, 0);
            let expected = legal.contains(&(flags & !PSH));
            assert_eq!(sent.segment().has_legal_flags(), expected, "{flags:#x}");
        }
    }
}

#[test]
fn the_scale_of_windows_is_found_among_options_and_never_behind_their_end() {
    for (options, expected) in [
        (&[2, 4, 5, 0xb4, 1, 3, 3, 7][..], Some(7)),
        (&[3, 3, 200], Some(LARGEST_SCALE)),
        (&[1, 1, 0, 3, 3, 7], None),
        (&[8, 0, 3, 3, 7], None),
        (&[8, 10, 3, 3, 7], None),
        (&[3, 3], None),
        (&[], None),
    ] {
        assert_eq!(window_scale(options), expected, "{options:?}");
    }
}

#[test]
fn a_connection_is_established_by_both_ends_only() {
    let mut connection = Connection::begin(&Sent::syn(1000).segment());
    let connection = &mut connection;
    expect(connection, Sent::data(1001, 5001, 0), false, OUT);
    expect(connection, Sent::syn_ack(1000, 5001), false, OUT);
    expect(connection, Sent::syn_ack(5000, 1002), true, OUT);
    expect(connection, Sent::syn(1000), false, PASSED);
    assert_eq!(connection.stage(), Stage::Opening);
    expect(connection, Sent::syn_ack(5000, 1001), true, PASSED);
    expect(connection, Sent::syn_ack(5000, 1001), true, PASSED);
    expect(connection, Sent::syn(1000), false, PASSED);
    expect(connection, Sent::data(5001, 1001, 20), true, PASSED);
    assert_eq!(connection.stage(), Stage::Answered);
    expect(connection, Sent::data(1001, 5000, 0), false, OUT);
    expect(connection, Sent::data(1001, 5001, 0), false, PASSED);
    assert_eq!(connection.stage(), Stage::Established);
}

#[test]
fn both_ends_may_begin_at_once() {
    let mut connection = Connection::begin(&Sent::syn(1000).segment());
    let connection = &mut connection;
    expect(connection, Sent::syn(5000), true, PASSED);
    expect(connection, Sent::syn_ack(1000, 5001), false, PASSED);
    expect(connection, Sent::syn_ack(5000, 1001), true, PASSED);
    expect(connection, Sent::data(5001, 1001, 10), true, PASSED);
    expect(connection, Sent::data(1001, 5011, 10), false, PASSED);
    assert_eq!(connection.stage(), Stage::Established);
}

#[test]
fn another_attempt_before_anything_is_agreed_takes_the_place_of_the_first() {
    for answered in [false, true] {
        let mut connection = Connection::begin(&Sent::syn(1000).segment());
        if answered {
            expect(&mut connection, Sent::syn_ack(5000, 1001), true, PASSED);
        }
        expect(&mut connection, Sent::syn(700_000), false, PASSED);
        expect(&mut connection, Sent::syn_ack(9000, 700_001), true, PASSED);
        expect(&mut connection, Sent::data(700_001, 9001, 10), false, PASSED);
        assert_eq!(connection.stage(), Stage::Established);
    }
}

#[test]
fn an_answer_with_another_number_takes_the_place_of_the_first_until_it_is_accepted() {
    let mut connection = Connection::begin(&Sent::syn(1000).segment());
    expect(&mut connection, Sent::syn_ack(5000, 1001), true, PASSED);
    expect(&mut connection, Sent::syn_ack(2_000_000, 1001), true, PASSED);
    expect(&mut connection, Sent::data(1001, 2_000_001, 10), false, PASSED);
    assert_eq!(connection.stage(), Stage::Established);
    expect(&mut connection, Sent::syn_ack(70_000_000, 1001), true, OUT);
}

#[test]
fn an_end_that_has_an_older_connection_may_say_so_and_is_reset() {
    let mut connection = Connection::begin(&Sent::syn(1000).segment());
    expect(&mut connection, Sent::data(777, 900, 0), true, UNCHANGED);
    expect(&mut connection, Sent::data(777, 900, 10), true, OUT);
    expect(&mut connection, Sent::rst(900), false, UNCHANGED);
    expect(&mut connection, Sent::syn(1000), false, PASSED);
    expect(&mut connection, Sent::syn_ack(5000, 1001), true, PASSED);
}

#[test]
fn a_segment_must_fit_what_both_ends_have_said() {
    let connection = &mut established();
    // Beyond the window, before it, acknowledging what wasn't sent, or what is long past.
    expect(connection, Sent::data(1001 + 8193, 5001, 10), false, OUT);
    expect(
        connection,
        Sent::data(1001_u32.wrapping_sub(8200), 5001, 7),
        false,
        OUT,
    );
    expect(connection, Sent::data(1001, 5002, 10), false, OUT);
    expect(
        connection,
        Sent::data(1001, 5001_u32.wrapping_sub(70_000), 10),
        false,
        OUT,
    );
    // Its ends, and what correct ends send: a probe, a keepalive, the same again.
    expect(connection, Sent::data(1000, 5001, 0), false, PASSED);
    expect(connection, Sent::data(1000, 5001, 1), false, PASSED);
    expect(connection, Sent::data(1001, 5001, 100), false, PASSED);
    expect(connection, Sent::data(5001, 1101, 0), true, PASSED);
    expect(connection, Sent::data(1101 + 8192, 5001, 1), false, PASSED);
}

#[test]
fn a_probe_of_a_closed_window_passes_as_often_as_it_is_sent() {
    let connection = &mut established();
    expect(connection, Sent::data(1001, 5001, 8192), false, PASSED);
    expect(
        connection,
        Sent::data(5001, 1001 + 8192, 0).told(0, None),
        true,
        PASSED,
    );
    for _ in 0..3 {
        expect(connection, Sent::data(1001 + 8192, 5001, 1), false, PASSED);
        expect(
            connection,
            Sent::data(5001, 1001 + 8192, 0).told(0, None),
            true,
            PASSED,
        );
    }
    expect(connection, Sent::data(1001 + 8194, 5001, 1), false, OUT);
    expect(connection, Sent::data(5001, 1001 + 8192, 0), true, PASSED);
    expect(connection, Sent::data(1001 + 8192, 5001, 1000), false, PASSED);
}

#[test]
fn windows_are_scaled_when_both_ends_offer_it_and_never_those_of_a_syn() {
    for (scales, beyond) in [
        ([Some(7), Some(7)], 100 << 7),
        ([Some(7), None], 100),
        ([None, Some(7)], 100),
    ] {
        let mut connection = Connection::begin(&Sent::syn(1000).told(100, scales[0]).segment());
        let connection = &mut connection;
        expect(
            connection,
            Sent::syn_ack(5000, 1001).told(100, scales[1]),
            true,
            PASSED,
        );
        expect(connection, Sent::data(1001 + 101, 5001, 1), false, OUT);
        expect(
            connection,
            Sent::data(1001, 5001, 0).told(100, None),
            false,
            PASSED,
        );
        expect(connection, Sent::data(5001 + beyond + 1, 1001, 1), true, OUT);
        expect(connection, Sent::data(5001 + beyond, 1001, 1), true, PASSED);
    }
}

#[test]
fn numbers_go_round() {
    let mut connection = Connection::begin(&Sent::syn(u32::MAX - 1).segment());
    let connection = &mut connection;
    expect(connection, Sent::syn_ack(u32::MAX, u32::MAX), true, PASSED);
    expect(connection, Sent::data(u32::MAX, 0, 100), false, PASSED);
    expect(connection, Sent::data(0, 99, 100), true, PASSED);
    expect(connection, Sent::data(99 + 8193, 100, 1), false, OUT);
    expect(connection, Sent::data(99, 100, 1), false, PASSED);
}

#[test]
fn only_the_next_expected_reset_ends_a_connection() {
    for reply in [false, true] {
        let (own, other): (u32, u32) = if reply { (5001, 1001) } else { (1001, 5001) };
        let mut connection = established();
        for (sequence, expected) in [
            (own + 1, UNCHANGED),
            (own + 8192, UNCHANGED),
            (own + 8193, OUT),
            (own - 1, OUT),
            (own.wrapping_add(1 << 31), OUT),
            (own, PASSED),
        ] {
            expect(&mut connection, Sent::rst(sequence), reply, expected);
        }
        assert_eq!(connection.stage(), Stage::Closed);
        expect(&mut connection, Sent::data(other, own, 0), !reply, PASSED);
        assert_eq!(connection.stage(), Stage::Closed);
    }
    // The last that was sent, though it isn't acknowledged yet.
    let mut connection = established();
    expect(&mut connection, Sent::data(1001, 5001, 50), false, PASSED);
    expect(&mut connection, Sent::rst(1051), false, PASSED);
    assert_eq!(connection.stage(), Stage::Closed);
}

#[test]
fn a_refusal_must_acknowledge_the_request() {
    let refusal = |acknowledgement| Sent {
        flags: RST | ACK,
        acknowledgement,
        ..Sent::rst(0)
    };
    let mut connection = Connection::begin(&Sent::syn(1000).segment());
    for acknowledgement in [1000, 1002, 0] {
        expect(&mut connection, refusal(acknowledgement), true, OUT);
    }
    expect(&mut connection, Sent::rst(0), true, OUT);
    expect(&mut connection, refusal(1001), true, PASSED);
    assert_eq!(connection.stage(), Stage::Closed);
    expect(&mut connection, Sent::syn(1000), false, Ok(Step::Anew));
}

#[test]
fn a_syn_amidst_a_connection_is_left_to_its_receiver() {
    for reply in [false, true] {
        for sequence in [0, 1001, 5001, 1 << 31] {
            expect(&mut established(), Sent::syn(sequence), reply, UNCHANGED);
        }
    }
}

#[test]
fn ends_close_one_by_one_and_then_another_connection_may_begin() {
    let connection = &mut established();
    expect(connection, Sent::fin(1001, 5001), false, PASSED);
    assert_eq!(connection.stage(), Stage::Closing);
    // The other half goes on.
    expect(connection, Sent::data(5001, 1002, 4000), true, PASSED);
    expect(connection, Sent::data(1002, 9001, 0), false, PASSED);
    expect(connection, Sent::syn(1_000_000), false, UNCHANGED);
    expect(connection, Sent::fin(9001, 1002), true, PASSED);
    assert_eq!(connection.stage(), Stage::Finished);
    expect(connection, Sent::fin(9001, 1002), true, PASSED);
    expect(connection, Sent::data(1002, 9002, 0), false, PASSED);
    expect(connection, Sent::syn(1_000_000), false, Ok(Step::Anew));
    expect(connection, Sent::syn(1_000_000), true, Ok(Step::Anew));
}

#[test]
fn what_is_picked_up_in_its_middle_is_followed_from_whichever_end_is_seen_first() {
    for first_is_reply in [false, true] {
        let mut connection = Connection::pick_up(
            &Sent::data(70_000, 5001, 100).told(10, None).segment(),
            first_is_reply,
        );
        let connection = &mut connection;
        assert_eq!(connection.stage(), Stage::Opening);
        expect(connection, Sent::data(70_100, 5001, 0), first_is_reply, PASSED);
        assert_eq!(
            connection.stage(),
            Stage::Opening,
            "one end alone establishes nothing"
        );
        // The first thing that was seen was sent for the second time: more than that is acknowledged.
        expect(
            connection,
            Sent::data(5001, 90_000, 10).told(100, None),
            !first_is_reply,
            PASSED,
        );
        assert_eq!(connection.stage(), Stage::Established);
        expect(connection, Sent::data(90_000, 5011, 10), first_is_reply, PASSED);
        expect(connection, Sent::rst(90_011), first_is_reply, UNCHANGED);
        expect(connection, Sent::rst(90_000), first_is_reply, PASSED);
        assert_eq!(connection.stage(), Stage::Closed);
    }
}

#[test]
fn an_error_quotes_what_is_on_its_way() {
    let connection = &mut established();
    expect(connection, Sent::data(1001, 5001, 4000), false, PASSED);
    assert!(connection.awaits_acknowledgement(1001, false));
    assert!(connection.awaits_acknowledgement(5000, false));
    assert!(!connection.awaits_acknowledgement(5001 + 70_000, false));
    assert!(!connection.awaits_acknowledgement(1001_u32.wrapping_sub(70_000), false));
    assert!(connection.awaits_acknowledgement(5001, true));
    assert!(!connection.awaits_acknowledgement(1 << 31, true));
    let opening = Connection::begin(&Sent::syn(1000).segment());
    assert!(opening.awaits_acknowledgement(1000, false));
    assert!(
        !opening.awaits_acknowledgement(1000, true),
        "nothing came from there"
    );
}
