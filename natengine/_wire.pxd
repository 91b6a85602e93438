"""An IPv4 packet in C: words, checksums, reading without trusting, rewriting in place.

What `wire/ipv4.py`, `wire/checksum.py` and `wire/rewrite.py` are in Python.  Inline functions only,
for the extensions that cimport them.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef enum:
    HOOK_PREROUTING = 0             # `vocab.Hook`
    HOOK_INPUT = 1
    HOOK_OUTPUT = 3
    HOOK_POSTROUTING = 4

    IS_ICMP = 1                     # `vocab.Proto`
    IS_TCP = 6
    IS_UDP = 17
    IS_IPIP = 4
    IS_DCCP = 33
    IS_GRE = 47
    IS_SCTP = 132
    IS_UDPLITE = 136

    PATH_TRANSLATED = 1             # `flow.records.Path`
    PATH_UNCHANGED = 2
    PATH_MISS = 3
    PATH_SPECIAL = 4
    PATH_STALE = 5
    PATH_REFUSED_STATE = 6
    PATH_REFUSED_FORWARD = 7
    PATH_BAD_HEADER = 8
    PATH_TRUNCATED = 9
    PATH_REFUSED_WINDOW = 10
    PATH_REFUSED_RATE = 11

    PPP_IN_GRE = 0x880B             # `wire.ipv4`
    CALL_ID = 6
    CALL_FLAGS = 0x2001
    CALL_MASK = 0xA007

    ECHO_REPLY = 0
    NO_QUERY = -1


cdef struct Key:                    # `FlowKey`
    uint32_t src
    uint32_t dst
    uint16_t src_port
    uint16_t dst_port
    uint8_t proto
    uint8_t leaving                 # 1: POSTROUTING, 0: PREROUTING


cdef struct Headers:                # where things are in a packet that was parsed
    Key key
    uint32_t tag                    # hash of the key; the flow table sets it
    uint32_t transport_at
    uint32_t total_len
    uint8_t tcp_flags
    bint to_head                    # the flow table has found that it is for the head itself


# ── bytes ────────────────────────────────────────────────────────────────────────────────────────
# Byte by byte: right on any alignment and byte order, and the compiler makes one load of it.

cdef inline uint16_t load16(const uint8_t *at) noexcept nogil:
    return <uint16_t>(<uint32_t>at[0] << 8 | at[1])


cdef inline uint32_t load32(const uint8_t *at) noexcept nogil:
    return <uint32_t>at[0] << 24 | <uint32_t>at[1] << 16 | <uint32_t>at[2] << 8 | at[3]


cdef inline void store16(uint8_t *at, uint16_t value) noexcept nogil:
    at[0] = <uint8_t>(value >> 8)
    at[1] = <uint8_t>value


cdef inline void store32(uint8_t *at, uint32_t value) noexcept nogil:
    at[0] = <uint8_t>(value >> 24)
    at[1] = <uint8_t>(value >> 16)
    at[2] = <uint8_t>(value >> 8)
    at[3] = <uint8_t>value


# ── checksums (RFC 1624) ─────────────────────────────────────────────────────────────────────────

cdef inline uint16_t fold(uint32_t total) noexcept nogil:
    total = (total & 0xFFFF) + (total >> 16)
    return <uint16_t>((total & 0xFFFF) + (total >> 16))


cdef inline uint32_t difference16(uint16_t old, uint16_t new) noexcept nogil:
    return <uint16_t>~old + <uint32_t>new


cdef inline uint32_t difference32(uint32_t old, uint32_t new) noexcept nogil:
    return difference16(<uint16_t>(old >> 16), <uint16_t>(new >> 16)) + difference16(<uint16_t>old, <uint16_t>new)


cdef inline uint16_t update(uint16_t value, uint32_t change) noexcept nogil:
    """Equation 3.  At most 7 words are added, so two folds are enough."""
    return <uint16_t>~fold(<uint16_t>~value + change)


# ── checksums from nothing (RFC 1071) ────────────────────────────────────────────────────────────

cdef inline uint64_t sum_bytes(const uint8_t *data, size_t length) noexcept nogil:
    """A sum in the machine's byte order, four bytes at a time: the compiler makes vectors of it."""
    cdef uint64_t total = 0
    cdef uint32_t word
    cdef size_t at
    cdef size_t words = length // 4
    for at in range(words):
        memcpy(&word, data + 4 * at, 4)
        total += word
    word = 0
    memcpy(&word, data + 4 * words, length & 3)
    return total + word


cdef inline uint16_t fold64(uint64_t total) noexcept nogil:
    total = (total & 0xFFFFFFFFu) + (total >> 32)
    total = (total & 0xFFFFFFFFu) + (total >> 32)
    return fold(<uint32_t>((total & 0xFFFF) + (total >> 16)))


