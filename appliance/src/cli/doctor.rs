//! `doctor`: the facts about this machine that decide how well tidegate runs, each with what to do.
//!
//! It asks the kernel itself, so that it helps when nothing runs yet, and then the agent, where one runs.

mod certificates;
mod name_servers;
mod site;

use super::Places;
use super::output::{self, Form};
use crate::agent::underlay::{self, GRO_FORWARDING};
use crate::agent::{keys, reconcile};
use crate::config::host::{self, HostDocument};
use crate::sys::tun::TunFeatures;
use crate::sys::{ethtool, lane_socket, tun};
use serde::Serialize;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;

/// What `doctor` found.
#[derive(Debug, Serialize)]
struct Findings {
    findings: Vec<Finding>,
}

/// One fact.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Finding {
    /// What was looked at.
    subject: String,
    /// Whether all is well.
    state: State,
    /// What was found, and what to do.
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Ok,
    Warning,
}

/// Looks at everything, and prints it.
pub(crate) fn doctor(places: &Places, form: Form) -> anyhow::Result<()> {
    let mut findings = vec![device(), segmentation(), lanes()];
    match host::read(&places.config) {
        Ok(document) => {
            findings.push(ok(
                "host document",
                format!("{} is legal", places.config.display()),
            ));
            findings.extend(underlay(&document));
            findings.extend(key_files(&document, places));
            findings.extend(certificates::findings(&document));
            findings.extend(site::findings(&document, places));
        }
        Err(problems) => {
            findings.extend(
                problems
                    .iter()
                    .map(|problem| warning("host document", problem.to_string())),
            );
        }
    }
    output::print(form, &Findings { findings }, render)
}

fn render(findings: &Findings) -> String {
    let lines = findings.findings.iter().map(|finding| {
        let state = match finding.state {
            State::Ok => "ok",
            State::Warning => "warning",
        };
        format!("{state:8} {}: {}\n", finding.subject, finding.text)
    });
    lines.collect()
}

fn device() -> Finding {
    let subject = "/dev/net/tun";
    match make_probe_device(TunFeatures {
        vnet_header: true,
        segmentation: true,
        multi_queue: true,
    }) {
        Ok(()) => ok(
            subject,
            "devices with virtio headers and several queues can be made",
        ),
        Err(error) => warning(
            subject,
            format!(
                "no device can be made ({error}): `modprobe tun`, run as root, or give the container \
                 `--device /dev/net/tun --cap-add NET_ADMIN`"
            ),
        ),
    }
}

fn segmentation() -> Finding {
    let subject = "UDP segmentation of TUN devices (USO)";
    match kernel_release() {
        Some(release) if release >= (6, 2) => ok(subject, "the kernel has it (6.2 and later)"),
        Some((major, minor)) => warning(
            subject,
            format!(
                "kernel {major}.{minor} hasn't it: UDP of instances passes packet by packet; 6.2 and later have it"
            ),
        ),
        None => warning(
            subject,
            "the kernel's version can't be read from /proc/sys/kernel/osrelease",
        ),
    }
}

fn lanes() -> Finding {
    let subject = "UDP GSO and GRO";
    let probed = lane_socket::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), true).and_then(|socket| {
        lane_socket::set_gro(socket.as_fd(), true)?;
        let state = quinn_udp::UdpSocketState::new((&socket).into())?;
        Ok((state.max_gso_segments(), lane_socket::is_ipv6(socket.as_fd())?))
    });
    match probed {
        Ok((segments, ipv6)) if segments > 1 && ipv6 => ok(
            subject,
            format!("{segments} datagrams a send; sockets take IPv4 and IPv6"),
        ),
        Ok((segments, true)) => warning(
            subject,
            format!("the kernel takes {segments} datagram a send: expect about a tenth of the throughput"),
        ),
        Ok((_, false)) => warning(
            subject,
            "this machine has no IPv6: peers are reached over IPv4 alone",
        ),
        Err(error) => warning(subject, format!("a lane's socket can't be made: {error}")),
    }
}

