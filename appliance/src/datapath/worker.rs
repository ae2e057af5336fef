//! A shard's thread: waits, runs one turn, waits again. What a turn is stands in [`super`].
//!
//! Nothing here waits for another thread, takes a lock or allocates while packets pass; mail and the rings of other
//! shards are looked at without a wait.

use super::lanes::{Arrivals, Lane, Lanes};
use super::outputs::Outputs;
use super::ports::{self, Port, Ports, Read};
use super::rings::Rings;
use super::standing::Found;
use crate::seam::Event;
use crate::sys::clock;
use crate::sys::epoll::{Poller, Waker};
use std::io;
use std::os::fd::AsFd as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tidegate_stack::drop::DropReason;
use tidegate_stack::egress::LaneKind;
use tidegate_stack::event as stack;
use tidegate_stack::frame::Batch;
use tidegate_stack::plan::PortId;
use tidegate_stack::responder::dns::forward::Told;
use tidegate_stack::shard::{Shard, ShardConfig};
use tidegate_stack::snapshot::Snapshot;
use tidegate_stack::stats::{DropReport, FlowPage, Report};
use tidegate_stack::time::Instant;

/// Packets that a turn takes from one port (a super-packet counts as one) before it looks at the others.
const PORT_PACKETS: usize = 64;
/// Bytes that a turn takes from one lane before it looks at the others; one receive can bring as much.
const LANE_BYTES: usize = 512 << 10;
/// Receives that a turn makes on one lane: the bound where every message is a single datagram.
const LANE_RECEIVES: usize = 32;
/// Descriptors that one wait tells of; the rest are still ready at the next.
const READY: usize = 64;
/// Places of the flow table that are looked at for one answer: a few hundred microseconds.
const FLOW_SLOTS: usize = 8192;
/// Mail that may wait. The control thread sends one piece and waits for the answer.
const MAIL: usize = 2;
/// How long the control thread waits for an answer. A turn lasts milliseconds: a shard that is later is broken.
const ANSWER: Duration = Duration::from_secs(10);

/// Tokens: a port's are its own ([`ports::of_token`]), a lane's start at `LANES`.
const LANES: u64 = 1 << 62;
const WAKER: u64 = 1 << 63;

/// What the control thread asks of a shard. Every piece has one answer.
pub(super) enum Mail {
    /// Put a snapshot in force and read these ports, in order, and no others. Answer: [`Reply::Installed`].
    Install {
        /// The snapshot.
        snapshot: Arc<Snapshot>,
        /// The ports that it names, or none while a predecessor reads them.
        ports: Vec<PortId>,
    },
    /// Read no port any more. Answer: [`Reply::Done`], when what was read is on its way.
    Retire,
    /// Take these lanes in place of the former ones. Answer: [`Reply::Done`].
    SetLanes {
        /// The lanes, in the order of [`LaneKind`].
        lanes: Vec<Lane>,
        /// Whether what comes out of tunnels is glued to super-packets.
        glue: bool,
    },
    /// Take a port's queues. Answer: [`Reply::Done`].
    AddPort(Port),
    /// Close a port's queues. Answer: [`Reply::Done`].
    RemovePort(PortId),
    /// Take what was found out about questions. Answer: [`Reply::Done`].
    Answers(Arc<[Arc<Told>]>),
    /// Tell the state. Answer: [`Reply::Report`].
    Report,
    /// Tell a part of the flows, from this place on. Answer: [`Reply::Flows`].
    Flows(u64),
    /// End after this turn. Answer: [`Reply::Done`].
    Stop,
}

/// A shard's answer.
pub(super) enum Reply {
    /// The snapshot is in force; the former one is dropped by whoever gets it.
    Installed {
        /// The former snapshot.
        #[expect(
            dead_code,
            reason = "it only rides home, so that the shard's thread frees nothing"
        )]
        former: Option<Arc<Snapshot>>,
    },
    /// Done.
    Done,
    /// The kernel refused.
    Failed(io::Error),
    /// The state.
    Report(Box<Report>),
    /// A part of the flows.
    Flows(Box<FlowPage>),
}

/// Where a shard tells what happened.
#[derive(Clone)]
pub(super) struct Events {
    /// The queue: bounded, and what doesn't fit is lost (events are hints).
    pub(super) sender: SyncSender<Event>,
    /// Wakes the control thread.
    pub(super) waker: Arc<Waker>,
}

/// The control thread's end of a shard.
pub(super) struct Mailbox {
    mail: SyncSender<Mail>,
    replies: Receiver<Reply>,
    waker: Waker,
    thread: JoinHandle<()>,
}

