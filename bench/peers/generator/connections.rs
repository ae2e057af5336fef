//! Short connections: connect, one byte each way, close.
//!
//! Connections are closed in order, by the client first, whose ports then wait for a minute (TIME-WAIT, RFC 9293
//! §3.6.1). They are spread over 32 ports of the server, so that the client doesn't run out of its own.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::{PATIENCE, percentile, serve_until_input_ends};

/// Ports that the server listens on; every one serves one connection at a time.
const PORTS: u16 = 32;

/// Opens connections.
#[derive(Args)]
pub(crate) struct Connect {
    /// To the first of the ports.
    #[arg(long)]
    to: SocketAddr,
    /// Connections at a time.
    #[arg(long)]
    parallel: u16,
    /// How long.
    #[arg(long)]
    seconds: u32,
}

/// What the client says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Connections {
    /// Connections that carried their two bytes.
    pub(crate) made: u64,
    /// Connections that didn't within a second.
    pub(crate) failed: u64,
    /// From the first to the last.
    pub(crate) seconds: f64,
    /// The time that 99 of 100 took at most.
    pub(crate) p99_microseconds: f64,
}

/// Accepts connections.
#[derive(Args)]
pub(crate) struct Accept {
    /// The first of the ports.
    #[arg(long)]
    at: SocketAddr,
}

/// What the server says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Accepted {
    /// Connections that were accepted.
    accepted: u64,
}

impl Connect {
    pub(super) fn run(&self) -> Result<Connections> {
        ensure!((1..=PORTS).contains(&self.parallel), "--parallel is 1 to {PORTS}");
        let end = Duration::from_secs(self.seconds.into());
        let took = Mutex::new(Vec::new());
        let failed = AtomicU64::new(0);
        let began = Instant::now();
        thread::scope(|scope| {
            for first in 0..self.parallel {
                let (took, failed) = (&took, &failed);
                let ports = (first..PORTS).step_by(self.parallel.into()).cycle();
                scope.spawn(move || {
                    let mut own = Vec::new();
                    for port in ports {
                        let started = Instant::now();
                        match connect(self.to.ip(), self.to.port().saturating_add(port)) {
                            Ok(()) => own.push(started.elapsed().as_nanos() as u64),
                            Err(_) => _ = failed.fetch_add(1, Ordering::Relaxed),
                        }
                        if began.elapsed() >= end {
                            break;
                        }
                    }
                    took.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .append(&mut own);
                });
            }
        });
        let seconds = began.elapsed().as_secs_f64();
        let mut took = took.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Connections {
            made: took.len() as u64,
            failed: failed.into_inner(),
            seconds,
            p99_microseconds: percentile(&mut took, 0.99),
        })
    }
}

fn connect(address: IpAddr, port: u16) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&(address, port).into(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])
}

impl Accept {
    pub(super) fn run(&self) -> Result<Accepted> {
        let accepted = Arc::new(AtomicU64::new(0));
        for offset in 0..PORTS {
            let at = SocketAddr::new(self.at.ip(), self.at.port().saturating_add(offset));
            let listener = TcpListener::bind(at).with_context(|| format!("listening on {at}"))?;
            let accepted = Arc::clone(&accepted);
            // It ends with the process.
            thread::spawn(move || accept(&listener, &accepted));
        }
        serve_until_input_ends()?;
        Ok(Accepted {
            accepted: accepted.load(Ordering::Relaxed),
        })
    }
}

fn accept(listener: &TcpListener, accepted: &AtomicU64) {
    for mut stream in listener.incoming().flatten() {
        accepted.fetch_add(1, Ordering::Relaxed);
        // A client that went away has counted it as failed.
        let _ = stream.set_read_timeout(Some(PATIENCE));
        if stream.read_exact(&mut [0]).is_ok() && stream.write_all(b"!").is_ok() {
            // Its end of the connection: the client closes first.
            let _ = stream.read(&mut [0]);
        }
    }
}
