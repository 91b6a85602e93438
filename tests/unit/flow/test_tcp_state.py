"""TCP's states as data: the stories that the table must tell."""

from __future__ import annotations

import pytest

from natengine.flow.tcp_state import (
    LASTING,
    REFUSED,
    SEGMENT_OF_FLAGS,
    SEGMENTS,
    STATES,
    TRANSITIONS,
    Segment,
    TcpState,
    classify,
    timeouts_by_state,
)
from natengine.settings import SECOND_NS, Timeouts
from natengine.wire.tcp import ACK, FIN, PSH, RST, SYN, URG

S = TcpState
ORIGINAL, REPLY = 0, 1


def after(state: int, direction: int, segment: Segment) -> int:
    return TRANSITIONS[(direction * SEGMENTS + segment) * STATES + state]


def test_table_has_one_byte_for_each_case_and_names_only_states() -> None:
    assert len(TRANSITIONS) == 2 * SEGMENTS * STATES == 120
    assert set(TRANSITIONS) <= {*TcpState, REFUSED}
    assert len(SEGMENT_OF_FLAGS) == 256
    assert set(SEGMENT_OF_FLAGS) == set(Segment)


@pytest.mark.parametrize(("flags", "segment"), [
    (SYN, Segment.SYN),
    (SYN | ACK, Segment.SYN_ACK),
    (FIN | ACK, Segment.FIN),
    (ACK, Segment.ACK),
    (ACK | PSH | URG, Segment.ACK),
    (RST, Segment.RST),
    (RST | ACK, Segment.RST),
    # ECN bits (RFC 3168) are no part of the state
    (SYN | 0xC0, Segment.SYN),
    (ACK | 0x40, Segment.ACK),
    # never sent by a TCP
    (0, Segment.ILLEGAL),
    (FIN, Segment.ILLEGAL),
    (PSH | URG, Segment.ILLEGAL),
    (SYN | FIN, Segment.ILLEGAL),
    (SYN | RST, Segment.ILLEGAL),
    (FIN | RST, Segment.ILLEGAL),
    (0x3F, Segment.ILLEGAL),
])
def test_segment_of_flags(flags: int, segment: Segment) -> None:
    assert segment == classify(flags) == SEGMENT_OF_FLAGS[flags]


STORIES = {
    "three-way handshake": [
        (ORIGINAL, Segment.SYN, S.SYN_SENT), (REPLY, Segment.SYN_ACK, S.SYN_RECV),
        (ORIGINAL, Segment.ACK, S.ESTABLISHED),
    ],
    # RFC 5382 REQ-2
    "simultaneous open": [
        (ORIGINAL, Segment.SYN, S.SYN_SENT), (REPLY, Segment.SYN, S.SYN_SENT2),
        (ORIGINAL, Segment.SYN_ACK, S.SYN_RECV),
        (REPLY, Segment.SYN_ACK, S.SYN_RECV), (ORIGINAL, Segment.ACK, S.ESTABLISHED),
    ],
    "lost segments are sent again": [
        (ORIGINAL, Segment.SYN, S.SYN_SENT), (ORIGINAL, Segment.SYN, S.SYN_SENT),
        (REPLY, Segment.SYN_ACK, S.SYN_RECV),
        (REPLY, Segment.SYN_ACK, S.SYN_RECV), (ORIGINAL, Segment.SYN, S.SYN_RECV),
        (ORIGINAL, Segment.ACK, S.ESTABLISHED),
        (REPLY, Segment.SYN_ACK, S.ESTABLISHED),
    ],
    "opener closes first": [
        (ORIGINAL, Segment.SYN, S.SYN_SENT), (REPLY, Segment.SYN_ACK, S.SYN_RECV),
        (ORIGINAL, Segment.ACK, S.ESTABLISHED),
        (ORIGINAL, Segment.FIN, S.FIN_WAIT), (REPLY, Segment.ACK, S.FIN_WAIT),
        (REPLY, Segment.FIN, S.LAST_ACK),
        (ORIGINAL, Segment.ACK, S.TIME_WAIT),
    ],
    # departure 1: a FIN that is sent twice is not the other side's
    "FIN sent twice": [
        (ORIGINAL, Segment.ACK, S.ESTABLISHED), (ORIGINAL, Segment.FIN, S.FIN_WAIT),
        (ORIGINAL, Segment.FIN, S.FIN_WAIT),
        (REPLY, Segment.ACK, S.FIN_WAIT), (REPLY, Segment.FIN, S.LAST_ACK),
    ],
    "answerer closes first, twice": [
        (ORIGINAL, Segment.ACK, S.ESTABLISHED), (REPLY, Segment.FIN, S.CLOSE_WAIT),
        (REPLY, Segment.FIN, S.CLOSE_WAIT),
        (ORIGINAL, Segment.ACK, S.CLOSE_WAIT), (ORIGINAL, Segment.FIN, S.LAST_ACK),
        (REPLY, Segment.ACK, S.TIME_WAIT),
    ],
    # departure 2, RFC 7857 2.2: the RST may have been forged
    "connection that goes on after RST": [
        (ORIGINAL, Segment.ACK, S.ESTABLISHED), (REPLY, Segment.RST, S.CLOSE),
        (REPLY, Segment.ACK, S.ESTABLISHED),
    ],
    # departure 3
    "ports used again": [
        (ORIGINAL, Segment.SYN, S.SYN_SENT), (REPLY, Segment.RST, S.CLOSE),
        (ORIGINAL, Segment.SYN, S.SYN_SENT),
    ],
    # the head's own connections may be older than the engine
    "picked up in the middle": [(ORIGINAL, Segment.ACK, S.ESTABLISHED)],
    "picked up in the middle by the peer": [(REPLY, Segment.ACK, S.ESTABLISHED)],
}


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_story(story: list[tuple[int, Segment, TcpState]]) -> None:
    state: int = S.NONE
    for direction, segment, expected in story:
        state = after(state, direction, segment)
        assert expected == state


