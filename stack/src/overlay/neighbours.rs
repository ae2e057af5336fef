//! The MAC addresses of far ends: asked for over the tunnel (ARP, RFC 826; neighbour discovery, RFC 4861 §7), since a
//! VTEP that isn't ours has containers with addresses of their own.
//!
//! ```text
//!             first packet            answer
//!   (nothing) ────────────▶ Asking ───────────▶ Reachable ──┐ 60 s without confirmation,
//!                 ▲  3 × 1 s without answer         ▲       │ and in use
//!                 └───────── (nothing)              │       ▼
//!                                     answer        └── Probing ── 3 × 1 s without answer ──▶ (nothing)
//! ```
//! While probing, the known address goes on being used. Bounded: [`Neighbours::CAPACITY`] entries; at the bound the
//! one that was used longest ago leaves. A packet waits for an answer in its entry: [`WAITING_EACH`] at most, and
//! [`WAITING_ALL`] together.

use crate::frame::Frame;
use crate::plan::{PeerId, Vni};
use crate::time::Instant;
use crate::wire::MacAddr;
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

const CONFIRMED_FOR: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_secs(1);
const ATTEMPTS: u8 = 3;
/// An entry that nobody used for so long is forgotten.
const UNUSED_FOR: Duration = Duration::from_secs(600);
/// Packets that wait for one answer.
const WAITING_EACH: usize = 4;
/// Packets that wait for answers, all together.
const WAITING_ALL: usize = 64;

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NeighbourKey {
    /// The network.
    pub vni: Vni,
    /// The address whose owner is sought.
    pub address: IpAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Asking,
    Reachable,
    Probing,
}

struct Entry {
    key: NeighbourKey,
    peer: PeerId,
    /// Who asked: an address of ours, the source of the question.
    asker: IpAddr,
    state: State,
    mac: MacAddr,
    confirmed: Instant,
    used: Instant,
    asked: Instant,
    attempts: u8,
    waiting: VecDeque<Frame>,
}

/// A question to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What is asked.
    pub key: NeighbourKey,
    /// The address of ours that asks.
    pub asker: IpAddr,
    /// Through whose tunnel.
    pub peer: PeerId,
}

/// What is known about a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Its MAC address, and its place for the next look-up.
    Known(MacAddr, u32),
    /// Nothing yet: let the packet wait ([`Neighbours::wait`]), and send this question if there is one.
    Unknown(Option<Asked>),
}

/// The cache.
pub struct Neighbours {
    index: HashMap<NeighbourKey, u32, FixedState>,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    waiting: usize,
    /// Packets that waited in vain, for the shard to count and to recycle.
    given_up: Vec<Frame>,
}

impl Neighbours {
    /// Most entries.
    pub const CAPACITY: usize = 1024;
    /// A place that no entry has.
    pub const NOWHERE: u32 = u32::MAX;

