//! The control thread: answers the agent, compiles plans, keeps a duplicate of every descriptor that can't be made
//! again, so that a starting agent gets it back ([`ToDatapath::Adopt`]).
//!
//! It listens at its socket; the newest agent wins. A request is carried out whole before the next one is read: the
//! control thread mails the shards and waits for their answers, which takes a turn.
//!
//! One datapath takes over from another by what the agent asks of both:
//!
//! ```text
//! leaving                                        successor
//! SIGTERM: Leaving → agent, SIGUSR1 → supervisor
//!                                                starts, takes the socket's name, stands by
//!                                                SetLanes, AddPort…, Install{standby}: sessions are made
//! Retire: reads no port any more                 Install: reads the ports
//! End                                            is the datapath
//! ```

use super::answers::{Answer, Failure, Refusal, duplicates, send};
use super::lanes::Lane;
use super::ports::Port;
use super::reports;
use super::rings::Rings;
use super::worker::{Events, Mail, Mailbox, Reply};
use crate::seam::{
    self, BootId, Event, FromDatapath, LaneFeatures, LaneSockets, PlanDigest, ToDatapath, envelope,
};
use crate::sys::epoll::{Poller, Waker};
use crate::sys::seqpacket::{Connection, Listener, Message};
use crate::sys::signal::{Termination, Terminations};
use crate::sys::{clock, memfd};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;
use tidegate_stack::plan::{Plan, PortId, PublicKey};
use tidegate_stack::responder::dns::forward::Told;
use tidegate_stack::shard::ShardConfig;
use tidegate_stack::snapshot::Snapshot;
use tidegate_stack::time::Instant;

/// Events that may wait: more than a host has ports.
const EVENTS: usize = 1024;
/// How long a datapath that was asked to end carries on for a successor to take over.
const LEAVING: Duration = Duration::from_secs(10);

const LISTENER: u64 = 0;
const AGENT: u64 = 1;
const SHARDS: u64 = 2;
const TERMINATION: u64 = 3;

/// What a datapath is started with.
pub(super) struct Start {
    /// Tells this start from others.
    pub(super) boot: BootId,
    /// A predecessor still reads the ports.
    pub(super) standby: bool,
    /// Who starts a successor on SIGUSR1, if anybody does.
    pub(super) supervisor: Option<Pid>,
    /// What each shard is made with.
    pub(super) shards: Vec<ShardConfig>,
}

