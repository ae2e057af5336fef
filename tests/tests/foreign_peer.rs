//! A host that isn't ours, with a container behind it: what passes between that and our instances.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tidegate_fixtures as fixtures;
use tidegate_tests::{ForeignPeer, Lab, Program};

/// The largest inner packet on an underlay of 1500: less IPv4, UDP, WireGuard and VXLAN.
const LARGEST: u16 = 1390;

#[test]
fn kernel_vxlan_over_any_wireguard_exchanges_both_families_with_instances() -> Result<()> {
    let Some(lab) = Lab::up_fixture("tgt-foreign", &fixtures::topology("foreign-peer"))? else {
        return Ok(());
    };
    let gateway = ForeignPeer {
        node: "gateway",
        program: Program::WireguardGo,
        ordinal: 200,
        host: "192.0.2.11".parse()?,
        key: fixtures::key("foreign-peer"),
        preshared_key: None,
    };
    let wireguard = gateway.up(&lab)?;
    let container = gateway.container(&lab, 4242)?;
    let (ipv4, ipv6) = (container.ipv4().to_string(), container.ipv6().to_string());

    // Our instance asks first: nobody has spoken, so the address must be resolved over the tunnel.
    for address in [&ipv4, &ipv6] {
        lab.run(
            "shop-web-1",
            &["ping", "-c", "5", "-i", "0.2", "-W", "2", address],
        )
        .with_context(|| format!("web-1 asks for {address}"))?;
    }
    // Then the container asks, for an instance that it has never heard of.
    for address in [lab.address("shop-db-1", "-4")?, lab.address("shop-db-1", "-6")?] {
        let address = address.to_string();
        lab.run(
            container.part(),
            &["ping", "-c", "5", "-i", "0.2", "-W", "2", &address],
        )
        .with_context(|| format!("the container asks for {address}"))?;
    }

    let web = lab.address("shop-web-1", "-4")?.to_string();
    exactly_the_largest_packet_passes(|size| {
        lab.attempt(
            "shop-web-1",
            &["ping", "-M", "do", "-c", "2", "-W", "2", "-s", size, &ipv4],
        )
    })?;
    exactly_the_largest_packet_passes(|size| {
        lab.attempt(
            container.part(),
            &["ping", "-M", "do", "-c", "2", "-W", "2", "-s", size, &web],
        )
    })?;

    let _server = lab.serve_iperf3("shop-web-1")?;
    for direction in [&[][..], &["--reverse"][..]] {
        let words = [
            "iperf3",
            "--client",
            &web,
            "--time",
            "3",
            "--congestion",
            "cubic",
            "--json",
        ];
        let words: Vec<&str> = words.iter().chain(direction).copied().collect();
        let told: Value = serde_json::from_str(&lab.run(container.part(), &words)?)?;
        let rate = told
            .pointer("/end/sum_received/bits_per_second")
            .and_then(Value::as_f64)
            .unwrap_or(0.0);
        println!("foreign peer, iperf3 {direction:?}: {:.2} Gbit/s", rate / 1e9);
        ensure!(rate > 50e6, "iperf3 {direction:?} moved {rate} bit/s");
    }
    drop((container, wireguard));
    lab.close()
}

/// ping's payload is 28 bytes less than the packet.
fn exactly_the_largest_packet_passes(ping: impl Fn(&str) -> Result<std::process::Output>) -> Result<()> {
    let fits = ping(&(LARGEST - 28).to_string())?;
    ensure!(
        fits.status.success(),
        "{LARGEST} bytes don't pass: {}",
        String::from_utf8_lossy(&fits.stdout)
    );
    let too_big = ping(&(LARGEST - 27).to_string())?;
    let said = [too_big.stdout, too_big.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(
        said.contains("message too long"),
        "{} bytes got no local error: {said}",
        LARGEST + 1
    );
    Ok(())
}
