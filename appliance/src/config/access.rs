//! What a service's document says about its neighbours: who may reach it, whom it may reach, and how much it may take.
//!
//! Rules are decoded into the plan's own types as far as a document alone can tell: which number a network has follows
//! from more than one document. What a rule names in its own document (a service, a network) is checked here, and so
//! is whether it can ever be reached ([`coverage`](super::coverage)).

use super::application::{NetworkName, SharedNetworkDocument};
use super::coverage::report_unreachable;
use super::decode::{Keys, Value};
use super::spelling::nearest;
use super::values::{chosen, label, network_name, port_ranges, prefix_or_address, rate};
use ipnet::IpNet;
use std::cell::RefCell;
use std::collections::BTreeSet;
use tidegate_stack::plan::{Action, Limits, OnDeny, ProtocolMatch, ServiceId};

/// The highest limit that can be set.
const MAX_LIMIT: u64 = 1_000_000_000;

/// What a service's `network` says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ServiceNetwork {
    /// Who may reach it; `None`: every member of its networks.
    pub(crate) inbound: Option<AccessDocument>,
    /// Whom it may reach; `None`: every member of its networks.
    pub(crate) outbound: Option<AccessDocument>,
    /// What its instances on one host may take together.
    pub(crate) limits: Limits,
}

impl ServiceNetwork {
    /// Whether it says nothing.
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// An ordered list of rules.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AccessDocument {
    /// Where it begins.
    pub(crate) line: u32,
    /// What becomes of what it denies.
    pub(crate) on_deny: OnDeny,
    /// The first one that matches decides; none: denied.
    pub(crate) rules: Vec<RuleDocument>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RuleDocument {
    /// Where it stands.
    pub(crate) line: u32,
    /// The other end.
    pub(crate) other: SelectorDocument,
    /// What is carried; empty: everything.
    pub(crate) protocols: Vec<ProtocolMatch>,
    /// What is done.
    pub(crate) action: Action,
}

/// Whom a rule means.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SelectorDocument {
    /// Everybody.
    Any,
    /// The instances of a service.
    Service(ServiceId),
    /// The instances of an application.
    Application {
        /// Its tenant.
        tenant: String,
        /// Its name.
        application: String,
    },
    /// Every member of a network, in that network.
    Network(NetworkSelector),
    /// The addresses of a prefix.
    Prefix(IpNet),
}

/// A network that the document's application is in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum NetworkSelector {
    /// The application's own.
    Own,
    /// A shared one.
    Shared(NetworkName),
}

/// Which end of a flow a rule speaks of.
#[derive(Clone, Copy)]
enum Direction {
    Inbound,
    Outbound,
}

impl Direction {
    fn key(self) -> &'static str {
        match self {
            Self::Inbound => "from",
            Self::Outbound => "to",
        }
    }
}

/// The application whose services are read: what its rules may name.
pub(super) struct Neighbours<'a> {
    tenant: String,
    /// `None` when it was refused: then nothing can be said about what is its own.
    name: Option<String>,
    /// `None` when one of them was refused.
    networks: Option<Vec<SharedNetworkDocument>>,
    /// Services of its own that rules name, and where.
    named: RefCell<Vec<(Value<'a>, String)>>,
}

impl<'a> Neighbours<'a> {
    pub(super) fn new(
        tenant: &str,
        name: Option<&String>,
        networks: Option<Vec<SharedNetworkDocument>>,
    ) -> Self {
        Self {
            tenant: tenant.to_owned(),
            name: name.cloned(),
            networks,
            named: RefCell::default(),
        }
    }

    /// A service's `network`.
    pub(super) fn service_network(&self, value: &Value<'a>) -> Option<ServiceNetwork> {
        value.group(|keys| {
            let inbound = keys.optional("inbound-access", |value| self.access(value, Direction::Inbound));
            let outbound = keys.optional("outbound-access", |value| self.access(value, Direction::Outbound));
            let limits = keys.optional("limits", limits).unwrap_or_default();
            Some(ServiceNetwork {
                inbound,
                outbound,
                limits,
            })
        })
    }

    /// Reports the services that rules name and that aren't there, once all that are there have been read.
    pub(super) fn report_unknown_services(&self, services: &BTreeSet<String>) {
        for (value, name) in self.named.borrow().iter() {
            if !services.contains(name) {
                value.refuse_reference::<()>("service", name, services.iter());
            }
        }
    }

