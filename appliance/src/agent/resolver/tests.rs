//! The resolver beside name servers that do what a test says, on loopback.

use super::*;
use crate::config::host;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 81);
const SERVER_FAILURE: u8 = 2;
/// Far longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Udp,
    Tcp,
}

/// How it was asked what, and from which port.
type Asked = (By, Vec<u8>, u16);

/// A name server, UDP and TCP.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    /// One that answers a query, the n-th of its kind, with some messages.
    async fn start(answers: impl Fn(By, usize, &[u8]) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Self {
        let (datagrams, streams) = loop {
            let streams = TcpListener::bind("127.0.0.1:0").await.unwrap();
            // Another one may have the port of the other kind.
            if let Ok(datagrams) = UdpSocket::bind(streams.local_addr().unwrap()).await {
                break (datagrams, streams);
            }
        };
        let address = datagrams.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<_>>> = Arc::default();
        let answers = Arc::new(answers);
        let note = |asked: &Mutex<Vec<Asked>>, by, query: &[u8], from: SocketAddr| {
            let mut asked = asked.lock().unwrap();
            let before = asked.iter().filter(|(other, ..)| *other == by).count();
            asked.push((by, query.to_vec(), from.port()));
            before
        };
        let (noted, said) = (Arc::clone(&asked), Arc::clone(&answers));
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = datagrams.recv_from(&mut buffer).await {
                let query = &buffer[..length];
                let number = note(&noted, By::Udp, query, from);
                for answer in said(By::Udp, number, query) {
                    datagrams.send_to(&answer, from).await.unwrap();
                }
            }
        });
        let noted = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut stream, from)) = streams.accept().await {
                let length = stream.read_u16().await.unwrap();
                let mut query = vec![0; length.into()];
                stream.read_exact(&mut query).await.unwrap();
                let number = note(&noted, By::Tcp, &query, from);
                for answer in answers(By::Tcp, number, &query) {
                    stream.write_u16(answer.len().try_into().unwrap()).await.unwrap();
                    stream.write_all(&answer).await.unwrap();
                }
            }
        });
        Self { address, asked }
    }

    async fn silent() -> Self {
        Self::start(|_, _, _| Vec::new()).await
    }

    async fn good(address: Ipv4Addr) -> Self {
        Self::start(move |_, _, query| vec![answer(query, &[address])]).await
    }

    fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    /// How it was asked, one after the other.
    fn ways(&self) -> Vec<By> {
        self.asked.lock().unwrap().iter().map(|(by, ..)| *by).collect()
    }
}

