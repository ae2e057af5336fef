//! YAML as a tree with places, and back.
//!
//! The tree is built from the parser's events and not from a map, so that a key set twice is still seen twice, and so
//! that a hostile file meets limits of ours: its size, its depth, and how much its aliases expand to. YAML 1.2 core
//! schema: `on`, `off`, `yes` and `no` are text. Merge keys (`<<`) are YAML 1.1 and are ordinary, unknown keys here.

use super::problem::Place;
use super::report::Report;
use saphyr::{Scalar as CoreScalar, Yaml, YamlEmitter};
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, Tag};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The largest file that is read, in bytes.
pub(crate) const MAX_FILE_SIZE: u64 = 1 << 20;
/// How deep lists and groups may stand inside each other.
const MAX_DEPTH: usize = 32;
/// How many nodes all aliases of a file may expand to.
const MAX_ALIASED_NODES: usize = 10_000;

/// One YAML document of a file.
pub(super) struct Document {
    /// Its content; `None` when it has none.
    pub(super) root: Option<Node>,
    /// Where it begins.
    pub(super) place: Place,
    /// Its own text, which read alone gives the same document.
    pub(super) source: String,
    /// The line of the file in which that text begins.
    pub(super) first_line: usize,
}

/// A value and its place.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) content: Content,
}

#[derive(Clone)]
pub(super) enum Content {
    Scalar(Scalar),
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// A key, its place, and its value.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) value: Node,
}

/// A leaf: what the core schema takes it for, and what was written.
#[derive(Clone)]
pub(super) struct Scalar {
    pub(super) kind: ScalarKind,
    pub(super) text: String,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum ScalarKind {
    Null,
    Boolean(bool),
    Integer(i64),
    Float(f64),
    Text,
}

impl Node {
    /// What it is, in words for a message.
    pub(super) fn kind(&self) -> &'static str {
        match &self.content {
            Content::Scalar(scalar) => match scalar.kind {
                ScalarKind::Null => "empty",
                ScalarKind::Boolean(_) => "a truth value",
                ScalarKind::Integer(_) | ScalarKind::Float(_) => "a number",
                ScalarKind::Text => "text",
            },
            Content::Sequence(_) => "a list",
            Content::Mapping(_) => "a group of keys",
        }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(&self.content, Content::Scalar(scalar) if scalar.kind == ScalarKind::Null)
    }

    /// The same value without its places.
    pub(super) fn to_json(&self) -> serde_json::Value {
        use serde_json::Value;
        match &self.content {
            Content::Scalar(scalar) => match scalar.kind {
                ScalarKind::Null => Value::Null,
                ScalarKind::Boolean(value) => Value::Bool(value),
                ScalarKind::Integer(value) => Value::from(value),
                // JSON has no infinities: they stay what was written.
                ScalarKind::Float(value) => serde_json::Number::from_f64(value)
                    .map_or_else(|| Value::from(scalar.text.clone()), Value::Number),
                ScalarKind::Text => Value::from(scalar.text.clone()),
            },
            Content::Sequence(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Content::Mapping(entries) => Value::Object(
                entries
                    .iter()
                    .map(|entry| (entry.key.clone(), entry.value.to_json()))
                    .collect(),
            ),
        }
    }

    fn size(&self) -> usize {
        match &self.content {
            Content::Scalar(_) => 1,
            Content::Sequence(items) => 1 + items.iter().map(Self::size).sum::<usize>(),
            Content::Mapping(entries) => {
                1 + entries.iter().map(|entry| 1 + entry.value.size()).sum::<usize>()
            }
        }
    }
}

/// Reads the documents of a file. Syntax errors, and limits exceeded, go to the report; then there is no tree.
pub(super) fn parse(text: &str, report: &Report) -> Option<Vec<Document>> {
    // A file is bounded where it is read; what comes over a socket is not a file.
    if text.len() as u64 > MAX_FILE_SIZE {
        let start = Place { line: 1, column: 1 };
        report.add(start, "", &format!("is larger than {MAX_FILE_SIZE} bytes"), None);
        return None;
    }
    let mut parser = Parser::new_from_str(text);
    let mut tree = Tree {
        report,
        open: Vec::new(),
        anchors: BTreeMap::new(),
        aliased: 0,
        root: None,
    };
    let mut read: Vec<Read> = Vec::new();
    // `Parser::load` walks recursively, so the events are asked for one by one: depth is ours to bound.
    while let Some(event) = parser.next_event() {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                let hint = "check indentation, quotes and brackets near this place";
                report.add(
                    place(*error.marker()),
                    "",
                    &format!("isn't YAML: {}", error.info()),
                    Some(hint),
                );
                return None;
            }
        };
        match event {
            Event::DocumentStart(_) => {
                tree.anchors.clear();
                read.push(Read {
                    begin: span.start,
                    end: None,
                    root: None,
                });
            }
            Event::DocumentEnd => {
                if let Some(document) = read.last_mut() {
                    document.root = tree.root.take();
                    document.end = Some(span);
                }
            }
            Event::StreamEnd => break,
            event => tree.take(event, span.start)?,
        }
    }
    Some(documents(text, read))
}

