//! DNS at the service address (RFC 1034, RFC 1035): authoritative for the names inside, over UDP and TCP.
//!
//! The walk of a query: [`Query`] is the one parse → the asking port's [`View`] knows the name, or the zone that it is
//! in, or neither → the records of one [`Node`] are written behind the question, or the zone's SOA says for how long
//! there is nothing (RFC 2308). What is asked about the world beyond is [`Outcome::Forward`], and goes on in [`forward`].
//!
//! [`answer`] is total, has no memory but the counters of [`Rotation`], and allocates nothing.
//!
//! | asked | answered |
//! |---|---|
//! | a name that exists, of a type that doesn't | NOERROR with the SOA; so are empty non-terminals (RFC 8020) |
//! | a name inside that doesn't exist, or that the port doesn't see | NXDOMAIN with the SOA |
//! | ANY | HINFO `RFC8482` (RFC 8482 §4.2) |
//! | more than fits into the datagram | what fits, with TC |
//! | EDNS | EDNS with a payload of 1232; another version: BADVERS |
//! | not one question, or a message that contradicts itself | FORMERR |
//! | another opcode | NOTIMP |
//! | another class, a transfer | REFUSED |
//! | an answer, or less than a header | silence |

mod datagram;
pub mod forward;
mod message;
mod query;
mod question;
mod reply;
mod response;
pub mod streams;

pub use datagram::datagram;
pub use query::{Edns, Query};
pub use question::{IllegalName, Question};
pub use reply::{Reply, ReplyFault};

use crate::plan::AnswerOrder;
use crate::snapshot::View;
use crate::snapshot::zone::{LONGEST_NAME, NAME_SERVER, Node, skip_labels};
use message::{CLASS_INTERNET, HEADER, kind};
use query::Fault;
use response::{Response, Section, TIME_TO_LIVE, header_alone};
use serde::{Deserialize, Serialize};

/// DNS's port.
pub const PORT: u16 = 53;
/// The largest datagram that is sent, whatever the asking side takes: with its headers below the smallest MTU there is
/// (1280), so that nothing is fragmented.
pub const PAYLOAD: u16 = 1232;

/// RFC 8482 §4.2.
const HINFO_DATA: &[u8] = b"\x07RFC8482\0";
const HOSTMASTER: &[u8] = b"\x0ahostmaster\x08internal\0";
/// Serial, refresh, retry, expire, and for how long "there is none" may be remembered. Nobody transfers a zone, so that
/// the serial never changes, and every host gives the same answer.
const SOA_NUMBERS: [u32; 5] = [1, 3600, 600, 86_400, TIME_TO_LIVE];
const SOA_LENGTH: usize = NAME_SERVER.len() + HOSTMASTER.len() + 4 * SOA_NUMBERS.len();

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram.
    Udp {
        /// The largest answer that may be sent: [`PAYLOAD`].
        limit: u16,
    },
    /// On a connection.
    Tcp,
}

/// What became of a query (RFC 1035 §4.1.1, RFC 6891 §6.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Rcode {
    /// The name exists.
    NoError,
    /// The query contradicts itself.
    FormErr,
    /// The name doesn't exist.
    NxDomain,
    /// It couldn't be found out.
    ServFail,
    /// No such kind of request is answered.
    NotImp,
    /// Not answered to this asking side, or at all.
    Refused,
    /// Another version of EDNS.
    BadVers,
}

impl Rcode {
    /// Its name (IANA: DNS RCODEs).
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoError => "NOERROR",
            Self::FormErr => "FORMERR",
            Self::ServFail => "SERVFAIL",
            Self::NxDomain => "NXDOMAIN",
            Self::NotImp => "NOTIMP",
            Self::Refused => "REFUSED",
            Self::BadVers => "BADVERS",
        }
    }

    /// Its number.
    pub const fn code(self) -> u16 {
        match self {
            Self::NoError => 0,
            Self::FormErr => 1,
            Self::ServFail => 2,
            Self::NxDomain => 3,
            Self::NotImp => 4,
            Self::Refused => 5,
            Self::BadVers => 16,
        }
    }
}

