//! The handshake (§5.4.1–5.4.3 of the paper): `Noise_IKpsk2` by snow, between WireGuard's own fields. Its MACs are
//! made and checked elsewhere.

use super::message::{INITIATION_LENGTH, RESPONSE_LENGTH, TYPE_INITIATION, TYPE_RESPONSE};
use super::session::SessionKeys;
use crate::plan::{PresharedKey, PrivateKey, PublicKey};
use snow::{Builder, HandshakeState};
use std::ops::Range;

const CONSTRUCTION: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
/// Where the preshared key is mixed in: at the end of the second message.
const PRESHARED_KEY: u8 = 2;
/// Where Noise's own message stands in an initiation, and in a response.
const NOISE_OF_INITIATION: Range<usize> = 8..116;
const NOISE_OF_RESPONSE: Range<usize> = 12..60;

/// TAI64N, big-endian: greater means later.
pub(super) type Timestamp = [u8; 12];

/// Who talks to whom.
pub(super) struct Identity {
    pub private_key: PrivateKey,
    pub remote: PublicKey,
    pub preshared_key: Option<PresharedKey>,
}

/// A handshake that this end began.
pub(super) struct Initiated(HandshakeState);

impl Identity {
    /// Writes an initiation, but for its MACs. `None` only when the system has no random numbers.
    pub(super) fn initiate(
        &self,
        own_index: u32,
        timestamp: &Timestamp,
        out: &mut [u8; INITIATION_LENGTH],
    ) -> Option<Initiated> {
        let preshared_key = self.preshared_key();
        let mut state = builder()?
            .local_private_key(self.private_key.as_bytes())
            .and_then(|builder| builder.remote_public_key(self.remote.as_bytes()))
            .and_then(|builder| builder.psk(PRESHARED_KEY, &preshared_key))
            .and_then(Builder::build_initiator)
            .ok()?;
        out[..4].copy_from_slice(&TYPE_INITIATION.to_le_bytes());
        out[4..8].copy_from_slice(&own_index.to_le_bytes());
        let written = state
            .write_message(timestamp, &mut out[NOISE_OF_INITIATION])
            .ok()?;
        (written == NOISE_OF_INITIATION.len()).then_some(Initiated(state))
    }

    fn preshared_key(&self) -> [u8; 32] {
        self.preshared_key.as_ref().map_or([0; 32], |key| *key.as_bytes())
    }
}

impl Initiated {
    /// Reads the response: the keys, and how the far end names the session. Another response may be tried after one
    /// that doesn't fit.
    pub(super) fn finish(&mut self, response: &[u8; RESPONSE_LENGTH]) -> Option<(SessionKeys, u32)> {
        self.0.read_message(&response[NOISE_OF_RESPONSE], &mut []).ok()?;
        let (sending, receiving) = self.0.dangerously_get_raw_split();
        Some((SessionKeys { sending, receiving }, sender(response)))
    }
}

/// A handshake that the far end began. It is known to hold the private key to `remote`.
pub(super) struct Received {
    state: HandshakeState,
    /// Who began.
    pub remote: PublicKey,
    /// When, by the far end's clock.
    pub timestamp: Timestamp,
    sender: u32,
}

impl Received {
    /// Reads an initiation. `None`: not authentic.
    pub(super) fn read(private_key: &PrivateKey, initiation: &[u8; INITIATION_LENGTH]) -> Option<Self> {
        let mut state = builder()?
            .local_private_key(private_key.as_bytes())
            .and_then(Builder::build_responder)
            .ok()?;
        let mut timestamp = Timestamp::default();
        state
            .read_message(&initiation[NOISE_OF_INITIATION], &mut timestamp)
            .ok()?;
        let remote = PublicKey::from_bytes(state.get_remote_static()?.try_into().ok()?);
        Some(Self {
            state,
            remote,
            timestamp,
            sender: sender(initiation),
        })
    }

    /// Writes the response, but for its MACs: the keys, and how the far end names the session. `None` only when the
    /// system has no random numbers.
    pub(super) fn respond(
        mut self,
        identity: &Identity,
        own_index: u32,
        out: &mut [u8; RESPONSE_LENGTH],
    ) -> Option<(SessionKeys, u32)> {
        self.state
            .set_psk(usize::from(PRESHARED_KEY), &identity.preshared_key())
            .ok()?;
        out[..4].copy_from_slice(&TYPE_RESPONSE.to_le_bytes());
        out[4..8].copy_from_slice(&own_index.to_le_bytes());
        out[8..12].copy_from_slice(&self.sender.to_le_bytes());
        let written = self.state.write_message(&[], &mut out[NOISE_OF_RESPONSE]).ok()?;
        let (receiving, sending) = self.state.dangerously_get_raw_split();
        (written == NOISE_OF_RESPONSE.len()).then_some((SessionKeys { sending, receiving }, self.sender))
    }
}

fn builder<'a>() -> Option<Builder<'a>> {
    Builder::new(CONSTRUCTION.parse().ok()?).prologue(IDENTIFIER).ok()
}

fn sender(message: &[u8]) -> u32 {
    message
        .get(4..8)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}
