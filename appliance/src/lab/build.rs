//! Builds a lab, or leaves nothing: ground, hosts, applications, instances, in this order, and then waits until every
//! instance reaches all others of its application.

use super::blueprint::{Blueprint, Host, Instance};
use super::ground::Ground;
use super::state::{self, HostFiles, State};
use super::{Error, Progress, WhileDoing as _, host_document, reach, teardown};
use crate::agent::cluster::certificates::{self, SiteAuthority};
use crate::config::topology;
use crate::sys::netlink::Netlink;
use crate::sys::process::{Process, Start};
use crate::sys::seqpacket::Connection;
use crate::sys::{interruption, netns};
use std::ffi::OsString;
use std::fs;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The interface of an instance.
pub(super) const INSTANCE_DEVICE: &str = "eth0";

/// How long a host may take to answer on its control socket.
const AGENT_START: Duration = Duration::from_secs(10);

/// How long a verb that talks to an agent may take.
const VERB: Duration = Duration::from_secs(20);

/// A lab that is up.
pub(crate) struct Lab {
    /// What it was built from.
    pub(crate) blueprint: Blueprint,
    /// What there is to remove.
    pub(crate) state: State,
    /// The instances with their addresses.
    pub(crate) instances: Vec<Attached>,
    ground: Ground,
}

/// An instance that is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attached {
    /// Which.
    pub(crate) instance: Instance,
    /// Its addresses.
    pub(crate) addresses: Vec<IpAddr>,
}

impl Attached {
    /// Its address of a family.
    pub(crate) fn address(&self, is_ipv4: bool) -> Option<IpAddr> {
        self.addresses
            .iter()
            .find(|address| address.is_ipv4() == is_ipv4)
            .copied()
    }
}

impl Lab {
    /// The open namespace of a part of the lab.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none of that name.
    pub(crate) fn namespace(&self, name: &str) -> Result<BorrowedFd<'_>, Error> {
        self.ground.namespace(name)
    }
}

/// Builds the lab of a topology file.
///
/// # Errors
/// What kept it from being built; then everything is undone, and the hosts' logs are kept where the error says.
pub(crate) fn up(file: &Path, progress: Progress) -> Result<Lab, Error> {
    progress.step(&format!("reading {}", file.display()));
    let blueprint = Blueprint::draw(&topology::read(file)?)?;
    if !rustix::process::geteuid().is_root() {
        let text = "building a lab takes root (it makes network namespaces): run it with sudo";
        return Err(Error::Refused(text.to_owned()));
    }
    refuse_strangers(&blueprint)?;
    let mut state = State::of(&blueprint, file);
    state.claim()?;
    state::forget_failure(&blueprint.lab)?;
    match build(&blueprint, &mut state, progress) {
        Ok((ground, instances)) => Ok(Lab {
            blueprint,
            state,
            instances,
            ground,
        }),
        Err(error) => {
            progress.step("it failed: undoing what was built");
            let mut errors = vec![error];
            errors.extend(teardown::undo(&state).err());
            let kept = state::failed_folder(&blueprint.lab);
            if kept.exists() {
                let text = format!(
                    "the hosts' logs are kept in {} until the next `lab up`",
                    kept.display()
                );
                errors.push(Error::Refused(text));
            }
            progress.done();
            Err(Error::collect(errors).err().unwrap_or(Error::Interrupted))
        }
    }
}

/// Refuses namespaces that are there already and aren't ours to remove.
fn refuse_strangers(blueprint: &Blueprint) -> Result<(), Error> {
    // A lab that is up has a better message for its own namespaces.
    if state::folder(&blueprint.lab).exists() {
        return Ok(());
    }
    let there = netns::list().while_doing(|| "listing namespaces".to_owned())?;
    match blueprint
        .namespaces()
        .into_iter()
        .find(|name| there.iter().any(|known| known == name))
    {
        Some(name) => Err(Error::Refused(format!(
            "namespace {name} exists and belongs to no lab: remove it (`ip netns del {name}`) or rename the lab"
        ))),
        None => Ok(()),
    }
}

