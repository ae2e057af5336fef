//! What a shard tells about itself: read whole, asked for by the agent about once a second.

use crate::drop::DropReason;
use crate::plan::{PeerId, PortId, Vni};
use crate::responder::readiness::ProbeError;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// The state of one shard, or of all of them added up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The epoch of the policy in force.
    pub epoch: u64,
    /// Per port.
    pub ports: Vec<PortReport>,
    /// Per peer.
    pub peers: Vec<PeerReport>,
    /// Per reason that has been seen.
    pub drops: Vec<DropReport>,
    /// Live flows.
    pub flows: u64,
    /// Most flows the table holds.
    pub flows_capacity: u64,
    /// Frames in use, and how many there are.
    pub frames_in_use: u64,
    /// Most frames there are.
    pub frames_capacity: u64,
    /// Entries in the neighbour cache.
    pub neighbours: u64,
    /// Most entries the neighbour cache holds.
    pub neighbours_capacity: u64,
    /// What was asked at service addresses.
    #[serde(default)]
    pub dns: DnsReport,
    /// Per instance that is asked whether it is ready, by port.
    #[serde(default)]
    pub readiness: Vec<ReadinessReport>,
}

/// What is known of an instance that is asked whether it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadinessReport {
    /// Its port.
    pub port: PortId,
    /// Whether it is; `None`: it isn't known yet.
    pub ready: Option<bool>,
    /// Failures since the last success.
    pub failures: u32,
    /// Why it failed last; `None` after a success.
    pub error: Option<ProbeError>,
    /// How often it was asked.
    pub asked: u64,
    /// How often a question was put off, because too many others were open.
    pub postponed: u64,
}

/// DNS at service addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsReport {
    /// Queries answered.
    pub queries: u64,
    /// With NOERROR: the name exists.
    pub no_error: u64,
    /// With NXDOMAIN: it doesn't.
    pub nx_domain: u64,
    /// With SERVFAIL: nobody could tell.
    #[serde(default)]
    pub failed: u64,
    /// With REFUSED.
    pub refused: u64,
    /// With FORMERR, NOTIMP or BADVERS.
    pub faulty: u64,
    /// Cut off, to be asked for again over TCP.
    pub truncated: u64,
    /// Queries that were to be told one by one, and found no room.
    #[serde(default)]
    pub unlogged: u64,
    /// TCP connections there are.
    pub connections: u64,
    /// TCP connections that were cut: too slow, or what they sent was no query.
    pub connections_cut: u64,
    /// Questions about the world beyond that were to be asked, repetitions left out.
    #[serde(default)]
    pub asked: u64,
    /// Queries about it that what is remembered answered.
    #[serde(default)]
    pub cached: u64,
    /// Queries about it that were answered by what was true before (RFC 8767).
    #[serde(default)]
    pub stale: u64,
    /// Queries about it that found no room to wait, and failed.
    #[serde(default)]
    pub overflown: u64,
    /// Queries about it that wait for an answer.
    #[serde(default)]
    pub waiting: u64,
    /// Answers about it that are remembered. The shards share them.
    #[serde(default)]
    pub remembered: u64,
    /// Bytes that they take.
    #[serde(default)]
    pub remembered_bytes: u64,
}

impl DnsReport {
    /// Adds what was asked elsewhere.
    pub fn add(&mut self, more: &Self) {
        self.queries += more.queries;
        self.no_error += more.no_error;
        self.nx_domain += more.nx_domain;
        self.failed += more.failed;
        self.refused += more.refused;
        self.faulty += more.faulty;
        self.truncated += more.truncated;
        self.unlogged += more.unlogged;
        self.connections += more.connections;
        self.connections_cut += more.connections_cut;
        self.asked += more.asked;
        self.cached += more.cached;
        self.stale += more.stale;
        self.overflown += more.overflown;
        self.waiting += more.waiting;
        self.remembered = self.remembered.max(more.remembered);
        self.remembered_bytes = self.remembered_bytes.max(more.remembered_bytes);
    }
}

/// Counters of a pair of directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets received (a super-packet counts as the segments it stands for).
    pub received_packets: u64,
    /// Bytes of IP packets received.
    pub received_bytes: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Bytes of IP packets sent.
    pub sent_bytes: u64,
}

