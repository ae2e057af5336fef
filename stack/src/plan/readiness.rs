//! How an instance is asked whether it takes requests.
//!
//! What follows from it is compiled alone ([`Checks`](crate::snapshot::Checks)): a change of it is no new epoch and touches
//! no flow.

use super::types::{ProbeFailures, ProbeInterval};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::NonZeroU16;
use std::time::Duration;

/// How an instance is asked whether it takes requests, and when what it says is believed. One good answer makes it ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Readiness {
    /// What is asked.
    pub question: ReadinessQuestion,
    /// Milliseconds from one question to the next.
    pub interval: ProbeInterval,
    /// How many failures in a row make it not ready.
    pub failures: ProbeFailures,
}

/// What an instance is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ReadinessQuestion {
    /// Whether it accepts a TCP connection.
    Tcp {
        /// The port.
        port: NonZeroU16,
    },
    /// Whether it answers a GET with a status from 200 to 399.
    Http {
        /// The port.
        port: NonZeroU16,
        /// What is asked for.
        path: HttpPath,
    },
}

/// What a request asks for: it begins with a slash, and has neither spaces nor control characters (RFC 9112 §3.2.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HttpPath(String);

/// What keeps a text from being a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpPathError {
    /// It begins with something else.
    #[error("must begin with a slash")]
    Relative,
    /// It has a space, a control character or one that isn't ASCII.
    #[error("may have only printable ASCII without spaces: others are written as %20 and the like")]
    Characters,
    /// It has a part that is never sent.
    #[error("must not have a `#`: what stands behind one is never sent")]
    Fragment,
    /// It is too long.
    #[error("is longer than {} characters", HttpPath::LONGEST)]
    TooLong,
}

impl HttpPath {
    /// Most characters.
    pub const LONGEST: usize = 512;

    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for HttpPath {
    type Error = HttpPathError;

    fn try_from(path: String) -> Result<Self, HttpPathError> {
        if !path.starts_with('/') {
            Err(HttpPathError::Relative)
        } else if !path.bytes().all(|letter| letter.is_ascii_graphic()) {
            Err(HttpPathError::Characters)
        } else if path.contains('#') {
            Err(HttpPathError::Fragment)
        } else if path.len() > Self::LONGEST {
            Err(HttpPathError::TooLong)
        } else {
            Ok(Self(path))
        }
    }
}

impl From<HttpPath> for String {
    fn from(path: HttpPath) -> Self {
        path.0
    }
}

impl Readiness {
    /// How long an answer is waited for, at the longest.
    pub const PATIENCE: Duration = Duration::from_secs(5);

    /// The time from one question to the next.
    pub fn interval(&self) -> Duration {
        Duration::from_millis(u64::from(self.interval.get()))
    }

    /// How long an answer is waited for: never for longer than until the next question.
    pub fn patience(&self) -> Duration {
        self.interval().min(Self::PATIENCE)
    }
}

impl ReadinessQuestion {
    /// The port that is asked.
    pub fn port(&self) -> NonZeroU16 {
        match self {
            Self::Tcp { port } | Self::Http { port, .. } => *port,
        }
    }
}

impl fmt::Display for ReadinessQuestion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { port } => write!(formatter, "TCP port {port}"),
            Self::Http { port, path } => write!(formatter, "HTTP port {port}, {}", path.as_str()),
        }
    }
}
