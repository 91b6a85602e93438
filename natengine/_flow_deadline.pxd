"""When a flow ends, in C: its next deadline, and the timer wheel that it is filed in.

    wheel    slot slot slot ...        a second each, from `tick` on; flows linked through their records
                  │
                  v                    A packet moves the deadline and leaves the flow where it is filed:
             flow <-> flow <-> flow    whoever finds it there too early files it anew.

Inline functions only, for the extension that cimports them; `_fastpath_py` is the specification.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from natengine._flow_record cimport NOBODY, TCP_STATES, Flow, Queue, append, unlink
from natengine._tcp_window cimport has_unacknowledged
from natengine._wire cimport IS_TCP, IS_UDP


cdef enum:
    NS_PER_TICK = 1_000_000_000
    WHEEL_SLOTS = 8192              # `SLOTS`; a power of two

    BY_DEADLINE = 0                 # Flow.links
    BY_USE = 1

    DNS = 53                        # `flow.timeouts.DNS_PORT`


cdef struct Timeouts:               # of `TableConfig`
    uint64_t tcp_ns[TCP_STATES]
    uint64_t tcp_unacknowledged_ns
    uint64_t protocol_ns[256]
    uint64_t dns_ns
    uint8_t udp_inbound_refresh


cdef struct Wheel:
    uint64_t tick                   # the next second to be looked at
    Queue slots[WHEEL_SLOTS]


cdef inline uint64_t next_deadline(
    const Timeouts *timeouts, const Flow *flow, bint is_reply, uint64_t now_ns
) noexcept nogil:
    """Return when a flow ends to which this is the last packet."""
    cdef uint64_t timeout
    if flow.proto == IS_TCP:
        timeout = timeouts.tcp_ns[flow.tcp_state]
        if timeout > timeouts.tcp_unacknowledged_ns and has_unacknowledged(flow.sides):
            timeout = timeouts.tcp_unacknowledged_ns
        return now_ns + timeout
    timeout = timeouts.protocol_ns[flow.proto]
    if flow.proto != IS_UDP or is_reply != flow.from_inside:
        return now_ns + timeout
    if flow.peer_port == DNS:
        timeout = min(timeout, timeouts.dns_ns)
    if timeouts.udp_inbound_refresh or flow.packets[0] + flow.packets[1] == 1:
        return now_ns + timeout
    return min(now_ns + timeout, flow.deadline_ns)


# ── the wheel ────────────────────────────────────────────────────────────────────────────────────

cdef inline void begin_wheel(Wheel *wheel, uint64_t now_ns) noexcept nogil:
    wheel.tick = now_ns // NS_PER_TICK
    memset(wheel.slots, 0xFF, sizeof(wheel.slots))          # NOBODY, everywhere


cdef inline void file_flow(Wheel *wheel, Flow *flows, uint32_t flow_id) noexcept nogil:
    """File a flow under the second after its deadline, or under the last one of the wheel."""
    cdef Flow *flow = &flows[flow_id]
    cdef uint64_t second = max(wheel.tick, min(flow.deadline_ns // NS_PER_TICK + 1, wheel.tick + WHEEL_SLOTS - 1))
    flow.filed_slot = <uint16_t>(second % WHEEL_SLOTS)
    append(flows, &wheel.slots[flow.filed_slot], BY_DEADLINE, flow_id)


cdef inline void unfile_flow(Wheel *wheel, Flow *flows, uint32_t flow_id) noexcept nogil:
    unlink(flows, &wheel.slots[flows[flow_id].filed_slot], BY_DEADLINE, flow_id)


cdef inline bint is_filed_too_late(const Wheel *wheel, const Flow *flow) noexcept nogil:
    """Whether the flow now ends before the second it is filed under, which is the next one that has its slot."""
    cdef uint64_t second = wheel.tick + ((flow.filed_slot - wheel.tick) & (WHEEL_SLOTS - 1))
    return flow.deadline_ns // NS_PER_TICK + 1 < second


cdef inline void turn_wheel(Wheel *wheel, uint64_t now_ns) noexcept nogil:
    """After a pause longer than the wheel: one whole turn meets every flow."""
    cdef uint64_t now_tick = now_ns // NS_PER_TICK
    if now_tick >= wheel.tick + WHEEL_SLOTS:
        wheel.tick = now_tick - WHEEL_SLOTS + 1


cdef inline uint32_t first_due(Wheel *wheel, uint64_t now_ns) noexcept nogil:
    """Return a flow that is filed under a second until now, or NOBODY, and pass over seconds that have none."""
    cdef uint32_t flow_id
    while wheel.tick <= now_ns // NS_PER_TICK:
        flow_id = wheel.slots[wheel.tick % WHEEL_SLOTS].first
        if flow_id != NOBODY:
            return flow_id
        wheel.tick += 1
    return NOBODY