/// The answer to a query: these addresses.
fn answer(query: &[u8], addresses: &[Ipv4Addr]) -> Vec<u8> {
    let name = query[12..].iter().position(|byte| *byte == 0).unwrap();
    // Without the OPT record that stands behind the question.
    let mut message = query[..12 + name + 5].to_vec();
    message[2..4].copy_from_slice(&[0x81, 0x80]);
    message[4..12].copy_from_slice(&[0, 1, 0, addresses.len().try_into().unwrap(), 0, 0, 0, 0]);
    for address in addresses {
        message.extend_from_slice(b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04");
        message.extend(address.octets());
    }
    message
}

/// The answer that says no more than a code.
fn failure(query: &[u8], code: u8) -> Vec<u8> {
    let mut message = answer(query, &[]);
    message[3] |= code;
    message
}

fn has_edns(query: &[u8]) -> bool {
    query[11] == 1
}

fn resolver_of(dns: &str) -> Resolver {
    let text = format!("host-id: a\nsite: s\nordinal: 1\ndns: {{ {dns} }}\n");
    Resolver::new(&host::parse(Path::new("host.yaml"), &text).unwrap())
}

fn resolver(servers: &[&Server]) -> Resolver {
    let servers: Vec<_> = servers
        .iter()
        .map(|server| format!("\"{}\"", server.address))
        .collect();
    resolver_of(&format!("upstream: [ {} ]", servers.join(", ")))
}

fn question(name: &str) -> Question {
    let mut wire: Vec<u8> = Vec::new();
    for label in name.split('.') {
        wire.push(label.len().try_into().unwrap());
        wire.extend(label.bytes());
    }
    wire.push(0);
    Question::new(&wire, 1).unwrap()
}

/// What is found out next.
async fn told(resolver: &mut Resolver) -> Told {
    let told = async {
        loop {
            if let Some(told) = resolver.found().await.pop() {
                return told;
            }
        }
    };
    tokio::time::timeout(PATIENCE, told)
        .await
        .expect("it is told in time")
}

/// Addresses, or in words what else is told.
async fn ask(resolver: &mut Resolver, name: &str) -> String {
    resolver.handle_question(question(name));
    let Told {
        question: of,
        resolution,
    } = told(resolver).await;
    assert_eq!(of, question(name));
    match resolution {
        Resolution::Reply(reply) => {
            let addresses: Vec<_> = reply.addresses().map(|address| address.to_string()).collect();
            addresses.join(" ")
        }
        Resolution::Failed => "failed".to_owned(),
        Resolution::Refused => "refused".to_owned(),
    }
}

/// Reads notes until a condition holds of the name servers.
async fn until(resolver: &mut Resolver, holds: impl Fn(&[UpstreamStatus]) -> bool) {
    let noted = async {
        while !holds(&resolver.status().upstreams) {
            assert_eq!(resolver.found().await, []);
        }
    };
    tokio::time::timeout(PATIENCE, noted)
        .await
        .expect("it holds in time");
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(work)
}

#[test]
fn an_answer_is_asked_for_with_everything_drawn_that_a_forger_would_have_to_know() {
    run(async {
        let server = Server::good(OUTSIDE).await;
        let mut resolver = resolver(&[&server]);
        for _ in 0..4 {
            let name = "a-name-of-many-letters.example";
            assert_eq!(ask(&mut resolver, name).await, OUTSIDE.to_string());
        }
        let asked = server.asked.lock().unwrap().clone();
        let identifier = |asked: &Asked| u64::from(asked.1[0]) << 8 | u64::from(asked.1[1]);
        let port = |asked: &Asked| u64::from(asked.2);
        let capitals = |asked: &Asked| {
            let letters = asked.1[13..35].iter();
            letters.fold(0, |bits, letter| {
                bits << 1 | u64::from(letter.is_ascii_uppercase())
            })
        };
        for drawn in [identifier, port, capitals] {
            let values: HashSet<u64> = asked.iter().map(drawn).collect();
            assert!(values.len() > 1, "{values:?}");
        }
        assert!(asked.iter().all(|(_, query, _)| has_edns(query) && query[2] == 1));
        let status = &resolver.status().upstreams[0];
        assert_eq!(
            (status.asked, status.answered, status.failed, status.forged),
            (4, 4, 0, 0)
        );
        assert_eq!(status.state, UpstreamState::Up);
        assert!(status.round_trip_ms.is_some());
    });
}

#[test]
fn who_is_silent_costs_little_and_is_asked_last_from_then_on() {
    run(async {
        let (silent, good) = (Server::silent().await, Server::good(OUTSIDE).await);
        let mut resolver = resolver(&[&silent, &good]);
        for name in ["a.example", "b.example", "c.example", "d.example"] {
            let began = Instant::now();
            assert_eq!(ask(&mut resolver, name).await, OUTSIDE.to_string());
            assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        }
        // The second one is the quicker one since the first answer, and the first one isn't waited for.
        assert!(silent.count() < 4, "{}", silent.count());
    });
}

#[test]
fn who_never_answers_is_down_and_told_so() {
    run(async {
        let silent = Server::silent().await;
        let mut resolver = resolver(&[&silent]);
        for name in ["a.example", "b.example", "c.example"] {
            resolver.handle_question(question(name));
        }
        let mut ended = 0;
        while ended < 3 {
            let told = resolver.found().await;
            assert!(told.iter().all(|told| told.resolution == Resolution::Failed));
            ended += told.len();
        }
        let status = &resolver.status().upstreams[0];
        assert_eq!((status.state, status.failed), (UpstreamState::Down, 3));
        assert!(silent.count() >= 9, "each is sent again: {}", silent.count());
    });
}

#[test]
fn what_is_not_the_answer_is_counted_and_waiting_goes_on() {
    run(async {
        let server = Server::start(|_, _, query| {
            let right = answer(query, &[OUTSIDE]);
            let forged = answer(query, &[OTHER]);
            let mut other_id = forged.clone();
            other_id[1] ^= 1;
            let mut other_name = forged.clone();
            other_name[13] = b'x';
            let mut malformed = forged.clone();
            malformed.truncate(forged.len() - 1);
            let mut no_answer = forged;
            no_answer[2] &= 0x7f;
            vec![other_id, other_name, malformed, no_answer, b"?".to_vec(), right]
        })
        .await;
        let mut resolver = resolver(&[&server]);
        assert_eq!(ask(&mut resolver, "www.example").await, OUTSIDE.to_string());
        assert_eq!(resolver.status().upstreams[0].forged, 5);
    });
}

#[test]
fn an_answer_from_elsewhere_is_not_heard() {
    run(async {
        let (sender, mut asked) = mpsc::channel(1);
        let server = Server::start(move |_, number, query| {
            // The first query is left to the forger, who knows all but the address.
            if number == 0 {
                drop(sender.try_send(query.to_vec()));
                return Vec::new();
            }
            vec![answer(query, &[OUTSIDE])]
        })
        .await;
        let mut resolver = resolver(&[&server]);
        resolver.handle_question(question("www.example"));
        let query = asked.recv().await.unwrap();
        let port = server.asked.lock().unwrap()[0].2;
        let forger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let target = (Ipv4Addr::LOCALHOST, port);
        forger.send_to(&answer(&query, &[OTHER]), target).await.unwrap();
        match told(&mut resolver).await.resolution {
            Resolution::Reply(reply) => assert_eq!(reply.addresses().next(), Some(OUTSIDE.into())),
            other => panic!("{other:?}"),
        }
        assert_eq!(resolver.status().upstreams[0].forged, 0, "the kernel drops it");
    });
}

#[test]
fn what_is_not_to_be_trusted_in_a_datagram_is_asked_for_over_tcp() {
    run(async {
        // Truncated; letters that weren't kept; somebody who guesses.
        let truncated = Server::start(|by, _, query| {
            let mut message = answer(query, &[OUTSIDE]);
            if by == By::Udp {
                message = answer(query, &[]);
                message[2] |= 2;
            }
            vec![message]
        })
        .await;
        let folding = Server::start(|by, _, query| {
            let mut message = answer(query, &[if by == By::Udp { OTHER } else { OUTSIDE }]);
            let name = message.len() - 16 - 5;
            message[13..name].make_ascii_lowercase();
            vec![message]
        })
        .await;
        let guessed = Server::start(|by, _, query| match by {
            By::Udp => {
                let mut message = answer(query, &[OTHER]);
                message[0] ^= 1;
                vec![message; 16]
            }
            By::Tcp => vec![answer(query, &[OUTSIDE])],
        })
        .await;
        for server in [truncated, folding, guessed] {
            let mut resolver = resolver(&[&server]);
            // So many letters that one of them is a capital.
            let name = format!("{}.example", "a".repeat(60));
            assert_eq!(ask(&mut resolver, &name).await, OUTSIDE.to_string());
            assert_eq!(server.ways(), [By::Udp, By::Tcp]);
        }
    });
}

#[test]
fn a_server_that_knows_no_edns_is_asked_without() {
    run(async {
        for code in [1, 4] {
            let server = Server::start(move |_, _, query| match has_edns(query) {
                true => vec![failure(query, code)],
                false => vec![answer(query, &[OUTSIDE])],
            })
            .await;
            let mut resolver = resolver(&[&server]);
            assert_eq!(ask(&mut resolver, "www.example").await, OUTSIDE.to_string());
            assert_eq!(server.count(), 2);
        }
    });
}

#[test]
fn who_cannot_tell_is_followed_by_the_next_at_once() {
    run(async {
        let failing = Server::start(|_, _, query| vec![failure(query, SERVER_FAILURE)]).await;
        let good = Server::good(OUTSIDE).await;
        let mut resolver = resolver(&[&failing, &good]);
        // Untried ones are asked beside each other: from the second question on it is one after the other.
        for name in ["a.example", "b.example", "c.example", "d.example"] {
            assert_eq!(ask(&mut resolver, name).await, OUTSIDE.to_string());
        }
        until(&mut resolver, |upstreams| upstreams[0].failed >= 1).await;
        let states = resolver.status().upstreams;
        assert_eq!(states[0].state, UpstreamState::Up, "it may be the name's fault");
        assert_eq!(states[1].answered, 4);
    });
}

#[test]
fn what_everybody_refuses_makes_nobody_down() {
    run(async {
        let refusing = |_: By, _: usize, query: &[u8]| vec![failure(query, 5)];
        let servers = [Server::start(refusing).await, Server::start(refusing).await];
        let mut resolver = resolver(&[&servers[0], &servers[1]]);
        for name in ["a.example", "b.example", "c.example", "d.example"] {
            assert_eq!(ask(&mut resolver, name).await, "failed");
        }
        until(&mut resolver, |upstreams| {
            upstreams.iter().all(|upstream| upstream.failed >= 4)
        })
        .await;
        let states = resolver.status().upstreams;
        assert!(
            states.iter().all(|upstream| upstream.state == UpstreamState::Up),
            "{states:?}"
        );
    });
}

#[test]
fn a_lost_datagram_is_sent_again() {
    run(async {
        let server = Server::start(|_, number, query| match number {
            0 => Vec::new(),
            _ => vec![answer(query, &[OUTSIDE])],
        })
        .await;
        let mut resolver = resolver(&[&server]);
        assert_eq!(ask(&mut resolver, "www.example").await, OUTSIDE.to_string());
        let asked = server.asked.lock().unwrap().clone();
        assert_eq!(asked[0], asked[1], "the very same");
    });
}

#[test]
fn a_name_that_leads_inside_is_refused_unless_its_domain_is_listed() {
    run(async {
        let inside = Ipv4Addr::new(10, 0, 0, 1);
        let server = Server::start(move |_, _, query| vec![answer(query, &[OUTSIDE, inside])]).await;
        let mut resolver = resolver_of(&format!(
            "upstream: [ \"{}\" ], private-domains: [ corp.example ]",
            server.address
        ));
        for _ in 0..2 {
            assert_eq!(ask(&mut resolver, "rebind.example").await, "refused");
        }
        let both = format!("{OUTSIDE} {inside}");
        for name in ["corp.example", "db.corp.example"] {
            assert_eq!(ask(&mut resolver, name).await, both);
        }
        assert_eq!(ask(&mut resolver, "notcorp.example").await, "refused");
        assert_eq!(resolver.status().refused, 3);
        assert_eq!(resolver.warned.len(), 2, "each name is warned of once");
    });
}

#[test]
fn what_stays_inside_and_what_nobody_is_asked_for_is_told_at_once() {
    run(async {
        let server = Server::good(OUTSIDE).await;
        let mut with = resolver(&[&server]);
        assert_eq!(ask(&mut with, "localhost").await, "127.0.0.1");
        assert_eq!(ask(&mut with, "printer.local").await, "");
        assert_eq!(server.count(), 0);
        let mut without = resolver_of("upstream: []");
        assert_eq!(ask(&mut without, "www.example").await, "refused");
        assert!(!without.status().forwards);
        assert_eq!(without.problems().count(), 0);
    });
}

#[test]
fn an_address_inside_is_no_name_server() {
    run(async {
        let mut resolver = resolver_of("upstream: [ 172.19.0.1, 100.96.0.1, 169.254.116.3 ]");
        let problems: Vec<_> = resolver.problems().cloned().collect();
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems[0].contains("172.19.0.1:53") && problems[0].contains("`dns.upstream`"));
        assert_eq!(resolver.status().upstreams.len(), 0);
        assert_eq!(
            ask(&mut resolver, "www.example").await,
            "failed",
            "what is remembered is told"
        );
    });
}

