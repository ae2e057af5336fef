//! Leaves nothing behind: a second process that sweeps when the first one ends, by whatever means.
//!
//! The keeper holds one end of a pipe and is in a process group of its own, so neither Ctrl-C nor a kill of the
//! measuring process reaches it; when the other end closes it takes down everything that has a name of ours.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::command::{ip, run};
use crate::{account, ours};

/// What every namespace, lab and cgroup of a run begins with.
pub(crate) const PREFIX: &str = "tgp";

/// How long processes may take to end by themselves.
const PATIENCE: Duration = Duration::from_secs(3);

/// The sweeping process, seen from the measuring one.
pub(crate) struct Keeper(Child);

impl Keeper {
    /// Sweeps what an earlier run left, and starts the keeper.
    pub(crate) fn start() -> Result<Self> {
        sweep().context("sweeping what an earlier run left")?;
        let own = std::env::current_exe().context("finding this program")?;
        let child = Command::new(own)
            .arg("--keeper")
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("starting the keeper")?;
        Ok(Self(child))
    }

    /// Lets it sweep, and waits for that.
    pub(crate) fn finish(mut self) -> Result<()> {
        drop(self.0.stdin.take());
        let status = self.0.wait().context("waiting for the keeper")?;
        ensure!(
            status.success(),
            "the keeper couldn't remove everything ({status})"
        );
        Ok(())
    }
}

/// The keeper's own life: waits for the end of the measuring process, and sweeps.
pub(crate) fn keep() -> Result<()> {
    let mut end = Vec::new();
    std::io::stdin()
        .read_to_end(&mut end)
        .context("waiting for the measuring process")?;
    sweep()
}

/// Takes down everything that has a name of ours. Doing it twice is no mistake.
fn sweep() -> Result<()> {
    ours::down()?;
    for namespace in namespaces()? {
        remove(&namespace)?;
    }
    account::close_all()
}

/// Removes a namespace, with whatever runs in it.
pub(crate) fn remove(namespace: &str) -> Result<()> {
    end_processes(namespace)?;
    ip(&format!("netns delete {namespace}"))?;
    Ok(())
}

fn namespaces() -> Result<Vec<String>> {
    let listing = run(&["ip", "netns", "list"])?;
    let names = listing.lines().filter_map(|line| line.split_whitespace().next());
    Ok(names
        .filter(|name| name.starts_with(PREFIX))
        .map(str::to_owned)
        .collect())
}

/// Ends what runs in a namespace: asked first, then killed.
fn end_processes(namespace: &str) -> Result<()> {
    let began = Instant::now();
    let mut asked = BTreeSet::new();
    loop {
        let pids: Vec<i32> = run(&["ip", "netns", "pids", namespace])?
            .lines()
            .filter_map(|pid| pid.trim().parse().ok())
            .collect();
        if pids.iter().all(|pid| is_zombie(*pid)) {
            return Ok(());
        }
        let late = began.elapsed() > PATIENCE;
        ensure!(
            began.elapsed() < PATIENCE * 2,
            "processes in {namespace} don't end: {pids:?}"
        );
        for pid in pids {
            if (late || asked.insert(pid))
                && let Some(pid) = Pid::from_raw(pid)
            {
                // It may have ended since it was listed.
                let _ = kill_process(pid, if late { Signal::KILL } else { Signal::TERM });
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A process that has ended, whose parent hasn't looked yet.
fn is_zombie(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| {
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| rest.trim_start().starts_with('Z'))
    })
}
