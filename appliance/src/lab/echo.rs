//! ICMP echo (RFC 792, RFC 4443 §4.1) from inside a namespace, without an external `ping`.

use crate::sys::netns;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

const ICMPV4_ECHO: u8 = 8;
const ICMPV4_ECHO_REPLY: u8 = 0;
const ICMPV4_UNREACHABLE: u8 = 3;
const ICMPV6_ECHO: u8 = 128;
const ICMPV6_ECHO_REPLY: u8 = 129;
const ICMPV6_UNREACHABLE: u8 = 1;
const HEADER: usize = 8;
const PAYLOAD: [u8; 48] = *b"tidegate lab echo request, answered by a peer...";

/// What came of one echo request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The answer came after this long.
    Reached(Duration),
    /// Somebody on the way said that it can't be reached.
    Refused,
    /// Nothing came in time.
    Silence,
}

/// Sends echo requests from one namespace to one address.
pub(super) struct Echo {
    socket: Socket,
    address: IpAddr,
    identifier: u16,
    sequence: u16,
}

impl Echo {
    /// Opens a raw socket in `namespace`. Requests of one `Echo` carry `identifier`.
    pub(super) fn open(namespace: BorrowedFd<'_>, address: IpAddr, identifier: u16) -> io::Result<Self> {
        let (domain, protocol) = match address {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = netns::within(namespace, || Socket::new(domain, Type::RAW, Some(protocol)))??;
        Ok(Self {
            socket,
            address,
            identifier,
            sequence: 0,
        })
    }

    /// Sends one request and waits for what comes of it, at most `limit`.
    pub(super) fn ask(&mut self, limit: Duration) -> io::Result<Outcome> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = self.request();
        let sent = Instant::now();
        match self
            .socket
            .send_to(&request, &SocketAddr::new(self.address, 0).into())
        {
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable
                ) =>
            {
                return Ok(Outcome::Refused);
            }
            Err(error) => return Err(error),
        }
        let mut buffer = [0; 2048];
        loop {
            let left = limit.saturating_sub(sent.elapsed());
            if left.is_zero() {
                return Ok(Outcome::Silence);
            }
            self.socket.set_read_timeout(Some(left))?;
            let length = match self.socket.read(&mut buffer) {
                Ok(length) => length,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            };
            match self.answers(buffer.get(..length).unwrap_or_default()) {
                Some(Answer::Reply) => return Ok(Outcome::Reached(sent.elapsed())),
                Some(Answer::Unreachable) => return Ok(Outcome::Refused),
                None => {}
            }
        }
    }

    fn request(&self) -> Vec<u8> {
        let kind = if self.address.is_ipv4() {
            ICMPV4_ECHO
        } else {
            ICMPV6_ECHO
        };
        let mut message = vec![kind, 0, 0, 0];
        message.extend(self.identifier.to_be_bytes());
        message.extend(self.sequence.to_be_bytes());
        message.extend(PAYLOAD);
        // The kernel sums up ICMPv6 by itself (RFC 3542 §3.1).
        if self.address.is_ipv4() {
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        message
    }

    /// What a received message says about the last request; `None` when it is about something else.
    fn answers(&self, received: &[u8]) -> Option<Answer> {
        let is_ipv4 = self.address.is_ipv4();
        // Raw IPv4 sockets receive the IP header too, IPv6 ones don't.
        let message = if is_ipv4 {
            skip_ipv4_header(received)?
        } else {
            received
        };
        let (reply, unreachable) = if is_ipv4 {
            (ICMPV4_ECHO_REPLY, ICMPV4_UNREACHABLE)
        } else {
            (ICMPV6_ECHO_REPLY, ICMPV6_UNREACHABLE)
        };
        let kind = *message.first()?;
        if kind == reply {
            return self.is_own(message).then_some(Answer::Reply);
        }
        if kind == unreachable {
            let quoted = message.get(HEADER..)?;
            let quoted = if is_ipv4 {
                skip_ipv4_header(quoted)?
            } else {
                quoted.get(40..)?
            };
            return self.is_own(quoted).then_some(Answer::Unreachable);
        }
        None
    }

    fn is_own(&self, message: &[u8]) -> bool {
        let [a, b] = self.identifier.to_be_bytes();
        let [c, d] = self.sequence.to_be_bytes();
        message.get(4..8) == Some(&[a, b, c, d])
    }
}

enum Answer {
    Reply,
    Unreachable,
}

fn skip_ipv4_header(packet: &[u8]) -> Option<&[u8]> {
    packet.get(usize::from(packet.first()? & 0x0f) * 4..)
}

/// The internet checksum (RFC 1071) of a message of even length.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netlink::Netlink;
    use std::os::fd::AsFd as _;

    #[test]
    fn checksum_of_a_summed_message_is_zero() {
        let mut message = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(&message), 0);
    }

    #[test]
    fn loopback_answers_and_an_address_without_route_refuses() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: making namespaces needs root");
            return;
        }
        let name = format!("tgx-lab-echo-{}", std::process::id());
        netns::create(&name).unwrap();
        let namespace = netns::open(&name).unwrap();
        let outcome = std::panic::catch_unwind(|| {
            let mut netlink = Netlink::open_within(namespace.as_fd()).unwrap();
            let index = netlink.link_index("lo").unwrap();
            netlink.set_up(index).unwrap();
            let ask = |address: &str| {
                let mut echo = Echo::open(namespace.as_fd(), address.parse().unwrap(), 7).unwrap();
                echo.ask(Duration::from_millis(500)).unwrap()
            };
            assert!(matches!(ask("127.0.0.1"), Outcome::Reached(_)));
            assert!(matches!(ask("::1"), Outcome::Reached(_)));
            assert_eq!(ask("192.0.2.1"), Outcome::Refused);
        });
        netns::delete(&name).unwrap();
        outcome.unwrap();
    }
}
