"""TCP sequence windows: which segments can be part of a connection (RFC 9293 3.10.7.4, RFC 5961).

Who is not on the path does not see the sequence numbers and has to guess them.  So we remember, for
each side, what went by:

    end       one past the last number that it has sent
    acked     the next number that it expects
    max_win   the widest window that it has offered, in bytes; 0: it has not been heard

and measure what one side sends against what the other has acknowledged and offered:

                     acked - max_win              acked              acked + max_win
    ────────────────────────┼───────────────────────┼───────────────────────┼────────────────
       older than any that  │  sent once more: its  │  new: the receiver    │  never asked for
       could be under way   │  ACK may be lost      │  has offered as much  │

An ACK has to be for something that was sent, and not older than a window.  A RST that is just inside
the window is a guess that came close; the one who knows sends exactly the next number.

Differences from nf_conntrack's tcp_in_window: numbers are compared with the widest window offered so far, not
with the newest edge (a window that shrinks does not make segments under way invalid), and as the
lower bound of an ACK is a whole window, SACK blocks need not be looked at.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from natengine.flow.tcp_state import TcpState
from natengine.wire.tcp import ACK, MAX_SCALE, NO_SCALE, RST, SYN, TcpSegment

OPENING = frozenset({TcpState.SYN_SENT, TcpState.SYN_RECV, TcpState.SYN_SENT2})

ACK_SPREAD = 65535                  # how far ACKs may overtake each other, at least
LARGEST_WINDOW = 0xFFFF << MAX_SCALE
PROBES = 2                          # a zero-window probe and a keepalive: one number each outside the window


class Side(NamedTuple):
    """What one side of a connection has let us see."""

    end: int = 0
    acked: int = 0
    max_win: int = 0
    scale: int = 0                  # shift of its windows; NO_SCALE while only its SYN was seen, without the option


Sides = tuple[Side, Side]           # of the opener, of the other: index with `is_reply`

UNHEARD = Side()
UNHEARD_SIDES = (UNHEARD, UNHEARD)


class Judgement(enum.IntEnum):
    """What a segment is to a connection."""

    BELONGS = 0                     # part of it
    ASIDE = 1                       # not for us to refuse, but nothing follows from it: no state, no numbers
    OUTSIDE = 2                     # no part of it


def judge(sides: Sides, is_reply: bool, segment: TcpSegment, before: int, after: int) -> Judgement:
    """Judge a segment.

    Args:
        before: The connection's state.
        after: The state that this segment would lead to (`flow.tcp_state.TRANSITIONS`).
    """
    sender, receiver = sides[is_reply], sides[not is_reply]
    if segment.flags & SYN:
        if after not in OPENING:
            return Judgement.ASIDE                  # RFC 5961 4: its receiver asks back, and the RST it gets is exact
        if after == TcpState.SYN_SENT:
            return Judgement.BELONGS
    if not receiver.max_win:
        return Judgement.BELONGS
    if before == TcpState.SYN_SENT:
        return _judge_first_answer(sender, receiver, segment)
    if segment.flags & RST and segment.seq in (sender.end, receiver.acked):
        return Judgement.BELONGS
    if not _fits(sender, receiver, segment):
        return Judgement.OUTSIDE
    return Judgement.ASIDE if segment.flags & RST else Judgement.BELONGS    # RFC 5961 3.2


def _judge_first_answer(sender: Side, receiver: Side, segment: TcpSegment) -> Judgement:
    """The opener's SYN is all that was seen; `sender.acked` is its number."""
    if not segment.flags & ACK:                     # a SYN: simultaneous open
        return Judgement.OUTSIDE if segment.flags & RST else Judgement.BELONGS
    if not segment.flags & (SYN | RST):
        return Judgement.ASIDE                      # about an older connection; the opener will answer with RST
    acknowledges_it = 0 < distance(segment.ack, sender.acked) <= distance(receiver.end, sender.acked)
    return Judgement.BELONGS if acknowledges_it else Judgement.OUTSIDE


