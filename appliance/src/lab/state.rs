//! What a lab has made, or was about to make, in a file: what [`teardown`](super::teardown) goes by.
//!
//! The names of all namespaces are written before the first is made, a process as soon as it runs. So the file never
//! knows less than there is, wherever an `up` stopped.

use super::blueprint::Blueprint;
use super::{Error, WhileDoing as _};
use crate::agent::cluster::certificates::AUTHORITY_FILE;
use crate::config::label_fault;
use crate::sys::netns;
use crate::sys::process::Process;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Where labs live.
const ROOT: &str = "/run/tidegate-lab";
const FILE: &str = "lab.json";
const BUILT_IN: &str = ".built-in-";

/// Everything that is to go when a lab goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct State {
    /// The lab's name.
    pub(crate) lab: String,
    /// The topology file it was built from.
    pub(crate) topology: PathBuf,
    /// All namespaces, bridges' own included.
    pub(crate) namespaces: Vec<String>,
    /// The hosts.
    pub(crate) hosts: Vec<HostState>,
    /// The processes, in the order they were started.
    pub(crate) processes: Vec<ProcessState>,
    /// Whether the lab made the folder of namespaces' files, `/etc/netns`.
    pub(crate) made_files_root: bool,
}

/// A host of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct HostState {
    /// Its name in the topology.
    pub(crate) name: String,
    /// Its namespace.
    pub(crate) namespace: String,
}

/// A process of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct ProcessState {
    /// What it is, for messages: `host h1`.
    pub(crate) title: String,
    /// The process.
    pub(crate) process: Process,
}

/// The folder of a lab.
pub(crate) fn folder(lab: &str) -> PathBuf {
    Path::new(ROOT).join(lab)
}

/// Where the logs of a lab that could not be built are kept until it is built or taken down again.
pub(crate) fn failed_folder(lab: &str) -> PathBuf {
    Path::new(ROOT).join(".failed").join(lab)
}

/// Where a process keeps the files of the built-in topology while it builds.
pub(crate) fn built_in_folder(pid: u32) -> PathBuf {
    Path::new(ROOT).join(format!("{BUILT_IN}{pid}"))
}

/// The files of one host.
#[derive(Clone, Debug)]
pub(crate) struct HostFiles {
    folder: PathBuf,
}

impl HostFiles {
    /// Of a host of a lab.
    pub(crate) fn of(lab: &str, host: &str) -> Self {
        Self {
            folder: folder(lab).join(host),
        }
    }

    /// The host document.
    pub(crate) fn document(&self) -> PathBuf {
        self.folder.join("host.yaml")
    }

    /// The run folder, with the sockets.
    pub(crate) fn run(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// The state folder, with keys and journal.
    pub(crate) fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// The certificate of the site's authority.
    pub(crate) fn authority(&self) -> PathBuf {
        self.folder.join(AUTHORITY_FILE)
    }

    /// The host's certificate.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.join("host.pem")
    }

    /// The private key of that certificate.
    pub(crate) fn certificate_key(&self) -> PathBuf {
        self.folder.join("host.key")
    }

    /// What agent and datapath write.
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("tidegate.log")
    }
}

impl State {
    /// Of a lab that is about to be built.
    pub(crate) fn of(blueprint: &Blueprint, topology: &Path) -> Self {
        let host = |host: &super::blueprint::Host| HostState {
            name: host.name.clone(),
            namespace: host.namespace.clone(),
        };
        Self {
            lab: blueprint.lab.clone(),
            topology: topology.to_owned(),
            namespaces: blueprint.namespaces().into_iter().map(str::to_owned).collect(),
            hosts: blueprint.hosts.iter().map(host).collect(),
            processes: Vec::new(),
            made_files_root: !netns::files_folder("").exists(),
        }
    }

