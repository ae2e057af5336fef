"""Asks for names from sources that aren't the asker's own, out of eth0 and past the kernel's own idea of sources.

    forged_names.py SERVER SOURCE NAME...

For every name a question for A, AAAA, TXT and SRV from SOURCE to SERVER. Says how many were sent, and how many answers
came back by eth0 within a second after the last.
"""
import socket
import sys
import time

from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

server, source, names = sys.argv[1], sys.argv[2], sys.argv[3:]
ipv6 = ":" in server
network, protocol = (IPv6(src=source, dst=server), 0x86DD) if ipv6 else (IP(src=source, dst=server), 0x0800)

eth0 = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(protocol))
eth0.bind(("eth0", protocol))
sent = 0
for name in names:
    for kind in ("A", "AAAA", "TXT", "SRV"):
        sent += 1
        query = DNS(id=sent, rd=1, qd=DNSQR(qname=name, qtype=kind))
        eth0.sendto(bytes(network / UDP(sport=30000, dport=53) / query), ("eth0", protocol))

answers, over = 0, time.monotonic() + 1
while (left := over - time.monotonic()) > 0:
    eth0.settimeout(left)
    try:
        packet, (_, _, kind, *_) = eth0.recvfrom(65535)
    except TimeoutError:
        break
    # What this socket sent itself comes back to it as outgoing.
    offset = 40 if ipv6 else (packet[0] & 15) * 4
    if kind != socket.PACKET_OUTGOING and packet[offset : offset + 2] == (53).to_bytes(2, "big"):
        answers += 1
print(sent, answers)
