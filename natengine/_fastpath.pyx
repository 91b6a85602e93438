# cython: language_level=3, binding=True, annotation_typing=False, auto_pickle=False
# cython: cdivision=True
"""The fast path compiled: `_fastpath_py` once more, on C records.

`_fastpath_py` is the specification; the names, results, errors and the table afterwards are the
same.  What differs is where things are:

    index    Entry Entry Entry ...     by the hash of a tuple (`_flow_index.pxd`).
               │ hash tag, flow id     Two entries a flow: its leaving and its arriving tuple.
               v                       A probe reads 8 bytes; the record only when the tag agrees.
    flows    Flow  Flow  Flow  ...     128 bytes each, allocated once, touched when first used; or in
               ^                       memory that outlives us (`flow/image.py`)
               │ ids                   doubly linked through the records
    wheel    Queue Queue ... (seconds, `_flow_deadline.pxd`)          unreplied    Queue

No policy is written here: the TCP table, timeouts and permissions come in as data.
Limits: one thread; `prepare` and `finish` trust their caller about `length` and the sign of `now_ns`.
"""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_Check, PyByteArray_GET_SIZE
from libc.stdint cimport (
    INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, UINT8_MAX, UINT16_MAX, UINT32_MAX,
    int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t,
)
from libc.stdlib cimport free

from natengine._flow_deadline cimport (
    BY_DEADLINE, BY_USE, NS_PER_TICK, WHEEL_SLOTS, begin_wheel, file_flow, first_due, is_filed_too_late, next_deadline,
    turn_wheel, unfile_flow,
)
from natengine._flow_index cimport (
    Entry, enter, expect, expect_flow, flow_of, flow_with, forget, hash_of, new_memory,
)
from natengine._flow_record cimport (
    CACHE_LINE, NOBODY, TCP_STATES, Flow, Queue, append, fit, is_sound, keep_order, key_of, read_spec, unlink,
)
from natengine._tcp_window cimport (
    ASIDE, FLAG_RST, FLAG_SYN, OUTSIDE, Segment, Side, clamp_mss, judge, note_segment, read_segment,
)
from natengine._wire cimport (
    HOOK_POSTROUTING, HOOK_PREROUTING, IS_ICMP, IS_TCP, PATH_MISS, PATH_REFUSED_FORWARD,
    PATH_REFUSED_STATE, PATH_REFUSED_WINDOW, PATH_STALE, PATH_TRANSLATED, PATH_UNCHANGED, Headers, Key,
    complete_transport_checksum, load16, parse_untrusted, rewrite,
)

from natengine._fastpath_py import FULL, NOT_FOUND, SLOTS, TAKEN, TICK_NS
from natengine.errors import CorruptTable
from natengine.flow.records import FlowInfo, FlowKey, FlowSpec
from natengine.flow.table_config import TableConfig
from natengine.flow.tcp_state import SEGMENTS, STATES
from natengine.flow.tcp_window import UNHEARD_SIDES
from natengine.flow.tcp_window import Side as SideInfo
from natengine.wire.ipv4 import Ipv4Fields, Transport, parse_packet_untrusted

__all__ = ["BACKEND", "FULL", "NOT_FOUND", "SLOTS", "TAKEN", "TICK_NS", "FastPath", "TableConfig", "complete_checksum"]

BACKEND = "cython"

cdef object new_tuple = tuple.__new__       # spares a named tuple the detour through Python

cdef enum:
    ESTABLISHED = 3                 # `TcpState`
    REFUSED = 255

    ALLOW_NEW = 1                   # `Allow`
    ALLOW_ORIGINAL = 2
    ALLOW_REPLY = 4
    ALLOW_ASK = 8

    # a constant that does not compile unless a record is two cache lines
    RECORD_IS_TWO_CACHE_LINES = 1 / (sizeof(Flow) == 2 * CACHE_LINE)

if (TCP_STATES, TCP_SEGMENTS, WHEEL_SLOTS, NS_PER_TICK) != (STATES, SEGMENTS, SLOTS, TICK_NS):
    raise ImportError("_fastpath was compiled for other tables: build it again")


