"""What window tracking reads of a TCP header (RFC 9293 3.1, RFC 7323 2.2), and the one option that is ever changed."""

from __future__ import annotations

import struct
from typing import NamedTuple

from natengine.wire.checksum import difference16, update
from natengine.wire.ipv4 import Buffer, Ipv4Fields

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32

NO_SCALE = 15                       # no window scale option; as a shift RFC 7323 allows 14 at most
MAX_SCALE = 14
END_OF_OPTIONS, NO_OPERATION, MAXIMUM_SEGMENT_SIZE, WINDOW_SCALE = range(4)
TCP_CHECKSUM, OPTIONS = 16, 20      # where they are in the header

_HEADER = struct.Struct("!IIBBH")


class TcpSegment(NamedTuple):
    """A segment in sequence space."""

    seq: int
    end: int                        # one past its last number; SYN and FIN count as one each
    ack: int                        # meaningless without the ACK flag
    flags: int
    window: int                     # as in the header, not scaled
    scale: int                      # of a SYN: the shift it offers, or NO_SCALE


def read_segment(packet: Buffer, ip: Ipv4Fields) -> TcpSegment:
    """Read a whole segment whose header `wire.ipv4.parse_transport_untrusted` has let pass."""
    start = ip.header_len
    seq, ack, data_offset, flags, window = _HEADER.unpack_from(packet, start + 4)
    header_len = (data_offset >> 4) * 4
    length = ip.total_len - start - header_len + bool(flags & SYN) + bool(flags & FIN)
    scale = _offered_scale(packet[start + OPTIONS:start + header_len]) if flags & SYN else NO_SCALE
    return TcpSegment(seq, (seq + length) & 0xFFFF_FFFF, ack, flags, window, scale)


def _offered_scale(options: Buffer) -> int:
    """Return the shift of the window scale option."""
    at = _find_option(options, WINDOW_SCALE, 3)
    return NO_SCALE if at is None else min(options[at + 2], MAX_SCALE)      # RFC 7323 2.3: more counts as 14


def clamp_mss(packet: bytearray, ip: Ipv4Fields, limit: int) -> bool:
    """Lower the maximum segment size that a SYN offers to `limit`, in place; say whether it was more.

    What iptables' TCPMSS does, but for adding the option where there is none: then 536 counts (RFC 9293 3.7.1),
    which any link can carry.
    """
    header = packet[ip.header_len:ip.header_len + (packet[ip.header_len + 12] >> 4) * 4]
    found = _find_option(header[OPTIONS:], MAXIMUM_SEGMENT_SIZE, 4)
    if found is None:
        return False
    at = OPTIONS + found + 2
    offered = int.from_bytes(header[at:at + 2], "big")
    if offered <= limit:
        return False
    old_sum = int.from_bytes(header[TCP_CHECKSUM:TCP_CHECKSUM + 2], "big")
    # options may begin anywhere: at an odd place the two bytes are halves of two words
    old, new = (_swapped(offered), _swapped(limit)) if at % 2 else (offered, limit)
    new_sum = update(old_sum, difference16(old, new))
    header[at:at + 2] = limit.to_bytes(2, "big")
    header[TCP_CHECKSUM:TCP_CHECKSUM + 2] = new_sum.to_bytes(2, "big")
    packet[ip.header_len:ip.header_len + len(header)] = header
    return True


def replace_word(packet: bytearray, ip: Ipv4Fields, at: int, new: int) -> None:
    """Write two bytes of a segment's data, at an offset from the start of the IP header, and update the checksum."""
    old = int.from_bytes(packet[at:at + 2], "big")
    if new == old:
        return                      # one's complement has two zeros: without a change the checksum stays
    packet[at:at + 2] = new.to_bytes(2, "big")
    change = difference16(_swapped(old), _swapped(new)) if (at - ip.header_len) % 2 else difference16(old, new)
    sum_at = ip.header_len + TCP_CHECKSUM
    new_sum = update(int.from_bytes(packet[sum_at:sum_at + 2], "big"), change)
    packet[sum_at:sum_at + 2] = new_sum.to_bytes(2, "big")


def _swapped(word: int) -> int:
    return (word & 0xFF) << 8 | word >> 8


def _find_option(options: Buffer, kind: int, length: int) -> int | None:
    """Return where an option of this kind and length is; what is malformed ends the list."""
    at = 0
    while at < len(options) and options[at] != END_OF_OPTIONS:
        if options[at] == NO_OPERATION:
            at += 1
            continue
        size = options[at + 1] if at + 1 < len(options) else 0
        if size < 2 or at + size > len(options):
            break
        if options[at] == kind and size == length:
            return at
        at += size
    return None
