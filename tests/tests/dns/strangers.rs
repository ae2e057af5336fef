//! Nothing is told of an application to who isn't in it: by guessing, by walking, or under another's address.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tidegate_tests::{Answer, Lab, Question, wait_until};

use crate::SERVICE_ADDRESS;
use crate::instances::{Instances, reversed};

/// Who asks, on both hosts, and whose names they want.
const ASKERS: [&str; 2] = ["shop-web-1", "shop-web-2"];
const WANTED: &str = "acme/blue";
/// Whatever has one of these in its answer, has told something.
const TELLING: [&str; 5] = ["blue", "secret", "vault", "sealed", "hidden"];

/// Types of records that are asked for (IANA: Domain Name System Parameters).
const KINDS: [(&str, u16); 9] = [
    ("A", 1),
    ("NS", 2),
    ("SOA", 6),
    ("PTR", 12),
    ("TXT", 16),
    ("AAAA", 28),
    ("SRV", 33),
    ("NSEC", 47),
    ("ANY", 255),
];
const TRANSFERS: [(&str, u16); 2] = [("IXFR", 251), ("AXFR", 252)];
/// RFC 1035 §4.1.1.
const NXDOMAIN: u8 = 3;
const REFUSED: u8 = 5;

const PATIENCE: Duration = Duration::from_secs(5);

/// A dictionary that knows every name there is, and every way to walk from one to the next.
pub(crate) fn nothing_is_told_of_another_application(lab: &Lab, instances: &Instances) -> Result<()> {
    let dictionary = dictionary(lab)?;
    let walk = walk(instances)?;
    ensure!(
        dictionary.iter().any(|name| name == "secret.blue.internal"),
        "the dictionary has nothing to find: {dictionary:?}"
    );
    let mut asked = 0;
    for asker in ASKERS {
        lab.inside(asker, || {
            for name in dictionary.iter().chain(&walk) {
                for (title, kind) in KINDS {
                    let answer = question(name, kind)?.ask(kind, PATIENCE)?;
                    let answer = answer.with_context(|| format!("{asker}: {name} {title}: no answer"))?;
                    tells_nothing(name, &answer)
                        .with_context(|| format!("{asker} asked for {name} {title}"))?;
                    asked += 1;
                }
            }
            for zone in [
                "internal",
                "blue.internal",
                "blue.acme.internal",
                "19.172.in-addr.arpa",
            ] {
                for (title, kind) in TRANSFERS {
                    let answer = question(zone, kind)?.ask_by_tcp(kind, PATIENCE)?;
                    ensure!(
                        answer.rcode == REFUSED && answer.counts == [0; 3],
                        "{asker}: {title} of {zone}: {answer:?}"
                    );
                    asked += 1;
                }
            }
            Ok(())
        })?;
    }
    println!(
        "0 of {WANTED}'s names by {asked} questions for {} names from a dictionary and {} by walking",
        dictionary.len(),
        walk.len()
    );
    Ok(())
}

fn question(name: &str, kind: u16) -> Result<Question> {
    Ok(Question {
        server: format!("{SERVICE_ADDRESS}:53").parse()?,
        name: name.to_owned(),
        kind,
    })
}

/// A name of theirs isn't there, or not asked here; one that the asker's network has too is answered by its own.
fn tells_nothing(name: &str, answer: &Answer) -> Result<()> {
    let behind = String::from_utf8_lossy(&answer.behind).to_lowercase();
    ensure!(
        !TELLING.iter().any(|word| behind.contains(word)),
        "told: {behind:?}"
    );
    let name = name.to_lowercase();
    if TELLING.iter().any(|word| name.contains(word)) {
        ensure!(
            [NXDOMAIN, REFUSED].contains(&answer.rcode) && answer.counts[0] == 0,
            "there is such a name: {answer:?}"
        );
    }
    Ok(())
}

/// Every name that the agents list for the application, in every spelling there is: with the tenant, in capitals, as
/// what the search list makes of it, without the domain.
fn dictionary(lab: &Lab) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for host in ["h1", "h2"] {
        let list = lab.tidegate(host, &["show", "names"])?;
        let list = list.get("names").and_then(Value::as_array).context("a list")?;
        for line in list {
            let text = |key: &str| line.get(key).and_then(Value::as_str);
            if text("network") == Some(WANTED) {
                names.insert(text("name").context("a name")?.to_owned());
            }
        }
    }
    let spellings = names.iter().flat_map(|name| {
        [
            name.clone(),
            name.to_uppercase(),
            name.replace(".blue.internal", ".blue.acme.internal"),
            name.replace(".internal", ".shop.internal"),
            name.replace(".internal", ".internal.internal"),
            name.replace(".internal", ""),
        ]
    });
    Ok(spellings.collect())
}

/// Names between the zone's apex and its leaves, beside and below them; every address of the blocks that both hosts have,
/// and every step down to the application's IPv6 addresses.
fn walk(instances: &Instances) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for name in [
        "blue.internal",
        "blue.acme.internal",
        "_tcp.secret.blue.internal",
        "_udp.secret.blue.internal",
        "*.blue.internal",
        "*.internal",
        "a.secret.blue.internal",
        "\u{1}.blue.internal",
        "secret-0.blue.internal",
        "secret-3.blue.internal",
        "_acme-challenge.blue.internal",
        "blue",
        "acme.internal",
    ] {
        names.insert(name.to_owned());
    }
    for host in [1, 2] {
        for index in 0..=255 {
            names.insert(reversed([172, 19, host, index].into()));
        }
    }
    for instance in ["blue/secret-1", "blue/secret-2"] {
        let whole = reversed(instances.own(instance)?.1.into());
        let labels: Vec<&str> = whole.split('.').collect();
        names.extend((0..labels.len()).filter_map(|from| Some(labels.get(from..)?.join("."))));
    }
    Ok(names)
}

/// A question under an address of the other application, or of another member, is dropped and counted, each.
pub(crate) fn a_forged_source_is_told_nothing(lab: &Lab, instances: &Instances) -> Result<()> {
    let script = lab.write("forged_names.py", include_str!("../../scripts/forged_names.py"))?;
    let script = script.display().to_string();
    let counted = || -> Result<u64> {
        Ok(lab
            .drops("h1")?
            .get("source-not-own")
            .copied()
            .unwrap_or_default())
    };
    let own = instances.own("blue/secret-2")?;
    let ipv6 = instances.fill("{n6 shop/web-1}")?;
    let before = counted()?;
    let mut all = 0;
    for (server, source) in [
        (SERVICE_ADDRESS, own.0.to_string()),
        (SERVICE_ADDRESS, instances.shared("historian/db-1")?.0.to_string()),
        (ipv6.as_str(), own.1.to_string()),
        (ipv6.as_str(), instances.own("blue/secret-1")?.1.to_string()),
    ] {
        let names = [
            "secret.blue.internal",
            "secret-1.blue.acme.internal",
            "blue.internal",
        ];
        let words = [&["/usr/bin/python3", &script, server, &source], &names[..]].concat();
        let said = lab.run("shop-web-1", &words)?;
        let (sent, answered) = said.trim().split_once(' ').context("two numbers")?;
        ensure!(answered == "0", "from {source}: {answered} answers");
        all += sent.parse::<u64>()?;
    }
    wait_until("every forged question is counted", Duration::from_secs(5), || {
        Ok(counted()? >= before + all)
    })?;
    let after = counted()?;
    ensure!(
        after == before + all,
        "{all} were sent and {} counted",
        after - before
    );
    println!("{all} questions under addresses of others: no answer, and each is counted");
    Ok(())
}