def complete_checksum(packet: bytearray) -> None:
    """Compute, in place, the TCP, UDP or SCTP checksum of a packet whose sender left it to the hardware.

    Of an IPIP or GRE packet it is that of the packet inside.  A later fragment, a packet that is not whole and any
    other protocol have none: they stay as they are.
    """
    if not PyByteArray_Check(packet):
        raise TypeError(f"a packet is a bytearray, not {type(packet).__name__}")
    complete_transport_checksum(<uint8_t *>PyByteArray_AS_STRING(packet), <size_t>PyByteArray_GET_SIZE(packet))


# It refers to nothing that could refer back; and the collector would take lent memory away while it is in use.
@cython.no_gc
@cython.final
cdef class FastPath:
    """FastPath(config, memory=None, now_ns=0)
--

A flow table of fixed capacity and the packet path over it.
"""

    def __cinit__(self, config: TableConfig, memory: object = None, now_ns: int = 0) -> None:
        config.check()
        begin_wheel(&self.wheel, <uint64_t>fit(now_ns, 0, INT64_MAX))
        self.capacity = config.capacity
        # the records begin at a cache line, so that none of them straddles three
        if memory is None:
            self.flows_memory = new_memory((<size_t>self.capacity + 1) * sizeof(Flow))
            self.flows = <Flow *>((<uintptr_t>self.flows_memory + CACHE_LINE - 1) & ~<uintptr_t>(CACHE_LINE - 1))
        else:
            self.borrow(memory)
        cdef uint32_t entries = 4       # two a flow, half of them free
        while entries < 4 * self.capacity:
            entries *= 2
        self.index.mask = entries - 1
        self.index.entries = <Entry *>new_memory(entries * sizeof(Entry))
        if self.flows == NULL or self.index.entries == NULL:
            raise MemoryError(f"no memory for {self.capacity} flows")
        self.unreplied.first = self.unreplied.last = self.free_first = NOBODY
        self.index.secret[0] = int.from_bytes(config.hash_key[:8], "little")
        self.index.secret[1] = int.from_bytes(config.hash_key[8:], "little")
        self.tcp_liberal = config.tcp_liberal
        self.timeouts.tcp_unacknowledged_ns = config.tcp_unacknowledged_ns
        self.timeouts.dns_ns = config.dns_timeout_ns
        self.timeouts.udp_inbound_refresh = config.udp_inbound_refresh
        cdef int i
        for i in range(TCP_STATES):
            self.timeouts.tcp_ns[i] = config.tcp_timeouts_ns[i]
        for i in range(2 * TCP_SEGMENTS * TCP_STATES):
            self.transitions[i] = config.transitions[i]
        for i in range(256):
            self.segment_of_flags[i] = config.segment_of_flags[i]
            self.timeouts.protocol_ns[i] = config.timeouts_ns[i]
        if memory is not None:
            self.take_over()

    def __dealloc__(self):
        free(self.flows_memory)
        free(self.index.entries)
        PyBuffer_Release(&self.lent)

    cdef int borrow(self, memory) except -1:
        PyObject_GetBuffer(memory, &self.lent, PyBUF_WRITABLE)
        self.flows = <Flow *>self.lent.buf
        if <size_t>self.lent.len != self.capacity * sizeof(Flow) or <uintptr_t>self.lent.buf % CACHE_LINE:
            raise ValueError(f"the memory has {self.lent.len} bytes, or does not begin at a cache line")
        return 0

    cdef int take_over(self) except -1:
        """Make a table of the flows whose records are there already."""
        cdef uint32_t flow_id, slot
        self.look_over()
        flow_id = self.fresh
        while flow_id:
            flow_id -= 1
            if not self.flows[flow_id].in_use:              # the lowest id is given out first
                self.flows[flow_id].links[BY_DEADLINE].after = self.free_first
                self.free_first = flow_id
        for flow_id in range(self.fresh):
            if self.flows[flow_id].in_use:
                if self.is_taken(&self.flows[flow_id]):
                    raise CorruptTable(f"record {flow_id} has the tuple of another flow")
                enter(&self.index, self.flows, flow_id, True)
                enter(&self.index, self.flows, flow_id, False)
                file_flow(&self.wheel, self.flows, flow_id)
                self.count += 1
        # the nearest deadline stands for the longest idle
        for slot in range(<uint32_t>WHEEL_SLOTS):
            flow_id = self.wheel.slots[(self.wheel.tick + slot) % WHEEL_SLOTS].first
            while flow_id != NOBODY:
                if not self.flows[flow_id].seen_reply:
                    append(self.flows, &self.unreplied, BY_USE, flow_id)
                flow_id = self.flows[flow_id].links[BY_DEADLINE].after
        return 0

    cdef int look_over(self) except -1:
        """Check and prepare the records, and set `fresh`."""
        cdef uint32_t flow_id
        cdef Flow *flow
        self.generation = 1                                 # whatever FORWARD said: it is asked again
        for flow_id in range(self.capacity):
            flow = &self.flows[flow_id]
            if not flow.in_use:
                continue
            if not is_sound(flow):
                raise CorruptTable(f"record {flow_id} is none that an engine writes")
            if flow.moving:
                flow.sides[0].max_win = flow.sides[1].max_win = 0
                keep_order()
                flow.moving = 0
            flow.generation = 0
            self.fresh = flow_id + 1
        return 0

    # ── packets ──────────────────────────────────────────────────────────────────────────────────

    def read(self, packet: bytearray) -> tuple[Ipv4Fields, Transport]:
        """Return the headers of a packet that `translate` has left to others.

        Raises:
            BadPacket, Truncated: As `wire.ipv4.parse_packet_untrusted`.
        """
        if not PyByteArray_Check(packet):
            raise TypeError(f"a packet is a bytearray, not {type(packet).__name__}")
        cdef const uint8_t *data = <const uint8_t *>PyByteArray_AS_STRING(packet)
        cdef Headers headers
        # whole TCP and UDP packets are what nearly all new flows begin with
        if (
            parse_untrusted(data, <size_t>PyByteArray_GET_SIZE(packet), HOOK_POSTROUTING, &headers)
            or headers.key.proto == IS_ICMP
        ):
            return parse_packet_untrusted(packet)
        return new_tuple(Ipv4Fields, (
            headers.transport_at, headers.total_len, data[1], load16(data + 4), False, 0, data[8],
            headers.key.proto, headers.key.src, headers.key.dst,
        )), new_tuple(Transport, (headers.key.src_port, headers.key.dst_port, headers.tcp_flags, 0, 0))

    def translate(self, packet: bytearray, hook: int, now_ns: int, out_ifindex: int = 0) -> int:
        """Rewrite `packet` in place if its flow is known, and return a `Path`.

        Where `out_ifindex` is another interface than the one over which the flow's inside began it, its
        route has moved: STALE.  0 is no interface: before routing.

        On any result but TRANSLATED the packet is as it was; on MISS, SPECIAL, STALE and the drops
        so is the table.  Reads nothing behind `len(packet)`, whatever the packet says.
        """
        if not PyByteArray_Check(packet):
            raise TypeError(f"a packet is a bytearray, not {type(packet).__name__}")
        cdef int at_hook = <int>fit(hook, INT32_MIN, INT32_MAX)
        cdef int64_t at_ns = fit(now_ns, 0, INT64_MAX)
        cdef uint32_t leaves_by = <uint32_t>fit(out_ifindex, 0, UINT32_MAX)
        cdef uint8_t *data = <uint8_t *>PyByteArray_AS_STRING(packet)
        cdef Headers headers
        cdef int path = self.prepare(data, <size_t>PyByteArray_GET_SIZE(packet), at_hook, &headers)
        return path if path else self.finish(data, &headers, leaves_by, at_ns)

    cdef int prepare(self, const uint8_t *data, size_t length, int hook, Headers *out) noexcept nogil:
        """Parse and hash, and ask for the index entry; 0, or the Path of a packet that is not for us."""
        cdef int path = parse_untrusted(data, length, hook, out)
        if path == 0:
            out.tag = hash_of(&out.key, self.index.secret)
            expect(&self.index, out.tag)
        return path

    cdef void fetch(self, const Headers *headers) noexcept nogil:
        """Ask for the flow's record."""
        expect_flow(&self.index, self.flows, headers.tag)

    cdef int finish(self, uint8_t *data, Headers *headers, uint32_t out_ifindex, int64_t now_ns) noexcept nogil:
        """Find the flow, and do to it and to the packet what `translate` does."""
        cdef uint32_t flow_id = flow_of(&self.index, self.flows, &headers.key, headers.tag)
        if flow_id == NOBODY:
            return PATH_MISS
        cdef Flow *flow = &self.flows[flow_id]
        cdef bint leaving = headers.key.leaving
        cdef bint moved = leaving and flow.from_inside and out_ifindex != flow.uplink_ifindex and out_ifindex != 0
        if flow.generation != self.generation or moved:
            return PATH_STALE
        cdef bint is_reply = leaving != flow.from_inside
        if not flow.allow & (ALLOW_REPLY if is_reply else ALLOW_ORIGINAL if flow.seen_reply else ALLOW_NEW):
            return PATH_STALE if flow.allow & ALLOW_ASK else PATH_REFUSED_FORWARD
        cdef Segment segment
        cdef int refusal
        cdef bint changed = False
        if flow.proto == IS_TCP:
            read_segment(data, headers, &segment)
            refusal = self.follow(flow, is_reply, &segment)
            if refusal:
                return refusal
            if segment.flags & FLAG_SYN and self.clamps:
                changed = self.clamp_syn(data, headers, flow.uplink_ifindex)
        self.note(flow_id, is_reply, headers.total_len, <uint64_t>now_ns)
        if flow.inside_ip == flow.outside_ip and flow.inside_port == flow.outside_port:
            return PATH_TRANSLATED if changed else PATH_UNCHANGED
        if leaving:
            rewrite(data, headers, flow.outside_ip, flow.outside_port)
        else:
            headers.to_head = flow.inside_ifindex == 0
            rewrite(data, headers, flow.inside_ip, flow.inside_port)
        return PATH_TRANSLATED

    cdef int follow(self, Flow *flow, bint is_reply, const Segment *segment) noexcept nogil:
        """Move the TCP state and the sequence numbers on; 0, or the Path of a segment to refuse."""
        cdef uint8_t before = flow.tcp_state
        cdef uint32_t row = is_reply * TCP_SEGMENTS + self.segment_of_flags[segment.flags]
        cdef uint8_t after = self.transitions[row * TCP_STATES + before]
        if after == REFUSED:
            return PATH_REFUSED_STATE
        cdef int judgement = judge(flow.sides, is_reply, segment, before, after)
        if judgement == OUTSIDE and (segment.flags & FLAG_RST or not self.tcp_liberal):
            return PATH_REFUSED_WINDOW
        if judgement == ASIDE:
            return 0
        if after == before and flow.sides[is_reply].max_win and not segment.flags & FLAG_SYN:
            note_segment(flow.sides, flow.scales, is_reply, segment, before, after)
            return 0
        flow.moving = 1
        keep_order()
        flow.tcp_state = after
        note_segment(flow.sides, flow.scales, is_reply, segment, before, after)
        keep_order()
        flow.moving = 0
        return 0

    def touch(self, flow_id: int, hook: int, length: int, now_ns: int) -> None:
        """Count a packet of `length` bytes that was rewritten elsewhere (a fragment).

        Its sequence numbers were not read, so those of its sender are taken anew from the next segment.

        Raises:
            KeyError: No such flow.
        """
        cdef int64_t wanted = fit(flow_id, INT64_MIN, INT64_MAX)
        cdef int at_hook = <int>fit(hook, INT32_MIN, INT32_MAX)
        cdef uint32_t n_bytes = <uint32_t>fit(length, 0, UINT32_MAX)
        cdef int64_t at_ns = fit(now_ns, 0, INT64_MAX)
        if not self.exists(wanted):
            raise KeyError(wanted)
        cdef bint is_reply = (at_hook == HOOK_POSTROUTING) != self.flows[wanted].from_inside
        self.flows[wanted].sides[is_reply].max_win = 0
        self.note(<uint32_t>wanted, is_reply, n_bytes, <uint64_t>at_ns)

    cdef void note(self, uint32_t flow_id, bint is_reply, uint32_t length, uint64_t now_ns) noexcept nogil:
        """Count the packet and give the flow its next deadline."""
        cdef Flow *flow = &self.flows[flow_id]
        flow.packets[is_reply] += 1
        flow.bytes[is_reply] += length
        if not flow.seen_reply:
            if is_reply:
                flow.seen_reply = 1
                unlink(self.flows, &self.unreplied, BY_USE, flow_id)
            elif self.unreplied.last != flow_id:            # to the end: now the most recently used
                unlink(self.flows, &self.unreplied, BY_USE, flow_id)
                append(self.flows, &self.unreplied, BY_USE, flow_id)
        if flow.proto == IS_TCP:
            if flow.tcp_state == ESTABLISHED:
                flow.assured = 1
        elif flow.proto != IS_ICMP and flow.seen_reply and not is_reply:
            flow.assured = 1
        flow.deadline_ns = next_deadline(&self.timeouts, flow, is_reply, now_ns)
        if is_filed_too_late(&self.wheel, flow):            # a shorter timeout than before
            unfile_flow(&self.wheel, self.flows, flow_id)
            file_flow(&self.wheel, self.flows, flow_id)

    # ── flows ────────────────────────────────────────────────────────────────────────────────────

    def install(self, spec: FlowSpec, now_ns: int) -> int:
        """Add a flow and return its id (0..capacity-1), or FULL, or TAKEN if one of its tuples is in use.

        A TCP flow starts in state NONE; the packet that created it moves it on through `translate`.
        """
        cdef Flow flow
        read_spec(&flow, spec)
        cdef int64_t at_ns = fit(now_ns, 0, INT64_MAX)
        if self.is_taken(&flow):
            return TAKEN
        if self.count >= self.capacity:
            return FULL
        return self.add(&flow, <uint64_t>at_ns)

    cdef bint is_taken(self, const Flow *flow) noexcept nogil:
        """Whether a flow in the table has one of these tuples."""
        cdef Key leaving = key_of(flow, True)
        cdef Key arriving = key_of(flow, False)
        return (
            flow_with(&self.index, self.flows, &leaving) != NOBODY
            or flow_with(&self.index, self.flows, &arriving) != NOBODY
        )

    cdef uint32_t add(self, const Flow *flow, uint64_t now_ns) noexcept nogil:
        """Put a flow whose tuples are free into a free record; return its id."""
        cdef uint32_t flow_id = self.free_first             # the id that was freed last
        if flow_id == NOBODY:
            flow_id = self.fresh
            self.fresh += 1
        else:
            self.free_first = self.flows[flow_id].links[BY_DEADLINE].after
        cdef Flow *record = &self.flows[flow_id]
        record[0] = flow[0]
        record.generation = self.generation
        record.deadline_ns = now_ns
        keep_order()
        record.in_use = 1
        keep_order()
        enter(&self.index, self.flows, flow_id, True)
        enter(&self.index, self.flows, flow_id, False)
        append(self.flows, &self.unreplied, BY_USE, flow_id)
        file_flow(&self.wheel, self.flows, flow_id)
        self.count += 1
        return flow_id

    def remove(self, flow_id: int) -> FlowInfo | None:
        """Take a flow out and return what it was; None if there is no such flow."""
        cdef int64_t wanted = fit(flow_id, INT64_MIN, INT64_MAX)
        if not self.exists(wanted):
            return None
        was = self.describe(<uint32_t>wanted)
        self.drop(<uint32_t>wanted)
        return was

    cdef void drop(self, uint32_t flow_id) noexcept nogil:
        cdef Flow *flow = &self.flows[flow_id]
        forget(&self.index, self.flows, flow_id, True)
        forget(&self.index, self.flows, flow_id, False)
        if not flow.seen_reply:
            unlink(self.flows, &self.unreplied, BY_USE, flow_id)
        unfile_flow(&self.wheel, self.flows, flow_id)
        flow.in_use = 0
        keep_order()
        flow.links[BY_DEADLINE].after = self.free_first
        self.free_first = flow_id
        self.count -= 1

    def find(self, key: FlowKey) -> int:
        """Return the id of the flow that has this tuple, or NOT_FOUND.

        A PPTP packet whose call is not known belongs to the flow of all GRE of its two hosts.
        """
        cdef tuple fields = tuple(key)
        if len(fields) != 6:
            raise TypeError(f"{len(fields)} fields where 6 belong")
        cdef Key wanted
        cdef int64_t hook = fit(fields[0], INT32_MIN, INT32_MAX)
        wanted.proto = <uint8_t>fit(fields[1], 0, UINT8_MAX)
        wanted.src = <uint32_t>fit(fields[2], 0, UINT32_MAX)
        wanted.src_port = <uint16_t>fit(fields[3], 0, UINT16_MAX)
        wanted.dst = <uint32_t>fit(fields[4], 0, UINT32_MAX)
        wanted.dst_port = <uint16_t>fit(fields[5], 0, UINT16_MAX)
        wanted.leaving = hook == HOOK_POSTROUTING
        if hook != HOOK_POSTROUTING and hook != HOOK_PREROUTING:
            return NOT_FOUND
        cdef uint32_t flow_id = flow_of(&self.index, self.flows, &wanted, hash_of(&wanted, self.index.secret))
        return NOT_FOUND if flow_id == NOBODY else flow_id

    def info(self, flow_id: int) -> FlowInfo | None:
        """Return a copy of a flow, or None."""
        cdef int64_t wanted = fit(flow_id, INT64_MIN, INT64_MAX)
        return self.describe(<uint32_t>wanted) if self.exists(wanted) else None

    def oldest_unreplied(self) -> int:
        """Return the flow without a reply that has been idle longest, or NOT_FOUND: the one to evict."""
        return NOT_FOUND if self.unreplied.first == NOBODY else self.unreplied.first

    def find_on(self, outside_ip: int, first_id: int, looks: int) -> tuple[list[int], int]:
        """Return the ids of flows with this outside address, and the id to go on with, NOT_FOUND at the end.

        Looks at no more than `looks` ids, from `first_id` on.
        """
        cdef uint32_t address = <uint32_t>fit(outside_ip, 0, UINT32_MAX)
        cdef int64_t first = fit(first_id, 0, UINT32_MAX)
        cdef int64_t flow_id, end = min(first + fit(looks, 0, UINT32_MAX), <int64_t>self.fresh)
        found = [
            flow_id for flow_id in range(first, end)
            if self.flows[flow_id].in_use and self.flows[flow_id].outside_ip == address
        ]
        return found, NOT_FOUND if end == self.fresh else end

    def snapshot(self) -> list[FlowInfo]:
        """Return a copy of every flow, in the order of their ids."""
        cdef uint32_t flow_id
        return [self.describe(flow_id) for flow_id in range(self.fresh) if self.flows[flow_id].in_use]

    def __len__(self) -> int:
        return self.count

    cdef inline bint exists(self, int64_t flow_id) noexcept nogil:
        return 0 <= flow_id < self.fresh and self.flows[flow_id].in_use

    cdef object describe(self, uint32_t flow_id):
        cdef Flow *flow = &self.flows[flow_id]
        spec = new_tuple(FlowSpec, (
            flow.proto, flow.inside_ip, flow.inside_port, flow.outside_ip, flow.outside_port,
            flow.peer_ip, flow.peer_port, <bint>flow.from_inside,
            flow.inside_ifindex, flow.uplink_ifindex, flow.allow,
        ))
        sides = UNHEARD_SIDES
        if flow.proto == IS_TCP:
            sides = describe_side(flow, 0), describe_side(flow, 1)
        return new_tuple(FlowInfo, (
            flow_id, spec, flow.tcp_state, <bint>flow.seen_reply, <bint>flow.assured, flow.deadline_ns, sides,
            flow.packets[0], flow.bytes[0], flow.packets[1], flow.bytes[1], 0,
        ))

    # ── rule changes ─────────────────────────────────────────────────────────────────────────────

    def invalidate(self) -> None:
        """Make every flow STALE until it is approved again: the FORWARD rules have changed.  O(1)."""
        self.generation += 1

    def approve(self, flow_id: int, allow: int, uplink_ifindex: int) -> None:
        """Set what the FORWARD chain, as it stands now, allows a flow (bits of `Allow`) on this uplink.

        Raises:
            KeyError: No such flow.
        """
        cdef int64_t wanted = fit(flow_id, INT64_MIN, INT64_MAX)
        cdef uint8_t bits = <uint8_t>fit(allow, 0, UINT8_MAX)
        cdef uint32_t uplink = <uint32_t>fit(uplink_ifindex, 0, UINT32_MAX)
        if not self.exists(wanted):
            raise KeyError(wanted)
        self.flows[wanted].allow = bits
        self.flows[wanted].uplink_ifindex = uplink
        self.flows[wanted].generation = self.generation

    def doubt(self, flow_id: int) -> None:
        """Make one flow STALE until it is approved again, so that Python sees its next packet.

        Raises:
            KeyError: No such flow.
        """
        cdef int64_t wanted = fit(flow_id, INT64_MIN, INT64_MAX)
        if not self.exists(wanted):
            raise KeyError(wanted)
        self.flows[wanted].generation = self.generation - 1

    def clamp(self, mss_limits: dict[int, int]) -> None:
        """Set by the uplink's ifindex how large segments a SYN, either way, may offer to take; none: no limit."""
        limits = {
            fit(uplink, 0, UINT32_MAX): fit(limit, 0, UINT16_MAX) for uplink, limit in mss_limits.items()
        }
        self.mss_limits, self.clamps = limits, len(limits) > 0

    cdef bint clamp_syn(self, uint8_t *data, const Headers *headers, uint32_t uplink) noexcept with gil:
        """SYNs are few: they may ask a dictionary."""
        limit = self.mss_limits.get(uplink)
        return limit is not None and clamp_mss(data, headers, <uint16_t>limit)

    # ── time ─────────────────────────────────────────────────────────────────────────────────────

    def expire(self, now_ns: int, budget: int) -> list[FlowInfo]:
        """Remove flows whose deadline has passed and return what they were.

        A flow ends at most one second after its deadline, provided this is called as often.
        At most `budget` flows are looked at; the next call goes on from there.
        """
        cdef uint64_t at_ns = <uint64_t>fit(now_ns, 0, INT64_MAX)
        cdef int64_t looks_left = fit(budget, INT64_MIN, INT64_MAX)
        cdef uint32_t flow_id
        cdef list ended = []
        turn_wheel(&self.wheel, at_ns)
        while True:
            flow_id = first_due(&self.wheel, at_ns)
            if flow_id == NOBODY or looks_left <= 0:
                return ended
            looks_left -= 1
            if self.flows[flow_id].deadline_ns <= at_ns:
                ended.append(self.describe(flow_id))
                self.drop(flow_id)
            else:
                unfile_flow(&self.wheel, self.flows, flow_id)
                file_flow(&self.wheel, self.flows, flow_id)


cdef object describe_side(const Flow *flow, int is_reply):
    cdef const Side *side = &flow.sides[is_reply]
    return new_tuple(SideInfo, (side.end, side.acked, side.max_win, flow.scales[is_reply]))
