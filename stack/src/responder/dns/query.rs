//! A query, as far as an answer needs to know it (RFC 1035 §4, RFC 6891).
//!
//! The traps of RFC 9267 end here: a question's name is plain labels, no longer than 255 bytes; every length is checked
//! against what is there; a pointer in front of another record leads strictly backwards, and isn't followed.

use crate::snapshot::zone::LONGEST_NAME;

/// Length of a message's header.
pub(super) const HEADER: usize = 12;
/// Question section entries that a query has (RFC 9619).
const ONE: u16 = 1;
/// Type, class.
const QUESTION_TAIL: usize = 4;
/// Type, class, time to live, length of the data.
const RECORD_TAIL: usize = 10;
/// Lengths from here on aren't lengths of labels; from [`POINTER`] on they are pointers (RFC 1035 §4.1.4).
const NO_LABEL: u8 = 0x40;
const POINTER: u8 = 0xc0;
/// The pseudo record of EDNS (RFC 6891 §6.1.2).
pub(super) const OPT: u16 = 41;

/// Bits of a header's second word (RFC 1035 §4.1.1, RFC 4035 §3.2).
pub(super) mod flags {
    pub(in super::super) const RESPONSE: u16 = 0x8000;
    pub(in super::super) const OPCODE: u16 = 0x7800;
    pub(in super::super) const AUTHORITATIVE: u16 = 0x0400;
    pub(in super::super) const TRUNCATED: u16 = 0x0200;
    pub(in super::super) const RECURSION_DESIRED: u16 = 0x0100;
    pub(in super::super) const CHECKING_DISABLED: u16 = 0x0010;
}

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
        let header: &[u8; HEADER] = message.first_chunk().ok_or(Fault::Silent)?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let (id, flags) = (word(0), word(2));
        if flags & flags::RESPONSE != 0 {
            return Err(Fault::Silent);
        }
        if flags & flags::OPCODE != 0 {
            return Err(Fault::Opcode { id, flags });
        }
        let format = Fault::Format { id, flags };
        let [questions, answers, authorities, additionals] = [word(4), word(6), word(8), word(10)];
        if questions != ONE || answers != 0 || authorities != 0 {
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
        for _ in 0..additionals {
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

/// The length of a name of plain labels, and how many there are.
fn plain_name(bytes: &[u8]) -> Option<(usize, u8)> {
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

/// A record behind the question.
struct Record<'a> {
    at_root: bool,
    kind: u16,
    class: u16,
    time_to_live: u32,
    data: &'a [u8],
    /// Where the next one begins.
    end: usize,
}

impl<'a> Record<'a> {
    fn parse(message: &'a [u8], start: usize) -> Option<Self> {
        let name = owner_length(message, start)?;
        let tail: &[u8; RECORD_TAIL] = message.get(start + name..)?.first_chunk()?;
        let data = start + name + RECORD_TAIL;
        let end = data + usize::from(u16::from_be_bytes([tail[8], tail[9]]));
        Some(Self {
            at_root: name == 1,
            kind: u16::from_be_bytes([tail[0], tail[1]]),
            class: u16::from_be_bytes([tail[2], tail[3]]),
            time_to_live: u32::from_be_bytes([tail[4], tail[5], tail[6], tail[7]]),
            data: message.get(data..end)?,
            end,
        })
    }

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

/// The length of the name in front of a record.
fn owner_length(message: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        let length = *message.get(at)?;
        if length >= POINTER {
            let target = usize::from(length & !POINTER) << 8 | usize::from(*message.get(at + 1)?);
            return (HEADER..start).contains(&target).then_some(at + 2 - start);
        }
        if length >= NO_LABEL {
            return None;
        }
        at += 1 + usize::from(length);
        if at - start > LONGEST_NAME {
            return None;
        }
        if length == 0 {
            return Some(at - start);
        }
    }
}
