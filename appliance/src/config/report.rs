//! What was found wrong with a file, collected while it is read and decoded; and the reading itself.

use super::problem::{Place, Problem, Problems};
use super::yaml::{self, Document, Node};
use std::cell::{Cell, RefCell};
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// How many problems of a file are kept: a hostile file must not cost more than its own size.
const MAX_KEPT: usize = 1000;

/// What was found wrong with a file so far.
pub(super) struct Report {
    file: PathBuf,
    problems: RefCell<Vec<Problem>>,
    /// How many problems came after [`MAX_KEPT`].
    left_out: Cell<usize>,
    /// Every key that a decoder asked for: the documentation is checked against it.
    #[cfg(test)]
    asked: RefCell<std::collections::BTreeSet<String>>,
}

impl Report {
    pub(super) fn new(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            problems: RefCell::new(Vec::new()),
            left_out: Cell::new(0),
            #[cfg(test)]
            asked: RefCell::default(),
        }
    }

    /// The file, as it was named.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// The folder that the file's relative paths start from.
    pub(super) fn folder(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new(""))
    }

    /// Whether enough is wrong already, and hints needn't be searched for any more.
    pub(super) fn is_full(&self) -> bool {
        self.problems.borrow().len() >= MAX_KEPT
    }

    pub(super) fn add(&self, place: Place, path: &str, message: &str, hint: Option<&str>) {
        if self.is_full() {
            self.left_out.set(self.left_out.get() + 1);
            return;
        }
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
            _ => Err(Problems::new(&self.file, problems, self.left_out.get())),
        }
    }

    #[cfg(test)]
    pub(super) fn note_asked(&self, path: &str) {
        self.asked.borrow_mut().insert(path.to_owned());
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
