//! Packets that no honest sender makes: nothing of them arrives, each is counted under its reason and no other, and a
//! Linux router with nftables that is sent the same differs only where the table of cases says why.
//!
//! The cases, and who is who in them, stand in `scripts/adversary.py`.
#![expect(clippy::print_stdout, reason = "a story tells what it measured")]

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tidegate_fixtures as fixtures;
use tidegate_tests::{Capture, Dialogue, Lab, Packet, wait_until};

const HOSTS: [&str; 2] = ["h1", "h2"];
/// What a part of a case is in a lab of ours, and beside the router.
const PARTS: [(&str, &str, &str); 6] = [
    ("web", "vault-web-1", "router-web"),
    ("other", "vault-other-1", "router-other"),
    ("open", "vault-open-1", "router-open"),
    ("near", "vault-open-2", "router-open"),
    ("db", "vault-db-1", "router-db"),
    ("near-db", "vault-db-2", "router-db"),
];
/// The router's devices towards the attackers and towards their targets, with its addresses there.
const INSIDE: (&str, &str, &str) = ("eth0", "198.18.1.1", "2001:db8:a::1");
const OUTSIDE: (&str, &str, &str) = ("eth1", "198.18.2.1", "2001:db8:b::1");
/// What makes a careful router of it, beside the rules. It asks for its neighbours by its link-local addresses.
const ROUTER: &str = "
    sysctl -qw net.ipv4.ip_forward=1
    sysctl -qw net.ipv6.conf.all.forwarding=1
    sysctl -qw net.ipv4.conf.all.rp_filter=1
    sysctl -qw net.ipv4.conf.all.accept_source_route=0
    sysctl -qw net.ipv4.conf.all.send_redirects=0
    sysctl -qw net.ipv4.conf.eth0.send_redirects=0
    sysctl -qw net.ipv4.conf.eth1.send_redirects=0
    ip address add fe80::1/64 dev eth0 nodad
    ip address add fe80::1/64 dev eth1 nodad";
/// Groups of cases about connections: in the first 30 seconds of a datapath it takes up those that it doesn't know.
const OF_CONNECTIONS: [&str; 2] = ["TCP", "ICMP"];
const TAKES_UP: Duration = Duration::from_secs(32);
/// What becomes of fragments that wait, at the latest: IPv6 gives them 60 seconds (RFC 8200 §4.5).
const KEPT_UNDER: &str = "fragment-timeout";
const KEPT: Duration = Duration::from_secs(62);
/// Marks of what a case sent: see `scripts/adversary.py`.
const DSCP: u8 = 45;
const MANY_HOPS: u8 = 128;

#[test]
fn nothing_that_an_adversary_sends_arrives_and_each_packet_is_counted_under_its_reason() -> Result<()> {
    let Some(lab) = Lab::up_fixture("tgt-adv", &fixtures::topology("adversary"))? else {
        return Ok(());
    };
    let up = Instant::now();
    let script = lab.write("adversary.py", include_str!("../scripts/adversary.py"))?;
    let script = script.display().to_string();
    let cases = table(&lab, &script)?;

    let mut ours = World::of_instances(&lab, &script)?;
    let mut reference = match World::of_router(&lab, &script) {
        Ok(world) => Some(world),
        Err(error) => {
            println!("the reference column is skipped: {error:#}");
            None
        }
    };

    let first = settled(&lab)?;
    let mut counted = first.clone();
    let mut outcomes = Vec::new();
    let mut all_given_up = up;
    let waits = |case: &Case| OF_CONNECTIONS.contains(&case.group.as_str());
    let (last, soon): (Vec<Case>, Vec<Case>) = cases.into_iter().partition(waits);
    for case in soon.into_iter().chain(last) {
        if waits(&case) {
            thread::sleep(TAKES_UP.saturating_sub(up.elapsed()));
        }
        let sent = ours.send(&case)?;
        if case.kept > 0 {
            all_given_up = Instant::now() + KEPT;
        }
        let now = counts(&lab, &counted, &case.at_once(sent.packets))?;
        let risen = rise(&counted, &now);
        counted = now;
        let beside = reference.as_mut().map(|world| world.send(&case)).transpose()?;
        outcomes.push(Outcome {
            case,
            sent,
            beside,
            risen,
        });
    }

    thread::sleep(all_given_up.saturating_duration_since(Instant::now()));
    let mut complaints = balance(&lab, &first, &outcomes)?;
    let arrived = ours.arrived()?;
    let arrived_beside = reference.map(World::arrived).transpose()?;
    println!("{}", Outcome::HEADING);
    for outcome in &outcomes {
        let of_case = |all: &BTreeMap<u64, Arrived>| all.get(&outcome.case.number).cloned();
        let here = of_case(&arrived).unwrap_or_default();
        let beside = arrived_beside
            .as_ref()
            .map(|all| of_case(all).unwrap_or_default());
        println!("{}", outcome.row(&here, beside.as_ref()));
        complaints.extend(outcome.complaints(&here, beside.as_ref()));
    }
    println!("{} cases in {:.0?}", outcomes.len(), up.elapsed());
    ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    lab.close()
}

