//! The cutter: what a super-packet stands for, packet by packet (TCP segmentation offload, UDP segmentation offload).
//!
//! Every packet gets its own lengths, IPv4 identification and header checksum, TCP sequence number and flags, and a
//! whole transport checksum. A packet that isn't a super-packet passes as the only one, with its checksum finished.

use super::checksum::{Sum, checksum};
use super::offload::{TCP_CHECKSUM, UDP_CHECKSUM};
use super::{Frame, Offload, Segmentation};
use crate::drop::DropReason;
use crate::wire::{Headers, protocol, tcp_flags};

/// Most packets that one super-packet may stand for: a TCP sender's segments carry 48 bytes or more
/// (`TCP_MIN_SND_MSS`), and one frame mustn't keep a shard busy for long.
const MOST_SEGMENTS: usize = 1_366;

/// The packets that a frame stands for.
pub struct Segments<'a> {
    packet: &'a [u8],
    headers: &'a Headers,
    offload: Offload,
    /// Payload bytes of every packet but the last.
    size: usize,
    /// Packets written.
    done: usize,
    count: usize,
}

impl<'a> Segments<'a> {
    /// The packets of `packet`, whose headers were parsed. Malformed when `offload` contradicts them.
    pub fn new(packet: &'a [u8], headers: &'a Headers, offload: Offload) -> Result<Self, DropReason> {
        let packet = packet.get(..headers.total_length).ok_or(DropReason::Malformed)?;
        if !offload.agrees_with(headers) {
            return Err(DropReason::Malformed);
        }
        let payload = headers.total_length - headers.payload_offset;
        let size = match offload.segmentation {
            Segmentation::None => payload,
            Segmentation::Tcp { size, .. } | Segmentation::Udp { size } => usize::from(size),
        };
        let count = if size == 0 {
            1
        } else {
            payload.div_ceil(size).max(1)
        };
        if count > MOST_SEGMENTS {
            return Err(DropReason::Malformed);
        }
        let offload = if count == 1 {
            Offload {
                segmentation: Segmentation::None,
                ..offload
            }
        } else {
            offload
        };
        Ok(Self {
            packet,
            headers,
            offload,
            size: size.min(payload),
            done: 0,
            count,
        })
    }

    /// How many packets are still to come.
    pub fn remaining(&self) -> usize {
        self.count - self.done
    }

    /// Length of every packet but the last, which may be shorter.
    pub fn packet_length(&self) -> usize {
        self.headers.payload_offset + self.size
    }

    /// Length of the next packet; 0 when there is none.
    pub fn next_length(&self) -> usize {
        if self.done == self.count {
            return 0;
        }
        self.headers.payload_offset + self.payload_range().len()
    }

    fn payload_range(&self) -> std::ops::Range<usize> {
        let start = self.headers.payload_offset + self.done * self.size;
        start..(start + self.size).min(self.packet.len())
    }

    /// Writes the next packet to the start of `out` and returns its length; 0 when there is none, or no room for it.
    pub fn write_next(&mut self, out: &mut [u8]) -> usize {
        let length = self.next_length();
        let Some(out) = out.get_mut(..length) else {
            return 0;
        };
        if length == 0 {
            return 0;
        }
        if self.offload.segmentation == Segmentation::None {
            out.copy_from_slice(&self.packet[..length]);
            finish_checksum(out, self.offload, self.headers.protocol);
        } else {
            let payload = self.payload_range();
            let (header, body) = out.split_at_mut(self.headers.payload_offset);
            header.copy_from_slice(&self.packet[..self.headers.payload_offset]);
            body.copy_from_slice(&self.packet[payload]);
            self.finish_segment(out);
        }
        self.done += 1;
        length
    }

