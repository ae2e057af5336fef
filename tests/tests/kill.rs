//! Either process dies as nothing can be prepared for, under load.

use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;
use tidegate_fixtures as fixtures;
use tidegate_tests::{Lab, Pings, Process, Stream, is_long, wait_until};

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
    let interval = Duration::from_millis(10);
    let pings = Pings::start(&lab, "shop-web-1", target.parse()?, 600, interval)?;
    // What waits in the device while nobody reads it comes late, not never: only a stream shows the gap.
    let stream = Stream {
        per_second: 500,
        count: 2500,
    };
    let (killed, heard) = thread::scope(|scope| {
        let killing = scope.spawn(|| {
            sleep(Duration::from_secs(2));
            lab.kill("h1", Process::Datapath)
        });
        let heard = stream.run(&lab, "shop-web-1", "shop-db-1", target.parse()?)?;
        match killing.join() {
            Ok(killed) => anyhow::Ok((killed?, heard)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    let (lost, gap) = (pings.lost()?, heard.longest_gap);
    println!("datapath killed: {lost} pings of 600 lost; {heard}, the longest gap {gap:?}");
    // A second to be there again, and half a second for the handshake.
    let bound = Duration::from_millis(1500);
    ensure!(interval * lost <= bound, "{lost} pings were lost");
    ensure!(gap <= bound, "nothing passed for {gap:?}");

    expect_alive_to_the_end(&load.succeed_within(PATIENCE)?)?;
    ensure!(network(&lab)? == before, "device, addresses or routes changed");
    ensure!(
        lab.pid("h1", Process::Datapath)? != killed,
        "the datapath wasn't killed"
    );
    lab.close()
}

#[test]
fn planned_restart_of_a_datapath_loses_nothing() -> Result<()> {
    let Some(lab) = Lab::up_fixture("tgt-restart", &fixtures::topology("two-hosts"))? else {
        return Ok(());
    };
    let address = lab.address("shop-db-1", "-4")?;
    let target = address.to_string();
    let _server = lab.serve_iperf3("shop-db-1")?;
    let before = network(&lab)?;
    let stream = Stream {
        per_second: 2_000,
        count: if is_long() { 100_000 } else { 16_000 },
    };
    let seconds = stream.count / stream.per_second;
    // One host after the other, in the middle of everything.
    let restarts = [(seconds / 4, "h1"), (seconds / 2, "h2"), (seconds * 3 / 4, "h1")];
    let (length, pings) = ((seconds + 2).to_string(), (seconds * 100).to_string());
    let load = lab.start(
        "shop-web-1",
        &[
            "iperf3",
            "--client",
            &target,
            "--time",
            &length,
            "--bitrate",
            "50M",
            "--json",
        ],
    )?;
    let ping = lab.start("shop-web-1", &["ping", "-q", "-i", "0.01", "-c", &pings, &target])?;
    let heard = thread::scope(|scope| {
        let restarting = scope.spawn(|| -> Result<()> {
            let began = Instant::now();
            for (second, host) in restarts {
                sleep(Duration::from_secs(second.into()).saturating_sub(began.elapsed()));
                let former = lab.terminate(host, Process::Datapath)?;
                wait_until("another datapath carries packets", PATIENCE, || {
                    Ok(lab.pid(host, Process::Datapath).is_ok_and(|pid| pid != former))
                })?;
            }
            Ok(())
        });
        let heard = stream.run(&lab, "shop-web-1", "shop-db-1", address);
        match restarting.join() {
            Ok(restarted) => restarted.and(heard),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    println!(
        "three planned restarts of two datapaths: {heard}, the longest gap {:?}",
        heard.longest_gap
    );
    ensure!(heard.lost() == 0, "datagrams were lost: {heard}");
    // 20 ms on a machine that has nothing else to do.
    ensure!(
        heard.longest_gap <= Duration::from_millis(500),
        "nothing passed for {:?}",
        heard.longest_gap
    );
    let ping = ping.succeed_within(PATIENCE)?;
    ensure!(ping.contains(" 0% packet loss"), "pings were lost: {ping}");
    expect_alive_to_the_end(&load.succeed_within(PATIENCE)?)?;
    ensure!(network(&lab)? == before, "device, addresses or routes changed");
    lab.close()
}

#[test]
fn host_whose_clock_is_in_1970_is_connected_at_once() -> Result<()> {
    let Some(lab) = Lab::up_fixture("tgt-clock", &fixtures::topology("two-hosts"))? else {
        return Ok(());
    };
    let target = lab.address("shop-db-1", "-4")?.to_string();
    let netns = lab.namespace("shop-web-1");
    let keys = [
        "attach",
        "--netns",
        &netns,
        "--tenant",
        "acme",
        "--application",
        "shop",
        "--service",
        "web",
        "--instance",
        "1",
    ];
    let mut host = None;
    // The second start has an older clock than the first.
    for clock in ["@1970-01-02 00:00:00", "@1970-01-01 00:00:30"] {
        lab.cut_power("h1")?;
        drop(host.take());
        let began = Instant::now();
        let words = ["env", "FAKETIME_DONT_FAKE_MONOTONIC=1", "faketime", "-f", clock];
        let running = host.insert(lab.power_on("h1", &words)?);
        wait_until("the agent answers", PATIENCE, || {
            Ok(lab.attempt_tidegate("h1", &["status"])?.status.success())
        })?;
        // A machine that starts has no devices: its containers come after it.
        wait_until("the instance is attached again", PATIENCE, || {
            Ok(lab.attempt_tidegate("h1", &keys)?.status.success())
        })?;
        wait_until("packets pass", PATIENCE, || {
            let ping = lab.attempt("shop-web-1", &["ping", "-c", "1", "-W", "1", &target])?;
            Ok(ping.status.success())
        })?;
        let took = began.elapsed();
        ensure!(
            running.printed()?.contains("1970-01-0"),
            "the log of h1 doesn't say 1970"
        );
        println!("a host that starts {clock} is connected after {took:?}");
        ensure!(took <= Duration::from_secs(10), "it took {took:?}");
    }
    lab.cut_power("h1")?;
    drop(host);
    lab.close()
}

/// That iperf3's connections weren't reset, and that something moved in the last whole second.
fn expect_alive_to_the_end(told: &str) -> Result<()> {
    let load: Value = serde_json::from_str(told)?;
    ensure!(load.get("error").is_none(), "the connection broke: {load}");
    let last = load
        .pointer("/intervals")
        .and_then(Value::as_array)
        .and_then(|all| all.iter().rev().nth(1));
    let moved = last
        .and_then(|interval| interval.pointer("/sum/bytes"))
        .and_then(Value::as_f64);
    ensure!(moved > Some(0.0), "the connection didn't live on: {load}");
    Ok(())
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
