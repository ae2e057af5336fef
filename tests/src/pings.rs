//! Pings under way, and how many of them came back.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{Lab, Running};

/// How long the answer to the last one may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Pings at a steady pace, from one part of a lab.
#[derive(Debug)]
pub struct Pings {
    ping: Running,
    count: u32,
    over: Duration,
}

impl Pings {
    /// Starts `count` of them, one every `interval`.
    ///
    /// # Errors
    /// When ping doesn't start.
    pub fn start(lab: &Lab, from: &str, to: IpAddr, count: u32, interval: Duration) -> Result<Self> {
        let seconds = interval.as_secs_f64().to_string();
        let patience = PATIENCE.as_secs().to_string();
        let (number, to) = (count.to_string(), to.to_string());
        let words = [
            "ping", "-q", "-n", "-i", &seconds, "-c", &number, "-W", &patience, &to,
        ];
        Ok(Self {
            ping: lab.start(from, &words)?,
            count,
            over: interval * count,
        })
    }

    /// Waits for the last one; gives back how many were lost.
    ///
    /// # Errors
    /// When ping doesn't end, or not one came back.
    pub fn lost(self) -> Result<u32> {
        // A busy machine takes longer than the pace says.
        let said = self
            .ping
            .succeed_within(self.over + self.over / 4 + 5 * PATIENCE)?;
        let received: Option<u32> = said
            .split(", ")
            .find_map(|part| part.strip_suffix(" received")?.parse().ok());
        let received = received.with_context(|| format!("ping says nothing of what it received: {said}"))?;
        Ok(self.count.saturating_sub(received))
    }
}
