//! Networks that applications share, and rules, as documents write them.

use crate::config::access::{NetworkSelector, SelectorDocument};
use crate::config::application::{self, NetworkName};
use proptest::prelude::*;
use std::path::Path;
use tidegate_fixtures as fixtures;
use tidegate_stack::plan::{Action, Limits, OnDeny, PortRange, ProtocolMatch, ServiceId};

#[test]
fn rules_are_known_by_their_lines_in_the_file_also_when_their_document_is_read_alone() {
    let text = "name: a\nservices: [ { name: x } ]\n---\nname: b\nservices:\n  - name: x\n    network:\n      inbound-access:\n        rules:\n          - from: 192.0.2.0/24\n          - from: { service: x }\n";
    let documents = application::parse(Path::new("dir/both.yaml"), text).expect("it is legal");
    let [_, second] = documents.as_slice() else {
        panic!("two documents")
    };
    let lines = |document: &application::ApplicationDocument| {
        let access = document.services[0]
            .network
            .inbound
            .clone()
            .expect("it has rules");
        let rules: Vec<_> = access.rules.iter().map(|rule| rule.line).collect();
        (access.line, rules)
    };
    assert_eq!(lines(second), (9, vec![10, 11]));
    let kept = serde_json::to_string(&second.source).expect("it serialises");
    let source = serde_json::from_str(&kept).expect("and comes back");
    let again = application::parse_again(&source).expect("it was legal");
    assert_eq!(
        (lines(&again), &again.source.file[..]),
        ((9, vec![10, 11]), "dir/both.yaml")
    );
}

#[test]
fn a_document_that_was_kept_without_its_place_is_still_read() {
    let kept = serde_json::to_string("name: a\nservices: [ { name: x } ]\n").expect("text serialises");
    let source = serde_json::from_str(&kept).expect("it is a source");
    assert_eq!(
        application::parse_again(&source).map(|document| document.name),
        Ok("a".to_owned())
    );
}

#[test]
fn access_decodes_to_what_it_says() {
    let documents = application::read(&fixtures::application("shop-guarded")).expect("it is legal");
    let [web, db] = documents[0].services.as_slice() else {
        panic!("two services")
    };
    let service = |application: &str, service: &str| {
        SelectorDocument::Service(ServiceId {
            tenant: "acme".to_owned(),
            application: application.to_owned(),
            service: service.to_owned(),
        })
    };
    let ports = |ranges: &[(u16, u16)]| -> Vec<_> {
        let range = |(first, last): &(u16, u16)| PortRange {
            first: *first,
            last: *last,
        };
        ranges.iter().map(range).collect()
    };
    let inbound = web.network.inbound.as_ref().expect("it is set");
    assert_eq!(inbound.rules[0].other, SelectorDocument::Any);
    let outbound = web.network.outbound.as_ref().expect("it is set");
    assert_eq!(outbound.on_deny, OnDeny::Reject);
    assert_eq!(outbound.rules[0].other, service("shop", "db"));
    assert_eq!(
        outbound.rules[0].protocols,
        [ProtocolMatch::Tcp(ports(&[(5432, 5432)])), ProtocolMatch::Icmp]
    );
    assert_eq!(outbound.rules[1].other, service("historian", "db"));
    let floor = NetworkName {
        tenant: "acme".to_owned(),
        name: "floor-data".to_owned(),
    };
    let floor = SelectorDocument::Network(NetworkSelector::Shared(floor));
    assert_eq!(outbound.rules[2].other, floor);
    assert_eq!(
        web.network.limits,
        Limits {
            connections: Some(4096),
            new_connections_per_second: Some(200)
        }
    );
    let inbound = db.network.inbound.as_ref().expect("it is set");
    assert_eq!(inbound.rules[0].action, Action::Deny);
    let udp = ProtocolMatch::Udp(ports(&[(33434, 33534), (53, 53)]));
    assert_eq!(inbound.rules[2].protocols, [udp]);
    let alone = "fd00::7/128".parse().expect("a prefix");
    assert_eq!(inbound.rules[4].other, SelectorDocument::Prefix(alone));
    assert_eq!(
        inbound.rules[5].other,
        SelectorDocument::Network(NetworkSelector::Own)
    );
    assert_eq!(inbound.rules[5].line, 30);
    assert_eq!(db.network.outbound, None);
}

