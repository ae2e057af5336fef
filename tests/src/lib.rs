//! End-to-end stories: the built binary, real agents and datapaths, in network namespaces that each story makes
//! through `tidegate lab` and removes.
//!
//! A story opens a [`Lab`] (or nothing, without root or without a binary: it then says that it is skipped), runs
//! commands inside, and closes it; [`Lab::close`] also checks that nothing was left behind.

mod capture;
mod datagrams;
mod dialogue;
mod foreign;
mod lab;
mod pings;
mod questions;
mod running;
mod stream;
mod syns;
mod traces;

pub use capture::{Capture, Packet};
pub use datagrams::{Forged, Malformed, Pace};
pub use dialogue::Dialogue;
pub use foreign::{Container, ForeignPeer, Program, WireGuard};
pub use lab::{Lab, Process, binary};
pub use pings::Pings;
pub use questions::{Answer, Asked, Question, framed, read_framed};
pub use running::{Running, Stopped};
pub use stream::{Heard, Stream};
pub use syns::{Sent, Syns};
pub use traces::Traces;

use std::env;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Whether stories that have a long form shall take it: `TIDEGATE_LONG=1`, as `.ci/long.sh` sets it.
pub fn is_long() -> bool {
    env::var_os("TIDEGATE_LONG").is_some_and(|value| value == "1")
}

/// Asks again until the answer is yes.
///
/// # Errors
/// When `patience` is over; `what` says what didn't come true.
pub fn wait_until(what: &str, patience: Duration, mut is_true: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    loop {
        if is_true()? {
            return Ok(());
        }
        if began.elapsed() > patience {
            bail!("{what}: not within {patience:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
