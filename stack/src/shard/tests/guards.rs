//! What a host lets nobody do: speak for others, go on after a revocation, take what others need.

use super::*;
use crate::responder::icmp::{self, IcmpError};

const SECOND_ON_1: [u8; 4] = [172, 19, 1, 3];

impl Host {
    fn send_from(&mut self, port: PortId, packet: &[u8], offload: Offload) {
        let mut batch = Batch::new(1);
        batch.vacant().unwrap().fill(packet, offload);
        batch.advance();
        self.shard.handle_port(port, &mut batch, now(), &mut self.out);
    }
}

fn udp(source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(source, destination, 64)
        .udp(5_000, 5_000)
        .write(&mut packet, payload)
        .unwrap();
    packet
}

#[test]
fn an_error_is_believed_only_from_where_the_packet_in_it_went() {
    let (mut first, mut second) = pair();
    let packet = udp(WEB_ON_1, WEB_ON_2, b"?");
    first.send(&packet, Offload::NONE);
    settle(&mut first, &mut second);
    let error_from = |source: [u8; 4]| {
        let mut out = vec![0; 576];
        let length = icmp::error(IcmpError::PortUnreachable, source.into(), &packet, &mut out).unwrap();
        out.truncate(length);
        out
    };
    // A neighbour on the same host, with its own address.
    first.send_from(SECOND_PORT, &error_from(SECOND_ON_1), Offload::NONE);
    assert_eq!(first.out.delivered, vec![]);
    assert_eq!(first.drops(DropReason::NoFlow), 1);
    // The control: who got the packet.
    second.send(&error_from(WEB_ON_2), Offload::NONE);
    settle(&mut first, &mut second);
    assert_eq!(first.out.delivered.len(), 1);
}
