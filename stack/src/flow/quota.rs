//! How many flows each network and each service has, over all shards of a datapath: so that one application can't fill
//! the host's tables, and a service takes no more than its document says. The only thing that shards share. It is touched
//! when a flow is made and when it dies, never by a packet of a live one. Counters order nothing else: relaxed.

use crate::drop::DropReason;
use crate::plan::Limits;
use crate::time::Instant;
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A network's place among the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuotaSlot(pub u16);

impl QuotaSlot {
    /// Where it stands among [`Quotas::SLOTS`] counters.
    pub(super) fn place(self) -> usize {
        usize::from(self.0.min(Quotas::SLOTS - 1))
    }
}

/// The place of a service with limits among the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LimitSlot(NonZeroU16);

impl LimitSlot {
    /// The slot at a place; all places beyond the last one are the last one, which many share: it has no limits.
    pub fn at(place: u16) -> Self {
        Self(NonZeroU16::MIN.saturating_add(place.min(Quotas::SLOTS - 1)))
    }

    /// Its place.
    pub fn place(self) -> u16 {
        self.0.get() - 1
    }
}

/// Where a flow is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// The network that answers for it.
    pub network: QuotaSlot,
    /// The services of the instances of this host at its ends, as far as they have limits; one that is at both ends is
    /// there once.
    pub services: [Option<LimitSlot>; 2],
}

/// Live flows per network and service, and the most there may be.
pub struct Quotas {
    flows: Box<[AtomicU32]>,
    most: u32,
    services: Box<[Service]>,
}

/// What a service has, and may have. Zero limits nothing where zero would forbid everything: what is forbidden is the
/// largest number.
struct Service {
    connections: AtomicU32,
    most: AtomicU32,
    /// Nanoseconds between two new connections; 0: not limited.
    interval: AtomicU64,
    /// The theoretical arrival time of the generic cell rate algorithm (ITU-T I.371 annex A): when the next connection
    /// would come if all came evenly, in nanoseconds.
    arrival: AtomicU64,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            connections: AtomicU32::new(0),
            most: AtomicU32::new(u32::MAX),
            interval: AtomicU64::new(0),
            arrival: AtomicU64::new(0),
        }
    }
}

/// A second, in nanoseconds: the burst is what it allows.
const SECOND: u64 = 1_000_000_000;
/// The interval of who may begin nothing.
const NEVER: u64 = u64::MAX;

impl Service {
    /// Counts a new connection.
    fn take(&self) -> Result<(), DropReason> {
        let most = self.most.load(Ordering::Relaxed);
        let more = |connections: u32| (connections < most).then_some(connections + 1);
        self.connections
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map_or(Err(DropReason::ServiceConnections), |_| Ok(()))
    }

    /// Lets a new connection begin, if the rate allows one.
    fn begin(&self, now: Instant) -> Result<(), DropReason> {
        let interval = match self.interval.load(Ordering::Relaxed) {
            0 => return Ok(()),
            NEVER => return Err(DropReason::ConnectionRate),
            interval => interval,
        };
        let now = now.as_nanos();
        let next = |arrival: u64| {
            let next = arrival.max(now).saturating_add(interval);
            (next <= now.saturating_add(SECOND.max(interval))).then_some(next)
        };
        self.arrival
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
            .map_or(Err(DropReason::ConnectionRate), |_| Ok(()))
    }

    /// A connection that was let begin didn't.
    fn refund(&self) {
        let interval = self.interval.load(Ordering::Relaxed);
        if interval != NEVER {
            let _ = self
                .arrival
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |arrival| {
                    Some(arrival.saturating_sub(interval))
                });
        }
    }
}

impl Quotas {
    /// Counters there are of each kind: networks, or services, beyond share the last one.
    pub const SLOTS: u16 = 1024;

    /// Lets every network have `most` flows.
    pub fn new(most: u32) -> Self {
        Self {
            flows: (0..Self::SLOTS).map(|_| AtomicU32::new(0)).collect(),
            most,
            services: (0..Self::SLOTS).map(|_| Service::default()).collect(),
        }
    }

    /// Lets every network have three quarters of a host's flows (those of all its shards).
    pub fn of_host(flows: usize) -> Self {
        Self::new(u32::try_from(flows / 4 * 3).unwrap_or(u32::MAX))
    }

