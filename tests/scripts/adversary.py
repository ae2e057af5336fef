"""Packets that no honest sender makes, each with what must become of it: the adversarial suite.

    adversary.py table          every case as JSON: what it is, what tidegate and Linux make of it, and why they differ
    adversary.py send WORLD     sends the cases whose names come in, one a line, and answers each with a line of JSON

A world is a JSON file that says where the parts of a case are: `parts` (namespace, addresses, and the next hop's MAC
where the device is an Ethernet), and `between`, the addresses of what stands between them: `gateway`, the service
address or the router's own on web's side, and `host`, the host's own or the router's other. The same cases run in two
worlds: a lab of tidegate, and a Linux router with nftables, which is the reference. The parts:

    web       an instance of ours that attacks, and may talk to db on TCP 5432
    other     an instance beside it that may not talk to db
    open      an instance that takes everything, on another host than web; near: one on web's own host
    db        takes TCP 5432 from web and nothing else, on another host; near-db: one on web's own host

A packet of a case bears a mark, by which the test finds it wherever it turns up: DSCP 45, more hops to live than any
kernel gives, and the IPv4 identification or IPv6 flow label `case · 256 + try`. Nothing of a case may arrive anywhere,
and on the sender's host the counter of the reason that stands in the table rises by the packets sent, no other with
it. Controls are of the same make and well-formed: of each try something arrives, whole or cut anew. A case around a live connection also
tells whether that connection still carries data both ways afterwards.

Where Linux does otherwise, the case says why; a difference without a word fails the test.
"""
import ctypes
import errno
import fcntl
import json
import os
import socket
import struct
import sys
import time
from dataclasses import dataclass

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.packet import Raw

DSCP, HOPS = 45, 200
DROPS, FORWARDS = "drops", "forwards"
TRIES = 3


# ---- where a case is sent --------------------------------------------------------------------------------


class World:
    """The parts, with a socket past their kernels' own ideas in each, and what listens in them."""

    def __init__(self, description):
        self.parts, self.between = description["parts"], description["between"]
        self.raw, self.listeners, self.live = {}, {}, None
        for part in ("open", "near"):
            self.listen(part, socket.SOCK_DGRAM, 9999)
            self.listen(part, socket.SOCK_STREAM, 80)
        for part in ("db", "near-db"):
            self.listen(part, socket.SOCK_STREAM, 5432)

    def address(self, name, family):
        """A part's address, the gateway's, or what already is one."""
        if name in self.parts:
            return self.parts[name][f"ipv{family}"]
        return self.between[name][f"ipv{family}"] if name in self.between else name

    def socket(self, part, *kind):
        """A socket in the namespace of a part."""
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.parts[part]['namespace']}", os.O_RDONLY)
        try:
            enter(there)
            return socket.socket(*kind)
        finally:
            enter(home)
            os.close(there)
            os.close(home)

    def listen(self, part, kind, port):
        for family in (socket.AF_INET, socket.AF_INET6):
            listener = self.socket(part, family, kind)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                listener.bind(("", port))
            except OSError as error:  # two names of one part
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            if kind == socket.SOCK_STREAM:
                listener.listen()
            self.listeners[part, port, family] = listener

    def send(self, part, packet):
        """Out of eth0, as it is."""
        if part not in self.raw:
            self.raw[part] = self.socket(part, socket.AF_PACKET, socket.SOCK_DGRAM)
        protocol = 0x86DD if packet[0] >> 4 == 6 else 0x0800
        hop = self.parts[part].get("hop")
        link = (0, 0, bytes.fromhex(hop.replace(":", ""))) if hop else ()
        self.raw[part].sendto(packet, ("eth0", protocol, *link))


def enter(namespace):
    if ctypes.CDLL(None, use_errno=True).setns(namespace, 0x40000000):
        raise OSError(ctypes.get_errno(), "setns")


class Live:
    """A TCP connection from web that two kernels keep."""

    def __init__(self, world, family, to):
        self.to = to
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        self.client = world.socket("web", kind, socket.SOCK_STREAM)
        self.client.settimeout(3)
        self.client.connect((world.address(to, family), 5432))
        listener = world.listeners.get((to, 5432, kind)) or world.listeners["db", 5432, kind]
        self.server = listener.accept()[0]
        self.server.settimeout(3)
        self.port = self.client.getsockname()[1]
        if not self.holds():
            raise OSError("no live connection")
        self.sent, self.received = self.positions()

    def holds(self):
        """Whether it carries data both ways."""
        try:
            for one, other in ((self.client, self.server), (self.server, self.client)):
                one.sendall(b"still there")
                if other.recv(64) != b"still there":
                    return False
        except OSError:
            return False
        return True

    def positions(self):
        """The next sequence numbers of both directions: TCP_REPAIR shows them (tcp(7) of the kernel's own tools)."""
        tcp, repair, queue, sequence = socket.IPPROTO_TCP, 19, 20, 21
        self.client.setsockopt(tcp, repair, 1)
        numbers = []
        for which in (2, 1):  # the send queue, the receive queue
            self.client.setsockopt(tcp, queue, which)
            numbers.append(self.client.getsockopt(tcp, sequence) & 0xFFFFFFFF)
        self.client.setsockopt(tcp, repair, -1)  # without a window probe
        return numbers


