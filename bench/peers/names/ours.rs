//! tidegate's names: one host, asked by an instance at the service address of its network.

use std::fs;

use anyhow::Result;

use super::{SERVICES, service};
use crate::account::Account;
use crate::command::run;
use crate::contestant::{Contestant, Ends, Reach, Task};
use crate::download;
use crate::keeper::PREFIX;
use crate::ours;
use crate::underlay::{Device, MTU};

/// The service address of every application's own network.
const SERVICE_ADDRESS: [u8; 4] = [172, 19, 0, 1];

/// One host with all the instances that the zone is of.
pub(crate) struct OurNames;

impl OurNames {
    /// The lab's name.
    pub(crate) fn lab() -> String {
        format!("{PREFIX}-names")
    }

    /// The topology as the lab reads it: JSON is YAML too.
    fn topology(application: &str) -> String {
        let instances: Vec<_> = (1..=SERVICES)
            .map(|number| serde_json::json!({ "application": "zone", "service": service(number), "host": "h1" }))
            .collect();
        serde_json::json!({
            "lab": Self::lab(),
            "segments": { "wire": { "ipv4": "192.0.2.0/24", "mtu": MTU } },
            "hosts": {
                "h1": {
                    "ordinal": 1,
                    "interfaces": [{ "segment": "wire", "addresses": ["192.0.2.11"] }],
                    "document": { "datapath": { "shards": 1 } },
                },
            },
            "applications": [application],
            "instances": instances,
        })
        .to_string()
    }

    fn application() -> String {
        let services: Vec<_> = (1..=SERVICES)
            .map(|number| serde_json::json!({ "name": service(number) }))
            .collect();
        serde_json::json!({ "name": "zone", "services": services }).to_string()
    }
}

impl Contestant for OurNames {
    fn name(&self) -> &'static str {
        "tidegate-names"
    }

    fn task(&self) -> Task {
        Task::Names
    }

    fn reach(&self) -> Reach {
        Reach::SameHost
    }

    fn place(&mut self) -> Result<()> {
        let folder = download::cache()?;
        fs::write(folder.join("zone.yaml"), Self::application())?;
        fs::write(folder.join("names.yaml"), Self::topology("zone.yaml"))?;
        Ok(())
    }

    fn up(&mut self, account: &Account) -> Result<()> {
        let topology = download::cache()?.join("names.yaml").display().to_string();
        let binary = ours::binary()?.display().to_string();
        run(&account.charge(&[&binary, "lab", "up", &topology]))?;
        Ok(())
    }

    fn down(&mut self) -> Result<()> {
        ours::remove(&Self::lab())
    }

    fn ends(&self) -> Result<Ends> {
        Ok(Ends {
            client: format!("{}-zone-{}-1", Self::lab(), service(1)),
            server: format!("{}-h1", Self::lab()),
            server_address: SERVICE_ADDRESS.into(),
        })
    }

    fn underlay(&self) -> Vec<Device> {
        Vec::new()
    }
}
