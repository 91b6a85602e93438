"""Honest connections are never refused, however the network treats them; guesses nearly always are.

Two ends that keep to RFC 9293 talk through a gateway.  On both sides of it segments are lost, sent twice
and overtake each other; windows open, close and shrink; data is sent again from anywhere.

A segment may be refused if its receiver would have no use for it: nothing in it that is new, or in the
window, and no news about what has arrived.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from natengine.flow.tcp_state import REFUSED, SEGMENT_OF_FLAGS, SEGMENTS, STATES, TRANSITIONS, TcpState
from natengine.flow.tcp_window import UNHEARD_SIDES, Judgement, distance, judge, note
from natengine.wire.tcp import ACK, FIN, NO_SCALE, RST, SYN, TcpSegment

EXAMPLES = int(os.environ.get("NATENGINE_EXAMPLES", "80"))
MASK = 0xFFFF_FFFF


@dataclass
class End:
    """One end.  `arrived` holds, by first number, what has come out of order."""

    rng: random.Random
    scale: int
    buffer: int                     # bytes it is willing to keep: its widest window
    next_seq: int
    una: int = 0
    expected: int = 0
    peer_window: int = 0
    edge: int = 0                   # where the windows it has offered end; RFC 9293 lets it shrink, though
    scaled: bool = False
    arrived: dict[int, int] = field(default_factory=dict)

    def window(self) -> int:
        return self.rng.choice((0, self.rng.randrange(self.buffer + 1), self.buffer, self.buffer))

    def segment(self, flags: int, seq: int, length: int = 0) -> TcpSegment:
        window = min(self.window() >> (self.scale if self.scaled and not flags & SYN else 0), 65535)
        offered = window << (self.scale if self.scaled and not flags & SYN else 0)
        if distance(self.expected + offered, self.edge) > 0:
            self.edge = (self.expected + offered) & MASK
        end = (seq + length + bool(flags & SYN) + bool(flags & FIN)) & MASK
        return TcpSegment(seq, end, self.expected, flags, window, self.scale if flags & SYN else NO_SCALE)

    def speak(self) -> TcpSegment:
        """Send something: new data, old data, a probe, a keepalive, or only an ACK."""
        in_flight = distance(self.next_seq, self.una)
        room = self.peer_window - in_flight
        choice = self.rng.randrange(6)
        if choice <= 1 and room > 0:
            return self.sent(self.segment(ACK, self.next_seq, self.rng.randrange(1, min(room, 70_000) + 1)))
        if choice == 2 and in_flight > 0:
            start = self.rng.randrange(in_flight)
            return self.segment(ACK, (self.una + start) & MASK, self.rng.randrange(1, in_flight - start + 1))
        if choice == 3 and room <= 0 and in_flight == 0:
            return self.sent(self.segment(ACK, self.next_seq, 1))           # a zero-window probe
        if choice == 4:
            return self.segment(ACK, (self.una - 1) & MASK)                 # a keepalive
        return self.segment(ACK, self.next_seq)

    def sent(self, segment: TcpSegment) -> TcpSegment:
        self.next_seq = segment.end
        return segment

    def needs(self, segment: TcpSegment) -> bool:
        """Whether the segment has anything for this end."""
        acks_new = 0 < distance(segment.ack, self.una) <= distance(self.next_seq, self.una)
        data_new = segment.end != segment.seq and distance(segment.end, self.expected) > 0
        return acks_new or (data_new and distance(self.edge, segment.seq) > 0)

    def hear(self, segment: TcpSegment, peer: End) -> None:
        if 0 <= distance(segment.ack, self.una) <= distance(self.next_seq, self.una):
            self.una = segment.ack
            self.peer_window = segment.window << (peer.scale if peer.scaled else 0)
        if distance(segment.end, self.expected) > 0 and distance(self.edge, segment.seq) > 0:
            self.arrived[segment.seq] = max(segment.end - segment.seq & MASK, self.arrived.get(segment.seq, 0))
        for seq, length in sorted(self.arrived.items(), key=lambda item: distance(item[0], self.expected)):
            if distance(seq, self.expected) <= 0:
                del self.arrived[seq]
                if distance(seq + length, self.expected) > 0:
                    self.expected = (seq + length) & MASK


class Watcher:
    """The gateway between them."""

    def __init__(self) -> None:
        self.state, self.sides = int(TcpState.NONE), UNHEARD_SIDES

    def judge(self, who: int, segment: TcpSegment) -> Judgement:
        after = TRANSITIONS[(who * SEGMENTS + SEGMENT_OF_FLAGS[segment.flags]) * STATES + self.state]
        if after == REFUSED:
            return Judgement.OUTSIDE
        judgement = judge(self.sides, bool(who), segment, self.state, after)
        if judgement == Judgement.BELONGS:
            self.sides = note(self.sides, bool(who), segment, self.state, after)
            self.state = after
        return judgement


def connect(rng: random.Random) -> tuple[Watcher, tuple[End, End]]:
    """A connection that is just established."""
    scaled = rng.random() < 0.7
    ends = tuple(
        End(rng, rng.randrange(15) if scaled else NO_SCALE, rng.choice((1, 500, 70_000, 1 << 22)),
            rng.choice((0, MASK, rng.getrandbits(32))))
        for _ in range(2)
    )
    opener, other = ends
    watcher = Watcher()
    syn = opener.sent(opener.segment(SYN, opener.next_seq))
    other.expected = opener.una = syn.end
    opener.una = (syn.end - 1) & MASK
    assert watcher.judge(0, syn) == Judgement.BELONGS
    other.una = other.next_seq
    syn_ack = other.sent(other.segment(SYN | ACK, other.next_seq))
    assert watcher.judge(1, syn_ack) == Judgement.BELONGS
    for end, peer, segment in ((opener, other, syn_ack), (other, opener, syn)):
        end.expected, end.una, end.scaled = segment.end, end.next_seq, scaled
        end.peer_window = segment.window
        end.edge = (end.expected + min(end.buffer, 65535)) & MASK
        assert peer is not end
    ack = opener.segment(ACK, opener.next_seq)
    assert watcher.judge(0, ack) == Judgement.BELONGS
    other.hear(ack, opener)
    return watcher, (opener, other)


def pick(rng: random.Random, wire: list[TcpSegment]) -> TcpSegment | None:
    """Take a segment off a wire: mostly the first, sometimes a later one; sometimes it is lost or stays."""
    if not wire:
        return None
    at = 0 if rng.random() < 0.8 else rng.randrange(min(len(wire), 4))
    segment = wire[at] if rng.random() < 0.05 else wire.pop(at)
    return None if rng.random() < 0.1 else segment


@settings(max_examples=EXAMPLES * 5, deadline=None)
@given(st.integers(0, 2**64))
def test_no_segment_that_its_receiver_needs_is_refused(seed: int) -> None:
    rng = random.Random(seed)
    watcher, ends = connect(rng)
    before: tuple[list[TcpSegment], ...] = ([], [])
    behind: tuple[list[TcpSegment], ...] = ([], [])
    for _ in range(150):
        who = rng.randrange(2)
        if len(before[who]) < 6:
            before[who].append(ends[who].speak())
        who = rng.randrange(2)
        segment = pick(rng, before[who])
        if segment is not None:
            if watcher.judge(who, segment) == Judgement.BELONGS:
                behind[who].append(segment)
            else:
                assert not ends[not who].needs(segment), (seed, segment, watcher.sides)
        who = rng.randrange(2)
        segment = pick(rng, behind[who])
        if segment is not None:
            ends[not who].hear(segment, ends[who])


@settings(max_examples=EXAMPLES * 5, deadline=None)
@given(st.integers(0, 2**64))
def test_who_guesses_numbers_moves_nothing(seed: int) -> None:
    """A million windows fit into the numbers of this connection, so a guess in 10,000 may come close."""
    rng = random.Random(seed)
    watcher, ends = connect(rng)
    for end in ends:
        end.buffer = min(end.buffer, 2000)
    widest = max(side.max_win for side in watcher.sides)
    state, sides, close = watcher.state, watcher.sides, 0
    for _ in range(200):
        who, flags = rng.randrange(2), rng.choice((RST, RST | ACK, ACK, FIN | ACK))
        seq = rng.getrandbits(32)
        segment = TcpSegment(seq, seq + 100 & MASK, rng.getrandbits(32), flags, 65535, NO_SCALE)
        judgement = watcher.judge(who, segment)
        close += judgement != Judgement.OUTSIDE
        if judgement != Judgement.BELONGS:
            assert (watcher.state, watcher.sides) == (state, sides)
        else:
            assert flags & ACK and not flags & RST, "an exact reset was guessed: 1 in 2**32"
            return
    assert close <= 200 * (4 * widest + 131_072) / 2**32 + 3
