"""Packets that the engine itself makes: ICMP errors (RFC 792)."""

from __future__ import annotations

import struct

from natengine.vocab import Proto
from natengine.wire.checksum import checksum
from natengine.wire.ipv4 import IP_CHECKSUM, Buffer, Ipv4Fields
from natengine.wire.rewrite import put16

TTL = 64                            # RFC 1700's default
INTERNETWORK_CONTROL = 0xC0         # precedence of ICMP errors (RFC 1812 4.3.2.5)
MAX_ERROR = 576                     # an ICMP error quotes as much as fits into this (RFC 1812 4.3.2.3)
ICMP_HEADER = 8

_IP = struct.Struct("!BBHHHBBHII")
_ICMP = struct.Struct("!BBHI")


def icmp_error(source: int, icmp_type: int, code: int, packet: Buffer, ip: Ipv4Fields, rest: int = 0) -> bytearray:
    """Return an ICMP error about `packet` to who sent it.

    Args:
        source: Whose error it is; host order, as all of `ip`.
        packet: From its IP header on, as its sender made it.
        rest: The second word of the ICMP header, such as the MTU of a 3/4.
    """
    quoted = bytes(packet[:min(ip.total_len, MAX_ERROR - 20 - ICMP_HEADER)])
    message = bytearray(_ICMP.pack(icmp_type, code, 0, rest) + quoted)
    put16(message, 2, checksum(message))
    return _ipv4(source, ip.src, Proto.ICMP, message, INTERNETWORK_CONTROL)


def _ipv4(source: int, destination: int, proto: int, payload: bytearray, tos: int) -> bytearray:
    """Return a packet of our own; it is never fragmented, so its identification may be 0 (RFC 6864 4.1)."""
    dont_fragment = 0x4000
    packet = bytearray(_IP.pack(0x45, tos, 20 + len(payload), 0, dont_fragment, TTL, proto, 0, source, destination))
    put16(packet, IP_CHECKSUM, checksum(packet))
    return packet + payload
