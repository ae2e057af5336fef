//! A tunnel of WireGuard proper: handshakes that make sessions, sessions that follow each other, and their times.
//!
//! Three sessions at a time (§6.4 of the paper, and as the kernel's implementation does): the one in use, the one before it
//! (for what is still on the way), and the one that the far end began and hasn't confirmed. Whoever knows a peer's
//! key can begin as many as it is let: only what comes *in* the unconfirmed one puts it in the place of the one in
//! use.
//!
//! What it reads for itself: the wall clock, for the timestamp of an initiation, which must grow from one start of the
//! host to the next; and the system's random numbers, for ephemeral keys (in snow).

use super::cookie::CookieJar;
use super::handshake::{Identity, Initiated, Received, Timestamp};
use super::limits::{Bucket, PER_SOURCE};
use super::message::{
    DATA_HEADER, INITIATION_LENGTH, Message, RESPONSE_LENGTH, ReceiverIndex, TunnelIndex, ip_length,
};
use super::session::{Session, SessionKeys};
use super::timers::{Due, REKEY_TIMEOUT, Timers};
use super::{DATA_OVERHEAD, HandshakeOutcome, Lane, Opened, Sealed, Train, Tunnel};
use crate::drop::DropReason;
use crate::plan::{PresharedKey, PublicKey};
use crate::time::Instant;
use std::time::Duration;

/// Responses that are tried for one initiation, two Diffie–Hellmans each. They must know its random index: a second
/// one is damage, or somebody who listens.
const RESPONSES_TRIED: u8 = 8;
/// The first second of 1970 as TAI64, with the leap seconds of that time.
const TAI64_EPOCH: u64 = (1 << 62) + 10;

/// A tunnel of WireGuard proper.
pub struct NoiseTunnel {
    identity: Identity,
    index: TunnelIndex,
    /// The turn of the last session.
    turn: u8,
    cookies: CookieJar,
    initiation: Option<Box<Initiation>>,
    current: Option<Box<Session>>,
    previous: Option<Box<Session>>,
    /// The far end began it, and hasn't sent in it yet.
    unconfirmed: Option<Box<Session>>,
    /// Initiations of the far end, which are authentic.
    answered: Bucket,
    greatest_timestamp: Timestamp,
    last_stamp: Duration,
    timers: Timers,
    rtt: Option<Duration>,
    /// When it was last called.
    now: Instant,
}

/// The last initiation of this end.
struct Initiation {
    handshake: Initiated,
    index: ReceiverIndex,
    sent: Instant,
    responses_left: u8,
}

impl NoiseTunnel {
    /// A tunnel of `lane` with the peer that has this public key. `index` makes the receiver indices of its sessions
    /// and should be random; `keepalive` is in seconds.
    pub fn new(
        lane: &Lane,
        index: TunnelIndex,
        public_key: &PublicKey,
        preshared_key: Option<&PresharedKey>,
        keepalive: Option<u16>,
        now: Instant,
    ) -> Self {
        let keepalive = keepalive
            .filter(|seconds| *seconds > 0)
            .map(|seconds| Duration::from_secs(u64::from(seconds)));
        Self {
            identity: Identity {
                private_key: lane.private_key().clone(),
                remote: *public_key,
                preshared_key: preshared_key.cloned(),
            },
            index,
            turn: 0,
            cookies: CookieJar::new(public_key),
            initiation: None,
            current: None,
            previous: None,
            unconfirmed: None,
            answered: Bucket::default(),
            greatest_timestamp: Timestamp::default(),
            last_stamp: Duration::ZERO,
            timers: Timers::new(keepalive, now),
            rtt: None,
            now,
        }
    }

    fn answer(&mut self, initiation: &[u8], out: &mut [u8], now: Instant) -> Result<usize, DropReason> {
        let initiation = initiation.first_chunk().ok_or(DropReason::NotWireguard)?;
        let out = out
            .first_chunk_mut::<RESPONSE_LENGTH>()
            .ok_or(DropReason::NoBuffer)?;
        let received =
            Received::read(&self.identity.private_key, initiation).ok_or(DropReason::Unauthenticated)?;
        if received.remote != self.identity.remote {
            return Err(DropReason::UnknownKey);
        }
        if received.timestamp <= self.greatest_timestamp {
            return Err(DropReason::Replayed);
        }
        if !self.answered.take(PER_SOURCE, now) {
            return Err(DropReason::HandshakeFlood);
        }
        self.greatest_timestamp = received.timestamp;
        let index = self.next_index();
        let (keys, remote_index) = received
            .respond(&self.identity, index.get(), out)
            .ok_or(DropReason::Unauthenticated)?;
        self.cookies.sign(out, now);
        self.unconfirmed = new_session(&keys, index, remote_index, false, now);
        self.timers.heard(now);
        Ok(RESPONSE_LENGTH)
    }

