//! The host documents that a lab writes: who the other hosts are, where they are, and by which files hosts know each
//! other.
//!
//! Pure.

use super::blueprint::{Blueprint, Host};
use super::state::HostFiles;
use crate::config::host::{DEFAULT_CONTROL_PORT, DEFAULT_WIREGUARD_PORT};
use crate::config::topology;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// The lanes' ports are the foreign lane's and those behind it.
const LANE_PORTS: u16 = 128;

/// The documents of all hosts of a lab, by host name. Every host knows where every other one is; what else there is to
/// know they tell each other. A host's own `document` is [merged](topology::merge) over what the lab writes. A lab asks
/// nobody outside for names, unless that document says whom.
pub(super) fn write(blueprint: &Blueprint) -> BTreeMap<String, Value> {
    let document = |host: &Host| {
        let hosts: Vec<Value> = blueprint
            .hosts
            .iter()
            .filter(|other| other.name != host.name)
            .filter_map(|other| {
                let address = address_towards(host, other)?;
                Some(json!({ "host-id": other.name, "address": address }))
            })
            .collect();
        let files = HostFiles::of(&blueprint.lab, &host.name);
        let mut cluster = json!({
            "ca-file": files.authority(),
            "certificate-file": files.certificate(),
            "private-key-file": files.certificate_key(),
            "hosts": hosts,
        });
        if let Some(interface) = &host.interface {
            cluster["interface"] = json!(interface);
        }
        let mut document = json!({
            "host-id": host.name,
            "site": blueprint.lab,
            "ordinal": host.ordinal,
            "cluster": cluster,
        });
        let own = |pointer| host.document.as_ref().and_then(|own| own.pointer(pointer));
        if own("/dns/upstream").is_none() && own("/dns/resolv-conf").is_none() {
            document["dns"] = json!({ "upstream": [] });
        }
        if let Some(own) = &host.document {
            topology::merge(&mut document, own);
        }
        (host.name.clone(), document)
    };
    blueprint.hosts.iter().map(document).collect()
}

/// The address by which `host` reaches `other`: on the first segment they share, in a family that both have there, IPv4
/// before IPv6.
fn address_towards(host: &Host, other: &Host) -> Option<IpAddr> {
    host.addresses.iter().find_map(|(segment, own)| {
        let (_, theirs) = other.addresses.iter().find(|(name, _)| name == segment)?;
        let reachable = |address: &&IpAddr| own.iter().any(|own| own.is_ipv4() == address.is_ipv4());
        theirs
            .iter()
            .filter(reachable)
            .min_by_key(|address| address.is_ipv6())
            .copied()
    })
}

/// The ports of a host's lanes: the foreign one, then those of every generation.
pub(super) fn lane_ports(host: &Host) -> RangeInclusive<u16> {
    let first = own_port(host, "/cluster/wireguard-port").unwrap_or(DEFAULT_WIREGUARD_PORT);
    first..=first.saturating_add(LANE_PORTS)
}

/// The port of a host's link to the others.
pub(super) fn control_port(host: &Host) -> u16 {
    own_port(host, "/cluster/control-port").unwrap_or(DEFAULT_CONTROL_PORT)
}

fn own_port(host: &Host, pointer: &str) -> Option<u16> {
    let port = host.document.as_ref()?.pointer(pointer)?.as_u64()?;
    u16::try_from(port).ok()
}

/// A document as block YAML. Scalars and strings are written as JSON writes them, which YAML 1.2 reads the same.
pub(super) fn to_yaml(document: &Value) -> String {
    let mut text = String::new();
    emit(document, 0, &mut text);
    text
}

fn emit(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                text.push_str(&format!("{indent}{key}:"));
                emit_nested(value, depth, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                text.push_str(&format!("{indent}-"));
                emit_nested(item, depth, text);
            }
        }
        scalar => text.push_str(&format!("{indent}{scalar}\n")),
    }
}

