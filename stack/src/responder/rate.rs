//! How often something may be done: a token bucket.

use crate::time::Instant;
use std::time::Duration;

/// A token bucket: `per_second` in the long run, `burst` at once.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    /// Time that one token takes.
    interval: Duration,
    /// How far the bucket may run ahead: the burst, as time.
    depth: Duration,
    /// When the bucket is full again, one token earlier than that being [`RateLimit::interval`] earlier.
    full_at: Instant,
}

impl RateLimit {
    /// A full bucket. Both numbers are at least 1.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self {
            interval,
            depth: interval * burst.max(1),
            full_at: Instant::ZERO,
        }
    }

    /// ICMP errors of one shard (RFC 4443 §2.4 f, RFC 1812 §4.3.2.8).
    pub fn icmp_errors() -> Self {
        Self::new(100, 50)
    }

    /// TCP resets of one shard to senders whom policy denies: as many as ICMP errors.
    pub fn resets() -> Self {
        Self::new(100, 50)
    }

    /// Takes a token; false when there is none.
    pub fn allow(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.max(now) + self.interval;
        if full_at.saturating_since(now) > self.depth {
            return false;
        }
        self.full_at = full_at;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_at_once_and_the_rate_after_it() {
        let mut limit = RateLimit::new(100, 50);
        let start = Instant::ZERO + Duration::from_secs(9);
        let passed = |limit: &mut RateLimit, now| (0..1000).filter(|_| limit.allow(now)).count();
        assert_eq!(passed(&mut limit, start), 50);
        assert_eq!(passed(&mut limit, start + Duration::from_millis(100)), 10);
        assert_eq!(passed(&mut limit, start + Duration::from_secs(60)), 50);
    }
}
