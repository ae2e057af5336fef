//! Names while a service scales, restarts and loses its agents: whoever asks twenty times a second is never without an
//! answer, and told right within a second of each change.
#![expect(clippy::print_stdout, reason = "a story tells what it measured")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tidegate_tests::{Asked, Lab, Process, Question, is_long, wait_until};

const TOPOLOGY: &str = "segments: { lan: { ipv4: 192.0.2.0/24 } }
hosts:
  h1: { ordinal: 1, interfaces: [ { segment: lan, addresses: [192.0.2.11] } ] }
  h2: { ordinal: 2, interfaces: [ { segment: lan, addresses: [192.0.2.12] } ] }
  h3: { ordinal: 3, interfaces: [ { segment: lan, addresses: [192.0.2.13] } ] }
applications: [ shop.yaml ]
instances:
  - { application: shop, service: web, host: h1 }
  - { application: shop, service: web, host: h2 }
  - { application: shop, service: web, host: h3 }
  - { application: shop, service: web, host: h1 }
  - { application: shop, service: web, host: h2 }
  - { application: shop, service: asker, host: h1 }
  - { application: shop, service: asker, host: h2 }
  - { application: shop, service: asker, host: h3 }
";
const SHOP: &str = "name: shop\nservices: [ { name: web }, { name: asker } ]\n";

/// The service address of every application's own network.
const SERVER: &str = "172.19.0.1:53";
/// Who asks: one on each host.
const ASKERS: [&str; 3] = ["shop-asker-1", "shop-asker-2", "shop-asker-3"];
/// Where the instances of the service are, from the first.
const HOSTS: [&str; 5] = ["h1", "h2", "h3", "h1", "h2"];
/// Twenty a second.
const INTERVAL: Duration = Duration::from_millis(50);
/// What comes later than this didn't come.
const PATIENCE: Duration = Duration::from_secs(2);
/// After a change, every answer is right from here on.
const SOON: Duration = Duration::from_secs(1);
/// So long nothing happens after a change.
const REST: Duration = Duration::from_millis(1500);

/// How long agents are stopped, in CI and in the long form.
const STOPPED: Duration = Duration::from_secs(20);
const STOPPED_LONG: Duration = Duration::from_secs(300);

/// What was done, and what is right since.
struct Change {
    what: String,
    /// Its verb was called.
    began: Instant,
    /// Its verb had returned.
    done: Instant,
    right: Vec<IpAddr>,
}

/// The service, and what has been done to it.
struct Service<'a> {
    lab: &'a Lab,
    addresses: Vec<IpAddr>,
    /// Numbers of the instances that are attached.
    attached: BTreeSet<usize>,
    changes: Vec<Change>,
}

