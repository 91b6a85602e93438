"""The fast path by itself: what one packet of a known flow costs, and what the table costs.

    pytest bench/test_fastpath.py --benchmark-enable --benchmark-columns=min,median,iqr

Run by hand; `extra_info` of each row says backend, flows and nanoseconds an operation.  The calls go
through the Python wrapper, one packet each, so what is measured includes about 30 ns of calling.

Three orders of packets, because memory is what differs between a small table and a large one:

    hot      1,000 of the flows carry all the packets: their records stay in the cache
    in turn  every flow after the other, as they were installed
    random   uniformly, the worst case: each packet waits for memory two or three times
"""

from __future__ import annotations

import random
import resource
from collections.abc import Callable, Iterator
from itertools import cycle
from types import ModuleType
from typing import Any

import pytest
from differential.packets import packet_of
from support.backends import fastpath_backend, table_config

from natengine.flow.records import FlowSpec, Path
from natengine.vocab import Hook, Proto
from natengine.wire.checksum import checksum

__all__ = ["fastpath_backend"]

FLOWS = (64, 65_536, 1_048_576)
LARGEST_FOR_PYTHON = 65_536             # a million dict entries and objects would take a GiB
BATCH = 512                             # packets a round: their buffers stay in the cache, as an adapter's do
ROUNDS = 200
FORWARD_NS = 1


def spec_of(n: int) -> FlowSpec:
    """The n-th flow: 1,024 ports of an inside host, 32,768 of an outside address."""
    return FlowSpec(
        Proto.UDP, 0x0A000000 + (n >> 10), 1024 + (n & 1023), 0xCB007101 + (n >> 15), 1024 + (n & 32767),
        0xCB007202, 53, True, 3, 4, 7,
    )


def filled(backend: ModuleType, flows: int, *, replied: bool = True) -> Any:
    """A table of `flows` UDP flows that have been answered."""
    if backend.BACKEND == "python" and flows > LARGEST_FOR_PYTHON:
        pytest.skip("the pure-Python twin is not made for this size")
    table = backend.FastPath(table_config(flows))
    for n in range(flows):
        assert table.install(spec_of(n), FORWARD_NS) == n
        if replied:
            table.touch(n, Hook.PREROUTING, 28, FORWARD_NS)
    return table


def choose(order: str, flows: int) -> Iterator[int]:
    """Endless flow numbers in one of the three orders."""
    rng = random.Random(1)
    if order == "in turn":
        return cycle(range(flows))
    return iter(lambda: rng.randrange(min(flows, 1000) if order == "hot" else flows), None)


def report(benchmark: Any, backend: ModuleType, flows: int, operations: int) -> None:
    benchmark.extra_info |= {"backend": backend.BACKEND, "flows": flows}
    if benchmark.enabled:
        median_ns = benchmark.stats.stats.median * 1e9 / operations
        benchmark.extra_info["ns_per_operation"] = round(median_ns, 1)
        print(f"\n    {backend.BACKEND}, {flows} flows: {median_ns:.0f} ns an operation")


@pytest.mark.parametrize("order", ["hot", "in turn", "random"])
@pytest.mark.parametrize("flows", FLOWS)
def test_translate_known(benchmark: Any, fastpath_backend: ModuleType, flows: int, order: str) -> None:
    table = filled(fastpath_backend, flows)
    numbers = choose(order, flows)
    buffers = [packet_of(spec_of(0), Hook.POSTROUTING, data=bytes(18)) for _ in range(BATCH)]

    def fresh_packets() -> None:
        for buffer in buffers:
            buffer[:] = packet_of(spec_of(next(numbers)), Hook.POSTROUTING, data=bytes(18))

    def one_batch() -> None:
        translate: Callable[[bytearray, int, int], int] = table.translate
        for buffer in buffers:
            translate(buffer, 4, 5)

    benchmark.pedantic(one_batch, setup=fresh_packets, rounds=ROUNDS, warmup_rounds=5)
    report(benchmark, fastpath_backend, flows, BATCH)
    assert bytes(buffers[0][12:16]) != packet_of(spec_of(0), Hook.POSTROUTING)[12:16]


