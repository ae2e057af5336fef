//! What documents say about services, with the numbers of the networks that they name.

use super::networks::{NetworkKey, Networks};
use super::{ApplicationKey, Inputs, PlanError};
use crate::config::access::{AccessDocument, NetworkSelector, RuleDocument, SelectorDocument};
use crate::config::application::ApplicationDocument;
use tidegate_stack::plan::{Access, Rule, Selector, Service, ServiceId};

/// The services that have rules or limits.
pub(super) fn services(
    inputs: &Inputs<'_>,
    networks: &Networks,
    errors: &mut Vec<PlanError>,
) -> Vec<Service> {
    let mut services = Vec::new();
    for (key, document) in inputs.applications {
        let application = Application {
            key,
            document,
            inputs,
            networks,
        };
        for service in &document.services {
            let network = &service.network;
            let mut access = |access: &Option<AccessDocument>| {
                let access = access.as_ref()?;
                Some(application.access(access, errors))
            };
            let (inbound, outbound) = (access(&network.inbound), access(&network.outbound));
            if inbound.is_none() && outbound.is_none() && network.limits.is_unlimited() {
                continue;
            }
            services.push(Service {
                id: ServiceId {
                    tenant: key.tenant.clone(),
                    application: key.name.clone(),
                    service: service.name.clone(),
                },
                document: document.source.file.clone(),
                inbound,
                outbound,
                limits: network.limits,
            });
        }
    }
    services
}

/// An application, among what its rules may name.
struct Application<'a> {
    key: &'a ApplicationKey,
    document: &'a ApplicationDocument,
    inputs: &'a Inputs<'a>,
    networks: &'a Networks,
}

impl Application<'_> {
    fn access(&self, access: &AccessDocument, errors: &mut Vec<PlanError>) -> Access {
        let rules = access.rules.iter();
        Access {
            line: access.line,
            on_deny: access.on_deny,
            rules: rules.filter_map(|rule| self.rule(rule, errors)).collect(),
        }
    }

    /// `None` when it means nothing: that is among the errors.
    fn rule(&self, rule: &RuleDocument, errors: &mut Vec<PlanError>) -> Option<Rule> {
        let other = match &rule.other {
            SelectorDocument::Any => Selector::Any,
            SelectorDocument::Prefix(prefix) => Selector::Prefix(*prefix),
            SelectorDocument::Service(service) => {
                self.check(&service.tenant, &service.application, rule.line, errors)?;
                Selector::Service(service.clone())
            }
            SelectorDocument::Application { tenant, application } => {
                self.check(tenant, application, rule.line, errors)?;
                Selector::Application {
                    tenant: tenant.clone(),
                    application: application.clone(),
                }
            }
            SelectorDocument::Network(network) => {
                let key = match network {
                    NetworkSelector::Own => NetworkKey::own(self.key),
                    NetworkSelector::Shared(network) => NetworkKey::shared(network),
                };
                // A document only names networks that it is in.
                Selector::Network(self.networks.get(&key)?.vni)
            }
        };
        Some(Rule {
            line: rule.line,
            other,
            protocols: rule.protocols.clone(),
            action: rule.action,
        })
    }

    /// An application that is here, and that no network leads to, is a mistake; one that isn't here may come.
    fn check(&self, tenant: &str, name: &str, line: u32, errors: &mut Vec<PlanError>) -> Option<()> {
        let other = ApplicationKey {
            tenant: tenant.to_owned(),
            name: name.to_owned(),
        };
        let Some(document) = self.inputs.applications.get(&other) else {
            return Some(());
        };
        let mut ours = self.document.shared.iter();
        let common = ours.any(|ours| document.shared.iter().any(|theirs| theirs.name == ours.name));
        if common || other == *self.key {
            return Some(());
        }
        errors.push(PlanError::NoCommonNetwork {
            place: format!("{}:{line}", self.document.source.file),
            application: self.key.clone(),
            other,
        });
        None
    }
}
