//! What a lab could leave behind: namespaces, devices, processes, files.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::running::{command, succeed};

/// Everything on the machine that belongs to one lab, or could.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces(BTreeSet<String>);

impl Traces {
    /// What there is now.
    ///
    /// # Errors
    /// When the machine can't be looked at.
    pub fn of(lab: &str) -> Result<Self> {
        let mut found = BTreeSet::new();
        let namespaces = succeed(command(["ip", "netns", "list"])?)?;
        for name in namespaces
            .lines()
            .filter_map(|line| line.split_whitespace().next())
        {
            if name.starts_with(&format!("{lab}-")) {
                found.insert(format!("namespace {name}"));
            }
        }
        // The machine's own devices don't say whose they are.
        for entry in list("/sys/class/net") {
            found.insert(format!("device {entry}"));
        }
        for entry in list("/etc/netns")
            .into_iter()
            .filter(|name| name.starts_with(&format!("{lab}-")))
        {
            found.insert(format!("folder /etc/netns/{entry}"));
        }
        for entry in ["/run/tidegate-lab", "/run/tidegate-lab/.failed"] {
            if Path::new(entry).join(lab).exists() {
                found.insert(format!("folder {entry}/{lab}"));
            }
        }
        for pid in processes_of(lab) {
            found.insert(format!("process {pid}"));
        }
        Ok(Self(found))
    }

    /// Waits until there is no more than this, again.
    ///
    /// # Errors
    /// What is left, when it doesn't go within five seconds (the kernel takes its time over namespaces).
    pub fn expect_back(&self, lab: &str) -> Result<()> {
        let mut left = Vec::new();
        for _ in 0..50 {
            left = Self::of(lab)?.0.difference(&self.0).cloned().collect();
            if left.is_empty() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("lab {lab} left behind: {}", left.join(", "))
    }
}

/// The processes whose command line or environment names the lab's folder.
fn processes_of(lab: &str) -> Vec<u32> {
    let folder = format!("/run/tidegate-lab/{lab}/");
    let names_folder = |file: String| {
        fs::read(file).is_ok_and(|bytes| {
            bytes
                .windows(folder.len())
                .any(|window| window == folder.as_bytes())
        })
    };
    list("/proc")
        .iter()
        .filter_map(|name| name.parse().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| {
            names_folder(format!("/proc/{pid}/cmdline")) || names_folder(format!("/proc/{pid}/environ"))
        })
        .collect()
}

fn list(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
