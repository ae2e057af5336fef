//! The machine's own name servers, as resolv.conf(5) names them, followed while it changes.
//!
//! The file is looked at by its metadata, and read when those changed: it is replaced by renaming as well as written in
//! place, and often a link into another folder. A file that is broken or gone changes nothing but what `status` tells.

use crate::config::host::{DNS_PORT, MAX_UPSTREAMS};
use std::fs;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Bytes of the file that are read.
const MOST_BYTES: u64 = 64 << 10;

/// What tells one state of the file from another: device, inode, size and time.
type Mark = (u64, u64, u64, i64, i64);

/// The file, and what it said.
#[derive(Debug)]
pub(super) struct ResolvConf {
    path: PathBuf,
    mark: Option<Mark>,
    servers: Vec<SocketAddr>,
    problem: Option<String>,
}

impl ResolvConf {
    /// A file that wasn't looked at yet.
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            mark: None,
            servers: Vec::new(),
            problem: None,
        }
    }

    /// Looks at it; gives the name servers when they are others than before.
    pub(super) fn look(&mut self) -> Option<&[SocketAddr]> {
        let Parsed { servers, left_out } = match self.read_changed() {
            Ok(text) => parse(&text?, index_of_device),
            Err(error) => {
                // Whatever is there next is read.
                self.mark = None;
                self.tell(&format!("can't be read: {error}"));
                return None;
            }
        };
        if servers.is_empty() {
            self.tell("names no name server that can be asked");
            return None;
        }
        self.problem = (left_out > 0).then(|| {
            format!(
                "{} names more than {MAX_UPSTREAMS} name servers: the first {MAX_UPSTREAMS} are asked, {left_out} aren't",
                self.path.display()
            )
        });
        if servers == self.servers {
            return None;
        }
        tracing::info!(file = %self.path.display(), ?servers, "the name servers to ask");
        self.servers = servers;
        Some(&self.servers)
    }

    /// What is wrong with it.
    pub(super) fn problem(&self) -> Option<&String> {
        self.problem.as_ref()
    }

    /// The text, unless it is the one that was read before.
    fn read_changed(&mut self) -> io::Result<Option<String>> {
        let metadata = fs::metadata(&self.path)?;
        let mark = (
            metadata.dev(),
            metadata.ino(),
            metadata.size(),
            metadata.mtime(),
            metadata.mtime_nsec(),
        );
        if self.mark == Some(mark) {
            return Ok(None);
        }
        // A pipe without a writer would hold the agent up.
        if !metadata.is_file() {
            return Err(io::Error::other("it isn't a file"));
        }
        let mut bytes = Vec::new();
        fs::File::open(&self.path)?
            .take(MOST_BYTES)
            .read_to_end(&mut bytes)?;
        self.mark = Some(mark);
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn tell(&mut self, fault: &str) {
        let instead = if self.servers.is_empty() {
            "names of the world outside can't be asked for; name the servers there, or set `dns.upstream`"
        } else {
            "the name servers that it named before are asked"
        };
        let problem = format!("{} {fault}: {instead}", self.path.display());
        if self.problem.as_ref() != Some(&problem) {
            tracing::warn!("{problem}");
            self.problem = Some(problem);
        }
    }
}

/// What stands in the file.
#[derive(Debug, PartialEq, Eq)]
struct Parsed {
    /// The name servers, each once, at most [`MAX_UPSTREAMS`].
    servers: Vec<SocketAddr>,
    /// How many more there are.
    left_out: usize,
}

/// A line that isn't understood says nothing, as with other resolvers.
fn parse(text: &str, index_of: impl Fn(&str) -> Option<u32>) -> Parsed {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let server = words.next().and_then(|word| server(word, &index_of));
        if let Some(server) = server.filter(|server| !servers.contains(server)) {
            servers.push(server);
        }
    }
    let left_out = servers.len().saturating_sub(MAX_UPSTREAMS);
    servers.truncate(MAX_UPSTREAMS);
    Parsed { servers, left_out }
}

