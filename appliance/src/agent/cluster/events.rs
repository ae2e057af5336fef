//! What happens in a site that people may want to know: the last of it, and the log.

use super::record::MAX_RECORD;
use super::replica::{Conflict, MAX_HOSTS, ReplicaEvent};
use serde::Serialize;
use std::collections::VecDeque;
use std::fmt;
use std::net::IpAddr;
use std::time::SystemTime;

/// Events that are kept; older ones are counted and forgotten.
const MAX_EVENTS: usize = 256;

/// Something that happened, once or several times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct SiteEvent {
    /// When it happened last, by this host's clock.
    pub(crate) at: SystemTime,
    /// How often it happened.
    pub(crate) times: u64,
    /// What happened.
    pub(crate) kind: SiteEventKind,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SiteEventKind {
    /// A link was made.
    Connected { host_id: String, address: IpAddr },
    /// A link ended.
    Disconnected { host_id: String, reason: String },
    /// A configured host doesn't answer.
    Unreachable {
        host_id: String,
        address: IpAddr,
        reason: String,
    },
    /// Somebody's certificate is no good here. Whom it claims to be of isn't proven.
    CertificateRefused {
        claimed: Option<String>,
        address: IpAddr,
        fault: CertificateFault,
    },
    /// Somebody has no use for this host's certificate: a host that was dialled, or whoever dialled this one.
    RefusedThere {
        host_id: Option<String>,
        address: IpAddr,
        reason: String,
    },
    /// Somebody began a handshake, and didn't come far enough to show a certificate.
    HandshakeFailed { address: IpAddr, reason: String },
    /// Somebody begins more handshakes than are carried out at a time.
    TooManyHandshakes { address: IpAddr },
    /// A host said what can't be; its link was ended.
    IllegalMessage { host_id: String, reason: String },
    /// A host takes its messages too slowly; its link was ended.
    Congested { host_id: String },
    /// A host is alive.
    Appeared { host_id: String },
    /// A host is silent.
    Withdrawn { host_id: String },
    /// A host's record is too large to be taken.
    RecordTooLarge { host_id: String, size: usize },
    /// There are more hosts than a site can have.
    SiteFull { host_id: String },
    /// Others remembered more of this host's starts than itself.
    Overtaken { boot: u64 },
    /// Something is wrong between hosts.
    Conflict { host_id: String, reason: String },
    /// The certificate files changed, and are in use.
    CertificateRenewed,
    /// The certificate files changed, and are no use.
    CertificateUnusable { reason: String },
}

/// What is wrong with a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CertificateFault {
    /// There is none.
    #[error("it has no certificate")]
    Missing,
    /// Its time is over.
    #[error("its certificate has expired")]
    Expired,
    /// Its time hasn't come.
    #[error("its certificate isn't valid yet: is the clock right, here and there?")]
    NotYetValid,
    /// Somebody else signed it, or nobody.
    #[error("its certificate isn't of this site's authority")]
    ForeignAuthority,
    /// It is for another site.
    #[error("its certificate is of site {site}")]
    OtherSite {
        /// That site.
        site: String,
    },
    /// It is for another host than is expected there.
    #[error("its certificate is of host {host_id}")]
    OtherHost {
        /// That host.
        host_id: String,
    },
    /// It has this host's own name.
    #[error("its certificate has this host's own name: no two hosts may share one")]
    OwnName,
    /// It names nobody.
    #[error(
        "its certificate names no host: it needs a subject alternative name `URI:tidegate://SITE/HOST-ID`"
    )]
    NoName,
    /// It is broken in another way.
    #[error("its certificate is no use: {reason}")]
    Unusable {
        /// Which.
        reason: String,
    },
}