    /// An empty cache, hashed with `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            index: HashMap::with_hasher(FixedState::with_seed(seed)),
            entries: Vec::new(),
            free: Vec::new(),
            waiting: 0,
            given_up: Vec::with_capacity(WAITING_ALL),
        }
    }

    /// Looks a neighbour up; `hint` is where it was last.
    pub fn look_up(
        &mut self,
        key: NeighbourKey,
        asker: IpAddr,
        peer: PeerId,
        hint: u32,
        now: Instant,
    ) -> Lookup {
        let at_hint = self
            .entries
            .get(hint as usize)
            .and_then(Option::as_ref)
            .is_some_and(|e| e.key == key);
        let place = if at_hint {
            Some(hint)
        } else {
            self.index.get(&key).copied()
        };
        if let Some(place) = place
            && let Some(Some(entry)) = self.entries.get_mut(place as usize)
        {
            if entry.peer != peer {
                // The block has another owner now: what the former one answered is void.
                self.remove(place);
            } else {
                entry.used = now;
                return match entry.state {
                    State::Asking => Lookup::Unknown(None),
                    State::Reachable | State::Probing => Lookup::Known(entry.mac, place),
                };
            }
        }
        let entry = Entry {
            key,
            peer,
            asker,
            state: State::Asking,
            mac: MacAddr::BROADCAST,
            confirmed: now,
            used: now,
            asked: now,
            attempts: 1,
            waiting: VecDeque::new(),
        };
        self.insert(entry);
        Lookup::Unknown(Some(Asked { key, asker, peer }))
    }

    fn insert(&mut self, entry: Entry) {
        if self.len() >= Self::CAPACITY {
            let oldest = (0..)
                .zip(&self.entries)
                .filter_map(|(place, entry)| Some((place, entry.as_ref()?.used)))
                .min_by_key(|(_, used)| *used);
            if let Some((place, _)) = oldest {
                self.remove(place);
            }
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            u32::try_from(self.entries.len() - 1).unwrap_or(Self::NOWHERE)
        });
        self.index.insert(entry.key, place);
        self.entries[place as usize] = Some(entry);
    }

    /// Forgets an entry; the packets that waited in it are given up.
    fn remove(&mut self, place: u32) {
        if let Some(entry) = self.entries.get_mut(place as usize).and_then(Option::take) {
            self.waiting -= entry.waiting.len();
            self.given_up.extend(entry.waiting);
            self.index.remove(&entry.key);
            self.free.push(place);
        }
    }

    /// The next packet that waited in vain.
    pub fn poll_given_up(&mut self) -> Option<Frame> {
        self.given_up.pop()
    }

    /// Whether one more packet may wait for this neighbour.
    pub fn has_room(&self, key: &NeighbourKey) -> bool {
        let entry = self
            .index
            .get(key)
            .and_then(|place| self.entries.get(*place as usize)?.as_ref());
        self.waiting < WAITING_ALL && entry.is_some_and(|entry| entry.waiting.len() < WAITING_EACH)
    }

    /// Lets a packet wait for the answer; gives it back when there is no room.
    pub fn wait(&mut self, key: &NeighbourKey, frame: Frame) -> Result<(), Frame> {
        if !self.has_room(key) {
            return Err(frame);
        }
        let place = self.index.get(key).copied().unwrap_or(Self::NOWHERE);
        match self.entries.get_mut(place as usize) {
            Some(Some(entry)) => {
                entry.waiting.push_back(frame);
                self.waiting += 1;
                Ok(())
            }
            _ => Err(frame),
        }
    }

    /// A neighbour has answered, or asked for something itself. Only entries that exist are changed, and only by the
    /// peer they belong to. Gives back the packets that waited.
    pub fn confirm(
        &mut self,
        key: &NeighbourKey,
        peer: PeerId,
        mac: MacAddr,
        now: Instant,
    ) -> VecDeque<Frame> {
        let place = self.index.get(key).copied().unwrap_or(Self::NOWHERE);
        let Some(Some(entry)) = self.entries.get_mut(place as usize) else {
            return VecDeque::new();
        };
        if entry.peer != peer || mac.is_multicast() {
            return VecDeque::new();
        }
        entry.mac = mac;
        entry.state = State::Reachable;
        entry.confirmed = now;
        entry.attempts = 0;
        let waiting = std::mem::take(&mut entry.waiting);
        self.waiting -= waiting.len();
        waiting
    }

    /// Does what is due: calls `ask` for every question to send. Then there may be packets that waited in vain
    /// ([`Neighbours::poll_given_up`]).
    pub fn tick(&mut self, now: Instant, mut ask: impl FnMut(Asked)) {
        for place in 0..u32::try_from(self.entries.len()).unwrap_or(0) {
            let Some(Some(entry)) = self.entries.get_mut(place as usize) else {
                continue;
            };
            let since_used = now.saturating_since(entry.used);
            let due = match entry.state {
                State::Reachable => {
                    now.saturating_since(entry.confirmed) >= CONFIRMED_FOR && since_used < CONFIRMED_FOR
                }
                State::Asking | State::Probing => now.saturating_since(entry.asked) >= ASK_AGAIN,
            };
            let lost = entry.state != State::Reachable && due && entry.attempts >= ATTEMPTS;
            if lost || since_used >= UNUSED_FOR {
                self.remove(place);
            } else if due {
                if entry.state == State::Reachable {
                    entry.state = State::Probing;
                }
                entry.attempts += 1;
                entry.asked = now;
                ask(Asked {
                    key: entry.key,
                    asker: entry.asker,
                    peer: entry.peer,
                });
            }
        }
    }

    /// Asks a peer's open questions again: its tunnel has just become able to carry them.
    pub fn ask_again(&mut self, peer: PeerId, now: Instant, mut ask: impl FnMut(Asked)) {
        for entry in self.entries.iter_mut().flatten() {
            if entry.peer == peer && entry.state == State::Asking {
                entry.asked = now;
                ask(Asked {
                    key: entry.key,
                    asker: entry.asker,
                    peer,
                });
            }
        }
    }

    /// Forgets the entries that `keep` doesn't want.
    pub fn retain(&mut self, keep: impl Fn(&NeighbourKey, PeerId) -> bool) {
        for place in 0..u32::try_from(self.entries.len()).unwrap_or(0) {
            if let Some(Some(entry)) = self.entries.get(place as usize)
                && !keep(&entry.key, entry.peer)
            {
                self.remove(place);
            }
        }
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Offload;

    const PEER: PeerId = PeerId(1);
    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn key(last: u8) -> NeighbourKey {
        NeighbourKey {
            vni: Vni::MIN,
            address: IpAddr::from([172, 19, 2, last]),
        }
    }

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    fn look_up(cache: &mut Neighbours, last: u8, now: Instant) -> Lookup {
        cache.look_up(
            key(last),
            IpAddr::from([172, 19, 1, 2]),
            PEER,
            Neighbours::NOWHERE,
            now,
        )
    }

    fn frame() -> Frame {
        Frame::from_packet(&[0; 20], Offload::NONE)
    }

    #[test]
    fn packets_wait_for_the_answer_and_come_back_in_order() {
        let mut cache = Neighbours::new(1);
        assert!(matches!(look_up(&mut cache, 2, at(0)), Lookup::Unknown(Some(_))));
        for _ in 0..WAITING_EACH {
            assert!(cache.wait(&key(2), frame()).is_ok());
        }
        assert!(cache.wait(&key(2), frame()).is_err(), "the queue is bounded");
        assert!(
            cache.confirm(&key(2), PeerId(9), MAC, at(0)).is_empty(),
            "only its own peer may answer"
        );
        assert_eq!(cache.confirm(&key(2), PEER, MAC, at(0)).len(), WAITING_EACH);
        assert!(matches!(look_up(&mut cache, 2, at(1)), Lookup::Known(MAC, _)));
        assert!(
            cache.confirm(&key(3), PEER, MAC, at(1)).is_empty(),
            "nobody asked for this one"
        );
    }

    #[test]
    fn silence_gives_up_after_three_questions() {
        let mut cache = Neighbours::new(1);
        look_up(&mut cache, 2, at(0));
        assert!(cache.wait(&key(2), frame()).is_ok());
        let mut asked = 0;
        for second in 1..10 {
            cache.tick(at(second), |_| asked += 1);
        }
        assert_eq!(asked, 2, "the first question was sent at the look-up");
        assert!(cache.poll_given_up().is_some());
        assert!(cache.poll_given_up().is_none());
        assert!(cache.is_empty());
    }

    #[test]
    fn a_neighbour_in_use_is_asked_again_and_stays_known_meanwhile() {
        let mut cache = Neighbours::new(1);
        look_up(&mut cache, 2, at(0));
        cache.confirm(&key(2), PEER, MAC, at(0));
        look_up(&mut cache, 2, at(59));
        let mut asked = 0;
        cache.tick(at(60), |_| asked += 1);
        assert_eq!(asked, 1);
        assert!(matches!(look_up(&mut cache, 2, at(60)), Lookup::Known(MAC, _)));
    }

    #[test]
    fn at_its_bound_the_one_used_longest_ago_leaves() {
        let mut cache = Neighbours::new(1);
        for number in 0..=u32::try_from(Neighbours::CAPACITY).unwrap() {
            let key = NeighbourKey {
                vni: Vni::MIN,
                address: IpAddr::V4((0x0a00_0000 + number).into()),
            };
            let now = at(u64::from(number));
            cache.look_up(key, IpAddr::from([172, 19, 1, 2]), PEER, Neighbours::NOWHERE, now);
        }
        assert_eq!(cache.len(), Neighbours::CAPACITY);
        let first = NeighbourKey {
            vni: Vni::MIN,
            address: IpAddr::V4(0x0a00_0000.into()),
        };
        assert!(!cache.index.contains_key(&first));
    }
}
