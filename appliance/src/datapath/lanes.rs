//! A shard's lanes: UDP sockets, and the batches of datagrams that each has open.
//!
//! Sending: reserve → seal → commit. Datagrams of one stride to one destination gather in a batch and leave in one send
//! (`UDP_SEGMENT`). A destination has one batch at a time, so that what goes there keeps its order: a shorter datagram
//! may only be the last and closes the batch, and a longer one, or another congestion field, sends it first. Some
//! destinations have batches open beside each other. Where the kernel or the device doesn't segment, the same batch
//! leaves datagram by datagram.
//! Receiving: some messages at a time, each a run of datagrams from one source (`UDP_GRO`).

use super::standing::{Found, Standing};
use crate::seam::LaneFeatures;
use crate::sys::epoll::Poller;
use crate::sys::lane_socket;
use quinn_udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};
use tidegate_stack::egress::{LaneKind, Route, Slot};
use tidegate_stack::shard::Datagrams;
use tidegate_stack::time::Instant;
use tidegate_stack::wire::Ecn;

/// Most datagrams of a batch (`UDP_MAX_SEGMENTS` of the first kernels that segment).
const BATCH_DATAGRAMS: usize = 64;
/// Most bytes of a batch: the largest UDP payload over IPv4.
const BATCH_BYTES: usize = 65_507;
/// Destinations that have a batch open at the same time; the one opened first leaves for a further one.
const BATCHES: usize = 4;
/// Messages of one receive. More would be colder in the cache when their turn comes, and gain nothing.
const MESSAGES: usize = 8;
/// Room for a message: whatever `UDP_GRO` glues.
const MESSAGE_BYTES: usize = 65_536;
/// How long a full socket is waited for before a batch is given up.
const PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};

/// One lane's socket.
pub(super) struct Lane {
    socket: OwnedFd,
    state: UdpSocketState,
    /// The socket is of the IPv6 family and carries IPv4 in mapped addresses.
    mapped: bool,
    dont_fragment: bool,
    segmentation: bool,
    batches: [Batch; BATCHES],
    /// The batch that leaves for a further destination.
    oldest: usize,
    lost: u64,
    standing: Standing,
}

/// Datagrams that wait to leave together.
struct Batch {
    buffer: Box<[u8]>,
    used: usize,
    datagrams: usize,
    stride: usize,
    /// Address as the socket wants it, and congestion field; `None` before the first reservation.
    destination: Option<(SocketAddr, Ecn)>,
}

/// Room for datagrams at the end of one of a lane's batches.
pub(super) struct Room<'a> {
    lane: &'a mut Lane,
    batch: usize,
    length: usize,
    /// What is committed here is shorter than the batch's stride and must be its last.
    closes: bool,
}

/// Where received messages are put.
pub(super) struct Arrivals {
    buffer: Box<[u8]>,
    meta: [RecvMeta; MESSAGES],
    count: usize,
}

/// All lanes of a shard, in the order of [`LaneKind`].
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    /// Datagrams that the sockets of former lanes didn't take.
    lost_before: u64,
}

impl Lane {
    /// Takes a lane's socket.
    pub(super) fn new(socket: OwnedFd, features: LaneFeatures) -> io::Result<Self> {
        // quinn-udp switches DF and GRO on; what the socket was made with, and the features, have the last word.
        let dont_fragment = lane_socket::dont_fragment(socket.as_fd())?;
        let state = UdpSocketState::new((&socket).into())?;
        if !dont_fragment {
            lane_socket::set_dont_fragment(socket.as_fd(), false)?;
        }
        if !features.gro && state.gro_segments() > 1 {
            lane_socket::set_gro(socket.as_fd(), false)?;
        }
        Ok(Self {
            mapped: lane_socket::is_ipv6(socket.as_fd())?,
            segmentation: features.gso && state.max_gso_segments() > 1,
            dont_fragment,
            state,
            socket,
            batches: std::array::from_fn(|_| Batch::new()),
            oldest: 0,
            lost: 0,
            standing: Standing::default(),
        })
    }