#[test]
fn names_are_right_within_a_second_of_every_change_and_never_missing() -> Result<()> {
    let Some(lab) = Lab::up("tgt-scaling", TOPOLOGY, &[("shop.yaml", SHOP)])? else {
        return Ok(());
    };
    let addresses = (1..=HOSTS.len()).map(|number| lab.address(&format!("shop-web-{number}"), "-4"));
    let mut service = Service {
        lab: &lab,
        addresses: addresses.collect::<Result<_>>()?,
        attached: (1..=HOSTS.len()).collect(),
        changes: Vec::new(),
    };
    let question = Question {
        server: SERVER.parse::<SocketAddr>()?,
        name: "web.shop.internal".to_owned(),
        kind: 1,
    };
    everybody_is_told(&service, &question)?;

    let is_over = AtomicBool::new(false);
    let asked = thread::scope(|scope| -> Result<Vec<Vec<Asked>>> {
        let asking: Vec<_> = ASKERS
            .iter()
            .map(|asker| {
                let ask = || question.ask_steadily(INTERVAL, PATIENCE, &is_over);
                let lab = &lab;
                scope.spawn(move || {
                    lab.inside(asker, ask)
                        .with_context(|| format!("asking in {asker}"))
                })
            })
            .collect();
        let happened = service.happen();
        is_over.store(true, Ordering::Relaxed);
        let asked = asking
            .into_iter()
            .map(|one| {
                one.join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect();
        happened?;
        asked
    })?;
    for (asker, asked) in ASKERS.iter().zip(&asked) {
        never_missing(asker, asked, &service.addresses)?;
    }
    for (index, change) in service.changes.iter().enumerate() {
        let next = service.changes.get(index + 1);
        right_soon(change, next.map(|next| next.began), &asked)?;
    }
    lab.close()
}

/// Waits until all hosts have told each other of all instances.
fn everybody_is_told(service: &Service<'_>, question: &Question) -> Result<()> {
    let right = service.right();
    for asker in ASKERS {
        wait_until("everybody is told", Duration::from_secs(5), || {
            let answer = service.lab.inside(asker, || question.ask(1, PATIENCE))?;
            Ok(answer.is_some_and(|answer| answer.addresses == right))
        })?;
    }
    Ok(())
}

impl Service<'_> {
    /// From five to one, to five, to two; restarts; agents that are killed.
    fn happen(&mut self) -> Result<()> {
        for number in [2, 3, 4, 5] {
            self.change("detach", number)?;
        }
        thread::sleep(REST);
        for number in [2, 3, 4, 5] {
            self.change("attach", number)?;
        }
        thread::sleep(REST);
        for number in [1, 3, 5] {
            self.change("detach", number)?;
        }
        thread::sleep(REST);
        for number in [2, 4] {
            for verb in ["detach", "attach"] {
                self.change(verb, number)?;
                thread::sleep(REST);
            }
        }
        for host in ["h1", "h2"] {
            self.kill_agent(host)?;
            thread::sleep(REST);
        }
        // The one that was killed last has still to tell the others of this.
        self.change("attach", 5)?;
        thread::sleep(REST);
        self.stop_agents()
    }

    /// The addresses of what is attached, in order.
    fn right(&self) -> Vec<IpAddr> {
        let numbered = (1..).zip(&self.addresses);
        let attached = numbered.filter(|(number, _)| self.attached.contains(number));
        let mut right: Vec<IpAddr> = attached.map(|(_, address)| *address).collect();
        right.sort();
        right
    }

    fn change(&mut self, verb: &str, number: usize) -> Result<()> {
        let host = HOSTS
            .get(number - 1)
            .with_context(|| format!("web-{number} is nowhere"))?;
        let namespace = format!("/run/netns/{}", self.lab.namespace(&format!("shop-web-{number}")));
        let number_word = number.to_string();
        let keys = [
            verb,
            "--netns",
            &namespace,
            "--application",
            "shop",
            "--service",
            "web",
            "--instance",
            &number_word,
        ];
        if verb == "attach" {
            self.attached.insert(number);
        } else {
            self.attached.remove(&number);
        }
        let began = Instant::now();
        self.lab.tidegate(host, &keys)?;
        self.note(format!("{verb} web-{number} on {host}"), began);
        Ok(())
    }

    /// Kills an agent, and waits for the next one: what the datapath knows is answered all the time.
    fn kill_agent(&mut self, host: &str) -> Result<()> {
        let began = Instant::now();
        let killed = self.lab.kill(host, Process::Agent)?;
        wait_until("another agent answers", Duration::from_secs(10), || {
            Ok(self.lab.pid(host, Process::Agent).is_ok_and(|pid| pid != killed))
        })?;
        self.note(format!("kill -9 of the agent of {host}"), began);
        Ok(())
    }

    /// Stops all agents for a while: what the datapaths know doesn't change, and nobody is told otherwise.
    fn stop_agents(&mut self) -> Result<()> {
        let lasts = if is_long() { STOPPED_LONG } else { STOPPED };
        let began = Instant::now();
        let agents = ["h1", "h2", "h3"].map(|host| self.lab.pid(host, Process::Agent));
        let agents = agents.into_iter().collect::<Result<Vec<_>>>()?;
        signal(&agents, Signal::STOP)?;
        self.note(format!("agents stopped for {} s", lasts.as_secs()), began);
        thread::sleep(lasts);
        let began = Instant::now();
        signal(&agents, Signal::CONT)?;
        self.note("agents go on".to_owned(), began);
        thread::sleep(4 * SOON);
        Ok(())
    }

    fn note(&mut self, what: String, began: Instant) {
        self.changes.push(Change {
            what,
            began,
            done: Instant::now(),
            right: self.right(),
        });
    }
}

fn signal(pids: &[u32], signal: Signal) -> Result<()> {
    for pid in pids {
        let pid = Pid::from_raw(i32::try_from(*pid)?).context("process 0")?;
        kill_process(pid, signal).with_context(|| format!("{signal:?} to an agent"))?;
    }
    Ok(())
}

/// No question without an answer, none with an error, none with nothing in it, and nothing that never was.
fn never_missing(asker: &str, asked: &[Asked], all: &[IpAddr]) -> Result<()> {
    let (mut longest, mut late) = (Duration::ZERO, 0);
    for one in asked {
        let answer = one.answer.as_ref();
        let answer = answer.with_context(|| format!("{asker}: no answer within {PATIENCE:?}"))?;
        let found = answer.found().with_context(|| asker.to_owned())?;
        ensure!(
            found.iter().all(|address| all.contains(address)),
            "{asker}: {found:?}"
        );
        longest = longest.max(one.took);
        late += usize::from(one.took > INTERVAL);
    }
    println!(
        "{asker}: {} questions, all answered, the slowest after {} ms, {late} later than the next was due",
        asked.len(),
        longest.as_millis()
    );
    Ok(())
}

/// From a second after a change to the next one every host tells what is right.
fn right_soon(change: &Change, next: Option<Instant>, asked: &[Vec<Asked>]) -> Result<()> {
    let mut slowest = Duration::ZERO;
    for (asker, asked) in ASKERS.iter().zip(asked) {
        let until_next = |one: &&Asked| next.is_none_or(|next| one.at + one.took < next);
        for one in asked.iter().filter(until_next) {
            let Some(answer) = &one.answer else { continue };
            let since = one.at.saturating_duration_since(change.done);
            if since.is_zero() || answer.addresses == change.right {
                continue;
            }
            ensure!(
                since <= SOON,
                "{asker}: {since:?} after {} there still was {:?} and not {:?}",
                change.what,
                answer.addresses,
                change.right
            );
            slowest = slowest.max(since);
        }
    }
    println!(
        "{}: {} ms, and not told right last {} ms later",
        change.what,
        change.done.duration_since(change.began).as_millis(),
        slowest.as_millis()
    );
    Ok(())
}
