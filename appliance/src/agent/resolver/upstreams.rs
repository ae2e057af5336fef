//! The name servers that are asked: who they are, how they fare, and whom to ask first.
//!
//! Pure: times are given.
//!
//! ```text
//!            an answer         UNANSWERED times in a row
//! untried ──────────────▶ up ───────────────────────────▶ down
//!    │                    ▲                               │ ▲
//!    │                    └────────── an answer ──────────┘ │
//!    └──────────── UNANSWERED times in a row ───────────────┘
//! ```
//!
//! The first one asked is the quickest that isn't down; one that nobody knows yet counts as quick, so that it is known
//! soon. The others follow [`STAGGER`] apart, those that are down last. One that wasn't asked for a while is asked beside
//! the first one, so that it is noticed when it is back, or became the quicker one.

use crate::agent::api::{UpstreamSource, UpstreamState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// How long one is waited for before the next one is asked, too.
pub(super) const STAGGER: Duration = Duration::from_millis(200);
/// Questions in a row without an answer after which one is down.
const UNANSWERED: u32 = 3;
/// After which time one that left the last question unanswered is asked beside the first one.
const LOOK_FOR_LOST: Duration = Duration::from_secs(5);
/// After which time any other one is.
const LOOK_FOR_QUICKER: Duration = Duration::from_secs(60);

/// What one did about one question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conduct {
    /// It answered, after this time.
    Answered(Duration),
    /// It said that it couldn't tell, after this time: it may be the name's fault.
    Failed(Duration),
    /// It said that it doesn't answer us, and another one did.
    Refused,
    /// Nothing was heard in time, or that nobody is there.
    Unanswered,
    /// Another one answered first, this long after it was asked. More is told of it later.
    Late(Duration),
}

/// One that may be asked, and when.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    /// Where it listens.
    pub(super) address: SocketAddr,
    /// How long after the first one it is asked.
    pub(super) after: Duration,
    /// Counts what came from its address and wasn't its answer.
    pub(super) forged: Arc<AtomicU64>,
}

/// A name server.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) address: SocketAddr,
    pub(super) source: UpstreamSource,
    forged: Arc<AtomicU64>,
    /// Questions.
    pub(super) asked: u64,
    /// Those that it answered.
    pub(super) answered: u64,
    /// Those that it didn't, or couldn't.
    pub(super) failed: u64,
    /// Questions in a row without an answer.
    unanswered: u32,
    /// Whether it ever said anything.
    heard: bool,
    /// Smoothed time to an answer.
    pub(super) round_trip: Option<Duration>,
    asked_at: Option<Instant>,
}

impl Upstream {
    fn new(address: SocketAddr, source: UpstreamSource) -> Self {
        Self {
            address,
            source,
            forged: Arc::default(),
            asked: 0,
            answered: 0,
            failed: 0,
            unanswered: 0,
            heard: false,
            round_trip: None,
            asked_at: None,
        }
    }

    /// How it fares.
    pub(super) fn state(&self) -> UpstreamState {
        match (self.unanswered, self.heard) {
            (UNANSWERED.., _) => UpstreamState::Down,
            (_, false) => UpstreamState::Untried,
            (_, true) => UpstreamState::Up,
        }
    }

    /// What came from its address and wasn't its answer.
    pub(super) fn forged(&self) -> u64 {
        self.forged.load(Ordering::Relaxed)
    }

    fn is_down(&self) -> bool {
        self.state() == UpstreamState::Down
    }

    fn is_due(&self, now: Instant) -> bool {
        let pause = if self.unanswered > 0 {
            LOOK_FOR_LOST
        } else {
            LOOK_FOR_QUICKER
        };
        self.asked_at.is_none_or(|at| now >= at + pause)
    }

