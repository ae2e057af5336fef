//! Names: what instances ask for and are answered, on every host the same. How soon it follows what happens is told by
//! `scaling.rs`.
#![expect(clippy::print_stdout, reason = "a story tells what it measured")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tidegate_tests::{Lab, wait_until};

const TOPOLOGY: &str = "segments: { lan: { ipv4: 192.0.2.0/24 } }
hosts:
  h1: { ordinal: 1, interfaces: [ { segment: lan, addresses: [192.0.2.11] } ] }
  h2: { ordinal: 2, interfaces: [ { segment: lan, addresses: [192.0.2.12] } ] }
applications: [ shop.yaml, historian.yaml, blue.yaml ]
instances:
  - { application: shop, service: web, host: h1 }
  - { application: shop, service: web, host: h2 }
  - { application: shop, service: db, host: h2 }
  - { application: historian, service: db, host: h2 }
  - { application: blue, service: secret, host: h1 }
";

const SHOP: &str = "tenant: acme
name: shop
network: { shared-application-network: floor }
services:
  - name: web
    ports: [ { name: http, protocol: tcp, port: 80 } ]
    dns: { order: fixed, txt: { build: 17, _acme-challenge: token } }
  - name: db
  - name: worker
";
const HISTORIAN: &str = "tenant: acme\nname: historian\nnetwork: { shared-application-network: floor }\nservices: [ { name: db } ]\n";
const BLUE: &str = "tenant: acme\nname: blue\nservices: [ { name: secret } ]\n";

/// The service address of every application's own network.
const SERVICE_ADDRESS: &str = "172.19.0.1";

/// What dig prints about one query.
fn dig(lab: &Lab, instance: &str, words: &str) -> Result<String> {
    let server = format!("@{SERVICE_ADDRESS}");
    let all: Vec<&str> = ["dig", &server, "+tries=1", "+time=2"]
        .into_iter()
        .chain(words.split_whitespace())
        .collect();
    lab.run(instance, &all)
}

/// The data of the records of an answer, sorted.
fn short(lab: &Lab, instance: &str, words: &str) -> Result<Vec<String>> {
    let text = dig(lab, instance, &format!("+short {words}"))?;
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    Ok(lines)
}

/// Status, flags' line and answers of what dig prints: what must be the same whoever is asked.
fn gist(text: &str) -> String {
    let told = text
        .lines()
        .filter(|line| !line.starts_with(";;") || line.contains("flags:"));
    let status = text
        .split("status: ")
        .nth(1)
        .and_then(|rest| rest.split(',').next());
    let lines: Vec<_> = told
        .filter(|line| !line.trim().is_empty() && !line.starts_with("; <<>>"))
        .collect();
    format!("{} {}", status.unwrap_or("no status"), lines.join("\n"))
}

fn status(lab: &Lab, instance: &str, words: &str) -> Result<String> {
    let text = dig(lab, instance, words)?;
    let status = text
        .split("status: ")
        .nth(1)
        .and_then(|rest| rest.split(',').next());
    Ok(status
        .with_context(|| format!("dig {words} has no status: {text}"))?
        .to_owned())
}

/// An instance's addresses in its application's own network, as its host tells them: IPv4 and IPv6.
fn own_addresses(lab: &Lab, host: &str, application: &str, instance: &str) -> Result<[String; 2]> {
    let list = lab.tidegate(host, &["show", "instances"])?;
    let mut lines = list
        .get("instances")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let is = |line: &Value, key: &str, value: &str| line.get(key).and_then(Value::as_str) == Some(value);
    let line = lines.find(|line| is(line, "application", application) && is(line, "instance", instance));
    let line = line.with_context(|| format!("{application}/{instance} isn't on {host}"))?;
    let address = |index: usize| {
        let address = line
            .pointer(&format!("/addresses/{index}"))
            .and_then(Value::as_str);
        address
            .map(str::to_owned)
            .with_context(|| format!("too few addresses: {line}"))
    };
    Ok([address(0)?, address(1)?])
}

