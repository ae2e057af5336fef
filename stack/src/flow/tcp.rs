//! A TCP connection as a filter in its middle sees it (RFC 9293): which segments its ends may accept.
//!
//! What an end has sent and told is kept for both ends, and every segment is held against it, as in G. van Rooij, "Real
//! Stateful TCP Packet Filtering in IP Filter" (SANE 2000):
//!
//! 1. it begins no later than what the other end has room for;
//! 2. it ends no earlier than a window before what its end has already sent;
//! 3. it acknowledges nothing that wasn't sent;
//! 4. nor what was acknowledged longer than a window ago.
//!
//! ```text
//!             SYN             SYN+ACK              ACK                 FIN               FIN
//!  (no flow) ─────► Opening ─────────► Answered ─────────► Established ─────► Closing ─────► Finished
//!                        ▲                                   │ RST, the next expected          │
//!                        │ SYN                               ▼                                 │ SYN
//!                        └─────────────────────────────── Closed        begins anew ◄──────────┘
//! ```
//!
//! What isn't certain is left to the ends: a SYN amidst a connection, and a RST in the window that isn't the next
//! segment expected, are passed on and change nothing, for their receiver asks back (RFC 5961 §3, §4).

use crate::drop::DropReason;
use crate::wire::{Headers, Transport, tcp_flags};
use tcp_flags::{ACK, FIN, PSH, RST, SYN};

/// The urgent pointer counts (RFC 9293 §3.1).
const URG: u8 = 0x20;
/// Congestion experienced (RFC 3168 §6.1), with CWR beside it: they tell nothing about a connection's state.
const ECE: u8 = 0x40;
/// The largest shift of a window (RFC 7323 §2.3).
const LARGEST_SCALE: u8 = 14;
/// The window that no scale enlarges.
const UNSCALED: u32 = 65_535;
/// The largest window there is.
const LARGEST_WINDOW: u32 = UNSCALED << LARGEST_SCALE;
/// The least window of an end whose scale isn't known.
const OVERTAKEN: u32 = 4 << 20;
/// How far an acknowledgement may lag, whatever the window.
const LAGGING: u32 = UNSCALED + 512;

/// What counts of a segment, or of a super-packet of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    flags: u8,
    sequence: u32,
    /// The sequence number behind it: SYN and FIN take one each (RFC 9293 §3.4).
    end: u32,
    acknowledgement: u32,
    window: u16,
    /// What a SYN says of the scale of all windows but its own (RFC 7323 §2.2).
    scale: Option<u8>,
}

impl Segment {
    /// The segment of a packet, if it is one.
    pub fn of(headers: &Headers, packet: &[u8]) -> Option<Self> {
        let Transport::Tcp {
            flags,
            sequence,
            acknowledgement,
            window,
            ..
        } = headers.transport
        else {
            return None;
        };
        let payload = headers.total_length - headers.payload_offset;
        let length = payload as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let options = packet.get(headers.transport_offset + 20..headers.payload_offset);
        Some(Self {
            flags: flags & !(PSH | ECE | tcp_flags::CWR),
            sequence,
            end: sequence.wrapping_add(length),
            acknowledgement,
            window,
            scale: options.filter(|_| flags & SYN != 0).and_then(window_scale),
        })
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether its flags are some that an end would send (RFC 9293 §3.5, §3.6, §3.10).
    pub fn has_legal_flags(&self) -> bool {
        const SYN_ACK: u8 = SYN | ACK;
        const RST_ACK: u8 = RST | ACK;
        const FIN_ACK: u8 = FIN | ACK;
        matches!(self.flags & !URG, SYN | ACK | FIN_ACK) || matches!(self.flags, SYN_ACK | RST | RST_ACK)
    }

    /// Whether it asks for a connection.
    pub fn begins(&self) -> bool {
        self.has(SYN) && !self.has(ACK)
    }

    /// Whether it can only be the answer to a request for one.
    pub fn answers(&self) -> bool {
        self.has(SYN) && self.has(ACK)
    }

    fn is_bare(&self) -> bool {
        self.flags == ACK && self.end == self.sequence
    }
}

/// The window scale option of a SYN (RFC 7323 §2.2).
fn window_scale(mut options: &[u8]) -> Option<u8> {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const SCALE: u8 = 3;
    loop {
        match options {
            [NOTHING, rest @ ..] => options = rest,
            [SCALE, 3, scale, ..] => return Some((*scale).min(LARGEST_SCALE)),
            [kind, length, ..] if *kind != END && *length >= 2 => {
                options = options.get(usize::from(*length)..)?
            }
            _ => return None,
        }
    }
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Only the end that began has sent; or, picked up, only one end was seen.
    Opening,
    /// The other end has accepted, or both have begun (RFC 5382 §4.1, REQ-2); the handshake isn't over.
    Answered,
    /// Both ends have agreed.
    Established,
    /// One end has sent all it had to.
    Closing,
    /// Both have.
    Finished,
    /// One end has reset it.
    Closed,
}

/// What becomes of a segment that isn't dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It passes, and is part of the connection.
    Passed,
    /// It passes, and changes nothing: its receiver knows better.
    Unchanged,
    /// It begins another connection between the same ends: this one is over.
    Anew,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    /// Behind the highest sequence number that it has sent.
    sent: u32,
    /// The highest sequence number that the other end ever had room for.
    limit: u32,
    /// The highest acknowledgement it has sent; before the first one, the sequence number of the other end's SYN.
    acknowledged: u32,
    /// The largest window it has told, and at least 1; 0: nothing was seen of it yet.
    window: u32,
    scale: u8,
    /// Its SYN had the option.
    scales: bool,
    finished: bool,
}

