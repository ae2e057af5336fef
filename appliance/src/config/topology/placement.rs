//! Which instance runs where, checked against the application documents that the topology names.

use super::{LabHost, Named, Placement};
use crate::config::application::{self, ApplicationDocument};
use crate::config::decode::Value;
use crate::config::values::{label, path};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// The application files of a topology, and what is in them.
pub(super) struct Applications {
    pub(super) files: Vec<PathBuf>,
    documents: Vec<ApplicationDocument>,
}

/// `None` when any of the files has problems: then nothing can be said about what refers to them.
pub(super) fn applications(value: &Value<'_>) -> Option<Applications> {
    let mut names = BTreeSet::new();
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
                for document in documents {
                    if names.insert((document.tenant.clone(), document.name.clone())) {
                        read.documents.push(document);
                    } else {
                        let (tenant, name) = (document.tenant, document.name);
                        item.report_here(format!(
                            "brings application {name} of tenant {tenant} a second time"
                        ));
                    }
                }
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
pub(super) struct Stage<'a> {
    /// `None` when they can't be told.
    applications: Option<&'a [ApplicationDocument]>,
    hosts: &'a Named<LabHost>,
    namespaces: BTreeSet<String>,
    /// How many instances each service has so far: they are numbered over the whole file.
    counts: BTreeMap<(String, String, String), usize>,
}

impl<'a> Stage<'a> {
    pub(super) fn new(
        applications: Option<&'a Applications>,
        hosts: &'a Named<LabHost>,
        namespaces: BTreeSet<String>,
    ) -> Self {
        let applications = applications.map(|read| read.documents.as_slice());
        Self {
            applications,
            hosts,
            namespaces,
            counts: BTreeMap::new(),
        }
    }

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

/// An instance that can run where it is placed.
pub(super) fn placement(value: &Value<'_>, stage: &mut Stage<'_>) -> Option<Placement> {
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
