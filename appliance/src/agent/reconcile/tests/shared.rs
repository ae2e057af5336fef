//! Networks that applications share, and who may talk to whom.

use super::*;
use crate::agent::reconcile::site::KnownInstance;
use ipnet::Ipv4Net;
use tidegate_fixtures as fixtures;
use tidegate_stack::plan::{Network, Selector, Service, ServiceId, shared_prefix_index};

fn fixture(name: &str) -> String {
    std::fs::read_to_string(fixtures::application(name)).unwrap()
}

impl World {
    /// The device of the last attached instance was made for this shared network, too.
    pub(super) fn join(&mut self, network: &str, index: u64) {
        let index = InstanceIndex::try_from(index).unwrap();
        let attachment = self.attachments.last_mut().unwrap();
        attachment.shared.insert(network.to_owned(), index);
    }

    pub(super) fn network(&self, name: &str) -> Network {
        let networks = self.plan().unwrap().networks;
        let mut named = networks.into_iter().filter(|network| network.name == name);
        named.next().unwrap()
    }

    /// The networks of an application's first instance, in their order.
    fn networks_of(&self, application: &str) -> Vec<String> {
        let plan = self.plan().unwrap();
        let mut instances = plan.instances.iter();
        let instance = instances
            .find(|instance| instance.application == application)
            .unwrap();
        let memberships = instance.memberships.iter();
        memberships
            .map(|membership| plan.network(membership.vni).unwrap().name.clone())
            .collect()
    }

    fn service(&self, application: &str, service: &str) -> Service {
        let services = self.plan().unwrap().services;
        let id = service_id(application, service);
        services.into_iter().find(|service| service.id == id).unwrap()
    }
}

fn service_id(application: &str, service: &str) -> ServiceId {
    ServiceId {
        tenant: "acme".to_owned(),
        application: application.to_owned(),
        service: service.to_owned(),
    }
}

/// An application of acme with one service, in these networks.
pub(super) fn sharing(name: &str, networks: &str) -> String {
    format!(
        "---\ntenant: acme\nname: {name}\nnetwork: {{ shared-application-network: [ {networks} ] }}\n\
         services: [ {{ name: web }} ]\n"
    )
}

#[test]
fn sharing_is_not_transitive() {
    let mut world = World::new("", &fixture("sharing"));
    for (port, application, networks) in [
        (1, "a", &["acme/x"][..]),
        (2, "b", &["acme/x", "acme/y"]),
        (3, "c", &["acme/y"]),
    ] {
        world.attach(application, "probe", port, 2);
        for network in networks {
            world.join(network, u64::from(port) + 1);
        }
    }
    assert_eq!(world.networks_of("a"), ["a", "x"]);
    assert_eq!(world.networks_of("b"), ["b", "x", "y"]);
    assert_eq!(world.networks_of("c"), ["c", "y"]);
    let x = world.network("x");
    assert_eq!(x.kind, NetworkKind::Shared);
    assert_ne!(x.ipv4_prefix(), world.network("y").ipv4_prefix());
    let plan = world.plan().unwrap();
    let of_b = plan.instances[1].memberships[1];
    assert_eq!(of_b.vni, x.vni);
    let (ipv4, ipv6) = x
        .numbers
        .instance(world.host.ordinal, InstanceIndex::try_from(3).unwrap())
        .unwrap();
    assert_eq!((of_b.ipv4, of_b.ipv6), (ipv4, ipv6));
}

#[test]
fn a_network_that_is_left_is_gone_at_once_and_one_that_is_joined_comes_with_the_device() {
    let mut world = World::new("", &sharing("a", "x, y"));
    world.attach("a", "web", 1, 2);
    world.join("acme/y", 2);
    assert_eq!(
        world.networks_of("a"),
        ["a", "y"],
        "the device has no address in x yet"
    );
    world.join("acme/x", 2);
    assert_eq!(world.networks_of("a"), ["a", "x", "y"]);
    let left = application::parse(Path::new("a.yaml"), &sharing("a", "y")).unwrap();
    world.applications = left
        .into_iter()
        .map(|document| (ApplicationKey::of(&document), document))
        .collect();
    assert_eq!(world.networks_of("a"), ["a", "y"]);
    assert!(
        world
            .plan()
            .unwrap()
            .networks
            .iter()
            .all(|network| network.name != "x")
    );
}

