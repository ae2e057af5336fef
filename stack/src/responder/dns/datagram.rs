//! The datagram that an answer goes in.

use super::super::{Addresses, HOP_LIMIT};
use crate::frame::checksum::Sum;
use crate::wire::{Endpoints, protocol};

const HEADER: usize = 8;

/// Writes a whole IP packet to where a query came from, and gives its length: `write` writes the answer into the room
/// that it is given, and tells its length. `None` when it writes nothing, or there is no room.
pub fn datagram(
    query: &Endpoints,
    out: &mut [u8],
    write: impl FnOnce(&mut [u8]) -> Option<usize>,
) -> Option<usize> {
    let addresses = Addresses::new(query.destination, query.source)?;
    let headers = addresses.header_length() + HEADER;
    let length = headers + write(out.get_mut(headers..)?)?;
    let datagram = addresses.write_header(out.get_mut(..length)?, protocol::UDP, HOP_LIMIT)?;
    let size = u16::try_from(datagram.len()).ok()?;
    datagram
        .get_mut(..2)?
        .copy_from_slice(&query.destination_port.to_be_bytes());
    datagram
        .get_mut(2..4)?
        .copy_from_slice(&query.source_port.to_be_bytes());
    datagram.get_mut(4..6)?.copy_from_slice(&size.to_be_bytes());
    datagram.get_mut(6..8)?.fill(0);
    let mut sum = Sum::pseudo_header(query.destination, query.source, protocol::UDP, u32::from(size));
    sum.add(datagram);
    // RFC 768: zero means that there is none.
    let checksum = match sum.checksum() {
        [0, 0] => [0xff, 0xff],
        checksum => checksum,
    };
    datagram.get_mut(6..8)?.copy_from_slice(&checksum);
    Some(length)
}