/// A document whose events have been seen: where it begins, where it ends, and what is in it.
struct Read {
    begin: Marker,
    /// Its `...`, or whatever follows it when it has none.
    end: Option<Span>,
    root: Option<Node>,
}

/// Gives every document its own text. What stands before a document (comments, directives) is that document's, as far
/// back as the one before it has a visible end.
fn documents(text: &str, read: Vec<Read>) -> Vec<Document> {
    // Markers count characters, and a search from the beginning for each would cost the square of the file.
    let mut characters = text.char_indices().map(|(index, _)| index).enumerate().peekable();
    let mut byte_index = |marker: &Marker| {
        while characters
            .next_if(|(character, _)| *character < marker.index())
            .is_some()
        {}
        characters.peek().map_or(text.len(), |(_, index)| *index)
    };
    let mut cuts = vec![(0, 1)];
    for (document, next) in read.iter().zip(read.iter().skip(1)) {
        let visible = document.end.filter(|end| {
            let rest = text.get(byte_index(&end.start)..);
            rest.is_some_and(|rest| rest.starts_with("..."))
        });
        let cut = visible.map_or(next.begin, |end| end.end);
        cuts.push((byte_index(&cut), cut.line()));
    }
    let ends = cuts.iter().skip(1).map(|(end, _)| *end).chain([text.len()]);
    let cuts: Vec<_> = cuts.iter().zip(ends).collect();
    read.into_iter()
        .zip(cuts)
        .map(|(document, ((begin, first_line), end))| Document {
            root: document.root.filter(|root| !root.is_null()),
            place: place(document.begin),
            source: text.get(*begin..end).unwrap_or_default().to_owned(),
            first_line: *first_line,
        })
        .collect()
}

fn place(marker: Marker) -> Place {
    Place {
        line: marker.line(),
        column: marker.col() + 1,
    }
}

/// A tree under construction: the collections that are open, outermost first.
struct Tree<'a> {
    report: &'a Report,
    open: Vec<Open>,
    anchors: BTreeMap<usize, Node>,
    aliased: usize,
    root: Option<Node>,
}

struct Open {
    place: Place,
    anchor: usize,
    collection: Collection,
}

enum Collection {
    Sequence(Vec<Node>),
    Mapping { entries: Vec<Entry>, key: Option<Key> },
}

/// A key whose value is still to come; without text when it was no legal key, and its value is then left out.
struct Key {
    text: Option<String>,
    place: Place,
}