fn emit_nested(value: &Value, depth: usize, text: &mut String) {
    let is_block = match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    };
    if is_block {
        text.push('\n');
        emit(value, depth + 1, text);
    } else {
        text.push_str(&format!(" {value}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, ordinal: u64, addresses: &[(&str, &[&str])], document: Option<Value>) -> Host {
        Host {
            name: name.into(),
            namespace: format!("tg-{name}"),
            ordinal: ordinal.try_into().unwrap(),
            interface: Some("eth0".into()),
            document,
            addresses: addresses
                .iter()
                .map(|(segment, list)| {
                    (
                        (*segment).to_owned(),
                        list.iter().map(|address| address.parse().unwrap()).collect(),
                    )
                })
                .collect(),
        }
    }

    fn lab(hosts: Vec<Host>) -> Blueprint {
        Blueprint {
            lab: "tg".into(),
            segments: vec![],
            hosts,
            nodes: vec![],
            documents: vec![],
            instances: vec![],
        }
    }

    #[test]
    fn every_host_knows_where_the_others_are_by_ipv4_on_the_first_common_segment() {
        let blueprint = lab(vec![
            host(
                "h1",
                1,
                &[("wan", &["198.51.100.1"]), ("lan", &["192.0.2.11"])],
                None,
            ),
            host("h2", 2, &[("lan", &["2001:db8::12", "192.0.2.12"])], None),
        ]);
        let documents = write(&blueprint);
        let others = &documents["h1"]["cluster"]["hosts"];
        assert_eq!(*others, json!([{ "host-id": "h2", "address": "192.0.2.12" }]));
        assert_eq!(documents["h2"]["cluster"]["hosts"][0]["address"], "192.0.2.11");
        assert_eq!(documents["h2"]["site"], "tg");
        assert!(documents["h2"]["cluster"].get("peers").is_none());
    }

    #[test]
    fn a_host_without_ipv4_is_told_of_the_others_by_ipv6() {
        let both = ["192.0.2.11", "2001:db8::11"];
        let documents = write(&lab(vec![
            host("h1", 1, &[("lan", &both)], None),
            host("h2", 2, &[("lan", &["2001:db8::12"])], None),
        ]));
        assert_eq!(documents["h1"]["cluster"]["hosts"][0]["address"], "2001:db8::12");
        assert_eq!(documents["h2"]["cluster"]["hosts"][0]["address"], "2001:db8::11");
    }

    #[test]
    fn own_document_has_the_last_word() {
        let own = json!({ "cluster": { "wireguard-port": 4500 }, "datapath": { "shards": 1 } });
        let blueprint = lab(vec![
            host("h1", 1, &[("lan", &["2001:db8::11"])], None),
            host("h2", 2, &[("lan", &["2001:db8::12"])], Some(own)),
        ]);
        let documents = write(&blueprint);
        assert_eq!(documents["h1"]["cluster"]["hosts"][0]["address"], "2001:db8::12");
        assert_eq!(documents["h2"]["datapath"]["shards"], 1);
        assert_eq!(documents["h2"]["cluster"]["interface"], "eth0");
        assert_eq!(documents["h2"]["cluster"]["wireguard-port"], 4500);
        assert_eq!(lane_ports(&blueprint.hosts[1]), 4500..=4628);
        assert_eq!(control_port(&blueprint.hosts[1]), 4668);
    }

    #[test]
    fn nobody_outside_is_asked_for_names_unless_the_document_says_whom() {
        let dns = |own: Option<Value>| {
            let documents = write(&lab(vec![host("h1", 1, &[("lan", &["192.0.2.11"])], own)]));
            documents["h1"]["dns"].clone()
        };
        assert_eq!(dns(None), json!({ "upstream": [] }));
        let own = json!({ "dns": { "private-domains": ["corp.example"] } });
        let expected = json!({ "upstream": [], "private-domains": ["corp.example"] });
        assert_eq!(dns(Some(own)), expected);
        for own in [
            json!({ "upstream": ["192.0.2.1"] }),
            json!({ "resolv-conf": "/x" }),
        ] {
            assert_eq!(dns(Some(json!({ "dns": own }))), own);
        }
    }

    #[test]
    fn yaml_is_indented_by_nesting() {
        let document = json!({ "a": { "b": [ { "c": 1, "d": "x" }, "y" ], "e": {} } });
        assert_eq!(
            to_yaml(&document),
            "a:\n  b:\n    -\n      c: 1\n      d: \"x\"\n    - \"y\"\n  e: {}\n"
        );
    }
}
