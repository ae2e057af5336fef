//! tidegate itself, built by its own lab: the real agent and the real datapath on both hosts.

use std::env;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::account::Account;
use crate::command::{ip, run};
use crate::contestant::{Contestant, Ends, Reach};
use crate::download;
use crate::keeper::PREFIX;
use crate::names::OurNames;
use crate::underlay::{Device, MTU};

/// Every lab that [`Ours`] can be: what there is of them is taken down.
const VARIANTS: [Ours; 3] = [
    Ours::new(Reach::CrossHost, 1),
    Ours::new(Reach::CrossHost, 2),
    Ours::new(Reach::SameHost, 1),
];

/// Two instances of one application, on two hosts or on one.
pub(crate) struct Ours {
    reach: Reach,
    /// Of every host's datapath.
    shards: u8,
}

impl Ours {
    /// Not built yet.
    pub(crate) const fn new(reach: Reach, shards: u8) -> Self {
        Self { reach, shards }
    }

    fn lab(&self) -> String {
        let reach = match self.reach {
            Reach::CrossHost => "two",
            Reach::SameHost => "one",
        };
        format!("{PREFIX}-{reach}{}", self.shards)
    }

    fn file(&self) -> Result<PathBuf> {
        Ok(download::cache()?.join(format!("{}.yaml", self.lab())))
    }

    /// The topology as the lab reads it: JSON is YAML too.
    fn topology(&self, application: &str) -> String {
        let receiver = match self.reach {
            Reach::CrossHost => "h2",
            Reach::SameHost => "h1",
        };
        let document = serde_json::json!({ "datapath": { "shards": self.shards } });
        serde_json::json!({
            "lab": self.lab(),
            "segments": { "wire": { "ipv4": "192.0.2.0/24", "mtu": MTU } },
            "hosts": {
                "h1": {
                    "ordinal": 1,
                    "interfaces": [{ "segment": "wire", "addresses": ["192.0.2.11"] }],
                    "document": document,
                },
                "h2": {
                    "ordinal": 2,
                    "interfaces": [{ "segment": "wire", "addresses": ["192.0.2.12"] }],
                    "document": document,
                },
            },
            "applications": [application],
            "instances": [
                { "application": "load", "service": "sender", "host": "h1" },
                { "application": "load", "service": "receiver", "host": receiver },
            ],
        })
        .to_string()
    }
}

impl Contestant for Ours {
    fn name(&self) -> &'static str {
        match (self.reach, self.shards) {
            (Reach::CrossHost, 1) => "tidegate",
            (Reach::CrossHost, _) => "tidegate-2",
            (Reach::SameHost, _) => "tidegate-one-host",
        }
    }

    fn reach(&self) -> Reach {
        self.reach
    }

    fn place(&mut self) -> Result<()> {
        let folder = download::cache()?;
        fs::write(
            folder.join("load.yaml"),
            "name: load\nservices: [ { name: sender }, { name: receiver } ]\n",
        )?;
        fs::write(self.file()?, self.topology("load.yaml"))?;
        Ok(())
    }

    fn up(&mut self, account: &Account) -> Result<()> {
        let (binary, topology) = (
            binary()?.display().to_string(),
            self.file()?.display().to_string(),
        );
        run(&account.charge(&[&binary, "lab", "up", &topology]))?;
        Ok(())
    }

    fn down(&mut self) -> Result<()> {
        remove(&self.lab())
    }

    fn ends(&self) -> Result<Ends> {
        let (client, server) = (
            format!("{}-load-sender-1", self.lab()),
            format!("{}-load-receiver-1", self.lab()),
        );
        let listing: Value =
            serde_json::from_str(&ip(&format!("-n {server} -4 -json address show dev eth0"))?)?;
        let address = listing.pointer("/0/addr_info/0/local").and_then(Value::as_str);
        let server_address: IpAddr = address
            .with_context(|| format!("eth0 of {server} has no address"))?
            .parse()?;
        Ok(Ends {
            client,
            server,
            server_address,
        })
    }

    fn underlay(&self) -> Vec<Device> {
        ["h1", "h2"]
            .map(|host| Device {
                namespace: format!("{}-{host}", self.lab()),
                name: "eth0".to_owned(),
            })
            .to_vec()
    }
}

/// Takes down whichever of the labs there are.
pub(crate) fn down() -> Result<()> {
    for variant in &VARIANTS {
        remove(&variant.lab())?;
    }
    remove(&OurNames::lab())
}

/// Takes a lab down, if it is there.
pub(crate) fn remove(lab: &str) -> Result<()> {
    if Path::new("/run/tidegate-lab").join(lab).exists() {
        let binary = binary()?.display().to_string();
        run(&[binary.as_str(), "lab", "down", lab])?;
    }
    Ok(())
}

/// The binary to measure: `TIDEGATE_BIN`, or the one beside this program.
pub(crate) fn binary() -> Result<PathBuf> {
    let path = match env::var_os("TIDEGATE_BIN") {
        Some(path) => PathBuf::from(path),
        None => env::current_exe()
            .context("finding this program")?
            .with_file_name("tidegate"),
    };
    if !path.exists() {
        bail!(
            "{} isn't there: cargo build --release -p tidegate, or set TIDEGATE_BIN",
            path.display()
        );
    }
    Ok(path)
}
