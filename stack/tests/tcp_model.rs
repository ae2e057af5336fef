//! The filter's view of TCP, held against two ends that do what RFC 9293 says, over links that lose, double and reorder on
//! both sides of it. What a correct end sends and the other one would make use of passes; what is injected from outside of
//! the window is dropped; what doesn't count changes nothing; and in the end everything has arrived.
//!
//! 10,000 connections; a million with `TIDEGATE_LONG=1`.

#![expect(clippy::unwrap_used, reason = "a test ends at what it didn't expect")]

#[path = "tcp_model/end.rs"]
mod end;
#[path = "tcp_model/random.rs"]
mod random;

use end::{End, Wire};
use random::Random;
use std::net::IpAddr;
use tidegate_stack::drop::DropReason;
use tidegate_stack::flow::{Connection, Segment, Stage, Step};
use tidegate_stack::wire::tcp_flags::{ACK, RST, SYN};
use tidegate_stack::wire::{Headers, Transport, protocol};

#[expect(clippy::disallowed_methods, reason = "a test may be told to take longer")]
fn connections() -> u64 {
    if std::env::var("TIDEGATE_LONG").is_ok() {
        1_000_000
    } else {
        10_000
    }
}

/// The segment of a packet that would look like this.
fn segment(wire: &Wire) -> Segment {
    let options = wire.scale.map_or(0, |_| 4);
    let mut packet = vec![0; 40 + options];
    if let Some(scale) = wire.scale {
        packet[40..].copy_from_slice(&[1, 3, 3, scale]);
    }
    let address = IpAddr::from([172, 19, 1, 2]);
    let headers = Headers {
        source: address,
        destination: address,
        protocol: protocol::TCP,
        traffic_class: 0,
        hop_limit: 64,
        dont_fragment: true,
        transport: Transport::Tcp {
            source_port: 40_000,
            destination_port: 80,
            flags: wire.flags,
            sequence: wire.sequence,
            acknowledgement: wire.acknowledgement,
            window: wire.window,
        },
        identification: 0,
        fragment: None,
        transport_offset: 20,
        payload_offset: packet.len(),
        total_length: packet.len() + usize::from(wire.payload),
    };
    Segment::of(&headers, &packet).unwrap()
}

fn after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

/// Two ends, and the filter between them. What the first end sends waits in `queues[0]` before the filter, and in
/// `queues[1]` behind it; what the other one sends in the other two.
struct Story {
    ends: [End; 2],
    queues: [[Vec<Wire>; 2]; 2],
    filter: Option<Connection>,
    opener: usize,
    /// The filter forgets what it knew, and picks the connection up, when so many segments have passed.
    forgets_after: Option<u32>,
    has_forgotten: bool,
    passed: u32,
    random: Random,
    seed: u64,
}

impl Story {
    fn new(seed: u64, forgets: bool) -> Self {
        let mut random = Random::new(seed);
        let both_begin = random.one_in(10);
        Self {
            ends: [End::new(true, &mut random), End::new(both_begin, &mut random)],
            queues: Default::default(),
            filter: None,
            opener: 0,
            forgets_after: forgets.then(|| 4 + random.below(60) as u32),
            has_forgotten: false,
            passed: 0,
            random,
            seed,
        }
    }

    /// A segment of a side reaches the filter.
    fn filter(&mut self, side: usize, wire: Wire) {
        let segment = segment(&wire);
        let reply = side != self.opener;
        let outcome = match &mut self.filter {
            None if wire.flags == SYN && !self.has_forgotten => {
                // Whoever's SYN comes first has begun.
                self.opener = side;
                self.filter = Some(Connection::begin(&segment));
                Ok(Step::Passed)
            }
            // Of a SYN that comes as late as this, nobody can tell what it is.
            None if self.has_forgotten && wire.flags == SYN => return,
            None if self.has_forgotten => {
                self.filter = Some(Connection::pick_up(&segment, reply));
                Ok(Step::Passed)
            }
            None => Err(DropReason::MidStream),
            Some(connection) => {
                let before = *connection;
                let outcome = connection.advance(&segment, reply);
                if outcome != Ok(Step::Passed) {
                    assert_eq!(*connection, before, "seed {}: {wire:?}", self.seed);
                }
                outcome
            }
        };
        match outcome {
            Ok(Step::Passed | Step::Unchanged) => {
                self.queues[side][1].push(wire);
                self.passed += 1;
                if self.forgets_after == Some(self.passed) && wire.flags & SYN == 0 {
                    self.filter = None;
                    self.has_forgotten = true;
                } else if self.forgets_after == Some(self.passed) {
                    self.forgets_after = Some(self.passed + 1);
                }
            }
            // A SYN that was on its way for as long as the connection has lived. It is lost here: nobody would answer it.
            Ok(Step::Anew) => {
                let stage = self.filter.as_ref().map(Connection::stage);
                assert_eq!(stage, Some(Stage::Finished), "seed {}: {wire:?}", self.seed);
            }
            Err(reason) => assert!(
                !self.ends[1 - side].would_use(&wire),
                "seed {}: {wire:?} of side {side} is dropped as {reason:?} by {:?}",
                self.seed,
                self.filter
            ),
        }
    }

