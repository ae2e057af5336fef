//! The topology: a lab's segments, hosts, plain nodes, and which instance runs where.

mod placement;

use super::Problems;
use super::decode::{Unique, Value};
use super::report::Report;
use super::values::{
    address, device, ipv4_prefix, ipv6_prefix, label, label_fault, number16, ordinal, station_address,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use placement::{Stage, applications, placement};
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use tidegate_stack::plan::HostOrdinal;

/// A segment's MTU where the document sets none: Ethernet's.
const DEFAULT_MTU: u16 = 1500;
/// The smallest packet that every IPv4 host takes (RFC 1122 §3.3.2).
const MIN_MTU: u16 = 576;
/// The smallest MTU of a link with IPv6 (RFC 8200 §5).
const MIN_MTU_IPV6: u16 = 1280;

/// Where a host document names files of its author's.
const FILES: [&str; 4] = [
    "/cluster/foreign-private-key-file",
    "/cluster/ca-file",
    "/cluster/certificate-file",
    "/cluster/private-key-file",
];

/// A lab.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Topology {
    /// Its name: what its namespaces and its folder are called.
    pub(crate) lab: String,
    /// Its layer 2 networks, by name.
    pub(crate) segments: BTreeMap<String, Segment>,
    /// Its tidegate hosts, by name.
    pub(crate) hosts: BTreeMap<String, LabHost>,
    /// Its plain namespaces, by name.
    pub(crate) nodes: BTreeMap<String, LabNode>,
    /// Files of the application documents that every host gets.
    pub(crate) applications: Vec<PathBuf>,
    /// The instances, in the order in which they are attached and numbered.
    pub(crate) instances: Vec<Placement>,
}

/// A layer 2 network.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Segment {
    /// Its IPv4 prefix.
    pub ipv4: Option<Ipv4Net>,
    /// Its IPv6 prefix.
    pub ipv6: Option<Ipv6Net>,
    /// The largest IP packet it carries.
    pub(crate) mtu: u16,
}

/// A host of ours.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LabHost {
    /// Its number in the site.
    pub(crate) ordinal: HostOrdinal,
    /// Its interfaces; at least one.
    pub(crate) interfaces: Vec<Interface>,
    /// What is [merged](merge) over the host document that the lab writes; its paths are absolute.
    pub(crate) document: Option<Json>,
}

/// A namespace without tidegate.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LabNode {
    /// Its interfaces; at least one.
    pub(crate) interfaces: Vec<Interface>,
    /// Where it sends what isn't on its segments.
    pub(crate) default_route: Option<IpAddr>,
    /// Commands that run in it until the lab ends: program and arguments.
    pub(crate) exec: Vec<Vec<String>>,
}

/// A place on a segment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Interface {
    /// The segment.
    pub(crate) segment: String,
    /// Its addresses there, inside the segment's prefixes.
    pub(crate) addresses: Vec<IpAddr>,
    /// The device's name; `None`: `eth<i>`.
    pub(crate) device: Option<String>,
}

/// An instance to be attached.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Placement {
    /// The application's tenant.
    pub(crate) tenant: String,
    /// The application.
    pub(crate) application: String,
    /// The service.
    pub(crate) service: String,
    /// The host.
    pub(crate) host: String,
}

/// Reads a topology, and the application documents it names, so that its instances can be checked against them.
///
/// # Errors
/// All problems of the file, and of the application documents.
pub(crate) fn read(file: &Path) -> Result<Topology, Problems> {
    let report = Report::new(file);
    let root = report.read().and_then(|text| report.only_document(&text));
    let decoded = root.and_then(|root| topology(&Value::root(&root, &report)));
    report.finish(decoded)
}

/// Lays `over` over `base`: groups are merged key by key, lists whose entries all have a `name` are joined by it, and
/// anything else is replaced.
pub(crate) fn merge(base: &mut Json, over: &Json) {
    match (base, over) {
        (Json::Object(base), Json::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key.as_str()).or_insert(Json::Null), value);
            }
        }
        (Json::Array(base), Json::Array(over)) if names(base).is_some() && names(over).is_some() => {
            for item in over {
                match base
                    .iter_mut()
                    .find(|known| known.get("name") == item.get("name"))
                {
                    Some(known) => merge(known, item),
                    None => base.push(item.clone()),
                }
            }
        }
        (base, over) => *base = over.clone(),
    }
}

/// The names of a list's entries, if all of them have one.
fn names(list: &[Json]) -> Option<Vec<&Json>> {
    list.iter().map(|item| item.get("name")).collect()
}