    /// Says what a service may have from now on; connections that live stay.
    pub fn limit(&self, slot: LimitSlot, limits: &Limits) {
        let Some(service) = self.service(slot) else { return };
        if slot.place() == Self::SLOTS - 1 {
            return;
        }
        let interval = match limits.new_connections_per_second {
            None => 0,
            Some(0) => NEVER,
            Some(rate) => SECOND / u64::from(rate),
        };
        let most = limits.connections.unwrap_or(u32::MAX);
        service.most.store(most, Ordering::Relaxed);
        service.interval.store(interval, Ordering::Relaxed);
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

    /// Counts a flow that is there already.
    pub fn count(&self, slot: QuotaSlot) {
        if let Some(counter) = self.counter(slot) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A flow that was counted has died.
    pub fn give_back(&self, slot: QuotaSlot) {
        if let Some(counter) = self.counter(slot) {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Counts a new flow with the services at its ends.
    ///
    /// # Errors
    /// One of them has as many connections as it may, or begins them too fast. Nothing is counted.
    pub fn take_services(&self, owners: &Owners, now: Instant) -> Result<(), DropReason> {
        let services = || {
            owners
                .services
                .iter()
                .flatten()
                .filter_map(|slot| self.service(*slot))
        };
        for (counted, service) in services().enumerate() {
            if let Err(reason) = service.take() {
                services().take(counted).for_each(Self::release);
                return Err(reason);
            }
        }
        for (begun, service) in services().enumerate() {
            if let Err(reason) = service.begin(now) {
                services().take(begun).for_each(Service::refund);
                services().for_each(Self::release);
                return Err(reason);
            }
        }
        Ok(())
    }

    /// Counts a flow that has begun already: limits are for new ones.
    pub fn count_services(&self, owners: &Owners) {
        for service in owners
            .services
            .iter()
            .flatten()
            .filter_map(|slot| self.service(*slot))
        {
            service.connections.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A flow that was counted with its services has died.
    pub fn give_back_services(&self, owners: &Owners) {
        let services = owners.services.iter().flatten();
        services
            .filter_map(|slot| self.service(*slot))
            .for_each(Self::release);
    }

    fn release(service: &Service) {
        service.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many flows a network has.
    pub fn flows(&self, slot: QuotaSlot) -> u32 {
        self.counter(slot)
            .map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// How many connections a service has.
    pub fn connections(&self, slot: LimitSlot) -> u32 {
        self.service(slot)
            .map_or(0, |service| service.connections.load(Ordering::Relaxed))
    }

    fn counter(&self, slot: QuotaSlot) -> Option<&AtomicU32> {
        self.flows.get(slot.place())
    }

    fn service(&self, slot: LimitSlot) -> Option<&Service> {
        self.services.get(usize::from(slot.place()))
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

    fn owners(places: [Option<u16>; 2]) -> Owners {
        Owners {
            network: QuotaSlot(0),
            services: places.map(|place| place.map(LimitSlot::at)),
        }
    }

    #[test]
    fn a_service_has_no_more_connections_than_its_limit_whatever_the_other_end_allows() {
        let quotas = Quotas::new(100);
        let limits = |connections| Limits {
            connections: Some(connections),
            new_connections_per_second: None,
        };
        quotas.limit(LimitSlot::at(0), &limits(5));
        quotas.limit(LimitSlot::at(1), &limits(2));
        let both = owners([Some(0), Some(1)]);
        assert_eq!(
            [(); 2].map(|()| quotas.take_services(&both, Instant::ZERO)),
            [Ok(()); 2]
        );
        let refused = quotas.take_services(&both, Instant::ZERO);
        assert_eq!(refused, Err(DropReason::ServiceConnections));
        assert_eq!(
            quotas.connections(LimitSlot::at(0)),
            2,
            "the refused one isn't counted"
        );
        assert_eq!(
            quotas.take_services(&owners([Some(0), None]), Instant::ZERO),
            Ok(())
        );
        quotas.give_back_services(&both);
        assert_eq!(quotas.take_services(&both, Instant::ZERO), Ok(()));
        assert_eq!(quotas.connections(LimitSlot::at(1)), 2);
    }

    #[test]
    fn a_second_of_connections_may_come_at_once_and_then_no_more_than_the_rate() {
        let quotas = Quotas::new(100);
        let limits = Limits {
            connections: None,
            new_connections_per_second: Some(200),
        };
        quotas.limit(LimitSlot::at(3), &limits);
        let service = owners([None, Some(3)]);
        let begun = |now: u64, attempts: u32| {
            (0..attempts)
                .filter(|_| quotas.take_services(&service, Instant::from_nanos(now)).is_ok())
                .count()
        };
        let start = 77 * SECOND;
        assert_eq!(begun(start, 1000), 200);
        assert_eq!(begun(start + SECOND / 2, 1000), 100);
        assert_eq!(begun(start + SECOND, 1000), 100);
        assert_eq!(
            begun(start + 100 * SECOND, 1000),
            200,
            "what wasn't used isn't saved up"
        );
    }

    #[test]
    fn nothing_and_one_a_second_are_rates_too() {
        let quotas = Quotas::new(100);
        let service = owners([Some(0), None]);
        for (rate, expected) in [(0, 0), (1, 1)] {
            quotas.limit(
                LimitSlot::at(0),
                &Limits {
                    connections: None,
                    new_connections_per_second: Some(rate),
                },
            );
            let begun = (0..10).filter(|_| quotas.take_services(&service, Instant::ZERO).is_ok());
            assert_eq!(begun.count(), expected);
        }
    }

    #[test]
    fn services_beyond_the_last_place_share_it_without_limits() {
        let quotas = Quotas::new(100);
        let none = Limits {
            connections: Some(0),
            new_connections_per_second: Some(0),
        };
        let shared = LimitSlot::at(Quotas::SLOTS + 7);
        assert_eq!(shared, LimitSlot::at(Quotas::SLOTS - 1));
        quotas.limit(shared, &none);
        let owners = owners([Some(Quotas::SLOTS + 7), None]);
        assert_eq!(quotas.take_services(&owners, Instant::ZERO), Ok(()));
    }
}
