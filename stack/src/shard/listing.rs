//! The live flows of a shard, told part by part.

use super::Shard;
use super::from_port::packet_example;
use crate::flow::{Arrival, Flow, Hop};
use crate::snapshot::Policy;
use crate::stats::{FlowEnd, FlowPage, FlowReport};
use crate::time::Instant;

impl Shard {
    /// The live flows of a part of the table: `slots` places from place `from` on. It looks at no more than that, so that
    /// packets needn't wait for long.
    pub fn flows(&self, from: u64, slots: usize, now: Instant) -> FlowPage {
        let policy = self.snapshot.as_ref().map(|snapshot| snapshot.policy().as_ref());
        let (flows, next) = self.flows.page(from, slots);
        let report = |flow: &Flow| self.report_flow(flow, policy, now);
        FlowPage {
            flows: flows
                .filter(|flow| !flow.revoked && flow.expires() > now)
                .map(report)
                .collect(),
            next,
        }
    }

    fn report_flow(&self, flow: &Flow, policy: Option<&Policy>, now: Instant) -> FlowReport {
        let endpoints = flow.key.endpoints(flow.opener);
        // A port's place holds in the policy of the verdict only.
        let port = |slot| {
            let policy = policy.filter(|policy| policy.epoch() == flow.epoch)?;
            Some(policy.port(slot)?.id)
        };
        FlowReport {
            vni: flow.key.vni(),
            packet: packet_example(&endpoints),
            origin: match flow.origin {
                Arrival::Port(port) => FlowEnd::Port(Some(port)),
                Arrival::Tunnel(peer) => FlowEnd::Peer(peer),
            },
            target: match flow.hops[0] {
                Hop::Port(slot) => FlowEnd::Port(port(slot).or_else(|| {
                    let policy = policy?;
                    let slot = policy.network(flow.key.vni())?.instance(endpoints.destination)?;
                    Some(policy.port(slot)?.id)
                })),
                Hop::Tunnel(peer) => FlowEnd::Peer(peer),
            },
            state: flow.tracking.state(),
            packets: flow.packets,
            bytes: flow.bytes,
            idle_ms: u64::try_from(now.saturating_since(flow.seen).as_millis()).unwrap_or(u64::MAX),
            shard: self.id.0,
        }
    }
}
