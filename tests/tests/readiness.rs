//! Readiness: only instances that answer are told by name, on every host, and how soon that follows what they do.
#![expect(clippy::print_stdout, reason = "a story tells what it measured")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tidegate_tests::{Lab, Process, wait_until};

const TOPOLOGY: &str = "segments: { lan: { ipv4: 192.0.2.0/24 } }
hosts:
  h1: { ordinal: 1, interfaces: [ { segment: lan, addresses: [192.0.2.11] } ] }
  h2: { ordinal: 2, interfaces: [ { segment: lan, addresses: [192.0.2.12] } ], document: { datapath: { shards: 1, features: { vnet-header: off } } } }
applications: [ shop.yaml ]
instances:
  - { application: shop, service: asker, host: h1 }
  - { application: shop, service: asker, host: h2 }
  - { application: shop, service: web, host: h1 }
  - { application: shop, service: web, host: h2 }
  - { application: shop, service: db, host: h2 }
";

/// Nobody may reach `db`, and the appliance asks it all the same.
const SHOP: &str = "name: shop
services:
  - name: asker
  - name: web
    ports: [ { name: http, port: 80 } ]
    readiness: { http: { port: 80, path: /ready }, interval: 200ms, failures: 2 }
  - name: db
    readiness: { tcp: 5432, interval: 200ms, failures: 1 }
    network: { inbound-access: { rules: [] } }
";

const INTERVAL: Duration = Duration::from_millis(200);
/// What must be on every host within this of what can be known.
const SOON: Duration = Duration::from_secs(1);
const ASKERS: [&str; 2] = ["shop-asker-1", "shop-asker-2"];
const SERVICE_ADDRESS: &str = "@172.19.0.1";