fn build(
    blueprint: &Blueprint,
    state: &mut State,
    progress: Progress,
) -> Result<(Ground, Vec<Attached>), Error> {
    progress.step(&format!(
        "laying {} namespaces and their wires",
        blueprint.namespaces().len()
    ));
    let ground = Ground::lay(blueprint)?;
    check_interruption()?;
    start_nodes(blueprint, state, &ground)?;
    progress.step(&format!("starting {} hosts", blueprint.hosts.len()));
    start_hosts(blueprint, state, &ground)?;
    progress.step("applying the applications");
    for host in &blueprint.hosts {
        let mut arguments = vec![OsString::from("apply")];
        arguments.extend(blueprint.documents.iter().map(OsString::from));
        if !blueprint.documents.is_empty() {
            ask_agent(
                &blueprint.lab,
                host,
                ground.namespace(&host.namespace)?,
                &arguments,
            )?;
        }
    }
    progress.step(&format!("attaching {} instances", blueprint.instances.len()));
    let mut attached = Vec::new();
    for instance in &blueprint.instances {
        check_interruption()?;
        attached.push(attach(blueprint, instance, &ground)?);
    }
    progress.step("waiting until every instance reaches its peers");
    reach::wait(&blueprint.lab, &attached, &ground)?;
    progress.done();
    Ok((ground, attached))
}

pub(super) fn check_interruption() -> Result<(), Error> {
    if interruption::requested() {
        Err(Error::Interrupted)
    } else {
        Ok(())
    }
}

fn start_nodes(blueprint: &Blueprint, state: &mut State, ground: &Ground) -> Result<(), Error> {
    for node in &blueprint.nodes {
        for (number, command) in node.exec.iter().enumerate() {
            let Some((program, arguments)) = command.split_first() else {
                continue;
            };
            let start = Start {
                program: program.into(),
                arguments: arguments.iter().map(OsString::from).collect(),
                log: state::folder(&blueprint.lab).join(format!("{}-{}.log", node.name, number + 1)),
            };
            let process = Process::start(&start, ground.namespace(&node.namespace)?)
                .while_doing(|| format!("starting {program} in node {}", node.name))?;
            state.add_process(format!("{program} of node {}", node.name), process)?;
        }
    }
    Ok(())
}

fn start_hosts(blueprint: &Blueprint, state: &mut State, ground: &Ground) -> Result<(), Error> {
    make_identities(blueprint)?;
    let program = own_program()?;
    let mut processes = Vec::new();
    for (name, document) in host_document::write(blueprint) {
        let files = HostFiles::of(&blueprint.lab, &name);
        fs::write(files.document(), host_document::to_yaml(&document))
            .while_doing(|| format!("writing {}", files.document().display()))?;
        let Some(host) = blueprint.hosts.iter().find(|host| host.name == name) else {
            continue;
        };
        let mut arguments = places(&files);
        arguments.push("run".into());
        let start = Start {
            program: program.clone().into(),
            arguments,
            log: files.log(),
        };
        let process = Process::start(&start, ground.namespace(&host.namespace)?)
            .while_doing(|| format!("starting host {name}"))?;
        state.add_process(format!("host {name}"), process)?;
        processes.push((name, files, process));
    }
    for (name, files, process) in processes {
        wait_for_agent(&name, &files, &process)?;
    }
    Ok(())
}

/// Makes the site's authority, and for every host its folders and a certificate.
fn make_identities(blueprint: &Blueprint) -> Result<(), Error> {
    let make = || -> anyhow::Result<()> {
        let authority = SiteAuthority::new(&blueprint.lab)?;
        // Kept, so that more certificates of this site can be made while the lab is up.
        authority.save(&state::folder(&blueprint.lab))?;
        for host in &blueprint.hosts {
            let files = HostFiles::of(&blueprint.lab, &host.name);
            fs::create_dir_all(files.run())?;
            fs::create_dir_all(files.state())?;
            let (certificate, key) = authority.issue(&host.name)?;
            certificates::write(&files.authority(), authority.certificate(), 0o644)?;
            certificates::write(&files.certificate(), &certificate, 0o644)?;
            certificates::write(&files.certificate_key(), &key, 0o600)?;
        }
        Ok(())
    };
    make().map_err(|error| Error::Refused(format!("making the hosts' certificates: {error:#}")))
}

