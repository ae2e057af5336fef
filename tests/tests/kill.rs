//! Either process dies as nothing can be prepared for, under load.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tidegate_fixtures as fixtures;
use tidegate_tests::{Lab, Process, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn killed_agent_costs_no_packet_and_its_successor_changes_nothing() -> Result<()> {
    let Some(lab) = Lab::up_fixture("tgt-kill-agent", &fixtures::topology("two-hosts"))? else {
        return Ok(());
    };
    let target = lab.address("shop-db-1", "-4")?.to_string();
    let _server = lab.serve_iperf3("shop-db-1")?;
    let before = policy(&lab)?;

    let load = lab.start(
        "shop-web-1",
        &["iperf3", "--client", &target, "--time", "6", "--json"],
    )?;
    let ping = lab.start("shop-web-1", &["ping", "-q", "-i", "0.01", "-c", "500", &target])?;
    sleep(Duration::from_secs(1));
    let killed = lab.kill("h1", Process::Agent)?;
    wait_until("another agent answers", PATIENCE, || {
        Ok(lab.attempt_tidegate("h1", &["status"])?.status.success())
    })?;
    ensure!(
        lab.pid("h1", Process::Agent)? != killed,
        "the agent wasn't killed"
    );

    let ping = ping.succeed_within(PATIENCE)?;
    ensure!(ping.contains("500 received"), "pings were lost: {ping}");
    let load: Value = serde_json::from_str(&load.succeed_within(PATIENCE)?)?;
    ensure!(load.get("error").is_none(), "the connection broke: {load}");
    ensure!(
        policy(&lab)? == before,
        "the next agent put another policy in force"
    );
    lab.close()
}

/// The datapath's start, and the epoch and digest of what it runs.
fn policy(lab: &Lab) -> Result<[Option<Value>; 3]> {
    let status = lab.tidegate("h1", &["status"])?;
    Ok(["/datapath/boot", "/datapath/epoch", "/datapath/plan"].map(|path| status.pointer(path).cloned()))
}

#[test]
fn killed_datapath_keeps_devices_and_connections_and_forwards_again_within_a_second() -> Result<()> {
    let Some(lab) = Lab::up_fixture("tgt-kill-path", &fixtures::topology("two-hosts"))? else {
        return Ok(());
    };
    let target = lab.address("shop-db-1", "-4")?.to_string();
    let _server = lab.serve_iperf3("shop-db-1")?;
    let before = network(&lab)?;

    let load = lab.start(
        "shop-web-1",
        &["iperf3", "--client", &target, "--time", "8", "--json"],
    )?;
    let ping = lab.start("shop-web-1", &["ping", "-q", "-i", "0.02", "-c", "300", &target])?;
    sleep(Duration::from_secs(2));
    let killed = lab.kill("h1", Process::Datapath)?;

    let ping = ping.succeed_within(PATIENCE)?;
    let received: u64 = ping
        .split(", ")
        .find_map(|part| part.strip_suffix(" received")?.parse().ok())
        .with_context(|| format!("ping says nothing of what it received: {ping}"))?;
    let gap = Duration::from_millis(20) * u32::try_from(300 - received)?;
    println!(
        "datapath killed: {} pings of 300 lost, a gap of {gap:?}",
        300 - received
    );
    // A second to be there again, and half a second for the handshake.
    ensure!(gap <= Duration::from_millis(1500), "nothing passed for {gap:?}");

    let load: Value = serde_json::from_str(&load.succeed_within(PATIENCE)?)?;
    ensure!(load.get("error").is_none(), "the connection broke: {load}");
    let last = load
        .pointer("/intervals")
        .and_then(Value::as_array)
        .and_then(|all| all.iter().rev().nth(1));
    let moved = last
        .and_then(|interval| interval.pointer("/sum/bytes"))
        .and_then(Value::as_f64);
    ensure!(moved > Some(0.0), "the connection didn't live on: {load}");

    ensure!(network(&lab)? == before, "device, addresses or routes changed");
    ensure!(
        lab.pid("h1", Process::Datapath)? != killed,
        "the datapath wasn't killed"
    );
    lab.close()
}

/// An instance's device, addresses and routes.
fn network(lab: &Lab) -> Result<[String; 3]> {
    Ok([
        lab.run(
            "shop-web-1",
            &["ip", "-oneline", "address", "show", "dev", "eth0"],
        )?,
        lab.run("shop-web-1", &["ip", "-4", "route", "show"])?,
        lab.run("shop-web-1", &["ip", "-6", "route", "show"])?,
    ])
}
