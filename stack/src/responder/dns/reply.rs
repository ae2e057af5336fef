//! What an upstream answered, checked, and ready to be answered again (RFC 1035 §7.3, RFC 5452).
//!
//! A reply is kept as it came, without what stands behind its answers, for names in it point backwards only. It is no
//! more than the answer to its own question: nothing in it is believed about another name.

use super::message::{CLASS_INTERNET, HEADER, Header, OPT, QUESTION_TAIL, Record, flags, kind, plain_name};
use super::query::Query;
use super::question::Question;
use super::response::Response;
use super::{Answered, Rcode, Transport};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// Seconds that an answer is remembered at least, and at most (RFC 8767 §4).
const LIFETIME: (u32, u32) = (5, 86_400);
/// Most seconds that it is remembered that there is none (RFC 2308 §5).
const NEGATIVE_LIFETIME: u32 = 3600;
/// Types that a record of may answer a question for another type.
const ALIASES: [u16; 2] = [kind::CNAME, kind::DNAME];

/// A checked answer of an upstream: header, question and answers, and the authority when there is no answer.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct Reply {
    /// The question is in lower case.
    message: Box<[u8]>,
    /// Where its times to live stand.
    times: Box<[u16]>,
    rcode: u16,
    lifetime: u32,
}

/// Why a message isn't the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyFault {
    /// It is no answer at all, or one to a request of another kind.
    #[error("it is no answer to a query")]
    NotAReply,
    /// The identifier is another one.
    #[error("its identifier isn't the query's")]
    Identifier,
    /// It is about something else.
    #[error("its question isn't the query's")]
    Question,
    /// It is about the same name, written in other letters: a forgery, or the upstream doesn't keep them.
    #[error("its question has other capitals than the query's")]
    Case,
    /// It contradicts itself.
    #[error("it is malformed")]
    Malformed,
}

impl Reply {
    /// Takes a message for the answer to the query `sent`.
    ///
    /// # Errors
    /// When it is none: whoever waits goes on waiting, as anybody may have sent it.
    pub fn accept(message: &[u8], sent: &[u8]) -> Result<Self, ReplyFault> {
        let header = Header::parse(message).ok_or(ReplyFault::NotAReply)?;
        let asked = Header::parse(sent).ok_or(ReplyFault::NotAReply)?;
        if header.flags & flags::RESPONSE == 0 || header.flags & flags::OPCODE != 0 {
            return Err(ReplyFault::NotAReply);
        }
        if header.id != asked.id {
            return Err(ReplyFault::Identifier);
        }
        let code = header.flags & flags::RCODE;
        if header.questions == 0 && code == Rcode::FormErr.code() {
            // Who doesn't understand a query may be unable to repeat it (RFC 6891 §7).
            return Self::without_question(sent, code);
        }
        let question = question_of(sent).ok_or(ReplyFault::NotAReply)?;
        match question_of(message) {
            Some(same) if same == question => {}
            Some(other) if other.eq_ignore_ascii_case(question) => return Err(ReplyFault::Case),
            Some(_) | None => return Err(ReplyFault::Question),
        }
        Self::parse(message)
    }

    /// The reply that says no more than a code.
    fn without_question(sent: &[u8], code: u16) -> Result<Self, ReplyFault> {
        let question = question_of(sent).ok_or(ReplyFault::NotAReply)?;
        let mut message = vec![0; HEADER];
        Header {
            id: 0,
            flags: flags::RESPONSE | code,
            questions: 1,
            answers: 0,
            authorities: 0,
            additionals: 0,
        }
        .write(&mut message);
        message.extend_from_slice(question);
        Self::parse(&message)
    }