#[test]
fn tenants_share_a_name_and_no_network_unless_one_joins_anothers_on_purpose() {
    let other = |network: &str| {
        format!(
            "{}---\ntenant: plant\nname: b\nnetwork: {{ shared-application-network: {network} }}\nservices: [ {{ name: web }} ]\n",
            sharing("a", "floor")
        )
    };
    let shared = |network: &str| -> Vec<String> {
        let plan = World::new("", &other(network)).plan().unwrap();
        let mut shared: Vec<_> = plan
            .networks
            .iter()
            .filter(|network| network.kind == NetworkKind::Shared)
            .map(|network| format!("{}/{}", network.tenant, network.name))
            .collect();
        shared.sort();
        shared
    };
    assert_eq!(shared("floor"), ["acme/floor", "plant/floor"]);
    assert_eq!(shared("acme/floor"), ["acme/floor"]);
}

/// Two names whose shared networks get one prefix.
fn colliding() -> (String, String) {
    let index = |name: &str| shared_prefix_index("acme", name, 128);
    let mut names = (1..).map(|number| format!("n{number}"));
    let first = names.next().unwrap();
    let second = names.find(|name| index(name) == index(&first)).unwrap();
    (first, second)
}

#[test]
fn networks_with_one_prefix_or_one_number_are_refused_naming_both_and_the_key() {
    let (first, second) = colliding();
    let errors = World::new("", &sharing("a", &format!("{first}, {second}"))).errors();
    assert!(
        errors.contains(&format!(
            "the shared network acme/{first} and the shared network acme/{second} both have the prefix"
        )),
        "{errors}"
    );
    assert!(
        errors.contains(&format!(
            "`ipv4-prefix` of acme/{second} in `network.shared-application-network`"
        )),
        "{errors}"
    );
    let settled = format!("{first}, {{ name: {second}, ipv4-prefix: 100.127.192.0/18 }}");
    assert_eq!(World::new("", &sharing("a", &settled)).errors(), "");

    let own = derive_vni("acme", NetworkKind::Application, "a");
    let errors = World::new("", &sharing("a", &format!("{{ name: x, vni: {own} }}"))).errors();
    assert!(
        errors.contains(&format!(
            "the network of acme/a and the shared network acme/x both have VNI {own}: set `network.vni` in the document \
             of acme/a, or `vni` of acme/x"
        )),
        "{errors}"
    );
}

#[test]
fn documents_agree_about_a_shared_network_and_keep_inside_the_sites_prefix() {
    let text = sharing("a", "{ name: x, vni: 77 }") + &sharing("b", "x");
    let errors = World::new("", &text).errors();
    assert!(
        errors.contains("shop.yaml:9: says something else about the shared network acme/x than shop.yaml:4"),
        "{errors}"
    );
    let errors = World::new("", &sharing("a", "{ name: x, ipv4-prefix: 10.0.0.0/18 }")).errors();
    assert!(
        errors.contains("shop.yaml:4: the shared network acme/x has the prefix 10.0.0.0/18"),
        "{errors}"
    );
    assert!(
        errors.contains("`network.shared-prefix`, 100.96.0.0/11"),
        "{errors}"
    );
    assert_eq!(World::new("", &fixture("sharing-set")).errors(), "");
}

#[test]
fn an_index_beyond_a_shared_block_is_told() {
    let mut world = World::new("", &sharing("a", "x"));
    world.attach("a", "web", 1, 200);
    world.join("acme/x", 62);
    assert_eq!(world.errors(), "");
    world.join("acme/x", 63);
    assert!(
        world.errors().contains("no address with index 63"),
        "{}",
        world.errors()
    );
}

#[test]
fn services_carry_their_document_their_lines_and_the_numbers_of_networks() {
    let world = World::new("", &fixture("shop-guarded"));
    let plan = world.plan().unwrap();
    assert_eq!(plan.services.len(), 2);
    let db = world.service("shop", "db");
    assert_eq!(db.document, "shop.yaml");
    assert!(db.limits.is_unlimited() && db.outbound.is_none());
    let inbound = db.inbound.unwrap();
    assert_eq!(inbound.rules[1].line, 26);
    assert_eq!(
        inbound.rules[1].other,
        Selector::Service(service_id("shop", "web"))
    );
    let own = derive_vni("acme", NetworkKind::Application, "shop");
    assert_eq!(inbound.rules[5].other, Selector::Network(own));
    let web = world.service("shop", "web");
    assert_eq!(web.inbound.unwrap().rules[0].other, Selector::Any);
    let floor = derive_vni("acme", NetworkKind::Shared, "floor-data");
    assert_eq!(web.outbound.unwrap().rules[2].other, Selector::Network(floor));
    assert!(World::new("", SHOP).plan().unwrap().services.is_empty());
}

