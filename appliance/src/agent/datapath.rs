//! The agent's end of the seam: connects to the datapath, asks one thing at a time, collects events in between.

use crate::seam::{
    Event, FromDatapath, LaneFeatures, LaneSockets, PlanDigest, ToDatapath, VERSION, envelope,
};
use crate::sys::memfd;
use crate::sys::seqpacket::{AsyncConnection, Connection};
use std::collections::VecDeque;
use std::hash::Hasher as _;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tidegate_stack::plan::{Plan, PortId, PublicKey};
use tidegate_stack::responder::dns::forward::Told;
use tidegate_stack::stats::{FlowPage, Report};

/// How long an answer may take before the connection is given up: installing a plan on every shard is the slowest.
const PATIENCE: Duration = Duration::from_secs(10);
/// The oldest datapath whose messages are understood.
const OLDEST_VERSION: u32 = VERSION.saturating_sub(1);

/// What went wrong between the two processes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeamError {
    /// Nobody answers.
    #[error("the datapath doesn't answer at {path}: {source}; start `tidegate datapath` or `tidegate run`")]
    Away {
        /// Where it should listen.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It speaks otherwise.
    #[error(
        "the datapath speaks version {version} of the seam, and this agent {OLDEST_VERSION} to {VERSION}: it goes on \
         with its last plan; restart it to change anything"
    )]
    Version {
        /// Its version.
        version: u32,
    },
    /// It refused.
    #[error("the datapath refused: {0}")]
    Refused(String),
    /// It answered something else than what was asked.
    #[error("the datapath answered something else than what it was asked for")]
    Unexpected,
}

/// What a datapath has when a connection begins.
#[derive(Clone, Debug)]
pub(crate) struct Greeting {
    /// Its start.
    pub(crate) boot: u64,
    /// Its process.
    pub(crate) pid: u32,
    /// Its shards: a lane each, and as many queues for a port.
    pub(crate) shards: u32,
    /// The keys of its lanes, in the order of the shards.
    pub(crate) lane_keys: Vec<PublicKey>,
    /// Whether it waits for a predecessor to retire.
    pub(crate) standby: bool,
    /// The plan in force.
    pub(crate) plan: Option<PlanDigest>,
    /// The ports that it holds.
    pub(crate) ports: Vec<PortId>,
    /// The lane sockets that it holds.
    pub(crate) lanes: Option<LaneSockets>,
}

/// The connection to a datapath, or the wish for one.
#[derive(Debug)]
pub(crate) struct DatapathClient {
    path: PathBuf,
    /// Which socket was there when the connection began: its device and inode.
    socket: Option<(u64, u64)>,
    connection: Option<AsyncConnection>,
    events: VecDeque<Event>,
}

