# cython: language_level=3
"""How much of the time the packets without a flow may take, so that a flood from one host does not stop the others.

Python needs as long for one of them as the table for a hundred packets of known flows.  In each window of some
milliseconds they get a quarter of the time; what comes then is dropped at once, but for the first few of each
host.  So the queue is never long, and what belongs to a known flow does not wait in it.  Where no other host
has sent anything in its flows for some seconds there is no limit.
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t
from libc.string cimport memset

cdef enum:
    WINDOW_NS = 4000000
    SHARE_NS = 1000000
    REMEMBERED_MS = 5000
    HOSTS = 256                     # told apart by the last byte of their address
    FREE_FOR_EACH = 4               # packets a window that a host has in any case


cdef struct Share:
    int64_t begins                  # of this window
    int64_t spent                   # of it, on packets without a flow
    uint16_t of_host[HOSTS]         # packets without a flow that each has had in it
    uint32_t active[2]              # two hosts that have sent something in a flow of theirs
    int64_t active_at[2]            # and when


cdef inline void note_known(Share *share, uint32_t source, int64_t now) noexcept nogil:
    """A host has sent something in a flow of its own."""
    cdef int older = share.active_at[1] < share.active_at[0]
    if share.active[1 - older] == source:
        share.active_at[1 - older] = now
    else:
        share.active[older], share.active_at[older] = source, now


cdef inline bint others_are_active(const Share *share, uint32_t source, int64_t now) noexcept nogil:
    cdef int i
    for i in range(2):
        if share.active[i] != source and (now - share.active_at[i]) / 1000000 < <int64_t>REMEMBERED_MS:
            return True
    return False


cdef inline bint may_ask(Share *share, uint32_t source, int64_t now) noexcept nogil:
    """Whether Python may be asked about one more packet without a flow, from this address."""
    if now - share.begins >= <int64_t>WINDOW_NS:
        share.begins = now
        share.spent = 0
        memset(share.of_host, 0, sizeof(share.of_host))
    if (
        share.spent >= <int64_t>SHARE_NS and share.of_host[source % HOSTS] >= FREE_FOR_EACH
        and others_are_active(share, source, now)
    ):
        return False
    share.of_host[source % HOSTS] += 1
    return True