    fn access(&self, value: &Value<'a>, direction: Direction) -> Option<AccessDocument> {
        value.group(|keys| {
            let on_deny = chosen_or(
                keys,
                "on-deny",
                &[("drop", OnDeny::Drop), ("reject", OnDeny::Reject)],
                OnDeny::Drop,
            );
            let ruled = keys.has("rules");
            let all = keys.has("allow-all");
            if !ruled && !all {
                value.refuse_with::<()>(
                    "must have `rules` or `allow-all: true`",
                    "an empty list of rules, `rules: []`, denies everything",
                );
            }
            let allow_all = keys.optional("allow-all", |value| {
                if ruled {
                    value.refuse_with::<()>("can't stand beside `rules`", "remove one of them");
                }
                allow_all(value)
            });
            let rules = keys.optional("rules", |value| self.rules(value, direction));
            let rules = if all {
                vec![RuleDocument {
                    line: allow_all?,
                    other: SelectorDocument::Any,
                    protocols: Vec::new(),
                    action: Action::Allow,
                }]
            } else {
                rules?
            };
            Some(AccessDocument {
                line: value.line(),
                on_deny: on_deny?,
                rules,
            })
        })
    }

    fn rules(&self, value: &Value<'a>, direction: Direction) -> Option<Vec<RuleDocument>> {
        let rules = value.list(|item| Some((item.clone(), self.rule(item, direction)?)))?;
        report_unreachable(&rules);
        Some(rules.into_iter().map(|(_, rule)| rule).collect())
    }

    fn rule(&self, value: &Value<'a>, direction: Direction) -> Option<RuleDocument> {
        value.group(|keys| {
            let other = keys.required(direction.key(), |value| self.selector(value, direction));
            let protocols = match keys.value("protocols") {
                Some(value) => protocols(&value),
                None => Some(Vec::new()),
            };
            let action = chosen_or(
                keys,
                "action",
                &[("allow", Action::Allow), ("deny", Action::Deny)],
                Action::Allow,
            );
            Some(RuleDocument {
                line: value.line(),
                other: other?,
                protocols: protocols?,
                action: action?,
            })
        })
    }

    fn selector(&self, value: &Value<'a>, direction: Direction) -> Option<SelectorDocument> {
        if value.is_group() {
            return self.named_selector(value);
        }
        match direction {
            Direction::Inbound => prefix_or_address(value).map(SelectorDocument::Prefix),
            Direction::Outbound => {
                let text = value.text()?;
                value.refuse_with(
                    format!(
                        "can't be `{text}`: nothing outside an application's networks can be reached yet, neither by \
                         address nor by name"
                    ),
                    "name a service, an application or a network: `to: { service: db }`",
                )
            }
        }
    }

    fn named_selector(&self, value: &Value<'a>) -> Option<SelectorDocument> {
        value.group(|keys| {
            let service = named(keys, "service", label);
            let application = named(keys, "application", label);
            let tenant = named(keys, "tenant", label);
            let network = named(keys, "network", |value| network_name(value, &self.tenant));
            match (service, application, tenant, network) {
                (None, None, None, Some((value, network))) => self.network(&value, network?),
                (_, _, _, Some((value, _))) => {
                    value.refuse("a rule means a network, or an application and its service: not both")
                }
                (Some((value, service)), None, None, None) => {
                    let service = service?;
                    self.named.borrow_mut().push((value, service.clone()));
                    Some(SelectorDocument::Service(ServiceId {
                        tenant: self.tenant.clone(),
                        application: self.name.clone()?,
                        service,
                    }))
                }
                (service, Some((value, application)), tenant, None) => {
                    let tenant = match tenant {
                        Some((_, tenant)) => tenant?,
                        None => self.tenant.clone(),
                    };
                    self.application(&value, tenant, application?, service)
                }
                (_, None, Some((value, _)), None) => value.refuse_with(
                    "is the tenant of no `application`",
                    "name the application, too, or leave `tenant` out",
                ),
                (None, None, None, None) => value.refuse_with(
                    "must name a service, an application or a network",
                    "such as `{ service: web }`",
                ),
            }
        })
    }