/// A row of the script's table.
struct Case {
    name: String,
    group: String,
    number: u64,
    /// The host of the part that sends it, which drops it.
    host: &'static str,
    /// Why ours drops it; `None`: a control, which passes.
    ours: Option<String>,
    linux_forwards: bool,
    /// Why Linux does otherwise.
    why: String,
    /// Packets counted under that reason, when it isn't all that don't wait.
    counted: Option<u64>,
    /// Packets that wait for a rest that doesn't come.
    kept: u64,
    /// Whether something of each try arrives all the same.
    passes: bool,
}

impl Case {
    fn read(row: &Value) -> Option<Self> {
        let text = |key: &str| Some(row.get(key)?.as_str()?.to_owned());
        Some(Self {
            name: text("name")?,
            group: text("group")?,
            number: row.get("number")?.as_u64()?,
            host: host_of(&text("by")?),
            ours: text("ours"),
            linux_forwards: text("linux")? == "forwards",
            why: text("why")?,
            counted: row.get("counted")?.as_u64(),
            kept: row.get("kept")?.as_u64()?,
            passes: row.get("passes")?.as_bool()?,
        })
    }

    /// What is counted of so many packets when they are sent.
    fn at_once(&self, packets: u64) -> Counters {
        let counted = self.counted.unwrap_or(packets - self.kept);
        let reason = self.ours.clone().filter(|_| counted > 0);
        reason
            .map(|reason| ((self.host, reason), counted))
            .into_iter()
            .collect()
    }
}

fn host_of(part: &str) -> &'static str {
    if ["open", "db"].contains(&part) {
        "h2"
    } else {
        "h1"
    }
}

fn table(lab: &Lab, script: &str) -> Result<Vec<Case>> {
    let rows: Vec<Value> = serde_json::from_str(&lab.run("h1", &["/usr/bin/python3", script, "table"])?)?;
    let cases: Vec<Case> = rows
        .iter()
        .map(|row| Case::read(row).with_context(|| format!("not a case: {row}")))
        .collect::<Result<_>>()?;
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    ensure!(names.len() == cases.len(), "two cases have one name");
    Ok(cases)
}

/// Where cases are sent, with the script that sends them and a capture at every part.
struct World {
    sender: Dialogue,
    captures: Vec<Capture>,
    /// Bytes before the IP header.
    link: usize,
}

/// What was sent of a case.
struct Sent {
    packets: u64,
    /// How often the case was tried with them.
    tries: u64,
    /// Whether the live connection that it was about still carries data.
    holds: Option<bool>,
}

impl World {
    /// The instances of the lab.
    fn of_instances(lab: &Lab, script: &str) -> Result<Self> {
        let mut parts = serde_json::Map::new();
        let mut captures = Vec::new();
        for (part, instance, _) in PARTS {
            let about = json!({
                "namespace": lab.namespace(instance),
                "ipv4": lab.address(instance, "-4")?,
                "ipv6": lab.address(instance, "-6")?,
            });
            parts.insert(part.to_owned(), about);
            captures.push(lab.capture(instance, "eth0", &["-Q", "in"])?);
        }
        let network = lab.tidegate("h1", &["show", "networks"])?;
        let service = |family: usize| {
            let address = network.pointer(&format!("/networks/0/service-addresses/{family}"));
            address
                .cloned()
                .with_context(|| format!("no service address in {network}"))
        };
        let between = json!({
            "gateway": { "ipv4": service(0)?, "ipv6": service(1)? },
            "host": { "ipv4": "192.0.2.11", "ipv6": "2001:db8:1::11" },
        });
        let about = json!({ "parts": parts, "between": between });
        Self::new(lab, script, "instances.json", &about, captures, 0)
    }

