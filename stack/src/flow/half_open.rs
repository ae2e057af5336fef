//! How many connections of each source nobody has accepted yet.
//!
//! Sources share counters: there are as many as memory allows, not as many as addresses, and the seed of the table
//! decides who shares. Whoever floods takes at most its own counter's share, and what it has open is given back when it
//! is answered, refused, forgotten or evicted.

use crate::plan::Vni;
use foldhash::fast::FixedState;
use std::hash::BuildHasher;
use std::net::IpAddr;

/// Counters: two bytes each.
const COUNTERS: usize = 16_384;

/// Half-open connections by network and source.
pub(super) struct HalfOpen {
    counters: Box<[u16]>,
    hasher: FixedState,
}

/// A source's counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HalfOpenSlot(usize);

impl HalfOpen {
    /// Most of a counter.
    pub(super) const MOST: u16 = 1024;

    pub(super) fn new(hasher: FixedState) -> Self {
        Self {
            counters: vec![0; COUNTERS].into(),
            hasher,
        }
    }

    /// The counter of a source in a network.
    pub(super) fn slot(&self, vni: Vni, source: IpAddr) -> HalfOpenSlot {
        HalfOpenSlot(self.hasher.hash_one((vni, source)) as usize % COUNTERS)
    }

    /// Counts one more; false at the bound.
    pub(super) fn take(&mut self, HalfOpenSlot(slot): HalfOpenSlot) -> bool {
        let Some(counter) = self.counters.get_mut(slot) else {
            return false;
        };
        let taken = *counter < Self::MOST;
        *counter += u16::from(taken);
        taken
    }

    /// Counts one less.
    pub(super) fn give_back(&mut self, HalfOpenSlot(slot): HalfOpenSlot) {
        if let Some(counter) = self.counters.get_mut(slot) {
            *counter = counter.saturating_sub(1);
        }
    }

    /// All of them together.
    #[cfg(test)]
    pub(super) fn total(&self) -> usize {
        self.counters.iter().map(|counter| usize::from(*counter)).sum()
    }

    /// Memory that the counters take, in bytes.
    pub(super) const fn bytes() -> usize {
        COUNTERS * size_of::<u16>()
    }
}
