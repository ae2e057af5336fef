//! Who may ask for which names: a view for each port, by its memberships and never by an address.
//!
//! A port sees its application's names with the addresses of the application's own network, and those of the other
//! applications in each shared network it is in, with the addresses there. Any other name inside doesn't exist for it.

use super::zone::{Node, Zone};
use crate::plan::{Instance, NetworkNames, Plan, PortId, Vni};
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use std::sync::Arc;

type Map<K, V> = HashMap<K, V, FixedState>;

/// The names of all networks, and who sees which.
pub struct Names {
    zones: Map<Vni, Arc<Zone>>,
    views: Map<PortId, View>,
    /// What the views are compiled from, to compare.
    ports: Vec<(PortId, Vec<Vni>)>,
}

/// What one port may ask for: its networks, the application's own first.
#[derive(Clone)]
pub struct View {
    zones: Arc<[Arc<Zone>]>,
}

impl Names {
    /// Compiles the names of a plan. Networks whose names are those of `previous` aren't compiled again.
    pub fn compile(plan: &Plan, previous: Option<&Self>) -> Self {
        let named = by_network(plan);
        let mut zones: Map<Vni, Arc<Zone>> = Map::default();
        for network in &plan.networks {
            let names = named.get(&network.vni).copied();
            let former = previous.and_then(|previous| previous.zones.get(&network.vni));
            let zone = match former {
                Some(zone) if zone.is_compiled_from(network, names) => Arc::clone(zone),
                _ => Arc::new(Zone::compile(network, names)),
            };
            zones.insert(network.vni, zone);
        }
        let ports: Vec<_> = plan.instances.iter().map(memberships).collect();
        let mut alike: Map<Vec<Vni>, View> = Map::default();
        let view_of = |(port, vnis): &(PortId, Vec<Vni>)| {
            let view = alike.entry(vnis.clone()).or_insert_with(|| View {
                zones: vnis.iter().filter_map(|vni| zones.get(vni)).cloned().collect(),
            });
            (*port, view.clone())
        };
        let views = ports.iter().map(view_of).collect();
        Self { zones, views, ports }
    }

    /// Whether a plan says the same about names.
    pub fn is_compiled_from(&self, plan: &Plan) -> bool {
        let named = by_network(plan);
        self.zones.len() == plan.networks.len()
            && plan.networks.iter().all(|network| {
                let zone = self.zones.get(&network.vni);
                zone.is_some_and(|zone| zone.is_compiled_from(network, named.get(&network.vni).copied()))
            })
            && self.ports.len() == plan.instances.len()
            && self
                .ports
                .iter()
                .zip(&plan.instances)
                .all(|((port, vnis), instance)| {
                    let now = instance.memberships.iter().map(|membership| &membership.vni);
                    *port == instance.port && vnis.iter().eq(now)
                })
    }

    /// What a port sees.
    pub fn view(&self, port: PortId) -> Option<&View> {
        self.views.get(&port)
    }
}

impl View {
    /// What stands at a name; `None` when it doesn't exist, or isn't inside. An empty name gives way to one of the
    /// further networks at which something stands.
    pub fn find(&self, name: &[u8]) -> Option<&Node> {
        let mut found = None;
        for zone in self.zones.iter() {
            match zone.find(name) {
                Some(node) if !node.is_empty() => return Some(node),
                Some(node) => found = found.or(Some(node)),
                None => {}
            }
        }
        found
    }

    /// Whether what is asked by it is told one by one.
    pub fn is_logged(&self) -> bool {
        self.zones.first().is_some_and(|own| own.is_logged())
    }

    /// How many labels the apex of the zone has that a name of `labels` labels is in; `None`: the name isn't inside.
    pub fn apex_of(&self, name: &[u8], labels: u8) -> Option<u8> {
        let apexes = self.zones.iter().filter_map(|zone| zone.apex_of(name, labels));
        apexes.max()
    }
}

fn by_network(plan: &Plan) -> Map<Vni, &NetworkNames> {
    plan.names.iter().map(|names| (names.vni, names)).collect()
}

fn memberships(instance: &Instance) -> (PortId, Vec<Vni>) {
    let vnis = instance.memberships.iter().map(|membership| membership.vni);
    (instance.port, vnis.collect())
}
