//! The datapath process: one thread for each shard, and a control thread that answers the agent.
//!
//! A turn of a shard's thread ([`worker`]):
//!
//! 1. Wait for descriptors ([`crate::sys::epoll`]), at most until the shard's next timer, and not at all while another
//!    shard has passed something on ([`bell`]). Read the clock, once. Take back the frames that came home.
//! 2. For each readable queue of a port ([`ports`]): read up to 64 packets or 256 KiB into a batch →
//!    `Shard::handle_port`, which delivers to other ports by one write each, seals into an open batch of datagrams for
//!    the far end ([`lanes`]), or passes on what belongs to another shard ([`rings`]). A batch that is full leaves at
//!    once.
//! 3. For each readable lane: receive until the socket is empty → `Shard::handle_lane`, which opens, and glues what
//!    belongs together.
//! 4. For each other shard: `Shard::handle_handover` of what it passed on; the spent frames go back.
//! 5. `Shard::handle_timeout`, when it is due.
//! 6. `Shard::flush`: trains glued over the emptied sockets are delivered. Open batches are sent. Shards that got
//!    something and sleep are woken.
//! 7. Devices that turned out to be gone are told to the control thread; its mail is read, when there is some.
//!
//! Every step is bounded, so that no port or lane keeps the others waiting, and the thread sleeps when there is
//! nothing to do. Where packets still wait turn after turn, their senders are told ([`standing`]). The process decides nothing and makes no socket: what it carries packets by, and the plan that it
//! carries them by, come from the agent ([`crate::seam`]), and it goes on without one.

mod answers;
#[cfg(test)]
mod bed;
mod bell;
mod control;
mod lanes;
mod outputs;
mod ports;
mod reports;
mod rings;
mod standing;
#[cfg(test)]
mod tests;
mod worker;

use crate::config::host::{self, MAX_SHARDS};
use crate::seam::BootId;
use crate::sys::seqpacket::Listener;
use crate::sys::signal::Terminations;
use anyhow::Context as _;
use control::{Control, Start};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::rand::{GetRandomFlags, getrandom};
use std::num::NonZeroU8;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tidegate_stack::egress::ShardId;
use tidegate_stack::flow::Quotas;
use tidegate_stack::frame::PoolSizes;
use tidegate_stack::plan::PrivateKey;
use tidegate_stack::shard::ShardConfig;

/// Most flows of the host, split over the shards.
const FLOWS: usize = 65_536;
/// Frames of the host, split over the shards: small ones for answers and what waits, large ones for trains.
const FRAMES: PoolSizes = PoolSizes {
    small: 1024,
    large: 64,
};
/// What every shard has at least, however many there are: its open trains, and what it passes to others.
const LEAST_FRAMES: PoolSizes = PoolSizes {
    small: 128,
    large: 32,
};
/// Only the agent, which runs as the same user, talks to the datapath.
const SOCKET_MODE: u32 = 0o600;

/// How a datapath is started.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The host document, which says how many shards there are.
    pub(crate) config: PathBuf,
    /// Where `datapath.sock` is made.
    pub(crate) run_dir: PathBuf,
    /// Another datapath listens there, and this one takes over from it.
    pub(crate) successor: bool,
    /// Who starts a successor when it is asked to (SIGUSR1), if anybody does.
    pub(crate) supervisor: Option<Pid>,
}

/// Runs a datapath until it is asked to end. Call it before the process has started another thread.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let termination = Terminations::block().context("blocking SIGTERM")?;
    let run_dir = &options.run_dir;
    std::fs::create_dir_all(run_dir).with_context(|| format!("making the folder {}", run_dir.display()))?;
    let path = run_dir.join("datapath.sock");
    let listener = if options.successor {
        Listener::replace(&path, SOCKET_MODE).with_context(|| format!("listening at {}", path.display()))?
    } else {
        Listener::bind(&path, SOCKET_MODE)
            .with_context(|| format!("listening at {} (does another datapath run?)", path.display()))?
    };
    let shards = shards(&options.config);
    let start = Start {
        boot: BootId(draw_number()?),
        standby: options.successor,
        supervisor: options.supervisor,
        shards: configurations(shards)?,
    };
    tracing::info!(
        socket = %path.display(),
        boot = start.boot.0,
        shards,
        standby = start.standby,
        "the datapath is ready"
    );
    let control = Control::start(start, listener, termination).context("starting the shards")?;
    // The socket's name stays behind: a successor may have taken it already, and replaces one that is dead.
    control.run().context("the datapath failed")
}

/// How many shards the host document asks for; one for each core when it says nothing, or can't be read: the agent is
/// who tells what is wrong with it.
fn shards(config: &Path) -> NonZeroU8 {
    match host::read(config) {
        Ok(document) => document.datapath.shards,
        Err(_) => {
            tracing::warn!(
                config = %config.display(),
                "the host document can't be read: there will be one shard for each core"
            );
            None
        }
    }
    .unwrap_or_else(|| {
        let cores = std::thread::available_parallelism();
        let cores = cores.map_or(1, |cores| u8::try_from(cores.get()).unwrap_or(u8::MAX));
        NonZeroU8::new(cores).unwrap_or(NonZeroU8::MIN)
    })
    .min(MAX_SHARDS)
}

/// What each shard is made with: its part of what the host has.
fn configurations(count: NonZeroU8) -> Result<Vec<ShardConfig>, Errno> {
    let parts = usize::from(count.get());
    let quotas = Arc::new(Quotas::of_host(FLOWS));
    (0..count.get())
        .map(|number| {
            Ok(ShardConfig {
                id: ShardId(number),
                count,
                lane_key: PrivateKey::from_bytes(draw()?),
                seed: draw_number()?,
                flows: FLOWS / parts,
                quotas: Arc::clone(&quotas),
                frames: PoolSizes {
                    small: (FRAMES.small / parts).max(LEAST_FRAMES.small),
                    large: (FRAMES.large / parts).max(LEAST_FRAMES.large),
                },
            })
        })
        .collect()
}

fn draw_number() -> Result<u64, Errno> {
    draw().map(u64::from_ne_bytes)
}

/// Bytes that nobody can guess, from the system's random source.
fn draw<const N: usize>() -> Result<[u8; N], Errno> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
        match getrandom(room, GetRandomFlags::empty()) {
            Ok(length) => filled += length,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}
