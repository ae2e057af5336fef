//! IPv4 fragmentation (RFC 791 §3.2) of the rare packet that lets itself be fragmented and doesn't fit.

use super::checksum::checksum;
use super::{Frame, Offload};
use crate::plan::Mtu;
use crate::wire::Headers;

const HEADER: usize = 20;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;

/// Writes the fragment whose data starts `offset` bytes into the data of `packet`, and returns where the next one
/// starts (the length of the data when this was the last).
pub fn write(packet: &[u8], headers: &Headers, mtu: Mtu, offset: usize, out: &mut Frame) -> usize {
    let data = &packet[HEADER..headers.total_length];
    // All but the last carry a multiple of eight bytes.
    let most = (usize::from(mtu.get()) - HEADER) & !7;
    let end = (offset + most).min(data.len());
    let mut header = [0; HEADER];
    header.copy_from_slice(&packet[..HEADER]);
    let original = u16::from_be_bytes([header[6], header[7]]);
    let units = (original & OFFSET_MASK) + u16::try_from(offset / 8).unwrap_or(OFFSET_MASK);
    let more = if end < data.len() {
        MORE_FRAGMENTS
    } else {
        original & MORE_FRAGMENTS
    };
    header[2..4].copy_from_slice(
        &u16::try_from(HEADER + end - offset)
            .unwrap_or(u16::MAX)
            .to_be_bytes(),
    );
    header[6..8].copy_from_slice(&(units | more).to_be_bytes());
    header[10..12].fill(0);
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    out.fill(&header, Offload::NONE);
    out.append(&data[offset..end]);
    end
}
