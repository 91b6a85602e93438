"""What is in the memory of an earlier table is taken over, or refused as a whole."""

from __future__ import annotations

import mmap
import sys
from types import ModuleType

import pytest
from differential.packets import ACK, SYN, packet_of
from support.backends import table_config

from natengine.errors import CorruptTable
from natengine.fastpath import FULL, FastPath
from natengine.flow.image import LAYOUT, RECORD_BYTES, VOLATILE_AT
from natengine.flow.records import Allow, FlowSpec, Path
from natengine.settings import SECOND_NS
from natengine.vocab import Hook, Proto

OUT, BACK = Hook.POSTROUTING, Hook.PREROUTING
UDP = FlowSpec(Proto.UDP, 0x0A01000B, 40000, 0xCB007101, 50000, 0xCB007102, 53, True, 3, 4, Allow.ALL)
TCP = UDP._replace(proto=Proto.TCP)
PING = UDP._replace(proto=Proto.ICMP, inside_port=7, outside_port=9, peer_port=8)
TOO_MUCH = (51, 63, 71, 79, 87, 95)     # the highest byte of each window and each counter
CAPACITY = 4
NOW_NS = 100_000 * SECOND_NS

# What a version with layout 1 has left of `TCP` at `NOW_NS`, after its handshake.
OF_LAYOUT_1 = bytes.fromhex(
    "0b00010a 017100cb 027100cb 409c 50c3 3500 06 01"       # inside, outside, peer; their ports; protocol, from inside
    "01 00 07 03 01 01 0000 01000000 00e00853b7610000"      # in use, moving, what packets change
    "08000000 08000000 00020000  08000000 08000000 00020000"        # numbers of the opener and of the other
    "0200000000000000 0100000000000000 5000000000000000 2800000000000000"       # packets, bytes
    "04000000 03000000 db4d09bc"                            # uplink, inside interface, seal
)


def new_memory() -> mmap.mmap:
    return mmap.mmap(-1, CAPACITY * RECORD_BYTES)


def table_on(backend: ModuleType, memory: object, now_ns: int = NOW_NS) -> FastPath:
    table: FastPath = backend.FastPath(table_config(CAPACITY), memory, now_ns)
    return table


def send(table: FastPath, spec: FlowSpec, hook: Hook, flags: int = ACK, now_ns: int = NOW_NS) -> int:
    return table.translate(packet_of(spec, hook, flags=flags), hook, now_ns)


def test_everything_about_the_flows_is_there_again(fastpath_backend: ModuleType) -> None:
    """Ids, tuples, states, sequence numbers, counters, deadlines; and FORWARD is asked again."""
    memory = new_memory()
    before = table_on(fastpath_backend, memory)
    for spec in (UDP, TCP, PING):
        before.install(spec, NOW_NS)
    send(before, TCP, OUT, SYN), send(before, TCP, BACK, SYN | ACK), send(before, UDP, OUT)
    before.remove(0)
    after = table_on(fastpath_backend, memory)
    assert after.snapshot() == before.snapshot() and len(after) == 2
    assert send(after, TCP, OUT) == Path.STALE
    after.approve(after.find(TCP.leaving), Allow.ALL, 4)
    assert send(after, TCP, OUT) == send(after, TCP, BACK) == Path.TRANSLATED


@pytest.mark.skipif(sys.byteorder != "little", reason="the record above is one of a little-endian machine")
def test_an_upgrade_finds_what_the_version_before_has_left(fastpath_backend: ModuleType) -> None:
    """Both ways, byte by byte.  Who changes what this record means counts LAYOUT up: then old files are set aside."""
    assert LAYOUT == 1
    memory = new_memory()
    table = table_on(fastpath_backend, memory)
    table.install(TCP, NOW_NS)
    for hook, flags in ((OUT, SYN), (BACK, SYN | ACK), (OUT, ACK)):
        send(table, TCP, hook, flags)
    assert memory[:VOLATILE_AT] == OF_LAYOUT_1
    left = new_memory()
    left[:VOLATILE_AT] = OF_LAYOUT_1
    assert table_on(fastpath_backend, left).snapshot() == table.snapshot()


