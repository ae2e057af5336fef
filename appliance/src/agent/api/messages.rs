//! The messages of the control socket. The answers are what `-o json` prints: their keys are stable. Those about how
//! it goes are in [`super::observations`].

use super::flows::{FlowList, FlowQuery};
use super::names::{NameAnswers, NameList, NameQuery};
use super::observations::{DropList, PeerList, Status};
use super::policy::{Graph, PolicyDiff, PolicyDiffQuery, TraceList, TraceQuery};
use crate::agent::reconcile::Namespace;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tidegate_stack::plan::{NetworkKind, PortId, Vni};

/// What a verb asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Puts application documents in force. Answer: [`Response::Applied`].
    Apply {
        /// The files' texts.
        documents: Vec<DocumentText>,
    },
    /// Takes an application out of force. Answer: [`Response::Deleted`].
    Delete {
        /// Its tenant.
        tenant: String,
        /// Its name.
        application: String,
    },
    /// Asks for a list. Answer: the response of that name.
    Applications,
    /// The networks.
    Networks,
    /// The instances.
    Instances,
    /// The names.
    Names,
    /// Asks what an instance would be answered. Answer: [`Response::NameAnswers`].
    DnsQuery {
        /// What.
        query: NameQuery,
    },
    /// Asks what a device has to be made with. Answer: [`Response::Prepared`], or [`Response::Attached`] when it is
    /// attached already.
    PrepareAttach {
        /// Who.
        instance: InstanceQuery,
    },
    /// Gives the queues of the device that was made as prepared, as descriptors. Answer: [`Response::Attached`].
    CommitAttach,
    /// Takes an instance's device away. Answer: [`Response::Detached`].
    Detach {
        /// Who.
        instance: InstanceQuery,
    },
    /// Answer: [`Response::Status`].
    Status,
    /// Answer: [`Response::Peers`].
    Peers,
    /// Answer: [`Response::Drops`].
    Drops,
    /// Asks for live flows. Answer: [`Response::Flows`].
    Flows {
        /// Which.
        query: FlowQuery,
    },
    /// Asks what would become of a packet. Answer: [`Response::Traces`].
    Trace {
        /// Which.
        query: TraceQuery,
    },
    /// Asks what documents would change. Answer: [`Response::PolicyDiff`].
    PolicyDiff {
        /// Which.
        query: PolicyDiffQuery,
    },
    /// Asks who may talk to whom. Answer: [`Response::Graph`].
    Graph,
}

/// A document's text and the name of its file, for messages.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DocumentText {
    /// The file, as the user named it.
    pub(crate) file: String,
    /// What is in it.
    pub(crate) text: String,
}

/// The keys of `attach` and `detach`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct InstanceQuery {
    /// The tenant.
    pub(crate) tenant: String,
    /// The application.
    pub(crate) application: String,
    /// The service.
    pub(crate) service: String,
    /// The instance's number; without it the namespace tells which.
    pub(crate) number: Option<u32>,
    /// The namespace; `None` when it is gone.
    pub(crate) namespace: Option<Namespace>,
    /// The device's name inside.
    pub(crate) interface: String,
}

/// What the agent answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "kebab-case")]
pub(crate) enum Response {
    /// The documents are in force on every shard.
    Applied(Applied),
    /// The application is no longer in force.
    Deleted(Deleted),
    /// The applications.
    Applications(ApplicationList),
    /// The networks.
    Networks(NetworkList),
    /// The instances.
    Instances(InstanceList),
    /// The names.
    Names(NameList),
    /// What an instance would be answered.
    NameAnswers(NameAnswers),
    /// What to make a device with.
    Prepared(Prepared),
    /// The instance is attached.
    Attached(Attached),
    /// The instance is no longer attached.
    Detached(Detached),
    /// The state at a glance.
    Status(Box<Status>),
    /// The peers.
    Peers(PeerList),
    /// The drops.
    Drops(DropList),
    /// The flows.
    Flows(FlowList),
    /// What would become of packets.
    Traces(TraceList),
    /// What documents would change.
    PolicyDiff(Box<PolicyDiff>),
    /// Who may talk to whom.
    Graph(Graph),
    /// The request couldn't be carried out; nothing changed.
    Refused(Refusal),
}

/// Why a request couldn't be carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Refusal {
    /// Which exit code it is.
    pub(crate) kind: RefusalKind,
    /// One line each: what, where, what to do.
    pub(crate) problems: Vec<String>,
}

/// Kinds of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RefusalKind {
    /// It can't be done.
    Refused,
    /// What was named doesn't exist.
    NotFound,
}

impl Refusal {
    /// It can't be done, for one reason.
    pub(crate) fn because(problem: impl ToString) -> Self {
        Self::of_all(vec![problem.to_string()])
    }

    /// It can't be done, for all these reasons.
    pub(crate) fn of_all(problems: Vec<String>) -> Self {
        Self {
            kind: RefusalKind::Refused,
            problems,
        }
    }

    /// What was named doesn't exist.
    pub(crate) fn not_found(problem: impl ToString) -> Self {
        Self {
            kind: RefusalKind::NotFound,
            problems: vec![problem.to_string()],
        }
    }
}

/// What `apply` did.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Applied {
    /// Each application of the documents.
    pub(crate) applications: Vec<AppliedApplication>,
    /// The epoch of the policy in force.
    pub(crate) epoch: u64,
}

/// What became of one application.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct AppliedApplication {
    /// Its tenant.
    pub(crate) tenant: String,
    /// Its name.
    pub(crate) application: String,
    /// What it is compared to before.
    pub(crate) change: Change,
}

/// What a document is, compared to the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Change {
    /// There was none.
    Created,
    /// It differs.
    Changed,
    /// It is the same.
    Unchanged,
}

