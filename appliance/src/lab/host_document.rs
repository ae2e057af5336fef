//! The host documents that a lab writes: who is whose peer, by which address and key.
//!
//! Pure, but for the keys, which come in.

use super::blueprint::{Blueprint, Host};
use crate::config::topology;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use tidegate_stack::plan::PublicKey;

/// Where WireGuard listens when a document doesn't say.
const WIREGUARD_PORT: u16 = 51820;

/// The documents of all hosts of a lab, by host name. Every host is every other host's peer, for all networks; a
/// host's own `document` is [merged](topology::merge) over what the lab writes.
pub(super) fn write(blueprint: &Blueprint, keys: &BTreeMap<String, PublicKey>) -> BTreeMap<String, Value> {
    let document = |host: &Host| {
        let peers: Vec<Value> = blueprint
            .hosts
            .iter()
            .filter(|other| other.name != host.name)
            .filter_map(|other| peer(host, other, keys.get(&other.name)?))
            .collect();
        let mut cluster = json!({ "peers": peers });
        if let Some(interface) = &host.interface {
            cluster["interface"] = json!(interface);
        }
        let mut document = json!({
            "host-id": host.name,
            "site": blueprint.lab,
            "ordinal": host.ordinal,
            "cluster": cluster,
        });
        if let Some(own) = &host.document {
            topology::merge(&mut document, own);
        }
        (host.name.clone(), document)
    };
    blueprint.hosts.iter().map(document).collect()
}

fn peer(host: &Host, other: &Host, key: &PublicKey) -> Option<Value> {
    let mut peer = json!({
        "name": other.name,
        "ordinal": other.ordinal,
        "public-key": key.to_base64(),
        "networks": "all",
    });
    if let Some(address) = address_towards(host, other) {
        peer["endpoint"] = json!(SocketAddr::new(address, wireguard_port(other)).to_string());
    }
    Some(peer)
}

/// The address by which `host` reaches `other`: on the first segment they share, IPv4 before IPv6.
fn address_towards(host: &Host, other: &Host) -> Option<IpAddr> {
    let on_shared_segment = |(segment, _): &&(String, Vec<IpAddr>)| {
        other
            .addresses
            .iter()
            .any(|(theirs, addresses)| theirs == segment && !addresses.is_empty())
    };
    let (shared, _) = host.addresses.iter().find(on_shared_segment)?;
    let (_, addresses) = other.addresses.iter().find(|(segment, _)| segment == shared)?;
    addresses
        .iter()
        .find(|address| address.is_ipv4())
        .or(addresses.first())
        .copied()
}

/// The port of a host's foreign lane.
pub(super) fn wireguard_port(host: &Host) -> u16 {
    let own = host
        .document
        .as_ref()
        .and_then(|document| document.pointer("/cluster/wireguard-port"));
    own.and_then(Value::as_u64)
        .and_then(|port| u16::try_from(port).ok())
        .unwrap_or(WIREGUARD_PORT)
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

    fn documents(blueprint: &Blueprint) -> BTreeMap<String, Value> {
        let key = |(number, host): (usize, &Host)| {
            (
                host.name.clone(),
                PublicKey::from_bytes([u8::try_from(number).unwrap(); 32]),
            )
        };
        write(blueprint, &blueprint.hosts.iter().enumerate().map(key).collect())
    }

    #[test]
    fn every_host_is_the_others_peer_at_its_ipv4_address_on_the_first_common_segment() {
        let blueprint = lab(vec![
            host(
                "h1",
                1,
                &[("wan", &["198.51.100.1"]), ("lan", &["192.0.2.11"])],
                None,
            ),
            host("h2", 2, &[("lan", &["2001:db8::12", "192.0.2.12"])], None),
        ]);
        let documents = documents(&blueprint);
        let peer = &documents["h1"]["cluster"]["peers"][0];
        assert_eq!(peer["name"], "h2");
        assert_eq!(peer["ordinal"], 2);
        assert_eq!(peer["endpoint"], "192.0.2.12:51820");
        assert_eq!(peer["networks"], "all");
        assert_eq!(
            documents["h2"]["cluster"]["peers"][0]["endpoint"],
            "192.0.2.11:51820"
        );
        assert_eq!(documents["h2"]["site"], "tg");
    }

    #[test]
    fn own_document_has_the_last_word_and_the_others_learn_its_port() {
        let own = json!({ "cluster": { "wireguard-port": 4500 }, "datapath": { "shards": 1 } });
        let blueprint = lab(vec![
            host("h1", 1, &[("lan", &["2001:db8::11"])], None),
            host("h2", 2, &[("lan", &["2001:db8::12"])], Some(own)),
        ]);
        let documents = documents(&blueprint);
        assert_eq!(
            documents["h1"]["cluster"]["peers"][0]["endpoint"],
            "[2001:db8::12]:4500"
        );
        assert_eq!(documents["h2"]["datapath"]["shards"], 1);
        assert_eq!(documents["h2"]["cluster"]["interface"], "eth0");
        assert_eq!(documents["h2"]["cluster"]["peers"][0]["name"], "h1");
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
