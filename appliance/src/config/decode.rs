//! The walk from a tree with places to domain types, which reports every mistake and goes on.
//!
//! A [`Value`] knows its place and its key from the root; a decoder is a function `&Value -> Option<T>` in which
//! `None` means *reported*. [`Value::group`] hands out [`Keys`]: what a decoder asks for is what is legal there, so a
//! key that nobody asked for is unknown, and the nearest one asked for is the hint.

use super::problem::{Place, Problem, Problems};
use super::yaml::{self, Content, Document, Entry, Node};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// What was found wrong with a file so far.
pub(super) struct Report {
    file: PathBuf,
    problems: RefCell<Vec<Problem>>,
    /// Every key that a decoder asked for: the documentation is checked against it.
    #[cfg(test)]
    asked: RefCell<std::collections::BTreeSet<String>>,
}

impl Report {
    pub(super) fn new(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            problems: RefCell::new(Vec::new()),
            #[cfg(test)]
            asked: RefCell::default(),
        }
    }

    /// The folder that the file's relative paths start from.
    pub(super) fn folder(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new(""))
    }

    pub(super) fn add(&self, place: Place, path: &str, message: &str, hint: Option<&str>) {
        self.problems.borrow_mut().push(Problem {
            file: self.file.clone(),
            place: Some(place),
            path: path.to_owned(),
            message: message.to_owned(),
            hint: hint.map(str::to_owned),
        });
    }

    /// Takes over what was found wrong with another file.
    pub(super) fn absorb(&self, problems: Problems) {
        self.problems.borrow_mut().extend(problems);
    }

    /// The file's text; `None`, and a problem that says why, when it can't be had.
    pub(super) fn read(&self) -> Option<String> {
        match read_bounded(&self.file) {
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(text) => Some(text),
                Err(error) => {
                    let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                    let valid = String::from_utf8_lossy(valid);
                    let line = valid.matches('\n').count() + 1;
                    let column = valid
                        .chars()
                        .rev()
                        .take_while(|character| *character != '\n')
                        .count()
                        + 1;
                    let hint = "save the file as UTF-8";
                    self.add(Place { line, column }, "", "isn't UTF-8 text", Some(hint));
                    None
                }
            },
            Err(reason) => {
                self.problems
                    .borrow_mut()
                    .push(Problem::of_file(&self.file, &reason));
                None
            }
        }
    }

    /// The one document of a text.
    pub(super) fn only_document(&self, text: &str) -> Option<Node> {
        let mut documents = yaml::parse(text, self)?;
        if let Some(second) = documents.get(1) {
            let hint = "keep one, without `---` after it";
            self.add(
                second.place,
                "",
                "a second document begins here, and this file holds only one",
                Some(hint),
            );
        }
        if documents.is_empty() {
            self.nothing_there();
            return None;
        }
        self.root(documents.swap_remove(0))
    }

    /// A document's content; a document without one is reported.
    pub(super) fn root(&self, document: Document) -> Option<Node> {
        if document.root.is_none() {
            self.empty(document.place);
        }
        document.root
    }

    /// Reports that a file has no document in it.
    pub(super) fn nothing_there(&self) {
        if self.problems.borrow().is_empty() {
            self.empty(Place { line: 1, column: 1 });
        }
    }

    fn empty(&self, place: Place) {
        self.add(place, "", "the document is empty", None);
    }

    /// The decoded value, if nothing at all was wrong.
    pub(super) fn finish<T>(self, decoded: Option<T>) -> Result<T, Problems> {
        let problems = self.problems.into_inner();
        match decoded {
            Some(decoded) if problems.is_empty() => Ok(decoded),
            _ => Err(Problems::new(&self.file, problems)),
        }
    }

    #[cfg(test)]
    pub(super) fn asked(&self) -> std::collections::BTreeSet<String> {
        self.asked.borrow().clone()
    }
}

fn read_bounded(file: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .and_then(|opened| opened.take(yaml::MAX_FILE_SIZE + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("can't be read: {error}"))?;
    if bytes.len() as u64 > yaml::MAX_FILE_SIZE {
        return Err(format!("is larger than {} bytes", yaml::MAX_FILE_SIZE));
    }
    Ok(bytes)
}

/// A value, its key from the root, and where its problems go.
#[derive(Clone)]
pub(super) struct Value<'a> {
    node: &'a Node,
    path: String,
    report: &'a Report,
    /// Whether this is a part of a document, laid over another one: then nothing in it is required.
    partial: bool,
}