    /// Anything happens.
    fn happen(&mut self) {
        let side = self.random.below(2) as usize;
        match self.random.below(20) {
            0..=5 => {
                if let Some(wire) = self.ends[side].send(&mut self.random) {
                    self.queues[side][0].push(wire);
                }
            }
            6..=15 => {
                let place = self.random.below(2) as usize;
                if let Some(wire) = self.take(side, place) {
                    self.carry(side, place, wire);
                }
            }
            16 => {
                let place = self.random.below(2) as usize;
                self.take(side, place);
            }
            17 => {
                let place = self.random.below(2) as usize;
                let queue = &mut self.queues[side][place];
                if let Some(wire) = queue.last().copied() {
                    queue.push(wire);
                }
            }
            18 => self.ends[side].read(&mut self.random),
            _ => self.inject(side),
        }
    }

    /// Takes the next segment of a queue, or now and then any other.
    fn take(&mut self, side: usize, place: usize) -> Option<Wire> {
        let waiting = self.queues[side][place].len() as u64;
        let at = if self.random.one_in(5) {
            self.random.below(waiting)
        } else {
            0
        };
        (waiting > 0).then(|| self.queues[side][place].remove(at as usize))
    }

    fn carry(&mut self, side: usize, place: usize, wire: Wire) {
        if place == 0 {
            self.filter(side, wire);
        } else {
            self.ends[1 - side].receive(&wire);
        }
    }

    /// A stranger says something in a side's name that its peer doesn't expect.
    fn inject(&mut self, side: usize) {
        let (Some(connection), Some((told, _))) = (&mut self.filter, self.ends[1 - side].expects()) else {
            return;
        };
        if self.has_forgotten || connection.stage() < Stage::Established {
            return;
        }
        let beyond = told.wrapping_add(2 + self.random.below(1 << 29) as u32);
        let flags = [ACK, RST, RST | ACK, SYN, SYN | ACK | RST, 0][self.random.below(6) as usize];
        let wire = Wire {
            flags,
            sequence: beyond,
            acknowledgement: self.random.next() as u32,
            window: self.random.next() as u16,
            scale: None,
            payload: self.random.below(2) as u16 * 100,
        };
        let before = *connection;
        let outcome = connection.advance(&segment(&wire), side != self.opener);
        match flags {
            // Its receiver answers with what it expects.
            SYN => assert!(matches!(outcome, Ok(Step::Unchanged | Step::Anew)), "{outcome:?}"),
            ACK | RST => assert_eq!(
                outcome,
                Err(DropReason::TcpOutOfWindow),
                "seed {}: {wire:?}",
                self.seed
            ),
            _ if flags == RST | ACK => {
                assert_eq!(
                    outcome,
                    Err(DropReason::TcpOutOfWindow),
                    "seed {}: {wire:?}",
                    self.seed
                );
            }
            _ => assert_eq!(outcome, Err(DropReason::TcpFlags)),
        }
        assert_eq!(
            *connection, before,
            "seed {}: {wire:?} has changed something",
            self.seed
        );
    }

    /// The link becomes good: everything arrives.
    fn settle(&mut self) {
        for _ in 0..4000 {
            for side in [0, 1] {
                for place in [0, 1] {
                    for wire in std::mem::take(&mut self.queues[side][place]) {
                        self.carry(side, place, wire);
                    }
                }
                self.ends[side].drain();
                let wire = if self.random.one_in(2) {
                    self.ends[side].insist(&mut self.random)
                } else {
                    self.ends[side].send(&mut self.random)
                };
                self.queues[side][0].extend(wire);
            }
            if self.ends.iter().all(End::is_done) {
                return;
            }
        }
        panic!("seed {}: it never ends; {:?}", self.seed, self.filter);
    }

    /// One end gives up.
    fn abort(&mut self) {
        let side = self.random.below(2) as usize;
        let expected = self.ends[1 - side].expects();
        let wire = self.ends[side].abort();
        let Some((_, next)) = expected else { return };
        if self.filter.is_none() || self.has_forgotten {
            return;
        }
        self.filter(side, wire);
        let stage = self.filter.as_ref().map(Connection::stage);
        // What was sent last has arrived: then nobody doubts it.
        if wire.sequence == next && self.queues[side][0].is_empty() && !after(next, wire.sequence) {
            assert!(
                matches!(stage, Some(Stage::Closed)) || stage < Some(Stage::Established),
                "seed {}: {wire:?}",
                self.seed
            );
        }
    }
}

#[test]
fn what_correct_ends_send_passes_and_what_others_inject_does_not() {
    let mut finished = 0;
    for seed in 1..=connections() {
        let mut story = Story::new(seed, false);
        for _ in 0..story.random.below(300) {
            story.happen();
        }
        if seed % 5 == 0 {
            story.abort();
            continue;
        }
        story.settle();
        assert_eq!(
            story.filter.map(|connection| connection.stage()),
            Some(Stage::Finished),
            "seed {seed}"
        );
        finished += 1;
    }
    assert_eq!(finished, connections() - connections() / 5);
}

#[test]
fn a_connection_that_is_picked_up_loses_nothing() {
    for seed in 1..=connections() / 2 {
        let mut story = Story::new(seed, true);
        for _ in 0..story.random.below(300) {
            story.happen();
        }
        story.settle();
    }
}
