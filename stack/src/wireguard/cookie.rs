//! The two MACs of a handshake message (§5.4.4 of the paper) and the cookies behind the second (§5.4.7): who checks
//! them, and who makes them.

use super::message::{COOKIE_REPLY_LENGTH, TYPE_COOKIE_REPLY};
use crate::plan::PublicKey;
use crate::time::Instant;
use blake2::digest::consts::U16;
use blake2::digest::{Digest, KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac};
use chacha20poly1305::{AeadInPlace, XChaCha20Poly1305};
use std::net::SocketAddr;
use std::time::Duration;

/// How long a cookie is good, and the secret that it is made from (§5.4.7).
const COOKIE_LIFE: Duration = Duration::from_secs(120);
const LABEL_MAC1: &[u8] = b"mac1----";
const LABEL_COOKIE: &[u8] = b"cookie--";
const MAC: usize = 16;
const NONCE: usize = 24;

type Cookie = [u8; MAC];

/// What both ends know of the one that messages are for: its public key, hashed.
struct Labels {
    mac1: [u8; 32],
    cookie: [u8; 32],
}

impl Labels {
    fn of(key: &PublicKey) -> Self {
        Self {
            mac1: hash(LABEL_MAC1, key.as_bytes()),
            cookie: hash(LABEL_COOKIE, key.as_bytes()),
        }
    }
}

/// Checks the MACs of messages to one key, and hands out cookies.
pub(super) struct CookieChecker {
    labels: Labels,
    /// Cookies are made from it. It changes every [`COOKIE_LIFE`], to the hash of the one before.
    secret: [u8; 32],
    secret_since: Instant,
    replies: u64,
}

impl CookieChecker {
    /// For messages to `key`. Nobody else may know `seed`.
    pub(super) fn new(key: &PublicKey, seed: &[u8; 32], now: Instant) -> Self {
        Self {
            labels: Labels::of(key),
            secret: *seed,
            secret_since: now,
            replies: 0,
        }
    }

    /// Whether the first MAC says that the sender knows whom it talks to.
    pub(super) fn knows_key(&self, message: &[u8]) -> bool {
        Macs::of(message).is_some_and(|macs| verify(&self.labels.mac1, &[macs.body], macs.first))
    }

    /// Whether the second MAC says that the sender gets what is sent to its address and port.
    pub(super) fn proves_source(&mut self, source: SocketAddr, message: &[u8], now: Instant) -> bool {
        let Some(macs) = Macs::of(message) else {
            return false;
        };
        if *macs.second == [0; MAC] {
            // Without a cookie; so much comes in a flood.
            return false;
        }
        let cookie = self.cookie(source, now);
        verify(&cookie, &[macs.body, macs.first], macs.second)
    }

    /// Writes a cookie for `source` into `out`: the length of the message, or 0 when there is no room.
    pub(super) fn reply(
        &mut self,
        source: SocketAddr,
        message: &[u8],
        out: &mut [u8],
        now: Instant,
    ) -> usize {
        let (Some(macs), Some(out)) = (Macs::of(message), out.get_mut(..COOKIE_REPLY_LENGTH)) else {
            return 0;
        };
        let cookie = self.cookie(source, now);
        self.replies += 1;
        // A nonce must not come twice; who may know it doesn't matter. 2⁶⁴ replies are more than there will be.
        let drawn = hash(&self.secret, &self.replies.to_le_bytes());
        let (header, rest) = out.split_at_mut(8);
        header[..4].copy_from_slice(&TYPE_COOKIE_REPLY.to_le_bytes());
        header[4..].copy_from_slice(&message[4..8]);
        let (nonce, sealed) = rest.split_at_mut(NONCE);
        nonce.copy_from_slice(&drawn[..NONCE]);
        let (body, tag) = sealed.split_at_mut(MAC);
        body.copy_from_slice(&cookie);
        let cipher = XChaCha20Poly1305::new(&self.labels.cookie.into());
        match cipher.encrypt_in_place_detached((&*nonce).into(), macs.first, body) {
            Ok(made) => {
                tag.copy_from_slice(&made);
                COOKIE_REPLY_LENGTH
            }
            Err(_) => 0,
        }
    }

