//! Who has no certificate of the site gets nothing, and each is told for what it is.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType, date_time_ymd};
use serde_json::Value;
use tidegate_tests::{Lab, binary, wait_until};

const NAME: &str = "tgt-certificates";
const PATIENCE: Duration = Duration::from_secs(20);

/// Who comes with what, and what is told about it.
const STRANGERS: [(&str, &str); 5] = [
    ("h3", "isn't of this site's authority"),
    ("h4", "has expired"),
    ("h5", "is of site elsewhere"),
    ("h6", "isn't valid yet"),
    // Without a certificate it doesn't even come to a link.
    ("h7", "can't be reached"),
];

#[test]
fn hosts_without_a_good_certificate_get_nothing_and_are_told_apart() -> Result<()> {
    if binary().is_none() {
        return Ok(());
    }
    let folder = std::env::temp_dir().join(format!("{NAME}-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let made = make_certificates(&folder).and_then(|()| story(&folder));
    fs::remove_dir_all(&folder)?;
    made
}

#[expect(clippy::print_stdout, reason = "what is told of strangers is worth a look")]
fn story(folder: &Path) -> Result<()> {
    let Some(lab) = Lab::up(NAME, &topology(folder), &[("shop.yaml", SHOP)])? else {
        return Ok(());
    };
    for good in ["h1", "h2"] {
        for (stranger, fault) in STRANGERS {
            wait_until(
                &format!("{good} tells that {stranger} was refused: {fault}"),
                PATIENCE,
                || {
                    let status = lab.tidegate(good, &["status"])?;
                    let events = status
                        .pointer("/site-link/events")
                        .and_then(Value::as_array)
                        .context("status tells no events")?;
                    Ok(events.iter().any(|event| {
                        let text = event.get("event").and_then(Value::as_str).unwrap_or_default();
                        text.contains(stranger) && text.contains(fault)
                    }))
                },
            )?;
        }
        // The good ones know each other, and nobody else.
        ensure!(
            alive(&lab, good)? == 1,
            "{good} takes a stranger for a host of its site"
        );
        let peers = lab.tidegate(good, &["peers"])?;
        let peers = peers
            .pointer("/peers")
            .and_then(Value::as_array)
            .context("no list of peers")?;
        for peer in peers {
            let name = peer.get("name").and_then(Value::as_str).unwrap_or_default();
            let sessions = peer.get("sessions").and_then(Value::as_u64);
            if STRANGERS.iter().any(|(stranger, _)| *stranger == name) {
                ensure!(sessions == Some(0), "{good} has a session with {name}: {peer}");
            }
        }
    }
    let status = lab.tidegate("h1", &["status"])?;
    let events = status.pointer("/site-link/events").and_then(Value::as_array);
    for event in events.into_iter().flatten() {
        println!(
            "h1: {}",
            event.get("event").and_then(Value::as_str).unwrap_or_default()
        );
    }
    for (stranger, _) in STRANGERS {
        ensure!(alive(&lab, stranger)? == 0, "{stranger} was told something");
    }
    let problems = lab.tidegate("h7", &["status"])?["problems"].to_string();
    ensure!(
        problems.contains("h7.pem"),
        "h7 doesn't say what it has no link for: {problems}"
    );
    // Instances of strangers are unknown, and packets pass neither way.
    let own = lab.address("shop-web-1", "-4")?.to_string();
    for (stranger, _) in STRANGERS {
        let foreign = change(&lab, stranger, "attach")?;
        let foreign = foreign.pointer("/addresses/0").and_then(Value::as_str);
        let foreign = foreign.context("attach tells no address")?;
        ensure!(
            !knows(&lab, "h1", foreign)?,
            "h1 was told of {foreign} on {stranger}"
        );
        for (from, to) in [("shop-web-1", foreign), ("spare", &own)] {
            let ping = lab.attempt(from, &["ping", "-q", "-c", "2", "-i", "0.2", "-W", "1", to])?;
            let said = String::from_utf8_lossy(&ping.stdout);
            ensure!(said.contains(" 0 received"), "{from} reaches {to}: {said}");
        }
        change(&lab, stranger, "detach")?;
    }
    // The others go on.
    let other = lab.address("shop-web-2", "-4")?.to_string();
    ensure!(knows(&lab, "h1", &other)?, "h1 doesn't know of {other} any more");
    lab.run(
        "shop-web-1",
        &["ping", "-q", "-c", "2", "-i", "0.2", "-W", "1", &other],
    )?;
    lab.close()
}

/// Attaches the spare namespace as an instance of the application, or detaches it.
fn change(lab: &Lab, host: &str, verb: &str) -> Result<Value> {
    let spare = lab.namespace("spare");
    let keys = "--tenant acme --application shop --service web --instance 9";
    let mut words = vec![verb, "--netns", &spare];
    words.extend(keys.split(' '));
    if verb == "attach" {
        // The namespace has an eth0 of its own.
        words.extend(["--interface", "tg0"]);
    }
    lab.tidegate(host, &words)
}

/// How many hosts a host takes for alive; none when it has no link.
fn alive(lab: &Lab, host: &str) -> Result<u64> {
    let status = lab.tidegate(host, &["status"])?;
    let alive = status.pointer("/site-link/hosts-alive").and_then(Value::as_u64);
    Ok(alive.unwrap_or(0))
}

/// Whether a host was told of an instance with this address.
fn knows(lab: &Lab, host: &str, address: &str) -> Result<bool> {
    let told = lab.tidegate(host, &["show", "instances"])?;
    let elsewhere = told.get("elsewhere").and_then(Value::as_array);
    Ok(elsewhere
        .context("show instances tells of no other host")?
        .iter()
        .any(|one| one["addresses"].to_string().contains(&format!("\"{address}\""))))
}

const SHOP: &str = "tenant: acme\nname: shop\nservices:\n  - name: web\n";

/// All hosts get the story's own certificates; `h5` believes to be of another site, and `h7` has none.
fn topology(folder: &Path) -> String {
    let hosts: String = (1..=7)
        .map(|number| {
            let file = |kind: &str| folder.join(format!("h{number}.{kind}")).display().to_string();
            let site = if number == 5 { "site: elsewhere, " } else { "" };
            format!(
                "  h{number}:
    ordinal: {number}
    interfaces: [ {{ segment: lan, addresses: [192.0.2.1{number}] }} ]
    document: {{ {site}cluster: {{ ca-file: \"{}\", certificate-file: \"{}\", private-key-file: \"{}\" }} }}
",
                folder.join("site.pem").display(),
                file("pem"),
                file("key")
            )
        })
        .collect();
    format!(
        "segments: {{ lan: {{ ipv4: 192.0.2.0/24 }} }}
hosts:
{hosts}nodes:
  spare: {{ interfaces: [ {{ segment: lan, addresses: [192.0.2.50] }} ] }}
applications: [ shop.yaml ]
instances:
  - {{ application: shop, service: web, host: h1 }}
  - {{ application: shop, service: web, host: h2 }}
"
    )
}

/// An authority of the story, and one that nobody else knows.
fn make_certificates(folder: &Path) -> Result<()> {
    let (site, foreign) = (authority()?, authority()?);
    // Whoever comes from elsewhere takes this site's authority for its own: it must be refused, not refuse.
    fs::write(folder.join("site.pem"), &site.certificate)?;
    let usual = (2025, 2045);
    for (host, signer, of_site, (from, to)) in [
        ("h1", &site, NAME, usual),
        ("h2", &site, NAME, usual),
        ("h3", &foreign, NAME, usual),
        ("h4", &site, NAME, (2020, 2021)),
        ("h5", &site, "elsewhere", usual),
        ("h6", &site, NAME, (2044, 2045)),
    ] {
        let mut params = CertificateParams::default();
        let name = format!("tidegate://{of_site}/{host}");
        params.subject_alt_names = vec![SanType::URI(name.try_into()?)];
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &signer.issuer)?;
        let file = |kind: &str| -> PathBuf { folder.join(format!("{host}.{kind}")) };
        fs::write(file("pem"), certificate.pem())?;
        fs::write(file("key"), key.serialize_pem())?;
        fs::set_permissions(file("key"), fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

fn authority() -> Result<Authority> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2045, 1, 1);
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?.pem();
    Ok(Authority {
        certificate,
        issuer: Issuer::new(params, key),
    })
}
