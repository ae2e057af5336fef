//! The flow table: fixed room, made once.
//!
//! At its bound a new flow takes the place of one that has expired, or, among a few that are looked at, of the one
//! that expires first and isn't an established TCP connection; when there is none, the new flow is refused
//! ([`DropReason::FlowTableFull`]). At its network's bound ([`Quotas`] in the host, three quarters of this table) it takes the place of one of the same network, by
//! the same rule, or is refused ([`DropReason::ConnectionLimit`]).

use super::{Flow, QuotaSlot, Quotas, Tracking};
use crate::drop::DropReason;
use crate::time::Instant;
use crate::wire::FlowKey;
use foldhash::fast::FixedState;
use hashbrown::HashTable;
use std::hash::BuildHasher;
use std::sync::Arc;

/// Entries looked at when room is needed.
const EVICTION_SAMPLE: usize = 16;
/// Entries looked at in one sweep.
const SWEEP: usize = 1024;

/// A flow's place in the table; it stays while the flow lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowIndex(u32);

/// Flows by their keys.
pub struct FlowTable {
    index: HashTable<u32>,
    slots: Vec<Option<Flow>>,
    free: Vec<u32>,
    hasher: FixedState,
    capacity: usize,
    quotas: Arc<Quotas>,
    /// This table's flows per network: the homes of flows can be chosen, so a network may not have all of one shard
    /// either.
    own: Box<[u32]>,
    own_most: u32,
    /// Where the next sweep, or the next search for room, begins.
    hand: usize,
}

impl FlowTable {
    /// A table for `capacity` flows, hashed with `seed`, that are counted in `quotas`.
    pub fn new(capacity: usize, seed: u64, quotas: Arc<Quotas>) -> Self {
        Self {
            // Twice the room: at the bound, with graves in it, it is tidied up in place and never grows.
            index: HashTable::with_capacity(2 * capacity),
            slots: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            hasher: FixedState::with_seed(seed),
            capacity,
            quotas,
            own: vec![0; usize::from(Quotas::SLOTS)].into(),
            own_most: u32::try_from(capacity - capacity / 4).unwrap_or(u32::MAX),
            hand: 0,
        }
    }

    /// The flow with this key.
    #[inline]
    pub fn find(&self, key: &FlowKey) -> Option<FlowIndex> {
        let found = self
            .index
            .find(self.hasher.hash_one(key), |slot| self.key_of(*slot) == Some(key));
        found.map(|slot| FlowIndex(*slot))
    }

    fn key_of(&self, slot: u32) -> Option<&FlowKey> {
        self.slots.get(slot as usize)?.as_ref().map(|flow| &flow.key)
    }

    /// The flow at a place.
    pub fn get(&self, index: FlowIndex) -> Option<&Flow> {
        self.slots.get(index.0 as usize)?.as_ref()
    }

    /// The flow at a place, to change (its key stays).
    pub fn get_mut(&mut self, index: FlowIndex) -> Option<&mut Flow> {
        self.slots.get_mut(index.0 as usize)?.as_mut()
    }

    /// Puts a flow in that isn't there yet.
    ///
    /// # Errors
    /// The table, or what the flow's network may have of it, is full of flows that may not be evicted.
    pub fn insert(&mut self, flow: Flow, now: Instant) -> Result<FlowIndex, DropReason> {
        let quota = flow.quota;
        if !self.take(quota) {
            self.evict(now, |flow| flow.quota == quota);
            if !self.take(quota) {
                return Err(DropReason::ConnectionLimit);
            }
        }
        if self.len() >= self.capacity {
            self.evict(now, |_| true);
        }
        let inserted = if self.len() < self.capacity {
            self.put(flow)
        } else {
            None
        };
        inserted.ok_or_else(|| {
            self.give_back(quota);
            DropReason::FlowTableFull
        })
    }

    /// Counts a new flow of a network, here and in the host; false when it has as many as it may.
    fn take(&mut self, quota: QuotaSlot) -> bool {
        let Some(own) = self.own.get_mut(quota.place()) else {
            return false;
        };
        let taken = *own < self.own_most && self.quotas.take(quota);
        *own += u32::from(taken);
        taken
    }