#[test]
fn a_rule_about_an_application_that_no_network_leads_to_is_refused_at_its_line() {
    let historian = |networks: &str| fixture("shop-guarded") + &sharing("historian", networks);
    let errors = World::new("", &historian("other")).errors();
    assert!(
        errors.contains("shop.yaml:17: a rule about acme/historian needs a common shared network"),
        "{errors}"
    );
    assert!(errors.contains("shop.yaml:28:"), "each of them is told: {errors}");
    assert_eq!(World::new("", &historian("other, floor-data")).errors(), "");
    assert_eq!(
        World::new("", &fixture("shop-guarded")).errors(),
        "",
        "it may come later"
    );
}

/// An instance of acme with addresses at an offset from the begin of the block of a host.
pub(super) fn instance(network: &Network, ordinal: u64, index: u64, application: &str) -> KnownInstance {
    let ordinal = HostOrdinal::try_from(ordinal).unwrap();
    let index = InstanceIndex::try_from(index).unwrap();
    let (ipv4, ipv6) = network.numbers.instance(ordinal, index).unwrap();
    KnownInstance {
        service: service_id(application, "web"),
        number: index.get().into(),
        ready: true,
        addresses: vec![Membership {
            vni: network.vni,
            ipv4,
            ipv6,
        }],
    }
}

#[test]
fn members_are_what_a_host_says_of_its_own_blocks_and_of_networks_that_are_joined_with_it() {
    let mut world = World::new("", &(sharing("shop", "x") + &sharing("till", "x")));
    let (shop, till, x) = (world.network("shop"), world.network("till"), world.network("x"));
    let mut host = known(3);
    host.networks.push(record(&x));
    let mut torn = instance(&x, 3, 4, "till");
    torn.addresses[0].ipv6 = instance(&x, 4, 4, "till").addresses[0].ipv6;
    host.instances = vec![
        instance(&shop, 3, 2, "shop"),
        instance(&x, 3, 2, "shop"),
        instance(&x, 3, 3, "till"),
        // Another host's block, another application's network, a network that isn't joined, an address that is taken.
        instance(&x, 4, 2, "shop"),
        torn,
        instance(&shop, 3, 3, "till"),
        instance(&till, 3, 2, "till"),
        instance(&x, 3, 2, "till"),
    ];
    world.know("edge-3", host.clone());
    let members = world.plan().unwrap().members;
    let mut told: Vec<_> = members
        .iter()
        .map(|member| (member.vni, member.ipv4, member.service.application.as_str()))
        .collect();
    let mut expected = [
        (&host.instances[0], "shop"),
        (&host.instances[1], "shop"),
        (&host.instances[2], "till"),
    ]
    .map(|(instance, application)| (instance.addresses[0].vni, instance.addresses[0].ipv4, application));
    told.sort();
    expected.sort();
    assert_eq!(told, expected);
    assert!(
        members
            .iter()
            .all(|member| Some(member.peer) == world.peers.get_host("edge-3"))
    );
}

#[test]
fn there_are_no_members_where_nothing_depends_on_them() {
    let limits =
        "tenant: acme\nname: shop\nservices: [ { name: web, network: { limits: { connections: 9 } } } ]\n";
    let rules =
        "tenant: acme\nname: shop\nservices: [ { name: web, network: { inbound-access: { rules: [] } } } ]\n";
    for (document, expected) in [(SHOP, 0), (limits, 0), (rules, 1)] {
        let mut world = World::new("", document);
        let mut host = known(3);
        host.instances = vec![instance(&world.network("shop"), 3, 2, "shop")];
        world.know("edge-3", host);
        assert_eq!(world.plan().unwrap().members.len(), expected, "{document}");
    }
}

