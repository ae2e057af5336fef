//! The application document: an application, its network and its services.

use super::Problems;
use super::access::{Neighbours, ServiceNetwork};
use super::decode::{Keys, Unique, Value};
use super::host::DEFAULT_TENANT;
use super::naming::{Naming, naming};
use super::readiness::readiness;
use super::report::Report;
use super::values::{chosen, ipv4_prefix, label, line, network_name, service_name, vni};
use super::yaml;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use tidegate_stack::plan::{Readiness, Vni};

/// The prefix length of a shared network.
const SHARED_NETWORK_LENGTH: u8 = 18;
/// The most lines that can stand before a document: one a byte of the largest file.
const MAX_LINES: usize = 1 << 20;
/// How many shared networks an application may be in: each is two addresses and two routes of every instance.
const MAX_SHARED_NETWORKS: usize = 16;

/// An application document.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApplicationDocument {
    /// The tenant it belongs to.
    pub(crate) tenant: String,
    /// Its name, unique in its tenant.
    pub(crate) name: String,
    /// Its version, for people.
    pub(crate) version: Option<String>,
    /// Its network's number, where it isn't the one that follows from the names.
    pub(crate) vni: Option<Vni>,
    /// The networks that it shares with other applications, in its order.
    pub(crate) shared: Vec<SharedNetworkDocument>,
    /// Whether what its instances ask for by name is logged.
    pub(crate) query_log: bool,
    /// What it consists of.
    pub(crate) services: Vec<ServiceDocument>,
    /// Where it came from: [`parse_again`] makes the same document of it.
    pub(crate) source: Source,
}

/// A network that applications share, as one of them names it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SharedNetworkDocument {
    /// Which one.
    pub(crate) name: NetworkName,
    /// Its number, where it isn't the one that follows from the names.
    pub(crate) vni: Option<Vni>,
    /// Its IPv4 prefix, a /18, where it isn't the one that follows from the names.
    pub(crate) ipv4_prefix: Option<Ipv4Net>,
    /// Where it is named.
    pub(crate) line: u32,
}

/// What names a network that applications share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NetworkName {
    /// The tenant that it belongs to.
    pub(crate) tenant: String,
    /// Its name.
    pub(crate) name: String,
}

/// A service of an application.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ServiceDocument {
    /// Its name; its instances are `<name>-1`, `<name>-2` and so on.
    pub(crate) name: String,
    /// Who may reach it, whom it may reach, and how much it may take.
    pub(crate) network: ServiceNetwork,
    /// What else there is to know about it by name.
    pub(crate) naming: Naming,
    /// How its instances are asked whether they are ready; `None`: they are as soon as they are attached.
    pub(crate) readiness: Option<Readiness>,
}

/// A document's own text, and where it stood: what its rules are known by is their place in the file as it was applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", from = "Recorded")]
pub(crate) struct Source {
    /// The file, as whoever applied it named it.
    pub(crate) file: String,
    /// The line of the file in which the text begins, from 1.
    pub(crate) first_line: usize,
    /// The text.
    pub(crate) text: String,
}

/// The form in which a [`Source`] is read: once it was the text alone.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", untagged)]
enum Recorded {
    Text(String),
    #[serde(rename_all = "kebab-case")]
    Placed {
        file: String,
        first_line: usize,
        text: String,
    },
}

impl From<Recorded> for Source {
    fn from(recorded: Recorded) -> Self {
        match recorded {
            Recorded::Text(text) => Self {
                file: "(journal)".to_owned(),
                first_line: 1,
                text,
            },
            Recorded::Placed {
                file,
                first_line,
                text,
            } => Self {
                file,
                first_line,
                text,
            },
        }
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.tenant, self.name)
    }
}

impl NetworkName {
    /// As documents of a tenant write it.
    pub(super) fn shown_in(&self, tenant: &str) -> String {
        if self.tenant == tenant {
            self.name.clone()
        } else {
            self.to_string()
        }
    }
}

/// Reads the application documents of a file: one or more.
///
/// # Errors
/// All problems of the file.
pub(crate) fn read(file: &Path) -> Result<Vec<ApplicationDocument>, Problems> {
    let report = Report::new(file);
    let text = report.read();
    decode(report, text.as_deref())
}

/// Decodes the application documents of a text; `file` names it in messages.
///
/// # Errors
/// All problems of the text.
pub(crate) fn parse(file: &Path, text: &str) -> Result<Vec<ApplicationDocument>, Problems> {
    decode(Report::new(file), Some(text))
}

/// Decodes a document that was decoded before, with the places that it had then.
///
/// # Errors
/// All problems of the text; there are none unless another version of this program had decoded it.
pub(crate) fn parse_again(source: &Source) -> Result<ApplicationDocument, Problems> {
    // What stood before it was no shorter than the line breaks alone, so this is no larger than the file was.
    let before = source.first_line.saturating_sub(1).min(MAX_LINES);
    let text = "\n".repeat(before) + &source.text;
    let report = Report::new(Path::new(&source.file));
    let mut documents = decode(report, Some(&text))?;
    match documents.pop() {
        Some(document) if documents.is_empty() => Ok(ApplicationDocument {
            source: source.clone(),
            ..document
        }),
        Some(_) | None => Report::new(Path::new(&source.file)).finish(None),
    }
}

fn decode(report: Report, text: Option<&str>) -> Result<Vec<ApplicationDocument>, Problems> {
    let decoded = text.and_then(|text| applications(text, &report));
    report.finish(decoded)
}