    fn reserve(&mut self, route: &Route, stride: usize, count: usize) -> Option<Room<'_>> {
        if stride == 0 || stride > BATCH_BYTES || count == 0 {
            return None;
        }
        let destination = (self.address(route.endpoint)?, route.ecn);
        let place = self.batch_for(destination.0);
        if !self.batches.get(place)?.takes(destination, stride, count) {
            self.send(place);
            let batch = self.batches.get_mut(place)?;
            batch.destination = Some(destination);
            batch.stride = stride;
        }
        let batch = self.batches.get(place)?;
        Some(Room {
            length: batch.room().min(count) * stride,
            closes: stride < batch.stride,
            batch: place,
            lane: self,
        })
    }

    /// The batch that is open for an address, or else an unused one, or else the oldest.
    fn batch_for(&mut self, address: SocketAddr) -> usize {
        let is_for = |batch: &Batch| batch.destination.is_some_and(|(open, _)| open == address);
        let open = self.batches.iter().position(is_for);
        let unused = || self.batches.iter().position(|batch| batch.destination.is_none());
        open.or_else(unused).unwrap_or_else(|| {
            let oldest = self.oldest;
            self.oldest = (oldest + 1) % BATCHES;
            oldest
        })
    }

    /// The endpoint as this socket writes it; `None` when it can't reach its family.
    fn address(&self, endpoint: SocketAddr) -> Option<SocketAddr> {
        match (endpoint, self.mapped) {
            (SocketAddr::V4(endpoint), true) => Some(SocketAddr::new(
                IpAddr::V6(endpoint.ip().to_ipv6_mapped()),
                endpoint.port(),
            )),
            (SocketAddr::V4(_), false) | (SocketAddr::V6(_), true) => Some(endpoint),
            (SocketAddr::V6(_), false) => None,
        }
    }

    /// Sends every open batch.
    fn send_all(&mut self) {
        for place in 0..BATCHES {
            self.send(place);
        }
        self.oldest = 0;
    }

    /// Sends a batch.
    fn send(&mut self, place: usize) {
        let Some(batch) = self.batches.get_mut(place) else {
            return;
        };
        let used = std::mem::take(&mut batch.used);
        let datagrams = std::mem::take(&mut batch.datagrams);
        let stride = batch.stride;
        let destination = batch.destination.take();
        let bytes = self.batches.get(place).and_then(|batch| batch.buffer.get(..used));
        let (Some((destination, ecn)), Some(bytes)) = (destination, bytes) else {
            return;
        };
        if bytes.is_empty() {
            return;
        }
        if datagrams > 1 && self.segmentation {
            match self.transmit(destination, ecn, bytes, Some(stride)) {
                Ok(()) => return,
                Err(error) if self.is_refused_segmentation(&error) => {}
                Err(_) => {
                    self.lost += datagrams as u64;
                    return;
                }
            }
        }
        let mut sent = 0;
        for datagram in bytes.chunks(stride) {
            match self.transmit(destination, ecn, datagram, None) {
                Ok(()) => sent += 1,
                Err(_) => self.lost += 1,
            }
        }
        if sent > 1 && self.segmentation && self.dont_fragment {
            // What was refused as a run went through one by one: the device can't segment.
            tracing::warn!("the kernel refused UDP segmentation on a lane; datagrams now leave one by one");
            self.segmentation = false;
        }
    }

    /// Whether a run was refused for being one: a device without the offload (EIO, EINVAL), or datagrams that must be
    /// fragmented outside, which excludes segmentation (EMSGSIZE, EINVAL).
    fn is_refused_segmentation(&self, error: &io::Error) -> bool {
        match error.raw_os_error() {
            Some(libc::EIO | libc::EINVAL) => true,
            Some(libc::EMSGSIZE) => !self.dont_fragment,
            Some(_) | None => false,
        }
    }

    fn transmit(
        &self,
        destination: SocketAddr,
        ecn: Ecn,
        contents: &[u8],
        segment_size: Option<usize>,
    ) -> io::Result<()> {
        let transmit = Transmit {
            destination,
            ecn: EcnCodepoint::from_bits(ecn.bits()),
            contents,
            segment_size,
            src_ip: None,
        };
        match self.state.try_send((&self.socket).into(), &transmit) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut sockets = [PollFd::new(&self.socket, PollFlags::OUT)];
                // Whether it became writable, the second try tells.
                let _ = poll(&mut sockets, Some(&PATIENCE));
                self.state.try_send((&self.socket).into(), &transmit)
            }
            other => other,
        }
    }

    fn receive(&self, arrivals: &mut Arrivals) -> io::Result<usize> {
        arrivals.count = 0;
        let mut buffers = arrivals.buffer.chunks_exact_mut(MESSAGE_BYTES);
        let mut slices: [IoSliceMut<'_>; MESSAGES] =
            std::array::from_fn(|_| IoSliceMut::new(buffers.next().unwrap_or_default()));
        let count = self
            .state
            .recv((&self.socket).into(), &mut slices, &mut arrivals.meta)?;
        arrivals.count = count;
        Ok(count)
    }
}

