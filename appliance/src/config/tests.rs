//! Documents against their fixtures, their documentation, and what nobody would write.

mod access;
mod naming;
mod readiness;

use super::decode::Value;
use super::report::Report;
use super::topology::merge;
use super::{Problems, application, host, topology, yaml};
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;
use tidegate_fixtures as fixtures;

/// Reads a document of a kind for its problems alone.
fn check(kind: &str, file: &Path) -> Result<(), Problems> {
    match kind {
        "hosts" => host::read(file).map(drop),
        "applications" => application::read(file).map(drop),
        _ => topology::read(file).map(drop),
    }
}

const KINDS: [&str; 3] = ["hosts", "applications", "topologies"];

#[test]
fn every_fixture_is_legal() {
    for kind in KINDS {
        let documents = fixtures::all(kind);
        assert!(!documents.is_empty(), "no fixtures under {kind}");
        for document in documents {
            if let Err(problems) = check(kind, &document) {
                panic!("{}:\n{problems}", document.display());
            }
        }
    }
}

/// With `TIDEGATE_BLESS` set the expected lines are written instead: read the difference before it is committed.
#[test]
fn every_mistake_is_told_with_its_place_and_what_to_do() {
    for kind in KINDS {
        for broken in fixtures::broken(kind) {
            let problems = check(kind, &broken.document).expect_err("a broken document was taken for legal");
            let folder = broken.document.parent().expect("a file is in a folder");
            let printed = format!("{problems}\n").replace(&format!("{}/", folder.display()), "");
            if std::env::var_os("TIDEGATE_BLESS").is_some() {
                std::fs::write(&broken.expected, &printed).expect("expected lines can be written");
            }
            let expected = std::fs::read_to_string(&broken.expected).unwrap_or_default();
            assert_eq!(printed, expected, "{}", broken.document.display());
        }
    }
}

#[test]
fn a_full_host_document_decodes_to_what_it_says() {
    let document = host::read(&fixtures::host("full")).expect("it is legal");
    assert_eq!(document.host_id, "edge-1");
    assert_eq!(document.ordinal.get(), 7);
    assert_eq!(document.cluster.wireguard_port, 51900);
    let key_file = document
        .cluster
        .foreign_private_key_file
        .as_ref()
        .expect("it is set");
    let beside = |name| fixtures::host("full").parent().map(|folder| folder.join(name));
    assert_eq!(Some(key_file.as_path()), beside("wg.key").as_deref());
    let link = document.cluster.link.as_ref().expect("it is set");
    assert_eq!(document.cluster.control_port, 4670);
    assert_eq!(Some(link.ca_file.as_path()), beside("site-ca.pem").as_deref());
    assert_eq!(link.private_key_file, Path::new("/etc/tidegate/edge-1.key"));
    assert_eq!(link.hosts[1].host_id, "edge-3");
    assert_eq!(link.hosts[1].address.to_string(), "2001:db8:1::13");
    let [gateway, edge] = document.cluster.peers.as_slice() else {
        panic!("two peers")
    };
    assert_eq!(
        gateway.preshared_key_file.as_deref(),
        Some(Path::new("/etc/tidegate/plc-gw.psk"))
    );
    assert_eq!(gateway.keepalive, Some(25));
    let host::PeerNetworksDocument::Only(networks) = &gateway.networks else {
        panic!("a list")
    };
    assert_eq!(networks[0].vni.map(tidegate_stack::plan::Vni::get), Some(4242));
    assert_eq!(networks[1].tenant, "default");
    assert_eq!(edge.networks, host::PeerNetworksDocument::All);
    assert_eq!(document.datapath.shards.map(std::num::NonZeroU8::get), Some(64));
    assert_eq!(document.datapath.features.vnet_header, host::Switch::Off);
    assert_eq!(document.network.application_prefix.to_string(), "10.64.0.0/16");
    assert_eq!(document.network.on_overlap, host::OnOverlap::Renumber);
    let host::UpstreamDocument::Servers(servers) = &document.dns.upstream else {
        panic!("a list")
    };
    let servers: Vec<_> = servers.iter().map(ToString::to_string).collect();
    let expected = [
        "192.0.2.1:53",
        "192.0.2.7:5353",
        "[2001:db8:1::1]:53",
        "[2001:db8:1::2]:5353",
    ];
    assert_eq!(servers, expected);
    assert_eq!(*document.dns.private_domains[0].wire, *b"\x04corp\x07example\0");
}

