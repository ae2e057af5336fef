//! `tidegate attach`: the short-lived process that gives an instance its device.
//!
//! It has the capabilities that nothing long-lived has. In this order, each step with its undo:
//!
//! 1. ask the agent what the device has to be like;
//! 2. make the device and all its queues in the host's namespace, where `/dev/net/tun` belongs to the host;
//! 3. move it into the instance's namespace, with its name and MTU, in one message;
//! 4. configure it there: no addresses of the kernel's own, ours, routes, up;
//! 5. write the instance's resolv.conf, when asked to;
//! 6. hand the queues to the agent, which answers when every shard runs the result.
//!
//! When a step fails, or the agent refuses, the steps before it are undone and nothing is left.

mod interior;
mod resolv_conf;
mod transaction;

use super::api::{Attached, InstanceQuery, Prepared, Request, Response};
use super::reconcile::Namespace;
use crate::cli::client::AgentClient;
use crate::sys::netlink::Netlink;
use crate::sys::netns;
use crate::sys::tun::{self, TunFeatures};
use anyhow::Context as _;
use rustix::fs::fstat;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use transaction::Transaction;

/// What makes a namespace the same one.
///
/// # Errors
/// What `fstat` said.
pub(crate) fn identity(namespace: BorrowedFd<'_>) -> io::Result<Namespace> {
    let stat = fstat(namespace)?;
    Ok(Namespace {
        device: stat.st_dev,
        inode: stat.st_ino,
    })
}

/// Attaches an instance, or finds that it is attached already.
///
/// # Errors
/// What failed, and what couldn't be undone after it.
pub(crate) fn attach(
    agent: &AgentClient,
    namespace: &OwnedFd,
    query: InstanceQuery,
    resolv_conf: Option<&Path>,
) -> anyhow::Result<Attached> {
    let interface = query.interface.clone();
    let prepared = match agent.ask(&Request::PrepareAttach { instance: query }, &[])? {
        Response::Attached(attached) => return Ok(attached),
        Response::Prepared(prepared) => prepared,
        other => return Err(AgentClient::unexpected(&other)),
    };
    let done = Transaction::run(|transaction| {
        let queues = make_device(&prepared)?;
        let namespace = namespace.as_fd();
        move_device(&prepared, namespace, &interface)?;
        transaction.done("the device was moved into the namespace", {
            let interface = interface.clone();
            move || remove_device(namespace, &interface)
        });
        netns::within(namespace, || interior::configure(&interface, &prepared))
            .context("the instance's namespace can't be entered (it takes CAP_SYS_ADMIN)")??;
        if let Some(file) = resolv_conf {
            let before = resolv_conf::write(file, &prepared)?;
            transaction.done("resolv.conf was written", move || {
                resolv_conf::restore(file, before)
            });
        }
        let borrowed: Vec<_> = queues.iter().map(|queue| queue.as_fd()).collect();
        match agent.ask(&Request::CommitAttach, &borrowed)? {
            Response::Attached(attached) => Ok(attached),
            other => Err(AgentClient::unexpected(&other)),
        }
    });
    done.map_err(|unwound| {
        if unwound.left.is_empty() {
            unwound.cause
        } else {
            unwound.into()
        }
    })
}

/// Makes the device; it goes with the last of its queues, so it needs no undo of its own.
fn make_device(prepared: &Prepared) -> anyhow::Result<Vec<OwnedFd>> {
    let features = TunFeatures {
        vnet_header: prepared.vnet_header,
        segmentation: prepared.segmentation,
        multi_queue: prepared.multi_queue,
    };
    let queues = usize::try_from(prepared.queues)?;
    tun::create(&prepared.temporary_name, queues, features).with_context(|| {
        format!(
            "the TUN device {} can't be made (it takes CAP_NET_ADMIN and /dev/net/tun; see `tidegate doctor`)",
            prepared.temporary_name
        )
    })
}

fn move_device(prepared: &Prepared, namespace: BorrowedFd<'_>, interface: &str) -> anyhow::Result<()> {
    let mut netlink = Netlink::open()?;
    let index = netlink.link_index(&prepared.temporary_name)?;
    netlink
        .move_link(index, namespace, interface, prepared.mtu.into())
        .with_context(|| {
            format!("the device can't be moved into the namespace as {interface} (is the name taken there?)")
        })
}

fn remove_device(namespace: BorrowedFd<'_>, interface: &str) -> anyhow::Result<()> {
    let mut netlink = Netlink::open_within(namespace)?;
    match netlink.link_index(interface) {
        Ok(index) => Ok(netlink.delete_link(index)?),
        // It went with its queues.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}