impl Traffic {
    /// Adds what passed elsewhere.
    pub fn add(&mut self, more: &Self) {
        self.received_packets += more.received_packets;
        self.received_bytes += more.received_bytes;
        self.sent_packets += more.sent_packets;
        self.sent_bytes += more.sent_bytes;
    }
}

/// One port: received is what the instance sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortReport {
    /// The port.
    pub port: PortId,
    /// What passed.
    pub traffic: Traffic,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerReport {
    /// The peer.
    pub peer: PeerId,
    /// Where it was last heard from, or where the plan says it is.
    pub endpoint: Option<SocketAddr>,
    /// Milliseconds since the session in use was made; `None` without a session.
    pub handshake_age_ms: Option<u64>,
    /// Round trip of the last handshake that this end began, in milliseconds.
    pub rtt_ms: Option<u32>,
    /// Packets of networks and their bytes.
    pub traffic: Traffic,
    /// The tunnels with it, by shard, generation and lane.
    pub tunnels: Vec<TunnelReport>,
}

/// One tunnel: of one shard's lane with one lane of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelReport {
    /// The shard.
    pub shard: u8,
    /// The peer's datapath generation; `None` for a foreign peer.
    pub generation: Option<u64>,
    /// The number of the peer's lane in that generation.
    pub lane: u8,
    /// Where it was last heard from, or where the plan says it is.
    pub endpoint: Option<SocketAddr>,
    /// Milliseconds since the session in use was made; `None` without a session.
    pub handshake_age_ms: Option<u64>,
    /// Round trip of the last handshake that this end began, in milliseconds.
    pub rtt_ms: Option<u32>,
    /// Datagrams of the session in use that never arrived, of 1000, as far as gaps in their counters tell.
    pub loss_permille: Option<u16>,
}

/// One reason for drops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropReport {
    /// The reason.
    pub reason: DropReason,
    /// How many packets.
    pub packets: u64,
    /// How many of them belong to an application, by its own network; those that belong to none are the rest.
    #[serde(default)]
    pub applications: Vec<(Vni, u64)>,
    /// The last one.
    pub last: Option<DropExample>,
}

/// A part of the flows of a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowPage {
    /// The flows.
    pub flows: Vec<FlowReport>,
    /// From where the next part is asked for; `None` after the last one.
    pub next: Option<u64>,
}

/// One live flow, seen from the side that began it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowReport {
    /// Its network.
    pub vni: Vni,
    /// Its addresses: of the packet that began it.
    pub packet: PacketExample,
    /// Where that packet came from.
    pub origin: FlowEnd,
    /// Where it went.
    pub target: FlowEnd,
    /// How far it is.
    pub state: FlowState,
    /// Packets of the side that began, and of the other one (a super-packet counts as the segments it stands for).
    pub packets: [u64; 2],
    /// Bytes of their IP packets.
    pub bytes: [u64; 2],
    /// Milliseconds since its last packet.
    pub idle_ms: u64,
    /// The shard it lives on.
    pub shard: u8,
}

/// One side of a flow, as this host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowEnd {
    /// An instance of this host; `None` when its port is gone.
    Port(Option<PortId>),
    /// Behind a peer.
    Peer(PeerId),
}

/// How far a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowState {
    /// TCP: the handshake isn't over.
    Opening,
    /// TCP: both sides have agreed.
    Established,
    /// TCP: a side has ended.
    Closing,
    /// TCP: both sides have ended, or one has reset it.
    Closed,
    /// Another protocol: nobody has answered yet.
    Unanswered,
    /// Another protocol: both sides have sent.
    Answered,
}

/// A dropped packet, as far as it was understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropExample {
    /// The port it came from.
    pub port: Option<PortId>,
    /// The peer it came from.
    pub peer: Option<PeerId>,
    /// Its network.
    pub vni: Option<Vni>,
    /// The own network of the application that it belongs to: the one that sent it, or whose network it came in.
    #[serde(default)]
    pub application: Option<Vni>,
    /// Its addresses.
    pub packet: Option<PacketExample>,
}

/// The addresses of a packet; ports are 0 where there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketExample {
    /// IP protocol number.
    pub protocol: u8,
    /// Source address.
    pub source: IpAddr,
    /// Source port.
    pub source_port: u16,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port.
    pub destination_port: u16,
}