#[test]
fn a_minimal_host_document_gets_the_defaults() {
    let document = host::read(&fixtures::host("minimal")).expect("it is legal");
    assert_eq!(document.cluster, host::ClusterDocument::default());
    assert_eq!(document.cluster.wireguard_port, 51820);
    assert_eq!(document.cluster.control_port, 4668);
    assert_eq!(document.cluster.link, None);
    assert_eq!(document.datapath, host::DatapathDocument::default());
    assert_eq!(document.network.shared_prefix.to_string(), "100.96.0.0/11");
    let file = |file: &Path| host::UpstreamDocument::ResolvConf(file.to_owned());
    assert_eq!(document.dns.upstream, file(Path::new("/etc/resolv.conf")));
    let other = fixtures::host("resolv-conf");
    let document = host::read(&other).expect("it is legal");
    assert_eq!(document.dns.upstream, file(&other.with_file_name("resolv.conf")));
}

#[test]
fn each_document_of_a_file_carries_a_text_that_gives_it_again() {
    let file = fixtures::application("several");
    let documents = application::read(&file).expect("it is legal");
    let names: Vec<_> = documents
        .iter()
        .map(|document| format!("{}/{}", document.tenant, document.name))
        .collect();
    assert_eq!(
        names,
        ["default/first", "acme/first", "default/second", "default/third"]
    );
    for document in documents {
        assert_eq!(application::parse_again(&document.source), Ok(document));
    }
}

#[test]
fn directives_and_document_ends_stay_with_their_document() {
    let text = "%YAML 1.2\n---\nname: a\nservices: [ { name: x } ]\n...\n# ä\n%YAML 1.2\n---\nname: b\nservices: [ { name: x } ]\n";
    let documents = application::parse(Path::new("both.yaml"), text).expect("it is legal");
    assert_eq!(documents.len(), 2);
    for document in documents {
        assert_eq!(application::parse_again(&document.source), Ok(document));
    }
}

#[test]
fn an_instance_without_a_tenant_gets_the_only_one_there_is() {
    let topology = topology::read(&fixtures::topology("two-hosts")).expect("it is legal");
    assert_eq!(topology.lab, "tg");
    assert_eq!(topology.instances.len(), 5);
    assert!(
        topology
            .instances
            .iter()
            .all(|placement| placement.tenant == "acme")
    );
    assert_eq!(
        topology.segments["lan"].prefix_length("2001:db8:1::11".parse().expect("an address")),
        Some(64)
    );
    assert!(topology.applications.iter().all(|file| file.is_file()));
}

#[test]
fn a_part_of_a_host_document_has_absolute_paths_and_needs_nothing() {
    let file = std::env::temp_dir().join(format!("tidegate-topology-{}.yaml", std::process::id()));
    let text = "lab: tg\nsegments: { lan: { ipv4: 192.0.2.0/24 } }\nhosts:\n  h1:\n    ordinal: 1\n    interfaces: [ { segment: lan } ]\n    document: { cluster: { foreign-private-key-file: a.key, certificate-file: h1.pem, peers: [ { name: p, preshared-key-file: /b.key } ] } }\n";
    std::fs::write(&file, text).expect("the temporary folder takes files");
    let read = topology::read(&file);
    std::fs::remove_file(&file).expect("the file is still there");
    let document = read.expect("it is legal").hosts["h1"]
        .document
        .clone()
        .expect("it is set");
    let absolute = |file: &str| std::env::temp_dir().join(file);
    let expected = json!({ "cluster": {
        "foreign-private-key-file": absolute("a.key"),
        "certificate-file": absolute("h1.pem"),
        "peers": [ { "name": "p", "preshared-key-file": "/b.key" } ],
    } });
    assert_eq!(document, expected);
}

