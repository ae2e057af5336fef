//! The topology: a lab's segments, hosts, plain nodes, and which instance runs where.

use super::Problems;
use super::application::{self, ApplicationDocument};
use super::decode::{Report, Unique, Value};
use super::values::{
    address, device, ipv4_prefix, ipv6_prefix, label, label_fault, number16, ordinal, path, station_address,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
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

/// A lab.
#[derive(Clone, Debug, PartialEq)]
pub struct Topology {
    /// Its name: what its namespaces and its folder are called.
    pub lab: String,
    /// Its layer 2 networks, by name.
    pub segments: BTreeMap<String, Segment>,
    /// Its tidegate hosts, by name.
    pub hosts: BTreeMap<String, LabHost>,
    /// Its plain namespaces, by name.
    pub nodes: BTreeMap<String, LabNode>,
    /// Files of the application documents that every host gets.
    pub applications: Vec<PathBuf>,
    /// The instances, in the order in which they are attached and numbered.
    pub instances: Vec<Placement>,
}

/// A layer 2 network.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Its IPv4 prefix.
    pub ipv4: Option<Ipv4Net>,
    /// Its IPv6 prefix.
    pub ipv6: Option<Ipv6Net>,
    /// The largest IP packet it carries.
    pub mtu: u16,
}

/// A host of ours.
#[derive(Clone, Debug, PartialEq)]
pub struct LabHost {
    /// Its number in the site.
    pub ordinal: HostOrdinal,
    /// Its interfaces; at least one.
    pub interfaces: Vec<Interface>,
    /// What is [merged](merge) over the host document that the lab writes; its paths are absolute.
    pub document: Option<Json>,
}

/// A namespace without tidegate.
#[derive(Clone, Debug, PartialEq)]
pub struct LabNode {
    /// Its interfaces; at least one.
    pub interfaces: Vec<Interface>,
    /// Where it sends what isn't on its segments.
    pub default_route: Option<IpAddr>,
    /// Commands that run in it until the lab ends: program and arguments.
    pub exec: Vec<Vec<String>>,
}

/// A place on a segment.
#[derive(Clone, Debug, PartialEq)]
pub struct Interface {
    /// The segment.
    pub segment: String,
    /// Its addresses there, inside the segment's prefixes.
    pub addresses: Vec<IpAddr>,
    /// The device's name; `None`: `eth<i>`.
    pub device: Option<String>,
}

/// An instance to be attached.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// The application's tenant.
    pub tenant: String,
    /// The application.
    pub application: String,
    /// The service.
    pub service: String,
    /// The host.
    pub host: String,
}

/// Reads a topology, and the application documents it names, so that its instances can be checked against them.
///
/// # Errors
/// All problems of the file, and of the application documents.
pub fn read(file: &Path) -> Result<Topology, Problems> {
    let report = Report::new(file);
    let root = report.read().and_then(|text| report.only_document(&text));
    let decoded = root.and_then(|root| topology(&Value::root(&root, &report)));
    report.finish(decoded)
}

/// Lays `over` over `base` as RFC 7396 says: groups are merged key by key, anything else is replaced, and `null`
/// removes.
pub fn merge(base: &mut Json, over: &Json) {
    let Json::Object(over) = over else {
        *base = over.clone();
        return;
    };
    if !base.is_object() {
        *base = Json::Object(serde_json::Map::new());
    }
    let Json::Object(base) = base else { return };
    for (key, value) in over {
        if value.is_null() {
            base.remove(key);
        } else {
            merge(base.entry(key.as_str()).or_insert(Json::Null), value);
        }
    }
}

