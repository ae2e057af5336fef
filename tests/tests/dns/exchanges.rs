//! What dig is told, word for word, on every host the same.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tidegate_tests::{Answer, Lab, Question, framed, read_framed};

use crate::SERVICE_ADDRESS;
use crate::instances::Instances;

/// Whether answers say that questions about the world beyond are taken (RFC 1035 §4.1.1, RA).
const RECURSION_AVAILABLE: bool = false;

/// Who asks: an application's instances on both hosts.
const SHOP: [&str; 2] = ["shop-web-1", "shop-web-2"];
const HISTORIAN: [&str; 2] = ["historian-db-1", "historian-db-2"];
const BLUE: [&str; 2] = ["blue-secret-1", "blue-secret-2"];
const MILL: [&str; 2] = ["mill-db-1", "mill-db-2"];

const NODATA: &str =
    "NOERROR aa rd edns | ! internal. 5 SOA ns.internal. hostmaster.internal. 1 3600 600 86400 5";
const NXDOMAIN: &str =
    "NXDOMAIN aa rd edns | ! internal. 5 SOA ns.internal. hostmaster.internal. 1 3600 600 86400 5";
const NO_POINTER: &str =
    "NXDOMAIN aa rd edns | ! 19.172.in-addr.arpa. 5 SOA ns.internal. hostmaster.internal. 1 3600 600 86400 5";
const NOTHING_BELOW: &str =
    "NOERROR aa rd edns | ! 19.172.in-addr.arpa. 5 SOA ns.internal. hostmaster.internal. 1 3600 600 86400 5";
const REFUSED: &str = "REFUSED rd edns";
const WEB: &str = "= web.shop.internal. 5 A {4 shop/web-1} | = web.shop.internal. 5 A {4 shop/web-2}";
const DB_1: &str = "= db-1.shop.internal. 5 A {4 shop/db-1}";

