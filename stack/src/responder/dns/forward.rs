//! Questions about the world beyond: what was found out is remembered, who asked for what wasn't yet waits.
//!
//! The walk of a query: a fresh answer is told again, its times to live counted down → else the question goes out
//! ([`Forwarder::poll_question`]), and the query waits → what was found out comes ([`Forwarder::handle_told`]), and every
//! query that waits for it is answered ([`Forwarder::poll_due`]). Questions are asked by another process, which may be away:
//! each is repeated as long as somebody waits, and an answer whose time is over is better than none (RFC 8767).
//!
//! | bound | then |
//! |---|---|
//! | [`MOST_NAMES`] answers, [`MOST_BYTES`] of them | the oldest is forgotten |
//! | [`MOST_WAITING`] queries of a host, [`MOST_OF_PORT`] of a port on a shard | SERVFAIL |
//! | [`MOST_QUESTIONS`] questions that nobody took yet | it is asked with the next repetition |
//! | [`STALE_AFTER`] without an answer | one whose time is over, if there is one, also for the next [`RETRY_AFTER`] |
//! | [`PATIENCE`] without an answer | SERVFAIL |
//! | [`STALE_LIFETIME`] after its time | an answer is forgotten |
//!
//! Every shard is told the same answers, and they share them.

mod memory;

use super::query::{Edns, Query};
use super::question::Question;
use super::reply::Reply;
use super::{Answered, Outcome, Rcode, Transport, refuse};
use crate::plan::PortId;
use crate::time::Instant;
use crate::wire::Endpoints;
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use memory::{Finding, Known};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Answers that are remembered.
pub const MOST_NAMES: usize = 10_000;
/// Bytes that they have, with what each takes beside its message.
pub const MOST_BYTES: usize = 16 << 20;
/// Queries of all ports that wait, of all shards.
pub const MOST_WAITING: usize = 2048;
/// Queries of one port that wait on one shard.
pub const MOST_OF_PORT: usize = 256;
/// Questions to be taken by who asks them.
pub const MOST_QUESTIONS: usize = 256;
/// How long the answer to a query may take as long as there is none to fall back to.
pub const PATIENCE: Duration = Duration::from_millis(4500);
/// When an answer is told though its time is over (RFC 8767 §5, client response timer).
pub const STALE_AFTER: Duration = Duration::from_millis(1800);
/// For how long it is told without asking (RFC 8767 §5, failure recheck timer).
pub const RETRY_AFTER: Duration = Duration::from_secs(30);
/// For how long an answer whose time is over is kept (RFC 8767 §5: one to three days).
pub const STALE_LIFETIME: Duration = Duration::from_secs(86_400);
/// Seconds for which it may be remembered by who asked (RFC 8767 §5).
const STALE_TIME_TO_LIVE: u32 = 30;
/// When a question is asked again that nobody answered.
const REPEAT_AFTER: Duration = Duration::from_secs(1);
/// How exactly times are kept while somebody waits.
const TICK: Duration = Duration::from_millis(100);

/// What was found out about a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Told {
    /// The question.
    pub question: Question,
    /// What came of it.
    pub resolution: Resolution,
}

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resolution {
    /// This was answered.
    Reply(Reply),
    /// Nobody answered, or nobody could.
    Failed,
    /// It isn't asked, or what was answered isn't told.
    Refused,
}

/// Who asked, and waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A datagram's sender.
    Datagram {
        /// Its port.
        port: PortId,
        /// The addresses of the query.
        endpoints: Endpoints,
    },
    /// A connection.
    Stream {
        /// Its port.
        port: PortId,
        /// Which one ([`streams`](super::streams)).
        connection: u64,
    },
}

impl Asker {
    /// The port it asked from: what it sees depends on it.
    pub fn port(&self) -> PortId {
        match self {
            Self::Datagram { port, .. } | Self::Stream { port, .. } => *port,
        }
    }
}

/// What becomes of a query at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarded {
    /// The answer is written.
    Answered(Answered),
    /// It waits, and comes back by [`Forwarder::poll_due`].
    Waits,
    /// There is no room for the answer.
    Ignored,
}

/// A query that waited, and what is answered now.
#[derive(Debug)]
pub struct Due {
    /// Who asked.
    pub asker: Asker,
    query: OwnedQuery,
    answer: Answer,
}

#[derive(Clone, Debug)]
enum Answer {
    Fresh { told: Arc<Told>, age: u32, left: u32 },
    Stale(Arc<Told>),
    Failed,
    Refused,
}

/// Counters, and what there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Questions that were to be asked, repetitions left out.
    pub asked: u64,
    /// Queries answered by what is remembered.
    pub cached: u64,
    /// Queries answered by what was true before.
    pub stale: u64,
    /// Queries that found no room to wait.
    pub overflown: u64,
}