#[test]
fn a_network_is_named_alone_or_in_a_list_with_or_without_what_settles_a_collision() {
    let shared = |network: &str| {
        let text = format!(
            "tenant: acme\nname: a\nnetwork: {{ shared-application-network: {network} }}\nservices: [ {{ name: x }} ]\n"
        );
        let documents = application::parse(Path::new("a.yaml"), &text).expect("it is legal");
        let networks = documents[0].shared.iter();
        networks
            .map(|network| network.name.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(shared("x"), ["acme/x"]);
    assert_eq!(shared("{ name: plant/x, vni: 7 }"), ["plant/x"]);
    assert_eq!(
        shared("[ x, { name: y, ipv4-prefix: 100.96.64.0/18 } ]"),
        ["acme/x", "acme/y"]
    );
    assert_eq!(shared("[]"), [""; 0]);
}

#[test]
fn ten_thousand_rules_are_read_in_the_time_that_their_number_takes() {
    let mut text =
        "name: a\nservices:\n- name: x\n  network:\n    inbound-access:\n      rules:\n".to_owned();
    for port in (1..=10_000).map(|number| number * 3) {
        let rule = format!("{{ from: 0.0.0.0/0, protocols: [ {{ name: tcp, port-ranges: {port} }} ] }}");
        text.push_str(&format!("      - {rule}\n"));
    }
    let begun = std::time::Instant::now();
    let documents = application::parse(Path::new("a.yaml"), &text).expect("it is legal");
    let rules = documents[0].services[0].network.inbound.as_ref();
    assert_eq!(rules.map(|access| access.rules.len()), Some(10_000));
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}

/// A rule as it is written, and what it matches: of each protocol the ports, of ICMP and of what has no name "port" 0.
#[derive(Clone, Debug)]
struct Written {
    selector: usize,
    protocols: Vec<(usize, u16, u16)>,
    action: &'static str,
}

/// Selectors, and those that match at least as much.
const SELECTORS: [(&str, &[usize]); 6] = [
    ("{ service: x }", &[0, 1]),
    ("{ application: a }", &[1]),
    ("{ network: a }", &[2]),
    ("10.1.0.0/16", &[3, 4]),
    ("10.0.0.0/8", &[4]),
    ("fd00::1", &[5]),
];
const PROTOCOLS: [&str; 3] = ["tcp", "udp", "icmp"];

impl Written {
    fn text(&self) -> String {
        let protocol = |(name, first, length): &(usize, u16, u16)| match PROTOCOLS[*name] {
            "icmp" => "{ name: icmp }".to_owned(),
            name => format!("{{ name: {name}, port-ranges: {first}-{} }}", first + length),
        };
        let protocols: Vec<_> = self.protocols.iter().map(protocol).collect();
        let protocols = if protocols.is_empty() {
            String::new()
        } else {
            format!(", protocols: [ {} ]", protocols.join(", "))
        };
        format!(
            "{{ from: {}, action: {}{protocols} }}",
            SELECTORS[self.selector].0, self.action
        )
    }

    fn matches(&self, protocol: usize, port: u16) -> bool {
        let named = |(name, first, length): &(usize, u16, u16)| {
            *name == protocol && (protocol == 2 || (*first..=first + length).contains(&port))
        };
        self.protocols.is_empty() || self.protocols.iter().any(named)
    }

    /// Whether earlier rules match all of it, found out one protocol and port after the other.
    fn is_dead_after(&self, earlier: &[Self]) -> bool {
        let wider = SELECTORS[self.selector].1;
        let mut points = (0..4).flat_map(|protocol| (1..=20).map(move |port| (protocol, port)));
        points.all(|(protocol, port)| {
            !self.matches(protocol, port)
                || earlier
                    .iter()
                    .any(|rule| wider.contains(&rule.selector) && rule.matches(protocol, port))
        })
    }
}

fn written() -> impl Strategy<Value = Written> {
    let protocols = prop::collection::vec((0..3_usize, 1..12_u16, 0..6_u16), 0..3);
    (
        0..SELECTORS.len(),
        protocols,
        prop::sample::select(vec!["allow", "deny"]),
    )
        .prop_map(|(selector, protocols, action)| Written {
            selector,
            protocols,
            action,
        })
}

proptest! {
    #[test]
    fn the_rules_that_are_told_are_those_that_nothing_reaches(rules in prop::collection::vec(written(), 1..10)) {
        let mut text = "name: a\nservices:\n- name: x\n  network:\n    inbound-access:\n      rules:\n".to_owned();
        for rule in &rules {
            text.push_str(&format!("      - {}\n", rule.text()));
        }
        let told: Vec<_> = match application::parse(Path::new("a.yaml"), &text) {
            Ok(_) => Vec::new(),
            Err(problems) => problems.iter().filter_map(|problem| problem.place).map(|place| place.line).collect(),
        };
        let dead: Vec<_> = (0..rules.len())
            .filter(|index| rules[*index].is_dead_after(&rules[..*index]))
            .map(|index| index + 7)
            .collect();
        prop_assert_eq!(told, dead, "{}", text);
    }
}
