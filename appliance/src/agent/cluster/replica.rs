//! What this host knows of its site: every host's record, as far as it is alive.
//!
//! Pure: no socket, no clock, no random source. Time is given to every verb; wall clocks play no part, so a stepped
//! one can do no harm.
//!
//! ```text
//! publish ───────▶ own record ──Records──▶ all neighbours, at once
//! every 1 s ─────▶ own beat   ──Digest───▶ all neighbours     (a probe)
//! every 2 s ─────▶ everything ──Digest───▶ all neighbours
//! a beat or record of somebody else came: a Digest of it ▶ neighbours that didn't tell it, within 100 ms
//! a Digest has a newer record than ours: Want ▶ its sender, which answers with Records
//! ```
//!
//! **One writer.** A record is written by its owner alone, and its stamps only rise: the greater stamp wins everywhere,
//! whatever way and order records come in. An owner that lost its count hears of a greater stamp of its own from
//! anybody, and jumps above it.
//!
//! **Alive** is whose beat rose within the last 3 s. Only the owner raises its beat, so it may be told by anybody: hosts
//! that reach each other through a third one see each other. A host that fell silent is withdrawn, and its record is
//! remembered, so that an older one can't come in its place. Who was away itself (stopped, or its machine was) heard
//! nobody, which is no sign of anybody's silence: the 3 s begin anew.
//!
//! **Bounds.** [`MAX_HOSTS`] hosts: when they are all taken the one that is silent for longest is forgotten, and a new
//! one is refused while nobody is silent. [`MAX_RECORD`] bytes a record. What waits in the outbox is what one verb made:
//! the caller takes it all before the next.

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use super::message::{Entry, MAX_BATCH, Message};
use super::record::{HostRecord, MAX_BOOT, MAX_RECORD, RecordBody, Stamp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use tidegate_stack::plan::HostOrdinal;
use tidegate_stack::time::Instant;

/// Hosts of a site, this one among them: as many as there are ordinals.
pub(crate) const MAX_HOSTS: usize = 254;
/// How often a host says that it is alive.
pub(crate) const PROBE: Duration = Duration::from_secs(1);
/// After which silence a host is withdrawn: 3 missed probes.
pub(crate) const SILENCE: Duration = Duration::from_secs(3);
/// Whoever looks after its site later than this was away itself: it is due every [`PROBE`].
const AWAY: Duration = Duration::from_secs(2);
/// How often a host says all that it has.
const DIGEST: Duration = Duration::from_secs(2);
/// How long what was heard is gathered before it is told on. In this time a full mesh has told it to everybody.
const RELAY: Duration = Duration::from_millis(100);
/// A beat that is older than this is no sign of life to those who are told it now.
const FRESH: Duration = Duration::from_secs(2);
/// Bytes of a message around its records.
const ENVELOPE: usize = 16;
/// After which time a record that was asked for, and didn't come, is asked for again.
const PATIENCE: Duration = Duration::from_millis(500);
/// At most one jump in this time: two hosts of one name must not chase each other.
const JUMP: Duration = Duration::from_secs(1);

/// A link to a neighbour. Never used again for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LinkId(pub(crate) u64);

/// A message to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transmit {
    /// Over which links.
    pub(crate) links: Vec<LinkId>,
    /// What.
    pub(crate) message: Message,
}

/// Something that people may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReplicaEvent {
    /// A host is there.
    Appeared { host_id: String },
    /// A host fell silent.
    Withdrawn { host_id: String },
    /// A host's record is larger than [`MAX_RECORD`]; its former one stays.
    TooLarge { host_id: String, size: usize },
    /// There are [`MAX_HOSTS`] hosts already.
    SiteFull { host_id: String },
    /// Somebody has a later record of this host than itself: it lost its count, or has a double.
    Overtaken { boot: u64 },
    /// Something is wrong between hosts.
    Conflict { host_id: String, conflict: Conflict },
}

/// What is wrong with a host's record, seen from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Conflict {
    /// Another host has the same ordinal.
    SameOrdinal { ordinal: HostOrdinal, other: String },
    /// Its address plan isn't this host's.
    NetworkDiffers,
}