impl<'a> Value<'a> {
    pub(super) fn root(node: &'a Node, report: &'a Report) -> Self {
        Self {
            node,
            path: String::new(),
            report,
            partial: false,
        }
    }

    /// The same value, of which only what is there is looked at.
    pub(super) fn partial(&self) -> Self {
        Self {
            partial: true,
            ..self.clone()
        }
    }

    /// The key from the document's root.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn node(&self) -> &'a Node {
        self.node
    }

    pub(super) fn report(&self) -> &'a Report {
        self.report
    }

    /// Reports; returns `None` so that a decoder can end with it.
    pub(super) fn refuse<T>(&self, message: impl AsRef<str>) -> Option<T> {
        self.report
            .add(self.node.place, &self.path, message.as_ref(), None);
        None
    }

    /// Reports, and says what to do.
    pub(super) fn refuse_with<T>(&self, message: impl AsRef<str>, hint: impl AsRef<str>) -> Option<T> {
        self.report
            .add(self.node.place, &self.path, message.as_ref(), Some(hint.as_ref()));
        None
    }

    fn refuse_kind<T>(&self, wanted: &str) -> Option<T> {
        self.refuse(format!("must be {wanted}, and is {}", self.node.kind()))
    }

    /// Reports that what the value names doesn't exist, and what does.
    pub(super) fn refuse_reference<'n, T>(
        &self,
        what: &str,
        name: &str,
        known: impl Iterator<Item = &'n String>,
    ) -> Option<T> {
        let known: Vec<&str> = known.map(String::as_str).collect();
        let hint = match nearest(name, &known) {
            Some(nearest) => format!("did you mean `{nearest}`?"),
            None if known.is_empty() => format!("the document has no {what}"),
            None => format!("there is: {}", known.join(", ")),
        };
        self.refuse_with(format!("there is no {what} `{name}`"), hint)
    }

    /// Text, not empty. What YAML takes for a number must be quoted to be text.
    pub(super) fn text(&self) -> Option<&'a str> {
        let Content::Scalar(scalar) = &self.node.content else {
            return self.refuse_kind("text");
        };
        match scalar.kind {
            yaml::ScalarKind::Text if scalar.text.is_empty() => self.refuse("must not be empty"),
            yaml::ScalarKind::Text => Some(&scalar.text),
            yaml::ScalarKind::Null => self.refuse_kind("text"),
            yaml::ScalarKind::Boolean(_) | yaml::ScalarKind::Integer(_) | yaml::ScalarKind::Float(_) => self
                .refuse_with(
                    format!("must be text, and is {}", self.node.kind()),
                    format!("write it in quotes: \"{}\"", scalar.text),
                ),
        }
    }

    /// A word as it was written, whatever YAML takes it for: an argument of a command.
    pub(super) fn word(&self) -> Option<&'a str> {
        match &self.node.content {
            Content::Scalar(scalar) if scalar.kind != yaml::ScalarKind::Null => Some(&scalar.text),
            Content::Scalar(_) | Content::Sequence(_) | Content::Mapping(_) => self.refuse_kind("a word"),
        }
    }

    /// Whether it is this very word.
    pub(super) fn is_word(&self, word: &str) -> bool {
        matches!(&self.node.content, Content::Scalar(scalar) if scalar.text == word)
    }

    /// Whether it is a list.
    pub(super) fn is_list(&self) -> bool {
        matches!(&self.node.content, Content::Sequence(_))
    }

    /// A whole number inside a range.
    pub(super) fn number(&self, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let Content::Scalar(scalar) = &self.node.content else {
            return self.refuse_kind("a number");
        };
        match scalar.kind {
            yaml::ScalarKind::Integer(number) => match u64::try_from(number) {
                Ok(number) if range.contains(&number) => Some(number),
                Ok(_) | Err(_) => self.refuse(format!(
                    "is {number}, and must be {} to {}",
                    range.start(),
                    range.end()
                )),
            },
            yaml::ScalarKind::Text if scalar.text.parse::<u64>().is_ok() => self.refuse_with(
                "must be a number, and is text",
                format!("write it without quotes: {}", scalar.text),
            ),
            yaml::ScalarKind::Float(_) => {
                self.refuse(format!("is {}, and must be a whole number", scalar.text))
            }
            yaml::ScalarKind::Null | yaml::ScalarKind::Boolean(_) | yaml::ScalarKind::Text => {
                self.refuse_kind("a number")
            }
        }
    }

    /// The values of a list.
    pub(super) fn items(&self) -> Option<Vec<Value<'a>>> {
        let Content::Sequence(items) = &self.node.content else {
            return self.refuse_kind("a list");
        };
        let item = |(index, node)| Value {
            node,
            path: format!("{}[{index}]", self.path),
            ..self.clone()
        };
        Some(items.iter().enumerate().map(item).collect())
    }

    /// A list, each value of it decoded; those that can't be are reported and left out.
    pub(super) fn list<T>(&self, decode: impl FnMut(&Value<'a>) -> Option<T>) -> Option<Vec<T>> {
        Some(self.items()?.iter().filter_map(decode).collect())
    }

    /// A group whose keys are names that the document's author chose: each name (as a value, to be checked) with
    /// what stands under it. A name given twice is reported and its second value left out.
    pub(super) fn named(&self) -> Option<Vec<(&'a Entry, Value<'a>)>> {
        let Content::Mapping(entries) = &self.node.content else {
            return self.refuse_kind("a group of keys");
        };
        self.report_repeated(entries);
        let first = |(index, entry): &(usize, &Entry)| !is_repeated(entries, *index, entry);
        let value = |(_, entry): (usize, &'a Entry)| {
            let path = self.join(&entry.key);
            (
                entry,
                Value {
                    node: &entry.value,
                    path,
                    ..self.clone()
                },
            )
        };
        Some(entries.iter().enumerate().filter(first).map(value).collect())
    }

    /// A group of known keys. The decoder must ask for all of them before it gives up on any.
    pub(super) fn group<T>(&self, decode: impl FnOnce(&mut Keys<'a, '_>) -> Option<T>) -> Option<T> {
        let Content::Mapping(entries) = &self.node.content else {
            return self.refuse_kind("a group of keys");
        };
        self.report_repeated(entries);
        let mut keys = Keys {
            entries,
            asked: Vec::new(),
            group: self,
        };
        let decoded = decode(&mut keys);
        keys.report_unknown();
        decoded
    }

    fn report_repeated(&self, entries: &[Entry]) {
        for (index, entry) in entries
            .iter()
            .enumerate()
            .filter(|(index, entry)| is_repeated(entries, *index, entry))
        {
            let first = entries[..index].iter().find(|earlier| earlier.key == entry.key);
            let line = first.map_or(0, |first| first.place.line);
            self.report.add(
                entry.place,
                &self.join(&entry.key),
                "is set a second time",
                Some(&format!("it is set in line {line} already; remove one of them")),
            );
        }
    }

    fn join(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }
}