/// What `delete` did.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Deleted {
    /// The application's tenant.
    pub(crate) tenant: String,
    /// The application.
    pub(crate) application: String,
    /// The epoch of the policy in force.
    pub(crate) epoch: u64,
}

/// `show apps`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ApplicationList {
    /// Sorted by tenant and name.
    pub(crate) applications: Vec<ApplicationLine>,
}

/// One application.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ApplicationLine {
    /// Its tenant.
    pub(crate) tenant: String,
    /// Its name.
    pub(crate) application: String,
    /// Its version.
    pub(crate) version: Option<String>,
    /// Its services.
    pub(crate) services: Vec<String>,
    /// Its instances that are attached here.
    pub(crate) instances: usize,
}

/// `show networks`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NetworkList {
    /// Applications' own ones first, then the shared ones; each sorted by tenant and name.
    pub(crate) networks: Vec<NetworkLine>,
}

/// One network.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct NetworkLine {
    /// Whose it is.
    pub(crate) kind: NetworkKind,
    /// Its tenant.
    pub(crate) tenant: String,
    /// The application's name, or the shared network's.
    pub(crate) name: String,
    /// The application that it belongs to; `None` for a shared network.
    pub(crate) application: Option<String>,
    /// The applications of this host that are in it, as `tenant/name`.
    pub(crate) applications: Vec<String>,
    /// Its number.
    pub(crate) vni: Vni,
    /// Its prefixes.
    pub(crate) ipv4_prefix: ipnet::Ipv4Net,
    /// Its prefixes.
    pub(crate) ipv6_prefix: ipnet::Ipv6Net,
    /// This host's block.
    pub(crate) ipv4_block: ipnet::Ipv4Net,
    /// This host's block.
    pub(crate) ipv6_block: ipnet::Ipv6Net,
    /// The appliance's own addresses.
    pub(crate) service_addresses: [IpAddr; 2],
}

/// `show instances`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct InstanceList {
    /// Those attached here, sorted by tenant, application, service and number.
    pub(crate) instances: Vec<InstanceLine>,
    /// Those that live hosts of the site tell of, sorted by tenant, application and name.
    pub(crate) elsewhere: Vec<RemoteInstanceLine>,
}

/// One instance of another host.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct RemoteInstanceLine {
    /// That host.
    pub(crate) host: String,
    /// Its tenant.
    pub(crate) tenant: String,
    /// Its application.
    pub(crate) application: String,
    /// Its name.
    pub(crate) instance: String,
    /// Its addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether it may be sent to.
    pub(crate) ready: bool,
}

/// One instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct InstanceLine {
    /// Its tenant.
    pub(crate) tenant: String,
    /// Its application.
    pub(crate) application: String,
    /// Its name.
    pub(crate) instance: String,
    /// The port that its device is.
    pub(crate) port: PortId,
    /// The device's name inside.
    pub(crate) interface: String,
    /// The device's MTU, in bytes.
    pub(crate) mtu: u16,
    /// Its addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether its addresses or MTU are no longer those of its application: attach it again with the same keys.
    pub(crate) re_attach_needed: bool,
    /// What is known of its readiness, when it is asked; else it is ready as long as it is attached.
    pub(crate) readiness: Option<ReadinessLine>,
    /// What it sent and received.
    pub(crate) traffic: Option<tidegate_stack::stats::Traffic>,
}

/// An instance that is asked whether it is ready.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ReadinessLine {
    /// Whether it is.
    pub(crate) ready: bool,
    /// What it is asked.
    pub(crate) asked: String,
    /// Seconds since that is so; `None`: since before this agent began, or since it was attached.
    pub(crate) since_s: Option<u64>,
    /// Questions so far.
    pub(crate) questions: u64,
    /// Failures since the last success.
    pub(crate) failures: u32,
    /// The last one of them.
    pub(crate) error: Option<String>,
}

/// What a device has to be made with.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Prepared {
    /// The instance's name.
    pub(crate) instance: String,
    /// The device's name until it is moved, unused on this host.
    pub(crate) temporary_name: String,
    /// How many queues it needs.
    pub(crate) queues: u32,
    /// Its MTU, in bytes.
    pub(crate) mtu: u16,
    /// Whether its packets have a virtio header.
    pub(crate) vnet_header: bool,
    /// Whether it hands out super-packets.
    pub(crate) segmentation: bool,
    /// Whether it may have several queues.
    pub(crate) multi_queue: bool,
    /// The networks, the application's own first.
    pub(crate) networks: Vec<PreparedNetwork>,
    /// The domain to search names in.
    pub(crate) search: Vec<String>,
}

/// One network of an instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct PreparedNetwork {
    /// The instance's address.
    pub(crate) ipv4: Ipv4Addr,
    /// The instance's address.
    pub(crate) ipv6: Ipv6Addr,
    /// The network's prefix.
    pub(crate) ipv4_prefix: ipnet::Ipv4Net,
    /// The network's prefix.
    pub(crate) ipv6_prefix: ipnet::Ipv6Net,
    /// The appliance's own address, where names are asked for.
    pub(crate) service_ipv4: Ipv4Addr,
}

/// What `attach` prints.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Attached {
    /// The tenant.
    pub(crate) tenant: String,
    /// The application.
    pub(crate) application: String,
    /// The instance's name.
    pub(crate) instance: String,
    /// The device's name inside.
    pub(crate) interface: String,
    /// The device's MTU, in bytes.
    pub(crate) mtu: u16,
    /// The instance's addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether it was attached before.
    pub(crate) already: bool,
}

/// What `detach` prints.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Detached {
    /// The tenant.
    pub(crate) tenant: String,
    /// The application.
    pub(crate) application: String,
    /// The instance's name.
    pub(crate) instance: String,
}