/// See the module.
pub(crate) struct Replica {
    host_id: String,
    /// This start of this host's agent: boot, life.
    start: (u64, u32),
    beat: u64,
    own: Option<HostRecord>,
    jumped: Option<Instant>,
    others: BTreeMap<String, Other>,
    conflicts: BTreeMap<String, Conflict>,
    links: BTreeSet<LinkId>,
    /// When it was last looked what is due.
    looked: Instant,
    /// Since when others can be heard without a break.
    listening: Instant,
    next_probe: Instant,
    next_digest: Instant,
    /// When what was heard is told on; `None`: nothing was.
    relay: Option<Instant>,
    outbox: VecDeque<Transmit>,
    events: VecDeque<ReplicaEvent>,
    changed: bool,
}

/// What is known of another host.
#[derive(Debug, Default)]
struct Other {
    record: Option<HostRecord>,
    beat: Option<Stamp>,
    /// When the beat last rose.
    heard: Option<Instant>,
    alive: bool,
    /// The links whose far ends told all that is known here.
    informed: BTreeSet<LinkId>,
    /// Whether the other links are still to be told.
    relay: bool,
    /// The record that was asked for, and when.
    asked: Option<(Stamp, Instant)>,
}

impl Replica {
    /// A replica that knows nothing. `boot` is greater than at any earlier start, unless the count was lost; `life`
    /// is drawn.
    pub(crate) fn new(host_id: &str, boot: u64, life: u32, now: Instant) -> Self {
        Self {
            host_id: host_id.to_owned(),
            start: (boot, life),
            beat: 1,
            own: None,
            jumped: None,
            others: BTreeMap::new(),
            conflicts: BTreeMap::new(),
            links: BTreeSet::new(),
            looked: now,
            listening: now,
            next_probe: now + PROBE,
            next_digest: now + DIGEST,
            relay: None,
            outbox: VecDeque::new(),
            events: VecDeque::new(),
            changed: true,
        }
    }

    /// This host's record from now on; the same one again is nothing new. One that is too large is refused with an
    /// event, and the former one stays.
    pub(crate) fn publish(&mut self, body: RecordBody) {
        if self.own.as_ref().is_some_and(|own| own.body == body) {
            return;
        }
        let record = HostRecord {
            host_id: self.host_id.clone(),
            boot: self.start.0,
            life: self.start.1,
            version: self.own.as_ref().map_or(0, |own| own.version) + 1,
            body,
        };
        if self.is_small_enough(&record) {
            self.own = Some(record);
            self.push_own();
            self.handle_change();
        }
    }

    /// A neighbour is there.
    pub(crate) fn handle_connected(&mut self, link: LinkId, now: Instant) {
        self.links.insert(link);
        self.send(vec![link], Message::Digest(self.everything(now)));
    }

    /// A neighbour is gone. It lives on for others, and for this host as long as its beat comes some other way.
    pub(crate) fn handle_disconnected(&mut self, link: LinkId) {
        self.links.remove(&link);
        for other in self.others.values_mut() {
            other.informed.remove(&link);
        }
    }

    /// A message came in.
    pub(crate) fn handle_message(&mut self, link: LinkId, message: Message, now: Instant) {
        match message {
            Message::Digest(entries) => self.handle_digest(link, entries, now),
            Message::Want(hosts) => self.handle_want(link, &hosts),
            Message::Records(records) => self.handle_records(link, records, now),
        }
        self.handle_change();
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if now.saturating_since(self.looked) > AWAY {
            self.listening = now;
        }
        self.looked = now;
        self.withdraw_silent(now);
        if now >= self.next_digest {
            self.next_digest = now + DIGEST;
            self.send(
                self.links.iter().copied().collect(),
                Message::Digest(self.everything(now)),
            );
        }
        if now >= self.next_probe {
            self.next_probe = now + PROBE;
            self.beat += 1;
            self.send(
                self.links.iter().copied().collect(),
                Message::Digest(vec![self.own_entry()]),
            );
        }
        if self.relay.is_some_and(|at| now >= at) {
            self.relay = None;
            self.tell_on(now);
        }
        self.handle_change();
    }

