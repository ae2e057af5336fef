//! What is told by name, and that names alone change nothing else.

use super::shared::{instance, sharing};
use super::*;
use std::sync::Arc;
use tidegate_fixtures as fixtures;
use tidegate_stack::plan::{AnswerOrder, NamedService, Network, NetworkNames};
use tidegate_stack::snapshot::Snapshot;

impl World {
    fn names(&self, network: &str) -> NetworkNames {
        let plan = self.plan().unwrap();
        let mut named = plan.networks.iter().filter(|known| known.name == network);
        let vni = named.next().unwrap().vni;
        let mut names = plan.names.iter().filter(|names| names.vni == vni);
        names.next().unwrap().clone()
    }
}

/// `application/service: instance address ready, …`, one line a service.
fn told(names: &NetworkNames) -> Vec<String> {
    let line = |service: &NamedService| {
        let instances = service.instances.iter().map(|instance| {
            let ready = if instance.ready { "" } else { " (not ready)" };
            format!(" {} {}{ready}", instance.name, instance.ipv4)
        });
        let id = &service.id;
        format!(
            "{}/{}:{}",
            id.application,
            id.service,
            instances.collect::<Vec<_>>().join(",")
        )
    };
    names.services.iter().map(line).collect()
}

fn joined(network: &Network) -> NetworkRecord {
    NetworkRecord {
        tenant: network.tenant.clone(),
        name: network.name.clone(),
        kind: network.kind,
        vni: network.vni,
        ipv4_prefix: None,
    }
}

#[test]
fn services_of_a_document_are_named_with_and_without_instances() {
    let mut world = World::new("", SHOP);
    assert_eq!(told(&world.names("shop")), ["shop/db:", "shop/web:"]);
    world.attach("shop", "web", 1, 2);
    assert_eq!(
        told(&world.names("shop")),
        ["shop/db:", "shop/web: web-1 172.19.1.2"]
    );
    let mut host = known(3);
    let shop = world.network("shop");
    host.instances = vec![instance(&shop, 3, 3, "shop"), instance(&shop, 3, 2, "shop")];
    host.instances[0].ready = false;
    world.know("edge-3", host);
    assert_eq!(
        told(&world.names("shop")),
        [
            "shop/db:",
            "shop/web: web-1 172.19.1.2, web-2 172.19.3.2, web-3 172.19.3.3 (not ready)"
        ]
    );
}

#[test]
fn ports_order_and_texts_are_told_as_the_document_says() {
    let text = std::fs::read_to_string(fixtures::application("shop-named")).unwrap();
    let names = World::new("", &text).names("shop");
    let [db, web] = names.services.as_slice() else {
        panic!("two services")
    };
    assert!(names.log);
    assert_eq!((db.order, web.order), (AnswerOrder::Fixed, AnswerOrder::Rotate));
    let ports: Vec<_> = web
        .ports
        .iter()
        .map(|port| (port.name.as_str(), port.port))
        .collect();
    assert_eq!(ports, [("dns", 53), ("dns", 53), ("http", 80)]);
    assert_eq!(web.texts.len(), 3);
}

#[test]
fn instances_of_a_host_that_fell_silent_are_not_told_and_it_stays_a_peer() {
    let mut world = World::new("", SHOP);
    world.attach("shop", "web", 1, 2);
    let mut host = known(3);
    host.instances = vec![instance(&world.network("shop"), 3, 2, "shop")];
    world.know("edge-3", host);
    world.silent.insert("edge-3".to_owned());
    assert_eq!(
        told(&world.names("shop")),
        ["shop/db:", "shop/web: web-1 172.19.1.2"]
    );
    assert_eq!(world.plan().unwrap().peers.len(), 1);
}

