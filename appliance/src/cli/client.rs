//! A verb's connection to the agent.

use super::Failure;
use crate::agent::api::{self, Refusal, RefusalKind, Request, Response};
use crate::sys::seqpacket::Connection;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::time::Duration;

/// How long an answer may take: longer than the agent itself waits for the datapath, several times.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to the agent. What was prepared on it is given back when it ends.
pub(crate) struct AgentClient {
    connection: Connection,
}

impl AgentClient {
    /// Connects to the agent that listens at `socket`.
    ///
    /// # Errors
    /// [`Failure::NoAgent`] with what to do.
    pub(crate) fn connect(socket: &Path) -> anyhow::Result<Self> {
        let connection = Connection::connect(socket).map_err(|error| {
            let hint = match error.kind() {
                std::io::ErrorKind::PermissionDenied => {
                    "run this as root or as a member of the group `tidegate`"
                }
                _ => "start it with `tidegate run`, or name its folder with --run-dir",
            };
            Failure::NoAgent(format!(
                "no agent answers at {} ({error}): {hint}",
                socket.display()
            ))
        })?;
        connection.set_receive_timeout(Some(PATIENCE))?;
        Ok(Self { connection })
    }

    /// Asks, and waits for the answer. A refusal is a [`Failure`].
    ///
    /// # Errors
    /// What the agent refused, or that it went away.
    pub(crate) fn ask(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> anyhow::Result<Response> {
        let (bytes, large) = api::encode(request)?;
        let all: Vec<_> = large
            .iter()
            .map(|descriptor| descriptor.as_fd())
            .chain(descriptors.iter().copied())
            .collect();
        let answer = self
            .connection
            .send(&bytes, &all)
            .and_then(|()| self.connection.receive());
        let message = answer.ok().flatten().ok_or_else(|| {
            Failure::NoAgent("the agent went away before it answered: see its log, then ask again".to_owned())
        })?;
        let (response, _) = api::decode::<Response>(message)?;
        match response {
            Response::Refused(Refusal {
                kind: RefusalKind::Refused,
                problems,
            }) => Err(Failure::Refused(problems.join("\n")).into()),
            Response::Refused(Refusal {
                kind: RefusalKind::NotFound,
                problems,
            }) => Err(Failure::NotFound(problems.join("\n")).into()),
            response => Ok(response),
        }
    }

    /// The error of an answer to another question.
    pub(crate) fn unexpected(_response: &Response) -> anyhow::Error {
        anyhow::anyhow!("the agent answered another question: are `tidegate` and the agent of one version?")
    }
}
