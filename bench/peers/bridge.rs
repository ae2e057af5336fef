//! Two containers on a kernel bridge: what one host does without any of us.

use anyhow::Result;

use crate::account::Account;
use crate::command::ip;
use crate::contestant::{Contestant, Ends, Reach};
use crate::underlay::{Device, MTU, TwoHosts};

/// A bridge and two veth pairs on host 1.
pub(crate) struct Bridge {
    hosts: TwoHosts,
}

impl Bridge {
    /// Not built yet.
    pub(crate) fn new() -> Self {
        Self {
            hosts: TwoHosts::named("br"),
        }
    }
}

impl Contestant for Bridge {
    fn name(&self) -> &'static str {
        "bridge+veth"
    }

    fn reach(&self) -> Reach {
        Reach::SameHost
    }

    fn place(&mut self) -> Result<()> {
        self.hosts.build()
    }

    fn up(&mut self, _account: &Account) -> Result<()> {
        let host = self.hosts.host(1);
        ip(&format!("-n {host} link add br0 type bridge"))?;
        ip(&format!("-n {host} link set br0 up"))?;
        for number in [1, 2] {
            let address = format!("10.0.0.{number}/24");
            self.hosts
                .plug(&self.hosts.container(number), &host, "br0", &address, MTU)?;
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
        Vec::new()
    }
}
