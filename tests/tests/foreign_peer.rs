//! A host that isn't ours: any WireGuard, with the kernel's VXLAN and a bridge inside, and a container whose MAC the
//! kernel chose.
//!
//! ```text
//!   h1 (tidegate) ── veth ── gateway: wireguard ── vxlan 4242 ── bridge ── veth ── container
//! ```

use std::net::{IpAddr, Ipv6Addr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tidegate_fixtures as fixtures;
use tidegate_tests::{Lab, Running, wait_until};

const LAB: &str = "tgt-foreign";
/// The largest inner packet on an underlay of 1500: less IPv4, UDP, WireGuard and VXLAN.
const LARGEST: u16 = 1390;

/// The foreign host's parts that the lab doesn't know.
struct Gateway {
    container: String,
    _wireguard: Running,
}

impl Gateway {
    fn up(lab: &Lab) -> Result<Self> {
        let wireguard = lab.start("gateway", &["wireguard-go", "-f", "tgtwg0"])?;
        wait_until("wireguard-go makes its device", Duration::from_secs(5), || {
            Ok(lab
                .attempt("gateway", &["wg", "show", "tgtwg0"])?
                .status
                .success())
        })?;
        let key = fixtures::key("foreign-peer").display().to_string();
        let status = lab.tidegate("h1", &["status"])?;
        let host = status
            .get("public-key")
            .and_then(Value::as_str)
            .context("status prints no public key")?;
        lab.run(
            "gateway",
            &[
                "wg",
                "set",
                "tgtwg0",
                "listen-port",
                "51820",
                "private-key",
                &key,
                "peer",
                host,
                "endpoint",
                "192.0.2.11:51820",
                "allowed-ips",
                "169.254.116.1/32",
            ],
        )?;
        let container = format!("{LAB}-container");
        for line in [
            "ip address add 169.254.116.200/24 dev tgtwg0",
            "ip link set tgtwg0 mtu 1440 up",
            "ip link add vxlan0 mtu 1390 type vxlan id 4242 local 169.254.116.200 remote 169.254.116.1 dstport 4789",
            "ethtool -K vxlan0 tx off",
            "ip link add br0 type bridge",
            "ip link set vxlan0 master br0 up",
            "ip link set br0 up",
        ] {
            lab.run("gateway", &line.split_whitespace().collect::<Vec<_>>())?;
        }
        run(&["ip", "netns", "add", &container])?;
        let gateway = Self {
            container,
            _wireguard: wireguard,
        };
        let namespace = gateway.container.as_str();
        lab.run(
            "gateway",
            &[
                "ip", "link", "add", "port", "mtu", "1390", "type", "veth", "peer", "name", "eth0", "mtu",
                "1390", "netns", namespace,
            ],
        )?;
        lab.run("gateway", &["ip", "link", "set", "port", "master", "br0", "up"])?;
        run(&[
            "ip",
            "-n",
            namespace,
            "address",
            "add",
            "172.19.200.5/16",
            "dev",
            "eth0",
        ])?;
        let ipv6 = format!("{}/64", Self::ipv6(lab)?);
        run(&[
            "ip", "-n", namespace, "address", "add", &ipv6, "dev", "eth0", "nodad",
        ])?;
        run(&["ip", "-n", namespace, "link", "set", "eth0", "up"])?;
        Ok(gateway)
    }

    /// The container's address in the block of ordinal 200: the network's /64 is that of our instances.
    fn ipv6(lab: &Lab) -> Result<Ipv6Addr> {
        let IpAddr::V6(instance) = lab.address("shop-web-1", "-6")? else {
            bail!("not an IPv6 address")
        };
        let [a, b, c, d, ..] = instance.segments();
        Ok(Ipv6Addr::new(a, b, c, d, 0, 0, 200, 5))
    }

    fn run(&self, words: &[&str]) -> Result<String> {
        let all: Vec<&str> = ["ip", "netns", "exec", &self.container]
            .iter()
            .chain(words)
            .copied()
            .collect();
        run(&all)
    }

    fn attempt(&self, words: &[&str]) -> Result<std::process::Output> {
        Ok(Command::new("ip")
            .args(["netns", "exec", &self.container])
            .args(words)
            .output()?)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // The lab's own leak check tells when this fails.
        let _ = run(&["ip", "netns", "delete", &self.container]);
    }
}

#[test]
fn kernel_vxlan_over_any_wireguard_exchanges_both_families_with_instances() -> Result<()> {
    let Some(lab) = Lab::up_fixture(LAB, &fixtures::topology("foreign-peer"))? else {
        return Ok(());
    };
    let gateway = Gateway::up(&lab)?;
    let (ipv4, ipv6) = ("172.19.200.5".to_owned(), Gateway::ipv6(&lab)?.to_string());

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
        gateway
            .run(&["ping", "-c", "5", "-i", "0.2", "-W", "2", &address.to_string()])
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
        gateway.attempt(&["ping", "-M", "do", "-c", "2", "-W", "2", "-s", size, &web])
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
        let told: Value = serde_json::from_str(&gateway.run(&words)?)?;
        let rate = told
            .pointer("/end/sum_received/bits_per_second")
            .and_then(Value::as_f64)
            .unwrap_or(0.0);
        println!("foreign peer, iperf3 {direction:?}: {:.2} Gbit/s", rate / 1e9);
        ensure!(rate > 50e6, "iperf3 {direction:?} moved {rate} bit/s");
    }
    drop(gateway);
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

fn run(words: &[&str]) -> Result<String> {
    let (program, arguments) = words.split_first().context("an empty command line")?;
    let output = Command::new(program).args(arguments).output()?;
    ensure!(
        output.status.success(),
        "`{}` failed: {}{}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(String::from_utf8(output.stdout)?)
}
