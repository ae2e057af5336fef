//! What messages are made of (RFC 1035 §4): headers, names, records.
//!
//! The traps of RFC 9267 end here: a name has no more than 255 bytes; every length is checked against what is there; a
//! pointer leads strictly backwards, behind the header, so that following one ends.

use crate::snapshot::zone::LONGEST_NAME;

/// Length of a message's header.
pub(super) const HEADER: usize = 12;
/// Type, class.
pub(super) const QUESTION_TAIL: usize = 4;
/// Type, class, time to live, length of the data.
const RECORD_TAIL: usize = 10;
/// Where the time to live stands in the tail.
const TIME_TO_LIVE: usize = 4;
/// Lengths from here on aren't lengths of labels; from [`POINTER`] on they are pointers (RFC 1035 §4.1.4).
const NO_LABEL: u8 = 0x40;
const POINTER: u8 = 0xc0;
/// The pseudo record of EDNS (RFC 6891 §6.1.2).
pub(super) const OPT: u16 = 41;
pub(super) const CLASS_INTERNET: u16 = 1;

/// Types of records (IANA: Domain Name System Parameters).
pub(super) mod kind {
    pub(in super::super) const A: u16 = 1;
    pub(in super::super) const NS: u16 = 2;
    pub(in super::super) const CNAME: u16 = 5;
    pub(in super::super) const SOA: u16 = 6;
    pub(in super::super) const PTR: u16 = 12;
    pub(in super::super) const HINFO: u16 = 13;
    pub(in super::super) const MINFO: u16 = 14;
    pub(in super::super) const MX: u16 = 15;
    pub(in super::super) const TXT: u16 = 16;
    pub(in super::super) const RP: u16 = 17;
    pub(in super::super) const AFSDB: u16 = 18;
    pub(in super::super) const RT: u16 = 21;
    pub(in super::super) const PX: u16 = 26;
    pub(in super::super) const AAAA: u16 = 28;
    pub(in super::super) const SRV: u16 = 33;
    pub(in super::super) const KX: u16 = 36;
    pub(in super::super) const DNAME: u16 = 39;
    pub(in super::super) const SVCB: u16 = 64;
    pub(in super::super) const HTTPS: u16 = 65;
    pub(in super::super) const IXFR: u16 = 251;
    pub(in super::super) const AXFR: u16 = 252;
    pub(in super::super) const ANY: u16 = 255;
}

/// Bits of a header's second word (RFC 1035 §4.1.1, RFC 4035 §3.2).
pub(super) mod flags {
    pub(in super::super) const RESPONSE: u16 = 0x8000;
    pub(in super::super) const OPCODE: u16 = 0x7800;
    pub(in super::super) const AUTHORITATIVE: u16 = 0x0400;
    pub(in super::super) const TRUNCATED: u16 = 0x0200;
    pub(in super::super) const RECURSION_DESIRED: u16 = 0x0100;
    pub(in super::super) const RECURSION_AVAILABLE: u16 = 0x0080;
    pub(in super::super) const CHECKING_DISABLED: u16 = 0x0010;
    pub(in super::super) const RCODE: u16 = 0x000f;
}

/// A header's words.
#[derive(Clone, Copy)]
pub(super) struct Header {
    pub(super) id: u16,
    pub(super) flags: u16,
    pub(super) questions: u16,
    pub(super) answers: u16,
    pub(super) authorities: u16,
    pub(super) additionals: u16,
}

impl Header {
    pub(super) fn parse(message: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER] = message.first_chunk()?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        Some(Self {
            id: word(0),
            flags: word(2),
            questions: word(4),
            answers: word(6),
            authorities: word(8),
            additionals: word(10),
        })
    }

    pub(super) fn write(&self, message: &mut [u8]) {
        let words = [
            self.id,
            self.flags,
            self.questions,
            self.answers,
            self.authorities,
            self.additionals,
        ];
        for (bytes, word) in message.as_chunks_mut::<2>().0.iter_mut().zip(words) {
            *bytes = word.to_be_bytes();
        }
    }
}

