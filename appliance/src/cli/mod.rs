//! The command line: which verb, where the files are, in which form to print, and what the exit code says.
//!
//! One file per group of verbs. Text goes to standard output, diagnostics to standard error; exit codes are in
//! [`Failure`].

mod lab;
pub(crate) mod output;

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// A userspace network stack appliance: isolated, encrypted application networks for the hosts of an edge site.
#[derive(Debug, Parser)]
#[command(
    name = "tidegate",
    version,
    about,
    propagate_version = true,
    max_term_width = 110
)]
struct Cli {
    #[command(flatten)]
    places: Places,
    /// Form of what is printed.
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORM")]
    output: output::Form,
    #[command(subcommand)]
    verb: Verb,
}

/// Where this host's files are.
#[derive(Clone, Debug, Args)]
pub(crate) struct Places {
    /// The host document.
    #[arg(
        long,
        global = true,
        env = "TIDEGATE_CONFIG",
        default_value = "/etc/tidegate/host.yaml",
        value_name = "FILE"
    )]
    pub(crate) config: PathBuf,
    /// Keys and the journal.
    #[arg(
        long,
        global = true,
        env = "TIDEGATE_STATE_DIR",
        default_value = "/var/lib/tidegate",
        value_name = "FOLDER"
    )]
    pub(crate) state_dir: PathBuf,
    /// The sockets.
    #[arg(
        long,
        global = true,
        env = "TIDEGATE_RUN_DIR",
        default_value = "/run/tidegate",
        value_name = "FOLDER"
    )]
    pub(crate) run_dir: PathBuf,
}

impl Places {
    /// The agent's control socket.
    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    /// The seam: where the datapath listens.
    pub(crate) fn datapath_socket(&self) -> PathBuf {
        self.run_dir.join("datapath.sock")
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    Lab(lab::LabVerb),
}

/// A verb that didn't do what was asked, and the exit code that says so. Any other error exits with 1.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Refused or failed: exit code 1.
    #[error("{0}")]
    Refused(String),
    /// What was named doesn't exist: exit code 3.
    #[error("{0}")]
    NotFound(String),
    /// No agent answers: exit code 4.
    #[error("{0}")]
    NoAgent(String),
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) => 1,
            Self::NotFound(_) => 3,
            Self::NoAgent(_) => 4,
        }
    }
}

/// Reads the command line and does what it says.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            output::diagnostic(format_args!("tidegate: {error:#}"));
            ExitCode::from(error.downcast_ref::<Failure>().map_or(1, Failure::exit_code))
        }
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.verb {
        Verb::Lab(verb) => lab::run(verb, cli.output),
    }
}