fn topology(value: &Value<'_>) -> Option<Topology> {
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
        let mut stage = Stage {
            applications: applications.as_ref().map(|read| read.documents.as_slice()),
            hosts: &hosts,
            namespaces: ground.names,
            counts: BTreeMap::new(),
        };
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
    let mut devices = Unique::default();
    let items = value.items()?;
    if items.is_empty() {
        return value.refuse("must have at least one interface");
    }
    let mut decoded = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let interface = interface(item, ground);
        let device = interface.as_ref().and_then(|interface| interface.device.clone());
        devices.claim(item, device.unwrap_or_else(|| format!("eth{index}")));
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
    pub fn prefix_length(&self, address: IpAddr) -> Option<u8> {
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
    if let Some(path) = document.pointer_mut("/cluster/foreign-private-key-file") {
        make_absolute(path, folder);
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

/// The application files of a topology, and what is in them.
struct Applications {
    files: Vec<PathBuf>,
    documents: Vec<ApplicationDocument>,
}

/// `None` when any of the files has problems: then nothing can be said about what refers to them.
fn applications(value: &Value<'_>) -> Option<Applications> {
    let mut names = Unique::default();
    let mut read = Applications {
        files: Vec::new(),
        documents: Vec::new(),
    };
    let mut complete = true;
    for item in value.items()? {
        let Some(file) = path(&item) else {
            complete = false;
            continue;
        };
        match application::read(&file) {
            Ok(documents) => {
                for document in &documents {
                    names.claim(&item, (document.tenant.clone(), document.name.clone()));
                }
                read.documents.extend(documents);
            }
            Err(problems) => {
                item.report().absorb(problems);
                complete = false;
            }
        }
        read.files.push(file);
    }
    complete.then_some(read)
}

/// What instances are placed on.
struct Stage<'a> {
    /// `None` when they can't be told.
    applications: Option<&'a [ApplicationDocument]>,
    hosts: &'a Named<LabHost>,
    namespaces: BTreeSet<String>,
    /// How many instances each service has so far: they are numbered over the whole file.
    counts: BTreeMap<(String, String, String), usize>,
}

fn placement(value: &Value<'_>, stage: &mut Stage<'_>) -> Option<Placement> {
    value.group(|keys| {
        let tenant = keys.optional("tenant", label);
        let application = keys.required("application", |value| {
            let name = label(value)?;
            match stage.applications {
                Some(known) => placed_application(value, &name, tenant.as_deref(), known),
                None => Some(PlacedApplication {
                    tenant: tenant.clone().unwrap_or_default(),
                    name,
                    services: None,
                }),
            }
        });
        let service = keys.required("service", |value| {
            let name = label(value)?;
            let services = application
                .as_ref()
                .and_then(|application| application.services.as_ref());
            match services {
                Some(known) if !known.contains(&name) => {
                    value.refuse_reference("service", &name, known.iter())
                }
                Some(_) | None => Some(name),
            }
        });
        let host = keys.required("host", |value| {
            let name = label(value)?;
            if stage.hosts.contains_key(&name) {
                return Some(name);
            }
            value.refuse_reference("host", &name, stage.hosts.keys())
        });
        let application = application?;
        let placement = Placement {
            tenant: application.tenant,
            application: application.name,
            service: service?,
            host: host?,
        };
        let namespace = stage.namespace(&placement);
        if !stage.namespaces.insert(namespace.clone()) {
            return value.refuse(format!(
                "its namespace would be `{namespace}`, which there is already"
            ));
        }
        Some(placement)
    })
}

impl Stage<'_> {
    fn namespace(&mut self, placement: &Placement) -> String {
        let Placement {
            tenant,
            application,
            service,
            ..
        } = placement.clone();
        let count = self.counts.entry((tenant, application, service)).or_default();
        *count += 1;
        format!("{}-{}-{count}", placement.application, placement.service)
    }
}

struct PlacedApplication {
    tenant: String,
    name: String,
    /// `None` when they can't be told.
    services: Option<Vec<String>>,
}

/// Finds the application that is meant; without a tenant it must be the only one of its name.
fn placed_application(
    value: &Value<'_>,
    name: &str,
    tenant: Option<&str>,
    known: &[ApplicationDocument],
) -> Option<PlacedApplication> {
    let same_name: Vec<_> = known.iter().filter(|document| document.name == name).collect();
    let same_tenant =
        |document: &&&ApplicationDocument| tenant.is_none_or(|tenant| tenant == document.tenant);
    let found: Vec<_> = same_name.iter().filter(same_tenant).collect();
    let tenants = || {
        same_name
            .iter()
            .map(|document| document.tenant.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    match (found.as_slice(), tenant) {
        ([document], _) => Some(PlacedApplication {
            tenant: document.tenant.clone(),
            name: name.to_owned(),
            services: Some(
                document
                    .services
                    .iter()
                    .map(|service| service.name.clone())
                    .collect(),
            ),
        }),
        ([], Some(tenant)) if !same_name.is_empty() => value.refuse_with(
            format!("tenant {tenant} has no application `{name}`"),
            format!("there is one of: {}", tenants()),
        ),
        ([], _) => value.refuse_reference("application", name, known.iter().map(|document| &document.name)),
        (_, _) => value.refuse_with(
            format!("several tenants have an application `{name}`"),
            format!("set `tenant` to one of: {}", tenants()),
        ),
    }
}
