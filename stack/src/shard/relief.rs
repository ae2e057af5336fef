//! Where packets wait for too long, one of bulk TCP tells its sender: it is marked where the transport understands that
//! (RFC 3168 §5), and left out where it doesn't. A lone small packet never is, nor what another transport sends.

use super::Shard;
use crate::drop::DropReason;
use crate::frame::Frame;
use crate::wire::{Ecn, Headers, Transport, tcp_flags};

/// Payload of a segment of bulk, at least: all but the last of a transfer carry as much on any path of ours.
const BULK: usize = 1_024;
/// Segments with these are no bulk: a connection's ends, and what its state depends on.
const NOT_BULK: u8 = tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST;

/// Whose turn it is to be told.
#[derive(Default)]
pub(super) struct Relief {
    /// A sender of the port that is being handled.
    pub(super) port: bool,
    /// A sender behind a lane.
    pub(super) lane: bool,
}

impl Shard {
    /// Tells a sender of the next [`Shard::handle_port`], if there is bulk TCP in it, that its packets wait for too long.
    pub fn relieve_port(&mut self) {
        self.relief.port = true;
    }

    /// Tells the sender of the next bulk TCP segment out of a lane that its packets wait for too long.
    pub fn relieve_lane(&mut self) {
        self.relief.lane = true;
    }

    /// For a packet of a port. Of a super-packet only the last segment is left out.
    pub(super) fn relieve_by_frame(
        &mut self,
        frame: &mut Frame,
        headers: &mut Headers,
    ) -> Result<(), DropReason> {
        if !is_bulk(headers) {
            return Ok(());
        }
        self.relief.port = false;
        if mark(headers, frame.packet_mut()) {
            return Ok(());
        }
        if !frame.leave_out_last_segment(headers) {
            return Err(DropReason::StandingQueue);
        }
        self.counters.drop(DropReason::StandingQueue);
        Ok(())
    }

    /// For a packet of a lane.
    pub(super) fn relieve_by_packet(
        &mut self,
        packet: &mut [u8],
        headers: &mut Headers,
    ) -> Result<(), DropReason> {
        if !is_bulk(headers) {
            return Ok(());
        }
        self.relief.lane = false;
        if mark(headers, packet) {
            return Ok(());
        }
        Err(DropReason::StandingQueue)
    }
}

fn is_bulk(headers: &Headers) -> bool {
    let carries_data = matches!(headers.transport, Transport::Tcp { flags, .. } if flags & NOT_BULK == 0);
    carries_data && headers.total_length - headers.payload_offset >= BULK
}

/// Marks the packet, if its transport takes part in that.
fn mark(headers: &mut Headers, packet: &mut [u8]) -> bool {
    let understood = headers.ecn() != Ecn::NotCapable;
    if understood {
        headers.set_ecn(packet, Ecn::Congested);
    }
    understood
}
