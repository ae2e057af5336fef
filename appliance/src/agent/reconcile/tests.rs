//! Inputs and the plans that follow from them.

use super::*;
use crate::config::{application, host};
use std::path::Path;
use tidegate_stack::plan::Reach;

const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

/// Everything that [`Inputs`] borrows.
struct World {
    host: HostDocument,
    applications: Applications,
    attachments: Vec<Attachment>,
    peers: PeerNumbers,
    keys: Keys,
    underlay_mtu: u32,
}

impl World {
    fn new(peers: &str, documents: &str) -> Self {
        let text = format!("host-id: edge-1\nsite: store-42\nordinal: 1\ncluster: {{ peers: [{peers}] }}\n");
        let host = host::parse(Path::new("host.yaml"), &text).unwrap();
        let documents = application::parse(Path::new("shop.yaml"), documents).unwrap();
        let mut numbers = PeerNumbers::default();
        numbers.number(host.cluster.peers.iter().map(|peer| peer.public_key));
        Self {
            host,
            applications: documents
                .into_iter()
                .map(|document| (ApplicationKey::of(&document), document))
                .collect(),
            attachments: Vec::new(),
            peers: numbers,
            keys: Keys {
                foreign_lane: PrivateKey::from_bytes([7; 32]),
                preshared: BTreeMap::new(),
            },
            underlay_mtu: 1500,
        }
    }

    fn attach(&mut self, application: &str, service: &str, port: u32, index: u64) {
        self.attachments.push(Attachment {
            application: ApplicationKey {
                tenant: "acme".to_owned(),
                name: application.to_owned(),
            },
            service: service.to_owned(),
            number: 1,
            port: PortId(port),
            index: InstanceIndex::try_from(index).unwrap(),
            namespace: Namespace {
                device: 4,
                inode: 4_026_532_000,
            },
            interface: "eth0".to_owned(),
            mtu: instance_mtu(&self.host, self.underlay_mtu),
            offloads: true,
            memberships: Vec::new(),
        });
    }

    fn plan(&self) -> Result<Plan, PlanErrors> {
        plan(&Inputs {
            host: &self.host,
            applications: &self.applications,
            attachments: &self.attachments,
            peers: &self.peers,
            keys: &self.keys,
            underlay_mtu: self.underlay_mtu,
        })
    }

    fn errors(&self) -> String {
        match self.plan() {
            Ok(_) => String::new(),
            Err(errors) => errors.to_string(),
        }
    }
}

const SHOP: &str = "tenant: acme\nname: shop\nservices: [ { name: web }, { name: db } ]\n";

fn peer(rest: &str) -> String {
    format!("{{ name: edge-2, ordinal: 2, public-key: \"{KEY}\", networks: all, {rest} }}")
}

#[test]
fn an_instance_has_the_addresses_of_its_index_in_this_hosts_block() {
    let mut world = World::new("", SHOP);
    world.attach("shop", "web", 9, 2);
    world.attach("shop", "db", 4, 3);
    let plan = world.plan().unwrap();
    assert_eq!(plan.networks.len(), 1);
    assert_eq!(
        plan.networks[0].vni,
        derive_vni("acme", NetworkKind::Application, "shop")
    );
    // Ports, not the order of attaching, order a plan.
    assert_eq!(
        plan.instances
            .iter()
            .map(|instance| instance.name.as_str())
            .collect::<Vec<_>>(),
        ["db-1", "web-1"]
    );
    assert_eq!(plan.instances[1].memberships[0].ipv4.to_string(), "172.19.1.2");
    assert_eq!(plan.instances[1].memberships[0].ipv6.segments()[6..], [1, 2]);
    assert_eq!(plan.instances[1].mtu.get(), 1390);
}

#[test]
fn equal_inputs_give_equal_plans_whatever_their_order() {
    let mut world = World::new(&peer("endpoint: \"192.0.2.12:51820\""), SHOP);
    world.attach("shop", "web", 1, 2);
    world.attach("shop", "db", 2, 3);
    let first = serde_json::to_vec(&world.plan().unwrap()).unwrap();
    world.attachments.reverse();
    assert_eq!(first, serde_json::to_vec(&world.plan().unwrap()).unwrap());
}