#[test]
fn a_question_that_comes_round_in_a_circle_is_not_asked_again() {
    run(async {
        let (sender, mut came) = mpsc::channel(16);
        // Forwards to an instance's service address: the question comes back to the resolver.
        let server = Server::start(move |_, _, _| {
            sender.try_send(()).ok();
            Vec::new()
        })
        .await;
        let mut resolver = resolver(&[&server]);
        resolver.handle_question(question("www.example"));
        let mut rounds = 0;
        let resolution = loop {
            tokio::select! {
                _ = came.recv() => {
                    rounds += 1;
                    resolver.handle_question(question("www.example"));
                }
                told = told_by(&mut resolver) => break told.resolution,
            }
        };
        assert_eq!(resolution, Resolution::Failed);
        assert_eq!(resolver.status().upstreams[0].asked, 1);
        assert_eq!(rounds, 3, "one datagram, sent three times");
    });
}

/// As [`told`], for a race.
async fn told_by(resolver: &mut Resolver) -> Told {
    loop {
        if let Some(told) = resolver.found().await.pop() {
            return told;
        }
    }
}

#[test]
fn too_many_questions_fail_and_are_counted() {
    run(async {
        let silent = Server::silent().await;
        let mut resolver = resolver(&[&silent]);
        for number in 0..=MOST_IN_FLIGHT {
            resolver.handle_question(question(&format!("name-{number}.example")));
        }
        let last = told(&mut resolver).await;
        assert_eq!(last.question, question(&format!("name-{MOST_IN_FLIGHT}.example")));
        assert_eq!(last.resolution, Resolution::Failed);
        let status = resolver.status();
        assert_eq!((status.in_flight, status.overflown), (MOST_IN_FLIGHT, 1));
        // All of them end, and there is room again.
        let mut ended = 0;
        while ended < MOST_IN_FLIGHT {
            let told = resolver.found().await;
            assert!(told.len() <= MOST_TOLD);
            ended += told.len();
        }
        assert_eq!(resolver.status().in_flight, 0);
    });
}