    fn finish_segment(&self, out: &mut [u8]) {
        let headers = self.headers;
        let length = out.len();
        // Both fit: the packet they come from has 16-bit lengths.
        let length_16 = u16::try_from(length).unwrap_or(u16::MAX);
        let index = u32::try_from(self.done).unwrap_or(u32::MAX);
        if headers.is_ipv6() {
            out[4..6].copy_from_slice(&(length_16 - 40).to_be_bytes());
        } else {
            out[2..4].copy_from_slice(&length_16.to_be_bytes());
            let identification = u16::from_be_bytes([out[4], out[5]]).wrapping_add(index as u16);
            out[4..6].copy_from_slice(&identification.to_be_bytes());
            out[10..12].fill(0);
            let sum = checksum(&out[..headers.transport_offset]);
            out[10..12].copy_from_slice(&sum);
        }
        let transport = &mut out[headers.transport_offset..];
        let transport_length = transport.len();
        let checksum_at = match self.offload.segmentation {
            Segmentation::Udp { .. } => {
                let udp_length = u16::try_from(transport_length).unwrap_or(u16::MAX);
                transport[4..6].copy_from_slice(&udp_length.to_be_bytes());
                UDP_CHECKSUM
            }
            Segmentation::Tcp { .. } | Segmentation::None => {
                let first = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
                let size = u32::try_from(self.size).unwrap_or(0);
                let sequence = first.wrapping_add(index.wrapping_mul(size));
                transport[4..8].copy_from_slice(&sequence.to_be_bytes());
                if self.done + 1 < self.count {
                    transport[13] &= !(tcp_flags::FIN | tcp_flags::PSH);
                }
                if self.done > 0 {
                    transport[13] &= !tcp_flags::CWR;
                }
                TCP_CHECKSUM
            }
        };
        transport[checksum_at..checksum_at + 2].fill(0);
        let length_32 = u32::try_from(transport_length).unwrap_or(u32::MAX);
        let mut sum = Sum::pseudo_header(headers.source, headers.destination, headers.protocol, length_32);
        sum.add(transport);
        let sum = nonzero_for_udp(sum.checksum(), headers.protocol);
        transport[checksum_at..checksum_at + 2].copy_from_slice(&sum);
    }
}

/// Finishes a partial checksum in place: the field holds the pseudo header's sum. Nothing is done beyond the packet.
fn finish_checksum(packet: &mut [u8], offload: Offload, protocol: u8) {
    let Some((start, offset)) = offload.partial_checksum else {
        return;
    };
    let (start, offset) = (usize::from(start), usize::from(offset));
    let Some(covered) = packet.get_mut(start..) else {
        return;
    };
    let mut sum = Sum::default();
    sum.add(covered);
    if let Some(field) = covered.get_mut(offset..offset + 2) {
        field.copy_from_slice(&nonzero_for_udp(sum.checksum(), protocol));
    }
}

impl Frame {
    /// Leaves the last segment of a TCP super-packet out. False, and nothing is done, when it is no such, or ends there.
    pub(crate) fn leave_out_last_segment(&mut self, headers: &mut Headers) -> bool {
        let Segmentation::Tcp { size, .. } = self.offload.segmentation else {
            return false;
        };
        let partial = self.offload.partial_checksum;
        let payload = headers.total_length - headers.payload_offset;
        let kept = (payload.saturating_sub(1) / usize::from(size.max(1))) * usize::from(size);
        if kept == 0 || partial.is_none_or(|(start, _)| usize::from(start) != headers.transport_offset) {
            return false;
        }
        headers.total_length = headers.payload_offset + kept;
        self.truncate(headers.total_length);
        // Both fit: the packet was longer, and its lengths are of 16 bits.
        let length = u16::try_from(headers.total_length).unwrap_or(u16::MAX);
        let transport_length = headers.total_length - headers.transport_offset;
        let transport_length = u32::try_from(transport_length).unwrap_or(u32::MAX);
        let sum = Sum::pseudo_header(
            headers.source,
            headers.destination,
            headers.protocol,
            transport_length,
        );
        let packet = self.packet_mut();
        if headers.is_ipv6() {
            packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
        } else {
            packet[2..4].copy_from_slice(&length.to_be_bytes());
            packet[10..12].fill(0);
            let sum = checksum(&packet[..headers.transport_offset]);
            packet[10..12].copy_from_slice(&sum);
        }
        let at = headers.transport_offset + TCP_CHECKSUM;
        packet[at..at + 2].copy_from_slice(&sum.folded());
        true
    }

    /// Finishes the partial checksum of a packet that isn't a super-packet, in place.
    pub fn finish_checksum(&mut self, headers: &Headers) {
        let offload = std::mem::take(&mut self.offload);
        finish_checksum(self.packet_mut(), offload, headers.protocol);
    }
}

/// A UDP checksum of zero means that there is none: a sum of zero is written as its other form (RFC 768).
fn nonzero_for_udp(checksum: [u8; 2], number: u8) -> [u8; 2] {
    if checksum == [0, 0] && number == protocol::UDP {
        [0xff, 0xff]
    } else {
        checksum
    }
}
