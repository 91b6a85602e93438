"""The fast path in Python: the specification of `_fastpath.pyx`, written to be read.

It owns the flow table and does four things to a packet of a known flow: find the flow by tuple,
move the TCP state, rewrite one endpoint in place, note that the flow is alive.  It decides nothing:
what is not in the table is a MISS, and the engine asks the rules.

Both twins have the same names, take the same arguments and leave the same table behind;
tests/differential drives them side by side.  `help(natengine._fastpath)` says the same as this.

Timer wheel: each flow is filed under the second in which it may end.  A packet moves the flow's
deadline and leaves it where it is filed; only when that second comes round is the flow looked at,
and filed again if it has lived on.  So a packet costs nothing and `expire` costs what expires.

Wrong arguments: a TypeError for what is not an integer, an OverflowError for an integer that its
field cannot hold, before anything is changed.  Times are 0..2**63-1, and fields as wide as on the wire.

Limits: a dict is not hashed under the secret key; only the compiled table withstands somebody who
chooses addresses and ports so that they collide.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import final

from natengine.errors import BadPacket, CorruptTable, Truncated
from natengine.flow.entry import Entry
from natengine.flow.fields import BIT, INT, INT64, TIME_NS, U8, U16, U32, fit, fit_all
from natengine.flow.image import FlowImage, Memory
from natengine.flow.records import Allow, FlowInfo, FlowKey, FlowSpec, Path, flow_key, without_call
from natengine.flow.table_config import TableConfig
from natengine.flow.tcp_state import REFUSED, SEGMENTS, STATES, TcpState
from natengine.flow.tcp_window import Judgement, judge, note, unhear
from natengine.vocab import Hook, Proto
from natengine.wire.complete import complete_checksum
from natengine.wire.ipv4 import (
    ICMP_COUNTERPART,
    Ipv4Fields,
    Transport,
    parse_ipv4_untrusted,
    parse_packet_untrusted,
    parse_transport_untrusted,
)
from natengine.wire.rewrite import rewrite_destination, rewrite_source
from natengine.wire.tcp import RST, SYN, TcpSegment, clamp_mss, read_segment

__all__ = ["BACKEND", "FULL", "NOT_FOUND", "SLOTS", "TAKEN", "TICK_NS", "FastPath", "TableConfig", "complete_checksum"]

BACKEND = "python"

FULL, TAKEN = -1, -2                # what `install` returns instead of a flow id
NOT_FOUND = -1                      # what `find` and `oldest_unreplied` return instead of one

TICK_NS = 1_000_000_000
SLOTS = 8192                        # more than the longest usual timeout, 7440 s, has seconds

_KEY_FIELDS = (INT, U8, U32, U16, U32, U16)
_SPEC_FIELDS = (U8, U32, U16, U32, U16, U32, U16, BIT, U32, U32, U8)


def _has_moved(spec: FlowSpec, hook: int, out_ifindex: int) -> bool:
    """Whether the opener's packet leaves over another interface than the one it began on."""
    return hook == Hook.POSTROUTING and spec.from_inside and out_ifindex not in (0, spec.uplink_ifindex)