/// One shard's questions about the world beyond.
pub struct Forwarder {
    known: Known,
    waiting: HashMap<Question, Waiting, FixedState>,
    /// How many queries of each port wait.
    ports: HashMap<PortId, usize, FixedState>,
    waiters: usize,
    most_waiters: usize,
    questions: VecDeque<Question>,
    due: VecDeque<Due>,
    next_tick: Option<Instant>,
    counts: Counts,
}

struct Waiting {
    repeat: Instant,
    queries: Vec<Waiter>,
}

struct Waiter {
    since: Instant,
    asker: Asker,
    query: OwnedQuery,
}

/// What of a query is needed to answer it.
#[derive(Clone, Debug)]
struct OwnedQuery {
    id: u16,
    flags: u16,
    labels: u8,
    kind: u16,
    class: u16,
    edns: Option<Edns>,
    question: Box<[u8]>,
    transport: Transport,
}

impl OwnedQuery {
    fn new(query: &Query<'_>, transport: Transport) -> Self {
        Self {
            id: query.id,
            flags: query.flags,
            labels: query.labels,
            kind: query.kind,
            class: query.class,
            edns: query.edns,
            question: query.question.into(),
            transport,
        }
    }

    fn query(&self) -> Query<'_> {
        let tail = super::message::QUESTION_TAIL;
        let name = self.question.len().saturating_sub(tail);
        Query {
            id: self.id,
            name: self.question.get(..name).unwrap_or_default(),
            labels: self.labels,
            kind: self.kind,
            class: self.class,
            edns: self.edns,
            flags: self.flags,
            question: &self.question,
        }
    }
}

impl Due {
    /// What was asked.
    pub fn question(&self) -> Question {
        Question::of(&self.query.query())
    }

    /// Writes the answer; `None` when it has no room.
    pub fn write(&self, out: &mut [u8]) -> Option<Answered> {
        self.answer.write(&self.query.query(), self.query.transport, out)
    }
}

impl Answer {
    fn write(&self, query: &Query<'_>, transport: Transport, out: &mut [u8]) -> Option<Answered> {
        let rcode = match self {
            Self::Fresh { told, age, left } => {
                let time = |time: u32| time.saturating_sub(*age).min(*left);
                return told.reply()?.write(query, transport, time, out);
            }
            Self::Stale(told) => return told.reply()?.write(query, transport, |_| STALE_TIME_TO_LIVE, out),
            Self::Failed => Rcode::ServFail,
            Self::Refused => Rcode::Refused,
        };
        match refuse(query, rcode, transport, out) {
            Outcome::Answer(answered) => Some(answered),
            Outcome::Forward(_) | Outcome::Ignore => None,
        }
    }
}

impl Told {
    fn reply(&self) -> Option<&Reply> {
        match &self.resolution {
            Resolution::Reply(reply) => Some(reply),
            Resolution::Failed | Resolution::Refused => None,
        }
    }

    /// The same, when it can be answered as it stands; what isn't an answer to the question is a failure.
    fn sound(self: &Arc<Self>) -> Arc<Self> {
        let is_answer =
            |reply: &Reply| reply.is_answer() && reply.question().as_ref() == Some(&self.question);
        match &self.resolution {
            Resolution::Reply(reply) if !is_answer(reply) => Arc::new(Self {
                question: self.question.clone(),
                resolution: Resolution::Failed,
            }),
            Resolution::Reply(_) | Resolution::Failed | Resolution::Refused => Arc::clone(self),
        }
    }
}

impl Forwarder {
    /// Nothing is known yet; of `shards` shards each has its part of the queries that may wait. `seed` hides the places in
    /// the tables.
    pub fn new(shards: usize, seed: u64) -> Self {
        let state = FixedState::with_seed(seed);
        Self {
            known: Known::new(state.clone()),
            waiting: HashMap::with_hasher(state.clone()),
            ports: HashMap::with_hasher(state),
            waiters: 0,
            most_waiters: (MOST_WAITING / shards.max(1)).max(MOST_OF_PORT),
            questions: VecDeque::new(),
            due: VecDeque::new(),
            next_tick: None,
            counts: Counts::default(),
        }
    }

    /// Answers a query by what is known, or has it wait.
    pub fn ask(
        &mut self,
        query: &Query<'_>,
        asker: Asker,
        transport: Transport,
        now: Instant,
        out: &mut [u8],
    ) -> Forwarded {
        let mut buffer = [0; crate::snapshot::zone::LONGEST_NAME];
        let name = query.canonical(&mut buffer);
        let known = self.known.find(name, query.kind, now);
        let answer = match known {
            Some(Finding::Fresh(answer)) => {
                self.counts.cached += 1;
                Some(answer)
            }
            Some(Finding::Stale { told, settled: true }) => {
                self.counts.stale += 1;
                Some(Answer::Stale(told))
            }
            Some(Finding::Stale { settled: false, .. }) | None if self.has_room(asker.port()) => None,
            Some(Finding::Stale { told, .. }) => {
                self.counts.stale += 1;
                Some(Answer::Stale(told))
            }
            None => {
                self.counts.overflown += 1;
                Some(Answer::Failed)
            }
        };
        if let Some(answer) = answer {
            return match answer.write(query, transport, out) {
                Some(answered) => Forwarded::Answered(answered),
                None => Forwarded::Ignored,
            };
        }
        self.wait(
            Question::of(query),
            Waiter {
                since: now,
                asker,
                query: OwnedQuery::new(query, transport),
            },
        );
        Forwarded::Waits
    }

