//! A client that is slow keeps its own connections busy, and nobody else waiting.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tidegate_tests::{Lab, Question, framed};

use crate::SERVICE_ADDRESS;
use crate::instances::Instances;

/// An instance may have so many connections.
const CONNECTIONS: usize = 4;
/// Who is slow, and who asks beside: another instance of the same host, one of the other, and the slow one itself.
const SLOW: &str = "shop-wide-1";
const BESIDE: [&str; 3] = ["shop-db-1", "shop-db-2", SLOW];
/// How long it goes on: longer than the five seconds that a slow client is given, twice.
const LASTS: Duration = Duration::from_secs(12);
const QUIET: Duration = Duration::from_secs(2);
const INTERVAL: Duration = Duration::from_millis(20);
/// Nobody waits for so long.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long answers took.
struct Waits(Vec<Duration>);

/// Four connections that bring a byte a second, over and over, and others' questions meanwhile.
pub(crate) fn slow_clients_delay_nobody(lab: &Lab, instances: &Instances) -> Result<()> {
    let question = Question {
        server: format!("{SERVICE_ADDRESS}:53").parse()?,
        name: "web-1.shop.internal".to_owned(),
        kind: 1,
    };
    let expected = instances.own("shop/web-1")?.0;
    let asked = |is_over: &AtomicBool, asker: &str| -> Result<[Waits; 2]> {
        lab.inside(asker, || {
            let (mut datagrams, mut connections) = (Vec::new(), Vec::new());
            while !is_over.load(Ordering::Relaxed) {
                let began = Instant::now();
                let answer = question.ask(7, PATIENCE)?.context("no answer in time")?;
                datagrams.push(began.elapsed());
                ensure!(answer.found()? == [expected], "{answer:?}");
                // The slow one has all its connections in use.
                if asker != SLOW {
                    let began = Instant::now();
                    let answer = question.ask_by_tcp(7, PATIENCE)?;
                    connections.push(began.elapsed());
                    ensure!(answer.found()? == [expected], "{answer:?}");
                }
                thread::sleep(INTERVAL);
            }
            Ok([Waits(datagrams), Waits(connections)])
        })
    };
    let mut cut = 0;
    for (is_slow, lasts) in [(false, QUIET), (true, LASTS)] {
        let is_over = AtomicBool::new(false);
        let all = thread::scope(|scope| -> Result<Vec<[Waits; 2]>> {
            let dribbling: Vec<_> = (0..if is_slow { CONNECTIONS } else { 0 })
                .map(|_| scope.spawn(|| lab.inside(SLOW, || dribble(&question, &is_over))))
                .collect();
            let asking: Vec<_> = BESIDE
                .iter()
                .map(|asker| {
                    let (asked, is_over) = (&asked, &is_over);
                    scope.spawn(move || asked(is_over, asker).with_context(|| format!("beside: {asker}")))
                })
                .collect();
            thread::sleep(lasts);
            is_over.store(true, Ordering::Relaxed);
            for one in dribbling {
                cut += one
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            asking
                .into_iter()
                .map(|one| {
                    one.join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        })?;
        let beside = if is_slow {
            "beside four slow clients"
        } else {
            "alone"
        };
        for (asker, [datagrams, connections]) in BESIDE.iter().zip(&all) {
            println!("{beside}, {asker}: UDP {datagrams}, TCP {connections}");
        }
    }
    ensure!(
        cut >= CONNECTIONS,
        "{cut} of the slow connections were cut within {LASTS:?}"
    );
    println!("slow clients delay nobody, and were cut {cut} times");
    Ok(())
}

/// Sends a query a byte a second, on a new connection whenever it is cut; gives back how often it was.
fn dribble(question: &Question, is_over: &AtomicBool) -> Result<usize> {
    let bytes = framed(&question.query(9));
    let mut cut = 0;
    while !is_over.load(Ordering::Relaxed) {
        let mut stream = TcpStream::connect_timeout(&question.server, PATIENCE)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        for byte in &bytes {
            // After a cut the write fails, or the read tells the end.
            let sent = stream.write_all(&[*byte]);
            let ended = match stream.read(&mut [0]) {
                Ok(0) => true,
                Ok(_) => anyhow::bail!("an answer to a part of a query"),
                Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
            };
            if sent.is_err() || ended {
                cut += 1;
                break;
            }
            if is_over.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    Ok(cut)
}

impl std::fmt::Display for Waits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut sorted = self.0.clone();
        sorted.sort();
        let of = |hundredths: usize| {
            sorted.get((sorted.len() * hundredths / 100).min(sorted.len().saturating_sub(1)))
        };
        match (of(50), of(99)) {
            (Some(median), Some(p99)) => write!(
                f,
                "{} answers, median {} µs, p99 {} µs",
                sorted.len(),
                median.as_micros(),
                p99.as_micros()
            ),
            _ => f.write_str("not asked"),
        }
    }
}
