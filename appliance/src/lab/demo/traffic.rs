//! Real traffic between instances: standard sockets that were opened inside the namespaces, and threads at their ends.

use super::super::Error;
use super::super::WhileDoing as _;
use super::super::build::{Attached, Lab};
use super::super::echo::{Echo, Outcome};
use super::search::Marker;
use crate::sys::netns;
use socket2::{Domain, SockRef, Socket, Type};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(1);

/// How long a pair may be silent before an exchange is given up.
const STALLED: Duration = Duration::from_secs(3);

/// How long an answer to a datagram may take before it is sent again, and how often it is.
const DATAGRAM: Duration = Duration::from_millis(300);
const TRIES: usize = 4;

/// Datagrams under way at once: few enough to fit into every queue.
const DATAGRAMS_AT_ONCE: usize = 64;

/// Bytes of records under way at once: less than any segment takes, so that none is cut in two.
const RECORDS_AT_ONCE: usize = 1_000;

/// Bytes of one write of a stream.
const WRITE: usize = 128 << 10;

/// Echo round trips of one pair.
const PINGS: u16 = 200;

/// The congestion control that figures are compared by, where the kernel has it.
const CONGESTION_CONTROL: &[u8] = b"cubic";

/// Who sends to whom.
#[derive(Clone, Copy)]
pub(super) struct Pair<'a> {
    /// The lab they are in.
    pub(super) lab: &'a Lab,
    /// The sender.
    pub(super) from: &'a Attached,
    /// The receiver.
    pub(super) to: &'a Attached,
}

impl<'a> Pair<'a> {
    /// What the pair is, for messages.
    pub(super) fn title(self) -> String {
        format!("{} to {}", self.from.instance.title(), self.to.instance.title())
    }

    /// Whether the two are on one host.
    pub(super) fn is_on_one_host(self) -> bool {
        self.from.instance.host == self.to.instance.host
    }

    pub(super) fn sender(self) -> Result<BorrowedFd<'a>, Error> {
        self.lab.namespace(&self.from.instance.namespace)
    }

    pub(super) fn receiver(self) -> Result<BorrowedFd<'a>, Error> {
        self.lab.namespace(&self.to.instance.namespace)
    }

    /// The receiver's address, IPv4 where it has one.
    pub(super) fn address(self) -> Result<IpAddr, Error> {
        let missing = || Error::NotFound(format!("{} has no address", self.to.instance.title()));
        self.to
            .address(true)
            .or(self.to.address(false))
            .ok_or_else(missing)
    }
}

/// Whether a TCP connection to `address` of the receiver can be made, and carries a greeting.
pub(super) fn tcp_reaches(pair: Pair<'_>, address: IpAddr) -> Result<bool, Error> {
    let doing = || format!("trying TCP from {}", pair.title());
    let listener = listen(pair.receiver()?, address).while_doing(doing)?;
    let listening = listener.local_addr().while_doing(doing)?;
    std::thread::scope(|scope| {
        let greeted = scope.spawn(|| -> io::Result<bool> {
            let mut stream = accept(&listener, CONNECT)?;
            let mut greeting = [0; 5];
            stream.read_exact(&mut greeting)?;
            Ok(&greeting == b"hello")
        });
        let connected = netns::within(pair.sender()?, || TcpStream::connect_timeout(&listening, CONNECT))
            .while_doing(doing)?;
        if let Ok(mut stream) = connected {
            stream.write_all(b"hello").while_doing(doing)?;
        }
        let greeted = greeted
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(greeted.unwrap_or(false))
    })
}

/// Round trips of a pair: those that came back, sorted, and how many were sent.
pub(super) fn round_trips(pair: Pair<'_>) -> Result<(Vec<Duration>, u16), Error> {
    let doing = || format!("pinging from {}", pair.title());
    let mut echo = Echo::open(pair.sender()?, pair.address()?, 0x7467).while_doing(doing)?;
    let mut times = Vec::new();
    for _ in 0..PINGS {
        if let Outcome::Reached(time) = echo.ask(Duration::from_secs(1)).while_doing(doing)? {
            times.push(time);
        }
    }
    times.sort();
    Ok((times, PINGS))
}

/// Sends one TCP stream for a while; gives what arrived, in bits a second.
pub(super) fn throughput(pair: Pair<'_>, duration: Duration) -> Result<f64, Error> {
    let doing = || format!("streaming from {}", pair.title());
    let listener = listen(pair.receiver()?, pair.address()?).while_doing(doing)?;
    let listening = listener.local_addr().while_doing(doing)?;
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| -> io::Result<f64> {
            let mut stream = accept(&listener, CONNECT)?;
            stream.set_read_timeout(Some(STALLED))?;
            let mut buffer = vec![0; WRITE];
            let (mut total, begin) = (0_u64, Instant::now());
            loop {
                match stream.read(&mut buffer)? {
                    0 => break,
                    length => total += length as u64,
                }
            }
            #[expect(clippy::cast_precision_loss, reason = "some seconds of bytes stay below 2^52")]
            Ok(total as f64 * 8.0 / begin.elapsed().as_secs_f64())
        });
        let mut stream = connect(pair.sender()?, listening).while_doing(doing)?;
        let chunk = vec![0x5a; WRITE];
        let begin = Instant::now();
        while begin.elapsed() < duration {
            stream.write_all(&chunk).while_doing(doing)?;
        }
        drop(stream);
        receiving
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            .while_doing(doing)
    })
}

