//! Into a tunnel: neighbour → session → cut → VXLAN → seal, straight into the batch that the socket sends.

use super::counters::Counters;
use super::from_port::must_be_cut;
use super::{Shard, Turn};
use crate::drop::DropReason;
use crate::egress::{Egress, LaneKind, Route, Slot};
use crate::flow::FlowIndex;
use crate::frame::{Frame, Segmentation, Segments, fragment};
use crate::overlay::{Asked, Encap, Lookup, NeighbourKey};
use crate::plan::{Mtu, PeerId, Vni, vtep_address};
use crate::responder::{arp, ndp};
use crate::wire::vxlan::{self, ETHERNET_HEADER};
use crate::wire::{Ecn, Headers, MacAddr};
use crate::wireguard::{DATA_OVERHEAD, Train, TunnelEntry, TunnelPlace};
use std::net::{IpAddr, SocketAddr};

/// Packets sealed at a time: enough for a cipher that works on many at once, few enough to stay in the cache.
const TRAIN: usize = 16;
/// Room for handshakes, keepalives and questions.
const SHORT_DATAGRAM: usize = 256;
/// WireGuard pads what it seals to this (whitepaper §5.4.6).
const PADDING: usize = 16;

/// Where a packet goes.
#[derive(Clone, Copy)]
pub(super) struct Outbound {
    pub(super) peer: PeerId,
    pub(super) vni: Vni,
    /// Chooses the lane of the peer.
    pub(super) home: u32,
    /// Has the prepared headers; without a flow (what the appliance itself passes on) they are made for this packet.
    pub(super) flow: Option<FlowIndex>,
}

/// Where a train is laid out before it is sealed.
pub(super) struct TrainBuffer(Box<[u8]>);

impl TrainBuffer {
    /// Room for one packet of any length, which is more than a train of usual ones takes.
    pub(super) fn new() -> Self {
        Self(vec![0; 65_536 + Encap::LENGTH + PADDING].into_boxed_slice())
    }
}

impl Shard {
    /// Sends a packet of a network to a peer.
    pub(super) fn send_to_peer(
        &mut self,
        to: &Outbound,
        frame: &Frame,
        headers: &Headers,
        turn: &mut Turn<'_, impl Egress>,
    ) -> Result<(), DropReason> {
        let flow = to.flow;
        let prepared = flow.and_then(|index| self.flows.get(index)?.tunnel);
        let prepared = match prepared {
            Some(prepared) => prepared,
            None => super::flows::tunnel_headers(turn.policy, to.vni, &headers.endpoints(), to.peer)
                .ok_or(DropReason::NoPeer)?,
        };
        let mut encap = prepared.encap(turn.policy.ordinal(), to.vni, &headers.endpoints());
        if let Some(hint) = prepared.neighbour {
            let Some((mac, place)) = self.neighbour(to, hint, frame, headers, turn)? else {
                return Ok(());
            };
            encap.set_destination(mac);
            if place != hint
                && let Some(kept) = flow.and_then(|index| self.flows.get_mut(index)?.tunnel.as_mut())
            {
                kept.neighbour = Some(place);
            }
        }
        let mtu = turn.policy.peer(to.peer).map(|entry| entry.mtu);
        let mtu = mtu.ok_or(DropReason::NoPeer)?;
        let chosen = self.peers.choose(to.peer, to.home, turn.now)?;
        let Some(ready) = chosen.ready else {
            self.peers.may_wait(to.peer, chosen.begin)?;
            let mut copy = self
                .pool
                .take_to_wait(frame.packet().len())
                .ok_or(DropReason::NoBuffer)?;
            copy.fill(frame.packet(), frame.offload);
            if let Err(copy) = self.peers.wait(to.peer, to.vni, copy, turn.now) {
                self.pool.recycle(copy);
                return Err(DropReason::NoSession);
            }
            self.begin(chosen.begin, turn);
            return Ok(());
        };
        if chosen.begin.is_some() {
            self.begin(chosen.begin, turn);
        }
        let entry = self.peers.tunnel_mut(ready).ok_or(DropReason::NoSession)?;
        encap.set_ecn(headers.ecn());
        if !must_be_cut(frame, headers, mtu) {
            return seal(entry, encap, frame, headers, mtu, &mut self.train, turn);
        }
        // All parts go by the lane of the whole.
        let part = self.pool.take(usize::from(mtu.get()));
        let mut part = part.ok_or(DropReason::NoBuffer)?;
        let mut sent = Ok(());
        let mut offset = 0;
        while let Some(next) = fragment::write(frame.packet(), headers, mtu, offset, &mut part)
            && sent.is_ok()
        {
            let headers = Headers::parse(part.packet());
            sent = headers
                .and_then(|headers| seal(entry, encap.clone(), &part, &headers, mtu, &mut self.train, turn));
            offset = next;
        }
        self.pool.recycle(part);
        sent
    }

