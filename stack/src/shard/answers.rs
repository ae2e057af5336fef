//! What goes to a port: forwarded packets, and what the appliance says by itself; and how a denial is told to its sender.

use super::counters::Counters;
use super::flows::home_of;
use super::from_port::{Came, must_be_cut};
use super::to_tunnel::Outbound;
use super::{Shard, Turn};
use crate::drop::DropReason;
use crate::egress::Egress;
use crate::flow::Answer;
use crate::frame::{Frame, Offload, SMALL, Segments};
use crate::plan::{PeerId, Vni};
use crate::responder::icmp::{self, IcmpError};
use crate::responder::tcp;
use crate::snapshot::PortEntry;
use crate::time::Instant;
use crate::wire::{Headers, protocol};
use std::net::IpAddr;

/// Gives a frame to a port, cut when its device takes no super-packets, and counts it. `headers` are parsed anew when
/// they aren't at hand.
pub(super) fn deliver(
    port: &PortEntry,
    frame: &Frame,
    headers: Option<&Headers>,
    egress: &mut impl Egress,
    counters: &mut Counters,
) {
    let parsed;
    let headers = match headers {
        Some(headers) => headers,
        None => match Headers::parse(frame.packet()) {
            Ok(headers) => {
                parsed = headers;
                &parsed
            }
            Err(reason) => return counters.drop(reason),
        },
    };
    let delivered = if port.offloads || frame.offload == Offload::NONE {
        egress.deliver(port.id, frame)
    } else {
        deliver_cut(port, frame, headers, egress)
    };
    if delivered {
        let traffic = counters.port(port.id);
        traffic.sent_packets += super::from_port::packets_in(frame, headers);
        traffic.sent_bytes += headers.total_length as u64;
    } else {
        counters.drop(DropReason::SendFailed);
    }
}

/// The fallback for devices without offloads: every packet alone, and whole. It allocates; what is fast has offloads.
fn deliver_cut(port: &PortEntry, frame: &Frame, headers: &Headers, egress: &mut impl Egress) -> bool {
    let Ok(mut segments) = Segments::new(frame.packet(), headers, frame.offload) else {
        return false;
    };
    let mut delivered = true;
    let mut part = Frame::with_capacity(segments.packet_length().max(SMALL));
    while segments.remaining() > 0 {
        let length = segments.write_next(part.receive_buffer(0));
        part.set_received(length, Offload::NONE);
        delivered &= egress.deliver(port.id, &part);
    }
    delivered
}

impl Shard {
    /// Answers a packet that is for the appliance itself.
    pub(super) fn answer(
        &mut self,
        port: &PortEntry,
        answer: Answer,
        frame: &mut Frame,
        came: Came,
        turn: &mut Turn<'_, impl Egress>,
    ) -> Result<(), DropReason> {
        match answer {
            Answer::Echo => {
                let packet = frame.packet();
                self.say(port, packet.len(), turn.egress, |out| {
                    icmp::echo_reply(packet, out)
                })
                .ok_or(DropReason::ServiceAddress)
            }
            Answer::DnsDatagram => self.answer_datagram(port, frame, turn),
            Answer::DnsSegment => self.answer_segment(port, frame, came, turn),
        }
    }

    /// Refuses a segment that belongs to no connection with the appliance.
    pub(super) fn reset(
        &mut self,
        port: &PortEntry,
        packet: &[u8],
        turn: &mut Turn<'_, impl Egress>,
    ) -> Result<(), DropReason> {
        self.say(port, SMALL, turn.egress, |out| tcp::reset(packet, out))
            .ok_or(DropReason::ServiceAddress)
    }

    /// Tells the sender of a packet why it went no further, as often as errors are allowed.
    pub(super) fn icmp_error(
        &mut self,
        port: &PortEntry,
        error: IcmpError,
        from: IpAddr,
        packet: &[u8],
        turn: &mut Turn<'_, impl Egress>,
    ) {
        if self.icmp_errors.allow(turn.now) {
            // `None`: the standards forbid an error about this packet.
            let _ = self.say(port, SMALL, turn.egress, |out| {
                icmp::error(error, from, packet, out)
            });
        } else {
            self.counters.drop(DropReason::RateLimited);
        }
    }

