//! Processes that outlive the one that started them, and their orderly end.
//!
//! A process is known by its pid *and* the time it started, because pids are used again. It is ended through a
//! pidfd whose start time was checked after it was opened, so that a stranger who got the pid is never hit.

use super::netns;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A process that was started once: running, or long gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Process {
    /// Its number.
    pub(crate) pid: u32,
    /// When it started, in clock ticks since boot (proc(5), field 22 of stat).
    pub(crate) start_time: u64,
}

/// What to start.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    /// The program: a path, or a name to look for in PATH.
    pub(crate) program: OsString,
    /// Its arguments, without its own name.
    pub(crate) arguments: Vec<OsString>,
    /// The file that gets what it writes to its standard output and error, appended.
    pub(crate) log: PathBuf,
}

/// What a process costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Usage {
    /// Resident memory, in bytes.
    pub(crate) resident_bytes: u64,
    /// Time on a processor since it started, user and system, in seconds.
    pub(crate) cpu_seconds: f64,
}

impl Process {
    /// Starts a process in a session of its own, inside `namespace`, with nothing of ours but its log.
    ///
    /// # Errors
    /// When the log can't be opened, the namespace not be entered or the program not be started.
    pub(crate) fn start(start: &Start, namespace: BorrowedFd<'_>) -> io::Result<Self> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&start.log)?;
        let mut command = Command::new(&start.program);
        command
            .args(&start.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // SAFETY: setsid is async-signal-safe and touches no memory of the parent.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                Ok(())
            });
        }
        let child = netns::within(namespace, move || command.spawn())?
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", start.program.display())))?;
        Self::running(child.id())
    }

    /// The process that has this number now.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub(crate) fn running(pid: u32) -> io::Result<Self> {
        let start_time = Stat::read(pid)?.start_time;
        Ok(Self { pid, start_time })
    }

    /// Whether it still runs: a process that ended but was not yet waited for does not.
    pub(crate) fn is_running(&self) -> bool {
        Stat::read(self.pid).is_ok_and(|stat| stat.start_time == self.start_time && !stat.ended)
    }

    /// Ends it: asks with SIGTERM, waits up to `grace`, then makes it with SIGKILL and waits as long again. A process
    /// that is gone already is a success.
    ///
    /// # Errors
    /// What the kernel said, or `TimedOut` when even SIGKILL did not end it in time.
    pub(crate) fn end(&self, grace: Duration) -> io::Result<()> {
        let Some(handle) = self.handle()? else {
            return Ok(());
        };
        for signal in [Signal::TERM, Signal::KILL] {
            match rustix::process::pidfd_send_signal(&handle, signal) {
                Ok(()) => {}
                Err(rustix::io::Errno::SRCH) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            if wait_for_end(handle.as_fd(), grace)? {
                reap(handle.as_fd());
                return Ok(());
            }
        }
        let text = format!("process {} did not end within {grace:?} of SIGKILL", self.pid);
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    }

    /// What it costs now.
    ///
    /// # Errors
    /// `NotFound` when it is gone.
    pub(crate) fn usage(&self) -> io::Result<Usage> {
        let stat = Stat::read(self.pid)?;
        if stat.start_time != self.start_time {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("process {} is gone", self.pid),
            ));
        }
        #[expect(
            clippy::cast_precision_loss,
            reason = "ticks of a process stay far below 2^52"
        )]
        let cpu_seconds = stat.ticks as f64 / system_constant(libc::_SC_CLK_TCK) as f64;
        Ok(Usage {
            resident_bytes: stat.resident_pages * system_constant(libc::_SC_PAGESIZE),
            cpu_seconds,
        })
    }

    /// A pidfd of it, unless it is gone.
    fn handle(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            // Only now the number can't go to another process unseen: check that it hadn't before.
            Ok(handle) => Ok(self.is_running().then_some(handle)),
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// A constant of the running system (sysconf(3)).
fn system_constant(name: libc::c_int) -> u64 {
    // SAFETY: sysconf reads a number by a number.
    let value = unsafe { libc::sysconf(name) };
    u64::try_from(value).unwrap_or(1).max(1)
}

/// The running processes that `accept` says yes to; itself left out.
///
/// # Errors
/// What reading `/proc` said.
fn running(accept: impl Fn(u32) -> bool) -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if pid == std::process::id() || !accept(pid) {
            continue;
        }
        // A process may end while we look: then it isn't running.
        if let Ok(process) = Process::running(pid) {
            found.push(process);
        }
    }
    Ok(found)
}