    /// The MAC address behind a foreign peer, and its place in the cache. `None`: it was asked for, and the packet waits.
    fn neighbour(
        &mut self,
        to: &Outbound,
        hint: u32,
        frame: &Frame,
        headers: &Headers,
        turn: &mut Turn<'_, impl Egress>,
    ) -> Result<Option<(MacAddr, u32)>, DropReason> {
        let key = NeighbourKey {
            vni: to.vni,
            address: headers.destination,
        };
        match self
            .neighbours
            .look_up(key, headers.source, to.peer, hint, turn.now)
        {
            Lookup::Known(mac, place) => Ok(Some((mac, place))),
            Lookup::Unknown(question) => {
                // The look-up may have evicted an entry in which packets waited.
                self.recycle_given_up();
                let waits = self.wait_for_neighbour(&key, frame);
                if let Some(asked) = question {
                    self.ask_neighbour(&asked, turn);
                }
                waits.map(|()| None)
            }
        }
    }

    /// Asks a tunnel's far end for a session, unless that is under way.
    fn begin(&mut self, place: Option<TunnelPlace>, turn: &mut Turn<'_, impl Egress>) {
        if let Some(entry) = place.and_then(|place| self.peers.tunnel_mut(place)) {
            initiate(entry, turn, &mut self.counters);
        }
    }

    fn wait_for_neighbour(&mut self, key: &NeighbourKey, frame: &Frame) -> Result<(), DropReason> {
        if !self.neighbours.has_room(key) {
            return Err(DropReason::NeighbourQueueFull);
        }
        let mut copy = self
            .pool
            .take_to_wait(frame.packet().len())
            .ok_or(DropReason::NoBuffer)?;
        copy.fill(frame.packet(), frame.offload);
        self.neighbours.wait(key, copy).map_err(|copy| {
            self.pool.recycle(copy);
            DropReason::NeighbourQueueFull
        })
    }

    /// Sends packets that have waited, for a neighbour's answer or for a session, as far as the policy in force still
    /// leads them there and lets their flows live.
    pub(super) fn send_waiting(
        &mut self,
        peer: PeerId,
        waiting: impl IntoIterator<Item = (Vni, Frame)>,
        turn: &mut Turn<'_, impl Egress>,
    ) {
        for (vni, mut frame) in waiting {
            let sent = Headers::parse(frame.packet()).and_then(|headers| {
                if frame.offload.segmentation == Segmentation::None {
                    frame.finish_checksum(&headers);
                }
                if !turn.policy.leads_to_peer(vni, &headers, peer)
                    || !self.is_still_allowed(vni, &headers, frame.packet(), turn)
                {
                    return Err(DropReason::NoPeer);
                }
                let outbound = Outbound {
                    peer,
                    vni,
                    home: super::flows::home_of(vni, &headers, frame.packet()),
                    flow: None,
                };
                self.send_to_peer(&outbound, &frame, &headers, turn)
            });
            if let Err(reason) = sent {
                self.counters.drop(reason);
            }
            self.pool.recycle(frame);
        }
    }

    /// Asks through a tunnel for a neighbour's MAC address.
    pub(super) fn ask_neighbour(&mut self, asked: &Asked, turn: &mut Turn<'_, impl Egress>) {
        let Some(own) = turn
            .policy
            .network(asked.key.vni)
            .and_then(|network| network.ipv4_of(asked.asker))
        else {
            return;
        };
        let mut frame = [0; SHORT_DATAGRAM];
        let own_mac = MacAddr::of(own);
        let length = match (asked.asker, asked.key.address) {
            (IpAddr::V4(asker), IpAddr::V4(target)) => arp::request(own_mac, asker, target, &mut frame),
            (IpAddr::V6(asker), IpAddr::V6(target)) => ndp::solicit(own_mac, asker, target, &mut frame),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
        };
        if let Some(length) = length {
            // A foreign peer has one lane.
            let tunnel = self.peers.choose(asked.peer, 0, turn.now);
            if let Ok(Some(place)) = tunnel.map(|chosen| chosen.ready.or(chosen.begin)) {
                self.send_frame(place, asked.key.vni, &frame[..length], turn);
            }
        }
    }

    /// Sends an Ethernet frame of our own (ARP, neighbour discovery) through a tunnel. Without a session it is lost:
    /// it will be asked again.
    pub(super) fn send_frame(
        &mut self,
        place: TunnelPlace,
        vni: Vni,
        frame: &[u8],
        turn: &mut Turn<'_, impl Egress>,
    ) {
        let Some(entry) = self.peers.tunnel_mut(place) else {
            return;
        };
        let Some(peer) = turn.policy.peer(entry.peer) else {
            return;
        };
        if !entry.tunnel.is_ready() {
            initiate(entry, turn, &mut self.counters);
            return;
        }
        let mut encap = Encap::new(
            vtep_address(turn.policy.ordinal()),
            vtep_address(peer.ordinal),
            vni,
            MacAddr::BROADCAST,
            vxlan::EtherType::Arp,
            vni.get() as u16,
        );
        encap.set_length(frame.len() - ETHERNET_HEADER);
        // The frame brings its own Ethernet header.
        let headers = &encap.bytes()[..Encap::LENGTH - ETHERNET_HEADER];
        let length = headers.len() + frame.len();
        let padded = length.next_multiple_of(PADDING);
        let mut plain = [0; SHORT_DATAGRAM];
        let Some(plain) = plain.get_mut(..padded) else {
            return;
        };
        plain[..headers.len()].copy_from_slice(headers);
        plain[headers.len()..length].copy_from_slice(frame);
        let mut datagram = [0; SHORT_DATAGRAM + DATA_OVERHEAD];
        let sealed = entry.tunnel.seal(
            &Train {
                bytes: plain,
                stride: padded,
            },
            &mut datagram,
            turn.now,
        );
        send_datagram(entry, &datagram[..sealed.bytes], turn.egress, &mut self.counters);
    }
}