    fn application(
        &self,
        value: &Value<'a>,
        tenant: String,
        application: String,
        service: Option<(Value<'a>, Option<String>)>,
    ) -> Option<SelectorDocument> {
        let own = tenant == self.tenant && self.name.as_ref() == Some(&application);
        let foreign = !own && self.name.is_some();
        if foreign && self.networks.as_ref().is_some_and(Vec::is_empty) {
            return value.refuse_with(
                "is another application, and this one is in no network that it could share",
                "name one in `network.shared-application-network`, in both documents",
            );
        }
        let Some((value, service)) = service else {
            return Some(SelectorDocument::Application { tenant, application });
        };
        let service = service?;
        if own {
            self.named.borrow_mut().push((value, service.clone()));
        }
        Some(SelectorDocument::Service(ServiceId {
            tenant,
            application,
            service,
        }))
    }

    fn network(&self, value: &Value<'a>, network: NetworkName) -> Option<SelectorDocument> {
        let own = network.tenant == self.tenant && self.name.as_ref() == Some(&network.name);
        let networks = self.networks.as_ref()?;
        let shared = networks.iter().any(|shared| shared.name == network);
        match (own, shared) {
            (true, true) => value.refuse_with(
                "is the name of the application's own network and of a shared one",
                "name services or applications instead",
            ),
            (true, false) => Some(SelectorDocument::Network(NetworkSelector::Own)),
            (false, true) => Some(SelectorDocument::Network(NetworkSelector::Shared(network))),
            (false, false) => {
                let shown = |network: &NetworkName| network.shown_in(&self.tenant);
                let known: Vec<_> = networks
                    .iter()
                    .map(|shared| shown(&shared.name))
                    .chain(self.name.clone())
                    .collect();
                let known: Vec<_> = known.iter().map(String::as_str).collect();
                let written = shown(&network);
                let hint = match nearest(&written, &known) {
                    Some(nearest) => format!("did you mean `{nearest}`?"),
                    None => format!("it is in: {}", known.join(", ")),
                };
                value.refuse_with(format!("the application isn't in a network `{written}`"), hint)
            }
        }
    }
}

/// The value of a key, and what it was decoded to; `None` when it isn't there.
fn named<'a, T>(
    keys: &mut Keys<'a, '_>,
    key: &'static str,
    decode: impl FnOnce(&Value<'a>) -> Option<T>,
) -> Option<(Value<'a>, Option<T>)> {
    let value = keys.value(key)?;
    let decoded = decode(&value);
    Some((value, decoded))
}

/// One of some words; the default when it isn't there, `None` when it was refused.
fn chosen_or<T: Copy>(
    keys: &mut Keys<'_, '_>,
    key: &'static str,
    words: &[(&str, T)],
    default: T,
) -> Option<T> {
    match keys.value(key) {
        Some(value) => chosen(&value, words),
        None => Some(default),
    }
}

/// The line of a list that lets everybody in.
fn allow_all(value: &Value<'_>) -> Option<u32> {
    match value.word()? {
        "true" => Some(value.line()),
        _ => value.refuse_with("must be true", "leave it out, and write `rules`"),
    }
}

/// `None` when any of them was refused: what a rule matches isn't known then.
fn protocols(value: &Value<'_>) -> Option<Vec<ProtocolMatch>> {
    let items = value.items()?;
    if items.is_empty() {
        return value.refuse_with("must not be empty", "leave it out, and everything is meant");
    }
    let protocols: Vec<_> = items.iter().filter_map(protocol).collect();
    (protocols.len() == items.len()).then_some(protocols)
}

fn protocol(value: &Value<'_>) -> Option<ProtocolMatch> {
    #[derive(Clone, Copy)]
    enum Name {
        Tcp,
        Udp,
        Icmp,
    }
    value.group(|keys| {
        let names = [("tcp", Name::Tcp), ("udp", Name::Udp), ("icmp", Name::Icmp)];
        let name = keys.required("name", |value| chosen(value, &names));
        let value = keys.value("port-ranges");
        let ranges = match &value {
            Some(value) => port_ranges(value),
            None => Some(Vec::new()),
        };
        match (name?, value) {
            (Name::Tcp, _) => Some(ProtocolMatch::Tcp(ranges?)),
            (Name::Udp, _) => Some(ProtocolMatch::Udp(ranges?)),
            (Name::Icmp, None) => Some(ProtocolMatch::Icmp),
            (Name::Icmp, Some(value)) => value.refuse_with("is nothing that icmp has", "remove it"),
        }
    })
}

fn limits(value: &Value<'_>) -> Option<Limits> {
    value.group(|keys| {
        let connections = keys.optional("connections", |value| {
            u32::try_from(value.number(1..=MAX_LIMIT)?).ok()
        });
        let new_connections_per_second = keys.optional("new-connections", |value| rate(value, MAX_LIMIT));
        Some(Limits {
            connections,
            new_connections_per_second,
        })
    })
}
