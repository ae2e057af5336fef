//! Readiness: instances are asked, from the service address through their ports, whether they take requests.
//!
//! ```text
//!            first success                     failures in a row
//!  unknown ────────────────▶ ready ──────────────────────────────▶ not ready
//!     │                        ▲            one success                │
//!     │                        └───────────────────────────────────────┘
//!     └──── failures in a row ────────────────────────────────────▶ not ready
//! ```
//!
//! The walk of a question: it is due → a port that nobody can guess → SYN, by smoltcp → what the port's instance answers to
//! exactly that connection is heard, from nowhere else → a verdict, and a polite end. The ports of a shard are asked at
//! times of their own, drawn from its seed, so that not all are asked at once.
//!
//! | bound | then |
//! |---|---|
//! | one question of a port at a time; a question may take as long as its [`Readiness`](crate::plan::Readiness) has patience | it failed, and its connection is reset |
//! | [`MOST`] questions of a host at a time | who is due waits, is counted, and is asked in its turn |
//! | [`LONGEST_HEAD`] bytes without a final status | it isn't HTTP: a failure |
//! | [`MOST_DISCARDED`] bytes after the status | the connection is reset; the verdict stands |

mod question;
mod status;

pub use question::{LONGEST_HEAD, MOST_DISCARDED};
pub use status::ProbeError;

use crate::event::Event;
use crate::plan::PortId;
use crate::responder::endpoint::{LARGEST_PACKET, Secret};
use crate::snapshot::{Check, Checks};
use crate::stats::ReadinessReport;
use crate::time::Instant;
use crate::wire::{Endpoints, protocol};
use question::Question;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Questions of all shards of a host that are open at a time.
pub const MOST: usize = 256;
/// The first questions of ports are asked within this time, or within their interval if that is shorter.
pub const SPREAD: Duration = Duration::from_secs(1);

/// Where questions come from: the dynamic ports (RFC 6335 §6).
const FIRST_PORT: u16 = 0xc000;
/// Half of the bits of their numbers.
const HALF: u16 = 7;
/// Rounds of the permutation that draws them.
const ROUNDS: u64 = 4;

/// What one shard asks.
pub struct Prober {
    /// By port.
    probes: Vec<Probe>,
    /// Which shard this is, of how many.
    place: (u32, u32),
    most: usize,
    /// Whether it asks at all.
    asks: bool,
    secret: Secret,
    room: Box<[u8]>,
    due: Option<Instant>,
    /// Probes whose state wasn't told yet.
    untold: usize,
}

/// What one instance is asked, and what is known of it.
struct Probe {
    check: Arc<Check>,
    next: Instant,
    question: Option<Question>,
    asked: u64,
    postponed: u64,
    /// It is due, and waits for room.
    waits: bool,
    ready: Option<bool>,
    told: Option<bool>,
    failures: u32,
    error: Option<ProbeError>,
}

/// Whether a packet may be a port's answer to a question: whatever else a port sends to the service address needn't go to
/// the shard that asks.
pub fn may_answer(check: &Check, packet: &Endpoints) -> bool {
    packet.protocol == protocol::TCP
        && packet.source == IpAddr::V4(check.instance)
        && packet.source_port == check.readiness.question.port().get()
        && packet.destination == IpAddr::V4(check.service)
        && packet.destination_port >= FIRST_PORT
}

impl Prober {
    /// Asks nobody yet. It is the shard with number `shard` of `count`, and asks the ports whose home that is. `seed` hides
    /// from where and when is asked.
    pub fn new(shard: u8, count: u8, seed: u64) -> Self {
        let count = count.max(1);
        Self {
            probes: Vec::new(),
            place: (u32::from(shard), u32::from(count)),
            most: (MOST / usize::from(count)).max(1),
            asks: true,
            secret: Secret(seed),
            room: vec![0; usize::from(LARGEST_PACKET)].into_boxed_slice(),
            due: None,
            untold: 0,
        }
    }