/// An answer in the caller's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Its length.
    pub length: usize,
    /// What it says.
    pub rcode: Rcode,
    /// Whether it was cut off.
    pub truncated: bool,
}

/// What is done about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'q> {
    /// The answer is written.
    Answer(Answered),
    /// It asks about the world beyond: nothing is written.
    Forward(Query<'q>),
    /// Nothing: it is no query.
    Ignore,
}

/// Where answers in turn begin: counters of one shard. Names that share one only rotate in longer steps.
pub struct Rotation([u32; 256]);

impl Default for Rotation {
    fn default() -> Self {
        Self([0; 256])
    }
}

impl Rotation {
    /// Where the list of a node begins this time. Types have counters of their own: who asks for A and AAAA in turn
    /// would see every second step only.
    fn next(&mut self, node: &Node, kind: u16, count: usize) -> usize {
        if node.order == AnswerOrder::Fixed || count < 2 {
            return 0;
        }
        let place = usize::from(node.rotation.wrapping_mul(5).wrapping_add(kind)) % self.0.len();
        let Some(counter) = self.0.get_mut(place) else {
            return 0;
        };
        let turn = *counter as usize;
        *counter = counter.wrapping_add(1);
        turn % count
    }
}

/// Answers a message by what `view` sees.
pub fn answer<'q>(
    message: &'q [u8],
    view: &View,
    transport: Transport,
    rotation: &mut Rotation,
    out: &mut [u8],
) -> Outcome<'q> {
    let query = match Query::parse(message) {
        Ok(query) => query,
        Err(Fault::Silent) => return Outcome::Ignore,
        Err(Fault::Format { id, flags }) => return without_question(id, flags, Rcode::FormErr, out),
        Err(Fault::Opcode { id, flags }) => return without_question(id, flags, Rcode::NotImp, out),
    };
    if query.edns.is_some_and(|edns| edns.version != 0) {
        return refuse(&query, Rcode::BadVers, transport, out);
    }
    if query.class != CLASS_INTERNET || matches!(query.kind, kind::AXFR | kind::IXFR) {
        return refuse(&query, Rcode::Refused, transport, out);
    }
    let mut buffer = [0; LONGEST_NAME];
    let name = query.canonical(&mut buffer);
    let node = view.find(name);
    let apex = match node {
        Some(node) => node.apex,
        None => match view.apex_of(name, query.labels) {
            Some(apex) => apex,
            None => return Outcome::Forward(query),
        },
    };
    let Some(mut response) = Response::begin(&query, transport, out) else {
        return Outcome::Ignore;
    };
    let written = match node {
        Some(node) => add_records(&mut response, &query, node, view, rotation),
        None => false,
    };
    if !written {
        let skipped = query.labels.saturating_sub(apex);
        let zone = skip_labels(query.name, skipped).unwrap_or(&[0]);
        let offset = HEADER + query.name.len() - zone.len();
        // A name has 255 bytes: the pointer's 14 bits have room.
        let owner = (0xc000 | offset as u16).to_be_bytes();
        response.record(Section::Authority, &owner, kind::SOA, &soa());
    }
    let rcode = match node {
        Some(_) => Rcode::NoError,
        None => Rcode::NxDomain,
    };
    let (length, truncated) = response.finish(rcode, true);
    Outcome::Answer(Answered {
        length,
        rcode,
        truncated,
    })
}

/// The answer that there is none: the question comes back, and no record.
pub fn refuse<'q>(query: &Query<'_>, rcode: Rcode, transport: Transport, out: &mut [u8]) -> Outcome<'q> {
    let Some(response) = Response::begin(query, transport, out) else {
        return Outcome::Ignore;
    };
    let (length, truncated) = response.finish(rcode, false);
    Outcome::Answer(Answered {
        length,
        rcode,
        truncated,
    })
}

