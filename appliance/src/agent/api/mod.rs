//! The control socket: what verbs ask the agent, and what it answers.
//!
//! One JSON message each way over a `SOCK_SEQPACKET` socket, large ones as [`crate::seam::envelope`] says. A connection may ask several things, one after the other: attaching prepares and
//! then commits, and what was prepared is given back when the connection ends.

mod flows;
mod messages;
mod names;
mod observations;
mod policy;

pub(crate) use crate::seam::envelope::{decode, encode};
pub(crate) use flows::*;
pub(crate) use messages::*;
pub(crate) use names::*;
pub(crate) use observations::*;
pub(crate) use policy::*;

use crate::sys::seqpacket::{AsyncConnection, AsyncListener, Listener};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

/// Connections at a time; the next ones wait.
const MAX_CONNECTIONS: usize = 64;
/// How long a connection may say nothing, or leave an answer unread, before it is closed: longer than an attaching
/// process takes between its two requests, and a bound on how long one that hangs keeps the others out.
const PATIENCE: Duration = Duration::from_secs(60);
/// The group whose members may ask.
const GROUP: &str = "tidegate";

/// Which connection asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ConnectionId(u64);

#[cfg(test)]
impl ConnectionId {
    /// Of the first connection that asks.
    pub(crate) const FIRST: Self = Self(1);
    /// Of the next one.
    pub(crate) const SECOND: Self = Self(2);
}

/// What connections bring to the agent's loop.
#[derive(Debug)]
pub(crate) enum Call {
    /// Somebody asks.
    Request {
        /// Who.
        connection: ConnectionId,
        /// What.
        request: Request,
        /// The descriptors beside it.
        descriptors: Vec<OwnedFd>,
        /// Where the answer goes.
        answer: oneshot::Sender<Response>,
    },
    /// A connection ended.
    Ended(ConnectionId),
}

/// Listens at `path`: for root and, where it exists, the group.
pub(crate) fn listen(path: &Path) -> io::Result<AsyncListener> {
    let listener = Listener::bind(path, 0o660)?;
    if let Some(group) = group_id(&std::fs::read_to_string("/etc/group").unwrap_or_default()) {
        std::os::unix::fs::chown(path, None, Some(group))?;
    }
    AsyncListener::new(listener)
}

/// Accepts connections for ever and brings what they ask to `calls`.
pub(crate) async fn serve(listener: AsyncListener, calls: mpsc::Sender<Call>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut number = 0;
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok(connection) => {
                number += 1;
                let calls = calls.clone();
                tokio::spawn(async move {
                    let id = ConnectionId(number);
                    if let Err(error) = converse(id, &connection, &calls, PATIENCE).await {
                        tracing::debug!(%error, "a connection to the control socket ended early");
                    }
                    drop(calls.send(Call::Ended(id)).await);
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of descriptors, mostly: somebody has to close some first.
                tracing::warn!(%error, "a connection to the control socket can't be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(
    id: ConnectionId,
    connection: &AsyncConnection,
    calls: &mpsc::Sender<Call>,
    patience: Duration,
) -> io::Result<()> {
    while let Some(message) = timeout(patience, connection.receive()).await?? {
        let response = match decode::<Request>(message) {
            Ok((request, descriptors)) => {
                let (answer, answered) = oneshot::channel();
                let call = Call::Request {
                    connection: id,
                    request,
                    descriptors,
                    answer,
                };
                if calls.send(call).await.is_err() {
                    return Ok(());
                }
                answered.await.unwrap_or_else(|_| {
                    Response::Refused(Refusal::because("the agent is stopping: ask the next one"))
                })
            }
            Err(error) => Response::Refused(Refusal::because(format!(
                "the request can't be understood ({error}): are `tidegate` and the agent of one version?"
            ))),
        };
        let (bytes, large) = encode(&response)?;
        let descriptors: Vec<_> = large.iter().map(|descriptor| descriptor.as_fd()).collect();
        timeout(patience, connection.send(&bytes, &descriptors)).await??;
    }
    Ok(())
}

/// The group's number, out of the text of `/etc/group` (group(5)). Not by getgrnam, which a static binary can't use.
fn group_id(text: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(GROUP))
            .then(|| fields.nth(1)?.parse().ok())
            .flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::seqpacket::Connection;

    #[test]
    fn the_group_is_found_in_the_text_of_its_file() {
        assert_eq!(
            group_id("root:x:0:\ntidegate-old:x:7:\ntidegate:x:998:alice,bob\n"),
            Some(998)
        );
        assert_eq!(group_id("tidegate:x:many:\n"), None);
        assert_eq!(group_id(""), None);
    }

    #[test]
    fn a_connection_that_says_nothing_or_reads_nothing_is_closed() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (calls, _waiting) = mpsc::channel(1);
            let patience = Duration::from_millis(20);
            let (near, far) = Connection::pair().unwrap();
            let far = AsyncConnection::new(far).unwrap();
            let silent = converse(ConnectionId(1), &far, &calls, patience).await;
            assert_eq!(silent.unwrap_err().kind(), io::ErrorKind::TimedOut);

            near.set_nonblocking(true).unwrap();
            let deaf = async {
                // Garbage is answered, too, until the answers that nobody reads fill the socket.
                loop {
                    drop(near.send(b"{", &[]));
                    tokio::time::sleep(Duration::from_micros(10)).await;
                }
            };
            let closed = tokio::select! {
                closed = converse(ConnectionId(2), &far, &calls, patience) => closed,
                () = deaf => Ok(()),
            };
            assert_eq!(closed.unwrap_err().kind(), io::ErrorKind::TimedOut);
        });
    }
}
