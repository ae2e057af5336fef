//! ICMP (RFC 792, RFC 4443): echo replies, and errors about packets that go no further.

use super::original::{Fragment, Original};
use super::{Addresses, HOP_LIMIT, PROTOCOL_ICMP, PROTOCOL_ICMPV6};
use crate::frame::checksum::{self, Sum};
use crate::plan::Mtu;
use std::net::IpAddr;

const HEADER: usize = 8;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
/// A fragment header (RFC 8200 §4.5): its number, and its length.
const PROTOCOL_FRAGMENT: u8 = 44;
const FRAGMENT_HEADER: usize = 8;
/// The longest error: IPv4, RFC 1812 §4.3.2.3.
const LONGEST_IPV4: usize = 576;
/// The longest error: IPv6, RFC 4443 §2.4 c.
const LONGEST_IPV6: usize = 1280;

/// What a sender is told about its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// Its hop limit reached zero.
    TimeExceeded,
    /// It is longer than the next link takes, and may not be fragmented: fragmentation-needed (RFC 1191 §4) or
    /// packet-too-big (RFC 4443 §3.2).
    TooBig {
        /// What the link takes.
        mtu: Mtu,
    },
    /// Nothing listens there.
    PortUnreachable,
    /// Nobody has that address.
    HostUnreachable,
    /// A rule forbids it.
    Prohibited,
}

impl IcmpError {
    /// Type, code, and the second word, by family.
    const fn fields(self, ipv6: bool) -> (u8, u8, u32) {
        match (self, ipv6) {
            (Self::TimeExceeded, false) => (11, 0, 0),
            (Self::TimeExceeded, true) => (3, 0, 0),
            (Self::TooBig { mtu }, false) => (3, 4, mtu.get() as u32),
            (Self::TooBig { mtu }, true) => (2, 0, mtu.get() as u32),
            (Self::PortUnreachable, false) => (3, 3, 0),
            (Self::PortUnreachable, true) => (1, 4, 0),
            (Self::HostUnreachable, false) => (3, 1, 0),
            (Self::HostUnreachable, true) => (1, 3, 0),
            (Self::Prohibited, false) => (3, 13, 0),
            (Self::Prohibited, true) => (1, 1, 0),
        }
    }
}

/// The reply to an echo request (RFC 792 p. 14, RFC 4443 §4.2): the same packet, turned round. Where the request may be
/// cut, so may the reply, under the name that the request has: its sender uses no name twice at a time.
/// `None` when `packet` isn't a whole echo request with a correct checksum.
pub fn echo_reply(packet: &[u8], out: &mut [u8]) -> Option<usize> {
    let request = Original::parse(packet)?;
    if request.fragment != Fragment::Whole {
        return None;
    }
    let (reply, mut sum) = match (request.destination, request.protocol, *request.transport.first()?) {
        (IpAddr::V4(_), PROTOCOL_ICMP, ECHO_REQUEST) => (ECHO_REPLY, Sum::default()),
        (IpAddr::V6(_), PROTOCOL_ICMPV6, ECHO_REQUEST_V6) => (
            ECHO_REPLY_V6,
            pseudo_header(request.source, request.destination, request.transport.len())?,
        ),
        _ => return None,
    };
    sum.add(request.transport);
    if request.transport.len() < HEADER || request.transport[1] != 0 || !sum.is_correct() {
        return None;
    }
    let addresses = Addresses::new(request.destination, request.source)?;
    let payload = write_reply_header(addresses, &request, out)?;
    let length = addresses.header_length() + payload.len();
    let payload = payload.get_mut(payload.len() - request.transport.len()..)?;
    payload.copy_from_slice(request.transport);
    payload[0] = reply;
    // Source and destination changed places, which no sum sees: only the type's word differs.
    let before = [request.transport[0], request.transport[1]];
    let updated = checksum::update([payload[2], payload[3]], before, [reply, 0]);
    payload[2..4].copy_from_slice(&updated);
    Some(length)
}

/// Writes the header of a reply, with what says that it may be cut, and gives what stands behind the IP header.
fn write_reply_header<'a>(
    addresses: Addresses,
    request: &Original<'_>,
    out: &'a mut [u8],
) -> Option<&'a mut [u8]> {
    let start = addresses.header_length();
    let fragment_header = match (addresses, request.identification) {
        (Addresses::V6(..), Some(_)) => FRAGMENT_HEADER,
        (Addresses::V6(..), None) | (Addresses::V4(..), _) => 0,
    };
    let packet = out.get_mut(..start + fragment_header + request.transport.len())?;
    addresses.write_header(packet, request.protocol, HOP_LIMIT)?;
    let (header, payload) = packet.split_at_mut_checked(start)?;
    match (addresses, request.identification) {
        (_, None) => {}
        (Addresses::V4(..), Some(identification)) => {
            header[4..6].copy_from_slice(&(identification as u16).to_be_bytes());
            header[6..8].fill(0);
            header[10..12].fill(0);
            let sum = checksum::checksum(header);
            header[10..12].copy_from_slice(&sum);
        }
        // RFC 6946: offset 0, and none to follow.
        (Addresses::V6(..), Some(identification)) => {
            header[6] = PROTOCOL_FRAGMENT;
            let fragment = payload.first_chunk_mut::<FRAGMENT_HEADER>()?;
            fragment[..4].copy_from_slice(&[request.protocol, 0, 0, 0]);
            fragment[4..].copy_from_slice(&identification.to_be_bytes());
        }
    }
    Some(payload)
}

/// An error about `packet` to its sender, from `source`, quoting as much of it as the standards let.
/// `None` when they forbid it (an error about an error, a later fragment, a group), or `source` is of another family.
pub fn error(error: IcmpError, source: IpAddr, packet: &[u8], out: &mut [u8]) -> Option<usize> {
    let original = Original::parse(packet)?;
    if !original.may_cause_error(matches!(error, IcmpError::TooBig { .. })) {
        return None;
    }
    let addresses = Addresses::new(source, original.source)?;
    let (protocol, longest) = match addresses {
        Addresses::V4(..) => (PROTOCOL_ICMP, LONGEST_IPV4),
        Addresses::V6(..) => (PROTOCOL_ICMPV6, LONGEST_IPV6),
    };
    let headers = addresses.header_length() + HEADER;
    let quoted = packet.get(..packet.len().min(longest - headers))?;
    let length = headers + quoted.len();
    let message = addresses.write_header(out.get_mut(..length)?, protocol, HOP_LIMIT)?;
    let (header, quote) = message.split_at_mut_checked(HEADER)?;
    let (kind, code, word) = error.fields(source.is_ipv6());
    header[..4].copy_from_slice(&[kind, code, 0, 0]);
    header[4..].copy_from_slice(&word.to_be_bytes());
    quote.copy_from_slice(quoted);
    let mut sum = match addresses {
        Addresses::V4(..) => Sum::default(),
        Addresses::V6(..) => pseudo_header(source, original.source, message.len())?,
    };
    sum.add(message);
    message[2..4].copy_from_slice(&sum.checksum());
    Some(length)
}

fn pseudo_header(source: IpAddr, destination: IpAddr, length: usize) -> Option<Sum> {
    let length = u32::try_from(length).ok()?;
    Some(Sum::pseudo_header(source, destination, PROTOCOL_ICMPV6, length))
}
