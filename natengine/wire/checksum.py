"""The Internet checksum: computed (RFC 1071) and updated (RFC 1624).

NAT updates and never recomputes what a sender computed: a packet that was damaged on its way in
stays damaged on its way out, and the receiver can see it.  Only packets that the engine itself
builds get a checksum computed from nothing.

All values are host-order integers, 0..0xFFFF.
"""

from __future__ import annotations

import struct


def _fold(total: int) -> int:
    """Add the carries back in until 16 bits are left (one's complement addition)."""
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(data: bytes | bytearray | memoryview, initial: int = 0) -> int:
    """Return the Internet checksum of `data`, as it stands in a header.

    Args:
        data: Any number of bytes; an odd last one counts as if a zero byte followed.
        initial: A sum to start from, such as `pseudo_header_sum`; not complemented.

    Source: RFC 1071.  Zero means "valid" when `data` includes the checksum field itself.
    """
    padded = bytes(data) + b"\0" * (len(data) % 2)
    return ~_fold(initial + sum(struct.unpack(f"!{len(padded) // 2}H", padded))) & 0xFFFF


def pseudo_header_sum(src: int, dst: int, proto: int, length: int) -> int:
    """Return the sum (not complemented) over the pseudo-header of TCP and UDP (RFC 9293 3.1, RFC 768)."""
    return _fold((src >> 16) + (src & 0xFFFF) + (dst >> 16) + (dst & 0xFFFF) + proto + length)


def difference16(old: int, new: int) -> int:
    """Return what changes in a sum when one of its words does: the `~m + m'` of RFC 1624.

    The result is what `update` takes; differences add up, folded or not.  One's complement has two
    zeros, so nothing is added here for a word that is not there: 0xFFFF would turn one into the other.
    """
    return (~old & 0xFFFF) + new


def difference32(old: int, new: int) -> int:
    """Return the same for two words, such as an address."""
    return difference16(old >> 16, new >> 16) + difference16(old & 0xFFFF, new & 0xFFFF)


def update(value: int, change: int) -> int:
    """Return the header checksum `value` after a `change` from `difference16` and `difference32`.

    Source: RFC 1624, equation 3: HC' = ~(~HC + ~m + m').  RFC 1141's form fails for a zero result.
    A UDP caller must leave 0 ("no checksum") alone and map a result of 0 to 0xFFFF (RFC 768).
    """
    return ~_fold((~value & 0xFFFF) + change) & 0xFFFF
