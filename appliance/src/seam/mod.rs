//! The seam between the two processes: the agent decides, the datapath carries packets.
//!
//! What crosses is closed: [`ToDatapath`], [`FromDatapath`], and descriptors beside them. The carrier is a
//! `SOCK_SEQPACKET` Unix socket ([`crate::sys::seqpacket`]); one message is one JSON object of at most 64 KiB with
//! at most 64 descriptors. A [`Plan`](tidegate_stack::plan::Plan) travels as a sealed memfd that a message names, and
//! what doesn't fit, such as a report of hundreds of ports, as an [`envelope`] says.
//!
//! The datapath listens, the newest agent wins. The agent sends one request and waits for its one answer;
//! [`FromDatapath::Event`] may come in between: events are hints, may be lost, and the truth is in
//! [`ToDatapath::Report`].

pub(crate) mod envelope;

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use tidegate_stack::event::LoggedQuery;
use tidegate_stack::plan::{PortId, PublicKey};
use tidegate_stack::responder::dns::Question;
use tidegate_stack::responder::dns::forward::Told;
use tidegate_stack::stats::{FlowPage, Report};

/// Version of the messages. A datapath understands an agent one version newer.
pub(crate) const VERSION: u32 = 4;

/// A start of a datapath: drawn at random, so that an agent sees that it speaks to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct BootId(pub(crate) u64);

/// A digest of a plan's bytes: equal digests are equal plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct PlanDigest(pub(crate) u64);

/// What the lanes' sockets may ask of the kernel. What is allowed here and missing there is done without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LaneFeatures {
    /// Runs of datagrams leave in one send (`UDP_SEGMENT`).
    pub(crate) gso: bool,
    /// Runs of datagrams arrive in one receive (`UDP_GRO`), and packets out of tunnels are glued to super-packets.
    pub(crate) gro: bool,
}

impl Default for LaneFeatures {
    fn default() -> Self {
        Self { gso: true, gro: true }
    }
}

/// The sockets of a datapath's lanes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LaneSockets {
    /// The number of this start of the datapath, which is in its lanes' ports: the agent counts them.
    pub(crate) generation: u64,
    /// UDP ports of the shards' own lanes, in their order.
    pub(crate) ports: Vec<u16>,
    /// Where the foreign lane listens, when there is one: its socket comes last.
    pub(crate) foreign: Option<SocketAddr>,
}

/// What an agent says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub(crate) enum ToDatapath {
    /// First message of a connection. Answer: [`FromDatapath::Hello`].
    Hello {
        /// [`VERSION`] of the agent.
        version: u32,
    },
    /// Gives the lanes' sockets as descriptors: one for each shard in their order, then the foreign lane's. Comes
    /// before the first plan. Answer: [`FromDatapath::Done`].
    SetLanes {
        /// What they are.
        lanes: LaneSockets,
        /// What they may ask of the kernel.
        #[serde(default)]
        features: LaneFeatures,
    },
    /// Gives the queues of a port's TUN device, as descriptors, at least one; comes before the plan that names the
    /// port. Shard `i` of `n` reads the queues `j` with `j % n == i`, and writes to queue `i % queues`. Whether a queue
    /// has a virtio header is asked of the descriptor itself.
    /// Answer: [`FromDatapath::Done`].
    AddPort {
        /// The port.
        port: PortId,
        /// Name of the device, for reports.
        device: String,
    },
    /// Closes a port's queues; comes after the plan that no longer names the port. Answer: [`FromDatapath::Done`].
    RemovePort {
        /// The port.
        port: PortId,
    },
    /// Puts a plan in force: one descriptor, a sealed memfd with the plan as JSON. Answer, when every shard runs it:
    /// [`FromDatapath::Installed`], or [`FromDatapath::Refused`].
    Install {
        /// Digest of the memfd's bytes.
        digest: PlanDigest,
        /// A predecessor still reads the ports' queues: this datapath makes its sessions and delivers what its lanes
        /// receive, but reads no port before a plan comes without this.
        standby: bool,
    },
    /// Stop reading the ports: a successor does from now on. What the lanes still receive is delivered. Answer, when
    /// no shard reads any more: [`FromDatapath::Done`].
    Retire,
    /// End: the successor carries everything. Answer: [`FromDatapath::Done`], then the process ends.
    End,
    /// Asks for the state. Answer: [`FromDatapath::Report`].
    Report,
    /// Asks for a part of the live flows, one shard after the other, so that none is held up for long. Answer:
    /// [`FromDatapath::Flows`].
    Flows {
        /// The shard.
        shard: u8,
        /// Where to begin: 0, then what the part before said.
        from: u64,
    },
    /// Tells what was found out about questions ([`Event::Question`]): it is remembered, and who waits for it is
    /// answered. Answer: [`FromDatapath::Done`].
    Answers {
        /// What was found out.
        answers: Vec<Told>,
    },
    /// Asks for the descriptors of a port, or of the lanes: how a starting agent adopts what a former one made.
    /// Answer: [`FromDatapath::Adopted`] with the descriptors, or [`FromDatapath::Refused`].
    Adopt {
        /// The port; `None` for the lanes, in the order in which they were given.
        port: Option<PortId>,
    },
}