impl End {
    const UNSEEN: Self = Self {
        sent: 0,
        limit: 0,
        acknowledged: 0,
        window: 0,
        scale: 0,
        scales: false,
        finished: false,
    };

    /// An end as its SYN shows it.
    fn of_syn(segment: &Segment) -> Self {
        Self {
            sent: segment.end,
            limit: segment.end,
            acknowledged: segment.acknowledgement,
            window: u32::from(segment.window).max(1),
            scale: segment.scale.unwrap_or(0),
            scales: segment.scale.is_some(),
            finished: false,
        }
    }

    fn is_seen(&self) -> bool {
        self.window != 0
    }
}

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The end that began, and the other one.
    ends: [End; 2],
    stage: Stage,
    /// It was seen in its middle first: windows may be scaled by as much as they can be, and more may have been sent
    /// than was seen.
    picked_up: bool,
}

fn after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

fn later(a: u32, b: u32) -> u32 {
    if after(a, b) { a } else { b }
}

impl Connection {
    /// What a SYN begins.
    pub fn begin(syn: &Segment) -> Self {
        let other = End {
            sent: 0,
            acknowledged: syn.sequence,
            ..End::UNSEEN
        };
        Self {
            ends: [End::of_syn(syn), other],
            stage: Stage::Opening,
            picked_up: false,
        }
    }

    /// What a segment in the middle of a connection shows of it; `reply`: it goes to the end that is taken for the one
    /// that began.
    pub fn pick_up(segment: &Segment, reply: bool) -> Self {
        let window = loose_window(segment);
        let sender = End {
            sent: segment.end,
            limit: segment.end.wrapping_add(LARGEST_WINDOW),
            acknowledged: segment.acknowledgement,
            window,
            finished: segment.has(FIN),
            ..End::UNSEEN
        };
        let receiver = End {
            sent: segment.acknowledgement,
            limit: segment.acknowledgement.wrapping_add(window),
            acknowledged: segment.sequence,
            ..End::UNSEEN
        };
        let stage = match segment.flags & (RST | FIN) {
            0 => Stage::Opening,
            FIN => Stage::Closing,
            _ => Stage::Closed,
        };
        Self {
            ends: if reply {
                [receiver, sender]
            } else {
                [sender, receiver]
            },
            stage,
            picked_up: true,
        }
    }

    /// How far it is.
    pub const fn stage(&self) -> Stage {
        self.stage
    }

    /// Whether its beginning was seen, and its handshake isn't over.
    pub const fn is_half_open(&self) -> bool {
        !self.picked_up && matches!(self.stage, Stage::Opening | Stage::Answered)
    }

    /// Whether it was picked up in its middle.
    pub const fn is_picked_up(&self) -> bool {
        self.picked_up
    }

    /// Takes the next segment; `reply`: it is of the end that didn't begin.
    ///
    /// # Errors
    /// It can't be part of the connection: it is dropped, and nothing has changed.
    pub fn advance(&mut self, segment: &Segment, reply: bool) -> Result<Step, DropReason> {
        if !segment.has_legal_flags() {
            return Err(DropReason::TcpFlags);
        }
        if segment.has(RST) {
            return self.reset(segment, reply);
        }
        if segment.begins() {
            return Ok(self.begin_again(segment, reply));
        }
        if segment.answers() && !self.picked_up && reply && self.stage <= Stage::Answered {
            return self.answer(segment);
        }
        self.transfer(segment, reply)
    }

