//! The networks of a host, as its application documents name them: each application's own, and the shared ones.
//!
//! Numbers and prefixes follow from names, or are set by hand; the same on every host that has the same documents. A
//! shared network is here when a document names it, and all that name it must agree about it.

use super::{ApplicationKey, Applications, PlanError};
use crate::config::application::{ApplicationDocument, NetworkName, SharedNetworkDocument};
use crate::config::host::HostDocument;
use std::collections::BTreeMap;
use std::fmt;
use tidegate_stack::plan::{
    InstanceIndex, Membership, Network, NetworkKind, NetworkNumbers, Vni, derive_vni, shared_prefix_index,
    site_ipv6_prefix,
};

/// The prefix length of a shared network.
const SHARED_LENGTH: u8 = 18;

/// What names a network in a site.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NetworkKey {
    /// Whose it is.
    pub(crate) kind: NetworkKind,
    /// The tenant that it belongs to.
    pub(crate) tenant: String,
    /// The application's name, or the shared network's.
    pub(crate) name: String,
}

impl NetworkKey {
    /// An application's own network.
    pub(crate) fn own(application: &ApplicationKey) -> Self {
        Self {
            kind: NetworkKind::Application,
            tenant: application.tenant.clone(),
            name: application.name.clone(),
        }
    }

    /// A shared network.
    pub(crate) fn shared(network: &NetworkName) -> Self {
        Self {
            kind: NetworkKind::Shared,
            tenant: network.tenant.clone(),
            name: network.name.clone(),
        }
    }

    /// Which key, in which documents, settles what two networks have in common.
    pub(super) fn setting(&self, key: &str) -> String {
        let Self { kind, tenant, name } = self;
        match kind {
            NetworkKind::Application => format!("`network.{key}` in the document of {tenant}/{name}"),
            NetworkKind::Shared => format!(
                "`{key}` of {tenant}/{name} in `network.shared-application-network` of every document that names it"
            ),
        }
    }
}

impl fmt::Display for NetworkKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, tenant, name } = self;
        match kind {
            NetworkKind::Application => write!(formatter, "the network of {tenant}/{name}"),
            NetworkKind::Shared => write!(formatter, "the shared network {tenant}/{name}"),
        }
    }
}

/// Networks by their names.
pub(crate) type Networks = BTreeMap<NetworkKey, Network>;

/// The networks that these documents name.
pub(crate) fn networks(host: &HostDocument, applications: &Applications) -> Networks {
    let mut networks = Networks::new();
    let mut add = |key: NetworkKey, vni, numbers| {
        let network = Network {
            vni,
            kind: key.kind,
            tenant: key.tenant.clone(),
            name: key.name.clone(),
            numbers,
        };
        networks.entry(key).or_insert(network);
    };
    for (key, document) in applications {
        add(
            NetworkKey::own(key),
            network_vni(document),
            network_numbers(host, document),
        );
        for shared in &document.shared {
            let key = NetworkKey::shared(&shared.name);
            add(key, shared_vni(shared), shared_numbers(host, shared));
        }
    }
    networks
}

/// The number of an application's own network.
pub(crate) fn network_vni(document: &ApplicationDocument) -> Vni {
    document
        .vni
        .unwrap_or_else(|| derive_vni(&document.tenant, NetworkKind::Application, &document.name))
}

/// The addresses of an application's own network.
pub(crate) fn network_numbers(host: &HostDocument, document: &ApplicationDocument) -> NetworkNumbers {
    let site = site_ipv6_prefix(&host.site);
    NetworkNumbers::application(host.network.application_prefix, site, network_vni(document))
}

/// The number of a shared network.
pub(crate) fn shared_vni(network: &SharedNetworkDocument) -> Vni {
    let NetworkName { tenant, name } = &network.name;
    network
        .vni
        .unwrap_or_else(|| derive_vni(tenant, NetworkKind::Shared, name))
}

