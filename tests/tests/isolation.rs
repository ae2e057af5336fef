//! Two applications with the same addresses on the same hosts: nothing of one reaches the other, by whatever way.
#![expect(clippy::print_stdout, reason = "a story tells what it measured")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tidegate_fixtures as fixtures;
use tidegate_tests::{Capture, ForeignPeer, Lab, Program, wait_until};

const BLUE: [&str; 4] = ["blue-probe-1", "blue-probe-2", "blue-probe-3", "blue-probe-4"];
/// Packets of each kind: echo requests, UDP datagrams, TCP SYNs.
const COUNT: u64 = 20;
const KINDS: u64 = 3;
const MARKER: &str = "marker-of-the-isolation-story";

#[test]
fn nothing_of_red_reaches_blue_and_every_probe_is_counted_under_its_reason() -> Result<()> {
    let Some(lab) = Lab::up_fixture("tgt-iso", &fixtures::topology("isolation"))? else {
        return Ok(());
    };
    let scripts = Scripts::write(&lab)?;
    let blue: BTreeMap<&str, [IpAddr; 2]> = BLUE
        .iter()
        .map(|name| Ok((*name, [lab.address(name, "-4")?, lab.address(name, "-6")?])))
        .collect::<Result<_>>()?;
    let address = |name: &str, family: usize| {
        blue.get(name)
            .and_then(|both| both.get(family))
            .map(IpAddr::to_string)
            .context("no such instance")
    };
    let red = [
        lab.address("red-probe-1", "-4")?.to_string(),
        lab.address("red-probe-1", "-6")?.to_string(),
    ];
    ensure!(
        red[0] == address("blue-probe-1", 0)?,
        "red and blue were to have the same addresses"
    );
    // It holds a key that h1 knows.
    let outsider = ForeignPeer {
        node: "outsider",
        program: Program::WireguardGo,
        ordinal: 201,
        host: "192.0.2.11".parse()?,
        key: fixtures::key("outsider"),
        preshared_key: None,
    };
    let wireguard = outsider.up(&lab)?;

    let watching: Vec<Capture> = BLUE
        .iter()
        .map(|name| lab.capture(name, "eth0", &["-Q", "in"]))
        .collect::<Result<_>>()?;

    // From red, by red's own address, to what only blue has.
    let expect = Counted::from(&lab)?;
    scripts.probe("red-probe-1", &red[0], &[&address("blue-probe-3", 0)?])?;
    expect.more("h1", &["no-instance"], KINDS * COUNT)?;
    let expect = Counted::from(&lab)?;
    scripts.probe("red-probe-1", &red[0], &[&address("blue-probe-4", 0)?])?;
    // The other host's block: that host knows who lives there.
    expect.more("h2", &["no-instance"], KINDS * COUNT)?;
    let expect = Counted::from(&lab)?;
    let ipv6: Vec<String> = BLUE.iter().map(|name| address(name, 1)).collect::<Result<_>>()?;
    scripts.probe(
        "red-probe-1",
        &red[1],
        &ipv6.iter().map(String::as_str).collect::<Vec<_>>(),
    )?;
    expect.more("h1", &["outbound-denied"], KINDS * COUNT * 4)?;

    // With blue's sources.
    let expect = Counted::from(&lab)?;
    scripts.probe(
        "red-probe-1",
        &address("blue-probe-3", 0)?,
        &[&address("blue-probe-4", 0)?],
    )?;
    scripts.probe(
        "red-probe-1",
        &address("blue-probe-1", 1)?,
        &[&address("blue-probe-2", 1)?],
    )?;
    expect.more("h1", &["source-not-own"], KINDS * COUNT * 2)?;

    // Blue's number as plain VXLAN on the underlay: the VXLAN port is closed, the lane takes only WireGuard.
    let vni = networks(&lab)?;
    let inner = ("172.19.2.2", "172.19.1.2");
    let expect = Counted::from(&lab)?;
    scripts.vxlan("192.0.2.11", 4789, vni.blue, inner)?;
    scripts.vxlan("192.0.2.11", 51820, vni.blue, inner)?;
    expect.more("h1", &["not-wireguard"], COUNT)?;

    // By an authenticated peer that is a member of red's network alone.
    let from_outsider = ("172.19.201.5", "172.19.1.2");
    for (reason, vni, inner) in [
        ("not-member", vni.blue, from_outsider),
        ("unknown-vni", 999_999, from_outsider),
        ("foreign-source", vni.red, inner),
    ] {
        let expect = Counted::from(&lab)?;
        scripts.vxlan("169.254.116.1", 4789, vni, inner)?;
        expect.more("h1", &[reason], COUNT)?;
    }

    for (name, capture) in BLUE.iter().zip(watching) {
        let seen = capture.finish()?;
        ensure!(seen.is_empty(), "{name} saw {} packets", seen.len());
    }

    // The control: what was refused above passes where it is meant to, whole.
    let red_watches = lab.capture("red-probe-1", "eth0", &["-Q", "in"])?;
    scripts.vxlan("169.254.116.1", 4789, vni.red, from_outsider)?;
    let seen = marked(red_watches)?;
    ensure!(
        seen == COUNT,
        "red sees {seen} of {COUNT} packets of its own member; h1 drops {:?}",
        lab.drops("h1")?
    );
    for family in [0, 1] {
        let watching: Vec<Capture> = BLUE[1..]
            .iter()
            .map(|name| lab.capture(name, "eth0", &["-Q", "in"]))
            .collect::<Result<_>>()?;
        let targets: Vec<String> = BLUE[1..]
            .iter()
            .map(|name| address(name, family))
            .collect::<Result<_>>()?;
        let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
        scripts.probe("blue-probe-1", &address("blue-probe-1", family)?, &targets)?;
        for (name, capture) in BLUE[1..].iter().zip(watching) {
            let seen = marked(capture)?;
            ensure!(
                seen == KINDS * COUNT,
                "inside blue, {name} saw {seen} of {} probes",
                KINDS * COUNT
            );
        }
    }
    drop(wireguard);
    lab.close()
}

