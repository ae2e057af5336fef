//! Names of the world outside: asked of upstreams, remembered, answered while nobody is there to ask, and refused where
//! they would lead inside.
#![expect(clippy::print_stdout, reason = "a story tells what it measured")]

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tidegate_stack::responder::dns::{Question, Reply};
use tidegate_tests::{Lab, Process, Running, is_long, wait_until};

const TOPOLOGY: &str = "segments: { lan: { ipv4: 192.0.2.0/24 } }
hosts:
  h1:
    ordinal: 1
    interfaces: [ { segment: lan, addresses: [192.0.2.11] } ]
    document: { dns: { upstream: [192.0.2.53], private-domains: [corp.example] } }
  h2:
    ordinal: 2
    interfaces: [ { segment: lan, addresses: [192.0.2.12] } ]
    document: { dns: { resolv-conf: resolv.conf } }
nodes:
  world: { interfaces: [ { segment: lan, addresses: [192.0.2.53] } ] }
  mute: { interfaces: [ { segment: lan, addresses: [192.0.2.54] } ] }
applications: [ shop.yaml ]
instances:
  - { application: shop, service: web, host: h1 }
  - { application: shop, service: web, host: h2 }
";
const SHOP: &str = "name: shop\nservices: [ { name: web } ]\n";

/// The service address of every application's own network.
const SERVICE_ADDRESS: &str = "172.19.0.1";
/// Seconds for which what the upstream says may be remembered.
const TIME_TO_LIVE: u32 = 6;
/// Seconds that are said of what was true before (RFC 8767 §5).
const STALE_TIME_TO_LIVE: u32 = 30;
/// How soon something is told that was true before: 1.8 s (RFC 8767 §5), and the way.
const STALE_SOON: Duration = Duration::from_secs(2);
/// What a name inside takes at most while names outside wait, on a busy machine.
const INSIDE_SOON: Duration = Duration::from_millis(500);
/// How long the agent stands still.
const STANDSTILL: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(300)];
/// 20 a second.
const PACE: Duration = Duration::from_millis(50);
/// Takes what is sent to it and says nothing.
const MUTE: &str = "import socket, time
taken = [socket.socket(socket.AF_INET, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)]
for one in taken: one.bind(('192.0.2.54', 53))
print('mute', flush=True)
time.sleep(86400)
";

#[test]
fn names_of_the_world_are_found_remembered_and_answered_while_nobody_can_be_asked() -> Result<()> {
    let Some(lab) = Lab::up("tgt-fwd", TOPOLOGY, &[("shop.yaml", SHOP)])? else {
        return Ok(());
    };
    let upstream = Upstream::start(&lab)?;
    records(&lab)?;
    memory(&lab, &upstream)?;
    reach(&lab, &upstream)?;
    rebinding(&lab)?;
    followed(&lab)?;
    standstill(&lab)?;
    let upstream = outage(&lab, upstream)?;
    drop(upstream);
    lab.close()
}

/// What there is in the world.
struct Upstream {
    server: Running,
}

impl Upstream {
    fn start(lab: &Lab) -> Result<Self> {
        let text = ["x".repeat(200).as_str(); 8].join(",");
        let options = format!(
            "--keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --user=root --pid-file \
             --listen-address=192.0.2.53 --bind-interfaces --log-queries --log-facility=- --local-ttl={TIME_TO_LIVE} \
             --local=/example.test/ --local=/corp.example/ --local=/shop/ \
             --host-record=www.example.test,198.51.100.7,2001:db8:7::7 --cname=alias.example.test,www.example.test \
             --address=/any.example.test/198.51.100.9 --txt-record=long.example.test,{text} \
             --host-record=inside.example.test,10.1.2.3 --host-record=inside6.example.test,fd12::3 \
             --host-record=inside.corp.example,10.1.2.3"
        );
        let words: Vec<&str> = std::iter::once("dnsmasq")
            .chain(options.split_whitespace())
            .collect();
        let server = lab.start("world", &words)?;
        wait_until("the upstream answers", Duration::from_secs(10), || {
            let ask = ["dig", "@192.0.2.53", "+tries=1", "+time=1", "www.example.test"];
            Ok(lab.attempt("h1", &ask)?.status.success())
        })?;
        Ok(Self { server })
    }