    /// Reads a whole message with one question.
    fn parse(message: &[u8]) -> Result<Self, ReplyFault> {
        let header = Header::parse(message).ok_or(ReplyFault::NotAReply)?;
        let question = question_of(message).ok_or(ReplyFault::Malformed)?;
        if header.questions != 1 || message.len() > usize::from(u16::MAX) {
            return Err(ReplyFault::Malformed);
        }
        let [high, low, class_high, class_low] = *question.last_chunk().ok_or(ReplyFault::Malformed)?;
        if u16::from_be_bytes([class_high, class_low]) != CLASS_INTERNET {
            return Err(ReplyFault::Question);
        }
        let asked = u16::from_be_bytes([high, low]);
        let (mut word, mut counts) = (
            header.flags,
            [header.answers, header.authorities, header.additionals],
        );
        if word & flags::TRUNCATED != 0 {
            // What is left of it is as good as nothing, and its counts may be those of the whole.
            counts = [0; 3];
        }
        let [answers, authorities, additionals] = counts;

        let mut parsed = Sections {
            at: HEADER + question.len(),
            times: Vec::new(),
            lifetime: u32::MAX,
        };
        let mut positive = false;
        for _ in 0..answers {
            let record = parsed.next(message)?;
            positive |= record.kind == asked || (asked == kind::ANY && !ALIASES.contains(&record.kind));
        }
        let kept_answers = (parsed.at, parsed.times.len(), parsed.lifetime);
        let mut negative = None;
        for _ in 0..authorities {
            let record = parsed.next(message)?;
            if record.kind == kind::SOA {
                // RFC 2308 §5: the lesser of the two.
                let minimum = record.data.last_chunk::<4>().copied().map(u32::from_be_bytes);
                negative = minimum.map(|minimum| minimum.min(record.time_to_live));
            }
        }
        let mut extended = 0;
        let mut end = parsed.at;
        for _ in 0..additionals {
            let record = Record::parse(message, end).ok_or(ReplyFault::Malformed)?;
            end = record.end;
            if record.kind == OPT {
                if !record.at_root {
                    return Err(ReplyFault::Malformed);
                }
                // RFC 6891 §6.1.3: the upper bits of the code.
                extended = (record.time_to_live >> 24) as u16;
            }
        }
        let rcode = extended << 4 | word & flags::RCODE;
        if extended > 0 {
            // Without its OPT record it says no more than that.
            word = word & !flags::RCODE | Rcode::ServFail.code();
        }
        let (least, most) = LIFETIME;
        let (kept, times, lifetime, kept_authorities) = if positive {
            let (end, times, lifetime) = kept_answers;
            (end, times, lifetime.clamp(least, most), 0)
        } else {
            // What leads to nothing, by way of aliases: as long as each of them holds.
            let lifetime = negative.unwrap_or(0).min(kept_answers.2);
            let lifetime = lifetime.clamp(least, NEGATIVE_LIFETIME);
            (parsed.at, parsed.times.len(), lifetime, authorities)
        };
        let mut message = message.get(..kept).ok_or(ReplyFault::Malformed)?.to_vec();
        Header {
            id: 0,
            flags: word,
            questions: 1,
            answers,
            authorities: kept_authorities,
            additionals: 0,
        }
        .write(&mut message);
        if let Some(name) = message.get_mut(HEADER..HEADER + question.len() - QUESTION_TAIL) {
            name.make_ascii_lowercase();
        }
        parsed.times.truncate(times);
        Ok(Self {
            message: message.into_boxed_slice(),
            times: parsed.times.into_boxed_slice(),
            rcode,
            lifetime,
        })
    }

    /// Whether it was cut off: it is asked for again over TCP.
    pub fn is_truncated(&self) -> bool {
        self.header().flags & flags::TRUNCATED != 0
    }

    /// The code, with the bits that EDNS adds: NOERROR 0 and NXDOMAIN 3 are answers, all others failures.
    pub fn rcode(&self) -> u16 {
        self.rcode
    }

    /// Whether it says something about the name, and all of it: that it exists, or that it doesn't.
    pub fn is_answer(&self) -> bool {
        self.known_rcode().is_some()
    }

    fn known_rcode(&self) -> Option<Rcode> {
        let mut known = [Rcode::NoError, Rcode::NxDomain].into_iter();
        known.find(|rcode| rcode.code() == self.rcode && !self.is_truncated())
    }