fn server(word: &str, index_of: impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    let server = match word.split_once('%') {
        // Routers tell of themselves by link-local addresses (RFC 8106 §5.1), which need the device (RFC 4007 §11).
        Some((address, device)) => {
            let address: Ipv6Addr = address.parse().ok()?;
            let scope = device.parse().ok().or_else(|| index_of(device))?;
            SocketAddr::V6(SocketAddrV6::new(address, DNS_PORT, 0, scope))
        }
        None => SocketAddr::new(word.parse::<IpAddr>().ok()?, DNS_PORT),
    };
    let address = server.ip();
    (!address.is_unspecified() && !address.is_multicast()).then_some(server)
}

fn index_of_device(device: &str) -> Option<u32> {
    if device.contains('/') {
        return None;
    }
    let file = Path::new("/sys/class/net").join(device).join("ifindex");
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_as_other_resolvers_read_them() {
        let text = "# a comment\n; another\nsearch example\nnameserver 192.0.2.1\n  nameserver\t192.0.2.2 # first\n\
                    nameserver 2001:db8::1\nnameserver fe80::1%eth0\nnameserver fe80::1%eth9\nnameserver fe80::2%3\n\
                    nameserver\nnameserver dns.example\nnameserver 192.0.2.1\nnameserver 0.0.0.0\n\
                    #nameserver 192.0.2.9\noptions edns0\n";
        let parsed = parse(text, |device| (device == "eth0").then_some(7));
        let servers: Vec<_> = parsed.servers.iter().map(ToString::to_string).collect();
        let expected = [
            "192.0.2.1:53",
            "192.0.2.2:53",
            "[2001:db8::1]:53",
            "[fe80::1%7]:53",
            "[fe80::2%3]:53",
        ];
        assert_eq!(servers, expected);
    }

    #[test]
    fn more_than_can_be_asked_are_counted() {
        let text: String = (1..=11)
            .map(|last| format!("nameserver 192.0.2.{last}\n"))
            .collect();
        let parsed = parse(&text, |_| None);
        assert_eq!((parsed.servers.len(), parsed.left_out), (MAX_UPSTREAMS, 3));
    }

    #[test]
    fn a_file_is_followed_and_a_broken_one_changes_nothing() {
        let folder = std::env::temp_dir().join(format!("tidegate-resolv-conf-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("resolv.conf");
        let mut file = ResolvConf::new(path.clone());
        let problem = |file: &ResolvConf| file.problem().cloned().unwrap_or_default();
        let servers = |addresses: &[&str]| -> Vec<SocketAddr> {
            let parsed = addresses
                .iter()
                .map(|address| format!("{address}:53").parse().unwrap());
            parsed.collect()
        };
        assert_eq!(file.look(), None);
        assert!(problem(&file).contains("can't be asked for"), "{file:?}");

        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(file.look(), Some(servers(&["192.0.2.1"]).as_slice()));
        assert_eq!(file.look(), None);
        assert_eq!(problem(&file), "");

        // Another file of the same size.
        fs::write(folder.join("new"), "nameserver 192.0.2.2\n").unwrap();
        fs::rename(folder.join("new"), &path).unwrap();
        assert_eq!(file.look(), Some(servers(&["192.0.2.2"]).as_slice()));

        fs::write(&path, "nameserver nonsense\n").unwrap();
        assert_eq!(file.look(), None);
        assert!(problem(&file).ends_with("named before are asked"), "{file:?}");
        fs::remove_file(&path).unwrap();
        assert_eq!(file.look(), None);
        assert!(problem(&file).contains("No such file"), "{file:?}");

        fs::write(&path, "nameserver 192.0.2.2\nnameserver 192.0.2.3\n").unwrap();
        assert_eq!(file.look(), Some(servers(&["192.0.2.2", "192.0.2.3"]).as_slice()));
        assert_eq!(problem(&file), "");
        fs::remove_dir_all(&folder).unwrap();
    }
}
