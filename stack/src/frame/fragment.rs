//! Fragmentation (RFC 791 §3.2, RFC 8200 §4.5) of the rare packet that lets itself be cut and doesn't fit.

use super::checksum::checksum;
use super::{Frame, Offload};
use crate::plan::Mtu;
use crate::wire::Headers;

const IPV6_HEADER: usize = 40;
const IPV6_FRAGMENT_HEADER: usize = 8;
const MORE_FRAGMENTS: u16 = 0x2000;
const IPV6_MORE_FRAGMENTS: u16 = 1;

/// Writes the fragment whose data starts `offset` bytes into the data of a packet which may be cut, and returns where
/// the next one starts; `None` behind the last. Every fragment has all of the packet's headers up to its data: with IPv4
/// its options, with IPv6 the extension headers up to the fragment header, whose identification it keeps.
pub fn write(packet: &[u8], headers: &Headers, mtu: Mtu, offset: usize, out: &mut Frame) -> Option<usize> {
    let start = headers
        .fragment
        .map_or(headers.transport_offset, |field| field.data_offset);
    let (header, data) = packet.get(..headers.total_length)?.split_at_checked(start)?;
    // All but the last carry a multiple of eight bytes.
    let most = usize::from(mtu.get()).saturating_sub(start) & !7;
    let end = (offset + most.max(8)).min(data.len());
    let part = data.get(offset..end).filter(|part| !part.is_empty())?;
    out.fill(header, Offload::NONE);
    out.append(part);
    let field = headers.fragment.filter(|field| field.is_part());
    let is_last = end == data.len() && field.is_none_or(|field| !field.more);
    // All fit: the packet they come from has 16-bit lengths.
    let at = u16::try_from(offset + field.map_or(0, |field| field.offset)).unwrap_or(u16::MAX);
    let length = u16::try_from(start + part.len()).unwrap_or(u16::MAX);
    let header = &mut out.packet_mut()[..start];
    if headers.is_ipv6() {
        let more = if is_last { 0 } else { IPV6_MORE_FRAGMENTS };
        header[4..6].copy_from_slice(&(length - IPV6_HEADER as u16).to_be_bytes());
        if let Some(fragment) = header.last_chunk_mut::<IPV6_FRAGMENT_HEADER>() {
            fragment[2..4].copy_from_slice(&(at | more).to_be_bytes());
        }
    } else {
        let more = if is_last { 0 } else { MORE_FRAGMENTS };
        header[2..4].copy_from_slice(&length.to_be_bytes());
        header[6..8].copy_from_slice(&((at / 8) | more).to_be_bytes());
        header[10..12].fill(0);
        let sum = checksum(header);
        header[10..12].copy_from_slice(&sum);
    }
    Some(end)
}
