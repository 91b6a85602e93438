"""The index in C: from the hash of a tuple to the record of its flow, and the memory both are in.

Open addressing with linear probing.  Two entries a flow, for its leaving and its arriving tuple, and at least
half of all entries are free.  The hash is SipHash-1-3 under a secret key, so nobody outside can aim packets at
one bucket.  Inline functions only, for the extension that cimports them.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc
from posix.mman cimport MADV_HUGEPAGE, madvise

from natengine._flow_record cimport CACHE_LINE, NOBODY, Flow, has_tuple, key_of
from natengine._wire cimport IS_GRE, PPP_IN_GRE, Key


cdef extern from *:
    """
    #define prefetch(address) __builtin_prefetch(address)
    """
    void prefetch(const void *address) noexcept nogil


cdef enum:
    PAGE = 4096


cdef struct Entry:
    uint32_t tag                    # hash of the tuple
    uint32_t ref                    # flow id + 1, and in bit 0 which of its tuples; 0: free


cdef struct Index:
    Entry *entries
    uint32_t mask                   # their number, a power of two, less one
    uint64_t secret[2]


# ── hash ─────────────────────────────────────────────────────────────────────────────────────────

cdef inline uint64_t rotate(uint64_t word, int bits) noexcept nogil:
    return word << bits | word >> (64 - bits)


cdef inline void sip_round(uint64_t *v) noexcept nogil:
    v[0] += v[1]
    v[2] += v[3]
    v[1] = rotate(v[1], 13) ^ v[0]
    v[3] = rotate(v[3], 16) ^ v[2]
    v[0] = rotate(v[0], 32)
    v[2] += v[1]
    v[0] += v[3]
    v[1] = rotate(v[1], 17) ^ v[2]
    v[3] = rotate(v[3], 21) ^ v[0]
    v[2] = rotate(v[2], 32)


cdef inline uint32_t hash_of(const Key *key, const uint64_t *secret) noexcept nogil:
    """SipHash-1-3 of the tuple as a message of 14 bytes, which is two words with its length."""
    cdef uint64_t v[4]
    cdef uint64_t first = key.src | <uint64_t>key.dst << 32
    cdef uint64_t second = (
        key.src_port | <uint64_t>key.dst_port << 16 | <uint64_t>key.proto << 32 | <uint64_t>key.leaving << 40
        | <uint64_t>14 << 56
    )
    v[0] = secret[0] ^ 0x736F6D6570736575u
    v[1] = secret[1] ^ 0x646F72616E646F6Du
    v[2] = secret[0] ^ 0x6C7967656E657261u
    v[3] = secret[1] ^ 0x7465646279746573u
    v[3] ^= first
    sip_round(v)
    v[0] ^= first
    v[3] ^= second
    sip_round(v)
    v[0] ^= second
    v[2] ^= 0xFF
    sip_round(v)
    sip_round(v)
    sip_round(v)
    return <uint32_t>(v[0] ^ v[1] ^ v[2] ^ v[3])


# ── memory ───────────────────────────────────────────────────────────────────────────────────────

cdef inline void *new_memory(size_t size) noexcept nogil:
    """Zeroed memory, NULL if there is none: untouched pages, so that a table costs memory as it fills.

    They are huge ones where the kernel grants them: with small ones a packet of a large table waits longer for
    the address of a page than for what is in it.
    """
    cdef void *memory = calloc(1, size)
    cdef uintptr_t first = (<uintptr_t>memory + PAGE - 1) & ~<uintptr_t>(PAGE - 1)
    if memory != NULL and size > 2 * PAGE:
        madvise(<void *>first, <uintptr_t>memory + size - first, MADV_HUGEPAGE)
    return memory


# ── entries ──────────────────────────────────────────────────────────────────────────────────────

cdef inline void expect(const Index *index, uint32_t tag) noexcept nogil:
    """Ask for the entry of a tuple with this hash."""
    prefetch(&index.entries[tag & index.mask])


cdef inline void expect_flow(const Index *index, const Flow *flows, uint32_t tag) noexcept nogil:
    """Ask for the record that is entered under this hash, if there is one."""
    cdef uint32_t at = tag & index.mask
    cdef const Flow *flow
    while index.entries[at].ref:
        if index.entries[at].tag == tag:
            flow = &flows[(index.entries[at].ref >> 1) - 1]
            prefetch(flow)
            prefetch(<const uint8_t *>flow + CACHE_LINE)
            return
        at = (at + 1) & index.mask


cdef inline uint32_t lookup(const Index *index, const Flow *flows, const Key *key, uint32_t tag) noexcept nogil:
    """Return the id of the flow with this tuple, or NOBODY."""
    cdef uint32_t at = tag & index.mask
    cdef uint32_t flow_id
    while index.entries[at].ref:
        if index.entries[at].tag == tag and index.entries[at].ref & 1 == key.leaving:
            flow_id = (index.entries[at].ref >> 1) - 1
            if has_tuple(&flows[flow_id], key):
                return flow_id
        at = (at + 1) & index.mask
    return NOBODY


cdef inline uint32_t flow_of(const Index *index, const Flow *flows, Key *key, uint32_t tag) noexcept nogil:
    """Return the id of the flow that a packet with this tuple belongs to, or NOBODY.

    A PPTP packet whose call is not known has the tuple of all GRE of its two hosts; then `key` is that.
    """
    cdef uint32_t flow_id = lookup(index, flows, key, tag)
    if flow_id == NOBODY and key.proto == IS_GRE and key.src_port == PPP_IN_GRE:
        key.src_port = key.dst_port = 0
        flow_id = flow_with(index, flows, key)
    return flow_id


cdef inline uint32_t flow_with(const Index *index, const Flow *flows, const Key *key) noexcept nogil:
    return lookup(index, flows, key, hash_of(key, index.secret))


cdef inline void enter(Index *index, const Flow *flows, uint32_t flow_id, bint leaving) noexcept nogil:
    """Make a flow be found by one of its tuples, which nobody else has."""
    cdef Key key = key_of(&flows[flow_id], leaving)
    cdef uint32_t tag = hash_of(&key, index.secret)
    cdef uint32_t at = tag & index.mask
    while index.entries[at].ref:
        at = (at + 1) & index.mask
    index.entries[at].tag = tag
    index.entries[at].ref = (flow_id + 1) << 1 | leaving


cdef inline void forget(Index *index, const Flow *flows, uint32_t flow_id, bint leaving) noexcept nogil:
    """Undo `enter`.

    Later entries of the cluster move back, and no tombstone is left: a table that has seen a billion flows is
    as fast as a new one.
    """
    cdef Key key = key_of(&flows[flow_id], leaving)
    cdef uint32_t mask = index.mask
    cdef uint32_t at = hash_of(&key, index.secret) & mask
    while index.entries[at].ref != ((flow_id + 1) << 1 | leaving):
        at = (at + 1) & mask
    cdef uint32_t hole = at
    while True:
        at = (at + 1) & mask
        if index.entries[at].ref == 0:
            break
        # An entry may fill the hole unless its home lies behind the hole: a probe starts at home.
        if ((at - index.entries[at].tag) & mask) >= ((at - hole) & mask):
            index.entries[hole] = index.entries[at]
            hole = at
    index.entries[hole].ref = 0
