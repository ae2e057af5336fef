//! The flow table: fixed room, made once.
//!
//! At its bound a new flow takes the place of another one among a few that are looked at: of one that is over or has
//! expired, else of a TCP connection whose handshake isn't over, else of a flow that nobody has answered, else of the one
//! that has been idle longest; never of an established TCP connection. When there is none, the new flow is refused
//! ([`DropReason::FlowTableFull`]). At its network's bound ([`Quotas`] in the host, three quarters of this table) it takes
//! the place of one of the same network, by the same rule, or is refused ([`DropReason::ConnectionLimit`]). A source whose
//! connections nobody accepts has no more than 1,024 of them ([`DropReason::HalfOpenLimit`]), and a service what its
//! document says ([`DropReason::ServiceConnections`], [`DropReason::ConnectionRate`]); in their favour nothing is evicted.

use super::half_open::{HalfOpen, HalfOpenSlot};
use super::index::Index;
use super::tracking::Dispensable;
use super::{Flow, Owners, QuotaSlot, Quotas, Segment, Step};
use crate::drop::DropReason;
use crate::time::Instant;
use crate::wire::{Direction, FlowKey};
use foldhash::fast::FixedState;
use std::hash::BuildHasher;
use std::sync::Arc;

/// Entries looked at when room is needed.
const EVICTION_SAMPLE: usize = 16;
/// Entries looked at in one sweep.
const SWEEP: usize = 1024;

/// A flow's place in the table; it stays while the flow lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowIndex(u32);

/// A packet of a flow, as its entry sees it.
#[derive(Clone, Copy, Debug)]
pub struct Passing {
    /// Which way it goes.
    pub direction: Direction,
    /// What it carries of TCP.
    pub segment: Option<Segment>,
    /// The packets that it stands for.
    pub packets: u64,
    /// The length of its IP packet.
    pub bytes: u64,
}

/// Flows by their keys.
pub struct FlowTable {
    index: Index,
    slots: Vec<Option<Flow>>,
    free: Vec<u32>,
    hasher: FixedState,
    capacity: usize,
    quotas: Arc<Quotas>,
    /// This table's flows per network: the homes of flows can be chosen, so a network may not have all of one shard
    /// either.
    own: Box<[u32]>,
    own_most: u32,
    half_open: HalfOpen,
    /// Where the next sweep, or the next search for room, begins.
    hand: usize,
}

impl FlowTable {
    /// A table for `capacity` flows, hashed with `seed`, that are counted in `quotas`.
    pub fn new(capacity: usize, seed: u64, quotas: Arc<Quotas>) -> Self {
        let hasher = FixedState::with_seed(seed);
        Self {
            index: Index::new(capacity),
            slots: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            half_open: HalfOpen::new(hasher.clone()),
            hasher,
            capacity,
            quotas,
            own: vec![0; usize::from(Quotas::SLOTS)].into(),
            own_most: u32::try_from(capacity - capacity / 4).unwrap_or(u32::MAX),
            hand: 0,
        }
    }

    /// Memory that a table for `capacity` flows takes, all of it, in bytes.
    pub fn bytes(capacity: usize) -> usize {
        let each = size_of::<Option<Flow>>() + size_of::<u32>();
        let own = usize::from(Quotas::SLOTS) * size_of::<u32>();
        Index::bytes(capacity) + capacity * each + own + HalfOpen::bytes()
    }

    /// The flow with this key.
    #[inline]
    pub fn find(&self, key: &FlowKey) -> Option<FlowIndex> {
        self.find_hashed(self.hash(key), key)
    }

    #[inline]
    fn find_hashed(&self, hash: u32, key: &FlowKey) -> Option<FlowIndex> {
        let found = self.index.find(hash, |slot| self.key_of(slot) == Some(key));
        found.map(FlowIndex)
    }

    /// The flows with these keys. Look-ups don't wait for each other: what isn't in the cache is asked for by all of them
    /// before any goes on.
    #[inline]
    pub fn find_all<const COUNT: usize>(
        &self,
        keys: &[Option<FlowKey>; COUNT],
    ) -> [Option<FlowIndex>; COUNT] {
        let hashes: [u32; COUNT] =
            std::array::from_fn(|at| keys[at].as_ref().map_or(0, |key| self.hash(key)));
        let first = hashes.map(|hash| self.index.first(hash));
        std::array::from_fn(|at| {
            let key = keys[at].as_ref()?;
            match first[at] {
                Some(slot) if self.key_of(slot) == Some(key) => Some(FlowIndex(slot)),
                Some(_) | None => self.find_hashed(hashes[at], key),
            }
        })
    }

    fn hash(&self, key: &FlowKey) -> u32 {
        (self.hasher.hash_one(key) >> 32) as u32
    }

    fn key_of(&self, slot: u32) -> Option<&FlowKey> {
        self.slots.get(slot as usize)?.as_ref().map(|flow| &flow.key)
    }

    /// The flow at a place.
    pub fn get(&self, index: FlowIndex) -> Option<&Flow> {
        self.slots.get(index.0 as usize)?.as_ref()
    }

    /// The flow at a place, to change what was decided about it (its key, its owners and its state stay).
    pub fn get_mut(&mut self, index: FlowIndex) -> Option<&mut Flow> {
        self.slots.get_mut(index.0 as usize)?.as_mut()
    }