    /// Claims the lab's name: makes its folder and first file.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is such a lab already.
    pub(crate) fn claim(&self) -> Result<(), Error> {
        let folder = folder(&self.lab);
        fs::create_dir_all(ROOT).while_doing(|| format!("making {ROOT}"))?;
        match fs::create_dir(&folder) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let text = format!(
                    "lab {} is up already (its files are in {}): `tidegate lab down {}` takes it down",
                    self.lab,
                    folder.display(),
                    self.lab
                );
                return Err(Error::Refused(text));
            }
            Err(error) => return Err(error).while_doing(|| format!("making {}", folder.display())),
        }
        self.write()
    }

    /// Writes the file anew, whole or not at all.
    ///
    /// # Errors
    /// What the file system said.
    pub(crate) fn write(&self) -> Result<(), Error> {
        let path = folder(&self.lab).join(FILE);
        let doing = || format!("writing {}", path.display());
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(io::Error::other)
            .while_doing(doing)?;
        let temporary = path.with_extension("new");
        let write = || {
            let mut file = fs::File::create(&temporary)?;
            file.write_all(&bytes)?;
            fs::rename(&temporary, &path)
        };
        write().while_doing(doing)
    }

    /// Reads the state of a lab.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such lab, [`Error::Refused`] when that can't be a lab's name or the file
    /// names what no lab makes: whole folders are removed by these names.
    pub(crate) fn read(lab: &str) -> Result<Self, Error> {
        if let Some(fault) = label_fault(lab) {
            return Err(Error::Refused(format!(
                "{lab:?} is neither a lab's name (it {fault}) nor a topology's file"
            )));
        }
        let path = folder(lab).join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let known = names()?.join(", ");
                let there = if known.is_empty() {
                    "none is up".to_owned()
                } else {
                    format!("up: {known}")
                };
                return Err(Error::NotFound(format!("there is no lab {lab} ({there})")));
            }
            Err(error) => return Err(error).while_doing(|| format!("reading {}", path.display())),
        };
        let state: Self = serde_json::from_slice(&bytes)
            .map_err(io::Error::other)
            .while_doing(|| format!("reading {}", path.display()))?;
        match state.stranger() {
            None if state.lab == lab => Ok(state),
            stranger => Err(Error::Refused(format!(
                "{} was changed by somebody: it names {}, which no lab {lab} makes; remove by hand what is left of it",
                path.display(),
                stranger.unwrap_or(&state.lab)
            ))),
        }
    }

    /// A name that a lab of this name would not have made.
    fn stranger(&self) -> Option<&str> {
        let prefix = format!("{}-", self.lab);
        let own = |name: &str| {
            name.strip_prefix(&prefix)
                .is_some_and(|rest| !rest.is_empty() && !rest.contains('/'))
        };
        let namespaces = self.namespaces.iter().map(String::as_str);
        let foreign = namespaces.filter(|name| !own(name));
        let hosts = self.hosts.iter().map(|host| host.name.as_str());
        foreign
            .chain(hosts.filter(|name| label_fault(name).is_some()))
            .next()
    }

    /// Notes a process that was just started.
    ///
    /// # Errors
    /// What the file system said.
    pub(crate) fn add_process(&mut self, title: String, process: Process) -> Result<(), Error> {
        self.processes.push(ProcessState { title, process });
        self.write()
    }
}

/// The names of the labs that are up, or were left half built.
///
/// # Errors
/// What the file system said.
pub(crate) fn names() -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(ROOT) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).while_doing(|| format!("reading {ROOT}")),
    };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    Ok(names)
}

/// Removes the logs that were kept of an earlier, failed try.
///
/// # Errors
/// What the file system said.
pub(crate) fn forget_failure(lab: &str) -> Result<(), Error> {
    let folder = failed_folder(lab);
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).while_doing(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Removes what is common to labs, when none is left.
pub(crate) fn remove_root_if_empty() {
    let entries = fs::read_dir(ROOT).into_iter().flatten().filter_map(Result::ok);
    for entry in entries {
        let name = entry.file_name();
        let process = name
            .to_str()
            .and_then(|name| name.strip_prefix(BUILT_IN))
            .and_then(|pid| pid.parse().ok());
        // A process that was killed left its copy of the built-in topology.
        if process.is_some_and(|pid| Process::running(pid).is_err()) {
            match fs::remove_dir_all(entry.path()) {
                Ok(()) | Err(_) => {}
            }
        }
    }
    for folder in [Path::new(ROOT).join(".failed"), PathBuf::from(ROOT)] {
        match fs::remove_dir(folder) {
            // A folder that isn't empty is another lab's, and stays.
            Ok(()) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_labs_name_is_refused_before_a_folder_is_looked_at() {
        for name in ["", ".", "..", "../../etc", "/etc", "a/b", ".failed", "Tg"] {
            let refused = State::read(name);
            assert!(matches!(refused, Err(Error::Refused(_))), "{name:?}: {refused:?}");
        }
    }

    #[test]
    fn a_state_file_that_names_foreign_things_is_noticed() {
        let mut state = State {
            lab: "tg".into(),
            topology: "two-hosts.yaml".into(),
            namespaces: vec!["tg-h1".into(), "tg-lan-bridge".into()],
            hosts: vec![HostState {
                name: "h1".into(),
                namespace: "tg-h1".into(),
            }],
            processes: Vec::new(),
            made_files_root: false,
        };
        assert_eq!(state.stranger(), None);
        for name in ["..", "../../etc", "other-h1", "tg-", "tg-../../../etc"] {
            state.namespaces.push(name.into());
            assert_eq!(state.stranger(), Some(name));
            state.namespaces.pop();
        }
        state.hosts[0].name = "../../..".into();
        assert_eq!(state.stranger(), Some("../../.."));
    }
}