    /// When [`Self::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Instant {
        let silent = self
            .others
            .values()
            .filter(|other| other.alive)
            .filter_map(|other| Some(other.heard?.max(self.listening) + SILENCE));
        silent
            .chain(self.relay)
            .chain([self.next_digest])
            .fold(self.next_probe, Instant::min)
    }

    /// The next message to send.
    pub(crate) fn poll_transmit(&mut self) -> Option<Transmit> {
        self.outbox.pop_front()
    }

    /// The next event.
    pub(crate) fn poll_event(&mut self) -> Option<ReplicaEvent> {
        self.events.pop_front()
    }

    /// Whether anything that [`Self::records`], [`Self::conflicts`] or [`Self::boot`] says has changed since this was
    /// last asked.
    pub(crate) fn poll_change(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The records of the other hosts that are alive.
    pub(crate) fn records(&self) -> impl Iterator<Item = &HostRecord> {
        self.others
            .values()
            .filter(|other| other.alive)
            .filter_map(|other| other.record.as_ref())
    }

    /// When a host was last known to be alive; `None`: never.
    pub(crate) fn heard(&self, host_id: &str) -> Option<Instant> {
        self.others.get(host_id)?.heard
    }

    /// What is wrong with the hosts that are alive.
    pub(crate) fn conflicts(&self) -> &BTreeMap<String, Conflict> {
        &self.conflicts
    }

    /// This host's boot count, as raised above what others remembered.
    pub(crate) fn boot(&self) -> u64 {
        self.start.0
    }

    fn handle_digest(&mut self, link: LinkId, entries: Vec<Entry>, now: Instant) {
        let mut wanted = Vec::new();
        for entry in entries {
            if entry.host_id == self.host_id {
                let own = self.own_entry();
                let heard = [(entry.record, own.record), (entry.beat, own.beat)];
                let ahead = heard.into_iter().filter(|(heard, own)| heard > own);
                self.overtake(ahead.filter_map(|(heard, _)| heard).max(), now);
                continue;
            }
            if entry.record.is_none() && entry.beat.is_none() {
                continue;
            }
            let relay = &mut self.relay;
            let Some(other) = admit(&mut self.others, &mut self.events, &entry.host_id) else {
                continue;
            };
            if other.hear(entry.beat, entry.fresh, now) {
                relay.get_or_insert(now + RELAY);
                if !other.alive {
                    other.alive = true;
                    self.changed = true;
                    self.events.push_back(ReplicaEvent::Appeared {
                        host_id: entry.host_id.clone(),
                    });
                }
            }
            if entry.record > other.stamp() && other.may_ask(entry.record, now) {
                wanted.push(entry.host_id);
            } else if entry.record >= other.stamp() && entry.beat >= other.beat {
                other.informed.insert(link);
            }
        }
        if !wanted.is_empty() {
            self.send(vec![link], Message::Want(wanted));
        }
    }

    fn handle_want(&mut self, link: LinkId, hosts: &[String]) {
        let mut batch = Vec::new();
        let mut batched = ENVELOPE;
        for host in hosts.iter().take(MAX_HOSTS) {
            let Some(record) = self.record(host) else {
                continue;
            };
            let size = encoded_size(record) + 1;
            let record = record.clone();
            if !batch.is_empty() && batched + size > MAX_BATCH {
                self.send(vec![link], Message::Records(std::mem::take(&mut batch)));
                batched = ENVELOPE;
            }
            batch.push(record);
            batched += size;
        }
        if !batch.is_empty() {
            self.send(vec![link], Message::Records(batch));
        }
    }

    fn handle_records(&mut self, link: LinkId, records: Vec<HostRecord>, now: Instant) {
        for record in records {
            if record.host_id == self.host_id {
                let heard = Some(record.stamp());
                self.overtake(heard.filter(|_| heard > self.own_entry().record), now);
                continue;
            }
            if !self.is_small_enough(&record) {
                continue;
            }
            let Some(other) = admit(&mut self.others, &mut self.events, &record.host_id) else {
                continue;
            };
            if Some(record.stamp()) <= other.stamp() {
                continue;
            }
            self.changed |= other.alive;
            other.record = Some(record);
            other.asked = None;
            other.informed = BTreeSet::from([link]);
            other.relay = true;
            self.relay.get_or_insert(now + RELAY);
        }
    }

    /// Somebody heard of this host what it never said: it was before this start, and this host lost its count since;
    /// or somebody made it up. Its next start is above it. (What can't be counted further isn't followed: then nobody
    /// would take this host's word any more.)
    fn overtake(&mut self, heard: Option<Stamp>, now: Instant) {
        let possible = |heard: &Stamp| heard.start() >= self.start && heard.boot < MAX_BOOT;
        let Some(Stamp { boot, .. }) = heard.filter(possible) else {
            return;
        };
        if self
            .jumped
            .is_some_and(|jumped| now.saturating_since(jumped) < JUMP)
        {
            return;
        }
        self.jumped = Some(now);
        self.start.0 = boot + 1;
        self.changed = true;
        self.events.push_back(ReplicaEvent::Overtaken { boot });
        if let Some(own) = &mut self.own {
            own.boot = self.start.0;
        }
        self.push_own();
        self.send(
            self.links.iter().copied().collect(),
            Message::Digest(vec![self.own_entry()]),
        );
    }

    fn push_own(&mut self) {
        if let Some(own) = &self.own {
            let message = Message::Records(vec![own.clone()]);
            self.send(self.links.iter().copied().collect(), message);
        }
    }

    fn withdraw_silent(&mut self, now: Instant) {
        let listened = now.saturating_since(self.listening);
        for (host_id, other) in &mut self.others {
            let silence = other.silence(now).map(|silence| silence.min(listened));
            if other.alive && silence >= Some(SILENCE) {
                other.alive = false;
                self.changed = true;
                self.events.push_back(ReplicaEvent::Withdrawn {
                    host_id: host_id.clone(),
                });
            }
        }
    }

    /// Tells each neighbour what was heard and what it didn't tell itself.
    fn tell_on(&mut self, now: Instant) {
        let news: Vec<(Entry, &BTreeSet<LinkId>)> = self
            .others
            .iter()
            .filter(|(_, other)| other.relay)
            .map(|(host_id, other)| (other.entry(host_id, now), &other.informed))
            .collect();
        let mut messages = Vec::new();
        for link in &self.links {
            let entries: Vec<Entry> = news
                .iter()
                .filter(|(_, informed)| !informed.contains(link))
                .map(|(entry, _)| entry.clone())
                .collect();
            if !entries.is_empty() {
                messages.push((*link, entries));
            }
        }
        for other in self.others.values_mut() {
            other.relay = false;
        }
        for (link, entries) in messages {
            self.send(vec![link], Message::Digest(entries));
        }
    }

    fn everything(&self, now: Instant) -> Vec<Entry> {
        let others = self
            .others
            .iter()
            .map(|(host_id, other)| other.entry(host_id, now));
        std::iter::once(self.own_entry()).chain(others).collect()
    }

    fn own_entry(&self) -> Entry {
        let (boot, life) = self.start;
        Entry {
            host_id: self.host_id.clone(),
            record: self.own.as_ref().map(HostRecord::stamp),
            beat: Some(Stamp {
                boot,
                life,
                count: self.beat,
            }),
            fresh: true,
        }
    }

    fn record(&self, host_id: &str) -> Option<&HostRecord> {
        if host_id == self.host_id {
            self.own.as_ref()
        } else {
            self.others.get(host_id)?.record.as_ref()
        }
    }

    fn send(&mut self, links: Vec<LinkId>, message: Message) {
        if !links.is_empty() {
            self.outbox.push_back(Transmit { links, message });
        }
    }

    fn is_small_enough(&mut self, record: &HostRecord) -> bool {
        let size = encoded_size(record);
        if size > MAX_RECORD {
            self.events.push_back(ReplicaEvent::TooLarge {
                host_id: record.host_id.clone(),
                size,
            });
        }
        size <= MAX_RECORD
    }

    /// Looks for conflicts again after a change, and tells those that are new.
    fn handle_change(&mut self) {
        if !self.changed {
            return;
        }
        let mut ordinals: BTreeMap<HostOrdinal, &str> = BTreeMap::new();
        if let Some(own) = &self.own {
            ordinals.insert(own.body.ordinal, &self.host_id);
        }
        let mut conflicts = BTreeMap::new();
        for record in self.records() {
            let ordinal = record.body.ordinal;
            let differs = |own: &HostRecord| own.body.network != record.body.network;
            let first = *ordinals.entry(ordinal).or_insert(&record.host_id);
            let conflict = if first != record.host_id {
                Conflict::SameOrdinal {
                    ordinal,
                    other: first.to_owned(),
                }
            } else if self.own.as_ref().is_some_and(differs) {
                Conflict::NetworkDiffers
            } else {
                continue;
            };
            conflicts.insert(record.host_id.clone(), conflict);
        }
        for (host_id, conflict) in &conflicts {
            if self.conflicts.get(host_id) != Some(conflict) {
                self.events.push_back(ReplicaEvent::Conflict {
                    host_id: host_id.clone(),
                    conflict: conflict.clone(),
                });
            }
        }
        self.conflicts = conflicts;
    }
}

