//! `apply` and `delete`: application documents come into force whole, or not at all.

use super::api::{Applied, AppliedApplication, Change, Deleted, DocumentText};
use super::journal::Record;
use super::reconcile::{ApplicationKey, Applications};
use super::{Agent, Intent, Refusal, Response};
use crate::config::application::{self, ApplicationDocument};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Folder of documents that are applied at boot, beside the host document.
const BOOT_FOLDER: &str = "applications";

/// The documents that the journal keeps. They were legal when they were applied; one that no longer is (after an
/// upgrade) is left out with an error in the log.
pub(super) fn recorded(record: &Record) -> Applications {
    let mut applications = Applications::new();
    for source in &record.applications {
        match application::parse_again(source) {
            Ok(document) => drop(applications.insert(ApplicationKey::of(&document), document)),
            Err(problems) => {
                tracing::error!(%problems, "a document in the journal is no longer legal: apply it again");
            }
        }
    }
    applications
}

impl Agent {
    /// Puts documents in force: all of them, or none.
    pub(super) async fn apply(&mut self, documents: Vec<DocumentText>) -> Result<Response, Refusal> {
        let parsed = parse_all(&documents).map_err(Refusal::of_all)?;
        self.wait_for_datapath().await?;
        let mut intent = self.intent.clone();
        let mut applications = Vec::new();
        for document in parsed {
            let key = ApplicationKey::of(&document);
            let change = match intent.applications.get(&key) {
                None => Change::Created,
                Some(before) if before.source.text == document.source.text => Change::Unchanged,
                Some(_) => Change::Changed,
            };
            applications.push(AppliedApplication {
                tenant: key.tenant.clone(),
                application: key.name.clone(),
                change,
            });
            intent.applications.insert(key, document);
        }
        let epoch = self.put_in_force(intent).await?;
        Ok(Response::Applied(Applied { applications, epoch }))
    }

    /// Takes an application out of force. Its instances must be detached before: nothing is cut by accident.
    pub(super) async fn delete(&mut self, tenant: String, application: String) -> Result<Response, Refusal> {
        let key = ApplicationKey {
            tenant,
            name: application,
        };
        if !self.intent.applications.contains_key(&key) {
            return Err(self.no_such_application(&key));
        }
        let attached: Vec<_> = self
            .intent
            .record
            .attachments
            .iter()
            .filter(|attachment| attachment.application == key)
            .map(|attachment| attachment.name())
            .collect();
        if !attached.is_empty() {
            return Err(Refusal::because(format!(
                "{key} has instances attached here ({}): detach them first",
                attached.join(", ")
            )));
        }
        let attaching = self
            .reservations
            .values()
            .find(|reservation| reservation.application() == &key);
        if let Some(reservation) = attaching {
            return Err(Refusal::because(format!(
                "an instance of {key} is being attached right now ({}): try again when it is done, and detach it",
                reservation.name()
            )));
        }
        self.wait_for_datapath().await?;
        let mut intent = self.intent.clone();
        intent.applications.remove(&key);
        intent.record.allocations.forget(&key);
        let epoch = self.put_in_force(intent).await?;
        Ok(Response::Deleted(Deleted {
            tenant: key.tenant,
            application: key.name,
            epoch,
        }))
    }

    /// The answer about an application that isn't in force.
    pub(super) fn no_such_application(&self, key: &ApplicationKey) -> Refusal {
        let known: Vec<_> = self.intent.applications.keys().map(ToString::to_string).collect();
        let hint = if known.is_empty() {
            "none is; `tidegate apply` its document first".to_owned()
        } else {
            format!("in force are {}", known.join(", "))
        };
        Refusal::not_found(format!("no application {key} is in force here: {hint}"))
    }

    /// Takes the documents of the boot folder into the intent, those that changed since they were last taken. A file
    /// with mistakes is left out whole, and so is a document that contradicts what is there.
    pub(super) fn apply_boot_folder(&mut self) {
        let mut changed = Vec::new();
        for file in boot_files(&self.places.config) {
            match application::read(&file) {
                Ok(documents) => changed.extend(
                    documents
                        .into_iter()
                        .filter(|document| !self.is_booted(document))
                        .map(|document| (file.clone(), document)),
                ),
                Err(problems) => {
                    for problem in problems {
                        self.tell_problem(problem.to_string());
                    }
                }
            }
        }
        // What documents say about a network that they share can only change in all of them at once.
        let mut intent = self.intent.clone();
        for (_, document) in &changed {
            intent.take_booted(document.clone());
        }
        if self.plan(&intent).is_ok() {
            self.intent = intent;
            return;
        }
        for (file, document) in changed {
            let mut intent = self.intent.clone();
            intent.take_booted(document);
            match self.plan(&intent) {
                Ok(_) => self.intent = intent,
                Err(problems) => {
                    for problem in problems {
                        self.tell_problem(format!("{}: {problem}", file.display()));
                    }
                }
            }
        }
    }

    fn is_booted(&self, document: &ApplicationDocument) -> bool {
        let taken = &self.intent.record.boot;
        taken.get(&ApplicationKey::of(document).to_string()) == Some(&document.source.text)
    }
}

impl Intent {
    fn take_booted(&mut self, document: ApplicationDocument) {
        let key = ApplicationKey::of(&document);
        self.record
            .boot
            .insert(key.to_string(), document.source.text.clone());
        self.applications.insert(key, document);
    }
}

pub(super) fn parse_all(texts: &[DocumentText]) -> Result<Vec<ApplicationDocument>, Vec<String>> {
    let mut problems = Vec::new();
    let mut parsed = Vec::new();
    let mut seen = BTreeSet::new();
    for text in texts {
        match application::parse(Path::new(&text.file), &text.text) {
            Ok(documents) => {
                for document in documents {
                    let key = ApplicationKey::of(&document);
                    if !seen.insert(key.clone()) {
                        problems.push(format!(
                            "{}: application {key} is in another of these files, too: give it once",
                            text.file
                        ));
                    }
                    parsed.push(document);
                }
            }
            Err(found) => problems.extend(found.iter().map(ToString::to_string)),
        }
    }
    if problems.is_empty() {
        Ok(parsed)
    } else {
        Err(problems)
    }
}

/// The YAML files of the boot folder, in the order of their names.
fn boot_files(host_document: &Path) -> Vec<PathBuf> {
    let folder = host_document.parent().unwrap_or(Path::new(".")).join(BOOT_FOLDER);
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml" || extension == "yml")
        })
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(file: &str, text: &str) -> DocumentText {
        DocumentText {
            file: file.to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn mistakes_of_all_files_are_told_at_once() {
        let problems = parse_all(&[
            text("a.yaml", "name: shop\nservices: [ { nam: web } ]\n"),
            text("b.yaml", "name: shop\nservices: [ { name: web } ]\n"),
            text("c.yaml", "name: shop\nservices: [ { name: db } ]\n"),
        ])
        .unwrap_err();
        assert!(
            problems.iter().any(|problem| problem.starts_with("a.yaml:2:")),
            "{problems:?}"
        );
        assert!(
            problems
                .iter()
                .any(|problem| problem.starts_with("c.yaml: application default/shop")),
            "{problems:?}"
        );
    }
}
