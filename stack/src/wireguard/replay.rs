//! Counters seen (§5.4.6 of the paper, RFC 6479): a packet is taken once, and not when it is too late.

/// Counters behind the greatest one that are still told apart. One word of the ring is always being left.
pub(super) const REPLAY_WINDOW: u64 = BITS - WORD;

const WORD: u64 = u64::BITS as u64;
const WORDS: usize = 128;
const BITS: u64 = WORDS as u64 * WORD;

/// The last [`REPLAY_WINDOW`] counters of one direction of a session.
pub(super) struct ReplayWindow {
    /// One more than the greatest counter seen.
    next: u64,
    /// Counters seen, of those below `next`.
    taken: u64,
    seen: [u64; WORDS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self {
            next: 0,
            taken: 0,
            seen: [0; WORDS],
        }
    }
}

impl ReplayWindow {
    /// Whether a packet with this counter may still come. Asked before it is decrypted.
    pub(super) fn accepts(&self, counter: u64) -> bool {
        if counter >= self.next {
            return true;
        }
        self.next - counter <= REPLAY_WINDOW && self.seen[place(counter)] & bit(counter) == 0
    }

    /// Notes a counter that [`ReplayWindow::accepts`], now that its packet is known to be authentic.
    pub(super) fn note(&mut self, counter: u64) {
        if counter >= self.next {
            let newest = self.next.saturating_sub(1) / WORD;
            let passed = (counter / WORD - newest).min(WORDS as u64);
            for step in 1..=passed {
                self.seen[place((newest + step) * WORD)] = 0;
            }
            self.next = counter + 1;
        }
        self.taken += 1;
        self.seen[place(counter)] |= bit(counter);
    }

    /// Counters of 1000 that were never seen, among those up to the greatest; `None` before the first.
    pub(super) fn missing_permille(&self) -> Option<u16> {
        let missing = self.next.saturating_sub(self.taken);
        let permille = u128::from(missing) * 1000 / u128::from(self.next.max(1));
        (self.next > 0).then_some(u16::try_from(permille).unwrap_or(1000))
    }
}

fn place(counter: u64) -> usize {
    (counter / WORD) as usize % WORDS
}

fn bit(counter: u64) -> u64 {
    1 << (counter % WORD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_never_came_is_counted() {
        let mut window = ReplayWindow::default();
        assert_eq!(window.missing_permille(), None);
        for counter in (0..1000).filter(|counter| counter % 4 != 1) {
            window.note(counter);
        }
        assert_eq!(window.missing_permille(), Some(250));
        // Late, and not lost.
        window.note(997);
        assert_eq!(window.missing_permille(), Some(249));
    }
    use std::collections::BTreeSet;

    impl ReplayWindow {
        fn take(&mut self, counter: u64) -> bool {
            let accepted = self.accepts(counter);
            if accepted {
                self.note(counter);
            }
            accepted
        }
    }

    #[test]
    fn the_replay_window_is_8128_wide() {
        assert_eq!(REPLAY_WINDOW, 8128);
        for greatest in [8127, 8128, 10_000, 1 << 40] {
            let mut window = ReplayWindow::default();
            assert!(window.take(greatest));
            assert!(!window.take(greatest));
            let oldest = greatest + 1 - REPLAY_WINDOW;
            for counter in oldest..greatest {
                assert!(window.take(counter), "{counter} behind {greatest}");
                assert!(!window.take(counter), "{counter} again");
            }
            assert!(oldest == 0 || !window.take(oldest - 1), "one too late");
        }
    }

    #[test]
    fn a_leap_forgets_what_is_behind_it() {
        let mut window = ReplayWindow::default();
        assert!((0..100).all(|counter| window.take(counter)));
        assert!(window.take(1 << 50));
        assert!(!window.take(50));
        assert!(window.take((1 << 50) - 8000));
        assert!(!window.take((1 << 50) - 8000));
    }

    proptest! {
        /// Against a set that forgets nothing.
        #[test]
        fn nothing_is_taken_twice_and_nothing_in_the_window_is_refused(
            steps in prop::collection::vec((0_u64..20_000, prop::bool::weighted(0.9)), 1..400)
        ) {
            let mut window = ReplayWindow::default();
            let mut taken = BTreeSet::new();
            let mut greatest = 0_u64;
            for (step, back) in steps {
                let counter = if back { greatest.saturating_sub(step % 9_000) } else { greatest + step };
                greatest = greatest.max(counter);
                let late = greatest - counter >= REPLAY_WINDOW;
                prop_assert_eq!(window.take(counter), !late && taken.insert(counter));
            }
        }
    }
}
