"""Which bytes of a datagram have been seen, what is the matter with a fragment, and identifications."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natengine.nat.fragments import MAX_COUNTERS, MAX_RUNS, Extent, Identifications, Seen, fault_of
from natengine.vocab import Reason
from natengine.wire.ipv4 import Ipv4Fields

NEW, DUPLICATE, OVERLAP, SCATTERED = Seen.NEW, Seen.DUPLICATE, Seen.OVERLAP, Seen.SCATTERED
Piece = tuple[int, int, bool]                   # first byte, one past the last one, whether more follow


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        # in order, in the other order, the last one first
        ([(0, 8, True), (8, 16, True), (16, 20, False)], [NEW, NEW, NEW]),
        ([(16, 20, False), (8, 16, True), (0, 8, True)], [NEW, NEW, NEW]),
        ([(16, 20, False), (0, 8, True), (8, 16, True)], [NEW, NEW, NEW]),
        # once more: the same, or a part of what is there
        ([(8, 16, True), (8, 16, True)], [NEW, DUPLICATE]),
        ([(16, 20, False), (16, 20, False)], [NEW, DUPLICATE]),
        ([(0, 8, True), (8, 16, True), (0, 16, True)], [NEW, NEW, DUPLICATE]),
        ([(0, 24, True), (8, 16, True)], [NEW, DUPLICATE]),
        # some old bytes and some new ones
        ([(0, 16, True), (8, 24, True)], [NEW, OVERLAP]),
        ([(8, 24, True), (0, 16, True)], [NEW, OVERLAP]),
        ([(8, 16, True), (0, 24, True)], [NEW, OVERLAP]),
        ([(0, 8, True), (16, 24, True), (0, 24, True)], [NEW, NEW, OVERLAP]),
        # two ends
        ([(16, 20, False), (16, 24, True)], [NEW, OVERLAP]),
        ([(16, 20, False), (24, 32, True)], [NEW, OVERLAP]),
        ([(16, 24, False), (16, 24, True)], [NEW, OVERLAP]),
        ([(16, 24, False), (8, 16, False)], [NEW, OVERLAP]),
        ([(16, 24, True), (8, 16, False)], [NEW, OVERLAP]),
    ],
)
def test_extent(pieces: Sequence[Piece], expected: Sequence[Seen]) -> None:
    """RFC 5722: what overlaps is refused; with its erratum: what was there already is not an overlap."""
    extent = Extent()
    assert [extent.note(first, end, more=more) for first, end, more in pieces] == expected
    assert extent.is_whole is (len(pieces) == 3 and set(expected) == {NEW})


def test_extent_is_bounded() -> None:
    """So many runs with holes between them, and no more; but a hole may always be closed."""
    extent = Extent()
    for i in range(MAX_RUNS):
        assert extent.note(16 * i, 16 * i + 8, more=True) is NEW
    assert extent.note(16 * MAX_RUNS, 16 * MAX_RUNS + 8, more=True) is SCATTERED
    assert extent.note(8, 16, more=True) is NEW
    assert extent.note(16 * MAX_RUNS, 16 * MAX_RUNS + 8, more=True) is NEW


@given(
    cuts=st.sets(st.integers(1, 50), max_size=12), seed=st.randoms(use_true_random=False),
    extra=st.lists(st.tuples(st.integers(0, 50), st.integers(1, 10), st.booleans()), max_size=4),
)
def test_extent_against_a_set_of_bytes(
    cuts: set[int], seed: random.Random, extra: list[tuple[int, int, bool]]
) -> None:
    """The pieces of a datagram in any order, and some that are none of them: the same answer as counting bytes."""
    ends = [*sorted(cuts), 51]
    pieces = [(first, end, end < 51) for first, end in zip([0, *ends], ends, strict=False)]
    pieces += [(first, first + length, more) for first, length, more in extra]
    seed.shuffle(pieces)
    extent, seen, last = Extent(), set[int](), None
    for first, end, more in pieces:
        wanted = set(range(first, end))
        other_end = last is not None and (end >= last if more else end != last)
        if other_end or (not more and max(seen, default=-1) >= end):
            expected = OVERLAP
        elif wanted <= seen:
            expected = DUPLICATE
        else:
            expected = OVERLAP if wanted & seen else NEW
        assert extent.note(first, end, more=more) is expected
        if expected is NEW:
            seen |= wanted
            last = last if more else end
        assert extent.is_whole is (last is not None and seen == set(range(last)))


def fields(proto: int, offset: int, length: int, more: bool, header_len: int = 20) -> Ipv4Fields:
    return Ipv4Fields(header_len, header_len + length, 0, 1, more, offset, 64, proto, 1, 2)


BAD, TINY = Reason.BAD_HEADER, Reason.FRAGMENT_TINY


@pytest.mark.parametrize(
    ("ip", "fault"),
    [
        (fields(17, 65512, 3, False), None),                    # 20 + 65512 + 3 = 65535
        (fields(17, 65512, 4, False), BAD),
        (fields(17, 65512, 3, False, 24), BAD),                 # options count too
        (fields(17, 0, 16, True), None),
        (fields(17, 0, 17, True), BAD),
        (fields(17, 16, 17, False), None),                      # the last one may be of any length
        (fields(17, 16, 0, False), BAD),
        (fields(17, 0, 0, True), BAD),
        # the transport header must be in the first one, whole
        (fields(6, 0, 16, True), TINY),
        (fields(6, 0, 24, True), TINY),                         # its options end at 28
        (fields(6, 0, 32, True), None),
        (fields(6, 8, 64, True), TINY),
        (fields(6, 16, 64, False), TINY),
        (fields(6, 24, 64, False), None),
        (fields(17, 0, 8, True), None),
        (fields(17, 8, 64, False), None),
        (fields(1, 0, 8, True), None),
        (fields(47, 8, 64, False), None),
    ],
)
def test_faults(ip: Ipv4Fields, fault: Reason | None) -> None:
    """RFC 791, RFC 1858, RFC 3128."""
    header = bytes(12) + bytes([7 << 4]) + bytes(19)
    assert fault_of(bytes(ip.header_len) + header, ip) is fault


def test_identifications() -> None:
    """RFC 6864: a pair of hosts and a protocol count by themselves, from a start that nobody can guess."""
    taken = Identifications(random.Random(1))
    mine = [taken.take(1, 2, 17) for _ in range(5)]
    assert mine == [(mine[0] + i) & 0xFFFF for i in range(5)]
    others = {taken.take(1, 3, 17), taken.take(2, 2, 17), taken.take(1, 2, 6)}
    assert len(others) == 3
    assert taken.take(1, 2, 17) == (mine[0] + 5) & 0xFFFF


def test_identifications_go_round() -> None:
    """All 65536 of them, then again."""
    taken = Identifications(random.Random(2))
    numbers = [taken.take(1, 2, 17) for _ in range(65537)]
    assert len(set(numbers)) == 65536 and numbers[0] == numbers[-1]


def test_identifications_are_bounded() -> None:
    """The counter that was used least recently goes first."""
    taken = Identifications(random.Random(3))
    kept, lost = taken.take(0, 0, 0), taken.take(0, 1, 0)
    taken.take(0, 0, 0)
    for pair in range(2, MAX_COUNTERS + 1):
        taken.take(0, pair, 0)
    assert taken.take(0, 0, 0) == (kept + 2) & 0xFFFF
    assert taken.take(0, 1, 0) != (lost + 1) & 0xFFFF       # 1 of 65536 seeds would have it so; 3 does not
