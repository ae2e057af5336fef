//! Who may talk to whom, as the documents of applications say it, with the place of every word in them.
//!
//! Rules are kept in the order of the document: the first one that matches decides. A list of *inbound* rules ends in a
//! denial; one of *outbound* rules ends in a denial for everything outside the application's own network.

use super::{PeerId, Vni};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A service of an application, with what its document says about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Which one.
    pub id: ServiceId,
    /// The document, as whoever applied it named it.
    pub document: String,
    /// Who may reach it inside its networks; `None`: every member of them.
    pub inbound: Option<Access>,
    /// Whom it may reach; `None`: every member of its networks, and nobody else.
    pub outbound: Option<Access>,
    /// What its instances on one host may take.
    pub limits: Limits,
}

/// What names a service in a site.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceId {
    /// The tenant of its application.
    pub tenant: String,
    /// Its application.
    pub application: String,
    /// Its own name.
    pub service: String,
}

/// An ordered list of rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// Where it begins in the document, from 1.
    pub line: u32,
    /// What becomes of what it denies.
    pub on_deny: OnDeny,
    /// The first one that matches decides; none: denied.
    pub rules: Vec<Rule>,
}

/// What a sender hears of a denial.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDeny {
    /// Nothing.
    #[default]
    Drop,
    /// A TCP reset, or ICMP "administratively prohibited".
    Reject,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Where it stands in the document, from 1.
    pub line: u32,
    /// The other end: the source of inbound rules, the destination of outbound ones.
    pub other: Selector,
    /// What is carried; empty: everything.
    pub protocols: Vec<ProtocolMatch>,
    /// What is done.
    pub action: Action,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The flow may be.
    Allow,
    /// It may not.
    Deny,
}

/// Whom a rule means.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selector {
    /// Everybody.
    Any,
    /// The instances of a service.
    Service(ServiceId),
    /// The instances of an application.
    Application {
        /// Its tenant.
        tenant: String,
        /// Its name.
        application: String,
    },
    /// Every member of a network, in that network.
    Network(Vni),
    /// The addresses of a prefix.
    Prefix(IpNet),
}

/// A protocol, and which ports of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProtocolMatch {
    /// TCP to these ports; empty: to all.
    Tcp(Vec<PortRange>),
    /// UDP to these ports; empty: to all.
    Udp(Vec<PortRange>),
    /// ICMP and ICMPv6.
    Icmp,
}

/// Ports from `first` to `last`, both included; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

/// What the instances of a service on one host may take together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Most live connections that one of its instances takes part in.
    pub connections: Option<u32>,
    /// Most connections begun in a second, after a burst of as many.
    pub new_connections_per_second: Option<u32>,
}

/// An instance of another host, as that host's record tells: what stands behind an address of its block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// The network.
    pub vni: Vni,
    /// Its address there.
    pub ipv4: Ipv4Addr,
    /// Its address there.
    pub ipv6: Ipv6Addr,
    /// The host that it is attached to; both addresses lie in that host's block.
    pub peer: PeerId,
    /// Its service.
    pub service: ServiceId,
}

impl Member {
    /// Both addresses.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [IpAddr::V4(self.ipv4), IpAddr::V6(self.ipv6)]
    }
}

impl Limits {
    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}/{}", self.tenant, self.application, self.service)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => formatter.write_str("everybody"),
            Self::Service(id) => write!(formatter, "service {id}"),
            Self::Application { tenant, application } => {
                write!(formatter, "application {tenant}/{application}")
            }
            Self::Network(vni) => write!(formatter, "the network with VNI {vni}"),
            Self::Prefix(prefix) => write!(formatter, "{prefix}"),
        }
    }
}

impl fmt::Display for ProtocolMatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, ranges) = match self {
            Self::Tcp(ranges) => ("tcp", ranges.as_slice()),
            Self::Udp(ranges) => ("udp", ranges.as_slice()),
            Self::Icmp => ("icmp", [].as_slice()),
        };
        formatter.write_str(name)?;
        for (range, separator) in ranges
            .iter()
            .zip(std::iter::once(" ").chain(std::iter::repeat(",")))
        {
            write!(formatter, "{separator}{range}")?;
        }
        Ok(())
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return write!(formatter, "{}", self.first);
        }
        write!(formatter, "{}-{}", self.first, self.last)
    }
}
