"""What a new flow costs under 1, 10, 100 and 1000 rules in nat POSTROUTING, and what a change of the rules costs.

    pytest bench/test_rules.py --benchmark-enable --benchmark-columns=min,median,iqr
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count as counting

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from support.backends import load_backend, table_config
from support.engines import BOND_2, BOND_DEF, INTERFACES
from support.packets import udp

from natengine.nat.engine import NatEngine
from natengine.nat.interfaces import InterfaceTable
from natengine.rules.matches import AddressTest, InterfaceTest
from natengine.rules.model import ChainName, Rule, RuleSet, TableName
from natengine.rules.targets import Masquerade
from natengine.settings import Settings
from natengine.vocab import Hook, PacketMeta, Reason
from natengine.wire.addr import Prefix

FLOWS = 2000
COUNTS = (1, 10, 100, 1000)


def ruleset(count: int) -> RuleSet:
    """MASQUERADE for so many networks, that of the packets last."""
    networks = [0x0B000000 | n << 8 for n in range(count - 1)] + [0x0A010000]
    rules = RuleSet()
    for network in networks:
        test = AddressTest(Prefix.of_length(network, 24))
        rules = rules.append(TableName.NAT, ChainName.POSTROUTING,
                             Rule(src=test, out_iface=InterfaceTest("bond0.2"), target=Masquerade()))
    return rules


def engine(count: int) -> NatEngine:
    """An engine with so many rules, and none of the flows."""
    settings = Settings(max_flows=1 << 16)
    made = NatEngine(load_backend("cython").FastPath(table_config(settings.max_flows, settings.timeouts)),
                     settings=settings, rng=random.Random(1))
    made.replace_interfaces(InterfaceTable(INTERFACES), 0)
    made.replace_ruleset(ruleset(count))
    return made


def packets() -> Iterator[bytearray]:
    """Each begins a flow."""
    for n in counting():
        yield udp(f"10.1.0.{n % 200 + 2}:{1024 + n // 200} > 203.0.113.2:53")


@pytest.mark.parametrize("count", COUNTS)
def test_new_flow(benchmark: BenchmarkFixture, count: int) -> None:
    """FLOWS new flows a round.  1000 rules may cost five times what one does."""
    meta = PacketMeta(Hook.POSTROUTING, BOND_DEF, BOND_2, 0)

    def setup() -> tuple[tuple[NatEngine, list[bytearray]], dict[str, object]]:
        source = packets()
        return (engine(count), [next(source) for _ in range(FLOWS)]), {}

    def begin(fresh: NatEngine, batch: list[bytearray]) -> None:
        for packet in batch:
            assert fresh.process(packet, meta, 0).reason is Reason.NEW_FLOW

    benchmark.extra_info["flows"] = FLOWS
    benchmark.pedantic(begin, setup=setup, rounds=5)


@pytest.mark.parametrize("count", COUNTS)
def test_change_of_rules(benchmark: BenchmarkFixture, count: int) -> None:
    """What the packet thread is kept for when one rule changes."""
    changed, rules = engine(1), ruleset(count)
    benchmark.pedantic(lambda: changed.replace_ruleset(rules), rounds=5)
