//! WireGuard in user space, by itself and with the kernel's VXLAN in it.
//!
//! By itself it moves packets between two containers and nothing else: its device is put straight into the container,
//! which is the least that it can cost. With VXLAN it is what one would compose for isolated networks: container —
//! veth — bridge — vxlan — WireGuard.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::account::Account;
use crate::command::{ip, start, within};
use crate::contestant::{Contestant, Ends, Reach};
use crate::download;
use crate::underlay::{Device, MTU, TwoHosts, VXLAN_OVERHEAD};

/// Inner MTU: what WireGuard over IPv4 leaves of the wire's.
const WIREGUARD_MTU: u32 = MTU - 60;
/// What VXLAN leaves of that.
const VXLAN_MTU: u32 = WIREGUARD_MTU - VXLAN_OVERHEAD;
const PORT: u16 = 51820;

/// Which program.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    /// The newest wireguard-go that Debian has.
    WireguardGo,
    /// Mullvad's, the fork of boringtun.
    Gotatun,
    /// Cloudflare's own program around boringtun.
    Boringtun,
}

/// Two hosts joined by it.
pub(crate) struct UserspaceWireguard {
    program: Program,
    vxlan: bool,
    hosts: TwoHosts,
}

impl UserspaceWireguard {
    /// Container to container through the tunnel, and nothing else.
    pub(crate) fn new(program: Program) -> Self {
        let name = match program {
            Program::WireguardGo => "wgo",
            Program::Gotatun => "got",
            Program::Boringtun => "bor",
        };
        Self {
            program,
            vxlan: false,
            hosts: TwoHosts::named(name),
        }
    }

    /// Container to container through kernel VXLAN in the tunnel.
    pub(crate) fn under_vxlan(program: Program) -> Self {
        let name = match program {
            Program::WireguardGo => "vxgo",
            Program::Gotatun => "vxgot",
            Program::Boringtun => "vxbor",
        };
        Self {
            program,
            vxlan: true,
            hosts: TwoHosts::named(name),
        }
    }

    /// The tunnel's device on host `number`; its control socket has the same name and is shared by all namespaces.
    fn device(&self, number: u8) -> String {
        self.hosts.host(number)
    }

    /// The program's file, fetched if it isn't there yet.
    fn program(&self) -> Result<PathBuf> {
        match self.program {
            Program::WireguardGo => download::wireguard_go(),
            Program::Gotatun => download::gotatun(),
            Program::Boringtun => download::boringtun(),
        }
    }

    fn start(&self, number: u8, account: &Account) -> Result<()> {
        let (host, device) = (self.hosts.host(number), self.device(number));
        let options: &[&str] = match self.program {
            Program::WireguardGo => &["-f"],
            Program::Gotatun | Program::Boringtun => {
                &["--foreground", "--disable-drop-privileges", "-v", "error"]
            }
        };
        let program = self.program()?;
        let program = program.to_string_lossy();
        let words: Vec<&str> = [program.as_ref()]
            .into_iter()
            .chain(options.iter().copied())
            .chain([device.as_str()])
            .collect();
        let log = download::cache()?.join(format!("{device}.log"));
        // The child is ended by the keeper, as whatever runs in the host's namespace is.
        start(&account.charge(&within(&host, &words)), &log)?;
        wait_for(&socket_of(&device), &log)
    }

