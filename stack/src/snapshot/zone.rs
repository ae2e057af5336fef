//! One network's names, compiled: what an answer needs, by the name as it stands in a message.
//!
//! Each network is a zone of its own making: `internal.` with the names of its services and instances, and the reverse
//! zones of its prefixes, cut where labels are. Names between a zone's apex and its records exist and are empty
//! (RFC 8020); every other name below an apex doesn't exist.
//!
//! | name | what stands there |
//! |---|---|
//! | `<service>.<application>.internal` | the addresses of its ready instances; its texts |
//! | `<instance>.<application>.internal` | its addresses, when it is ready |
//! | `<service>.<application>.<tenant>.internal`, and likewise | the same; the only names of another tenant |
//! | `_<port>._<protocol>.<service>…` | SRV: the ready instances, and the port |
//! | `<label>.<service>…` | texts with a label, as `_acme-challenge` |
//! | an address, reversed | PTR: the instance's name, ready or not |
//! | `ns.internal` | the service address: the only name server |

use crate::plan::{AnswerOrder, NamedService, Network, NetworkNames, NetworkNumbers, Text};
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use ipnet::{Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The name of the name server of every zone, as it stands in messages.
pub const NAME_SERVER: &[u8] = b"\x02ns\x08internal\0";
/// The last label of names inside.
const INTERNAL: &str = "internal";
/// What a name may have, lengths and root included (RFC 1035 §3.1).
pub const LONGEST_NAME: usize = 255;
const LONGEST_LABEL: usize = 63;

/// A name as it stands in a message (RFC 1035 §3.1): labels with their lengths, the root last, in lower case.
pub type Name = Box<[u8]>;

/// A network's names.
pub struct Zone {
    network: Network,
    names: Vec<NamedService>,
    log: bool,
    nodes: HashMap<Name, Node, FixedState>,
    /// How many labels its apexes have, the longest first.
    depths: Vec<u8>,
    rotating: u16,
}

/// What stands at a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// How many labels the apex of its zone has.
    pub apex: u8,
    /// In which order its addresses and targets are told.
    pub order: AnswerOrder,
    /// Which of the counters of rotation is its own.
    pub rotation: u16,
    /// A records.
    pub ipv4: Vec<Ipv4Addr>,
    /// AAAA records.
    pub ipv6: Vec<Ipv6Addr>,
    /// SRV records.
    pub targets: Vec<Target>,
    /// TXT records, as they stand in messages (RFC 1035 §3.3.14).
    pub texts: Vec<Box<[u8]>>,
    /// PTR records.
    pub pointers: Vec<Name>,
}

/// An instance that an SRV record leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The port.
    pub port: u16,
    /// The instance's name.
    pub name: Name,
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address.
    pub ipv6: Ipv6Addr,
}

impl Node {
    /// Whether nothing stands here: the name exists for those below it, or for instances that aren't ready.
    pub fn is_empty(&self) -> bool {
        self.ipv4.is_empty()
            && self.ipv6.is_empty()
            && self.targets.is_empty()
            && self.texts.is_empty()
            && self.pointers.is_empty()
    }
}

impl Zone {
    /// Compiles the names of a network.
    pub fn compile(network: &Network, names: Option<&NetworkNames>) -> Self {
        let mut zone = Self {
            network: network.clone(),
            names: names.map(|names| names.services.clone()).unwrap_or_default(),
            log: names.is_some_and(|names| names.log),
            nodes: HashMap::default(),
            depths: Vec::new(),
            rotating: 0,
        };
        zone.add_apexes(&network.numbers);
        zone.add_name_server(&network.numbers);
        for service in names.iter().flat_map(|names| &names.services) {
            let (tenant, application) = (service.id.tenant.as_str(), service.id.application.as_str());
            // The first of the two is what addresses are turned into.
            if tenant == network.tenant {
                zone.add_service(service, &[application, INTERNAL], true);
                zone.add_service(service, &[application, tenant, INTERNAL], false);
            } else {
                zone.add_service(service, &[application, tenant, INTERNAL], true);
            }
        }
        zone
    }

    /// Whether a network's names are what this was compiled from.
    pub fn is_compiled_from(&self, network: &Network, names: Option<&NetworkNames>) -> bool {
        self.network == *network
            && self.names == names.map_or(&[][..], |names| &names.services)
            && self.log == names.is_some_and(|names| names.log)
    }

