//! What the two processes take of a small machine, at rest and after work.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tidegate_tests::{Lab, Process};

const MIB: u64 = 1 << 20;
/// What a lab does when it comes up is over by then.
const SETTLE: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_secs(20);

/// Hosts of one shard and of two.
const HOSTS: [&str; 2] = ["h1", "h2"];
const TOPOLOGY: &str = "segments: { lan: { ipv4: 192.0.2.0/24 } }
hosts:
  h1:
    ordinal: 1
    interfaces: [ { segment: lan, addresses: [192.0.2.11] } ]
    document: { datapath: { shards: 1 } }
  h2:
    ordinal: 2
    interfaces: [ { segment: lan, addresses: [192.0.2.12] } ]
    document: { datapath: { shards: 2 } }
applications: [ pair.yaml ]
instances:
  - { application: pair, service: left, host: h1 }
  - { application: pair, service: right, host: h2 }
";
const APPLICATION: &str = "name: pair\nservices: [ { name: left }, { name: right } ]\n";

#[test]
fn processes_stay_small_and_idle_processes_do_nothing() -> Result<()> {
    let files = [("pair.yaml", APPLICATION)];
    let Some(lab) = Lab::up("tgt-resources", TOPOLOGY, &files)? else {
        return Ok(());
    };
    sleep(SETTLE);
    let at_rest = [Resident::of(&lab, HOSTS[0])?, Resident::of(&lab, HOSTS[1])?];
    for (host, at_rest) in HOSTS.iter().zip(&at_rest) {
        println!("{host} at rest: {at_rest}");
        ensure!(
            at_rest.datapath <= 16 * MIB,
            "the datapath of {host} has {at_rest}"
        );
        ensure!(at_rest.agent <= 32 * MIB, "the agent of {host} has {at_rest}");
    }

    let mut processes = Vec::new();
    for host in HOSTS {
        for process in [Process::Agent, Process::Datapath] {
            let pid = lab.pid(host, process)?;
            processes.push((host, process, pid, cpu_time(pid)?));
        }
    }
    sleep(IDLE);
    for (host, process, pid, before) in processes {
        let share = (cpu_time(pid)? - before).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
        println!("{host}, idle {process:?}: {share:.2} % of a core");
        ensure!(
            share <= 0.5,
            "{host}: the idle {process:?} takes {share:.2} % of a core"
        );
    }

    let target = lab.address("pair-right-1", "-4")?.to_string();
    let server = lab.serve_iperf3("pair-right-1")?;
    lab.run(
        "pair-left-1",
        &["iperf3", "--client", &target, "--time", "5", "--parallel", "8"],
    )?;
    server.interrupt()?;
    sleep(Duration::from_secs(60));
    for (host, at_rest) in HOSTS.iter().zip(&at_rest) {
        let after = Resident::of(&lab, host)?;
        println!("{host}, 60 s after load: {after}");
        ensure!(
            after.datapath <= at_rest.datapath + 8 * MIB,
            "the datapath of {host} grew from {at_rest} to {after}"
        );
        ensure!(
            after.agent <= at_rest.agent + 8 * MIB,
            "the agent of {host} grew from {at_rest} to {after}"
        );
    }
    lab.close()
}

struct Resident {
    agent: u64,
    datapath: u64,
}

impl Resident {
    fn of(lab: &Lab, host: &str) -> Result<Self> {
        let status = lab.tidegate(host, &["status"])?;
        let bytes = |path: &str| {
            status
                .pointer(path)
                .and_then(Value::as_u64)
                .with_context(|| format!("status has no {path}"))
        };
        Ok(Self {
            agent: bytes("/agent/resident-bytes")?,
            datapath: bytes("/datapath/process/resident-bytes")?,
        })
    }
}

impl std::fmt::Display for Resident {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes as f64 / MIB as f64;
        write!(
            f,
            "agent {:.1} MiB, datapath {:.1} MiB",
            mib(self.agent),
            mib(self.datapath)
        )
    }
}

/// Time on processors, of all threads, to the nanosecond.
fn cpu_time(pid: u32) -> Result<Duration> {
    let mut total = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("schedstat"))?;
        total += text
            .split_whitespace()
            .next()
            .context("an empty schedstat")?
            .parse::<u64>()?;
    }
    Ok(Duration::from_nanos(total))
}
