//! What a shard counts: traffic per port, drops per reason with the last example.

use crate::drop::{DropCounters, DropReason};
use crate::plan::{PortId, Vni};
use crate::stats::{DropExample, DropReport, Traffic};
use foldhash::fast::FixedState;
use hashbrown::HashMap;

pub(super) struct Counters {
    ports: HashMap<PortId, Traffic, FixedState>,
    drops: DropCounters,
    /// Those that belong to an application, by its own network.
    applications: HashMap<Vni, DropCounters, FixedState>,
    examples: [Option<DropExample>; DropReason::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            ports: HashMap::default(),
            drops: DropCounters::default(),
            applications: HashMap::default(),
            examples: [None; DropReason::ALL.len()],
        }
    }
}

impl Counters {
    /// Forgets ports that are gone, and begins with those that are new.
    pub(super) fn keep_ports(&mut self, ports: impl Iterator<Item = PortId>) {
        let mut former = std::mem::take(&mut self.ports);
        self.ports = ports
            .map(|port| (port, former.remove(&port).unwrap_or_default()))
            .collect();
    }

    /// Forgets applications that are gone, and begins with those that are new: counting makes no room.
    pub(super) fn keep_applications(&mut self, networks: impl Iterator<Item = Vni>) {
        let mut former = std::mem::take(&mut self.applications);
        self.applications = networks
            .map(|vni| (vni, former.remove(&vni).unwrap_or_default()))
            .collect();
    }

    /// A port's traffic, to count.
    pub(super) fn port(&mut self, port: PortId) -> &mut Traffic {
        self.ports.entry(port).or_default()
    }

    /// Counts a drop of which nothing more is known.
    pub(super) fn drop(&mut self, reason: DropReason) {
        self.drops.count(reason);
    }

    /// Counts drops of which nothing more is known.
    pub(super) fn drop_many(&mut self, reason: DropReason, packets: usize) {
        self.drops.add(reason, packets as u64);
    }

    /// Counts a drop and keeps it as the reason's last example.
    pub(super) fn drop_example(&mut self, reason: DropReason, example: DropExample) {
        self.drops.count(reason);
        let application = example.application.or(example.vni);
        if let Some(counters) = application.and_then(|vni| self.applications.get_mut(&vni)) {
            counters.count(reason);
        }
        if let Some(last) = self.examples.get_mut(reason as usize) {
            *last = Some(example);
        }
    }

    /// Ports and what passed, by number.
    pub(super) fn ports(&self) -> impl Iterator<Item = (PortId, Traffic)> {
        let mut ports: Vec<_> = self
            .ports
            .iter()
            .map(|(port, traffic)| (*port, *traffic))
            .collect();
        ports.sort_by_key(|(port, _)| *port);
        ports.into_iter()
    }

    /// Reasons that were seen, with how often, to whom, and the last example.
    pub(super) fn drops(&self) -> impl Iterator<Item = DropReport> + '_ {
        self.drops.iter().map(|(reason, packets)| {
            let of_application = |(vni, counters): (&Vni, &DropCounters)| match counters.get(reason) {
                0 => None,
                packets => Some((*vni, packets)),
            };
            let mut applications: Vec<_> = self.applications.iter().filter_map(of_application).collect();
            applications.sort_unstable();
            DropReport {
                reason,
                packets,
                applications,
                last: self.examples.get(reason as usize).copied().flatten(),
            }
        })
    }
}
