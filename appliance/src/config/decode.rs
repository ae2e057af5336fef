//! The walk from a tree with places to domain types, which reports every mistake and goes on.
//!
//! A [`Value`] knows its place and its key from the root; a decoder is a function `&Value -> Option<T>` in which
//! `None` means *reported*. [`Value::group`] hands out [`Keys`]: what a decoder asks for is what is legal there, so a
//! key that nobody asked for is unknown, and the nearest one asked for is the hint.

use super::report::Report;
use super::spelling::nearest;
use super::yaml::{self, Content, Entry, Node};
use std::collections::{BTreeMap, btree_map};

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

    /// The line that it begins in.
    pub(super) fn line(&self) -> u32 {
        u32::try_from(self.node.place.line).unwrap_or(u32::MAX)
    }

    pub(super) fn report(&self) -> &'a Report {
        self.report
    }

    /// Reports, where the rest of the value can still be made use of.
    pub(super) fn report_here(&self, message: impl AsRef<str>) {
        self.report
            .add(self.node.place, &self.path, message.as_ref(), None);
    }

    /// Reports; returns `None` so that a decoder can end with it.
    pub(super) fn refuse<T>(&self, message: impl AsRef<str>) -> Option<T> {
        self.report_here(message);
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
        let near = if self.report.is_full() {
            None
        } else {
            nearest(name, &known)
        };
        let hint = match near {
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

    /// Whether it is a group of keys.
    pub(super) fn is_group(&self) -> bool {
        matches!(&self.node.content, Content::Mapping(_))
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
        let value = |(key, entry): (&'a str, &'a Entry)| {
            let path = self.join(key);
            (
                entry,
                Value {
                    node: &entry.value,
                    path,
                    ..self.clone()
                },
            )
        };
        Some(self.once(entries).into_iter().map(value).collect())
    }

    /// A group of known keys. The decoder must ask for all of them before it gives up on any.
    pub(super) fn group<T>(&self, decode: impl FnOnce(&mut Keys<'a, '_>) -> Option<T>) -> Option<T> {
        let Content::Mapping(entries) = &self.node.content else {
            return self.refuse_kind("a group of keys");
        };
        let mut keys = Keys {
            entries: self.once(entries),
            asked: Vec::new(),
            group: self,
        };
        let decoded = decode(&mut keys);
        keys.report_unknown();
        decoded
    }

    /// The entries of which each key is there once; a key's second entry is reported.
    fn once(&self, entries: &'a [Entry]) -> BTreeMap<&'a str, &'a Entry> {
        let mut once: BTreeMap<&str, &Entry> = BTreeMap::new();
        for entry in entries {
            match once.entry(&entry.key) {
                btree_map::Entry::Vacant(vacant) => drop(vacant.insert(entry)),
                btree_map::Entry::Occupied(first) => self.report.add(
                    entry.place,
                    &self.join(&entry.key),
                    "is set a second time",
                    Some(&format!(
                        "it is set in line {} already; remove one of them",
                        first.get().place.line
                    )),
                ),
            }
        }
        once
    }

    fn join(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }
}

/// The keys of a group, as a decoder asks for them.
pub(super) struct Keys<'a, 'v> {
    entries: BTreeMap<&'a str, &'a Entry>,
    asked: Vec<&'static str>,
    group: &'v Value<'a>,
}

impl<'a> Keys<'a, '_> {
    /// The value of a key; `None` when it isn't there, or is there with nothing after it.
    pub(super) fn value(&mut self, key: &'static str) -> Option<Value<'a>> {
        self.asked.push(key);
        let path = self.group.join(key);
        #[cfg(test)]
        self.group.report.note_asked(&path);
        let entry = self.entries.get(key).filter(|entry| !entry.value.is_null())?;
        Some(Value {
            node: &entry.value,
            path,
            ..self.group.clone()
        })
    }

    /// Whether a key is there with something after it.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(|entry| !entry.value.is_null())
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
        match self.entries.get(key) {
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
        let group = self.group;
        for (key, entry) in self.entries.iter().filter(|(key, _)| !self.asked.contains(key)) {
            let near = if group.report.is_full() {
                None
            } else {
                nearest(key, &self.asked)
            };
            let hint = match near {
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None => format!("known here: {}", self.asked.join(", ")),
            };
            group.report.add(
                entry.place,
                &group.path,
                &format!("`{key}` is not a known key"),
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
