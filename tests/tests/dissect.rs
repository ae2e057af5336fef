//! What the parse makes of random and damaged packets, beside scapy's dissection of the same bytes.
//!
//! `tests/scripts/dissect.py` makes the packets and tells what scapy reads of each. From that alone this file derives by
//! which of our rules the packet is to be refused ([`reasons`]). Then a packet that none applies to must be accepted and
//! read alike, and one that is refused must be so for one of them: 0 unexplained differences in 10,000 packets, or in a
//! million with `TIDEGATE_LONG=1`. `TIDEGATE_SEED` chooses other ones.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use tidegate_stack::drop::DropReason::{
    self, BadChecksum, ExtensionHeader, FragmentHeader, IpOptions, Malformed,
};
use tidegate_stack::wire::{Headers, Transport};
use tidegate_tests::is_long;

const PYTHON: &str = "/usr/bin/python3";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/dissect.py");
/// Differences that are told of before the story ends.
const TOLD: usize = 20;

#[test]
fn packets_are_read_as_scapy_reads_them_or_refused_by_a_rule() -> Result<()> {
    if !has_scapy() {
        eprintln!("skipped: python3-scapy isn't installed");
        return Ok(());
    }
    let packets: u64 = if is_long() { 1_000_000 } else { 10_000 };
    let seed: u64 = std::env::var("TIDEGATE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(1);
    let processes = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let shares = (0..processes).map(|number| {
        let count = packets / processes + u64::from(number < packets % processes);
        std::thread::spawn(move || compare(seed + number, count))
    });
    let mut total = Tally::default();
    for share in shares.collect::<Vec<_>>() {
        let tally = share.join().map_err(|_| anyhow::anyhow!("a share panicked"))??;
        total.add(tally);
    }
    println!("{} packets: {:?}", total.packets, total.outcomes);
    ensure!(
        total.packets == packets,
        "{} of {packets} packets came",
        total.packets
    );
    ensure!(
        total.unexplained.is_empty(),
        "unexplained:\n{}",
        total.unexplained.join("\n")
    );
    // Each rule was met, and so was every kind of packet that is accepted.
    for outcome in [
        "malformed",
        "bad-checksum",
        "ip-options",
        "extension-header",
        "fragment-header",
        "tcp",
        "udp",
        "echo",
        "icmp",
        "fragment",
        "other",
    ] {
        ensure!(total.outcomes.contains_key(outcome), "no packet was {outcome}");
    }
    Ok(())
}

fn has_scapy() -> bool {
    Command::new(PYTHON)
        .args(["-c", "import scapy.layers.inet6, scapy.layers.ipsec"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// What became of the packets.
#[derive(Default)]
struct Tally {
    packets: u64,
    outcomes: BTreeMap<&'static str, u64>,
    unexplained: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.packets += other.packets;
        for (outcome, count) in other.outcomes {
            *self.outcomes.entry(outcome).or_default() += count;
        }
        self.unexplained.extend(other.unexplained);
    }
}

/// Compares what one run of the script says.
fn compare(seed: u64, count: u64) -> Result<Tally> {
    let mut script = Command::new(PYTHON)
        .args([SCRIPT, &seed.to_string(), &count.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .context("running dissect.py")?;
    let output = script.stdout.take().context("its output")?;
    let mut tally = Tally::default();
    for line in BufReader::new(output).lines() {
        let line = line?;
        let entry: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        let packet = bytes(entry["bytes"].as_str().context("bytes")?)?;
        let parsed = Headers::parse(&packet);
        tally.packets += 1;
        *tally.outcomes.entry(outcome(&parsed)).or_default() += 1;
        if let Err(difference) = explain(&packet, &entry["view"], &parsed)
            && tally.unexplained.len() < TOLD
        {
            tally.unexplained.push(format!("{difference:#}: {line}"));
        }
    }
    ensure!(script.wait()?.success(), "dissect.py failed");
    Ok(tally)
}

fn bytes(hexadecimal: &str) -> Result<Vec<u8>> {
    let digits = hexadecimal.as_bytes().chunks(2);
    let byte = |pair: &[u8]| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?);
    digits.map(byte).collect()
}

fn outcome(parsed: &Result<Headers, DropReason>) -> &'static str {
    match parsed.map(|headers| headers.transport) {
        Err(reason) => reason.label(),
        Ok(Transport::Tcp { .. }) => "tcp",
        Ok(Transport::Udp { .. }) => "udp",
        Ok(Transport::Echo { .. }) => "echo",
        Ok(Transport::IcmpError | Transport::IcmpOther) => "icmp",
        Ok(Transport::Fragment) => "fragment",
        Ok(Transport::Other) => "other",
    }
}

/// Whether a packet was accepted and is read alike, or was refused by a rule that applies.
fn explain(packet: &[u8], view: &Value, parsed: &Result<Headers, DropReason>) -> Result<()> {
    let reasons = reasons(packet, view)?;
    match parsed {
        Ok(headers) => {
            ensure!(reasons.is_empty(), "accepted, though {reasons:?}");
            reads_alike(view, headers)
        }
        Err(reason) => {
            ensure!(
                reasons.contains(reason),
                "refused as {reason:?}, not as {reasons:?}"
            );
            Ok(())
        }
    }
}

fn number(view: &Value, key: &str) -> Result<usize> {
    let value = view.get(key).and_then(Value::as_u64);
    Ok(usize::try_from(
        value.with_context(|| format!("scapy says no {key}"))?,
    )?)
}

/// The rules by which a packet is to be refused, as scapy sees it. A length that contradicts hides what is behind it.
fn reasons(packet: &[u8], view: &Value) -> Result<Vec<DropReason>> {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= 20 => reasons_ipv4(packet, view),
        Some(6) if packet.len() >= 40 => reasons_ipv6(packet, view),
        _ => Ok(vec![Malformed]),
    }
}

fn reasons_ipv4(packet: &[u8], view: &Value) -> Result<Vec<DropReason>> {
    let (header, total) = (number(view, "header")?, number(view, "total")?);
    if header < 20 || total < header || total > packet.len() {
        return Ok(vec![Malformed]);
    }
    let mut reasons = Vec::new();
    if number(view, "sum")? != 0 {
        reasons.push(BadChecksum);
    }
    for option in view["options"].as_array().context("options")? {
        match (option[0].as_u64(), option[1].as_u64()) {
            (Some(0), _) => break,
            (Some(1), _) | (Some(148), Some(4)) => {}
            (Some(148), _) => {
                reasons.push(Malformed);
                break;
            }
            _ => {
                reasons.push(IpOptions);
                break;
            }
        }
    }
    let (protocol, offset) = (number(view, "number")?, number(view, "offset")?);
    // Bit 0 of scapy's flags is MF.
    let more = number(view, "flags")? & 1 != 0;
    let data = total - header;
    if offset > 0 || more {
        if data == 0 || (more && data % 8 != 0) || offset + total > 65_535 {
            reasons.push(Malformed);
        }
        if (offset == 8 && protocol == 6) || (offset == 0 && data < least(protocol, false)) {
            reasons.push(FragmentHeader);
        }
    } else if is_malformed_transport(&view["transport"], data, protocol, false)? {
        reasons.push(Malformed);
    }
    Ok(reasons)
}

fn reasons_ipv6(packet: &[u8], view: &Value) -> Result<Vec<DropReason>> {
    let payload = number(view, "payload")?;
    if 40 + payload > packet.len() {
        return Ok(vec![Malformed]);
    }
    let mut reasons = Vec::new();
    let mut rest = payload;
    let mut part = None;
    for (index, header) in view["chain"].as_array().context("chain")?.iter().enumerate() {
        let kind = number(header, "number")?;
        let is_misplaced = (kind == 0 && index > 0) || (kind == 44 && part.is_some());
        if is_misplaced || index >= 8 {
            reasons.push(ExtensionHeader);
        }
        // A first fragment ends before its headers do, or a packet does.
        let cut_short = match part {
            Some((_, true)) => FragmentHeader,
            _ => Malformed,
        };
        if rest < 8 {
            reasons.push(cut_short);
            return Ok(reasons);
        }
        let length = number(header, "length")?;
        if kind == 43 && matches!(number(header, "route")?, 0 | 4) {
            reasons.push(ExtensionHeader);
        }
        if kind == 51 && (length < 12 || length % 8 != 0) {
            reasons.push(Malformed);
            return Ok(reasons);
        }
        if payload - rest + length > 256 {
            reasons.push(ExtensionHeader);
        }
        if length > rest {
            reasons.push(cut_short);
            return Ok(reasons);
        }
        rest -= length;
        if kind == 44 && part.is_none() {
            let (offset, more) = (number(header, "offset")?, number(header, "more")? != 0);
            let is_part = offset > 0 || more;
            let unfragmentable = payload - rest - 8;
            if (is_part && rest == 0) || (more && rest % 8 != 0) || unfragmentable + offset + rest > 65_535 {
                reasons.push(Malformed);
            }
            part = Some((offset, more));
        }
    }
    let transport = &view["transport"];
    let protocol = number(transport, "number")?;
    match protocol {
        // scapy ends the chain of a later fragment, behind which a header in a wrong place may be announced.
        50 | 59 | 135 | 139 | 140 | 253 | 254 | 0 | 44 => reasons.push(ExtensionHeader),
        _ => match part {
            Some((offset, _)) if offset > 0 => {}
            Some((_, true)) if rest < least(protocol, true) => reasons.push(FragmentHeader),
            Some((_, true)) => {}
            _ if is_malformed_transport(transport, rest, protocol, true)? => reasons.push(Malformed),
            _ => {}
        },
    }
    Ok(reasons)
}

/// The shortest header of a transport that is looked into.
fn least(protocol: usize, ipv6: bool) -> usize {
    match (protocol, ipv6) {
        (6, _) => 20,
        (17, _) | (1, false) | (58, true) => 8,
        _ => 0,
    }
}

fn is_malformed_transport(view: &Value, available: usize, protocol: usize, ipv6: bool) -> Result<bool> {
    if available < least(protocol, ipv6) {
        return Ok(true);
    }
    let (header, shortest) = match protocol {
        6 => ("tcp", 20),
        17 => ("udp", 8),
        _ => return Ok(false),
    };
    let length = number(&view[header], "length")?;
    Ok(length < shortest || length > available)
}

/// Whether every field that was read is what scapy reads.
fn reads_alike(view: &Value, headers: &Headers) -> Result<()> {
    let mut differences = String::new();
    let mut same = |what: &str, ours: String, theirs: String| {
        if ours != theirs {
            let _ = write!(differences, "{what}: {ours} and {theirs}; ");
        }
    };
    let of = |view: &Value, key: &str| number(view, key).map(|number| number.to_string());
    let address = |key: &str| -> Result<String> {
        let address: std::net::IpAddr = view[key].as_str().context("an address")?.parse()?;
        Ok(address.to_string())
    };
    same("source", headers.source.to_string(), address("source")?);
    same(
        "destination",
        headers.destination.to_string(),
        address("destination")?,
    );
    same("hops", headers.hop_limit.to_string(), of(view, "hops")?);
    same("class", headers.traffic_class.to_string(), of(view, "class")?);
    let transport = &view["transport"];
    let (start, total, field) = if headers.is_ipv6() {
        let chain = view["chain"].as_array().context("chain")?;
        let field = chain.iter().find(|header| header["number"] == 44);
        let lengths = chain.iter().map(|header| number(header, "length"));
        // Behind the fragment header of a part stands data.
        let is_part = headers.transport == Transport::Fragment;
        let until = chain.iter().position(|header| is_part && header["number"] == 44);
        let counted = until.map_or(chain.len(), |index| index + 1);
        let start = 40 + lengths.take(counted).sum::<Result<usize>>()?;
        let place = field
            .map(|field| Ok::<_, anyhow::Error>((number(field, "offset")?, number(field, "more")? != 0)));
        (
            start,
            40 + number(view, "payload")?,
            place.transpose()?.zip(field),
        )
    } else {
        let place = (number(view, "offset")?, number(view, "flags")? & 1 != 0);
        let is_part = place.0 > 0 || place.1;
        let df = number(view, "flags")? & 2 != 0;
        same(
            "don't fragment",
            headers.dont_fragment.to_string(),
            df.to_string(),
        );
        (
            number(view, "header")?,
            number(view, "total")?,
            is_part.then_some((place, view)),
        )
    };
    same("start", headers.transport_offset.to_string(), start.to_string());
    same("length", headers.total_length.to_string(), total.to_string());
    let place = headers.fragment.map(|field| (field.offset, field.more));
    same(
        "place",
        format!("{place:?}"),
        format!("{:?}", field.map(|(place, _)| place)),
    );
    match headers.transport {
        Transport::Fragment => {
            let (_, said) = field.context("scapy sees no fragment")?;
            let next = if headers.is_ipv6() { "next" } else { "number" };
            same("protocol", headers.protocol.to_string(), of(said, next)?);
            same(
                "name",
                headers.identification.to_string(),
                of(said, "identification")?,
            );
            ensure!(differences.is_empty(), "{differences}");
            return Ok(());
        }
        Transport::Tcp {
            source_port,
            destination_port,
            flags,
            sequence,
            acknowledgement,
            window,
        } => {
            let tcp = &transport["tcp"];
            same("source port", source_port.to_string(), of(tcp, "source")?);
            same(
                "destination port",
                destination_port.to_string(),
                of(tcp, "destination")?,
            );
            same("flags", flags.to_string(), of(tcp, "flags")?);
            same("sequence", sequence.to_string(), of(tcp, "sequence")?);
            same(
                "acknowledgement",
                acknowledgement.to_string(),
                of(tcp, "acknowledgement")?,
            );
            same("window", window.to_string(), of(tcp, "window")?);
            let payload = (start + number(tcp, "length")?).to_string();
            same("payload", headers.payload_offset.to_string(), payload);
        }
        Transport::Udp {
            source_port,
            destination_port,
        } => {
            let udp = &transport["udp"];
            same("source port", source_port.to_string(), of(udp, "source")?);
            same(
                "destination port",
                destination_port.to_string(),
                of(udp, "destination")?,
            );
        }
        Transport::Echo { identifier, request } => {
            let icmp = &transport["icmp"];
            same("identifier", identifier.to_string(), of(icmp, "identifier")?);
            let kind = match (headers.is_ipv6(), request) {
                (false, false) => 0,
                (false, true) => 8,
                (true, true) => 128,
                (true, false) => 129,
            };
            same("type", kind.to_string(), of(icmp, "type")?);
        }
        Transport::IcmpError | Transport::IcmpOther => {
            let kind = number(&transport["icmp"], "type")?;
            let is_error = match headers.is_ipv6() {
                true => kind < 128,
                false => matches!(kind, 3 | 4 | 5 | 11 | 12),
            };
            let ours = headers.transport == Transport::IcmpError;
            same("error", ours.to_string(), is_error.to_string());
        }
        Transport::Other => {
            let known = least(headers.protocol.into(), headers.is_ipv6());
            same("looked into", "0".to_owned(), known.to_string());
        }
    }
    same("protocol", headers.protocol.to_string(), of(transport, "number")?);
    same("name", headers.identification.to_string(), "0".to_owned());
    ensure!(differences.is_empty(), "{differences}");
    Ok(())
}