impl DatapathClient {
    /// A client of the datapath that listens at `path`, not connected.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            socket: None,
            connection: None,
            events: VecDeque::new(),
        }
    }

    /// Whether a connection stands.
    pub(crate) fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// Whether another socket is where the connected one was: a successor listens there.
    pub(crate) fn is_succeeded(&self) -> bool {
        let now = socket_at(&self.path);
        self.is_connected() && now.is_some() && now != self.socket
    }

    /// Gives the connection up.
    pub(crate) fn disconnect(&mut self) {
        self.connection = None;
    }

    /// Connects and says hello. A datapath that doesn't want this agent isn't connected.
    pub(crate) async fn connect(&mut self) -> Result<Greeting, SeamError> {
        self.events.clear();
        // Before it is connected to: of two that follow each other at once, the later one is noticed then.
        self.socket = socket_at(&self.path);
        let connection = Connection::connect(&self.path).and_then(AsyncConnection::new);
        self.connection = Some(connection.map_err(|source| self.away(source))?);
        let greeted = self.hello().await;
        if greeted.is_err() {
            self.disconnect();
        }
        greeted
    }

    async fn hello(&mut self) -> Result<Greeting, SeamError> {
        match self.ask(&ToDatapath::Hello { version: VERSION }, &[]).await? {
            (
                FromDatapath::Hello {
                    version,
                    boot,
                    pid,
                    shards,
                    lane_keys,
                    standby,
                    plan,
                    ports,
                    lanes,
                },
                _,
            ) => {
                if !(OLDEST_VERSION..=VERSION).contains(&version) {
                    return Err(SeamError::Version { version });
                }
                let ports = ports.into_iter().map(|(port, _)| port).collect();
                Ok(Greeting {
                    boot: boot.0,
                    pid,
                    shards,
                    lane_keys,
                    standby,
                    plan,
                    ports,
                    lanes,
                })
            }
            _ => Err(self.unexpected()),
        }
    }

    /// Gives the lanes' sockets.
    pub(crate) async fn set_lanes(
        &mut self,
        lanes: LaneSockets,
        features: LaneFeatures,
        sockets: &[BorrowedFd<'_>],
    ) -> Result<(), SeamError> {
        self.tell(&ToDatapath::SetLanes { lanes, features }, sockets)
            .await
    }

    /// Gives a port's queues.
    pub(crate) async fn add_port(
        &mut self,
        port: PortId,
        device: &str,
        queues: &[OwnedFd],
    ) -> Result<(), SeamError> {
        let queues: Vec<_> = queues.iter().map(|queue| queue.as_fd()).collect();
        self.tell(
            &ToDatapath::AddPort {
                port,
                device: device.to_owned(),
            },
            &queues,
        )
        .await
    }

    /// Closes a port's queues.
    pub(crate) async fn remove_port(&mut self, port: PortId) -> Result<(), SeamError> {
        self.tell(&ToDatapath::RemovePort { port }, &[]).await
    }

    /// Puts a plan in force on every shard; the answer is its epoch. In `standby` no port is read.
    pub(crate) async fn install(&mut self, plan: &EncodedPlan, standby: bool) -> Result<u64, SeamError> {
        let sealed = memfd::seal("tidegate-plan", &plan.bytes).map_err(|source| self.away(source))?;
        match self
            .ask(
                &ToDatapath::Install {
                    digest: plan.digest,
                    standby,
                },
                &[sealed.as_fd()],
            )
            .await?
        {
            (FromDatapath::Installed { epoch, unknown_ports }, _) => {
                if !unknown_ports.is_empty() {
                    tracing::error!(
                        ?unknown_ports,
                        "the plan names ports whose queues the datapath was never given"
                    );
                }
                Ok(epoch)
            }
            _ => Err(self.unexpected()),
        }
    }

    /// Has the ports no longer read: a successor does.
    pub(crate) async fn retire(&mut self) -> Result<(), SeamError> {
        self.tell(&ToDatapath::Retire, &[]).await
    }

    /// Has the process end.
    pub(crate) async fn end(&mut self) -> Result<(), SeamError> {
        self.tell(&ToDatapath::End, &[]).await
    }

    /// The datapath's state.
    pub(crate) async fn report(&mut self) -> Result<Report, SeamError> {
        match self.ask(&ToDatapath::Report, &[]).await? {
            (FromDatapath::Report { report }, _) => Ok(*report),
            _ => Err(self.unexpected()),
        }
    }

    /// A part of a shard's live flows.
    pub(crate) async fn flows(&mut self, shard: u8, from: u64) -> Result<FlowPage, SeamError> {
        match self.ask(&ToDatapath::Flows { shard, from }, &[]).await? {
            (FromDatapath::Flows { page }, _) => Ok(*page),
            _ => Err(self.unexpected()),
        }
    }

    /// Tells what was found out about questions of instances.
    pub(crate) async fn tell_answers(&mut self, answers: Vec<Told>) -> Result<(), SeamError> {
        self.tell(&ToDatapath::Answers { answers }, &[]).await
    }

    /// The descriptors of a port, or of the lanes.
    pub(crate) async fn adopt(&mut self, port: Option<PortId>) -> Result<Vec<OwnedFd>, SeamError> {
        match self.ask(&ToDatapath::Adopt { port }, &[]).await? {
            (FromDatapath::Adopted, descriptors) => Ok(descriptors),
            _ => Err(self.unexpected()),
        }
    }

    /// The next event; `None` when the connection ended. Never comes without a connection. Dropping the future loses
    /// nothing.
    pub(crate) async fn event(&mut self) -> Option<Event> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        let Some(connection) = &self.connection else {
            return std::future::pending().await;
        };
        let message = connection.receive().await;
        match message {
            Ok(Some(message)) => match envelope::decode(message) {
                Ok((FromDatapath::Event { event }, _)) => return Some(event),
                Ok(_) => tracing::error!("the datapath answered what nobody asked; connecting anew"),
                Err(error) => tracing::error!(%error, "the datapath can't be understood; connecting anew"),
            },
            Ok(None) => tracing::warn!("the datapath ended"),
            Err(error) => tracing::warn!(%error, "the connection to the datapath broke"),
        }
        self.connection = None;
        None
    }

    async fn tell(&mut self, message: &ToDatapath, descriptors: &[BorrowedFd<'_>]) -> Result<(), SeamError> {
        match self.ask(message, descriptors).await? {
            (FromDatapath::Done, _) => Ok(()),
            _ => Err(self.unexpected()),
        }
    }

    async fn ask(
        &mut self,
        message: &ToDatapath,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(FromDatapath, Vec<OwnedFd>), SeamError> {
        let Some(connection) = &self.connection else {
            return Err(self.away(io::ErrorKind::NotConnected.into()));
        };
        let events = &mut self.events;
        let exchange = async {
            let (bytes, large) = envelope::encode(message)?;
            let large = large.iter().map(|file| file.as_fd());
            let descriptors: Vec<_> = large.chain(descriptors.iter().copied()).collect();
            connection.send(&bytes, &descriptors).await?;
            loop {
                let received = connection.receive().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
                match envelope::decode(received)? {
                    (FromDatapath::Event { event }, _) => events.push_back(event),
                    answer => return Ok(answer),
                }
            }
        };
        let outcome = tokio::time::timeout(PATIENCE, exchange).await;
        match outcome.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok((FromDatapath::Refused { reason }, _)) => Err(SeamError::Refused(reason)),
            Ok(answer) => Ok(answer),
            // An answer that comes late would be taken for the next one's.
            Err(source) => {
                self.connection = None;
                Err(self.away(source))
            }
        }
    }

    fn unexpected(&mut self) -> SeamError {
        self.connection = None;
        SeamError::Unexpected
    }

    fn away(&self, source: io::Error) -> SeamError {
        SeamError::Away {
            path: self.path.clone(),
            source,
        }
    }
}

fn socket_at(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// A plan as it crosses the seam. It holds keys, so it has no `Debug`.
pub(crate) struct EncodedPlan {
    bytes: Vec<u8>,
    /// Equal for equal plans.
    pub(crate) digest: PlanDigest,
}

impl EncodedPlan {
    /// Encodes a plan.
    pub(crate) fn of(plan: &Plan) -> Result<Self, serde_json::Error> {
        let bytes = serde_json::to_vec(plan)?;
        // SipHash with fixed keys. Another program version that hashes otherwise installs an equal plan once more,
        // which makes no new epoch.
        let mut hasher = std::collections::hash_map::DefaultHasher::new();
        hasher.write(&bytes);
        Ok(Self {
            bytes,
            digest: PlanDigest(hasher.finish()),
        })
    }
}