#[test]
fn instances_are_found_by_name_on_every_host_and_only_by_those_who_may() -> Result<()> {
    let files = [
        ("shop.yaml", SHOP),
        ("historian.yaml", HISTORIAN),
        ("blue.yaml", BLUE),
    ];
    let Some(lab) = Lab::up("tgt-names", TOPOLOGY, &files)? else {
        return Ok(());
    };
    records(&lab)?;
    forms(&lab)?;
    views(&lab)?;
    resolvers(&lab)?;
    verbs(&lab)?;
    lab.close()
}

/// Each type of record, as both hosts tell it.
fn records(lab: &Lab) -> Result<()> {
    let first = own_addresses(lab, "h1", "shop", "web-1")?;
    let second = own_addresses(lab, "h2", "shop", "web-2")?;
    let [web, web_ipv6] = [0, 1].map(|family| vec![first[family].clone(), second[family].clone()]);
    let reversed: Vec<&str> = web[1].rsplit('.').collect();
    let pointer = format!("{}.in-addr.arpa PTR", reversed.join("."));
    let texts = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    for asker in ["shop-web-1", "shop-db-1"] {
        wait_until("both hosts know all", Duration::from_secs(5), || {
            Ok(short(lab, asker, "web.shop.internal A")? == web)
        })?;
        for (asked, expected) in [
            ("web.shop.internal A", web.clone()),
            ("WeB.shop.INTERNAL A", web.clone()),
            ("web.shop.acme.internal A", web.clone()),
            ("web-2.shop.internal A", vec![web[1].clone()]),
            ("web.shop.internal AAAA", web_ipv6.clone()),
            (pointer.as_str(), texts(&["web-2.shop.internal."])),
            (
                "_http._tcp.web.shop.internal SRV",
                texts(&["0 0 80 web-1.shop.internal.", "0 0 80 web-2.shop.internal."]),
            ),
            ("web.shop.internal TXT", texts(&["\"build=17\""])),
            ("_acme-challenge.web.shop.internal TXT", texts(&["\"token\""])),
        ] {
            for how in ["", "+tcp", "+noedns"] {
                let told = short(lab, asker, &format!("{how} {asked}"))?;
                ensure!(
                    told == expected,
                    "{asker}: {how} {asked}: {told:?} and not {expected:?}"
                );
            }
        }
        let whole = dig(lab, asker, &format!("-x {}", web_ipv6[0]))?;
        ensure!(whole.contains("web-1.shop.internal."), "{asker}: {whole}");
    }
    println!("A, AAAA, PTR, SRV and TXT: right, over UDP and TCP, with and without EDNS");
    Ok(())
}

/// Status, flags, authority: word for word the same on both hosts.
fn forms(lab: &Lab) -> Result<()> {
    for (asked, expected) in [
        ("web.shop.internal A", "NOERROR"),
        ("nobody.shop.internal A", "NXDOMAIN"),
        ("web.shop.internal MX", "NOERROR"),
        ("worker.shop.internal A", "NOERROR"),
        ("shop.internal A", "NOERROR"),
        ("internal SOA", "NOERROR"),
        ("internal NS", "NOERROR"),
        ("web.shop.internal ANY", "NOERROR"),
        ("1.0.19.172.in-addr.arpa PTR", "NOERROR"),
        ("250.9.19.172.in-addr.arpa PTR", "NXDOMAIN"),
        // A lab asks nobody outside.
        ("example.com A", "REFUSED"),
        ("web.shop A", "REFUSED"),
    ] {
        for how in ["", "+tcp", "+noedns", "+bufsize=512"] {
            let words = format!("{how} {asked}");
            let told = [dig(lab, "shop-web-1", &words)?, dig(lab, "shop-db-1", &words)?];
            let [first, second] = [gist(&told[0]), gist(&told[1])];
            ensure!(first.starts_with(expected), "{words}: {}", told[0]);
            ensure!(first == second, "{words}: h1 says\n{first}\nand h2\n{second}");
            let empty = expected == "NXDOMAIN" || asked == "worker.shop.internal A";
            ensure!(
                !empty || told[0].contains("SOA\tns.internal."),
                "{words}: no SOA in\n{}",
                told[0]
            );
        }
    }
    println!("both hosts give the same answers, NXDOMAIN and NODATA with the SOA");
    Ok(())
}

