//! The instance's resolv.conf (resolv.conf(5)).

use crate::agent::api::Prepared;
use anyhow::Context as _;
use std::fs;
use std::io;
use std::path::Path;

/// Writes the file, and gives what was in it before.
///
/// # Errors
/// When it can't be written.
pub(super) fn write(file: &Path, prepared: &Prepared) -> anyhow::Result<Option<Vec<u8>>> {
    let before = match fs::read(file) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("{} can't be read", file.display())),
    };
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("the folder {} can't be made", folder.display()))?;
    }
    // Not by renaming: the file may be mounted into a container, which keeps the inode it saw.
    fs::write(file, text(prepared)).with_context(|| format!("{} can't be written", file.display()))?;
    Ok(before)
}

/// Puts back what was in the file.
///
/// # Errors
/// When it can't be written or removed.
pub(super) fn restore(file: &Path, before: Option<Vec<u8>>) -> anyhow::Result<()> {
    let restored = match before {
        Some(bytes) => fs::write(file, bytes),
        None => fs::remove_file(file),
    };
    restored.with_context(|| format!("{} can't be put back", file.display()))
}

fn text(prepared: &Prepared) -> String {
    let servers = prepared
        .networks
        .iter()
        .take(1)
        .map(|network| format!("nameserver {}\n", network.service_ipv4));
    let mut text: String = servers.collect();
    text.push_str(&format!(
        "search {}\noptions ndots:2\n",
        prepared.search.join(" ")
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::api::PreparedNetwork;

    fn prepared() -> Prepared {
        Prepared {
            instance: "web-1".to_owned(),
            temporary_name: "tg1x1".to_owned(),
            queues: 1,
            mtu: 1390,
            vnet_header: true,
            segmentation: true,
            multi_queue: true,
            networks: vec![PreparedNetwork {
                ipv4: "172.19.1.2".parse().unwrap(),
                ipv6: "fdbc:a037:578a:77af::1:2".parse().unwrap(),
                ipv4_prefix: "172.19.0.0/16".parse().unwrap(),
                ipv6_prefix: "fdbc:a037:578a:77af::/64".parse().unwrap(),
                service_ipv4: "172.19.0.1".parse().unwrap(),
            }],
            search: vec!["shop.internal".to_owned(), "internal".to_owned()],
        }
    }

    #[test]
    fn the_file_names_the_service_address_and_what_to_search() {
        assert_eq!(
            text(&prepared()),
            "nameserver 172.19.0.1\nsearch shop.internal internal\noptions ndots:2\n"
        );
    }

    #[test]
    fn what_was_there_before_can_be_put_back() {
        let folder = std::env::temp_dir().join(format!("tidegate-resolv-{}", std::process::id()));
        let file = folder.join("deep/resolv.conf");
        let before = write(&file, &prepared()).unwrap();
        assert_eq!(before, None);
        let before = write(&file, &prepared()).unwrap();
        fs::write(&file, "changed").unwrap();
        restore(&file, before).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), text(&prepared()));
        restore(&file, None).unwrap();
        assert!(!file.exists());
        fs::remove_dir_all(folder).unwrap();
    }
}
