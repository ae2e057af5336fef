//! Virtual reassembly: a datagram in fragments is put together before anybody judges it, and goes on whole.
//!
//! The walk of a fragment through [`Reassembly::push`]:
//! 1. Which datagram: the network, where it arrived, source, destination, identification, and with IPv4 the protocol
//!    (RFC 791 §3.2, RFC 8200 §4.5). The first one to arrive starts the clock.
//! 2. Does it fit to what is there? An overlap or a contradiction ends the datagram, and what still comes of it is
//!    dropped until its time is over (RFC 5722 §3, RFC 8200 §4.5). The very same fragment again is dropped alone.
//! 3. It is copied into blocks. When nothing is missing any more, the whole is written into one frame.
//!
//! ```text
//! (nothing) ──first to arrive──▶ gathering ──nothing missing──▶ whole: forgotten here
//!                                    │ └──its time is over──▶ forgotten
//!                                    └──contradiction──▶ refused ──its time is over──▶ forgotten
//! ```
//!
//! The whole of an IPv4 datagram has the header of its first fragment, without a word about fragments. That of an IPv6
//! one keeps the fragment header, which says that it is all of it (RFC 6946): so its identification survives, and it can
//! be cut again.
//!
//! All memory is claimed when a [`Reassembly`] is made. At the bound of a source, its own oldest datagram makes room; at
//! those of all together, the new fragment is dropped.

use super::headers::IPV6_HEADER;
use super::{Ecn, Headers};
use crate::drop::DropReason;
use crate::frame::checksum::checksum;
use crate::frame::{Frame, FramePool, LARGE, Offload};
use crate::plan::{PeerId, PortId, Vni};
use crate::time::Instant;
use blocks::{Blocks, Chain, Part, Place};
use foldhash::fast::FixedState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::num::NonZeroU8;
use std::time::Duration;

mod blocks;

/// How long parts wait for the rest: RFC 791 §3.2 begins with 15 s, Linux waits for 30.
const IPV4_TIME: Duration = Duration::from_secs(30);
/// RFC 8200 §4.5.
const IPV6_TIME: Duration = Duration::from_secs(60);
const LONGEST_IPV4: usize = 65_535;

/// Where fragments came in: those of one datagram come by one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// An instance of this host.
    Port(PortId),
    /// A tunnel.
    Peer(PeerId),
}

/// Which datagram a fragment is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramKey {
    /// Its network.
    pub vni: Vni,
    /// Where it arrived.
    pub origin: Origin,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol number. With IPv6 it names nothing: the first fragment's counts alone (RFC 8200 §4.5).
    pub protocol: u8,
    /// What its sender calls it.
    pub identification: u32,
}

impl DatagramKey {
    fn is_same(&self, other: &Self) -> bool {
        let by_protocol = Self {
            protocol: other.protocol,
            ..*self
        };
        by_protocol == *other && (self.protocol == other.protocol || self.source.is_ipv6())
    }
}

/// Fragments that were held, and never made a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Why.
    pub reason: DropReason,
    /// How many.
    pub fragments: u16,
    /// Of which datagram.
    pub datagram: DatagramKey,
}

/// How much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Datagrams.
    pub datagrams: u16,
    /// Datagrams of one source in one network.
    pub per_source: u16,
    /// Fragments. A fragment takes a block of [`Bounds::BLOCK`] bytes, or as many as it needs.
    pub fragments: u16,
}

impl Bounds {
    /// Bytes of a block: all of them together are the bound of bytes.
    pub const BLOCK: usize = 2_048;
    /// What a host may hold: 1,024 datagrams, 64 of a source, and 2,048 fragments in 4 MiB.
    pub const HOST: Self = Self {
        datagrams: 1_024,
        per_source: 64,
        fragments: 2_048,
    };

