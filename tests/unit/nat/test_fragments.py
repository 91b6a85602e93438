"""`FragmentTable`: bounded in number and in time."""

from __future__ import annotations

import pytest

from natengine.flow.records import FlowInfo, FlowSpec
from natengine.flow.tcp_window import UNHEARD_SIDES
from natengine.nat.fragments import DatagramKey, FragmentTable, contradicts_itself
from natengine.vocab import Hook
from natengine.wire.ipv4 import Ipv4Fields

SPEC = FlowSpec(17, 1, 2, 3, 4, 5, 6, True, 2, 3, 7)
FLOW = FlowInfo(9, SPEC, 0, False, False, 0, UNHEARD_SIDES, 0, 0, 0, 0)


def key(ident: int) -> DatagramKey:
    return DatagramKey(Hook.POSTROUTING, 1, 5, 17, ident)


@pytest.mark.parametrize("start_ns", [0, 2**62])
def test_remembers_for_its_timeout(start_ns: int) -> None:
    """To the nanosecond; forgotten at the latest by the next `expire`."""
    table = FragmentTable(4, 100)
    assert table.remember(key(1), FLOW, start_ns)
    found = table.find(key(1), start_ns + 99)
    assert found is not None
    assert (found.flow_id, found.arriving) == (9, SPEC.arriving)
    assert table.find(key(1), start_ns + 100) is None
    assert table.find(key(2), start_ns) is None
    table.expire(start_ns + 99)
    assert len(table) == 1
    table.expire(start_ns + 100)
    assert len(table) == 0


def test_limit_and_room_again() -> None:
    """Full is full; what is known may be renewed, and what is too old makes room."""
    table = FragmentTable(2, 100)
    assert table.remember(key(1), FLOW, 0)
    assert table.remember(key(2), FLOW, 10)
    assert not table.remember(key(3), FLOW, 20)
    assert table.remember(key(1), FLOW, 30)
    assert not table.remember(key(3), FLOW, 109)
    assert table.remember(key(3), FLOW, 110)        # 2 has ended, 1 was renewed
    assert table.find(key(1), 110) is not None
    assert len(table) == 2


def test_a_table_for_nothing() -> None:
    """A limit of 0 refuses every fragmented datagram."""
    assert not FragmentTable(0, 100).remember(key(1), FLOW, 0)


def fields(proto: int, offset: int, length: int, more: bool, header_len: int = 20) -> Ipv4Fields:
    return Ipv4Fields(header_len, header_len + length, 0, 1, more, offset, 64, proto, 1, 2)


@pytest.mark.parametrize(
    ("ip", "refused"),
    [
        (fields(17, 65512, 3, False), False),                   # 20 + 65512 + 3 = 65535
        (fields(17, 65512, 4, False), True),
        (fields(17, 65512, 3, False, 24), True),                # options count too
        (fields(17, 0, 16, True), False),
        (fields(17, 0, 17, True), True),
        (fields(17, 16, 17, False), False),                     # the last one may be of any length
        (fields(6, 8, 64, True), True),
        (fields(6, 16, 64, False), True),
        (fields(6, 24, 64, False), False),
        (fields(17, 8, 64, False), False),
        (fields(47, 8, 64, False), False),
    ],
)
def test_contradictions(ip: Ipv4Fields, refused: bool) -> None:
    """RFC 791 and RFC 1858."""
    assert contradicts_itself(ip) is refused
