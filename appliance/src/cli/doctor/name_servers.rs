//! Whether names of the world outside can be asked for: each name server that the agent asks is asked from here, too,
//! unless the agent has heard of it.

use super::{Finding, ok, warning};
use crate::agent::api::{DnsStatus, UpstreamSource, UpstreamState, UpstreamStatus};
use ring::rand::{SecureRandom as _, SystemRandom};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};
use tidegate_stack::responder::dns::{Question, Reply};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// The root, which every name server has heard of, and its name servers.
const ROOT: &[u8] = &[0];
const NS: u16 = 2;
/// Room for a datagram.
const LARGEST: usize = 4096;

/// Asks all of them at once.
pub(super) fn findings(dns: &DnsStatus) -> Vec<Finding> {
    if !dns.forwards {
        let text =
            "nothing is asked outside, as the host document says (`dns.upstream`): such names are refused";
        return vec![ok("dns", text)];
    }
    if dns.upstreams.is_empty() {
        return vec![warning(
            "dns",
            "no name server is known, so names of the world outside fail: name one in `dns.upstream` of the host \
             document, or in the file of `dns.resolv-conf`",
        )];
    }
    let asked: Vec<_> = thread::scope(|scope| {
        let one = |upstream| scope.spawn(move || heard(upstream));
        let all: Vec<_> = dns.upstreams.iter().map(one).collect();
        let answer = |thread: thread::ScopedJoinHandle<'_, _>| {
            let panicked = |_| Err(io::Error::other("the asking thread ended"));
            thread.join().unwrap_or_else(panicked)
        };
        all.into_iter().map(answer).collect()
    });
    let mut findings: Vec<_> = dns.upstreams.iter().zip(&asked).map(finding).collect();
    if asked.iter().all(Result::is_err) {
        findings.push(warning(
            "dns",
            "no name server answers: names of the world outside fail, but for those that were asked for within a day",
        ));
    }
    findings
}

fn finding((upstream, heard): (&UpstreamStatus, &io::Result<Duration>)) -> Finding {
    let address = upstream.address;
    let source = match upstream.source {
        UpstreamSource::Document => "`dns.upstream`",
        UpstreamSource::ResolvConf => "the file of `dns.resolv-conf`",
    };
    match heard {
        Ok(after) => ok(
            "name server",
            format!("{address} answers after {:.1} ms", after.as_secs_f64() * 1000.0),
        ),
        Err(error) => warning(
            "name server",
            format!(
                "{address}, out of {source}, doesn't answer ({error}): try `dig @{}` here; port {} must be open for UDP \
                 and TCP",
                address.ip(),
                address.port()
            ),
        ),
    }
}

/// How long an answer takes: what the agent knows of one that is up and has answered, else what is measured now.
fn heard(upstream: &UpstreamStatus) -> io::Result<Duration> {
    let known = upstream.round_trip_ms.filter(|_| upstream.answered > 0);
    match (upstream.state, known) {
        (UpstreamState::Up, Some(milliseconds)) => {
            Duration::try_from_secs_f64(milliseconds / 1000.0).map_err(io::Error::other)
        }
        (UpstreamState::Up | UpstreamState::Down | UpstreamState::Untried, _) => {
            ask(upstream.address, PATIENCE)
        }
    }
}

fn ask(server: SocketAddr, patience: Duration) -> io::Result<Duration> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut id = [0; 2];
    let drawn = SystemRandom::new().fill(&mut id);
    drawn.map_err(|_| io::Error::other("the kernel gives no randomness"))?;
    let question = Question::new(ROOT, NS).ok_or(io::ErrorKind::InvalidInput)?;
    let query = question.query(u16::from_be_bytes(id), [0; 32], true);
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    let began = Instant::now();
    socket.send(&query)?;
    let mut buffer = [0; LARGEST];
    loop {
        let left = patience.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Err(io::Error::other(format!(
                "no answer within {} s",
                patience.as_secs()
            )));
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv(&mut buffer) {
            // Whatever it says of the root: it is there.
            Ok(length) if Reply::accept(buffer.get(..length).unwrap_or_default(), &query).is_ok() => {
                return Ok(began.elapsed());
            }
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns(forwards: bool, servers: &[(SocketAddr, UpstreamState)]) -> DnsStatus {
        let upstreams = servers.iter().map(|(address, state)| UpstreamStatus {
            address: *address,
            source: UpstreamSource::Document,
            state: *state,
            round_trip_ms: (*state == UpstreamState::Up).then_some(1.25),
            asked: 1,
            answered: u64::from(*state == UpstreamState::Up),
            failed: 0,
            forged: 0,
        });
        DnsStatus {
            forwards,
            upstreams: upstreams.collect(),
            in_flight: 0,
            refused: 0,
            overflown: 0,
            datapath: None,
        }
    }

    fn text(findings: &[Finding]) -> String {
        super::super::render(&super::super::Findings {
            findings: findings.to_vec(),
        })
    }

    #[test]
    fn a_host_that_asks_nobody_is_well_and_one_that_knows_nobody_is_not() {
        assert!(text(&findings(&dns(false, &[]))).starts_with("ok "));
        assert!(text(&findings(&dns(true, &[]))).starts_with("warning "));
    }

    #[test]
    fn name_servers_are_asked_unless_the_agent_has_heard_of_them() {
        let up = SocketAddr::from(([192, 0, 2, 1], 53));
        let told = text(&findings(&dns(true, &[(up, UpstreamState::Up)])));
        assert_eq!(told, "ok       name server: 192.0.2.1:53 answers after 1.2 ms\n");

        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let answering = thread::spawn(move || {
            let mut buffer = [0; 512];
            let (length, asker) = server.recv_from(&mut buffer).unwrap();
            // Another identifier first: a forgery is no answer.
            let mut answer = buffer[..length].to_vec();
            answer[2] |= 0x80;
            answer[0] ^= 1;
            server.send_to(&answer, asker).unwrap();
            answer[0] ^= 1;
            server.send_to(&answer, asker).unwrap();
        });
        let told = text(&findings(&dns(true, &[(address, UpstreamState::Untried)])));
        answering.join().unwrap();
        assert!(
            told.starts_with(&format!("ok       name server: {address} answers")),
            "{told}"
        );
    }

    #[test]
    fn that_none_answers_is_told_with_each_of_them() {
        let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let told = text(&findings(&dns(true, &[(nobody, UpstreamState::Down)])));
        assert!(
            told.contains(&format!("warning  name server: {nobody}")),
            "{told}"
        );
        assert!(told.contains("no name server answers"), "{told}");
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let patience = Duration::from_millis(50);
        let error = ask(silent.local_addr().unwrap(), patience).unwrap_err();
        assert!(error.to_string().starts_with("no answer within"), "{error}");
    }
}
