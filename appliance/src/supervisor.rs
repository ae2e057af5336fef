//! `tidegate run`: starts the agent and the datapath as siblings, and restarts either when it ends.
//!
//! Neither is the other's child, so that either can die and the other goes on. A child ends with its supervisor: on
//! SIGTERM both are asked to, and when the supervisor is killed the kernel asks them.

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
use tokio::sync::watch;
use tokio::time::Instant;

/// Tells a child who its supervisor is.
const SUPERVISOR: &str = "TIDEGATE_SUPERVISOR";
/// First pause before a restart; it doubles with every start that doesn't last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause before a restart.
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// A child that lived this long starts over with the first pause.
const LASTING: Duration = Duration::from_secs(30);
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
        let (stop, stopping) = watch::channel(false);
        let datapath = keep("datapath", places, stopping.clone());
        let agent = keep("agent", places, stopping);
        let both = async { tokio::try_join!(datapath, agent) };
        tokio::pin!(both);
        tokio::select! {
            ended = &mut both => return ended.map(|_| ()),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
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

/// Starts a role again and again until it is stopped.
async fn keep(
    role: &'static str,
    places: &Places,
    mut stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let mut pause = FIRST_PAUSE;
    let mut child = Some(start(role, places)?);
    loop {
        let started = Instant::now();
        if let Some(mut child) = child.take() {
            let ended = tokio::select! {
                ended = child.wait() => ended?,
                _ = stopping.changed() => return end(role, child).await,
            };
            pause = next_pause(pause, started.elapsed());
            tracing::warn!(role, status = %ended, pause_ms = pause.as_millis(), "a process ended; starting it again");
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stopping.changed() => {}
        }
        pause = (pause * 2).min(LAST_PAUSE);
        if *stopping.borrow() {
            break;
        }
        // Without memory or process numbers for it now, the other one must not end with it.
        child = match start(role, places) {
            Ok(child) => Some(child),
            Err(error) => {
                tracing::error!(role, pause_ms = pause.as_millis(), "{error:#}; trying again");
                None
            }
        };
    }
    Ok(())
}

fn start(role: &str, places: &Places) -> anyhow::Result<Child> {
    // Not by the path of the binary: an upgrade may have replaced it, and a restart must run the same version.
    Command::new("/proc/self/exe")
        .arg(role)
        .arg("--config")
        .arg(&places.config)
        .arg("--state-dir")
        .arg(&places.state_dir)
        .arg("--run-dir")
        .arg(&places.run_dir)
        .env(SUPERVISOR, std::process::id().to_string())
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

    #[test]
    fn a_process_that_lasted_starts_over_with_the_first_pause() {
        assert_eq!(next_pause(LAST_PAUSE, Duration::from_secs(31)), FIRST_PAUSE);
        assert_eq!(next_pause(LAST_PAUSE, Duration::from_secs(1)), LAST_PAUSE);
    }
}