# ---- what cases are made of ------------------------------------------------------------------------------


@dataclass
class Case:
    name: str
    group: str
    family: int
    make: object  # (world, family, mark) → packets, each alone or with the part it is sent from
    ours: object  # the drop reason; None: a control, everything arrives
    linux: str
    why: str  # of a difference
    by: str
    tries: int
    live: str  # to whom web has a live connection; nothing: it needs none
    counted: int  # packets that are counted under the reason, when it isn't all that don't wait
    kept: int  # packets that wait, and are counted under fragment-timeout when that is over
    passes: bool  # whether something of each try arrives
    number: int = 0


CASES = []
GROUP = ""


def case(
    name, ours, linux=DROPS, why="", families=(4, 6), by="web", tries=TRIES, live="", counted=None, kept=0, passes=None
):
    """Puts a case in the table, once for each family; what differs between them is a dictionary by family."""

    def register(make):
        for family in families:
            both = name if len(families) == 1 else f"{name}, IPv{family}"
            of = lambda value: value.get(family) if isinstance(value, dict) else value
            through = of(ours) is None if passes is None else of(passes)
            CASES.append(
                Case(both, GROUP, family, make, of(ours), of(linux), of(why) or "", by, tries, live,
                     of(counted), of(kept) or 0, through)
            )
        return make

    return register


def group(name):
    global GROUP
    GROUP = name


def ip(world, family, mark, source, destination, **fields):
    """A marked IP header."""
    addresses = {"src": world.address(source, family), "dst": world.address(destination, family)}
    if family == 4:
        return IP(**addresses, id=mark, tos=DSCP << 2, ttl=HOPS, **fields)
    return IPv6(**addresses, fl=mark, tc=DSCP << 2, hlim=HOPS, **fields)


def ipv6(world, mark, destination, first, *headers, source="web"):
    """An IPv6 packet of bytes: extension headers and what stands behind them; `first` is the first one's number."""
    payload = b"".join(bytes(header) for header in headers)
    return bytes(ip(world, 6, mark, source, destination, nh=first, plen=len(payload)) / Raw(payload))


