"""Random and damaged packets, and how scapy dissects each: one JSON object a line.

    /usr/bin/python3 dissect.py SEED COUNT

Packets are built by scapy: IPv4 with options, IPv6 with chains of extension headers, fragments of both, TCP, UDP, ICMP
and other protocols. Most of them are then damaged: bits are flipped, lengths and numbers changed, ends cut off. Of each
header only the fields that scapy read are told, never what they mean.
"""

import json
import logging
import random
import sys

logging.getLogger("scapy").setLevel(logging.CRITICAL)

from scapy.layers.inet import (  # noqa: E402
    ICMP, IP, TCP, UDP, IPOption, IPOption_EOL, IPOption_LSRR, IPOption_NOP, IPOption_RR,
    IPOption_Router_Alert, IPOption_SSRR, IPOption_Timestamp)
from scapy.layers.inet6 import (  # noqa: E402
    ICMPv6EchoReply, ICMPv6EchoRequest, ICMPv6Unknown, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop, IPv6ExtHdrRouting, PadN)
from scapy.layers.ipsec import AH  # noqa: E402
from scapy.packet import Raw  # noqa: E402
from scapy.utils import checksum  # noqa: E402

HEADERS = {0: IPv6ExtHdrHopByHop, 43: IPv6ExtHdrRouting, 44: IPv6ExtHdrFragment, 51: AH, 60: IPv6ExtHdrDestOpt}
# Numbers whose place in a packet is interesting.
NUMBERS = [0, 1, 4, 6, 17, 41, 43, 44, 47, 50, 51, 58, 59, 60, 132, 135, 139, 140, 253, 254]
BASES = 1500


# How a packet is built.

def any_bytes(rng, most):
    return bytes(rng.randrange(256) for _ in range(rng.randrange(most + 1)))


def options(rng):
    choices = [
        lambda: IPOption_NOP(), lambda: IPOption_EOL(), lambda: IPOption_Router_Alert(),
        lambda: IPOption_RR(routers=["192.0.2.1"]), lambda: IPOption_LSRR(routers=["192.0.2.1"]),
        lambda: IPOption_SSRR(routers=["192.0.2.1"]), lambda: IPOption_Timestamp(),
        lambda: IPOption(copy_flag=rng.randrange(2), optclass=rng.randrange(4), option=rng.randrange(32), value=bytes(2)),
    ]
    weights = [6, 2, 6, 1, 1, 1, 1, 1]
    return [choice() for choice in rng.choices(choices, weights, k=rng.randrange(1, 4))]


def transport(rng, ipv6):
    kind = rng.randrange(10)
    data = Raw(any_bytes(rng, 40))
    ports = {"sport": rng.randrange(65536), "dport": rng.randrange(65536)}
    if kind < 4:
        extra = rng.choice([[], [("MSS", 1460)], [("NOP", None), ("WScale", 7)], [("Timestamp", (1, 2))]])
        return TCP(**ports, seq=rng.getrandbits(32), ack=rng.getrandbits(32), flags=rng.randrange(256),
                   window=rng.randrange(65536), options=extra) / data
    if kind < 7:
        return UDP(**ports) / data
    if kind < 9 and ipv6:
        echo = rng.choice([ICMPv6EchoRequest, ICMPv6EchoReply])
        message = echo(id=rng.randrange(65536), seq=1) / data
        return rng.choice([message, ICMPv6Unknown(type=rng.randrange(256), msgbody=bytes(8))])
    if kind < 9:
        return ICMP(type=rng.choice([8, 0, 8, 0, 3, 5, 11, 12, 30, rng.randrange(256)]), id=rng.randrange(65536)) / data
    return data


