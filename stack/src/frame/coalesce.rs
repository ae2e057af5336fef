//! The coalescer: glues packets of one flow, as they come out of a tunnel, to super-packets for a TUN device.
//!
//! What is glued could be cut again to the very same packets: only whole, checksum-verified segments in order, with
//! equal headers; anything else goes alone, behind what was glued before it. At most [`TRAINS`] flows at a time.

use super::checksum::{Sum, checksum};
use super::{Frame, FramePool, LARGE, Offload, Segmentation};
use crate::plan::PortId;
use crate::wire::{Headers, Transport, protocol, tcp_flags};

/// Flows whose packets are glued at the same time; the oldest train leaves for a new one.
const TRAINS: usize = 8;
/// Longest super-packet: an IP packet's length is 16 bits.
const LONGEST: usize = 65_535;
/// A datagram's train isn't longer than the kernel's own (`UDP_MAX_SEGMENTS`).
const MOST_DATAGRAMS: usize = 64;

/// What became of a packet given to [`Coalescer::push`], or of a train at [`Coalescer::flush`].
pub trait Deliver {
    /// Gives a frame to its port; the frame is recycled afterwards.
    fn deliver(&mut self, port: PortId, frame: &Frame);
    /// The pool had no frame for a packet.
    fn no_buffer(&mut self);
}

/// Open trains, oldest first.
#[derive(Default)]
pub struct Coalescer {
    trains: Vec<Train>,
}

struct Train {
    port: PortId,
    frame: Frame,
    headers: Headers,
    /// Payload bytes of every segment but the last.
    size: usize,
    /// Sequence number that the next TCP segment must have.
    next_sequence: u32,
    segments: usize,
    /// Nothing may follow: the last segment was short, or pushed.
    closed: bool,
}

impl Coalescer {
    /// An empty one; its room is made now.
    pub fn new() -> Self {
        Self {
            trains: Vec::with_capacity(TRAINS),
        }
    }

    /// Takes a packet for `port`: exactly `headers.total_length` bytes.
    pub fn push(
        &mut self,
        port: PortId,
        packet: &[u8],
        headers: &Headers,
        pool: &mut FramePool,
        out: &mut impl Deliver,
    ) {
        let same = self
            .trains
            .iter()
            .position(|train| train.is_same_flow(port, packet, headers));
        let glueable = is_glueable(packet, headers);
        if let Some(index) = same {
            if glueable && self.trains[index].append(packet, headers) {
                return;
            }
            // The order within a flow is kept: what is there goes first.
            let train = self.trains.remove(index);
            finish(train, pool, out);
        }
        let Some(mut frame) = pool.take(if glueable { LARGE } else { packet.len() }) else {
            out.no_buffer();
            return;
        };
        frame.fill(packet, Offload::NONE);
        if !glueable {
            out.deliver(port, &frame);
            pool.recycle(frame);
            return;
        }
        if self.trains.len() == TRAINS {
            let oldest = self.trains.remove(0);
            finish(oldest, pool, out);
        }
        self.trains.push(Train::new(port, frame, headers));
    }

    /// Sends every train on its way.
    pub fn flush(&mut self, pool: &mut FramePool, out: &mut impl Deliver) {
        for train in self.trains.drain(..) {
            finish(train, pool, out);
        }
    }
}

fn finish(mut train: Train, pool: &mut FramePool, out: &mut impl Deliver) {
    train.seal_headers();
    out.deliver(train.port, &train.frame);
    pool.recycle(train.frame);
}

/// Whether a packet may be in a train at all: nothing between its IP header and its transport, payload, no flag that
/// ends or resets anything, correct checksum.
fn is_glueable(packet: &[u8], headers: &Headers) -> bool {
    if headers.transport_offset != if headers.is_ipv6() { 40 } else { 20 } {
        return false;
    }
    let transport = &packet[headers.transport_offset..];
    let has_payload = headers.total_length > headers.payload_offset;
    let plain = match headers.transport {
        Transport::Tcp { flags, .. } => flags & !tcp_flags::PSH == tcp_flags::ACK,
        Transport::Udp { .. } => {
            let length = usize::from(u16::from_be_bytes([transport[4], transport[5]]));
            length == transport.len() && transport[6..8] != [0, 0]
        }
        Transport::Echo { .. }
        | Transport::IcmpError
        | Transport::IcmpOther
        | Transport::Fragment
        | Transport::Other => false,
    };
    if !plain || !has_payload {
        return false;
    }
    let length = u32::try_from(transport.len()).unwrap_or(u32::MAX);
    let mut sum = Sum::pseudo_header(headers.source, headers.destination, headers.protocol, length);
    sum.add(transport);
    sum.is_correct()
}

fn ports<'a>(packet: &'a [u8], headers: &Headers) -> Option<&'a [u8; 4]> {
    packet.get(headers.transport_offset..)?.first_chunk()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..]
        .first_chunk::<4>()
        .map_or(0, |word| u32::from_be_bytes(*word))
}

