//! What is wrong with a document: where it stands, what it is, what to do.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// How many problems are told at once; of the rest only the number is.
const MAX_PROBLEMS: usize = 100;

/// A place in a file, as editors count: both numbers begin at 1, columns are characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The line.
    pub(crate) line: usize,
    /// The column.
    pub(crate) column: usize,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Problem {
    /// The file, as it was named when it was read.
    pub(crate) file: PathBuf,
    /// Where in it; `None` when the file as a whole is meant.
    #[serde(flatten)]
    pub(crate) place: Option<Place>,
    /// The key, from the document's root: `cluster.peers[0].endpoint`. Empty for the root itself.
    pub(crate) path: String,
    /// What is wrong.
    pub(crate) message: String,
    /// What to write instead, where that can be said.
    pub(crate) hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:", self.file.display())?;
        if let Some(place) = self.place {
            write!(formatter, "{}:{}:", place.line, place.column)?;
        }
        if !self.path.is_empty() {
            write!(formatter, " {}:", self.path)?;
        }
        write!(formatter, " {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(formatter, " ({hint})"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with one read, in the order of the files' lines. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Problems(Vec<Problem>);

impl Problems {
    /// The problems, ordered and bounded, of which `left_out` more were not collected; `file` stands in when there are none.
    pub(super) fn new(file: &Path, mut problems: Vec<Problem>, left_out: usize) -> Self {
        problems.sort_by(|a, b| (&a.file, a.place).cmp(&(&b.file, b.place)));
        if problems.is_empty() {
            problems.push(Problem::of_file(file, "holds no complete document"));
        }
        let more = problems.len().saturating_sub(MAX_PROBLEMS) + left_out;
        if more > 0 {
            problems.truncate(MAX_PROBLEMS);
            problems.push(Problem::of_file(file, &format!("has {more} more problems")));
        }
        Self(problems)
    }

    /// Each of them.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }
}

impl IntoIterator for Problems {
    type Item = Problem;
    type IntoIter = std::vec::IntoIter<Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                formatter.write_str("\n")?;
            }
            write!(formatter, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl Problem {
    pub(super) fn of_file(file: &Path, message: &str) -> Self {
        Self {
            file: file.to_owned(),
            place: None,
            path: String::new(),
            message: message.to_owned(),
            hint: None,
        }
    }
}
