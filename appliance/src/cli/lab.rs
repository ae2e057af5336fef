//! `tidegate lab`: whole sites in network namespaces of this machine.

use super::Failure;
use super::output::{self, Form};
use crate::lab::built_in::{self, BuiltIn};
use crate::lab::summary::Summary;
use crate::lab::{Error, Progress, build, demo, exec, teardown};
use crate::sys::interruption;
use clap::{Args, Subcommand};
use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Builds, uses and removes labs: hosts, each with its own agent and datapath, in network namespaces of this machine.
#[derive(Debug, Args)]
pub(crate) struct LabVerb {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Build a lab and wait until every instance reaches its peers.
    Up {
        /// The topology; without it two hosts with two applications.
        file: Option<PathBuf>,
    },
    /// Run a command inside a host, node or instance.
    ///
    /// The command has the namespace's own /etc/resolv.conf; in a host, `tidegate` talks to that host's agent:
    /// `tidegate lab exec h1 -- tidegate status`.
    Exec {
        /// The lab, where several are up.
        #[arg(long)]
        lab: Option<String>,
        /// The host, node or instance, with or without the lab's name before it: `h1`, `tg-shop-web-1`.
        name: String,
        /// The command and its arguments.
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Remove a lab and all that is in it.
    Down {
        /// The lab's name or its topology; without it the only lab there is.
        lab: Option<PathBuf>,
    },
    /// Build a lab, move traffic in it, report what came through and what did not, remove it.
    Demo {
        /// Leave the lab up.
        #[arg(long)]
        keep: bool,
        /// The topology; without it two hosts with two applications.
        file: Option<PathBuf>,
    },
}

/// Does what the command line says.
pub(crate) fn run(verb: LabVerb, form: Form) -> anyhow::Result<ExitCode> {
    match verb.action {
        Action::Up { file } => up(file.as_deref(), form),
        Action::Exec { lab, name, command } => match exec::exec(lab.as_deref(), &name, &command) {
            Ok(never) => match never {},
            Err(error) => Err(failure(error)),
        },
        Action::Down { lab } => down(lab.as_deref()),
        Action::Demo { keep, file } => run_demo(file.as_deref(), keep, form),
    }
}

fn up(file: Option<&Path>, form: Form) -> anyhow::Result<ExitCode> {
    let lab = with_topology(file, |file| build::up(file, Progress::on_stderr()))?;
    output::print(form, &Summary::of(&lab), Summary::to_text)?;
    Ok(ExitCode::SUCCESS)
}

fn run_demo(file: Option<&Path>, keep: bool, form: Form) -> anyhow::Result<ExitCode> {
    let report = with_topology(file, |file| demo::run(file, keep, Progress::on_stderr()))?;
    let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    output::print(form, &report, |report| report.to_text(colours))?;
    Ok(if report.held {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Does something with the topology file that was named, or with the built-in one; a signal undoes it.
fn with_topology<T>(file: Option<&Path>, work: impl FnOnce(&Path) -> Result<T, Error>) -> anyhow::Result<T> {
    interruption::note()?;
    match file {
        Some(file) => work(file).map_err(failure),
        None => {
            let built_in = BuiltIn::write().map_err(failure)?;
            work(&built_in.topology()).map_err(failure)
        }
    }
}

fn down(lab: Option<&Path>) -> anyhow::Result<ExitCode> {
    let name = match lab {
        None => teardown::only_lab(built_in::LAB).map_err(failure)?,
        Some(lab) => teardown::lab_of(lab).map_err(failure)?,
    };
    let progress = Progress::on_stderr();
    progress.step(&format!("taking lab {name} down"));
    let removed = teardown::down(&name);
    progress.done();
    removed.map_err(failure)?;
    Ok(ExitCode::SUCCESS)
}

fn failure(error: Error) -> anyhow::Error {
    match error {
        Error::NotFound(text) => Failure::NotFound(text).into(),
        other => Failure::Refused(other.to_string()).into(),
    }
}