def test_translate_miss(benchmark: Any, fastpath_backend: ModuleType) -> None:
    """What a packet of an unknown flow costs before the engine even begins."""
    table = filled(fastpath_backend, 64)
    buffers = [packet_of(spec_of(n), Hook.POSTROUTING) for n in range(1000, 1000 + BATCH)]
    assert table.translate(buffers[0], 4, 5) == Path.MISS

    def one_batch() -> None:
        for buffer in buffers:
            table.translate(buffer, 4, 5)

    benchmark.pedantic(one_batch, rounds=ROUNDS, warmup_rounds=5)
    report(benchmark, fastpath_backend, 64, BATCH)


@pytest.mark.parametrize("flows", FLOWS)
def test_install_and_remove(benchmark: Any, fastpath_backend: ModuleType, flows: int) -> None:
    """A table that is full but for one batch: flows come and go."""
    table = filled(fastpath_backend, flows)
    specs = [spec_of(n) for n in range(flows - min(flows, BATCH), flows)]
    for spec in specs:
        table.remove(table.find(spec.leaving))

    def come_and_go() -> None:
        for flow_id in [table.install(spec, FORWARD_NS) for spec in specs]:
            table.remove(flow_id)

    benchmark.pedantic(come_and_go, rounds=ROUNDS // 2, warmup_rounds=2)
    report(benchmark, fastpath_backend, flows, len(specs))


@pytest.mark.parametrize("flows", FLOWS)
def test_expire_all(benchmark: Any, fastpath_backend: ModuleType, flows: int) -> None:
    """Every flow of a full table ends in the same second."""
    def full_table() -> tuple[tuple[Any], dict[str, Any]]:
        return (filled(fastpath_backend, flows, replied=False),), {}

    def end(table: Any) -> None:
        while table.expire(10**12, 4096):
            pass
        assert len(table) == 0

    benchmark.pedantic(end, setup=full_table, rounds=3)
    report(benchmark, fastpath_backend, flows, flows)


@pytest.mark.parametrize("flows", FLOWS)
def test_expire_nothing(benchmark: Any, fastpath_backend: ModuleType, flows: int) -> None:
    """The call of every second when nothing ends: `expire` costs what expires."""
    table = filled(fastpath_backend, flows)
    seconds = iter(range(3, 10**6))
    while table.expire(2 * 10**9, 10**6):
        pass
    benchmark.pedantic(lambda: table.expire(next(seconds) * 10**9, 10**6), rounds=ROUNDS)
    report(benchmark, fastpath_backend, flows, 1)


@pytest.mark.parametrize("size", [20, 1500])
def test_checksum(benchmark: Any, size: int) -> None:
    """RFC 1071 in Python: what the engine pays for a packet that it builds itself."""
    data = random.Random(1).randbytes(size)
    assert 0 <= benchmark(checksum, data) <= 0xFFFF
    benchmark.extra_info |= {"backend": "python", "bytes": size}


def test_memory_of_a_million_flows(fastpath_backend: ModuleType) -> None:
    """Resident memory of the process before and after; the compiled table must fit into 256 MiB."""
    if fastpath_backend.BACKEND == "python":
        pytest.skip("the pure-Python twin is not made for this size")
    page_bytes = resource.getpagesize()

    def resident_mib() -> float:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * page_bytes / 2**20

    before = resident_mib()
    table = fastpath_backend.FastPath(table_config(1_048_576))
    empty = resident_mib()
    for n in range(1_000_000):
        table.install(spec_of(n), FORWARD_NS)
    after = resident_mib()
    print(f"\n    empty {empty - before:.1f} MiB, a million flows {after - before:.1f} MiB")
    assert len(table) == 1_000_000
    assert after - before < 256
