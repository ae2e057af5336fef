//! What strangers send to a WireGuard: datagrams that are none, and handshakes that nobody began.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use blake2::digest::consts::U16;
use blake2::digest::{Digest as _, FixedOutput as _, KeyInit as _, Update as _};
use blake2::{Blake2s256, Blake2sMac};

const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const COOKIE_REPLY: u8 = 3;
const DATA: u8 = 4;
const INITIATION_LENGTH: usize = 148;
const RESPONSE_LENGTH: usize = 92;
const COOKIE_REPLY_LENGTH: usize = 64;
const MAC_LENGTH: usize = 16;
/// The largest UDP payload over IPv4.
const LARGEST: usize = 65_507;
/// What fits an underlay of 1500 bytes in one piece.
const LARGEST_WHOLE: usize = 1472;
/// One malformed datagram of so many has a valid first MAC: more a second would rightly be answered with cookies.
const WITH_VALID_MAC: u64 = 10_000;
/// One malformed datagram of so many is as large as UDP allows.
const OVERSIZED: u64 = 5_000;

/// A pace of sending.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    gap: Duration,
    due: Instant,
}

/// Datagrams that a WireGuard has no use for: of every type and length, with reserved bytes set, wrong MACs, receivers
/// that don't exist, counters beyond the limit, and rarely a valid first MAC with nothing right behind it. The same
/// ones every time.
#[derive(Debug)]
pub struct Malformed {
    random: Random,
    key: MacKey,
    number: u64,
}

/// Initiations that pass the first check, which takes no more than the receiver's public key (§5.4.4 of the paper),
/// and no other.
#[derive(Debug)]
pub struct Forged {
    random: Random,
    key: MacKey,
}

impl Pace {
    /// So many a second.
    pub fn new(per_second: u32) -> Self {
        Self {
            gap: Duration::from_secs(1) / per_second,
            due: Instant::now(),
        }
    }

    /// Waits until the next one is due. A sender that is late catches up a few milliseconds at most, so that a busy
    /// machine makes it slower and not wilder.
    pub fn wait(&mut self) {
        const SLACK: Duration = Duration::from_millis(1);
        const CATCH_UP: Duration = Duration::from_millis(5);
        self.due += self.gap;
        let now = Instant::now();
        if self.due > now + SLACK {
            thread::sleep(self.due - now);
        } else if self.due + CATCH_UP < now {
            self.due = now - CATCH_UP;
        }
    }
}

impl Malformed {
    /// For the WireGuard with this public key.
    ///
    /// # Errors
    /// When it is no key.
    pub fn new(public_key: &str) -> Result<Self> {
        Ok(Self {
            random: Random::default(),
            key: MacKey::of(public_key)?,
            number: 0,
        })
    }

    /// The next one.
    pub fn next_datagram(&mut self) -> Vec<u8> {
        self.number += 1;
        let number = self.number;
        let random = &mut self.random;
        if number.is_multiple_of(WITH_VALID_MAC) {
            let (kind, length) = if number.is_multiple_of(2 * WITH_VALID_MAC) {
                (RESPONSE, RESPONSE_LENGTH)
            } else {
                (INITIATION, INITIATION_LENGTH)
            };
            let mut datagram = random.message(kind, length);
            self.key.sign(&mut datagram);
            return datagram;
        }
        if number.is_multiple_of(OVERSIZED) {
            return random.message(DATA, LARGEST);
        }
        // Every length comes with every type in turn.
        let length = (number / 8) as usize % (LARGEST_WHOLE + 1);
        match number % 8 {
            0 => random.bytes(length),
            1 => random.message(1 + (number / 8) as u8 % 4, length),
            2 => {
                let mut datagram = random.message(DATA, length.max(32));
                if let Some(reserved) = datagram.get_mut(1 + length % 3) {
                    *reserved = 0x80;
                }
                datagram
            }
            3 => random.message(INITIATION, INITIATION_LENGTH),
            4 => random.message(RESPONSE, RESPONSE_LENGTH),
            5 => random.message(COOKIE_REPLY, COOKIE_REPLY_LENGTH),
            6 => random.message(DATA, length.max(32)),
            _ => {
                let mut datagram = random.message(DATA, length.max(32));
                if let Some(counter) = datagram.get_mut(8..16) {
                    counter.copy_from_slice(&(u64::MAX - number % (1 << 13)).to_le_bytes());
                }
                datagram
            }
        }
    }
}

impl Forged {
    /// For the WireGuard with this public key.
    ///
    /// # Errors
    /// When it is no key.
    pub fn new(public_key: &str) -> Result<Self> {
        Ok(Self {
            random: Random::default(),
            key: MacKey::of(public_key)?,
        })
    }

    /// The next one.
    pub fn next_initiation(&mut self) -> Vec<u8> {
        let mut datagram = self.random.message(INITIATION, INITIATION_LENGTH);
        self.key.sign(&mut datagram);
        datagram
    }

    /// A number that follows from nothing, for a source.
    pub fn next_number(&mut self) -> u64 {
        self.random.next()
    }
}

/// The key of first MACs to one receiver (§5.4.4).
#[derive(Debug)]
struct MacKey([u8; 32]);

impl MacKey {
    fn of(public_key: &str) -> Result<Self> {
        let public_key = BASE64_STANDARD.decode(public_key)?;
        ensure!(public_key.len() == 32, "a key of {} bytes", public_key.len());
        let hash = Blake2s256::new().chain(b"mac1----").chain(public_key);
        Ok(Self(hash.finalize().into()))
    }

    /// Makes the first MAC of a handshake message right; the second stays as it is.
    fn sign(&self, message: &mut [u8]) {
        let Some((signed, macs)) = message
            .len()
            .checked_sub(2 * MAC_LENGTH)
            .and_then(|at| message.split_at_mut_checked(at))
        else {
            return;
        };
        let Ok(mac) = Blake2sMac::<U16>::new_from_slice(&self.0) else {
            return;
        };
        let mac = mac.chain(&*signed).finalize_fixed();
        macs.iter_mut().zip(mac).for_each(|(place, byte)| *place = byte);
    }
}

/// A generator that starts the same every time (xorshift64*, G. Marsaglia and S. Vigna).
#[derive(Debug)]
struct Random(u64);

impl Default for Random {
    fn default() -> Self {
        Self(0x7469_6465_6761_7465)
    }
}

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        for chunk in bytes.chunks_mut(8) {
            let random = self.next().to_le_bytes();
            chunk
                .iter_mut()
                .zip(random)
                .for_each(|(place, byte)| *place = byte);
        }
        bytes
    }

    /// Random bytes behind a type and three zero bytes, as much of that as the length allows.
    fn message(&mut self, kind: u8, length: usize) -> Vec<u8> {
        let mut bytes = self.bytes(length);
        bytes
            .iter_mut()
            .zip([kind, 0, 0, 0])
            .for_each(|(place, byte)| *place = byte);
        bytes
    }
}