impl Batch {
    /// A closed one.
    fn new() -> Self {
        Self {
            buffer: vec![0; BATCH_BYTES].into_boxed_slice(),
            used: 0,
            datagrams: 0,
            stride: 0,
            destination: None,
        }
    }

    /// Whether datagrams of `stride` to `destination` may be appended.
    fn takes(&self, destination: (SocketAddr, Ecn), stride: usize, count: usize) -> bool {
        if self.used == 0 || self.destination != Some(destination) || self.room() == 0 {
            return false;
        }
        // One shorter datagram fits at the end: the tail of a super-packet, a lone acknowledgement.
        stride == self.stride || (stride < self.stride && count == 1)
    }

    /// How many more datagrams of its stride fit.
    fn room(&self) -> usize {
        let bytes = (BATCH_BYTES - self.used).checked_div(self.stride).unwrap_or(0);
        bytes.min(BATCH_DATAGRAMS - self.datagrams)
    }
}

impl Slot for Room<'_> {
    fn buffer(&mut self) -> &mut [u8] {
        let Some(batch) = self.lane.batches.get_mut(self.batch) else {
            return &mut [];
        };
        let start = batch.used;
        batch
            .buffer
            .get_mut(start..start + self.length)
            .unwrap_or_default()
    }

    fn commit(self, used: usize) {
        let used = used.min(self.length);
        if used == 0 {
            return;
        }
        let Some(batch) = self.lane.batches.get_mut(self.batch) else {
            return;
        };
        batch.used += used;
        batch.datagrams += used.div_ceil(batch.stride);
        if self.closes || !used.is_multiple_of(batch.stride) || batch.room() == 0 {
            self.lane.send(self.batch);
        }
    }
}

impl Arrivals {
    /// Messages of one receive.
    pub(super) const CAPACITY: usize = MESSAGES;

    /// Room for the messages of one receive.
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; MESSAGES * MESSAGE_BYTES].into_boxed_slice(),
            meta: [RecvMeta::default(); MESSAGES],
            count: 0,
        }
    }

    /// The messages of the last receive.
    pub(super) fn messages(&self, lane: LaneKind) -> impl Iterator<Item = Datagrams<'_>> {
        let buffers = self.buffer.chunks_exact(MESSAGE_BYTES);
        let received = self.meta.iter().take(self.count).zip(buffers);
        received.filter_map(move |(meta, buffer)| {
            Some(Datagrams {
                lane,
                source: canonical(meta.addr),
                ecn: meta.ecn.map_or(Ecn::NotCapable, |ecn| Ecn::from_bits(ecn as u8)),
                // An empty datagram has no stride that a run could be cut by.
                stride: meta.stride.max(1),
                bytes: buffer.get(..meta.len)?,
            })
        })
    }
}

impl Lanes {
    /// No lanes.
    pub(super) fn new() -> Self {
        Self {
            lanes: Vec::new(),
            lost_before: 0,
        }
    }

    /// Takes the place of all former lanes, and polls the new ones with tokens from `first_token`.
    pub(super) fn replace(&mut self, lanes: Vec<Lane>, first_token: u64, poller: &Poller) -> io::Result<()> {
        self.lost_before = self.lost();
        for lane in self.lanes.drain(..) {
            poller.remove(lane.socket.as_fd())?;
        }
        self.lanes = lanes;
        for (token, lane) in (first_token..).zip(&self.lanes) {
            poller.add(lane.socket.as_fd(), token)?;
        }
        Ok(())
    }