#[test]
fn a_missing_file_is_named_with_the_reason() {
    let problems = host::read(Path::new("/nowhere/host.yaml")).expect_err("there is no such file");
    assert_eq!(
        problems.to_string(),
        "/nowhere/host.yaml: can't be read: No such file or directory (os error 2)"
    );
}

#[test]
fn problems_are_bounded_and_survive_a_wire() {
    let many: String = (0..1000).map(|number| format!("key-{number}: 1\n")).collect();
    let problems = host::parse(Path::new("host.yaml"), &many).expect_err("none of the keys is known");
    assert_eq!(problems.iter().count(), 101);
    let wire = serde_json::to_string(&problems).expect("problems serialise");
    assert_eq!(
        serde_json::from_str::<Problems>(&wire).expect("and come back"),
        problems
    );
}

#[test]
fn merging_joins_groups_and_named_lists_and_replaces_the_rest() {
    let mut base = json!({
        "site": "lab",
        "datapath": { "shards": "auto", "tune-nic": "auto" },
        "cluster": { "peers": [ { "name": "h2", "ordinal": 2 } ] },
        "list": [1, 2],
    });
    let over = json!({
        "datapath": { "shards": 1 },
        "cluster": { "peers": [ { "name": "h2", "keepalive": 5 }, { "name": "plc" } ] },
        "list": [3],
    });
    merge(&mut base, &over);
    let expected = json!({
        "site": "lab",
        "datapath": { "shards": 1, "tune-nic": "auto" },
        "cluster": { "peers": [ { "name": "h2", "ordinal": 2, "keepalive": 5 }, { "name": "plc" } ] },
        "list": [3],
    });
    assert_eq!(base, expected);
}

/// The keys that decoders ask for while they read a kind's fixtures, as the documentation writes them.
fn asked(kind: &str) -> BTreeSet<String> {
    let mut asked = BTreeSet::new();
    for file in fixtures::all(kind) {
        let report = Report::new(&file);
        let text = report.read().expect("fixtures can be read");
        match kind {
            "applications" => drop(application::applications(&text, &report)),
            "hosts" => {
                let root = report.only_document(&text).expect("fixtures are YAML");
                drop(host::host(&Value::root(&root, &report)));
            }
            _ => {
                let root = report.only_document(&text).expect("fixtures are YAML");
                drop(topology::topology(&Value::root(&root, &report)));
            }
        }
        asked.extend(report.asked().iter().map(|path| documented_form(path)));
    }
    asked.retain(|path| !path.contains(".document."));
    asked
}

/// `hosts.h1.interfaces[0].segment` as `hosts.<name>.interfaces[].segment`.
fn documented_form(path: &str) -> String {
    let mut named = false;
    let parts = path.split('.').map(|part| {
        let stem = part.split('[').next().unwrap_or_default();
        let list = part.contains('[');
        let shown = if named { "<name>" } else { stem };
        named = matches!(part, "segments" | "hosts" | "nodes");
        if list {
            format!("{shown}[]")
        } else {
            shown.to_owned()
        }
    });
    parts.collect::<Vec<_>>().join(".")
}

/// The keys of the tables under a heading: the first column, in backquotes.
fn documented(text: &str, heading: &str) -> BTreeSet<String> {
    let section = text
        .split("\n## ")
        .find(|section| section.starts_with(heading))
        .unwrap_or_default();
    section
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|rest| rest.split('`').next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_documentation_has_every_key_and_no_other() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let text = std::fs::read_to_string(file).expect("the documentation can be read");
    for (kind, heading) in [
        ("hosts", "The host document"),
        ("applications", "The application document"),
        ("topologies", "The topology"),
    ] {
        assert_eq!(documented(&text, heading), asked(kind), "{heading}");
    }
}