/// What a datapath says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub(crate) enum FromDatapath {
    /// Answers [`ToDatapath::Hello`]: what there is already.
    Hello {
        /// [`VERSION`] of the datapath.
        version: u32,
        /// This start.
        boot: BootId,
        /// Its process, for reports.
        pid: u32,
        /// Number of shards: a port is best made with as many queues.
        shards: u32,
        /// The public keys of the shards' own lanes, in their order: made at this start, gone with it.
        lane_keys: Vec<PublicKey>,
        /// Whether it waits for a predecessor to retire.
        standby: bool,
        /// The plan in force.
        plan: Option<PlanDigest>,
        /// The ports whose queues it holds, and their devices' names.
        ports: Vec<(PortId, String)>,
        /// The lane sockets that it holds.
        lanes: Option<LaneSockets>,
    },
    /// Done.
    Done,
    /// A plan is in force on every shard.
    Installed {
        /// The policy's epoch: it rises only when policy or routes changed.
        epoch: u64,
        /// Ports that the plan names and whose queues were never given: nothing passes there.
        #[serde(default)]
        unknown_ports: Vec<PortId>,
    },
    /// The state.
    Report {
        /// Added up over the shards.
        report: Box<Report>,
    },
    /// A part of the live flows.
    Flows {
        /// The part.
        page: Box<FlowPage>,
    },
    /// The descriptors asked for are beside this message.
    Adopted,
    /// The request couldn't be carried out; nothing changed.
    Refused {
        /// What failed, and what to do.
        reason: String,
    },
    /// Something happened; may come at any time.
    Event {
        /// What.
        event: Event,
    },
}

/// A hint that something happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Event {
    /// A port's device is gone: its namespace died. Its queues are no longer polled.
    PortGone {
        /// The port.
        port: PortId,
    },
    /// An instance asks for a name of the world beyond, and the answer isn't known. It is repeated every second while
    /// somebody waits: what was asked already needn't be asked again. Answer it with [`ToDatapath::Answers`].
    Question {
        /// What is asked.
        question: Question,
    },
    /// What instances of applications asked whose queries are logged.
    Queries {
        /// The queries, in their order.
        queries: Vec<LoggedQuery>,
    },
    /// An instance that is asked got ready, or no longer is.
    Readiness {
        /// Its port.
        port: PortId,
        /// Whether it is.
        ready: bool,
    },
    /// The process was asked to end (SIGTERM), and carries on a bounded time for a successor to take over: connect to
    /// the one that listens now, and say [`ToDatapath::Retire`] and [`ToDatapath::End`] to this one.
    Leaving,
}
