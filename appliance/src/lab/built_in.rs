//! The topology that needs no file: two hosts and two applications, carried in the binary and written out while a lab
//! is built from it.

use super::{Error, WhileDoing as _, state};
use std::fs;
use std::path::{Path, PathBuf};

/// The lab that it builds.
pub(crate) const LAB: &str = "tg";

const TOPOLOGY: &str = "topologies/two-hosts.yaml";

/// Files by their path, which they name each other by.
const FILES: [(&str, &str); 3] = [
    (
        TOPOLOGY,
        include_str!("../../../fixtures/topologies/two-hosts.yaml"),
    ),
    (
        "applications/shop.yaml",
        include_str!("../../../fixtures/applications/shop.yaml"),
    ),
    (
        "applications/historian.yaml",
        include_str!("../../../fixtures/applications/historian.yaml"),
    ),
];

/// The files of the built-in topology, until this is dropped.
pub(crate) struct BuiltIn {
    folder: PathBuf,
}

impl BuiltIn {
    /// Writes them to a folder of this process.
    ///
    /// # Errors
    /// What the file system said.
    pub(crate) fn write() -> Result<Self, Error> {
        let folder = state::built_in_folder(std::process::id());
        let built_in = Self { folder };
        for (path, text) in FILES {
            let path = built_in.folder.join(path);
            let write = || {
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent)?;
                }
                fs::write(&path, text)
            };
            write().while_doing(|| format!("writing {}", path.display()))?;
        }
        Ok(built_in)
    }

    /// The topology's file.
    pub(crate) fn topology(&self) -> PathBuf {
        self.folder.join(TOPOLOGY)
    }

    /// The folder they are in.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for BuiltIn {
    fn drop(&mut self) {
        match fs::remove_dir_all(self.folder()) {
            // What is left of a process that couldn't is swept by the next `lab down`.
            Ok(()) | Err(_) => state::remove_root_if_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::topology;

    #[test]
    fn built_in_topology_is_legal_and_needs_no_file_that_is_not_carried() {
        let folder = std::env::temp_dir().join(format!("tgx-lab-built-in-{}", std::process::id()));
        for (path, text) in FILES {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let topology = topology::read(&folder.join(TOPOLOGY));
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(topology.unwrap().lab, LAB);
    }
}