    /// How often it was asked for a name.
    fn asked(&self, name: &str) -> Result<usize> {
        let log = self.server.printed()?.to_ascii_lowercase();
        let told = log.lines().filter(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            words
                .windows(2)
                .any(|pair| pair[0].starts_with("query[") && pair[1] == name)
        });
        Ok(told.count())
    }
}

/// What dig heard.
#[derive(Debug)]
struct Heard {
    status: String,
    /// Time to live, type and data.
    records: Vec<(u32, String, String)>,
    after: Duration,
    text: String,
}

impl Heard {
    fn data(&self, kind: &str) -> Vec<&str> {
        let records = self.records.iter().filter(|(_, of, _)| of == kind);
        records.map(|(_, _, data)| data.as_str()).collect()
    }

    fn time_to_live(&self) -> Option<u32> {
        self.records.iter().map(|(time, _, _)| *time).max()
    }
}

fn dig(lab: &Lab, instance: &str, words: &str) -> Result<Heard> {
    let server = format!("@{SERVICE_ADDRESS}");
    let all: Vec<&str> = ["dig", &server, "+tries=1", "+time=6"]
        .into_iter()
        .chain(words.split_whitespace())
        .collect();
    let text = lab.run(instance, &all)?;
    let milliseconds = text
        .split(";; Query time: ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let milliseconds = milliseconds.with_context(|| format!("dig {words}: {text}"))?;
    let status = text
        .split("status: ")
        .nth(1)
        .and_then(|rest| rest.split(',').next());
    let answers = text.split(";; ANSWER SECTION:\n").nth(1).unwrap_or_default();
    let record = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let time = fields.next()?.parse().ok()?;
        let kind = fields.nth(1)?.to_owned();
        Some((time, kind, fields.collect::<Vec<_>>().join(" ")))
    };
    Ok(Heard {
        status: status.with_context(|| format!("dig {words}: {text}"))?.to_owned(),
        records: answers.lines().map_while(record).collect(),
        after: Duration::from_millis(milliseconds.parse()?),
        text,
    })
}

/// Each form of answer, over UDP and TCP.
fn records(lab: &Lab) -> Result<()> {
    for how in ["", "+tcp", "+noedns"] {
        let heard = |asked: &str| dig(lab, "shop-web-1", &format!("{how} {asked}"));
        let www = heard("www.example.test A")?;
        ensure!(
            www.status == "NOERROR" && www.data("A") == ["198.51.100.7"],
            "{how}: {}",
            www.text
        );
        ensure!(www.text.contains(" ra"), "{}", www.text);
        ensure!(!www.text.contains(" aa"), "it isn't ours to say: {}", www.text);
        ensure!(heard("www.example.test AAAA")?.data("AAAA") == ["2001:db8:7::7"]);
        let alias = heard("alias.example.test A")?;
        ensure!(
            alias.data("CNAME") == ["www.example.test."] && alias.data("A") == ["198.51.100.7"],
            "{how}: {}",
            alias.text
        );
        let nothing = heard("www.example.test MX")?;
        ensure!(
            nothing.status == "NOERROR" && nothing.records.is_empty(),
            "{}",
            nothing.text
        );
        ensure!(heard("nobody.example.test A")?.status == "NXDOMAIN");
        ensure!(heard("WWW.exAMPLE.test A")?.data("A") == ["198.51.100.7"]);
        let long = heard("long.example.test TXT")?;
        ensure!(
            how == "+tcp" || long.text.contains("retrying in TCP mode"),
            "it doesn't fit into a datagram: {}",
            long.text
        );
        let text = long.data("TXT").concat();
        ensure!(
            text.matches(&"x".repeat(200)).count() == 8,
            "{how}: {}",
            long.text
        );
        for (asked, kind, address) in [
            ("localhost A", "A", "127.0.0.1"),
            ("any.localhost AAAA", "AAAA", "::1"),
        ] {
            ensure!(heard(asked)?.data(kind) == [address], "{asked}");
        }
        for asked in ["hidden.onion A", "printer.local A", "really.invalid A"] {
            ensure!(heard(asked)?.status == "NXDOMAIN", "{asked}");
        }
    }
    println!(
        "A, AAAA, CNAME, TXT of 1,600 bytes, none, NXDOMAIN: right, over UDP and TCP, with and without EDNS"
    );
    Ok(())
}

