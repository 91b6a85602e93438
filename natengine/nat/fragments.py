"""A datagram in pieces: which one it is, which bytes of it have been seen, and what is the matter with a fragment.

Only the first fragment has ports.  What becomes of it is remembered under the datagram's identity (RFC 791: source,
destination, protocol, identification) and done to the rest, until every byte has gone by or 30 seconds have.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from typing import NamedTuple

from natengine.flow.records import FlowKey
from natengine.nat.packet import NewPacket
from natengine.vocab import Proto, Reason, Rng
from natengine.wire.ipv4 import MIN_TRANSPORT, Buffer, Ipv4Fields

MAX_DATAGRAM = 65535                # RFC 791: header and all fragments together
_TCP_DATA_OFFSET = 12               # in the TCP header
MAX_COUNTERS = 4096                 # of identifications; a pair of hosts without one begins anew, at random
MAX_RUNS = 64                       # of bytes without a hole between them; a sender in disorder makes a few


def fault_of(packet: Buffer, ip: Ipv4Fields) -> Reason | None:
    """Return what is wrong with a fragment that no honest sender makes, or None.

    BAD_HEADER: it is empty, ends behind the largest datagram (the "ping of death"), or not at a multiple of 8 though
    more follow (RFC 791).  FRAGMENT_TINY: it ends or begins inside the transport header, which would be put together,
    or rewritten, behind our back (RFC 1858, RFC 3128).
    """
    length = ip.total_len - ip.header_len
    if (
        length == 0
        or ip.header_len + ip.fragment_offset + length > MAX_DATAGRAM
        or (ip.more_fragments and length % 8 > 0)
    ):
        return Reason.BAD_HEADER
    least = MIN_TRANSPORT.get(ip.proto, 0)      # type: ignore[call-overload]
    if 0 < ip.fragment_offset < least or (ip.fragment_offset == 0 and length < least):
        return Reason.FRAGMENT_TINY
    if ip.proto == Proto.TCP and ip.fragment_offset == 0:
        options_end = (packet[ip.header_len + _TCP_DATA_OFFSET] >> 4) * 4
        return Reason.FRAGMENT_TINY if length < options_end else None
    return None


class DatagramKey(NamedTuple):
    """A datagram in pieces, as it looks at one hook."""

    hook: int
    src: int
    dst: int
    proto: int
    identification: int

    @classmethod
    def of(cls, hook: int, ip: Ipv4Fields) -> DatagramKey:
        """Return the key of a fragment with this header, taken at `hook`."""
        return cls(hook, ip.src, ip.dst, ip.proto, ip.identification)


class Seen(enum.IntEnum):
    """What a fragment brings to a datagram."""

    NEW = 1                 # bytes that none has brought before
    DUPLICATE = 2           # nothing: all of it was there
    OVERLAP = 3             # some that are new and some that are not, or another end than the datagram's
    SCATTERED = 4           # one run of bytes more than are kept apart


class Extent:
    """Which bytes of a datagram have gone by."""

    __slots__ = ("_end", "_runs")

    def __init__(self) -> None:
        self._runs: list[tuple[int, int]] = []      # first and one past the last byte; no two touch
        self._end: int | None = None                # of the datagram, once its last fragment was seen

    def note(self, first: int, end: int, *, more: bool) -> Seen:
        """Add the bytes of a fragment, `first` up to but not including `end`, if they are new."""
        if self._contradicts(end, more):
            return Seen.OVERLAP
        touching = [run for run in self._runs if run[0] <= end and first <= run[1]]
        for run in touching:
            if run[0] < end and first < run[1]:
                return Seen.DUPLICATE if run[0] <= first and end <= run[1] else Seen.OVERLAP
        if not touching and len(self._runs) == MAX_RUNS:
            return Seen.SCATTERED
        if not more:
            self._end = end
        self._runs = [run for run in self._runs if run not in touching]
        joined = [(first, end), *touching]
        self._runs.append((min(joined)[0], max(run[1] for run in joined)))
        return Seen.NEW

    def _contradicts(self, end: int, more: bool) -> bool:
        """Whether a fragment that ends here does not agree with the others about where the datagram ends."""
        if self._end is None:
            return not more and any(run[1] > end for run in self._runs)
        return end > self._end or more == (end == self._end)

    @property
    def is_whole(self) -> bool:
        """Whether every byte has gone by."""
        return self._runs == [(0, self._end)]


class Train(NamedTuple):
    """The flow that a first fragment was part of, for the later ones."""

    flow_id: int
    arriving: FlowKey           # tells whether the id still means the same flow
    identification: int         # that the datagram leaves with
    rules: object               # the `Policy` that let the first one pass; while it is in force nobody is asked again


class Untouched(NamedTuple):
    """Why a first fragment passed as it was, and the way that it took; by another way that may be a leak."""

    reason: Reason
    in_ifindex: int
    out_ifindex: int


class HeldFragment(NamedTuple):
    """A later fragment that has come before the first one, and waits in the kernel for its verdict."""

    ticket: int
    packet: bytearray
    new: NewPacket


class Datagram:
    """What is known of a datagram in pieces."""

    __slots__ = ("deadline_ns", "extent", "held", "key", "outcome")

    def __init__(self, key: DatagramKey, deadline_ns: int) -> None:
        self.key, self.deadline_ns = key, deadline_ns
        self.extent: Extent | None = Extent()               # None: it was ended, and nothing of it passes any more
        self.outcome: Train | Untouched | Reason | None = None      # of its first fragment; None: that is yet to come
        self.held: list[HeldFragment] = []                  # in order of arrival; none once there is an outcome

    @property
    def is_whole(self) -> bool:
        """Whether every byte of it has gone by."""
        return self.extent is not None and self.extent.is_whole


class Identifications:
    """What datagrams in pieces leave with: unique for a pair of hosts and a protocol, as long as can be (RFC 6864 4.3).

    Several hosts look like one outside; with the identifications that they chose themselves, the fragments of one would
    be put together with those of another.  Ours begin at random and count up.
    """

    def __init__(self, rng: Rng) -> None:
        self._rng = rng
        self._next: OrderedDict[tuple[int, int, int], int] = OrderedDict()      # the one used last at the end

    def take(self, src: int, dst: int, proto: int) -> int:
        """Return the identification of the next datagram from `src` to `dst`."""
        pair = src, dst, proto
        taken = self._next.pop(pair, None)
        if taken is None:
            taken = self._rng.randrange(0, 0x10000)
        self._next[pair] = (taken + 1) & 0xFFFF
        if len(self._next) > MAX_COUNTERS:
            self._next.popitem(last=False)
        return taken