#[test]
fn name_servers_of_a_file_are_followed() {
    run(async {
        // The file names no port, so that nothing can be asked here: who would be is told.
        let folder = std::env::temp_dir().join(format!("tidegate-resolver-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("resolv.conf");
        let mut resolver = resolver_of(&format!("resolv-conf: {}", file.display()));
        let servers = |resolver: &Resolver| -> Vec<String> {
            let upstreams = resolver.status().upstreams.into_iter();
            upstreams.map(|upstream| upstream.address.to_string()).collect()
        };
        assert_eq!(servers(&resolver), [""; 0]);
        assert_eq!(resolver.problems().count(), 1);
        assert_eq!(ask(&mut resolver, "www.example").await, "failed");

        std::fs::write(&file, "nameserver 192.0.2.1\nnameserver 172.19.0.1\n").unwrap();
        resolver.look();
        assert_eq!(servers(&resolver), ["192.0.2.1:53"]);
        let problem = resolver.problems().next().cloned().unwrap_or_default();
        assert!(problem.contains("`dns.resolv-conf`"), "{problem}");

        std::fs::write(&file, "nameserver 192.0.2.2\n").unwrap();
        resolver.look();
        assert_eq!(servers(&resolver), ["192.0.2.2:53"]);
        assert_eq!(resolver.problems().count(), 0);
        assert_eq!(resolver.status().upstreams[0].source, UpstreamSource::ResolvConf);
        std::fs::remove_dir_all(&folder).unwrap();
    });
}

#[test]
fn a_port_that_the_host_needs_is_not_asked_from() {
    run(async {
        let server = Server::good(OUTSIDE).await;
        let mut resolver = resolver(&[&server]);
        // All but a few thousand of those that the kernel draws from.
        resolver.own_ports.lanes = (32_768, 45_000);
        for number in 0..32 {
            let name = format!("name-{number}.example");
            assert_eq!(ask(&mut resolver, &name).await, OUTSIDE.to_string());
        }
        let asked = server.asked.lock().unwrap().clone();
        let own = asked
            .iter()
            .filter(|(_, _, port)| (32_768..=45_000).contains(port));
        // One in 200 is left after eight more draws.
        assert!(own.count() <= 2, "{asked:?}");
    });
}
