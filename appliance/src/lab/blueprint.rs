//! What a topology document comes to: the names of all namespaces, the wires between them, who is on which segment.
//!
//! Pure: nothing is made here. The document is legal already; what is left to refuse are names that clash.

use super::Error;
use crate::config::topology::{self, Interface, LabHost, Placement, Topology};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use tidegate_stack::plan::HostOrdinal;

/// The tenant of documents that name none.
const DEFAULT_TENANT: &str = "default";

/// A whole lab, ready to be built.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Blueprint {
    /// Its name, the first part of every namespace's name.
    pub(crate) lab: String,
    /// The segments, by name.
    pub(crate) segments: Vec<Segment>,
    /// The hosts, by name.
    pub(crate) hosts: Vec<Host>,
    /// The plain namespaces, by name.
    pub(crate) nodes: Vec<Node>,
    /// The files with application documents.
    pub(crate) documents: Vec<PathBuf>,
    /// The instances, in the order of the topology.
    pub(crate) instances: Vec<Instance>,
}

/// A piece of wire that hosts and nodes share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Its name.
    pub(crate) name: String,
    /// Its MTU, in bytes.
    pub(crate) mtu: u32,
    /// The namespace of its bridge; `None` where a veth pair joins its two members directly.
    pub(crate) bridge: Option<String>,
    /// The interfaces on it.
    pub(crate) ends: Vec<End>,
}

/// One interface on a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// The namespace it is in.
    pub(crate) namespace: String,
    /// Its name there.
    pub(crate) device: String,
    /// Its addresses, each with the segment's prefix length.
    pub(crate) addresses: Vec<IpNet>,
}

/// A host: a namespace with an agent and a datapath.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Host {
    /// Its name in the topology, and its host-id.
    pub(crate) name: String,
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its number in the site.
    pub(crate) ordinal: HostOrdinal,
    /// The interface towards the other hosts.
    pub(crate) interface: Option<String>,
    /// What is merged over the document that the lab writes.
    pub(crate) document: Option<serde_json::Value>,
    /// How the other hosts reach it: the addresses of its interfaces, by segment, in the order of its interfaces.
    pub(crate) addresses: Vec<(String, Vec<IpAddr>)>,
}

/// A plain namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// Its name in the topology.
    pub(crate) name: String,
    /// Its namespace.
    pub(crate) namespace: String,
    /// Where it sends what is not for its segments.
    pub(crate) default_route: Option<IpAddr>,
    /// What runs in it.
    pub(crate) exec: Vec<Vec<String>>,
}

/// An instance, with the number it gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Instance {
    /// Its tenant.
    pub(crate) tenant: String,
    /// Its application.
    pub(crate) application: String,
    /// Its service.
    pub(crate) service: String,
    /// Its number, from 1 over the whole topology.
    pub(crate) number: u32,
    /// Its namespace.
    pub(crate) namespace: String,
    /// The name of the host it is on.
    pub(crate) host: String,
}

impl Instance {
    /// Whether the two are in one application, and so should reach each other.
    pub(crate) fn is_of_the_same_application_as(&self, other: &Self) -> bool {
        (&self.tenant, &self.application) == (&other.tenant, &other.application)
    }

    /// As people call it: `shop/web-1`.
    pub(crate) fn title(&self) -> String {
        format!("{}/{}-{}", self.application, self.service, self.number)
    }
}

impl Blueprint {
    /// Draws the lab of a topology.
    ///
    /// # Errors
    /// [`Error::Refused`] when two parts would be one namespace.
    pub(crate) fn draw(topology: &Topology) -> Result<Self, Error> {
        let nodes = topology.nodes.iter().map(|(name, node)| Node {
            name: name.clone(),
            namespace: format!("{}-{name}", topology.lab),
            default_route: node.default_route,
            exec: node.exec.clone(),
        });
        let blueprint = Self {
            lab: topology.lab.clone(),
            segments: segments(topology),
            hosts: topology
                .hosts
                .iter()
                .map(|(name, host)| draw_host(topology, name, host))
                .collect(),
            nodes: nodes.collect(),
            documents: topology.applications.clone(),
            instances: instances(topology),
        };
        let mut seen = BTreeSet::new();
        for name in blueprint.namespaces() {
            if !seen.insert(name) {
                let text = format!(
                    "lab {}: two parts would both be namespace {name}; rename one",
                    topology.lab
                );
                return Err(Error::Refused(text));
            }
        }
        Ok(blueprint)
    }

