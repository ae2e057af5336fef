//! The control thread: answers the agent, compiles plans, keeps a duplicate of every descriptor that can't be made
//! again, so that a starting agent gets it back ([`ToDatapath::Adopt`]).
//!
//! It listens at its socket; the newest agent wins. A request is carried out whole before the next one is read: the
//! control thread mails the shards and waits for their answers, which takes a turn.

use super::lanes::Lane;
use super::ports::Port;
use super::reports;
use super::worker::{Events, Mail, Mailbox, Reply};
use crate::seam::{
    self, BootId, Event, FromDatapath, LaneFeatures, LaneSockets, PlanDigest, ToDatapath, envelope,
};
use crate::sys::epoll::{Poller, Waker};
use crate::sys::memfd;
use crate::sys::seqpacket::{Connection, Listener, Message};
use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use tidegate_stack::plan::{Plan, PortId};
use tidegate_stack::shard::ShardConfig;
use tidegate_stack::snapshot::Snapshot;

/// Events that may wait: more than a host has ports.
const EVENTS: usize = 1024;

const LISTENER: u64 = 0;
const AGENT: u64 = 1;
const SHARDS: u64 = 2;
const TERMINATION: u64 = 3;

/// The control thread's state.
pub(super) struct Control {
    boot: BootId,
    listener: Listener,
    agent: Option<Connection>,
    poller: Poller,
    termination: OwnedFd,
    shards: Vec<Mailbox>,
    events: Receiver<Event>,
    waker: Arc<Waker>,
    lanes: Option<HeldLanes>,
    ports: BTreeMap<PortId, HeldPort>,
    plan: Option<PlanDigest>,
    snapshot: Option<Arc<Snapshot>>,
}

/// The lanes' sockets, as duplicates.
struct HeldLanes {
    lanes: LaneSockets,
    sockets: Vec<OwnedFd>,
}

/// A port's queues, as duplicates.
struct HeldPort {
    device: String,
    queues: Vec<OwnedFd>,
    gone: bool,
}

/// An answer and the descriptors beside it.
struct Answer {
    message: FromDatapath,
    descriptors: Vec<OwnedFd>,
}

/// Why a request wasn't carried out.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(
        "the agent speaks version {theirs} of the seam, this datapath {ours}: restart the datapath to upgrade it"
    )]
    Version { theirs: u32, ours: u32 },
    #[error("the message can't be understood: {0}")]
    Message(#[from] serde_json::Error),
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
    #[error("no lanes are set: set them with their sockets")]
    NoLanes,
}

/// How a request ended without an answer to give.
enum Failure {
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

impl Control {
    /// Starts the shards, one for each configuration.
    pub(super) fn start(
        boot: BootId,
        listener: Listener,
        termination: OwnedFd,
        shards: NonZeroUsize,
        config: impl Fn(usize) -> ShardConfig,
    ) -> io::Result<Self> {
        let waker = Arc::new(Waker::new()?);
        let (sender, events) = sync_channel(EVENTS);
        let poller = Poller::new(8)?;
        listener.set_nonblocking(true)?;
        poller.add(listener.as_fd(), LISTENER)?;
        poller.add(waker.as_fd(), SHARDS)?;
        poller.add(termination.as_fd(), TERMINATION)?;
        let mailboxes = (0..shards.get())
            .map(|number| {
                let events = Events {
                    sender: sender.clone(),
                    waker: Arc::clone(&waker),
                };
                Mailbox::spawn(number, config(number), events)
            })
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self {
            boot,
            listener,
            agent: None,
            poller,
            termination,
            shards: mailboxes,
            events,
            waker,
            lanes: None,
            ports: BTreeMap::new(),
            plan: None,
            snapshot: None,
        })
    }

