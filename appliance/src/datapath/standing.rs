//! Whether a queue stands, and when its senders are told: CoDel (RFC 8289), for queues that the kernel keeps.
//!
//! TCP sends until something is lost. Where the queue before a slow place never overflows, its window grows to the
//! receiver's, and what is above the path's own capacity stands in that queue for as long as the stream lasts: a good
//! queue empties within a round trip, a bad one doesn't (RFC 8289 §3.1). CoDel tells them apart by the least delay
//! within an interval (§3.2) and tells a sender by one packet, then by another each interval/√n (§3.3), until the
//! queue has emptied.
//!
//! The delay of a packet in a TUN ring or a socket can't be seen. What stands in for it is what a turn finds there: a
//! turn begins with what came while the thread was elsewhere, so [`TARGET`] bytes found at once have waited as long as
//! as many take to be sealed or opened, about a millisecond. A turn that ends at its limit leaves more behind: what the
//! turns before it found then counts too.

use std::time::Duration;
use tidegate_stack::time::Instant;

/// What may wait, in bytes: CoDel's target (RFC 8289 §4.4), four of the largest packets. It trades bulk throughput for
/// delay: a sender that was told may leave the slow place idle for a while before it has recovered.
const TARGET: usize = 256 * 1024;
/// How long more than that may wait: a round trip within a site, with what waits on the way, and time for a burst to
/// drain (RFC 8289 §4.3: 100 ms is for the Internet).
const INTERVAL: Duration = Duration::from_millis(10);
/// A queue that stands again within as many intervals is told of at nearly the former rate (RFC 8289 §5.6).
const MEMORY: u32 = 16;

/// What a turn found in a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    /// Bytes that were read.
    pub(super) bytes: usize,
    /// Nothing is left.
    pub(super) emptied: bool,
}

/// What CoDel knows of one queue.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// The turn that looked last: one that had no reason to look found it empty.
    turn: u64,
    /// Bytes found since the last turn that emptied it.
    unbroken: usize,
    /// When it has been above the target for an interval (`first_above_time`).
    due: Option<Instant>,
    /// When a sender is told next (`drop_next`), once one has been.
    next: Option<Instant>,
    /// Whether senders are being told.
    telling: bool,
    /// Senders told in this state, and when it began.
    count: u32,
    former_count: u32,
}

impl Standing {
    /// Notes what turn number `turn` found, and says whether a sender is to be told. Turns are numbered without gaps.
    pub(super) fn note(&mut self, turn: u64, found: Found, now: Instant) -> bool {
        let stands = self.is_above_target(turn, found) && now >= *self.due.get_or_insert(now + INTERVAL);
        match (self.telling, stands) {
            (_, false) => {
                self.telling = false;
                false
            }
            (true, true) => {
                let Some(next) = self.next.filter(|next| *next <= now) else {
                    return false;
                };
                self.count = self.count.saturating_add(1);
                // A turn may be late; what was due before it isn't made up for.
                self.next = Some(self.after(next).max(now));
                true
            }
            (false, true) => {
                self.telling = true;
                let told = self.count - self.former_count;
                let lately = |next: Instant| now < next + INTERVAL * MEMORY;
                self.count = if told > 1 && self.next.is_some_and(lately) {
                    told
                } else {
                    1
                };
                self.former_count = self.count;
                self.next = Some(self.after(now));
                true
            }
        }
    }

    fn is_above_target(&mut self, turn: u64, found: Found) -> bool {
        if turn != self.turn.wrapping_add(1) {
            self.unbroken = 0;
            self.due = None;
        }
        self.turn = turn;
        let bytes = if found.emptied {
            self.unbroken = 0;
            found.bytes
        } else {
            self.unbroken = self.unbroken.saturating_add(found.bytes);
            self.unbroken
        };
        let above = bytes >= TARGET;
        if !above {
            self.due = None;
        }
        above
    }

    /// The control law (RFC 8289 §3.3): losses at a rate that grows with their number's root lower a TCP's rate evenly.
    fn after(&self, then: Instant) -> Instant {
        then + INTERVAL.div_f64(f64::from(self.count.max(1)).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue in virtual time, looked at every millisecond.
    #[derive(Default)]
    struct Looked {
        standing: Standing,
        turn: u64,
    }

    impl Looked {
        /// How often a sender is told in `milliseconds` turns that all find the same.
        fn find(&mut self, bytes: usize, emptied: bool, milliseconds: u64) -> u32 {
            (0..milliseconds)
                .map(|_| {
                    self.turn += 1;
                    let now = Instant::from_nanos(self.turn * 1_000_000);
                    u32::from(self.standing.note(self.turn, Found { bytes, emptied }, now))
                })
                .sum()
        }

        /// Turns in which there was nothing to look at.
        fn rest(&mut self, milliseconds: u64) {
            self.turn += milliseconds;
        }
    }

    #[test]
    fn nobody_is_told_of_a_burst_that_drains_within_an_interval() {
        let mut queue = Looked::default();
        for _ in 0..100 {
            assert_eq!(queue.find(TARGET, false, 9), 0);
            assert_eq!(queue.find(1_500, true, 1), 0);
        }
    }

    #[test]
    fn nobody_is_told_of_bursts_with_rests_between_them() {
        let mut queue = Looked::default();
        for _ in 0..100 {
            assert_eq!(queue.find(2 * TARGET, true, 1), 0);
            queue.rest(10);
        }
    }

    #[test]
    fn a_full_turn_of_small_packets_stands_only_when_turn_after_turn_leaves_some() {
        let mut queue = Looked::default();
        assert_eq!(queue.find(4_096, true, 1_000), 0);
        assert_eq!(
            queue.find(4_096, false, 73),
            0,
            "64 turns to the target, and an interval"
        );
        assert_eq!(queue.find(4_096, false, 1), 1);
    }

    #[test]
    fn senders_of_a_queue_that_stands_are_told_after_an_interval_and_then_ever_more_often() {
        let mut queue = Looked::default();
        assert_eq!(queue.find(TARGET, false, 10), 0);
        assert_eq!(queue.find(TARGET, false, 1), 1);
        assert_eq!(queue.find(TARGET, false, 9), 0);
        assert_eq!(queue.find(TARGET, false, 1), 1);
        let (first, second) = (queue.find(TARGET, false, 100), queue.find(TARGET, false, 100));
        assert!(first > 15 && second > first, "{first} {second}");
        assert!(second < 100, "at most one a turn");
    }

    #[test]
    fn telling_ends_when_the_queue_empties_and_resumes_at_nearly_the_former_rate() {
        let mut queue = Looked::default();
        let slow = queue.find(TARGET, false, 60);
        assert_eq!(queue.find(1_500, true, 20), 0);
        let resumed = queue.find(TARGET, false, 60);
        assert!(resumed > slow, "{resumed} {slow}");
        queue.rest(1_000);
        assert_eq!(queue.find(TARGET, false, 60), slow, "and that is forgotten");
    }
}