    fn note(&mut self, conduct: Conduct) {
        let was_down = self.is_down();
        self.heard |= matches!(
            conduct,
            Conduct::Answered(_) | Conduct::Failed(_) | Conduct::Refused
        );
        match conduct {
            Conduct::Answered(after) => {
                self.answered += 1;
                self.unanswered = 0;
                self.smooth(after);
            }
            Conduct::Failed(after) => {
                self.failed += 1;
                self.unanswered = 0;
                self.smooth(after);
            }
            Conduct::Refused | Conduct::Unanswered => {
                self.failed += 1;
                self.unanswered = self.unanswered.saturating_add(1);
            }
            Conduct::Late(after) => self.round_trip = self.round_trip.max(Some(after)),
        }
        match (was_down, self.is_down()) {
            (true, false) => tracing::info!(upstream = %self.address, "the name server answers again"),
            (false, true) => tracing::warn!(
                upstream = %self.address, in_a_row = self.unanswered,
                "the name server doesn't answer: it is asked last until it does"
            ),
            (true, true) | (false, false) => {}
        }
    }

    /// As RFC 6298 §2 does, with a quicker hand: what is remembered and what has to be looked for are far apart.
    fn smooth(&mut self, sample: Duration) {
        self.round_trip = Some(match self.round_trip {
            Some(former) => (former * 3 + sample) / 4,
            None => sample,
        });
    }
}

/// All that may be asked, in the order of their source.
#[derive(Debug, Default)]
pub(super) struct Upstreams(Vec<Upstream>);

impl Upstreams {
    /// Takes the place of the list before. Who is in both is remembered.
    pub(super) fn replace(&mut self, source: UpstreamSource, addresses: &[SocketAddr]) {
        let mut former = std::mem::take(&mut self.0);
        let known = |address: &SocketAddr| {
            let at = former.iter().position(|upstream| upstream.address == *address);
            at.map_or_else(|| Upstream::new(*address, source), |at| former.swap_remove(at))
        };
        self.0 = addresses.iter().map(known).collect();
    }

