//! A tunnel without a cipher, for tests and benches: the lengths and the framing of WireGuard, and nothing secret.

use super::message::{DATA_HEADER, Message, ReceiverIndex, TAG, TYPE_DATA, TunnelIndex, ip_length};
use super::{DATA_OVERHEAD, HandshakeOutcome, Opened, Sealed, Train, Tunnel};
use crate::drop::DropReason;
use crate::time::Instant;
use std::time::Duration;

/// Always ready, never handshakes, authenticates nothing.
pub struct PlainTunnel {
    own: TunnelIndex,
    remote: TunnelIndex,
    counter: u64,
}

impl PlainTunnel {
    /// A tunnel that this end knows as `own` and the far end as `remote`.
    pub fn new(own: TunnelIndex, remote: TunnelIndex) -> Self {
        Self {
            own,
            remote,
            counter: 0,
        }
    }
}

impl Tunnel for PlainTunnel {
    fn is_ready(&self) -> bool {
        true
    }

    fn seal(&mut self, train: &Train<'_>, out: &mut [u8], _now: Instant) -> Sealed {
        let mut sealed = Sealed::default();
        let slots = out.chunks_mut(train.stride + DATA_OVERHEAD);
        for (packet, slot) in train.bytes.chunks(train.stride.max(1)).zip(slots) {
            let Some(datagram) = slot.get_mut(..packet.len() + DATA_OVERHEAD) else {
                break;
            };
            let (header, rest) = datagram.split_at_mut(DATA_HEADER);
            header[..4].copy_from_slice(&TYPE_DATA.to_le_bytes());
            header[4..8].copy_from_slice(&ReceiverIndex::of(self.remote).get().to_le_bytes());
            header[8..].copy_from_slice(&self.counter.to_le_bytes());
            let (body, tag) = rest.split_at_mut(packet.len());
            body.copy_from_slice(packet);
            tag.fill(0);
            self.counter += 1;
            sealed.packets += 1;
            sealed.bytes += packet.len() + DATA_OVERHEAD;
        }
        sealed
    }

    fn open(&mut self, datagram: &[u8], out: &mut [u8], _now: Instant) -> Opened {
        let Some(Message::Data { receiver, .. }) = Message::classify(datagram) else {
            return Opened::Drop(DropReason::NotWireguard);
        };
        let plaintext = &datagram[DATA_HEADER..datagram.len() - TAG];
        if receiver.tunnel() != self.own {
            return Opened::Drop(DropReason::Unauthenticated);
        }
        if plaintext.is_empty() {
            return Opened::Keepalive;
        }
        let Some(length) = ip_length(plaintext) else {
            return Opened::Drop(DropReason::NotVxlan);
        };
        let Some(room) = out.get_mut(..length) else {
            return Opened::Drop(DropReason::NoBuffer);
        };
        room.copy_from_slice(&plaintext[..length]);
        Opened::Packet(length)
    }

    fn handle_handshake(&mut self, _datagram: &[u8], _out: &mut [u8], _now: Instant) -> HandshakeOutcome {
        HandshakeOutcome::Drop(DropReason::Unauthenticated)
    }

    fn initiate(&mut self, _out: &mut [u8], _now: Instant) -> usize {
        0
    }

    fn tick(&mut self, _out: &mut [u8], _now: Instant) -> usize {
        0
    }

    fn session_age(&self) -> Option<Duration> {
        Some(Duration::ZERO)
    }

    fn rtt(&self) -> Option<Duration> {
        None
    }
}