    /// What it is the answer to.
    pub fn question(&self) -> Option<Question> {
        let (name, tail) = question_of(&self.message)?.split_last_chunk::<QUESTION_TAIL>()?;
        Question::new(name, u16::from_be_bytes([tail[0], tail[1]]))
    }

    /// The addresses that it tells.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let header = self.header();
        let mut at = HEADER + question_of(&self.message).map_or(0, <[u8]>::len);
        (0..header.answers).filter_map(move |_| {
            let record = Record::parse(&self.message, at)?;
            at = record.end;
            match (record.kind, record.class) {
                (kind::A, CLASS_INTERNET) => record.data.first_chunk::<4>().map(|octets| (*octets).into()),
                (kind::AAAA, CLASS_INTERNET) => {
                    record.data.first_chunk::<16>().map(|octets| (*octets).into())
                }
                _ => None,
            }
        })
    }

    /// For how long it is remembered: 5 s to a day, that there is none for an hour at most.
    pub fn lifetime(&self) -> Duration {
        Duration::from_secs(self.lifetime.into())
    }

    /// The message: its identifier is 0, and nothing stands behind what is kept of it.
    pub fn message(&self) -> &[u8] {
        &self.message
    }

    fn header(&self) -> Header {
        // A message has a header: it was parsed.
        Header::parse(&self.message).unwrap_or(Header {
            id: 0,
            flags: 0,
            questions: 0,
            answers: 0,
            authorities: 0,
            additionals: 0,
        })
    }

    /// Answers a query for the same name and type; `None` when it is for another one, or has no room. `time` makes of a
    /// record's time to live what is left of it.
    pub(super) fn write(
        &self,
        query: &Query<'_>,
        transport: Transport,
        time: impl Fn(u32) -> u32,
        out: &mut [u8],
    ) -> Option<Answered> {
        let rcode = self.known_rcode()?;
        let sections = self.message.get(HEADER + query.question.len()..)?;
        let header = self.header();
        let mut response = Response::begin(query, transport, out)?;
        response.sections(sections, [header.answers, header.authorities], &self.times, time);
        let (length, truncated) = response.finish(rcode, false);
        Some(Answered {
            length,
            rcode,
            truncated,
        })
    }
}

/// The walk through the sections behind the question.
struct Sections {
    at: usize,
    times: Vec<u16>,
    /// The least time to live.
    lifetime: u32,
}

impl Sections {
    fn next<'m>(&mut self, message: &'m [u8]) -> Result<Record<'m>, ReplyFault> {
        let record = Record::parse(message, self.at).ok_or(ReplyFault::Malformed)?;
        if record.class != CLASS_INTERNET || record.kind == OPT || !record.is_sound(message) {
            return Err(ReplyFault::Malformed);
        }
        self.at = record.end;
        self.times
            .push(u16::try_from(record.time_offset).map_err(|_| ReplyFault::Malformed)?);
        // RFC 2181 §8: with the highest bit set it is zero.
        let time = i32::try_from(record.time_to_live).map_or(0, i32::unsigned_abs);
        self.lifetime = self.lifetime.min(time);
        Ok(record)
    }
}

/// The question section of a message; `None` unless it begins with a question.
fn question_of(message: &[u8]) -> Option<&[u8]> {
    let rest = message.get(HEADER..)?;
    let (length, _) = plain_name(rest)?;
    (Header::parse(message)?.questions > 0).then_some(())?;
    rest.get(..length + QUESTION_TAIL)
}

/// Its bytes say all.
impl TryFrom<Vec<u8>> for Reply {
    type Error = ReplyFault;

    fn try_from(message: Vec<u8>) -> Result<Self, ReplyFault> {
        Self::parse(&message)
    }
}

impl From<Reply> for Vec<u8> {
    fn from(reply: Reply) -> Self {
        reply.message.into_vec()
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Reply")
            .field("question", &self.question().map(|question| question.to_string()))
            .field("rcode", &self.rcode)
            .field("bytes", &self.message.len())
            .field("lifetime", &self.lifetime)
            .finish()
    }
}