    /// Whether the end that didn't begin (`reply`), or the one that did, has sent this sequence number and waits for its
    /// acknowledgement, give or take a window: what an ICMP error about it must quote (RFC 5927 §4.1).
    pub fn awaits_acknowledgement(&self, sequence: u32, reply: bool) -> bool {
        let [sender, receiver] = self.seen_from(reply);
        let margin = receiver.window.max(LAGGING);
        let first = if receiver.is_seen() {
            receiver.acknowledged
        } else {
            sender.sent
        };
        sender.is_seen()
            && !after(first.wrapping_sub(margin), sequence)
            && !after(sequence, sender.sent.wrapping_add(margin))
    }

    /// Sender and receiver.
    fn seen_from(&self, reply: bool) -> [End; 2] {
        let [first, second] = self.ends;
        if reply { [second, first] } else { [first, second] }
    }

    /// A SYN without ACK.
    fn begin_again(&mut self, segment: &Segment, reply: bool) -> Step {
        let [opener, other] = &mut self.ends;
        match self.stage {
            // Whether a connection in TIME-WAIT may be left for this one, its end knows (RFC 9293 §3.10.7.4).
            Stage::Finished | Stage::Closed => Step::Anew,
            // The same SYN again, or another attempt: as long as nothing is agreed, the other end answers the last one.
            Stage::Opening | Stage::Answered if !reply && !self.picked_up => {
                let again = other.acknowledged.wrapping_sub(segment.sequence) <= UNSCALED;
                if again {
                    opener.sent = later(segment.end, opener.sent);
                    opener.limit = later(segment.end, opener.limit);
                } else {
                    *self = Self::begin(segment);
                }
                Step::Passed
            }
            // Both begin (RFC 9293 §3.5, figure 7).
            Stage::Opening if !self.picked_up => {
                *other = End {
                    acknowledged: other.acknowledged,
                    limit: segment.end.wrapping_add(opener.window),
                    ..End::of_syn(segment)
                };
                opener.acknowledged = segment.sequence;
                opener.limit = opener.sent.wrapping_add(other.window);
                self.agree_on_scales();
                self.stage = Stage::Answered;
                Step::Passed
            }
            // RFC 5961 §4.2: its receiver answers with what it expects.
            Stage::Opening | Stage::Answered | Stage::Established | Stage::Closing => Step::Unchanged,
        }
    }

    /// A SYN with ACK of the end that didn't begin, in the handshake.
    fn answer(&mut self, segment: &Segment) -> Result<Step, DropReason> {
        let [opener, other] = &mut self.ends;
        // A further one with another number: its end has forgotten the first (a cookie of another minute, RFC 4987 §3.6).
        if other.is_seen() && segment.sequence == opener.acknowledged {
            return self.transfer(segment, true);
        }
        let acknowledged = segment.acknowledgement;
        let first = if other.is_seen() {
            opener.sent.wrapping_sub(UNSCALED)
        } else {
            other.acknowledged
        };
        if !after(acknowledged, first) || after(acknowledged, opener.sent) {
            return Err(DropReason::TcpOutOfWindow);
        }
        *other = End {
            limit: later(segment.end, segment.sequence.wrapping_add(1 + opener.window)),
            ..End::of_syn(segment)
        };
        opener.acknowledged = segment.sequence;
        opener.limit = later(opener.limit, acknowledged.wrapping_add(other.window));
        self.agree_on_scales();
        self.stage = Stage::Answered;
        Ok(Step::Passed)
    }

    /// Windows are scaled when both ends have offered it (RFC 7323 §2.2).
    fn agree_on_scales(&mut self) {
        if !self.ends.iter().all(|end| end.scales) {
            self.ends.iter_mut().for_each(|end| end.scale = 0);
        }
    }

    /// A RST ends the connection if its number is the next one expected; if it is another one in the window, its
    /// receiver asks back (RFC 5961 §3.2).
    fn reset(&mut self, segment: &Segment, reply: bool) -> Result<Step, DropReason> {
        let [sender, receiver] = self.seen_from(reply);
        let sequence = segment.sequence;
        let ends = match (sender.is_seen(), receiver.is_seen()) {
            // In answer to a SYN: what it acknowledges counts (RFC 9293 §3.10.7.3).
            (false, _) if !self.picked_up => {
                let acknowledged = segment.acknowledgement;
                let fits = segment.has(ACK)
                    && after(acknowledged, sender.acknowledged)
                    && !after(acknowledged, receiver.sent);
                fits.then_some(true)
            }
            // Of what the receiver expects nothing is known.
            (_, false) => Some(sequence == sender.sent),
            (_, true) => {
                let expected =
                    sequence == receiver.acknowledged || sender.is_seen() && sequence == sender.sent;
                let fits = !after(receiver.acknowledged, sequence) && !after(sequence, sender.limit);
                (expected || fits).then_some(expected)
            }
        };
        match ends {
            None => Err(DropReason::TcpOutOfWindow),
            Some(false) => Ok(Step::Unchanged),
            Some(true) => {
                self.stage = Stage::Closed;
                Ok(Step::Passed)
            }
        }
    }