pub(super) fn topology(value: &Value<'_>) -> Option<Topology> {
    value.group(|keys| {
        let lab = keys.required("lab", label);
        let segments = keys.required("segments", segments).unwrap_or_default();
        let mut ground = Ground {
            segments: &segments,
            names: BTreeSet::new(),
            addresses: Unique::default(),
        };
        let mut ordinals = Unique::default();
        let hosts = keys
            .required("hosts", |value| {
                stations(value, &mut ground, |value, ground| {
                    host(value, ground, &mut ordinals)
                })
            })
            .unwrap_or_default();
        let nodes = keys
            .optional("nodes", |value| stations(value, &mut ground, node))
            .unwrap_or_default();
        let applications = keys.optional("applications", applications);
        let mut stage = Stage::new(applications.as_ref(), &hosts, ground.names);
        let instances = keys.optional("instances", |value| {
            value.list(|item| placement(item, &mut stage))
        });
        Some(Topology {
            lab: lab?,
            segments: whole(segments)?,
            hosts: whole(hosts)?,
            nodes: whole(nodes)?,
            applications: applications.map(|read| read.files).unwrap_or_default(),
            instances: instances.unwrap_or_default(),
        })
    })
}

/// What stands under a name. `None` where it was refused: the name is known all the same, so that whoever refers to
/// it isn't told that it doesn't exist.
type Named<T> = BTreeMap<String, Option<T>>;

fn whole<T>(named: Named<T>) -> Option<BTreeMap<String, T>> {
    named
        .into_iter()
        .map(|(name, value)| Some((name, value?)))
        .collect()
}

fn named<'a, T>(
    value: &Value<'a>,
    mut decode: impl FnMut(&str, &Value<'a>) -> Option<T>,
) -> Option<Named<T>> {
    let mut decoded = Named::new();
    for (entry, item) in value.named()? {
        if let Some(fault) = label_fault(&entry.key) {
            item.report()
                .add(entry.place, item.path(), &format!("the name {fault}"), None);
        }
        decoded.insert(entry.key.clone(), decode(&entry.key, &item));
    }
    if decoded.is_empty() {
        return value.refuse("must not be empty");
    }
    Some(decoded)
}

fn segments(value: &Value<'_>) -> Option<Named<Segment>> {
    named(value, |_, item| {
        item.group(|keys| {
            let ipv4 = keys.optional("ipv4", ipv4_prefix);
            let ipv6 = keys.value("ipv6");
            let least = if ipv6.is_some() { MIN_MTU_IPV6 } else { MIN_MTU };
            let mtu = keys
                .optional("mtu", number16(least..=u16::MAX))
                .unwrap_or(DEFAULT_MTU);
            if !(keys.has("ipv4") || ipv6.is_some()) {
                return item.refuse_with("has no prefix", "set `ipv4`, `ipv6` or both");
            }
            Some(Segment {
                ipv4,
                ipv6: ipv6.and_then(|ipv6| ipv6_prefix(&ipv6)),
                mtu,
            })
        })
    })
}

/// What hosts and nodes stand on and share.
struct Ground<'a> {
    segments: &'a Named<Segment>,
    /// Of namespaces, without the lab's own name before them.
    names: BTreeSet<String>,
    addresses: Unique<(String, IpAddr)>,
}

fn stations<'a, T>(
    value: &Value<'a>,
    ground: &mut Ground<'_>,
    mut decode: impl FnMut(&Value<'a>, &mut Ground<'_>) -> Option<T>,
) -> Option<Named<T>> {
    named(value, |name, item| {
        if !ground.names.insert(name.to_owned()) {
            return item.refuse("is the name of a host already");
        }
        decode(item, ground)
    })
}

fn host(value: &Value<'_>, ground: &mut Ground<'_>, ordinals: &mut Unique<HostOrdinal>) -> Option<LabHost> {
    value.group(|keys| {
        let ordinal = keys.required("ordinal", |value| ordinals.claim(value, ordinal(value)?));
        let interfaces = keys.required("interfaces", |value| interfaces(value, ground));
        let document = keys.optional("document", host_document);
        Some(LabHost {
            ordinal: ordinal?,
            interfaces: interfaces?,
            document,
        })
    })
}