impl fmt::Display for SiteEventKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected { host_id, address } => write!(formatter, "{host_id} is connected ({address})"),
            Self::Disconnected { host_id, reason } => {
                write!(formatter, "{host_id} is disconnected: {reason}")
            }
            Self::Unreachable {
                host_id,
                address,
                reason,
            } => write!(formatter, "{host_id} can't be reached at {address}: {reason}"),
            Self::CertificateRefused {
                claimed: Some(host_id),
                address,
                fault,
            } => write!(
                formatter,
                "{address}, which claims to be {host_id}, was refused: {fault}"
            ),
            Self::CertificateRefused {
                claimed: None,
                address,
                fault,
            } => write!(formatter, "{address} was refused: {fault}"),
            Self::RefusedThere {
                host_id: Some(host_id),
                address,
                reason,
            } => write!(
                formatter,
                "{host_id} ({address}) refuses this host's certificate: {reason}"
            ),
            Self::RefusedThere {
                host_id: None,
                address,
                reason,
            } => write!(formatter, "{address} refuses this host's certificate: {reason}"),
            Self::HandshakeFailed { address, reason } => {
                write!(formatter, "a handshake with {address} failed: {reason}")
            }
            Self::TooManyHandshakes { address } => {
                write!(
                    formatter,
                    "{address} begins too many handshakes; some were ignored"
                )
            }
            Self::IllegalMessage { host_id, reason } => {
                write!(formatter, "{host_id} was disconnected, because {reason}")
            }
            Self::Congested { host_id } => write!(
                formatter,
                "{host_id} was disconnected, because it takes its messages too slowly"
            ),
            Self::Appeared { host_id } => write!(formatter, "{host_id} is alive"),
            Self::Withdrawn { host_id } => {
                write!(formatter, "{host_id} is silent, and what it has was withdrawn")
            }
            Self::RecordTooLarge { host_id, size } => write!(
                formatter,
                "the record of {host_id} has {size} bytes and was refused; {MAX_RECORD} are the most"
            ),
            Self::SiteFull { host_id } => write!(
                formatter,
                "{host_id} was refused: a site has at most {MAX_HOSTS} hosts"
            ),
            Self::Overtaken { boot } => write!(
                formatter,
                "others know of start {boot} of this host, which itself doesn't: its state was lost, or another host \
                 has the same name"
            ),
            Self::Conflict { host_id, reason } => write!(formatter, "{host_id}: {reason}"),
            Self::CertificateRenewed => {
                formatter.write_str("the certificate files changed and are in use for new links")
            }
            Self::CertificateUnusable { reason } => write!(
                formatter,
                "the certificate files changed and are no use, so those before stay in use: {reason}"
            ),
        }
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SameOrdinal { ordinal, other } => write!(
                formatter,
                "it has ordinal {ordinal}, and so has {other}: change `ordinal` in the host document of one of them"
            ),
            Self::NetworkDiffers => formatter.write_str(
                "its address plan isn't this host's: `network` must say the same in all host documents of a site",
            ),
        }
    }
}

impl From<ReplicaEvent> for SiteEventKind {
    fn from(event: ReplicaEvent) -> Self {
        match event {
            ReplicaEvent::Appeared { host_id } => Self::Appeared { host_id },
            ReplicaEvent::Withdrawn { host_id } => Self::Withdrawn { host_id },
            ReplicaEvent::TooLarge { host_id, size } => Self::RecordTooLarge { host_id, size },
            ReplicaEvent::SiteFull { host_id } => Self::SiteFull { host_id },
            ReplicaEvent::Overtaken { boot } => Self::Overtaken { boot },
            ReplicaEvent::Conflict { host_id, conflict } => Self::Conflict {
                host_id,
                reason: conflict.to_string(),
            },
        }
    }
}

impl SiteEventKind {
    /// Whether it belongs to everyday life.
    fn is_routine(&self) -> bool {
        matches!(
            self,
            Self::Connected { .. }
                | Self::Disconnected { .. }
                | Self::Appeared { .. }
                | Self::CertificateRenewed
        )
    }
}

/// The last events.
#[derive(Debug, Default)]
pub(super) struct Events {
    pub(super) kept: VecDeque<SiteEvent>,
    pub(super) lost: u64,
}

impl Events {
    /// Keeps an event and logs it; whether it is a new one. One that is there already is counted and moved to the end,
    /// and logged again each time its count has doubled.
    pub(super) fn add(&mut self, kind: SiteEventKind, at: SystemTime) -> bool {
        let known = self.kept.iter().position(|event| event.kind == kind);
        let times = known
            .and_then(|position| self.kept.remove(position))
            .map_or(0, |event| event.times)
            + 1;
        if kind.is_routine() {
            tracing::info!(times, "{kind}");
        } else if times.is_power_of_two() {
            tracing::warn!(times, "{kind}");
        }
        if self.kept.len() == MAX_EVENTS {
            self.kept.pop_front();
            self.lost += 1;
        }
        let routine = kind.is_routine();
        self.kept.push_back(SiteEvent { at, times, kind });
        times == 1 || routine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_bounded_and_repeated_ones_are_counted() {
        let mut events = Events::default();
        for number in 0..300_u64 {
            let kind = SiteEventKind::Overtaken { boot: number };
            assert!(events.add(kind, SystemTime::UNIX_EPOCH));
        }
        assert_eq!((events.kept.len(), events.lost), (MAX_EVENTS, 44));
        assert!(!events.add(SiteEventKind::Overtaken { boot: 100 }, SystemTime::UNIX_EPOCH));
        assert_eq!((events.kept.len(), events.lost), (MAX_EVENTS, 44));
        assert_eq!(events.kept.back().map(|event| event.times), Some(2));
    }
}
