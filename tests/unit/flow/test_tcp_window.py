"""Which segments belong to a connection: stories of two ends and of somebody who guesses."""

from __future__ import annotations

import pytest

from natengine.flow.tcp_state import REFUSED, SEGMENT_OF_FLAGS, SEGMENTS, STATES, TRANSITIONS, TcpState
from natengine.flow.tcp_window import UNHEARD, UNHEARD_SIDES, Judgement, Side, distance, judge, note, unhear
from natengine.wire.tcp import ACK, FIN, MAX_SCALE, NO_SCALE, RST, SYN, TcpSegment

BELONGS, ASIDE, OUTSIDE = Judgement
OPENER, OTHER = 0, 1
ISN = (0xFFFF_FF00, 5000)           # the opener's numbers soon wrap round
WINDOW, SCALE = 1000, 7
WIDEST = WINDOW << SCALE


class Connection:
    """State and sides, moved on as the fast path does it.  Numbers are relative to each side's ISN."""

    def __init__(self, scales: tuple[int, int] = (SCALE, SCALE)) -> None:
        self.state = TcpState.NONE
        self.sides = UNHEARD_SIDES
        self.scales = scales

    def send(
        self, who: int, flags: int, seq: int = 1, ack: int = 1, length: int = 0, window: int = WINDOW
    ) -> Judgement:
        seq = (ISN[who] + seq) & 0xFFFF_FFFF
        end = (seq + length + bool(flags & SYN) + bool(flags & FIN)) & 0xFFFF_FFFF
        scale = self.scales[who] if flags & SYN else NO_SCALE
        segment = TcpSegment(seq, end, (ISN[not who] + ack) & 0xFFFF_FFFF, flags, window, scale)
        after = TRANSITIONS[(who * SEGMENTS + SEGMENT_OF_FLAGS[flags]) * STATES + self.state]
        assert after != REFUSED
        judgement = judge(self.sides, bool(who), segment, self.state, after)
        if judgement == BELONGS:
            self.sides = note(self.sides, bool(who), segment, self.state, after)
            self.state = TcpState(after)
        return judgement

    def established(self) -> Connection:
        assert self.send(OPENER, SYN, 0) == BELONGS
        assert self.send(OTHER, SYN | ACK, 0) == BELONGS
        assert self.send(OPENER, ACK) == BELONGS
        assert self.state == TcpState.ESTABLISHED
        return self


@pytest.fixture
def connection() -> Connection:
    return Connection().established()


def test_handshake_tells_both_sides_numbers() -> None:
    connection = Connection()
    connection.send(OPENER, SYN, 0)
    assert connection.sides == (Side(ISN[0] + 1, 0, WINDOW, SCALE), Side(acked=ISN[0]))
    connection.send(OTHER, SYN | ACK, 0)
    assert connection.sides[OTHER] == Side(ISN[1] + 1, ISN[0] + 1, WINDOW, SCALE)
    connection.send(OPENER, ACK)
    assert connection.sides[OPENER] == Side(ISN[0] + 1, ISN[1] + 1, WIDEST, SCALE)


@pytest.mark.parametrize("scales", [(NO_SCALE, 7), (7, NO_SCALE), (NO_SCALE, NO_SCALE)])
def test_one_side_without_scaling_is_both_without(scales: tuple[int, int]) -> None:
    """RFC 7323 2.2."""
    connection = Connection(scales).established()
    connection.send(OTHER, ACK)
    assert [(side.max_win, side.scale) for side in connection.sides] == [(WINDOW, 0)] * 2


# ── the window ───────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize(("seq", "length", "expected"), [
    (1, 1448, BELONGS),
    (1 + WIDEST, 0, BELONGS), (1 + WIDEST, 1, BELONGS),         # a zero-window probe is one byte
    (2 + WIDEST, 0, OUTSIDE), (2 + WIDEST, 1448, OUTSIDE), (1 + 2**31, 1, OUTSIDE),
    (0, 0, BELONGS), (0, 1, BELONGS),                           # keepalives
    (1 - WIDEST, 0, BELONGS), (-WIDEST, 1, BELONGS),            # sent once more
    (-1 - WIDEST, 0, BELONGS), (-2 - WIDEST, 0, OUTSIDE), (-WIDEST - 102, 100, OUTSIDE),
])
def test_data_must_be_in_the_receivers_window(
    connection: Connection, seq: int, length: int, expected: Judgement
) -> None:
    connection.send(OTHER, ACK)                                 # offers the window, scaled
    sides = connection.sides
    assert connection.send(OPENER, ACK, seq, length=length) == expected
    assert expected == BELONGS or connection.sides == sides