cdef inline uint8_t *transport_checksum(uint8_t *data, size_t length) noexcept nogil:
    """Return where a TCP or UDP packet keeps its checksum; NULL for a later fragment, a packet that is
    not whole, and any other protocol."""
    if length < 20 or data[0] >> 4 != 4:
        return NULL
    cdef uint32_t start = (data[0] & 15) * 4
    cdef uint32_t total_len = load16(data + 2)
    cdef uint32_t at = start
    if data[9] == IS_TCP:
        at += 16
    elif data[9] == IS_UDP:
        at += 6
    else:
        return NULL
    if start < 20 or total_len > length or at + 2 > total_len or load16(data + 6) & 0x3FFF:
        return NULL
    return data + at


cdef inline uint32_t tunnelled(const uint8_t *data, size_t length) noexcept nogil:
    """Return where the IPv4 packet inside an IPIP or GRE packet begins, or 0; within `length`."""
    if length < 20 or data[0] >> 4 != 4 or load16(data + 6) & 0x3FFF:
        return 0
    cdef uint32_t start = (data[0] & 15) * 4
    cdef uint32_t total_len = load16(data + 2)
    if start < 20 or total_len > length:
        return 0
    if data[9] == IS_GRE and total_len >= start + 4 and not load16(data + start) & 7:
        if load16(data + start + 2) == 0x0800:
            start += 4 + 4 * ((data[start] >> 7) + (data[start] >> 5 & 1) + (data[start] >> 4 & 1))
            return start if start <= total_len else 0
    return start if data[9] == IS_IPIP and start <= total_len else 0


cdef inline uint32_t crc32c(const uint8_t *data, size_t length) noexcept nogil:
    cdef uint32_t value = 0xFFFFFFFFu
    cdef size_t at
    cdef int bit
    for at in range(length):
        value ^= data[at]
        for bit in range(8):
            value = value >> 1 ^ (0x82F63B78u & -(value & 1))
    return ~value


cdef inline void complete_sctp(uint8_t *data, size_t length) noexcept nogil:
    if length < 20 or data[0] >> 4 != 4 or load16(data + 6) & 0x3FFF:
        return
    cdef uint32_t start = (data[0] & 15) * 4
    cdef uint32_t total_len = load16(data + 2)
    if start < 20 or total_len > length or start + 12 > total_len:
        return
    store32(data + start + 8, 0)
    cdef uint32_t value = crc32c(data + start, total_len - start)
    store32(data + start + 8, value << 24 | (value & 0xFF00) << 8 | value >> 8 & 0xFF00 | value >> 24)


cdef inline void complete_transport_checksum(uint8_t *data, size_t length) noexcept nogil:
    """Compute the checksum of a packet that has none yet; `_fastpath_py.complete_checksum`."""
    cdef uint32_t inside = tunnelled(data, length)
    if inside:
        length = load16(data + 2) - inside
        data += inside
    if length >= 20 and data[9] == IS_SCTP:
        complete_sctp(data, length)
        return
    cdef uint8_t *field = transport_checksum(data, length)
    if field == NULL:
        return
    cdef uint32_t start = (data[0] & 15) * 4
    cdef uint32_t size = load16(data + 2) - start
    cdef uint8_t pseudo[4]              # the addresses are summed where they stand
    pseudo[0], pseudo[1] = 0, data[9]
    store16(pseudo + 2, <uint16_t>size)
    store16(field, 0)
    cdef uint16_t value = <uint16_t>~fold64(
        sum_bytes(data + 12, 8) + sum_bytes(pseudo, 4) + sum_bytes(data + start, size)
    )
    if value == 0 and data[9] == IS_UDP:
        value = 0xFFFF                  # 0 would mean "none" (RFC 768)
    memcpy(field, &value, 2)


# ── packets ──────────────────────────────────────────────────────────────────────────────────────

cdef inline int parse_untrusted(const uint8_t *data, size_t length, int hook, Headers *out) noexcept nogil:
    """Fill `out` and return 0, or return the Path of a packet that is not for us.

    After 0 every offset up to the end of the minimal transport header lies within `length`.
    """
    if length < 20:
        return PATH_TRUNCATED
    out.transport_at = (data[0] & 15) * 4
    out.total_len = load16(data + 2)
    if data[0] >> 4 != 4 or out.transport_at < 20 or out.total_len < out.transport_at:
        return PATH_BAD_HEADER
    if out.total_len > length:
        return PATH_TRUNCATED
    out.key.proto = data[9]
    if load16(data + 6) & 0x3FFF:       # more fragments, or an offset
        return PATH_SPECIAL
    out.key.src = load32(data + 12)
    out.key.dst = load32(data + 16)
    out.key.leaving = hook == HOOK_POSTROUTING
    cdef int path = 0
    cdef uint8_t proto = out.key.proto
    out.tcp_flags = 0
    if proto == IS_TCP or proto == IS_UDP or proto == IS_DCCP or proto == IS_SCTP or proto == IS_UDPLITE:
        path = parse_ports(data + out.transport_at, out.total_len - out.transport_at, out)
    elif proto == IS_ICMP:
        path = parse_query(data + out.transport_at, out.total_len - out.transport_at, out)
    else:
        out.key.src_port = out.key.dst_port = 0
        if proto == IS_GRE:
            parse_call(data + out.transport_at, out.total_len - out.transport_at, out)
    if path == 0 and hook != HOOK_POSTROUTING and hook != HOOK_PREROUTING:
        return PATH_MISS                # no flow has a tuple of another hook
    return path