    /// The share of one of a host's shards.
    pub fn of_shard(shards: NonZeroU8) -> Self {
        let shards = u16::from(shards.get());
        Self {
            datagrams: Self::HOST.datagrams.div_ceil(shards),
            per_source: Self::HOST.per_source.div_ceil(shards),
            fragments: Self::HOST.fragments.div_ceil(shards),
        }
    }
}

/// Names no datagram.
const NONE: u16 = u16::MAX;

/// Datagrams of which a part is here.
pub struct Reassembly {
    bounds: Bounds,
    slots: Box<[Slot]>,
    free: Vec<u16>,
    /// First slots of lists, by the hash of network and source: the newest datagram first.
    lists: Box<[u16]>,
    hasher: FixedState,
    blocks: Blocks,
}

/// Room for a datagram.
struct Slot {
    /// `None`: the room is free.
    key: Option<DatagramKey>,
    /// The next older datagram of its list.
    next: u16,
    expires: Instant,
    /// A contradiction was seen: nothing is held, and nothing more is taken.
    refused: bool,
    parts: Chain,
    fragments: u16,
    /// Bytes of its data that are here.
    held: usize,
    /// Where its data ends, since the last fragment is here.
    end: Option<usize>,
    /// Length of the header that the first fragment brought.
    header: usize,
    /// A bit for each congestion field seen.
    ecn: u8,
}

impl Slot {
    const VACANT: Self = Self {
        key: None,
        next: NONE,
        expires: Instant::ZERO,
        refused: false,
        parts: Chain::EMPTY,
        fragments: 0,
        held: 0,
        end: None,
        header: 0,
        ecn: 0,
    };

    /// Whether a part says another thing than those that are here: where the datagram ends, or whether its transport
    /// takes part in congestion marking (RFC 3168 §5.3).
    fn contradicts(&self, part: &Part<'_>, ecn: Ecn) -> bool {
        let ends = match self.end {
            Some(end) => part.end() > end || (!part.more && part.end() != end),
            None => !part.more && part.end() < self.parts.end(),
        };
        let seen = self.ecn | 1 << ecn.bits();
        let not_capable = 1 << Ecn::NotCapable.bits();
        ends || (seen & not_capable != 0 && seen != not_capable)
    }
}

/// Why a part isn't taken.
enum Misfit {
    /// The very same one is here.
    SeenBefore,
    Contradiction,
    NoRoom,
}

impl Reassembly {
    /// Claims all memory. `seed` keeps senders from choosing their place in the lists.
    pub fn new(bounds: Bounds, seed: u64) -> Self {
        let lists = usize::from(bounds.datagrams).next_power_of_two();
        Self {
            bounds,
            slots: (0..bounds.datagrams).map(|_| Slot::VACANT).collect(),
            free: (0..bounds.datagrams).rev().collect(),
            lists: vec![NONE; lists].into_boxed_slice(),
            hasher: FixedState::with_seed(seed),
            blocks: Blocks::new(bounds.fragments),
        }
    }

