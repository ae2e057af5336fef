//! `tidegate run`: starts the agent and the datapath as siblings, and restarts either when it ends.
//!
//! Neither is the other's child, so that either can die and the other goes on. A child ends with its supervisor: on
//! SIGTERM both are asked to, and when the supervisor is killed the kernel asks them. They are asked by SIGINT: on
//! SIGTERM a datapath has itself replaced, by SIGUSR1 to its supervisor. Then a successor is started beside it and is
//! *the* datapath from there on; the former one ends by itself when the agent has moved everything over.

use crate::cli::Places;
use anyhow::Context as _;
use rustix::io::Errno;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, getppid, getrlimit, kill_process, set_parent_process_death_signal,
    setrlimit,
};
use std::process::ExitStatus;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Tells a child who its supervisor is.
const SUPERVISOR: &str = "TIDEGATE_SUPERVISOR";
/// First pause before a restart; it doubles with every start that doesn't last. Nothing passes meanwhile.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// Longest pause before a restart.
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// A child that lived this long starts over with the first pause.
const LASTING: Duration = Duration::from_secs(30);
/// How long a former process may go on beside its successor: longer than a handover can take.
const FORMER_PATIENCE: Duration = Duration::from_secs(60);
/// How long a child may take to end before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// Runs both processes until SIGTERM or SIGINT.
///
/// # Errors
/// When a process can't be started at all.
pub(crate) fn run(places: &Places) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    allow_descriptors();
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut succeed = signal(SignalKind::user_defined1())?;
        let (stop, stopping) = watch::channel(false);
        let (succession, never) = (Notify::new(), Notify::new());
        let datapath = keep("datapath", places, stopping.clone(), &succession);
        let agent = keep("agent", places, stopping, &never);
        let both = async { tokio::try_join!(datapath, agent) };
        tokio::pin!(both);
        loop {
            tokio::select! {
                ended = &mut both => return ended.map(|_| ()),
                _ = succeed.recv() => succession.notify_one(),
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        stop.send_replace(true);
        both.await.map(|_| ())
    })
}

/// In a child: ends with the supervisor that started it, and gives its process, if one did. Call it before anything
/// else.
pub(crate) fn end_with_supervisor() -> Option<Pid> {
    let supervisor = std::env::var(SUPERVISOR)
        .ok()
        .and_then(|text| text.parse().ok())
        .and_then(Pid::from_raw)?;
    // Not SIGTERM, on which a datapath goes on until a successor has taken over: nobody would start one.
    if let Err(error) = set_parent_process_death_signal(Some(Signal::INT)) {
        tracing::warn!(%error, "this process will outlive its supervisor");
    }
    // It may have ended before the kernel was told.
    if getppid() != Some(supervisor) {
        tracing::warn!("the supervisor ended already");
        std::process::exit(1);
    }
    Some(supervisor)
}

/// Lets the children have as many descriptors as this process may: every instance takes two, and the usual soft limit
/// of 1024 would end at some 500 instances.
fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, descriptors = limit.current, "the limit of descriptors can't be raised");
    }
}

/// What happens to a role's processes.
enum Happening {
    Stop,
    Ended(ExitStatus),
    FormerEnded(ExitStatus),
    FormerOverstayed,
    RestartDue,
    SuccessorWanted,
}

/// A role: its process, and the one before while that still finishes.
struct Keeper<'a> {
    role: &'static str,
    /// Starts a process; as a successor, when another one still works.
    start: &'a dyn Fn(bool) -> anyhow::Result<Child>,
    child: Option<Child>,
    started: Instant,
    /// How long the next restart waits.
    pause: Duration,
    /// When it comes, while there is no process.
    restart: Instant,
    former: Option<Child>,
    former_until: Instant,
}

/// Starts a role again and again until it is stopped.
async fn keep(
    role: &'static str,
    places: &Places,
    mut stopping: watch::Receiver<bool>,
    succession: &Notify,
) -> anyhow::Result<()> {
    let start = |successor| start(role, places, successor);
    let mut keeper = Keeper::begin(role, &start)?;
    while keeper.go_on(&mut stopping, succession).await? {}
    for child in [keeper.child, keeper.former].into_iter().flatten() {
        end(role, child).await?;
    }
    Ok(())
}

impl<'a> Keeper<'a> {
    fn begin(role: &'static str, start: &'a dyn Fn(bool) -> anyhow::Result<Child>) -> anyhow::Result<Self> {
        Ok(Self {
            role,
            start,
            child: Some(start(false)?),
            started: Instant::now(),
            pause: FIRST_PAUSE,
            restart: Instant::now(),
            former: None,
            former_until: Instant::now(),
        })
    }

    /// Waits for the next happening and answers it; `false` when it is to stop.
    async fn go_on(
        &mut self,
        stopping: &mut watch::Receiver<bool>,
        succession: &Notify,
    ) -> anyhow::Result<bool> {
        let (running, leaving) = (self.child.is_some(), self.former.is_some());
        let happening = tokio::select! {
            _ = stopping.changed() => Happening::Stop,
            status = end_of(&mut self.child) => Happening::Ended(status?),
            status = end_of(&mut self.former) => Happening::FormerEnded(status?),
            () = tokio::time::sleep_until(self.restart), if !running => Happening::RestartDue,
            () = tokio::time::sleep_until(self.former_until), if leaving => Happening::FormerOverstayed,
            () = succession.notified() => Happening::SuccessorWanted,
        };
        let role = self.role;
        match happening {
            Happening::Stop => return Ok(false),
            Happening::Ended(status) => {
                self.child = None;
                self.pause = next_pause(self.pause, self.started.elapsed());
                tracing::warn!(
                    role, %status, pause_ms = self.pause.as_millis(), "a process ended; starting it again"
                );
                self.wait_to_restart();
            }
            Happening::RestartDue => self.restart(),
            Happening::FormerEnded(status) => {
                self.former = None;
                tell_end(role, status);
            }
            Happening::FormerOverstayed => {
                tracing::warn!(role, "the former process still runs though another one took over");
                if let Some(former) = self.former.take() {
                    end(role, former).await?;
                }
            }
            Happening::SuccessorWanted => self.succeed(),
        }
        Ok(true)
    }

