//! `attach` and `detach`.

use super::client::AgentClient;
use super::output::{self, Form};
use super::{Failure, Places};
use crate::agent::api::{InstanceQuery, Request, Response};
use crate::agent::attach;
use crate::config::host::DEFAULT_TENANT;
use crate::sys::netns;
use clap::Args;
use std::io::ErrorKind;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

/// What names an instance: the same keys for `attach` and `detach`.
#[derive(Debug, Args)]
pub(crate) struct InstanceKeys {
    /// The instance's network namespace: a name of `ip netns`, or a path such as /proc/PID/ns/net.
    #[arg(long, value_name = "NAME|PATH")]
    netns: String,
    /// The application.
    #[arg(long)]
    application: String,
    /// The service.
    #[arg(long)]
    service: String,
    /// The application's tenant.
    #[arg(long, default_value = DEFAULT_TENANT)]
    tenant: String,
    /// The instance's number; without it: the one that this namespace has, or the lowest that is free.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_535))]
    instance: Option<u32>,
    /// The device's name inside.
    #[arg(long, default_value = "eth0", value_parser = interface_name)]
    interface: String,
}

/// Arguments of `attach`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  tidegate attach --netns web --application shop --service web --tenant acme\n\nWith \
                        the same keys again it changes nothing and prints the same addresses."
)]
pub(crate) struct Attach {
    #[command(flatten)]
    keys: InstanceKeys,
    /// Writes the instance's resolv.conf there.
    #[arg(long, value_name = "FILE")]
    resolv_conf: Option<PathBuf>,
}

/// Arguments of `detach`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  tidegate detach --netns web --application shop --service web --tenant acme\n\nThe \
                        instance's name keeps its addresses for the next time."
)]
pub(crate) struct Detach {
    #[command(flatten)]
    keys: InstanceKeys,
}

/// Gives an instance its device, and returns when every shard knows it.
pub(crate) fn attach(places: &Places, form: Form, arguments: &Attach) -> anyhow::Result<()> {
    let agent = AgentClient::connect(&places.agent_socket())?;
    let namespace =
        netns::open(&arguments.keys.netns).map_err(|error| no_namespace(&arguments.keys, &error))?;
    let query = arguments.keys.query(Some(&namespace))?;
    let attached = attach::attach(&agent, &namespace, query, arguments.resolv_conf.as_deref())?;
    output::print(form, &attached, |attached| {
        let addresses: Vec<_> = attached.addresses.iter().map(ToString::to_string).collect();
        format!(
            "{} {} {}",
            attached.instance,
            attached.interface,
            addresses.join(" ")
        )
    })
}

/// Takes an instance's device away.
pub(crate) fn detach(places: &Places, form: Form, arguments: &Detach) -> anyhow::Result<()> {
    let agent = AgentClient::connect(&places.agent_socket())?;
    let namespace = match netns::open(&arguments.keys.netns) {
        Ok(namespace) => Some(namespace),
        // A namespace that is gone can still be detached by the instance's number.
        Err(_) if arguments.keys.instance.is_some() => None,
        Err(error) => return Err(no_namespace(&arguments.keys, &error).into()),
    };
    let instance = arguments.keys.query(namespace.as_ref())?;
    match agent.ask(&Request::Detach { instance }, &[])? {
        Response::Detached(detached) => output::print(form, &detached, |detached| {
            format!(
                "{} of {}/{} detached",
                detached.instance, detached.tenant, detached.application
            )
        }),
        other => Err(AgentClient::unexpected(&other)),
    }
}

impl InstanceKeys {
    fn query(&self, namespace: Option<&OwnedFd>) -> anyhow::Result<InstanceQuery> {
        let namespace = namespace
            .map(|namespace| attach::identity(namespace.as_fd()))
            .transpose()?;
        Ok(InstanceQuery {
            tenant: self.tenant.clone(),
            application: self.application.clone(),
            service: self.service.clone(),
            number: self.instance,
            namespace,
            interface: self.interface.clone(),
        })
    }
}

fn no_namespace(keys: &InstanceKeys, error: &std::io::Error) -> Failure {
    let problem = format!("the network namespace {} can't be opened: {error}", keys.netns);
    match error.kind() {
        ErrorKind::NotFound => Failure::NotFound(problem + "; `ip netns list` shows those with a name"),
        _ => Failure::Refused(problem),
    }
}

/// A name that the kernel accepts for a device (dev_valid_name): 1 to 15 bytes without slash, colon or space.
fn interface_name(text: &str) -> Result<String, String> {
    let legal = (1..=15).contains(&text.len())
        && text != "."
        && text != ".."
        && !text
            .contains(|character: char| character == '/' || character == ':' || character.is_whitespace());
    if legal {
        Ok(text.to_owned())
    } else {
        Err("a device's name has 1 to 15 characters, none of them `/`, `:` or a space".to_owned())
    }
}
