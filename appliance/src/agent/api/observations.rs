//! Answers about how it goes: `status`, `peers` and `drops`.

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// `status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Status {
    /// The host's name in its site.
    pub(crate) host_id: String,
    /// The site.
    pub(crate) site: String,
    /// The host's number in its site.
    pub(crate) ordinal: u8,
    /// The foreign lane's public key, for the documents of other hosts.
    pub(crate) public_key: String,
    /// Where the foreign lane listens.
    pub(crate) lane: Option<SocketAddr>,
    /// Which start of the datapath carries the packets.
    pub(crate) generation: Option<u64>,
    /// The UDP ports of its own lanes, in the order of its shards.
    pub(crate) lanes: Vec<u16>,
    /// The link to the other hosts of the site; `None` when the host document asks for none.
    pub(crate) site_link: Option<SiteLinkStatus>,
    /// The device towards the other hosts.
    pub(crate) underlay: UnderlayStatus,
    /// The agent's process.
    pub(crate) agent: ProcessStatus,
    /// The datapath; `None` while it doesn't answer.
    pub(crate) datapath: Option<DatapathStatus>,
    /// Applications in force.
    pub(crate) applications: usize,
    /// Instances attached.
    pub(crate) instances: usize,
    /// Foreign peers, and other hosts of the site.
    pub(crate) peers: usize,
    /// Names of the world outside.
    pub(crate) dns: DnsStatus,
    /// What keeps the inputs from being in force, one line each.
    pub(crate) problems: Vec<String>,
}

/// Names of the world outside: who is asked, and how it goes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct DnsStatus {
    /// Whether anybody is to be asked; if not, such names are refused.
    pub(crate) forwards: bool,
    /// The name servers, in the order of their source.
    pub(crate) upstreams: Vec<UpstreamStatus>,
    /// Questions that are being asked.
    pub(crate) in_flight: usize,
    /// Answers that weren't told, because an address in them is private.
    pub(crate) refused: u64,
    /// Questions that failed, because too many were being asked.
    pub(crate) overflown: u64,
    /// What the datapath remembers and tells; `None` while it doesn't answer.
    pub(crate) datapath: Option<OutsideNames>,
}

/// A name server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct UpstreamStatus {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Who names it.
    pub(crate) source: UpstreamSource,
    /// How it fares.
    pub(crate) state: UpstreamState,
    /// How long an answer takes, smoothed, in milliseconds.
    pub(crate) round_trip_ms: Option<f64>,
    /// Questions.
    pub(crate) asked: u64,
    /// Those that it answered.
    pub(crate) answered: u64,
    /// Those that it didn't, or couldn't.
    pub(crate) failed: u64,
    /// Datagrams from its address that weren't its answers.
    pub(crate) forged: u64,
}

/// Who names a name server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UpstreamSource {
    /// The host document.
    Document,
    /// A file as resolv.conf(5) describes it.
    ResolvConf,
}

/// How a name server fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UpstreamState {
    /// It answers.
    Up,
    /// It left several questions in a row without an answer.
    Down,
    /// Nothing was heard of it yet.
    Untried,
}

/// Queries about names of the world outside, as the datapath answers them.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct OutsideNames {
    /// Questions that it had asked.
    pub(crate) asked: u64,
    /// Queries that were answered by what is remembered.
    pub(crate) cached: u64,
    /// Queries that were answered by what was true before (RFC 8767).
    pub(crate) stale: u64,
    /// Queries that failed, because too many waited.
    pub(crate) overflown: u64,
    /// Queries that wait.
    pub(crate) waiting: u64,
    /// Answers that are remembered.
    pub(crate) remembered: u64,
    /// Bytes that they take.
    pub(crate) remembered_bytes: u64,
}

/// The link to the other hosts of the site.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct SiteLinkStatus {
    /// Where it listens.
    pub(crate) listen: SocketAddr,
    /// Whether it does.
    pub(crate) up: bool,
    /// The other hosts that were configured, told of themselves or are remembered.
    pub(crate) hosts_known: usize,
    /// Those to which there is a connection.
    pub(crate) hosts_connected: usize,
    /// Those whose record is alive, by whatever way it came.
    pub(crate) hosts_alive: usize,
    /// Which start of this host's agent it is.
    pub(crate) boot: u64,
    /// Events that were forgotten, because there were too many.
    pub(crate) events_lost: u64,
    /// What happened lately, the newest last.
    pub(crate) events: Vec<SiteEventLine>,
}

/// One thing that happened among the hosts of the site.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct SiteEventLine {
    /// When it last happened, in seconds of the Unix epoch.
    pub(crate) at: u64,
    /// How often.
    pub(crate) times: u64,
    /// What.
    pub(crate) event: String,
}

/// The device towards the other hosts.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct UnderlayStatus {
    /// Its name.
    pub(crate) device: Option<String>,
    /// Its MTU, in bytes.
    pub(crate) mtu: u32,
    /// Whether its settings were changed while the agent runs.
    pub(crate) tuned: bool,
}

