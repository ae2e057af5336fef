//! What hosts send each other over a link: JSON, one message a frame.

use super::record::{HostRecord, MAX_RECORD, Stamp};
use crate::config::label_fault;
use serde::{Deserialize, Serialize};

/// Records travel together up to this many bytes; a larger one travels alone.
pub(crate) const MAX_BATCH: usize = 64 * 1024;
/// Largest message, in bytes: the largest record and what is around it.
pub(crate) const MAX_MESSAGE: usize = MAX_RECORD + 1024;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Message {
    /// What the sender has, and whom it heard of lately. Its own entry is its probe.
    Digest(Vec<Entry>),
    /// The records of these hosts are wanted.
    Want(Vec<String>),
    /// Records: the sender's own that changed, or those that were wanted.
    Records(Vec<HostRecord>),
}

/// What a digest says about one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Entry {
    /// The host.
    pub(crate) host_id: String,
    /// Which record of it the sender has.
    pub(crate) record: Option<Stamp>,
    /// Its last beat: a count that only the host itself raises, so that a raised one is a sign of life whoever tells it.
    pub(crate) beat: Option<Stamp>,
    /// Whether the sender heard that beat lately. An old one is no sign of life, but a host that lost its count must
    /// hear of it.
    pub(crate) fresh: bool,
}

/// Why bytes aren't a message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MessageError {
    /// They can't be decoded.
    #[error("a message can't be decoded: {0}")]
    Encoding(#[from] serde_json::Error),
    /// Something in it can't be.
    #[error("what it says of host {host_id:?} is illegal: {fault}")]
    Illegal {
        /// The host.
        host_id: String,
        /// What is wrong.
        fault: String,
    },
}

impl Message {
    /// The bytes of a frame, without its length.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, MessageError> {
        Ok(serde_json::to_vec(self)?)
    }

    /// Reads a frame's bytes.
    ///
    /// # Errors
    /// When they aren't a legal message; the sender isn't worth listening to then.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let message: Self = serde_json::from_slice(bytes)?;
        match message.fault() {
            None => Ok(message),
            Some((host_id, fault)) => Err(MessageError::Illegal { host_id, fault }),
        }
    }

    fn fault(&self) -> Option<(String, String)> {
        let of = |host_id: &str, fault: Option<String>| fault.map(|fault| (host_id.to_owned(), fault));
        match self {
            Self::Digest(entries) => entries.iter().find_map(|entry| {
                let stamps = entry.record.iter().chain(&entry.beat);
                let fault = label_fault(&entry.host_id).or(stamps.copied().find_map(Stamp::fault));
                of(&entry.host_id, fault)
            }),
            Self::Want(hosts) => hosts.iter().find_map(|host| of(host, label_fault(host))),
            Self::Records(records) => records
                .iter()
                .find_map(|record| of(&record.host_id, record.fault())),
        }
    }
}
