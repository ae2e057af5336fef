//! The command line: which verb, where the files are, in which form to print, and what the exit code says.
//!
//! One file per group of verbs. Text goes to standard output, diagnostics to standard error; exit codes are in
//! [`Failure`].

mod attach;
pub(crate) mod client;
mod dns;
mod doctor;
mod documents;
mod flows;
mod graph;
mod lab;
mod observe;
pub(crate) mod output;
mod peers;
mod policy;
pub(crate) mod trace;

use crate::{agent, datapath, supervisor};
use clap::{Args, Parser, Subcommand};
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Which log lines are written.
const LOG: &str = "TIDEGATE_LOG";

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
    /// Runs the agent and the datapath, and restarts either when it ends.
    #[command(after_help = "Example:\n  tidegate run --config host.yaml")]
    Run,
    /// Runs the agent: the process that decides. It finds the datapath by its socket.
    #[command(after_help = "Example:\n  tidegate agent --config /etc/tidegate/host.yaml")]
    Agent,
    /// Runs the datapath: the process that carries packets. It waits for an agent.
    #[command(after_help = "Example:\n  tidegate datapath --run-dir /run/tidegate")]
    Datapath {
        /// Take over from the datapath that listens there now, and let it finish.
        #[arg(long)]
        successor: bool,
    },
    /// Puts application documents in force.
    Apply(documents::Apply),
    /// Takes an application out of force.
    Delete(documents::Delete),
    /// Lists applications, networks, instances or names.
    Show(documents::Show),
    /// Gives an instance its network device.
    Attach(attach::Attach),
    /// Takes an instance's network device away.
    Detach(attach::Detach),
    /// Shows this host at a glance: key, processes, plan, flows, problems.
    #[command(after_help = "Example:\n  tidegate status -o json")]
    Status,
    /// Shows the other hosts of the site and foreign peers: links, lanes, sessions, round trips, loss, traffic.
    Peers(peers::Peers),
    /// Shows why packets went no further, and what to do about it.
    Drops(observe::Drops),
    /// Shows the live connections: who talks to whom, how far they are, what passed.
    Flows(flows::Flows),
    /// Tells what would become of a packet, stage by stage, and which rule decides.
    Trace(trace::TraceVerb),
    /// Tells what documents would change, before they are applied.
    Policy(policy::PolicyVerb),
    /// Tells what an instance would be answered when it asks for a name, and why.
    Dns(dns::DnsVerb),
    /// Draws who may talk to whom, and why.
    Graph(graph::GraphVerb),
    /// Looks at this machine: what keeps tidegate from running well.
    #[command(after_help = "Example:\n  tidegate doctor --config host.yaml")]
    Doctor,
    /// Builds, uses and removes labs: whole sites in network namespaces of this machine.
    Lab(lab::LabVerb),
}

/// A verb that didn't do what was asked, and the exit code that says so. Any other error exits with 1.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The command line makes no sense: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// Refused or failed, one line per problem: exit code 1.
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
            Self::Usage(_) => 2,
            Self::Refused(_) => 1,
            Self::NotFound(_) => 3,
            Self::NoAgent(_) => 4,
        }
    }
}

/// Reads the command line and does what it says.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_standard_error();
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            let failure = error.downcast_ref::<Failure>();
            // Lines of a document's problems begin with their file, as editors expect them.
            match failure {
                Some(Failure::Refused(problems)) if problems.contains('\n') => output::diagnostic(problems),
                _ => output::diagnostic(format_args!("tidegate: {error:#}")),
            }
            ExitCode::from(failure.map_or(1, Failure::exit_code))
        }
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli {
        places,
        output: form,
        verb,
    } = cli;
    if form.is_drawing() && !matches!(verb, Verb::Graph(_)) {
        return Err(Failure::Usage(
            "only `tidegate graph` can be drawn: take -o text, json or yaml".to_owned(),
        )
        .into());
    }
    match verb {
        Verb::Run => supervisor::run(&places)?,
        Verb::Agent => {
            supervisor::end_with_supervisor();
            agent::run(&places)?;
        }
        Verb::Datapath { successor } => {
            let supervisor = supervisor::end_with_supervisor();
            datapath::run(&datapath::Options {
                config: places.config,
                run_dir: places.run_dir,
                successor,
                supervisor,
            })?;
        }
        Verb::Lab(verb) => return lab::run(verb, form),
        Verb::Apply(arguments) => documents::apply(&places, form, &arguments)?,
        Verb::Delete(arguments) => documents::delete(&places, form, &arguments)?,
        Verb::Show(arguments) => documents::show(&places, form, &arguments)?,
        Verb::Attach(arguments) => attach::attach(&places, form, &arguments)?,
        Verb::Detach(arguments) => attach::detach(&places, form, &arguments)?,
        Verb::Status => observe::status(&places, form)?,
        Verb::Peers(arguments) => peers::peers(&places, form, &arguments)?,
        Verb::Drops(arguments) => observe::drops(&places, form, &arguments)?,
        Verb::Trace(arguments) => trace::trace(&places, form, &arguments)?,
        Verb::Policy(arguments) => policy::policy(&places, form, &arguments)?,
        Verb::Dns(arguments) => dns::dns(&places, form, &arguments)?,
        Verb::Graph(arguments) => graph::graph(&places, form, &arguments)?,
        Verb::Flows(arguments) => flows::flows(&places, form, &arguments)?,
        Verb::Doctor => doctor::doctor(&places, form)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Logs go to standard error, as much as `TIDEGATE_LOG` says (`debug`, `tidegate::agent=trace`, …).
fn log_to_standard_error() {
    tracing_subscriber::fmt()
        .with_env_filter(log_filter(std::env::var(LOG).ok().as_deref()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

/// What is logged.
fn log_filter(asked: Option<&str>) -> EnvFilter {
    // The default directive counts only where there is no other.
    EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse_lossy(asked.unwrap_or("info"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_happens_is_logged_unless_less_is_asked_for() {
        for (asked, level) in [
            (None, LevelFilter::INFO),
            (Some(""), LevelFilter::INFO),
            (Some("error"), LevelFilter::ERROR),
            (Some("tidegate::agent=trace"), LevelFilter::TRACE),
        ] {
            assert_eq!(log_filter(asked).max_level_hint(), Some(level), "{asked:?}");
        }
    }

    #[test]
    fn every_verb_has_help_that_says_what_it_does() {
        for verb in Cli::command().get_subcommands() {
            let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(about.len() > 20, "{}: {about:?}", verb.get_name());
        }
    }

    #[test]
    fn places_may_stand_before_and_after_the_verb() {
        for line in [
            "tidegate --run-dir /tmp/a status -o json",
            "tidegate status -o json --run-dir /tmp/a",
        ] {
            let cli = parse(line).unwrap();
            assert_eq!(cli.places.agent_socket(), PathBuf::from("/tmp/a/agent.sock"));
            assert_eq!(cli.output, output::Form::Json);
        }
    }

    #[test]
    fn usage_errors_are_told_by_the_parser() {
        for line in [
            "tidegate",
            "tidegate apply",
            "tidegate show everything",
            "tidegate attach --netns a --application b --service c --instance 0",
            "tidegate attach --netns a --application b --service c --interface this-name-is-too-long",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
        assert!(parse("tidegate attach --netns a --application b --service c --instance 3").is_ok());
    }
}
