//! Name servers of Debian at the far end of a veth pair, with the zone in their own configuration.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use super::zone;
use crate::account::Account;
use crate::command::{start, within};
use crate::contestant::{Contestant, Ends, Reach, Task};
use crate::download;
use crate::underlay::Device;
use crate::veth::Veth;

/// Which program.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    /// What small sites run.
    Dnsmasq,
    /// What larger ones run.
    Unbound,
}

/// A container, and a name server on the other side of its wire.
pub(crate) struct Resolver {
    program: Program,
    wire: Veth,
}

impl Resolver {
    /// Not built yet.
    pub(crate) fn new(program: Program) -> Self {
        let name = match program {
            Program::Dnsmasq => "masq",
            Program::Unbound => "unb",
        };
        Self {
            program,
            wire: Veth::named(name),
        }
    }

    fn file(&self) -> Result<PathBuf> {
        Ok(download::cache()?.join(format!("{}.conf", self.name())))
    }

    /// Nothing but the zone is served: who asks for anything else is refused or told that there is no such name.
    fn configuration(&self) -> Result<String> {
        let address = self.wire.ends()?.server_address;
        let mut text = String::new();
        match self.program {
            Program::Dnsmasq => {
                writeln!(text, "no-resolv\nno-hosts\nuser=root\nbind-interfaces")?;
                writeln!(text, "listen-address={address}\nlocal=/internal/\nlocal-ttl=5")?;
                for (name, address) in zone() {
                    writeln!(text, "host-record={name},{address}")?;
                }
            }
            Program::Unbound => {
                writeln!(
                    text,
                    "server:\n  interface: {address}\n  access-control: 0.0.0.0/0 allow"
                )?;
                writeln!(
                    text,
                    "  username: \"\"\n  chroot: \"\"\n  pidfile: \"\"\n  use-syslog: no"
                )?;
                writeln!(text, "  module-config: \"iterator\"\n  num-threads: 1")?;
                writeln!(text, "  local-zone: \"internal.\" static")?;
                for (name, address) in zone() {
                    writeln!(text, "  local-data: \"{name}. 5 IN A {address}\"")?;
                }
                writeln!(text, "remote-control:\n  control-enable: no")?;
            }
        }
        Ok(text)
    }
}

impl Contestant for Resolver {
    fn name(&self) -> &'static str {
        match self.program {
            Program::Dnsmasq => "dnsmasq",
            Program::Unbound => "unbound",
        }
    }

    fn task(&self) -> Task {
        Task::Names
    }

    fn reach(&self) -> Reach {
        Reach::SameHost
    }

    fn place(&mut self) -> Result<()> {
        self.wire.place()
    }

    fn up(&mut self, account: &Account) -> Result<()> {
        self.wire.up(account)?;
        let file = self.file()?;
        fs::write(&file, self.configuration()?)?;
        let (file, inline) = (
            file.display().to_string(),
            format!("--conf-file={}", file.display()),
        );
        let words: &[&str] = match self.program {
            Program::Dnsmasq => &["dnsmasq", "--keep-in-foreground", &inline],
            Program::Unbound => &["unbound", "-d", "-c", &file],
        };
        let log = download::cache()?.join(format!("{}.log", self.name()));
        // The child is ended by the keeper, as whatever runs in the namespace is.
        start(&account.charge(&within(&self.wire.ends()?.server, words)), &log)?;
        Ok(())
    }

    fn down(&mut self) -> Result<()> {
        self.wire.down()
    }

    fn ends(&self) -> Result<Ends> {
        self.wire.ends()
    }

    fn underlay(&self) -> Vec<Device> {
        Vec::new()
    }
}
