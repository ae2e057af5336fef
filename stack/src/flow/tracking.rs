//! What is known about a connection, by protocol, and how long it is remembered without a packet.

use super::tcp::{Connection, Segment, Stage, Step};
use crate::drop::DropReason;
use crate::stats::FlowState;
use crate::wire::{Headers, protocol};
use std::time::Duration;

/// TCP, established: not less than 2 h 4 min (RFC 5382 §5, REQ-5).
const TCP_ESTABLISHED: Duration = Duration::from_secs(2 * 3600 + 4 * 60);
/// TCP, opening, closing, or in TIME-WAIT: not less than 4 min (RFC 5382 §5, REQ-5).
const TCP_TRANSITORY: Duration = Duration::from_secs(4 * 60);
/// TCP after a reset: long enough for what is still on the way.
const TCP_CLOSED: Duration = Duration::from_secs(10);
/// UDP: not less than 2 min (RFC 4787 §4.3, REQ-5).
const UDP: Duration = Duration::from_secs(2 * 60);
/// ICMP queries: not less than 60 s (RFC 5508 §3.2, REQ-2).
const ICMP: Duration = Duration::from_secs(60);
/// Everything else.
const OTHER: Duration = Duration::from_secs(2 * 60);

/// The state of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// TCP.
    Tcp(Connection),
    /// UDP.
    Udp {
        /// Whether both sides have sent.
        answered: bool,
    },
    /// ICMP echo.
    Icmp {
        /// Whether both sides have sent.
        answered: bool,
    },
    /// Another protocol.
    Other {
        /// Whether both sides have sent.
        answered: bool,
    },
}

impl Tracking {
    /// The state after the first packet, of the side that begins.
    pub fn begin(headers: &Headers, segment: Option<&Segment>) -> Self {
        match (segment, headers.protocol) {
            (Some(segment), _) if segment.begins() => Self::Tcp(Connection::begin(segment)),
            _ => Self::pick_up(headers, segment, false),
        }
    }

    /// The state after a packet of a flow whose beginning wasn't seen; `reply`: it is of the side that didn't begin.
    pub fn pick_up(headers: &Headers, segment: Option<&Segment>, reply: bool) -> Self {
        let answered = reply;
        match (segment, headers.protocol) {
            (Some(segment), _) => Self::Tcp(Connection::pick_up(segment, reply)),
            (None, protocol::UDP) => Self::Udp { answered },
            (None, protocol::ICMP | protocol::ICMPV6) => Self::Icmp { answered },
            (None, _) => Self::Other { answered },
        }
    }

    /// Takes the next packet; `reply`: it is of the side that didn't begin.
    ///
    /// # Errors
    /// It can't be part of the flow.
    pub fn advance(&mut self, segment: Option<&Segment>, reply: bool) -> Result<Step, DropReason> {
        match (self, segment) {
            (Self::Tcp(connection), Some(segment)) => connection.advance(segment, reply),
            (Self::Tcp(_), None) => Err(DropReason::Malformed),
            (Self::Udp { answered } | Self::Icmp { answered } | Self::Other { answered }, _) => {
                *answered |= reply;
                Ok(Step::Passed)
            }
        }
    }

    /// How long the flow is remembered without a packet.
    pub const fn timeout(&self) -> Duration {
        match self {
            Self::Tcp(connection) => match connection.stage() {
                Stage::Opening | Stage::Answered | Stage::Closing | Stage::Finished => TCP_TRANSITORY,
                Stage::Established => TCP_ESTABLISHED,
                Stage::Closed => TCP_CLOSED,
            },
            Self::Udp { .. } => UDP,
            Self::Icmp { .. } => ICMP,
            Self::Other { .. } => OTHER,
        }
    }

    /// What a user is told.
    pub const fn state(&self) -> FlowState {
        match self {
            Self::Tcp(connection) => match connection.stage() {
                Stage::Opening | Stage::Answered => FlowState::Opening,
                Stage::Established => FlowState::Established,
                Stage::Closing => FlowState::Closing,
                Stage::Finished | Stage::Closed => FlowState::Closed,
            },
            Self::Udp { answered } | Self::Icmp { answered } | Self::Other { answered } => {
                if *answered {
                    FlowState::Answered
                } else {
                    FlowState::Unanswered
                }
            }
        }
    }

    /// Whether it is a TCP connection whose handshake isn't over, from its beginning.
    pub const fn is_half_open(&self) -> bool {
        matches!(self, Self::Tcp(connection) if connection.is_half_open())
    }

    /// Whether its beginning was elsewhere, or before this table.
    pub const fn is_picked_up(&self) -> bool {
        matches!(self, Self::Tcp(connection) if connection.is_picked_up())
    }

    /// Whether an ICMP error may quote a packet with this TCP sequence number; `reply`: one of the side that didn't begin.
    pub fn may_be_quoted(&self, sequence: Option<u32>, reply: bool) -> bool {
        match self {
            Self::Tcp(connection) => {
                sequence.is_some_and(|sequence| connection.awaits_acknowledgement(sequence, reply))
            }
            Self::Udp { .. } | Self::Icmp { .. } | Self::Other { .. } => true,
        }
    }

    /// Which flows go first when there is no room; `None`: never.
    pub(super) const fn dispensable(&self) -> Option<Dispensable> {
        Some(match self.state() {
            FlowState::Closed => Dispensable::Closed,
            FlowState::Opening => Dispensable::HalfOpen,
            FlowState::Unanswered => Dispensable::Unanswered,
            FlowState::Closing | FlowState::Answered => Dispensable::Idle,
            FlowState::Established => return None,
        })
    }
}

/// In the order in which flows leave a full table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Dispensable {
    /// Over, or expired.
    Closed,
    /// TCP: the handshake isn't over.
    HalfOpen,
    /// Another protocol: nobody has answered.
    Unanswered,
    /// Whatever else has been idle longest.
    Idle,
}
