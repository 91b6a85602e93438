"""TCP sequence windows in C: `flow/tcp_window.py` and `wire/tcp.py` once more, on two `Side`s in place.

Inline functions only, for the extension that cimports them.
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t

from natengine._wire cimport Headers, difference16, load16, load32, store16, update


cdef enum:
    FLAG_FIN = 1                    # `wire.tcp`
    FLAG_SYN = 2
    FLAG_RST = 4
    FLAG_ACK = 16
    NO_SCALE = 15
    MAX_SCALE = 14
    LARGEST_WINDOW = 0xFFFF << 14

    STATE_NONE = 0                  # `flow.tcp_state.TcpState`
    STATE_SYN_SENT = 1
    STATE_SYN_RECV = 2
    STATE_SYN_SENT2 = 9

    BELONGS = 0                     # `flow.tcp_window.Judgement`
    ASIDE = 1
    OUTSIDE = 2
    ACK_SPREAD = 65535
    PROBES = 2


cdef struct Side:                   # its scale is kept apart, for room
    uint32_t end
    uint32_t acked
    uint32_t max_win


cdef struct Segment:                # `TcpSegment`
    uint32_t seq
    uint32_t end
    uint32_t ack
    uint16_t window
    uint8_t flags
    uint8_t scale


cdef inline void read_segment(const uint8_t *data, const Headers *headers, Segment *out) noexcept nogil:
    """Read a segment that `parse_untrusted` has let pass: its header lies within the packet."""
    cdef const uint8_t *tcp = data + headers.transport_at
    cdef uint32_t header_len = (tcp[12] >> 4) * 4
    out.flags = tcp[13]
    out.seq = load32(tcp + 4)
    out.ack = load32(tcp + 8)
    out.window = load16(tcp + 14)
    out.end = out.seq + headers.total_len - headers.transport_at - header_len
    out.end += (out.flags & FLAG_SYN != 0) + (out.flags & FLAG_FIN != 0)
    out.scale = offered_scale(tcp + 20, header_len - 20) if out.flags & FLAG_SYN else <uint8_t>NO_SCALE


cdef inline uint8_t offered_scale(const uint8_t *options, uint32_t length) noexcept nogil:
    """Return the shift of the window scale option."""
    cdef int at = find_option(options, length, 3, 3)
    return NO_SCALE if at < 0 else min(options[at + 2], <uint8_t>MAX_SCALE)


cdef inline bint clamp_mss(uint8_t *data, const Headers *headers, uint16_t limit) noexcept nogil:
    """`wire.tcp.clamp_mss`."""
    cdef uint8_t *tcp = data + headers.transport_at
    cdef int found = find_option(tcp + 20, (tcp[12] >> 4) * 4 - 20, 2, 4)
    if found < 0:
        return False
    cdef uint8_t *at = tcp + 20 + found + 2
    cdef uint16_t offered = load16(at)
    if offered <= limit:
        return False
    cdef uint32_t change = difference16(offered, limit)
    if found & 1:                       # the two bytes are halves of two words
        change = difference16(<uint16_t>(offered << 8 | offered >> 8), <uint16_t>(limit << 8 | limit >> 8))
    store16(at, limit)
    store16(tcp + 16, update(load16(tcp + 16), change))
    return True


cdef inline int find_option(const uint8_t *options, uint32_t length, uint8_t kind, uint32_t wanted) noexcept nogil:
    """Return where an option of this kind and length is, or -1; what is malformed ends the list."""
    cdef uint32_t at = 0, size
    while at < length and options[at] != 0:
        if options[at] == 1:
            at += 1
            continue
        size = options[at + 1] if at + 1 < length else 0
        if size < 2 or at + size > length:
            break
        if options[at] == kind and size == wanted:
            return <int>at
        at += size
    return -1


cdef inline int32_t distance(uint32_t to, uint32_t start) noexcept nogil:
    return <int32_t>(to - start)


cdef inline int judge(
    const Side *sides, bint is_reply, const Segment *segment, uint8_t before, uint8_t after
) noexcept nogil:
    cdef const Side *sender = &sides[is_reply]
    cdef const Side *receiver = &sides[not is_reply]
    if segment.flags & FLAG_SYN:
        if after != STATE_SYN_SENT and after != STATE_SYN_RECV and after != STATE_SYN_SENT2:
            return ASIDE
        if after == STATE_SYN_SENT:
            return BELONGS
    if not receiver.max_win:
        return BELONGS
    if before == STATE_SYN_SENT:
        return judge_first_answer(sender, receiver, segment)
    if segment.flags & FLAG_RST and (segment.seq == sender.end or segment.seq == receiver.acked):
        return BELONGS
    if not fits(sender, receiver, segment):
        return OUTSIDE
    return ASIDE if segment.flags & FLAG_RST else BELONGS


cdef inline int judge_first_answer(const Side *sender, const Side *receiver, const Segment *segment) noexcept nogil:
    if not segment.flags & FLAG_ACK:
        return OUTSIDE if segment.flags & FLAG_RST else BELONGS
    if not segment.flags & (FLAG_SYN | FLAG_RST):
        return ASIDE
    if 0 < distance(segment.ack, sender.acked) <= distance(receiver.end, sender.acked):
        return BELONGS
    return OUTSIDE


cdef inline bint fits(const Side *sender, const Side *receiver, const Segment *segment) noexcept nogil:
    if distance(segment.seq, receiver.acked) > <int32_t>receiver.max_win:
        return False
    if distance(segment.end, receiver.acked) < -<int32_t>receiver.max_win - PROBES:
        return False
    if not segment.flags & FLAG_ACK:
        return True
    if distance(segment.ack, receiver.end) > 0:
        return False
    cdef int32_t spread = max(<int32_t>sender.max_win, ACK_SPREAD)
    return not sender.max_win or distance(sender.acked, segment.ack) <= spread


cdef inline void note_segment(
    Side *sides, uint8_t *scales, bint is_reply, const Segment *segment, uint8_t before, uint8_t after
) noexcept nogil:
    """`note`: what is known when a segment that BELONGS has gone by."""
    cdef Side *sender = &sides[is_reply]
    cdef Side *receiver = &sides[not is_reply]
    if segment.flags & FLAG_RST:
        return
    if segment.flags & FLAG_SYN and after == STATE_SYN_SENT:
        sides[0].end = sides[0].acked = sides[0].max_win = scales[0] = 0
        sides[1].end = sides[1].acked = sides[1].max_win = scales[1] = 0
    if sender.max_win:
        advance(sender, window(scales[is_reply], segment), segment)
        return
    if segment.flags & FLAG_SYN:
        open_scales(scales, is_reply, receiver.max_win != 0, segment)
    elif before == STATE_NONE:
        scales[0] = scales[1] = MAX_SCALE
    meet(sender, receiver, window(scales[is_reply], segment), segment)


cdef inline void open_scales(
    uint8_t *scales, bint is_reply, bint receiver_heard, const Segment *segment
) noexcept nogil:
    """Of a side's SYN.  Both have to offer a scale, or windows are not scaled (RFC 7323 2.2)."""
    scales[is_reply] = segment.scale
    if not receiver_heard and segment.flags & FLAG_ACK:
        scales[not is_reply] = MAX_SCALE
    if (receiver_heard or segment.flags & FLAG_ACK) and (scales[0] == NO_SCALE or scales[1] == NO_SCALE):
        scales[0] = scales[1] = 0


