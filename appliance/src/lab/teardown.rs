//! Removes a lab: whatever its state file names, however far it came, going on after errors and telling all of them.
//!
//! 1. The processes that the lab started are asked to end, the last one first, and made to after a while.
//! 2. Whatever else runs in one of its namespaces ends too: what a crashed supervisor left, what somebody started
//!    with `lab exec` and forgot.
//! 3. Then the namespaces, and with them their devices, the files of `/etc/netns`, and the lab's own folder.

use super::state::{self, HostFiles, State};
use super::{Error, WhileDoing as _};
use crate::config::topology;
use crate::sys::{netns, process};
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a process may take to end in good order, before it is made to.
const GRACE: Duration = Duration::from_secs(5);

/// How long the kernel may take to let go of a namespace's devices.
const DEVICES_GONE: Duration = Duration::from_secs(5);

/// Takes down the lab of that name.
///
/// # Errors
/// [`Error::NotFound`] when there is none; otherwise everything that could not be removed.
pub(crate) fn down(lab: &str) -> Result<(), Error> {
    let state = match State::read(lab) {
        Err(Error::NotFound(text)) => {
            let failed = remove_tree(&state::failed_folder(lab))?;
            // A folder without a state file: `up` was killed before it had made anything else.
            let begun = remove_tree(&state::folder(lab))?;
            state::remove_root_if_empty();
            return if failed || begun {
                Ok(())
            } else {
                Err(Error::NotFound(text))
            };
        }
        state => state?,
    };
    let result = remove(&state);
    remove_tree(&state::failed_folder(lab))?;
    state::remove_root_if_empty();
    result
}

/// The lab that is meant where none is named: the only one there is, else `preferred`.
///
/// # Errors
/// [`Error::Refused`] when there are several, and none is the preferred one.
pub(crate) fn only_lab(preferred: &str) -> Result<String, Error> {
    let mut names = state::names()?;
    if names.len() == 1 {
        return Ok(names.remove(0));
    }
    if names.is_empty() || names.iter().any(|name| name == preferred) {
        return Ok(preferred.to_owned());
    }
    Err(Error::Refused(format!(
        "several labs are up ({}): say which",
        names.join(", ")
    )))
}

/// The lab that is meant by its name or by its topology's file.
///
/// # Errors
/// The file's mistakes.
pub(crate) fn lab_of(name_or_file: &Path) -> Result<String, Error> {
    match name_or_file.to_str() {
        Some(name) if !name_or_file.is_file() => Ok(name.to_owned()),
        _ => Ok(topology::read(name_or_file)?.lab),
    }
}

/// Removes a lab that could not be built, but keeps the logs of its hosts.
///
/// # Errors
/// Everything that could not be removed.
pub(crate) fn undo(state: &State) -> Result<(), Error> {
    // Ended first, so that the logs are whole.
    let mut errors: Vec<Error> = end_processes(state).err().into_iter().collect();
    errors.extend(keep_logs(state).err());
    errors.extend(remove(state).err());
    Error::collect(errors)
}

fn keep_logs(state: &State) -> Result<(), Error> {
    let kept = state::failed_folder(&state.lab);
    remove_tree(&kept)?;
    for host in &state.hosts {
        let log = HostFiles::of(&state.lab, &host.name).log();
        if log.exists() {
            fs::create_dir_all(&kept)
                .and_then(|()| fs::rename(&log, kept.join(format!("{}.log", host.name))))
                .while_doing(|| format!("keeping {}", log.display()))?;
        }
    }
    Ok(())
}

fn remove(state: &State) -> Result<(), Error> {
    let mut errors = Vec::new();
    errors.extend(end_processes(state).err());
    for namespace in state.namespaces.iter().rev() {
        errors.extend(remove_namespace(namespace).err());
    }
    if state.made_files_root {
        match fs::remove_dir(netns::files_folder("")) {
            // Somebody else keeps files there by now.
            Ok(()) | Err(_) => {}
        }
    }
    // With something left, the state file stays: `down` can be tried again.
    if errors.is_empty() {
        errors.extend(remove_tree(&state::folder(&state.lab)).err());
    }
    state::remove_root_if_empty();
    Error::collect(errors)
}

fn end_processes(state: &State) -> Result<(), Error> {
    let mut errors = Vec::new();
    std::thread::scope(|scope| {
        let endings: Vec<_> = state
            .processes
            .iter()
            .rev()
            .map(|started| {
                scope.spawn(move || {
                    started
                        .process
                        .end(GRACE)
                        .while_doing(|| format!("ending {} (process {})", started.title, started.process.pid))
                })
            })
            .collect();
        for ending in endings {
            errors.extend(ending.join().ok().and_then(Result::err));
        }
    });
    for namespace in &state.namespaces {
        errors.extend(end_whatever_runs_in(namespace).err());
    }
    Error::collect(errors)
}

fn end_whatever_runs_in(namespace: &str) -> Result<(), Error> {
    let doing = || format!("ending what runs in namespace {namespace}");
    let identity = match netns::Identity::at(&netns::path(namespace)) {
        Ok(identity) => identity,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).while_doing(doing),
    };
    // A name that was made but never bound shows the folder's own file system: nobody is in there. And never the
    // namespace that we are in ourselves.
    let own = netns::Identity::at(Path::new("/proc/self/ns/net")).while_doing(doing)?;
    if identity == own {
        return Err(Error::Refused(format!(
            "namespace {namespace} is the one this process runs in: it stays"
        )));
    }
    let mut errors = Vec::new();
    for process in process::in_namespace(identity).while_doing(doing)? {
        errors.extend(process.end(GRACE).while_doing(doing).err());
    }
    Error::collect(errors)
}

fn remove_namespace(name: &str) -> Result<(), Error> {
    let mut errors = Vec::new();
    match netns::delete(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            errors.extend(
                Err::<(), _>(error)
                    .while_doing(|| format!("deleting namespace {name}"))
                    .err(),
            );
        }
        _ => {}
    }
    errors.extend(remove_tree(&netns::files_folder(name)).err());
    Error::collect(errors)
}

/// Removes a folder with all that is in it; says whether there was one.
fn remove_tree(folder: &Path) -> Result<bool, Error> {
    match fs::remove_dir_all(folder) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).while_doing(|| format!("removing {}", folder.display())),
    }
}

/// What of a lab is still there: for the demo's last line, and for tests.
///
/// # Errors
/// What the system said.
pub(crate) fn leftovers(state: &State) -> Result<Vec<String>, Error> {
    let deadline = Instant::now() + DEVICES_GONE;
    loop {
        let left = leftovers_now(state)?;
        if left.is_empty() || Instant::now() > deadline {
            return Ok(left);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn leftovers_now(state: &State) -> Result<Vec<String>, Error> {
    let mut left = Vec::new();
    let names = netns::list().while_doing(|| "listing namespaces".to_owned())?;
    left.extend(
        state
            .namespaces
            .iter()
            .filter(|name| names.contains(name))
            .map(|name| format!("namespace {name}")),
    );
    let processes = state
        .processes
        .iter()
        .filter(|started| started.process.is_running());
    left.extend(processes.map(|started| format!("process {} ({})", started.process.pid, started.title)));
    let folders = state.namespaces.iter().map(|name| netns::files_folder(name));
    let folders = folders
        .chain([state::folder(&state.lab)])
        .filter(|folder| folder.exists());
    left.extend(folders.map(|folder| folder.display().to_string()));
    Ok(left)
}
