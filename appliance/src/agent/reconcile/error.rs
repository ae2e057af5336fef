//! What can be contradictory among the inputs of a plan, and what to do about it.

use super::ApplicationKey;
use super::networks::NetworkKey;
use crate::config::application::NetworkName;
use ipnet::Ipv4Net;
use std::fmt;
use tidegate_stack::plan::{HostOrdinal, InstanceIndex, Vni};

/// A contradiction among the inputs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    /// Two networks have one number.
    #[error(
        "{first} and {second} both have VNI {vni}: set {}, or {}", first.setting("vni"), second.setting("vni")
    )]
    SameVni {
        /// One network.
        first: NetworkKey,
        /// The other.
        second: NetworkKey,
        /// The number of both.
        vni: Vni,
    },
    /// Two shared networks have one prefix.
    #[error(
        "{first} and {second} both have the prefix {prefix}: set {}, or {}", first.setting("ipv4-prefix"),
        second.setting("ipv4-prefix")
    )]
    SamePrefix {
        /// One network.
        first: NetworkKey,
        /// The other.
        second: NetworkKey,
        /// The prefix of both.
        prefix: Ipv4Net,
    },
    /// A shared network's prefix isn't one of those that the site has for them.
    #[error(
        "{place}: the shared network {network} has the prefix {prefix}, which isn't in this site's \
         `network.shared-prefix`, {whole}"
    )]
    PrefixOutside {
        /// Where it is set.
        place: String,
        /// The network.
        network: NetworkName,
        /// Its prefix.
        prefix: Ipv4Net,
        /// What shared networks are cut from.
        whole: Ipv4Net,
    },
    /// Two documents say different things about one shared network.
    #[error(
        "{place}: says something else about the shared network {network} than {first}: write the same `vni` and \
         `ipv4-prefix`, or neither, in every document that names it, and apply those together"
    )]
    OtherSettings {
        /// Where one names it.
        place: String,
        /// Where the other does.
        first: String,
        /// The network.
        network: NetworkName,
    },
    /// A rule names an application that no network leads to.
    #[error(
        "{place}: a rule about {other} needs a common shared network: name one in \
         `network.shared-application-network` of both {application} and {other}, or remove the rule"
    )]
    NoCommonNetwork {
        /// Where the rule stands.
        place: String,
        /// Whose it is.
        application: ApplicationKey,
        /// Whom it names.
        other: ApplicationKey,
    },
    /// An attached instance's application or service is no longer described.
    #[error(
        "{application} describes no service `{service}`, but its instance {instance} is attached here: detach it first"
    )]
    InstanceWithoutService {
        /// The application.
        application: ApplicationKey,
        /// The service.
        service: String,
        /// The instance.
        instance: String,
    },
    /// An attached instance's index isn't in the host's block.
    #[error("{application} instance {instance}: this host's block has no address with index {index}")]
    OutsideBlock {
        /// The application.
        application: ApplicationKey,
        /// The instance.
        instance: String,
        /// The index.
        index: InstanceIndex,
    },
    /// A peer's entry and an application's document name different numbers for one network.
    #[error(
        "peer {peer} expects VNI {expected} for {application}, whose network has VNI {vni}: set `network.vni: \
         {expected}` in the application's document, or take `vni` out of the peer's entry"
    )]
    PeerVni {
        /// The peer.
        peer: String,
        /// The application.
        application: ApplicationKey,
        /// What the peer's entry says.
        expected: Vni,
        /// The network's number.
        vni: Vni,
    },
    /// The number that a peer's entry names is another network's.
    #[error(
        "peer {peer} is a member of the network of {application} by VNI {vni}, which is {other} here: set {}, or take \
         {application} out of the peer's entry", other.setting("vni")
    )]
    PeerOtherNetwork {
        /// The peer.
        peer: String,
        /// Whose network its entry names.
        application: ApplicationKey,
        /// Which network has the number.
        other: NetworkKey,
        /// The number.
        vni: Vni,
    },
    /// A peer claims this host's ordinal.
    #[error(
        "peer {peer} has ordinal {ordinal}, which is this host's own: every host of a site needs another one"
    )]
    PeerOrdinal {
        /// The peer.
        peer: String,
        /// The ordinal of both.
        ordinal: HostOrdinal,
    },
    /// A peer was never given a number.
    #[error("peer {peer} has no number yet: restart the agent")]
    PeerWithoutNumber {
        /// The peer.
        peer: String,
    },
}

/// All contradictions of one set of inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlanErrors(pub(crate) Vec<PlanError>);

impl fmt::Display for PlanErrors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                formatter.write_str("\n")?;
            }
            error.fmt(formatter)?;
        }
        Ok(())
    }
}

impl std::error::Error for PlanErrors {}
