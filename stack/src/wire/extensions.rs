//! The extension headers of an IPv6 packet (RFC 8200 §4), by an allow-list: what isn't on it is dropped, never skipped
//! over.
//!
//! | carried | not carried |
//! |---|---|
//! | hop-by-hop options, as the first header only (§4.1) | ESP: nobody can see what is in it |
//! | routing, but of types 0 (RFC 5095) and 4 (segment routing) | mobility, HIP, Shim6, and those for experiments |
//! | fragment, once | no next header |
//! | destination options | more than 8 headers, or 256 bytes of them |
//! | authentication (RFC 4302) | |
//!
//! Any other number names a transport.

use super::headers::{FragmentField, IPV6_HEADER};
use crate::drop::DropReason;

/// Numbers of extension headers (IANA: IPv6 Extension Header Types).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ESP: u8 = 50;
const AUTHENTICATION: u8 = 51;
const NO_NEXT_HEADER: u8 = 59;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;
const EXPERIMENTS: [u8; 2] = [253, 254];

/// Source routes: anybody's amplifier (RFC 5095), and a domain's own business (RFC 8754 §5.1).
const REFUSED_ROUTES: [u8; 2] = [0, 4];
/// Every extension header is at least that long, and a multiple of it.
const UNIT: usize = 8;
const FRAGMENT_HEADER: usize = 8;
/// An authentication header without its check value (RFC 4302 §2).
const AUTHENTICATION_HEADER: usize = 12;
const MOST_HEADERS: usize = 8;
const MOST_BYTES: usize = 256;
/// What a payload length can say.
const LONGEST_PAYLOAD: usize = 65_535;

/// What a chain of extension headers leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    /// The number of what stands behind it.
    pub(super) protocol: u8,
    /// Where that starts.
    pub(super) end: usize,
    /// The fragment header, if there is one. Behind one of a later fragment is data, where the chain ends.
    pub(super) fragment: Option<FragmentHeader>,
}

/// A fragment header (RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FragmentHeader {
    pub(super) field: FragmentField,
    pub(super) identification: u32,
    /// The number of the first header of the data that was cut.
    pub(super) protocol: u8,
}

impl Chain {
    /// Walks from an IPv6 header, which says that `protocol` follows, to the transport. `packet` ends where its header
    /// says that it does.
    pub(super) fn walk(packet: &[u8], protocol: u8) -> Result<Self, DropReason> {
        let mut chain = Self {
            protocol,
            end: IPV6_HEADER,
            fragment: None,
        };
        let mut headers = 0;
        while is_extension(chain.protocol)? {
            let is_misplaced = match chain.protocol {
                HOP_BY_HOP => headers > 0,
                FRAGMENT => chain.fragment.is_some(),
                _ => false,
            };
            headers += 1;
            if is_misplaced || headers > MOST_HEADERS {
                return Err(DropReason::ExtensionHeader);
            }
            if chain.fragment.is_some_and(|fragment| fragment.field.offset > 0) {
                break;
            }
            chain.step(packet)?;
        }
        Ok(chain)
    }

    /// Walks over one header.
    fn step(&mut self, packet: &[u8]) -> Result<(), DropReason> {
        let rest = packet.get(self.end..).unwrap_or_default();
        let header = rest.first_chunk::<UNIT>().ok_or(self.cut_short())?;
        if self.protocol == ROUTING && REFUSED_ROUTES.contains(&header[2]) {
            return Err(DropReason::ExtensionHeader);
        }
        let end = self.end + length_of(self.protocol, header[1]).ok_or(DropReason::Malformed)?;
        if end > IPV6_HEADER + MOST_BYTES {
            return Err(DropReason::ExtensionHeader);
        }
        if end > packet.len() {
            return Err(self.cut_short());
        }
        self.end = end;
        if self.protocol == FRAGMENT {
            let fragment = FragmentHeader::parse(header, end);
            fragment.check(packet.len() - end)?;
            self.fragment = Some(fragment);
        }
        self.protocol = header[0];
        Ok(())
    }

    /// Why a packet is dropped that ends before its headers do: a first fragment must have them all (RFC 7112 §5).
    pub(super) fn cut_short(&self) -> DropReason {
        match self.fragment {
            Some(fragment) if fragment.field.more => DropReason::FragmentHeader,
            _ => DropReason::Malformed,
        }
    }
}

impl FragmentHeader {
    fn parse(header: &[u8; UNIT], end: usize) -> Self {
        let offset = u16::from_be_bytes([header[2], header[3]]);
        Self {
            field: FragmentField {
                offset: usize::from(offset & !7),
                more: offset & 1 != 0,
                data_offset: end,
            },
            identification: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            protocol: header[0],
        }
    }

    /// The lengths that RFC 8200 §4.5 demands, of a fragment of `data` bytes.
    fn check(&self, data: usize) -> Result<(), DropReason> {
        let FragmentField {
            offset, data_offset, ..
        } = self.field;
        let payload = data_offset - FRAGMENT_HEADER - IPV6_HEADER + offset + data;
        if !self.field.has_legal_length(data) || payload > LONGEST_PAYLOAD {
            return Err(DropReason::Malformed);
        }
        Ok(())
    }
}

/// Whether a number names an extension header that is carried.
fn is_extension(protocol: u8) -> Result<bool, DropReason> {
    match protocol {
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS => Ok(true),
        ESP | NO_NEXT_HEADER | MOBILITY | HIP | SHIM6 => Err(DropReason::ExtensionHeader),
        _ if EXPERIMENTS.contains(&protocol) => Err(DropReason::ExtensionHeader),
        _ => Ok(false),
    }
}

/// The length of a header whose second byte is `length`. `None`: a header of this kind can't be so long.
fn length_of(protocol: u8, length: u8) -> Option<usize> {
    match protocol {
        FRAGMENT => Some(FRAGMENT_HEADER),
        AUTHENTICATION => {
            // In units of four bytes, less two of them; with IPv6 a multiple of eight (RFC 4302 §2.2).
            let bytes = (usize::from(length) + 2) * 4;
            (bytes >= AUTHENTICATION_HEADER && bytes.is_multiple_of(UNIT)).then_some(bytes)
        }
        _ => Some((usize::from(length) + 1) * UNIT),
    }
}

/// Walks the chain of a packet that is quoted in an ICMP error, of which only the beginning may be there: the number of
/// the transport and where it starts. `None` when it isn't in the quote, or behind something that isn't understood.
pub(super) fn quoted(quote: &[u8], protocol: u8) -> Option<(u8, &[u8])> {
    let mut rest = quote.get(IPV6_HEADER..)?;
    let mut protocol = protocol;
    // Each step takes eight bytes or more away.
    while is_extension(protocol).ok()? {
        let header = rest.first_chunk::<UNIT>()?;
        if protocol == FRAGMENT && FragmentHeader::parse(header, 0).field.offset > 0 {
            return None;
        }
        rest = rest.get(length_of(protocol, header[1])?..)?;
        protocol = header[0];
    }
    Some((protocol, rest))
}

#[cfg(test)]
mod tests;
