//! The secrets of this host: read from files, made when they are missing, never told to a log.

use super::reconcile::Keys;
use crate::config::host::HostDocument;
use anyhow::Context as _;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use tidegate_stack::plan::PrivateKey;

/// Name of the foreign lane's key in the state folder.
const FOREIGN_KEY: &str = "foreign.key";

/// Where the foreign lane's private key is.
pub(crate) fn foreign_key_file(host: &HostDocument, state_dir: &Path) -> PathBuf {
    host.cluster
        .foreign_private_key_file
        .clone()
        .unwrap_or_else(|| state_dir.join(FOREIGN_KEY))
}

/// Reads the host's keys; a foreign lane's key that doesn't exist is made.
///
/// # Errors
/// When a file can't be read or made, or doesn't hold a key: which one, and why.
pub(crate) fn load(host: &HostDocument, state_dir: &Path) -> anyhow::Result<Keys> {
    let file = foreign_key_file(host, state_dir);
    if !file.exists() {
        make(&file).with_context(|| format!("the foreign lane's key can't be made at {}", file.display()))?;
        tracing::info!(file = %file.display(), "made the foreign lane's key");
    }
    let mut preshared = BTreeMap::new();
    for peer in &host.cluster.peers {
        if let Some(file) = &peer.preshared_key_file {
            preshared.insert(peer.name.clone(), read(file)?);
        }
    }
    Ok(Keys {
        foreign_lane: read(&file)?,
        preshared,
    })
}

/// What is wrong with a key file's mode: somebody else can read it. `None` when all is well.
pub(crate) fn readable_by_others(file: &Path) -> io::Result<Option<u32>> {
    let mode = fs::metadata(file)?.permissions().mode() & 0o777;
    Ok((mode & 0o077 != 0).then_some(mode))
}

fn read<K: FromStr<Err: std::error::Error + Send + Sync + 'static>>(file: &Path) -> anyhow::Result<K> {
    let text =
        fs::read_to_string(file).with_context(|| format!("the key file {} can't be read", file.display()))?;
    if let Some(mode) = readable_by_others(file)? {
        tracing::warn!(
            file = %file.display(), mode = format_args!("{mode:04o}"),
            "others can read this key: chmod 600 it, and make a new one if they did"
        );
    }
    text.trim()
        .parse()
        .with_context(|| format!("the key file {} holds no key", file.display()))
}

fn make(file: &Path) -> io::Result<()> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let mut text = PrivateKey::from_bytes(bytes).to_base64();
    text.push('\n');
    // Beside, then renamed: a power cut in between must not leave a file that holds no key and is never made again.
    let mut beside = file.as_os_str().to_owned();
    beside.push(".new");
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut made = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)?;
    made.write_all(text.as_bytes())?;
    made.sync_all()?;
    fs::rename(&beside, file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::host;

    #[test]
    fn a_missing_key_is_made_once_for_nobody_else_to_read() {
        let folder = std::env::temp_dir().join(format!("tidegate-keys-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let document = host::parse(Path::new("host.yaml"), "host-id: edge-1\nsite: s\nordinal: 1\n").unwrap();
        // What a power cut may have left.
        fs::write(folder.join("foreign.key.new"), "").unwrap();
        let first = load(&document, &folder).unwrap().foreign_lane;
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        let file = foreign_key_file(&document, &folder);
        assert_eq!(readable_by_others(&file).unwrap(), None);
        let again = load(&document, &folder).unwrap().foreign_lane;
        assert!(first == again, "the key stays");
        fs::write(&file, "not a key").unwrap();
        let error = load(&document, &folder).err().unwrap();
        assert!(
            format!("{error:#}").contains("foreign.key holds no key"),
            "{error:#}"
        );
        assert!(
            !format!("{error:#}").contains("not a key"),
            "what the file holds is not told"
        );
        fs::remove_dir_all(folder).unwrap();
    }
}
