//! Programs: run to their end, or kept in the background and ended with the story.

use std::ffi::OsStr;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A program in the background; dropping it ends it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    line: String,
    output: PathBuf,
}

/// A process that stands still; dropping this lets it go on.
#[derive(Debug)]
pub struct Stopped(Pid);

impl Stopped {
    /// Has a process stand still (SIGSTOP).
    pub(crate) fn stop(pid: u32) -> Result<Self> {
        let target = Pid::from_raw(i32::try_from(pid)?).context("process 0")?;
        kill_process(target, Signal::STOP).with_context(|| format!("stopping {pid}"))?;
        Ok(Self(target))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have ended meanwhile.
        let _ = kill_process(self.0, Signal::CONT);
    }
}

impl Running {
    /// Starts it, with everything that it prints in the file `output`.
    pub(crate) fn start(mut command: Command, output: PathBuf) -> Result<Self> {
        let line = describe(&command);
        let file =
            std::fs::File::create(&output).with_context(|| format!("creating {}", output.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting `{line}`"))?;
        Ok(Self { child, line, output })
    }

    /// What it has printed so far.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn printed(&self) -> Result<String> {
        read(&self.output)
    }

    /// Has it stand still until what comes back is dropped.
    ///
    /// # Errors
    /// When it has ended.
    pub fn stop(&self) -> Result<Stopped> {
        Stopped::stop(self.child.id())
    }

    /// Asks it to end, as Ctrl-C does, and waits; gives back what it printed.
    ///
    /// # Errors
    /// When it doesn't end within five seconds.
    pub fn interrupt(mut self) -> Result<String> {
        if let Some(pid) = Pid::from_raw(i32::try_from(self.child.id())?) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::INT);
        }
        self.wait(Duration::from_secs(5))?;
        self.printed()
    }

    /// Waits for its end; gives back what it printed.
    ///
    /// # Errors
    /// When it doesn't end in time, or with a failure.
    pub fn succeed_within(mut self, patience: Duration) -> Result<String> {
        let status = self.wait(patience)?;
        let printed = self.printed()?;
        if !status.success() {
            bail!("`{}` failed ({status}): {}", self.line, printed.trim());
        }
        Ok(printed)
    }

    fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if began.elapsed() > patience {
                bail!(
                    "`{}` still runs after {patience:?}; it printed: {}",
                    self.line,
                    self.printed()?.trim()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing to tell when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program to its end, whatever its exit code.
pub(crate) fn attempt(mut command: Command) -> Result<Output> {
    let line = describe(&command);
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting `{line}`"))
}

/// Runs a program that must succeed, and gives back its standard output.
pub(crate) fn succeed(command: Command) -> Result<String> {
    let line = describe(&command);
    let output = attempt(command)?;
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    if !output.status.success() {
        bail!(
            "`{line}` failed ({}): {} {}",
            output.status,
            err.trim(),
            out.trim()
        );
    }
    Ok(out.into_owned())
}

/// A command line of words.
pub(crate) fn command<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> Result<Command> {
    let mut words = words.into_iter();
    let program = words.next().context("an empty command line")?;
    let mut command = Command::new(program);
    command.args(words);
    Ok(command)
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

fn read(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .with_context(|| format!("reading {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
