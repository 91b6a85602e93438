"""Checksums that an offloading sender has left to its hardware, computed before anything else looks at the packet.

A host on the same machine (a container, behind a veth) leaves them out, for no wire will damage the packet; before
it is sent on over one, somebody has to compute them.  Of a tunnel's packet it is the one inside that lacks its own.
"""

from __future__ import annotations

from natengine.errors import BadPacket
from natengine.vocab import Proto
from natengine.wire.checksum import checksum, pseudo_header_sum
from natengine.wire.ipv4 import TRANSPORT_CHECKSUM, Ipv4Fields, parse_ipv4_untrusted
from natengine.wire.rewrite import put16

OFFLOADED = frozenset({Proto.TCP, Proto.UDP})       # UDP-Lite's and DCCP's are computed by their senders
SCTP_CHECKSUM = 8
CASTAGNOLI = 0x82F6_3B78            # the polynomial of CRC-32c, bits reversed (RFC 9260 Appendix A)

GRE_CHECKSUM, GRE_KEY, GRE_SEQUENCE, GRE_VERSION = 0x8000, 0x2000, 0x1000, 0x0007      # RFC 2784, RFC 2890
ETHERTYPE_IPV4 = 0x0800


def complete_checksum(packet: bytearray) -> None:
    """Compute, in place, the TCP, UDP or SCTP checksum of a packet whose sender left it to the hardware.

    Of an IPIP or GRE packet it is that of the packet inside.  A later fragment, a packet that is not whole and any
    other protocol have none: they stay as they are.
    """
    try:
        ip = parse_ipv4_untrusted(packet)
        at = _tunnelled(packet, ip)
        if not at:
            _complete(packet, ip)
            return
        inside = packet[at:ip.total_len]
        _complete(inside, parse_ipv4_untrusted(inside))
        packet[at:ip.total_len] = inside
    except BadPacket:
        return


def _complete(packet: bytearray, ip: Ipv4Fields) -> None:
    if ip.is_fragment:
        return
    start, length = ip.header_len, ip.total_len - ip.header_len
    if ip.proto == Proto.SCTP and length >= SCTP_CHECKSUM + 4:
        at = start + SCTP_CHECKSUM
        packet[at:at + 4] = bytes(4)
        packet[at:at + 4] = crc32c(packet[start:ip.total_len]).to_bytes(4, "little")
    if ip.proto not in OFFLOADED or TRANSPORT_CHECKSUM[Proto(ip.proto)] + 2 > length:
        return
    at = start + TRANSPORT_CHECKSUM[Proto(ip.proto)]
    put16(packet, at, 0)
    value = checksum(packet[start:ip.total_len], pseudo_header_sum(ip.src, ip.dst, ip.proto, length))
    put16(packet, at, 0xFFFF if value == 0 and ip.proto == Proto.UDP else value)


def _tunnelled(packet: bytearray, ip: Ipv4Fields) -> int:
    """Return where the IPv4 packet inside an IPIP or GRE packet begins, or 0."""
    if ip.is_fragment:
        return 0
    start = ip.header_len
    if ip.proto == Proto.IPIP:
        return start
    if ip.proto != Proto.GRE or ip.total_len < start + 4:
        return 0
    flags, kind = (int.from_bytes(packet[at:at + 2], "big") for at in (start, start + 2))
    if flags & GRE_VERSION or kind != ETHERTYPE_IPV4:
        return 0
    words = 1 + sum(bool(flags & option) for option in (GRE_CHECKSUM, GRE_KEY, GRE_SEQUENCE))
    return start + 4 * words


def crc32c(data: bytes | bytearray) -> int:
    """Return the CRC-32c of `data`.  Bit by bit: few packets need it."""
    value = 0xFFFF_FFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (CASTAGNOLI if value & 1 else 0)
    return ~value & 0xFFFF_FFFF