def test_room_is_where_it_was(fastpath_backend: ModuleType) -> None:
    """Ids between the flows are given out first, then those behind them, and the table is as full as it was."""
    memory = new_memory()
    before = table_on(fastpath_backend, memory)
    for port in range(3):
        before.install(UDP._replace(inside_port=port, outside_port=port), NOW_NS)
    before.remove(1)
    after = table_on(fastpath_backend, memory)
    more = (UDP._replace(inside_port=port, outside_port=port) for port in (10, 11, 12))
    assert [after.install(spec, NOW_NS) for spec in more] == [1, 3, FULL]


def test_timers_go_on(fastpath_backend: ModuleType) -> None:
    """A flow ends when it would have ended; what should have ended meanwhile ends at once."""
    memory = new_memory()
    before = table_on(fastpath_backend, memory)
    for spec in (PING, UDP, TCP):
        before.install(spec, NOW_NS)
        send(before, spec, OUT, SYN)
    after = table_on(fastpath_backend, memory, NOW_NS + 100 * SECOND_NS)
    assert [flow.spec for flow in after.expire(NOW_NS + 101 * SECOND_NS, 10)] == [PING]
    assert [flow.spec for flow in after.expire(NOW_NS + 239 * SECOND_NS, 10)] == []
    assert [flow.spec for flow in after.expire(NOW_NS + 242 * SECOND_NS, 10)] == [TCP]
    assert [flow.spec for flow in after.expire(NOW_NS + 302 * SECOND_NS, 10)] == [UDP]
    assert after.install(TCP, NOW_NS + 302 * SECOND_NS) >= 0


def test_who_is_evicted_first(fastpath_backend: ModuleType) -> None:
    """Of the flows without an answer the one whose end is nearest; never one that was answered."""
    memory = new_memory()
    before = table_on(fastpath_backend, memory)
    for spec, at_s in ((TCP, 0), (UDP, 9), (PING, 3)):
        before.install(spec, NOW_NS + at_s * SECOND_NS)
        send(before, spec, OUT, SYN, NOW_NS + at_s * SECOND_NS)
    send(before, TCP, BACK, SYN | ACK)
    after = table_on(fastpath_backend, memory)
    assert after.oldest_unreplied() == after.find(PING.leaving)
    after.remove(after.oldest_unreplied())
    assert after.oldest_unreplied() == after.find(UDP.leaving)


@pytest.mark.parametrize("size", [0, RECORD_BYTES, CAPACITY * RECORD_BYTES + 1])
def test_memory_of_another_size(fastpath_backend: ModuleType, size: int) -> None:
    """Is not half used."""
    with pytest.raises(ValueError, match="bytes"):
        table_on(fastpath_backend, memoryview(mmap.mmap(-1, 8192))[:size])


@pytest.mark.parametrize("offset", [*range(22), *range(23, 28), *TOO_MUCH, *range(100, 108)])
def test_damage(fastpath_backend: ModuleType, offset: int) -> None:
    """A byte that is changed in what never changes, or to what it never is, is noticed; byte 22 may be anything."""
    memory = new_memory()
    table_on(fastpath_backend, memory).install(TCP, NOW_NS)
    memory[offset] ^= 0x80
    with pytest.raises(CorruptTable, match="record 0"):
        table_on(fastpath_backend, memory)


def test_two_flows_with_one_tuple(fastpath_backend: ModuleType) -> None:
    """No engine writes that."""
    memory = new_memory()
    table_on(fastpath_backend, memory).install(TCP, NOW_NS)
    memory[2 * RECORD_BYTES:3 * RECORD_BYTES] = memory[:RECORD_BYTES]
    with pytest.raises(CorruptTable, match="record 2"):
        table_on(fastpath_backend, memory)