#[test]
fn examples_in_the_documentation_are_legal() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let text = std::fs::read_to_string(file).expect("the documentation can be read");
    let examples: Vec<_> = text
        .split("```yaml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    let mut kinds = BTreeSet::new();
    for example in examples {
        let first = example.lines().next().unwrap_or_default();
        let name = Path::new(first.trim_start_matches("# "));
        match first {
            "# host.yaml" => drop(host::parse(name, example).unwrap_or_else(|problems| panic!("{problems}"))),
            "# shop.yaml" => {
                drop(application::parse(name, example).unwrap_or_else(|problems| panic!("{problems}")))
            }
            _ => {
                let folder = fixtures::topology("two-hosts");
                let report = Report::new(&folder);
                let root = report.only_document(example).expect("examples are YAML");
                let decoded = topology::topology(&Value::root(&root, &report));
                drop(
                    report
                        .finish(decoded)
                        .unwrap_or_else(|problems| panic!("{problems}")),
                );
            }
        }
        kinds.insert(first);
    }
    assert_eq!(kinds.len(), 3, "an example of each kind: {kinds:?}");
}

/// Any legal document, cut up and put together again: close enough to YAML to get past the parser.
fn mutilated() -> impl Strategy<Value = String> {
    let sources: Vec<String> = KINDS
        .iter()
        .flat_map(|kind| {
            fixtures::all(kind)
                .into_iter()
                .chain(fixtures::broken(kind).into_iter().map(|broken| broken.document))
        })
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .collect();
    let edit = (
        any::<prop::sample::Index>(),
        0..20_usize,
        prop::sample::select(vec![
            "",
            ":",
            "- ",
            "\n",
            "\n---\n",
            "{",
            "}",
            "[",
            "]",
            "&a ",
            "*a",
            "\"",
            "'",
            "!!int ",
            "? ",
            "|\n",
            "\t",
            "  ",
            "#",
            "0",
            "-1",
            "99999999999999999999",
            "\u{0}",
            "é",
            "%",
            "null",
            "\u{feff}",
            "\r",
            "<<: ",
            "~",
        ]),
    );
    (prop::sample::select(sources), prop::collection::vec(edit, 1..12)).prop_map(|(source, edits)| {
        let mut characters: Vec<char> = source.chars().collect();
        for (at, removed, inserted) in edits {
            let at = if characters.is_empty() {
                0
            } else {
                at.index(characters.len())
            };
            let end = (at + removed).min(characters.len());
            characters.splice(at..end, inserted.chars());
        }
        characters.into_iter().collect()
    })
}

fn read_in_every_way(text: &str) {
    let file = Path::new("any.yaml");
    let _ = host::parse(file, text);
    if let Ok(documents) = application::parse(file, text) {
        for document in documents {
            let again = application::parse_again(&document.source).expect("its own text gives it again");
            assert_eq!(again, document);
        }
    }
    let report = Report::new(file);
    if let Some(root) = report.only_document(text) {
        let _ = topology::topology(&Value::root(&root, &report));
        let _ = yaml::to_string(&root.to_json());
    }
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        any::<u64>().prop_map(|number| serde_json::Value::from(number >> 1)),
        "[ -~äß\n]{0,12}".prop_map(serde_json::Value::from),
        prop::sample::select(vec![
            "~", "on", "true", "1.0", "0x1f", "- a", "a: b", "#", "", " ", "1e3", "null", "...", "---"
        ])
        .prop_map(serde_json::Value::from),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(serde_json::Value::from),
            prop::collection::btree_map("[a-z0-9.-]{0,8}", inner, 0..5)
                .prop_map(|entries| serde_json::Value::Object(entries.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_text_brings_a_reader_down(text in ".{0,200}") {
        read_in_every_way(&text);
    }

    #[test]
    fn no_bytes_bring_a_reader_down(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read_in_every_way(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn no_damage_to_a_document_brings_a_reader_down(text in mutilated()) {
        read_in_every_way(&text);
    }

    #[test]
    fn what_is_written_as_yaml_reads_back_the_same(value in any_json()) {
        let text = yaml::to_string(&value);
        let report = Report::new(Path::new("written.yaml"));
        let root = yaml::parse(&text, &report).and_then(|mut documents| documents.pop()).and_then(|document| document.root);
        let read = root.map_or(serde_json::Value::Null, |root| root.to_json());
        prop_assert_eq!(read, value, "{}", text);
    }
}
