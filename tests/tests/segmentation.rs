//! Micro-segmentation inside one application: `web → db:5432` only, and what it looks like from every side.
#![expect(clippy::print_stdout, reason = "a story tells what it measured")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tidegate_tests::{Lab, wait_until};

const TOPOLOGY: &str = "segments: { lan: { ipv4: 192.0.2.0/24 } }
hosts:
  h1: { ordinal: 1, interfaces: [ { segment: lan, addresses: [192.0.2.11] } ] }
  h2: { ordinal: 2, interfaces: [ { segment: lan, addresses: [192.0.2.12] } ] }
applications: [ shop.yaml ]
instances:
  - { application: shop, service: web, host: h1 }
  - { application: shop, service: db, host: h2 }
  - { application: shop, service: db, host: h1 }
  - { application: shop, service: api, host: h1 }
";

fn document(on_deny: &str) -> String {
    format!(
        "tenant: acme
name: shop
services:
  - name: web
  - name: api
  - name: db
    network:
      inbound-access:
        on-deny: {on_deny}
        rules:
          - {{ from: {{ service: web }}, protocols: [ {{ name: tcp, port-ranges: \"5432\" }} ] }}
"
    )
}

/// What a TCP client meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Met {
    Accepted,
    Refused,
    Silence,
}

fn connect(lab: &Lab, from: &str, address: &str, port: &str) -> Result<Met> {
    let began = Instant::now();
    let nc = lab.attempt(from, &["nc", "-z", "-n", "-w", "2", address, port])?;
    Ok(match nc.status.success() {
        true => Met::Accepted,
        false if began.elapsed() < Duration::from_millis(1500) => Met::Refused,
        false => Met::Silence,
    })
}

#[test]
fn web_reaches_one_port_of_db_and_nothing_else() -> Result<()> {
    let Some(lab) = Lab::up("tgt-seg", TOPOLOGY, &[("shop.yaml", &document("reject"))])? else {
        return Ok(());
    };
    let targets = ["shop-db-1", "shop-db-2"];
    let mut servers = Vec::new();
    for target in targets {
        for port in ["5432", "22"] {
            servers.push(lab.start(target, &["nc", "-l", "-k", "-n", "0.0.0.0", port])?);
            servers.push(lab.start(target, &["nc", "-l", "-k", "-n", "::", port])?);
        }
    }
    for (on_deny, met) in [("reject", Met::Refused), ("drop", Met::Silence)] {
        let file = lab.write("shop.yaml", &document(on_deny))?.display().to_string();
        for host in ["h1", "h2"] {
            lab.tidegate(host, &["apply", &file])?;
        }
        for target in targets {
            for family in ["-4", "-6"] {
                let address = lab.address(target, family)?.to_string();
                wait_until("the allowed port answers", Duration::from_secs(10), || {
                    Ok(connect(&lab, "shop-web-1", &address, "5432")? == Met::Accepted)
                })?;
                for (from, port) in [("shop-web-1", "22"), ("shop-api-1", "5432")] {
                    let is = connect(&lab, from, &address, port)?;
                    ensure!(
                        is == met,
                        "on-deny: {on_deny}: {from} → {address} port {port}: {is:?}"
                    );
                }
            }
        }
        println!(
            "on-deny: {on_deny}: tcp 5432 accepted from web, 22 and api: {met:?}, both hosts, both families"
        );
    }
    scan(&lab)?;
    traceroute(&lab)?;
    explained(&lab)?;
    foreseen(&lab)?;
    drop(servers);
    lab.close()
}

/// nmap's UDP scan from web finds nothing, its TCP scan one port.
fn scan(lab: &Lab) -> Result<()> {
    let address = lab.address("shop-db-1", "-4")?.to_string();
    let tcp = lab.run(
        "shop-web-1",
        &[
            "nmap",
            "-n",
            "-Pn",
            "-sS",
            "--max-retries",
            "1",
            "-T4",
            "-p",
            "1-1000,5432",
            "-oG",
            "-",
            &address,
        ],
    )?;
    let open: Vec<&str> = tcp
        .split(['\t', ' ', ','])
        .filter(|word| word.contains("/open/"))
        .collect();
    ensure!(
        open.len() == 1 && open[0].starts_with("5432/open/tcp"),
        "nmap found {open:?}: {tcp}"
    );
    let udp = lab.run(
        "shop-web-1",
        &[
            "nmap",
            "-n",
            "-Pn",
            "-sU",
            "--max-retries",
            "0",
            "-T4",
            "-p",
            "1-200,5432",
            "-oG",
            "-",
            &address,
        ],
    )?;
    let found: Vec<&str> = udp
        .split(['\t', ' ', ','])
        .filter(|word| word.contains("/open/") || word.contains("/closed/"))
        .collect();
    ensure!(found.is_empty(), "a UDP scan found {found:?}: {udp}");
    println!("nmap: 5432/tcp open, no other of 1,001 TCP ports and none of 201 UDP ports answered");
    Ok(())
}

/// A traceroute by the allowed port sees the appliance as a hop, and the target.
fn traceroute(lab: &Lab) -> Result<()> {
    for (family, option) in [("-4", "-4"), ("-6", "-6")] {
        let address = lab.address("shop-db-1", family)?.to_string();
        let trace = lab.run(
            "shop-web-1",
            &[
                "traceroute",
                option,
                "-n",
                "-T",
                "-p",
                "5432",
                "-q",
                "1",
                "-w",
                "2",
                "-m",
                "6",
                &address,
            ],
        )?;
        ensure!(
            trace.lines().last().is_some_and(|line| line.contains(&address)),
            "traceroute by tcp 5432 doesn't arrive: {trace}"
        );
    }
    println!("traceroute by tcp 5432 arrives, in both families");
    Ok(())
}

/// What was dropped is told with the rule that did it, by the same walk.
fn explained(lab: &Lab) -> Result<()> {
    let trace = lab.tidegate("h1", &["trace", "shop/web-1→db:22"])?;
    let first = trace.pointer("/traces/0").context("no trace")?;
    let is = |key: &str| {
        first
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    ensure!(
        is("verdict") == "denied" && is("reason") == "inbound-denied",
        "{first}"
    );
    ensure!(
        first.to_string().contains("shop.yaml:9"),
        "the trace doesn't name document and line: {first}"
    );
    let allowed = lab.tidegate("h1", &["trace", "web-1->db:5432"])?;
    let verdict = allowed.pointer("/traces/0/verdict").and_then(Value::as_str);
    ensure!(verdict == Some("forwarded"), "{allowed}");
    let flows = lab.tidegate("h1", &["flows", "--service", "db", "--port", "5432"])?;
    let flows = flows.pointer("/flows").and_then(Value::as_array);
    ensure!(
        flows.is_some_and(|flows| !flows.is_empty()),
        "flows doesn't list web → db:5432"
    );
    let drops = lab.tidegate("h1", &["drops"])?;
    let lines = drops.pointer("/drops").and_then(Value::as_array);
    let denied = lines
        .into_iter()
        .flatten()
        .find(|line| line.get("reason").and_then(Value::as_str) == Some("inbound-denied"))
        .context("drops tells no inbound-denied")?;
    let application = denied
        .pointer("/applications/0/application")
        .and_then(Value::as_str);
    ensure!(application == Some("acme/shop"), "{denied}");
    let because = denied.pointer("/last/because").and_then(Value::as_str);
    ensure!(
        because.is_some_and(|because| because.contains("shop.yaml:9")),
        "the last drop doesn't name its rule: {denied}"
    );
    let graph = lab.tidegate("h1", &["graph"])?;
    let edges = graph.pointer("/edges").and_then(Value::as_array);
    let into_db: Vec<&Value> = edges
        .into_iter()
        .flatten()
        .filter(|edge| edge.get("to").and_then(Value::as_str) == Some("acme/shop/db"))
        .collect();
    ensure!(
        into_db.len() == 1
            && into_db[0].to_string().contains("tcp 5432")
            && into_db[0].to_string().contains("shop.yaml:11"),
        "who may reach db: {into_db:?}"
    );
    for (form, begins) in [("svg", "<svg"), ("dot", "digraph")] {
        let drawn = lab.attempt_tidegate("h1", &["graph", "-o", form])?;
        ensure!(
            drawn.status.success() && drawn.stdout.starts_with(begins.as_bytes()),
            "graph -o {form}"
        );
    }
    Ok(())
}

/// What a document would change is told, and nothing of it done.
fn foreseen(lab: &Lab) -> Result<()> {
    let address = lab.address("shop-db-1", "-4")?.to_string();
    let _held = lab.start("shop-web-1", &["nc", "-n", "-w", "20", &address, "5432"])?;
    let flows = || -> Result<u64> {
        let words = [
            "flows",
            "--service",
            "db",
            "--port",
            "5432",
            "--state",
            "established",
        ];
        let list = lab.tidegate("h1", &words)?;
        Ok(list
            .pointer("/flows")
            .and_then(Value::as_array)
            .map_or(0, Vec::len) as u64)
    };
    wait_until("a connection stands", Duration::from_secs(5), || Ok(flows()? > 0))?;
    let file = lab.write("later.yaml", &document("drop").replace("5432", "5433"))?;
    let file = file.display().to_string();
    let diff = lab.tidegate("h1", &["policy", "diff", &file])?;
    let of = |key: &str| diff.get(key).map(Value::to_string).unwrap_or_default();
    ensure!(of("newly-allowed").contains("tcp 5433"), "{diff}");
    ensure!(of("newly-denied").contains("tcp 5432"), "{diff}");
    ensure!(
        of("cut").contains("later.yaml:9") && of("cut").contains("inbound-denied"),
        "the connection that would be cut isn't told: {diff}"
    );
    ensure!(flows()? > 0, "policy diff cut a connection");
    ensure!(
        connect(lab, "shop-web-1", &address, "5432")? == Met::Accepted,
        "policy diff changed the policy"
    );
    Ok(())
}
