//! What a host tells the others of its site about itself: one record, written by its owner alone.

use crate::config::label_fault;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use tidegate_stack::plan::{HostOrdinal, Membership, NetworkKind, PublicKey, Vni};

/// Largest record, in bytes of its encoding.
pub(crate) const MAX_RECORD: usize = 256 * 1024;
/// Two generations of lanes live side by side while peers move over.
pub(crate) const MAX_GENERATIONS: usize = 2;
/// A generation has 64 ports.
const MAX_LANES: usize = 64;
/// Largest boot counter: it counts starts of an agent, and what is near the end of its type isn't one that counted.
pub(super) const MAX_BOOT: u64 = 1 << 48;

/// A host's record. The last writer wins, by [`Stamp`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct HostRecord {
    /// The owner.
    pub(crate) host_id: String,
    /// Which start of the owner's agent wrote it.
    pub(crate) boot: u64,
    /// Drawn at that start: tells two starts apart that lost count and have the same number.
    pub(crate) life: u32,
    /// Which of that start's records it is, from 1.
    pub(crate) version: u64,
    /// What the owner says.
    pub(crate) body: RecordBody,
}

/// What a host says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct RecordBody {
    /// Its number in the site.
    pub(crate) ordinal: HostOrdinal,
    /// Its underlay addresses, preferred first.
    pub(crate) addresses: Vec<IpAddr>,
    /// Its lanes, the oldest generation first; at most [`MAX_GENERATIONS`].
    pub(crate) generations: Vec<LaneGeneration>,
    /// Its address plan, which must be every host's.
    pub(crate) network: NetworkSettings,
    /// The networks that it takes part in.
    pub(crate) networks: Vec<NetworkRecord>,
    /// The instances attached to it.
    pub(crate) instances: Vec<InstanceRecord>,
    /// What a later version says, kept so that relaying a record through this host loses nothing of it.
    #[serde(flatten)]
    pub(crate) later: serde_json::Map<String, serde_json::Value>,
}

/// The lanes of one start of a datapath.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct LaneGeneration {
    /// The generation's number: each start has a higher one.
    pub(crate) number: u64,
    /// One lane a shard, in the order of shards.
    pub(crate) lanes: Vec<LaneRecord>,
}

/// A lane, as peers need it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct LaneRecord {
    /// The UDP port on which it listens.
    pub(crate) port: u16,
    /// Its WireGuard key.
    pub(crate) public_key: PublicKey,
}

/// The site's address plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct NetworkSettings {
    /// Every application network's prefix.
    pub(crate) application_prefix: Ipv4Net,
    /// What shared networks are cut from.
    pub(crate) shared_prefix: Ipv4Net,
}

/// A network that a host takes part in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct NetworkRecord {
    /// The tenant that it belongs to.
    pub(crate) tenant: String,
    /// The application's name, or the shared network's.
    pub(crate) name: String,
    /// Which of the two.
    pub(crate) kind: NetworkKind,
    /// Its number.
    pub(crate) vni: Vni,
    /// A shared network's prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ipv4_prefix: Option<Ipv4Net>,
}

/// An instance attached to a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct InstanceRecord {
    /// The tenant of its application.
    pub(crate) tenant: String,
    /// Its application.
    pub(crate) application: String,
    /// Its service.
    pub(crate) service: String,
    /// Its number in the service, from 1.
    pub(crate) number: u32,
    /// Its addresses, network by network.
    pub(crate) addresses: Vec<Membership>,
    /// Whether it may be sent to.
    pub(crate) ready: bool,
}

/// A point in what a host did: the later one is the greater one. A state that was lost and counts from the beginning
/// again is told by `life`, and overtaken: see [`Replica`](super::replica::Replica).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Stamp {
    /// Which start of the host's agent.
    pub(crate) boot: u64,
    /// What was drawn at that start.
    pub(crate) life: u32,
    /// The record's version, or the beat.
    pub(crate) count: u64,
}

impl Stamp {
    /// The start that it is of.
    pub(crate) fn start(self) -> (u64, u32) {
        (self.boot, self.life)
    }

    /// Why it can't be one that a host counted; `None` when it can.
    pub(crate) fn fault(self) -> Option<String> {
        (self.boot > MAX_BOOT).then(|| format!("boot {} is beyond what can be counted", self.boot))
    }
}

impl HostRecord {
    /// Which of its owner's records it is.
    pub(crate) fn stamp(&self) -> Stamp {
        Stamp {
            boot: self.boot,
            life: self.life,
            count: self.version,
        }
    }

    /// What is illegal in it, beyond what its types refuse; `None` when nothing is.
    pub(crate) fn fault(&self) -> Option<String> {
        if let Some(fault) = label_fault(&self.host_id) {
            return Some(format!("host-id {fault}"));
        }
        let generations = &self.body.generations;
        if generations.len() > MAX_GENERATIONS {
            return Some(format!(
                "it has {} generations of lanes, and {MAX_GENERATIONS} are the most",
                generations.len()
            ));
        }
        if let Some(generation) = generations
            .iter()
            .find(|generation| generation.lanes.len() > MAX_LANES)
        {
            return Some(format!(
                "generation {} has {} lanes, and {MAX_LANES} are the most",
                generation.number,
                generation.lanes.len()
            ));
        }
        self.stamp().fault()
    }
}
