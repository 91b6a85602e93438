"""Reading what window tracking needs of a TCP header (RFC 9293 3.1, RFC 7323 2.2)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from natengine.wire.ipv4 import Buffer, Ipv4Fields

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32

NO_SCALE = 15                       # no window scale option; as a shift RFC 7323 allows 14 at most
MAX_SCALE = 14
END_OF_OPTIONS, NO_OPERATION, WINDOW_SCALE = 0, 1, 3

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
    scale = _offered_scale(packet[start + 20:start + header_len]) if flags & SYN else NO_SCALE
    return TcpSegment(seq, (seq + length) & 0xFFFF_FFFF, ack, flags, window, scale)


def _offered_scale(options: Buffer) -> int:
    """Return the shift of the window scale option; what is malformed ends the list."""
    at = 0
    while at < len(options) and options[at] != END_OF_OPTIONS:
        if options[at] == NO_OPERATION:
            at += 1
            continue
        size = options[at + 1] if at + 1 < len(options) else 0
        if size < 2 or at + size > len(options):
            break
        if options[at] == WINDOW_SCALE and size == 3:
            return min(options[at + 2], MAX_SCALE)      # RFC 7323 2.3: more counts as 14
        at += size
    return NO_SCALE