fn wait_for_agent(host: &str, files: &HostFiles, process: &Process) -> Result<(), Error> {
    let socket = files.run().join("agent.sock");
    let deadline = Instant::now() + AGENT_START;
    while Connection::connect(&socket).is_err() {
        check_interruption()?;
        if !process.is_running() {
            return Err(Error::Refused(format!(
                "host {host} ended while it started:\n{}",
                last_lines(&files.log())
            )));
        }
        if Instant::now() > deadline {
            let text = format!(
                "host {host} doesn't answer on {} after {AGENT_START:?}; its log ends with:\n{}",
                socket.display(),
                last_lines(&files.log())
            );
            return Err(Error::Refused(text));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn last_lines(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(12);
    lines
        .get(from..)
        .unwrap_or_default()
        .iter()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Our own program. When it was replaced while we run, the path leads nowhere, and only the kernel knows it still.
pub(super) fn own_program() -> Result<PathBuf, Error> {
    let path = std::env::current_exe().while_doing(|| "looking for the own program".to_owned())?;
    Ok(if path.exists() {
        path
    } else {
        PathBuf::from("/proc/self/exe")
    })
}

fn places(files: &HostFiles) -> Vec<OsString> {
    let options = [
        ("--config", files.document()),
        ("--state-dir", files.state()),
        ("--run-dir", files.run()),
    ];
    options
        .into_iter()
        .flat_map(|(option, path)| [option.into(), path.into_os_string()])
        .collect()
}

/// Runs a verb of ours against a host's agent, in the host's namespace; gives what it printed.
pub(super) fn ask_agent(
    lab: &str,
    host: &Host,
    namespace: BorrowedFd<'_>,
    arguments: &[OsString],
) -> Result<Vec<u8>, Error> {
    let verb = arguments
        .first()
        .map(|verb| verb.to_string_lossy().into_owned())
        .unwrap_or_default();
    let doing = || format!("`tidegate {verb}` on host {}", host.name);
    let mut command = Command::new(own_program()?);
    command
        .args(places(&HostFiles::of(lab, &host.name)))
        .args(arguments);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = netns::within(namespace, || command.spawn())
        .while_doing(doing)?
        .while_doing(doing)?;
    // What a verb prints fits into a pipe: nobody has to read before it ends.
    let deadline = Instant::now() + VERB;
    while child.try_wait().while_doing(doing)?.is_none() {
        if interruption::requested() || Instant::now() > deadline {
            child.kill().while_doing(doing)?;
            child.wait().while_doing(doing)?;
            check_interruption()?;
            return Err(Error::Refused(format!("{} was not done after {VERB:?}", doing())));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().while_doing(doing)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(Error::Refused(format!(
            "{} failed ({}): {}",
            doing(),
            output.status,
            text.trim()
        )));
    }
    Ok(output.stdout)
}

fn attach(blueprint: &Blueprint, instance: &Instance, ground: &Ground) -> Result<Attached, Error> {
    let Some(host) = blueprint.hosts.iter().find(|host| host.name == instance.host) else {
        return Err(Error::NotFound(format!(
            "there is no host {} in this lab",
            instance.host
        )));
    };
    let folder = netns::files_folder(&instance.namespace);
    fs::create_dir_all(&folder).while_doing(|| format!("making {}", folder.display()))?;
    let arguments: Vec<OsString> = [
        "attach".into(),
        "--netns".into(),
        OsString::from(&instance.namespace),
        "--tenant".into(),
        OsString::from(&instance.tenant),
        "--application".into(),
        OsString::from(&instance.application),
        "--service".into(),
        OsString::from(&instance.service),
        "--instance".into(),
        instance.number.to_string().into(),
        "--interface".into(),
        INSTANCE_DEVICE.into(),
        "--resolv-conf".into(),
        folder.join("resolv.conf").into_os_string(),
    ]
    .into();
    ask_agent(
        &blueprint.lab,
        host,
        ground.namespace(&host.namespace)?,
        &arguments,
    )?;
    let doing = || format!("reading the addresses of {}", instance.namespace);
    let mut netlink = Netlink::open_within(ground.namespace(&instance.namespace)?).while_doing(doing)?;
    let index = netlink.link_index(INSTANCE_DEVICE).while_doing(doing)?;
    let addresses = netlink.addresses(index).while_doing(doing)?;
    Ok(Attached {
        instance: instance.clone(),
        addresses: addresses.iter().map(ipnet::IpNet::addr).collect(),
    })
}
