//! Bytes as a DNS message of an instance: to the answer itself, in a datagram, and behind each other on a connection.
//!
//! The first byte chooses the door (0x03) and the family (0x04), the second the room for an answer; the rest is the
//! message, or what is sent on the connection. An answer never leaves its room, belongs to its question, and can be read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use std::net::IpAddr;
use tidegate_fuzz::{Rig, check_records, mend, template};
use tidegate_stack::frame::Offload;
use tidegate_stack::plan::PortId;
use tidegate_stack::responder::dns::{self, Outcome, PAYLOAD, Rotation, Transport};
use tidegate_stack::snapshot::Names;

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH_ACK: u8 = 0x18;

struct Desk {
    rig: Rig,
    names: Names,
    rotation: Rotation,
    connections: u16,
}

thread_local! {
    static DESK: RefCell<Desk> = RefCell::new(Desk::new());
}

impl Desk {
    fn new() -> Self {
        let rig = Rig::new();
        Self {
            names: Names::compile(rig.plan(), None),
            rig,
            rotation: Rotation::default(),
            connections: 0,
        }
    }

    fn answer(&mut self, message: &[u8], transport: Transport, room: usize) {
        let mut out = vec![0x5a; room + 1];
        let view = self.names.view(PortId(0)).unwrap();
        let outcome = dns::answer(message, view, transport, &mut self.rotation, &mut out[..room]);
        let outcome = match outcome {
            Outcome::Forward(query) => dns::refuse(&query, dns::Rcode::Refused, transport, &mut out[..room]),
            outcome => outcome,
        };
        assert_eq!(out[room], 0x5a);
        let Outcome::Answer(answered) = outcome else {
            return;
        };
        let answer = &out[..answered.length];
        assert_eq!(answer[..2], message[..2], "the identifier");
        assert_eq!(
            answer[2] & 0xf8,
            (message[2] & 0x78) | 0x80,
            "a response of the same opcode"
        );
        let count = |at: usize| u16::from_be_bytes([answer[at], answer[at + 1]]);
        match count(4) {
            0 => assert_eq!(answer.len(), 12),
            1 => {
                let name = message[12..].iter().position(|byte| *byte == 0).unwrap();
                assert!(answer.len() >= 12 + name + 5);
            }
            other => panic!("{other} questions"),
        }
        if let Transport::Udp { limit } = transport {
            assert!(answer.len() <= usize::from(limit).max(12));
        }
        check_records(answer, count(6) + count(8) + count(10));
    }

    /// A packet of the instance to the service address, of this protocol, with this data.
    fn send(&mut self, ipv6: bool, protocol: u8, header: &[u8], data: &[u8]) {
        let (own, service) = (self.rig.address(false, ipv6), self.rig.service(ipv6));
        let packet = packet(own, service, protocol, header, data);
        self.rig.from_port(&packet, Offload::NONE);
    }

    fn connect_and_send(&mut self, ipv6: bool, data: &[u8]) {
        self.connections = self.connections.wrapping_add(1) | 0x8000;
        let source = self.connections.to_be_bytes();
        let segment = |sequence: u32, acknowledgement: u32, flags: u8| {
            [
                &source[..],
                &[0, 53],
                &sequence.to_be_bytes(),
                &acknowledgement.to_be_bytes(),
                &[0x50, flags, 0xff, 0xff, 0, 0, 0, 0],
            ]
            .concat()
        };
        self.send(ipv6, 6, &segment(1, 0, SYN), &[]);
        let at = if ipv6 { 44 } else { 24 };
        let number = self
            .rig
            .last_delivered()
            .get(at..at + 4)
            .map(|bytes| bytes.try_into().unwrap());
        let next = u32::from_be_bytes(number.unwrap_or_default()).wrapping_add(1);
        let mut sequence = 2_u32;
        for part in data.chunks(700) {
            self.send(ipv6, 6, &segment(sequence, next, PSH_ACK), part);
            sequence += part.len() as u32;
        }
        self.send(ipv6, 6, &segment(sequence, next, RST), &[]);
    }
}

fuzz_target!(|input: &[u8]| {
    let [choice, room, message @ ..] = input else {
        return;
    };
    DESK.with_borrow_mut(|desk| {
        desk.rig.next();
        let ipv6 = choice & 0x04 != 0;
        match choice & 3 {
            0 => desk.answer(message, Transport::Udp { limit: PAYLOAD }, usize::from(*room) * 8),
            1 => desk.answer(message, Transport::Tcp, usize::from(*room) * 64),
            2 => {
                let length = (8 + message.len()) as u16;
                let header = [&[0x9c, 0x40, 0, 53][..], &length.to_be_bytes(), &[0, 0]].concat();
                desk.send(ipv6, 17, &header, message);
            }
            _ => desk.connect_and_send(ipv6, message),
        }
    });
});

fn packet(source: IpAddr, destination: IpAddr, protocol: u8, header: &[u8], data: &[u8]) -> Vec<u8> {
    let mut packet = template(source, destination, protocol);
    let headers = if source.is_ipv6() { 40 } else { 20 };
    packet.truncate(headers);
    packet.extend_from_slice(header);
    packet.extend_from_slice(data);
    let total = packet.len() as u16;
    if source.is_ipv6() {
        packet[4..6].copy_from_slice(&(total - 40).to_be_bytes());
    } else {
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        mend(&mut packet);
    }
    packet
}
