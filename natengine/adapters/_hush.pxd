"""Senders that have been told to be silent for a moment, so that nobody has to ask Python about each packet.

One who floods costs the time of a lookup here and not that of a question.  Direct-mapped: who shares a place
with somebody else is asked about more often, never refused for him.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef enum:
    PLACES = 256
    HUSH_NS = 1000000                   # then Python is asked again


cdef struct Hushed:
    uint64_t sender
    int64_t until


cdef inline uint64_t sender_of(int hook, uint32_t in_ifindex, const uint8_t *packet, uint32_t length) noexcept nogil:
    """Who sent a packet: from an uplink (hook 0), where sources are forged, the uplink; else the host."""
    if hook == 0 or length < 20:
        return in_ifindex
    return <uint64_t>1 << 32 | <uint32_t>packet[12] << 24 | packet[13] << 16 | packet[14] << 8 | packet[15]


cdef inline Hushed *place_of(Hushed *places, uint64_t sender) noexcept nogil:
    return &places[(sender ^ sender >> 8) % PLACES]


cdef inline bint is_hushed(Hushed *places, uint64_t sender, int64_t now) noexcept nogil:
    cdef Hushed *place = place_of(places, sender)
    return place.sender == sender and now < place.until


cdef inline void hush(Hushed *places, uint64_t sender, int64_t now) noexcept nogil:
    cdef Hushed *place = place_of(places, sender)
    place.sender, place.until = sender, now + HUSH_NS
