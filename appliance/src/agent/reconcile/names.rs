//! What can be asked for by name in each network: services of documents, instances of attachments and of what other
//! hosts told.
//!
//! In an application's own network that is the application, in a shared one every application that this host knows
//! there: by its document, or by an instance of another host. A service of a document is named before it has an
//! instance, so that its name exists. Instances of a host that fell silent aren't told; those of this host always are.

use super::networks::{NetworkKey, Networks};
use super::site::RemoteInstance;
use super::{ApplicationKey, Inputs};
use crate::config::application::{ApplicationDocument, ServiceDocument};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use tidegate_stack::plan::{
    Instance, Membership, NamedInstance, NamedService, Network, NetworkKind, NetworkNames, ServiceId, Vni,
};

/// The names of every network.
pub(super) fn names(
    inputs: &Inputs<'_>,
    networks: &Networks,
    here: &[Instance],
    elsewhere: &[RemoteInstance],
) -> Vec<NetworkNames> {
    let names = networks.iter().map(|(key, network)| NetworkNames {
        vni: network.vni,
        log: inputs
            .applications
            .iter()
            .any(|(application, document)| document.query_log && NetworkKey::own(application) == *key),
        services: services(inputs, key, network, here, elsewhere),
    });
    names.collect()
}

fn services(
    inputs: &Inputs<'_>,
    key: &NetworkKey,
    network: &Network,
    here: &[Instance],
    elsewhere: &[RemoteInstance],
) -> Vec<NamedService> {
    let mut services = BTreeMap::new();
    for (application, document) in inputs.applications {
        if is_in(application, document, key) {
            for service in &document.services {
                let id = service_id(application, service);
                services.insert(id.clone(), described(id, service));
            }
        }
    }
    let mut add = |id: ServiceId, instance: NamedInstance| {
        let service = services
            .entry(id)
            .or_insert_with_key(|id| undescribed(id.clone()));
        service.instances.push(instance);
    };
    for instance in here {
        let Some(membership) = membership(&instance.memberships, network.vni) else {
            continue;
        };
        let id = ServiceId {
            tenant: instance.tenant.clone(),
            application: instance.application.clone(),
            service: instance.service.clone(),
        };
        // Its device is there: where nothing is asked, nothing else makes it ready.
        let ready = instance.readiness.is_none() || inputs.ready.contains(&instance.port);
        add(id, named(&instance.name, membership, ready));
    }
    for instance in elsewhere {
        if instance.membership.vni == network.vni {
            let name = instance.name();
            add(
                instance.service.clone(),
                named(&name, &instance.membership, instance.ready),
            );
        }
    }
    let mut services: Vec<_> = services.into_values().collect();
    for service in &mut services {
        // Two hosts that claim one instance are told in one order by both: what normalising leaves equal stays so.
        service.instances.sort_by_key(address);
    }
    services
}

fn is_in(application: &ApplicationKey, document: &ApplicationDocument, network: &NetworkKey) -> bool {
    match network.kind {
        NetworkKind::Application => NetworkKey::own(application) == *network,
        NetworkKind::Shared => {
            let mut shared = document.shared.iter();
            shared.any(|shared| NetworkKey::shared(&shared.name) == *network)
        }
    }
}

fn service_id(application: &ApplicationKey, service: &ServiceDocument) -> ServiceId {
    ServiceId {
        tenant: application.tenant.clone(),
        application: application.name.clone(),
        service: service.name.clone(),
    }
}

fn described(id: ServiceId, service: &ServiceDocument) -> NamedService {
    let naming = &service.naming;
    NamedService {
        id,
        order: naming.order,
        ports: naming.ports.clone(),
        texts: naming.texts.clone(),
        instances: Vec::new(),
    }
}

/// A service of an application whose document isn't here: what else it has isn't known.
fn undescribed(id: ServiceId) -> NamedService {
    NamedService {
        id,
        order: Default::default(),
        ports: Vec::new(),
        texts: Vec::new(),
        instances: Vec::new(),
    }
}

fn membership(memberships: &[Membership], vni: Vni) -> Option<&Membership> {
    memberships.iter().find(|membership| membership.vni == vni)
}

fn named(name: &str, membership: &Membership, ready: bool) -> NamedInstance {
    NamedInstance {
        name: name.to_owned(),
        ipv4: membership.ipv4,
        ipv6: membership.ipv6,
        ready,
    }
}

fn address(instance: &NamedInstance) -> (Ipv4Addr, Ipv6Addr) {
    (instance.ipv4, instance.ipv6)
}
