//! The lab: whole sites in network namespaces of one machine, each host with its own real agent and datapath.
//!
//! A topology goes through three rooms:
//!
//! 1. [`blueprint`] turns the document into names, wires and peers: pure, everything checked before anything is made.
//! 2. [`build`] makes it: the [`ground`] of namespaces and segments, hosts, applications, instances; then waits until
//!    every instance reaches its peers. What it is going to make is written to the lab's [`state`] file first.
//! 3. [`teardown`] removes what a state file names, whoever made it and however far it came: an `up` that failed, was
//!    interrupted or was killed is undone by the same code as one that worked.
//!
//! [`exec`] runs a command inside, [`demo`] shows that the house stands. A lab never touches the machine's own
//! namespace: bridges, too, live in namespaces of their own.

pub(crate) mod blueprint;
pub(crate) mod build;
pub(crate) mod built_in;
pub(crate) mod demo;
mod echo;
pub(crate) mod exec;
mod ground;
mod host_document;
mod progress;
mod reach;
pub(crate) mod state;
pub(crate) mod summary;
pub(crate) mod teardown;
mod verdict;

pub(crate) use progress::Progress;

use crate::config::Problems;
use std::io;

/// What keeps a lab from being built, used or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A document has mistakes.
    #[error("{0}")]
    Documents(#[from] Problems),
    /// What was asked can't be done as things are; the text says what, where, what to do.
    #[error("{0}")]
    Refused(String),
    /// There is no such lab, or nothing of that name in it.
    #[error("{0}")]
    NotFound(String),
    /// The system refused.
    #[error("{doing}: {error}")]
    System {
        /// What was being done, on what.
        doing: String,
        /// What the system said.
        error: io::Error,
    },
    /// SIGINT or SIGTERM came.
    #[error("interrupted")]
    Interrupted,
    /// Several things failed; all of them are here.
    #[error("{}", lines(.0))]
    Several(Vec<Error>),
}

fn lines(errors: &[Error]) -> String {
    errors.iter().map(Error::to_string).collect::<Vec<_>>().join("\n")
}

impl Error {
    /// The errors as one: nothing, the one, or all of them.
    pub(crate) fn collect(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }
}

/// Says what was being done when the system refused.
pub(crate) trait WhileDoing<T> {
    /// Adds the words, such as "deleting namespace tg-h1".
    fn while_doing(self, words: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> WhileDoing<T> for io::Result<T> {
    fn while_doing(self, words: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|error| Error::System {
            doing: words(),
            error,
        })
    }
}