/// A process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ProcessStatus {
    /// Its number.
    pub(crate) pid: u32,
    /// Its resident memory, in bytes.
    pub(crate) resident_bytes: Option<u64>,
    /// Time it has spent on processors, in seconds.
    pub(crate) cpu_seconds: Option<f64>,
}

/// The datapath.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct DatapathStatus {
    /// Its process.
    pub(crate) process: ProcessStatus,
    /// This start of it, in hexadecimal.
    pub(crate) boot: String,
    /// Its shards.
    pub(crate) shards: u32,
    /// The epoch of the policy in force.
    pub(crate) epoch: u64,
    /// The plan in force, in hexadecimal.
    pub(crate) plan: Option<String>,
    /// Live flows.
    pub(crate) flows: u64,
    /// Most flows there can be.
    pub(crate) flows_capacity: u64,
    /// Frames in use.
    pub(crate) frames_in_use: u64,
    /// Most frames there are.
    pub(crate) frames_capacity: u64,
    /// Ports that it polls.
    pub(crate) ports: usize,
    /// Peers with a session.
    pub(crate) peers_connected: usize,
    /// Packets dropped, whatever the reason.
    pub(crate) drops: u64,
}

/// `peers`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PeerList {
    /// Sorted by ordinal, those without one last.
    pub(crate) peers: Vec<PeerLine>,
}

/// What a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PeerKind {
    /// Another host of the site.
    Host,
    /// A foreign WireGuard peer.
    Foreign,
}

/// How many lanes two hosts have: each of one has a tunnel with each of the other, on first use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct LaneCounts {
    /// This host's.
    pub(crate) own: usize,
    /// The other one's, of its newest generation.
    pub(crate) theirs: usize,
}

/// One peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct PeerLine {
    /// Its name in the host document, or its host-id.
    pub(crate) name: String,
    /// What it is.
    pub(crate) kind: PeerKind,
    /// Its number in the site; `None` before it told its record.
    pub(crate) ordinal: Option<u8>,
    /// A foreign peer's key.
    pub(crate) public_key: Option<String>,
    /// Whether there is a control link to it; `None` for a foreign peer.
    pub(crate) connected: Option<bool>,
    /// Whether its record is alive; `None` for a foreign peer.
    pub(crate) alive: Option<bool>,
    /// Where it is for the control link.
    pub(crate) control_address: Option<IpAddr>,
    /// Round trip of the control link, in milliseconds.
    pub(crate) control_rtt_ms: Option<f64>,
    /// Milliseconds since its last sign of life.
    pub(crate) last_heard_ms: Option<u64>,
    /// The starts of its datapath that have lanes, the oldest first; two while one takes over from the other.
    pub(crate) generations: Vec<u64>,
    /// Lanes of both ends; `None` for a foreign peer, or while none are known.
    pub(crate) lanes: Option<LaneCounts>,
    /// Tunnels with it.
    pub(crate) tunnels: usize,
    /// Those of them that have a session.
    pub(crate) sessions: usize,
    /// Where it was last heard from, or where it is said to be.
    pub(crate) endpoint: Option<SocketAddr>,
    /// Milliseconds since the session in use was made; `None` without a session.
    pub(crate) handshake_age_ms: Option<u64>,
    /// Round trip of the last handshake that this end began, in milliseconds.
    pub(crate) rtt_ms: Option<u32>,
    /// Datagrams that never arrived here, of 1000; that of the worst tunnel.
    pub(crate) loss_permille: Option<u16>,
    /// The MTU inside towards it, in bytes.
    pub(crate) mtu: u16,
    /// What passed.
    pub(crate) traffic: tidegate_stack::stats::Traffic,
    /// What keeps packets from passing, or soon may; nothing when all is well.
    pub(crate) why: Vec<String>,
}

/// `drops`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DropList {
    /// The reasons that were seen, the most frequent first.
    pub(crate) drops: Vec<DropLine>,
}

/// One reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct DropLine {
    /// Its label.
    pub(crate) reason: String,
    /// How many packets.
    pub(crate) packets: u64,
    /// How many of them each application had: it sent them, or they came in its network. The rest belongs to none.
    pub(crate) applications: Vec<ApplicationDrops>,
    /// The last one, as far as it was understood.
    pub(crate) last: Option<DropExample>,
    /// What it means and what to do.
    pub(crate) explanation: String,
}

/// What an application had of a reason's drops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ApplicationDrops {
    /// The application, `tenant/name`.
    pub(crate) application: String,
    /// How many packets.
    pub(crate) packets: u64,
}

/// A dropped packet, with the names that this host knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct DropExample {
    /// The instance it came from.
    pub(crate) instance: Option<String>,
    /// The peer it came from.
    pub(crate) peer: Option<String>,
    /// The application whose network it was in, or the network's number.
    pub(crate) network: Option<String>,
    /// Its addresses.
    pub(crate) packet: Option<tidegate_stack::stats::PacketExample>,
    /// The rule that denies it, with document and line; `None` when no rule does, or not any more.
    pub(crate) because: Option<String>,
}
