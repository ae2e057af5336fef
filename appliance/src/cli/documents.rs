//! `apply`, `delete` and `show`.

use super::client::AgentClient;
use super::output::{self, Form, table};
use super::{Failure, Places};
use crate::agent::api::{
    ApplicationList, Change, DocumentText, InstanceLine, InstanceList, NameList, NetworkList, Request,
    Response,
};
use crate::config::host::DEFAULT_TENANT;
use clap::{Args, ValueEnum};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use tidegate_stack::plan::NetworkKind;

/// Stands for standard input.
const STANDARD_INPUT: &str = "-";

/// Arguments of `apply`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  tidegate apply shop.yaml historian.yaml\n\nAll files come into force together, or \
                        none does: mistakes are told with file, line, column and a hint."
)]
pub(crate) struct Apply {
    /// Application documents; `-` is standard input.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// Arguments of `delete`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tidegate delete shop --tenant acme")]
pub(crate) struct Delete {
    /// The application.
    application: String,
    /// Its tenant.
    #[arg(long, default_value = DEFAULT_TENANT)]
    tenant: String,
}

/// Arguments of `show`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tidegate show instances -o json")]
pub(crate) struct Show {
    /// What to list.
    #[arg(value_enum)]
    what: Listed,
}

/// What `show` lists.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Listed {
    /// Applications in force.
    Apps,
    /// Their networks, numbers and prefixes.
    Networks,
    /// Instances attached here, and their addresses.
    Instances,
    /// What can be asked for by name, in each network.
    Names,
}

/// The texts of files, or what keeps any of them from being read.
pub(super) fn read_documents(files: &[PathBuf]) -> anyhow::Result<Vec<DocumentText>> {
    let read: Vec<_> = files.iter().map(|file| read_document(file)).collect();
    let (documents, problems): (Vec<_>, Vec<_>) = read.into_iter().partition(Result::is_ok);
    let problems: Vec<_> = problems.into_iter().filter_map(Result::err).collect();
    if !problems.is_empty() {
        return Err(Failure::Refused(problems.join("\n")).into());
    }
    Ok(documents.into_iter().flatten().collect())
}

/// Sends documents to the agent, and returns when every shard runs them.
pub(crate) fn apply(places: &Places, form: Form, arguments: &Apply) -> anyhow::Result<()> {
    let documents = read_documents(&arguments.files)?;
    match AgentClient::connect(&places.agent_socket())?.ask(&Request::Apply { documents }, &[])? {
        Response::Applied(applied) => output::print(form, &applied, |applied| {
            let lines = applied.applications.iter().map(|line| {
                let change = match line.change {
                    Change::Created => "created",
                    Change::Changed => "changed",
                    Change::Unchanged => "unchanged",
                };
                format!("{}/{} {change}\n", line.tenant, line.application)
            });
            lines.collect()
        }),
        other => Err(AgentClient::unexpected(&other)),
    }
}

/// Takes an application out of force.
pub(crate) fn delete(places: &Places, form: Form, arguments: &Delete) -> anyhow::Result<()> {
    let request = Request::Delete {
        tenant: arguments.tenant.clone(),
        application: arguments.application.clone(),
    };
    match AgentClient::connect(&places.agent_socket())?.ask(&request, &[])? {
        Response::Deleted(deleted) => output::print(form, &deleted, |deleted| {
            format!("{}/{} deleted", deleted.tenant, deleted.application)
        }),
        other => Err(AgentClient::unexpected(&other)),
    }
}

/// Lists what there is.
pub(crate) fn show(places: &Places, form: Form, arguments: &Show) -> anyhow::Result<()> {
    let request = match arguments.what {
        Listed::Apps => Request::Applications,
        Listed::Networks => Request::Networks,
        Listed::Instances => Request::Instances,
        Listed::Names => Request::Names,
    };
    match AgentClient::connect(&places.agent_socket())?.ask(&request, &[])? {
        Response::Applications(list) => output::print(form, &list, applications),
        Response::Networks(list) => output::print(form, &list, networks),
        Response::Instances(list) => output::print(form, &list, instances),
        Response::Names(list) => output::print(form, &list, names),
        other => Err(AgentClient::unexpected(&other)),
    }
}

