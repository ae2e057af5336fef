//! The kernel's VXLAN between two hosts, as container networks without encryption are built.

use anyhow::Result;

use crate::account::Account;
use crate::contestant::{Contestant, Ends, Reach};
use crate::underlay::{Device, MTU, TwoHosts, VXLAN_OVERHEAD};

/// container — veth — bridge — vxlan — wire, on both hosts.
pub(crate) struct KernelVxlan {
    hosts: TwoHosts,
}

impl KernelVxlan {
    /// Not built yet.
    pub(crate) fn new() -> Self {
        Self {
            hosts: TwoHosts::named("vx"),
        }
    }
}

impl Contestant for KernelVxlan {
    fn name(&self) -> &'static str {
        "vxlan"
    }

    fn reach(&self) -> Reach {
        Reach::CrossHost
    }

    fn place(&mut self) -> Result<()> {
        self.hosts.build()
    }

    fn up(&mut self, _account: &Account) -> Result<()> {
        for (number, other) in [(1, 2), (2, 1)] {
            let (local, remote) = (TwoHosts::address(number), TwoHosts::address(other));
            self.hosts
                .plug_into_vxlan(number, ("eth0", &local, &remote), MTU - VXLAN_OVERHEAD)?;
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
            server_address: TwoHosts::behind_vxlan(2),
        })
    }

    fn underlay(&self) -> Vec<Device> {
        self.hosts.wire()
    }
}