/// Sends each marker in a datagram of its own, beside `text`, until the receiver has sent it back; gives how many
/// came back.
pub(super) fn exchange_datagrams(pair: Pair<'_>, markers: &[Marker], text: &str) -> Result<usize, Error> {
    let doing = || format!("exchanging datagrams from {}", pair.title());
    let open = |namespace, address| netns::within(namespace, move || UdpSocket::bind((address, 0)))?;
    let address = pair.address()?;
    let receiver: UdpSocket = open(pair.receiver()?, address).while_doing(doing)?;
    let from = pair.from.address(address.is_ipv4()).unwrap_or(address);
    let sender: UdpSocket = open(pair.sender()?, from).while_doing(doing)?;
    let exchange = |to: SocketAddr| -> io::Result<usize> {
        sender.set_read_timeout(Some(DATAGRAM))?;
        let mut returned = 0;
        for batch in markers.chunks(DATAGRAMS_AT_ONCE) {
            let mut missing: Vec<Marker> = batch.to_vec();
            for _ in 0..TRIES {
                for marker in &missing {
                    sender.send_to(&[marker, text.as_bytes()].concat(), to)?;
                }
                await_markers(&sender, &mut missing)?;
                if missing.is_empty() {
                    break;
                }
            }
            returned += batch.len() - missing.len();
        }
        Ok(returned)
    };
    std::thread::scope(|scope| {
        let end = receiver.local_addr().while_doing(doing)?;
        receiver.set_read_timeout(Some(STALLED)).while_doing(doing)?;
        let returning = scope.spawn(|| send_back(&receiver));
        let returned = exchange(end).while_doing(doing)?;
        // An empty datagram says that it is over.
        sender.send_to(&[], end).while_doing(doing)?;
        returning
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            .while_doing(doing)?;
        Ok(returned)
    })
}

fn await_markers(socket: &UdpSocket, missing: &mut Vec<Marker>) -> io::Result<()> {
    let mut buffer = [0; 2048];
    while !missing.is_empty() {
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let returned = buffer.get(..length).unwrap_or_default();
                missing.retain(|marker| !returned.starts_with(marker));
            }
            Err(error) if is_timeout(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn send_back(socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; 2048];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((0, _)) => return Ok(()),
            Ok((length, from)) => {
                socket.send_to(buffer.get(..length).unwrap_or_default(), from)?;
            }
            Err(error) if is_timeout(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Sends each marker over one TCP connection, a few at once and the next when the receiver has acknowledged those: so
/// none is cut in two by a segment's end. Gives how many arrived.
pub(super) fn exchange_stream(pair: Pair<'_>, markers: &[Marker], text: &str) -> Result<usize, Error> {
    let doing = || format!("exchanging records from {}", pair.title());
    let listener = listen(pair.receiver()?, pair.address()?).while_doing(doing)?;
    let listening = listener.local_addr().while_doing(doing)?;
    let records: Vec<Vec<u8>> = markers
        .iter()
        .map(|marker| [marker, text.as_bytes()].concat())
        .collect();
    let length = records.first().map_or(1, Vec::len);
    let batches = || records.chunks((RECORDS_AT_ONCE / length).max(1));
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| -> io::Result<usize> {
            let mut stream = accept(&listener, CONNECT)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(STALLED))?;
            let mut arrived = 0;
            for batch in batches() {
                let mut received = vec![0; batch.len() * length];
                stream.read_exact(&mut received)?;
                let pairs = received.chunks(length).zip(batch);
                arrived += pairs.filter(|(received, sent)| received == sent).count();
                stream.write_all(b".")?;
            }
            Ok(arrived)
        });
        let mut stream = connect(pair.sender()?, listening).while_doing(doing)?;
        stream.set_nodelay(true).while_doing(doing)?;
        stream.set_read_timeout(Some(STALLED)).while_doing(doing)?;
        let mut acknowledgement = [0];
        for batch in batches() {
            stream.write_all(&batch.concat()).while_doing(doing)?;
            stream.read_exact(&mut acknowledgement).while_doing(doing)?;
        }
        let arrived = receiving
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        arrived.while_doing(doing)
    })
}

/// Throws datagrams with a marker at an address and doesn't wait for anything; gives how many the kernel took.
pub(super) fn throw_datagrams(
    pair: Pair<'_>,
    address: IpAddr,
    marker: &Marker,
    count: usize,
) -> Result<usize, Error> {
    let doing = || format!("probing from {}", pair.title());
    let any: IpAddr = if address.is_ipv4() {
        [0; 4].into()
    } else {
        [0_u16; 8].into()
    };
    let socket = netns::within(pair.sender()?, || UdpSocket::bind((any, 0)))
        .while_doing(doing)?
        .while_doing(doing)?;
    let mut taken = 0;
    for _ in 0..count {
        // A refusal by ICMP comes back as an error of the next send: it is an answer, not a failure.
        taken += usize::from(socket.send_to(marker, (address, 9)).is_ok());
    }
    Ok(taken)
}

fn listen(namespace: BorrowedFd<'_>, address: IpAddr) -> io::Result<TcpListener> {
    let listener = netns::within(namespace, || TcpListener::bind((address, 0)))??;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn accept(listener: &TcpListener, limit: Duration) -> io::Result<TcpStream> {
    let deadline = Instant::now() + limit + CONNECT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(error),
        }
    }
}

fn connect(namespace: BorrowedFd<'_>, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = netns::within(namespace, || {
        Socket::new(Domain::for_address(to), Type::STREAM, None)
    })??;
    match SockRef::from(&socket).set_tcp_congestion(CONGESTION_CONTROL) {
        // A kernel without it streams with what it has.
        Ok(()) | Err(_) => {}
    }
    socket.connect_timeout(&to.into(), CONNECT)?;
    socket.set_write_timeout(Some(STALLED))?;
    Ok(socket.into())
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
