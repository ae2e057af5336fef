//! The source guard: what a port may send at all, before anybody is asked whether it may reach whom it names.

use super::explain::{Explanation, Step};
use super::policy::{MemberEntry, Policy, PortEntry};
use crate::drop::DropReason;
use crate::flow::{Arrival, Verdict};
use crate::plan::PortId;
use crate::wire::Endpoints;
use std::net::IpAddr;

impl PortEntry {
    /// The network that a packet of this port is in, when the port may send it at all: only from its own address there.
    ///
    /// # Errors
    /// The reason that the packet is dropped for.
    pub fn admit(&self, endpoints: &Endpoints) -> Result<&MemberEntry, DropReason> {
        if is_martian(endpoints.source) {
            return Err(DropReason::SourceMartian);
        }
        if is_group(endpoints.destination) {
            return Err(DropReason::Multicast);
        }
        self.network_of(endpoints)
            .filter(|member| member.owns(endpoints.source))
            .ok_or(DropReason::SourceNotOwn)
    }
}

impl Policy {
    /// What would become of a packet of a port: the guard, then the judge, with every step.
    pub fn explain_from_port(&self, port: PortId, endpoints: &Endpoints) -> Explanation {
        let Some(entry) = self.port_slot(port).and_then(|slot| self.port(slot)) else {
            return denied(DropReason::UnknownPort, endpoints);
        };
        match entry.admit(endpoints) {
            Ok(member) => self.explain(member.vni, endpoints, Arrival::Port(port)),
            Err(reason) => denied(reason, endpoints),
        }
    }
}

/// What the guard says, told as a step.
fn denied(reason: DropReason, endpoints: &Endpoints) -> Explanation {
    let (source, destination) = (endpoints.source, endpoints.destination);
    let step = if reason == DropReason::Multicast {
        Step::NoTarget {
            address: destination,
            reason,
        }
    } else {
        Step::SourceRefused {
            address: source,
            reason,
        }
    };
    Explanation {
        verdict: Verdict::Deny(reason),
        steps: vec![step],
    }
}

/// Sources that no host has (RFC 1122 §3.2.1.3, RFC 4291 §2.5, §2.7).
pub(crate) fn is_martian(source: IpAddr) -> bool {
    match source {
        IpAddr::V4(source) => {
            source.is_multicast() || source.is_broadcast() || source.is_loopback() || source.octets()[0] == 0
        }
        IpAddr::V6(source) => source.is_multicast() || source.is_loopback() || source.is_unspecified(),
    }
}

/// Destinations that are many.
pub(crate) fn is_group(destination: IpAddr) -> bool {
    match destination {
        IpAddr::V4(destination) => destination.is_multicast() || destination.is_broadcast(),
        IpAddr::V6(destination) => destination.is_multicast(),
    }
}
