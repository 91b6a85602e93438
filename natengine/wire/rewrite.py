"""Changing an endpoint of a packet in place, with every checksum that covers it.

The one place in Python where a packet is written to: the pure-Python fast path, fragments and
the packet quoted by an ICMP error all come here.
"""

from __future__ import annotations

from natengine.vocab import Proto
from natengine.wire.checksum import difference16, difference32, update
from natengine.wire.ipv4 import (
    CALL_ID,
    IP_CHECKSUM,
    IP_DST,
    IP_IDENTIFICATION,
    IP_SRC,
    TRANSPORT_CHECKSUM,
    Ipv4Fields,
    read_call,
)

ICMP_IDENTIFIER = 4                 # offset in the ICMP header


def get16(packet: bytearray, offset: int) -> int:
    """Return the 16-bit network-order word at `offset`."""
    return packet[offset] << 8 | packet[offset + 1]


def put16(packet: bytearray, offset: int, value: int) -> None:
    """Write a 16-bit word at `offset` in network order."""
    packet[offset] = value >> 8
    packet[offset + 1] = value & 0xFF


def rewrite_source(packet: bytearray, ip: Ipv4Fields, new_ip: int, new_port_or_id: int | None) -> int:
    """Replace the source address and, unless None, the source port or ICMP identifier; see `_rewrite`."""
    return _rewrite(packet, ip, IP_SRC, ip.src, new_ip, 0, new_port_or_id)


def rewrite_destination(packet: bytearray, ip: Ipv4Fields, new_ip: int, new_port_or_id: int | None) -> int:
    """Replace the destination address and, unless None, the destination port or ICMP identifier."""
    return _rewrite(packet, ip, IP_DST, ip.dst, new_ip, 2, new_port_or_id)


def rewrite_identification(packet: bytearray, new: int) -> None:
    """Replace the identification in a packet's IP header, and update the header's checksum."""
    old = get16(packet, IP_IDENTIFICATION)
    if new != old:
        put16(packet, IP_IDENTIFICATION, new)
        put16(packet, IP_CHECKSUM, update(get16(packet, IP_CHECKSUM), difference16(old, new)))


def _rewrite(
    packet: bytearray, ip: Ipv4Fields, address_at: int, old_ip: int, new_ip: int, port_at: int, new_port: int | None
) -> int:
    """Write one endpoint and update the IP and transport checksums by RFC 1624.

    `new_port` None means that the bytes behind the IP header are not a transport header: a later
    fragment.  Of a protocol whose ports cannot be changed, or that has none, only the address is written.

    Returns:
        The change (`difference16`, added up) of the sum over all bytes of the packet, for a checksum outside
        that covers this packet as data (an ICMP error that quotes it).
    """
    start = ip.header_len
    packet[address_at:address_at + 4] = new_ip.to_bytes(4, "big")
    address_change = difference32(old_ip, new_ip)
    header_sum = get16(packet, IP_CHECKSUM)
    new_header_sum = update(header_sum, address_change)
    put16(packet, IP_CHECKSUM, new_header_sum)
    change = address_change + difference16(header_sum, new_header_sum)
    if ip.proto == Proto.GRE and port_at and new_port:
        return change + _rewrite_call_id(packet, start, new_port)
    if new_port is None or ip.proto not in TRANSPORT_CHECKSUM:      # nothing there that could follow a change
        return change
    if ip.proto == Proto.ICMP:
        port_at = ICMP_IDENTIFIER
        transport_change = 0                       # no pseudo-header (RFC 792)
    else:
        transport_change = address_change
    old_port = get16(packet, start + port_at)
    if ip.proto == Proto.ICMP and old_port == new_port:
        return change                              # nothing that its checksum covers has changed
    put16(packet, start + port_at, new_port)
    port_change = difference16(old_port, new_port)
    change += port_change
    sum_at = start + TRANSPORT_CHECKSUM[Proto(ip.proto)]
    if sum_at + 2 > len(packet):                   # a quoted packet may end before its checksum (RFC 792)
        return change
    old_sum = get16(packet, sum_at)
    if ip.proto == Proto.UDP and old_sum == 0:     # the sender computed none (RFC 768)
        return change
    new_sum = update(old_sum, transport_change + port_change)
    if new_sum == 0 and (ip.proto in (Proto.UDP, Proto.UDPLITE) or _is_zero_echo(packet, ip, start)):
        new_sum = 0xFFFF                           # 0 means "none" in UDP, nothing in UDP-Lite (RFC 3828)
    put16(packet, sum_at, new_sum)
    return change + difference16(old_sum, new_sum)


def _rewrite_call_id(packet: bytearray, start: int, new_id: int) -> int:
    """Write the call id of PPTP's GRE, which has no checksum, and return the change; other GRE stays."""
    call = read_call(packet, start, len(packet) - start)
    if not call.src_port_or_icmp_id:
        return 0
    put16(packet, start + CALL_ID, new_id)
    return difference16(call.dst_port_or_icmp_id, new_id)


def _is_zero_echo(packet: bytearray, ip: Ipv4Fields, start: int) -> bool:
    """Whether this is an ICMP message of nothing but zeros, its old checksum aside.

    One's complement has two zeros: RFC 1624 comes to the checksum 0 for an echo reply of zeros, but
    the receiver's sum over nothing but zeros would be 0, not 0xFFFF.
    """
    rest = start + TRANSPORT_CHECKSUM[Proto.ICMP] + 2
    return ip.proto == Proto.ICMP and not any(packet[start:rest - 2]) and not any(packet[rest:ip.total_len])
