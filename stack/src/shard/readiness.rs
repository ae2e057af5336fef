//! Readiness through a shard: questions go out from the service address through the ports whose home it is, and answers
//! come in by the one door that is open for them. No rule of a document is asked: it is the appliance itself that asks.
//!
//! What another shard reads of an answer is handed over. Whatever else a port sends to the service address stays denied.

use super::answers::deliver;
use super::from_port::Came;
use super::{Shard, Turn};
use crate::drop::DropReason;
use crate::egress::{Egress, ShardId};
use crate::frame::{Frame, Offload};
use crate::plan::PortId;
use crate::responder::readiness::{Prober, may_answer};
use crate::snapshot::PortEntry;
use crate::time::Instant;
use crate::wire::Headers;

impl Shard {
    /// Whether this is the datapath that reads the ports; it is unless this is called with `false`. One that doesn't asks
    /// no instance anything, because another one would hear what it answers.
    pub fn set_reads_ports(&mut self, reads: bool, now: Instant, egress: &mut impl Egress) {
        let Some(snapshot) = self.snapshot.clone() else {
            return self.prober.set_asks(reads, now, &mut |_, _| {});
        };
        let turn = &mut Turn {
            policy: snapshot.policy(),
            now,
            egress,
        };
        self.with_prober(turn, |prober, send| prober.set_asks(reads, now, send));
    }

    /// Takes a packet to the service address, which nothing else there answers, to the question that it is about.
    ///
    /// # Errors
    /// [`DropReason::ServiceAddress`] when it is about none.
    pub(super) fn hear(
        &mut self,
        port: &PortEntry,
        frame: &mut Frame,
        headers: &Headers,
        came: Came,
        turn: &mut Turn<'_, impl Egress>,
    ) -> Result<(), DropReason> {
        let endpoints = headers.endpoints();
        let snapshot = self.snapshot.as_ref();
        let check = snapshot.and_then(|snapshot| snapshot.checks().get(port.id));
        if !check.is_some_and(|check| may_answer(check, &endpoints)) {
            return Err(DropReason::ServiceAddress);
        }
        let home = ShardId((port.id.0 % u32::from(self.count.get())) as u8);
        if came == Came::Read && home != self.id {
            return self.hand_over(home, port, frame, turn);
        }
        let now = turn.now;
        let heard = self.with_prober(turn, |prober, send| {
            prober.handle_segment(port.id, &endpoints, frame.packet(), now, send)
        });
        heard.then_some(()).ok_or(DropReason::ServiceAddress)
    }

    /// Asks what is due, and gives up what takes too long.
    pub(super) fn ask_instances(&mut self, turn: &mut Turn<'_, impl Egress>) {
        let now = turn.now;
        if self.prober.poll_timeout().is_some_and(|due| due <= now) {
            self.with_prober(turn, |prober, send| prober.handle_timeout(now, send));
        }
    }

    /// Has the prober do something that sends packets.
    pub(super) fn with_prober<R>(
        &mut self,
        turn: &mut Turn<'_, impl Egress>,
        work: impl FnOnce(&mut Prober, &mut dyn FnMut(PortId, &[u8])) -> R,
    ) -> R {
        let (pool, counters) = (&mut self.pool, &mut self.counters);
        let mut send = |port: PortId, packet: &[u8]| {
            let slot = turn.policy.port_slot(port);
            // A port that was taken away needn't be told that it isn't asked any more.
            let Some(entry) = slot.and_then(|slot| turn.policy.port(slot)) else {
                return;
            };
            let Some(mut frame) = pool.take(packet.len()) else {
                return counters.drop(DropReason::NoBuffer);
            };
            frame.fill(packet, Offload::NONE);
            deliver(entry, &frame, None, turn.egress, counters);
            pool.recycle(frame);
        };
        work(&mut self.prober, &mut send)
    }
}
