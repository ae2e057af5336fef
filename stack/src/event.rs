//! What a shard would have somebody else do, who has what it hasn't: sockets, or a say in the plan.

use crate::plan::PortId;
use crate::responder::dns::{Question, Rcode};
use serde::{Deserialize, Serialize};

/// Something that happened, taken by [`Shard::poll_event`](crate::shard::Shard::poll_event). One may get lost: what
/// matters is told again, or stands in the [`Report`](crate::stats::Report).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// Somebody asks about the world beyond, and the answer isn't known. It is repeated every second while somebody
    /// waits.
    Question(Question),
    /// What instances of applications asked whose queries are told one by one. Those that found no room here are
    /// counted ([`DnsReport::unlogged`](crate::stats::DnsReport::unlogged)).
    Queries(Vec<LoggedQuery>),
    /// An instance got ready, or no longer is.
    Readiness {
        /// Its port.
        port: PortId,
        /// Whether it is.
        ready: bool,
    },
}

/// A query, and what was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoggedQuery {
    /// Who asked.
    pub port: PortId,
    /// What.
    pub question: Question,
    /// The code of the answer.
    pub rcode: Rcode,
    /// Where the answer is from.
    pub origin: Origin,
}

/// Where an answer is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The names inside.
    Names,
    /// What is remembered of the world beyond.
    Memory,
    /// It was found out.
    Upstream,
}
