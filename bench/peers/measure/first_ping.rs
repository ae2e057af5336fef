//! How long it takes from nothing to the first reply.
//!
//! The clock runs from the first command that is the contestant's own (a program, a device, an address) to the first
//! echo reply between its ends; hosts and wire are there before. tidegate's lab makes its own hosts and wire, so
//! theirs is in its time, and the agents, the attachments and the wait for a way between all instances too.

use std::time::Instant;

use anyhow::Result;

use crate::account::Account;
use crate::command::{run, within};
use crate::contestant::Contestant;

/// Builds a contestant, pings through it, and removes it: the milliseconds to the first reply.
pub(crate) fn first_ping(contestant: &mut dyn Contestant, account: &Account) -> Result<f64> {
    contestant.place()?;
    let began = Instant::now();
    let pinged = contestant.up(account).and_then(|()| {
        let ends = contestant.ends()?;
        let address = ends.server_address.to_string();
        // With a deadline a count is of replies: one is sent every 10 ms until one is answered.
        let ping = ["ping", "-n", "-q", "-i", "0.01", "-c", "1", "-w", "10", &address];
        run(&within(&ends.client, &ping))
    });
    let took = began.elapsed();
    let removed = contestant.down();
    pinged?;
    removed?;
    Ok(took.as_secs_f64() * 1e3)
}