    /// The names of all namespaces.
    pub(crate) fn namespaces(&self) -> Vec<&str> {
        let hosts = self.hosts.iter().map(|host| host.namespace.as_str());
        let nodes = self.nodes.iter().map(|node| node.namespace.as_str());
        let bridges = self
            .segments
            .iter()
            .filter_map(|segment| segment.bridge.as_deref());
        let instances = self.instances.iter().map(|instance| instance.namespace.as_str());
        bridges.chain(hosts).chain(nodes).chain(instances).collect()
    }
}

fn draw_host(topology: &Topology, name: &str, host: &LabHost) -> Host {
    let addresses = host
        .interfaces
        .iter()
        .map(|interface| (interface.segment.clone(), interface.addresses.clone()));
    Host {
        name: name.to_owned(),
        namespace: format!("{}-{name}", topology.lab),
        ordinal: host.ordinal,
        interface: host.interfaces.first().map(|interface| device(interface, 0)),
        document: host.document.clone(),
        addresses: addresses.collect(),
    }
}

fn device(interface: &Interface, position: usize) -> String {
    interface
        .device
        .clone()
        .unwrap_or_else(|| format!("eth{position}"))
}

fn segments(topology: &Topology) -> Vec<Segment> {
    let hosts = topology.hosts.iter().map(|(name, host)| (name, &host.interfaces));
    let nodes = topology.nodes.iter().map(|(name, node)| (name, &node.interfaces));
    let mut ends: BTreeMap<&str, Vec<End>> = BTreeMap::new();
    for (owner, interfaces) in hosts.chain(nodes) {
        for (position, interface) in interfaces.iter().enumerate() {
            let Some(segment) = topology.segments.get(&interface.segment) else {
                continue;
            };
            let with_prefix = |address: &IpAddr| IpNet::new(*address, segment.prefix_length(*address)?).ok();
            ends.entry(&interface.segment).or_default().push(End {
                namespace: format!("{}-{owner}", topology.lab),
                device: device(interface, position),
                addresses: interface.addresses.iter().filter_map(with_prefix).collect(),
            });
        }
    }
    let segment = |(name, segment): (&String, &topology::Segment)| {
        let ends = ends.remove(name.as_str()).unwrap_or_default();
        let is_pair = ends.len() == 2;
        Segment {
            name: name.clone(),
            mtu: u32::from(segment.mtu),
            bridge: (!is_pair).then(|| format!("{}-segment-{name}", topology.lab)),
            ends,
        }
    };
    topology.segments.iter().map(segment).collect()
}

