//! Where flows are counted: with a network, and with the services of this host that have limits.

use super::policy::Policy;
use crate::flow::{Arrival, Hop, LimitSlot, Owners, Quotas};
use crate::plan::{Limits, Plan, ServiceId, Vni};
use std::collections::{BTreeMap, BTreeSet};

/// The services with limits, and their places among the counters.
#[derive(Default)]
pub(super) struct Limited {
    services: BTreeMap<ServiceId, (LimitSlot, Limits)>,
    /// The place of the service of each port, in the order of the ports.
    ports: Vec<Option<LimitSlot>>,
}

impl Limited {
    /// Gives every service with limits the place that it had before, or one that nobody has.
    pub(super) fn compile(plan: &Plan, previous: Option<&Self>) -> Self {
        let limited = || {
            plan.services
                .iter()
                .filter(|service| !service.limits.is_unlimited())
        };
        let before = |id: &ServiceId| previous.and_then(|previous| Some(previous.services.get(id)?.0));
        let taken: BTreeSet<LimitSlot> = limited().filter_map(|service| before(&service.id)).collect();
        let mut free = (0..Quotas::SLOTS)
            .map(LimitSlot::at)
            .filter(|slot| !taken.contains(slot));
        let mut services = BTreeMap::new();
        for service in limited() {
            let slot = before(&service.id)
                .or_else(|| free.next())
                .unwrap_or_else(|| LimitSlot::at(Quotas::SLOTS));
            services.insert(service.id.clone(), (slot, service.limits));
        }
        let ports = plan
            .instances
            .iter()
            .map(|instance| Some(services.get(&instance.service_id())?.0))
            .collect();
        Self { services, ports }
    }
}

impl Policy {
    /// Where a flow is counted that begins at `origin` and goes to `target`: with the network that its opener's
    /// application owns (on a shared network many would pay for one otherwise), and when the opener isn't here, with its
    /// own.
    pub fn owners(&self, vni: Vni, origin: Arrival, target: Hop) -> Owners {
        let opener = match origin {
            Arrival::Port(port) => self.port_slot(port),
            Arrival::Tunnel(_) => None,
        };
        let own = opener.and_then(|slot| Some(self.port(slot)?.memberships.first()?.vni));
        let network = self.network(own.unwrap_or(vni));
        let target = match target {
            Hop::Port(slot) => Some(slot),
            Hop::Tunnel(_) => None,
        };
        let service = |slot: Option<super::PortSlot>| *self.limited.ports.get(slot?.0 as usize)?;
        let (first, second) = (service(opener), service(target));
        Owners {
            network: network.map(|network| network.quota).unwrap_or_default(),
            services: [first, second.filter(|_| second != first)],
        }
    }

    /// Tells the counters what services may have. Every shard does, and all say the same.
    pub fn limit(&self, quotas: &Quotas) {
        for (slot, limits) in self.limited.services.values() {
            quotas.limit(*slot, limits);
        }
    }
}