    /// Tells an instance that policy denies its packet. An ICMP error about it comes `from` the network's service address.
    pub(super) fn refuse(
        &mut self,
        port: &PortEntry,
        from: IpAddr,
        packet: &[u8],
        turn: &mut Turn<'_, impl Egress>,
    ) {
        if let Some(frame) = self.refusal(from, packet, turn.now) {
            deliver(port, &frame, None, turn.egress, &mut self.counters);
            self.pool.recycle(frame);
        }
    }

    /// Tells who sent a packet through a tunnel that policy denies it. The answer comes from where the packet went: the
    /// far end takes nothing but sources of this host's block, and has a flow that it belongs to.
    pub(super) fn refuse_to_peer(
        &mut self,
        peer: PeerId,
        vni: Vni,
        packet: &[u8],
        turn: &mut Turn<'_, impl Egress>,
    ) {
        let Ok(denied) = Headers::parse(packet) else {
            return;
        };
        let Some(frame) = self.refusal(denied.destination, packet, turn.now) else {
            return;
        };
        let sent = Headers::parse(frame.packet()).and_then(|headers| {
            let outbound = Outbound {
                peer,
                vni,
                home: home_of(vni, &headers, frame.packet()),
                flow: None,
            };
            self.send_to_peer(&outbound, &frame, &headers, turn)
        });
        if let Err(reason) = sent {
            self.counters.drop(reason);
        }
        self.pool.recycle(frame);
    }

    /// The answer to a denied packet: a TCP reset, else ICMP "administratively prohibited", each as often as its limit
    /// allows. `None`: the standards forbid one, as for resets, errors, groups and fragments, or it isn't to be now.
    fn refusal(&mut self, from: IpAddr, packet: &[u8], now: Instant) -> Option<Frame> {
        let is_tcp = Headers::parse(packet).is_ok_and(|headers| headers.protocol == protocol::TCP);
        let Some(mut frame) = self.pool.take(SMALL) else {
            self.counters.drop(DropReason::NoBuffer);
            return None;
        };
        let out = frame.receive_buffer(0);
        let (length, limit) = if is_tcp {
            (tcp::reset(packet, out), &mut self.resets)
        } else {
            let error = icmp::error(IcmpError::Prohibited, from, packet, out);
            (error, &mut self.icmp_errors)
        };
        match length {
            Some(length) if limit.allow(now) => {
                frame.set_received(length, Offload::NONE);
                return Some(frame);
            }
            Some(_) => self.counters.drop(DropReason::RateLimited),
            None => {}
        }
        self.pool.recycle(frame);
        None
    }

    /// An answer is as long as its question, which may have come in fragments.
    fn deliver_answer(&mut self, port: &PortEntry, frame: &Frame, egress: &mut impl Egress) {
        let delivered = match Headers::parse(frame.packet()) {
            Ok(headers) if must_be_cut(frame, &headers, port.mtu) => {
                self.deliver_in_parts(port, frame.packet(), &headers, egress)
            }
            Ok(headers) => {
                deliver(port, frame, Some(&headers), egress, &mut self.counters);
                Ok(())
            }
            Err(reason) => Err(reason),
        };
        if let Err(reason) = delivered {
            self.counters.drop(reason);
        }
    }

    /// Delivers what `write` writes; `None` when it writes nothing.
    fn say(
        &mut self,
        port: &PortEntry,
        room: usize,
        egress: &mut impl Egress,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Option<()> {
        let Some(mut frame) = self.pool.take(room) else {
            self.counters.drop(DropReason::NoBuffer);
            return Some(());
        };
        let length = write(frame.receive_buffer(0));
        if let Some(length) = length {
            frame.set_received(length, Offload::NONE);
            self.deliver_answer(port, &frame, egress);
        }
        self.pool.recycle(frame);
        length.map(|_| ())
    }
}