    /// The cookie of an address **and port** (§5.4.7): many hosts may stand behind one address.
    fn cookie(&mut self, source: SocketAddr, now: Instant) -> Cookie {
        if now.saturating_since(self.secret_since) >= COOKIE_LIFE {
            self.secret_since = now;
            self.secret = hash(b"next", &self.secret);
        }
        let address = match source.ip().to_canonical() {
            std::net::IpAddr::V4(address) => address.to_ipv6_mapped(),
            std::net::IpAddr::V6(address) => address,
        };
        mac(&self.secret, &[&address.octets(), &source.port().to_be_bytes()])
    }
}

/// Makes the MACs of messages to one key, with the cookie that its owner gave.
pub(super) struct CookieJar {
    labels: Labels,
    last: Option<(u32, [u8; MAC])>,
    cookie: Option<(Cookie, Instant)>,
}

impl CookieJar {
    /// For messages to `key`.
    pub(super) fn new(key: &PublicKey) -> Self {
        Self {
            labels: Labels::of(key),
            last: None,
            cookie: None,
        }
    }

    /// Writes both MACs at the end of a message that is complete but for them.
    pub(super) fn sign(&mut self, message: &mut [u8], now: Instant) {
        let Some(index) = message.get(4..8).and_then(|bytes| bytes.try_into().ok()) else {
            return;
        };
        let Some((rest, second)) = message.split_last_chunk_mut::<MAC>() else {
            return;
        };
        let Some((body, first)) = rest.split_last_chunk_mut::<MAC>() else {
            return;
        };
        *first = mac(&self.labels.mac1, &[body]);
        *second = match self.cookie {
            Some((cookie, since)) if now.saturating_since(since) < COOKIE_LIFE => {
                mac(&cookie, &[body, first])
            }
            _ => [0; MAC],
        };
        self.last = Some((u32::from_le_bytes(index), *first));
    }

    /// Keeps the cookie of a cookie reply to the last message; says whether it was one.
    pub(super) fn keep(&mut self, reply: &[u8], now: Instant) -> bool {
        let Some((index, first)) = self.last else {
            return false;
        };
        if reply.len() != COOKIE_REPLY_LENGTH || reply[4..8] != index.to_le_bytes() {
            return false;
        }
        let (nonce, sealed) = reply[8..].split_at(NONCE);
        let (body, tag) = sealed.split_at(MAC);
        let mut cookie = [0; MAC];
        cookie.copy_from_slice(body);
        let cipher = XChaCha20Poly1305::new(&self.labels.cookie.into());
        let opened = cipher.decrypt_in_place_detached(nonce.into(), &first, &mut cookie, tag.into());
        if opened.is_ok() {
            self.cookie = Some((cookie, now));
        }
        opened.is_ok()
    }
}

/// A message and the MACs at its end.
struct Macs<'a> {
    body: &'a [u8],
    first: &'a [u8; MAC],
    second: &'a [u8; MAC],
}

impl<'a> Macs<'a> {
    fn of(message: &'a [u8]) -> Option<Self> {
        let (rest, second) = message.split_last_chunk()?;
        let (body, first) = rest.split_last_chunk()?;
        Some(Self { body, first, second })
    }
}

pub(super) fn hash(first: &[u8], second: &[u8]) -> [u8; 32] {
    let mut hash = Blake2s256::new();
    hash.update(first);
    hash.update(second);
    hash.finalize().into()
}

fn keyed(key: &[u8], parts: &[&[u8]]) -> Option<Blake2sMac<U16>> {
    let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(key).ok()?;
    for part in parts {
        Mac::update(&mut mac, part);
    }
    Some(mac)
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; MAC] {
    // A key of 16 or 32 bytes is never refused.
    keyed(key, parts).map_or([0; MAC], |mac| mac.finalize().into_bytes().into())
}

/// In constant time.
fn verify(key: &[u8], parts: &[&[u8]], tag: &[u8; MAC]) -> bool {
    keyed(key, parts).is_some_and(|mac| mac.verify(tag.into()).is_ok())
}