    /// Room in a lane's batch; what is in the way is sent first.
    pub(super) fn reserve(&mut self, route: &Route, stride: usize, count: usize) -> Option<Room<'_>> {
        self.lanes
            .get_mut(route.lane as usize)?
            .reserve(route, stride, count)
    }

    /// Sends every open batch.
    pub(super) fn send(&mut self) {
        for lane in &mut self.lanes {
            lane.send_all();
        }
    }

    /// Receives from a lane: how many messages, zero when nothing waits.
    pub(super) fn receive(&self, lane: LaneKind, arrivals: &mut Arrivals) -> usize {
        let Some(lane) = self.lanes.get(lane as usize) else {
            return 0;
        };
        // An error that a former datagram left (ICMP) is told once and then gone: the next turn reads on.
        lane.receive(arrivals).unwrap_or(0)
    }

    /// Notes what turn number `turn` found at a lane; whether one of the senders is to be told that its queue stands.
    pub(super) fn stands(&mut self, lane: LaneKind, turn: u64, found: Found, now: Instant) -> bool {
        let lane = self.lanes.get_mut(lane as usize);
        lane.is_some_and(|lane| lane.standing.note(turn, found, now))
    }

    /// Datagrams that no socket took.
    pub(super) fn lost(&self) -> u64 {
        self.lost_before + self.lanes.iter().map(|lane| lane.lost).sum::<u64>()
    }
}