    fn give_back(&mut self, quota: QuotaSlot) {
        if let Some(own) = self.own.get_mut(quota.place()) {
            *own = own.saturating_sub(1);
        }
        self.quotas.give_back(quota);
    }

    fn put(&mut self, flow: Flow) -> Option<FlowIndex> {
        let hash = self.hasher.hash_one(flow.key);
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(flow);
                slot
            }
            None => {
                let slot = u32::try_from(self.slots.len()).ok()?;
                self.slots.push(Some(flow));
                slot
            }
        };
        let Self {
            index, slots, hasher, ..
        } = self;
        index.insert_unique(hash, slot, |slot| {
            slots
                .get(*slot as usize)
                .and_then(Option::as_ref)
                .map_or(0, |flow| hasher.hash_one(flow.key))
        });
        Some(FlowIndex(slot))
    }

    /// Takes a flow out.
    pub fn remove(&mut self, index: FlowIndex) {
        let Some(flow) = self.slots.get_mut(index.0 as usize).and_then(Option::take) else {
            return;
        };
        let hash = self.hasher.hash_one(flow.key);
        if let Ok(entry) = self.index.find_entry(hash, |slot| *slot == index.0) {
            entry.remove();
        }
        self.give_back(flow.quota);
        self.free.push(index.0);
    }

    /// Makes room among a few flows, if there is one of `those` that may go.
    fn evict(&mut self, now: Instant, those: impl Fn(&Flow) -> bool) {
        let mut victim: Option<(u32, Instant)> = None;
        for _ in 0..EVICTION_SAMPLE.min(self.slots.len()) {
            let slot = self.advance_hand();
            let Some(flow) = self.slots.get(slot).and_then(Option::as_ref) else {
                continue;
            };
            let may_go = flow.expires <= now || flow.tracking != Tracking::TcpEstablished;
            if may_go && those(flow) && victim.is_none_or(|(_, expires)| flow.expires < expires) {
                victim = Some((slot as u32, flow.expires));
            }
        }
        if let Some((slot, _)) = victim {
            self.remove(FlowIndex(slot));
        }
    }

    /// Forgets flows among the next few that have expired, or that `lives` doesn't want; call it regularly.
    pub fn sweep(&mut self, now: Instant, lives: impl Fn(&Flow) -> bool) {
        for _ in 0..SWEEP.min(self.slots.len()) {
            let slot = self.advance_hand();
            if self
                .slots
                .get(slot)
                .and_then(Option::as_ref)
                .is_some_and(|flow| flow.expires <= now || !lives(flow))
            {
                self.remove(FlowIndex(slot as u32));
            }
        }
    }

    fn advance_hand(&mut self) -> usize {
        let slot = self.hand;
        self.hand = if slot + 1 >= self.slots.len() { 0 } else { slot + 1 };
        slot
    }

    /// Live flows.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Most flows.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Arrival, Hop};
    use super::*;
    use crate::flow::QuotaSlot;
    use crate::plan::{PortId, Vni};
    use crate::snapshot::PortSlot;
    use crate::wire::Endpoints;
    use std::time::Duration;

    fn flow(port: u16, tracking: Tracking, expires: u64) -> Flow {
        let endpoints = Endpoints {
            protocol: 6,
            source: "172.19.1.2".parse().unwrap(),
            source_port: port,
            destination: "172.19.2.2".parse().unwrap(),
            destination_port: 80,
        };
        let (key, opener) = FlowKey::of(Vni::MIN, &endpoints);
        let hop = Hop::Port(PortSlot(0));
        Flow {
            key,
            home: 0,
            quota: QuotaSlot(port % 2),
            epoch: 1,
            origin: Arrival::Port(PortId(0)),
            opener,
            hops: [hop, hop],
            tunnel: None,
            tracking,
            expires: Instant::ZERO + Duration::from_secs(expires),
        }
    }

    fn table(capacity: usize, each: u32) -> FlowTable {
        FlowTable::new(capacity, 1, Arc::new(Quotas::new(each)))
    }

    #[test]
    fn both_directions_find_one_entry() {
        let mut table = table(8, 8);
        let index = table
            .insert(flow(1000, Tracking::TcpOpening, 10), Instant::ZERO)
            .unwrap();
        let endpoints = Endpoints {
            protocol: 6,
            source: "172.19.2.2".parse().unwrap(),
            source_port: 80,
            destination: "172.19.1.2".parse().unwrap(),
            destination_port: 1000,
        };
        let (key, direction) = FlowKey::of(Vni::MIN, &endpoints);
        assert_eq!(table.find(&key), Some(index));
        assert_ne!(direction, table.get(index).unwrap().opener);
        let (other, _) = FlowKey::of(Vni::MAX, &endpoints);
        assert_eq!(table.find(&other), None, "another network is another flow");
    }

    #[test]
    fn a_full_table_gives_up_unfinished_flows_and_never_established_ones() {
        let mut table = table(4, 4);
        for port in 0..3 {
            table
                .insert(flow(port, Tracking::TcpEstablished, 1000), Instant::ZERO)
                .unwrap();
        }
        let opening = flow(3, Tracking::TcpOpening, 10);
        table.insert(opening.clone(), Instant::ZERO).unwrap();
        table
            .insert(flow(4, Tracking::TcpEstablished, 1000), Instant::ZERO)
            .unwrap();
        assert_eq!(table.find(&opening.key), None);
        assert!(
            table
                .insert(flow(5, Tracking::TcpOpening, 10), Instant::ZERO)
                .is_err()
        );
        assert_eq!(table.len(), 4);
    }

    #[test]
    fn expired_flows_are_swept() {
        let mut table = table(4, 4);
        table
            .insert(flow(1, Tracking::TcpOpening, 10), Instant::ZERO)
            .unwrap();
        let stays = table
            .insert(flow(2, Tracking::TcpOpening, 20), Instant::ZERO)
            .unwrap();
        table.sweep(Instant::ZERO + Duration::from_secs(10), |_| true);
        assert_eq!(table.len(), 1);
        assert!(table.get(stays).is_some());
    }

    #[test]
    fn a_network_leaves_a_quarter_of_one_shard_to_others_whatever_the_host_has_left() {
        let mut table = table(8, 100);
        let established = |port| flow(port, Tracking::TcpEstablished, 1000);
        for port in [1, 3, 5, 7, 9, 11] {
            table.insert(established(port), Instant::ZERO).unwrap();
        }
        let refused = table.insert(established(13), Instant::ZERO);
        assert_eq!(refused, Err(DropReason::ConnectionLimit));
        let first = table.find(&established(1).key).unwrap();
        assert!(
            table.insert(established(2), Instant::ZERO).is_ok(),
            "another network"
        );
        table.remove(first);
        assert!(
            table.insert(established(13), Instant::ZERO).is_ok(),
            "what died gave its place back"
        );
    }

    #[test]
    fn a_network_at_its_bound_gives_up_its_own_flows_and_leaves_room_to_others() {
        let mut table = table(64, 3);
        let quotas = Arc::clone(&table.quotas);
        let established = |port| flow(port, Tracking::TcpEstablished, 1000);
        for port in [1, 3] {
            table.insert(established(port), Instant::ZERO).unwrap();
        }
        for port in [5, 7, 9] {
            let opening = flow(port, Tracking::TcpOpening, 10);
            table.insert(opening, Instant::ZERO).unwrap();
            assert_eq!((table.len(), quotas.flows(QuotaSlot(1))), (3, 3));
        }
        table.insert(established(11), Instant::ZERO).unwrap();
        let refused = table.insert(established(13), Instant::ZERO);
        assert_eq!(refused, Err(DropReason::ConnectionLimit));
        assert!(
            table.insert(established(2), Instant::ZERO).is_ok(),
            "another network"
        );
        // What is of a network that is gone is forgotten.
        table.sweep(Instant::ZERO, |flow| flow.quota == QuotaSlot(0));
        assert_eq!((table.len(), quotas.flows(QuotaSlot(1))), (1, 0));
    }
}
