//! The journal: the last good inputs, so that a restarted agent makes the same plan without asking anybody.
//!
//! One JSON file, replaced whole: written beside, synced, renamed. A file that can't be understood is set aside under
//! another name with an error in the log, and the agent starts with an empty one.

use super::overlap::Renumbered;
use super::reconcile::{Allocations, Attachment, KnownHosts, PeerNumbers};
use super::underlay::Tuned;
use crate::config::application::Source;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use tidegate_stack::plan::PortId;

/// The form of the file. One of another version is set aside, too.
const VERSION: u32 = 1;
const FILE_NAME: &str = "journal.json";

/// What a restarted agent has to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Record {
    /// The application documents in force.
    pub(crate) applications: Vec<Source>,
    /// Text of the documents of the boot folder when they were last applied, by application: only a changed one is
    /// applied again, so that a restart doesn't take back what was applied since.
    pub(crate) boot: BTreeMap<String, String>,
    /// The instances attached here.
    pub(crate) attachments: Vec<Attachment>,
    /// Indices of instances.
    pub(crate) allocations: Allocations,
    /// Numbers of peers and of hosts.
    pub(crate) peers: PeerNumbers,
    /// The last port number given.
    pub(crate) last_port: u32,
    /// What was changed on the underlay device, and has to be put back.
    pub(crate) tuned: Option<Tuned>,
    /// Starts of an agent, this one among them.
    #[serde(default)]
    pub(crate) boots: u64,
    /// The highest number that a start of the datapath was given.
    #[serde(default)]
    pub(crate) last_generation: u64,
    /// The other hosts of the site, as their last records told.
    #[serde(default)]
    pub(crate) hosts: KnownHosts,
    /// The networks' prefixes in place of those of the host document, when they were moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) renumbered: Option<Renumbered>,
    /// The last time that this host knew, in seconds of the Unix epoch; 0 for none.
    #[serde(default)]
    pub(crate) last_time: u64,
}

impl Record {
    /// A port number that was never given.
    pub(crate) fn next_port(&mut self) -> PortId {
        self.last_port += 1;
        PortId(self.last_port)
    }

    /// Remembers that a start of the datapath has this number.
    pub(crate) fn note_generation(&mut self, generation: u64) {
        self.last_generation = self.last_generation.max(generation);
    }
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    record: T,
}

/// The journal's file.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    /// Where a file that couldn't be understood was put when the journal was opened.
    set_aside: Option<PathBuf>,
}

impl Journal {
    /// Opens the journal of a state folder, and reads what is in it.
    ///
    /// # Errors
    /// When the file is there but can't be read or set aside.
    pub(crate) fn open(state_dir: &Path) -> io::Result<(Self, Record)> {
        let mut journal = Self {
            path: state_dir.join(FILE_NAME),
            set_aside: None,
        };
        let bytes = match fs::read(&journal.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((journal, Record::default())),
            Err(error) => return Err(error),
        };
        match parse(&bytes) {
            Ok(record) => Ok((journal, record)),
            Err(reason) => {
                let aside = journal.set_aside()?;
                tracing::error!(
                    journal = %journal.path.display(), kept_as = %aside.display(), reason,
                    "the journal can't be understood and was set aside: applications must be applied and instances \
                     attached again"
                );
                journal.set_aside = Some(aside);
                Ok((journal, Record::default()))
            }
        }
    }

    /// Replaces what is in the journal.
    ///
    /// # Errors
    /// When it can't be written; what was in it is still there then.
    pub(crate) fn save(&self, record: &Record) -> io::Result<()> {
        let bytes = serde_json::to_vec(&Versioned {
            version: VERSION,
            record,
        })?;
        let temporary = self.path.with_extension("json.new");
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        // The new name is only safe from a power cut when its folder is.
        self.path
            .parent()
            .map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }

    /// Where the journal is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What was lost when the journal was opened, in words for `status`.
    pub(crate) fn loss(&self) -> Option<String> {
        self.set_aside.as_ref().map(|aside| {
            format!(
                "the journal couldn't be understood and is kept as {}: apply the applications and attach the instances \
                 again",
                aside.display()
            )
        })
    }

    fn set_aside(&self) -> io::Result<PathBuf> {
        let mut number = 1;
        loop {
            let aside = self.path.with_extension(format!("json.damaged-{number}"));
            if !aside.exists() {
                fs::rename(&self.path, &aside)?;
                return Ok(aside);
            }
            number += 1;
        }
    }
}

fn parse(bytes: &[u8]) -> Result<Record, String> {
    let versioned: Versioned<serde_json::Value> =
        serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if versioned.version != VERSION {
        return Err(format!(
            "it has version {}, and this program writes {VERSION}",
            versioned.version
        ));
    }
    serde_json::from_value(versioned.record).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::reconcile::{ApplicationKey, NetworkKey};

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("tidegate-journal-{}-{name}", std::process::id()));
        drop(fs::remove_dir_all(&folder));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn record() -> Record {
        let mut record = Record {
            applications: vec![Source {
                file: "shop.yaml".to_owned(),
                first_line: 3,
                text: "name: shop\n".to_owned(),
            }],
            ..Record::default()
        };
        let shop = ApplicationKey {
            tenant: "default".to_owned(),
            name: "shop".to_owned(),
        };
        record
            .allocations
            .allocate(&NetworkKey::own(&shop), "web-1", 254)
            .unwrap();
        record.next_port();
        record
    }

    #[test]
    fn what_was_saved_is_read_again() {
        let folder = scratch("saved");
        let (journal, empty) = Journal::open(&folder).unwrap();
        assert_eq!(empty, Record::default());
        journal.save(&record()).unwrap();
        journal.save(&record()).unwrap();
        assert_eq!(Journal::open(&folder).unwrap().1, record());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_journal_that_kept_documents_as_text_alone_is_still_read() {
        let folder = scratch("former");
        let (journal, _) = Journal::open(&folder).unwrap();
        journal.save(&record()).unwrap();
        let written = fs::read_to_string(journal.path()).unwrap();
        let mut former: serde_json::Value = serde_json::from_str(&written).unwrap();
        *former.pointer_mut("/record/applications").unwrap() = serde_json::json!(["name: shop\n"]);
        fs::write(journal.path(), former.to_string()).unwrap();
        let (opened, read) = Journal::open(&folder).unwrap();
        assert_eq!(opened.loss(), None);
        assert_eq!(read.applications[0].text, "name: shop\n");
        assert_eq!(read.allocations, record().allocations);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_damaged_journal_is_set_aside_every_time() {
        let folder = scratch("damaged");
        let (journal, _) = Journal::open(&folder).unwrap();
        journal.save(&record()).unwrap();
        let whole = fs::read(journal.path()).unwrap();
        let damages: [&[u8]; 5] = [
            b"",
            b"\0\0\0\0",
            whole.get(..whole.len() / 2).unwrap(),
            br#"{"version":1,"record":[]}"#,
            br#"{"version":9,"record":{}}"#,
        ];
        for (number, damage) in damages.into_iter().enumerate() {
            fs::write(journal.path(), damage).unwrap();
            let (opened, record) = Journal::open(&folder).unwrap();
            assert_eq!(record, Record::default());
            assert!(!journal.path().exists());
            let aside = folder.join(format!("journal.json.damaged-{}", number + 1));
            assert!(opened.loss().unwrap().contains(aside.to_str().unwrap()));
            assert_eq!(fs::read(aside).unwrap(), damage);
        }
        fs::remove_dir_all(folder).unwrap();
    }
}