    /// Takes a response: the keepalive that confirms the session, which the far end waits for.
    fn finish(
        &mut self,
        receiver: ReceiverIndex,
        response: &[u8],
        out: &mut [u8],
        now: Instant,
    ) -> Result<usize, DropReason> {
        let response = response.first_chunk().ok_or(DropReason::NotWireguard)?;
        let initiation = self
            .initiation
            .as_mut()
            .filter(|initiation| initiation.index == receiver)
            .ok_or(DropReason::Unauthenticated)?;
        initiation.responses_left = initiation
            .responses_left
            .checked_sub(1)
            .ok_or(DropReason::HandshakeFlood)?;
        let (keys, remote_index) = initiation
            .handshake
            .finish(response)
            .ok_or(DropReason::Unauthenticated)?;
        self.rtt = Some(now.saturating_since(initiation.sent));
        self.initiation = None;
        self.timers.end_attempt();
        self.timers.heard(now);
        // Both ends may have begun: what the far end sends in the other session must not be lost.
        self.previous = self.unconfirmed.take().or(self.current.take());
        self.current = new_session(&keys, receiver, remote_index, true, now);
        Ok(self.keepalive(out, now))
    }

    fn keepalive(&mut self, out: &mut [u8], now: Instant) -> usize {
        let session = self.current.as_mut();
        let written = session.and_then(|session| session.seal(&[], out)).unwrap_or(0);
        if written > 0 {
            self.timers.sent(false, now);
        }
        written
    }

    fn send_initiation(&mut self, out: &mut [u8], now: Instant) -> usize {
        let Some(out) = out.first_chunk_mut::<INITIATION_LENGTH>() else {
            return 0;
        };
        let index = self.next_index();
        let timestamp = self.stamp();
        let Some(handshake) = self.identity.initiate(index.get(), &timestamp, out) else {
            return 0;
        };
        self.cookies.sign(out, now);
        self.initiation = Some(Box::new(Initiation {
            handshake,
            index,
            sent: now,
            responses_left: RESPONSES_TRIED,
        }));
        // A byte of the ephemeral public key is as random as can be.
        self.timers.initiated(out[8], now);
        INITIATION_LENGTH
    }

    /// An index that names nothing else.
    fn next_index(&mut self) -> ReceiverIndex {
        loop {
            self.turn = self.turn.wrapping_add(1);
            let index = ReceiverIndex::of(self.index).in_turn(self.turn);
            let sessions = [&self.current, &self.previous, &self.unconfirmed];
            let mut used = sessions.into_iter().flatten().map(|session| session.own_index);
            let initiated = self.initiation.as_ref().map(|initiation| initiation.index);
            if initiated != Some(index) && used.all(|other| other != index) {
                return index;
            }
        }
    }

    /// The time of an initiation: the wall clock's, and later than the last one whatever that clock did.
    #[expect(
        clippy::disallowed_methods,
        reason = "a peer compares it over restarts of this host, which no clock of the stack survives"
    )]
    pub(super) fn stamp(&mut self) -> Timestamp {
        let wall = std::time::SystemTime::now()
            .duration_since(std::time::SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        self.last_stamp = wall.max(self.last_stamp + Duration::from_nanos(1));
        let mut stamp = Timestamp::default();
        stamp[..8].copy_from_slice(&(TAI64_EPOCH + self.last_stamp.as_secs()).to_be_bytes());
        stamp[8..].copy_from_slice(&self.last_stamp.subsec_nanos().to_be_bytes());
        stamp
    }

    /// Sessions beyond Reject-After-Time are forgotten, and their keys with them.
    fn forget_expired(&mut self, now: Instant) {
        for session in [&mut self.current, &mut self.previous, &mut self.unconfirmed] {
            session.take_if(|session| session.is_expired(now));
        }
    }
}

impl Tunnel for NoiseTunnel {
    fn is_ready(&self) -> bool {
        self.current.is_some()
    }

