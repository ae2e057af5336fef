//! The proof that nothing sent inside can be read outside: random markers travel from an instance to one on another
//! host, while every frame on the underlay is searched for them; and the control, the same search inside the receiver,
//! which must find them all.

use super::super::build::{INSTANCE_DEVICE, Lab};
use super::super::host_document;
use super::super::{Error, WhileDoing as _};
use super::report::Secrecy;
use super::search::{MARKER, Marker, Search};
use super::traffic::{self, Pair};
use super::wire::{Kind, Underlay};
use crate::sys::netlink::Netlink;
use crate::sys::netns;
use crate::sys::packet_socket::{LARGEST_FRAME, PacketSocket};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Markers sent in datagrams, and in one TCP connection.
const DATAGRAM_MARKERS: usize = 8_000;
const STREAM_MARKERS: usize = 2_000;

/// How long a tap listens on after the last marker was acknowledged.
const LINGER: Duration = Duration::from_millis(200);

/// How long a tap goes on with a wire that never falls silent.
const DRAIN: Duration = Duration::from_secs(2);

/// How many strangers on the wire are told.
const STRANGERS_TOLD: usize = 5;

/// Sends markers between the pair and searches both ends' wires.
pub(super) fn prove(pair: Pair<'_>) -> Result<Secrecy, Error> {
    let markers = random_markers(DATAGRAM_MARKERS + STREAM_MARKERS)?;
    let (lab, text) = (pair.lab, pair.title());
    let Some(host) = lab
        .blueprint
        .hosts
        .iter()
        .find(|host| host.name == pair.from.instance.host)
    else {
        return Err(Error::NotFound(format!(
            "there is no host {}",
            pair.from.instance.host
        )));
    };
    let device = host.interface.clone().unwrap_or_else(|| "eth0".to_owned());
    let underlay = underlay(lab);
    let outside = tap(lab.namespace(&host.namespace)?, &device)?;
    let inside = tap(lab.namespace(&pair.to.instance.namespace)?, INSTANCE_DEVICE)?;
    let done = AtomicBool::new(false);

    std::thread::scope(|scope| {
        // Titles hold a slash and are long enough that ciphertext doesn't hold them by chance; they travel beside the
        // markers. Shorter names are looked for where no ciphertext is.
        let titles: Vec<String> = lab
            .instances
            .iter()
            .map(|attached| attached.instance.title())
            .collect();
        let mut ciphered = Search::new(&markers, &titles);
        let mut readable = Search::new(&[], &short_names(lab));
        let (underlay, done_ref) = (&underlay, &done);
        let watching = scope.spawn(move || {
            let mut seen = Seen::default();
            let lost = watch(outside, done_ref, |frame| {
                let (kind, clear) = underlay.classify(frame);
                seen.count(kind);
                ciphered.look(frame);
                readable.look_for_texts(clear);
            })?;
            Ok::<_, Error>((seen, ciphered, readable, lost))
        });
        let mut control = Search::new(&markers, &titles);
        let controlling = scope.spawn(move || {
            let lost = watch(inside, done_ref, |frame| control.look(frame))?;
            Ok::<_, Error>((control, lost))
        });

        let (datagrams, stream) = markers.split_at(DATAGRAM_MARKERS);
        let sent = traffic::exchange_datagrams(pair, datagrams, &text)
            .and_then(|first| Ok(first + traffic::exchange_stream(pair, stream, &text)?));
        std::thread::sleep(LINGER);
        done.store(true, Ordering::Relaxed);
        let (seen, ciphered, readable, lost) = watching
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let (control, control_lost) = controlling
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(Secrecy {
            from: pair.from.instance.title(),
            to: pair.to.instance.title(),
            device: format!("{device} of {}", host.namespace),
            markers: markers.len(),
            markers_delivered: sent?,
            markers_outside: ciphered.markers_found(),
            markers_inside: control.markers_found(),
            names_outside: [ciphered.texts_found(), readable.texts_found()].concat(),
            names_inside: control.texts_found(),
            frames: seen.frames,
            lane_messages: seen.lanes,
            link_datagrams: seen.links,
            discovery: seen.discovery,
            strangers: seen.strangers,
            strangers_told: seen.told,
            frames_lost: lost + control_lost,
        })
    })
}

#[derive(Default)]
struct Seen {
    frames: u64,
    lanes: BTreeMap<u8, u64>,
    links: u64,
    discovery: u64,
    strangers: u64,
    told: Vec<String>,
}

impl Seen {
    fn count(&mut self, kind: Kind) {
        self.frames += 1;
        match kind {
            Kind::Lane(message) => *self.lanes.entry(message).or_default() += 1,
            Kind::Link => self.links += 1,
            Kind::Discovery => self.discovery += 1,
            Kind::Stranger(what) => {
                self.strangers += 1;
                if self.told.len() < STRANGERS_TOLD && !self.told.contains(&what) {
                    self.told.push(what);
                }
            }
        }
    }
}

fn random_markers(count: usize) -> Result<Vec<Marker>, Error> {
    let mut bytes = vec![0; count * MARKER];
    fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .while_doing(|| "drawing markers".to_owned())?;
    Ok(bytes.as_chunks::<MARKER>().0.to_vec())
}

/// One random marker.
pub(super) fn random_marker() -> Result<Marker, Error> {
    Ok(random_markers(1)?.first().copied().unwrap_or_default())
}

/// The prefixes and ports of everything that may be on the segments.
fn underlay(lab: &Lab) -> Underlay {
    let hosts = lab.blueprint.hosts.iter();
    let ends = lab.blueprint.segments.iter().flat_map(|segment| &segment.ends);
    Underlay {
        prefixes: ends
            .flat_map(|end| &end.addresses)
            .map(ipnet::IpNet::trunc)
            .collect(),
        lanes: hosts.clone().map(host_document::lane_ports).collect(),
        links: hosts.map(host_document::control_port).collect(),
    }
}

/// Names of applications and instances, as they would stand in a DNS message or an error text.
fn short_names(lab: &Lab) -> Vec<String> {
    let mut names = Vec::new();
    for attached in &lab.instances {
        names.push(attached.instance.application.clone());
        names.push(format!(
            "{}-{}",
            attached.instance.service, attached.instance.number
        ));
    }
    names.sort();
    names.dedup();
    names
}

/// A tap on a device of a namespace.
pub(super) fn tap(namespace: BorrowedFd<'_>, device: &str) -> Result<PacketSocket, Error> {
    let open = || {
        let index = Netlink::open()?.link_index(device)?;
        PacketSocket::open(index)
    };
    netns::within(namespace, open)
        .and_then(|opened| opened)
        .while_doing(|| format!("tapping {device}"))
}

/// Hands every frame to `look` until `done` and nothing more comes; gives how many frames were lost.
pub(super) fn watch(
    mut tap: PacketSocket,
    done: &AtomicBool,
    mut look: impl FnMut(&[u8]),
) -> Result<u32, Error> {
    let doing = || "receiving frames".to_owned();
    let mut buffer = vec![0; LARGEST_FRAME];
    let mut ending: Option<Instant> = None;
    loop {
        if done.load(Ordering::Relaxed) && ending.get_or_insert_with(Instant::now).elapsed() > DRAIN {
            return tap.lost().while_doing(doing);
        }
        match tap
            .receive(&mut buffer, Duration::from_millis(50))
            .while_doing(doing)?
        {
            Some(length) => look(buffer.get(..length).unwrap_or_default()),
            None if done.load(Ordering::Relaxed) => return tap.lost().while_doing(doing),
            None => {}
        }
    }
}