    /// The same parts around a Linux router, which is made one here.
    fn of_router(lab: &Lab, script: &str) -> Result<Self> {
        let rules = lab.write("router.nft", include_str!("../scripts/router.nft"))?;
        lab.run_lines("router", ROUTER)?;
        lab.run("router", &["nft", "-f", &rules.display().to_string()])?;
        // There are such settings once the rules ask for connections.
        lab.run_lines(
            "router",
            "sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0
             sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=0",
        )?;
        let mut parts = serde_json::Map::new();
        let mut captures = Vec::new();
        for (part, _, node) in PARTS {
            let (device, _, gateway) = if ["web", "other"].contains(&part) {
                INSIDE
            } else {
                OUTSIDE
            };
            let hop = lab.run("router", &["cat", &format!("/sys/class/net/{device}/address")])?;
            let hop = hop.trim();
            let about = json!({
                "namespace": lab.namespace(node),
                "ipv4": lab.address(node, "-4")?,
                "ipv6": lab.address(node, "-6")?,
                "hop": hop,
            });
            parts.insert(part.to_owned(), about);
            if part.starts_with("near") {
                continue;
            }
            lab.run_lines(node, &format!("ip -6 route add default via {gateway}"))?;
            captures.push(lab.capture(node, "eth0", &["-Q", "in", "(ip or ip6) and ether src", hop])?);
        }
        let between = json!({
            "gateway": { "ipv4": INSIDE.1, "ipv6": INSIDE.2 },
            "host": { "ipv4": OUTSIDE.1, "ipv6": OUTSIDE.2 },
        });
        let about = json!({ "parts": parts, "between": between });
        Self::new(lab, script, "router.json", &about, captures, 14)
    }

    fn new(
        lab: &Lab,
        script: &str,
        file: &str,
        about: &Value,
        captures: Vec<Capture>,
        link: usize,
    ) -> Result<Self> {
        let file = lab.write(file, &about.to_string())?;
        let words = ["/usr/bin/python3", script, "send", &file.display().to_string()];
        let sender = lab.converse("h1", &words)?;
        Ok(Self {
            sender,
            captures,
            link,
        })
    }

    fn send(&mut self, case: &Case) -> Result<Sent> {
        let answer: Value = serde_json::from_str(&self.sender.ask(&case.name)?)?;
        let number = |key: &str| {
            let number = answer.get(key).and_then(Value::as_u64);
            number.with_context(|| format!("the script doesn't say how many it {key}: {answer}"))
        };
        Ok(Sent {
            packets: number("sent")?,
            tries: number("tried")?,
            holds: answer.get("holds").and_then(Value::as_bool),
        })
    }

    /// What arrived of each case, wherever.
    fn arrived(self) -> Result<BTreeMap<u64, Arrived>> {
        let mut arrived = BTreeMap::new();
        for capture in self.captures {
            for packet in capture.finish()? {
                if let Some(mark) = mark_of(&packet, self.link)? {
                    let of_case: &mut Arrived = arrived.entry(mark >> 8).or_default();
                    of_case.packets += 1;
                    of_case.marks.insert(mark);
                }
            }
        }
        Ok(arrived)
    }
}

/// What arrived of a case.
#[derive(Clone, Default)]
struct Arrived {
    packets: u64,
    /// The tries that they are of: fragments are put together, and cut anew.
    marks: BTreeSet<u64>,
}

/// Of which case and try a captured packet is.
fn mark_of(packet: &Packet, link: usize) -> Result<Option<u64>> {
    let byte = |at: usize| packet.byte(link + at);
    let word = |at: usize| packet.big_endian(link + at);
    let read = || match byte(0)? >> 4 {
        4 => Some((byte(1)?, byte(8)?, u64::from(word(4)?))),
        6 => Some((
            (word(0)? >> 4).to_be_bytes()[1],
            byte(7)?,
            u64::from(word(0)? & 0xf) << 16 | u64::from(word(2)?),
        )),
        _ => None,
    };
    let (traffic_class, hops, mark) =
        read().with_context(|| format!("what no IP header begins arrived: {packet:?}"))?;
    Ok((traffic_class >> 2 == DSCP && hops > MANY_HOPS).then_some(mark))
}