/// What was answered is told again, its time counted down, and the upstream isn't asked again.
fn memory(lab: &Lab, upstream: &Upstream) -> Result<()> {
    let name = "kept.any.example.test";
    let first = dig(lab, "shop-web-1", name)?;
    ensure!(first.time_to_live() == Some(TIME_TO_LIVE), "{}", first.text);
    thread::sleep(Duration::from_millis(2100));
    let again = dig(lab, "shop-web-1", name)?;
    let time = again.time_to_live().context("a record")?;
    ensure!((1..=TIME_TO_LIVE - 2).contains(&time), "{}", again.text);
    ensure!(
        upstream.asked(name)? == 1,
        "asked {} times",
        upstream.asked(name)?
    );
    println!(
        "the first answer comes after {} ms, the next after {} ms with {time} s left",
        first.after.as_millis(),
        again.after.as_millis()
    );
    Ok(())
}

/// What is asked outside, and what isn't.
fn reach(lab: &Lab, upstream: &Upstream) -> Result<()> {
    ensure!(dig(lab, "shop-web-1", "web.shop A")?.status == "NXDOMAIN");
    ensure!(
        upstream.asked("web.shop")? > 0,
        "a short form of an inside name is a name of the world"
    );
    for inside in [
        "web.shop.internal",
        "nobody.shop.internal",
        "x.invalid",
        "x.onion",
        "x.local",
        "localhost",
    ] {
        dig(lab, "shop-web-1", inside)?;
        ensure!(upstream.asked(inside)? == 0, "{inside} left the host");
    }
    let getent = lab.run("shop-web-1", &["getent", "ahostsv4", "alias.example.test"])?;
    ensure!(getent.starts_with("198.51.100.7"), "{getent}");
    let told = query(lab, "h1", "www.example.test.", "shop/web-1")?;
    let (code, why) = (word(&told, "code")?, word(&told, "why")?);
    ensure!(code == "NOERROR" && why.contains("192.0.2.53"), "{told}");
    ensure!(
        told.pointer("/records/0/value").and_then(Value::as_str) == Some("198.51.100.7"),
        "{told}"
    );
    Ok(())
}

/// A name of the world that leads inside is refused, unless the document has its domain.
fn rebinding(lab: &Lab) -> Result<()> {
    for asked in ["inside.example.test A", "inside6.example.test AAAA"] {
        let heard = dig(lab, "shop-web-1", asked)?;
        ensure!(
            heard.status == "REFUSED" && heard.records.is_empty(),
            "{}",
            heard.text
        );
    }
    ensure!(dig(lab, "shop-web-1", "inside.corp.example A")?.data("A") == ["10.1.2.3"]);
    let told = query(lab, "h1", "inside.example.test.", "shop/web-1")?;
    let (code, why) = (word(&told, "code")?, word(&told, "why")?);
    ensure!(
        code == "REFUSED" && why.contains("10.1.2.3") && why.contains("private-domains"),
        "{told}"
    );
    let refused = dns_status(lab, "h1")?.get("refused").and_then(Value::as_u64);
    ensure!(refused >= Some(2), "{refused:?}");
    println!("private addresses are refused, and told in a private domain");
    Ok(())
}

