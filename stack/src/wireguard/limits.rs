//! How often somebody may ask for a handshake: token buckets, for one source or for all of them.
//!
//! A bucket is one instant, by which it would be full again (the generic cell rate algorithm of ITU-T I.371): a source
//! that has been quiet for [`Rate::burst`] intervals is no different from one that was never seen, and is forgotten.

use crate::time::Instant;
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use std::net::IpAddr;
use std::time::Duration;

/// What a bucket lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    /// Tokens a second.
    pub per_second: u32,
    /// Tokens that a full bucket holds.
    pub burst: u32,
}

/// Handshakes of one source, and of one peer.
pub(super) const PER_SOURCE: Rate = Rate {
    per_second: 20,
    burst: 5,
};

/// A token bucket, full at first.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket {
    full_at: Instant,
}

impl Bucket {
    /// Takes a token, if there is one.
    pub(super) fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let interval = Duration::from_secs(1) / rate.per_second;
        let full_at = self.full_at.max(now);
        if full_at.saturating_since(now) > interval * (rate.burst - 1) {
            return false;
        }
        self.full_at = full_at + interval;
        true
    }

    /// Whether more than half of its tokens are gone.
    pub(super) fn is_low(&self, rate: Rate, now: Instant) -> bool {
        self.full_at.saturating_since(now) * 2 > Duration::from_secs(1) / rate.per_second * rate.burst
    }

    fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}

/// A bucket for every source of late: an address, and the /64 of an IPv6 address (the least that one customer gets,
/// RFC 6177 §2, and what a whole LAN shares).
///
/// It holds [`SourceLimits::CAPACITY`] of them. When they are that many, those whose buckets are full again make room,
/// looked for once per interval; a new source that finds no room gets no token.
pub(super) struct SourceLimits {
    rate: Rate,
    buckets: HashMap<Source, Bucket, FixedState>,
    swept: Instant,
}

/// An address, or the first 64 bits of one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Source {
    Address(IpAddr),
    Prefix(u64),
}

impl SourceLimits {
    /// Sources at a time: at 20 a second each, 4,096 sources would ask for more than any host answers.
    pub(super) const CAPACITY: usize = 4096;

    /// No sources yet. `seed` seeds the hash of the table: nobody outside may know it.
    pub(super) fn new(rate: Rate, seed: u64) -> Self {
        Self {
            rate,
            buckets: HashMap::with_hasher(FixedState::with_seed(seed)),
            swept: Instant::ZERO,
        }
    }

    /// Takes a token of this address, if it has one; when it is `crowded`, of its /64 too.
    pub(super) fn take(&mut self, address: IpAddr, crowded: bool, now: Instant) -> bool {
        // A socket of both families says `::ffff:a.b.c.d` for an IPv4 address.
        let address = address.to_canonical();
        let of_prefix = match address {
            IpAddr::V6(address) if crowded => {
                let prefix = (address.to_bits() >> 64) as u64;
                self.take_of(Source::Prefix(prefix), now)
            }
            IpAddr::V4(_) | IpAddr::V6(_) => true,
        };
        of_prefix && self.take_of(Source::Address(address), now)
    }

    fn take_of(&mut self, source: Source, now: Instant) -> bool {
        if let Some(bucket) = self.buckets.get_mut(&source) {
            return bucket.take(self.rate, now);
        }
        if self.buckets.len() >= Self::CAPACITY && !self.make_room(now) {
            return false;
        }
        self.buckets.entry(source).or_default().take(self.rate, now)
    }

    fn make_room(&mut self, now: Instant) -> bool {
        let interval = Duration::from_secs(1) / self.rate.per_second;
        if now.saturating_since(self.swept) < interval {
            return false;
        }
        self.swept = now;
        self.buckets.retain(|_, bucket| !bucket.is_full(now));
        self.buckets.len() < Self::CAPACITY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(10) + Duration::from_millis(milliseconds)
    }

    fn taken(limits: &mut SourceLimits, address: &str, now: Instant) -> usize {
        let address = address.parse().unwrap();
        (0..100).filter(|_| limits.take(address, true, now)).count()
    }

    #[test]
    fn a_source_has_a_burst_of_five_and_twenty_a_second() {
        let mut limits = SourceLimits::new(PER_SOURCE, 1);
        assert_eq!(taken(&mut limits, "192.0.2.1", at(0)), 5);
        assert_eq!(taken(&mut limits, "192.0.2.1", at(49)), 0);
        assert_eq!(taken(&mut limits, "192.0.2.1", at(50)), 1);
        let in_a_second = (51..=1050)
            .map(|millisecond| taken(&mut limits, "192.0.2.1", at(millisecond)))
            .sum::<usize>();
        assert_eq!(in_a_second, 20);
        assert_eq!(
            taken(&mut limits, "192.0.2.1", at(5000)),
            5,
            "no more than a burst is saved"
        );
    }

    #[test]
    fn an_ipv4_address_is_a_source_and_an_ipv6_prefix_of_64_bits_is_one() {
        let mut limits = SourceLimits::new(PER_SOURCE, 1);
        assert_eq!(taken(&mut limits, "192.0.2.1", at(0)), 5);
        assert_eq!(taken(&mut limits, "192.0.2.2", at(0)), 5);
        assert_eq!(
            taken(&mut limits, "::ffff:192.0.2.1", at(0)),
            0,
            "the same address"
        );
        assert_eq!(taken(&mut limits, "2001:db8::1", at(0)), 5);
        assert_eq!(taken(&mut limits, "2001:db8::ffff:0:0:1", at(0)), 0);
        assert_eq!(taken(&mut limits, "2001:db8:0:1::1", at(0)), 5);
    }

    #[test]
    fn hosts_of_one_lan_are_told_apart_until_it_is_crowded() {
        let mut limits = SourceLimits::new(PER_SOURCE, 1);
        let mut from = |host: u128, crowded| {
            let address = std::net::Ipv6Addr::from_bits(0x2001_0db8 << 96 | host).into();
            (0..100).filter(|_| limits.take(address, crowded, at(0))).count()
        };
        assert!((1..200).all(|host| from(host, false) == 5));
        assert_eq!(from(300, true), 5);
        assert_eq!(from(301, true), 0);
    }

    #[test]
    fn a_full_table_refuses_new_sources_until_old_ones_were_quiet() {
        let mut limits = SourceLimits::new(PER_SOURCE, 1);
        let address = |number: usize| IpAddr::from((0x0a00_0000 + number as u32).to_be_bytes());
        for number in 0..SourceLimits::CAPACITY {
            assert!(limits.take(address(number), true, at(0)));
        }
        assert!(!limits.take(address(SourceLimits::CAPACITY), true, at(10)));
        assert!(limits.take(address(0), true, at(10)), "who is known goes on");
        assert_eq!(limits.buckets.len(), SourceLimits::CAPACITY);
        assert!(limits.take(address(SourceLimits::CAPACITY), true, at(60)));
        assert!(limits.buckets.len() <= 2);
    }
}
