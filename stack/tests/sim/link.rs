//! The wire between the hosts: what it loses, delays, reorders and marks. It has no bandwidth limit.

use std::time::Duration;
use tidegate_stack::time::Instant;
use tidegate_stack::wire::Ecn;

/// How a link treats datagrams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conditions {
    /// Part of the datagrams that are lost.
    pub(crate) loss: f64,
    /// Part of the datagrams that are held up by three delays, so that others overtake them.
    pub(crate) reorder: f64,
    /// Part of the datagrams that arrive twice.
    pub(crate) duplicate: f64,
    /// One way.
    pub(crate) delay: Duration,
    /// Largest IP packet.
    pub(crate) mtu: usize,
    /// What a router on the way makes of the congestion field.
    pub(crate) mark: Option<Ecn>,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            loss: 0.0,
            reorder: 0.0,
            duplicate: 0.0,
            delay: Duration::from_millis(2),
            mtu: 1500,
            mark: None,
        }
    }
}

/// What came of the datagrams that were sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Datagrams given to the link.
    pub(crate) sent: usize,
    /// Lost on purpose.
    pub(crate) lost: usize,
    /// Larger than the link takes.
    pub(crate) too_big: usize,
    /// By WireGuard's message types 1 to 4; the first counts what is none of them.
    pub(crate) types: [usize; 5],
    /// Datagrams in which the watched bytes stood.
    pub(crate) seen: usize,
    /// The length of the longest.
    pub(crate) longest: usize,
}

/// The wire.
pub(crate) struct Link {
    pub(crate) conditions: Conditions,
    pub(crate) tally: Tally,
    watched: Vec<u8>,
    state: u64,
}

impl Link {
    pub(crate) fn new(conditions: Conditions, seed: u64) -> Self {
        Self {
            conditions,
            tally: Tally::default(),
            watched: Vec::new(),
            state: seed,
        }
    }

    /// Looks for these bytes in every datagram from now on.
    pub(crate) fn watch_for(&mut self, bytes: &[u8]) {
        self.watched = bytes.to_vec();
    }

    /// When a datagram arrives, if it does, and a second time if it is doubled. `headers`: of IP and UDP.
    pub(crate) fn carry(&mut self, datagram: &[u8], headers: usize, now: Instant) -> [Option<Instant>; 2] {
        let Conditions {
            loss,
            reorder,
            duplicate,
            delay,
            mtu,
            ..
        } = self.conditions;
        self.tally.sent += 1;
        self.tally.types[message_type(datagram)] += 1;
        self.tally.longest = self.tally.longest.max(datagram.len());
        let watched = &self.watched;
        if !watched.is_empty() && datagram.windows(watched.len()).any(|window| window == watched) {
            self.tally.seen += 1;
        }
        if datagram.len() + headers > mtu {
            self.tally.too_big += 1;
            return [None, None];
        }
        if self.chance(loss) {
            self.tally.lost += 1;
            return [None, None];
        }
        let held_up = if self.chance(reorder) { 3 } else { 0 };
        let arrival = now + delay * (1 + held_up);
        let again = self.chance(duplicate).then_some(arrival + delay);
        [Some(arrival), again]
    }

    fn chance(&mut self, probability: f64) -> bool {
        // SplitMix64.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        ((mixed >> 11) as f64) < probability * (1_u64 << 53) as f64
    }
}

fn message_type(datagram: &[u8]) -> usize {
    match datagram {
        [kind @ 1..=4, 0, 0, 0, ..] => usize::from(*kind),
        _ => 0,
    }
}
