//! Who takes part, and what everybody has in common.

use std::fmt;
use std::net::IpAddr;

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::account::Account;
use crate::bridge::Bridge;
use crate::ours::Ours;
use crate::underlay::Device;
use crate::userspace_wireguard::{Program, UserspaceWireguard};

/// One way to join two containers.
pub(crate) trait Contestant {
    /// What the table calls it.
    fn name(&self) -> &'static str;

    /// Whether its two ends are on two hosts or on one.
    fn reach(&self) -> Reach;

    /// Builds it. Whatever it starts belongs to `account`; whatever it makes has a name that the keeper knows.
    fn up(&mut self, account: &Account) -> Result<()>;

    /// The two ends, once it is up.
    fn ends(&self) -> Result<Ends>;

    /// The devices between the hosts.
    fn underlay(&self) -> Vec<Device>;
}

/// Everybody, in the table's order.
pub(crate) fn all() -> Vec<Box<dyn Contestant>> {
    vec![
        Box::new(Ours::new(Reach::CrossHost)),
        Box::new(UserspaceWireguard::new(Program::WireguardGo)),
        Box::new(UserspaceWireguard::under_vxlan(Program::WireguardGo)),
        Box::new(UserspaceWireguard::new(Program::Gotatun)),
        Box::new(UserspaceWireguard::under_vxlan(Program::Gotatun)),
        Box::new(Ours::new(Reach::SameHost)),
        Box::new(Bridge::new()),
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
    /// Parallel TCP connections.
    pub(crate) streams: u32,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let streams = if self.streams == 1 { "stream" } else { "streams" };
        let offloads = match self.offloads {
            Offloads::On => "on",
            Offloads::Off => "off",
        };
        write!(f, "{} {streams}, offloads {offloads}", self.streams)
    }
}
