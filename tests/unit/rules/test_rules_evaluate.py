"""Compiled chains against a plain reading of the same rules, and their promises."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.rules.rule_strategies import facts, rules

from natengine.rules import evaluate
from natengine.rules.counters import RuleCounters
from natengine.rules.evaluate import POLICY_HANDLE, Outcome, PacketFacts, compile_chain
from natengine.rules.facts import FlowFacts, RuleMemory, Surroundings
from natengine.rules.matches import (
    AddressKind,
    AddressRange,
    AddressRangeTest,
    AddressType,
    AddressTypeTest,
    Comment,
    ConntrackState,
    ConntrackTuple,
    CtDirection,
    CtStatus,
    EveryNth,
    FlowAddressTest,
    IcmpType,
    InterfaceTest,
    IpRange,
    Limit,
    MacSource,
    MarkTest,
    Match,
    Multiport,
    PortRange,
    PortSide,
    PortTest,
    ProtocolTest,
    RandomSample,
    StatusTest,
    TcpFlags,
    TcpUdpPorts,
    Translated,
)
from natengine.rules.model import Chain, ChainName, Rule, RuleSet, Table, TableName
from natengine.rules.predicates import compile_rule
from natengine.rules.targets import (
    Accept,
    Connmark,
    ConnmarkMode,
    Drop,
    Goto,
    Jump,
    Log,
    Mark,
    Masquerade,
    Reject,
    RejectWith,
    Return,
    Target,
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
        case Multiport(side, ranges, inverted):
            numbers = [packet.sport] * (side != "dports") + [packet.dport] * (side != "sports")
            return packet.sport >= 0 and any(
                first <= number <= last for first, last in ranges for number in numbers) != inverted
        case MarkTest(value, mask, inverted, connection):
            return ((0 if connection else packet.mark) & mask == value) != inverted
        case IpRange(src, dst):
            return all(not test or (test.addresses.first <= value <= test.addresses.last) != test.inverted
                       for test, value in ((src, packet.src), (dst, packet.dst)))
        case AddressKind(src, dst):                     # to NOWHERE, every address is UNICAST
            return all(not test or (AddressType.UNICAST in test.kinds) != test.inverted for test in (src, dst))
        case ConntrackTuple():
            return conntrack_agrees(match, packet)
        case Limit():                                   # nobody remembers anything
            return True
        case RandomSample() | EveryNth() | MacSource():
            return False
    raise AssertionError(match)


def conntrack_agrees(match: ConntrackTuple, packet: PacketFacts) -> bool:
    """A packet that begins a flow: its own tuple, and that turned round."""
    addresses = ((match.orig_src, packet.src), (match.orig_dst, packet.dst), (match.repl_src, packet.dst),
                 (match.repl_dst, packet.src))
    ports = ((match.orig_sport, packet.sport), (match.orig_dport, packet.dport), (match.repl_sport, packet.dport),
             (match.repl_dport, packet.sport))
    return (
        (match.state is None or match_agrees(match.state, packet))
        and (match.proto is None or (match.proto.number == packet.proto) != match.proto.inverted)
        and all(not test or ((value ^ test.address) & test.mask == 0) != test.inverted for test, value in addresses)
        and all(not test or (test.ports.first <= value <= test.ports.last) != test.inverted for test, value in ports)
        and (match.status is None or (not match.status.status) != match.status.inverted)
        and match.expire is None and match.direction in (None, CtDirection.ORIGINAL)
    )


def rule_agrees(rule: Rule, packet: PacketFacts) -> bool:
    addresses = [(test, value) for test, value in ((rule.src, packet.src), (rule.dst, packet.dst)) if test]
    return (all(test.prefix.contains(value) != test.inverted for test, value in addresses)
            and name_agrees(rule.in_iface, packet.in_name) and name_agrees(rule.out_iface, packet.out_name)
            and not rule.fragment       # whatever comes to the rules is whole, or stands for the whole
            and (rule.proto is None or (packet.proto == rule.proto.number) != rule.proto.inverted)
            and all(match_agrees(match, packet) for match in rule.matches))


def read_plainly(chain: Chain, packet: PacketFacts) -> tuple[Outcome, list[int]]:
    """Return the outcome, without what was noted, and the handles that are counted."""
    counted = []
    for rule in chain.rules:
        if not rule_agrees(rule, packet):
            continue
        counted.append(rule.handle)
        match rule.target:
            case None | Log():
                pass
            case Return():
                break
            case target:
                return Outcome(target, rule.handle), counted
    return Outcome(chain.policy, POLICY_HANDLE), [*counted, POLICY_HANDLE]


@given(st.lists(rules(TableName.FILTER, ChainName.FORWARD), max_size=6), st.sampled_from([Accept(), Drop()]),
       st.lists(facts(), min_size=1, max_size=5))
def test_a_program_says_and_counts_what_the_rules_say(
        made: list[Rule], policy: Accept | Drop, packets: list[PacketFacts]) -> None:
    ruleset = RuleSet().set_policy(TableName.FILTER, "FORWARD", policy)
    for rule in made:
        if isinstance(rule.target, Mark | Connmark):
            continue                    # they change what the rules after them see: tested below
        ruleset = ruleset.append(TableName.FILTER, "FORWARD", rule)
    chain = ruleset.chain(TableName.FILTER, "FORWARD")
    counted: list[tuple[int, int]] = []
    counting = compile_chain(chain, lambda handle, length: counted.append((handle, length)))
    silent = compile_chain(chain)
    with mock.patch.object(evaluate, "INDEX_FROM", 1):
        indexed = compile_chain(chain, lambda handle, length: counted.append((handle, length)))
    for packet in packets:
        counted.clear()
        outcome, handles = read_plainly(chain, packet)
        assert (counting(packet)[:2], silent(packet)[:2]) == (outcome[:2], outcome[:2])
        expected = [(handle, packet.length) for handle in handles]
        assert counted == expected
        assert (indexed(packet)[:2], counted[len(expected):]) == (outcome[:2], expected)
        for program in (counting, silent):
            assert program.constant in (None, outcome)
            if not program.uses_ctstate:
                assert program(packet._replace(ctstate=CtState.INVALID))[:2] == outcome[:2]


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


# --- from chain to chain ----------------------------------------------------------------------------


def filter_table(**chains: list[Rule]) -> Table:
    """A table with these chains, FORWARD first; its policy is DROP, the rules are numbered as they stand."""
    numbers = itertools.count(1)
    return Table(TableName.FILTER, tuple(
        Chain(name, Drop() if name == "FORWARD" else None,
              tuple(replace(rule, handle=next(numbers)) for rule in rules))
        for name, rules in chains.items()
    ))


def walk(packet: PacketFacts = PACKET, **chains: list[Rule]) -> tuple[Outcome, list[int]]:
    """What the table says about a packet, and the handles that are counted."""
    table, counted = filter_table(**chains), []
    program = compile_chain(table.chains[0], lambda handle, length: counted.append(handle), table=table)
    assert list(program.counted(packet)) == counted or not counted
    outcome = program(packet)
    silent = compile_chain(table.chains[0], table=table)(packet)
    assert (silent.target, silent.handle, silent.mark) == (outcome.target, outcome.handle, outcome.mark)
    return outcome, counted


def to(target: Target, **tests: object) -> Rule:
    return Rule(target=target, **tests)  # type: ignore[arg-type]


OTHER = {"proto": ProtocolTest(Proto.UDP)}      # a test that the packet does not pass


@pytest.mark.parametrize(("chains", "target", "counted"), [
    # a jump comes back at the end of the chain, and at RETURN
    ({"FORWARD": [to(Jump("a")), to(Accept())], "a": [Rule()]}, Accept(), [1, 3, 2]),
    ({"FORWARD": [to(Jump("a")), to(Accept())], "a": [to(Return()), to(Drop())]}, Accept(), [1, 3, 2]),
    ({"FORWARD": [to(Jump("a")), to(Drop())], "a": [to(Drop(), **OTHER), to(Accept())]}, Accept(), [1, 4]),
    ({"FORWARD": [to(Jump("a"), **OTHER), to(Accept())], "a": [to(Drop())]}, Accept(), [2]),
    # a goto does not
    ({"FORWARD": [to(Goto("a")), to(Accept())], "a": []}, Drop(), [1, -1]),
    ({"FORWARD": [to(Goto("a")), to(Accept())], "a": [to(Return())]}, Drop(), [1, 3, -1]),
    ({"FORWARD": [to(Jump("a")), to(Accept())], "a": [to(Goto("b")), to(Drop())], "b": [Rule()]},
     Accept(), [1, 3, 5, 2]),
    # RETURN in the built-in chain is its policy
    ({"FORWARD": [to(Return()), to(Accept())]}, Drop(), [1, -1]),
    # the same chain twice
    ({"FORWARD": [to(Jump("a")), to(Jump("a"))], "a": [Rule()]}, Drop(), [1, 3, 2, 3, -1]),
    ({"FORWARD": [to(Reject(RejectWith.TCP_RESET))]}, Reject(RejectWith.TCP_RESET), [1]),
])
def test_jumps_and_returns(chains: dict[str, list[Rule]], target: Target, counted: list[int]) -> None:
    outcome, handles = walk(**chains)
    assert (outcome.target, handles) == (target, counted)


def test_log_ends_nothing_and_is_heard_of() -> None:
    first, second = Log(prefix="a"), Log(level=7)
    outcome, counted = walk(FORWARD=[to(first), to(Log(prefix="not me"), **OTHER), to(Jump("a")), to(Accept())],
                            a=[to(second), to(Return())])
    assert (outcome.target, outcome.logs, counted) == (Accept(), (first, second), [1, 3, 5, 6, 4])


def test_a_mark_is_seen_by_the_rules_after_it() -> None:
    marked = Rule(matches=(MarkTest(0x12),), target=Accept())
    outcome, _ = walk(PACKET._replace(mark=0x02), FORWARD=[to(Jump("a")), marked], a=[to(Mark(0x10, 0xF0))])
    assert (outcome.target, outcome.mark) == (Accept(), 0x12)


@pytest.mark.parametrize(("targets", "mark", "connection_mark"), [
    ([Connmark(ConnmarkMode.SET, 5)], None, 5),
    ([Connmark(ConnmarkMode.SAVE)], None, 7),
    ([Connmark(ConnmarkMode.SAVE, ct_mask=1, nf_mask=1)], None, 1),
    ([Connmark(ConnmarkMode.SET, 0x20), Connmark(ConnmarkMode.RESTORE)], 0x20, 0x20),
    ([Mark(9), Connmark(ConnmarkMode.SAVE)], 9, 9),
])
def test_marks_of_connections(targets: list[Target], mark: int | None, connection_mark: int | None) -> None:
    outcome, _ = walk(PACKET._replace(mark=7), FORWARD=[to(target) for target in targets])
    assert (outcome.mark, outcome.connection_mark) == (mark, connection_mark)


FLOW = FlowFacts(1, 2, 3, 4, 10, 20, 30, 40, CtStatus.SEEN_REPLY, CtDirection.REPLY, Translated.DNAT, mark=6)
SECOND_NS = 10**9


def matches(match: Match, packet: PacketFacts, memory: RuleMemory | None = None) -> bool:
    around = Surroundings(lambda address, name: AddressType.LOCAL if address == packet.dst else AddressType.UNICAST,
                          memory)
    predicate = compile_rule(Rule(matches=(match,)), around)
    return predicate is None or predicate(packet)


@pytest.mark.parametrize(("match", "expected"), [
    (Multiport(PortSide.DESTINATION, (PortRange(1, 9), PortRange(80, 80))), True),
    (Multiport(PortSide.SOURCE, (PortRange(80, 80),)), False),
    (Multiport(PortSide.EITHER, (PortRange(80, 80),)), True),
    (Multiport(PortSide.EITHER, (PortRange(80, 80),), inverted=True), False),
    (MarkTest(0x10, 0xF0), True), (MarkTest(0x10), False), (MarkTest(0x10, inverted=True), True),
    (MarkTest(6, connection=True), True), (MarkTest(7, connection=True), False),
    (IpRange(src=AddressRangeTest(AddressRange(0x0A000000, 0x0A000001))), True),
    (IpRange(dst=AddressRangeTest(AddressRange(0x08080808, 0x08080808), True)), False),
    (AddressKind(dst=AddressTypeTest(AddressType.LOCAL)), True),
    (AddressKind(src=AddressTypeTest(AddressType.LOCAL | AddressType.BROADCAST)), False),
    (AddressKind(dst=AddressTypeTest(AddressType.LOCAL, inverted=True)), False),
    (ConntrackTuple(orig_src=FlowAddressTest(1)), True),
    (ConntrackTuple(orig_dst=FlowAddressTest(2), repl_src=FlowAddressTest(3)), True),
    (ConntrackTuple(orig_dst=FlowAddressTest(2), repl_dst=FlowAddressTest(3)), False),
    (ConntrackTuple(orig_sport=PortTest(PortRange(10, 10)), repl_dport=PortTest(PortRange(40, 40))), True),
    (ConntrackTuple(proto=ProtocolTest(17)), False),
    (ConntrackTuple(direction=CtDirection.REPLY), True), (ConntrackTuple(direction=CtDirection.ORIGINAL), False),
    (ConntrackTuple(status=StatusTest(CtStatus.SEEN_REPLY | CtStatus.ASSURED)), True),
    (ConntrackTuple(status=StatusTest(CtStatus(0))), False),
    (ConntrackState(CtState(0), translated=Translated.DNAT), True),
    (ConntrackState(CtState.INVALID, translated=Translated.SNAT), False),
    (ConntrackState(CtState.NEW, True, translated=Translated.SNAT), False),
])
def test_matches_that_look_elsewhere(match: Match, expected: bool) -> None:
    assert matches(match, PACKET._replace(mark=0x12, flow=FLOW)) is expected


def test_a_packet_that_begins_a_flow_is_its_own_original() -> None:
    assert matches(ConntrackTuple(orig_dst=FlowAddressTest(PACKET.dst), repl_src=FlowAddressTest(PACKET.dst),
                                  orig_dport=PortTest(PortRange(80, 80))), PACKET)


def test_ports_of_a_later_fragment_are_in_no_list() -> None:
    assert not matches(Multiport(PortSide.EITHER, (PortRange(0, 65535),), inverted=True), FRAGMENT)


def test_a_limit_lets_a_burst_and_then_its_rate_pass() -> None:
    memory = RuleMemory(random.Random(1))
    limit = Limit(interval=10_000, burst=3)             # one a second
    times = [0, 0, 0, 0, 0.9, 1.0, 1.5, 2.0, 100, 100, 100, 100]
    passed = [matches(limit, PACKET._replace(now_ns=int(at * SECOND_NS)), memory) for at in times]
    assert passed == [True, True, True, False, False, True, False, True, True, True, True, False]


def test_chance_and_turns() -> None:
    memory = RuleMemory(random.Random(1))
    assert [matches(EveryNth(3, 1), PACKET, memory) for _ in range(6)] == [False, True, False] * 2
    memory = RuleMemory(random.Random(1))
    assert [matches(EveryNth(2, inverted=True), PACKET, memory) for _ in range(4)] == [False, True] * 2
    hits = sum(matches(RandomSample(1 << 29), PACKET, memory) for _ in range(1000))
    assert 200 < hits < 300                             # a quarter, with these dice
    assert not any(matches(RandomSample(0), PACKET, memory) for _ in range(100))


# --- what a caller may skip -------------------------------------------------------------------------


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
