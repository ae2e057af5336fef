//! One pair of keys and what was counted with it (§5.4.6 of the paper): packets in and out, until it is too old.

use super::message::{COUNTER_LIMIT, DATA_HEADER, DATA_OVERHEAD, ReceiverIndex, TYPE_DATA};
use super::replay::ReplayWindow;
use crate::drop::DropReason;
use crate::time::Instant;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use std::time::Duration;

/// Reject-After-Time (§6.1): a session is used no longer, in either direction.
pub(super) const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// Rekey-After-Messages (§6.1).
pub(super) const REKEY_AFTER_MESSAGES: u64 = 1 << 60;

/// The keys that a handshake gives.
pub(super) struct SessionKeys {
    pub sending: [u8; 32],
    pub receiving: [u8; 32],
}

/// A session.
pub(super) struct Session {
    /// How the far end names it.
    pub own_index: ReceiverIndex,
    /// Whether this end began the handshake.
    pub is_initiator: bool,
    /// When the handshake was complete, as far as this end is concerned.
    pub made: Instant,
    remote_index: u32,
    sending: LessSafeKey,
    receiving: LessSafeKey,
    /// The counter of the next packet. Rekey-After-Messages and Reject-After-Messages are told by it.
    next_counter: u64,
    replay: ReplayWindow,
}

impl Session {
    /// A session with these keys; `remote_index` is how this end names it to the far one.
    pub(super) fn new(
        keys: &SessionKeys,
        own_index: ReceiverIndex,
        remote_index: u32,
        is_initiator: bool,
        now: Instant,
    ) -> Option<Self> {
        let cipher = |key| {
            UnboundKey::new(&CHACHA20_POLY1305, key)
                .ok()
                .map(LessSafeKey::new)
        };
        Some(Self {
            own_index,
            is_initiator,
            made: now,
            remote_index,
            sending: cipher(&keys.sending)?,
            receiving: cipher(&keys.receiving)?,
            next_counter: 0,
            replay: ReplayWindow::default(),
        })
    }

    /// How old it is.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_since(self.made)
    }

    /// Whether it is too old to be used.
    pub(super) fn is_expired(&self, now: Instant) -> bool {
        self.age(now) >= REJECT_AFTER_TIME
    }

    /// Whether it has sent so many packets that it wants a successor, whoever began it.
    pub(super) fn is_worn(&self) -> bool {
        self.next_counter >= REKEY_AFTER_MESSAGES
    }

    /// Whether Reject-After-Messages is reached: it seals nothing more.
    pub(super) fn is_spent(&self) -> bool {
        self.next_counter >= COUNTER_LIMIT
    }

    /// Seals one packet into `out`: the length of the datagram, or `None` when `out` is too small or
    /// Reject-After-Messages is reached.
    pub(super) fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        let datagram = out.get_mut(..packet.len() + DATA_OVERHEAD)?;
        if self.is_spent() {
            return None;
        }
        let counter = self.next_counter;
        self.next_counter += 1;
        let (header, sealed) = datagram.split_at_mut(DATA_HEADER);
        header[..4].copy_from_slice(&TYPE_DATA.to_le_bytes());
        header[4..8].copy_from_slice(&self.remote_index.to_le_bytes());
        header[8..].copy_from_slice(&counter.to_le_bytes());
        let (body, tag) = sealed.split_at_mut(packet.len());
        body.copy_from_slice(packet);
        let made = self
            .sending
            .seal_in_place_separate_tag(nonce(counter), Aad::empty(), body)
            .ok()?;
        tag.copy_from_slice(made.as_ref());
        Some(packet.len() + DATA_OVERHEAD)
    }

    /// Datagrams of 1000 that the far end sent and that never came, as far as their counters tell.
    pub(super) fn loss_permille(&self) -> Option<u16> {
        self.replay.missing_permille()
    }

    /// Opens what is behind a data message's header into `out`: the length of the plaintext.
    pub(super) fn open(
        &mut self,
        counter: u64,
        sealed: &[u8],
        out: &mut [u8],
        now: Instant,
    ) -> Result<usize, DropReason> {
        if self.is_expired(now) {
            return Err(DropReason::Unauthenticated);
        }
        if !self.replay.accepts(counter) {
            return Err(DropReason::Replayed);
        }
        let room = out.get_mut(..sealed.len()).ok_or(DropReason::NoBuffer)?;
        room.copy_from_slice(sealed);
        let plaintext = self
            .receiving
            .open_in_place(nonce(counter), Aad::empty(), room)
            .map_err(|_| DropReason::Unauthenticated)?;
        self.replay.note(counter);
        Ok(plaintext.len())
    }

    /// Goes on from another counter.
    #[cfg(test)]
    pub(super) fn count_from(&mut self, counter: u64) {
        self.next_counter = counter;
    }
}

/// 32 zero bits and the counter, little-endian (§5.4.6).
fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}