fn node(value: &Value<'_>, ground: &mut Ground<'_>) -> Option<LabNode> {
    value.group(|keys| {
        let interfaces = keys.required("interfaces", |value| interfaces(value, ground));
        let default_route = keys.optional("default-route", |value| {
            let gateway = address(value)?;
            let interfaces = interfaces.as_ref()?;
            let reached = |interface: &Interface| {
                let segment = ground.segments.get(&interface.segment);
                segment
                    .and_then(Option::as_ref)
                    .is_none_or(|segment| segment.holds(gateway))
            };
            if interfaces.iter().any(reached) {
                Some(gateway)
            } else {
                value.refuse(format!("{gateway} is on none of this node's segments"))
            }
        });
        let exec = keys
            .optional("exec", |value| value.list(command))
            .unwrap_or_default();
        Some(LabNode {
            interfaces: interfaces?,
            default_route,
            exec,
        })
    })
}

fn command(value: &Value<'_>) -> Option<Vec<String>> {
    let words = value.list(|word| word.word().map(str::to_owned))?;
    if words.is_empty() {
        return value.refuse_with("must name a program", "such as `[ sleep, 60 ]`");
    }
    Some(words)
}

fn interfaces(value: &Value<'_>, ground: &mut Ground<'_>) -> Option<Vec<Interface>> {
    let items = value.items()?;
    if items.is_empty() {
        return value.refuse("must have at least one interface");
    }
    let mut devices = BTreeSet::new();
    let mut decoded = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let interface = interface(item, ground);
        let device = interface.as_ref().and_then(|interface| interface.device.clone());
        let device = device.unwrap_or_else(|| format!("eth{index}"));
        if devices.contains(&device) {
            item.report_here(format!("its device would be `{device}`, which there is already"));
        }
        devices.insert(device);
        decoded.extend(interface);
    }
    Some(decoded)
}

fn interface(value: &Value<'_>, ground: &mut Ground<'_>) -> Option<Interface> {
    value.group(|keys| {
        let segment = keys.required("segment", |value| {
            let name = value.text()?;
            if ground.segments.contains_key(name) {
                return Some(name.to_owned());
            }
            value.refuse_reference("segment", name, ground.segments.keys())
        });
        let addresses = keys.optional("addresses", |value| {
            let name = segment.clone()?;
            let prefixes = ground.segments.get(&name).and_then(Option::as_ref);
            value.list(|item| {
                let address = station_address(item)?;
                if prefixes.is_some_and(|segment| !segment.holds(address)) {
                    return item.refuse(format!("{address} is in none of segment {name}'s prefixes"));
                }
                ground.addresses.claim(item, (name.clone(), address))?;
                Some(address)
            })
        });
        let device = keys.optional("device", device);
        Some(Interface {
            segment: segment?,
            addresses: addresses.unwrap_or_default(),
            device,
        })
    })
}

impl Segment {
    fn holds(&self, address: IpAddr) -> bool {
        let ipv4 = self
            .ipv4
            .is_some_and(|prefix| IpNet::V4(prefix).contains(&address));
        ipv4 || self
            .ipv6
            .is_some_and(|prefix| IpNet::V6(prefix).contains(&address))
    }

    /// The length of the prefix that `address` lies in, if it is on this segment.
    pub(crate) fn prefix_length(&self, address: IpAddr) -> Option<u8> {
        let prefixes = [self.ipv4.map(IpNet::V4), self.ipv6.map(IpNet::V6)];
        let prefix = prefixes
            .into_iter()
            .flatten()
            .find(|prefix| prefix.contains(&address))?;
        Some(prefix.prefix_len())
    }
}

/// Checks what is there of a host document, here where its author finds it, and makes its paths absolute: the lab
/// writes the whole document to another folder.
fn host_document(value: &Value<'_>) -> Option<Json> {
    super::host::host(&value.partial());
    let mut document = value.node().to_json();
    let folder = value.report().folder();
    for file in FILES {
        if let Some(path) = document.pointer_mut(file) {
            make_absolute(path, folder);
        }
    }
    let peers = document
        .pointer_mut("/cluster/peers")
        .and_then(Json::as_array_mut);
    for peer in peers.into_iter().flatten() {
        if let Some(path) = peer.pointer_mut("/preshared-key-file") {
            make_absolute(path, folder);
        }
    }
    Some(document)
}

fn make_absolute(path: &mut Json, folder: &Path) {
    let absolute = path
        .as_str()
        .and_then(|text| std::path::absolute(folder.join(text)).ok());
    if let Some(absolute) = absolute.as_deref().and_then(Path::to_str) {
        *path = Json::from(absolute);
    }
}
