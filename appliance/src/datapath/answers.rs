//! What the control thread answers: a message with descriptors, or why a request wasn't carried out.

use crate::seam::{FromDatapath, envelope};
use crate::sys::seqpacket::Connection;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use tidegate_stack::plan::PortId;

/// An answer and the descriptors beside it.
pub(super) struct Answer {
    /// The answer.
    pub(super) message: FromDatapath,
    /// The descriptors.
    pub(super) descriptors: Vec<OwnedFd>,
}

/// Why a request wasn't carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error(
        "the agent speaks version {theirs} of the seam, this datapath {ours}: restart the datapath to upgrade it"
    )]
    Version { theirs: u32, ours: u32 },
    #[error("the message can't be understood: {0}")]
    Message(#[source] io::Error),
    #[error("{what} needs {needed} descriptors, and {came} came")]
    Descriptors {
        what: &'static str,
        needed: usize,
        came: usize,
    },
    #[error("{what}: {error}")]
    Descriptor {
        what: &'static str,
        #[source]
        error: io::Error,
    },
    #[error("the plan can't be read: {0}")]
    Plan(#[source] io::Error),
    #[error("port {0} isn't here: add it with its queues")]
    NoPort(PortId),
    #[error("there is no shard {shard}: this datapath has {count}, numbered from 0")]
    NoShard { shard: u8, count: usize },
    #[error("no lanes are set: set them with their sockets")]
    NoLanes,
}

/// How a request ended without an answer to give.
pub(super) enum Failure {
    /// The agent is told why.
    Refused(Refusal),
    /// A shard is broken, and the process with it.
    Broken(io::Error),
}

impl<E: Into<Refusal>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Refused(error.into())
    }
}

impl From<FromDatapath> for Answer {
    fn from(message: FromDatapath) -> Self {
        Self {
            message,
            descriptors: Vec::new(),
        }
    }
}

/// One object of each descriptor's duplicate; the originals stay with the control thread.
pub(super) fn duplicates<T>(
    what: &'static str,
    descriptors: &[OwnedFd],
    make: impl Fn(OwnedFd) -> io::Result<T>,
) -> Result<Vec<T>, Refusal> {
    let made = descriptors.iter().map(|descriptor| make(descriptor.try_clone()?));
    made.collect::<io::Result<_>>()
        .map_err(|error| Refusal::Descriptor { what, error })
}

/// Sends a message to the agent, when there is one.
pub(super) fn send(
    agent: Option<&Connection>,
    message: &FromDatapath,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let Some(agent) = agent else {
        return Ok(());
    };
    let (bytes, large) = envelope::encode(message)?;
    let large = large.iter().map(AsFd::as_fd);
    let all: Vec<BorrowedFd<'_>> = large.chain(descriptors.iter().copied()).collect();
    agent.send(&bytes, &all)
}