    /// Serves agents until the process is asked to end; the shards have then finished their turns.
    pub(super) fn run(mut self) -> io::Result<()> {
        loop {
            self.poller.wait(None)?;
            for index in 0..self.poller.ready() {
                match self.poller.readiness(index).map(|readiness| readiness.token) {
                    Some(LISTENER) => self.welcome()?,
                    Some(AGENT) => self.listen()?,
                    Some(SHARDS) => self.pass_events(),
                    Some(TERMINATION) => return self.stop(),
                    Some(_) | None => {}
                }
            }
        }
    }

    /// The newest agent wins: a former one that still hangs on is one that is being replaced.
    fn welcome(&mut self) -> io::Result<()> {
        let accepted = self.listener.accept().and_then(|connection| {
            connection.set_nonblocking(true)?;
            Ok(connection)
        });
        match accepted {
            Ok(connection) => {
                self.part()?;
                self.poller.add(connection.as_fd(), AGENT)?;
                self.agent = Some(connection);
                tracing::info!("an agent connected");
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => tracing::warn!(%error, "an agent's connection was lost before it was accepted"),
        }
        Ok(())
    }

    fn part(&mut self) -> io::Result<()> {
        if let Some(agent) = self.agent.take() {
            self.poller.remove(agent.as_fd())?;
            tracing::info!("the agent's connection is closed; packets go on by the last plan");
        }
        Ok(())
    }

    fn listen(&mut self) -> io::Result<()> {
        let Some(agent) = &self.agent else {
            return Ok(());
        };
        let message = match agent.receive() {
            Ok(Some(message)) => message,
            Ok(None) => return self.part(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => {
                tracing::warn!(%error, "the agent's connection failed");
                return self.part();
            }
        };
        let answer = match self.answer(message) {
            Ok(answer) => answer,
            Err(Failure::Refused(refusal)) => {
                tracing::warn!(reason = %refusal, "a request was refused");
                Answer::from(FromDatapath::Refused {
                    reason: refusal.to_string(),
                })
            }
            Err(Failure::Broken(error)) => return Err(error),
        };
        let descriptors: Vec<BorrowedFd<'_>> = answer.descriptors.iter().map(AsFd::as_fd).collect();
        if let Err(error) = send(self.agent.as_ref(), &answer.message, &descriptors) {
            tracing::warn!(%error, "the agent takes no answer");
            return self.part();
        }
        if matches!(answer.message, FromDatapath::Hello { .. }) {
            self.repeat_events();
        }
        Ok(())
    }

    fn answer(&mut self, message: Message) -> Result<Answer, Failure> {
        let descriptors = message.descriptors;
        match serde_json::from_slice(&message.bytes)? {
            ToDatapath::Hello { version } => self.hello(version),
            ToDatapath::SetLanes { lanes, features } => self.set_lanes(lanes, features, descriptors),
            ToDatapath::AddPort { port, device } => self.add_port(port, device, descriptors),
            ToDatapath::RemovePort { port } => self.remove_port(port),
            ToDatapath::Install { digest, standby: _ } => self.install(digest, descriptors),
            ToDatapath::Retire | ToDatapath::End => Ok(Answer::from(FromDatapath::Done)),
            ToDatapath::Report => self.report(),
            ToDatapath::Adopt { port } => self.adopt(port),
        }
    }

    fn hello(&self, version: u32) -> Result<Answer, Failure> {
        // An upgrade replaces the agent first: it may be one version ahead.
        if version != seam::VERSION && version != seam::VERSION + 1 {
            let ours = seam::VERSION;
            return Err(Refusal::Version {
                theirs: version,
                ours,
            }
            .into());
        }
        let ports = self.ports.iter().map(|(port, held)| (*port, held.device.clone()));
        Ok(Answer::from(FromDatapath::Hello {
            version: seam::VERSION,
            boot: self.boot,
            pid: std::process::id(),
            shards: u32::try_from(self.shards.len()).unwrap_or(u32::MAX),
            plan: self.plan,
            ports: ports.collect(),
            lane_keys: Vec::new(),
            standby: false,
            lanes: self.lanes.as_ref().map(|held| held.lanes.clone()),
        }))
    }

    fn set_lanes(
        &mut self,
        lanes: LaneSockets,
        features: LaneFeatures,
        sockets: Vec<OwnedFd>,
    ) -> Result<Answer, Failure> {
        let needed = self.shards.len() + usize::from(lanes.foreign.is_some());
        if sockets.len() != needed {
            return Err(Refusal::Descriptors {
                what: "the lanes",
                needed,
                came: sockets.len(),
            }
            .into());
        }
        let mut made =
            duplicates("a lane's socket", &sockets, |socket| Lane::new(socket, features))?.into_iter();
        let mut by_shard: Vec<Vec<Lane>> = made
            .by_ref()
            .take(self.shards.len())
            .map(|lane| vec![lane])
            .collect();
        if let Some(first) = by_shard.first_mut() {
            first.extend(made);
        }
        self.mail_each(by_shard, |lanes| Mail::SetLanes {
            lanes,
            glue: features.gro,
        })?;
        tracing::info!(
            generation = lanes.generation,
            gso = features.gso,
            gro = features.gro,
            "lanes set"
        );
        self.lanes = Some(HeldLanes { lanes, sockets });
        Ok(Answer::from(FromDatapath::Done))
    }

    fn add_port(&mut self, id: PortId, device: String, queues: Vec<OwnedFd>) -> Result<Answer, Failure> {
        self.one_per_shard("a port", &queues)?;
        let ports = duplicates("a port's queue", &queues, |queue| Port::new(id, queue))?;
        self.mail_each(ports, Mail::AddPort)?;
        tracing::info!(port = id.0, device, "port added");
        let held = HeldPort {
            device,
            queues,
            gone: false,
        };
        self.ports.insert(id, held);
        Ok(Answer::from(FromDatapath::Done))
    }

    /// Removing what isn't there is done already: an agent may repeat itself after a restart.
    fn remove_port(&mut self, port: PortId) -> Result<Answer, Failure> {
        let count = self.shards.len();
        self.mail_each(vec![port; count], Mail::RemovePort)?;
        if self.ports.remove(&port).is_some() {
            tracing::info!(port = port.0, "port removed");
        }
        Ok(Answer::from(FromDatapath::Done))
    }

    fn install(&mut self, digest: PlanDigest, descriptors: Vec<OwnedFd>) -> Result<Answer, Failure> {
        let came = descriptors.len();
        let Ok([file]) = <[OwnedFd; 1]>::try_from(descriptors) else {
            return Err(Refusal::Descriptors {
                what: "a plan",
                needed: 1,
                came,
            }
            .into());
        };
        let bytes = memfd::read_sealed(file).map_err(Refusal::Plan)?;
        let plan: Plan = serde_json::from_slice(&bytes)?;
        let snapshot = Snapshot::compile(&plan, self.snapshot.as_ref());
        let mut named: Vec<PortId> = plan.instances.iter().map(|instance| instance.port).collect();
        named.sort_unstable();
        named.dedup();
        let unknown_ports: Vec<PortId> = named
            .iter()
            .filter(|port| !self.ports.contains_key(port))
            .copied()
            .collect();
        if !unknown_ports.is_empty() {
            tracing::warn!(ports = ?unknown_ports, "the plan names ports whose queues were never given");
        }
        let mails = vec![(Arc::clone(&snapshot), named); self.shards.len()];
        // The former snapshots come back in the answers, and the last of their handles is dropped here.
        self.mail_each(mails, |(snapshot, ports)| Mail::Install { snapshot, ports })?;
        let epoch = snapshot.epoch();
        tracing::info!(
            epoch,
            digest = digest.0,
            instances = plan.instances.len(),
            "plan installed"
        );
        self.plan = Some(digest);
        self.snapshot = Some(snapshot);
        Ok(Answer::from(FromDatapath::Installed { epoch, unknown_ports }))
    }

    fn report(&mut self) -> Result<Answer, Failure> {
        let count = self.shards.len();
        let replies = self.mail_each(vec![(); count], |()| Mail::Report)?;
        let reports = replies.into_iter().filter_map(|reply| match reply {
            Reply::Report(report) => Some(*report),
            Reply::Installed { .. } | Reply::Done | Reply::Failed(_) => None,
        });
        let report = Box::new(reports::add_up(reports));
        Ok(Answer::from(FromDatapath::Report { report }))
    }

    fn adopt(&self, port: Option<PortId>) -> Result<Answer, Failure> {
        let held = match port {
            Some(port) => &self.ports.get(&port).ok_or(Refusal::NoPort(port))?.queues,
            None => &self.lanes.as_ref().ok_or(Refusal::NoLanes)?.sockets,
        };
        Ok(Answer {
            message: FromDatapath::Adopted,
            descriptors: duplicates("a descriptor to adopt", held, Ok)?,
        })
    }

    fn one_per_shard(&self, what: &'static str, descriptors: &[OwnedFd]) -> Result<(), Refusal> {
        let (needed, came) = (self.shards.len(), descriptors.len());
        if needed != came {
            return Err(Refusal::Descriptors { what, needed, came });
        }
        Ok(())
    }

    /// Mails every shard its piece, then waits for all answers: the shards work at the same time.
    fn mail_each<T>(&mut self, pieces: Vec<T>, mail: impl Fn(T) -> Mail) -> Result<Vec<Reply>, Failure> {
        for (shard, piece) in self.shards.iter().zip(pieces) {
            shard.send(mail(piece)).map_err(Failure::Broken)?;
        }
        let mut replies = Vec::with_capacity(self.shards.len());
        let mut failed = None;
        for shard in &self.shards {
            match shard.answer().map_err(Failure::Broken)? {
                Reply::Failed(error) => failed = Some(error),
                reply => replies.push(reply),
            }
        }
        match failed {
            Some(error) => Err(Refusal::Descriptor {
                what: "a shard can't wait for the descriptor",
                error,
            }
            .into()),
            None => Ok(replies),
        }
    }

    fn pass_events(&mut self) {
        self.waker.rest();
        while let Ok(event) = self.events.try_recv() {
            match &event {
                Event::PortGone { port } => {
                    let held = self.ports.get_mut(port);
                    let device = held.map(|held| {
                        held.gone = true;
                        held.device.as_str()
                    });
                    tracing::info!(port = port.0, device, "the port's device is gone");
                }
                Event::Leaving => {}
            }
            self.hint(event);
        }
    }

    /// What a former agent may have missed.
    fn repeat_events(&mut self) {
        let gone = self.ports.iter().filter(|(_, held)| held.gone);
        let gone: Vec<PortId> = gone.map(|(port, _)| *port).collect();
        for port in gone {
            self.hint(Event::PortGone { port });
        }
    }

    /// Events are hints: one that the agent doesn't take is lost, and told again to the next one.
    fn hint(&self, event: Event) {
        if self.agent.is_some()
            && let Err(error) = send(self.agent.as_ref(), &FromDatapath::Event { event }, &[])
        {
            tracing::debug!(%error, "the agent took no event");
        }
    }

    fn stop(mut self) -> io::Result<()> {
        let count = self.shards.len();
        let stopped = self.mail_each(vec![(); count], |()| Mail::Stop);
        if let Err(Failure::Broken(error)) = stopped {
            return Err(error);
        }
        for shard in self.shards {
            shard.join();
        }
        tracing::info!("ended as asked");
        drop(self.termination);
        Ok(())
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
fn duplicates<T>(
    what: &'static str,
    descriptors: &[OwnedFd],
    make: impl Fn(OwnedFd) -> io::Result<T>,
) -> Result<Vec<T>, Refusal> {
    let made = descriptors.iter().map(|descriptor| make(descriptor.try_clone()?));
    made.collect::<io::Result<_>>()
        .map_err(|error| Refusal::Descriptor { what, error })
}

fn send(
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
