//! One question: a connection with an instance, from its SYN to the verdict and its end.

use super::status::{Head, ProbeError, read};
use crate::plan::ReadinessQuestion;
use crate::responder::endpoint::{Buffers, Endpoint};
use crate::snapshot::Check;
use crate::time::Instant;
use smoltcp::socket::tcp;
use std::net::{Ipv4Addr, SocketAddr};

/// Bytes of an answer in which its status must be.
pub const LONGEST_HEAD: usize = 4096;
/// Bytes of an answer that are taken off the other end after its status, so that it can end in peace.
pub const MOST_DISCARDED: usize = 65_536;

const RECEIVE_BUFFER: usize = 4096;
const HTTP_PORT: u16 = 80;

/// A question.
pub(super) struct Question {
    endpoint: Endpoint,
    local_port: u16,
    deadline: Instant,
    due: Instant,
    stage: Stage,
    /// What is to be sent; none: the connection itself is the answer.
    request: Option<Vec<u8>>,
    /// What came of the answer.
    head: Vec<u8>,
    discarded: usize,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The handshake isn't over.
    Connecting,
    /// The request was sent.
    Asking,
    /// There is a verdict; the connection comes to its end.
    Ending,
}

impl Question {
    /// A question that is asked by the first [`Question::advance`].
    pub(super) fn begin(check: &Check, local_port: u16, seed: u64, now: Instant) -> Option<Self> {
        let question = &check.readiness.question;
        let local = SocketAddr::from((check.service, local_port));
        let remote = SocketAddr::from((check.instance, question.port().get()));
        let request = match question {
            ReadinessQuestion::Tcp { .. } => None,
            ReadinessQuestion::Http { port, path } => {
                Some(request(check.instance, port.get(), path.as_str()))
            }
        };
        let buffers = Buffers {
            receive: RECEIVE_BUFFER,
            send: request.as_ref().map_or(1, Vec::len),
        };
        Some(Self {
            endpoint: Endpoint::connect(local, remote, check.mtu, buffers, seed, now)?,
            local_port,
            deadline: now + check.readiness.patience(),
            due: now,
            stage: Stage::Connecting,
            request,
            head: Vec::new(),
            discarded: 0,
        })
    }

    /// The port it is asked from.
    pub(super) fn local_port(&self) -> u16 {
        self.local_port
    }

    /// When it must be over.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// When it wants to advance next.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Whether nothing is left of its connection.
    pub(super) fn is_over(&self) -> bool {
        self.endpoint.is_over()
    }

    /// Takes a packet in, and says what is to be said. The verdict, when this gives it.
    pub(super) fn advance(
        &mut self,
        packet: Option<&[u8]>,
        now: Instant,
        room: &mut [u8],
        mut send: impl FnMut(&[u8]),
    ) -> Option<Result<(), ProbeError>> {
        let mut packet = packet;
        let mut verdict = None;
        loop {
            self.endpoint.poll(packet.take(), now, room, &mut send);
            if !self.converse(&mut verdict) {
                break;
            }
        }
        self.due = self.endpoint.poll_at(now).unwrap_or(self.deadline);
        verdict
    }

    /// Ends it, whatever state it is in.
    pub(super) fn give_up(
        &mut self,
        now: Instant,
        room: &mut [u8],
        send: impl FnMut(&[u8]),
    ) -> Option<Result<(), ProbeError>> {
        self.endpoint.socket().abort();
        self.endpoint.poll(None, now, room, send);
        match std::mem::replace(&mut self.stage, Stage::Ending) {
            Stage::Connecting => Some(Err(ProbeError::Silent)),
            Stage::Asking => Some(Err(ProbeError::NoStatus)),
            Stage::Ending => None,
        }
    }

    /// Whether there is anything new to send.
    fn converse(&mut self, verdict: &mut Option<Result<(), ProbeError>>) -> bool {
        let socket = self.endpoint.socket();
        match self.stage {
            Stage::Connecting => {
                match socket.state() {
                    tcp::State::Listen | tcp::State::SynSent | tcp::State::SynReceived => return false,
                    tcp::State::Closed | tcp::State::TimeWait => {
                        self.stage = Stage::Ending;
                        *verdict = Some(Err(ProbeError::Refused));
                        return false;
                    }
                    tcp::State::Established
                    | tcp::State::FinWait1
                    | tcp::State::FinWait2
                    | tcp::State::CloseWait
                    | tcp::State::Closing
                    | tcp::State::LastAck => {}
                }
                match &self.request {
                    None => {
                        self.stage = Stage::Ending;
                        *verdict = Some(Ok(()));
                        socket.close();
                    }
                    Some(request) => {
                        self.stage = Stage::Asking;
                        // The buffer is as long.
                        let _ = socket.send_slice(request);
                    }
                }
                true
            }
            Stage::Asking => {
                let told = self.hear();
                if let Some(told) = told {
                    self.stage = Stage::Ending;
                    *verdict = Some(told);
                }
                told.is_some()
            }
            Stage::Ending => self.discard(),
        }
    }

    /// Reads as far as the status; `None` when there is none yet.
    fn hear(&mut self) -> Option<Result<(), ProbeError>> {
        let socket = self.endpoint.socket();
        let head = &mut self.head;
        // Not more than the room of a head: what is behind is left, and discarded then.
        while head.len() < LONGEST_HEAD && socket.can_recv() {
            let wanted = LONGEST_HEAD - head.len();
            let heard = socket.recv(|bytes| {
                let taken = bytes.get(..wanted).unwrap_or(bytes);
                head.extend_from_slice(taken);
                (taken.len(), taken.len())
            });
            if heard.unwrap_or(0) == 0 {
                break;
            }
        }
        match read(head) {
            Head::Status(200..=399) => Some(Ok(())),
            Head::Status(status) => Some(Err(ProbeError::Status(status))),
            Head::NotHttp => Some(Err(ProbeError::NotHttp)),
            Head::Unfinished if head.len() >= LONGEST_HEAD => Some(Err(ProbeError::NotHttp)),
            Head::Unfinished if !socket.may_recv() => Some(Err(ProbeError::Ended)),
            Head::Unfinished => None,
        }
    }

    /// Takes off the other end what it still says, and closes after it did. Whether there is anything new to send.
    fn discard(&mut self) -> bool {
        let socket = self.endpoint.socket();
        let mut discarded = 0;
        while socket.can_recv() {
            match socket.recv(|bytes| (bytes.len(), bytes.len())) {
                Ok(count) if count > 0 => discarded += count,
                Ok(_) | Err(_) => break,
            }
        }
        self.discarded += discarded;
        if self.discarded > MOST_DISCARDED && socket.is_active() {
            socket.abort();
            return true;
        }
        if socket.state() == tcp::State::CloseWait {
            socket.close();
            return true;
        }
        discarded > 0
    }
}

/// The request (RFC 9112 §3.2); the port of HTTP itself isn't told (RFC 9110 §4.2.3).
fn request(host: Ipv4Addr, port: u16, path: &str) -> Vec<u8> {
    let port = match port {
        HTTP_PORT => String::new(),
        port => format!(":{port}"),
    };
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}{port}\r\nUser-Agent: tidegate\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    )
    .into_bytes()
}
