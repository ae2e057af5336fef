//! WireGuard (J. A. Donenfeld, *WireGuard: Next Generation Kernel Network Tunnel*, 2020): sessions with peers,
//! without their sockets.
//!
//! The walk of a datagram that comes in: [`Message::classify`] looks at type and length and trusts nothing →
//! * data goes to the tunnel of the peer that its receiver index names: [`Tunnel::open`];
//! * everything else passes the [`Lane`] first ([`Lane::admit`]): a message whose first MAC is wrong costs one hash, a
//!   flood costs cookies (§5.3 of the paper) instead of Diffie–Hellman, and an initiation is given the public key of
//!   the peer it claims to come from. Then [`Tunnel::handle_handshake`].
//!
//! The walk out: [`Tunnel::is_ready`], else [`Tunnel::initiate`] and the caller keeps the packet; then
//! [`Tunnel::seal`], a whole [`Train`] at once into the buffer that the socket sends. A tunnel queues no packet.
//!
//! A tunnel is one (peer, own lane, remote lane): owned by one shard, never shared. The handshake is snow's, the cipher
//! of sessions is ring's; what is between is here.

mod cookie;
mod handshake;
mod lane;
mod limits;
mod message;
mod noise;
mod peers;
mod plain;
mod remote;
mod replay;
mod session;
mod timers;
mod tunnels;

pub use lane::{Admission, Lane};
pub use message::{
    COOKIE_REPLY_LENGTH, DATA_OVERHEAD, INITIATION_LENGTH, Message, RESPONSE_LENGTH, ReceiverIndex,
    TunnelIndex,
};
pub use noise::NoiseTunnel;
pub use peers::{Chosen, Installed, Peers, WAITING_FOR_SESSION};
pub use plain::PlainTunnel;
pub use tunnels::{TunnelEntry, TunnelPlace};

use crate::drop::DropReason;
use crate::time::Instant;
use std::time::Duration;

/// How often [`Tunnel::tick`] wants to be called: what is due by §6 is that much late at most.
pub const TICK_INTERVAL: Duration = Duration::from_millis(250);

/// Plaintext packets of equal stride in one buffer; the last may be shorter. Each is an IP packet (§5.4.6), padded or
/// not.
#[derive(Clone, Copy, Debug)]
pub struct Train<'a> {
    /// The packets, one behind the other.
    pub bytes: &'a [u8],
    /// Length of every packet but the last. Not zero.
    pub stride: usize,
}

/// What [`Tunnel::seal`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sealed {
    /// Packets of the train that were sealed, from its start.
    pub packets: usize,
    /// Bytes written: whole datagrams.
    pub bytes: usize,
}

/// What [`Tunnel::open`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// An IP packet of this length stands at the start of the buffer, without its padding.
    Packet(usize),
    /// An authentic datagram without a packet.
    Keepalive,
    /// Neither.
    Drop(DropReason),
}

/// What [`Tunnel::handle_handshake`] made of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeOutcome {
    /// A response of this length stands at the start of the buffer, for the sender. The session can be sent with when
    /// the first datagram arrived in it.
    Reply(usize),
    /// The handshake that this end began is complete: packets that wait can be sealed. A keepalive of this length
    /// stands at the start of the buffer: the far end sends nothing before it arrived.
    Established {
        /// Its length.
        reply: usize,
    },
    /// Understood; nothing to send.
    Nothing,
    /// Not to be used.
    Drop(DropReason),
}

/// A session with one peer, over and over: whole trains in and out, so that a cipher which works on many packets at
/// once can stand behind the same door.
///
/// Buffers for everything but [`Tunnel::seal`] and [`Tunnel::open`] have room for [`INITIATION_LENGTH`] bytes.
pub trait Tunnel: Send {
    /// Whether there is a session to seal with.
    fn is_ready(&self) -> bool;

    /// Seals packets of `train` into `out`, datagram `i` at `i · (stride + DATA_OVERHEAD)`: as many as there is room
    /// for, and none when the tunnel isn't ready.
    fn seal(&mut self, train: &Train<'_>, out: &mut [u8], now: Instant) -> Sealed;

    /// Opens one data datagram. `out` has room for the datagram without its first 16 bytes.
    fn open(&mut self, datagram: &[u8], out: &mut [u8], now: Instant) -> Opened;

    /// Takes a handshake message that the [`Lane`] admitted.
    fn handle_handshake(&mut self, datagram: &[u8], out: &mut [u8], now: Instant) -> HandshakeOutcome;

    /// Begins a handshake unless one is under way: the length of the initiation at the start of `out`, or 0.
    fn initiate(&mut self, out: &mut [u8], now: Instant) -> usize;

    /// Does what is due, every [`TICK_INTERVAL`]: the length of the datagram at the start of `out` (an initiation or
    /// a keepalive), or 0.
    fn tick(&mut self, out: &mut [u8], now: Instant) -> usize;

    /// How long ago the session in use was made; `None` without one.
    fn session_age(&self) -> Option<Duration>;

    /// Round trip of the last handshake that this end began.
    fn rtt(&self) -> Option<Duration>;

    /// Datagrams of the session in use that never arrived here, of 1000; `None` without a session, or when nobody
    /// counts.
    fn loss_permille(&self) -> Option<u16> {
        None
    }
}

#[cfg(test)]
mod tests;
