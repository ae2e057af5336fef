//! boringtun behind [`Tunnel`], with its gaps closed.
//!
//! * It queues packets that have no session yet, up to 256: it is never handed one.
//! * After 90 s of handshakes without an answer it falls silent for ever: the next [`Tunnel::initiate`], or the
//!   keepalive that is due, begins anew.
//! * A keepalive that is due without a session would join that queue: keepalives are timed here.
//! * It panics when a buffer is too small: every buffer is measured first.
//! * As a responder it would begin a handshake of its own while its answer is still on the way: it waits for
//!   Rekey-Timeout, as the kernel's implementation does.

use super::lane::drop_reason;
use super::message::{DATA_HEADER, Message};
use super::{DATA_OVERHEAD, HandshakeOutcome, INITIATION_LENGTH, Lane, Opened, Sealed, Train, Tunnel};
use crate::drop::DropReason;
use crate::plan::{PeerId, PresharedKey, PublicKey};
use crate::time::Instant;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use std::time::Duration;

/// Rekey-Timeout (§6.1 of the paper).
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);

/// A tunnel of WireGuard proper.
pub struct BoringTunnel {
    tunn: Tunn,
    /// Whether there is a session to seal with: `tunn` reads its clock to tell, so it is asked only when the answer
    /// may have changed.
    ready: bool,
    keepalive: Option<Duration>,
    last_traffic: Instant,
    /// When an initiation of the far end was answered, until its session is confirmed.
    answered: Option<Instant>,
}

impl BoringTunnel {
    /// A tunnel of `lane` with the peer that has this public key. `peer` makes the receiver indices of its sessions,
    /// and is at most 2²⁴−1; `keepalive` is in seconds.
    pub fn new(
        lane: &Lane,
        peer: PeerId,
        public_key: &PublicKey,
        preshared_key: Option<&PresharedKey>,
        keepalive: Option<u16>,
        now: Instant,
    ) -> Self {
        Self {
            tunn: Tunn::new(
                lane.private_key(),
                x25519::PublicKey::from(*public_key.as_bytes()),
                preshared_key.map(|key| *key.as_bytes()),
                None,
                peer.0,
                Some(lane.unlimited()),
            ),
            ready: false,
            keepalive: keepalive
                .filter(|seconds| *seconds > 0)
                .map(|seconds| Duration::from_secs(u64::from(seconds))),
            last_traffic: now,
            answered: None,
        }
    }

    fn refresh(&mut self) {
        self.ready = self.tunn.time_since_last_handshake().is_some();
        if self.ready {
            self.answered = None;
        }
    }
}

impl Tunnel for BoringTunnel {
    fn is_ready(&self) -> bool {
        self.ready
    }

    fn seal(&mut self, train: &Train<'_>, out: &mut [u8], now: Instant) -> Sealed {
        let mut sealed = Sealed::default();
        if !self.ready {
            return sealed;
        }
        let slots = out.chunks_mut(train.stride + DATA_OVERHEAD);
        for (packet, slot) in train.bytes.chunks(train.stride.max(1)).zip(slots) {
            if slot.len() < packet.len() + DATA_OVERHEAD {
                break;
            }
            let TunnResult::WriteToNetwork(datagram) = self.tunn.encapsulate(packet, slot) else {
                break;
            };
            sealed.packets += 1;
            sealed.bytes += datagram.len();
        }
        self.last_traffic = now;
        sealed
    }

    fn open(&mut self, datagram: &[u8], out: &mut [u8], now: Instant) -> Opened {
        let Some(Message::Data { .. }) = Message::classify(datagram) else {
            return Opened::Drop(DropReason::NotWireguard);
        };
        if out.len() < datagram.len() - DATA_HEADER {
            return Opened::Drop(DropReason::NoBuffer);
        }
        let opened = match self.tunn.decapsulate(None, datagram, out) {
            TunnResult::Done => Opened::Keepalive,
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Opened::Packet(packet.len())
            }
            TunnResult::Err(error) => return Opened::Drop(drop_reason(&error)),
            TunnResult::WriteToNetwork(_) => return Opened::Drop(DropReason::NotWireguard),
        };
        self.last_traffic = now;
        if !self.ready {
            self.refresh();
        }
        opened
    }

    fn handle_handshake(&mut self, datagram: &[u8], out: &mut [u8], now: Instant) -> HandshakeOutcome {
        let Some(message) = Message::classify(datagram) else {
            return HandshakeOutcome::Drop(DropReason::NotWireguard);
        };
        if out.len() < INITIATION_LENGTH {
            return HandshakeOutcome::Drop(DropReason::NoBuffer);
        }
        let result = match message {
            Message::Data { .. } => return HandshakeOutcome::Drop(DropReason::NotWireguard),
            Message::Initiation | Message::Response { .. } | Message::CookieReply { .. } => {
                self.tunn.decapsulate(None, datagram, out)
            }
        };
        let written = match result {
            TunnResult::WriteToNetwork(reply) => reply.len(),
            TunnResult::Done => return HandshakeOutcome::Nothing,
            TunnResult::Err(error) => return HandshakeOutcome::Drop(drop_reason(&error)),
            TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
                return HandshakeOutcome::Drop(DropReason::NotWireguard);
            }
        };
        self.last_traffic = now;
        self.refresh();
        if matches!(message, Message::Response { .. }) {
            HandshakeOutcome::Established { reply: written }
        } else {
            if !self.ready {
                self.answered = Some(now);
            }
            HandshakeOutcome::Reply(written)
        }
    }

    fn initiate(&mut self, out: &mut [u8], now: Instant) -> usize {
        let answer_under_way = self
            .answered
            .is_some_and(|answered| now.saturating_since(answered) < REKEY_TIMEOUT);
        if answer_under_way || out.len() < INITIATION_LENGTH {
            return 0;
        }
        self.answered = None;
        let TunnResult::WriteToNetwork(initiation) = self.tunn.format_handshake_initiation(out, false) else {
            return 0;
        };
        self.last_traffic = now;
        initiation.len()
    }

    fn tick(&mut self, out: &mut [u8], now: Instant) -> usize {
        if out.len() < INITIATION_LENGTH {
            return 0;
        }
        let written = match self.tunn.update_timers(out) {
            TunnResult::WriteToNetwork(datagram) => datagram.len(),
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => 0,
        };
        self.refresh();
        if written > 0 {
            self.last_traffic = now;
            return written;
        }
        let keepalive_due = self
            .keepalive
            .is_some_and(|interval| now.saturating_since(self.last_traffic) >= interval);
        if !keepalive_due {
            return 0;
        }
        // Whatever comes of it, the next one is an interval away: a peer that is gone is asked no oftener.
        self.last_traffic = now;
        if self.ready
            && let TunnResult::WriteToNetwork(datagram) = self.tunn.encapsulate(&[], out)
        {
            return datagram.len();
        }
        self.initiate(out, now)
    }

    fn session_age(&self) -> Option<Duration> {
        self.tunn.time_since_last_handshake()
    }

    fn rtt(&self) -> Option<Duration> {
        let (_, _, _, _, milliseconds) = self.tunn.stats();
        milliseconds.map(|milliseconds| Duration::from_millis(u64::from(milliseconds)))
    }
    fn loss_permille(&self) -> Option<u16> {
        self.ready.then(|| {
            let (_, _, _, loss, _) = self.tunn.stats();
            (loss.clamp(0.0, 1.0) * 1000.0) as u16
        })
    }
}
