"""A flow in C: the record that `flow/image.py` describes, its tuples, and the lists that run through records.

Inline functions only, for the extension that cimports them.
"""

from cpython.number cimport PyNumber_Index
from libc.stdint cimport UINT8_MAX, UINT16_MAX, UINT32_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from natengine._tcp_window cimport LARGEST_WINDOW, NO_SCALE, Side
from natengine._wire cimport IS_GRE, PPP_IN_GRE, Key


cdef enum:
    TCP_STATES = 10
    NOBODY = 0xFFFFFFFF             # no flow: the end of a list, or not found
    CACHE_LINE = 64


cdef struct Link:                   # of an intrusive doubly linked list
    uint32_t before
    uint32_t after


cdef struct Queue:                  # its two ends: new ones go last
    uint32_t first
    uint32_t last


cdef struct Flow:
    # The first 64 bytes are what every packet reads, the others what it only adds to.
    uint32_t inside_ip
    uint32_t outside_ip
    uint32_t peer_ip
    uint16_t inside_port
    uint16_t outside_port
    uint16_t peer_port
    uint8_t proto
    uint8_t from_inside
    uint8_t in_use
    uint8_t moving
    uint8_t allow
    uint8_t tcp_state
    uint8_t seen_reply
    uint8_t assured
    uint8_t scales[2]
    uint32_t generation
    uint64_t deadline_ns
    Side sides[2]                   # opener, other
    uint64_t packets[2]             # original, reply
    uint64_t bytes[2]
    uint32_t uplink_ifindex
    uint32_t inside_ifindex
    uint32_t seal
    # from here on nobody else's: worked out anew when a table is taken over
    Link links[2]                   # BY_DEADLINE, BY_USE
    uint16_t filed_slot             # of the wheel
    uint8_t spare[2]                # makes a record two cache lines


cdef extern from *:
    """
    #define keep_order() __asm__ __volatile__("" ::: "memory")
    """
    # What is written above is written before what is written below, as somebody sees it who looks at the
    # memory when the process has been killed.  Costs nothing: it only forbids the compiler to reorder.
    void keep_order() noexcept nogil


cdef inline uint32_t seal_of(const Flow *flow) noexcept nogil:
    """`flow.image.seal_of`."""
    cdef uint32_t words[5]
    cdef uint32_t seal = 2166136261u
    cdef int i
    memcpy(words, flow, sizeof(words))
    for i in range(5):
        seal = (seal ^ words[i]) * 16777619u
    return (seal ^ flow.inside_ifindex) * 16777619u


cdef inline bint is_sound(const Flow *flow) noexcept nogil:
    """Whether an engine can have left this record of a flow."""
    return (
        flow.in_use == 1 and flow.seal == seal_of(flow) and flow.moving <= 1 and flow.tcp_state < TCP_STATES
        and flow.from_inside <= 1 and flow.seen_reply <= 1 and flow.assured <= 1
        and flow.scales[0] <= NO_SCALE and flow.scales[1] <= NO_SCALE
        and flow.sides[0].max_win <= LARGEST_WINDOW and flow.sides[1].max_win <= LARGEST_WINDOW
        and not (flow.packets[0] | flow.packets[1] | flow.bytes[0] | flow.bytes[1]) >> 63
    )


# ── tuples ───────────────────────────────────────────────────────────────────────────────────────

cdef inline uint16_t sender_port(const Flow *flow, uint16_t port) noexcept nogil:
    """Of GRE that is told apart by call ids (`FlowSpec.is_call`) a packet names the receiver's only."""
    if flow.proto == IS_GRE and flow.inside_port | flow.outside_port | flow.peer_port:
        return PPP_IN_GRE
    return port


cdef inline bint has_tuple(const Flow *flow, const Key *key) noexcept nogil:
    if flow.proto != key.proto:
        return False
    if key.leaving:
        return (
            flow.inside_ip == key.src and sender_port(flow, flow.inside_port) == key.src_port
            and flow.peer_ip == key.dst and flow.peer_port == key.dst_port
        )
    return (
        flow.peer_ip == key.src and sender_port(flow, flow.peer_port) == key.src_port
        and flow.outside_ip == key.dst and flow.outside_port == key.dst_port
    )


cdef inline Key key_of(const Flow *flow, bint leaving) noexcept nogil:
    """`FlowSpec.leaving` or `FlowSpec.arriving`."""
    cdef Key key
    key.src = flow.inside_ip if leaving else flow.peer_ip
    key.src_port = sender_port(flow, flow.inside_port if leaving else flow.peer_port)
    key.dst = flow.peer_ip if leaving else flow.outside_ip
    key.dst_port = flow.peer_port if leaving else flow.outside_port
    key.proto = flow.proto
    key.leaving = leaving
    return key


# ── lists through the records ────────────────────────────────────────────────────────────────────

cdef inline void append(Flow *flows, Queue *queue, int by, uint32_t flow_id) noexcept nogil:
    flows[flow_id].links[by].before = queue.last
    flows[flow_id].links[by].after = NOBODY
    if queue.last == NOBODY:
        queue.first = flow_id
    else:
        flows[queue.last].links[by].after = flow_id
    queue.last = flow_id


cdef inline void unlink(Flow *flows, Queue *queue, int by, uint32_t flow_id) noexcept nogil:
    cdef Link link = flows[flow_id].links[by]
    if link.before == NOBODY:
        queue.first = link.after
    else:
        flows[link.before].links[by].after = link.after
    if link.after == NOBODY:
        queue.last = link.before
    else:
        flows[link.after].links[by].before = link.before


# ── from Python ──────────────────────────────────────────────────────────────────────────────────

cdef inline int64_t fit(value, int64_t first, int64_t last) except? -1:
    """Return `value` if it is an integer within first..last, or raise like `flow.fields.fit`."""
    cdef int64_t plain = PyNumber_Index(value)
    if plain < first or plain > last:
        raise OverflowError(f"{plain} is not within {first}..{last}")
    return plain


cdef inline void read_spec(Flow *flow, spec) except *:
    """Fill a new record from a `FlowSpec`."""
    cdef tuple fields = tuple(spec)
    if len(fields) != 11:
        raise TypeError(f"{len(fields)} fields where 11 belong")
    memset(flow, 0, sizeof(Flow))
    flow.proto = <uint8_t>fit(fields[0], 0, UINT8_MAX)
    flow.inside_ip = <uint32_t>fit(fields[1], 0, UINT32_MAX)
    flow.inside_port = <uint16_t>fit(fields[2], 0, UINT16_MAX)
    flow.outside_ip = <uint32_t>fit(fields[3], 0, UINT32_MAX)
    flow.outside_port = <uint16_t>fit(fields[4], 0, UINT16_MAX)
    flow.peer_ip = <uint32_t>fit(fields[5], 0, UINT32_MAX)
    flow.peer_port = <uint16_t>fit(fields[6], 0, UINT16_MAX)
    flow.from_inside = <uint8_t>fit(fields[7], 0, 1)
    flow.inside_ifindex = <uint32_t>fit(fields[8], 0, UINT32_MAX)
    flow.uplink_ifindex = <uint32_t>fit(fields[9], 0, UINT32_MAX)
    flow.allow = <uint8_t>fit(fields[10], 0, UINT8_MAX)
    flow.seal = seal_of(flow)
