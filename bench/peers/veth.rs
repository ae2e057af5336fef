//! Two containers at the ends of one veth pair: the kernel's own cost, and the most that the load itself can do.

use anyhow::Result;

use crate::account::Account;
use crate::command::ip;
use crate::contestant::{Contestant, Ends, Reach};
use crate::underlay::{Device, MTU, TwoHosts};

/// A wire, and nothing else.
pub(crate) struct Veth {
    hosts: TwoHosts,
}

impl Veth {
    /// Not built yet.
    pub(crate) fn new() -> Self {
        Self::named("veth")
    }

    /// Not built yet, for something that is to run at its far end.
    pub(crate) fn named(name: &str) -> Self {
        Self {
            hosts: TwoHosts::named(name),
        }
    }
}

impl Contestant for Veth {
    fn name(&self) -> &'static str {
        "veth"
    }

    fn reach(&self) -> Reach {
        Reach::CrossHost
    }

    fn place(&mut self) -> Result<()> {
        self.hosts.build()
    }

    fn up(&mut self, _account: &Account) -> Result<()> {
        let (one, two) = (self.hosts.container(1), self.hosts.container(2));
        ip(&format!(
            "-n {one} link add eth0 mtu {MTU} type veth peer name eth0 mtu {MTU} netns {two}"
        ))?;
        for (number, container) in [(1, one), (2, two)] {
            ip(&format!("-n {container} address add 10.0.0.{number}/24 dev eth0"))?;
            ip(&format!("-n {container} link set eth0 up"))?;
        }
        Ok(())
    }

    fn down(&mut self) -> Result<()> {
        self.hosts.remove()
    }

    fn ends(&self) -> Result<Ends> {
        Ok(Ends {
            client: self.hosts.container(1),
            server: self.hosts.container(2),
            server_address: [10, 0, 0, 2].into(),
        })
    }

    fn underlay(&self) -> Vec<Device> {
        [1, 2]
            .map(|number| Device {
                namespace: self.hosts.container(number),
                name: "eth0".to_owned(),
            })
            .to_vec()
    }
}
