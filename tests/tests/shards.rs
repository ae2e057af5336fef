//! Hosts with different numbers of shards carry the same traffic.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tidegate_tests::Lab;

const PATIENCE: Duration = Duration::from_secs(20);
const SHOP: &str = "tenant: acme\nname: shop\nservices:\n  - name: web\n  - name: db\n";

#[test]
fn one_two_and_three_shards_understand_each_other() -> Result<()> {
    let Some(lab) = Lab::up("tgt-shards", &topology([1, 2, 3]), &[("shop.yaml", SHOP)])? else {
        return Ok(());
    };
    for (host, shards) in [("h1", 1), ("h2", 2), ("h3", 3)] {
        let status = lab.tidegate(host, &["status"])?;
        let told = status.pointer("/datapath/shards").and_then(Value::as_u64);
        ensure!(told == Some(shards), "{host} has {told:?} shards: {status}");
    }
    // Sixteen streams have sixteen homes; what isn't home where it was read is handed over.
    let parts = ["shop-web-1", "shop-db-1", "shop-db-2"];
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let (from, to) = (parts[from], parts[to]);
        let server = lab.serve_iperf3(to)?;
        for family in ["-4", "-6"] {
            let target = lab.address(to, family)?.to_string();
            let words = ["iperf3", "-c", &target, "-t", "2", "-P", "16", "--json"];
            let told: Value = serde_json::from_str(&lab.start(from, &words)?.succeed_within(PATIENCE)?)?;
            let rate = told
                .pointer("/end/sum_received/bits_per_second")
                .and_then(Value::as_f64)
                .with_context(|| format!("iperf3 moved nothing: {told}"))?;
            println!(
                "{from} to {to} ({family}): {:.2} Gbit/s in 16 streams",
                rate / 1e9
            );
            ensure!(rate > 0.0, "nothing moved from {from} to {to} ({family})");
            lab.run(
                from,
                &["ping", "-q", "-c", "20", "-i", "0.01", "-W", "2", &target],
            )?;
            // Fragments: a datagram of 4 kB in four of them, and its answer.
            let fragments = lab.run(
                from,
                &[
                    "ping", "-q", "-c", "10", "-i", "0.05", "-s", "4000", "-W", "2", &target,
                ],
            )?;
            ensure!(
                fragments.contains(" 0% packet loss"),
                "fragments were lost: {fragments}"
            );
            // An error reaches who sent the packet that it quotes.
            let too_long = lab.attempt(
                from,
                &["ping", "-c", "1", "-W", "1", "-M", "do", "-s", "1400", &target],
            )?;
            ensure!(!too_long.status.success(), "a packet longer than the path passed");
            lab.run(from, &["tracepath", "-n", "-m", "3", &target])?;
        }
        drop(server);
    }
    for host in ["h1", "h2", "h3"] {
        let drops = lab.drops(host)?;
        for reason in [
            "handover-full",
            "foreign-source",
            "not-member",
            "unauthenticated",
            "malformed",
        ] {
            let count = drops.get(reason).copied().unwrap_or(0);
            ensure!(count == 0, "{host} dropped {count} packets: {reason}");
        }
    }
    lab.close()
}

fn topology(shards: [u8; 3]) -> String {
    let hosts: String = (1..=3)
        .zip(shards)
        .map(|(number, shards)| {
            format!(
                "  h{number}:\n    ordinal: {number}\n    interfaces: [ {{ segment: lan, addresses: [192.0.2.1{number}] }} ]\n    \
                 document: {{ datapath: {{ shards: {shards} }} }}\n"
            )
        })
        .collect();
    format!(
        "segments: {{ lan: {{ ipv4: 192.0.2.0/24 }} }}\nhosts:\n{hosts}applications: [ shop.yaml ]\ninstances:\n  - {{ application: shop, \
         service: web, host: h1 }}\n  - {{ application: shop, service: db, host: h2 }}\n  - {{ application: shop, service: db, host: h3 }}\n"
    )
}
