//! SYNs faster than anybody answers, from one instance of a host and from a foreign VTEP: what is established stays, and
//! other applications' connections begin as before.
#![expect(clippy::print_stdout, reason = "a story tells what it measured")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use tidegate_fixtures as fixtures;
use tidegate_tests::{ForeignPeer, Lab, Program, Sent, Syns, is_long};

const PER_SECOND: u32 = 200_000;
/// Connections that are there before the flood, in each of the two applications.
const ESTABLISHED: usize = 20;
const PORT: u16 = 5432;
/// Generator, WireGuard of the other end, and both hosts share the machine: what is late then isn't lost. TCP itself resends
/// for longer than this.
const LOST: Duration = Duration::from_secs(60);
const BEGINS: Duration = Duration::from_secs(30);
/// Where the foreign peer's instances are: ordinal 201.
const FOREIGN_BLOCK: Ipv4Addr = Ipv4Addr::new(172, 19, 201, 0);
const FOREIGN_MAC: [u8; 6] = [0x02, 0x74, 172, 19, 201, 2];

const TOPOLOGY: &str = "segments: { lan: { ipv4: 192.0.2.0/24 } }
hosts:
  h1:
    ordinal: 1
    interfaces: [ { segment: lan, addresses: [192.0.2.11] } ]
    document:
      cluster:
        peers:
          - name: outsider
            ordinal: 201
            public-key: SfDV5YT5ixG+FrMCcBJKMD9T39LVUaVBoFvCBINDKR8=
            networks: [ { application: red } ]
  h2: { ordinal: 2, interfaces: [ { segment: lan, addresses: [192.0.2.12] } ] }
nodes:
  outsider: { interfaces: [ { segment: lan, addresses: [192.0.2.66] } ] }
applications: [ red.yaml, blue.yaml ]
instances:
  - { application: red, service: web, host: h1 }
  - { application: red, service: web, host: h1 }
  - { application: red, service: db, host: h1 }
  - { application: blue, service: web, host: h1 }
  - { application: blue, service: db, host: h1 }
  - { application: red, service: db, host: h2 }
  - { application: blue, service: db, host: h2 }