/// h2 asks whom a file names, as it stands.
fn followed(lab: &Lab) -> Result<()> {
    let file: PathBuf = lab.host_folder("h2").join("resolv.conf");
    let problems = || -> Result<String> {
        let status = lab.tidegate("h2", &["status"])?;
        Ok(status
            .get("problems")
            .map(ToString::to_string)
            .unwrap_or_default())
    };
    ensure!(
        problems()?.contains("resolv.conf"),
        "a file that isn't there is a problem: {}",
        problems()?
    );
    ensure!(dig(lab, "shop-web-2", "a.any.example.test")?.status == "SERVFAIL");

    let mut number = 0;
    let mut becomes = |text: Option<&str>, address: bool| -> Result<Duration> {
        match text {
            Some(text) => fs::write(&file, text)?,
            None => fs::remove_file(&file)?,
        }
        let began = Instant::now();
        wait_until("the file is followed", Duration::from_secs(5), || {
            number += 1;
            let heard = dig(lab, "shop-web-2", &format!("{number}.any.example.test"))?;
            Ok(heard.data("A").is_empty() != address)
        })?;
        Ok(began.elapsed())
    };
    let after = becomes(
        Some("# the world\nnameserver 192.0.2.53\noptions ndots:1\n"),
        true,
    )?;
    println!(
        "a resolv.conf counts {} ms after it was written",
        after.as_millis()
    );
    wait_until("nothing is wrong any more", Duration::from_secs(5), || {
        Ok(!problems()?.contains("resolv.conf"))
    })?;
    becomes(None, true)?;
    wait_until("a file that is gone is told", Duration::from_secs(5), || {
        Ok(problems()?.contains("resolv.conf"))
    })?;
    ensure!(
        dig(lab, "shop-web-2", "gone.any.example.test")?.status == "NOERROR",
        "whom it named is still asked"
    );

    // Ourselves: left out, and told.
    becomes(Some("nameserver 172.19.0.1\nnameserver 192.0.2.53\n"), true)?;
    wait_until("a loop is told", Duration::from_secs(5), || {
        Ok(problems()?.contains("172.19.0.1"))
    })?;

    // One of two says nothing.
    let python = lab.write("mute.py", MUTE)?;
    let python = python.to_str().context("the path isn't UTF-8")?;
    let mute = lab.start("mute", &["/usr/bin/python3", python])?;
    wait_until("the mute one is there", Duration::from_secs(20), || {
        Ok(mute.printed()?.contains("mute"))
    })?;
    becomes(Some("nameserver 192.0.2.54\nnameserver 192.0.2.53\n"), true)?;
    wait_until("the mute one is known", Duration::from_secs(5), || {
        Ok(upstream_of(&dns_status(lab, "h2")?, "192.0.2.54:53").is_ok())
    })?;
    let mut slowest = Duration::ZERO;
    for number in 0..10 {
        let heard = dig(lab, "shop-web-2", &format!("half-{number}.any.example.test"))?;
        ensure!(heard.status == "NOERROR", "{}", heard.text);
        slowest = slowest.max(heard.after);
    }
    ensure!(slowest < Duration::from_secs(1), "{slowest:?}");
    println!(
        "with one of two upstreams mute an answer takes {} ms at most",
        slowest.as_millis()
    );
    wait_until("the mute one is down", Duration::from_secs(20), || {
        number_asked(lab)?;
        let status = dns_status(lab, "h2")?;
        Ok(upstream_of(&status, "192.0.2.54:53")?
            .get("state")
            .and_then(Value::as_str)
            == Some("down"))
    })?;
    let status = dns_status(lab, "h2")?;
    let world = upstream_of(&status, "192.0.2.53:53")?;
    ensure!(
        word(world, "state")? == "up" && word(world, "source")? == "resolv-conf",
        "{status}"
    );
    Ok(())
}

/// Asks for a name that wasn't asked for yet.
fn number_asked(lab: &Lab) -> Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    dig(
        lab,
        "shop-web-2",
        &format!("at-{}.any.example.test", now.as_nanos()),
    )?;
    Ok(())
}