/// An address as plans and peers write it: IPv4 never mapped, no flow label.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => address,
        SocketAddr::V6(address) => match address.ip().to_canonical() {
            IpAddr::V4(ip) => SocketAddr::new(IpAddr::V4(ip), address.port()),
            IpAddr::V6(ip) => SocketAddr::V6(SocketAddrV6::new(ip, address.port(), 0, address.scope_id())),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
    use std::time::{Duration, Instant};

    fn lanes(features: LaneFeatures) -> (Lanes, u16) {
        let listen = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
        let socket = lane_socket::bind(listen, true).unwrap();
        let socket = UdpSocket::from(socket);
        let port = socket.local_addr().unwrap().port();
        let lane = Lane::new(socket.into(), features).unwrap();
        (
            Lanes {
                lanes: vec![lane],
                lost_before: 0,
            },
            port,
        )
    }

    fn route(ip: IpAddr, port: u16, ecn: Ecn) -> Route {
        Route {
            lane: LaneKind::Site,
            endpoint: SocketAddr::new(ip, port),
            ecn,
        }
    }

    fn write(lanes: &mut Lanes, route: &Route, stride: usize, datagrams: &[&[u8]]) {
        let mut slot = lanes.reserve(route, stride, datagrams.len()).unwrap();
        let bytes = datagrams.concat();
        slot.buffer()[..bytes.len()].copy_from_slice(&bytes);
        slot.commit(bytes.len());
    }

    /// Everything that arrives within a second, until `count` datagrams are there.
    fn receive(lanes: &Lanes, count: usize) -> Vec<(SocketAddr, Ecn, Vec<u8>)> {
        let mut arrivals = Arrivals::new();
        let mut received = Vec::new();
        let end = Instant::now() + Duration::from_secs(1);
        while received.len() < count && Instant::now() < end {
            if lanes.receive(LaneKind::Site, &mut arrivals) == 0 {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            for message in arrivals.messages(LaneKind::Site) {
                for datagram in message.bytes.chunks(message.stride) {
                    received.push((message.source, message.ecn, datagram.to_vec()));
                }
            }
        }
        received
    }

    #[test]
    fn a_run_arrives_whole_over_both_families_with_and_without_offloads() {
        for gso in [true, false] {
            for gro in [true, false] {
                for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
                    let (mut sender, source) = lanes(LaneFeatures { gso, gro });
                    let (receiver, port) = lanes(LaneFeatures { gso, gro });
                    let route = route(ip, port, Ecn::Capable0);
                    let full: Vec<Vec<u8>> = (0..40).map(|index| vec![index; 1000]).collect();
                    let full: Vec<&[u8]> = full.iter().map(Vec::as_slice).collect();
                    write(&mut sender, &route, 1000, &full);
                    write(&mut sender, &route, 300, &[&[99; 300]]);
                    assert_eq!(
                        sender.lanes[0].batches[0].used, 0,
                        "a shorter datagram closes the batch"
                    );
                    let received = receive(&receiver, 41);
                    assert_eq!(received.len(), 41, "gso {gso} gro {gro} {ip}");
                    for (expected, (from, ecn, bytes)) in full.iter().chain([&&[99; 300][..]]).zip(&received)
                    {
                        assert_eq!(*from, SocketAddr::new(ip, source));
                        assert_eq!(*ecn, Ecn::Capable0);
                        assert_eq!(bytes, expected);
                    }
                    assert_eq!(sender.lost(), 0);
                }
            }
        }
    }

    #[test]
    fn a_dropped_or_empty_slot_sends_nothing() {
        let (mut sender, _) = lanes(LaneFeatures::default());
        let (receiver, port) = lanes(LaneFeatures::default());
        let route = route(Ipv4Addr::LOCALHOST.into(), port, Ecn::NotCapable);
        write(&mut sender, &route, 200, &[&[1; 200]]);
        sender.reserve(&route, 200, 4).unwrap().buffer().fill(7);
        sender.reserve(&route, 100, 1).unwrap().commit(0);
        assert_eq!(sender.lanes[0].batches[0].used, 200);
        write(&mut sender, &route, 200, &[&[2; 200]]);
        sender.send();
        let received = receive(&receiver, 2);
        let bytes: Vec<_> = received.into_iter().map(|(_, _, bytes)| bytes).collect();
        assert_eq!(bytes, [vec![1; 200], vec![2; 200]]);
    }

    #[test]
    fn another_route_or_a_longer_stride_sends_what_is_open() {
        let (mut sender, _) = lanes(LaneFeatures::default());
        let (receiver, port) = lanes(LaneFeatures::default());
        let plain = route(Ipv4Addr::LOCALHOST.into(), port, Ecn::NotCapable);
        let marked = route(Ipv4Addr::LOCALHOST.into(), port, Ecn::Congested);
        write(&mut sender, &plain, 200, &[&[1; 200]]);
        write(&mut sender, &marked, 200, &[&[2; 200]]);
        write(&mut sender, &marked, 500, &[&[3; 500]]);
        sender.send();
        let received = receive(&receiver, 3);
        let seen: Vec<_> = received
            .iter()
            .map(|(_, ecn, bytes)| (*ecn, bytes.len()))
            .collect();
        assert_eq!(
            seen,
            [
                (Ecn::NotCapable, 200),
                (Ecn::Congested, 200),
                (Ecn::Congested, 500)
            ]
        );
    }

    #[test]
    fn packets_to_several_peers_in_turn_leave_together_for_each_of_them() {
        let (mut sender, _) = lanes(LaneFeatures::default());
        let receivers: Vec<_> = (0..=BATCHES).map(|_| lanes(LaneFeatures::default())).collect();
        let routes: Vec<_> = receivers
            .iter()
            .map(|(_, port)| route(Ipv4Addr::LOCALHOST.into(), *port, Ecn::NotCapable))
            .collect();
        let used = |sender: &Lanes| -> Vec<usize> {
            sender.lanes[0].batches.iter().map(|batch| batch.used).collect()
        };
        for round in 0..10_u8 {
            for route in &routes[..BATCHES] {
                write(&mut sender, route, 200, &[&[round; 200]]);
            }
        }
        assert_eq!(used(&sender), [2000; BATCHES], "nothing has left yet");
        write(&mut sender, &routes[BATCHES], 200, &[&[0; 200]]);
        assert_eq!(used(&sender), [200, 2000, 2000, 2000], "the first one left");
        sender.send();
        for (number, (receiver, _)) in receivers.iter().enumerate() {
            let received = receive(receiver, if number < BATCHES { 10 } else { 1 });
            for (round, (_, _, bytes)) in received.iter().enumerate() {
                assert_eq!(*bytes, [round as u8; 200], "in the order in which they were sent");
            }
            assert_eq!(received.len(), if number < BATCHES { 10 } else { 1 });
        }
    }

    #[test]
    fn a_batch_holds_no_more_than_one_send_takes() {
        let (mut sender, _) = lanes(LaneFeatures::default());
        let route = route(Ipv4Addr::LOCALHOST.into(), 9, Ecn::NotCapable);
        let length = |slot: Option<Room<'_>>| slot.map(|slot| slot.length);
        assert_eq!(length(sender.reserve(&route, 100, 1000)), Some(6400));
        assert_eq!(length(sender.reserve(&route, 1472, 1000)), Some(44 * 1472));
        assert_eq!(length(sender.reserve(&route, 0, 1)), None);
        assert_eq!(length(sender.reserve(&route, BATCH_BYTES + 1, 1)), None);
        let elsewhere = Route {
            lane: LaneKind::Foreign,
            ..route
        };
        assert_eq!(length(sender.reserve(&elsewhere, 100, 1)), None);
    }
}
