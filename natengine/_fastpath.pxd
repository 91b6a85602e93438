"""What another extension may cimport: the flow table and its packet path without Python."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from natengine._flow_deadline cimport Timeouts, Wheel
from natengine._flow_index cimport Index
from natengine._flow_record cimport TCP_STATES, Flow, Queue
from natengine._tcp_window cimport Segment
from natengine._wire cimport Headers


cdef enum:
    TCP_SEGMENTS = 6


cdef class FastPath:
    cdef Flow *flows                # aligned to a cache line, inside `flows_memory` or `lent`
    cdef void *flows_memory
    cdef Py_buffer lent             # memory that outlives the table, where somebody gave us such
    cdef Index index
    cdef uint32_t capacity
    cdef uint32_t count
    cdef uint32_t fresh             # ids below were in use at some time
    cdef uint32_t free_first        # removed flows, chained through links[BY_DEADLINE].after
    cdef Queue unreplied            # least recently used first
    cdef Wheel wheel
    cdef uint32_t generation
    cdef Timeouts timeouts
    cdef uint8_t transitions[2 * TCP_SEGMENTS * TCP_STATES]
    cdef uint8_t segment_of_flags[256]
    cdef bint tcp_liberal
    cdef bint clamps                # whether there are any `mss_limits`
    cdef dict mss_limits            # by uplink

    # Whole packet path of a known flow; returns a Path.  `data` need not be aligned; nothing behind
    # `length` is read.  0 <= now_ns.  Only the thread that owns the table may call these.  It is in three
    # steps, for a batch: each step asks for the memory that the next one needs, so that the packets of a
    # batch wait for it together and not one after the other.
    cdef int prepare(self, const uint8_t *data, size_t length, int hook, Headers *out) noexcept nogil
    cdef void fetch(self, const Headers *headers) noexcept nogil
    cdef int finish(self, uint8_t *data, Headers *headers, uint32_t out_ifindex, int64_t now_ns) noexcept nogil

    cdef int follow(self, Flow *flow, bint is_reply, const Segment *segment) noexcept nogil
    cdef bint clamp_syn(self, uint8_t *data, const Headers *headers, uint32_t uplink) noexcept with gil
    cdef void note(self, uint32_t flow_id, bint is_reply, uint32_t length, uint64_t now_ns) noexcept nogil
    cdef bint is_taken(self, const Flow *flow) noexcept nogil
    cdef uint32_t add(self, const Flow *flow, uint64_t now_ns) noexcept nogil
    cdef void drop(self, uint32_t flow_id) noexcept nogil
    cdef int borrow(self, memory) except -1
    cdef int take_over(self) except -1
    cdef int look_over(self) except -1
    cdef bint exists(self, int64_t flow_id) noexcept nogil
    cdef object describe(self, uint32_t flow_id)
