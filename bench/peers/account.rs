//! Who used how much CPU: one cgroup per contestant, and the kernel's own threads for packets.
//!
//! A contestant's cgroup holds its daemons and the load at both ends. Work that the kernel does for a packet runs
//! mostly in the context of whoever sent it; the rest is `ksoftirqd`'s, which is counted over the measured time.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::command::run;
use crate::keeper::PREFIX;

/// The generator, as [`describe`] names it.
const GENERATOR: &str = "peers generate";

/// The priority of what runs in real time, as chrt takes it.
pub(crate) const REAL_TIME: &str = "10";

/// A contestant's cgroup.
pub(crate) struct Account {
    folder: PathBuf,
    usage: Usage,
}

/// Which file tells the time used.
#[derive(Clone, Copy)]
enum Usage {
    /// cgroup v1: nanoseconds.
    CpuacctUsage,
    /// cgroup v2: `usage_usec`.
    CpuStat,
}

/// A daemon's resident memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Resident {
    /// The first words of its command line.
    pub(crate) process: String,
    /// Bytes.
    pub(crate) bytes: u64,
}

impl Account {
    /// Makes a contestant's cgroup.
    pub(crate) fn open(name: &str) -> Result<Self> {
        let (root, usage) = root()?;
        let folder = root.join(format!("{PREFIX}-{}", name.replace([' ', '+', '/'], "-")));
        fs::create_dir_all(&folder).with_context(|| format!("making the cgroup {}", folder.display()))?;
        Ok(Self { folder, usage })
    }

    /// The words that run `words` in this cgroup.
    pub(crate) fn charge(&self, words: &[&str]) -> Vec<String> {
        let script = format!(
            "echo $$ > '{}'; exec \"$@\"",
            self.folder.join("cgroup.procs").display()
        );
        let shell = ["/bin/sh", "-ec", &script, "sh"];
        shell.iter().chain(words).map(|word| (*word).to_owned()).collect()
    }

    /// CPU time used so far, that of the kernel's packet threads included.
    pub(crate) fn used(&self) -> Result<Duration> {
        let own = match self.usage {
            Usage::CpuacctUsage => {
                let text = read(&self.folder.join("cpuacct.usage"))?;
                Duration::from_nanos(text.trim().parse().context("reading cpuacct.usage")?)
            }
            Usage::CpuStat => {
                let text = read(&self.folder.join("cpu.stat"))?;
                let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
                Duration::from_micros(usage.context("cpu.stat has no usage_usec")?.trim().parse()?)
            }
        };
        Ok(own + softirq_threads()?)
    }

    /// The processes in it.
    fn pids(&self) -> Result<Vec<u32>> {
        Ok(read(&self.folder.join("cgroup.procs"))?
            .lines()
            .filter_map(|pid| pid.parse().ok())
            .collect())
    }

    /// Resident memory of every process in it but the load's.
    pub(crate) fn resident(&self) -> Result<Vec<Resident>> {
        let mut all = Vec::new();
        for pid in self.pids()? {
            let Ok(cmdline) = fs::read(format!("/proc/{pid}/cmdline")) else {
                continue;
            };
            let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
                continue;
            };
            let process = describe(&cmdline);
            let kilobytes = status
                .lines()
                .find_map(|line| line.strip_prefix("VmRSS:"))
                .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
            if let Some(kilobytes) = kilobytes
                && !process.starts_with("iperf3")
                && process != GENERATOR
            {
                all.push(Resident {
                    process,
                    bytes: kilobytes * 1024,
                });
            }
        }
        Ok(all)
    }

    /// Puts every process in it before other sessions' work, as this one is: daemons that made a session of their
    /// own would otherwise fall behind the load.
    pub(crate) fn outrank_other_sessions(&self) -> Result<()> {
        for pid in self.pids()? {
            outrank_other_sessions(pid);
        }
        Ok(())
    }
}

/// Ordinary scheduling again, when it is dropped.
pub(crate) struct InRealTime<'a>(&'a Account);

impl Account {
    /// Runs every thread in it before everything else that there is, until what this gives back is dropped.
    pub(crate) fn in_real_time(&self) -> Result<InRealTime<'_>> {
        let guard = InRealTime(self);
        for pid in self.pids()? {
            run(&[
                "chrt",
                "--all-tasks",
                "--fifo",
                "--pid",
                REAL_TIME,
                &pid.to_string(),
            ])?;
        }
        Ok(guard)
    }
}

impl Drop for InRealTime<'_> {
    fn drop(&mut self) {
        for pid in self.0.pids().unwrap_or_default() {
            // It may have ended.
            let _ = run(&["chrt", "--all-tasks", "--other", "--pid", "0", &pid.to_string()]);
        }
    }
}

/// Raises the scheduling group of a process's session above others', where the kernel groups by session.
pub(crate) fn outrank_other_sessions(pid: u32) {
    // Without autogroup there is nothing to raise, and measurements are as good as the machine is idle.
    let _ = fs::write(format!("/proc/{pid}/autogroup"), "-15");
}

/// Removes every cgroup of ours; their processes have ended.
pub(crate) fn close_all() -> Result<()> {
    let (root, _) = root()?;
    for entry in fs::read_dir(&root).with_context(|| format!("listing {}", root.display()))? {
        let entry = entry?;
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(&format!("{PREFIX}-"))
        {
            // The last process may still be leaving.
            for _ in 0..20 {
                if fs::remove_dir(entry.path()).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
    Ok(())
}

/// Where cgroups that count CPU time are made.
fn root() -> Result<(PathBuf, Usage)> {
    for folder in ["/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup/cpu,cpuacct"] {
        if Path::new(folder).join("cpuacct.usage").exists() {
            return Ok((folder.into(), Usage::CpuacctUsage));
        }
    }
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return Ok(("/sys/fs/cgroup".into(), Usage::CpuStat));
    }
    bail!("no cgroup hierarchy that counts CPU time is mounted under /sys/fs/cgroup")
}

/// CPU time of all `ksoftirqd` threads since they started.
fn softirq_threads() -> Result<Duration> {
    let mut total = Duration::ZERO;
    for entry in fs::read_dir("/proc").context("listing /proc")? {
        let path = entry?.path();
        let Ok(comm) = fs::read_to_string(path.join("comm")) else {
            continue;
        };
        if comm.starts_with("ksoftirqd/")
            && let Ok(schedstat) = fs::read_to_string(path.join("schedstat"))
            && let Some(on_cpu) = schedstat.split_whitespace().next()
        {
            total += Duration::from_nanos(on_cpu.parse().context("reading schedstat")?);
        }
    }
    Ok(total)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// Name of the program, and its first word if that isn't an option.
fn describe(cmdline: &[u8]) -> String {
    let words = String::from_utf8_lossy(cmdline);
    let mut words = words.split('\0');
    let program = words.next().unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or(program).to_owned();
    match words.next() {
        Some(verb) if !verb.is_empty() && !verb.starts_with('-') => format!("{program} {verb}"),
        _ => program,
    }
}
