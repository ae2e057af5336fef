"""Sends crafted IP packets out of eth0, past the kernel's own idea of sources and routes.

    probe.py MARKER COUNT SOURCE DESTINATION...

To every destination: COUNT echo requests, COUNT UDP datagrams and COUNT TCP SYNs, each with the marker inside. SOURCE may
be anything; destinations of the other address family are refused.
"""
import socket
import sys

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.packet import Raw

marker, count, source, destinations = sys.argv[1].encode(), int(sys.argv[2]), sys.argv[3], sys.argv[4:]

eth0 = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
for destination in destinations:
    if (":" in source) != (":" in destination):
        sys.exit(f"{source} and {destination} are of two families")
    if ":" in destination:
        network, echo, protocol = IPv6(src=source, dst=destination), ICMPv6EchoRequest, 0x86DD
    else:
        network, echo, protocol = IP(src=source, dst=destination), ICMP, 0x0800
    for number in range(count):
        port = 20000 + number
        for transport in (echo(id=port), UDP(sport=port, dport=9999), TCP(sport=port, dport=80, flags="S")):
            packet = bytes(network / transport / Raw(marker))
            eth0.sendto(packet, ("eth0", protocol))