cdef inline int parse_ports(const uint8_t *transport, uint32_t room, Headers *out) noexcept nogil:
    cdef uint8_t proto = out.key.proto
    cdef uint32_t least = 20 if proto == IS_TCP else 12 if proto == IS_DCCP or proto == IS_SCTP else 8
    cdef uint32_t announced = least
    if room < least:
        return PATH_BAD_HEADER
    if proto == IS_TCP:
        announced = (transport[12] >> 4) * 4
        out.tcp_flags = transport[13]
    elif proto == IS_DCCP:
        announced = transport[4] * 4
    elif proto != IS_SCTP:
        announced = load16(transport + 4)
        if announced == 0 and proto == IS_UDPLITE:      # 0 is all
            announced = room
    if announced < least or announced > room:
        return PATH_BAD_HEADER
    out.key.src_port = load16(transport)
    out.key.dst_port = load16(transport + 2)
    return 0


cdef inline void parse_call(const uint8_t *transport, uint32_t room, Headers *out) noexcept nogil:
    """`wire.ipv4.read_call`."""
    if room >= 8 and load16(transport) & CALL_MASK == CALL_FLAGS and load16(transport + 2) == PPP_IN_GRE:
        out.key.src_port = PPP_IN_GRE
        out.key.dst_port = load16(transport + CALL_ID)


cdef inline int counterpart(uint8_t icmp_type) noexcept nogil:
    """`wire.ipv4.ICMP_COUNTERPART`, or NO_QUERY."""
    if icmp_type == 0 or icmp_type == 8:
        return 8 - icmp_type
    if icmp_type == 13 or icmp_type == 14:
        return 13 + 14 - icmp_type
    if icmp_type == 17 or icmp_type == 18:
        return 17 + 18 - icmp_type
    return NO_QUERY


cdef inline int parse_query(const uint8_t *transport, uint32_t room, Headers *out) noexcept nogil:
    """The identifier is the inside's port; the type that the inside sends stands for the peer's."""
    if room < 8:
        return PATH_BAD_HEADER
    cdef int other = counterpart(transport[0])
    if other == NO_QUERY:
        return PATH_SPECIAL
    out.key.src_port = out.key.dst_port = load16(transport + 4)
    if out.key.leaving:
        out.key.dst_port = transport[0]
    else:
        out.key.src_port = <uint16_t>other
    return 0


cdef inline void rewrite(uint8_t *data, const Headers *headers, uint32_t new_ip, uint16_t new_port) noexcept nogil:
    """Write one endpoint (a leaving packet's source, an arriving one's destination) and the checksums."""
    cdef bint leaving = headers.key.leaving
    cdef uint8_t *transport = data + headers.transport_at
    cdef uint8_t proto = headers.key.proto
    cdef uint32_t change = difference32(headers.key.src if leaving else headers.key.dst, new_ip)
    store32(data + (12 if leaving else 16), new_ip)
    store16(data + 10, update(load16(data + 10), change))
    if proto == IS_ICMP:
        rewrite_query(transport, headers.total_len - headers.transport_at, new_port)
        return
    if proto != IS_TCP and proto != IS_UDP and proto != IS_DCCP and proto != IS_UDPLITE:
        # the call id of a known call; or there is nothing that could follow a change
        if proto == IS_GRE and headers.key.src_port == PPP_IN_GRE and not leaving and new_port:
            store16(transport + CALL_ID, new_port)
        return
    cdef uint8_t *port = transport + (0 if leaving else 2)
    change += difference16(load16(port), new_port)
    store16(port, new_port)
    cdef uint8_t *checksum = transport + (16 if proto == IS_TCP else 6)
    cdef uint16_t value = load16(checksum)
    if value == 0 and proto == IS_UDP:  # the sender computed none (RFC 768)
        return
    value = update(value, change)
    if value == 0 and (proto == IS_UDP or proto == IS_UDPLITE):
        value = 0xFFFF                  # 0 would mean "none"
    store16(checksum, value)


cdef inline void rewrite_query(uint8_t *transport, uint32_t size, uint16_t new_id) noexcept nogil:
    """Write an identifier.  The ICMP checksum has no pseudo-header: without a change it stays."""
    cdef uint16_t old_id = load16(transport + 4)
    if old_id == new_id:
        return
    cdef uint16_t value = update(load16(transport + 2), difference16(old_id, new_id))
    store16(transport + 2, value)
    store16(transport + 4, new_id)
    cdef uint32_t at
    if value == 0 and transport[0] == ECHO_REPLY:
        for at in range(size):
            if transport[at]:
                return
        store16(transport + 2, 0xFFFF)  # all zeros: the one case where the other zero is right