@pytest.mark.parametrize(("ack", "expected"), [
    (101, BELONGS), (1, BELONGS), (102, OUTSIDE), (101 + 2**31, OUTSIDE),
    (1 - WIDEST, BELONGS), (-WIDEST, OUTSIDE),
])
def test_ack_must_be_for_what_was_sent_and_not_too_old(
    connection: Connection, ack: int, expected: Judgement
) -> None:
    connection.send(OTHER, ACK)
    connection.send(OPENER, ACK, length=100)
    assert connection.send(OTHER, ACK, ack=ack) == expected


def test_a_window_that_shrinks_lets_what_is_under_way_pass(connection: Connection) -> None:
    connection.send(OTHER, ACK)
    connection.send(OTHER, ACK, window=0)
    assert connection.send(OPENER, ACK, 1, length=WIDEST) == BELONGS


def test_the_window_moves_with_the_acks(connection: Connection) -> None:
    connection.send(OTHER, ACK)
    assert connection.send(OPENER, ACK, 1 + WIDEST, length=1448) == BELONGS
    assert connection.send(OPENER, ACK, 1 + 2 * WIDEST) == OUTSIDE
    assert connection.send(OTHER, ACK, ack=1 + WIDEST) == BELONGS
    assert connection.send(OPENER, ACK, 1 + 2 * WIDEST) == BELONGS


# ── RST (RFC 5961 3) ─────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize(("seq", "expected", "state"), [
    (101, BELONGS, TcpState.CLOSE),             # all that was sent
    (1, BELONGS, TcpState.CLOSE),               # all that was acknowledged
    (50, ASIDE, TcpState.ESTABLISHED), (102, ASIDE, TcpState.ESTABLISHED), (WIDEST, ASIDE, TcpState.ESTABLISHED),
    (WIDEST + 2, OUTSIDE, TcpState.ESTABLISHED), (-WIDEST - 2, OUTSIDE, TcpState.ESTABLISHED),
    (2**31, OUTSIDE, TcpState.ESTABLISHED),
])
@pytest.mark.parametrize("who", [OPENER, OTHER])
@pytest.mark.parametrize("flags", [RST, RST | ACK])
def test_only_an_exact_reset_ends_a_connection(
    connection: Connection, who: int, flags: int, seq: int, expected: Judgement, state: TcpState
) -> None:
    connection.send(not who, ACK)
    connection.send(who, ACK, length=100)
    assert (connection.send(who, flags, seq), connection.state) == (expected, state)


@pytest.mark.parametrize(("flags", "ack", "expected"), [
    (RST | ACK, 1, BELONGS),                    # a closed port
    (RST | ACK, 0, OUTSIDE), (RST | ACK, 2, OUTSIDE), (RST | ACK, 2**31, OUTSIDE),
    (RST, 1, OUTSIDE),                          # RFC 9293 3.10.7.3: it must acknowledge the SYN
    (SYN | ACK, 1, BELONGS), (SYN | ACK, 0, OUTSIDE), (SYN | ACK, 2, OUTSIDE),
    (ACK, 2**31, ASIDE),                        # about an older connection; the opener answers it with RST
])
@pytest.mark.parametrize("seq", [0, -5000])
def test_first_answer_must_acknowledge_the_syn(flags: int, ack: int, seq: int, expected: Judgement) -> None:
    connection = Connection()
    connection.send(OPENER, SYN, 0)
    assert connection.send(OTHER, flags, seq, ack) == expected
    assert expected == BELONGS or connection.state == TcpState.SYN_SENT


# ── SYN ──────────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("flags", [SYN, SYN | ACK])
def test_a_syn_in_a_connection_is_for_its_receiver_to_question(connection: Connection, flags: int) -> None:
    """RFC 5961 4: the answer is an ACK; a host that has forgotten the connection then sends an exact RST."""
    sides = connection.sides
    assert connection.send(OPENER, flags, 123_456_789) == ASIDE
    assert connection.sides == sides
    assert connection.send(OTHER, ACK) == BELONGS
    assert connection.send(OPENER, RST) == BELONGS
    assert connection.send(OPENER, SYN, 123_456_789) == BELONGS
    assert connection.state == TcpState.SYN_SENT
    assert connection.sides[OTHER].max_win == 0, "a new connection, other numbers"


def test_a_syn_sent_again_with_other_numbers_counts() -> None:
    connection = Connection()
    connection.send(OPENER, SYN, 0)
    connection.send(OPENER, SYN, 7777)
    assert connection.send(OTHER, SYN | ACK, 0, 1) == OUTSIDE
    assert connection.send(OTHER, SYN | ACK, 0, 7778) == BELONGS


