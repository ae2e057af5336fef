//! Inputs and the plans that follow from them.

mod names;
mod shared;

use super::*;
use crate::agent::cluster::record::{LaneGeneration, LaneRecord, NetworkRecord, NetworkSettings};
use crate::config::{application, host};
use std::path::Path;
use tidegate_stack::plan::{Generation, HostOrdinal, PublicKey, Reach, RemoteLane, Vni};

const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

/// Everything that [`Inputs`] borrows.
struct World {
    host: HostDocument,
    applications: Applications,
    attachments: Vec<Attachment>,
    hosts: KnownHosts,
    silent: BTreeSet<String>,
    ready: BTreeSet<PortId>,
    addresses: Vec<IpAddr>,
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
            hosts: KnownHosts::new(),
            silent: BTreeSet::new(),
            ready: BTreeSet::new(),
            addresses: vec!["192.0.2.11".parse().unwrap()],
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
            shared: BTreeMap::new(),
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

    fn inputs(&self) -> Inputs<'_> {
        Inputs {
            host: &self.host,
            applications: &self.applications,
            attachments: &self.attachments,
            peers: &self.peers,
            keys: &self.keys,
            underlay_mtu: self.underlay_mtu,
            hosts: &self.hosts,
            silent: &self.silent,
            ready: &self.ready,
            addresses: &self.addresses,
        }
    }

    fn plan(&self) -> Result<Plan, PlanErrors> {
        plan(&self.inputs())
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
        errors.contains("the network of acme/blue and the network of acme/red") && errors.contains("VNI 77"),
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

/// A host with two lanes of one generation, which takes part in the network of acme/shop.
fn known(ordinal: u64) -> KnownHost {
    let network = &World::new("", SHOP).host.network;
    KnownHost {
        ordinal: HostOrdinal::try_from(ordinal).unwrap(),
        addresses: vec!["192.0.2.12".parse().unwrap(), "2001:db8::12".parse().unwrap()],
        generations: vec![LaneGeneration {
            number: 4,
            lanes: vec![lane(51821, 1), lane(51822, 2)],
        }],
        network: NetworkSettings {
            application_prefix: network.application_prefix,
            shared_prefix: network.shared_prefix,
        },
        networks: vec![NetworkRecord {
            tenant: "acme".to_owned(),
            name: "shop".to_owned(),
            kind: NetworkKind::Application,
            vni: derive_vni("acme", NetworkKind::Application, "shop"),
            ipv4_prefix: None,
        }],
        instances: Vec::new(),
    }
}

fn lane(port: u16, key: u8) -> LaneRecord {
    LaneRecord {
        port,
        public_key: PublicKey::from_bytes([key; 32]),
    }
}

impl World {
    fn know(&mut self, name: &str, host: KnownHost) {
        self.hosts.insert(name.to_owned(), host);
        self.peers.number_hosts(self.hosts.keys());
    }

    fn conflicts(&self) -> Vec<String> {
        conflicts(&self.inputs())
            .iter()
            .map(ToString::to_string)
            .collect()
    }
}

#[test]
fn a_host_of_the_site_is_a_peer_by_its_lanes_and_the_networks_of_both() {
    let mut world = World::new(&peer(""), SHOP);
    let mut host = known(3);
    host.networks.push(NetworkRecord {
        tenant: "acme".to_owned(),
        name: "historian".to_owned(),
        kind: NetworkKind::Application,
        vni: Vni::try_from(4711).unwrap(),
        ipv4_prefix: None,
    });
    world.know("edge-3", host);
    let plan = world.plan().unwrap();
    let [foreign, site] = plan.peers.as_slice() else {
        panic!("two peers")
    };
    assert!(matches!(foreign.reach, Reach::Foreign(_)));
    assert_eq!(
        (site.name.as_str(), site.ordinal.get(), site.id.0),
        ("edge-3", 3, 2)
    );
    assert_eq!(site.mtu.get(), 1390);
    let shop = derive_vni("acme", NetworkKind::Application, "shop");
    assert_eq!(
        site.networks,
        PeerNetworks::Only([shop].into()),
        "the other one isn't here"
    );
    let Reach::Site(generations) = &site.reach else {
        panic!("a host of the site")
    };
    let lanes = [(51821, 1), (51822, 2)].map(|(port, key)| RemoteLane {
        public_key: PublicKey::from_bytes([key; 32]),
        endpoint: format!("192.0.2.12:{port}").parse().unwrap(),
    });
    let expected = Generation {
        number: 4,
        lanes: lanes.to_vec(),
    };
    assert_eq!(*generations, [expected]);
    assert_eq!(world.conflicts(), [""; 0]);
}

#[test]
fn a_host_is_reached_at_the_address_of_the_document_or_of_a_family_that_both_have() {
    let endpoint = |world: &World| match &world.plan().unwrap().peers[0].reach {
        Reach::Site(generations) => generations[0].lanes[0].endpoint.ip().to_string(),
        Reach::Foreign(_) => panic!("a host of the site"),
    };
    let mut world = World::new("", SHOP);
    world.know("edge-3", known(3));
    assert_eq!(endpoint(&world), "192.0.2.12");
    world.addresses = vec!["2001:db8::11".parse().unwrap()];
    assert_eq!(endpoint(&world), "2001:db8::12");
    assert_eq!(world.plan().unwrap().peers[0].mtu.get(), 1370);
    let named = |address: &str| {
        Some(host::LinkDocument {
            ca_file: "ca.pem".into(),
            certificate_file: "edge-1.pem".into(),
            private_key_file: "edge-1.key".into(),
            hosts: vec![host::LinkHostDocument {
                host_id: "edge-3".to_owned(),
                address: address.parse().unwrap(),
            }],
        })
    };
    world.host.cluster.link = named("192.0.2.12");
    assert_eq!(endpoint(&world), "192.0.2.12");
    world.host.cluster.link = named("192.0.2.99");
    assert_eq!(endpoint(&world), "2001:db8::12", "it no longer has that one");
}

#[test]
fn a_host_whose_datapath_never_started_is_known_and_not_reached() {
    let mut world = World::new("", SHOP);
    let mut host = known(3);
    host.generations[0].lanes.clear();
    let body = crate::agent::cluster::record::RecordBody {
        ordinal: host.ordinal,
        addresses: host.addresses.clone(),
        generations: host.generations.clone(),
        network: host.network,
        networks: host.networks.clone(),
        instances: Vec::new(),
        later: serde_json::Map::new(),
    };
    world.know("edge-3", KnownHost::of(&body));
    assert!(matches!(&world.plan().unwrap().peers[0].reach, Reach::Site(none) if none.is_empty()));
}

#[test]
fn an_ordinal_that_two_hosts_claim_stays_with_the_one_that_was_known_first() {
    let mut world = World::new(&peer(""), SHOP);
    world.know("edge-9", known(9));
    world.know("edge-3", known(9));
    world.know("edge-4", known(1));
    world.know("edge-5", known(2));
    let plan = world.plan().unwrap();
    let names: Vec<_> = plan.peers.iter().map(|peer| peer.name.as_str()).collect();
    assert_eq!(names, ["edge-2", "edge-9"]);
    let told = world.conflicts().join("\n");
    assert!(
        told.contains("host edge-9 and host edge-3 both have ordinal 9"),
        "{told}"
    );
    assert!(
        told.contains("host edge-4 has ordinal 1, which is this host's own"),
        "{told}"
    );
    assert!(
        told.contains("peer edge-2 and host edge-5 both have ordinal 2"),
        "{told}"
    );
}

#[test]
fn networks_that_only_look_the_same_are_not_joined() {
    let mut world = World::new("", SHOP);
    let shop = derive_vni("acme", NetworkKind::Application, "shop");
    let mut same_number = known(3);
    same_number.networks[0].name = "till".to_owned();
    world.know("edge-3", same_number);
    let mut other_number = known(4);
    other_number.networks[0].vni = Vni::try_from(4711).unwrap();
    world.know("edge-4", other_number);
    let mut other_plan = known(5);
    other_plan.network.application_prefix = "10.64.0.0/16".parse().unwrap();
    world.know("edge-5", other_plan);
    for peer in world.plan().unwrap().peers {
        assert_eq!(
            peer.networks,
            PeerNetworks::Only(BTreeSet::new()),
            "{}",
            peer.name
        );
    }
    let told = world.conflicts().join("\n");
    assert!(told.contains(&format!(
        "VNI {shop} is the network of acme/shop here and the network of acme/till on host edge-3"
    )));
    assert!(
        told.contains(&format!("acme/shop has VNI {shop} here and 4711 on host edge-4")),
        "{told}"
    );
    assert!(
        told.contains("`network.application-prefix` is 172.19.0.0/16 here and 10.64.0.0/16 on host edge-5")
    );
}

#[test]
fn a_silent_host_is_remembered_until_another_one_has_its_ordinal() {
    let hosts = |named: &[(&str, u64)]| -> KnownHosts {
        named
            .iter()
            .map(|(name, ordinal)| ((*name).to_owned(), known(*ordinal)))
            .collect()
    };
    let before = hosts(&[("edge-2", 2), ("edge-3", 3)]);
    assert_eq!(learn(&before, hosts(&[("edge-3", 3)])), before);
    let after = learn(&before, hosts(&[("edge-3", 3), ("edge-4", 2)]));
    assert_eq!(after.keys().collect::<Vec<_>>(), ["edge-3", "edge-4"]);
    let both = hosts(&[("edge-3", 3), ("edge-4", 3)]);
    assert_eq!(
        learn(&KnownHosts::new(), both.clone()),
        both,
        "a conflict of the living is told"
    );
}