";
const RED: &str = "name: red
services:
  - name: web
  - name: db
    network:
      inbound-access:
        rules:
          - { from: { service: web }, protocols: [ { name: tcp, port-ranges: \"5432\" }, { name: icmp } ] }
          - { from: 172.19.201.0/24, protocols: [ { name: tcp, port-ranges: \"5432\" } ] }
";
const BLUE: &str = "name: blue\nservices: [ { name: web }, { name: db } ]\n";

fn duration() -> Duration {
    Duration::from_secs(if is_long() { 30 } else { 5 })
}

#[test]
fn an_instance_that_floods_cuts_nothing_and_keeps_no_other_application_out() -> Result<()> {
    let Some(lab) = up("tgt-syn")? else {
        return Ok(());
    };
    for target in ["red-db-1", "red-db-2"] {
        let syns = Syns {
            source: ipv4(&lab, "red-web-1")?,
            spoofed: false,
            destination: SocketAddrV4::new(ipv4(&lab, target)?, PORT),
            per_second: PER_SECOND,
        };
        withstand(&lab, &format!("red-web-1 → {target}"), |is_over| {
            lab.inside("red-web-1", || syns.flood(is_over))
        })?;
    }
    lab.close()
}

#[test]
fn a_foreign_vtep_that_floods_from_all_its_addresses_cuts_nothing_either() -> Result<()> {
    let Some(lab) = up("tgt-synv")? else {
        return Ok(());
    };
    let outsider = ForeignPeer {
        node: "outsider",
        program: Program::WireguardGo,
        ordinal: 201,
        host: "192.0.2.11".parse()?,
        key: fixtures::key("outsider"),
        preshared_key: None,
    };
    let wireguard = outsider.up(&lab)?;
    let target = ipv4(&lab, "red-db-1")?;
    let syns = Syns {
        source: FOREIGN_BLOCK,
        spoofed: true,
        destination: SocketAddrV4::new(target, PORT),
        per_second: PER_SECOND,
    };
    // VXLAN (RFC 7348 §5) and Ethernet.
    let networks = lab.tidegate("h1", &["show", "networks"])?;
    let networks = networks.pointer("/networks").and_then(Value::as_array);
    let red = networks
        .into_iter()
        .flatten()
        .find(|line| line.get("name").and_then(Value::as_str) == Some("red"));
    let vni = red.and_then(|line| line.get("vni")).and_then(Value::as_u64);
    let vni = u32::try_from(vni.context("show networks tells no VNI")?)? << 8;
    let [a, b, c, d] = target.octets();
    let header = [
        &[8, 0, 0, 0][..],
        &vni.to_be_bytes(),
        &[0x02, 0x74, a, b, c, d],
        &FOREIGN_MAC,
        &[0x08, 0x00],
    ]
    .concat();
    let vtep = SocketAddrV4::new(Ipv4Addr::new(169, 254, 116, 1), 4789);
    withstand(&lab, "foreign VTEP → red-db-1", |is_over| {
        lab.inside("outsider", || syns.flood_wrapped(&header, vtep, is_over))
    })?;
    drop(wireguard);
    lab.close()
}

fn up(name: &str) -> Result<Option<Lab>> {
    Lab::up(name, TOPOLOGY, &[("red.yaml", RED), ("blue.yaml", BLUE)])
}

fn ipv4(lab: &Lab, instance: &str) -> Result<Ipv4Addr> {
    match lab.address(instance, "-4")? {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => Err(anyhow!("{address} isn't IPv4")),
    }
}

/// Connections that are there before, during and after the flood; connections of another application that begin meanwhile.
fn withstand(lab: &Lab, what: &str, flood: impl FnOnce(&AtomicBool) -> Result<Sent> + Send) -> Result<()> {
    let established = [
        Echoes::open(lab, "red-web-2", "red-db-1")?,
        Echoes::open(lab, "red-web-2", "red-db-2")?,
        Echoes::open(lab, "blue-web-1", "blue-db-1")?,
        Echoes::open(lab, "blue-web-1", "blue-db-2")?,
    ];
    let servers = [
        Echoes::serve(lab, "blue-db-1", 80)?,
        Echoes::serve(lab, "blue-db-2", 80)?,
    ];
    let before = received(lab)?;
    let is_over = AtomicBool::new(false);
    let (sent, new, echoed) = scope(|scope| {
        let flood = scope.spawn(|| flood(&is_over));
        let new = scope.spawn(|| {
            let until = Instant::now() + duration();
            let mut new = New::default();
            while Instant::now() < until {
                for target in &servers {
                    new.note(lab.inside("blue-web-1", || Ok(Echoes::once(*target).is_ok()))?);
                }
                sleep(Duration::from_millis(5));
            }
            Ok::<_, anyhow::Error>(new)
        });
        let until = Instant::now() + duration();
        let mut echoed = Ok(());
        while Instant::now() < until && echoed.is_ok() {
            echoed = established.iter().try_for_each(Echoes::exchange);
            sleep(Duration::from_millis(100));
        }
        let new = new.join();
        is_over.store(true, Ordering::Relaxed);
        (flood.join(), new, echoed)
    });
    let sent = sent.map_err(|_| anyhow!("the flood panicked"))??;
    let new = new.map_err(|_| anyhow!("the connector panicked"))??;
    let arrived = (received(lab)? - before) as f64 / sent.seconds;
    let drops = lab.drops("h1")?;
    println!(
        "{what}: {:.0} SYN/s sent, some {arrived:.0} packets/s reached h1, for {:.1} s: {} of {} new connections of another \
         application, {} established ones; h1 dropped {drops:?}",
        sent.rate(),
        sent.seconds,
        new.succeeded,
        new.tried,
        established.len() * ESTABLISHED,
    );
    echoed.context("an established connection was lost")?;
    established.iter().try_for_each(Echoes::exchange)?;
    ensure!(new.tried >= 5, "only {} connections were tried", new.tried);
    ensure!(
        new.succeeded * 100 >= new.tried * 99,
        "only {} of {} new connections succeeded",
        new.succeeded,
        new.tried
    );
    Ok(())
}

#[derive(Clone, Copy, Debug, Default)]
struct New {
    tried: u32,
    succeeded: u32,
}

impl New {
    fn note(&mut self, succeeded: bool) {
        self.tried += 1;
        self.succeeded += u32::from(succeeded);
    }
}

/// Packets that h1's datapath had from instances and peers.
fn received(lab: &Lab) -> Result<u64> {
    let packets = |list: &Value, key: &str| {
        let lines = list.get(key).and_then(Value::as_array).into_iter().flatten();
        lines
            .filter_map(|line| {
                line.pointer("/traffic/received-packets")
                    .or(line.pointer("/traffic/received_packets"))
            })
            .filter_map(Value::as_u64)
            .sum::<u64>()
    };
    let instances = lab.tidegate("h1", &["show", "instances"])?;
    let peers = lab.tidegate("h1", &["peers"])?;
    Ok(packets(&instances, "instances") + packets(&peers, "peers"))
}

/// Connections to a server that sends back what it reads.
struct Echoes {
    streams: Vec<TcpStream>,
}

impl Echoes {
    /// A server, unless one is there already; it lives as long as the test does.
    fn serve(lab: &Lab, instance: &str, port: u16) -> Result<SocketAddr> {
        let address = SocketAddr::new(lab.address(instance, "-4")?, port);
        let listener = match lab.inside(instance, || Ok(TcpListener::bind(address)))? {
            Err(error) if error.kind() == ErrorKind::AddrInUse => return Ok(address),
            bound => bound?,
        };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut reader = stream;
                    let mut byte = [0];
                    while let Ok(1) = reader.read(&mut byte) {
                        if reader.write_all(&byte).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        Ok(address)
    }

    fn open(lab: &Lab, from: &str, to: &str) -> Result<Self> {
        let address = Self::serve(lab, to, PORT)?;
        let streams = (0..ESTABLISHED).map(|_| {
            let stream = lab.inside(from, || {
                Ok(TcpStream::connect_timeout(&address, Duration::from_secs(5))?)
            })?;
            stream.set_read_timeout(Some(LOST))?;
            Ok(stream)
        });
        let opened = Self {
            streams: streams.collect::<Result<_>>()?,
        };
        opened.exchange()?;
        Ok(opened)
    }

    /// A byte to and fro on each of them.
    fn exchange(&self) -> Result<()> {
        for mut stream in &self.streams {
            stream.write_all(b"x")?;
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
        }
        Ok(())
    }

    /// A new connection, a byte to and fro.
    fn once(address: SocketAddr) -> Result<()> {
        let mut stream = TcpStream::connect_timeout(&address, BEGINS)?;
        stream.set_read_timeout(Some(BEGINS))?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        Ok(())
    }
}
