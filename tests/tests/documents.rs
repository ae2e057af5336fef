//! Documents with mistakes: all of them told at once, and what runs goes on as it was.

use anyhow::{Result, ensure};
use tidegate_fixtures as fixtures;
use tidegate_tests::Lab;

#[test]
fn documents_with_mistakes_are_refused_whole_with_every_mistake_at_its_place() -> Result<()> {
    let Some(lab) = Lab::up_fixture("tgt-documents", &fixtures::topology("one-host"))? else {
        return Ok(());
    };
    let status = |lab: &Lab| -> Result<_> {
        let status = lab.tidegate("h1", &["status"])?;
        Ok((
            status.pointer("/datapath/epoch").cloned(),
            lab.tidegate("h1", &["show", "apps"])?,
        ))
    };
    let before = status(&lab)?;
    for broken in fixtures::broken("applications") {
        let document = broken.document.display().to_string();
        let output = lab.attempt_tidegate("h1", &["apply", &document])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(1),
            "{document} was not refused with 1: {}",
            output.status
        );
        for line in std::fs::read_to_string(&broken.expected)?.lines() {
            ensure!(said.contains(line), "{document}: `{line}` isn't among:\n{said}");
        }
    }
    ensure!(status(&lab)? == before, "a refused document changed something");
    let target = lab.address("shop-db-1", "-4")?.to_string();
    lab.run("shop-web-1", &["ping", "-q", "-c", "3", "-i", "0.2", &target])?;
    lab.close()
}

#[test]
fn host_document_with_mistakes_keeps_an_agent_from_starting() -> Result<()> {
    let Some(lab) = Lab::up_fixture("tgt-host-doc", &fixtures::topology("one-host"))? else {
        return Ok(());
    };
    for broken in fixtures::broken("hosts") {
        let document = broken.document.display().to_string();
        let folder = lab.folder().join("empty").display().to_string();
        let words = [
            "agent",
            "--config",
            &document,
            "--run-dir",
            &folder,
            "--state-dir",
            &folder,
        ];
        let output = lab.attempt_tidegate("client", &words)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(1),
            "{document} was not refused with 1: {}",
            output.status
        );
        for line in std::fs::read_to_string(&broken.expected)?.lines() {
            ensure!(said.contains(line), "{document}: `{line}` isn't among:\n{said}");
        }
    }
    lab.close()
}