    /// Whether the queries of the instances whose own network it is are told one by one.
    pub fn is_logged(&self) -> bool {
        self.log
    }

    /// What stands at a name.
    pub fn find(&self, name: &[u8]) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// How many labels the apex of the zone has that a name of `labels` labels is in; `None`: it is in none of them.
    pub fn apex_of(&self, name: &[u8], labels: u8) -> Option<u8> {
        let is_apex = |depth: u8| {
            let suffix = labels
                .checked_sub(depth)
                .and_then(|count| skip_labels(name, count));
            suffix
                .and_then(|suffix| self.find(suffix))
                .is_some_and(|node| node.apex == depth)
        };
        self.depths.iter().copied().find(|depth| is_apex(*depth))
    }

    fn add_apexes(&mut self, numbers: &NetworkNumbers) {
        let internal = wire([INTERNAL]).map(|name| (name, 1));
        let prefixes = [apexes_ipv4(numbers.ipv4_prefix), apexes_ipv6(numbers.ipv6_prefix)];
        for (name, depth) in internal.into_iter().chain(prefixes.into_iter().flatten()) {
            self.node(&name, depth);
            if !self.depths.contains(&depth) {
                self.depths.push(depth);
            }
        }
        self.depths.sort_unstable_by(|a, b| b.cmp(a));
    }

    /// The service address answers for every zone, and has a name.
    fn add_name_server(&mut self, numbers: &NetworkNumbers) {
        let (ipv4, ipv6) = (numbers.service_ipv4(), numbers.service_ipv6());
        let node = self.node(NAME_SERVER, 1);
        node.ipv4.push(ipv4);
        node.ipv6.push(ipv6);
        self.add_pointers(NAME_SERVER, ipv4, ipv6);
    }

    /// Adds a service's names below a domain; `named`: by these its instances' addresses are turned into names.
    fn add_service(&mut self, service: &NamedService, domain: &[&str], named: bool) {
        let below = |labels: &[&str]| wire(labels.iter().chain(domain).copied());
        let own = service.id.service.as_str();
        let Some(name) = below(&[own]) else { return };
        let ready = || service.instances.iter().filter(|instance| instance.ready);
        self.rotating = self.rotating.wrapping_add(1);
        let rotation = self.rotating;
        let node = self.node(&name, 1);
        node.order = service.order;
        node.rotation = rotation;
        node.ipv4.extend(ready().map(|instance| instance.ipv4));
        node.ipv6.extend(ready().map(|instance| instance.ipv6));

        for instance in &service.instances {
            let Some(name) = below(&[&instance.name]) else {
                continue;
            };
            let node = self.node(&name, 1);
            if instance.ready {
                node.ipv4.push(instance.ipv4);
                node.ipv6.push(instance.ipv6);
            }
            if named {
                self.add_pointers(&name, instance.ipv4, instance.ipv6);
            }
        }
        for port in &service.ports {
            let label = format!("_{}", port.name);
            let Some(name) = below(&[&label, port.protocol.label(), own]) else {
                continue;
            };
            let targets = ready().filter_map(|instance| {
                Some(Target {
                    port: port.port,
                    name: below(&[&instance.name])?,
                    ipv4: instance.ipv4,
                    ipv6: instance.ipv6,
                })
            });
            let node = self.node(&name, 1);
            node.order = service.order;
            node.rotation = rotation;
            node.targets.extend(targets);
        }
        for text in &service.texts {
            let name = match &text.label {
                Some(label) => below(&[label, own]),
                None => below(&[own]),
            };
            if let (Some(name), Some(strings)) = (name, character_strings(&text.text)) {
                self.node(&name, 1).texts.push(strings);
            }
        }
    }

    fn add_pointers(&mut self, name: &[u8], ipv4: Ipv4Addr, ipv6: Ipv6Addr) {
        let NetworkNumbers {
            ipv4_prefix,
            ipv6_prefix,
            ..
        } = self.network.numbers;
        if ipv4_prefix.contains(&ipv4) {
            let node = self.node(&reversed(ipv4.into()), depth_ipv4(ipv4_prefix));
            node.pointers.push(name.into());
        }
        if ipv6_prefix.contains(&ipv6) {
            let node = self.node(&reversed(ipv6.into()), depth_ipv6(ipv6_prefix));
            node.pointers.push(name.into());
        }
    }