/// Cuts, wraps and seals a packet, train by train, into the socket's batch.
fn seal(
    entry: &mut TunnelEntry,
    mut encap: Encap,
    frame: &Frame,
    headers: &Headers,
    mtu: Mtu,
    train: &mut TrainBuffer,
    turn: &mut Turn<'_, impl Egress>,
) -> Result<(), DropReason> {
    let route = Route {
        lane: entry.lane,
        endpoint: entry.endpoint.ok_or(DropReason::NoEndpoint)?,
        ecn: headers.ecn(),
    };
    let mut segments = Segments::new(frame.packet(), headers, frame.offload)?;
    let longest = Encap::LENGTH + usize::from(mtu.get());
    let padded = |length: usize| {
        (Encap::LENGTH + length)
            .next_multiple_of(PADDING)
            .min(longest.max(Encap::LENGTH + length))
    };
    let stride = padded(segments.packet_length());
    let per_train = TRAIN.min(train.0.len() / stride);
    let mut prepared_for = usize::MAX;
    while segments.remaining() > 0 {
        let wanted = segments.remaining().min(per_train);
        let mut slot = turn
            .egress
            .reserve(&route, stride + DATA_OVERHEAD, wanted)
            .ok_or(DropReason::SendFailed)?;
        let wanted = wanted.min(slot.buffer().len() / (stride + DATA_OVERHEAD));
        let mut used = 0;
        for _ in 0..wanted {
            let length = segments.next_length();
            if length != prepared_for {
                encap.set_length(length);
                prepared_for = length;
            }
            let room = &mut train.0[used..used + padded(length)];
            room[..Encap::LENGTH].copy_from_slice(encap.bytes());
            segments.write_next(&mut room[Encap::LENGTH..]);
            room[Encap::LENGTH + length..].fill(0);
            used += room.len();
            entry.traffic.sent_packets += 1;
            entry.traffic.sent_bytes += length as u64;
        }
        let sealed = entry.tunnel.seal(
            &Train {
                bytes: &train.0[..used],
                stride,
            },
            slot.buffer(),
            turn.now,
        );
        slot.commit(sealed.bytes);
        if sealed.packets < wanted || wanted == 0 {
            return Err(DropReason::NoSession);
        }
    }
    Ok(())
}

/// Begins a handshake by a tunnel unless one is under way.
pub(super) fn initiate(entry: &mut TunnelEntry, turn: &mut Turn<'_, impl Egress>, counters: &mut Counters) {
    if entry.endpoint.is_none() {
        // Only it can begin.
        return;
    }
    let mut out = [0; SHORT_DATAGRAM];
    let length = entry.tunnel.initiate(&mut out, turn.now);
    send_datagram(entry, &out[..length], turn.egress, counters);
}

/// Does what is due for a tunnel's session.
pub(super) fn tick(entry: &mut TunnelEntry, turn: &mut Turn<'_, impl Egress>, counters: &mut Counters) {
    let mut out = [0; SHORT_DATAGRAM];
    let length = entry.tunnel.tick(&mut out, turn.now);
    send_datagram(entry, &out[..length], turn.egress, counters);
}

/// Sends one datagram to where a tunnel's far end is; nothing when it is empty.
pub(super) fn send_datagram(
    entry: &TunnelEntry,
    datagram: &[u8],
    egress: &mut impl Egress,
    counters: &mut Counters,
) {
    if datagram.is_empty() {
        return;
    }
    match entry.endpoint {
        Some(endpoint) => send_to(entry.lane, endpoint, datagram, egress, counters),
        None => counters.drop(DropReason::NoEndpoint),
    }
}

/// Sends one datagram.
pub(super) fn send_to(
    lane: LaneKind,
    endpoint: SocketAddr,
    datagram: &[u8],
    egress: &mut impl Egress,
    counters: &mut Counters,
) {
    let route = Route {
        lane,
        endpoint,
        ecn: Ecn::NotCapable,
    };
    let Some(mut slot) = egress.reserve(&route, datagram.len(), 1) else {
        return counters.drop(DropReason::SendFailed);
    };
    match slot.buffer().get_mut(..datagram.len()) {
        Some(room) => {
            room.copy_from_slice(datagram);
            slot.commit(datagram.len());
        }
        None => counters.drop(DropReason::SendFailed),
    }
}
