"""The records of a flow table as bytes in memory that outlives the engine, and the order in which they are written.

    offset  size
      0      20   addresses, ports, protocol, who began it         ┐ identity: written once, before the flow is there
    100       8   inside interface, and the seal over all of this  ┘
     20       1   in use        1: there is a flow                   the last store of a new flow, the first of its end
     21       1   moving        1: TCP state and numbers change together just now
     22      78   what packets and rules change: state, deadline, sequence numbers, counters, uplink
    108      20   nobody's business: lists that are made anew

An engine may be killed between any two stores.  Whoever takes the records over then finds:

 1. of a flow that was about to begin or has ended, nothing: `in use` is not set;
 2. of any other flow its identity, and each other field as it was before the packet or after it.
    That packet never got its verdict, so it is lost, and sent again; whether it was lost on the way
    in or on the way out nobody can tell;
 3. where `moving` is set the sequence numbers may be of two minds: they are taken anew from the
    next segments, as after a fragment.

Numbers are in the machine's byte order: the memory never leaves it.  `_flow_record.pxd` is this in C.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Protocol

from natengine.errors import CorruptTable
from natengine.flow.records import FlowInfo, FlowSpec
from natengine.flow.tcp_state import STATES
from natengine.flow.tcp_window import LARGEST_WINDOW, UNHEARD_SIDES, Side, unhear
from natengine.vocab import Proto
from natengine.wire.tcp import NO_SCALE

LAYOUT = 1                          # to be counted up when the meaning of a byte changes
RECORD_BYTES = 128
VOLATILE_AT = 108                   # from here on nothing is read by whoever takes the records over
UNCOUNTED = 1 << 63                 # packets or bytes that no flow comes to

_IDENTITY = Struct("=IIIHHHBB")     # inside, outside, peer address; their ports; protocol; from inside
_IN_USE, _MOVING, _CHANGING_AT, _SEALED_AT = 20, 21, 22, 100
_CHANGING = Struct("=BBBB2BIQ6I4QI")
_SEALED = Struct("=II")
_WORDS = Struct("=5I")


class Memory(Protocol):
    """What records are kept in: an mmap, a memoryview, a bytearray."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> bytes | bytearray | memoryview: ...
    def __setitem__(self, part: slice, value: bytes, /) -> None: ...


def seal_of(identity: bytes, inside_ifindex: int) -> int:
    """Return 32 bits over what makes a flow this one: they show damage, not intent (FNV-1a, word by word)."""
    seal = 2166136261
    for word in (*_WORDS.unpack(identity), inside_ifindex):
        seal = (seal ^ word) * 16777619 & 0xFFFF_FFFF
    return seal


class FlowImage:
    """Writes flows into memory, one store after the other."""

    def __init__(self, memory: Memory, capacity: int) -> None:
        """Take memory for `capacity` records.

        Raises:
            ValueError: It has another size.
        """
        if len(memory) != capacity * RECORD_BYTES:
            raise ValueError(f"the memory has {len(memory)} bytes, or does not begin at a cache line")
        self._memory = memory
        self._capacity = capacity

    def _put(self, flow_id: int, offset: int, value: bytes) -> None:
        at = flow_id * RECORD_BYTES + offset
        self._memory[at:at + len(value)] = value

    def begin(self, info: FlowInfo, generation: int) -> None:
        """Write a new flow."""
        spec, flow_id = info.spec, info.flow_id
        identity = _IDENTITY.pack(
            spec.inside_ip, spec.outside_ip, spec.peer_ip, spec.inside_port, spec.outside_port, spec.peer_port,
            spec.proto, spec.from_inside,
        )
        seal = seal_of(identity, spec.inside_ifindex)
        self._put(flow_id, 0, identity)
        self._put(flow_id, _SEALED_AT, _SEALED.pack(spec.inside_ifindex, seal))
        self._put(flow_id, _CHANGING_AT, _changing(info, generation))
        self._put(flow_id, _IN_USE, b"\1")

    def update(self, info: FlowInfo, generation: int) -> None:
        """Write what a packet, or a rule, has changed."""
        self._put(info.flow_id, _MOVING, b"\1")
        self._put(info.flow_id, _CHANGING_AT, _changing(info, generation))
        self._put(info.flow_id, _MOVING, b"\0")

    def end(self, flow_id: int) -> None:
        """Write that there is no flow any more."""
        self._put(flow_id, _IN_USE, b"\0")

    def flows(self) -> Iterator[FlowInfo]:
        """Read every flow, and settle what was `moving`.

        Raises:
            CorruptTable: A record is none that an engine writes.
        """
        for flow_id in range(self._capacity):
            record = bytes(self._memory[flow_id * RECORD_BYTES:(flow_id + 1) * RECORD_BYTES])
            if not record[_IN_USE]:
                continue
            info = _read(flow_id, record)
            if record[_MOVING]:
                info = info._replace(sides=unhear(unhear(info.sides, False), True))
            self.update(info, 0)
            yield info


def _changing(info: FlowInfo, generation: int) -> bytes:
    opener, other = info.sides
    return _CHANGING.pack(
        info.spec.allow, info.tcp_state, info.seen_reply, info.assured, opener.scale, other.scale,
        generation & 0xFFFF_FFFF, info.deadline_ns, *opener[:3], *other[:3],
        info.original_packets, info.reply_packets, info.original_bytes, info.reply_bytes, info.spec.uplink_ifindex,
    )


def _read(flow_id: int, record: bytes) -> FlowInfo:
    inside_ip, outside_ip, peer_ip, inside_port, outside_port, peer_port, proto, from_inside = (
        _IDENTITY.unpack_from(record)
    )
    inside_ifindex, seal = _SEALED.unpack_from(record, _SEALED_AT)
    (
        allow, tcp_state, seen_reply, assured, scale, other_scale, _generation, deadline_ns,
        end, acked, max_win, other_end, other_acked, other_max_win,
        original_packets, reply_packets, original_bytes, reply_bytes, uplink_ifindex,
    ) = _CHANGING.unpack_from(record, _CHANGING_AT)
    if (
        record[_IN_USE] != 1 or record[_MOVING] > 1
        or seal != seal_of(record[:_IN_USE], inside_ifindex) or from_inside > 1
        or tcp_state >= STATES or seen_reply > 1 or assured > 1 or max(scale, other_scale) > NO_SCALE
        or max(original_packets, reply_packets, original_bytes, reply_bytes) >= UNCOUNTED
        or max(max_win, other_max_win) > LARGEST_WINDOW
    ):
        raise CorruptTable(f"record {flow_id} is none that an engine writes")
    sides = UNHEARD_SIDES
    if proto == Proto.TCP:
        sides = Side(end, acked, max_win, scale), Side(other_end, other_acked, other_max_win, other_scale)
    spec = FlowSpec(
        proto, inside_ip, inside_port, outside_ip, outside_port, peer_ip, peer_port, bool(from_inside),
        inside_ifindex, uplink_ifindex, allow,
    )
    return FlowInfo(
        flow_id, spec, tcp_state, bool(seen_reply), bool(assured), deadline_ns, sides,
        original_packets, original_bytes, reply_packets, reply_bytes,
    )