/// Who asks; dig's options, the name and the type; and what is told: status, flags but QR and RA, whether there is
/// EDNS, and `=` the answer, `!` the authority, `+` the additional section, with times to live. Names in braces are those
/// of [`Instances::fill`], names in angle brackets are the constants above.
#[rustfmt::skip]
const EXCHANGES: &[([&str; 2], &str, &str, &str, &str)] = &[
    // Services and instances, of one's own application and of one in a shared network, with and without the tenant.
    (SHOP, "", "web.shop.internal", "A", "NOERROR aa rd edns | <WEB>"),
    (SHOP, "", "web.shop.internal", "AAAA", "NOERROR aa rd edns | = web.shop.internal. 5 AAAA {6 shop/web-1} | = web.shop.internal. 5 AAAA {6 shop/web-2}"),
    (SHOP, "", "web-2.shop.internal", "A", "NOERROR aa rd edns | = web-2.shop.internal. 5 A {4 shop/web-2}"),
    (SHOP, "", "web-1.shop.internal", "AAAA", "NOERROR aa rd edns | = web-1.shop.internal. 5 AAAA {6 shop/web-1}"),
    (SHOP, "", "db.shop.internal", "A", "NOERROR aa rd edns | = db.shop.internal. 5 A {4 shop/db-1} | = db.shop.internal. 5 A {4 shop/db-2}"),
    (SHOP, "", "web.shop.acme.internal", "A", "NOERROR aa rd edns | = web.shop.acme.internal. 5 A {4 shop/web-1} | = web.shop.acme.internal. 5 A {4 shop/web-2}"),
    (SHOP, "", "db-2.shop.acme.internal", "AAAA", "NOERROR aa rd edns | = db-2.shop.acme.internal. 5 AAAA {6 shop/db-2}"),
    (SHOP, "", "db.historian.internal", "A", "NOERROR aa rd edns | = db.historian.internal. 5 A {s4 historian/db-1} | = db.historian.internal. 5 A {s4 historian/db-2}"),
    (SHOP, "", "db-1.historian.acme.internal", "AAAA", "NOERROR aa rd edns | = db-1.historian.acme.internal. 5 AAAA {s6 historian/db-1}"),
    (HISTORIAN, "", "db.historian.internal", "A", "NOERROR aa rd edns | = db.historian.internal. 5 A {4 historian/db-1} | = db.historian.internal. 5 A {4 historian/db-2}"),
    (HISTORIAN, "", "web.shop.internal", "A", "NOERROR aa rd edns | = web.shop.internal. 5 A {s4 shop/web-1} | = web.shop.internal. 5 A {s4 shop/web-2}"),
    (MILL, "", "db.mill.zeta.internal", "AAAA", "NOERROR aa rd edns | = db.mill.zeta.internal. 5 AAAA {6 mill/db-1} | = db.mill.zeta.internal. 5 AAAA {6 mill/db-2}"),
    (BLUE, "", "secret.blue.internal", "A", "NOERROR aa rd edns | = secret.blue.internal. 5 A {4 blue/secret-1} | = secret.blue.internal. 5 A {4 blue/secret-2}"),
    // Others' names don't exist: of the tenant, or of another one that has a shared network of the same name.
    (SHOP, "", "secret.blue.internal", "A", NXDOMAIN),
    (SHOP, "", "secret.blue.acme.internal", "AAAA", NXDOMAIN),
    (SHOP, "", "db.mill.internal", "A", NXDOMAIN),
    (SHOP, "", "db.mill.zeta.internal", "A", NXDOMAIN),
    (MILL, "", "web.shop.acme.internal", "A", NXDOMAIN),
    (MILL, "", "db.mill.acme.internal", "A", NXDOMAIN),
    (BLUE, "", "db.historian.internal", "A", NXDOMAIN),
    // Forms of transport.
    (SHOP, "+noedns", "db-1.shop.internal", "A", "NOERROR aa rd | <DB_1>"),
    (SHOP, "+tcp", "db-1.shop.internal", "A", "NOERROR aa rd edns | <DB_1>"),
    (SHOP, "+tcp +noedns", "db-1.shop.internal", "A", "NOERROR aa rd | <DB_1>"),
    (SHOP, "+bufsize=512", "db-1.shop.internal", "A", "NOERROR aa rd edns | <DB_1>"),
    (SHOP, "+bufsize=1232", "db-1.shop.internal", "A", "NOERROR aa rd edns | <DB_1>"),
    (SHOP, "+bufsize=4096", "db-1.shop.internal", "A", "NOERROR aa rd edns | <DB_1>"),
    (SHOP, "+bufsize=0", "db-1.shop.internal", "A", "NOERROR aa rd edns | <DB_1>"),
    (SHOP, "+noedns", "nobody.shop.internal", "A", "NXDOMAIN aa rd | ! internal. 5 SOA ns.internal. hostmaster.internal. 1 3600 600 86400 5"),
    // What is too long for a datagram: as much as fits and TC; whole on a connection.
    (SHOP, "+bufsize=1232", "wide.shop.internal", "TXT", "NOERROR aa rd edns | = wide.shop.internal. 5 TXT \"a=x…\" | = wide.shop.internal. 5 TXT \"b=x…\" | = wide.shop.internal. 5 TXT \"c=x…\""),
    (SHOP, "+noedns +ignore", "wide.shop.internal", "TXT", "NOERROR aa tc rd | = wide.shop.internal. 5 TXT \"a=x…\" | = wide.shop.internal. 5 TXT \"b=x…\""),
    (SHOP, "+bufsize=512 +ignore", "wide.shop.internal", "TXT", "NOERROR aa tc rd edns | = wide.shop.internal. 5 TXT \"a=x…\" | = wide.shop.internal. 5 TXT \"b=x…\""),
    (SHOP, "+bufsize=4096 +ignore", "long.shop.internal", "TXT", "NOERROR aa tc rd edns | = long.shop.internal. 5 TXT \"a=x…\" | = long.shop.internal. 5 TXT \"b=x…\" | = long.shop.internal. 5 TXT \"c=x…\" | = long.shop.internal. 5 TXT \"d=x…\" | = long.shop.internal. 5 TXT \"e=x…\" | = long.shop.internal. 5 TXT \"f=x…\" | = long.shop.internal. 5 TXT \"g=x…\""),
    (SHOP, "+bufsize=4096", "long.shop.internal", "TXT", "retried NOERROR aa rd edns | = long.shop.internal. 5 TXT \"a=x…\" | = long.shop.internal. 5 TXT \"b=x…\" | = long.shop.internal. 5 TXT \"c=x…\" | = long.shop.internal. 5 TXT \"d=x…\" | = long.shop.internal. 5 TXT \"e=x…\" | = long.shop.internal. 5 TXT \"f=x…\" | = long.shop.internal. 5 TXT \"g=x…\" | = long.shop.internal. 5 TXT \"h=x…\""),
    (SHOP, "+noedns", "wide.shop.internal", "TXT", "retried NOERROR aa rd | = wide.shop.internal. 5 TXT \"a=x…\" | = wide.shop.internal. 5 TXT \"b=x…\" | = wide.shop.internal. 5 TXT \"c=x…\""),
    // The case of the question comes back, and doesn't matter.
    (SHOP, "", "dB-1.ShOp.InTeRnAl", "A", "NOERROR aa rd edns | = dB-1.ShOp.InTeRnAl. 5 A {4 shop/db-1}"),
    (SHOP, "", "NOBODY.shop.Internal", "A", "NXDOMAIN aa rd edns | ! Internal. 5 SOA ns.internal. hostmaster.internal. 1 3600 600 86400 5"),
    (SHOP, "", "2.1.19.172.IN-addr.ARPA", "PTR", "NOERROR aa rd edns | = 2.1.19.172.IN-addr.ARPA. 5 PTR web-1.shop.internal."),
    // Services' ports and texts.
    (SHOP, "", "_http._tcp.web.shop.internal", "SRV", "NOERROR aa rd edns | = _http._tcp.web.shop.internal. 5 SRV 0 0 80 web-1.shop.internal. | = _http._tcp.web.shop.internal. 5 SRV 0 0 80 web-2.shop.internal. | + web-1.shop.internal. 5 A {4 shop/web-1} | + web-1.shop.internal. 5 AAAA {6 shop/web-1} | + web-2.shop.internal. 5 A {4 shop/web-2} | + web-2.shop.internal. 5 AAAA {6 shop/web-2}"),
    (HISTORIAN, "", "_stats._udp.web.shop.acme.internal", "SRV", "NOERROR aa rd edns | = _stats._udp.web.shop.acme.internal. 5 SRV 0 0 8125 web-1.shop.acme.internal. | = _stats._udp.web.shop.acme.internal. 5 SRV 0 0 8125 web-2.shop.acme.internal. | + web-1.shop.acme.internal. 5 A {s4 shop/web-1} | + web-1.shop.acme.internal. 5 AAAA {s6 shop/web-1} | + web-2.shop.acme.internal. 5 A {s4 shop/web-2} | + web-2.shop.acme.internal. 5 AAAA {s6 shop/web-2}"),
    (SHOP, "", "_http._udp.web.shop.internal", "SRV", NXDOMAIN),
    (SHOP, "", "web.shop.internal", "TXT", "NOERROR aa rd edns | = web.shop.internal. 5 TXT \"build=17\""),
    (SHOP, "", "_acme-challenge.web.shop.internal", "TXT", "NOERROR aa rd edns | = _acme-challenge.web.shop.internal. 5 TXT \"token\""),
    (HISTORIAN, "", "_acme-challenge.web.shop.acme.internal", "TXT", "NOERROR aa rd edns | = _acme-challenge.web.shop.acme.internal. 5 TXT \"token\""),
    (SHOP, "", "_acme-challenge.db.shop.internal", "TXT", NXDOMAIN),
    // Types that aren't there, a service without instances, and empty non-terminals (RFC 8020).
    (SHOP, "", "web.shop.internal", "MX", NODATA),
    (SHOP, "", "web.shop.internal", "HTTPS", NODATA),
    (SHOP, "", "web.shop.internal", "TYPE65280", NODATA),
    (SHOP, "", "db.shop.internal", "TXT", NODATA),
    (SHOP, "", "worker.shop.internal", "A", NODATA),
    (SHOP, "", "worker.shop.internal", "AAAA", NODATA),
    (SHOP, "", "shop.internal", "A", NODATA),
    (SHOP, "", "acme.internal", "A", NODATA),
    (SHOP, "", "historian.acme.internal", "TXT", NODATA),
    (SHOP, "", "_tcp.web.shop.internal", "SRV", NODATA),
    // Neither exists, nor does what is below, beside or above.
    (SHOP, "", "nobody.shop.internal", "A", NXDOMAIN),
    (SHOP, "", "web-3.shop.internal", "A", NXDOMAIN),
    (SHOP, "", "a.web.shop.internal", "A", NXDOMAIN),
    (SHOP, "", "web.internal", "A", NXDOMAIN),
    (SHOP, "", "blue.internal", "A", NXDOMAIN),
    // The apex.
    (SHOP, "", "internal", "SOA", "NOERROR aa rd edns | = internal. 5 SOA ns.internal. hostmaster.internal. 1 3600 600 86400 5"),
    (SHOP, "", "internal", "NS", "NOERROR aa rd edns | = internal. 5 NS ns.internal. | + ns.internal. 5 A 172.19.0.1 | + ns.internal. 5 AAAA {n6 shop/web-1}"),
    (SHOP, "", "internal", "A", NODATA),
    (BLUE, "", "ns.internal", "AAAA", "NOERROR aa rd edns | = ns.internal. 5 AAAA {n6 blue/secret-1}"),
    // Reverse zones, and their edges.
    (SHOP, "", "{r4 shop/web-2}", "PTR", "NOERROR aa rd edns | = {r4 shop/web-2}. 5 PTR web-2.shop.internal."),
    (SHOP, "", "{r6 shop/db-1}", "PTR", "NOERROR aa rd edns | = {r6 shop/db-1}. 5 PTR db-1.shop.internal."),
    (SHOP, "", "{rs4 historian/db-2}", "PTR", "NOERROR aa rd edns | = {rs4 historian/db-2}. 5 PTR db-2.historian.internal."),
    (SHOP, "", "{rs6 historian/db-1}", "PTR", "NOERROR aa rd edns | = {rs6 historian/db-1}. 5 PTR db-1.historian.internal."),
    (BLUE, "", "2.1.19.172.in-addr.arpa", "PTR", "NOERROR aa rd edns | = 2.1.19.172.in-addr.arpa. 5 PTR secret-1.blue.internal."),
    (SHOP, "", "1.0.19.172.in-addr.arpa", "PTR", "NOERROR aa rd edns | = 1.0.19.172.in-addr.arpa. 5 PTR ns.internal."),
    (SHOP, "", "19.172.in-addr.arpa", "SOA", "NOERROR aa rd edns | = 19.172.in-addr.arpa. 5 SOA ns.internal. hostmaster.internal. 1 3600 600 86400 5"),
    (SHOP, "", "1.19.172.in-addr.arpa", "PTR", NOTHING_BELOW),
    (SHOP, "", "250.9.19.172.in-addr.arpa", "PTR", NO_POINTER),
    (SHOP, "", "1.2.1.19.172.in-addr.arpa", "PTR", NO_POINTER),
    (SHOP, "", "{z6 shop/web-1}", "NS", "NOERROR aa rd edns | = {z6 shop/web-1}. 5 NS ns.internal. | + ns.internal. 5 A 172.19.0.1 | + ns.internal. 5 AAAA {n6 shop/web-1}"),
    (SHOP, "", "{zs4 shop/web-1}", "SOA", "NOERROR aa rd edns | = {zs4 shop/web-1}. 5 SOA ns.internal. hostmaster.internal. 1 3600 600 86400 5"),
    (SHOP, "", "{r6 blue/secret-1}", "PTR", REFUSED),
    (SHOP, "", "172.in-addr.arpa", "SOA", REFUSED),
    // ANY (RFC 8482).
    (SHOP, "", "web.shop.internal", "ANY", "NOERROR aa rd edns | = web.shop.internal. 5 HINFO \"RFC8482\" \"\""),
    (SHOP, "+tcp", "internal", "ANY", "NOERROR aa rd edns | = internal. 5 HINFO \"RFC8482\" \"\""),
    (SHOP, "", "worker.shop.internal", "ANY", NODATA),
    (SHOP, "", "nobody.shop.internal", "ANY", NXDOMAIN),
    // Flags and EDNS.
    (SHOP, "+norecurse", "db-1.shop.internal", "A", "NOERROR aa edns | <DB_1>"),
    (SHOP, "+cdflag +adflag", "db-1.shop.internal", "A", "NOERROR aa rd cd edns | <DB_1>"),
    (SHOP, "+dnssec", "db-1.shop.internal", "A", "NOERROR aa rd edns do | <DB_1>"),
    (SHOP, "+nocookie +ednsopt=65001:c0ffee", "db-1.shop.internal", "A", "NOERROR aa rd edns | <DB_1>"),
    (SHOP, "+nsid +subnet=192.0.2.0/24", "db-1.shop.internal", "A", "NOERROR aa rd edns | <DB_1>"),
    (SHOP, "+ednsflags=0x4000", "db-1.shop.internal", "A", "NOERROR aa rd edns | <DB_1>"),
    (SHOP, "+edns=1 +noednsnegotiation", "db-1.shop.internal", "A", "BADVERS rd edns"),
    (SHOP, "+edns=255 +noednsnegotiation +tcp", "nobody.shop.internal", "A", "BADVERS rd edns"),
    // What isn't answered here.
    (SHOP, "+opcode=STATUS", "db-1.shop.internal", "A", "NOTIMP rd"),
    (SHOP, "+opcode=NOTIFY", "internal", "SOA", "NOTIMP rd"),
    (SHOP, "+opcode=UPDATE", "internal", "SOA", "NOTIMP rd"),
    (SHOP, "+opcode=15 +tcp", "db-1.shop.internal", "A", "NOTIMP rd"),
    (SHOP, "+header-only", "", "", "FORMERR rd"),
    (SHOP, "-c CH", "db-1.shop.internal", "A", REFUSED),
    (SHOP, "-c CH", "version.bind", "TXT", REFUSED),
    (SHOP, "-c ANY", "db-1.shop.internal", "A", REFUSED),
    (SHOP, "", "internal", "AXFR", "Transfer failed"),
    (SHOP, "", "19.172.in-addr.arpa", "AXFR", "Transfer failed"),
    (SHOP, "", "internal", "IXFR=1", "Transfer failed"),
    // The world beyond has no upstream here.
    (SHOP, "", "www.example.test", "A", REFUSED),
    (SHOP, "", "web.shop", "A", REFUSED),
    (SHOP, "", "notinternal", "A", REFUSED),
    (SHOP, "+tcp +noedns", ".", "NS", "REFUSED rd"),
];