def extension(rng):
    kind = rng.choices([0, 43, 44, 51, 60], [3, 3, 4, 3, 4])[0]
    if kind == 0:
        return IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))])
    if kind == 43:
        route = IPv6ExtHdrRouting(type=rng.choice([0, 2, 3, 3, 3, 4, 253]), addresses=["::1"] * rng.randrange(3))
        return route
    if kind == 44:
        offset = rng.choice([0, 0, 0, 1, 2, 9, 185, 8190, rng.randrange(8192)])
        return IPv6ExtHdrFragment(offset=offset, m=rng.choice([0, 0, 1, 1, 1]), id=rng.getrandbits(32))
    if kind == 51:
        return AH(payloadlen=4, spi=9, seq=1, icv=bytes(12))
    units = rng.choice([1, 1, 1, 2, 9, 31])
    return IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(min(255, 8 * units - 4)))])


def build(rng):
    if rng.randrange(2):
        packet = IPv6(src="fd00::1:2", dst="fd00::2:2", hlim=rng.randrange(256), tc=rng.randrange(256))
        chain = [extension(rng) for _ in range(rng.choice([0, 0, 1, 1, 1, 2, 2, 3, 4, 9]))]
        for header in chain:
            packet /= header
        return bytes(packet / transport(rng, True)), len(chain)
    packet = IP(src="172.19.1.2", dst="172.19.2.2", ttl=rng.randrange(256), tos=rng.randrange(256),
                id=rng.randrange(65536))
    if rng.randrange(3) == 0:
        packet.options = options(rng)
    if rng.randrange(3) == 0:
        packet.frag = rng.choice([0, 0, 1, 1, 2, 9, 8191, rng.randrange(8192)])
        packet.flags = rng.choice([0, 1, 1, 1, 3])
    elif rng.randrange(2):
        packet.flags = rng.choice([2, 2, 4])
    return bytes(packet / transport(rng, False)), 0


# How it is damaged.

def mend(packet):
    """Makes an IPv4 header's checksum good again."""
    length = 4 * (packet[0] & 15)
    if packet[0] >> 4 == 4 and 20 <= length <= len(packet):
        packet[10:12] = b"\0\0"
        packet[10:12] = checksum(bytes(packet[:length])).to_bytes(2, "big")