    fn restart(&mut self) {
        // A former process that still carries packets must not be in the way of the new one.
        match (self.start)(self.former.is_some()) {
            Ok(child) => self.child = Some(child),
            // Without memory or process numbers for it now, the other one must not end with it.
            Err(error) => {
                tracing::error!(
                    role = self.role,
                    pause_ms = self.pause.as_millis(),
                    "{error:#}; trying again"
                );
                self.wait_to_restart();
            }
        }
        self.started = Instant::now();
    }

    /// Starts a successor beside the process, one at a time. One that is being started anew needs none.
    fn succeed(&mut self) {
        if self.former.is_some() || self.child.is_none() {
            tracing::info!(role = self.role, "a successor is on its way already");
            return;
        }
        match (self.start)(true) {
            Ok(successor) => {
                tracing::info!(role = self.role, pid = successor.id(), "a successor was started");
                self.former = self.child.replace(successor);
                self.former_until = Instant::now() + FORMER_PATIENCE;
                self.started = Instant::now();
            }
            Err(error) => tracing::error!(
                role = self.role,
                "{error:#}; the former one ends without a successor"
            ),
        }
    }

    fn wait_to_restart(&mut self) {
        self.restart = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LAST_PAUSE);
    }
}

/// Waits until a process ends, if there is one. Dropping the future loses nothing.
async fn end_of(child: &mut Option<Child>) -> std::io::Result<ExitStatus> {
    match child {
        Some(child) => child.wait().await,
        None => std::future::pending().await,
    }
}

fn start(role: &str, places: &Places, successor: bool) -> anyhow::Result<Child> {
    // Not by the path of the binary: an upgrade may have replaced it, and a restart must run the same version.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(role)
        .arg("--config")
        .arg(&places.config)
        .arg("--state-dir")
        .arg(&places.state_dir)
        .arg("--run-dir")
        .arg(&places.run_dir)
        .env(SUPERVISOR, std::process::id().to_string());
    if successor {
        command.arg("--successor");
    }
    command
        .spawn()
        .with_context(|| format!("the {role} can't be started"))
}

async fn end(role: &str, mut child: Child) -> anyhow::Result<()> {
    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
        match kill_process(pid, Signal::INT) {
            // It may have ended by itself meanwhile.
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => tracing::warn!(role, %error, "a process can't be asked to end"),
        }
    }
    match tokio::time::timeout(GRACE, child.wait()).await {
        Ok(status) => tell_end(role, status?),
        Err(_) => {
            tracing::warn!(role, "a process doesn't end and is killed");
            child.kill().await?;
        }
    }
    Ok(())
}

fn tell_end(role: &str, status: ExitStatus) {
    if status.success() {
        tracing::info!(role, "ended");
    } else {
        tracing::warn!(role, %status, "ended badly");
    }
}

fn next_pause(pause: Duration, lived: Duration) -> Duration {
    if lived >= LASTING { FIRST_PAUSE } else { pause }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn a_process_that_lasted_starts_over_with_the_first_pause() {
        assert_eq!(next_pause(LAST_PAUSE, Duration::from_secs(31)), FIRST_PAUSE);
        assert_eq!(next_pause(LAST_PAUSE, Duration::from_secs(1)), LAST_PAUSE);
    }

    #[test]
    fn a_successor_runs_beside_the_former_process_until_that_ends() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let started = RefCell::new(Vec::new());
            let start = |successor| {
                started.borrow_mut().push(successor);
                Ok(Command::new("sleep").arg("60").kill_on_drop(true).spawn()?)
            };
            let (stop, mut stopping) = watch::channel(false);
            let succession = Notify::new();
            let mut keeper = Keeper::begin("datapath", &start).unwrap();
            let first = keeper.child.as_ref().and_then(Child::id);

            succession.notify_one();
            assert!(keeper.go_on(&mut stopping, &succession).await.unwrap());
            assert_eq!(keeper.former.as_ref().and_then(Child::id), first);
            assert_ne!(keeper.child.as_ref().and_then(Child::id), first);

            // Only one at a time; one that dies is replaced by another successor while the former one still works.
            succession.notify_one();
            keeper.go_on(&mut stopping, &succession).await.unwrap();
            assert_eq!(*started.borrow(), [false, true]);
            keeper.child.as_mut().unwrap().start_kill().unwrap();
            keeper.go_on(&mut stopping, &succession).await.unwrap();
            keeper.go_on(&mut stopping, &succession).await.unwrap();
            assert_eq!(*started.borrow(), [false, true, true]);

            keeper.former.as_mut().unwrap().start_kill().unwrap();
            keeper.go_on(&mut stopping, &succession).await.unwrap();
            assert!(keeper.former.is_none() && keeper.child.is_some());
            keeper.child.as_mut().unwrap().start_kill().unwrap();
            keeper.go_on(&mut stopping, &succession).await.unwrap();
            keeper.go_on(&mut stopping, &succession).await.unwrap();
            assert_eq!(*started.borrow(), [false, true, true, false]);

            stop.send_replace(true);
            assert!(!keeper.go_on(&mut stopping, &succession).await.unwrap());
        });
    }
}