/// The addresses of a shared network.
pub(crate) fn shared_numbers(host: &HostDocument, network: &SharedNetworkDocument) -> NetworkNumbers {
    let NetworkName { tenant, name } = &network.name;
    let whole = host.network.shared_prefix;
    let count = 1 << SHARED_LENGTH.saturating_sub(whole.prefix_len()).min(31);
    let index = shared_prefix_index(tenant, name, count);
    let site = site_ipv6_prefix(&host.site);
    let derived = NetworkNumbers::shared(whole, index, site, shared_vni(network));
    NetworkNumbers {
        ipv4_prefix: network.ipv4_prefix.unwrap_or(derived.ipv4_prefix),
        ..derived
    }
}

/// The indices that an instance has in this host's blocks.
pub(crate) struct Indices<'a> {
    /// In its application's own network.
    pub(crate) own: InstanceIndex,
    /// In shared networks, by `tenant/name`: those that its device was made for.
    pub(crate) shared: &'a BTreeMap<String, InstanceIndex>,
}

/// Where an instance is a member: its application's own network first, then, in the document's order, those shared
/// ones that its device was made for. `Err`: this host's block of a network hasn't room for the index.
pub(crate) fn memberships(
    host: &HostDocument,
    document: &ApplicationDocument,
    indices: &Indices<'_>,
) -> Result<Vec<Membership>, InstanceIndex> {
    let own = (
        network_vni(document),
        network_numbers(host, document),
        indices.own,
    );
    let shared = document.shared.iter().filter_map(|network| {
        let index = indices.shared.get(&network.name.to_string())?;
        Some((shared_vni(network), shared_numbers(host, network), *index))
    });
    std::iter::once(own)
        .chain(shared)
        .map(|(vni, numbers, index)| {
            let (ipv4, ipv6) = numbers.instance(host.ordinal, index).ok_or(index)?;
            Ok(Membership { vni, ipv4, ipv6 })
        })
        .collect()
}

/// Finds what is contradictory in them.
pub(super) fn check(
    host: &HostDocument,
    applications: &Applications,
    networks: &Networks,
    errors: &mut Vec<PlanError>,
) {
    check_settings(host, applications, errors);
    let mut numbers = BTreeMap::new();
    let mut prefixes = BTreeMap::new();
    for (key, network) in networks {
        if let Some(first) = numbers.insert(network.vni, key) {
            errors.push(PlanError::SameVni {
                first: first.clone(),
                second: key.clone(),
                vni: network.vni,
            });
        }
        let prefix = network.ipv4_prefix();
        if network.kind == NetworkKind::Shared
            && let Some(first) = prefixes.insert(prefix, key)
        {
            errors.push(PlanError::SamePrefix {
                first: first.clone(),
                second: key.clone(),
                prefix,
            });
        }
    }
}

/// Documents that name one shared network must say the same about it, and no more than the site's address plan allows.
fn check_settings(host: &HostDocument, applications: &Applications, errors: &mut Vec<PlanError>) {
    let mut first_named: BTreeMap<&NetworkName, (String, &SharedNetworkDocument)> = BTreeMap::new();
    for document in applications.values() {
        for network in &document.shared {
            let place = format!("{}:{}", document.source.file, network.line);
            let whole = host.network.shared_prefix;
            if let Some(prefix) = network.ipv4_prefix.filter(|prefix| !whole.contains(prefix)) {
                errors.push(PlanError::PrefixOutside {
                    place: place.clone(),
                    network: network.name.clone(),
                    prefix,
                    whole,
                });
            }
            match first_named.get(&network.name) {
                None => drop(first_named.insert(&network.name, (place, network))),
                Some((first, other)) => {
                    if (other.vni, other.ipv4_prefix) != (network.vni, network.ipv4_prefix) {
                        errors.push(PlanError::OtherSettings {
                            place,
                            first: first.clone(),
                            network: network.name.clone(),
                        });
                    }
                }
            }
        }
    }
}
