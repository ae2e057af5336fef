//! What was found out about the world beyond, for as long as it is true, and a while longer.

use super::super::question::Question;
use super::{Answer, MOST_BYTES, MOST_NAMES, RETRY_AFTER, Resolution, STALE_LIFETIME, Told};
use crate::time::Instant;
use foldhash::fast::FixedState;
use hashbrown::HashTable;
use std::collections::BTreeMap;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::time::Duration;

/// For how long a failure is remembered (RFC 9520 §3.2: 1 s to 5 min).
const FAILURE_LIFETIME: Duration = Duration::from_secs(1);
/// What an answer takes beside its message: its places in tables.
const OVERHEAD: usize = 256;

/// What was found out, in the order in which it was told.
pub(super) struct Known {
    entries: HashTable<Entry>,
    order: BTreeMap<u64, Arc<Told>>,
    stamp: u64,
    bytes: usize,
    state: FixedState,
}

struct Entry {
    told: Arc<Told>,
    stamp: u64,
    since: Instant,
    /// When its time is over.
    until: Instant,
    /// Until when it is told all the same, without asking.
    settled: Instant,
}

/// What is known of a question.
pub(super) enum Finding {
    Fresh(Answer),
    Stale { told: Arc<Told>, settled: bool },
}

impl Known {
    pub(super) fn new(state: FixedState) -> Self {
        Self {
            entries: HashTable::new(),
            order: BTreeMap::new(),
            stamp: 0,
            bytes: 0,
            state,
        }
    }

    fn hash(state: &FixedState, name: &[u8], kind: u16) -> u64 {
        state.hash_one((name, kind))
    }

    fn entry(&mut self, name: &[u8], kind: u16) -> Option<&mut Entry> {
        let hash = Self::hash(&self.state, name, kind);
        self.entries.find_mut(hash, |entry| {
            let question = &entry.told.question;
            question.kind() == kind && question.name() == name
        })
    }

    pub(super) fn find(&mut self, name: &[u8], kind: u16, now: Instant) -> Option<Finding> {
        let entry = self.entry(name, kind)?;
        if now < entry.until {
            return Some(Finding::Fresh(match &entry.told.resolution {
                Resolution::Reply(_) => Answer::Fresh {
                    told: Arc::clone(&entry.told),
                    age: seconds(now.saturating_since(entry.since)),
                    left: seconds(entry.until.saturating_since(now)).max(1),
                },
                Resolution::Failed => Answer::Failed,
                Resolution::Refused => Answer::Refused,
            }));
        }
        entry.is_stale(now).then(|| Finding::Stale {
            told: Arc::clone(&entry.told),
            settled: now < entry.settled,
        })
    }

    /// What there is to fall back to, once its time is over.
    pub(super) fn stale(&mut self, question: &Question, now: Instant) -> Option<Arc<Told>> {
        let entry = self.entry(question.name(), question.kind())?;
        entry.is_stale(now).then(|| Arc::clone(&entry.told))
    }

    /// The same; from now on it is told for a while without asking.
    pub(super) fn settle(&mut self, question: &Question, now: Instant) -> Option<Arc<Told>> {
        let told = self.stale(question, now)?;
        if let Some(entry) = self.entry(question.name(), question.kind()) {
            entry.settled = now + RETRY_AFTER;
        }
        Some(told)
    }

    pub(super) fn insert(&mut self, told: &Arc<Told>, now: Instant) {
        let question = &told.question;
        if told.resolution == Resolution::Failed
            && let Some(entry) = self.entry(question.name(), question.kind())
            && entry.told.reply().is_some()
            && now < entry.until + STALE_LIFETIME
        {
            // What was answered before is better.
            entry.settled = now + RETRY_AFTER;
            return;
        }
        let lifetime = match &told.resolution {
            Resolution::Reply(reply) => reply.lifetime(),
            Resolution::Failed | Resolution::Refused => FAILURE_LIFETIME,
        };
        self.stamp += 1;
        let entry = Entry {
            told: Arc::clone(told),
            stamp: self.stamp,
            since: now,
            until: now + lifetime,
            settled: now,
        };
        self.bytes += cost(told);
        self.order.insert(self.stamp, Arc::clone(told));
        match self.entry(question.name(), question.kind()) {
            Some(former) => {
                let former = std::mem::replace(former, entry);
                self.order.remove(&former.stamp);
                self.bytes -= cost(&former.told);
            }
            None => {
                let hash = Self::hash(&self.state, question.name(), question.kind());
                let state = &self.state;
                self.entries.insert_unique(hash, entry, |entry| {
                    Self::hash(state, entry.told.question.name(), entry.told.question.kind())
                });
            }
        }
        while self.order.len() > MOST_NAMES || self.bytes > MOST_BYTES {
            self.forget_oldest();
        }
    }

    /// Answers, and their bytes.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.order.len(), self.bytes)
    }

    fn forget_oldest(&mut self) {
        let Some((stamp, told)) = self.order.pop_first() else {
            return;
        };
        self.bytes -= cost(&told);
        let hash = Self::hash(&self.state, told.question.name(), told.question.kind());
        if let Ok(entry) = self.entries.find_entry(hash, |entry| entry.stamp == stamp) {
            entry.remove();
        }
    }
}

impl Entry {
    fn is_stale(&self, now: Instant) -> bool {
        self.told.reply().is_some() && now >= self.until && now < self.until + STALE_LIFETIME
    }
}

fn cost(told: &Told) -> usize {
    let message = told.reply().map_or(0, |reply| reply.message().len());
    OVERHEAD + told.question.name().len() + message
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}