fn without_question<'q>(id: u16, flags: u16, rcode: Rcode, out: &mut [u8]) -> Outcome<'q> {
    match header_alone(id, flags, rcode, out) {
        Some(length) => Outcome::Answer(Answered {
            length,
            rcode,
            truncated: false,
        }),
        None => Outcome::Ignore,
    }
}

/// Writes what a node has of the type asked for; false when that is nothing.
fn add_records(
    response: &mut Response<'_, '_>,
    query: &Query<'_>,
    node: &Node,
    view: &View,
    rotation: &mut Rotation,
) -> bool {
    let is_apex = query.labels == node.apex;
    match query.kind {
        kind::A => {
            let start = rotation.next(node, kind::A, node.ipv4.len());
            turned(&node.ipv4, start).all(|address| response.answer(kind::A, &address.octets()));
            !node.ipv4.is_empty()
        }
        kind::AAAA => {
            let start = rotation.next(node, kind::AAAA, node.ipv6.len());
            turned(&node.ipv6, start).all(|address| response.answer(kind::AAAA, &address.octets()));
            !node.ipv6.is_empty()
        }
        kind::SRV => add_targets(response, node, rotation),
        kind::TXT => {
            node.texts.iter().all(|text| response.answer(kind::TXT, text));
            !node.texts.is_empty()
        }
        kind::PTR => {
            node.pointers.iter().all(|name| response.answer(kind::PTR, name));
            !node.pointers.is_empty()
        }
        kind::SOA if is_apex => response.answer(kind::SOA, &soa()),
        kind::NS if is_apex => {
            response.answer(kind::NS, NAME_SERVER);
            if let Some(server) = view.find(NAME_SERVER) {
                for address in &server.ipv4 {
                    response.record(Section::Additional, NAME_SERVER, kind::A, &address.octets());
                }
                for address in &server.ipv6 {
                    response.record(Section::Additional, NAME_SERVER, kind::AAAA, &address.octets());
                }
            }
            true
        }
        kind::ANY if is_apex || !node.is_empty() => response.answer(kind::HINFO, HINFO_DATA),
        _ => false,
    }
}

/// SRV records (RFC 2782), and the addresses of their targets as far as there is room.
fn add_targets(response: &mut Response<'_, '_>, node: &Node, rotation: &mut Rotation) -> bool {
    let start = rotation.next(node, kind::SRV, node.targets.len());
    let complete = turned(&node.targets, start).all(|target| {
        let mut data = [0; 6 + LONGEST_NAME];
        // Priority and weight are equal: everybody shares.
        data[4..6].copy_from_slice(&target.port.to_be_bytes());
        let length = target.name.len().min(LONGEST_NAME);
        data[6..6 + length].copy_from_slice(&target.name[..length]);
        response.answer(kind::SRV, &data[..6 + length])
    });
    if complete {
        turned(&node.targets, start).all(|target| {
            response.record(Section::Additional, &target.name, kind::A, &target.ipv4.octets())
                && response.record(
                    Section::Additional,
                    &target.name,
                    kind::AAAA,
                    &target.ipv6.octets(),
                )
        });
    }
    !node.targets.is_empty()
}

/// A list, begun at `start`.
fn turned<T>(list: &[T], start: usize) -> impl Iterator<Item = &T> {
    let (behind, first) = list.split_at(start.min(list.len()));
    first.iter().chain(behind)
}

fn soa() -> [u8; SOA_LENGTH] {
    let mut data = [0; SOA_LENGTH];
    let (names, numbers) = data.split_at_mut(NAME_SERVER.len() + HOSTMASTER.len());
    let (server, mailbox) = names.split_at_mut(NAME_SERVER.len());
    server.copy_from_slice(NAME_SERVER);
    mailbox.copy_from_slice(HOSTMASTER);
    for (bytes, number) in numbers.as_chunks_mut::<4>().0.iter_mut().zip(SOA_NUMBERS) {
        *bytes = number.to_be_bytes();
    }
    data
}

#[cfg(test)]
pub(crate) mod tests;