/// A service inside an instance: it answers `GET /ready` with a status, and takes connections as long as it lives.
struct Server {
    status: Arc<AtomicU16>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(lab: &Lab, instance: &str, port: u16) -> Result<Self> {
        let listener = lab.inside(instance, || {
            let listener = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port)))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })?;
        let status = Arc::new(AtomicU16::new(200));
        let ends = Arc::new(AtomicBool::new(false));
        let (told, over) = (Arc::clone(&status), Arc::clone(&ends));
        let thread = thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                if !serve(&listener, told.load(Ordering::Relaxed)) {
                    thread::sleep(Duration::from_millis(5));
                }
            }
        });
        Ok(Self {
            status,
            ends,
            thread: Some(thread),
        })
    }

    fn answer_with(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves one connection, if one waits. Who connects and says nothing is let go.
fn serve(listener: &TcpListener, status: u16) -> bool {
    let Ok((mut stream, _)) = listener.accept() else {
        return false;
    };
    let mut request = [0; 512];
    let patience = stream.set_nonblocking(false).and_then(|()| {
        let patience = Some(Duration::from_millis(100));
        stream.set_read_timeout(patience)
    });
    let heard = patience.and_then(|()| stream.read(&mut request)).unwrap_or(0);
    if request
        .get(..heard)
        .is_some_and(|request| request.starts_with(b"GET /ready HTTP/1.1\r\n"))
    {
        let answer =
            format!("HTTP/1.1 {status} Whatever\r\nContent-Length: 5\r\nConnection: close\r\n\r\nwhat\n");
        let _ = stream.write_all(answer.as_bytes());
    }
    true
}

/// What dig prints of a query.
fn dig(lab: &Lab, asker: &str, words: &str) -> Result<String> {
    let all: Vec<&str> = ["dig", SERVICE_ADDRESS, "+tries=1", "+time=2"]
        .into_iter()
        .chain(words.split_whitespace())
        .collect();
    lab.run(asker, &all)
}

/// The addresses of an answer that is NOERROR, sorted.
fn addresses(lab: &Lab, asker: &str, name: &str) -> Result<Vec<String>> {
    let text = dig(lab, asker, &format!("{name} A"))?;
    ensure!(text.contains("status: NOERROR"), "{text}");
    let lines = text.lines().filter(|line| line.contains("\tA\t"));
    let mut addresses: Vec<_> = lines
        .filter_map(|line| line.rsplit('\t').next())
        .map(str::to_owned)
        .collect();
    addresses.sort();
    Ok(addresses)
}

/// How long after `since` both hosts tell exactly these; longer than `known`, after which it can be known, and [`SOON`]
/// is too long.
fn told_within(
    lab: &Lab,
    name: &str,
    expected: &[&String],
    since: Instant,
    known: Duration,
) -> Result<Duration> {
    loop {
        let mut right = true;
        for asker in ASKERS {
            right &= addresses(lab, asker, name)?.iter().collect::<Vec<_>>() == expected;
        }
        let elapsed = since.elapsed();
        if right {
            ensure!(elapsed <= known + SOON, "{name} was right after {elapsed:?}");
            return Ok(elapsed);
        }
        ensure!(
            elapsed < Duration::from_secs(10),
            "{name} isn't right after {elapsed:?}"
        );
        thread::sleep(Duration::from_millis(10));
    }
}

/// What is known of an instance's readiness on its host.
fn readiness(lab: &Lab, host: &str, instance: &str) -> Result<Value> {
    let list = lab.tidegate(host, &["show", "instances"])?;
    let lines = list
        .get("instances")
        .and_then(Value::as_array)
        .context("a list")?;
    let line = lines
        .iter()
        .find(|line| line.get("instance").and_then(Value::as_str) == Some(instance));
    let line = line.with_context(|| format!("{instance} isn't on {host}"))?;
    line.get("readiness").cloned().context("it is asked")
}

#[test]
fn only_instances_that_answer_are_told_by_name() -> Result<()> {
    let Some(lab) = Lab::up("tgt-ready", TOPOLOGY, &[("shop.yaml", SHOP)])? else {
        return Ok(());
    };
    let web = [
        lab.address("shop-web-1", "-4")?.to_string(),
        lab.address("shop-web-2", "-4")?.to_string(),
    ];
    let db = lab.address("shop-db-1", "-4")?.to_string();
    nobody_answers(&lab, &web[0])?;
    let servers = they_come_and_go(&lab, &web)?;
    a_connection_is_enough(&lab, &db)?;
    flapping(&lab, &servers[1], &web)?;
    restarts(&lab, &servers, &web)?;
    drop(servers);
    lab.close()
}

/// Nothing listens yet: the names exist, and nothing is told.
fn nobody_answers(lab: &Lab, first: &str) -> Result<()> {
    wait_until("web-1 was asked", Duration::from_secs(10), || {
        let known = readiness(lab, "h1", "web-1")?;
        Ok(known.get("error").and_then(Value::as_str) == Some("it refuses the connection"))
    })?;
    for asker in ASKERS {
        for name in ["web.shop.internal", "web-1.shop.internal", "db.shop.internal"] {
            let told = addresses(lab, asker, name)?;
            ensure!(told.is_empty(), "{asker}: {name} is told as {told:?}");
        }
        let services = dig(lab, asker, "+short _http._tcp.web.shop.internal SRV")?;
        ensure!(services.is_empty(), "{services}");
        let pointer = dig(lab, asker, &format!("+short -x {first}"))?;
        ensure!(pointer.trim() == "web-1.shop.internal.", "{pointer}");
    }
    let list = lab.tidegate("h1", &["show", "names"])?;
    let lines = list.get("names").and_then(Value::as_array).context("a list")?;
    let why = lines.iter().find_map(|line| {
        let text = |key| line.get(key).and_then(Value::as_str);
        (text("name") == Some("web-1.shop.internal") && text("type") == Some("A")).then(|| text("why"))?
    });
    let why = why.context("web-1 is listed")?;
    ensure!(
        why.starts_with("web-1 on h1, which isn't ready: it refuses the connection"),
        "{why}"
    );
    println!("nobody answers: no address on either host, PTR is told, `show names` says: {why}");
    Ok(())
}

fn they_come_and_go(lab: &Lab, web: &[String; 2]) -> Result<[Server; 2]> {
    const NAME: &str = "web.shop.internal";
    let [first, second] = web;
    let tell =
        |what: &str, took: Duration| println!("{what}: right on both hosts {} ms later", took.as_millis());
    let since = Instant::now();
    let one = Server::start(lab, "shop-web-1", 80)?;
    tell(
        "web-1 listens",
        told_within(lab, NAME, &[first], since, INTERVAL)?,
    );
    let since = Instant::now();
    let two = Server::start(lab, "shop-web-2", 80)?;
    tell(
        "web-2 listens",
        told_within(lab, NAME, &[first, second], since, INTERVAL)?,
    );

    let since = Instant::now();
    one.answer_with(500);
    let took = told_within(lab, NAME, &[second], since, 2 * INTERVAL)?;
    tell("web-1 answers with 500", took);
    let known = readiness(lab, "h1", "web-1")?;
    ensure!(
        known.get("error").and_then(Value::as_str) == Some("it answers with HTTP status 500"),
        "{known}"
    );
    let since = Instant::now();
    one.answer_with(302);
    tell(
        "web-1 answers with 302",
        told_within(lab, NAME, &[first, second], since, INTERVAL)?,
    );
    for _ in 0..3 {
        let since = Instant::now();
        two.answer_with(503);
        let took = told_within(lab, NAME, &[first], since, 2 * INTERVAL)?;
        tell("web-2 answers with 503", took);
        let since = Instant::now();
        two.answer_with(200);
        tell(
            "web-2 answers with 200",
            told_within(lab, NAME, &[first, second], since, INTERVAL)?,
        );
    }

    let since = Instant::now();
    drop(one);
    tell(
        "web-1 is stopped",
        told_within(lab, NAME, &[second], since, 2 * INTERVAL)?,
    );
    let since = Instant::now();
    let one = Server::start(lab, "shop-web-1", 80)?;
    tell(
        "web-1 is started",
        told_within(lab, NAME, &[first, second], since, INTERVAL)?,
    );
    Ok([one, two])
}

/// TCP, and past the rules of the service: what asks is the appliance itself.
fn a_connection_is_enough(lab: &Lab, db: &String) -> Result<()> {
    const NAME: &str = "db.shop.internal";
    for _ in 0..3 {
        let since = Instant::now();
        let server = Server::start(lab, "shop-db-1", 5432)?;
        let came = told_within(lab, NAME, &[db], since, INTERVAL)?;
        let since = Instant::now();
        drop(server);
        let went = told_within(lab, NAME, &[], since, INTERVAL)?;
        println!(
            "db-1 listens: told {} ms later; stopped: not told {} ms later",
            came.as_millis(),
            went.as_millis()
        );
    }
    Ok(())
}

/// While one of two instances flaps, 20 questions a second on each host get an answer each, and never an empty one.
fn flapping(lab: &Lab, flaps: &Server, web: &[String; 2]) -> Result<()> {
    let ends = AtomicBool::new(false);
    let ask = |asker: &str| -> Result<(u32, u32)> {
        let (mut asked, mut without) = (0, 0);
        while !ends.load(Ordering::Relaxed) {
            let began = Instant::now();
            // A SERVFAIL or a time-out is an error of these.
            let told = addresses(lab, asker, "web.shop.internal")?;
            ensure!(
                told.contains(&web[0]),
                "{asker}: web-1 is ready, and told is {told:?}"
            );
            asked += 1;
            without += u32::from(told.len() == 1);
            thread::sleep(Duration::from_millis(50).saturating_sub(began.elapsed()));
        }
        Ok((asked, without))
    };
    let told = thread::scope(|scope| {
        let askers = ASKERS.map(|asker| scope.spawn(move || ask(asker)));
        for _ in 0..5 {
            flaps.answer_with(500);
            thread::sleep(Duration::from_millis(900));
            flaps.answer_with(200);
            thread::sleep(Duration::from_millis(900));
        }
        ends.store(true, Ordering::Relaxed);
        askers.map(|asker| asker.join())
    });
    for (asker, told) in ASKERS.iter().zip(told) {
        let (asked, without) = told.map_err(|_| anyhow::anyhow!("{asker}'s thread panicked"))??;
        println!(
            "web-2 flaps: {asker} asked {asked} times, {without} of them without web-2, no error, none empty"
        );
        ensure!(without > 0 && without < asked, "web-2 didn't flap");
    }
    Ok(())
}

/// Neither process forgets who is ready, or who isn't.
fn restarts(lab: &Lab, servers: &[Server; 2], web: &[String; 2]) -> Result<()> {
    const NAME: &str = "web.shop.internal";
    let [first, second] = web;
    for process in [Process::Agent, Process::Datapath] {
        for both in [true, false] {
            servers[1].answer_with(if both { 200 } else { 500 });
            let expected: &[&String] = if both { &[first, second] } else { &[first] };
            told_within(lab, NAME, expected, Instant::now(), 2 * INTERVAL)?;
            lab.kill("h2", process)?;
            let until = Instant::now() + Duration::from_secs(4);
            let mut asked = 0;
            while Instant::now() < until {
                let told = addresses(lab, ASKERS[0], NAME)?;
                ensure!(
                    told.iter().eq(expected.iter().copied()),
                    "{told:?} after a restart of the {process:?}"
                );
                asked += 1;
                thread::sleep(Duration::from_millis(20));
            }
            wait_until("h2 tells it, too", Duration::from_secs(5), || {
                Ok(
                    addresses(lab, ASKERS[1], NAME)
                        .is_ok_and(|told| told.iter().eq(expected.iter().copied())),
                )
            })?;
            println!("h2's {process:?} is killed: {asked} questions on h1 are told the same as before");
        }
    }
    servers[1].answer_with(200);
    told_within(lab, NAME, &[first, second], Instant::now(), INTERVAL)?;
    Ok(())
}