    fn has_room(&self, port: PortId) -> bool {
        let of_port = self.ports.get(&port).copied().unwrap_or(0);
        self.waiters < self.most_waiters && of_port < MOST_OF_PORT
    }

    fn wait(&mut self, question: Question, waiter: Waiter) {
        let now = waiter.since;
        self.waiters += 1;
        *self.ports.entry(waiter.asker.port()).or_default() += 1;
        self.next_tick.get_or_insert(now + TICK);
        if let Some(waiting) = self.waiting.get_mut(&question) {
            waiting.queries.push(waiter);
            return;
        }
        self.counts.asked += 1;
        put(&mut self.questions, &question);
        let waiting = Waiting {
            repeat: now + REPEAT_AFTER,
            queries: vec![waiter],
        };
        self.waiting.insert(question, waiting);
    }

    /// The next question that is to be asked. One that got lost is repeated.
    pub fn poll_question(&mut self) -> Option<Question> {
        self.questions.pop_front()
    }

    /// What was found out: it is remembered, and who waits for it is answered.
    pub fn handle_told(&mut self, told: &Arc<Told>, now: Instant) {
        let told = told.sound();
        self.known.insert(&told, now);
        let Some(waiting) = self.waiting.remove(&told.question) else {
            return;
        };
        let answer = match &told.resolution {
            Resolution::Reply(reply) => Answer::Fresh {
                age: 0,
                left: u32::try_from(reply.lifetime().as_secs()).unwrap_or(u32::MAX),
                told,
            },
            Resolution::Failed => match self.known.stale(&told.question, now) {
                Some(told) => Answer::Stale(told),
                None => Answer::Failed,
            },
            Resolution::Refused => Answer::Refused,
        };
        for waiter in waiting.queries {
            self.end(waiter, answer.clone());
        }
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.next_tick.is_none_or(|due| now < due) {
            return;
        }
        let mut ended = Vec::new();
        for (question, waiting) in &mut self.waiting {
            let waits = |waiter: &Waiter, limit| now < waiter.since + limit;
            let (known, questions) = (&mut self.known, &mut self.questions);
            if waiting.queries.iter().any(|waiter| !waits(waiter, STALE_AFTER))
                && let Some(told) = known.settle(question, now)
            {
                ended.extend(
                    waiting
                        .queries
                        .drain(..)
                        .map(|waiter| (waiter, Answer::Stale(Arc::clone(&told)))),
                );
            }
            let late = waiting.queries.extract_if(.., |waiter| !waits(waiter, PATIENCE));
            ended.extend(late.map(|waiter| (waiter, Answer::Failed)));
            if !waiting.queries.is_empty() && now >= waiting.repeat {
                waiting.repeat = now + REPEAT_AFTER;
                put(questions, question);
            }
        }
        self.waiting.retain(|_, waiting| !waiting.queries.is_empty());
        for (waiter, answer) in ended {
            self.end(waiter, answer);
        }
        self.next_tick = (!self.waiting.is_empty()).then(|| now + TICK);
    }

    /// When [`Forwarder::handle_timeout`] wants to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next_tick
    }

    /// The next query that is answered now.
    pub fn poll_due(&mut self) -> Option<Due> {
        self.due.pop_front()
    }

    /// Forgets the queries of ports that are gone.
    pub fn retain(&mut self, is_there: impl Fn(PortId) -> bool) {
        let (ports, waiters) = (&mut self.ports, &mut self.waiters);
        for waiting in self.waiting.values_mut() {
            waiting.queries.retain(|waiter| is_there(waiter.asker.port()));
        }
        self.waiting.retain(|_, waiting| !waiting.queries.is_empty());
        ports.retain(|port, count| {
            let stays = is_there(*port);
            if !stays {
                *waiters -= *count;
            }
            stays
        });
    }

    /// Counters.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Queries that wait.
    pub fn waiting(&self) -> usize {
        self.waiters
    }

    /// Answers that are remembered, and their bytes.
    pub fn remembered(&self) -> (usize, usize) {
        self.known.size()
    }

    fn end(&mut self, waiter: Waiter, answer: Answer) {
        self.waiters -= 1;
        let port = waiter.asker.port();
        if let Some(count) = self.ports.get_mut(&port) {
            *count -= 1;
            if *count == 0 {
                self.ports.remove(&port);
            }
        }
        self.counts.stale += u64::from(matches!(answer, Answer::Stale(_)));
        self.due.push_back(Due {
            asker: waiter.asker,
            query: waiter.query,
            answer,
        });
    }
}

fn put(questions: &mut VecDeque<Question>, question: &Question) {
    if questions.len() < MOST_QUESTIONS {
        questions.push_back(question.clone());
    }
}