def text(length=64):
    return (b"adversary " * (length // 10 + 1))[:length]


def udp(world, family, mark, destination="open", length=88, source="web", port=9999):
    """A UDP datagram, checksummed, without its IP header."""
    header = ip(world, family, mark, source, destination)
    return bytes(header / UDP(sport=source_port(mark), dport=port) / Raw(text(length)))[len(header):]


def tcp(world, family, mark, destination="open", source="web", length=0, options=(), **fields):
    """A TCP segment, checksummed, without its IP header."""
    header = ip(world, family, mark, source, destination)
    fields = {"sport": source_port(mark), "dport": 80, "flags": "S", "seq": 1000, **fields}
    return bytes(header / TCP(options=list(options), **fields) / Raw(text(length)))[len(header):]


def echo(world, family, mark, destination="open", source="web", length=56, reply=False):
    """An echo request, without its IP header."""
    header = ip(world, family, mark, source, destination)
    if family == 4:
        message = ICMP(type=0 if reply else 8, id=mark)
    else:
        message = (ICMPv6EchoReply if reply else ICMPv6EchoRequest)(id=mark & 0xFFFF)
    return bytes(header / message / Raw(text(length)))[len(header):]


def source_port(mark):
    return 20000 + mark % 40000


PROTOCOLS = {"tcp": 6, "udp": 17}


def protocol_of(family, kind):
    return {"echo": 1 if family == 4 else 58}.get(kind) or PROTOCOLS[kind]


def whole(world, family, mark, protocol, payload, source="web", destination="open"):
    """A packet in one piece."""
    field = {"proto": protocol} if family == 4 else {"nh": protocol}
    return bytes(ip(world, family, mark, source, destination, **field) / Raw(payload))


def fragment(world, family, mark, protocol, payload, start, end, more, source="web", destination="open"):
    """The part of a payload from `start` to `end`."""
    data = payload[start:end].ljust(end - start, b"-")
    if family == 4:
        flags = "MF" if more else 0
        header = ip(world, 4, mark, source, destination, proto=protocol, frag=start // 8, flags=flags)
        return bytes(header / Raw(data))
    return ipv6(world, mark, destination, 44, fragment_header(protocol, start, more, mark), data, source=source)


def fragment_header(following, start, more, identification):
    """RFC 8200 §4.5."""
    return struct.pack("!BBHI", following, 0, start | more, identification)


def pieces(world, family, mark, *bounds, payload=None, protocol=17, **route):
    """Fragments of a UDP datagram, unless another payload is given: (start, end) each; the farthest is the last."""
    payload = payload or udp(world, family, mark, **route)
    farthest = max(end for _, end, *_ in bounds)
    return [
        fragment(world, family, mark, protocol, payload, start, end, more[0] if more else end < farthest, **route)
        for start, end, *more in bounds
    ]


# ---- fragments -------------------------------------------------------------------------------------------

group("fragments")

KEPT = 64  # unfinished datagrams that a source may have


@case("a first fragment whose rest never comes", "fragment-timeout", kept=TRIES)
def _(world, family, mark):
    return pieces(world, family, mark, (0, 48, True))


@case("a last fragment whose first never comes", "fragment-timeout", kept=TRIES)
def _(world, family, mark):
    return pieces(world, family, mark, (48, 96))


@case("more unfinished datagrams than a source may have", "fragment-limit", by="other", tries=KEPT + 8, kept=KEPT)
def _(world, family, mark):
    return pieces(world, family, mark, (0, 48, True), source="other")


@case("the second fragment overlaps the first by eight bytes", "fragment-overlap")
def _(world, family, mark):
    return pieces(world, family, mark, (0, 48), (40, 96))


DUPLICATE = "Linux takes a fragment inside of one that is there for its duplicate: it leaves that out, and goes on"
WHOLE = "conntrack puts the datagram together before it looks, and cuts it anew behind"


@case("the second fragment overlaps the first, on the same host", "fragment-overlap")
def _(world, family, mark):
    return pieces(world, family, mark, (0, 48), (40, 96), destination="near")


@case("a fragment inside of the first", "fragment-overlap", FORWARDS, DUPLICATE)
def _(world, family, mark):
    return pieces(world, family, mark, (0, 64), (24, 48), (64, 96))


@case("a fragment that covers an earlier one", "fragment-overlap")
def _(world, family, mark):
    return pieces(world, family, mark, (24, 48), (0, 64), (64, 96))


@case("the last fragment overlaps one before it", "fragment-overlap")
def _(world, family, mark):
    return pieces(world, family, mark, (0, 48), (72, 96), (48, 80))


LEFT_OUT = {6: "Linux leaves out the one, and goes on"}


@case("a fragment behind the last one", "fragment-overlap", {4: DROPS, 6: FORWARDS}, LEFT_OUT)
def _(world, family, mark):
    return pieces(world, family, mark, (48, 96, False), (96, 112, True), (0, 48))


@case("two ends of one datagram", "fragment-overlap", {4: DROPS, 6: FORWARDS}, LEFT_OUT)
def _(world, family, mark):
    return pieces(world, family, mark, (48, 96, False), (64, 80, False), (0, 48))


@case("the same fragment again, of another length", "fragment-overlap", FORWARDS, DUPLICATE)
def _(world, family, mark):
    return pieces(world, family, mark, (0, 48), (0, 40), (48, 96))


@case("the same fragment again, with other bytes", "fragment-overlap", FORWARDS,
      "Linux looks at the place of a fragment alone, keeps the first and leaves out the second")
def _(world, family, mark):
    other = udp(world, family, mark, port=22)
    first, last = pieces(world, family, mark, (0, 48), (48, 96))
    return [first, *pieces(world, family, mark, (0, 48, True), payload=other), last]


@case("a first fragment that ends within the TCP header", "fragment-header", {4: FORWARDS, 6: DROPS}, {4: WHOLE},
      kept=TRIES)
def _(world, family, mark):
    segment = tcp(world, family, mark, length=40)
    return pieces(world, family, mark, (0, 16), (16, 60), payload=segment, protocol=6)


@case("a first fragment of eight bytes: ports, no flags", "fragment-header", {4: FORWARDS, 6: DROPS}, {4: WHOLE},
      kept={6: TRIES})
def _(world, family, mark):
    segment = tcp(world, family, mark, length=40)
    return pieces(world, family, mark, (0, 8), (8, 60), payload=segment, protocol=6)


# Of IPv4 the one fragment is dropped for where it lies (RFC 3128 §3); what is whole without it goes on as it was
# judged.
@case("a TCP header rewritten by a fragment at offset 8", {4: "fragment-header", 6: "fragment-overlap"}, FORWARDS,
      {6: DUPLICATE}, counted={4: TRIES}, passes={4: True, 6: False})
def _(world, family, mark):
    segment = tcp(world, family, mark, length=44)
    other = tcp(world, family, mark, length=44, flags="A")
    first, last = pieces(world, family, mark, (0, 40), (40, 64), payload=segment, protocol=6)
    return [first, fragment(world, family, mark, 6, other, 8, 40, True), last]


@case("a datagram longer than the longest", "malformed")
def _(world, family, mark):
    data = text(80)
    if family == 4:
        return [bytes(ip(world, 4, mark, "web", "open", proto=1, frag=0x1FFF) / Raw(data))]
    return [ipv6(world, mark, "open", 44, fragment_header(58, 0xFFF8, False, mark), data)]


@case("a fragment that isn't the last, of a length that isn't a multiple of eight", "malformed")
def _(world, family, mark):
    return pieces(world, family, mark, (0, 44, True))


@case("a fragment without a byte", "malformed")
def _(world, family, mark):
    return pieces(world, family, mark, (0, 0, True))


@case("a fragment header in a fragment", "extension-header", families=(6,))
def _(world, family, mark):
    datagram = udp(world, 6, mark)
    inner = fragment_header(17, 0, True, mark + 1) + datagram[:40]
    return [ipv6(world, mark, "open", 44, fragment_header(44, 0, True, mark), inner)]


@case("a first fragment of options, the ports in the second", "fragment-header", families=(6,), kept=TRIES)
def _(world, family, mark):
    payload = options(17, 24) + udp(world, 6, mark)
    return pieces(world, 6, mark, (0, 24), (24, 120), payload=payload, protocol=60)


@case("control: a UDP datagram in three fragments", None, FORWARDS)
def _(world, family, mark):
    return pieces(world, family, mark, (0, 32), (32, 64), (64, 96))


@case("control: a UDP datagram in fragments, the last one first", None, FORWARDS)
def _(world, family, mark):
    return pieces(world, family, mark, (64, 96, False), (32, 64, True), (0, 32, True))


@case("control: an echo request in fragments", None, FORWARDS)
def _(world, family, mark):
    request = echo(world, family, mark, length=2000)
    kind = protocol_of(family, "echo")
    return pieces(world, family, mark, (0, 1200), (1200, 2008), payload=request, protocol=kind)


@case("control: a UDP datagram in fragments, on the same host", None, FORWARDS)
def _(world, family, mark):
    return pieces(world, family, mark, (0, 32), (32, 96), destination="near")


@case("control: an atomic fragment (RFC 6946)", None, FORWARDS, families=(6,))
def _(world, family, mark):
    return pieces(world, 6, mark, (0, 96))


# ---- IPv6 extension headers ------------------------------------------------------------------------------

group("extension headers")


def options(following, length=8):
    """A header of padding, as hop-by-hop or destination options (RFC 8200 §4.3, §4.6)."""
    body = b""
    while length - 2 - len(body) > 0:
        pad = min(length - 2 - len(body), 257)
        body += b"\0" if pad == 1 else struct.pack("!BB", 1, pad - 2).ljust(pad, b"\0")
    return struct.pack("!BB", following, length // 8 - 1) + body


def routing(following, kind, segments=0, length=24):
    """RFC 8200 §4.4."""
    header = struct.pack("!BBBB", following, length // 8 - 1, kind, segments)
    return (header + b"\0" * 4).ljust(length, b"\0")


ROUTER_LOOKS_ON = "a Linux router reads no further than its rules ask"


def extension(name, *arguments, **keywords):
    return case(name, *arguments, families=(6,), **keywords)


@extension("hop-by-hop options behind another header", "extension-header", FORWARDS,
           "RFC 8200 §4.1 binds the end that takes the packet, and " + ROUTER_LOOKS_ON)
def _(world, _family, mark):
    return [ipv6(world, mark, "open", 60, options(0), options(17), udp(world, 6, mark))]


@extension("a routing header of type 0 (RFC 5095)", "extension-header")
def _(world, _family, mark):
    return [ipv6(world, mark, "open", 43, routing(17, 0, 1), udp(world, 6, mark))]


@extension("a routing header of type 4 (RFC 8754)", "extension-header", FORWARDS,
           "it isn't the router's segment, and " + ROUTER_LOOKS_ON)
def _(world, _family, mark):
    return [ipv6(world, mark, "open", 43, routing(17, 4, 1), udp(world, 6, mark))]


@extension("ESP", "extension-header", FORWARDS,
           "open takes every protocol here; we carry nothing whose inside nobody sees")
def _(world, _family, mark):
    return [ipv6(world, mark, "open", 50, struct.pack("!II", 1, 1), text(32))]


@extension("a mobility header", "extension-header", FORWARDS, ROUTER_LOOKS_ON)
def _(world, _family, mark):
    return [ipv6(world, mark, "open", 135, struct.pack("!BBBBHH", 59, 0, 1, 0, 0, 0))]


@extension("a host identity header", "extension-header", FORWARDS, ROUTER_LOOKS_ON)
def _(world, _family, mark):
    return [ipv6(world, mark, "open", 139, struct.pack("!BBBB", 59, 4, 1, 0x11), text(36))]


@extension("a shim6 header", "extension-header", FORWARDS, ROUTER_LOOKS_ON)
def _(world, _family, mark):
    return [ipv6(world, mark, "open", 140, struct.pack("!BBHI", 17, 0, 0x8000, 0), udp(world, 6, mark))]


@extension("an experimental header (RFC 3692)", "extension-header", FORWARDS, ROUTER_LOOKS_ON)
def _(world, _family, mark):
    return [ipv6(world, mark, "open", 253, options(17), udp(world, 6, mark))]


@extension("no next header, and bytes behind it", "extension-header")
def _(world, _family, mark):
    return [ipv6(world, mark, "open", 60, options(59), text(32))]


@extension("nine headers", "extension-header", FORWARDS, ROUTER_LOOKS_ON)
def _(world, _family, mark):
    return [ipv6(world, mark, "open", 60, *[options(60)] * 8, options(17), udp(world, 6, mark))]


@extension("headers of more than 256 bytes", "extension-header", FORWARDS, ROUTER_LOOKS_ON)
def _(world, _family, mark):
    return [ipv6(world, mark, "open", 60, options(17, 264), udp(world, 6, mark))]


@extension("two fragment headers in a row", "extension-header", FORWARDS,
           "both are of whole packets, and conntrack skips both")
def _(world, _family, mark):
    headers = fragment_header(44, 0, False, mark) + fragment_header(17, 0, False, mark + 1)
    return [ipv6(world, mark, "open", 44, headers, udp(world, 6, mark))]


@extension("an extension header longer than its packet", "malformed")
def _(world, _family, mark):
    return [ipv6(world, mark, "open", 60, struct.pack("!BB", 17, 30), text(30))]


@extension("an extension header cut after one byte", "malformed")
def _(world, _family, mark):
    return [ipv6(world, mark, "open", 60, b"\x11")]


@extension("a jumbogram's length (RFC 2675)", "malformed")
def _(world, _family, mark):
    jumbo = struct.pack("!BBBBI", 17, 0, 0xC2, 4, 70_000)
    packet = ipv6(world, mark, "open", 0, jumbo, udp(world, 6, mark))
    return [packet[:4] + b"\0\0" + packet[6:]]


@extension("control: hop-by-hop options of padding", None, FORWARDS)
def _(world, _family, mark):
    return [ipv6(world, mark, "open", 0, options(17), udp(world, 6, mark))]


@extension("control: destination options, eight headers in all", None, FORWARDS)
def _(world, _family, mark):
    return [ipv6(world, mark, "open", 0, *[options(60)] * 7, options(17), udp(world, 6, mark))]


@extension("control: a routing header of type 2 with nothing left", None, FORWARDS)
def _(world, _family, mark):
    return [ipv6(world, mark, "open", 43, routing(17, 2), udp(world, 6, mark))]


# ---- IPv4 options ----------------------------------------------------------------------------------------

group("options")


def with_options(world, mark, octets):
    """An IPv4 packet with options as they are."""
    octets = octets.ljust((len(octets) + 3) // 4 * 4, b"\0")
    datagram = udp(world, 4, mark)
    header = bytes(ip(world, 4, mark, "web", "open", proto=17, ihl=5 + len(octets) // 4,
                      len=20 + len(octets) + len(datagram), chksum=0))[:20]
    header += octets
    checksum = struct.pack("!H", internet_checksum(header))
    return header[:10] + checksum + header[12:] + datagram


def internet_checksum(octets):
    """RFC 1071."""
    octets += b"\0" * (len(octets) % 2)
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def option(name, octets, *arguments):
    @case(name, *arguments, families=(4,))
    def _(world, _family, mark):
        return [with_options(world, mark, octets)]


SLOTS = bytes([198, 51, 100, 1, 198, 51, 100, 2])
option("a loose source route", bytes([131, 11, 4]) + SLOTS, "ip-options")
option("a strict source route", bytes([137, 11, 4]) + SLOTS, "ip-options")
option("a recorded route", bytes([7, 11, 4]) + bytes(8), "ip-options", FORWARDS,
       "Linux writes its address into it, as RFC 791 wants")
option("timestamps", bytes([68, 12, 5, 0]) + bytes(8), "ip-options", FORWARDS,
       "Linux writes the time into it, as RFC 791 wants")
option("a security label", bytes([130, 11]) + bytes(9), "ip-options", FORWARDS, "Linux carries what it doesn't know")
option("an unknown option", bytes([0x9E, 4, 0, 0]), "ip-options", FORWARDS, "Linux carries what it doesn't know")
option("a recorded route longer than the header", bytes([7, 40, 4, 0]), "ip-options")
option("a router alert longer than the header", bytes([148, 40, 0, 0]), "malformed")
option("a router alert of one byte", bytes([148, 1, 0, 0]), "malformed")
option("a router alert cut by the header's end", bytes([1, 1, 148, 4]), "malformed")
option("control: no-operations", bytes([1, 1, 1, 0]), None, FORWARDS)
option("control: router alert", bytes([148, 4, 0, 0]), None, FORWARDS)


# ---- lengths and other lies ------------------------------------------------------------------------------

group("malformed")


def patched(packet, at, octets, checksum=True):
    """Other bytes at a place of a packet; an IPv4 header's sum is made right again."""
    packet = packet[:at] + octets + packet[at + len(octets):]
    if packet[0] >> 4 == 4 and checksum:
        length = max(packet[0] & 15, 5) * 4
        header = packet[:10] + b"\0\0" + packet[12:length]
        packet = header[:10] + struct.pack("!H", internet_checksum(header)) + packet[12:]
    return packet


def lie(name, at, octets, ours="malformed", linux=DROPS, why="", families=(4, 6), kind="udp", **keywords):
    """A well-formed packet to open, patched; `at` and `octets` of each family where they differ."""

    @case(name, ours, linux, why, families=families, **keywords)
    def _(world, family, mark):
        makers = {"udp": udp, "tcp": tcp, "echo": echo}
        packet = whole(world, family, mark, protocol_of(family, kind), makers[kind](world, family, mark))
        place, value = (one[family] if isinstance(one, dict) else one for one in (at, octets))
        return [patched(packet, place, value)]


lie("a length beyond the packet", {4: 2, 6: 4}, b"\x01\xF4")
lie("a length that cuts the UDP header", {4: 2, 6: 4}, {4: struct.pack("!H", 26), 6: struct.pack("!H", 6)})
lie("a length below the header's own", 2, struct.pack("!H", 19), families=(4,))
lie("a header of four words", 0, b"\x44", families=(4,))
lie("a header of fifteen words in a packet of eleven", 0, b"\x4F", families=(4,), kind="tcp")
lie("version 5", 0, b"\x55", families=(4,))
lie("version 7", 0, b"\x70", families=(6,))
lie("a UDP length beyond the datagram", {4: 24, 6: 44}, b"\x01\xF4")
lie("a UDP length below its header", {4: 24, 6: 44}, b"\x00\x07")
lie("a TCP header of four words", {4: 32, 6: 52}, b"\x40", kind="tcp")
lie("a TCP header longer than the segment", {4: 32, 6: 52}, b"\xF0", kind="tcp")


@case("a wrong header checksum", "bad-checksum", families=(4,))
def _(world, _family, mark):
    packet = whole(world, 4, mark, 17, udp(world, 4, mark))
    return [packet[:10] + bytes([packet[10] ^ 0x55]) + packet[11:]]


@case("a packet shorter than its IP header", "malformed")
def _(world, family, mark):
    packet = whole(world, family, mark, 17, udp(world, family, mark))
    return [packet[: 12 if family == 4 else 30]]


@case("a segment shorter than a TCP header", "malformed")
def _(world, family, mark):
    return [whole(world, family, mark, 6, tcp(world, family, mark)[:12])]


@case("an echo request of four bytes", "malformed")
def _(world, family, mark):
    return [whole(world, family, mark, protocol_of(family, "echo"), echo(world, family, mark)[:4])]


@case("control: a link's padding behind the packet", None, FORWARDS)
def _(world, family, mark):
    return [whole(world, family, mark, 17, udp(world, family, mark)) + bytes(10)]


# ---- spoofed sources -------------------------------------------------------------------------------------

group("spoofing")


def spoofed(name, family, source, ours, linux=DROPS, why=""):
    @case(name, ours, linux, why, families=(family,))
    def _(world, family, mark):
        return [whole(world, family, mark, 17, udp(world, family, mark, source=source), source=source)]


SEGMENT = "the reverse path leads to the same segment: a router can't tell the stations of one apart"
spoofed("another instance's address", 4, "other", "source-not-own", FORWARDS, SEGMENT)
spoofed("another instance's address, IPv6", 6, "other", "source-not-own", FORWARDS, SEGMENT)
spoofed("the target's own address", 4, "open", "source-not-own")
spoofed("the target's own address, IPv6", 6, "open", "source-not-own")
spoofed("the service address", 4, "gateway", "source-not-own")
spoofed("the service address, IPv6", 6, "gateway", "source-not-own")
spoofed("an outside address", 4, "192.0.2.77", "source-not-own")
spoofed("an outside address, IPv6", 6, "2001:db8:77::1", "source-not-own")
spoofed("a link-local address", 4, "169.254.1.1", "source-not-own")
spoofed("loopback", 4, "127.0.0.1", "source-martian")
spoofed("this network (0/8)", 4, "0.0.0.0", "source-martian")
spoofed("this network, not all zeros", 4, "0.1.2.3", "source-martian")
spoofed("a multicast group", 4, "224.0.0.1", "source-martian")
spoofed("a reserved address (240/4)", 4, "240.0.0.1", "source-not-own")
spoofed("broadcast", 4, "255.255.255.255", "source-martian")
spoofed("loopback, IPv6", 6, "::1", "source-martian")
spoofed("unspecified, IPv6", 6, "::", "source-martian")
spoofed("a multicast group, IPv6", 6, "ff02::1", "source-martian")
spoofed("an IPv4 loopback mapped into IPv6", 6, "::ffff:127.0.0.1", "source-not-own")
spoofed("a link-local address, IPv6", 6, "fe80::1", "source-not-own")


@case("a neighbour's reset, with its sequence", "source-not-own", FORWARDS, SEGMENT + "; the connection breaks",
      by="other", live="db")
def _(world, family, mark):
    live = world.live
    segment = tcp(world, family, mark, "db", "web", sport=live.port, dport=5432, flags="R", seq=live.sent)
    return [whole(world, family, mark, 6, segment, "web", "db")]


def towards(name, ours, away, kind="udp"):
    """A well-formed packet to where nobody lets web."""
    families = tuple(family for family in (4, 6) if away.get(family))

    @case(name, ours, families=families)
    def _(world, family, mark):
        payload = {"udp": udp, "tcp": tcp}[kind](world, family, mark, away[family])
        return [whole(world, family, mark, PROTOCOLS[kind], payload, destination=away[family])]


towards("to a multicast group", "multicast", {4: "239.1.1.1"})
towards("to everybody", "multicast", {4: "255.255.255.255"})
towards("to the host's own address", "outbound-denied", {4: "host", 6: "host"}, kind="tcp")
towards("to a network that isn't the sender's", "outbound-denied", {4: "198.51.100.7", 6: "2001:db8:77::7"})


# ---- who may talk to whom --------------------------------------------------------------------------------

group("micro-segmentation")


def denied(name, kind, by="web", to=("db", "near-db"), ours="inbound-denied", **fields):
    for target in to:
        where = " on the same host" if target.startswith("near") else ""

        @case(f"{name}{where}", ours, by=by)
        def _(world, family, mark, target=target):
            makers = {"udp": udp, "tcp": tcp, "echo": echo}
            values = {"dport": fields["port"]} if kind == "tcp" else fields
            payload = makers[kind](world, family, mark, target, source=by, **values)
            return [whole(world, family, mark, protocol_of(family, kind), payload, by, target)]


denied("TCP to a port that isn't let in", "tcp", port=22)
denied("UDP to the port that is let in for TCP", "udp", port=5432)
denied("an echo request to who takes TCP alone", "echo")
denied("TCP by a service that isn't let in", "tcp", by="other", port=5432)


@case("a protocol without ports to who takes TCP alone", "inbound-denied")
def _(world, family, mark):
    return [whole(world, family, mark, 47, b"\0\0\x08\0" + text(32), destination="db")]


@case("a denied port, in fragments: judged whole, counted as one", "inbound-denied", counted=TRIES)
def _(world, family, mark):
    datagram = udp(world, family, mark, "db", port=5432)
    return pieces(world, family, mark, (0, 48), (48, 96), payload=datagram, destination="db")


@case("control: TCP by who is let in, to the port", None, FORWARDS)
def _(world, family, mark):
    return [whole(world, family, mark, 6, tcp(world, family, mark, "db", dport=5432), destination="db")]


# ---- TCP -------------------------------------------------------------------------------------------------

group("TCP")


def flags(name, letters, ours, linux=DROPS, why="", **fields):
    @case(name, ours, linux, why)
    def _(world, family, mark):
        return [whole(world, family, mark, 6, tcp(world, family, mark, flags=letters, length=8, **fields))]


flags("no flags", "", "tcp-flags")
flags("FIN, URG and PSH (Xmas)", "FPU", "tcp-flags")
flags("all flags", "FSRPAU", "tcp-flags")
flags("SYN and FIN", "SF", "tcp-flags")
flags("SYN and RST", "SR", "tcp-flags")
flags("FIN alone, without ACK", "F", "tcp-flags")
flags("FIN and ACK of no connection", "FA", "mid-stream", ack=1)
flags("data of no connection", "PA", "mid-stream", ack=1)
flags("SYN and ACK that nobody asked for", "SA", "mid-stream", ack=1)
flags("a reset of no connection", "R", "mid-stream")
flags("a reset with ACK of no connection", "RA", "mid-stream", ack=1)


def around(name, ours, linux=DROPS, why="", to="db", **fields):
    """A segment of a live connection, with fields that are functions of it."""

    @case(name, ours, linux, why, live=to)
    def _(world, family, mark):
        live = world.live
        values = {key: value(live) if callable(value) else value for key, value in fields.items()}
        values = {"seq": live.sent, "ack": live.received, "window": 500, **values}
        segment = tcp(world, family, mark, to, sport=live.port, dport=5432, **values)
        return [whole(world, family, mark, 6, segment, destination=to)]


def ahead(distance):
    return lambda live: (live.sent + distance) & 0xFFFFFFFF


def unsent(distance):
    return lambda live: (live.received + distance) & 0xFFFFFFFF


around("a reset far out of the window", "tcp-out-of-window", flags="R", seq=ahead(1 << 30))
around("a reset far behind", "tcp-out-of-window", flags="R", seq=ahead(-(1 << 30)))
around("data far ahead of the window", "tcp-out-of-window", flags="PA", seq=ahead(1 << 29), length=16)
around("data far behind", "tcp-out-of-window", FORWARDS, "conntrack takes it for a repetition, which the end answers",
       flags="PA", seq=ahead(-(1 << 29)), length=16)
around("FIN far ahead of the window", "tcp-out-of-window", flags="FA", seq=ahead(1 << 29))
around("an acknowledgement of what was never sent", "tcp-out-of-window", flags="A", ack=unsent(1 << 28))
around("no flags, within a connection", "tcp-flags", flags="", length=1)
around("SYN and FIN, within a connection", "tcp-flags", flags="SF")
around("control: a reset in the window, not next: the end decides (RFC 5961)", None, FORWARDS, flags="R",
       seq=ahead(100))
around("a reset far out of the window, on the same host", "tcp-out-of-window", to="near-db", flags="R",
       seq=ahead(1 << 30))
around("data far ahead of the window, on the same host", "tcp-out-of-window", to="near-db", flags="PA",
       seq=ahead(1 << 29), length=16)
around("control: a reset in the window, not next, on the same host", None, FORWARDS, to="near-db", flags="R",
       seq=ahead(100))


# ---- ICMP ------------------------------------------------------------------------------------------------

group("ICMP")


def error(world, family, mark, quote, source, destination, kind=None, code=None, mtu=0):
    """An error with a quote: port unreachable, unless another type is named."""
    unreachable = (3, 3) if family == 4 else (1, 4)
    kind, code = unreachable if kind is None else (kind, code)
    message = struct.pack("!BBHI", kind, code, 0, mtu) + quote
    if family == 6:
        return icmpv6(world, mark, source, destination, message)
    checksum = struct.pack("!H", internet_checksum(message))
    return whole(world, 4, mark, 1, message[:2] + checksum + message[4:], source, destination)


def icmpv6(world, mark, source, destination, message):
    """A message with its checksum (RFC 4443 §2.3), which is zero in what comes in."""
    ends = (socket.inet_pton(socket.AF_INET6, world.address(end, 6)) for end in (source, destination))
    checksum = internet_checksum(b"".join(ends) + struct.pack("!II", len(message), 58) + message)
    return whole(world, 6, mark, 58, message[:2] + struct.pack("!H", checksum) + message[4:], source, destination)


def quoted(world, family, mark, sequence=None, port=None):
    """The first bytes of a segment of the live connection, as an error quotes them."""
    live, source, destination = world.live, "web", world.live.to
    sequence = live.sent - 5 if sequence is None else sequence & 0xFFFFFFFF
    ports = {"sport": port or live.port, "dport": 5432}
    segment = tcp(world, family, mark, destination, source, flags="A", seq=sequence, **ports)
    return whole(world, family, mark, 6, segment, source, destination)


def forged(name, by, to, quote, ours="no-flow", linux=DROPS, why="", live="db", **fields):
    @case(name, ours, linux, why, by=by, live=live)
    def _(world, family, mark):
        values = {key: value[family] if isinstance(value, dict) else value for key, value in fields.items()}
        return [error(world, family, mark, quote(world, family, mark), by, to, **values)]


TOO_BIG = {"kind": {4: 3, 6: 2}, "code": {4: 4, 6: 0}, "mtu": 1280}
ANYBODY = "any router on the way may send an error, so Linux doesn't ask who did"
forged("an error about no flow", "db", "web", lambda world, family, mark: quoted(world, family, mark, port=7))
forged("too big, about no flow", "db", "web", lambda world, family, mark: quoted(world, family, mark, port=7),
       **TOO_BIG)
forged("a third instance's error about a live flow", "other", "web", quoted, linux=FORWARDS, why=ANYBODY)
forged("a third instance's too big about a live flow", "other", "web", quoted, linux=FORWARDS, why=ANYBODY, **TOO_BIG)
forged("a third instance's error about a live flow on the same host", "other", "web", quoted, linux=FORWARDS,
       why=ANYBODY, live="near-db")
forged("an error about a live flow, to another than its source", "db", "open", quoted)
forged("an error about one's own packet", "web", "db", quoted)
forged("an error whose quoted sequence was never sent", "db", "web",
       lambda world, family, mark: quoted(world, family, mark, world.live.sent + (1 << 29)),
       linux=FORWARDS, why="conntrack doesn't compare the quoted sequence (RFC 5927 §4.1); the end does")
forged("an error whose quote is cut within the ports", "db", "web",
       lambda world, family, mark: quoted(world, family, mark)[: 22 if family == 4 else 42])
forged("an error whose quote is cut within the IP header", "db", "web",
       lambda world, family, mark: quoted(world, family, mark)[:12])


@case("an error about an error", "no-flow", by="db", live="db")
def _(world, family, mark):
    inner = error(world, family, mark, quoted(world, family, mark), "web", "db")
    return [error(world, family, mark, inner, "db", "web")]


@case("a redirect about a live flow", "no-flow", {4: FORWARDS, 6: DROPS},
      {4: "conntrack counts a redirect among the errors"}, by="db", live="db")
def _(world, family, mark):
    if family == 4:
        return [error(world, 4, mark, quoted(world, 4, mark), "db", "web", kind=5, code=1)]
    target = socket.inet_pton(socket.AF_INET6, world.address("other", 6)) * 2
    return [error(world, 6, mark, target, "db", "web", kind=137, code=0)]


@case("an echo reply that nobody asked for", "no-flow", by="open")
def _(world, family, mark):
    reply = echo(world, family, mark, "web", "open", reply=True)
    return [whole(world, family, mark, protocol_of(family, "echo"), reply, "open", "web")]


def discovery(name, kind, body):
    why = "open takes every protocol, and refuses itself what had a router in between (RFC 4861 §6.1)"

    @case(name, "no-flow", FORWARDS, why, families=(6,))
    def _(world, _family, mark):
        return [icmpv6(world, mark, "web", "open", struct.pack("!BBH", kind, 0, 0) + body)]


discovery("a router advertisement to a neighbour", 134, struct.pack("!BBHII", 64, 0, 1800, 0, 0))
discovery("a neighbour advertisement to a neighbour", 136, struct.pack("!I", 0x60000000) + bytes(16))


@case("control: an echo request", None, FORWARDS)
def _(world, family, mark):
    return [whole(world, family, mark, protocol_of(family, "echo"), echo(world, family, mark))]


@case("control: an error about a live flow by its other end", None, FORWARDS, by="db", live="db")
def _(world, family, mark):
    return [error(world, family, mark, quoted(world, family, mark), "db", "web")]


# ---- the two verbs ---------------------------------------------------------------------------------------

for number, one in enumerate(CASES, 1):
    one.number = number


def table():
    """What the test needs to know of every case."""
    fields = ("name", "group", "number", "by", "ours", "linux", "why", "counted", "kept", "passes")
    print(json.dumps([{field: getattr(one, field) for field in fields} for one in CASES]))


def run(world, one):
    """Sends a case; gives back how much of it, and whether its live connection holds."""
    world.live = Live(world, one.family, one.live) if one.live else None
    sent = 0
    for number in range(one.tries):
        for packet in one.make(world, one.family, one.number << 8 | number):
            world.send(one.by, packet)
            sent += 1
    holds = None
    if one.live:
        time.sleep(0.05)
        holds = world.live.holds()
    return {"sent": sent, "tried": one.tries, "holds": holds}


def send(path):
    with open(path) as file:
        world = World(json.load(file))
    by_name = {one.name: one for one in CASES}
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(world, by_name[line.rstrip("\n")])), flush=True)


if sys.argv[1] == "table":
    table()
else:
    send(sys.argv[2])