pub(super) fn applications(text: &str, report: &Report) -> Option<Vec<ApplicationDocument>> {
    let mut names = Unique::default();
    let mut applications = Vec::new();
    for document in yaml::parse(text, report)? {
        let source = Source {
            file: report.file().display().to_string(),
            first_line: document.first_line,
            text: document.source.clone(),
        };
        let Some(root) = report.root(document) else {
            continue;
        };
        applications.extend(application(&Value::root(&root, report), source, &mut names));
    }
    if applications.is_empty() {
        report.nothing_there();
    }
    Some(applications)
}

fn application(
    value: &Value<'_>,
    source: Source,
    names: &mut Unique<(String, String)>,
) -> Option<ApplicationDocument> {
    value.group(|keys| {
        let tenant = keys
            .optional("tenant", label)
            .unwrap_or_else(|| DEFAULT_TENANT.to_owned());
        let name = keys.required("name", |value| {
            let (_, name) = names.claim(value, (tenant.clone(), label(value)?))?;
            Some(name)
        });
        let version = keys.optional("version", line);
        let network = match keys.value("network") {
            Some(value) => network(&value, &tenant),
            None => Some(Network::default()),
        };
        let shared = network.as_ref().and_then(|network| network.shared.clone());
        let neighbours = Neighbours::new(&tenant, name.as_ref(), shared);
        let query_log = keys.optional("dns", dns).unwrap_or_default();
        let services = keys.required("services", |value| services(value, &neighbours));
        let network = network?;
        Some(ApplicationDocument {
            tenant,
            name: name?,
            version,
            vni: network.vni,
            shared: network.shared?,
            query_log,
            services: services?,
            source,
        })
    })
}

/// An application's `dns`: whether its queries are logged.
fn dns(value: &Value<'_>) -> Option<bool> {
    value.group(|keys| {
        let log = keys.optional("query-log", |value| {
            chosen(value, &[("on", true), ("off", false)])
        });
        Some(log.unwrap_or_default())
    })
}

/// What an application's `network` says.
struct Network {
    vni: Option<Vni>,
    /// `None` when one of them was refused.
    shared: Option<Vec<SharedNetworkDocument>>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            vni: None,
            shared: Some(Vec::new()),
        }
    }
}

fn network(value: &Value<'_>, tenant: &str) -> Option<Network> {
    value.group(|keys| {
        let vni = keys.optional("vni", vni);
        let shared = match keys.value("shared-application-network") {
            Some(value) => shared_networks(&value, tenant),
            None => Some(Vec::new()),
        };
        Some(Network { vni, shared })
    })
}

/// One, or a list of them.
fn shared_networks(value: &Value<'_>, tenant: &str) -> Option<Vec<SharedNetworkDocument>> {
    let items = if value.is_list() {
        value.items()?
    } else {
        vec![value.clone()]
    };
    if items.len() > MAX_SHARED_NETWORKS {
        return value.refuse(format!(
            "has {} networks, and an application may be in {MAX_SHARED_NETWORKS} shared ones",
            items.len()
        ));
    }
    let mut names = Unique::default();
    let shared: Vec<_> = items
        .iter()
        .filter_map(|item| shared_network(item, tenant, &mut names))
        .collect();
    (shared.len() == items.len()).then_some(shared)
}

fn shared_network(
    value: &Value<'_>,
    tenant: &str,
    names: &mut Unique<NetworkName>,
) -> Option<SharedNetworkDocument> {
    let mut name = |value: &Value<'_>| names.claim(value, network_name(value, tenant)?);
    if !value.is_group() {
        return Some(SharedNetworkDocument {
            name: name(value)?,
            vni: None,
            ipv4_prefix: None,
            line: value.line(),
        });
    }
    value.group(|keys| {
        let name = keys.required("name", name);
        let vni = keys.optional("vni", vni);
        let ipv4_prefix = keys.optional("ipv4-prefix", shared_network_prefix);
        Some(SharedNetworkDocument {
            name: name?,
            vni,
            ipv4_prefix,
            line: value.line(),
        })
    })
}

fn shared_network_prefix(value: &Value<'_>) -> Option<Ipv4Net> {
    let prefix = ipv4_prefix(value)?;
    if prefix.prefix_len() != SHARED_NETWORK_LENGTH {
        let sized = Ipv4Net::new(prefix.addr(), SHARED_NETWORK_LENGTH).ok()?.trunc();
        return value.refuse_with(
            format!(
                "is a /{}, and must be a /{SHARED_NETWORK_LENGTH}",
                prefix.prefix_len()
            ),
            format!("did you mean {sized}?"),
        );
    }
    Some(prefix)
}

fn services<'a>(value: &Value<'a>, neighbours: &Neighbours<'a>) -> Option<Vec<ServiceDocument>> {
    let mut names = Unique::default();
    if value.items()?.is_empty() {
        return value.refuse_with("must have at least one service", "such as `[ { name: web } ]`");
    }
    let mut known = BTreeSet::new();
    let mut all_known = true;
    let services = value.list(|item| {
        let service = item.group(|keys| service(keys, &mut names, neighbours, &mut known));
        all_known &= service.is_some();
        service
    });
    // One whose name was refused may be the one that a rule means.
    if all_known {
        neighbours.report_unknown_services(&known);
    }
    services
}

fn service<'a>(
    keys: &mut Keys<'a, '_>,
    names: &mut Unique<String>,
    neighbours: &Neighbours<'a>,
    known: &mut BTreeSet<String>,
) -> Option<ServiceDocument> {
    let name = keys.required("name", |value| names.claim(value, service_name(value)?));
    known.extend(name.clone());
    let network = keys
        .optional("network", |value| neighbours.service_network(value))
        .unwrap_or_default();
    let naming = naming(keys);
    let readiness = keys.optional("readiness", readiness);
    Some(ServiceDocument {
        name: name?,
        network,
        naming: naming?,
        readiness,
    })
}
