//! What verbs print: text, JSON or YAML on standard output, diagnostics on standard error.

#![expect(clippy::print_stderr, reason = "the one place where the program prints")]

use crate::config::yaml;
use serde::Serialize;
use std::fmt::Display;
use std::io::{self, Write as _};

/// The form of what a verb prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// For people.
    #[default]
    Text,
    /// One JSON object with stable keys.
    Json,
    /// The same as YAML.
    Yaml,
    /// For Graphviz; `graph` alone.
    Dot,
    /// A drawing; `graph` alone.
    Svg,
}

impl Form {
    /// Whether it is one that only `graph` has.
    pub(crate) fn is_drawing(self) -> bool {
        matches!(self, Self::Dot | Self::Svg)
    }
}

/// Prints `value` in a form; `text` renders it for people.
pub(crate) fn print<T: Serialize>(
    form: Form,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    let rendered = match form {
        Form::Text | Form::Dot | Form::Svg => text(value),
        Form::Json => serde_json::to_string_pretty(value)?,
        Form::Yaml => yaml::to_string(&serde_json::to_value(value)?),
    };
    write_line(&rendered)
}

/// Writes lines to standard output. A reader that went away (`| head`) is no error.
pub(crate) fn write_line(text: &str) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    match writeln!(output, "{}", text.trim_end()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a diagnostic line to standard error.
pub(crate) fn diagnostic(line: impl Display) {
    eprintln!("{line}");
}

/// Columns under headings, as wide as their widest cell, two spaces apart.
pub(crate) fn table<const N: usize>(
    headings: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut lines = vec![headings.map(str::to_owned)];
    lines.extend(rows);
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line.get(column).map_or(0, |cell| cell.chars().count()))
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for line in &lines {
        let mut rendered = String::new();
        for (cell, width) in line.iter().zip(widths) {
            rendered.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(rendered.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            ["web-1".to_owned(), "172.19.1.2".to_owned()],
            ["a".to_owned(), String::new()],
        ];
        assert_eq!(
            table(["INSTANCE", "IPV4"], rows),
            "INSTANCE  IPV4\nweb-1     172.19.1.2\na\n"
        );
    }
}
