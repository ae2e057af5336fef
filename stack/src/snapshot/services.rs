//! Who is who: every service and application that a plan names, by a number.

use super::rules::RuleList;
use crate::plan::{Limits, Network, NetworkKind, Plan, Selector, ServiceId};
use foldhash::fast::FixedState;
use hashbrown::HashMap;

type Map<K, V> = HashMap<K, V, FixedState>;

/// A service's place in a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceSlot(pub u32);

/// An application's place in a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ApplicationSlot(u32);

/// A service.
pub struct ServiceEntry {
    /// Which one.
    pub id: ServiceId,
    /// What its instances on this host may take.
    pub limits: Limits,
    pub(super) application: ApplicationSlot,
    /// What the plan says about it, by its place there.
    pub(super) described: Option<usize>,
    pub(super) inbound: Option<RuleList>,
    pub(super) outbound: Option<RuleList>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Services {
    entries: Vec<ServiceEntry>,
    slots: Map<ServiceId, ServiceSlot>,
    applications: Map<(String, String), ApplicationSlot>,
}

impl Services {
    /// Everybody whom a plan names, with compiled rules.
    pub(super) fn compile(plan: &Plan) -> Self {
        let mut services = Self::default();
        for instance in &plan.instances {
            services.name(&instance.service_id());
        }
        for member in &plan.members {
            services.name(&member.service);
        }
        for service in &plan.services {
            services.name(&service.id);
            let lists = service.inbound.iter().chain(&service.outbound);
            for rule in lists.flat_map(|access| &access.rules) {
                match &rule.other {
                    Selector::Service(id) => {
                        services.name(id);
                    }
                    Selector::Application { tenant, application } => {
                        services.name_application(tenant, application);
                    }
                    Selector::Any | Selector::Network(_) | Selector::Prefix(_) => {}
                }
            }
        }
        let of_application = |network: &&Network| network.kind == NetworkKind::Application;
        for network in plan.networks.iter().filter(of_application) {
            services.name_application(&network.tenant, &network.name);
        }
        for (index, service) in plan.services.iter().enumerate() {
            let inbound = service
                .inbound
                .as_ref()
                .map(|list| RuleList::compile(list, &services));
            let outbound = service
                .outbound
                .as_ref()
                .map(|list| RuleList::compile(list, &services));
            let slot = services.slot(&service.id);
            if let Some(entry) = slot.and_then(|slot| services.entries.get_mut(slot.0 as usize))
                && entry.described.is_none()
            {
                entry.limits = service.limits;
                entry.described = Some(index);
                entry.inbound = inbound;
                entry.outbound = outbound;
            }
        }
        services
    }

    /// A service's place.
    pub(super) fn slot(&self, id: &ServiceId) -> Option<ServiceSlot> {
        self.slots.get(id).copied()
    }

    /// An application's place.
    pub(super) fn application_slot(&self, tenant: &str, application: &str) -> Option<ApplicationSlot> {
        self.applications
            .get(&(tenant.into(), application.into()))
            .copied()
    }

    /// The service at a place.
    pub(super) fn get(&self, slot: ServiceSlot) -> Option<&ServiceEntry> {
        self.entries.get(slot.0 as usize)
    }

    /// All of them, by place.
    pub(super) fn iter(&self) -> impl Iterator<Item = &ServiceEntry> {
        self.entries.iter()
    }

    fn name(&mut self, id: &ServiceId) -> ServiceSlot {
        if let Some(slot) = self.slots.get(id) {
            return *slot;
        }
        let application = self.name_application(&id.tenant, &id.application);
        let slot = ServiceSlot(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
        self.entries.push(ServiceEntry {
            id: id.clone(),
            limits: Limits::default(),
            application,
            described: None,
            inbound: None,
            outbound: None,
        });
        self.slots.insert(id.clone(), slot);
        slot
    }

    fn name_application(&mut self, tenant: &str, application: &str) -> ApplicationSlot {
        let next = ApplicationSlot(u32::try_from(self.applications.len()).unwrap_or(u32::MAX));
        *self
            .applications
            .entry((tenant.into(), application.into()))
            .or_insert(next)
    }
}