/// The control thread's state.
pub(super) struct Control {
    boot: BootId,
    standby: bool,
    supervisor: Option<Pid>,
    /// When it ends though no successor took over.
    leaves: Option<Instant>,
    /// The agent said that it's over.
    ended: bool,
    lane_keys: Vec<PublicKey>,
    listener: Listener,
    agent: Option<Connection>,
    poller: Poller,
    termination: Terminations,
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

impl Control {
    /// Starts the shards, one for each configuration.
    pub(super) fn start(start: Start, listener: Listener, termination: Terminations) -> io::Result<Self> {
        let waker = Arc::new(Waker::new()?);
        let (sender, events) = sync_channel(EVENTS);
        let poller = Poller::new(8)?;
        listener.set_nonblocking(true)?;
        poller.add(listener.as_fd(), LISTENER)?;
        poller.add(waker.as_fd(), SHARDS)?;
        poller.add(termination.as_fd(), TERMINATION)?;
        let lane_keys = start.shards.iter().map(|shard| shard.lane_key.public_key());
        let lane_keys = lane_keys.collect();
        let rings = Rings::mesh(start.shards.len())?;
        let mailboxes = start.shards.into_iter().zip(rings).map(|(config, rings)| {
            let events = Events {
                sender: sender.clone(),
                waker: Arc::clone(&waker),
            };
            Mailbox::spawn(config, rings, events)
        });
        let mailboxes = mailboxes.collect::<io::Result<Vec<_>>>()?;
        Ok(Self {
            boot: start.boot,
            standby: start.standby,
            supervisor: start.supervisor,
            leaves: None,
            ended: false,
            lane_keys,
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
        while !self.ended {
            let left = self.leaves.map(|end| end.saturating_since(clock::now()));
            if left.is_some_and(|left| left.is_zero()) {
                tracing::warn!(seconds = LEAVING.as_secs(), "no successor took over");
                break;
            }
            self.poller.wait(left)?;
            for index in 0..self.poller.ready() {
                match self.poller.readiness(index).map(|readiness| readiness.token) {
                    Some(LISTENER) => self.welcome()?,
                    Some(AGENT) => self.listen()?,
                    Some(SHARDS) => self.pass_events(),
                    Some(TERMINATION) => self.terminate(),
                    Some(_) | None => {}
                }
            }
        }
        self.stop()
    }

    /// Asked to end: with somebody who can start a successor and somebody who can lead it in, that comes first.
    fn terminate(&mut self) {
        let Some(termination) = self.termination.next() else {
            return;
        };
        let successor = match (termination, self.supervisor, &self.agent, self.leaves) {
            (Termination::Asked, Some(supervisor), Some(_), None) => kill_process(supervisor, Signal::USR1),
            _ => {
                self.ended = true;
                return;
            }
        };
        if let Err(error) = successor {
            tracing::warn!(%error, "the supervisor can't be asked for a successor");
            self.ended = true;
            return;
        }
        tracing::info!("asked to end; packets are carried until a successor takes over");
        self.leaves = Some(clock::now() + LEAVING);
        self.hint(Event::Leaving);
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
        let (request, descriptors) = envelope::decode(message).map_err(Refusal::Message)?;
        match request {
            ToDatapath::Hello { version } => self.hello(version),
            ToDatapath::SetLanes { lanes, features } => self.set_lanes(lanes, features, descriptors),
            ToDatapath::AddPort { port, device } => self.add_port(port, device, descriptors),
            ToDatapath::RemovePort { port } => self.remove_port(port),
            ToDatapath::Install { digest, standby } => self.install(digest, standby, descriptors),
            ToDatapath::Retire => self.retire(),
            ToDatapath::End => {
                self.ended = true;
                Ok(Answer::from(FromDatapath::Done))
            }
            ToDatapath::Report => self.report(),
            ToDatapath::Flows { shard, from } => self.flows(shard, from),
            ToDatapath::Answers { answers } => self.tell(answers),
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
            lane_keys: self.lane_keys.clone(),
            standby: self.standby,
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
        let shards = self.shards.len();
        if queues.is_empty() {
            return Err(Refusal::Descriptors {
                what: "a port",
                needed: 1,
                came: 0,
            }
            .into());
        }
        let ports = (0..shards).map(|shard| Port::new(id, &queues, shard, shards));
        let ports = ports.collect::<io::Result<Vec<_>>>();
        let ports = ports.map_err(|error| Refusal::Descriptor {
            what: "a port's queue",
            error,
        })?;
        self.mail_each(ports, Mail::AddPort)?;
        tracing::info!(port = id.0, device, queues = queues.len(), "port added");
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

    fn install(
        &mut self,
        digest: PlanDigest,
        standby: bool,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Answer, Failure> {
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
        let plan: Plan = serde_json::from_slice(&bytes).map_err(|error| Refusal::Plan(error.into()))?;
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
        // While a predecessor reads the ports, nobody may read them here.
        let read = if standby { Vec::new() } else { named };
        let mails = vec![(Arc::clone(&snapshot), read); self.shards.len()];
        // The former snapshots come back in the answers, and the last of their handles is dropped here.
        self.mail_each(mails, |(snapshot, ports)| Mail::Install { snapshot, ports })?;
        let epoch = snapshot.epoch();
        tracing::info!(
            epoch,
            digest = digest.0,
            instances = plan.instances.len(),
            standby,
            "plan installed"
        );
        self.plan = Some(digest);
        self.standby = standby;
        self.snapshot = Some(snapshot);
        Ok(Answer::from(FromDatapath::Installed { epoch, unknown_ports }))
    }

    fn retire(&mut self) -> Result<Answer, Failure> {
        let count = self.shards.len();
        self.mail_each(vec![(); count], |()| Mail::Retire)?;
        tracing::info!("retired: a successor reads the ports");
        Ok(Answer::from(FromDatapath::Done))
    }

    fn report(&mut self) -> Result<Answer, Failure> {
        let count = self.shards.len();
        let replies = self.mail_each(vec![(); count], |()| Mail::Report)?;
        let reports = replies.into_iter().filter_map(|reply| match reply {
            Reply::Report(report) => Some(*report),
            Reply::Installed { .. } | Reply::Flows(_) | Reply::Done | Reply::Failed(_) => None,
        });
        let report = Box::new(reports::add_up(reports));
        Ok(Answer::from(FromDatapath::Report { report }))
    }

    fn flows(&mut self, shard: u8, from: u64) -> Result<Answer, Failure> {
        let count = self.shards.len();
        let asked = self.shards.get(usize::from(shard));
        let asked = asked.ok_or(Refusal::NoShard { shard, count })?;
        asked.send(Mail::Flows(from)).map_err(Failure::Broken)?;
        match asked.answer().map_err(Failure::Broken)? {
            Reply::Flows(page) => Ok(Answer::from(FromDatapath::Flows { page })),
            Reply::Installed { .. } | Reply::Report(_) | Reply::Done | Reply::Failed(_) => {
                Err(Failure::Broken(io::ErrorKind::InvalidData.into()))
            }
        }
    }

    /// Tells every shard what was found out about questions; they share it.
    fn tell(&mut self, answers: Vec<Told>) -> Result<Answer, Failure> {
        let answers: Arc<[_]> = answers.into_iter().map(Arc::new).collect();
        self.mail_each(vec![answers; self.shards.len()], Mail::Answers)?;
        Ok(Answer::from(FromDatapath::Done))
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
            if let Event::PortGone { port } = &event {
                let held = self.ports.get_mut(port);
                // Each shard finds it out by itself.
                if held.as_ref().is_some_and(|held| held.gone) {
                    continue;
                }
                let device = held.map(|held| {
                    held.gone = true;
                    held.device.as_str()
                });
                tracing::info!(port = port.0, device, "the port's device is gone");
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
        if self.leaves.is_some() {
            self.hint(Event::Leaving);
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