def test_a_forged_syn_does_not_change_the_numbers_of_an_opening_connection() -> None:
    connection = Connection()
    connection.send(OPENER, SYN, 0)
    connection.send(OTHER, SYN | ACK, 0)
    assert connection.send(OPENER, SYN, 2**31) == OUTSIDE
    assert connection.send(OPENER, SYN, 0) == BELONGS           # but the same one may come again
    assert connection.send(OTHER, SYN | ACK, 0) == BELONGS
    assert connection.send(OPENER, ACK) == BELONGS


def test_simultaneous_open() -> None:
    connection = Connection()
    assert connection.send(OPENER, SYN, 0) == BELONGS
    assert connection.send(OTHER, SYN, 0) == BELONGS
    assert connection.state == TcpState.SYN_SENT2
    assert connection.send(OPENER, SYN | ACK, 0) == BELONGS
    assert connection.send(OTHER, SYN | ACK, 0) == BELONGS
    assert connection.send(OPENER, ACK, length=10) == BELONGS
    assert connection.state == TcpState.ESTABLISHED
    assert [side.scale for side in connection.sides] == [SCALE, SCALE]


def test_data_with_the_syn() -> None:
    """TCP Fast Open (RFC 7413): the SYN-ACK acknowledges the data, or the SYN alone."""
    for acknowledged in (1, 101):
        connection = Connection()
        connection.send(OPENER, SYN, 0, length=100)
        assert connection.send(OTHER, SYN | ACK, 0, acknowledged) == BELONGS
        assert connection.send(OPENER, ACK, acknowledged, length=10) == BELONGS


# ── beginnings that went by unseen ───────────────────────────────────────────────────────────────

def test_service_of_the_head_whose_callers_syn_was_not_seen() -> None:
    connection = Connection()
    assert connection.send(OTHER, SYN | ACK, 0) == BELONGS
    assert [side.scale for side in connection.sides] == [MAX_SCALE, SCALE]
    assert connection.send(OPENER, ACK, length=10) == BELONGS
    assert connection.send(OTHER, ACK, ack=11, length=1448) == BELONGS
    assert connection.send(OPENER, ACK, 2**31) == OUTSIDE


def test_service_without_scaling_whose_callers_syn_was_not_seen() -> None:
    connection = Connection((SCALE, NO_SCALE))
    connection.send(OTHER, SYN | ACK, 0)
    assert [side.scale for side in connection.sides] == [0, 0]


def test_connection_met_in_the_middle() -> None:
    connection = Connection()
    assert connection.send(OPENER, ACK, 1000, 2000, length=100) == BELONGS
    assert connection.sides == (
        Side((ISN[0] + 1100) & 0xFFFF_FFFF, ISN[1] + 2000, WINDOW << MAX_SCALE, MAX_SCALE),
        Side(acked=(ISN[0] + 1000) & 0xFFFF_FFFF, scale=MAX_SCALE),
    )
    assert connection.send(OTHER, ACK, 2000, 1100) == BELONGS
    assert connection.send(OTHER, ACK, 2000, 1101) == OUTSIDE


def test_after_a_segment_that_was_not_read_its_sender_is_heard_anew(connection: Connection) -> None:
    connection.send(OTHER, ACK)
    connection.sides = unhear(connection.sides, False)          # fragments: 5000 bytes, say
    assert connection.send(OTHER, ACK, ack=5001) == BELONGS
    assert connection.send(OPENER, ACK, 5001, length=10) == BELONGS
    assert connection.send(OTHER, ACK, ack=5012) == OUTSIDE
    assert connection.sides[OPENER].scale == SCALE


def test_unhear_leaves_the_other_side_alone() -> None:
    one, other = Side(1, 2, 3, 4), Side(5, 6, 7, 8)
    assert unhear((one, other), False) == (Side(1, 2, 0, 4), other)
    assert unhear((one, other), True) == (one, Side(5, 6, 0, 8))
    assert unhear(UNHEARD_SIDES, True) == (UNHEARD, UNHEARD)


@pytest.mark.parametrize(("to", "start", "expected"), [
    (5, 3, 2), (3, 5, -2), (1, 0xFFFF_FFFF, 2), (0xFFFF_FFFF, 1, -2), (2**31, 0, -2**31), (2**31 - 1, 0, 2**31 - 1),
])
def test_distance(to: int, start: int, expected: int) -> None:
    """RFC 9293 3.4."""
    assert distance(to, start) == expected
