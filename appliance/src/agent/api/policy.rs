//! Questions about who may talk to whom, and their answers: `trace`, `policy diff`, `graph`.

use super::flows::{FlowEndLine, FlowLine};
use super::messages::DocumentText;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What `trace` asks: what would become of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct TraceQuery {
    /// Who sends it.
    pub(crate) from: TraceEnd,
    /// To whom.
    pub(crate) to: TraceEnd,
    /// The IP protocol's number; without one TCP where the target has a port, else ICMP echo.
    pub(crate) protocol: Option<u8>,
    /// The application that names without one are looked for in.
    pub(crate) application: Option<String>,
    /// Its tenant.
    pub(crate) tenant: Option<String>,
    /// Over IPv6, where both families would do.
    pub(crate) ipv6: bool,
}

/// One end of what is traced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct TraceEnd {
    /// A name, `[[tenant/]application/]instance-or-service`, or an address.
    pub(crate) who: String,
    /// Its port.
    pub(crate) port: Option<u16>,
}

/// `trace`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct TraceList {
    /// One for each target that the query means.
    pub(crate) traces: Vec<Trace>,
}

/// What would become of one packet, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Trace {
    /// The network that it would be in.
    pub(crate) network: Option<String>,
    /// The IP protocol's number.
    pub(crate) protocol: u8,
    /// Who sends it.
    pub(crate) source: FlowEndLine,
    /// To whom.
    pub(crate) destination: FlowEndLine,
    /// What is done with it.
    pub(crate) verdict: TraceVerdict,
    /// Whether its sender hears of a denial.
    pub(crate) rejected: bool,
    /// The reason that a denial counts under.
    pub(crate) reason: Option<String>,
    /// What that reason means, and what to do.
    pub(crate) explanation: Option<String>,
    /// Every stage, in the order of the walk.
    pub(crate) steps: Vec<String>,
    /// The live flow of such a packet, if there is one: its packets aren't judged again.
    pub(crate) live: Option<FlowLine>,
}

/// What would be done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TraceVerdict {
    /// It goes on.
    Forwarded,
    /// The appliance answers it.
    Answered,
    /// It is dropped.
    Denied,
}

/// What `policy diff` asks: what documents would change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PolicyDiffQuery {
    /// The documents, as `apply` would take them.
    pub(crate) documents: Vec<DocumentText>,
}

/// `policy diff`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct PolicyDiff {
    /// Live flows that would be cut, and by what.
    pub(crate) cut: Vec<CutFlow>,
    /// How many more would be cut, beyond those listed.
    pub(crate) more_cut: u64,
    /// Live flows that would go on.
    pub(crate) kept: u64,
    /// What may pass then and may not now.
    pub(crate) newly_allowed: Vec<GraphEdge>,
    /// What may pass now and may not then.
    pub(crate) newly_denied: Vec<GraphEdge>,
}

/// A flow that documents would cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct CutFlow {
    /// The flow.
    pub(crate) flow: FlowLine,
    /// The reason that its packets would count under.
    pub(crate) reason: String,
    /// What would decide so.
    pub(crate) because: String,
}

/// `graph`: who may talk to whom, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Graph {
    /// The networks, applications' own first.
    pub(crate) networks: Vec<GraphNetwork>,
    /// The services, by application.
    pub(crate) services: Vec<GraphService>,
    /// What may pass.
    pub(crate) edges: Vec<GraphEdge>,
}

/// A network and who is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct GraphNetwork {
    /// Its name, `tenant/name`.
    pub(crate) name: String,
    /// Whether several applications share it.
    pub(crate) shared: bool,
    /// The applications in it, `tenant/name`.
    pub(crate) applications: Vec<String>,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct GraphService {
    /// Its application, `tenant/name`.
    pub(crate) application: String,
    /// Its name.
    pub(crate) service: String,
    /// Its instances in the site, as far as this host knows.
    pub(crate) instances: Vec<GraphInstance>,
    /// Where its `inbound-access` is written; `None`: every member of its networks may reach it.
    pub(crate) inbound: Option<String>,
    /// Where its `outbound-access` is written; `None`: it may reach every member of its networks.
    pub(crate) outbound: Option<String>,
}

/// An instance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct GraphInstance {
    /// Its name.
    pub(crate) instance: String,
    /// Its host.
    pub(crate) host: String,
    /// Its addresses.
    pub(crate) addresses: Vec<IpAddr>,
}

/// What may pass from one to another in a network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct GraphEdge {
    /// The network, `tenant/name`.
    pub(crate) network: String,
    /// Who begins: a service, `tenant/application/service`, a prefix, or `any`.
    pub(crate) from: String,
    /// The service that is reached.
    pub(crate) to: String,
    /// What: `everything`, `tcp 5432`, `icmp`, …
    pub(crate) passes: Vec<String>,
    /// Why: `default`, or documents and lines.
    pub(crate) why: Vec<String>,
}

impl GraphEdge {
    /// Whether only the network's own rule is behind it: members reach each other.
    pub(crate) fn is_default(&self) -> bool {
        self.why.iter().all(|why| why == DEFAULT)
    }
}

/// What [`GraphEdge::why`] says where no document does.
pub(crate) const DEFAULT: &str = "default";
