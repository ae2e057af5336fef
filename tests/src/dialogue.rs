//! A program that is asked line by line.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};

/// A program that answers each line with a line; dropping it ends it.
#[derive(Debug)]
pub struct Dialogue {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
    complaints: PathBuf,
}

impl Dialogue {
    /// Starts it, with what it complains about in the file `complaints`, and waits for its first line.
    pub(crate) fn start(mut command: Command, complaints: PathBuf) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&complaints)?)
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        let questions = child.stdin.take().context("no standard input")?;
        let answers = BufReader::new(child.stdout.take().context("no standard output")?);
        let mut dialogue = Self {
            child,
            questions,
            answers,
            complaints,
        };
        dialogue.answer()?;
        Ok(dialogue)
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// When the program has ended, with what it complained about.
    pub fn ask(&mut self, question: &str) -> Result<String> {
        writeln!(self.questions, "{question}").context("asking a program that has ended")?;
        self.answer().with_context(|| format!("asking for `{question}`"))
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            let complaints = std::fs::read_to_string(&self.complaints)?;
            bail!("the program ended: {}", complaints.trim());
        }
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Dialogue {
    fn drop(&mut self) {
        // Nothing to tell when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