/// The agent stands still: what the datapath knows it goes on telling.
fn standstill(lab: &Lab) -> Result<()> {
    let patience = STANDSTILL[usize::from(is_long())];
    let asked = ["web.shop.internal", "standstill.any.example.test"];
    dig(lab, "shop-web-1", asked[1])?;
    let stopped = lab.stop("h1", Process::Agent)?;
    let told = ask_steadily(lab, "shop-web-1", &asked, patience)?;
    drop(stopped);
    for (name, told) in &told {
        println!(
            "agent stopped for {} s: {name} asked {} times, the slowest answer after {} ms",
            patience.as_secs(),
            told.asked,
            told.slowest.as_millis()
        );
        ensure!(told.answered == told.asked, "{name}: {told:?}");
        ensure!(told.slowest < STALE_SOON, "{name}: {told:?}");
    }
    let local = told.get(asked[0]).context("it was asked")?;
    ensure!(
        local.slowest < INSIDE_SOON,
        "names inside wait for nobody: {local:?}"
    );
    // It goes on with what was asked meanwhile.
    wait_until("the agent asks again", Duration::from_secs(10), || {
        Ok(dig(lab, "shop-web-1", "after.any.example.test")?.status == "NOERROR")
    })
}

/// The upstream says nothing, then it is gone: what was true before is told, and names inside are as ever.
fn outage(lab: &Lab, upstream: Upstream) -> Result<Upstream> {
    let name = "outage.any.example.test";
    ensure!(dig(lab, "shop-web-1", name)?.time_to_live() == Some(TIME_TO_LIVE));
    let stopped = upstream.server.stop()?;
    thread::sleep(Duration::from_secs(u64::from(TIME_TO_LIVE) + 1));
    for round in 0..3 {
        let after = told_stale(lab, name)?;
        println!(
            "upstream mute, round {round}: the old answer comes after {} ms",
            after.as_millis()
        );
    }
    let unknown = dig(lab, "shop-web-1", "unknown.any.example.test")?;
    ensure!(unknown.status == "SERVFAIL", "{}", unknown.text);
    println!(
        "a name that was never asked for fails after {} ms",
        unknown.after.as_millis()
    );
    let told = ask_steadily(lab, "shop-web-1", &["web.shop.internal"], Duration::from_secs(2))?;
    for told in told.values() {
        ensure!(
            told.answered == told.asked && told.slowest < INSIDE_SOON,
            "{told:?}"
        );
    }
    let told = query(lab, "h1", "unknown.any.example.test.", "shop/web-1")?;
    ensure!(
        word(&told, "code")? == "SERVFAIL" && word(&told, "why")?.contains("192.0.2.53"),
        "{told}"
    );
    let doctor = lab.tidegate("h1", &["doctor"])?;
    let mut findings = doctor
        .get("findings")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let warned = |finding: &Value| -> Result<bool> {
        Ok(word(finding, "state")? == "warning" && word(finding, "text")?.contains("192.0.2.53"))
    };
    ensure!(
        findings.any(|finding| warned(finding).unwrap_or(false)),
        "doctor says nothing of it: {doctor}"
    );

    drop(stopped);
    drop(upstream);
    let after = told_stale(lab, name)?;
    println!(
        "upstream gone: the old answer comes after {} ms",
        after.as_millis()
    );
    let upstream = Upstream::start(lab)?;
    let began = Instant::now();
    wait_until("the upstream is asked again", Duration::from_secs(40), || {
        let heard = dig(lab, "shop-web-1", name)?;
        Ok(heard.time_to_live().is_some_and(|time| time <= TIME_TO_LIVE))
    })?;
    println!(
        "upstream back: the answer is fresh {} ms later",
        began.elapsed().as_millis()
    );
    Ok(upstream)
}

/// Asks for a name whose answer was true before, and gives how long it took.
fn told_stale(lab: &Lab, name: &str) -> Result<Duration> {
    let heard = dig(lab, "shop-web-1", name)?;
    ensure!(
        heard.data("A") == ["198.51.100.9"] && heard.time_to_live() == Some(STALE_TIME_TO_LIVE),
        "{}",
        heard.text
    );
    ensure!(heard.after < STALE_SOON, "{:?}", heard.after);
    Ok(heard.after)
}

