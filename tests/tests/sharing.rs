//! Shared application networks: who names one joins it, nobody else, and who leaves it is cut off at once.
#![expect(clippy::print_stdout, reason = "a story tells what it measured")]

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tidegate_tests::{Lab, wait_until};

/// A shares x with B, B shares y with C.
const TOPOLOGY: &str = "segments: { lan: { ipv4: 192.0.2.0/24 } }
hosts:
  h1: { ordinal: 1, interfaces: [ { segment: lan, addresses: [192.0.2.11] } ] }
  h2: { ordinal: 2, interfaces: [ { segment: lan, addresses: [192.0.2.12] } ] }
applications: [ a.yaml, b.yaml, c.yaml ]
instances:
  - { application: a, service: probe, host: h1 }
  - { application: b, service: probe, host: h2 }
  - { application: c, service: probe, host: h1 }
  - { application: a, service: probe, host: h2 }
";

const A: &str = "name: a\nnetwork: { shared-application-network: x }\nservices: [ { name: probe } ]\n";
const A_ALONE: &str = "name: a\nservices: [ { name: probe } ]\n";
const B: &str = "name: b\nnetwork: { shared-application-network: [ x, y ] }\nservices: [ { name: probe } ]\n";
const C: &str = "name: c\nnetwork: { shared-application-network: y }\nservices: [ { name: probe } ]\n";

/// Addresses of an instance in a network, IPv4 and IPv6, as its host tells them.
fn addresses(lab: &Lab, host: &str, application: &str, instance: &str, network: &str) -> Result<[String; 2]> {
    let networks = lab.tidegate(host, &["show", "networks"])?;
    let networks = networks.pointer("/networks").and_then(Value::as_array);
    let named = networks
        .into_iter()
        .flatten()
        .find(|line| line.get("name").and_then(Value::as_str) == Some(network));
    let prefix = |key: &str| {
        let text = named.and_then(|line| line.get(key)).and_then(Value::as_str);
        text.with_context(|| format!("show networks tells no {key} of {network}"))
    };
    let prefixes: [ipnet::IpNet; 2] = [prefix("ipv4-prefix")?.parse()?, prefix("ipv6-prefix")?.parse()?];
    let instances = lab.tidegate(host, &["show", "instances"])?;
    let instances = instances.pointer("/instances").and_then(Value::as_array);
    let line = instances
        .into_iter()
        .flatten()
        .find(|line| {
            line.get("application").and_then(Value::as_str) == Some(application)
                && line.get("instance").and_then(Value::as_str) == Some(instance)
        })
        .with_context(|| format!("{application}/{instance} isn't on {host}"))?;
    let list = line.get("addresses").and_then(Value::as_array);
    let of = |prefix: &ipnet::IpNet| {
        let mut list = list.into_iter().flatten().filter_map(Value::as_str);
        list.find(|address| {
            address
                .parse()
                .is_ok_and(|address: std::net::IpAddr| prefix.contains(&address))
        })
        .map(str::to_owned)
        .with_context(|| format!("{application}/{instance} has no address in {prefix}"))
    };
    Ok([of(&prefixes[0])?, of(&prefixes[1])?])
}

fn reaches(lab: &Lab, from: &str, address: &str) -> Result<bool> {
    let ping = lab.attempt(from, &["ping", "-c", "3", "-i", "0.2", "-W", "1", address])?;
    Ok(ping.status.success())
}

#[test]
fn sharing_is_not_transitive_and_ends_at_once() -> Result<()> {
    let files = [("a.yaml", A), ("b.yaml", B), ("c.yaml", C)];
    let Some(lab) = Lab::up("tgt-share", TOPOLOGY, &files)? else {
        return Ok(());
    };
    let a = addresses(&lab, "h1", "a", "probe-1", "x")?;
    let b_in_x = addresses(&lab, "h2", "b", "probe-1", "x")?;
    let b_in_y = addresses(&lab, "h2", "b", "probe-1", "y")?;
    let c = addresses(&lab, "h1", "c", "probe-1", "y")?;
    for family in 0..2 {
        for (from, to, address) in [
            ("a-probe-1", "B", &b_in_x[family]),
            ("b-probe-1", "A", &a[family]),
            ("b-probe-1", "C", &c[family]),
            ("c-probe-1", "B", &b_in_y[family]),
        ] {
            // The first packets of a lab may still wait for sessions.
            wait_until(
                "those who share reach each other",
                Duration::from_secs(10),
                || reaches(&lab, from, address),
            )
            .with_context(|| format!("{from} → {to} at {address}"))?;
        }
        // On one host and across: not by the network that the other one is in, nor by any other address.
        for (from, address) in [
            ("a-probe-1", &c[family]),
            ("a-probe-1", &b_in_y[family]),
            ("a-probe-2", &c[family]),
            ("c-probe-1", &a[family]),
            ("c-probe-1", &b_in_x[family]),
        ] {
            let before = (lab.drops("h1")?, lab.drops("h2")?);
            ensure!(!reaches(&lab, from, address)?, "{from} reached {address}");
            let now = (lab.drops("h1")?, lab.drops("h2")?);
            ensure!(
                now != before,
                "{from} → {address}: silence that no counter explains"
            );
        }
    }
    println!("A and B, B and C reach each other in both families; A and C don't, by any of their addresses");
    cut(&lab, &b_in_x[0])?;
    lab.close()
}

/// While a stream runs from A to B, A's document leaves the network.
fn cut(lab: &Lab, target: &str) -> Result<()> {
    let _server = lab.serve_iperf3("b-probe-1")?;
    let client = lab.start(
        "a-probe-1",
        &[
            "iperf3",
            "--client",
            target,
            "--time",
            "8",
            "--interval",
            "0.1",
            "--forceflush",
        ],
    )?;
    // Another application's packets, which must not notice.
    let bystander = lab.start(
        "c-probe-1",
        &[
            "ping",
            "-c",
            "60",
            "-i",
            "0.1",
            &addresses(lab, "h2", "b", "probe-1", "y")?[0],
        ],
    )?;
    thread::sleep(Duration::from_secs(2));
    let received = || -> Result<u64> {
        let text = lab.run("b-probe-1", &["cat", "/sys/class/net/eth0/statistics/rx_bytes"])?;
        Ok(text.trim().parse()?)
    };
    let at_first = received()?;
    let document = lab.write("a-alone.yaml", A_ALONE)?;
    let document = document.display().to_string();
    lab.tidegate("h1", &["apply", &document])?;
    let applied = Instant::now();
    ensure!(
        received()? > at_first,
        "the stream didn't run when it was to be cut"
    );
    // The last byte arrives within a second of `apply`'s return; then there is silence.
    let (mut before, mut last) = (received()?, applied);
    while applied.elapsed() < Duration::from_secs(3) {
        thread::sleep(Duration::from_millis(20));
        let now = received()?;
        // Some pings of the bystander are less than one segment.
        if now > before + 1_200 {
            last = Instant::now();
        }
        before = now;
    }
    let silence = last - applied;
    println!(
        "the stream was cut {} ms after apply returned",
        silence.as_millis()
    );
    ensure!(
        silence < Duration::from_secs(1),
        "the stream went on for {silence:?}"
    );
    drop(client);
    let pings = bystander.succeed_within(Duration::from_secs(10))?;
    ensure!(
        pings.contains(" 0% packet loss"),
        "a bystander lost packets: {pings}"
    );
    Ok(())
}
