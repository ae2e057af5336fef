//! What is known about a connection, by protocol, and how long it is remembered without a packet.

use crate::wire::{Headers, Transport, protocol, tcp_flags};
use std::time::Duration;

/// TCP, established: not less than 2 h 4 min (RFC 5382 §5, REQ-5).
const TCP_ESTABLISHED: Duration = Duration::from_secs(2 * 3600 + 4 * 60);
/// TCP, opening or closing: not less than 4 min (RFC 5382 §5, REQ-5).
const TCP_TRANSITORY: Duration = Duration::from_secs(4 * 60);
/// TCP after a reset: long enough for what is still on the way.
const TCP_CLOSED: Duration = Duration::from_secs(10);
/// UDP: not less than 2 min (RFC 4787 §4.3, REQ-5).
const UDP: Duration = Duration::from_secs(2 * 60);
/// ICMP queries: not less than 60 s (RFC 5508 §3.2, REQ-2).
const ICMP: Duration = Duration::from_secs(60);
/// Everything else, fragments among it.
const OTHER: Duration = Duration::from_secs(2 * 60);

/// The state of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// TCP: no packet of the other side yet, or the handshake isn't over.
    TcpOpening,
    /// TCP: both sides have sent without SYN.
    TcpEstablished,
    /// TCP: a FIN was seen.
    TcpClosing,
    /// TCP: a RST was seen.
    TcpClosed,
    /// UDP.
    Udp,
    /// ICMP echo.
    Icmp,
    /// Another protocol, or fragments.
    Other,
}

impl Tracking {
    /// The state before the first packet.
    pub fn first(headers: &Headers) -> Self {
        match (headers.protocol, headers.transport) {
            (_, Transport::Fragment) => Self::Other,
            (protocol::TCP, _) => Self::TcpOpening,
            (protocol::UDP, _) => Self::Udp,
            (protocol::ICMP | protocol::ICMPV6, _) => Self::Icmp,
            _ => Self::Other,
        }
    }

    /// The state after a packet; `reply`: it comes from the side that didn't begin.
    pub fn advance(self, headers: &Headers, reply: bool) -> Self {
        let Transport::Tcp { flags, .. } = headers.transport else {
            return self;
        };
        if flags & tcp_flags::RST != 0 {
            return Self::TcpClosed;
        }
        match self {
            Self::TcpOpening | Self::TcpEstablished if flags & tcp_flags::FIN != 0 => Self::TcpClosing,
            Self::TcpClosed | Self::TcpClosing if flags & tcp_flags::SYN != 0 => Self::TcpOpening,
            Self::TcpOpening if reply && flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::ACK => {
                Self::TcpEstablished
            }
            // The opener's first segment behind the handshake: the SYN-ACK came before it.
            Self::TcpOpening if !reply && flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::ACK => {
                Self::TcpEstablished
            }
            state => state,
        }
    }

    /// How long the flow is remembered without a packet.
    pub const fn timeout(self) -> Duration {
        match self {
            Self::TcpOpening | Self::TcpClosing => TCP_TRANSITORY,
            Self::TcpEstablished => TCP_ESTABLISHED,
            Self::TcpClosed => TCP_CLOSED,
            Self::Udp => UDP,
            Self::Icmp => ICMP,
            Self::Other => OTHER,
        }
    }
}
