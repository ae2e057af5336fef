//! A response under way: records are appended as long as there is room.

use super::message::{CLASS_INTERNET, HEADER, Header, OPT, flags};
use super::query::Query;
use super::{PAYLOAD, Rcode, Transport};

/// What a client takes that says nothing else (RFC 1035 §2.3.4).
const SMALLEST: usize = 512;
/// Length of our OPT record.
const OPT_LENGTH: usize = 11;
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
        tail[2..4].copy_from_slice(&CLASS_INTERNET.to_be_bytes());
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

    /// Appends what stands behind the question of another message with the same question: the answers and authorities of
    /// `counts`, their times to live, at `times` in a message, changed by `time`. Without room for all of it there is
    /// none, and the answer is told to be cut off.
    pub(super) fn sections(
        &mut self,
        sections: &[u8],
        counts: [u16; 2],
        times: &[u16],
        time: impl Fn(u32) -> u32,
    ) {
        let kept = if self.query.edns.is_some() { OPT_LENGTH } else { 0 };
        let room = self.out.len() - kept;
        let end = self.length + sections.len();
        let Some(place) = self.out[..room].get_mut(self.length..end) else {
            self.truncated = true;
            return;
        };
        place.copy_from_slice(sections);
        for offset in times {
            let place = self.out.get_mut(usize::from(*offset)..);
            if let Some(bytes) = place.and_then(|rest| rest.first_chunk_mut::<4>()) {
                *bytes = time(u32::from_be_bytes(*bytes)).to_be_bytes();
            }
        }
        self.length = end;
        let [answers, authorities] = counts;
        self.counts = [answers, authorities, 0];
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
        let header = Header {
            id: self.query.id,
            flags: word,
            questions: 1,
            answers,
            authorities,
            additionals,
        };
        header.write(self.out);
        (self.length, self.truncated)
    }
}

/// What comes back of a query's second word. Names of the world beyond are asked for by whoever answers here, so that
/// recursion is available.
fn response_flags(asked: u16, code: u16) -> u16 {
    let kept = flags::OPCODE | flags::RECURSION_DESIRED | flags::CHECKING_DISABLED;
    flags::RESPONSE | flags::RECURSION_AVAILABLE | (asked & kept) | (code & flags::RCODE)
}

/// The response to what has no question that could be repeated: a header alone.
pub(super) fn header_alone(id: u16, asked: u16, rcode: Rcode, out: &mut [u8]) -> Option<usize> {
    let header: &mut [u8; HEADER] = out.first_chunk_mut()?;
    header.fill(0);
    header[..2].copy_from_slice(&id.to_be_bytes());
    header[2..4].copy_from_slice(&response_flags(asked, rcode.code()).to_be_bytes());
    Some(HEADER)
}
