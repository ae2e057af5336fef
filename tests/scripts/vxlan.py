"""Sends VXLAN datagrams with a crafted frame inside, by a plain UDP socket.

    vxlan.py MARKER COUNT HOST PORT VNI INNER-SOURCE INNER-DESTINATION
"""
import socket
import struct
import sys

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw


def mac(address):
    """The MAC that follows from an address: 02:74 and its four bytes."""
    return "02:74:" + ":".join(f"{int(byte):02x}" for byte in address.split("."))


marker, count, host, port, vni, source, destination = sys.argv[1:]
header = struct.pack("!II", 0x08000000, int(vni) << 8)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(int(count)):
    frame = Ether(src=mac(source), dst=mac(destination)) / IP(src=source, dst=destination)
    frame = frame / UDP(sport=20000 + number, dport=9999) / Raw(marker.encode())
    udp.sendto(header + bytes(frame), (host, int(port)))
