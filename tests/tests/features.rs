//! Every off-switch leaves a way that works: what a kernel or a device doesn't have, is done by hand.
#![expect(clippy::print_stdout, reason = "a story tells what it measured")]

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tidegate_fixtures as fixtures;
use tidegate_tests::Lab;

const APPLICATION: &str = "name: pair\nservices: [ { name: left }, { name: right } ]\n";

#[test]
fn traffic_passes_without_udp_segmentation_offload() -> Result<()> {
    passes_without("gso")
}

#[test]
fn traffic_passes_without_udp_receive_offload() -> Result<()> {
    passes_without("gro")
}

#[test]
fn traffic_passes_without_super_packets() -> Result<()> {
    passes_without("vnet-header")
}

#[test]
fn traffic_passes_without_multi_queue_devices() -> Result<()> {
    passes_without("multi-queue")
}

/// One host without the feature, the other with it.
fn passes_without(feature: &str) -> Result<()> {
    let topology = format!(
        "segments: {{ lan: {{ ipv4: 192.0.2.0/24 }} }}
hosts:
  h1:
    ordinal: 1
    interfaces: [ {{ segment: lan, addresses: [192.0.2.11] }} ]
    document: {{ datapath: {{ features: {{ {feature}: off }} }} }}
  h2:
    ordinal: 2
    interfaces: [ {{ segment: lan, addresses: [192.0.2.12] }} ]
applications: [ pair.yaml ]
instances:
  - {{ application: pair, service: left, host: h1 }}
  - {{ application: pair, service: right, host: h2 }}
"
    );
    let Some(lab) = Lab::up(
        &format!("tgt-no-{feature}"),
        &topology,
        &[("pair.yaml", APPLICATION)],
    )?
    else {
        return Ok(());
    };
    let _server = lab.serve_iperf3("pair-right-1")?;
    for family in ["-4", "-6"] {
        let target = lab.address("pair-right-1", family)?.to_string();
        for direction in [&[][..], &["--reverse"][..]] {
            let words = ["iperf3", "--client", &target, "--time", "2", "--json"];
            let words: Vec<&str> = words.iter().chain(direction).copied().collect();
            let told: Value = serde_json::from_str(&lab.run("pair-left-1", &words)?)?;
            let rate = told
                .pointer("/end/sum_received/bits_per_second")
                .and_then(Value::as_f64);
            let rate = rate.context("iperf3 doesn't say what was received")?;
            println!(
                "without {feature}: {family} {direction:?} {:.2} Gbit/s",
                rate / 1e9
            );
            ensure!(
                rate > 50e6,
                "without {feature}, {family} {direction:?}: {rate} bit/s"
            );
        }
    }
    lab.close()
}

#[test]
fn hosts_that_reach_each_other_by_ipv6_alone_carry_both_families() -> Result<()> {
    let Some(lab) = Lab::up_fixture("tgt-v6", &fixtures::topology("ipv6-underlay"))? else {
        return Ok(());
    };
    let _server = lab.serve_iperf3("shop-db-1")?;
    for family in ["-4", "-6"] {
        let target = lab.address("shop-db-1", family)?.to_string();
        let told: Value = serde_json::from_str(&lab.run(
            "shop-web-1",
            &["iperf3", "--client", &target, "--time", "2", "--json"],
        )?)?;
        let rate = told
            .pointer("/end/sum_received/bits_per_second")
            .and_then(Value::as_f64)
            .unwrap_or(0.0);
        ensure!(rate > 50e6, "over IPv6, {family}: {rate} bit/s");
    }
    lab.close()
}
