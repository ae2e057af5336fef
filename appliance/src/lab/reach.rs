//! Waits until a lab is whole: every instance reaches every other one of its application that policy lets it reach.

use super::Error;
use super::build::{Attached, check_interruption};
use super::echo::{Echo, Outcome};
use super::ground::Ground;
use super::verdict;
use crate::sys::interruption;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long it may take until every instance reaches its peers.
const ALL_REACHED: Duration = Duration::from_secs(20);

/// How long one echo request may take.
const ECHO: Duration = Duration::from_millis(400);

/// Waits until every instance gets echo replies from every other one of its application, over each of its addresses,
/// but for those that a rule keeps from it.
pub(super) fn wait(lab: &str, attached: &[Attached], ground: &Ground) -> Result<(), Error> {
    let deadline = Instant::now() + ALL_REACHED;
    let waiting = attached.iter().map(|from| {
        let peers: Vec<&Attached> = attached
            .iter()
            .filter(|to| to.instance != from.instance)
            .filter(|to| to.instance.is_of_the_same_application_as(&from.instance))
            .collect();
        move || wait_for_peers(lab, from, &peers, ground, deadline)
    });
    let mut missing = Vec::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = waiting.map(|wait| scope.spawn(wait)).collect();
        for thread in threads {
            missing.extend(
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            );
        }
    });
    check_interruption()?;
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "lab {lab}: after {ALL_REACHED:?} there is no answer:\n{}",
        missing.join("\n")
    )))
}

fn wait_for_peers(
    lab: &str,
    from: &Attached,
    peers: &[&Attached],
    ground: &Ground,
    deadline: Instant,
) -> Vec<String> {
    let mut missing = Vec::new();
    for (number, peer) in peers.iter().enumerate() {
        for address in &peer.addresses {
            let identifier = u16::try_from(number).unwrap_or(u16::MAX);
            if let Err(why) = wait_for_peer(lab, from, *address, identifier, ground, deadline) {
                let (from, host) = (from.instance.title(), &from.instance.host);
                let (peer, peer_host) = (peer.instance.title(), &peer.instance.host);
                missing.push(format!(
                    "  {from} (on {host}) can't reach {peer} (on {peer_host}) at {address}: {why}"
                ));
            }
        }
    }
    missing
}

fn wait_for_peer(
    lab: &str,
    from: &Attached,
    address: IpAddr,
    identifier: u16,
    ground: &Ground,
    deadline: Instant,
) -> Result<(), String> {
    let namespace = ground
        .namespace(&from.instance.namespace)
        .map_err(|error| error.to_string())?;
    let mut echo = Echo::open(namespace, address, identifier).map_err(|error| error.to_string())?;
    loop {
        let why = match echo.ask(ECHO) {
            Ok(Outcome::Reached(_)) => return Ok(()),
            Ok(Outcome::Refused) => "refused".to_owned(),
            Ok(Outcome::Silence) => "silence".to_owned(),
            Err(error) => error.to_string(),
        };
        if verdict::of(lab, from, address, None).is_ok_and(|trace| verdict::is_denied_by_a_rule(&trace)) {
            return Ok(());
        }
        if Instant::now() > deadline || interruption::requested() {
            return Err(why);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