    /// Every other segment.
    fn transfer(&mut self, segment: &Segment, reply: bool) -> Result<Step, DropReason> {
        let [mut sender, mut receiver] = self.seen_from(reply);
        let both_seen = sender.is_seen() && receiver.is_seen();
        if !self.picked_up && !both_seen {
            // The other end has a connection that is older than this SYN: it says so, and is reset (RFC 9293 §3.5.1).
            let asks = reply && segment.is_bare() && self.stage == Stage::Opening;
            return if asks {
                Ok(Step::Unchanged)
            } else {
                Err(DropReason::TcpOutOfWindow)
            };
        }
        let acknowledged = segment.acknowledgement;
        let window = if self.picked_up {
            loose_window(segment)
        } else {
            let scale = if segment.has(SYN) { 0 } else { sender.scale };
            u32::from(segment.window) << scale
        };
        let lowest = sender.sent.wrapping_sub(receiver.window);
        let highest = if self.picked_up {
            receiver.limit
        } else {
            receiver.sent
        };
        // A window before what its receiver waits for an acknowledgement of (RFC 5961 §5.2), which is as far behind what it
        // has sent.
        let lagging = (2 * sender.window.max(window)).clamp(LAGGING, LARGEST_WINDOW);
        let agrees = self.stage != Stage::Answered || reply || after(acknowledged, sender.acknowledged);
        if after(segment.sequence, sender.limit)
            || receiver.is_seen() && after(lowest, segment.end)
            || after(acknowledged, highest)
            || after(receiver.sent.wrapping_sub(lagging), acknowledged)
            || !agrees
        {
            return Err(DropReason::TcpOutOfWindow);
        }
        let met = !sender.is_seen();
        // What was sent into a window that had no room for it (a probe) may be sent again (RFC 9293 §3.8.6.1).
        if after(segment.end, sender.limit) && receiver.is_seen() {
            receiver.window = (receiver.window + segment.end.wrapping_sub(sender.limit)).min(LARGEST_WINDOW);
        }
        sender.window = sender.window.max(window).max(1);
        sender.sent = later(segment.end, sender.sent);
        if met {
            sender.acknowledged = acknowledged;
        } else if !segment.has(SYN) {
            // Until the handshake is over, the number of the other end's SYN stands there.
            sender.acknowledged = later(acknowledged, sender.acknowledged);
        }
        sender.finished |= segment.has(FIN);
        if self.picked_up {
            receiver.sent = later(acknowledged, receiver.sent);
        }
        let room = acknowledged.wrapping_add(window.max(1));
        receiver.limit = if met {
            later(room, receiver.sent)
        } else {
            later(room, receiver.limit)
        };
        self.ends = if reply {
            [receiver, sender]
        } else {
            [sender, receiver]
        };
        self.settle(segment, reply);
        Ok(Step::Passed)
    }

    /// The stage after a segment that was taken. Whoever begins establishes nothing alone: an established connection is
    /// never evicted, and a flood of SYNs to addresses that nobody has would fill the table.
    fn settle(&mut self, segment: &Segment, reply: bool) {
        let finished = self.ends.iter().filter(|end| end.finished).count();
        self.stage = match (self.stage, finished) {
            (Stage::Closed, _) => Stage::Closed,
            (_, 2) => Stage::Finished,
            (_, 1) => Stage::Closing,
            (Stage::Answered, _) if !reply && !segment.has(SYN) => Stage::Established,
            (Stage::Opening, _) if self.ends.iter().all(End::is_seen) => Stage::Established,
            (stage, _) => stage,
        };
    }
}

/// The window of an end whose scale isn't known: the largest that it can stand for; and no less than what may have been
/// told before by a segment that this one was overtaken by.
fn loose_window(segment: &Segment) -> u32 {
    (u32::from(segment.window) << LARGEST_SCALE).max(OVERTAKEN)
}

#[cfg(test)]
pub(super) mod tests;
