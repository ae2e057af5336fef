//! The application document: an application, its network and its services.

use super::Problems;
use super::decode::{Unique, Value};
use super::host::DEFAULT_TENANT;
use super::report::Report;
use super::values::{label, line, service_name, vni};
use super::yaml;
use std::path::Path;
use tidegate_stack::plan::Vni;

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
    /// What it consists of.
    pub(crate) services: Vec<ServiceDocument>,
    /// The document's own text: [`parse`] makes the same document of it.
    pub(crate) source: String,
}

/// A service of an application.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ServiceDocument {
    /// Its name; its instances are `<name>-1`, `<name>-2` and so on.
    pub(crate) name: String,
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

fn decode(report: Report, text: Option<&str>) -> Result<Vec<ApplicationDocument>, Problems> {
    let decoded = text.and_then(|text| applications(text, &report));
    report.finish(decoded)
}

pub(super) fn applications(text: &str, report: &Report) -> Option<Vec<ApplicationDocument>> {
    let mut names = Unique::default();
    let mut applications = Vec::new();
    for document in yaml::parse(text, report)? {
        let source = document.source.clone();
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
    source: String,
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
        let vni = keys.optional("network", network).flatten();
        let services = keys.required("services", services);
        Some(ApplicationDocument {
            tenant,
            name: name?,
            version,
            vni,
            services: services?,
            source,
        })
    })
}

fn network(value: &Value<'_>) -> Option<Option<Vni>> {
    value.group(|keys| Some(keys.optional("vni", vni)))
}

fn services(value: &Value<'_>) -> Option<Vec<ServiceDocument>> {
    let mut names = Unique::default();
    if value.items()?.is_empty() {
        return value.refuse_with("must have at least one service", "such as `[ { name: web } ]`");
    }
    value.list(|item| {
        item.group(|keys| {
            let name = keys.required("name", |value| names.claim(value, service_name(value)?));
            Some(ServiceDocument { name: name? })
        })
    })
}
