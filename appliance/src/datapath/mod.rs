//! The datapath process: one thread for each shard, and a control thread that answers the agent.
//!
//! A turn of a shard's thread ([`worker`]):
//!
//! 1. Wait for descriptors ([`crate::sys::epoll`]), at most until the shard's next timer. Read the clock, once.
//! 2. For each readable port ([`ports`]): read up to 32 super-packets into a batch → `Shard::handle_port`, which
//!    delivers to other ports by one write each, or seals into a lane's open batch of datagrams ([`lanes`]). A batch
//!    that is full leaves at once.
//! 3. For each readable lane: receive until the socket is empty → `Shard::handle_lane`, which opens, and glues what
//!    belongs together.
//! 4. `Shard::handle_timeout`, when it is due.
//! 5. `Shard::flush`: trains glued over the emptied sockets are delivered. Open batches are sent.
//! 6. Devices that turned out to be gone are told to the control thread; its mail is read, when there is some.
//!
//! Every step is bounded, so that no port or lane keeps the others waiting, and the thread sleeps when there is
//! nothing to do. The process decides nothing and makes no socket: what it carries packets by, and the plan that it
//! carries them by, come from the agent ([`crate::seam`]), and it goes on without one.

#[cfg(test)]
mod bed;
mod control;
mod lanes;
mod outputs;
mod ports;
mod reports;
#[cfg(test)]
mod tests;
mod worker;

use crate::seam::BootId;
use crate::sys::seqpacket::Listener;
use crate::sys::signal;
use anyhow::Context as _;
use control::Control;
use std::hash::{BuildHasher as _, RandomState};
use std::num::{NonZeroU8, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use tidegate_stack::egress::ShardId;
use tidegate_stack::flow::Quotas;
use tidegate_stack::frame::PoolSizes;
use tidegate_stack::plan::PrivateKey;
use tidegate_stack::shard::ShardConfig;

/// Shards of this process.
const SHARDS: NonZeroUsize = NonZeroUsize::MIN;
/// Most flows of the host, split over the shards.
const FLOWS: usize = 65_536;
/// Frames of the host, split over the shards: small ones for answers and what waits, large ones for trains.
const FRAMES: PoolSizes = PoolSizes {
    small: 1024,
    large: 64,
};
/// Only the agent, which runs as the same user, talks to the datapath.
const SOCKET_MODE: u32 = 0o600;

/// How a datapath is started.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Where `datapath.sock` is made.
    pub(crate) run_dir: PathBuf,
}

/// Runs a datapath until SIGTERM or SIGINT. Call it before the process has started another thread.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let termination = signal::terminations().context("blocking SIGTERM")?;
    let run_dir = &options.run_dir;
    std::fs::create_dir_all(run_dir).with_context(|| format!("making the folder {}", run_dir.display()))?;
    let path = run_dir.join("datapath.sock");
    let listener = Listener::bind(&path, SOCKET_MODE)
        .with_context(|| format!("listening at {} (does another datapath run?)", path.display()))?;
    let boot = BootId(draw());
    let quotas = Arc::new(Quotas::of_host(FLOWS));
    let control = Control::start(boot, listener, termination, SHARDS, |number| ShardConfig {
        id: ShardId(u8::try_from(number).unwrap_or(u8::MAX)),
        count: NonZeroU8::MIN,
        lane_key: draw_key(),
        seed: draw(),
        flows: FLOWS / SHARDS,
        quotas: Arc::clone(&quotas),
        frames: PoolSizes {
            small: FRAMES.small / SHARDS,
            large: FRAMES.large / SHARDS,
        },
    })
    .context("starting the shards")?;
    tracing::info!(socket = %path.display(), boot = boot.0, shards = SHARDS, "the datapath is ready");
    // The socket's name stays behind: a successor may have taken it already, and replaces one that is dead.
    control.run().context("the datapath failed")
}

/// A lane's key.
fn draw_key() -> PrivateKey {
    let mut bytes = [0; 32];
    for part in bytes.chunks_exact_mut(8) {
        part.copy_from_slice(&draw().to_ne_bytes());
    }
    PrivateKey::from_bytes(bytes)
}

/// A number that nobody can guess: the standard library seeds its hashers from the system's random source.
fn draw() -> u64 {
    RandomState::new().hash_one(std::process::id())
}