    /// Asks this from now on. What is asked as before goes on; who is asked otherwise keeps the state, and who isn't asked
    /// any more is forgotten.
    pub fn install(&mut self, checks: &Checks, now: Instant, send: &mut dyn FnMut(PortId, &[u8])) {
        let (shard, count) = self.place;
        let mut former = std::mem::take(&mut self.probes).into_iter().peekable();
        let own = |check: &&Arc<Check>| check.port.0 % count == shard;
        for check in checks.iter().filter(own) {
            while let Some(mut gone) = former.next_if(|probe| probe.check.port < check.port) {
                gone.hang_up(now, &mut self.room, send);
            }
            let known = former.next_if(|probe| probe.check.port == check.port);
            let probe = match known {
                Some(probe) if probe.check == *check => probe,
                Some(mut probe) => {
                    probe.hang_up(now, &mut self.room, send);
                    Probe {
                        ready: probe.ready,
                        told: probe.told,
                        asked: probe.asked,
                        postponed: probe.postponed,
                        ..self.begin(check, now)
                    }
                }
                None => self.begin(check, now),
            };
            self.probes.push(probe);
        }
        for mut gone in former {
            gone.hang_up(now, &mut self.room, send);
        }
        self.untold = self.probes.iter().filter(|probe| probe.is_untold()).count();
        self.reckon();
    }

    /// Begins to ask, or leaves off: what is being asked has no verdict then.
    pub fn set_asks(&mut self, asks: bool, now: Instant, send: &mut dyn FnMut(PortId, &[u8])) {
        if asks == self.asks {
            return;
        }
        self.asks = asks;
        for probe in &mut self.probes {
            probe.hang_up(now, &mut self.room, send);
            probe.next = first_question(self.secret, &probe.check, now);
        }
        self.reckon();
    }

    fn begin(&self, check: &Arc<Check>, now: Instant) -> Probe {
        Probe {
            check: Arc::clone(check),
            next: first_question(self.secret, check, now),
            question: None,
            asked: 0,
            postponed: 0,
            waits: false,
            ready: None,
            told: None,
            failures: 0,
            error: None,
        }
    }

    /// A TCP segment of a port. False: it belongs to no question that is open.
    pub fn handle_segment(
        &mut self,
        port: PortId,
        endpoints: &Endpoints,
        packet: &[u8],
        now: Instant,
        send: &mut dyn FnMut(PortId, &[u8]),
    ) -> bool {
        let place = self.probes.binary_search_by_key(&port, |probe| probe.check.port);
        let Some(probe) = place.ok().and_then(|place| self.probes.get_mut(place)) else {
            return false;
        };
        let Some(question) = probe.question.as_mut().filter(|question| {
            may_answer(&probe.check, endpoints) && question.local_port() == endpoints.destination_port
        }) else {
            return false;
        };
        let verdict = question.advance(Some(packet), now, &mut self.room, |packet| send(port, packet));
        self.untold += usize::from(probe.note(verdict));
        self.reckon();
        true
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant, send: &mut dyn FnMut(PortId, &[u8])) {
        if self.due.is_none_or(|due| now < due) {
            return;
        }
        for probe in &mut self.probes {
            let port = probe.check.port;
            let mut send = |packet: &[u8]| send(port, packet);
            let is_due = now >= probe.next;
            let Some(question) = &mut probe.question else {
                continue;
            };
            let verdict = if is_due || now >= question.deadline() {
                question.give_up(now, &mut self.room, &mut send)
            } else if now >= question.due() {
                question.advance(None, now, &mut self.room, &mut send)
            } else {
                None
            };
            self.untold += usize::from(probe.note(verdict));
        }
        self.ask(now, send);
        self.reckon();
    }

    /// Asks those that are due, who have waited for the longest first.
    fn ask(&mut self, now: Instant, send: &mut dyn FnMut(PortId, &[u8])) {
        let mut open = self.open();
        let due = self.probes.iter().enumerate();
        let due = due.filter(|(_, probe)| probe.question.is_none() && now >= probe.next);
        let mut due: Vec<_> = due.map(|(place, probe)| (probe.next, place)).collect();
        due.sort_unstable();
        for (_, place) in due {
            let Some(probe) = self.probes.get_mut(place) else {
                continue;
            };
            if open >= self.most {
                probe.postponed += u64::from(!probe.waits);
                probe.waits = true;
                continue;
            }
            let port = probe.check.port;
            probe.ask(self.secret, now);
            let verdict = match &mut probe.question {
                Some(question) => question.advance(None, now, &mut self.room, |packet| send(port, packet)),
                None => Some(Err(ProbeError::Silent)),
            };
            self.untold += usize::from(probe.note(verdict));
            open += usize::from(probe.question.is_some());
        }
    }

    fn open(&self) -> usize {
        let open = self.probes.iter().filter(|probe| probe.question.is_some());
        open.count()
    }