    fn seal(&mut self, train: &Train<'_>, out: &mut [u8], now: Instant) -> Sealed {
        let mut sealed = Sealed::default();
        self.now = now;
        let Some(session) = self.current.as_mut().filter(|session| !session.is_expired(now)) else {
            self.current = None;
            return sealed;
        };
        let slots = out.chunks_mut(train.stride + DATA_OVERHEAD);
        for (packet, slot) in train.bytes.chunks(train.stride.max(1)).zip(slots) {
            let Some(written) = session.seal(packet, slot) else {
                break;
            };
            sealed.packets += 1;
            sealed.bytes += written;
        }
        if session.is_spent() {
            self.current = None;
        }
        if sealed.packets > 0 {
            self.timers.sent(true, now);
        }
        sealed
    }

    fn open(&mut self, datagram: &[u8], out: &mut [u8], now: Instant) -> Opened {
        let Some(Message::Data { receiver, counter }) = Message::classify(datagram) else {
            return Opened::Drop(DropReason::NotWireguard);
        };
        self.now = now;
        let is_meant = |session: &&mut Box<Session>| session.own_index == receiver;
        let confirms = self.unconfirmed.as_mut().filter(is_meant).is_some();
        let session = match (&mut self.current, &mut self.previous, &mut self.unconfirmed) {
            (Some(session), _, _) if session.own_index == receiver => session,
            (_, Some(session), _) if session.own_index == receiver => session,
            (_, _, Some(session)) if session.own_index == receiver => session,
            _ => return Opened::Drop(DropReason::Unauthenticated),
        };
        let plaintext = match session.open(counter, &datagram[DATA_HEADER..], out, now) {
            Ok(length) => &out[..length],
            Err(reason) => return Opened::Drop(reason),
        };
        if confirms {
            self.previous = self.current.take();
            self.current = self.unconfirmed.take();
        }
        self.timers.received(!plaintext.is_empty(), now);
        if plaintext.is_empty() {
            return Opened::Keepalive;
        }
        match ip_length(plaintext) {
            Some(length) => Opened::Packet(length),
            None => Opened::Drop(DropReason::NotVxlan),
        }
    }

    fn handle_handshake(&mut self, datagram: &[u8], out: &mut [u8], now: Instant) -> HandshakeOutcome {
        self.now = now;
        let outcome = match Message::classify(datagram) {
            Some(Message::Initiation) => self.answer(datagram, out, now).map(HandshakeOutcome::Reply),
            Some(Message::Response { receiver }) => self
                .finish(receiver, datagram, out, now)
                .map(|reply| HandshakeOutcome::Established { reply }),
            Some(Message::CookieReply { .. }) if self.cookies.keep(datagram, now) => {
                Ok(HandshakeOutcome::Nothing)
            }
            Some(Message::CookieReply { .. }) => Err(DropReason::Unauthenticated),
            Some(Message::Data { .. }) | None => Err(DropReason::NotWireguard),
        };
        outcome.unwrap_or_else(HandshakeOutcome::Drop)
    }

    fn initiate(&mut self, out: &mut [u8], now: Instant) -> usize {
        self.now = now;
        let answer_under_way = self
            .unconfirmed
            .as_ref()
            .is_some_and(|session| session.age(now) < REKEY_TIMEOUT);
        if answer_under_way || !self.timers.may_initiate(now) {
            return 0;
        }
        self.send_initiation(out, now)
    }

    fn tick(&mut self, out: &mut [u8], now: Instant) -> usize {
        self.now = now;
        self.forget_expired(now);
        match self.timers.due(self.current.as_deref(), now) {
            Due::Initiation => self.send_initiation(out, now),
            Due::Keepalive if self.current.is_some() => self.keepalive(out, now),
            Due::Keepalive => self.initiate(out, now),
            Due::GiveUp => {
                self.initiation = None;
                self.timers.end_attempt();
                0
            }
            Due::Nothing => 0,
        }
    }

    fn session_age(&self) -> Option<Duration> {
        self.current.as_ref().map(|session| session.age(self.now))
    }

    fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    fn loss_permille(&self) -> Option<u16> {
        self.current.as_ref()?.loss_permille()
    }
}

fn new_session(
    keys: &SessionKeys,
    own_index: ReceiverIndex,
    remote_index: u32,
    is_initiator: bool,
    now: Instant,
) -> Option<Box<Session>> {
    Session::new(keys, own_index, remote_index, is_initiator, now).map(Box::new)
}

#[cfg(test)]
impl NoiseTunnel {
    /// The session in use.
    pub(super) fn session(&mut self) -> &mut Session {
        self.current.as_mut().unwrap()
    }
}
