//! Questions about live flows, and their answers.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use tidegate_stack::stats::FlowState;

/// Which flows are asked for: those that fit everything that is set. One end that fits is enough.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct FlowQuery {
    /// The tenant of an end's application.
    pub(crate) tenant: Option<String>,
    /// An end's application.
    pub(crate) application: Option<String>,
    /// An end's service.
    pub(crate) service: Option<String>,
    /// An end's instance.
    pub(crate) instance: Option<String>,
    /// An end's address.
    pub(crate) address: Option<IpAddr>,
    /// An end's port.
    pub(crate) port: Option<u16>,
    /// The IP protocol's number.
    pub(crate) protocol: Option<u8>,
    /// How far it is.
    pub(crate) state: Option<FlowState>,
    /// Which way it was begun.
    pub(crate) direction: Option<FlowDirection>,
    /// Most flows to list; those beyond are counted.
    pub(crate) limit: usize,
}

/// Which way a flow was begun, as this host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FlowDirection {
    /// By a peer's instance, to one of this host.
    In,
    /// By an instance of this host, to a peer's.
    Out,
    /// Between instances of this host.
    Local,
}

/// `flows`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct FlowList {
    /// Those that fit, by network and addresses.
    pub(crate) flows: Vec<FlowLine>,
    /// How many more fit, beyond the limit.
    pub(crate) more: u64,
    /// How many flows were looked at: all that live.
    pub(crate) live: u64,
}

/// One live flow, seen from the side that began it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct FlowLine {
    /// The network that it is in.
    pub(crate) network: String,
    /// Which way it was begun.
    pub(crate) direction: FlowDirection,
    /// The IP protocol's number.
    pub(crate) protocol: u8,
    /// Who began it.
    pub(crate) source: FlowEndLine,
    /// With whom.
    pub(crate) destination: FlowEndLine,
    /// How far it is.
    pub(crate) state: FlowState,
    /// Packets of who began it, and of the other end.
    pub(crate) packets: [u64; 2],
    /// Bytes of their IP packets.
    pub(crate) bytes: [u64; 2],
    /// Milliseconds since its last packet.
    pub(crate) idle_ms: u64,
    /// The shard it lives on.
    pub(crate) shard: u8,
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct FlowEndLine {
    /// Its address.
    pub(crate) address: IpAddr,
    /// Its port, or an echo's identifier; 0 where there is none.
    pub(crate) port: u16,
    /// The instance behind it, where this host knows it.
    #[serde(flatten)]
    pub(crate) instance: Option<NamedInstance>,
    /// The host or foreign peer that it is behind; `None` on this host.
    pub(crate) peer: Option<String>,
}

/// An instance's full name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct NamedInstance {
    /// The tenant of its application.
    pub(crate) tenant: String,
    /// Its application.
    pub(crate) application: String,
    /// Its service.
    pub(crate) service: String,
    /// Its own name.
    pub(crate) instance: String,
}

impl std::fmt::Display for NamedInstance {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{}/{}/{}",
            self.tenant, self.application, self.instance
        )
    }
}

impl FlowQuery {
    /// Whether a flow is asked for.
    pub(crate) fn fits(&self, flow: &FlowLine) -> bool {
        let ends = [&flow.source, &flow.destination];
        let named = |wanted: &Option<String>, part: fn(&NamedInstance) -> &String, end: &FlowEndLine| {
            wanted
                .as_ref()
                .is_none_or(|wanted| end.instance.as_ref().map(part) == Some(wanted))
        };
        // One end has to fit in all of them: `--application shop --service db` is one service.
        let end_fits = |end: &FlowEndLine| {
            named(&self.tenant, |name| &name.tenant, end)
                && named(&self.application, |name| &name.application, end)
                && named(&self.service, |name| &name.service, end)
                && named(&self.instance, |name| &name.instance, end)
                && self.address.is_none_or(|address| address == end.address)
                && self.port.is_none_or(|port| port == end.port)
        };
        ends.into_iter().any(end_fits)
            && self.protocol.is_none_or(|protocol| protocol == flow.protocol)
            && self.state.is_none_or(|state| state == flow.state)
            && self.direction.is_none_or(|direction| direction == flow.direction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(service: &str, port: u16) -> FlowEndLine {
        FlowEndLine {
            address: "172.19.1.2".parse().unwrap(),
            port,
            instance: Some(NamedInstance {
                tenant: "acme".to_owned(),
                application: "shop".to_owned(),
                service: service.to_owned(),
                instance: format!("{service}-1"),
            }),
            peer: None,
        }
    }

    #[test]
    fn one_end_has_to_fit_in_all_that_is_asked() {
        let flow = FlowLine {
            network: "acme/shop".to_owned(),
            direction: FlowDirection::Local,
            protocol: 6,
            source: end("web", 40_000),
            destination: end("db", 5432),
            state: FlowState::Established,
            packets: [1, 1],
            bytes: [40, 40],
            idle_ms: 0,
            shard: 0,
        };
        let query = |service: &str, port| FlowQuery {
            service: Some(service.to_owned()),
            port,
            ..FlowQuery::default()
        };
        assert!(query("db", Some(5432)).fits(&flow));
        assert!(query("web", None).fits(&flow));
        assert!(!query("web", Some(5432)).fits(&flow), "the other end's port");
        assert!(!query("api", None).fits(&flow));
        assert!(FlowQuery::default().fits(&flow));
    }
}
