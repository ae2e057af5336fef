//! tidegate: a userspace network stack appliance for edge sites.
//!
//! One binary, several roles: the agent decides, the datapath carries packets, the supervisor starts both, and every
//! other verb talks to the agent or builds a lab. `cli` reads which.

mod agent;
mod cli;
mod config;
mod datapath;
mod lab;
mod seam;
mod supervisor;
mod sys;

use std::process::ExitCode;

// A daemon whose sessions never age would look well in every test, and be none.
const _: () = assert!(!tidegate_stack::SIMULATED, "built with the simulation's clock");

fn main() -> ExitCode {
    cli::main()
}
