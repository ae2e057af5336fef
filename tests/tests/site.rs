//! Hosts of a site tell each other what they have, and lose and find each other.

use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tidegate_fixtures as fixtures;
use tidegate_tests::{Lab, Process, wait_until};

const HOSTS: [&str; 3] = ["h1", "h2", "h3"];
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn instances_are_known_on_every_host_and_records_converge_after_kills_and_cuts() -> Result<()> {
    let Some(lab) = Lab::up_fixture("tgt-site", &fixtures::topology("three-hosts"))? else {
        return Ok(());
    };
    for host in HOSTS {
        wait_until("every host is alive everywhere", PATIENCE, || {
            Ok(alive(&lab, host)? == 2)
        })?;
    }

    attach(&lab, "h1", "7")?;
    let began = Instant::now();
    wait_until_known(&lab, &HOSTS, "web-7", true)?;
    println!(
        "an attached instance is in every record {:?} later",
        began.elapsed()
    );

    // A number that lives elsewhere isn't given again.
    let refused = change(&lab, "h2", "attach", "7")?;
    ensure!(!refused.status.success(), "two instances have one number");
    let why = String::from_utf8_lossy(&refused.stderr);
    ensure!(why.contains("h1"), "it doesn't say where the instance is: {why}");

    detach(&lab, "h1", "7")?;
    let began = Instant::now();
    wait_until_known(&lab, &HOSTS, "web-7", false)?;
    println!("a detached one is in none {:?} later", began.elapsed());

    // Agents die while something changes.
    attach(&lab, "h1", "8")?;
    for host in ["h1", "h3"] {
        lab.kill(host, Process::Agent)?;
    }
    for host in HOSTS {
        wait_until("an agent answers again", PATIENCE, || {
            Ok(lab.attempt_tidegate(host, &["status"])?.status.success())
        })?;
    }
    let began = Instant::now();
    wait_until_known(&lab, &HOSTS, "web-8", true)?;
    println!(
        "killed agents know everything {:?} after they answer again",
        began.elapsed()
    );

    // A host is cut off, falls silent, misses a change, and hears of it when it is back.
    lab.run("h3", &["ip", "link", "set", "eth0", "down"])?;
    let began = Instant::now();
    wait_until("a host that is cut off is silent", PATIENCE, || {
        Ok(alive(&lab, "h1")? == 1 && alive(&lab, "h2")? == 1 && alive(&lab, "h3")? == 0)
    })?;
    println!("a cut host is silent after {:?}", began.elapsed());
    detach(&lab, "h1", "8")?;
    wait_until_known(&lab, &["h1", "h2"], "web-8", false)?;
    lab.run("h3", &["ip", "link", "set", "eth0", "up"])?;
    let began = Instant::now();
    for host in HOSTS {
        wait_until("a healed host is heard again", PATIENCE, || {
            Ok(alive(&lab, host)? == 2)
        })?;
    }
    wait_until_known(&lab, &HOSTS, "web-8", false)?;
    println!("after it healed, records converge in {:?}", began.elapsed());
    let target = lab.address("shop-web-2", "-4")?.to_string();
    wait_until("packets pass to the healed host", PATIENCE, || {
        let ping = lab.attempt("shop-web-1", &["ping", "-c", "1", "-W", "1", &target])?;
        Ok(ping.status.success())
    })?;
    lab.close()
}

/// How many other hosts a host takes for alive.
fn alive(lab: &Lab, host: &str) -> Result<u64> {
    let status = lab.tidegate(host, &["status"])?;
    status
        .pointer("/site-link/hosts-alive")
        .and_then(Value::as_u64)
        .with_context(|| format!("status of {host} tells no site link: {status}"))
}

/// Waits until an instance is in the lists of these hosts, or in none of them.
fn wait_until_known(lab: &Lab, hosts: &[&str], instance: &str, expected: bool) -> Result<()> {
    for host in hosts {
        wait_until(
            &format!("{host} knows of {instance}: {expected}"),
            PATIENCE,
            || Ok(knows(lab, host, instance)? == expected),
        )?;
    }
    Ok(())
}

/// Whether a host has an instance itself, or was told of it.
fn knows(lab: &Lab, host: &str, instance: &str) -> Result<bool> {
    let told = lab.tidegate(host, &["show", "instances"])?;
    let mut all = Vec::new();
    for list in ["/instances", "/elsewhere"] {
        let list = told.pointer(list).and_then(Value::as_array);
        all.extend(list.context("show instances has no list")?);
    }
    Ok(all
        .iter()
        .any(|one| one.get("instance").and_then(Value::as_str) == Some(instance)))
}

fn attach(lab: &Lab, host: &str, number: &str) -> Result<()> {
    expect_success(&change(lab, host, "attach", number)?)
}

fn detach(lab: &Lab, host: &str, number: &str) -> Result<()> {
    expect_success(&change(lab, host, "detach", number)?)
}

fn expect_success(output: &Output) -> Result<()> {
    let why = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the verb failed: {why}");
    Ok(())
}

/// Attaches the spare namespace as an instance with this number, or detaches it.
fn change(lab: &Lab, host: &str, verb: &str, number: &str) -> Result<Output> {
    let spare = lab.namespace("spare");
    let keys = "--tenant acme --application shop --service web --instance";
    let words: Vec<&str> = [verb, "--netns", &spare]
        .into_iter()
        .chain(keys.split(' '))
        .chain([number])
        .collect();
    // The namespace has an eth0 of its own.
    let device = (verb == "attach").then_some(["--interface", "tg0"]);
    let words: Vec<&str> = words.into_iter().chain(device.into_iter().flatten()).collect();
    lab.attempt_tidegate(host, &words)
}