    /// The node at a name of a zone whose apex has `apex` labels; it exists from now on, and so do those above it.
    fn node(&mut self, name: &[u8], apex: u8) -> &mut Node {
        let mut above = labels_of(name).saturating_sub(apex);
        let mut suffix = name;
        while above > 0 {
            above -= 1;
            suffix = skip_labels(suffix, 1).unwrap_or(&[0]);
            self.nodes.entry(suffix.into()).or_default().apex = apex;
        }
        let node = self.nodes.entry(name.into()).or_default();
        node.apex = apex;
        node
    }
}

/// A name of these labels; `None` when it doesn't fit into DNS.
fn wire<'a>(labels: impl IntoIterator<Item = &'a str>) -> Option<Name> {
    let mut name = Vec::with_capacity(LONGEST_NAME);
    for label in labels {
        let length = u8::try_from(label.len()).ok().filter(|length| *length > 0)?;
        if label.len() > LONGEST_LABEL {
            return None;
        }
        name.push(length);
        name.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    name.push(0);
    (name.len() <= LONGEST_NAME).then(|| name.into_boxed_slice())
}

/// What stands behind the first `count` labels of a name; `None` when it has fewer.
pub fn skip_labels(name: &[u8], count: u8) -> Option<&[u8]> {
    let mut rest = name;
    for _ in 0..count {
        let length = usize::from(*rest.first()?);
        if length == 0 {
            return None;
        }
        rest = rest.get(1 + length..)?;
    }
    Some(rest)
}

fn labels_of(name: &[u8]) -> u8 {
    let mut count = 0;
    let mut rest = name;
    while let Some(next) = skip_labels(rest, 1) {
        rest = next;
        count += 1;
    }
    count
}

/// A text as character strings of at most 255 bytes (RFC 1035 §3.3.14); `None` when it is too long.
fn character_strings(text: &str) -> Option<Box<[u8]>> {
    if text.len() > Text::LONGEST {
        return None;
    }
    if text.is_empty() {
        return Some([0].into());
    }
    let mut strings = Vec::with_capacity(text.len() + text.len() / 255 + 1);
    for string in text.as_bytes().chunks(255) {
        strings.push(u8::try_from(string.len()).ok()?);
        strings.extend_from_slice(string);
    }
    Some(strings.into_boxed_slice())
}

/// The name that an address is asked by (RFC 1035 §3.5, RFC 3596 §2.5).
fn reversed(address: IpAddr) -> Name {
    let mut name = Vec::with_capacity(80);
    match address {
        IpAddr::V4(address) => {
            for octet in address.octets().iter().rev() {
                let digits = octet.to_string();
                name.push(digits.len() as u8);
                name.extend_from_slice(digits.as_bytes());
            }
            name.extend_from_slice(b"\x07in-addr\x04arpa\0");
        }
        IpAddr::V6(address) => {
            for octet in address.octets().iter().rev() {
                for nibble in [octet & 0x0f, octet >> 4] {
                    name.extend_from_slice(&[1, b"0123456789abcdef"[usize::from(nibble)]]);
                }
            }
            name.extend_from_slice(b"\x03ip6\x04arpa\0");
        }
    }
    name.into_boxed_slice()
}

/// How many labels the apexes of a prefix's reverse zones have.
fn depth_ipv4(prefix: Ipv4Net) -> u8 {
    2 + prefix.prefix_len().div_ceil(8)
}

fn depth_ipv6(prefix: Ipv6Net) -> u8 {
    2 + prefix.prefix_len().div_ceil(4)
}

/// The apexes of a prefix's reverse zones: one where the prefix ends with a label, else up to 128 beside each other.
fn apexes_ipv4(prefix: Ipv4Net) -> Vec<(Name, u8)> {
    let depth = depth_ipv4(prefix);
    let zone_length = (depth - 2) * 8;
    let zones = prefix.subnets(zone_length).into_iter().flatten();
    zones
        .filter_map(|zone| {
            let name = reversed(zone.network().into());
            Some((skip_labels(&name, 6 - depth)?.into(), depth))
        })
        .collect()
}

fn apexes_ipv6(prefix: Ipv6Net) -> Vec<(Name, u8)> {
    let depth = depth_ipv6(prefix);
    let zone_length = (depth - 2) * 4;
    let zones = prefix.subnets(zone_length).into_iter().flatten();
    zones
        .filter_map(|zone| {
            let name = reversed(zone.network().into());
            Some((skip_labels(&name, 34 - depth)?.into(), depth))
        })
        .collect()
}
