//! Which instances are asked whether they are ready, from where, and how.

use crate::plan::{Instance, Mtu, Plan, PortId, Readiness};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// The instances of this host that are asked, by their ports.
#[derive(Default, PartialEq, Eq)]
pub struct Checks {
    checks: Vec<Arc<Check>>,
}

/// One instance that is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Its port.
    pub port: PortId,
    /// The largest packet that the port takes.
    pub mtu: Mtu,
    /// The appliance's address in its application's network: who asks.
    pub service: Ipv4Addr,
    /// Its own address there: who is asked.
    pub instance: Ipv4Addr,
    /// What it is asked, and how often.
    pub readiness: Readiness,
}

impl Checks {
    /// Compiles what a plan says about readiness.
    pub fn compile(plan: &Plan) -> Self {
        let checks = plan.instances.iter().filter_map(|instance| check(plan, instance));
        let mut checks: Vec<_> = checks.map(Arc::new).collect();
        checks.sort_by_key(|check| check.port);
        Self { checks }
    }

    /// All of them, by their ports.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Check>> {
        self.checks.iter()
    }

    /// What is asked behind a port.
    pub fn get(&self, port: PortId) -> Option<&Arc<Check>> {
        let place = self.checks.binary_search_by_key(&port, |check| check.port).ok()?;
        self.checks.get(place)
    }
}

/// `None` when nothing is to be asked: an instance's first network is its application's own.
fn check(plan: &Plan, instance: &Instance) -> Option<Check> {
    let membership = instance.memberships.first()?;
    Some(Check {
        port: instance.port,
        mtu: instance.mtu,
        service: plan.network(membership.vni)?.service_ipv4(),
        instance: membership.ipv4,
        readiness: instance.readiness.clone()?,
    })
}
