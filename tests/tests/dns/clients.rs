//! Clients of all kinds, with the resolv.conf that an instance is given: dig's sisters, glibc, musl and busybox.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tidegate_tests::Lab;

use crate::instances::Instances;

/// Who asks, on both hosts.
const ASKERS: [&str; 2] = ["shop-web-1", "shop-web-2"];

/// Prints the addresses that getaddrinfo finds.
const GETADDRINFO: &str = r#"
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
int main(int count, char **words) {
    struct addrinfo hints, *found, *one;
    char text[64];
    memset(&hints, 0, sizeof hints);
    hints.ai_family = AF_INET;
    hints.ai_socktype = SOCK_STREAM;
    if (count < 2 || getaddrinfo(words[1], 0, &hints, &found)) return 1;
    for (one = found; one; one = one->ai_next)
        if (!getnameinfo(one->ai_addr, one->ai_addrlen, text, sizeof text, 0, 0, NI_NUMERICHOST)) puts(text);
    return 0;
}
"#;

/// Everybody finds the same, from both hosts.
pub(crate) fn every_client_finds_the_same(lab: &Lab, instances: &Instances) -> Result<()> {
    let own = |name: &str| -> Result<String> { Ok(instances.own(name)?.0.to_string()) };
    let shared = |name: &str| -> Result<String> { Ok(instances.shared(name)?.0.to_string()) };
    let names = [
        (
            "db",
            "db.shop.internal",
            vec![own("shop/db-1")?, own("shop/db-2")?],
        ),
        ("web-1", "web-1.shop.internal", vec![own("shop/web-1")?]),
        (
            "db.historian.internal",
            "db.historian.internal",
            vec![shared("historian/db-1")?, shared("historian/db-2")?],
        ),
    ];
    let musl = musl(lab)?.display().to_string();
    for asker in ASKERS {
        for (name, whole, mut expected) in names.clone() {
            expected.sort();
            let clients: [(&str, &[&str]); 5] = [
                ("kdig", &["kdig", "+short", whole, "A"]),
                ("kdig over TCP", &["kdig", "+tcp", "+edns", "+short", whole, "A"]),
                ("glibc", &["getent", "ahostsv4", name]),
                ("musl", &[&musl, name]),
                ("busybox", &["busybox", "nslookup", "-type=a", whole]),
            ];
            for (client, words) in clients {
                let text = lab.run(asker, words)?;
                let told = match client {
                    // The server's own address comes first.
                    "busybox" => text.split_once("\n\n").map_or("", |(_, answer)| answer),
                    _ => &text,
                };
                let words = told
                    .split_whitespace()
                    .filter(|word| word.parse::<std::net::Ipv4Addr>().is_ok());
                let mut found: Vec<String> = words.map(str::to_owned).collect();
                found.sort();
                found.dedup();
                ensure!(found == expected, "{asker}: {client} finds {name} at {text}");
            }
            let text = lab.run(asker, &["busybox", "ping", "-4", "-c", "1", "-W", "5", name])?;
            ensure!(
                expected.iter().any(|address| text.contains(address.as_str())),
                "{asker}: busybox pings {name}: {text}"
            );
        }
        // With its dot it is a name of the world beyond, of which nothing is known here.
        for words in [
            &["getent", "ahostsv4", "web.shop."] as &[_],
            &[&musl, "web.shop."],
        ] {
            let output = lab.attempt(asker, words)?;
            ensure!(!output.status.success(), "{asker}: {words:?} finds {output:?}");
        }
        let asked = lab.run(asker, &["kdig", "web.shop.", "A"])?;
        ensure!(asked.contains("status: REFUSED"), "{asker}: {asked}");
        let asked = lab.attempt(asker, &["busybox", "nslookup", "-type=a", "web.shop."])?;
        let asked = String::from_utf8_lossy(&asked.stdout).into_owned();
        ensure!(asked.contains("REFUSED"), "{asker}: {asked}");
        // Without it, and with fewer dots than `ndots`, the search list comes first: it is the own application's.
        for words in [&["getent", "ahostsv4", "web.shop"] as &[_], &[&musl, "web.shop"]] {
            let text = lab.run(asker, words)?;
            ensure!(text.contains(&own("shop/web-1")?), "{asker}: {words:?}: {text}");
        }
    }
    println!(
        "kdig, glibc, musl and busybox find db, web-1 and db.historian.internal; web.shop. is asked outside"
    );
    Ok(())
}

/// A program of musl's getaddrinfo, made here: Debian has the library, and nothing that is built with it.
fn musl(lab: &Lab) -> Result<PathBuf> {
    let source = lab.write("getaddrinfo.c", GETADDRINFO)?;
    let program = lab.folder().join("getaddrinfo");
    let made = Command::new("musl-gcc")
        .args(["-static", "-o"])
        .args([&program, &source])
        .status()
        .context("starting musl-gcc, of Debian's musl-tools")?;
    ensure!(made.success(), "musl-gcc failed ({made})");
    ensure!(fs::metadata(&program)?.is_file(), "musl-gcc made nothing");
    Ok(program)
}
