//! Fragments: what comes in parts is put together before anybody judges it, and what a link doesn't take whole leaves in
//! parts.
//!
//! The parts of a port's datagram meet on the shard that is their home by their identification; the whole goes on from
//! there as if that shard had just read it, to the home of its flow. A peer's parts have come by one lane.

use super::counters::Counters;
use super::from_lane::Sender;
use super::from_port::{Came, packet_example};
use super::{Shard, Turn, answers, example_of};
use crate::drop::DropReason;
use crate::egress::Egress;
use crate::flow::Arrival;
use crate::frame::{Frame, fragment};
use crate::plan::Vni;
use crate::snapshot::{MemberEntry, PortEntry};
use crate::stats::{DropExample, PacketExample};
use crate::time::Instant;
use crate::wire::fragments::{Lost, Origin};
use crate::wire::{FlowKey, Headers, home};

impl Shard {
    /// A fragment of an instance.
    pub(super) fn fragment_from_port(
        &mut self,
        port: &PortEntry,
        member: &MemberEntry,
        frame: &mut Frame,
        headers: &Headers,
        came: Came,
        turn: &mut Turn<'_, impl Egress>,
    ) -> Result<(), DropReason> {
        let (key, _) = FlowKey::of(member.vni, &headers.endpoints());
        if came == Came::Read
            && let Some(shard) = self.elsewhere(turn.policy, &key, home(&key, headers.identification))
        {
            return self.hand_over(shard, port, frame, turn);
        }
        let arrival = Arrival::Port(port.id);
        let whole = self.reassemble(member.vni, arrival, frame.packet(), headers, turn.now)?;
        let Some(mut whole) = whole else { return Ok(()) };
        let mut example = example_in(member.vni, arrival);
        let outcome = Headers::parse(whole.packet()).and_then(|headers| {
            example.packet = Some(packet_example(&headers.endpoints()));
            self.route_from_port(port, member, &mut whole, headers, Came::Read, turn)
        });
        self.pool.recycle(whole);
        if let Err(reason) = outcome {
            self.counters.drop_example(reason, example);
        }
        Ok(())
    }

    /// A fragment of a peer.
    pub(super) fn fragment_from_peer(
        &mut self,
        from: Sender,
        vni: Vni,
        packet: &[u8],
        headers: &Headers,
        turn: &mut Turn<'_, impl Egress>,
    ) -> Result<(), DropReason> {
        let arrival = Arrival::Tunnel(from.peer);
        let Some(whole) = self.reassemble(vni, arrival, packet, headers, turn.now)? else {
            return Ok(());
        };
        let mut example = example_in(vni, arrival);
        let outcome = Headers::parse(whole.packet()).and_then(|headers| {
            example.packet = Some(packet_example(&headers.endpoints()));
            self.packet_from_peer(from, vni, whole.packet(), &headers, turn)
        });
        self.pool.recycle(whole);
        if let Err(reason) = outcome {
            self.counters.drop_example(reason, example);
        }
        Ok(())
    }

    fn reassemble(
        &mut self,
        vni: Vni,
        arrival: Arrival,
        packet: &[u8],
        headers: &Headers,
        now: Instant,
    ) -> Result<Option<Frame>, DropReason> {
        let origin = match arrival {
            Arrival::Port(port) => Origin::Port(port),
            Arrival::Tunnel(peer) => Origin::Peer(peer),
        };
        let counters = &mut self.counters;
        self.reassembly
            .push((vni, origin), packet, headers, &mut self.pool, now, |lost| {
                count_lost(counters, &lost);
            })
    }

    /// Forgets datagrams whose rest didn't come.
    pub(super) fn expire_fragments(&mut self, now: Instant) {
        let counters = &mut self.counters;
        self.reassembly.expire(now, |lost| count_lost(counters, &lost));
    }

    /// Gives a packet that lets itself be cut to a port, in parts that its instance's device takes.
    pub(super) fn deliver_in_parts(
        &mut self,
        port: &PortEntry,
        packet: &[u8],
        headers: &Headers,
        egress: &mut impl Egress,
    ) -> Result<(), DropReason> {
        let mut part = self
            .pool
            .take(usize::from(port.mtu.get()))
            .ok_or(DropReason::NoBuffer)?;
        let mut offset = 0;
        while let Some(next) = fragment::write(packet, headers, port.mtu, offset, &mut part) {
            answers::deliver(port, &part, None, egress, &mut self.counters);
            offset = next;
        }
        self.pool.recycle(part);
        Ok(())
    }
}

fn example_in(vni: Vni, arrival: Arrival) -> DropExample {
    DropExample {
        vni: Some(vni),
        ..example_of(arrival)
    }
}

/// Counts every fragment that was held.
fn count_lost(counters: &mut Counters, lost: &Lost) {
    let datagram = &lost.datagram;
    let arrival = match datagram.origin {
        Origin::Port(port) => Arrival::Port(port),
        Origin::Peer(peer) => Arrival::Tunnel(peer),
    };
    let packet = PacketExample {
        protocol: datagram.protocol,
        source: datagram.source,
        source_port: 0,
        destination: datagram.destination,
        destination_port: 0,
    };
    counters.drop_many(lost.reason, usize::from(lost.fragments).saturating_sub(1));
    counters.drop_example(
        lost.reason,
        DropExample {
            packet: Some(packet),
            ..example_in(datagram.vni, arrival)
        },
    );
}