#[test]
fn a_host_that_is_kept_out_has_no_members() {
    let mut world = World::new("", &sharing("shop", "x"));
    let x = world.network("x");
    let mut host = known(1);
    host.networks.push(record(&x));
    host.instances = vec![instance(&x, 1, 2, "shop")];
    world.know("edge-3", host);
    assert!(
        world.plan().unwrap().members.is_empty(),
        "it claims this host's ordinal"
    );
}

fn record(network: &Network) -> NetworkRecord {
    NetworkRecord {
        tenant: network.tenant.clone(),
        name: network.name.clone(),
        kind: network.kind,
        vni: network.vni,
        ipv4_prefix: (network.kind == NetworkKind::Shared).then(|| network.ipv4_prefix()),
    }
}

#[test]
fn a_shared_network_is_joined_with_hosts_that_have_it_with_the_same_number_and_prefix() {
    let mut world = World::new("", &sharing("a", "x"));
    let x = world.network("x");
    let other_prefix: Ipv4Net = "100.127.192.0/18".parse().unwrap();
    let host = |change: fn(&mut NetworkRecord), ordinal| {
        let mut record = record(&x);
        change(&mut record);
        let mut host = known(ordinal);
        host.networks = vec![record];
        host
    };
    world.know("edge-3", host(|_| {}, 3));
    world.know("edge-4", host(|record| record.vni = Vni::MIN, 4));
    world.know(
        "edge-5",
        host(|record| record.ipv4_prefix = "100.127.192.0/18".parse().ok(), 5),
    );
    world.know("edge-6", host(|record| record.name = "y".to_owned(), 6));
    world.know(
        "edge-7",
        host(
            |record| {
                record.name = "y".to_owned();
                record.vni = Vni::MIN;
            },
            7,
        ),
    );
    // An application may be called like a shared network.
    world.know(
        "edge-8",
        host(
            |record| {
                record.kind = NetworkKind::Application;
                record.vni = Vni::MIN;
            },
            8,
        ),
    );
    let plan = world.plan().unwrap();
    let joined: Vec<_> = plan
        .peers
        .iter()
        .filter(|peer| peer.networks.contains(x.vni))
        .map(|peer| peer.name.as_str())
        .collect();
    assert_eq!(joined, ["edge-3"]);
    let told = world.conflicts().join("\n");
    let (vni, prefix) = (x.vni, x.ipv4_prefix());
    for expected in [
        format!("the shared network acme/x has VNI {vni} here and 1 on host edge-4"),
        format!("the shared network acme/x has the prefix {prefix} here and {other_prefix} on host edge-5"),
        format!("VNI {vni} is the shared network acme/x here and the shared network acme/y on host edge-6"),
        format!("{prefix} is the shared network acme/x here and the shared network acme/y on host edge-7"),
    ] {
        assert!(told.contains(&expected), "{expected}\n{told}");
    }
    assert!(!told.contains("edge-8"), "{told}");
}

#[test]
fn rules_and_members_are_in_one_order_whatever_that_of_the_inputs() {
    let mut world = World::new("", &(fixture("shop-guarded") + &sharing("till", "floor-data")));
    let floor = world.network("floor-data");
    let mut host = known(3);
    host.networks.push(record(&floor));
    host.instances = vec![instance(&floor, 3, 3, "till"), instance(&floor, 3, 2, "shop")];
    world.know("edge-3", host.clone());
    let first = serde_json::to_vec(&world.plan().unwrap()).unwrap();
    host.instances.reverse();
    host.networks.reverse();
    world.know("edge-3", host);
    assert_eq!(first, serde_json::to_vec(&world.plan().unwrap()).unwrap());
}

#[test]
fn a_peer_of_one_network_is_no_member_of_another_that_has_its_number() {
    let entry = format!(
        "{{ name: plc, ordinal: 200, public-key: \"{KEY}\", networks: [ {{ application: later, tenant: acme, vni: 4242 }} ] }}"
    );
    assert_eq!(World::new(&entry, &sharing("a", "x")).errors(), "");
    let errors = World::new(&entry, &sharing("a", "{ name: x, vni: 4242 }")).errors();
    assert!(
        errors.contains(
            "peer plc is a member of the network of acme/later by VNI 4242, which is the shared network acme/x here"
        ),
        "{errors}"
    );
}