    /// Datagrams that wait for the rest, or whose time isn't over since they were refused.
    pub fn datagrams(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Fragments that wait for the rest.
    pub fn fragments(&self) -> usize {
        self.slots.iter().map(|slot| usize::from(slot.fragments)).sum()
    }

    /// Bytes of memory in which fragments wait.
    pub fn bytes(&self) -> usize {
        self.blocks.in_use() * Bounds::BLOCK
    }

    /// Takes a fragment, which is exactly `packet`. The whole datagram comes back when nothing is missing any more, in a
    /// frame of `pool`; an error says why this fragment is dropped. `lost` is told of others that were held.
    pub fn push(
        &mut self,
        (vni, origin): (Vni, Origin),
        packet: &[u8],
        headers: &Headers,
        pool: &mut FramePool,
        now: Instant,
        mut lost: impl FnMut(Lost),
    ) -> Result<Option<Frame>, DropReason> {
        let part = Part::of(packet, headers).ok_or(DropReason::Malformed)?;
        let key = DatagramKey {
            vni,
            origin,
            source: headers.source,
            destination: headers.destination,
            protocol: headers.protocol,
            identification: headers.identification,
        };
        let index = self.find_or_begin(&key, now, &mut lost)?;
        if self.slots[index].refused {
            return Err(DropReason::FragmentOverlap);
        }
        match self.add(index, &part, headers.ecn()) {
            Ok(()) => {}
            Err(Misfit::SeenBefore) => return Err(DropReason::FragmentOverlap),
            Err(Misfit::Contradiction) => {
                self.refuse(index, &mut lost);
                return Err(DropReason::FragmentOverlap);
            }
            Err(Misfit::NoRoom) => {
                if self.slots[index].fragments == 0 {
                    self.release(index);
                }
                return Err(DropReason::FragmentLimit);
            }
        }
        if self.slots[index].end != Some(self.slots[index].held) {
            return Ok(None);
        }
        let whole = self.write(index, pool);
        if let Err(reason) = whole {
            // The fragment at hand is the caller's to count.
            self.slots[index].fragments -= 1;
            self.give_up(index, reason, &mut lost);
        }
        self.release(index);
        whole.map(Some)
    }

    /// Forgets datagrams whose time is over.
    pub fn expire(&mut self, now: Instant, mut lost: impl FnMut(Lost)) {
        if self.datagrams() == 0 {
            return;
        }
        for index in 0..self.slots.len() {
            if self.slots[index].key.is_some() && self.slots[index].expires <= now {
                self.give_up(index, DropReason::FragmentTimeout, &mut lost);
                self.release(index);
            }
        }
    }

    /// The slot of a datagram, whose clock starts with its first fragment to arrive.
    fn find_or_begin(
        &mut self,
        key: &DatagramKey,
        now: Instant,
        lost: &mut impl FnMut(Lost),
    ) -> Result<usize, DropReason> {
        let list = self.list_of(key);
        let mut of_source = 0;
        let mut oldest = None;
        let mut found = None;
        let mut next = self.lists[list];
        while let Some(slot) = self.slots.get(usize::from(next)) {
            if slot.key.is_some_and(|other| other.is_same(key)) {
                found = Some(usize::from(next));
                break;
            }
            if slot
                .key
                .is_some_and(|other| (other.vni, other.source) == (key.vni, key.source))
            {
                of_source += 1;
                oldest = Some(usize::from(next));
            }
            next = slot.next;
        }
        let out_of_the_way = match (found, oldest) {
            (Some(index), _) if self.slots[index].expires > now => return Ok(index),
            (Some(index), _) => Some((index, DropReason::FragmentTimeout)),
            (None, Some(index)) if of_source >= self.bounds.per_source => {
                Some((index, DropReason::FragmentLimit))
            }
            (None, _) => None,
        };
        if let Some((index, reason)) = out_of_the_way {
            self.give_up(index, reason, lost);
            self.release(index);
        }
        let index = self.free.pop().ok_or(DropReason::FragmentLimit)?;
        let time = if key.source.is_ipv6() {
            IPV6_TIME
        } else {
            IPV4_TIME
        };
        self.slots[usize::from(index)] = Slot {
            key: Some(*key),
            next: self.lists[list],
            expires: now + time,
            ..Slot::VACANT
        };
        self.lists[list] = index;
        Ok(usize::from(index))
    }

    fn add(&mut self, index: usize, part: &Part<'_>, ecn: Ecn) -> Result<(), Misfit> {
        let slot = &mut self.slots[index];
        let place = match self.blocks.place(&slot.parts, part) {
            Place::Behind(block) => block,
            Place::Taken => return Err(Misfit::Contradiction),
            Place::Same if slot.contradicts(part, ecn) || part.more == (slot.end == Some(part.end())) => {
                return Err(Misfit::Contradiction);
            }
            Place::Same => return Err(Misfit::SeenBefore),
        };
        if slot.contradicts(part, ecn) {
            return Err(Misfit::Contradiction);
        }
        if !self.blocks.insert(&mut slot.parts, place, part) {
            return Err(Misfit::NoRoom);
        }
        slot.fragments += 1;
        slot.held += part.data.len();
        slot.ecn |= 1 << ecn.bits();
        if !part.more {
            slot.end = Some(part.end());
        }
        if part.start == 0 {
            slot.header = part.header.len();
        }
        Ok(())
    }

    /// Writes a datagram of which nothing is missing.
    fn write(&mut self, index: usize, pool: &mut FramePool) -> Result<Frame, DropReason> {
        let slot = &self.slots[index];
        let is_ipv6 = slot.key.is_some_and(|key| key.source.is_ipv6());
        let length = slot.header + slot.held;
        // The first fragment's header may be longer than that of the last one, whose end was in bounds.
        if length > if is_ipv6 { LARGE } else { LONGEST_IPV4 } {
            return Err(DropReason::Malformed);
        }
        let mut frame = pool.take(length).ok_or(DropReason::NoBuffer)?;
        frame.fill(&[], Offload::NONE);
        self.blocks.write(&slot.parts, &mut frame);
        let packet = frame.packet_mut();
        let length = u16::try_from(length - if is_ipv6 { IPV6_HEADER } else { 0 }).unwrap_or(u16::MAX);
        let is_congested = slot.ecn & 1 << Ecn::Congested.bits() != 0;
        if is_ipv6 {
            packet[4..6].copy_from_slice(&length.to_be_bytes());
            packet[1] |= if is_congested {
                Ecn::Congested.bits() << 4
            } else {
                0
            };
            // Offset 0, and none to follow.
            packet[slot.header - 6..slot.header - 4].fill(0);
        } else {
            packet[2..4].copy_from_slice(&length.to_be_bytes());
            packet[1] |= if is_congested { Ecn::Congested.bits() } else { 0 };
            packet[6..8].fill(0);
            packet[10..12].fill(0);
            let sum = checksum(&packet[..slot.header]);
            packet[10..12].copy_from_slice(&sum);
        }
        Ok(frame)
    }

    /// Ends a datagram whose fragments contradict each other, and remembers it: what still comes of it is no beginning.
    fn refuse(&mut self, index: usize, lost: &mut impl FnMut(Lost)) {
        self.give_up(index, DropReason::FragmentOverlap, lost);
        self.slots[index].refused = true;
    }

    /// Lets go of what is held of a datagram.
    fn give_up(&mut self, index: usize, reason: DropReason, lost: &mut impl FnMut(Lost)) {
        let slot = &mut self.slots[index];
        self.blocks.free(&mut slot.parts);
        let fragments = std::mem::take(&mut slot.fragments);
        if let Some(datagram) = slot.key
            && fragments > 0
        {
            lost(Lost {
                reason,
                fragments,
                datagram,
            });
        }
    }

    /// Makes a datagram's room free.
    fn release(&mut self, index: usize) {
        let Some(key) = self.slots[index].key else { return };
        let list = self.list_of(&key);
        let mut slot = std::mem::replace(&mut self.slots[index], Slot::VACANT);
        self.blocks.free(&mut slot.parts);
        let mut at = self.lists[list];
        if usize::from(at) == index {
            self.lists[list] = slot.next;
        }
        while let Some(other) = self.slots.get_mut(usize::from(at)) {
            if usize::from(other.next) == index {
                other.next = slot.next;
                break;
            }
            at = other.next;
        }
        // Both fit: there are fewer slots than NONE.
        self.free.push(u16::try_from(index).unwrap_or(NONE));
    }

    fn list_of(&self, key: &DatagramKey) -> usize {
        let hash = self.hasher.hash_one((key.vni, key.source)) as usize;
        // Their number is a power of two.
        hash & (self.lists.len() - 1)
    }
}

#[cfg(test)]
mod tests;
