//! A lab of one story.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::running::{Running, Stopped, attempt, command, succeed};
use crate::traces::Traces;
use crate::{Capture, Dialogue, wait_until};

/// Which of a host's two processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// The one that decides.
    Agent,
    /// The one that carries packets.
    Datapath,
}

impl Process {
    fn pid_in_status(self) -> &'static str {
        match self {
            Self::Agent => "/agent/pid",
            Self::Datapath => "/datapath/process/pid",
        }
    }
}

/// A lab that is up. It goes down with [`Lab::close`], or when it is dropped.
#[derive(Debug)]
pub struct Lab {
    name: String,
    binary: PathBuf,
    folder: PathBuf,
    before: Traces,
    is_up: bool,
    outputs: AtomicUsize,
}

/// The binary under test, when there is one and it can be tested; says so when not.
#[expect(clippy::print_stderr, reason = "a skipped story says so where a person looks")]
pub fn binary() -> Option<PathBuf> {
    let Some(path) = env::var_os("TIDEGATE_BIN").map(PathBuf::from) else {
        eprintln!("skipped: TIDEGATE_BIN isn't set; .ci/e2e.sh builds the binary and sets it");
        return None;
    };
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: network namespaces need root");
        return None;
    }
    Some(path)
}

impl Lab {
    /// Builds a lab under a name of its own from a topology (without its `lab:` line). `files` are written beside it,
    /// so that it can name application documents.
    ///
    /// `None` without a binary or without root: the story is skipped.
    ///
    /// # Errors
    /// When `lab up` fails.
    pub fn up(name: &str, topology: &str, files: &[(&str, &str)]) -> Result<Option<Self>> {
        let Some(binary) = binary() else { return Ok(None) };
        // What a killed run left would be counted as there before.
        if Path::new("/run/tidegate-lab").join(name).exists() {
            attempt(command([
                binary.as_os_str(),
                "lab".as_ref(),
                "down".as_ref(),
                name.as_ref(),
            ])?)?;
        }
        let folder = env::temp_dir().join(format!("tidegate-test-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        for (file, text) in files {
            fs::write(folder.join(file), text)?;
        }
        let file = folder.join("topology.yaml");
        fs::write(&file, format!("lab: {name}\n{topology}"))?;

        let before = Traces::of(name)?;
        let mut lab = Self {
            name: name.to_owned(),
            binary,
            folder,
            before,
            is_up: true,
            outputs: AtomicUsize::new(0),
        };
        let up = succeed(command([
            lab.binary.as_os_str(),
            "lab".as_ref(),
            "up".as_ref(),
            file.as_os_str(),
        ])?);
        if let Err(error) = up {
            let logs = lab.logs();
            lab.is_up = false;
            attempt(command([
                lab.binary.as_os_str(),
                "lab".as_ref(),
                "down".as_ref(),
                name.as_ref(),
            ])?)?;
            return Err(error.context(format!("building lab {name}\n{logs}")));
        }
        Ok(Some(lab))
    }

    /// Builds a lab from a fixture, under a name of its own.
    ///
    /// `None` without a binary or without root: the story is skipped.
    ///
    /// # Errors
    /// When `lab up` fails.
    pub fn up_fixture(name: &str, topology: &Path) -> Result<Option<Self>> {
        let text = fs::read_to_string(topology).with_context(|| format!("reading {}", topology.display()))?;
        let applications = topology
            .parent()
            .and_then(Path::parent)
            .context("a fixture has a folder")?;
        let text: String = text
            .lines()
            .filter(|line| !line.starts_with("lab:"))
            .map(|line| format!("{line}\n").replace("../", &format!("{}/", applications.display())))
            .collect();
        Self::up(name, &text, &[])
    }

    /// Takes it down, and checks that nothing of it is left.
    ///
    /// # Errors
    /// When `lab down` fails, or something is left.
    pub fn close(mut self) -> Result<()> {
        self.is_up = false;
        self.down()?;
        self.before.expect_back(&self.name)
    }

    fn down(&self) -> Result<()> {
        let lab = self.name.as_str();
        succeed(command([
            self.binary.as_os_str(),
            "lab".as_ref(),
            "down".as_ref(),
            lab.as_ref(),
        ])?)?;
        fs::remove_dir_all(&self.folder).with_context(|| format!("removing {}", self.folder.display()))
    }

    /// The namespace of a host, node or instance: `shop-web-1`.
    pub fn namespace(&self, part: &str) -> String {
        format!("{}-{part}", self.name)
    }

    /// The story's own folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a file of the story.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, file: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(file);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// Runs a command in a part of the lab; it must succeed.
    ///
    /// # Errors
    /// When it doesn't, with what it said.
    pub fn run(&self, part: &str, words: &[&str]) -> Result<String> {
        succeed(self.within(part, words)?)
    }

    /// Runs commands in a part of the lab, one a line, words apart by spaces; all must succeed.
    ///
    /// # Errors
    /// When one doesn't, with what it said.
    pub fn run_lines(&self, part: &str, lines: &str) -> Result<()> {
        for line in lines.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if !words.is_empty() {
                self.run(part, &words)?;
            }
        }
        Ok(())
    }