fn is_repeated(entries: &[Entry], index: usize, entry: &Entry) -> bool {
    entries[..index].iter().any(|earlier| earlier.key == entry.key)
}

/// The keys of a group, as a decoder asks for them.
pub(super) struct Keys<'a, 'v> {
    entries: &'a [Entry],
    asked: Vec<&'static str>,
    group: &'v Value<'a>,
}

impl<'a> Keys<'a, '_> {
    /// The value of a key; `None` when it isn't there, or is there with nothing after it.
    pub(super) fn value(&mut self, key: &'static str) -> Option<Value<'a>> {
        self.asked.push(key);
        let path = self.group.join(key);
        #[cfg(test)]
        self.group.report.asked.borrow_mut().insert(path.clone());
        let entry = self
            .entries
            .iter()
            .find(|entry| entry.key == key)
            .filter(|entry| !entry.value.is_null())?;
        Some(Value {
            node: &entry.value,
            path,
            ..self.group.clone()
        })
    }

    /// Whether a key is there with something after it.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries
            .iter()
            .any(|entry| entry.key == key && !entry.value.is_null())
    }

    /// A key that may be absent. `None` when it is, and when its value was refused: that is reported, so the
    /// document won't come out in any case.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        decode: impl FnOnce(&Value<'a>) -> Option<T>,
    ) -> Option<T> {
        decode(&self.value(key)?)
    }

    /// A key that must be there.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        decode: impl FnOnce(&Value<'a>) -> Option<T>,
    ) -> Option<T> {
        let Some(value) = self.value(key) else {
            if !self.group.partial {
                self.report_missing(key);
            }
            return None;
        };
        decode(&value)
    }

    fn report_missing(&self, key: &str) {
        let group = self.group;
        match self.entries.iter().find(|entry| entry.key == key) {
            Some(entry) => group
                .report
                .add(entry.place, &group.join(key), "must not be empty", None),
            None => group.report.add(
                group.node.place,
                &group.path,
                &format!("`{key}` is missing"),
                None,
            ),
        }
    }

    fn report_unknown(&self) {
        for entry in self
            .entries
            .iter()
            .filter(|entry| !self.asked.contains(&entry.key.as_str()))
        {
            let hint = match nearest(&entry.key, &self.asked) {
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None => format!("known here: {}", self.asked.join(", ")),
            };
            let path = &self.group.path;
            self.group.report.add(
                entry.place,
                path,
                &format!("`{}` is not a known key", entry.key),
                Some(&hint),
            );
        }
    }
}

