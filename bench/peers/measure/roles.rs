//! The generator's roles, seen from the measuring process.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdout, Stdio};

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;

use crate::account::Account;
use crate::command::{command, run, within};
use crate::generator::READY;

/// A role that serves, until it is asked what it saw. Dropped before, it ends all the same: its input does.
pub(super) struct Serving {
    role: String,
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Serving {
    /// Starts it, and waits until its sockets are open.
    pub(super) fn start(account: &Account, namespace: &str, words: &[&str]) -> Result<Self> {
        let role = words.join(" ");
        let mut child = command(&played(account, namespace, words)?)?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting `{role}`"))?;
        let output = child.stdout.take().context("a child without its output")?;
        let mut serving = Self {
            role,
            child,
            output: BufReader::new(output),
        };
        let mut line = String::new();
        serving.output.read_line(&mut line)?;
        ensure!(line.trim() == READY, "`{}` didn't start", serving.role);
        Ok(serving)
    }

    /// Ends it: what it saw.
    pub(super) fn finish<T: DeserializeOwned>(mut self) -> Result<T> {
        drop(self.child.stdin.take());
        let mut text = String::new();
        self.output.read_to_string(&mut text)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "`{}` failed ({status})", self.role);
        serde_json::from_str(&text).with_context(|| format!("`{}` said `{text}`", self.role))
    }
}

/// Plays a role that sends: what it saw.
pub(super) fn play<T: DeserializeOwned>(account: &Account, namespace: &str, words: &[&str]) -> Result<T> {
    let text = run(&played(account, namespace, words)?)?;
    serde_json::from_str(&text).with_context(|| format!("`{}` said `{text}`", words.join(" ")))
}

/// The words that play a role in a namespace.
fn played(account: &Account, namespace: &str, words: &[&str]) -> Result<Vec<String>> {
    let own = std::env::current_exe().context("finding this program")?;
    let own = own.display().to_string();
    let words = [&[own.as_str(), "generate"], words].concat();
    Ok(account.charge(&within(namespace, &words)))
}