/// Asks everything of the table on both hosts.
pub(crate) fn every_exchange_is_as_written(lab: &Lab, instances: &Instances) -> Result<()> {
    let mut wrong = Vec::new();
    for (askers, options, name, kind, expected) in EXCHANGES {
        let (name, expected) = (instances.fill(name)?, instances.fill(&spelled_out(expected))?);
        let expected = sorted(&expected);
        for asker in askers {
            let words: Vec<&str> = options.split_whitespace().chain(named(&name, kind)).collect();
            let text = dig(lab, asker, &words)?;
            let told = told(&text, &name, kind)
                .with_context(|| format!("{asker}: dig {}: {text}", words.join(" ")))?;
            if told != expected {
                wrong.push(format!(
                    "{asker}: dig {}\n  is told {told}\n  and not {expected}",
                    words.join(" ")
                ));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!(
        "{} exchanges are as written, on both hosts the same",
        EXCHANGES.len()
    );
    Ok(())
}

fn spelled_out(text: &str) -> String {
    text.replace("<WEB>", WEB).replace("<DB_1>", DB_1)
}

/// A name and a type as dig takes them; without a name there is no question.
fn named<'a>(name: &'a str, kind: &'a str) -> impl Iterator<Item = &'a str> {
    let words = ["-q", name, "-t", kind];
    words.into_iter().take(if name.is_empty() { 0 } else { 4 })
}

/// What dig prints; that a transfer failed is no failure of dig's.
fn dig(lab: &Lab, asker: &str, words: &[&str]) -> Result<String> {
    let server = format!("@{SERVICE_ADDRESS}");
    let words = [&["dig", &server, "+tries=1", "+time=5"], words].concat();
    let output = lab.attempt(asker, &words)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success() || text.contains("Transfer failed"),
        "`{}` failed: {text}{}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

/// What dig prints as the table has it. The question is what was asked, letter by letter, and the header counts what is
/// there.
fn told(text: &str, name: &str, kind: &str) -> Result<String> {
    if text.contains("Transfer failed") {
        return Ok("Transfer failed".to_owned());
    }
    let mut words = Vec::new();
    if text.contains("Truncated, retrying in TCP mode") {
        words.push("retried".to_owned());
    }
    let between = |from: &str, to: char| text.split_once(from)?.1.split(to).next().map(str::trim);
    words.push(between("status: ", ',').context("no status")?.to_owned());
    let flags = between(";; flags:", ';').context("no flags")?;
    let mut flags: Vec<&str> = flags.split_whitespace().collect();
    ensure!(flags.contains(&"qr"), "not an answer");
    ensure!(flags.contains(&"ra") == RECURSION_AVAILABLE, "RA: {flags:?}");
    flags.retain(|flag| !["qr", "ra"].contains(flag));
    words.extend(flags.into_iter().map(str::to_owned));
    let edns = between("; EDNS: ", '\n');
    if let Some(edns) = edns {
        ensure!(
            edns.starts_with("version: 0, flags:") && edns.contains("udp: 1232"),
            "{edns}"
        );
        words.push("edns".to_owned());
        words.extend(edns.contains("flags: do;").then(|| "do".to_owned()));
    }

    let mut parts = vec![words.join(" ")];
    let mut counts = [0; 4];
    let mut section = None;
    for line in text.lines() {
        if let Some(title) = line.strip_prefix(";; ") {
            section = match title {
                "QUESTION SECTION:" => Some((0, '?')),
                "ANSWER SECTION:" => Some((1, '=')),
                "AUTHORITY SECTION:" => Some((2, '!')),
                "ADDITIONAL SECTION:" => Some((3, '+')),
                _ => None,
            };
            continue;
        }
        let Some((index, sign)) = section.filter(|_| !line.trim().is_empty()) else {
            continue;
        };
        counts[index] += 1;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [asked, _class, asked_kind] if sign == '?' => ensure!(
                asked.trim_start_matches(';').trim_end_matches('.') == name.trim_end_matches('.')
                    && *asked_kind == kind,
                "another question comes back: {line}"
            ),
            [owner, seconds, "IN", rest @ ..] => {
                let record = format!("{sign} {owner} {seconds} {}", rest.join(" "));
                parts.push(record.replace(&"x".repeat(150), "x…"));
            }
            _ => anyhow::bail!("not a record: {line}"),
        }
    }
    counts[3] += usize::from(edns.is_some());
    for (title, count) in ["QUERY: ", "ANSWER: ", "AUTHORITY: ", "ADDITIONAL: "]
        .iter()
        .zip(counts)
    {
        let digits = text.split_once(title).map_or("", |(_, rest)| rest);
        let digits = digits.split(|c: char| !c.is_ascii_digit()).next();
        ensure!(
            digits.and_then(|digits| digits.parse().ok()) == Some(count),
            "the header's {title} isn't {count}"
        );
    }
    Ok(sorted(&parts.join(" | ")))
}

/// The records of every section in an order of their own: the order of answers rotates.
fn sorted(text: &str) -> String {
    let mut parts: Vec<&str> = text.split(" | ").collect();
    if let Some((_, records)) = parts.split_first_mut() {
        records.sort_unstable();
    }
    parts.join(" | ")
}

/// `dns: { order: fixed }` keeps the order, else instances take turns; each shard has turns of its own.
pub(crate) fn answers_rotate_unless_they_are_fixed(lab: &Lab, instances: &Instances) -> Result<()> {
    for asker in SHOP {
        let firsts = |name: &str| -> Result<Vec<String>> {
            let asked = |_| {
                let text = dig(lab, asker, &["+short", name, "A"])?;
                Ok(text.lines().next().unwrap_or_default().to_owned())
            };
            (0..6).map(asked).collect()
        };
        let (web, db) = (firsts("web.shop.internal")?, firsts("db.shop.internal")?);
        let first = instances.own("shop/web-1")?.0.to_string();
        ensure!(web.iter().all(|told| *told == first), "{asker}: web: {web:?}");
        for instance in ["shop/db-1", "shop/db-2"] {
            let address = instances.own(instance)?.0.to_string();
            let count = db.iter().filter(|told| **told == address).count();
            ensure!(count > 0, "{asker}: {instance} was never first: {db:?}");
        }
    }
    println!("a service's instances take turns, unless their order is fixed");
    Ok(())
}

/// Several queries in one write, and one behind it in two: the answers come one after the other, to what was asked (RFC
/// 7766 §6.2.1.1), and dig's on a connection that it keeps.
pub(crate) fn queries_on_one_connection_are_answered_in_turn(lab: &Lab, instances: &Instances) -> Result<()> {
    let question = |name: &str| -> Result<Question> {
        Ok(Question {
            server: format!("{SERVICE_ADDRESS}:53").parse()?,
            name: name.to_owned(),
            kind: 1,
        })
    };
    let names = ["web-1", "nobody", "web-2", "db-1"].map(|name| format!("{name}.shop.internal"));
    let questions = names
        .iter()
        .map(|name| question(name))
        .collect::<Result<Vec<_>>>()?;
    let (first, second) = (instances.own("shop/web-1")?.0, instances.own("shop/web-2")?.0);
    let (db, patience) = (instances.own("shop/db-1")?.0, Duration::from_secs(5));
    let expected = [(0, Some(first)), (3, None), (0, Some(second)), (0, Some(db))];
    for asker in SHOP {
        lab.inside(asker, || {
            let mut stream = TcpStream::connect_timeout(&questions[0].server, patience)?;
            stream.set_read_timeout(Some(patience))?;
            let queries: Vec<Vec<u8>> = (0..).zip(&questions).map(|(id, one)| one.query(id)).collect();
            let all: Vec<u8> = queries.iter().flat_map(|query| framed(query)).collect();
            let (together, behind) = all.split_at(all.len() - 20);
            stream.write_all(together)?;
            for (index, (query, (rcode, address))) in queries.iter().zip(expected).enumerate() {
                if index == 3 {
                    stream.write_all(behind)?;
                }
                let answer = Answer::read(&read_framed(&mut stream)?, query)?;
                let addresses: Vec<_> = address.into_iter().map(Into::into).collect();
                ensure!(
                    (answer.rcode, &answer.addresses) == (rcode, &addresses),
                    "{asker}: query {index}: {answer:?}"
                );
            }
            Ok(())
        })?;
        let kept = [
            "+tcp",
            "+keepopen",
            "+short",
            "web-1.shop.internal",
            "db-1.shop.internal",
        ];
        let text = dig(lab, asker, &kept)?;
        ensure!(
            text.lines().eq([first.to_string(), db.to_string()]),
            "{asker}: {text}"
        );
    }
    println!("queries on one connection are answered in turn");
    Ok(())
}