fn instances(topology: &Topology) -> Vec<Instance> {
    let mut numbers: BTreeMap<(&str, &str, &str), u32> = BTreeMap::new();
    let mut instances = Vec::new();
    for Placement {
        tenant,
        application,
        service,
        host,
    } in &topology.instances
    {
        let number = numbers
            .entry((tenant, application, service))
            .and_modify(|number| *number += 1)
            .or_insert(1);
        // The tenant is told apart only where leaving it out would make two applications look like one.
        let is_ambiguous = tenant != DEFAULT_TENANT
            && topology
                .instances
                .iter()
                .any(|other| other.application == *application && other.tenant != *tenant);
        let prefix = if is_ambiguous {
            format!("{tenant}-")
        } else {
            String::new()
        };
        instances.push(Instance {
            tenant: tenant.clone(),
            application: application.clone(),
            service: service.clone(),
            number: *number,
            namespace: format!("{}-{prefix}{application}-{service}-{number}", topology.lab),
            host: host.clone(),
        });
    }
    instances
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::topology::LabNode;

    fn interface(segment: &str, addresses: &[&str]) -> Interface {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Interface {
            segment: segment.into(),
            addresses,
            device: None,
        }
    }

    fn placement(tenant: &str, application: &str, service: &str, host: &str) -> Placement {
        Placement {
            tenant: tenant.into(),
            application: application.into(),
            service: service.into(),
            host: host.into(),
        }
    }

    fn two_hosts(instances: Vec<Placement>) -> Topology {
        let segment = topology::Segment {
            ipv4: Some("192.0.2.0/24".parse().unwrap()),
            ipv6: Some("2001:db8:1::/64".parse().unwrap()),
            mtu: 1500,
        };
        let host = |ordinal: u64, address: &str| LabHost {
            ordinal: ordinal.try_into().unwrap(),
            interfaces: vec![interface("lan", &[address])],
            document: None,
        };
        Topology {
            lab: "tg".into(),
            segments: [("lan".to_owned(), segment)].into(),
            hosts: [
                ("h1".to_owned(), host(1, "192.0.2.11")),
                ("h2".to_owned(), host(2, "2001:db8:1::12")),
            ]
            .into(),
            nodes: BTreeMap::new(),
            applications: vec![],
            instances,
        }
    }

    #[test]
    fn two_members_are_joined_directly_and_a_third_makes_it_a_bridge() {
        let mut topology = two_hosts(vec![]);
        let pair = Blueprint::draw(&topology).unwrap();
        assert_eq!(pair.segments[0].bridge, None);
        assert_eq!(
            pair.segments[0].ends[0].addresses,
            ["192.0.2.11/24".parse().unwrap()]
        );
        assert_eq!(
            pair.segments[0].ends[1].addresses,
            ["2001:db8:1::12/64".parse().unwrap()]
        );
        assert_eq!(pair.namespaces(), ["tg-h1", "tg-h2"]);
        let client = LabNode {
            interfaces: vec![interface("lan", &[])],
            default_route: None,
            exec: vec![],
        };
        topology.nodes.insert("client".into(), client);
        let three = Blueprint::draw(&topology).unwrap();
        assert_eq!(three.segments[0].bridge.as_deref(), Some("tg-segment-lan"));
        assert_eq!(
            three.namespaces(),
            ["tg-segment-lan", "tg-h1", "tg-h2", "tg-client"]
        );
    }

    #[test]
    fn instances_are_numbered_over_the_whole_file_per_service() {
        let blueprint = Blueprint::draw(&two_hosts(vec![
            placement("default", "shop", "web", "h1"),
            placement("default", "shop", "db", "h1"),
            placement("default", "shop", "web", "h2"),
        ]))
        .unwrap();
        let names: Vec<_> = blueprint
            .instances
            .iter()
            .map(|instance| instance.namespace.as_str())
            .collect();
        assert_eq!(names, ["tg-shop-web-1", "tg-shop-db-1", "tg-shop-web-2"]);
        assert_eq!(blueprint.instances[2].title(), "shop/web-2");
    }

    #[test]
    fn tenant_is_part_of_the_name_only_where_two_have_such_an_application() {
        let one = Blueprint::draw(&two_hosts(vec![placement("acme", "shop", "web", "h1")])).unwrap();
        assert_eq!(one.instances[0].namespace, "tg-shop-web-1");
        let both = [
            placement("acme", "shop", "web", "h1"),
            placement("default", "shop", "web", "h1"),
        ];
        let both = Blueprint::draw(&two_hosts(both.into())).unwrap();
        assert_eq!(both.instances[0].namespace, "tg-acme-shop-web-1");
        assert_eq!(both.instances[1].namespace, "tg-shop-web-1");
        assert!(!both.instances[0].is_of_the_same_application_as(&both.instances[1]));
    }

    #[test]
    fn names_that_clash_are_refused() {
        let mut topology = two_hosts(vec![placement("default", "shop", "web", "h1")]);
        let host = topology.hosts["h1"].clone();
        topology.hosts.insert("shop-web-1".into(), host);
        let error = Blueprint::draw(&topology).unwrap_err().to_string();
        assert!(error.contains("tg-shop-web-1"), "{error}");
    }
}
