//! Two hosts on one wire: the place that every contestant gets.
//!
//! ```text
//!   <name>-c1      <name>-h1                      <name>-h2      <name>-c2
//!   container      host, 192.0.2.11 ── veth ── 192.0.2.12, host  container
//! ```

use std::net::IpAddr;

use anyhow::Result;

use crate::command::{ip, run, within};
use crate::contestant::Offloads;
use crate::keeper;

/// What VXLAN over IPv4 takes of an MTU (RFC 7348 §5).
pub(crate) const VXLAN_OVERHEAD: u32 = 50;

/// MTU of the wire between the hosts.
pub(crate) const MTU: u32 = 1500;

/// A device in a namespace.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    /// Where it is.
    pub(crate) namespace: String,
    /// Its name there.
    pub(crate) name: String,
}

impl Device {
    /// Switches what the device does for super-packets on or off.
    pub(crate) fn set_offloads(&self, offloads: Offloads) -> Result<()> {
        let state = match offloads {
            Offloads::On => "on",
            Offloads::Off => "off",
        };
        let mut words = within(&self.namespace, &["ethtool", "-K", &self.name]);
        for feature in ["tx", "rx", "tso", "gso"] {
            words.extend([feature, state]);
        }
        // A veth is made with this one off: super-packets arrive whole without it.
        words.extend(["gro", "off"]);
        run(&words)?;
        Ok(())
    }
}

/// The two hosts of a contestant, their wire, and a namespace for a container beside each.
pub(crate) struct TwoHosts {
    name: String,
}

impl TwoHosts {
    /// Names them; nothing is made yet.
    pub(crate) fn named(name: &str) -> Self {
        Self {
            name: format!("{}-{name}", crate::keeper::PREFIX),
        }
    }

    /// Namespace of host 1 or 2.
    pub(crate) fn host(&self, number: u8) -> String {
        format!("{}-h{number}", self.name)
    }

    /// Namespace of the container beside host 1 or 2.
    pub(crate) fn container(&self, number: u8) -> String {
        format!("{}-c{number}", self.name)
    }

    /// The wire's two ends.
    pub(crate) fn wire(&self) -> Vec<Device> {
        [1, 2]
            .map(|number| Device {
                namespace: self.host(number),
                name: "eth0".to_owned(),
            })
            .to_vec()
    }

    /// Underlay address of host 1 or 2.
    pub(crate) fn address(number: u8) -> String {
        format!("192.0.2.{}", 10 + number)
    }

    /// Makes the namespaces and the wire.
    pub(crate) fn build(&self) -> Result<()> {
        for number in [1, 2] {
            for namespace in [self.host(number), self.container(number)] {
                ip(&format!("netns add {namespace}"))?;
                ip(&format!("-n {namespace} link set lo up"))?;
            }
        }
        let (one, two) = (self.host(1), self.host(2));
        ip(&format!(
            "-n {one} link add eth0 mtu {MTU} type veth peer name eth0 mtu {MTU} netns {two}"
        ))?;
        for number in [1, 2] {
            let host = self.host(number);
            ip(&format!(
                "-n {host} address add {}/24 dev eth0",
                Self::address(number)
            ))?;
            ip(&format!("-n {host} link set eth0 up"))?;
        }
        Ok(())
    }

    /// Removes the namespaces, with whatever runs in them.
    pub(crate) fn remove(&self) -> Result<()> {
        for number in [1, 2] {
            for namespace in [self.host(number), self.container(number)] {
                keeper::remove(&namespace)?;
            }
        }
        Ok(())
    }

    /// container — veth — bridge — vxlan, all but the container on host `number`; `device` there carries it between
    /// the addresses `local` and `remote`. Gives the container [`Self::behind_vxlan`].
    pub(crate) fn plug_into_vxlan(
        &self,
        number: u8,
        (device, local, remote): (&str, &str, &str),
        mtu: u32,
    ) -> Result<()> {
        let host = self.host(number);
        ip(&format!(
            "-n {host} link add vxlan0 mtu {mtu} type vxlan id 42 local {local} remote {remote} dstport 4789 dev {device}"
        ))?;
        ip(&format!("-n {host} link add br0 type bridge"))?;
        ip(&format!("-n {host} link set vxlan0 master br0 up"))?;
        ip(&format!("-n {host} link set br0 up"))?;
        let address = format!("{}/24", Self::behind_vxlan(number));
        self.plug(&self.container(number), &host, "br0", &address, mtu)
    }

    /// The address of the container beside host 1 or 2 in a VXLAN.
    pub(crate) fn behind_vxlan(number: u8) -> IpAddr {
        [172, 19, 0, number].into()
    }

    /// Joins a container to a bridge of its host: `eth0` inside, with `address`.
    pub(crate) fn plug(
        &self,
        container: &str,
        host: &str,
        bridge: &str,
        address: &str,
        mtu: u32,
    ) -> Result<()> {
        let port = format!("to-{}", container.rsplit('-').next().unwrap_or(container));
        ip(&format!(
            "-n {host} link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {container}"
        ))?;
        ip(&format!("-n {host} link set {port} master {bridge} up"))?;
        ip(&format!("-n {container} address add {address} dev eth0"))?;
        ip(&format!("-n {container} link set eth0 up"))?;
        Ok(())
    }
}
