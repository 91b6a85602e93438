"""TCP connection states, as data.

Rule 1: every transition lives in TRANSITIONS; no code elsewhere decides a state.
Rule 2: both fast paths receive this table at construction, so they cannot disagree about it.

The names are nf_conntrack's and so is the shape of the table (net/netfilter/nf_conntrack_proto_tcp.c).
Seen from the host that opened the connection:

    SYN_SENT ──reply SYN+ACK──> SYN_RECV ──ACK──> ESTABLISHED
        │                                          │         │
    reply SYN (simultaneous open)            our FIN         their FIN
        v                                          v         v
    SYN_SENT2 ──SYN+ACK──> SYN_RECV           FIN_WAIT    CLOSE_WAIT
                                          their FIN │         │ our FIN
                                                    v         v
                 any RST ──> CLOSE                   LAST_ACK ──ACK──> TIME_WAIT ──SYN──> SYN_SENT

Departures from nf_conntrack:
 1. FIN_WAIT and CLOSE_WAIT remember who closed (RFC 6146 3.5.2.2), so a FIN that is sent twice
    does not count as the other side's, and a half-closed connection keeps the established timeout.
 2. A segment after RST brings the connection back (RFC 7857 2.2: the RST may have been forged or lost).
 3. A SYN from the opener starts CLOSE and TIME_WAIT over.
Sequence numbers are the business of `flow.tcp_window`: a segment outside its window never gets here.
"""

from __future__ import annotations

import enum

from natengine.settings import Timeouts
from natengine.wire.tcp import ACK, FIN, RST, SYN


class TcpState(enum.IntEnum):
    """Connection states; the numbers are those of enum tcp_conntrack in linux/netfilter."""

    NONE = 0
    SYN_SENT = 1
    SYN_RECV = 2
    ESTABLISHED = 3
    FIN_WAIT = 4
    CLOSE_WAIT = 5
    LAST_ACK = 6
    TIME_WAIT = 7
    CLOSE = 8
    SYN_SENT2 = 9


class Segment(enum.IntEnum):
    """What a segment is to the state machine."""

    SYN = 0
    SYN_ACK = 1
    FIN = 2
    ACK = 3
    RST = 4
    ILLEGAL = 5


REFUSED = 255                       # the segment does not belong to this state: drop it, change nothing


def classify(flags: int) -> Segment:
    """Return what a segment with these TCP flags (byte 13 of the header) is.

    No flags at all, SYN with FIN or RST, and FIN without ACK are never sent by a TCP (RFC 9293).
    """
    if flags & RST:
        return Segment.ILLEGAL if flags & (SYN | FIN) else Segment.RST
    if flags & SYN:
        if flags & FIN:
            return Segment.ILLEGAL
        return Segment.SYN_ACK if flags & ACK else Segment.SYN
    if flags & ACK:
        return Segment.FIN if flags & FIN else Segment.ACK
    return Segment.ILLEGAL


SEGMENT_OF_FLAGS = bytes(classify(flags) for flags in range(256))

_SS, _SR, _ES, _FW, _CW, _LA, _TW, _CL, _S2 = (TcpState(n) for n in range(1, 10))
__ = REFUSED

#   state before:        NONE SS   SR   ES   FW   CW   LA   TW   CL   S2
_ORIGINAL = {
    Segment.SYN:        (_SS, _SS, _SR, _ES, _FW, _CW, _LA, _SS, _SS, _S2),
    Segment.SYN_ACK:    (__,  __,  _SR, _ES, __,  __,  __,  __,  __,  _SR),
    Segment.FIN:        (__,  __,  _FW, _FW, _FW, _LA, _LA, _TW, _FW, __),
    Segment.ACK:        (_ES, __,  _ES, _ES, _FW, _CW, _TW, _TW, _ES, __),
    Segment.RST:        (__,  _CL, _CL, _CL, _CL, _CL, _CL, _CL, _CL, _CL),
    Segment.ILLEGAL:    (__,  __,  __,  __,  __,  __,  __,  __,  __,  __),
}
_REPLY = {
    Segment.SYN:        (__,  _S2, __,  __,  __,  __,  __,  __,  __,  _S2),
    Segment.SYN_ACK:    (_SR, _SR, _SR, _ES, _FW, _CW, _LA, _TW, _CL, _SR),
    Segment.FIN:        (_CW, __,  _CW, _CW, _LA, _CW, _LA, _TW, _CW, __),
    Segment.ACK:        (_ES, _SS, _SR, _ES, _FW, _CW, _TW, _TW, _ES, _S2),
    Segment.RST:        (__,  _CL, _CL, _CL, _CL, _CL, _CL, _CL, _CL, _CL),
    Segment.ILLEGAL:    (__,  __,  __,  __,  __,  __,  __,  __,  __,  __),
}
# NONE is the state of a flow that is being created by this very segment: a SYN from the opener, or
# a segment of one of the head's own connections, the opening of which went by unseen.

STATES, SEGMENTS = len(TcpState), len(Segment)


def flatten() -> bytes:
    """Return the table as both fast paths take it: index (is_reply * 6 + segment) * 10 + state."""
    return bytes(
        state for table in (_ORIGINAL, _REPLY) for segment in Segment for state in table[segment]
    )


TRANSITIONS = flatten()

LASTING = frozenset({TcpState.ESTABLISHED, TcpState.FIN_WAIT, TcpState.CLOSE_WAIT})


def timeouts_by_state(timeouts: Timeouts) -> tuple[int, ...]:
    """Return the idle timeout in nanoseconds of each state, indexed by `TcpState`.

    RFC 5382 REQ-5: an established connection, and a half-closed one, lives 2 h 4 min; one that is
    being opened or closed 4 min; unless its state has been given a time of its own.
    """
    own = {
        TcpState.SYN_SENT: timeouts.tcp_syn_sent_ns,
        TcpState.SYN_SENT2: timeouts.tcp_syn_sent_ns,       # conntrack has no name for its time either
        TcpState.SYN_RECV: timeouts.tcp_syn_recv_ns,
        TcpState.FIN_WAIT: timeouts.tcp_fin_wait_ns,
        TcpState.CLOSE_WAIT: timeouts.tcp_close_wait_ns,
        TcpState.LAST_ACK: timeouts.tcp_last_ack_ns,
        TcpState.TIME_WAIT: timeouts.tcp_time_wait_ns,
        TcpState.CLOSE: timeouts.tcp_close_ns,
    }

    def timeout_of(state: TcpState) -> int:
        mine = own.get(state)
        if mine is not None:
            return mine
        return timeouts.tcp_established_ns if state in LASTING else timeouts.tcp_transitory_ns

    return tuple(map(timeout_of, TcpState))