impl Other {
    fn stamp(&self) -> Option<Stamp> {
        self.record.as_ref().map(HostRecord::stamp)
    }

    /// Takes a beat; whether it is a sign of life. An old one isn't, and one of a start before that of the record.
    fn hear(&mut self, beat: Option<Stamp>, fresh: bool, now: Instant) -> bool {
        let outlived = beat.map(Stamp::start) < self.stamp().map(Stamp::start);
        if beat <= self.beat || outlived {
            return false;
        }
        self.beat = beat;
        self.relay |= fresh;
        self.informed.clear();
        if fresh {
            self.heard = Some(now);
        }
        fresh
    }

    fn silence(&self, now: Instant) -> Option<Duration> {
        self.heard.map(|heard| now.saturating_since(heard))
    }

    /// Whether a record may be asked for: once in a while.
    fn may_ask(&mut self, record: Option<Stamp>, now: Instant) -> bool {
        let waiting = self
            .asked
            .is_some_and(|(stamp, at)| Some(stamp) >= record && now.saturating_since(at) < PATIENCE);
        if !waiting {
            self.asked = record.map(|stamp| (stamp, now));
        }
        !waiting
    }

    fn entry(&self, host_id: &str, now: Instant) -> Entry {
        let fresh = self.alive && self.silence(now) <= Some(FRESH);
        Entry {
            host_id: host_id.to_owned(),
            record: self.stamp(),
            beat: self.beat,
            fresh,
        }
    }
}

/// The place of a host; when all are taken, that of the host which is silent for longest.
fn admit<'a>(
    others: &'a mut BTreeMap<String, Other>,
    events: &mut VecDeque<ReplicaEvent>,
    host_id: &str,
) -> Option<&'a mut Other> {
    if !others.contains_key(host_id) {
        if others.len() >= MAX_HOSTS - 1 {
            let silent = others.iter().filter(|(_, other)| !other.alive);
            let Some((silent, _)) = silent.min_by_key(|(_, other)| other.heard) else {
                events.push_back(ReplicaEvent::SiteFull {
                    host_id: host_id.to_owned(),
                });
                return None;
            };
            let silent = silent.clone();
            others.remove(&silent);
        }
        others.insert(host_id.to_owned(), Other::default());
    }
    others.get_mut(host_id)
}

fn encoded_size(record: &HostRecord) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    match serde_json::to_writer(&mut count, record) {
        Ok(()) => count.0,
        // What can't be encoded can't be sent.
        Err(_) => usize::MAX,
    }
}
