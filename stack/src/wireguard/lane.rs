//! One WireGuard endpoint as strangers meet it: a key, and a door that costs little to knock at.

use super::message::{COOKIE_REPLY_LENGTH, Message};
use crate::drop::DropReason;
use crate::plan::{PrivateKey, PublicKey};
use crate::time::Instant;
use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, TunnResult};
use boringtun::x25519;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Handshake messages a second that are answered without asking for a cookie (§5.3): a whole site of 254 hosts may
/// start at once; at about 0.2 ms each, a flood takes 5 % of a core at most before cookies begin.
const HANDSHAKES_PER_SECOND: u64 = 256;
const RATE_PERIOD: Duration = Duration::from_secs(1);

/// A lane's key and its guard against floods.
pub struct Lane {
    private_key: x25519::StaticSecret,
    public_key: x25519::PublicKey,
    guard: RateLimiter,
    guard_reset: Instant,
    /// What tunnels are given: the guard has counted their messages already.
    unlimited: Arc<RateLimiter>,
}

/// What the door made of a handshake message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// An initiation for the peer with this key. The key is what the sender claims and could encrypt to us; the tunnel
    /// finds out whether it is true.
    Initiation(PublicKey),
    /// A response or a cookie reply: for the tunnel that its receiver index names.
    Answer,
    /// Under load: a cookie reply of this length stands at the start of the buffer, for the sender.
    CookieReply(usize),
    /// Not to be used.
    Drop(DropReason),
}

impl Lane {
    /// A lane with this key.
    pub fn new(key: &PrivateKey, now: Instant) -> Self {
        let private_key = x25519::StaticSecret::from(*key.as_bytes());
        let public_key = x25519::PublicKey::from(&private_key);
        Self {
            guard: RateLimiter::new(&public_key, HANDSHAKES_PER_SECOND),
            guard_reset: now,
            unlimited: Arc::new(RateLimiter::new(&public_key, u64::MAX)),
            private_key,
            public_key,
        }
    }

    /// The key that peers know it by.
    pub fn public_key(&self) -> PublicKey {
        PublicKey::from_bytes(self.public_key.to_bytes())
    }

    /// Looks at a message that [`Message::classify`] didn't call data, before any tunnel does. `out` has room for
    /// [`COOKIE_REPLY_LENGTH`] bytes.
    pub fn admit(&mut self, source: IpAddr, datagram: &[u8], out: &mut [u8], now: Instant) -> Admission {
        if now.saturating_since(self.guard_reset) >= RATE_PERIOD {
            self.guard_reset = now;
            self.guard.reset_count();
        }
        if !matches!(
            Message::classify(datagram),
            Some(Message::Initiation | Message::Response { .. } | Message::CookieReply { .. })
        ) {
            return Admission::Drop(DropReason::NotWireguard);
        }
        let Some(out) = out.get_mut(..COOKIE_REPLY_LENGTH) else {
            return Admission::Drop(DropReason::NoBuffer);
        };
        match self.guard.verify_packet(Some(source), datagram, out) {
            Ok(Packet::HandshakeInit(initiation)) => {
                match parse_handshake_anon(&self.private_key, &self.public_key, &initiation) {
                    Ok(half) => Admission::Initiation(PublicKey::from_bytes(half.peer_static_public)),
                    Err(error) => Admission::Drop(drop_reason(&error)),
                }
            }
            Ok(Packet::HandshakeResponse(_) | Packet::PacketCookieReply(_)) => Admission::Answer,
            Ok(Packet::PacketData(_)) => Admission::Drop(DropReason::NotWireguard),
            Err(TunnResult::WriteToNetwork(reply)) => Admission::CookieReply(reply.len()),
            Err(TunnResult::Err(error)) => Admission::Drop(drop_reason(&error)),
            Err(TunnResult::Done | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..)) => {
                Admission::Drop(DropReason::Unauthenticated)
            }
        }
    }

    pub(super) fn private_key(&self) -> x25519::StaticSecret {
        self.private_key.clone()
    }

    pub(super) fn unlimited(&self) -> Arc<RateLimiter> {
        Arc::clone(&self.unlimited)
    }
}

/// boringtun's errors, in the words of the counters.
pub(super) fn drop_reason(error: &WireGuardError) -> DropReason {
    match error {
        WireGuardError::DuplicateCounter
        | WireGuardError::InvalidCounter
        | WireGuardError::WrongTai64nTimestamp => DropReason::Replayed,
        WireGuardError::WrongKey => DropReason::UnknownKey,
        WireGuardError::UnderLoad => DropReason::RateLimited,
        WireGuardError::DestinationBufferTooSmall => DropReason::NoBuffer,
        WireGuardError::IncorrectPacketLength | WireGuardError::WrongPacketType => DropReason::NotWireguard,
        // What was sealed isn't an IP packet.
        WireGuardError::InvalidPacket => DropReason::NotVxlan,
        WireGuardError::UnexpectedPacket
        | WireGuardError::WrongIndex
        | WireGuardError::InvalidTai64nTimestamp
        | WireGuardError::InvalidMac
        | WireGuardError::InvalidAeadTag
        | WireGuardError::NoCurrentSession
        | WireGuardError::LockFailed
        | WireGuardError::ConnectionExpired => DropReason::Unauthenticated,
    }
}