impl Tree<'_> {
    fn take(&mut self, event: Event<'_>, marker: Marker) -> Option<()> {
        let place = place(marker);
        match event {
            Event::SequenceStart(anchor, tag) => {
                self.check_tag(tag.as_deref(), place);
                self.begin(place, anchor, Collection::Sequence(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                self.check_tag(tag.as_deref(), place);
                self.begin(
                    place,
                    anchor,
                    Collection::Mapping {
                        entries: Vec::new(),
                        key: None,
                    },
                )
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let open = self.open.pop()?;
                let content = match open.collection {
                    Collection::Sequence(items) => Content::Sequence(items),
                    Collection::Mapping { entries, .. } => Content::Mapping(entries),
                };
                self.insert(
                    Node {
                        place: open.place,
                        content,
                    },
                    open.anchor,
                );
                Some(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.check_tag(tag.as_deref(), place);
                let scalar = self.scalar(text, style, tag.as_ref(), place);
                self.insert(
                    Node {
                        place,
                        content: Content::Scalar(scalar),
                    },
                    anchor,
                );
                Some(())
            }
            Event::Alias(anchor) => self.alias(anchor, place),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Some(()),
        }
    }

    fn begin(&mut self, place: Place, anchor: usize, collection: Collection) -> Option<()> {
        if self.open.len() >= MAX_DEPTH {
            let message = format!("is nested deeper than {MAX_DEPTH} levels");
            self.report.add(place, "", &message, None);
            return None;
        }
        self.open.push(Open {
            place,
            anchor,
            collection,
        });
        Some(())
    }

    fn alias(&mut self, anchor: usize, place: Place) -> Option<()> {
        let Some(node) = self.anchors.get(&anchor) else {
            self.report
                .add(place, "", "is an alias inside the very value that it names", None);
            return None;
        };
        self.aliased += node.size();
        if self.aliased > MAX_ALIASED_NODES {
            let message = format!("aliases of this file expand to more than {MAX_ALIASED_NODES} values");
            self.report.add(place, "", &message, None);
            return None;
        }
        let node = node.clone();
        self.insert(node, 0);
        Some(())
    }

    fn insert(&mut self, node: Node, anchor: usize) {
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return;
        };
        match &mut open.collection {
            Collection::Sequence(items) => items.push(node),
            Collection::Mapping { entries, key } => match key.take() {
                None => {
                    let place = node.place;
                    let text = match node.content {
                        Content::Scalar(scalar) => Some(scalar.text),
                        Content::Sequence(_) | Content::Mapping(_) => {
                            self.report
                                .add(place, "", "a key must be text, and is a list or a group", None);
                            None
                        }
                    };
                    *key = Some(Key { text, place });
                }
                Some(Key {
                    text: Some(key),
                    place,
                }) => entries.push(Entry {
                    key,
                    place,
                    value: node,
                }),
                Some(Key { text: None, .. }) => {}
            },
        }
    }

    fn scalar(
        &self,
        text: Cow<'_, str>,
        style: ScalarStyle,
        tag: Option<&Cow<'_, Tag>>,
        place: Place,
    ) -> Scalar {
        let written = text.clone().into_owned();
        let kind = match CoreScalar::parse_from_cow_and_metadata(text, style, tag) {
            Some(CoreScalar::Null) => ScalarKind::Null,
            Some(CoreScalar::Boolean(value)) => ScalarKind::Boolean(value),
            Some(CoreScalar::Integer(value)) => ScalarKind::Integer(value),
            Some(CoreScalar::FloatingPoint(value)) => ScalarKind::Float(*value),
            Some(CoreScalar::String(_)) => ScalarKind::Text,
            None => {
                self.report
                    .add(place, "", &format!("`{written}` isn't what its tag says"), None);
                ScalarKind::Text
            }
        };
        Scalar { kind, text: written }
    }

    fn check_tag(&self, tag: Option<&Tag>, place: Place) {
        if let Some(tag) = tag.filter(|tag| !tag.is_yaml_core_schema()) {
            self.report.add(
                place,
                "",
                &format!("the tag `{tag}` has no meaning here"),
                Some("remove it"),
            );
        }
    }
}

/// Writes a value as one YAML document in block style, ended by a line break.
pub(crate) fn to_string(value: &serde_json::Value) -> String {
    let mut text = String::new();
    // Writing to a `String` cannot fail, and the tree has none of the kinds that the emitter refuses.
    if YamlEmitter::new(&mut text).dump(&to_yaml(value)).is_err() {
        text.clear();
    }
    let body = text.strip_prefix("---\n").unwrap_or(&text);
    format!("{body}\n")
}

fn to_yaml(value: &serde_json::Value) -> Yaml<'_> {
    use serde_json::Value;
    match value {
        Value::Null => Yaml::Value(CoreScalar::Null),
        Value::Bool(value) => Yaml::Value(CoreScalar::Boolean(*value)),
        Value::Number(number) => match number.as_i64() {
            Some(value) => Yaml::Value(CoreScalar::Integer(value)),
            // Counters above 2⁶³ and fractions: as JSON writes them, which is YAML too.
            None => Yaml::Representation(number.to_string().into(), ScalarStyle::Plain, None),
        },
        Value::String(text) => Yaml::Value(CoreScalar::String(text.as_str().into())),
        Value::Array(items) => Yaml::Sequence(items.iter().map(to_yaml).collect()),
        Value::Object(entries) => Yaml::Mapping(
            entries
                .iter()
                .map(|(key, value)| {
                    (
                        Yaml::Value(CoreScalar::String(key.as_str().into())),
                        to_yaml(value),
                    )
                })
                .collect(),
        ),
    }
}