/// What hosts have dropped, by host and reason.
type Counters = BTreeMap<(&'static str, String), u64>;

/// The counters once nothing moves them: kernels announce themselves when instances begin.
fn settled(lab: &Lab) -> Result<Counters> {
    let mut before = dropped(lab)?;
    wait_until("the counters rest", Duration::from_secs(20), || {
        thread::sleep(Duration::from_secs(1));
        let now = dropped(lab)?;
        let rest = now == before;
        before = now;
        Ok(rest)
    })?;
    dropped(lab)
}

fn dropped(lab: &Lab) -> Result<Counters> {
    let mut counters = Counters::new();
    for host in HOSTS {
        let of_host = lab.drops(host)?.into_iter();
        counters.extend(of_host.map(|(reason, packets)| ((host, reason), packets)));
    }
    Ok(counters)
}

/// The counters as soon as they have risen by what is expected, or when it is too late for it.
fn counts(lab: &Lab, before: &Counters, expected: &Counters) -> Result<Counters> {
    let began = Instant::now();
    loop {
        let now = dropped(lab)?;
        if rise(before, &now) == *expected || began.elapsed() > Duration::from_secs(1) {
            return Ok(now);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// By how much counters have risen, but for what waits its time out meanwhile.
fn rise(before: &Counters, now: &Counters) -> Counters {
    let more = |key: &(&'static str, String), packets: u64| packets - before.get(key).copied().unwrap_or(0);
    now.iter()
        .map(|(key, packets)| (key.clone(), more(key, *packets)))
        .filter(|((_, reason), more)| *more > 0 && reason != KEPT_UNDER)
        .collect()
}

/// What waited has been counted when its time was over, and over all cases no host has counted anything else.
fn balance(lab: &Lab, first: &Counters, outcomes: &[Outcome]) -> Result<Vec<String>> {
    let now = dropped(lab)?;
    let mut complaints = Vec::new();
    for host in HOSTS {
        let key = (host, KEPT_UNDER.to_owned());
        let kept = |counters: &Counters| counters.get(&key).copied().unwrap_or(0);
        let of_host = outcomes.iter().filter(|outcome| outcome.case.host == host);
        let expected: u64 = of_host.map(|outcome| outcome.case.kept).sum();
        let risen = kept(&now) - kept(first);
        if risen != expected {
            complaints.push(format!(
                "{host} counts {risen} packets under {KEPT_UNDER}, and {expected} were left to wait"
            ));
        }
    }
    let mut sum = Counters::new();
    for (key, packets) in outcomes.iter().flat_map(|outcome| &outcome.risen) {
        *sum.entry(key.clone()).or_default() += packets;
    }
    let all = rise(first, &now);
    if all != sum {
        complaints.push(format!(
            "over all cases {all:?} were counted, and case by case {sum:?}"
        ));
    }
    Ok(complaints)
}

/// What became of a case.
struct Outcome {
    case: Case,
    sent: Sent,
    /// By the router.
    beside: Option<Sent>,
    /// By how much counters rose.
    risen: Counters,
}

impl Outcome {
    const HEADING: &'static str = "case | sent | tidegate (arrived, reason) | nftables (arrived)";

    fn row(&self, arrived: &Arrived, beside: Option<&Arrived>) -> String {
        let reasons: Vec<String> = self
            .risen
            .iter()
            .map(|((host, reason), packets)| format!("{reason} +{packets} on {host}"))
            .collect();
        let reasons = match (reasons.is_empty(), self.case.kept) {
            (true, 0) => "-".to_owned(),
            (true, kept) => format!("{KEPT_UNDER} +{kept} later"),
            (false, 0) => reasons.join(", "),
            (false, kept) => format!("{}, {KEPT_UNDER} +{kept} later", reasons.join(", ")),
        };
        let why = match beside {
            Some(beside) if (beside.packets > 0) != (arrived.packets > 0) => {
                format!("   ({})", self.case.why)
            }
            _ => String::new(),
        };
        let broke = |sent: Option<&Sent>| {
            if sent.and_then(|sent| sent.holds) == Some(false) {
                ", and broke"
            } else {
                ""
            }
        };
        format!(
            "{} | {} | {}{}, {reasons} | {}{}{why}",
            self.case.name,
            self.sent.packets,
            arrived.packets,
            broke(Some(&self.sent)),
            beside.map_or_else(|| "-".to_owned(), |arrived| arrived.packets.to_string()),
            broke(self.beside.as_ref()),
        )
    }

    /// What isn't as the table says.
    fn complaints(&self, arrived: &Arrived, beside: Option<&Arrived>) -> Vec<String> {
        let Case {
            name,
            linux_forwards,
            why,
            passes,
            ..
        } = &self.case;
        let packets = self.sent.packets;
        let mut complaints = Vec::new();
        let mut complain = |what: String| complaints.push(format!("{name}: {what}"));
        let passed = arrived.marks.len() as u64;
        let expected = if *passes { self.sent.tries } else { 0 };
        if passed != expected {
            complain(format!(
                "of {passed} tries something arrived, of {expected} it was to"
            ));
        }
        let counted = self.case.at_once(packets);
        if self.risen != counted {
            complain(format!("{:?} was counted, and {counted:?} expected", self.risen));
        }
        if self.sent.holds == Some(false) {
            complain("the live connection broke".to_owned());
        }
        if let Some(beside) = beside {
            let (forwards, differs) = (beside.packets > 0, (beside.packets > 0) != (arrived.packets > 0));
            if differs && why.is_empty() {
                complain("the router does otherwise, and the table doesn't say why".to_owned());
            } else if forwards != *linux_forwards {
                println!("{name}: this kernel does otherwise than the table says");
            }
        }
        complaints
    }
}