/// Who sees what.
fn views(lab: &Lab) -> Result<()> {
    let historian = short(lab, "shop-web-1", "db.historian.internal A")?;
    ensure!(
        matches!(historian.as_slice(), [address] if address.starts_with("100.")),
        "by its address in the shared network: {historian:?}"
    );
    let web = short(lab, "historian-db-1", "web.shop.internal A")?;
    ensure!(
        web.len() == 2 && web.iter().all(|address| address.starts_with("100.")),
        "{web:?}"
    );
    let [_, blue] = own_addresses(lab, "h1", "blue", "secret-1")?;
    for (asker, asked) in [
        ("shop-web-1", "secret.blue.internal"),
        ("shop-web-2", "secret-1.blue.acme.internal"),
        ("historian-db-1", "blue.internal"),
        ("blue-secret-1", "web.shop.internal"),
        ("blue-secret-1", "db.historian.internal"),
    ] {
        for kind in ["A", "AAAA", "SRV", "TXT", "ANY"] {
            let status = status(lab, asker, &format!("{asked} {kind}"))?;
            ensure!(
                status == "NXDOMAIN",
                "{asker} asked for {asked} {kind} and got {status}"
            );
        }
    }
    let pointer = dig(lab, "shop-web-1", &format!("-x {blue}"))?;
    ensure!(!pointer.contains("blue"), "{pointer}");
    println!("other applications' names don't exist; those of a shared network have its addresses");
    Ok(())
}

/// glibc with the instance's own resolv.conf.
fn resolvers(lab: &Lab) -> Result<()> {
    let [db, _] = own_addresses(lab, "h2", "shop", "db-1")?;
    for (name, expected) in [
        ("db", db.as_str()),
        ("web-2", "172.19.2."),
        ("db.historian.internal", "100."),
    ] {
        let told = lab.run("shop-web-1", &["getent", "ahostsv4", name])?;
        ensure!(told.starts_with(expected), "getent {name}: {told}");
    }
    let hosts = lab.run("shop-web-1", &["getent", "hosts", "db"])?;
    ensure!(hosts.contains("db.shop.internal"), "{hosts}");
    let unknown = lab.attempt("shop-web-1", &["getent", "hosts", "secret"])?;
    ensure!(
        !unknown.status.success(),
        "another application's service is no name here"
    );
    println!("getent finds db, web-2 and db.historian.internal");
    Ok(())
}

/// `show names` and `dns query` tell what dig hears.
fn verbs(lab: &Lab) -> Result<()> {
    let list = lab.tidegate("h1", &["show", "names"])?;
    let lines = list.get("names").and_then(Value::as_array).context("a list")?;
    let line = |name: &str, kind: &str| {
        lines.iter().find(|line| {
            line.get("name").and_then(Value::as_str) == Some(name)
                && line.get("type").and_then(Value::as_str) == Some(kind)
        })
    };
    let db = line("db.shop.internal", "A").context("db is listed")?;
    ensure!(
        db.get("why").and_then(Value::as_str) == Some("db-1 on h2"),
        "{db}"
    );
    for (asked, code) in [
        ("db", "NOERROR"),
        ("secret.blue.internal.", "NXDOMAIN"),
        ("example.com.", "REFUSED"),
    ] {
        let told = lab.tidegate(
            "h1",
            &["dns", "query", asked, "--type", "A", "--from", "shop/web-1"],
        )?;
        let last = told
            .get("queries")
            .and_then(Value::as_array)
            .and_then(|queries| queries.last());
        let last = last.context("a query")?;
        ensure!(
            last.get("code").and_then(Value::as_str) == Some(code),
            "{asked}: {last}"
        );
    }
    let nobody = lab.attempt_tidegate("h1", &["dns", "query", "db", "--from", "shop/web-9"])?;
    ensure!(nobody.status.code() == Some(3), "{nobody:?}");
    Ok(())
}
