//! A site with three applications: `shop` and `historian` share a network, `blue` is alone.

use crate::plan::{
    AnswerOrder, HostOrdinal, Instance, Membership, Mtu, NamedInstance, NamedPort, NamedService, Network,
    NetworkKind, NetworkNames, NetworkNumbers, Plan, PortId, PortProtocol, PrivateKey, ServiceId, Text, Vni,
};
use crate::snapshot::Names;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::OnceLock;

pub(crate) const SHOP: PortId = PortId(0);
pub(crate) const HISTORIAN: PortId = PortId(1);
pub(crate) const BLUE: PortId = PortId(2);

const SHARED: u64 = 5;
/// The network whose queries are told one by one: the historian's own.
const LOGGED: u64 = 2;

pub(crate) fn vni(number: u64) -> Vni {
    Vni::try_from(number).unwrap()
}

fn network(number: u64, name: &str) -> Network {
    let (kind, prefix, ipv4_block_length) = if number == SHARED {
        (NetworkKind::Shared, "100.96.64.0/18", 26)
    } else {
        (NetworkKind::Application, "172.19.0.0/16", 24)
    };
    Network {
        vni: vni(number),
        kind,
        tenant: "acme".into(),
        name: name.into(),
        numbers: NetworkNumbers {
            ipv4_prefix: prefix.parse().unwrap(),
            ipv4_block_length,
            ipv6_prefix: format!("fd00:aaaa:bbbb:{number}::/64").parse().unwrap(),
        },
    }
}

/// The addresses of an ordinal's instance in a network.
pub(crate) fn addresses(number: u64, ordinal: u8, index: u8) -> (Ipv4Addr, Ipv6Addr) {
    let ipv4 = if number == SHARED {
        Ipv4Addr::new(100, 96, 64, (ordinal * 64).wrapping_add(index))
    } else {
        Ipv4Addr::new(172, 19, ordinal, index)
    };
    let [number, ordinal, index] = [number as u16, u16::from(ordinal), u16::from(index)];
    (
        ipv4,
        Ipv6Addr::new(0xfd00, 0xaaaa, 0xbbbb, number, 0, 0, ordinal, index),
    )
}

fn service(application: &str, name: &str, instances: Vec<NamedInstance>) -> NamedService {
    NamedService {
        id: ServiceId {
            tenant: "acme".into(),
            application: application.into(),
            service: name.into(),
        },
        order: AnswerOrder::Rotate,
        ports: Vec::new(),
        texts: Vec::new(),
        instances,
    }
}

fn named(number: u64, name: &str, ordinal: u8, index: u8) -> NamedInstance {
    let (ipv4, ipv6) = addresses(number, ordinal, index);
    NamedInstance {
        name: name.into(),
        ipv4,
        ipv6,
        ready: true,
    }
}

fn text(label: Option<&str>, text: &str) -> Text {
    Text {
        label: label.map(Into::into),
        text: text.into(),
    }
}

fn http() -> Vec<NamedPort> {
    vec![NamedPort {
        name: "http".into(),
        protocol: PortProtocol::Tcp,
        port: 80,
    }]
}

/// The services of `shop`, with the addresses of a network.
fn shop(number: u64) -> Vec<NamedService> {
    let mut web = service(
        "shop",
        "web",
        vec![
            named(number, "web-1", 1, 2),
            named(number, "web-10", 1, 9),
            named(number, "web-2", 2, 2),
            named(number, "web-3", 2, 3),
        ],
    );
    web.instances[3].ready = false;
    web.ports = http();
    web.ports.push(NamedPort {
        name: "stats".into(),
        protocol: PortProtocol::Udp,
        port: 8125,
    });
    web.texts = vec![
        text(None, "build=17"),
        text(None, ""),
        text(Some("_acme-challenge"), "token-1"),
        text(Some("_acme-challenge"), "token-2"),
    ];
    let mut db = service(
        "shop",
        "db",
        vec![named(number, "db-1", 1, 3), named(number, "db-2", 2, 4)],
    );
    db.order = AnswerOrder::Fixed;
    let mut idle = service("shop", "idle", vec![named(number, "idle-1", 1, 5)]);
    idle.instances[0].ready = false;
    idle.ports = http();
    let gone = service("shop", "gone", Vec::new());
    let many = |index: u8| named(number, &format!("many-{}", index - 99), 1, index);
    let mut many = service("shop", "many", (100..200).map(many).collect());
    many.ports = http();
    let mut long = service("shop", "long", Vec::new());
    long.texts = vec![text(None, &"x".repeat(600))];
    let illegal = service("shop", &"y".repeat(64), vec![named(number, "y-1", 1, 7)]);
    vec![web, db, idle, gone, many, long, illegal]
}

fn historian(number: u64) -> Vec<NamedService> {
    let instances = vec![named(number, "db-1", 1, 12), named(number, "db-2", 2, 12)];
    vec![service("historian", "db", instances)]
}

/// The plan of one host of the site.
pub(crate) fn plan() -> Plan {
    let instance = |port: PortId, application: &str, networks: &[u64], index: u8| Instance {
        port,
        tenant: "acme".into(),
        application: application.into(),
        service: "web".into(),
        name: "web-1".into(),
        memberships: networks
            .iter()
            .map(|number| {
                let (ipv4, ipv6) = addresses(*number, 1, index);
                Membership {
                    vni: vni(*number),
                    ipv4,
                    ipv6,
                }
            })
            .collect(),
        mtu: Mtu::try_from(1390).unwrap(),
        offloads: true,
        readiness: None,
    };
    let of = |number: u64, services: Vec<NamedService>| NetworkNames {
        vni: vni(number),
        log: number == LOGGED,
        services,
    };
    // In the shared network `shop` has only some of its services: what it has besides isn't told there.
    let few = shop(SHARED)
        .into_iter()
        .filter(|service| service.id.service != "many");
    let mut plan = Plan {
        ordinal: HostOrdinal::MIN,
        networks: vec![
            network(1, "shop"),
            network(2, "historian"),
            network(3, "blue"),
            network(SHARED, "floor-data"),
        ],
        services: Vec::new(),
        instances: vec![
            instance(SHOP, "shop", &[1, SHARED], 2),
            instance(HISTORIAN, "historian", &[2, SHARED], 3),
            instance(BLUE, "blue", &[3], 2),
        ],
        members: Vec::new(),
        names: vec![
            of(1, shop(1)),
            of(2, historian(2)),
            of(3, vec![service("blue", "web", vec![named(3, "web-1", 1, 2)])]),
            of(SHARED, few.chain(historian(SHARED)).collect()),
        ],
        peers: Vec::new(),
        foreign_lane_key: PrivateKey::from_bytes([1; 32]),
    };
    plan.normalise();
    plan
}

/// What is answered by that plan.
pub(crate) fn names() -> &'static Names {
    static NAMES: OnceLock<Names> = OnceLock::new();
    NAMES.get_or_init(|| Names::compile(&plan(), None))
}