/// A shard and all that it works with.
struct Worker {
    shard: Shard,
    outputs: Outputs,
    batch: Batch,
    arrivals: Arrivals,
    poller: Poller,
    /// Turns so far.
    turns: u64,
    mail: Receiver<Mail>,
    replies: SyncSender<Reply>,
    events: Events,
    stopping: bool,
}

impl Mailbox {
    /// Starts a shard's thread. When it fails or panics, the whole process ends: whoever started it starts
    /// it anew, and the agent hands over the descriptors that it keeps.
    pub(super) fn spawn(config: ShardConfig, rings: Rings, events: Events) -> io::Result<Self> {
        let number = config.id.0;
        let (mail, incoming) = sync_channel(MAIL);
        let (outgoing, replies) = sync_channel(MAIL);
        let waker = rings.waker()?;
        let thread = std::thread::Builder::new()
            .name(format!("shard-{number}"))
            .spawn(move || {
                let run = || Worker::new(config, rings, incoming, outgoing, events)?.run();
                match catch_unwind(AssertUnwindSafe(run)) {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => {
                        tracing::error!(shard = number, %error, "a shard failed; the datapath ends")
                    }
                    Err(_) => tracing::error!(shard = number, "a shard panicked; the datapath ends"),
                }
                std::process::abort();
            })?;
        Ok(Self {
            mail,
            replies,
            waker,
            thread,
        })
    }

    /// Sends a piece of mail; its answer must be taken with [`Mailbox::answer`] before the next.
    pub(super) fn send(&self, mail: Mail) -> io::Result<()> {
        self.mail.send(mail).map_err(|_| ended())?;
        self.waker.wake();
        Ok(())
    }

    /// Waits for the answer.
    pub(super) fn answer(&self) -> io::Result<Reply> {
        self.replies.recv_timeout(ANSWER).map_err(|error| match error {
            RecvTimeoutError::Timeout => io::Error::new(
                io::ErrorKind::TimedOut,
                format!("a shard gave no answer for {} s", ANSWER.as_secs()),
            ),
            RecvTimeoutError::Disconnected => ended(),
        })
    }

    /// Waits until the thread, told to stop, has ended.
    pub(super) fn join(self) {
        // A thread that panicked has ended the process.
        let _ = self.thread.join();
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "a shard's thread has ended")
}

impl Worker {
    fn new(
        config: ShardConfig,
        rings: Rings,
        mail: Receiver<Mail>,
        replies: SyncSender<Reply>,
        events: Events,
    ) -> io::Result<Self> {
        let poller = Poller::new(READY)?;
        poller.add(rings.as_fd(), WAKER)?;
        Ok(Self {
            shard: Shard::new(config),
            outputs: Outputs {
                ports: Ports::new(),
                lanes: Lanes::new(),
                rings,
            },
            batch: Batch::new(PORT_PACKETS),
            arrivals: Arrivals::new(),
            poller,
            turns: 0,
            mail,
            replies,
            events,
            stopping: false,
        })
    }

    fn run(mut self) -> io::Result<()> {
        let mut now = clock::now();
        while !self.stopping {
            let due = self.shard.poll_timeout();
            let left = due.map(|due| due.saturating_since(now));
            let (rings, poller) = (&self.outputs.rings, &mut self.poller);
            rings.sleep(|may_sleep| poller.wait(if may_sleep { left } else { Some(Duration::ZERO) }))?;
            now = clock::now();
            self.turn(now);
        }
        Ok(())
    }

    fn turn(&mut self, now: Instant) {
        let mut mailed = false;
        self.turns += 1;
        while let Some(frame) = self.outputs.rings.reclaim() {
            self.shard.recycle(frame);
        }
        for index in 0..self.poller.ready() {
            let Some(readiness) = self.poller.readiness(index) else {
                continue;
            };
            match readiness.token {
                WAKER => mailed = true,
                LANES => self.drain_lane(LaneKind::Site, now),
                token if token > LANES => self.drain_lane(LaneKind::Foreign, now),
                // An error on a TUN queue means one thing: its device is gone.
                token if readiness.broken => self.outputs.ports.note_gone(ports::of_token(token).0),
                token => self.drain_port(ports::of_token(token), now),
            }
        }
        for other in 0..self.outputs.rings.count() {
            self.take_over(other, now);
        }
        if self.shard.poll_timeout().is_some_and(|due| due <= now) {
            self.shard.handle_timeout(now, &mut self.outputs);
        }
        self.shard.flush(now, &mut self.outputs);
        self.outputs.lanes.send();
        self.outputs.rings.ring();
        while let Some(port) = self.outputs.ports.poll_gone(&self.poller) {
            self.tell(Event::PortGone { port });
        }
        while let Some(event) = self.shard.poll_event() {
            self.tell(match event {
                stack::Event::Question(question) => Event::Question { question },
                stack::Event::Queries(queries) => Event::Queries { queries },
                stack::Event::Readiness { port, ready } => Event::Readiness { port, ready },
            });
        }
        if mailed {
            self.outputs.rings.rest();
            while let Ok(mail) = self.mail.try_recv() {
                let reply = self.obey(mail, now);
                // The queue has room for the answers of all mail that fits in the other one.
                let _ = self.replies.send(reply);
            }
        }
    }