impl Train {
    fn new(port: PortId, frame: Frame, headers: &Headers) -> Self {
        let size = headers.total_length - headers.payload_offset;
        let mut train = Self {
            port,
            frame,
            headers: *headers,
            size,
            next_sequence: 0,
            segments: 1,
            closed: false,
        };
        if let Transport::Tcp { flags, .. } = headers.transport {
            let first = word(train.frame.packet(), headers.transport_offset + 4);
            train.next_sequence = first.wrapping_add(u32::try_from(size).unwrap_or(0));
            train.closed = flags & tcp_flags::PSH != 0;
        }
        train
    }

    fn is_same_flow(&self, port: PortId, packet: &[u8], headers: &Headers) -> bool {
        let mine = self.frame.packet();
        let addresses = if headers.is_ipv6() { 8..40 } else { 12..20 };
        // One with options or extension headers isn't glued, and yet has its place in the flow's order.
        let ports = ports(packet, headers);
        self.port == port
            && self.headers.protocol == headers.protocol
            && self.headers.is_ipv6() == headers.is_ipv6()
            && mine[addresses.clone()] == packet[addresses]
            && ports.is_some_and(|ports| self::ports(mine, &self.headers) == Some(ports))
    }

    /// Appends the payload of a glueable packet of the same flow. False: it can't follow.
    fn append(&mut self, packet: &[u8], headers: &Headers) -> bool {
        let payload = &packet[headers.payload_offset..];
        if self.closed
            || payload.len() > self.size
            || headers.payload_offset != self.headers.payload_offset
            || self.frame.packet().len() + payload.len() > LONGEST
            || !self.continues(packet, headers)
        {
            return false;
        }
        if !self.frame.append(payload) {
            return false;
        }
        self.segments += 1;
        self.next_sequence = self
            .next_sequence
            .wrapping_add(u32::try_from(payload.len()).unwrap_or(0));
        self.closed = payload.len() < self.size;
        match headers.transport {
            Transport::Tcp { flags, .. } => {
                if flags & tcp_flags::PSH != 0 {
                    self.frame.packet_mut()[headers.transport_offset + 13] |= tcp_flags::PSH;
                    self.closed = true;
                }
            }
            _ => self.closed |= self.segments == MOST_DATAGRAMS,
        }
        true
    }

    /// Whether every header field that a cutter would copy is equal, and every one that it counts up is next.
    fn continues(&self, packet: &[u8], headers: &Headers) -> bool {
        let mine = self.frame.packet();
        let same = if headers.is_ipv6() {
            mine[..4] == packet[..4] && mine[7] == packet[7]
        } else {
            let next = u16::from_be_bytes([mine[4], mine[5]]).wrapping_add(self.segments as u16);
            let identification = u16::from_be_bytes([packet[4], packet[5]]);
            mine[1] == packet[1]
                && mine[6..9] == packet[6..9]
                && (headers.dont_fragment || identification == next)
        };
        if !same || headers.protocol != protocol::TCP {
            return same;
        }
        let (mine, theirs) = (
            &mine[headers.transport_offset..],
            &packet[headers.transport_offset..],
        );
        let options = 20..headers.payload_offset - headers.transport_offset;
        word(theirs, 4) == self.next_sequence
            && mine[8..13] == theirs[8..13]
            && mine[14..16] == theirs[14..16]
            && mine[options.clone()] == theirs[options]
    }

    /// Makes the headers those of a super-packet: its length, and the pseudo header's sum as partial checksum.
    fn seal_headers(&mut self) {
        if self.segments == 1 {
            return;
        }
        let headers = self.headers;
        let is_tcp = headers.protocol == protocol::TCP;
        let size = u16::try_from(self.size).unwrap_or(u16::MAX);
        let checksum_at: u16 = if is_tcp { 16 } else { 6 };
        let packet = self.frame.packet_mut();
        let length = u16::try_from(packet.len()).unwrap_or(u16::MAX);
        if headers.is_ipv6() {
            packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
        } else {
            packet[2..4].copy_from_slice(&length.to_be_bytes());
            packet[10..12].fill(0);
            let sum = checksum(&packet[..20]);
            packet[10..12].copy_from_slice(&sum);
        }
        let transport = &mut packet[headers.transport_offset..];
        let transport_length = transport.len();
        if !is_tcp {
            let udp_length = u16::try_from(transport_length).unwrap_or(u16::MAX);
            transport[4..6].copy_from_slice(&udp_length.to_be_bytes());
        }
        let length_32 = u32::try_from(transport_length).unwrap_or(u32::MAX);
        let partial =
            Sum::pseudo_header(headers.source, headers.destination, headers.protocol, length_32).folded();
        let at = usize::from(checksum_at);
        transport[at..at + 2].copy_from_slice(&partial);
        let start = u16::try_from(headers.transport_offset).unwrap_or(0);
        self.frame.offload = Offload {
            segmentation: if is_tcp {
                Segmentation::Tcp { size, ecn: false }
            } else {
                Segmentation::Udp { size }
            },
            partial_checksum: Some((start, checksum_at)),
        };
    }
}