/// What became of queries for one name.
#[derive(Debug, Default)]
struct Told {
    asked: usize,
    /// With addresses.
    answered: usize,
    slowest: Duration,
}

/// Asks for each name at an even pace, whether or not the one before was answered.
fn ask_steadily(
    lab: &Lab,
    instance: &str,
    names: &[&str],
    patience: Duration,
) -> Result<BTreeMap<String, Told>> {
    lab.inside(instance, || {
        let server: SocketAddr = format!("{SERVICE_ADDRESS}:53").parse()?;
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect(server)?;
        let questions: Vec<Question> = names
            .iter()
            .map(|name| Question::new(&wire(name), 1).with_context(|| format!("{name} is no name")))
            .collect::<Result<_>>()?;
        let mut told: BTreeMap<String, Told> = BTreeMap::new();
        let mut waiting: BTreeMap<u16, (usize, Vec<u8>, Instant)> = BTreeMap::new();
        let began = Instant::now();
        let (mut sent, mut buffer) = (0_u32, [0; 4096]);
        loop {
            let over = began.elapsed() >= patience;
            let due = began + PACE * (sent / u32::try_from(names.len())?);
            if over && (waiting.is_empty() || began.elapsed() >= patience + Duration::from_secs(5)) {
                return Ok(told);
            }
            if !over && Instant::now() >= due {
                let id = u16::try_from(sent % 65_536)?;
                let index = usize::try_from(sent)? % names.len();
                let query = questions[index].query(id, [0; 32], true);
                socket.send(&query)?;
                told.entry(names[index].to_owned()).or_default().asked += 1;
                waiting.insert(id, (index, query, Instant::now()));
                sent += 1;
                continue;
            }
            let pause = if over {
                PACE
            } else {
                due.saturating_duration_since(Instant::now())
            };
            socket.set_read_timeout(Some(pause.max(Duration::from_millis(1))))?;
            let received = match socket.recv(&mut buffer) {
                Ok(received) => &buffer[..received],
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                Err(error) => return Err(error.into()),
            };
            let id = u16::from_be_bytes([received[0], received[1]]);
            let (index, query, since) = waiting.remove(&id).context("an answer to nothing")?;
            let reply = Reply::accept(received, &query)?;
            let told = told.entry(names[index].to_owned()).or_default();
            told.answered += usize::from(reply.is_answer() && reply.addresses().next().is_some());
            told.slowest = told.slowest.max(since.elapsed());
        }
    })
}

/// A name as it stands in messages.
fn wire(name: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in name.split('.') {
        wire.push(u8::try_from(label.len()).unwrap_or_default());
        wire.extend(label.bytes());
    }
    wire.push(0);
    wire
}

/// The last thing that `dns query` tells of an address.
fn query(lab: &Lab, host: &str, name: &str, from: &str) -> Result<Value> {
    let told = lab.tidegate(host, &["dns", "query", name, "--type", "A", "--from", from])?;
    let queries = told.get("queries").and_then(Value::as_array);
    let last = queries.and_then(|queries| queries.last());
    Ok(last.with_context(|| format!("no query in {told}"))?.clone())
}

fn dns_status(lab: &Lab, host: &str) -> Result<Value> {
    let status = lab.tidegate(host, &["status"])?;
    Ok(status
        .get("dns")
        .with_context(|| format!("status tells nothing of names: {status}"))?
        .clone())
}

fn upstream_of<'v>(status: &'v Value, address: &str) -> Result<&'v Value> {
    let mut upstreams = status
        .get("upstreams")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    upstreams
        .find(|upstream| upstream.get("address").and_then(Value::as_str) == Some(address))
        .with_context(|| format!("{address} isn't in {status}"))
}

fn word<'v>(value: &'v Value, key: &str) -> Result<&'v str> {
    value
        .get(key)
        .and_then(Value::as_str)
        .with_context(|| format!("no `{key}` in {value}"))
}
