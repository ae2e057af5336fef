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

/// The flags that tell the steps of the handshake apart.
const HANDSHAKE: u8 = tcp_flags::SYN | tcp_flags::ACK;

/// The state of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// TCP: no packet of the other side yet.
    TcpOpening,
    /// TCP: the other side has accepted, and the handshake isn't over.
    TcpAnswered,
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

    /// The state after a packet. The opener alone establishes nothing, for an established connection is never evicted:
    /// whoever sends to addresses that nobody has would fill the table. `reply`: it comes from the side that didn't begin.
    pub fn advance(self, headers: &Headers, reply: bool) -> Self {
        let Transport::Tcp { flags, .. } = headers.transport else {
            return self;
        };
        if flags & tcp_flags::RST != 0 {
            return Self::TcpClosed;
        }
        match self {
            Self::TcpOpening | Self::TcpAnswered | Self::TcpEstablished if flags & tcp_flags::FIN != 0 => {
                Self::TcpClosing
            }
            Self::TcpClosed | Self::TcpClosing if flags & tcp_flags::SYN != 0 => Self::TcpOpening,
            Self::TcpOpening if reply && flags & HANDSHAKE == HANDSHAKE => Self::TcpAnswered,
            // In the middle of a connection that is older than this table, the other side's word is enough.
            Self::TcpOpening if reply && flags & HANDSHAKE == tcp_flags::ACK => Self::TcpEstablished,
            Self::TcpAnswered if flags & HANDSHAKE == tcp_flags::ACK => Self::TcpEstablished,
            state => state,
        }
    }

    /// How long the flow is remembered without a packet.
    pub const fn timeout(self) -> Duration {
        match self {
            Self::TcpOpening | Self::TcpAnswered | Self::TcpClosing => TCP_TRANSITORY,
            Self::TcpEstablished => TCP_ESTABLISHED,
            Self::TcpClosed => TCP_CLOSED,
            Self::Udp => UDP,
            Self::Icmp => ICMP,
            Self::Other => OTHER,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tcp_flags::{ACK, FIN, RST, SYN};

    /// The state after segments with these flags; `true`: of the other side.
    fn after(segments: &[(u8, bool)]) -> Tracking {
        segments
            .iter()
            .fold(Tracking::TcpOpening, |state, (flags, reply)| {
                let mut packet = Vec::new();
                etherparse::PacketBuilder::ipv4([172, 19, 1, 2], [172, 19, 2, 2], 64)
                    .tcp(40_000, 80, 1, 1000)
                    .write(&mut packet, &[])
                    .unwrap();
                packet[33] = *flags;
                state.advance(&Headers::parse(&packet).unwrap(), *reply)
            })
    }

    #[test]
    fn a_connection_is_established_by_both_sides_only() {
        let opening = [(SYN, false), (SYN | ACK, true)];
        assert_eq!(after(&opening), Tracking::TcpAnswered);
        assert_eq!(
            after(&[opening[0], opening[1], (ACK, false)]),
            Tracking::TcpEstablished
        );
        for flags in [ACK, SYN | ACK] {
            assert_eq!(after(&[(flags, false); 3]), Tracking::TcpOpening);
        }
        // After a restart of the datapath.
        assert_eq!(after(&[(ACK, false), (ACK, true)]), Tracking::TcpEstablished);
    }

    #[test]
    fn an_end_and_a_new_beginning_are_seen_in_every_state() {
        let established = [(SYN, false), (SYN | ACK, true), (ACK, false)];
        for length in 1..=3 {
            let begun = &established[..length];
            let with = |more: &[(u8, bool)]| after(&[begun, more].concat());
            assert_eq!(with(&[(FIN | ACK, true)]), Tracking::TcpClosing);
            assert_eq!(with(&[(RST, false)]), Tracking::TcpClosed);
            assert_eq!(with(&[(RST, true), (SYN, false)]), Tracking::TcpOpening);
        }
    }
}