/// The processes whose main thread is in a network namespace.
///
/// # Errors
/// What reading `/proc` said.
pub(crate) fn in_namespace(namespace: netns::Identity) -> io::Result<Vec<Process>> {
    running(|pid| {
        netns::Identity::at(Path::new(&format!("/proc/{pid}/ns/net"))).is_ok_and(|own| own == namespace)
    })
}

/// The command line of a process, for reports; empty when it is gone.
pub(crate) fn arguments(process: &Process) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.split_terminator('\0').map(str::to_owned).collect()
}

/// The fields of `/proc/PID/stat` that matter here (proc(5)).
struct Stat {
    ended: bool,
    ticks: u64,
    start_time: u64,
    resident_pages: u64,
}

impl Stat {
    fn read(pid: u32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&text).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("/proc/{pid}/stat can't be read: {text}"),
            )
        })
    }

    fn parse(text: &str) -> Option<Self> {
        // The second field is the name in parentheses, and may hold anything, parentheses and blanks included.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // Numbered as in proc(5), where the first field after the name is the third.
        let field = |number: usize| fields.get(number - 3).copied();
        let number = |at: usize| field(at)?.parse::<u64>().ok();
        Some(Self {
            ended: matches!(field(3)?, "Z" | "X"),
            ticks: number(14)? + number(15)?,
            start_time: number(22)?,
            resident_pages: number(24)?,
        })
    }
}

/// Waits until the process behind a pidfd has ended; false when `limit` passed first.
fn wait_for_end(handle: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    let deadline = std::time::Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match rustix::event::poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes the exit status of a child of ours; for anybody else's child there is nothing to do.
fn reap(handle: BorrowedFd<'_>) {
    match rustix::process::waitid(
        WaitId::PidFd(handle),
        WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
    ) {
        Ok(_) | Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_with_parentheses_and_blanks_does_not_shift_the_fields() {
        let text = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 70 30 0 0 20 0 1 0 123456 1000 77 0";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(
            (stat.ticks, stat.start_time, stat.resident_pages, stat.ended),
            (100, 123_456, 77, false)
        );
    }

    #[test]
    fn process_of_another_start_time_is_left_alone() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::running(child.id()).unwrap();
        let stranger = Process {
            start_time: process.start_time + 1,
            ..process
        };
        stranger.end(Duration::from_millis(200)).unwrap();
        assert!(process.is_running());
        assert!(!stranger.is_running());
        process.end(Duration::from_secs(5)).unwrap();
        assert!(!process.is_running());
        // Already reaped: the standard library is told so by the kernel.
        let _ = child.wait();
    }

    #[test]
    fn started_process_writes_to_its_log_and_is_found_by_its_namespace() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: making namespaces needs root");
            return;
        }
        let name = format!("tgx-lab-proc-{}", std::process::id());
        let log = std::env::temp_dir().join(format!("{name}.log"));
        netns::create(&name).unwrap();
        let namespace = netns::open(&name).unwrap();
        let start = Start {
            program: "sh".into(),
            arguments: vec!["-c".into(), "echo here; exec sleep 60".into()],
            log: log.clone(),
        };
        let process = Process::start(&start, namespace.as_fd()).unwrap();
        let found = in_namespace(netns::Identity::of(&namespace).unwrap()).unwrap();
        assert_eq!(found, [process]);
        assert!(process.usage().unwrap().cpu_seconds < 10.0);
        for _ in 0..100 {
            if fs::read_to_string(&log).unwrap() == "here\n" {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(fs::read_to_string(&log).unwrap(), "here\n");
        process.end(Duration::from_secs(5)).unwrap();
        assert!(!process.is_running());
        netns::delete(&name).unwrap();
        fs::remove_file(&log).unwrap();
    }
}