/// The length of a name of plain labels, and how many there are.
pub(super) fn plain_name(bytes: &[u8]) -> Option<(usize, u8)> {
    let mut at = 0;
    let mut labels = 0;
    loop {
        let length = *bytes.get(at)?;
        if length >= NO_LABEL {
            return None;
        }
        at += 1 + usize::from(length);
        if at > LONGEST_NAME {
            return None;
        }
        if length == 0 {
            return Some((at, labels));
        }
        labels += 1;
    }
}

/// Where the name that begins at `start` ends. What it points to is followed to its root.
pub(super) fn name_end(message: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    let mut end = None;
    let mut length = 0;
    // Where the labels that are being read began: a pointer leads in front of them.
    let mut bound = start;
    loop {
        let byte = *message.get(at)?;
        if byte >= POINTER {
            let target = usize::from(byte & !POINTER) << 8 | usize::from(*message.get(at + 1)?);
            if !(HEADER..bound).contains(&target) {
                return None;
            }
            end.get_or_insert(at + 2);
            (at, bound) = (target, target);
            continue;
        }
        if byte >= NO_LABEL {
            return None;
        }
        length += 1 + usize::from(byte);
        at += 1 + usize::from(byte);
        if length > LONGEST_NAME {
            return None;
        }
        if byte == 0 {
            return Some(end.unwrap_or(at));
        }
    }
}

/// A record behind the question.
pub(super) struct Record<'a> {
    pub(super) at_root: bool,
    pub(super) kind: u16,
    pub(super) class: u16,
    pub(super) time_to_live: u32,
    /// Where the time to live stands in the message.
    pub(super) time_offset: usize,
    pub(super) data: &'a [u8],
    /// Where the next one begins.
    pub(super) end: usize,
}

impl<'a> Record<'a> {
    pub(super) fn parse(message: &'a [u8], start: usize) -> Option<Self> {
        let tail_offset = name_end(message, start)?;
        let tail: &[u8; RECORD_TAIL] = message.get(tail_offset..)?.first_chunk()?;
        let data = tail_offset + RECORD_TAIL;
        let end = data + usize::from(u16::from_be_bytes([tail[8], tail[9]]));
        Some(Self {
            at_root: tail_offset == start + 1,
            kind: u16::from_be_bytes([tail[0], tail[1]]),
            class: u16::from_be_bytes([tail[2], tail[3]]),
            time_to_live: u32::from_be_bytes([tail[4], tail[5], tail[6], tail[7]]),
            time_offset: tail_offset + TIME_TO_LIVE,
            data: message.get(data..end)?,
            end,
        })
    }

    /// Whether the data is what its type says, as far as others would follow it: addresses have their length, and the
    /// names of the types that may be compressed (RFC 3597 §4) end where the data ends.
    pub(super) fn is_sound(&self, message: &[u8]) -> bool {
        let (before, names, behind) = match self.kind {
            kind::A => return self.data.len() == 4,
            kind::AAAA => return self.data.len() == 16,
            kind::NS | kind::CNAME | kind::PTR | kind::DNAME => (0, 1, 0),
            kind::SOA => (0, 2, 20),
            kind::MX | kind::AFSDB | kind::RT | kind::KX => (2, 1, 0),
            kind::RP | kind::MINFO => (0, 2, 0),
            kind::PX => (2, 2, 0),
            kind::SRV => (6, 1, 0),
            _ => return true,
        };
        // What is behind the record is no part of it.
        let Some(message) = message.get(..self.end) else {
            return false;
        };
        let mut at = self.end - self.data.len() + before;
        for _ in 0..names {
            match name_end(message, at) {
                Some(end) => at = end,
                None => return false,
            }
        }
        at + behind == self.end
    }
}

/// A type's name, of those that are met.
pub(super) fn kind_label(kind: u16) -> Option<&'static str> {
    Some(match kind {
        kind::A => "A",
        kind::NS => "NS",
        kind::CNAME => "CNAME",
        kind::SOA => "SOA",
        kind::PTR => "PTR",
        kind::HINFO => "HINFO",
        kind::MX => "MX",
        kind::TXT => "TXT",
        kind::AAAA => "AAAA",
        kind::SRV => "SRV",
        kind::DNAME => "DNAME",
        kind::SVCB => "SVCB",
        kind::HTTPS => "HTTPS",
        kind::IXFR => "IXFR",
        kind::AXFR => "AXFR",
        kind::ANY => "ANY",
        _ => return None,
    })
}
