//! Questions about names, and their answers: `show names`, `dns query`.

use super::flows::NamedInstance;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A type of records.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "UPPERCASE")]
#[value(rename_all = "UPPER")]
pub(crate) enum RecordType {
    /// An IPv4 address.
    A,
    /// An IPv6 address.
    Aaaa,
    /// The name of an address.
    Ptr,
    /// A port, and who has it.
    Srv,
    /// A text.
    Txt,
    /// Who is asked about a zone.
    Ns,
    /// What a zone says of itself.
    Soa,
}

impl fmt::Display for RecordType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::A => "A",
            Self::Aaaa => "AAAA",
            Self::Ptr => "PTR",
            Self::Srv => "SRV",
            Self::Txt => "TXT",
            Self::Ns => "NS",
            Self::Soa => "SOA",
        })
    }
}

/// `show names`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NameList {
    /// Applications' own networks first, then the shared ones; in each by service, instances by their numbers.
    pub(crate) names: Vec<NameLine>,
}

/// A record, or a name without one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct NameLine {
    /// The network in which it can be asked for, as `tenant/name`.
    pub(crate) network: String,
    /// Whether that one is shared.
    pub(crate) shared: bool,
    /// The name, without the dot at its end.
    pub(crate) name: String,
    /// The record's type; `None`: the name exists and has no record.
    #[serde(rename = "type")]
    pub(crate) kind: Option<RecordType>,
    /// What it says.
    pub(crate) value: Option<String>,
    /// Whether it is answered.
    pub(crate) answered: bool,
    /// Where it comes from, and why it isn't answered.
    pub(crate) why: String,
}

/// What `dns query` asks: what an instance would be answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct NameQuery {
    /// The name, as a program would write it, or an address.
    pub(crate) name: String,
    /// The type; without one both families of addresses, and the name of an address.
    pub(crate) kind: Option<RecordType>,
    /// Who asks, `[[tenant/]application/]instance-or-service`; without one any instance here, when all see the same.
    pub(crate) from: Option<String>,
}

/// `dns query`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct NameAnswers {
    /// Who would ask.
    pub(crate) from: NamedInstance,
    /// The networks whose names it sees, as `tenant/name`, its own first.
    pub(crate) networks: Vec<String>,
    /// What its resolver would ask, one after the other, until there is an answer.
    pub(crate) queries: Vec<NameAnswer>,
}

/// What would become of one query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct NameAnswer {
    /// The whole name that is asked for.
    pub(crate) name: String,
    /// The type.
    #[serde(rename = "type")]
    pub(crate) kind: RecordType,
    /// The code of the answer: `NOERROR`, `NXDOMAIN`, `REFUSED`.
    pub(crate) code: String,
    /// Whether it doesn't fit into a datagram of 1232 bytes, and is asked for again over TCP.
    pub(crate) truncated: bool,
    /// The records, in the order of one answer.
    pub(crate) records: Vec<AnsweredRecord>,
    /// Why.
    pub(crate) why: String,
}

/// One record of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct AnsweredRecord {
    /// For how many seconds it may be remembered.
    pub(crate) time_to_live: u32,
    /// What it says.
    pub(crate) value: String,
    /// Where it comes from.
    pub(crate) why: Option<String>,
}