#[test]
fn a_shared_network_names_every_application_in_it_by_its_addresses_there() {
    let documents = sharing("shop", "x") + &sharing("till", "y");
    let mut world = World::new("", &documents);
    world.attach("shop", "web", 1, 2);
    world.join("acme/x", 5);
    let x = world.network("x");
    let mut host = known(3);
    host.networks.push(joined(&x));
    // An application whose document isn't here, in a network that is.
    host.instances = vec![instance(&x, 3, 2, "historian")];
    world.know("edge-3", host);
    let numbers = &x.numbers;
    let address = |ordinal, index| {
        let ordinal = HostOrdinal::try_from(ordinal).unwrap();
        let index = InstanceIndex::try_from(index).unwrap();
        numbers.instance(ordinal, index).unwrap().0
    };
    assert_eq!(
        told(&world.names("x")),
        [
            format!("historian/web: web-2 {}", address(3, 2)),
            format!("shop/web: web-1 {}", address(1, 5)),
        ]
    );
    assert_eq!(told(&world.names("y")), ["till/web:"]);
    assert_eq!(told(&world.names("shop")), ["shop/web: web-1 172.19.1.2"]);
}

#[test]
fn an_instance_that_another_host_attaches_is_a_change_of_names_and_no_new_epoch() {
    let mut world = World::new("", SHOP);
    world.attach("shop", "web", 1, 2);
    world.know("edge-3", known(3));
    let before = Snapshot::compile(&world.plan().unwrap(), None);
    let mut host = known(3);
    host.instances = vec![instance(&world.network("shop"), 3, 2, "shop")];
    world.know("edge-3", host);
    let after = Snapshot::compile(&world.plan().unwrap(), Some(&before));
    assert_eq!(before.epoch(), after.epoch());
    assert!(Arc::ptr_eq(before.policy(), after.policy()));
    assert!(Arc::ptr_eq(before.lanes(), after.lanes()));
    assert!(!Arc::ptr_eq(before.names(), after.names()));
}

#[test]
fn an_instance_without_a_number_in_an_old_journal_has_no_name_yet() {
    let mut world = World::new("", SHOP);
    let mut host = known(3);
    host.instances = vec![instance(&world.network("shop"), 3, 2, "shop")];
    let mut kept = serde_json::to_value(&host.instances[0]).unwrap();
    kept.as_object_mut()
        .unwrap()
        .retain(|key, _| key == "service" || key == "addresses");
    host.instances = vec![serde_json::from_value(kept).unwrap()];
    world.know("edge-3", host);
    assert_eq!(told(&world.names("shop")), ["shop/db:", "shop/web:"]);
}

#[test]
fn an_instance_that_is_asked_is_ready_when_it_was_found_so_and_the_others_always_are() {
    let text = std::fs::read_to_string(fixtures::application("shop-asked")).unwrap();
    let mut world = World::new("", &text);
    for (service, port, index) in [("web", 7, 2), ("db", 8, 3), ("worker", 9, 4)] {
        world.attach("shop", service, port, index);
    }
    world.ready.insert(PortId(8));
    assert_eq!(
        told(&world.names("shop")),
        [
            "shop/api:",
            "shop/db: db-1 172.19.1.3",
            "shop/web: web-1 172.19.1.2 (not ready)",
            "shop/worker: worker-1 172.19.1.4",
        ]
    );
    let asked = world.plan().unwrap().instances;
    let asked: Vec<_> = asked
        .iter()
        .map(|instance| instance.readiness.is_some())
        .collect();
    assert_eq!(asked, [true, true, false]);
}

#[test]
fn readiness_is_no_new_policy() {
    use tidegate_stack::snapshot::Snapshot;
    let text = std::fs::read_to_string(fixtures::application("shop-asked")).unwrap();
    let mut world = World::new("", &text);
    world.attach("shop", "web", 7, 2);
    let before = Snapshot::compile(&world.plan().unwrap(), None);
    world.ready.insert(PortId(7));
    let ready = Snapshot::compile(&world.plan().unwrap(), Some(&before));
    world.applications = World::new("", &text.replace("failures: 2", "failures: 9")).applications;
    let asked = Snapshot::compile(&world.plan().unwrap(), Some(&ready));
    assert_eq!([ready.epoch(), asked.epoch()], [before.epoch(); 2]);
}