def _fits(sender: Side, receiver: Side, segment: TcpSegment) -> bool:
    if distance(segment.seq, receiver.acked) > receiver.max_win:
        return False
    if distance(segment.end, receiver.acked) < -receiver.max_win - PROBES:
        return False
    if not segment.flags & ACK:
        return True
    if distance(segment.ack, receiver.end) > 0:
        return False
    return not sender.max_win or distance(sender.acked, segment.ack) <= max(sender.max_win, ACK_SPREAD)


def note(sides: Sides, is_reply: bool, segment: TcpSegment, before: int, after: int) -> Sides:
    """Return what is known when a segment that BELONGS has gone by; arguments as `judge`."""
    if segment.flags & RST:
        return sides
    if segment.flags & SYN and after == TcpState.SYN_SENT:
        sides = UNHEARD_SIDES                       # the connection begins, or starts over
    sender, receiver = sides[is_reply], sides[not is_reply]
    if sender.max_win:
        sender = _advance(sender, segment)
    else:
        if segment.flags & SYN:
            sender, receiver = _open_scales(sender, receiver, segment)
        elif before == TcpState.NONE:               # the SYNs went by unseen: any scale is possible
            sender, receiver = sender._replace(scale=MAX_SCALE), receiver._replace(scale=MAX_SCALE)
        sender, receiver = _meet(sender, receiver, segment)
    return (receiver, sender) if is_reply else (sender, receiver)


def _open_scales(sender: Side, receiver: Side, segment: TcpSegment) -> Sides:
    """Of a side's SYN.  Both have to offer a scale, or windows are not scaled (RFC 7323 2.2)."""
    mine, other = segment.scale, receiver.scale
    if not receiver.max_win and segment.flags & ACK:        # the other's SYN went by unseen
        other = MAX_SCALE
    if (receiver.max_win or segment.flags & ACK) and NO_SCALE in (mine, other):
        mine = other = 0
    return sender._replace(scale=mine), receiver._replace(scale=other)


def _meet(sender: Side, receiver: Side, segment: TcpSegment) -> Sides:
    """The first segment of a side also says what the other side expects."""
    sender = sender._replace(end=segment.end, max_win=max(_window(sender, segment), 1))
    if segment.flags & ACK:
        sender = sender._replace(acked=segment.ack)
    if segment.flags & SYN or not receiver.max_win:
        receiver = receiver._replace(acked=segment.seq)
    return sender, receiver


def _advance(sender: Side, segment: TcpSegment) -> Side:
    end = segment.end if distance(segment.end, sender.end) > 0 else sender.end
    acked = sender.acked
    if segment.flags & ACK and distance(segment.ack, acked) > 0:
        acked = segment.ack
    return Side(end, acked, max(sender.max_win, _window(sender, segment)), sender.scale)


def _window(sender: Side, segment: TcpSegment) -> int:
    """The offered window in bytes; that of a SYN is not scaled (RFC 7323 2.2)."""
    return segment.window if segment.flags & SYN or sender.scale == NO_SCALE else segment.window << sender.scale


def has_unacknowledged(sides: Sides) -> bool:
    """Say whether either side, as far as we have seen, waits for the ACK of something that it has sent."""
    return any(
        sender.max_win and receiver.max_win and distance(sender.end, receiver.acked) > 0
        for sender, receiver in (sides, sides[::-1])
    )


def unhear(sides: Sides, is_reply: bool) -> Sides:
    """Return the sides when one has sent what was not read: its next segment tells its numbers anew."""
    sender = sides[is_reply]._replace(max_win=0)
    return (sides[0], sender) if is_reply else (sender, sides[1])


def distance(to: int, start: int) -> int:
    """How far `to` is ahead of `start`, or behind (negative); the numbers are a circle of 2**32 (RFC 9293 3.4)."""
    return ((to - start + 0x8000_0000) & 0xFFFF_FFFF) - 0x8000_0000