@final
class FastPath:
    """A flow table of fixed capacity and the packet path over it."""

    def __init__(self, config: TableConfig, memory: Memory | None = None, now_ns: int = 0) -> None:
        """Make a table: an empty one, or of the flows in `memory` (`flow.image`), each of them STALE.

        Args:
            memory: A writable buffer of 128 bytes a flow, which holds the records from now on; None for none.
            now_ns: When the table is made; times never go back behind it.

        Raises:
            ValueError: What `TableConfig.check` says, or `memory` has another size.
            CorruptTable: `memory` has what no engine writes.  Nothing that matters has been changed in it.
        """
        config.check()
        self._config = config
        self._flows: dict[int, Entry] = {}
        self._by_key: dict[FlowKey, Entry] = {}
        self._free: list[int] = []                          # ids of removed flows, last one first
        self._unreplied: OrderedDict[int, None] = OrderedDict()     # least recently used first
        self._wheel: list[dict[int, None]] = [{} for _ in range(SLOTS)]
        self._tick = fit(now_ns, TIME_NS) // TICK_NS      # the next second `expire` looks at
        self._generation = 0
        self._mss_limits: dict[int, int] = {}               # by uplink
        self._image = None if memory is None else FlowImage(memory, config.capacity)
        if self._image is not None:
            self._take_over(self._image)

    def _take_over(self, image: FlowImage) -> None:
        """Make a table of the flows whose records are there already."""
        found = [Entry.of(info) for info in image.flows()]
        self._generation = 1                                # whatever FORWARD said: it is asked again
        for flow in found:
            if self._is_taken(flow.spec):
                raise CorruptTable(f"record {flow.flow_id} has the tuple of another flow")
            self._enter(flow)
        free = set(range(found[-1].flow_id)) - set(self._flows) if found else ()
        self._free = sorted(free, reverse=True)             # the lowest id is given out first
        for slot in range(SLOTS):                           # the nearest deadline stands for the longest idle
            for flow_id in self._wheel[(self._tick + slot) % SLOTS]:
                if not self._flows[flow_id].seen_reply:
                    self._unreplied[flow_id] = None

    # ── packets ──────────────────────────────────────────────────────────────────────────────────

    def read(self, packet: bytearray) -> tuple[Ipv4Fields, Transport]:
        """Return the headers of a packet that `translate` has left to others.

        Raises:
            BadPacket, Truncated: As `wire.ipv4.parse_packet_untrusted`.
        """
        if not isinstance(packet, bytearray):
            raise TypeError(f"a packet is a bytearray, not {type(packet).__name__}")
        return parse_packet_untrusted(packet)

    def translate(self, packet: bytearray, hook: int, now_ns: int, out_ifindex: int = 0) -> int:
        """Rewrite `packet` in place if its flow is known, and return a `Path`.

        Where `out_ifindex` is another interface than the one over which the flow's inside began it, its
        route has moved: STALE.  0 is no interface: before routing.

        On any result but TRANSLATED the packet is as it was; on MISS, SPECIAL, STALE and the drops
        so is the table.  Reads nothing behind `len(packet)`, whatever the packet says.
        """
        if not isinstance(packet, bytearray):
            raise TypeError(f"a packet is a bytearray, not {type(packet).__name__}")
        hook, now_ns, out_ifindex = fit(hook, INT), fit(now_ns, TIME_NS), fit(out_ifindex, U32)
        try:
            ip = parse_ipv4_untrusted(packet)
            if ip.is_fragment:
                return Path.SPECIAL
            transport = parse_transport_untrusted(packet, ip)
        except Truncated:
            return Path.TRUNCATED
        except BadPacket:
            return Path.BAD_HEADER
        if ip.proto == Proto.ICMP and transport.icmp_type not in ICMP_COUNTERPART:
            return Path.SPECIAL
        flow = self._flow_of(
            flow_key(
                hook, ip.proto, ip.src, transport.src_port_or_icmp_id, ip.dst, transport.dst_port_or_icmp_id,
                transport.icmp_type,
            )
        )
        if flow is None:
            return Path.MISS
        if flow.generation != self._generation or _has_moved(flow.spec, hook, out_ifindex):
            return Path.STALE
        return self._translate_known(packet, ip, transport, flow, hook, now_ns)

    def _translate_known(
        self, packet: bytearray, ip: Ipv4Fields, transport: Transport, flow: Entry, hook: int, now_ns: int
    ) -> int:
        spec = flow.spec
        is_reply = (hook == Hook.POSTROUTING) != spec.from_inside
        needed = Allow.REPLY if is_reply else Allow.ORIGINAL if flow.seen_reply else Allow.NEW
        if not flow.allow & needed:
            return Path.STALE if flow.allow & Allow.ASK else Path.REFUSED_FORWARD
        changed = False
        if ip.proto == Proto.TCP:
            segment = read_segment(packet, ip)
            refusal = self._follow(flow, is_reply, segment)
            if refusal:
                return refusal
            if segment.flags & SYN and spec.uplink_ifindex in self._mss_limits:
                changed = clamp_mss(packet, ip, self._mss_limits[spec.uplink_ifindex])
        self._note(flow, is_reply, ip.total_len, now_ns)
        if spec.inside_ip == spec.outside_ip and spec.inside_port == spec.outside_port:
            return Path.TRANSLATED if changed else Path.UNCHANGED
        if hook == Hook.POSTROUTING:
            rewrite_source(packet, ip, spec.outside_ip, spec.outside_port)
        else:
            rewrite_destination(packet, ip, spec.inside_ip, spec.inside_port)
        return Path.TRANSLATED

    def _follow(self, flow: Entry, is_reply: bool, segment: TcpSegment) -> int:
        """Move the TCP state and the sequence numbers on; 0, or the Path of a segment to refuse."""
        before = flow.tcp_state
        kind = self._config.segment_of_flags[segment.flags]
        after = self._config.transitions[(is_reply * SEGMENTS + kind) * STATES + before]
        if after == REFUSED:
            return Path.REFUSED_STATE
        judgement = judge(flow.sides, is_reply, segment, before, after)
        if judgement == Judgement.OUTSIDE and (segment.flags & RST or not self._config.tcp_liberal):
            return Path.REFUSED_WINDOW
        if judgement != Judgement.ASIDE:
            flow.tcp_state = after
            flow.sides = note(flow.sides, is_reply, segment, before, after)
        return 0

    def touch(self, flow_id: int, hook: int, length: int, now_ns: int) -> None:
        """Count a packet of `length` bytes that was rewritten elsewhere (a fragment).

        Its sequence numbers were not read, so those of its sender are taken anew from the next segment.

        Raises:
            KeyError: No such flow.
        """
        flow_id, hook, length = fit(flow_id, INT64), fit(hook, INT), fit(length, U32)
        now_ns = fit(now_ns, TIME_NS)
        flow = self._flows[flow_id]
        is_reply = (hook == Hook.POSTROUTING) != flow.spec.from_inside
        flow.sides = unhear(flow.sides, is_reply)
        self._note(flow, is_reply, length, now_ns)

    def _note(self, flow: Entry, is_reply: bool, length: int, now_ns: int) -> None:
        """Count the packet and give the flow its next deadline."""
        if is_reply:
            flow.reply_packets += 1
            flow.reply_bytes += length
            flow.seen_reply = True
            self._unreplied.pop(flow.flow_id, None)
        else:
            flow.original_packets += 1
            flow.original_bytes += length
            if not flow.seen_reply:
                self._unreplied.move_to_end(flow.flow_id)   # now the most recently used
        if flow.spec.proto == Proto.TCP:
            flow.assured = flow.assured or flow.tcp_state == TcpState.ESTABLISHED
        elif flow.spec.proto != Proto.ICMP:
            flow.assured = flow.assured or (flow.seen_reply and not is_reply)
        flow.deadline_ns = flow.next_deadline(self._config, is_reply, now_ns)
        if flow.deadline_ns // TICK_NS + 1 < self._filed_tick(flow):    # a shorter timeout than before
            self._wheel[flow.filed_slot].pop(flow.flow_id)
            self._file(flow)
        self._write(flow)

    def _write(self, flow: Entry) -> None:
        if self._image is not None:
            self._image.update(flow.info(), flow.generation)

    # ── flows ────────────────────────────────────────────────────────────────────────────────────

    def install(self, spec: FlowSpec, now_ns: int) -> int:
        """Add a flow and return its id (0..capacity-1), or FULL, or TAKEN if one of its tuples is in use.

        A TCP flow starts in state NONE; the packet that created it moves it on through `translate`.
        """
        spec = FlowSpec._make(fit_all(spec, _SPEC_FIELDS))
        spec = spec._replace(from_inside=bool(spec.from_inside))
        now_ns = fit(now_ns, TIME_NS)
        if self._is_taken(spec):
            return TAKEN
        if len(self._flows) >= self._config.capacity:
            return FULL
        flow = Entry(self._free.pop() if self._free else len(self._flows), spec, self._generation, now_ns)
        self._enter(flow)
        self._unreplied[flow.flow_id] = None
        if self._image is not None:
            self._image.begin(flow.info(), flow.generation)
        return flow.flow_id

    def _is_taken(self, spec: FlowSpec) -> bool:
        return spec.leaving in self._by_key or spec.arriving in self._by_key

    def _enter(self, flow: Entry) -> None:
        self._flows[flow.flow_id] = flow
        self._by_key[flow.spec.leaving] = self._by_key[flow.spec.arriving] = flow
        self._file(flow)

    def remove(self, flow_id: int) -> FlowInfo | None:
        """Take a flow out and return what it was; None if there is no such flow."""
        flow_id = fit(flow_id, INT64)
        flow = self._flows.pop(flow_id, None)
        if flow is None:
            return None
        del self._by_key[flow.spec.leaving], self._by_key[flow.spec.arriving]
        self._unreplied.pop(flow_id, None)
        self._wheel[flow.filed_slot].pop(flow_id, None)
        self._free.append(flow_id)
        if self._image is not None:
            self._image.end(flow_id)
        return flow.info()

    def find(self, key: FlowKey) -> int:
        """Return the id of the flow that has this tuple, or NOT_FOUND.

        A PPTP packet whose call is not known belongs to the flow of all GRE of its two hosts.
        """
        flow = self._flow_of(FlowKey._make(fit_all(key, _KEY_FIELDS)))
        return NOT_FOUND if flow is None else flow.flow_id

    def _flow_of(self, key: FlowKey) -> Entry | None:
        flow = self._by_key.get(key)
        if flow is None and (plain := without_call(key)) is not None:
            flow = self._by_key.get(plain)
        return flow

    def info(self, flow_id: int) -> FlowInfo | None:
        """Return a copy of a flow, or None."""
        flow = self._flows.get(fit(flow_id, INT64))
        return None if flow is None else flow.info()

    def oldest_unreplied(self) -> int:
        """Return the flow without a reply that has been idle longest, or NOT_FOUND: the one to evict."""
        return next(iter(self._unreplied), NOT_FOUND)

    def find_on(self, outside_ip: int, first_id: int, looks: int) -> tuple[list[int], int]:
        """Return the ids of flows with this outside address, and the id to go on with, NOT_FOUND at the end.

        Looks at no more than `looks` ids, from `first_id` on.
        """
        outside_ip, first_id, looks = fit(outside_ip, U32), fit(first_id, U32), fit(looks, U32)
        used = len(self._flows) + len(self._free)           # ids below were in use at some time
        end = min(first_id + looks, used)
        found = [
            flow_id for flow_id in range(first_id, end)
            if flow_id in self._flows and self._flows[flow_id].spec.outside_ip == outside_ip
        ]
        return found, NOT_FOUND if end == used else end

    def snapshot(self) -> list[FlowInfo]:
        """Return a copy of every flow, in the order of their ids."""
        return [self._flows[flow_id].info() for flow_id in sorted(self._flows)]

    def __len__(self) -> int:
        return len(self._flows)

    # ── rule changes ─────────────────────────────────────────────────────────────────────────────

    def invalidate(self) -> None:
        """Make every flow STALE until it is approved again: the FORWARD rules have changed.  O(1)."""
        self._generation += 1

    def approve(self, flow_id: int, allow: int, uplink_ifindex: int) -> None:
        """Set what the FORWARD chain, as it stands now, allows a flow (bits of `Allow`) on this uplink.

        Raises:
            KeyError: No such flow.
        """
        flow_id, allow, uplink_ifindex = fit(flow_id, INT64), fit(allow, U8), fit(uplink_ifindex, U32)
        flow = self._flows[flow_id]
        flow.allow = allow
        flow.spec = flow.spec._replace(uplink_ifindex=uplink_ifindex)
        flow.generation = self._generation
        self._write(flow)

    def doubt(self, flow_id: int) -> None:
        """Make one flow STALE until it is approved again, so that Python sees its next packet.

        Raises:
            KeyError: No such flow.
        """
        flow = self._flows[fit(flow_id, INT64)]
        flow.generation = self._generation - 1
        self._write(flow)

    def clamp(self, mss_limits: dict[int, int]) -> None:
        """Set by the uplink's ifindex how large segments a SYN, either way, may offer to take; none: no limit."""
        limits = {fit(uplink, U32): fit(limit, U16) for uplink, limit in mss_limits.items()}
        self._mss_limits = limits

    # ── time ─────────────────────────────────────────────────────────────────────────────────────

    def _file(self, flow: Entry) -> None:
        """File a flow under the second after its deadline, or under the last one of the wheel."""
        filed_tick = max(self._tick, min(flow.deadline_ns // TICK_NS + 1, self._tick + SLOTS - 1))
        flow.filed_slot = filed_tick % SLOTS
        self._wheel[flow.filed_slot][flow.flow_id] = None

    def _filed_tick(self, flow: Entry) -> int:
        """The second under which a flow is filed: the next one that has its slot."""
        return self._tick + (flow.filed_slot - self._tick) % SLOTS

    def expire(self, now_ns: int, budget: int) -> list[FlowInfo]:
        """Remove flows whose deadline has passed and return what they were.

        A flow ends at most one second after its deadline, provided this is called as often.
        At most `budget` flows are looked at; the next call goes on from there.
        """
        now_ns, budget = fit(now_ns, TIME_NS), fit(budget, INT64)
        now_tick = now_ns // TICK_NS
        self._tick = max(self._tick, now_tick - SLOTS + 1)      # one whole turn meets every flow
        ended: list[FlowInfo] = []
        while self._tick <= now_tick:
            slot = self._wheel[self._tick % SLOTS]
            for flow_id in list(islice(slot, max(budget, 0))):
                budget -= 1
                flow = self._flows[flow_id]
                if flow.deadline_ns <= now_ns:
                    ended.append(flow.info())
                    self.remove(flow_id)
                else:                                       # never into this slot again: it lives on
                    del slot[flow_id]
                    self._file(flow)
            if slot:
                return ended                                # the budget is used up
            self._tick += 1
        return ended
