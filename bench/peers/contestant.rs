//! Who takes part, and what everybody has in common.

use std::fmt;
use std::net::IpAddr;

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::account::Account;
use crate::bridge::Bridge;
use crate::generator::Protocol;
use crate::kernel_vxlan::KernelVxlan;
use crate::names::{self, OurNames, Resolver};
use crate::ours::Ours;
use crate::underlay::Device;
use crate::userspace_wireguard::{Program, UserspaceWireguard};
use crate::veth::Veth;

/// One way to join two containers, or to answer what one asks by name.
pub(crate) trait Contestant {
    /// What the table calls it.
    fn name(&self) -> &'static str;

    /// What it is for.
    fn task(&self) -> Task {
        Task::Join
    }

    /// Whether its two ends are on two hosts or on one.
    fn reach(&self) -> Reach;

    /// Makes the place that it is built in: whatever every contestant needs and none of them is.
    fn place(&mut self) -> Result<()>;

    /// Builds it there. Whatever it starts belongs to `account`; whatever it makes has a name that the keeper knows.
    fn up(&mut self, account: &Account) -> Result<()>;

    /// Removes it with its place, so that it can be built anew.
    fn down(&mut self) -> Result<()>;

    /// The two ends, once it is up.
    fn ends(&self) -> Result<Ends>;

    /// The devices between the hosts.
    fn underlay(&self) -> Vec<Device>;
}

/// Everybody, in the table's order.
pub(crate) fn all() -> Vec<Box<dyn Contestant>> {
    vec![
        Box::new(Ours::new(Reach::CrossHost, 1)),
        Box::new(Ours::new(Reach::CrossHost, 2)),
        Box::new(UserspaceWireguard::new(Program::WireguardGo)),
        Box::new(UserspaceWireguard::under_vxlan(Program::WireguardGo)),
        Box::new(UserspaceWireguard::new(Program::Gotatun)),
        Box::new(UserspaceWireguard::under_vxlan(Program::Gotatun)),
        Box::new(UserspaceWireguard::new(Program::Boringtun)),
        Box::new(KernelVxlan::new()),
        Box::new(Veth::new()),
        Box::new(Ours::new(Reach::SameHost, 1)),
        Box::new(Bridge::new()),
        Box::new(OurNames),
        Box::new(Resolver::new(names::Program::Dnsmasq)),
        Box::new(Resolver::new(names::Program::Unbound)),
    ]
}

/// Where the load runs.
#[derive(Clone, Debug)]
pub(crate) struct Ends {
    /// Namespace of the sender.
    pub(crate) client: String,
    /// Namespace of the receiver.
    pub(crate) server: String,
    /// The receiver's address.
    pub(crate) server_address: IpAddr,
}

/// What a contestant is for, and what a load is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Joining two containers.
    Join,
    /// Answering what a container asks by name.
    Names,
}

/// How far apart the ends are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reach {
    /// Two containers on two hosts.
    CrossHost,
    /// Two containers on one host.
    SameHost,
}

/// Segmentation, checksum and receive offloads of the underlay's devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Offloads {
    /// As the kernel makes a veth: super-packets cross it whole.
    On,
    /// As a plain NIC: every datagram by itself.
    Off,
}

/// What is varied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Condition {
    /// Of the underlay.
    pub(crate) offloads: Offloads,
    /// From one end to the other.
    pub(crate) load: Load,
}

/// What the two ends do with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Load {
    /// Bulk: so many parallel TCP connections.
    Streams(u32),
    /// Single datagrams of so many bytes of payload, as many a second as come through without loss.
    Datagrams(usize),
    /// Requests and responses, and nothing else.
    IdleRequests(Protocol),
    /// Requests and responses beside a bulk TCP stream.
    LoadedRequests(Protocol),
    /// New connections, so many at a time.
    Connections(u16),
    /// The first echo after nothing was there.
    FirstPing,
    /// Questions by name, as many as are answered.
    Questions,
    /// Questions by name, 10,000 a second.
    PacedQuestions,
}

impl Load {
    /// Whom it is asked of.
    pub(crate) fn task(self) -> Task {
        match self {
            Self::Questions | Self::PacedQuestions => Task::Names,
            Self::Streams(_)
            | Self::Datagrams(_)
            | Self::IdleRequests(_)
            | Self::LoadedRequests(_)
            | Self::Connections(_)
            | Self::FirstPing => Task::Join,
        }
    }

    /// Whether it is measured over a wire without offloads too.
    pub(crate) fn is_bulk(self) -> bool {
        matches!(self, Self::Streams(_))
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offloads = match self.offloads {
            Offloads::On => "on",
            Offloads::Off => "off",
        };
        write!(f, "{}, offloads {offloads}", self.load)
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Streams(1) => f.write_str("1 stream"),
            Self::Streams(streams) => write!(f, "{streams} streams"),
            Self::Datagrams(payload) => write!(f, "UDP of {payload} B"),
            Self::IdleRequests(protocol) => write!(f, "{protocol} requests, idle"),
            Self::LoadedRequests(protocol) => write!(f, "{protocol} requests beside a stream"),
            Self::Connections(1) => f.write_str("connections, one at a time"),
            Self::Connections(parallel) => write!(f, "connections, {parallel} at a time"),
            Self::FirstPing => f.write_str("first ping"),
            Self::Questions => f.write_str("questions, as many as are answered"),
            Self::PacedQuestions => f.write_str("questions, 10,000 a second"),
        }
    }
}
