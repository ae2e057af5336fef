//! The manual says what the program knows.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tidegate_stack::drop::DropReason;

#[test]
fn troubleshooting_explains_every_drop_reason_in_the_programs_own_words() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/troubleshooting.md");
    let manual = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    for reason in DropReason::ALL {
        let begins = format!(
            "| `{}` | {} | ",
            reason.label(),
            reason.explanation().replace('|', "\\|")
        );
        ensure!(
            manual
                .lines()
                .any(|line| line.strip_prefix(&begins).is_some_and(|advice| advice.len() > 10)),
            "docs/troubleshooting.md has no row that begins with `{begins}` and says what to do"
        );
    }
    let (_, reasons) = manual
        .split_once("## Why a packet was dropped")
        .context("the reasons' section is missing")?;
    let rows = reasons.lines().filter(|line| line.starts_with("| `")).count();
    ensure!(
        rows == DropReason::ALL.len(),
        "docs/troubleshooting.md explains reasons that there aren't"
    );
    Ok(())
}