/// The senders of crafted packets.
struct Scripts<'a> {
    lab: &'a Lab,
    probe: String,
    vxlan: String,
}

impl<'a> Scripts<'a> {
    fn write(lab: &'a Lab) -> Result<Self> {
        let probe = lab
            .write("probe.py", include_str!("../scripts/probe.py"))?
            .display()
            .to_string();
        let vxlan = lab
            .write("vxlan.py", include_str!("../scripts/vxlan.py"))?
            .display()
            .to_string();
        Ok(Self { lab, probe, vxlan })
    }

    fn probe(&self, from: &str, source: &str, destinations: &[&str]) -> Result<String> {
        let count = COUNT.to_string();
        let words = ["/usr/bin/python3", &self.probe, MARKER, &count, source];
        self.lab.run(
            from,
            &words.iter().chain(destinations).copied().collect::<Vec<_>>(),
        )
    }

    fn vxlan(&self, host: &str, port: u16, vni: u64, (source, destination): (&str, &str)) -> Result<String> {
        let (count, port, vni) = (COUNT.to_string(), port.to_string(), vni.to_string());
        let words = [
            "/usr/bin/python3",
            &self.vxlan,
            MARKER,
            &count,
            host,
            &port,
            &vni,
            source,
            destination,
        ];
        self.lab.run("outsider", &words)
    }
}

/// The counters of both hosts at one moment.
struct Counted<'a> {
    lab: &'a Lab,
    before: BTreeMap<&'static str, BTreeMap<String, u64>>,
}

impl<'a> Counted<'a> {
    fn from(lab: &'a Lab) -> Result<Self> {
        let before = ["h1", "h2"].map(|host| Ok((host, lab.drops(host)?)));
        Ok(Self {
            lab,
            before: before.into_iter().collect::<Result<_>>()?,
        })
    }

    /// The reasons on one host rise by exactly so many, together.
    fn more(&self, host: &str, reasons: &[&str], packets: u64) -> Result<()> {
        let of = |drops: &BTreeMap<String, u64>| -> u64 {
            reasons.iter().filter_map(|reason| drops.get(*reason)).sum()
        };
        let reason = reasons.join(" and ");
        let before = self.before.get(host).map(of).context("no such host")?;
        let mut risen = 0;
        wait_until(
            &format!("{host} counts {packets} under {reason}"),
            Duration::from_secs(10),
            || {
                risen = of(&self.lab.drops(host)?) - before;
                Ok(risen >= packets)
            },
        )
        .with_context(|| format!("before: {:?}, now: {:?}", self.before, self.lab.drops(host)))?;
        ensure!(
            risen == packets,
            "{host} counts {risen} under {reason}, and {packets} were sent"
        );
        println!("{host}: {reason} +{risen}");
        Ok(())
    }
}

struct Networks {
    red: u64,
    blue: u64,
}

fn networks(lab: &Lab) -> Result<Networks> {
    let told = lab.tidegate("h1", &["show", "networks"])?;
    let list = told
        .get("networks")
        .and_then(Value::as_array)
        .context("show networks prints no list")?;
    let vni = |name: &str| {
        let network = list
            .iter()
            .find(|one| one.get("application").and_then(Value::as_str) == Some(name));
        let vni = network
            .and_then(|network| network.get("vni"))
            .and_then(Value::as_u64);
        vni.with_context(|| format!("no network {name}"))
    };
    Ok(Networks {
        red: vni("red")?,
        blue: vni("blue")?,
    })
}

fn marked(capture: Capture) -> Result<u64> {
    Ok(capture
        .finish()?
        .iter()
        .filter(|packet| packet.contains(MARKER.as_bytes()))
        .count() as u64)
}
