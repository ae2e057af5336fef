//! One WireGuard endpoint as strangers meet it: a key, and a door that costs little to knock at.
//!
//! What an initiation must have before Diffie–Hellman is spent on it, cheapest first:
//! 1. a first MAC that is right (one hash): its sender knows the lane's key;
//! 2. a token of its source, 20 a second and bursts of 5 for an address (and for an IPv6 /64, once half of what all
//!    share is spent), and one of those that all strangers share: or else it gets a cookie (§5.3 of the paper) instead
//!    of an answer;
//! 3. with the cookie, which proves its address and port: a token of a second bucket of its source.
//!
//! So one source that floods spends only its own tokens. Somebody who forges many sources, or the address of a
//! victim, spends what strangers have, and what is left for the others is the second way: a cookie, which the forger
//! never sees. The two kinds of buckets are apart for that reason, and cookies are not rationed. (wireguard-go and the kernel ask a whole machine
//! "under load" for cookies; here a source is, so that a flood from one doesn't cost others Rekey-Timeout.)
//!
//! A response passes with its first MAC alone: it must name the random index of an initiation that the tunnel just
//! sent, and the tunnel counts how often that is tried.

use super::cookie::{CookieChecker, hash};
use super::handshake::Received;
use super::limits::{Bucket, PER_SOURCE, Rate, SourceLimits};
use super::message::{COOKIE_REPLY_LENGTH, Message};
use crate::drop::DropReason;
use crate::plan::{PrivateKey, PublicKey};
use crate::time::Instant;
use ring::rand::{SecureRandom, SystemRandom};
use std::net::SocketAddr;

/// Initiations read without a cookie: a whole site of 254 hosts may start at once. One costs about 0.2 ms, so strangers
/// get 5 % of a core at most. (An answer costs as much again, but only a peer gets one, and a peer is limited too.)
const STRANGERS: Rate = Rate {
    per_second: 256,
    burst: 256,
};
/// Initiations read with a cookie: somebody with very many real addresses gets a fifth of a core at most.
const PROVEN: Rate = Rate {
    per_second: 1024,
    burst: 256,
};

/// A lane's key and its guard against floods.
pub struct Lane {
    private_key: PrivateKey,
    public_key: PublicKey,
    cookies: CookieChecker,
    strangers: Guard,
    proven: Guard,
}

/// What the door made of a handshake message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// An initiation by the holder of this key. Whether it is new, the tunnel finds out.
    Initiation(PublicKey),
    /// A response or a cookie reply: for the tunnel that its receiver index names.
    Answer,
    /// Too many: a cookie reply of this length stands at the start of the buffer, for the sender.
    CookieReply(usize),
    /// Not to be used.
    Drop(DropReason),
}

impl Lane {
    /// A lane with this key.
    pub fn new(key: &PrivateKey, now: Instant) -> Self {
        let public_key = key.public_key();
        let seed = random();
        let guard = |rate, label: &[u8]| {
            let seed = hash(label, &seed);
            Guard::new(
                rate,
                seed.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)),
            )
        };
        Self {
            cookies: CookieChecker::new(&public_key, &hash(b"cookies", &seed), now),
            strangers: guard(STRANGERS, b"strangers"),
            proven: guard(PROVEN, b"proven"),
            private_key: key.clone(),
            public_key,
        }
    }

    /// The key that peers know it by.
    pub fn public_key(&self) -> PublicKey {
        self.public_key
    }

    /// Looks at a message that [`Message::classify`] didn't call data, before any tunnel does. `out` has room for
    /// [`COOKIE_REPLY_LENGTH`] bytes.
    pub fn admit(&mut self, source: SocketAddr, datagram: &[u8], out: &mut [u8], now: Instant) -> Admission {
        match Message::classify(datagram) {
            Some(Message::Initiation) => {}
            Some(Message::Response { .. }) if self.cookies.knows_key(datagram) => return Admission::Answer,
            Some(Message::Response { .. }) => return Admission::Drop(DropReason::Unauthenticated),
            Some(Message::CookieReply { .. }) => return Admission::Answer,
            Some(Message::Data { .. }) | None => return Admission::Drop(DropReason::NotWireguard),
        }
        if out.len() < COOKIE_REPLY_LENGTH {
            return Admission::Drop(DropReason::NoBuffer);
        }
        if !self.cookies.knows_key(datagram) {
            return Admission::Drop(DropReason::Unauthenticated);
        }
        if self.cookies.proves_source(source, datagram, now) {
            if !self.proven.take(source, now) {
                return Admission::Drop(DropReason::HandshakeFlood);
            }
        } else if !self.strangers.take(source, now) {
            return Admission::CookieReply(self.cookies.reply(source, datagram, out, now));
        }
        let received = datagram
            .first_chunk()
            .and_then(|initiation| Received::read(&self.private_key, initiation));
        match received {
            Some(received) => Admission::Initiation(received.remote),
            None => Admission::Drop(DropReason::Unauthenticated),
        }
    }

    #[cfg(test)]
    pub(super) fn proves_source(&mut self, source: SocketAddr, message: &[u8], now: Instant) -> bool {
        self.cookies.proves_source(source, message, now)
    }

    pub(super) fn private_key(&self) -> &PrivateKey {
        &self.private_key
    }
}

/// Tokens of each source, and of all together.
struct Guard {
    rate: Rate,
    all: Bucket,
    sources: SourceLimits,
}

impl Guard {
    fn new(rate: Rate, seed: u64) -> Self {
        Self {
            rate,
            all: Bucket::default(),
            sources: SourceLimits::new(PER_SOURCE, seed),
        }
    }

    fn take(&mut self, source: SocketAddr, now: Instant) -> bool {
        // The hosts of a site share a /64 and may all start at once; who has a /64 and floods crowds the door.
        let crowded = self.all.is_low(self.rate, now);
        self.sources.take(source.ip(), crowded, now) && self.all.take(self.rate, now)
    }
}

#[expect(
    clippy::expect_used,
    reason = "no input reaches it: a system without random numbers can have no keys either"
)]
fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    SystemRandom::new()
        .fill(&mut bytes)
        .expect("the system gives random numbers");
    bytes
}
