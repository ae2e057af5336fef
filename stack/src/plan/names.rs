//! What can be asked for by name in each network: the services of the applications there, their instances and texts.
//!
//! Readiness is part of it, so this is what changes most often. It is compiled alone
//! ([`Names`](crate::snapshot::Names)): a change of it is no new epoch and touches no flow.

use super::{ServiceId, Vni};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The services that have names in one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkNames {
    /// The network.
    pub vni: Vni,
    /// Whether the queries of the instances whose own network it is are told one by one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub log: bool,
    /// The services: in an application's network its own, in a shared one those of every application there. Names of
    /// theirs that don't fit into DNS (a label of 1 to 63 bytes, 255 in all) aren't answered.
    pub services: Vec<NamedService>,
}

/// A service, as others find it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedService {
    /// Which one.
    pub id: ServiceId,
    /// In which order its addresses are told.
    #[serde(default)]
    pub order: AnswerOrder,
    /// Its ports that have a name: what SRV records say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<NamedPort>,
    /// What TXT records say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<Text>,
    /// Its instances on every host.
    pub instances: Vec<NamedInstance>,
}

/// In which order a service's addresses are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnswerOrder {
    /// Each answer begins with another one.
    #[default]
    Rotate,
    /// By the instances' numbers.
    Fixed,
}

/// A port with a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedPort {
    /// Its name, without the underscore.
    pub name: String,
    /// What is spoken there.
    pub protocol: PortProtocol,
    /// Its number.
    pub port: u16,
}

/// The transport of a port with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A TXT record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// The label below the service's name that it stands at, `_acme-challenge` for one; `None`: the service's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// What it says, up to [`Text::LONGEST`] bytes.
    pub text: String,
}

/// An instance, with its addresses in the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedInstance {
    /// Its name, `<service>-<n>`.
    pub name: String,
    /// Its IPv4 address there.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address there.
    pub ipv6: Ipv6Addr,
    /// Whether it takes requests: only ready instances are told.
    pub ready: bool,
}

impl Text {
    /// Bytes that a text may have; a longer one isn't answered.
    pub const LONGEST: usize = 4096;
}

impl PortProtocol {
    /// Its label in the name of an SRV record (RFC 2782).
    pub const fn label(self) -> &'static str {
        match self {
            Self::Tcp => "_tcp",
            Self::Udp => "_udp",
        }
    }
}

impl NetworkNames {
    /// Puts every list into its one order; instances by their numbers.
    pub(super) fn normalise(&mut self) {
        self.services.sort_by(|a, b| a.id.cmp(&b.id));
        for service in &mut self.services {
            service.ports.sort();
            service.texts.sort();
            // All begin with the service's name: a longer one has a longer, so a higher, number.
            service
                .instances
                .sort_by(|a, b| (a.name.len(), &a.name).cmp(&(b.name.len(), &b.name)));
        }
    }
}
