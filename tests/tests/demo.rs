//! The first thing that anybody runs.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tidegate_tests::{Traces, binary};

/// The name of the built-in topology.
const LAB: &str = "tg";

#[test]
fn demo_works_within_a_minute_and_leaves_nothing_behind() -> Result<()> {
    let Some(binary) = binary() else { return Ok(()) };
    let before = Traces::of(LAB)?;
    let began = Instant::now();
    let output = Command::new(binary)
        .args(["lab", "demo"])
        .output()
        .context("starting the demo")?;
    let took = began.elapsed();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "lab demo failed ({}):\n{out}\n{err}",
        output.status
    );
    assert!(took < Duration::from_secs(60), "the demo took {took:?}");
    println!("{out}");
    before.expect_back(LAB)
}
