//! TCP's refusal: a reset for a segment that no connection wants (RFC 9293 §3.10.7.1).

use super::original::{Fragment, Original};
use super::{Addresses, HOP_LIMIT, PROTOCOL_TCP};
use crate::frame::checksum::Sum;
use std::net::IpAddr;

const HEADER: usize = 20;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// The reset for the segment in `packet`. `None` for a reset, for a fragment, for a packet to or from a group, and
/// for what isn't TCP.
pub fn reset(packet: &[u8], out: &mut [u8]) -> Option<usize> {
    let segment = Original::parse(packet)?;
    if segment.protocol != PROTOCOL_TCP
        || segment.fragment != Fragment::Whole
        || !segment.may_cause_error(false)
    {
        return None;
    }
    let header: &[u8; HEADER] = segment.transport.first_chunk()?;
    let data_offset = usize::from(header[12] >> 4) * 4;
    let data = segment.transport.get(data_offset.max(HEADER)..)?;
    let flags = header[13];
    if flags & RST != 0 {
        return None;
    }
    let number = |offset: usize| -> Option<u32> {
        Some(u32::from_be_bytes(
            header.get(offset..offset + 4)?.try_into().ok()?,
        ))
    };
    let (sequence, acknowledgement, reply) = if flags & ACK != 0 {
        (number(8)?, 0, RST)
    } else {
        let length =
            u32::try_from(data.len()).ok()? + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        (0, number(4)?.wrapping_add(length), RST | ACK)
    };

    let addresses = Addresses::new(segment.destination, segment.source)?;
    let length = addresses.header_length() + HEADER;
    let answer = addresses.write_header(out.get_mut(..length)?, PROTOCOL_TCP, HOP_LIMIT)?;
    answer.fill(0);
    answer[..2].copy_from_slice(&header[2..4]);
    answer[2..4].copy_from_slice(&header[..2]);
    answer[4..8].copy_from_slice(&sequence.to_be_bytes());
    answer[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
    answer[12] = 0x50;
    answer[13] = reply;
    let checksum = checksum(segment.destination, segment.source, answer);
    answer[16..18].copy_from_slice(&checksum);
    Some(length)
}

/// The checksum of a segment whose own field is zero.
fn checksum(source: IpAddr, destination: IpAddr, segment: &[u8]) -> [u8; 2] {
    let length = u32::try_from(segment.len()).unwrap_or(u32::MAX);
    let mut sum = Sum::pseudo_header(source, destination, PROTOCOL_TCP, length);
    sum.add(segment);
    sum.checksum()
}