@pytest.mark.parametrize("direction", [ORIGINAL, REPLY])
def test_illegal_segments_are_refused_in_every_state(direction: int) -> None:
    assert {after(state, direction, Segment.ILLEGAL) for state in TcpState} == {REFUSED}


@pytest.mark.parametrize("direction", [ORIGINAL, REPLY])
def test_rst_closes_every_connection_and_creates_none(direction: int) -> None:
    assert after(S.NONE, direction, Segment.RST) == REFUSED
    assert {after(state, direction, Segment.RST) for state in set(TcpState) - {S.NONE}} == {S.CLOSE}


@pytest.mark.parametrize(("state", "direction", "segment"), [
    # an answer to nothing
    (S.SYN_SENT, REPLY, Segment.FIN),
    # the opener cannot go on before it was answered
    (S.SYN_SENT, ORIGINAL, Segment.ACK),
    (S.SYN_SENT, ORIGINAL, Segment.FIN),
    # a SYN from the other side into an open connection
    (S.ESTABLISHED, REPLY, Segment.SYN),
    (S.TIME_WAIT, REPLY, Segment.SYN),
    # nothing begins with FIN
    (S.NONE, ORIGINAL, Segment.FIN),
    (S.NONE, REPLY, Segment.SYN),
])
def test_refused(state: TcpState, direction: int, segment: Segment) -> None:
    assert after(state, direction, segment) == REFUSED


def test_nothing_leads_back_to_none() -> None:
    assert S.NONE not in TRANSITIONS


def test_every_state_is_reached() -> None:
    reached, todo = {int(S.NONE)}, [int(S.NONE)]
    while todo:
        state = todo.pop()
        for direction in (ORIGINAL, REPLY):
            for segment in Segment:
                next_state = after(state, direction, segment)
                if next_state != REFUSED and next_state not in reached:
                    reached.add(next_state)
                    todo.append(next_state)
    assert reached == set(TcpState)


def test_timeouts_of_rfc_5382() -> None:
    """REQ-5: at least 2 h 4 min for an established connection, 4 min while it opens or closes."""
    timeouts = timeouts_by_state(Timeouts())
    assert [state for state in TcpState if timeouts[state] == 7440 * SECOND_NS] == sorted(LASTING)
    assert {timeouts[state] for state in set(TcpState) - LASTING} == {240 * SECOND_NS}
