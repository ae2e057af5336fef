//! A response under way: records are appended as long as there is room.

use super::query::{HEADER, OPT, Query, flags};
use super::{PAYLOAD, Rcode, Transport};

/// What a client takes that says nothing else (RFC 1035 §2.3.4).
const SMALLEST: usize = 512;
/// Length of our OPT record.
const OPT_LENGTH: usize = 11;
const CLASS_INTERNET: [u8; 2] = [0, 1];
/// Seconds that an answer, or that there is none, may be remembered.
pub(super) const TIME_TO_LIVE: u32 = 5;

/// Where a record's owner is written: a pointer into the question (RFC 1035 §4.1.4).
pub(super) const ASKED: [u8; 2] = [0xc0, HEADER as u8];

/// The sections behind the question.
#[derive(Clone, Copy)]
pub(super) enum Section {
    Answer,
    Authority,
    Additional,
}

/// A response under way.
pub(super) struct Response<'a, 'q> {
    query: &'a Query<'q>,
    out: &'a mut [u8],
    length: usize,
    counts: [u16; 3],
    truncated: bool,
}

impl<'a, 'q> Response<'a, 'q> {
    /// Begins with the question; `None` when not even that has room.
    pub(super) fn begin(query: &'a Query<'q>, transport: Transport, out: &'a mut [u8]) -> Option<Self> {
        let most = match transport {
            Transport::Udp { limit } => {
                let asked = query.edns.map_or(SMALLEST, |edns| usize::from(edns.payload));
                asked.max(SMALLEST).min(usize::from(limit))
            }
            Transport::Tcp => usize::from(u16::MAX),
        };
        let room = most.min(out.len());
        let out = out.get_mut(..room)?;
        let length = HEADER + query.question.len();
        out.get_mut(HEADER..length)?.copy_from_slice(query.question);
        if query.edns.is_some() && length + OPT_LENGTH > room {
            return None;
        }
        Some(Self {
            query,
            out,
            length,
            counts: [0; 3],
            truncated: false,
        })
    }

    /// Appends a record; false, and nothing is done, when it has no room.
    pub(super) fn record(&mut self, section: Section, owner: &[u8], kind: u16, data: &[u8]) -> bool {
        let kept = if self.query.edns.is_some() { OPT_LENGTH } else { 0 };
        let length = owner.len() + 10 + data.len();
        let end = self.length + length;
        let room = self.out.len() - kept;
        let (Some(record), Ok(data_length)) = (
            self.out[..room].get_mut(self.length..end),
            u16::try_from(data.len()),
        ) else {
            return false;
        };
        let (name, rest) = record.split_at_mut(owner.len());
        name.copy_from_slice(owner);
        let (tail, rest) = rest.split_at_mut(10);
        tail[..2].copy_from_slice(&kind.to_be_bytes());
        tail[2..4].copy_from_slice(&CLASS_INTERNET);
        tail[4..8].copy_from_slice(&TIME_TO_LIVE.to_be_bytes());
        tail[8..].copy_from_slice(&data_length.to_be_bytes());
        rest.copy_from_slice(data);
        self.length = end;
        self.counts[section as usize] = self.counts[section as usize].saturating_add(1);
        true
    }

    /// Appends a record to the answer. Without room for it the answer is told to be cut off (RFC 2181 §9), and false.
    pub(super) fn answer(&mut self, kind: u16, data: &[u8]) -> bool {
        let written = self.record(Section::Answer, &ASKED, kind, data);
        self.truncated |= !written;
        written
    }

    /// Ends with the OPT record and the header, and gives the length.
    pub(super) fn finish(mut self, rcode: Rcode, authoritative: bool) -> (usize, bool) {
        let code = rcode.code();
        if let Some(edns) = self.query.edns {
            let end = self.length + OPT_LENGTH;
            if let Some(record) = self.out.get_mut(self.length..end) {
                record.fill(0);
                record[1..3].copy_from_slice(&OPT.to_be_bytes());
                record[3..5].copy_from_slice(&PAYLOAD.to_be_bytes());
                record[5] = (code >> 4) as u8;
                record[7] = u8::from(edns.dnssec_ok) << 7;
                self.length = end;
                self.counts[Section::Additional as usize] += 1;
            }
        }
        let mut word = response_flags(self.query.flags, code);
        if authoritative {
            word |= flags::AUTHORITATIVE;
        }
        if self.truncated {
            word |= flags::TRUNCATED;
        }
        let [answers, authorities, additionals] = self.counts;
        let header = [self.query.id, word, 1, answers, authorities, additionals];
        for (bytes, word) in self.out.as_chunks_mut::<2>().0.iter_mut().zip(header) {
            *bytes = word.to_be_bytes();
        }
        (self.length, self.truncated)
    }
}

/// What comes back of a query's second word. The bit "recursion available" stays clear.
fn response_flags(asked: u16, code: u16) -> u16 {
    let kept = flags::OPCODE | flags::RECURSION_DESIRED | flags::CHECKING_DISABLED;
    flags::RESPONSE | (asked & kept) | (code & 0x0f)
}

/// The response to what has no question that could be repeated: a header alone.
pub(super) fn header_alone(id: u16, asked: u16, rcode: Rcode, out: &mut [u8]) -> Option<usize> {
    let header: &mut [u8; HEADER] = out.first_chunk_mut()?;
    header.fill(0);
    header[..2].copy_from_slice(&id.to_be_bytes());
    header[2..4].copy_from_slice(&response_flags(asked, rcode.code()).to_be_bytes());
    Some(HEADER)
}