    /// When [`Prober::handle_timeout`] wants to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// The next change.
    pub fn poll_event(&mut self) -> Option<Event> {
        if self.untold == 0 {
            return None;
        }
        self.untold -= 1;
        let probe = self.probes.iter_mut().find(|probe| probe.is_untold())?;
        probe.told = probe.ready;
        Some(Event::Readiness {
            port: probe.check.port,
            ready: probe.ready?,
        })
    }

    /// What is known, by port.
    pub fn reports(&self) -> impl Iterator<Item = ReadinessReport> + '_ {
        self.probes.iter().map(|probe| ReadinessReport {
            port: probe.check.port,
            ready: probe.ready,
            failures: probe.failures,
            error: probe.error,
            asked: probe.asked,
            postponed: probe.postponed,
        })
    }

    fn reckon(&mut self) {
        if !self.asks {
            self.due = None;
            return;
        }
        // Who waits for room is asked when a question ends.
        let full = self.open() >= self.most;
        let due = self.probes.iter().filter_map(|probe| match &probe.question {
            Some(question) => Some(question.due().min(question.deadline()).min(probe.next)),
            None if full && probe.waits => None,
            None => Some(probe.next),
        });
        self.due = due.min();
    }
}

impl Probe {
    /// Ends what is being asked, without a verdict.
    fn hang_up(&mut self, now: Instant, room: &mut [u8], send: &mut dyn FnMut(PortId, &[u8])) {
        if let Some(mut question) = self.question.take() {
            let port = self.check.port;
            question.give_up(now, room, |packet| send(port, packet));
        }
    }

    fn is_untold(&self) -> bool {
        self.ready.is_some() && self.told != self.ready
    }

    /// Begins the next question.
    fn ask(&mut self, secret: Secret, now: Instant) {
        let interval = self.check.readiness.interval();
        self.next = self.next + interval;
        if self.next <= now {
            // It slept through some: they aren't made up for.
            self.next = now + interval;
        }
        let port = u64::from(self.check.port.0);
        let seed = secret.draw(&[port, self.asked, now.as_nanos(), 1]);
        let local = local_port(secret, self.check.port, self.asked);
        self.asked += 1;
        self.waits = false;
        self.question = Question::begin(&self.check, local, seed, now);
    }

    /// Takes a verdict in, and lets go of a question that is over. Whether the state is to be told for that, and wasn't
    /// before.
    fn note(&mut self, verdict: Option<Result<(), ProbeError>>) -> bool {
        if self.question.as_ref().is_some_and(Question::is_over) {
            self.question = None;
        }
        let was_untold = self.is_untold();
        let ready = match verdict {
            None => return false,
            Some(Ok(())) => {
                self.failures = 0;
                self.error = None;
                true
            }
            Some(Err(error)) => {
                self.failures = self.failures.saturating_add(1);
                self.error = Some(error);
                if self.failures < u32::from(self.check.readiness.failures.get()) {
                    return false;
                }
                false
            }
        };
        self.ready = Some(ready);
        // What changed back before it was told is told all the same: one event more does no harm.
        let is_untold = self.is_untold();
        if was_untold && !is_untold {
            self.told = None;
        }
        !was_untold && is_untold
    }
}

/// When a port is asked first: at a time of its own.
fn first_question(secret: Secret, check: &Check, now: Instant) -> Instant {
    let within = SPREAD.min(check.readiness.interval());
    let within = u64::try_from(within.as_nanos()).unwrap_or(u64::MAX).max(1);
    let drawn = secret.draw(&[u64::from(check.port.0), now.as_nanos(), 0]);
    now + Duration::from_nanos(drawn % within)
}

/// The port of a question: as good as random, and none comes back before all the others were (a permutation by Feistel):
/// the instance's kernel may still remember the last connection from it.
fn local_port(secret: Secret, port: PortId, number: u64) -> u16 {
    let mask = (1 << HALF) - 1;
    let number = u16::try_from(number % (1 << (2 * HALF))).unwrap_or_default();
    let (mut left, mut right) = (number >> HALF, number & mask);
    for round in 0..ROUNDS {
        let drawn = secret.draw(&[u64::from(port.0), round, u64::from(right), 2, 0]);
        (left, right) = (right, left ^ (drawn as u16 & mask));
    }
    FIRST_PORT | left << HALF | right
}

#[cfg(test)]
mod tests;
