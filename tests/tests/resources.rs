//! What the two processes take of a small machine, at rest and after work.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tidegate_fixtures as fixtures;
use tidegate_tests::{Lab, Process};

const MIB: u64 = 1 << 20;
/// What a lab does when it comes up is over by then.
const SETTLE: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_secs(20);

#[test]
fn processes_stay_small_and_idle_processes_do_nothing() -> Result<()> {
    let Some(lab) = Lab::up_fixture("tgt-resources", &fixtures::topology("two-hosts"))? else {
        return Ok(());
    };
    sleep(SETTLE);
    let at_rest = Resident::of(&lab)?;
    println!("at rest: {at_rest}");
    ensure!(at_rest.datapath <= 16 * MIB, "the datapath has {at_rest}");
    ensure!(at_rest.agent <= 32 * MIB, "the agent has {at_rest}");

    for process in [Process::Agent, Process::Datapath] {
        let pid = lab.pid("h1", process)?;
        let before = cpu_time(pid)?;
        sleep(IDLE);
        let share = (cpu_time(pid)? - before).as_secs_f64() / IDLE.as_secs_f64();
        println!("idle {process:?}: {:.2} % of a core", share * 100.0);
        ensure!(
            share <= 0.005,
            "the idle {process:?} takes {:.2} % of a core",
            share * 100.0
        );
    }

    let target = lab.address("shop-db-1", "-4")?.to_string();
    let server = lab.serve_iperf3("shop-db-1")?;
    lab.run(
        "shop-web-1",
        &["iperf3", "--client", &target, "--time", "5", "--parallel", "8"],
    )?;
    server.interrupt()?;
    sleep(Duration::from_secs(60));
    let after = Resident::of(&lab)?;
    println!("60 s after load: {after}");
    ensure!(
        after.datapath <= at_rest.datapath + 8 * MIB,
        "the datapath grew from {at_rest} to {after}"
    );
    ensure!(
        after.agent <= at_rest.agent + 8 * MIB,
        "the agent grew from {at_rest} to {after}"
    );
    lab.close()
}

struct Resident {
    agent: u64,
    datapath: u64,
}

impl Resident {
    fn of(lab: &Lab) -> Result<Self> {
        let status = lab.tidegate("h1", &["status"])?;
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
