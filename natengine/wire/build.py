"""Packets that the engine itself makes: ICMP errors (RFC 792) and TCP resets (RFC 9293 3.10.7.1)."""

from __future__ import annotations

import struct

from natengine.vocab import Proto
from natengine.wire.checksum import checksum, pseudo_header_sum
from natengine.wire.ipv4 import IP_CHECKSUM, Buffer, Ipv4Fields
from natengine.wire.rewrite import put16
from natengine.wire.tcp import ACK, RST, TcpSegment

TTL = 64                            # RFC 1700's default
INTERNETWORK_CONTROL = 0xC0         # precedence of ICMP errors (RFC 1812 4.3.2.5)
MAX_ERROR = 576                     # an ICMP error quotes as much as fits into this (RFC 1812 4.3.2.3)
ICMP_HEADER = 8

_IP = struct.Struct("!BBHHHBBHII")
_ICMP = struct.Struct("!BBHI")
_TCP = struct.Struct("!HHIIBBHHH")


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


def tcp_reset(ip: Ipv4Fields, source_port: int, destination_port: int, segment: TcpSegment) -> bytearray:
    """Return the RST that a host without such a connection sends in answer to a segment; ports are the segment's."""
    if segment.flags & ACK:
        seq, ack, flags = segment.ack, 0, RST
    else:
        seq, ack, flags = 0, segment.end, RST | ACK
    header = bytearray(_TCP.pack(destination_port, source_port, seq, ack, 5 << 4, flags, 0, 0, 0))
    put16(header, 16, checksum(header, pseudo_header_sum(ip.dst, ip.src, Proto.TCP, len(header))))
    return _ipv4(ip.dst, ip.src, Proto.TCP, header, ip.tos)


def _ipv4(source: int, destination: int, proto: int, payload: bytearray, tos: int) -> bytearray:
    """Return a packet of our own; it is never fragmented, so its identification may be 0 (RFC 6864 4.1)."""
    dont_fragment = 0x4000
    packet = bytearray(_IP.pack(0x45, tos, 20 + len(payload), 0, dont_fragment, TTL, proto, 0, source, destination))
    put16(packet, IP_CHECKSUM, checksum(packet))
    return packet + payload
