//! How many flows each network has, over all shards of a datapath: so that one application can't fill the host's tables.
//! The only thing that shards share. It is touched when a flow is made and when it dies, never by a packet of a live one.

use std::sync::atomic::{AtomicU32, Ordering};

/// A network's place among the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuotaSlot(pub u16);

impl QuotaSlot {
    /// Where it stands among [`Quotas::SLOTS`] counters.
    pub(super) fn place(self) -> usize {
        usize::from(self.0.min(Quotas::SLOTS - 1))
    }
}

/// Live flows per network, and the most there may be. Counters order nothing else: relaxed.
pub struct Quotas {
    flows: Box<[AtomicU32]>,
    most: u32,
}

impl Quotas {
    /// Counters there are: networks beyond share the last one.
    pub const SLOTS: u16 = 1024;

    /// Lets every network have `most` flows.
    pub fn new(most: u32) -> Self {
        Self {
            flows: (0..Self::SLOTS).map(|_| AtomicU32::new(0)).collect(),
            most,
        }
    }

    /// Lets every network have three quarters of a host's flows (those of all its shards).
    pub fn of_host(flows: usize) -> Self {
        Self::new(u32::try_from(flows / 4 * 3).unwrap_or(u32::MAX))
    }

    /// Counts a new flow; false when the network has as many as it may.
    pub fn take(&self, slot: QuotaSlot) -> bool {
        let more = |flows: u32| (flows < self.most).then_some(flows + 1);
        self.counter(slot).is_some_and(|counter| {
            counter
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
                .is_ok()
        })
    }

    /// A flow that was counted has died.
    pub fn give_back(&self, slot: QuotaSlot) {
        if let Some(counter) = self.counter(slot) {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// How many flows a network has.
    pub fn flows(&self, slot: QuotaSlot) -> u32 {
        self.counter(slot)
            .map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    fn counter(&self, slot: QuotaSlot) -> Option<&AtomicU32> {
        self.flows.get(slot.place())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_together_never_pass_the_bound_and_give_everything_back() {
        const MOST: u32 = 5;
        let quotas = Quotas::new(MOST);
        let (slot, other) = (QuotaSlot(3), QuotaSlot(4));
        let refused = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let taken = [(); 2].map(|()| quotas.take(slot));
                        assert!(quotas.flows(slot) <= MOST);
                        refused.fetch_add(
                            taken.iter().filter(|taken| !**taken).count() as u32,
                            Ordering::Relaxed,
                        );
                        taken
                            .iter()
                            .filter(|taken| **taken)
                            .for_each(|_| quotas.give_back(slot));
                    }
                });
            }
        });
        assert_eq!((quotas.flows(slot), quotas.flows(other)), (0, 0));
        for _ in 0..MOST {
            assert!(quotas.take(slot));
        }
        assert!(!quotas.take(slot) && quotas.take(other));
    }
}