/// Values of which each may be there once.
pub(super) struct Unique<K> {
    lines: BTreeMap<K, usize>,
}

impl<K> Default for Unique<K> {
    fn default() -> Self {
        Self {
            lines: BTreeMap::new(),
        }
    }
}

impl<K: Ord + Clone> Unique<K> {
    /// The key, unless it was there before: then the line where is told.
    pub(super) fn claim(&mut self, value: &Value<'_>, key: K) -> Option<K> {
        if let Some(line) = self.lines.get(&key) {
            return value.refuse_with("is used a second time", format!("it is taken in line {line}"));
        }
        self.lines.insert(key.clone(), value.node.place.line);
        Some(key)
    }
}

/// The legal word that a wrong one was probably meant to be: at most a third of its letters (and one) are off.
pub(super) fn nearest<'w>(wrong: &str, legal: &[&'w str]) -> Option<&'w str> {
    let nearest = legal.iter().map(|word| (distance(wrong, word), *word)).min()?;
    (nearest.0 <= 1 + wrong.chars().count().min(64) / 3).then_some(nearest.1)
}

/// How many letters must be put in, taken out, replaced or swapped with their neighbour to make one word of the
/// other (optimal string alignment). Underscores count as hyphens, capitals as small letters.
fn distance(left: &str, right: &str) -> usize {
    // A key longer than this resembles none of ours, and must not cost the square of its length.
    let letters = |word: &str| -> Vec<char> {
        let same = |letter: char| {
            if letter == '_' {
                '-'
            } else {
                letter.to_ascii_lowercase()
            }
        };
        word.chars().take(64).map(same).collect()
    };
    let (left, right) = (letters(left), letters(right));
    let mut rows = vec![(0..=right.len()).collect::<Vec<_>>()];
    for row in 1..=left.len() {
        let mut current = vec![row];
        for column in 1..=right.len() {
            let replaced = rows[row - 1][column - 1] + usize::from(left[row - 1] != right[column - 1]);
            let mut best = replaced
                .min(rows[row - 1][column] + 1)
                .min(current[column - 1] + 1);
            let crossed = row > 1
                && column > 1
                && left[row - 1] == right[column - 2]
                && left[row - 2] == right[column - 1];
            if crossed {
                best = best.min(rows[row - 2][column - 2] + 1);
            }
            current.push(best);
        }
        rows.push(current);
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_the_key_that_was_meant() {
        let legal = ["wireguard-port", "interface", "peers", "foreign-private-key-file"];
        assert_eq!(nearest("wiregaurd-port", &legal), Some("wireguard-port"));
        assert_eq!(nearest("Wireguard_Port", &legal), Some("wireguard-port"));
        assert_eq!(nearest("peer", &legal), Some("peers"));
        assert_eq!(nearest("dns", &legal), None);
        assert_eq!(nearest(&"x".repeat(100_000), &legal), None);
    }
}