    fn configure(&self, number: u8, own: &StaticSecret, other: &StaticSecret) -> Result<()> {
        let mut request = String::from("set=1\n");
        writeln!(request, "private_key={}", hex(&own.to_bytes()))?;
        writeln!(request, "listen_port={PORT}")?;
        writeln!(request, "public_key={}", hex(PublicKey::from(other).as_bytes()))?;
        writeln!(request, "endpoint={}:{PORT}", TwoHosts::address(3 - number))?;
        writeln!(request, "allowed_ip=10.0.0.{}/32", 3 - number)?;
        writeln!(request)?;

        let path = socket_of(&self.device(number));
        let mut stream =
            UnixStream::connect(&path).with_context(|| format!("connecting to {}", path.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        let mut chunk = [0; 256];
        while !answer.ends_with(b"\n\n") {
            let read = stream.read(&mut chunk).context("reading the answer to set=1")?;
            ensure!(read > 0, "{} closed without an answer", path.display());
            answer.extend(chunk.iter().take(read));
        }
        let answer = String::from_utf8_lossy(&answer);
        ensure!(
            answer.trim() == "errno=0",
            "{} refused its configuration: {}",
            path.display(),
            answer.trim()
        );
        Ok(())
    }

    /// The tunnel's device goes into the container itself; the tunnel's socket stays with the host.
    fn move_into_container(&self, number: u8) -> Result<()> {
        let (host, device, container) = (
            self.hosts.host(number),
            self.device(number),
            self.hosts.container(number),
        );
        // The daemon learns the MTU while it still sees its device.
        ip(&format!("-n {host} link set {device} mtu {WIREGUARD_MTU} up"))?;
        ip(&format!("-n {host} link set {device} netns {container}"))?;
        ip(&format!(
            "-n {container} address add 10.0.0.{number}/24 dev {device}"
        ))?;
        ip(&format!(
            "-n {container} link set {device} mtu {WIREGUARD_MTU} up"
        ))?;
        Ok(())
    }

    /// container — veth — bridge — vxlan — tunnel, all but the container in the host.
    fn put_vxlan_on_top(&self, number: u8) -> Result<()> {
        let (host, device, other) = (self.hosts.host(number), self.device(number), 3 - number);
        ip(&format!("-n {host} address add 10.0.0.{number}/24 dev {device}"))?;
        ip(&format!("-n {host} link set {device} mtu {WIREGUARD_MTU} up"))?;
        let (local, remote) = (format!("10.0.0.{number}"), format!("10.0.0.{other}"));
        self.hosts
            .plug_into_vxlan(number, (&device, &local, &remote), VXLAN_MTU)
    }
}

impl Contestant for UserspaceWireguard {
    fn name(&self) -> &'static str {
        match (self.program, self.vxlan) {
            (Program::WireguardGo, false) => "wireguard-go",
            (Program::WireguardGo, true) => "vxlan+wireguard-go",
            (Program::Gotatun, false) => "gotatun",
            (Program::Gotatun, true) => "vxlan+gotatun",
            (Program::Boringtun, false) => "boringtun",
            (Program::Boringtun, true) => "vxlan+boringtun",
        }
    }

    fn reach(&self) -> Reach {
        Reach::CrossHost
    }

    fn place(&mut self) -> Result<()> {
        self.program()?;
        self.hosts.build()
    }

    fn up(&mut self, account: &Account) -> Result<()> {
        let keys = [fresh_key()?, fresh_key()?];
        let [one, two] = &keys;
        for (number, own, other) in [(1, one, two), (2, two, one)] {
            self.start(number, account)?;
            self.configure(number, own, other)?;
            if self.vxlan {
                self.put_vxlan_on_top(number)?;
            } else {
                self.move_into_container(number)?;
            }
        }
        Ok(())
    }

    fn down(&mut self) -> Result<()> {
        self.hosts.remove()
    }

    fn ends(&self) -> Result<Ends> {
        let server_address = if self.vxlan {
            TwoHosts::behind_vxlan(2)
        } else {
            [10, 0, 0, 2].into()
        };
        Ok(Ends {
            client: self.hosts.container(1),
            server: self.hosts.container(2),
            server_address,
        })
    }

    fn underlay(&self) -> Vec<Device> {
        self.hosts.wire()
    }
}

fn socket_of(device: &str) -> PathBuf {
    Path::new("/var/run/wireguard").join(format!("{device}.sock"))
}

fn wait_for(socket: &Path, log: &Path) -> Result<()> {
    let began = Instant::now();
    while UnixStream::connect(socket).is_err() {
        if began.elapsed() > Duration::from_secs(5) {
            let said = std::fs::read_to_string(log).unwrap_or_default();
            bail!("{} doesn't answer; it said: {}", socket.display(), said.trim());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn fresh_key() -> Result<StaticSecret> {
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .context("drawing a key from /dev/urandom")?;
    Ok(StaticSecret::from(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
