//! Running other programs, with errors that say which one and why.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a program to its end and gives back what it printed.
pub(crate) fn run<S: AsRef<str>>(words: &[S]) -> Result<String> {
    let line = line(words);
    let output = command(words)?
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting `{line}`"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let complaint = if complaint.trim().is_empty() {
            String::from_utf8_lossy(&output.stdout)
        } else {
            complaint
        };
        bail!("`{line}` failed ({}): {}", output.status, complaint.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs the arguments of `ip`, given as one line.
pub(crate) fn ip(arguments: &str) -> Result<String> {
    let words: Vec<&str> = std::iter::once("ip")
        .chain(arguments.split_whitespace())
        .collect();
    run(&words)
}

/// Starts a program that stays, with its output in a file.
pub(crate) fn start<S: AsRef<str>>(words: &[S], log: &Path) -> Result<Child> {
    let line = line(words);
    let output = std::fs::File::create(log).with_context(|| format!("creating {}", log.display()))?;
    command(words)?
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .with_context(|| format!("starting `{line}`"))
}

/// The words that run `words` in a namespace.
pub(crate) fn within<'a>(namespace: &'a str, words: &[&'a str]) -> Vec<&'a str> {
    ["ip", "netns", "exec", namespace]
        .iter()
        .chain(words)
        .copied()
        .collect()
}

/// A program and its arguments.
pub(crate) fn command<S: AsRef<str>>(words: &[S]) -> Result<Command> {
    let Some((program, arguments)) = words.split_first() else {
        bail!("an empty command line");
    };
    let mut command = Command::new(program.as_ref());
    command.args(arguments.iter().map(AsRef::as_ref));
    Ok(command)
}

fn line<S: AsRef<str>>(words: &[S]) -> String {
    words.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" ")
}
