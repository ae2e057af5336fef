"""Sends numbered markers as UDP datagrams, not faster than a slow machine takes them.

    markers.py PREFIX COUNT HOST PORT
"""
import socket
import sys
import time

prefix, count, host, port = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(count):
    udp.sendto(f"{prefix}{number:06}.".encode().ljust(64, b"-"), (host, port))
    if number % 20 == 19:
        time.sleep(0.002)