    /// Each of them.
    pub(super) fn iter(&self) -> std::slice::Iter<'_, Upstream> {
        self.0.iter()
    }

    /// Whom to ask a question, and when.
    pub(super) fn order(&mut self, now: Instant) -> Vec<Candidate> {
        let mut order: Vec<&mut Upstream> = self.0.iter_mut().collect();
        order.sort_by_key(|upstream| (upstream.is_down(), upstream.round_trip.unwrap_or_default()));
        let all_are_down = order.first().is_some_and(|first| first.is_down());
        let mut is_looked_for = false;
        let mut step = Duration::ZERO;
        let candidate = |(index, upstream): (usize, &mut Upstream)| {
            // One at a time: looking must not cost much.
            let beside = index > 0 && !is_looked_for && upstream.is_due(now);
            is_looked_for |= beside;
            let at_once = index == 0 || beside || all_are_down;
            if at_once {
                // Known before it is asked, so that the next question isn't put to it for the same reason.
                upstream.asked_at = Some(now);
            } else {
                step += STAGGER;
            }
            Candidate {
                address: upstream.address,
                after: if at_once { Duration::ZERO } else { step },
                forged: Arc::clone(&upstream.forged),
            }
        };
        let mut candidates: Vec<_> = order.into_iter().enumerate().map(candidate).collect();
        candidates.sort_by_key(|candidate| candidate.after);
        candidates
    }

    /// One is asked.
    pub(super) fn note_asked(&mut self, address: SocketAddr, now: Instant) {
        if let Some(upstream) = self.find(address) {
            upstream.asked += 1;
            upstream.asked_at = Some(now);
        }
    }

    /// What came of it.
    pub(super) fn note(&mut self, address: SocketAddr, conduct: Conduct) {
        if let Some(upstream) = self.find(address) {
            upstream.note(conduct);
        }
    }

    fn find(&mut self, address: SocketAddr) -> Option<&mut Upstream> {
        self.0.iter_mut().find(|upstream| upstream.address == address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 53))
    }

    fn upstreams(count: u8) -> Upstreams {
        let mut upstreams = Upstreams::default();
        let all: Vec<_> = (1..=count).map(address).collect();
        upstreams.replace(UpstreamSource::Document, &all);
        upstreams
    }

    /// Last octets and milliseconds.
    fn order(upstreams: &mut Upstreams, now: Instant) -> Vec<(u8, u128)> {
        let candidates = upstreams.order(now);
        let told = candidates.iter().map(|candidate| match candidate.address {
            SocketAddr::V4(address) => (address.ip().octets()[3], candidate.after.as_millis()),
            SocketAddr::V6(_) => panic!("IPv4 only"),
        });
        told.collect()
    }

    #[test]
    fn the_quickest_is_asked_first_and_the_others_after_it() {
        let now = Instant::now();
        let mut upstreams = upstreams(3);
        assert_eq!(
            order(&mut upstreams, now),
            [(1, 0), (2, 0), (3, 200)],
            "one is tried beside"
        );
        assert_eq!(order(&mut upstreams, now), [(1, 0), (3, 0), (2, 200)]);
        assert_eq!(order(&mut upstreams, now), [(1, 0), (2, 200), (3, 400)]);
        upstreams.note(address(1), Conduct::Answered(30 * MS));
        upstreams.note(address(2), Conduct::Answered(10 * MS));
        upstreams.note(address(3), Conduct::Answered(20 * MS));
        assert_eq!(order(&mut upstreams, now), [(2, 0), (3, 200), (1, 400)]);
        upstreams.note(address(2), Conduct::Late(210 * MS));
        assert_eq!(order(&mut upstreams, now), [(3, 0), (1, 200), (2, 400)]);
        let later = now + LOOK_FOR_QUICKER;
        assert_eq!(order(&mut upstreams, later), [(3, 0), (1, 0), (2, 200)]);
        assert_eq!(order(&mut upstreams, later), [(3, 0), (2, 0), (1, 200)]);
        assert_eq!(order(&mut upstreams, later), [(3, 0), (1, 200), (2, 400)]);
    }

    #[test]
    fn who_does_not_answer_three_times_is_down_and_looked_for_every_five_seconds() {
        let now = Instant::now();
        let mut upstreams = upstreams(2);
        order(&mut upstreams, now);
        assert_eq!(upstreams.0[0].state(), UpstreamState::Untried);
        for _ in 0..2 {
            upstreams.note(address(1), Conduct::Unanswered);
        }
        assert_eq!(
            upstreams.0[0].state(),
            UpstreamState::Untried,
            "nothing was heard of it"
        );
        upstreams.note(address(1), Conduct::Refused);
        assert_eq!(upstreams.0[0].state(), UpstreamState::Down);
        upstreams.note(address(2), Conduct::Answered(50 * MS));
        assert_eq!(order(&mut upstreams, now), [(2, 0), (1, 200)]);
        let later = now + LOOK_FOR_LOST;
        assert_eq!(order(&mut upstreams, later), [(2, 0), (1, 0)]);
        assert_eq!(order(&mut upstreams, later), [(2, 0), (1, 200)]);
        upstreams.note(address(1), Conduct::Failed(MS));
        assert_eq!(
            upstreams.0[0].state(),
            UpstreamState::Up,
            "a failure is a sign of life"
        );
    }

    #[test]
    fn when_all_are_down_all_are_asked_at_once() {
        let now = Instant::now();
        let mut upstreams = upstreams(3);
        for upstream in 1..=3 {
            (0..3).for_each(|_| upstreams.note(address(upstream), Conduct::Unanswered));
        }
        assert_eq!(order(&mut upstreams, now), [(1, 0), (2, 0), (3, 0)]);
    }

    #[test]
    fn a_new_list_remembers_who_was_in_the_old_one() {
        let mut upstreams = upstreams(2);
        upstreams.note_asked(address(2), Instant::now());
        upstreams.replace(UpstreamSource::ResolvConf, &[address(3), address(2)]);
        let asked: Vec<_> = upstreams
            .iter()
            .map(|upstream| (upstream.address, upstream.asked))
            .collect();
        assert_eq!(asked, [(address(3), 0), (address(2), 1)]);
        upstreams.note_asked(address(1), Instant::now());
        assert_eq!(upstreams.iter().count(), 2, "who is gone isn't counted");
    }
}