def damage(rng, packet):
    packet = bytearray(packet)
    mended = rng.randrange(4) > 0
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        if len(packet) < 8:
            break
        kind = rng.randrange(8)
        ipv6 = packet[0] >> 4 == 6
        if kind == 0:
            packet[rng.randrange(len(packet))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            packet[rng.randrange(min(len(packet), 80))] = rng.randrange(256)
        elif kind == 2:
            # Shorter, with or without a length that says so.
            del packet[rng.randrange(len(packet)):]
            if rng.randrange(2) and len(packet) >= 40:
                at, length = (4, len(packet) - 40) if ipv6 else (2, len(packet))
                packet[at:at + 2] = length.to_bytes(2, "big")
        elif kind == 3:
            packet += any_bytes(rng, 20)
        elif kind == 4:
            at = 4 if ipv6 else 2
            length = int.from_bytes(packet[at:at + 2], "big") + rng.randrange(-24, 24)
            packet[at:at + 2] = (length % 65536).to_bytes(2, "big")
        elif kind == 5 and ipv6:
            # What follows, or how long it is.
            at = rng.choice([6, 40, 41, 42, 43, 48, 49, 50, 56, 57])
            if at < len(packet):
                packet[at] = rng.choice(NUMBERS + [1, 2, 3, 8, 31, 255])
        elif kind == 5:
            packet[rng.choice([0, 6, 7])] = rng.choice([0x44, 0x45, 0x46, 0x48, 0x4f, 0x20, 0x40, 0, 1])
        elif kind == 6 and len(packet) > 20:
            packet[rng.randrange(20, len(packet))] = rng.choice([0, 1, 7, 68, 131, 137, 148, 255])
        else:
            at = 6 if ipv6 else 9
            if at < len(packet):
                packet[at] = rng.choice(NUMBERS)
    if mended and packet:
        mend(packet)
    return bytes(packet)


# What scapy reads.

def read(header, data):
    """One header, and what it says that stands behind it."""
    packet = header()
    rest = packet.do_dissect(packet.pre_dissect(data))
    payload, _ = packet.extract_padding(rest)
    return packet, payload


def read_fields(header, data):
    """One header, as far as scapy can read it: what is behind the fields that we tell doesn't matter."""
    packet = header()
    try:
        packet.do_dissect(data)
    except Exception:  # noqa: BLE001
        pass
    return packet


def read_transport(number, data, ipv6):
    view = {"number": number, "available": len(data)}
    if len(data) < 8:
        return view
    try:
        if number == 6:
            tcp, _ = read(TCP, data)
            view["tcp"] = {"source": tcp.sport, "destination": tcp.dport, "sequence": tcp.seq,
                           "acknowledgement": tcp.ack, "window": tcp.window,
                           # Nine flags since RFC 3540; scapy's ninth is a bit of byte 12.
                           "flags": int(tcp.flags) & 0xff, "length": 4 * tcp.dataofs}
        elif number == 17:
            udp, _ = read(UDP, data)
            view["udp"] = {"source": udp.sport, "destination": udp.dport, "length": udp.len}
        elif number == 1 and not ipv6:
            icmp = read_fields(ICMP, data)
            view["icmp"] = {"type": icmp.type}
            if icmp.type in (0, 8):
                view["icmp"]["identifier"] = icmp.id
        elif number == 58 and ipv6:
            message = ICMPv6EchoRequest if data[0] in (128, 129) else ICMPv6Unknown
            icmp = read_fields(message, data)
            view["icmp"] = {"type": icmp.type}
            if message is ICMPv6EchoRequest:
                view["icmp"]["identifier"] = icmp.id
    except Exception:  # noqa: BLE001: whatever scapy can't read is no header
        pass
    return view


def read_option(option):
    """Its type and its length; of what scapy can't read its first byte."""
    if isinstance(option, Raw):
        return [option.load[0], None]
    return [option.copy_flag << 7 | option.optclass << 5 | option.option, getattr(option, "length", None)]


def read_ipv4(data):
    ip, payload = read(IP, data)
    length = 4 * ip.ihl
    return {
        "version": ip.version, "header": length, "total": ip.len, "class": ip.tos, "hops": ip.ttl,
        "source": ip.src, "destination": ip.dst, "number": ip.proto, "identification": ip.id,
        "flags": int(ip.flags), "offset": 8 * ip.frag, "sum": checksum(data[:length]),
        "options": [read_option(option) for option in ip.options],
        "transport": read_transport(ip.proto, payload, False),
    }


def read_ipv6(data):
    ip, payload = read(IPv6, data)
    view = {
        "version": ip.version, "payload": ip.plen, "class": ip.tc, "hops": ip.hlim, "source": ip.src,
        "destination": ip.dst, "chain": [],
    }
    number = ip.nh
    while number in HEADERS and len(view["chain"]) < 40:
        entry = {"number": number, "available": len(payload)}
        view["chain"].append(entry)
        if len(payload) < 8:
            # scapy would take defaults for what isn't there.
            break
        header = read_fields(HEADERS[number], payload)
        entry["next"] = header.nh
        if number == 44:
            entry.update(length=8, offset=8 * header.offset, more=header.m, identification=header.id)
        elif number == 51:
            entry["length"] = 4 * header.payloadlen + 8
        else:
            entry["length"] = 8 * header.len + 8
        if number == 43:
            entry["route"] = header.type
        number = header.nh
        payload = payload[entry["length"]:]
        if entry.get("offset"):
            break
    view["transport"] = read_transport(number, payload, True)
    return view


def view_of(data):
    try:
        version = data[0] >> 4
        return read_ipv4(data) if version == 4 else read_ipv6(data) if version == 6 else {}
    except Exception:  # noqa: BLE001
        return {}


def main():
    seed, count = int(sys.argv[1]), int(sys.argv[2])
    rng = random.Random(seed)
    bases = [build(rng) for _ in range(min(BASES, count))]
    for number in range(count):
        if number % (20 * BASES) == 20 * BASES - 1:
            bases = [build(rng) for _ in range(BASES)]
        base, _ = rng.choice(bases)
        packet = damage(rng, base)
        print(json.dumps({"bytes": packet.hex(), "view": view_of(packet)}, separators=(",", ":")))


if __name__ == "__main__":
    main()