    /// Puts a flow in that isn't there yet.
    ///
    /// # Errors
    /// The table, or what the flow's network, source or services may have of it, is full.
    pub fn insert(&mut self, flow: Flow, now: Instant) -> Result<FlowIndex, DropReason> {
        let half_open = self.half_open_slot(&flow);
        let owners = flow.owners;
        // What had begun before is no new connection.
        let begins = !flow.tracking.is_picked_up();
        if half_open.is_some_and(|slot| !self.half_open.take(slot)) {
            return Err(DropReason::HalfOpenLimit);
        }
        let inserted = self.insert_counted(flow, now).and_then(|index| {
            let taken = if begins {
                self.quotas.take_services(&owners, now)
            } else {
                self.quotas.count_services(&owners);
                Ok(())
            };
            taken.map(|()| index).inspect_err(|_| {
                self.take_out(index);
                self.give_back(owners.network);
            })
        });
        if inserted.is_err()
            && let Some(slot) = half_open
        {
            self.half_open.give_back(slot);
        }
        inserted
    }

    /// Puts a flow in that its network has room for.
    fn insert_counted(&mut self, flow: Flow, now: Instant) -> Result<FlowIndex, DropReason> {
        let network = flow.owners.network;
        if !self.take(network) {
            self.evict(now, |flow| flow.owners.network == network);
            if !self.take(network) {
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
            self.give_back(network);
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

    /// The counter in which a flow is now, if it is half-open.
    fn half_open_slot(&self, flow: &Flow) -> Option<HalfOpenSlot> {
        flow.tracking.is_half_open().then(|| {
            let source = flow.key.endpoints(flow.opener).source;
            self.half_open.slot(flow.key.vni(), source)
        })
    }

    fn put(&mut self, flow: Flow) -> Option<FlowIndex> {
        let hash = self.hash(&flow.key);
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
        self.index.insert(hash, slot);
        Some(FlowIndex(slot))
    }

    /// Takes the next packet of a flow.
    ///
    /// # Errors
    /// It can't be part of it; nothing has changed.
    pub fn advance(&mut self, index: FlowIndex, passing: &Passing, now: Instant) -> Result<Step, DropReason> {
        let flow = self.slots.get_mut(index.0 as usize).and_then(Option::as_mut);
        let flow = flow.ok_or(DropReason::NoFlow)?;
        let reply = flow.is_reply(passing.direction);
        let was_half_open = flow.tracking.is_half_open();
        let step = flow.tracking.advance(passing.segment.as_ref(), reply)?;
        if step == Step::Anew {
            return Ok(step);
        }
        let side = usize::from(reply);
        flow.packets[side] += passing.packets;
        flow.bytes[side] += passing.bytes;
        if step == Step::Passed {
            flow.seen = now;
        }
        if was_half_open && !flow.tracking.is_half_open() {
            let endpoints = flow.key.endpoints(flow.opener);
            let slot = self.half_open.slot(flow.key.vni(), endpoints.source);
            self.half_open.give_back(slot);
        }
        Ok(step)
    }

    /// Counts a flow elsewhere from now on: the plan has given it other owners, whatever they may have.
    pub fn assign(&mut self, index: FlowIndex, owners: Owners) {
        let Some(flow) = self.get_mut(index) else { return };
        let former = std::mem::replace(&mut flow.owners, owners);
        if former.services != owners.services {
            self.quotas.give_back_services(&former);
            self.quotas.count_services(&owners);
        }
        if former.network != owners.network {
            self.give_back(former.network);
            self.quotas.count(owners.network);
            if let Some(own) = self.own.get_mut(owners.network.place()) {
                *own += 1;
            }
        }
    }

    /// Takes a flow out.
    pub fn remove(&mut self, index: FlowIndex) {
        let Some(flow) = self.take_out(index) else { return };
        self.give_back(flow.owners.network);
        self.quotas.give_back_services(&flow.owners);
        if let Some(slot) = self.half_open_slot(&flow) {
            self.half_open.give_back(slot);
        }
    }

    /// Takes a flow out, and leaves it counted.
    fn take_out(&mut self, index: FlowIndex) -> Option<Flow> {
        let flow = self.slots.get_mut(index.0 as usize)?.take()?;
        self.index.remove(self.hash(&flow.key), index.0);
        self.free.push(index.0);
        Some(flow)
    }

    /// Makes room among a few flows, if there is one of `those` that may go.
    fn evict(&mut self, now: Instant, those: impl Fn(&Flow) -> bool) {
        let mut victim: Option<(u32, (Dispensable, Instant))> = None;
        for _ in 0..EVICTION_SAMPLE.min(self.slots.len()) {
            let slot = self.advance_hand();
            let Some(flow) = self.slots.get(slot).and_then(Option::as_ref) else {
                continue;
            };
            let expired = (flow.revoked || flow.expires() <= now).then_some(Dispensable::Closed);
            let Some(rank) = expired.or_else(|| flow.tracking.dispensable()) else {
                continue;
            };
            let rank = (rank, flow.seen);
            if those(flow) && victim.is_none_or(|(_, first)| rank < first) {
                victim = Some((slot as u32, rank));
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
                .is_some_and(|flow| flow.expires() <= now || !lives(flow))
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

    /// The flows of a part of the table, `slots` places from place `from` on, and where the next part begins; `None`
    /// after the last one. A flow that lives all the while is in exactly one part.
    pub fn page(&self, from: u64, slots: usize) -> (impl Iterator<Item = &Flow>, Option<u64>) {
        let start = usize::try_from(from).map_or(self.slots.len(), |from| from.min(self.slots.len()));
        let end = start.saturating_add(slots.max(1)).min(self.slots.len());
        let flows = self.slots.get(start..end).unwrap_or_default().iter().flatten();
        (flows, (end < self.slots.len()).then_some(end as u64))
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

    /// What its flows are counted in.
    pub fn quotas(&self) -> &Quotas {
        &self.quotas
    }
}

#[cfg(test)]
mod tests;
