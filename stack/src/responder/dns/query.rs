//! A query, as far as an answer needs to know it (RFC 1035 §4, RFC 6891).
//!
//! A question's name is plain labels: there is nothing in front of it that it could point to.

use super::message::{HEADER, Header, OPT, QUESTION_TAIL, Record, flags, plain_name};
use crate::snapshot::zone::LONGEST_NAME;

/// Question section entries that a query has (RFC 9619).
const ONE: u16 = 1;

/// A well-formed query with one question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query<'a> {
    /// Its identifier.
    pub id: u16,
    /// The name asked for, as it was written: labels with their lengths, the root last.
    pub name: &'a [u8],
    /// How many labels the name has, without the root.
    pub labels: u8,
    /// The type asked for.
    pub kind: u16,
    /// The class asked for.
    pub class: u16,
    /// What it says beyond RFC 1035.
    pub edns: Option<Edns>,
    pub(super) flags: u16,
    /// The question section.
    pub(super) question: &'a [u8],
}

/// What a query's OPT record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// The largest datagram that the asking side takes.
    pub payload: u16,
    /// The version: 0 is the only one.
    pub version: u8,
    /// Whether it wants signatures (RFC 3225); there are none, and the bit comes back.
    pub dnssec_ok: bool,
}

/// Why a message is no query that can be looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It hasn't a header, or is an answer itself: whoever answers those answers for ever.
    Silent,
    /// It contradicts itself.
    Format { id: u16, flags: u16 },
    /// It is a request of another kind.
    Opcode { id: u16, flags: u16 },
}

impl<'a> Query<'a> {
    pub(super) fn parse(message: &'a [u8]) -> Result<Self, Fault> {
        let header = Header::parse(message).ok_or(Fault::Silent)?;
        let Header { id, flags, .. } = header;
        if flags & flags::RESPONSE != 0 {
            return Err(Fault::Silent);
        }
        if flags & flags::OPCODE != 0 {
            return Err(Fault::Opcode { id, flags });
        }
        let format = Fault::Format { id, flags };
        if header.questions != ONE || header.answers != 0 || header.authorities != 0 {
            return Err(format);
        }
        let rest = &message[HEADER..];
        let (length, labels) = plain_name(rest).ok_or(format)?;
        let question = rest.get(..length + QUESTION_TAIL).ok_or(format)?;
        let (name, tail) = question.split_at(length);
        let mut query = Self {
            id,
            name,
            labels,
            kind: u16::from_be_bytes([tail[0], tail[1]]),
            class: u16::from_be_bytes([tail[2], tail[3]]),
            edns: None,
            flags,
            question,
        };
        let mut at = HEADER + question.len();
        for _ in 0..header.additionals {
            let record = Record::parse(message, at).ok_or(format)?;
            at = record.end;
            if record.kind == OPT {
                let edns = record.edns().ok_or(format)?;
                // RFC 6891 §6.1.1: at most one.
                if query.edns.replace(edns).is_some() {
                    return Err(format);
                }
            }
        }
        Ok(query)
    }

    /// The name in lower case.
    pub(super) fn canonical<'b>(&self, buffer: &'b mut [u8; LONGEST_NAME]) -> &'b [u8] {
        let length = self.name.len().min(LONGEST_NAME);
        let lower = &mut buffer[..length];
        lower.copy_from_slice(&self.name[..length]);
        // Lengths of labels are below 64, and no letters.
        lower.make_ascii_lowercase();
        lower
    }
}

impl Record<'_> {
    /// RFC 6891 §6.1.2 and §6.1.3: the class is a size, the time to live holds version and flags.
    fn edns(&self) -> Option<Edns> {
        if !self.at_root {
            return None;
        }
        let mut options = self.data;
        while !options.is_empty() {
            let [_, _, high, low] = *options.first_chunk::<4>()?;
            options = options.get(4 + usize::from(u16::from_be_bytes([high, low]))..)?;
        }
        let [_, version, high, _] = self.time_to_live.to_be_bytes();
        Some(Edns {
            payload: self.class,
            version,
            dnssec_ok: high & 0x80 != 0,
        })
    }
}
