//! When a handshake, a retry or a keepalive is due (§6 of the paper). It is told what happened, and asked at every
//! tick.

use super::session::{REJECT_AFTER_TIME, Session};
use crate::time::Instant;
use std::time::Duration;

/// Rekey-Timeout (§6.1): the least time between two initiations, but for a jitter.
pub(super) const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// The most that a retry is put off, so that two ends that began at once don't do so again (§6.4).
const JITTER: Duration = Duration::from_millis(333);
/// Rekey-After-Time.
const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// Rekey-Attempt-Time.
const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// Keepalive-Timeout.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// A first initiation, or the next one.
    Initiation,
    /// Nobody answered for Rekey-Attempt-Time: the handshake ends until somebody wants to send.
    GiveUp,
    /// A keepalive; without a session, an initiation.
    Keepalive,
    Nothing,
}

/// The times of one tunnel.
pub(super) struct Timers {
    /// The persistent keepalive, if one is wanted.
    keepalive: Option<Duration>,
    /// When the handshake that is under way was wanted first, and when its next initiation is due.
    attempt: Option<(Instant, Instant)>,
    last_initiation: Option<Instant>,
    last_sent: Instant,
    last_received: Instant,
    /// Since when packets were sent that nothing came back for.
    unanswered_since: Option<Instant>,
    /// Since when packets came that nothing was sent back for.
    unacknowledged_since: Option<Instant>,
    /// When the persistent keepalive was last not due.
    quiet_since: Instant,
}

impl Timers {
    /// Nothing is due but the keepalive, if there is one.
    pub(super) fn new(keepalive: Option<Duration>, now: Instant) -> Self {
        Self {
            keepalive,
            attempt: None,
            last_initiation: None,
            last_sent: now,
            last_received: now,
            unanswered_since: None,
            unacknowledged_since: None,
            quiet_since: now,
        }
    }

    /// Something authentic was sent in a session: packets, or a keepalive.
    pub(super) fn sent(&mut self, packets: bool, now: Instant) {
        self.last_sent = now;
        self.quiet_since = now;
        self.unacknowledged_since = None;
        if packets {
            self.unanswered_since.get_or_insert(now);
        }
    }

    /// Something authentic came in a session: a packet, or a keepalive.
    pub(super) fn received(&mut self, packet: bool, now: Instant) {
        self.last_received = now;
        self.heard(now);
        if packet {
            self.unacknowledged_since.get_or_insert(now);
        }
    }

    /// A handshake message was exchanged.
    pub(super) fn heard(&mut self, now: Instant) {
        self.quiet_since = now;
        self.unanswered_since = None;
    }

    /// Whether a handshake may begin: never more than one initiation in Rekey-Timeout (§6.3).
    pub(super) fn may_initiate(&self, now: Instant) -> bool {
        self.attempt.is_none()
            && self
                .last_initiation
                .is_none_or(|last| now.saturating_since(last) >= REKEY_TIMEOUT)
    }

    /// An initiation goes out; `random` chooses its jitter.
    pub(super) fn initiated(&mut self, random: u8, now: Instant) {
        let since = self.attempt.map_or(now, |(since, _)| since);
        let jitter = JITTER * u32::from(random) / u32::from(u8::MAX);
        self.attempt = Some((since, now + REKEY_TIMEOUT + jitter));
        self.last_initiation = Some(now);
        self.quiet_since = now;
        self.unanswered_since = None;
    }

    /// The handshake that this end began is complete, or given up.
    pub(super) fn end_attempt(&mut self) {
        self.attempt = None;
    }

    /// What is due, with this session in use.
    pub(super) fn due(&mut self, session: Option<&Session>, now: Instant) -> Due {
        if let Some((since, next)) = self.attempt {
            if now.saturating_since(since) >= REKEY_ATTEMPT_TIME {
                return Due::GiveUp;
            }
            if now >= next {
                return Due::Initiation;
            }
        } else if session.is_some_and(|session| self.wants_successor(session, now)) && self.may_initiate(now)
        {
            return Due::Initiation;
        }
        let has_passed =
            |since: Option<Instant>, time| since.is_some_and(|since| now.saturating_since(since) >= time);
        if session.is_some() && has_passed(self.unacknowledged_since, KEEPALIVE_TIMEOUT) {
            return Due::Keepalive;
        }
        if has_passed(Some(self.quiet_since), self.keepalive.unwrap_or(Duration::MAX)) {
            // Whatever comes of it, the next one is an interval away: a peer that is gone is asked no oftener.
            self.quiet_since = now;
            return Due::Keepalive;
        }
        Due::Nothing
    }

    /// §6.2: after so many packets; after Rekey-After-Time, once something was sent; before it is too late, once
    /// something was received; and when nobody answers.
    fn wants_successor(&self, session: &Session, now: Instant) -> bool {
        let age_when = |at: Instant| at.saturating_since(session.made);
        session.is_worn()
            || session.is_initiator
                && (age_when(self.last_sent) >= REKEY_AFTER_TIME
                    || age_when(self.last_received) >= REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT)
            || self
                .unanswered_since
                .is_some_and(|since| now.saturating_since(since) >= KEEPALIVE_TIMEOUT + REKEY_TIMEOUT)
    }
}