    /// Reads a port's queue until it is empty or has had its turn; what is left there is told by the next wait.
    fn drain_port(&mut self, (port, queue): (PortId, usize), now: Instant) {
        self.batch.clear();
        let read = self.outputs.ports.read(port, queue, &mut self.batch);
        let found = Found {
            bytes: self.batch.filled().iter().map(|frame| frame.packet().len()).sum(),
            emptied: read != Read::More,
        };
        if self.outputs.ports.stands(port, queue, self.turns, found, now) {
            self.shard.relieve_port();
        }
        if !self.batch.is_empty() {
            self.shard
                .handle_port(port, &mut self.batch, now, &mut self.outputs);
        }
        if read == Read::Gone {
            self.outputs.ports.note_gone(port);
        }
    }

    /// Handles what another shard passed on, up to what a port may bring in a turn.
    fn take_over(&mut self, from: usize, now: Instant) {
        let mut bytes = 0;
        for _ in 0..PORT_PACKETS {
            let Some(handover) = self.outputs.rings.receive(from) else {
                return;
            };
            let spent = self.shard.handle_handover(handover, now, &mut self.outputs);
            bytes += spent.packet().len();
            self.outputs.rings.give_back(from, spent);
            if bytes >= ports::BATCH_BYTES {
                return;
            }
        }
    }

    fn drain_lane(&mut self, lane: LaneKind, now: Instant) {
        let (mut bytes, mut emptied) = (0, false);
        for _ in 0..LANE_RECEIVES {
            let received = self.outputs.lanes.receive(lane, &mut self.arrivals);
            for message in self.arrivals.messages(lane) {
                bytes += message.bytes.len();
                self.shard.handle_lane(message, now, &mut self.outputs);
            }
            // A receive that wasn't filled has emptied the socket; what came since is told by the next wait.
            emptied = received < Arrivals::CAPACITY;
            if emptied || bytes >= LANE_BYTES {
                break;
            }
        }
        let found = Found { bytes, emptied };
        if self.outputs.lanes.stands(lane, self.turns, found, now) {
            self.shard.relieve_lane();
        }
    }

    fn tell(&self, event: Event) {
        if self.events.sender.try_send(event).is_ok() {
            self.events.waker.wake();
        }
    }

    fn obey(&mut self, mail: Mail, now: Instant) -> Reply {
        let outputs = &mut self.outputs;
        let done = match mail {
            Mail::Install { snapshot, ports } => {
                let reads = !ports.is_empty();
                if let Err(error) = outputs.ports.poll_only(ports, &self.poller) {
                    return Reply::Failed(error);
                }
                self.shard.set_reads_ports(reads, now, outputs);
                let former = self.shard.install(snapshot, now, outputs);
                outputs.lanes.send();
                return Reply::Installed { former };
            }
            Mail::SetLanes { lanes, glue } => {
                self.shard.set_glue(glue);
                outputs.lanes.replace(lanes, LANES, &self.poller)
            }
            Mail::Retire => {
                self.shard.set_reads_ports(false, now, outputs);
                outputs.ports.poll_only(Vec::new(), &self.poller)
            }
            Mail::AddPort(port) => outputs.ports.add(port, &self.poller),
            Mail::RemovePort(port) => outputs.ports.remove(port, &self.poller),
            Mail::Answers(answers) => {
                self.shard.handle_told(&answers, now, outputs);
                Ok(())
            }
            Mail::Report => return Reply::Report(Box::new(self.report())),
            Mail::Flows(from) => return Reply::Flows(Box::new(self.shard.flows(from, FLOW_SLOTS, now))),
            Mail::Stop => {
                self.stopping = true;
                Ok(())
            }
        };
        match done {
            Ok(()) => Reply::Done,
            Err(error) => Reply::Failed(error),
        }
    }

    /// The shard's state, and what it gave to sockets that didn't take it.
    fn report(&self) -> Report {
        let mut report = self.shard.report();
        let lost = self.outputs.lanes.lost();
        let reason = DropReason::SendFailed;
        match report.drops.iter_mut().find(|drop| drop.reason == reason) {
            Some(drop) => drop.packets += lost,
            None if lost > 0 => report.drops.push(DropReport {
                reason,
                packets: lost,
                applications: Vec::new(),
                last: None,
            }),
            None => {}
        }
        report
    }
}
