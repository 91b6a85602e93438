"""A long chain costs little more than a short one, and says the same."""

from __future__ import annotations

import timeit
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.rules.rule_strategies import facts, rules

from natengine.rules.evaluate import Outcome, compile_chain
from natengine.rules.facts import PacketFacts
from natengine.rules.index import PIECE, Index
from natengine.rules.matches import AddressTest, InterfaceTest, Multiport, PortRange, PortSide, PortTest, TcpUdpPorts
from natengine.rules.model import Chain, ChainName, Rule, TableName
from natengine.rules.predicates import compile_rule
from natengine.rules.targets import Masquerade
from natengine.vocab import CtState, Proto
from natengine.wire.addr import Prefix

PACKET = PacketFacts("bond0.def", "bond0.2", 0x0A010203, 0x08080808, Proto.TCP, 5000, 80, tcp_flags=2, length=60,
                     ctstate=CtState.NEW)
BOND_2 = InterfaceTest("bond0.2")


def net(third: int, inverted: bool = False) -> AddressTest:
    return AddressTest(Prefix.of_length(0x0A000000 | third << 8, 24), inverted)


@given(st.lists(rules(TableName.FILTER, ChainName.FORWARD), max_size=8), st.lists(facts(), min_size=1, max_size=5))
def test_no_rule_that_matches_is_ruled_out(made: list[Rule], packets: list[PacketFacts]) -> None:
    """And what is left comes in order."""
    index = Index([(rule, n) for n, rule in enumerate(made)])
    for packet in packets:
        found = list(index.candidates(packet))
        matching = [n for n, rule in enumerate(made)
                    if (predicate := compile_rule(rule)) is None or predicate(packet)]
        assert found == sorted(found)
        assert set(matching) <= set(found)


def ports(*listed: tuple[int, int]) -> Multiport:
    return Multiport(PortSide.DESTINATION, tuple(PortRange(*each) for each in listed))


@pytest.mark.parametrize(("rule", "worth_asking"), [
    (Rule(), True),
    (Rule(out_iface=BOND_2), True), (Rule(out_iface=InterfaceTest("bond0.3")), False),
    (Rule(out_iface=InterfaceTest("bond+")), True), (Rule(in_iface=InterfaceTest("bond0.def", True)), False),
    (Rule(src=net(0x0102)), True), (Rule(src=net(0x0103)), False), (Rule(src=net(0x0102, True)), False),
    (Rule(dst=net(0x0102, True)), True), (Rule(dst=AddressTest(Prefix(0, 0))), True),
    (Rule(dst=AddressTest(Prefix(0x01000001, 0xFF0000FF))), True),      # a mask with holes is asked
    (Rule(matches=(TcpUdpPorts(Proto.TCP, dport=PortTest(PortRange(80, 81))),)), True),
    (Rule(matches=(TcpUdpPorts(Proto.TCP, dport=PortTest(PortRange(81, 90))),)), False),
    (Rule(matches=(ports((443, 443), (1, 90), (2, 3)),)), True), (Rule(matches=(ports((443, 443), (1, 79)),)), False),
])
def test_what_is_ruled_out(rule: Rule, worth_asking: bool) -> None:
    others = [(Rule(src=net(0x7000)), "other")] * 3
    assert list(Index([*others, (rule, "it"), *others]).candidates(PACKET)) == ["it"] * worth_asking


def many(count: int) -> Chain:
    """So many workers' networks that masquerade, and last the one that the packet comes from."""
    made = [Rule(src=net(0x2000 + n), out_iface=BOND_2, target=Masquerade()) for n in range(count - 1)]
    made.append(Rule(src=net(0x0102), out_iface=BOND_2, target=Masquerade()))
    return Chain(ChainName.POSTROUTING, rules=tuple(replace(rule, handle=n) for n, rule in enumerate(made, 1)))


@pytest.mark.parametrize("count", [1, 10, 1000, PIECE + 1, 3 * PIECE])
def test_one_rule_of_many_is_asked(count: int) -> None:
    chain = many(count)
    assert compile_chain(chain)(PACKET) == Outcome(Masquerade(), count)
    assert list(Index([(rule, rule.handle) for rule in chain.rules]).candidates(PACKET)) == [count]


def test_a_thousand_rules_cost_little_more_than_one() -> None:
    """A bound that only asking every rule would break: that costs a hundred times as much as asking one."""
    best = {}
    for count in (1, 1000):
        program = compile_chain(many(count), lambda handle, length: None)
        best[count] = min(timeit.repeat(lambda program=program: program(PACKET), number=50, repeat=40))
    assert best[1000] < 50 * best[1]