cdef inline void meet(Side *sender, Side *receiver, uint32_t win, const Segment *segment) noexcept nogil:
    sender.end = segment.end
    sender.max_win = max(win, 1)
    if segment.flags & FLAG_ACK:
        sender.acked = segment.ack
    if segment.flags & FLAG_SYN or not receiver.max_win:
        receiver.acked = segment.seq


cdef inline void advance(Side *sender, uint32_t win, const Segment *segment) noexcept nogil:
    if distance(segment.end, sender.end) > 0:
        sender.end = segment.end
    if segment.flags & FLAG_ACK and distance(segment.ack, sender.acked) > 0:
        sender.acked = segment.ack
    sender.max_win = max(sender.max_win, win)


cdef inline bint has_unacknowledged(const Side *sides) noexcept nogil:
    if not sides[0].max_win or not sides[1].max_win:
        return False
    return distance(sides[0].end, sides[1].acked) > 0 or distance(sides[1].end, sides[0].acked) > 0


cdef inline uint32_t window(uint8_t scale, const Segment *segment) noexcept nogil:
    """The offered window in bytes; that of a SYN is not scaled (RFC 7323 2.2)."""
    if segment.flags & FLAG_SYN or scale == NO_SCALE:
        return segment.window
    return <uint32_t>segment.window << scale
