//! Hosts with different numbers of shards carry the same traffic.

use std::process::Output;
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
            // Fragments: a datagram of 4 kB in four of them, and its answer. The first one may be told of a smaller path.
            lab.attempt(from, &["ping", "-q", "-c", "1", "-s", "4000", "-W", "1", &target])?;
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
        }
        drop(server);
    }
    // What hears of an error is the flow that the quoted packet is of, whichever shard that lives on. h3 is reached by
    // IPv6 alone, which leaves 1370 bytes inside, and devices of the other two have 1390.
    for from in ["shop-web-1", "shop-db-1"] {
        for (family, length, told) in [("-4", "1362", "mtu = 1370"), ("-6", "1342", "mtu=1370")] {
            let target = lab.address("shop-db-2", family)?.to_string();
            for _ in 0..4 {
                lab.run(from, &["ip", family, "route", "flush", "cache"])?;
                let words = ["ping", "-c", "1", "-W", "2", "-M", "do", "-s", length, &target];
                let said = said(&lab.attempt(from, &words)?);
                ensure!(
                    said.contains(told),
                    "{from} ({family}) isn't told of 1370: {said}"
                );
                let words = ["ping", "-c", "1", "-W", "2", "-t", "1", &target];
                let said = self::said(&lab.attempt(from, &words)?);
                ensure!(
                    said.contains("Time to live exceeded") || said.contains("Hop limit"),
                    "{from} ({family}) isn't told of a hop limit: {said}"
                );
            }
        }
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

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn topology(shards: [u8; 3]) -> String {
    let hosts: String = (1..=3)
        .zip(shards)
        .map(|(number, shards)| {
            let ipv4 = match number {
                3 => String::new(),
                _ => format!("192.0.2.1{number}, "),
            };
            format!(
                "  h{number}:
    ordinal: {number}
    interfaces: [ {{ segment: lan, addresses: [{ipv4}\"2001:db8:1::1{number}\"] }} ]
    document: {{ datapath: {{ shards: {shards} }} }}
"
            )
        })
        .collect();
    format!(
        "segments: {{ lan: {{ ipv4: 192.0.2.0/24, ipv6: \"2001:db8:1::/64\" }} }}
hosts:
{hosts}applications: [ shop.yaml ]
instances:
  - {{ application: shop, service: web, host: h1 }}
  - {{ application: shop, service: db, host: h2 }}
  - {{ application: shop, service: db, host: h3 }}
"
    )
}
