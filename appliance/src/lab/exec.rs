//! Runs a command inside a host, node or instance of a lab, as `ip netns exec` would: in the namespace, with its own
//! `/etc/resolv.conf`.

use super::build;
use super::state::{self, HostFiles, State};
use super::{Error, WhileDoing as _};
use crate::sys::netns;
use std::ffi::OsString;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Becomes `command` inside the part `name` of a lab: `h1` or `tg-h1`. Comes back only with an error.
pub(crate) fn exec(
    lab: Option<&str>,
    name: &str,
    command: &[OsString],
) -> Result<std::convert::Infallible, Error> {
    let state = find_lab(lab, name)?;
    let namespace = find_namespace(&state, name)?;
    let Some((program, arguments)) = command.split_first() else {
        return Err(Error::Refused(
            "no command: `tidegate lab exec NAME -- COMMAND…`".to_owned(),
        ));
    };
    // Inside a lab `tidegate` is the program that built it, wherever PATH leads.
    let program = if program == "tidegate" {
        build::own_program()?.into_os_string()
    } else {
        program.clone()
    };
    let mut command = Command::new(&program);
    command.args(arguments);
    if let Some(host) = state.hosts.iter().find(|host| host.namespace == namespace) {
        let files = HostFiles::of(&state.lab, &host.name);
        command
            .env("TIDEGATE_CONFIG", files.document())
            .env("TIDEGATE_STATE_DIR", files.state())
            .env("TIDEGATE_RUN_DIR", files.run());
    }
    let descriptor = netns::open(&namespace).while_doing(|| format!("opening namespace {namespace}"))?;
    netns::enter(descriptor.as_fd()).while_doing(|| format!("entering namespace {namespace}"))?;
    netns::mount_files(&namespace)
        .while_doing(|| format!("giving namespace {namespace} its own /etc files"))?;
    let error = command.exec();
    if error.kind() == std::io::ErrorKind::NotFound {
        return Err(Error::NotFound(format!(
            "there is no command {}",
            program.display()
        )));
    }
    Err(error).while_doing(|| format!("running {}", program.display()))
}

/// The lab that was named, the only one, or the only one with such a part.
fn find_lab(lab: Option<&str>, name: &str) -> Result<State, Error> {
    if let Some(lab) = lab {
        return State::read(lab);
    }
    let names = state::names()?;
    if let [only] = names.as_slice() {
        return State::read(only);
    }
    let mut having: Vec<State> = names
        .iter()
        .filter_map(|lab| State::read(lab).ok())
        .filter(|state| find_namespace(state, name).is_ok())
        .collect();
    match having.len() {
        0 if names.is_empty() => Err(Error::NotFound(
            "no lab is up: `tidegate lab up` builds one".to_owned(),
        )),
        0 => Err(Error::NotFound(format!(
            "no lab has a part {name}; labs: {}",
            names.join(", ")
        ))),
        1 => Ok(having.remove(0)),
        _ => {
            let labs = having
                .iter()
                .map(|state| state.lab.as_str())
                .collect::<Vec<_>>()
                .join(", ");
            Err(Error::Refused(format!(
                "several labs have a part {name} ({labs}): say which with `--lab`"
            )))
        }
    }
}

fn find_namespace(state: &State, name: &str) -> Result<String, Error> {
    let prefixed = format!("{}-{name}", state.lab);
    let found = state
        .namespaces
        .iter()
        .find(|known| **known == prefixed || *known == name);
    found.cloned().ok_or_else(|| {
        let prefix = format!("{}-", state.lab);
        let short = |known: &String| known.strip_prefix(&prefix).unwrap_or(known).to_owned();
        let known = state.namespaces.iter().map(short).collect::<Vec<_>>().join(", ");
        Error::NotFound(format!("lab {} has no part {name}; it has: {known}", state.lab))
    })
}
