"""Compiled chains against a plain reading of the same rules, and their promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.rules.rule_strategies import facts, rules

from natengine.rules.counters import RuleCounters
from natengine.rules.evaluate import POLICY_HANDLE, Outcome, PacketFacts, compile_chain
from natengine.rules.model import (
    Accept,
    Chain,
    ChainName,
    Comment,
    ConntrackState,
    Drop,
    IcmpType,
    InterfaceTest,
    Masquerade,
    PortRange,
    PortTest,
    ProtocolTest,
    Return,
    Rule,
    RuleSet,
    TableName,
    TcpFlags,
    TcpUdpPorts,
)
from natengine.vocab import CtState, Proto

PACKET = PacketFacts("bond0.def", "bond0.2", 0x0A000001, 0x08080808, Proto.TCP, 5000, 80, tcp_flags=0x02,
                     length=60, ctstate=CtState.NEW)
FRAGMENT = PacketFacts("bond0.def", "bond0.2", 0x0A000001, 0x08080808, Proto.TCP)
PING = PacketFacts("bond0.def", "bond0.2", 0x0A000001, 0x08080808, Proto.ICMP, icmp_type=8, icmp_code=0)


# --- the oracle: each test read off the manual page, one after the other ----------------------------


def name_agrees(test: InterfaceTest | None, name: str) -> bool:
    if test is None:
        return True
    same = name.startswith(test.pattern[:-1]) if test.pattern.endswith("+") else name == test.pattern
    return same != test.inverted


def match_agrees(match: object, packet: PacketFacts) -> bool:
    match match:
        case Comment():
            return True
        case ConntrackState(states, inverted):
            return (packet.ctstate in states) != inverted
        case IcmpType(number, first, last, inverted):
            if packet.proto != Proto.ICMP or packet.icmp_type < 0:
                return False
            codes = range(first, last + 1)
            same = number is None or (packet.icmp_type == number and packet.icmp_code in codes)
            return same != inverted
        case TcpUdpPorts(proto, sport, dport, flags):
            if packet.proto != proto or packet.sport < 0:
                return False
            ports = [(test, port) for test, port in ((sport, packet.sport), (dport, packet.dport)) if test]
            good = all((port in range(test.ports.first, test.ports.last + 1)) != test.inverted
                       for test, port in ports)
            return good and (not flags or (packet.tcp_flags & flags.mask == flags.expected) != flags.inverted)
    raise AssertionError(match)


def rule_agrees(rule: Rule, packet: PacketFacts) -> bool:
    addresses = [(test, value) for test, value in ((rule.src, packet.src), (rule.dst, packet.dst)) if test]
    return (all(test.prefix.contains(value) != test.inverted for test, value in addresses)
            and name_agrees(rule.in_iface, packet.in_name) and name_agrees(rule.out_iface, packet.out_name)
            and (rule.proto is None or (packet.proto == rule.proto.number) != rule.proto.inverted)
            and all(match_agrees(match, packet) for match in rule.matches))


def read_plainly(chain: Chain, packet: PacketFacts) -> tuple[Outcome, list[int]]:
    """Return the outcome and the handles that are counted."""
    counted = []
    for rule in chain.rules:
        if rule_agrees(rule, packet):
            counted.append(rule.handle)
            if isinstance(rule.target, Return):
                break
            if rule.target is not None:
                return Outcome(rule.target, rule.handle), counted
    return Outcome(chain.policy, POLICY_HANDLE), [*counted, POLICY_HANDLE]


@given(st.lists(rules(TableName.FILTER, ChainName.FORWARD), max_size=6), st.sampled_from([Accept(), Drop()]),
       st.lists(facts(), min_size=1, max_size=5))
def test_a_program_says_and_counts_what_the_rules_say(
        made: list[Rule], policy: Accept | Drop, packets: list[PacketFacts]) -> None:
    ruleset = RuleSet().set_policy(TableName.FILTER, "FORWARD", policy)
    for rule in made:
        ruleset = ruleset.append(TableName.FILTER, "FORWARD", rule)
    chain = ruleset.chain(TableName.FILTER, "FORWARD")
    counted: list[tuple[int, int]] = []
    counting = compile_chain(chain, lambda handle, length: counted.append((handle, length)))
    silent = compile_chain(chain)
    for packet in packets:
        counted.clear()
        outcome, handles = read_plainly(chain, packet)
        assert (counting(packet), silent(packet)) == (outcome, outcome)
        assert counted == [(handle, packet.length) for handle in handles]
        for program in (counting, silent):
            assert program.constant in (None, outcome)
            if not program.uses_ctstate:
                assert program(packet._replace(ctstate=CtState.INVALID)) == outcome


SYN_ONLY = TcpUdpPorts(Proto.TCP, flags=TcpFlags(0x17, 0x02))


# --- single tests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule,packet,expected", [
    (Rule(out_iface=InterfaceTest("bond0.2")), PACKET, True),
    (Rule(out_iface=InterfaceTest("bond0")), PACKET, False),
    (Rule(out_iface=InterfaceTest("bond+")), PACKET, True),
    (Rule(out_iface=InterfaceTest("+")), PACKET, True),
    (Rule(out_iface=InterfaceTest("+", inverted=True)), PACKET, False),
    (Rule(in_iface=InterfaceTest("bond+", inverted=True)), PACKET._replace(in_name=""), True),
    (Rule(proto=ProtocolTest(0)), PACKET, True),
    (Rule(proto=ProtocolTest(6, inverted=True)), PACKET, False),
    # the protocol's own match wants its header: a later fragment has none, inverted or not
    (Rule(matches=(TcpUdpPorts(Proto.TCP),)), PACKET, True),
    (Rule(matches=(TcpUdpPorts(Proto.TCP),)), FRAGMENT, False),
    (Rule(matches=(TcpUdpPorts(Proto.UDP),)), PACKET, False),
    (Rule(matches=(TcpUdpPorts(Proto.TCP, dport=PortTest(PortRange(1, 9), True)),)), PACKET, True),
    (Rule(matches=(TcpUdpPorts(Proto.TCP, dport=PortTest(PortRange(1, 9), True)),)), FRAGMENT, False),
    (Rule(matches=(SYN_ONLY,)), PACKET, True),
    (Rule(matches=(SYN_ONLY,)), PACKET._replace(tcp_flags=0x12), False),
    (Rule(matches=(IcmpType(8),)), PING, True),
    (Rule(matches=(IcmpType(8, 1, 1),)), PING, False),
    (Rule(matches=(IcmpType(0, inverted=True),)), PING, True),
    (Rule(matches=(IcmpType(0, inverted=True),)), PACKET, False),
    (Rule(matches=(ConntrackState(CtState.NEW | CtState.RELATED),)), PACKET, True),
    (Rule(matches=(ConntrackState(CtState.ESTABLISHED),)), PACKET, False),
])
def test_single_tests(rule: Rule, packet: PacketFacts, expected: bool) -> None:
    program = compile_chain(Chain(ChainName.FORWARD, rules=(replace(rule, target=Drop()),)))
    assert isinstance(program(packet).target, Drop) is expected


def chain_of(*rules: Rule) -> Chain:
    return Chain(ChainName.FORWARD, rules=rules)


NEW_ONLY = Rule(matches=(ConntrackState(CtState.NEW),), target=Drop(), handle=3)
BY_NAME = Rule(out_iface=InterfaceTest("bond0.2"), target=Masquerade(), handle=4)
EVERYTHING = Rule(target=Drop(), handle=5)
COUNT_ONLY = Rule(handle=6)
BACK = Rule(target=Return(), handle=7)
POLICY = Outcome(Accept(), POLICY_HANDLE)


@pytest.mark.parametrize("chain,counted,constant,uses_ctstate", [
    (chain_of(), True, POLICY, False),
    (chain_of(EVERYTHING, NEW_ONLY), True, Outcome(Drop(), 5), False),      # the second is never reached
    (chain_of(BY_NAME), True, None, False),
    (chain_of(BY_NAME, NEW_ONLY), True, None, True),
    (chain_of(COUNT_ONLY), False, POLICY, False),
    (chain_of(COUNT_ONLY), True, None, False),                              # it counts, so it must be asked
    (chain_of(BACK, NEW_ONLY), False, POLICY, False),
    (chain_of(BACK), True, None, False),
])
def test_what_a_caller_may_skip(chain: Chain, counted: bool, constant: Outcome | None,
                                uses_ctstate: bool) -> None:
    program = compile_chain(chain, RuleCounters().adder("filter", "FORWARD") if counted else None)
    assert (program.constant, program.uses_ctstate) == (constant, uses_ctstate)