    /// Runs a command in a part of the lab, whatever comes of it.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn attempt(&self, part: &str, words: &[&str]) -> Result<Output> {
        attempt(self.within(part, words)?)
    }

    /// Starts a command in a part of the lab and leaves it running.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(&self, part: &str, words: &[&str]) -> Result<Running> {
        let number = self.outputs.fetch_add(1, Ordering::Relaxed);
        Running::start(
            self.within(part, words)?,
            self.folder.join(format!("output-{number}.txt")),
        )
    }

    /// Starts a program in a part of the lab that is asked line by line, and waits for its first line.
    ///
    /// # Errors
    /// When it can't be started, or ends.
    pub fn converse(&self, part: &str, words: &[&str]) -> Result<Dialogue> {
        let number = self.outputs.fetch_add(1, Ordering::Relaxed);
        Dialogue::start(
            self.within(part, words)?,
            self.folder.join(format!("output-{number}.txt")),
        )
    }

    /// Does `work` on a thread of its own in the network namespace of a part of the lab: sockets that it opens are that
    /// part's.
    ///
    /// # Errors
    /// When there is no such part, or the work fails.
    pub fn inside<T: Send>(&self, part: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = Path::new("/run/netns").join(self.namespace(part));
        let namespace = fs::File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let enter = move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        };
        match thread::scope(|scope| scope.spawn(enter).join()) {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Starts an iperf3 server for as many clients as come, and waits until it listens.
    ///
    /// # Errors
    /// When it doesn't.
    pub fn serve_iperf3(&self, part: &str) -> Result<Running> {
        let server = self.start(part, &["iperf3", "--server"])?;
        wait_until("iperf3 listens", Duration::from_secs(5), || {
            Ok(self
                .run(part, &["ss", "-Hltn", "sport = :5201"])?
                .contains("5201"))
        })?;
        Ok(server)
    }

    /// Captures on a device of a part of the lab.
    ///
    /// # Errors
    /// When tcpdump doesn't start.
    pub fn capture(&self, part: &str, device: &str, options: &[&str]) -> Result<Capture> {
        let number = self.outputs.fetch_add(1, Ordering::Relaxed);
        Capture::start(
            self,
            part,
            device,
            options,
            self.folder.join(format!("capture-{number}.pcap")),
        )
    }

    /// An instance's address.
    ///
    /// # Errors
    /// When its `eth0` has none of that family.
    pub fn address(&self, instance: &str, family: &str) -> Result<IpAddr> {
        let text = self.run(
            instance,
            &[
                "ip", family, "-json", "address", "show", "dev", "eth0", "scope", "global",
            ],
        )?;
        let listing: Value = serde_json::from_str(&text)?;
        let address = listing.pointer("/0/addr_info/0/local").and_then(Value::as_str);
        Ok(address
            .with_context(|| format!("eth0 of {instance} has no address ({family})"))?
            .parse()?)
    }

    /// A host's folder.
    pub fn host_folder(&self, host: &str) -> PathBuf {
        Path::new("/run/tidegate-lab").join(&self.name).join(host)
    }

    /// Runs a verb of the binary on a host, whatever comes of it.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn attempt_tidegate(&self, host: &str, words: &[&str]) -> Result<Output> {
        attempt(self.tidegate_command(host, words)?)
    }

    /// Runs a verb of the binary on a host; it must succeed, and print JSON.
    ///
    /// # Errors
    /// When it doesn't, with what it said.
    pub fn tidegate(&self, host: &str, words: &[&str]) -> Result<Value> {
        let words: Vec<&str> = words.iter().copied().chain(["--output", "json"]).collect();
        let text = succeed(self.tidegate_command(host, &words)?)?;
        serde_json::from_str(&text).with_context(|| format!("tidegate {} printed no JSON", words.join(" ")))
    }

    /// The public key of a host's foreign lane, in WireGuard's own form.
    ///
    /// # Errors
    /// When the agent doesn't answer.
    pub fn public_key(&self, host: &str) -> Result<String> {
        let status = self.tidegate(host, &["status"])?;
        let key = status.get("public-key").and_then(Value::as_str);
        Ok(key.context("status prints no public key")?.to_owned())
    }

    /// A host's drop counters, by reason.
    ///
    /// # Errors
    /// When the agent doesn't answer.
    pub fn drops(&self, host: &str) -> Result<BTreeMap<String, u64>> {
        let told = self.tidegate(host, &["drops"])?;
        let list = told
            .pointer("/drops")
            .and_then(Value::as_array)
            .context("drops -o json has no list")?;
        let entry = |one: &Value| {
            let reason = one.get("reason").and_then(Value::as_str)?;
            Some((reason.to_owned(), one.get("packets").and_then(Value::as_u64)?))
        };
        list.iter()
            .map(|one| entry(one).with_context(|| format!("not a drop counter: {one}")))
            .collect()
    }

    /// The process id of one of a host's two processes.
    ///
    /// # Errors
    /// When the agent doesn't answer, or doesn't see the datapath.
    pub fn pid(&self, host: &str, process: Process) -> Result<u32> {
        let status = self.tidegate(host, &["status"])?;
        let pid = status.pointer(process.pid_in_status()).and_then(Value::as_u64);
        Ok(u32::try_from(pid.with_context(|| {
            format!("status of {host} names no {process:?}")
        })?)?)
    }

    /// Kills one of a host's two processes, as nothing can be prepared for.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill(&self, host: &str, process: Process) -> Result<u32> {
        let pid = self.pid(host, process)?;
        let target = Pid::from_raw(i32::try_from(pid)?).context("process 0")?;
        kill_process(target, Signal::KILL).with_context(|| format!("killing {pid}"))?;
        Ok(pid)
    }

    /// Asks one of a host's two processes to end.
    ///
    /// # Errors
    /// When there is none.
    pub fn terminate(&self, host: &str, process: Process) -> Result<u32> {
        let pid = self.pid(host, process)?;
        let target = Pid::from_raw(i32::try_from(pid)?).context("process 0")?;
        kill_process(target, Signal::TERM).with_context(|| format!("asking {pid} to end"))?;
        Ok(pid)
    }

    /// Has one of a host's two processes stand still (SIGSTOP) until what comes back is dropped.
    ///
    /// # Errors
    /// When there is none.
    pub fn stop(&self, host: &str, process: Process) -> Result<Stopped> {
        Stopped::stop(self.pid(host, process)?)
    }

    /// Takes a host down as a power cut does: all its processes at once.
    ///
    /// # Errors
    /// When they can't be found.
    pub fn cut_power(&self, host: &str) -> Result<()> {
        let processes = [
            self.pid(host, Process::Agent)?,
            self.pid(host, Process::Datapath)?,
        ];
        let status = fs::read_to_string(format!("/proc/{}/status", processes[0]))?;
        let supervisor = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        let supervisor: u32 = supervisor.context("a process without a parent")?.trim().parse()?;
        for pid in [supervisor].into_iter().chain(processes) {
            let target = Pid::from_raw(i32::try_from(pid)?).context("process 0")?;
            // The kernel may have ended it with its supervisor.
            let _ = kill_process(target, Signal::KILL);
        }
        wait_until("the processes are gone", Duration::from_secs(5), || {
            let runs = |pid: &u32| {
                // Who has ended stays as a zombie until its new parent looks after it.
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                stat.rsplit(") ")
                    .next()
                    .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
            };
            Ok(!processes.iter().any(runs))
        })
    }

    /// Starts a host again whose power was cut. `before` comes before the binary: a command that runs another one.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn power_on(&self, host: &str, before: &[&str]) -> Result<Running> {
        let folder = self.host_folder(host);
        let binary = self
            .binary
            .to_str()
            .context("the binary's path isn't UTF-8")?
            .to_owned();
        let place = |name: &str| folder.join(name).display().to_string();
        let (config, state, run) = (place("host.yaml"), place("state"), place("run"));
        let words = [
            binary.as_str(),
            "--config",
            &config,
            "--state-dir",
            &state,
            "--run-dir",
            &run,
            "run",
        ];
        let words: Vec<&str> = before.iter().chain(&words).copied().collect();
        self.start(host, &words)
    }

    /// What the hosts' processes have written.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for root in [
            Path::new("/run/tidegate-lab").join(&self.name),
            Path::new("/run/tidegate-lab/.failed").join(&self.name),
        ] {
            gather_logs(&root, &mut text);
        }
        text
    }

    fn within(&self, part: &str, words: &[&str]) -> Result<Command> {
        let namespace = self.namespace(part);
        command(["ip", "netns", "exec", &namespace].iter().chain(words))
    }

    fn tidegate_command(&self, host: &str, words: &[&str]) -> Result<Command> {
        let binary = self.binary.to_str().context("the binary's path isn't UTF-8")?;
        let words: Vec<&str> = std::iter::once(binary).chain(words.iter().copied()).collect();
        let mut command = self.within(host, &words)?;
        let folder = self.host_folder(host);
        command.env("TIDEGATE_CONFIG", folder.join("host.yaml"));
        command.env("TIDEGATE_STATE_DIR", folder.join("state"));
        command.env("TIDEGATE_RUN_DIR", folder.join("run"));
        Ok(command)
    }
}

impl Drop for Lab {
    #[expect(
        clippy::print_stderr,
        reason = "the story has failed already; this is what helps to see why"
    )]
    fn drop(&mut self) {
        if self.is_up {
            eprintln!("{}", self.logs());
            if let Err(error) = self.down() {
                eprintln!("taking down lab {}: {error:#}", self.name);
            }
        }
    }
}

fn gather_logs(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            gather_logs(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "log") {
            let log = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(30)..).unwrap_or_default();
            text.push_str(&format!("--- {}\n{}\n", path.display(), tail.join("\n")));
        }
    }
}