fn read_document(file: &Path) -> Result<DocumentText, String> {
    let (name, text) = if file == Path::new(STANDARD_INPUT) {
        let mut text = String::new();
        (
            "(standard input)".to_owned(),
            std::io::stdin().read_to_string(&mut text).map(|_| text),
        )
    } else {
        (file.display().to_string(), std::fs::read_to_string(file))
    };
    match text {
        Ok(text) => Ok(DocumentText { file: name, text }),
        Err(error) => Err(format!("{name}: can't be read: {error}")),
    }
}

fn applications(list: &ApplicationList) -> String {
    let rows = list.applications.iter().map(|line| {
        [
            line.tenant.clone(),
            line.application.clone(),
            line.version.clone().unwrap_or_else(|| "-".to_owned()),
            line.services.join(","),
            line.instances.to_string(),
        ]
    });
    table(
        ["TENANT", "APPLICATION", "VERSION", "SERVICES", "INSTANCES HERE"],
        rows,
    )
}

fn networks(list: &NetworkList) -> String {
    let rows = list.networks.iter().map(|line| {
        let [service_ipv4, service_ipv6] = line.service_addresses;
        [
            format!("{}/{}", line.tenant, line.name),
            match line.kind {
                NetworkKind::Application => "application".to_owned(),
                NetworkKind::Shared => format!("shared: {}", line.applications.join(" ")),
            },
            line.vni.to_string(),
            line.ipv4_block.to_string(),
            line.ipv6_prefix.to_string(),
            service_ipv4.to_string(),
            service_ipv6.to_string(),
        ]
    });
    table(
        [
            "NETWORK",
            "KIND",
            "VNI",
            "IPV4 HERE",
            "IPV6",
            "SERVICE ADDRESS",
            "",
        ],
        rows,
    )
}

fn instances(list: &InstanceList) -> String {
    let rows = list.instances.iter().map(|line| {
        let addresses: Vec<_> = line.addresses.iter().map(ToString::to_string).collect();
        [
            format!("{}/{}", line.tenant, line.application),
            line.instance.clone(),
            "(here)".to_owned(),
            line.interface.clone(),
            line.mtu.to_string(),
            addresses.join(" "),
            state(line),
        ]
    });
    let elsewhere = list.elsewhere.iter().map(|line| {
        let addresses: Vec<_> = line.addresses.iter().map(ToString::to_string).collect();
        [
            format!("{}/{}", line.tenant, line.application),
            line.instance.clone(),
            line.host.clone(),
            "-".to_owned(),
            "-".to_owned(),
            addresses.join(" "),
            if line.ready { "attached" } else { "not ready" }.to_owned(),
        ]
    });
    table(
        [
            "APPLICATION",
            "INSTANCE",
            "HOST",
            "DEVICE",
            "MTU",
            "ADDRESSES",
            "STATE",
        ],
        rows.chain(elsewhere),
    )
}

/// What is to be known of an instance of this host at a glance.
fn state(line: &InstanceLine) -> String {
    if line.re_attach_needed {
        return "re-attach needed".to_owned();
    }
    let Some(readiness) = line.readiness.as_ref() else {
        return "attached".to_owned();
    };
    let since = readiness.since_s.map(|seconds| format!(" for {seconds} s"));
    let since = since.unwrap_or_default();
    if readiness.ready {
        return format!("ready{since}");
    }
    match &readiness.error {
        Some(error) => format!(
            "not ready{since}: {error} ({}, {} in a row)",
            readiness.asked, readiness.failures
        ),
        None => format!("not ready{since}: not asked yet ({})", readiness.asked),
    }
}

fn names(list: &NameList) -> String {
    let rows = list.names.iter().map(|line| {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        [
            match line.shared {
                true => format!("{} (shared)", line.network),
                false => line.network.clone(),
            },
            line.name.clone(),
            or_none(line.kind.map(|kind| kind.to_string())),
            or_none(line.value.clone()),
            match line.answered {
                true => line.why.clone(),
                false => format!("not answered: {}", line.why),
            },
        ]
    });
    table(["NETWORK", "NAME", "TYPE", "VALUE", "WHERE"], rows)
}