fn underlay(document: &HostDocument) -> Vec<Finding> {
    let subject = "underlay";
    let found = match underlay::find(document) {
        Ok(found) => found,
        Err(error) => {
            let text =
                format!("its device isn't known ({error}): set `cluster.interface` in the host document");
            return vec![warning(subject, text)];
        }
    };
    let device = found.device.clone().unwrap_or_default();
    let inner = reconcile::instance_mtu(document, found.mtu);
    let families = document
        .cluster
        .peers
        .iter()
        .filter_map(|peer| peer.endpoint)
        .map(|endpoint| endpoint.ip())
        .chain(document.cluster.hosts().map(|host| host.address))
        .map(reconcile::Family::of);
    let cut = families
        .into_iter()
        .any(|family| reconcile::fragments_outside(found.mtu, family));
    let mtu = if cut {
        warning(
            subject,
            format!(
                "{device} has MTU {}, which leaves less than 1280 bytes inside: datagrams between hosts are \
                 fragmented; raise the MTU if you can",
                found.mtu
            ),
        )
    } else {
        ok(
            subject,
            format!("{device} has MTU {}, instances get {inner}", found.mtu),
        )
    };
    vec![mtu, gro_forwarding(document, &device)]
}

fn gro_forwarding(document: &HostDocument, device: &str) -> Finding {
    let subject = format!("{GRO_FORWARDING} on {device}");
    match ethtool::features(device).map(|features| features.get(GRO_FORWARDING).copied()) {
        Ok(Some(feature)) if feature.on => ok(
            subject,
            "on: datagrams arrive in runs (the agent puts back what it changed when it stops)",
        ),
        Ok(Some(feature)) if feature.changeable && document.datapath.tune_nic != host::Switch::Off => {
            ok(subject, "off: the agent switches it on while it runs")
        }
        Ok(Some(feature)) if feature.changeable => warning(
            subject,
            format!(
                "off: datagrams arrive one by one; `ethtool -K {device} {GRO_FORWARDING} on`, or leave `datapath.tune-nic` at auto"
            ),
        ),
        Ok(Some(_) | None) => warning(
            subject,
            "this device can't: datagrams arrive one by one, which costs about half of the throughput",
        ),
        Err(error) => warning(subject, format!("can't be read: {error}")),
    }
}

fn key_files(document: &HostDocument, places: &Places) -> Vec<Finding> {
    let preshared = document
        .cluster
        .peers
        .iter()
        .filter_map(|peer| peer.preshared_key_file.clone());
    let foreign = keys::foreign_key_file(document, &places.state_dir);
    let exists = foreign.exists();
    let mut findings = Vec::new();
    if !exists {
        findings.push(ok(
            "key file",
            format!("{} doesn't exist: the agent makes it", foreign.display()),
        ));
    }
    for file in preshared.chain(exists.then_some(foreign)) {
        findings.push(match keys::readable_by_others(&file) {
            Ok(None) => ok(
                "key file",
                format!("{} is readable by its owner alone", file.display()),
            ),
            Ok(Some(mode)) => warning(
                "key file",
                format!(
                    "{} has mode {mode:04o}: `chmod 600 {0}`, and make a new one if others read it",
                    file.display()
                ),
            ),
            Err(error) => warning(
                "key file",
                format!("{} can't be looked at: {error}", file.display()),
            ),
        });
    }
    findings
}

fn make_probe_device(features: TunFeatures) -> std::io::Result<()> {
    let name = format!("tgprobe{}", std::process::id() % 10_000_000);
    tun::create(&name, 1, features).map(drop)
}

fn kernel_release() -> Option<(u32, u32)> {
    release(&std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?)
}

fn release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text
        .split(|character: char| !character.is_ascii_digit())
        .map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn ok(subject: impl Into<String>, text: impl Into<String>) -> Finding {
    Finding {
        subject: subject.into(),
        state: State::Ok,
        text: text.into(),
    }
}

fn warning(subject: impl Into<String>, text: impl Into<String>) -> Finding {
    Finding {
        subject: subject.into(),
        state: State::Warning,
        text: text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernels_release_is_its_first_two_numbers() {
        assert_eq!(release("6.12.3-amd64\n"), Some((6, 12)));
        assert_eq!(release("5.15-rc1"), Some((5, 15)));
        assert_eq!(release("unknown"), None);
    }

    #[test]
    fn every_finding_is_a_line() {
        let findings = Findings {
            findings: vec![ok("a", "fine"), warning("b", "do this")],
        };
        assert_eq!(render(&findings), "ok       a: fine\nwarning  b: do this\n");
    }
}
