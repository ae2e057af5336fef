//! What a long verb says while it works: one line a step on standard error, on a terminal only the last one stays.

use crate::cli::output;
use std::io::{self, IsTerminal as _, Write as _};

/// Tells steps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    rewrites: bool,
}

impl Progress {
    /// Rewrites its line on a terminal, writes plain lines elsewhere.
    pub(crate) fn on_stderr() -> Self {
        Self {
            rewrites: io::stderr().is_terminal(),
        }
    }

    /// Tells that a step begins.
    pub(crate) fn step(self, text: &str) {
        if self.rewrites {
            // A terminal that went away keeps nobody from working.
            match write!(io::stderr().lock(), "\r\x1b[2K{text} …") {
                Ok(()) | Err(_) => {}
            }
        } else {
            output::diagnostic(text);
        }
    }

    /// Clears the line for what is printed next.
    pub(crate) fn done(self) {
        if self.rewrites {
            match write!(io::stderr().lock(), "\r\x1b[2K") {
                Ok(()) | Err(_) => {}
            }
        }
    }
}