#[test]
fn two_networks_with_one_number_are_refused_naming_both_and_the_key() {
    let red = "tenant: acme\nname: red\nnetwork: { vni: 77 }\nservices: [ { name: web } ]\n";
    let blue = "tenant: acme\nname: blue\nnetwork: { vni: 77 }\nservices: [ { name: web } ]\n";
    let errors = World::new("", &format!("{red}---\n{blue}")).errors();
    assert!(
        errors.contains("acme/blue and acme/red") && errors.contains("VNI 77"),
        "{errors}"
    );
    assert!(errors.contains("`network.vni`"), "{errors}");
}

#[test]
fn an_attached_instance_keeps_its_service_from_vanishing() {
    let mut world = World::new("", SHOP);
    world.attach("shop", "worker", 1, 2);
    world.attach("gone", "web", 2, 2);
    let errors = world.errors();
    assert!(
        errors.contains("acme/shop describes no service `worker`"),
        "{errors}"
    );
    assert!(
        errors.contains("acme/gone describes no service `web`"),
        "all errors are told: {errors}"
    );
}

#[test]
fn a_peers_mtu_follows_the_family_of_its_endpoint() {
    let ipv4 = World::new(&peer("endpoint: \"192.0.2.12:51820\""), SHOP)
        .plan()
        .unwrap();
    assert_eq!(ipv4.peers[0].mtu.get(), 1390);
    assert_eq!(ipv4.peers[0].networks, PeerNetworks::All);
    let world = World::new(&peer("endpoint: \"[2001:db8::2]:51820\""), SHOP);
    assert_eq!(world.plan().unwrap().peers[0].mtu.get(), 1370);
    assert_eq!(instance_mtu(&world.host, 1500).get(), 1370);
}

#[test]
fn a_peer_is_a_member_of_what_its_entry_names() {
    let entry = format!(
        "{{ name: plc, ordinal: 200, public-key: \"{KEY}\", networks: [ {{ application: shop, tenant: acme }}, \
         {{ application: later, tenant: acme, vni: 4242 }} ] }}"
    );
    let plan = World::new(&entry, SHOP).plan().unwrap();
    let PeerNetworks::Only(vnis) = &plan.peers[0].networks else {
        panic!("named networks, not all")
    };
    assert!(vnis.contains(&derive_vni("acme", NetworkKind::Application, "shop")));
    assert!(vnis.contains(&Vni::try_from(4242).unwrap()));
}

#[test]
fn a_peer_that_expects_another_number_is_refused_with_the_key_to_set() {
    let entry = format!(
        "{{ name: plc, ordinal: 200, public-key: \"{KEY}\", networks: [ {{ application: shop, tenant: acme, vni: 4242 }} ] }}"
    );
    let errors = World::new(&entry, SHOP).errors();
    assert!(
        errors.contains("peer plc expects VNI 4242 for acme/shop"),
        "{errors}"
    );
    assert!(errors.contains("`network.vni: 4242`"), "{errors}");
}

#[test]
fn an_index_outside_the_block_is_told() {
    let mut world = World::new("", SHOP);
    world.attach("shop", "web", 1, 254);
    assert!(world.plan().is_ok(), "254 is the last index of a /24");
}

#[test]
fn a_preshared_key_reaches_its_peer() {
    let mut world = World::new(&peer("keepalive: 25"), SHOP);
    world
        .keys
        .preshared
        .insert("edge-2".to_owned(), PresharedKey::from_bytes([9; 32]));
    let plan = world.plan().unwrap();
    let Reach::Foreign(reach) = &plan.peers[0].reach else {
        panic!("a foreign peer")
    };
    assert!(reach.preshared_key.is_some());
    assert_eq!(reach.keepalive, Some(25));
    assert_eq!(reach.endpoint, None);
}
