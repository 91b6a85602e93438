"""Hypothesis strategies for rules, rule sets, counters and packets: what the front end can produce."""

from __future__ import annotations

from hypothesis import strategies as st

from natengine.rules.counters import RuleCounters
from natengine.rules.evaluate import NO_FIELD, PacketFacts
from natengine.rules.model import (
    BUILT_IN_CHAINS,
    Accept,
    AddressTest,
    ChainName,
    Comment,
    ConntrackState,
    Drop,
    IcmpType,
    InterfaceTest,
    Masquerade,
    Match,
    PortRange,
    PortTest,
    ProtocolTest,
    Return,
    Rule,
    RuleSet,
    StateModule,
    TableName,
    TcpFlags,
    TcpUdpPorts,
)
from natengine.vocab import CtState, Proto
from natengine.wire.addr import Prefix

# Few different values, so that packets and rules meet.
ADDRESSES = st.sampled_from([0, 0x0A000001, 0x0A000102, 0x7F000001, 0xC0A80101, 0xFFFFFFFF]) | st.integers(
    0, 2**32 - 1)
MASKS = st.sampled_from([0xFFFFFFFF, 0xFFFFFF00, 0xFF000000, 0x80000000, 0xFF00FF00, 1])
INTERFACES = st.sampled_from(["bond0.2", "bond0.3", "bond0.def", "bond+", "eth0", "a:b", 'q"x', "b\\c"])
PORTS = st.sampled_from([1, 53, 80, 1024, 65535]) | st.integers(1, 65535)
COUNTS = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\0"), max_size=60)
STATES = st.integers(1, 31).map(CtState)


@st.composite
def port_ranges(draw: st.DrawFn) -> PortRange:
    first, last = sorted((draw(PORTS), draw(PORTS)))
    return PortRange(first, last)


def ports_matches(proto: Proto) -> st.SearchStrategy[Match]:
    tests = st.none() | st.builds(PortTest, port_ranges(), st.booleans())
    flags = st.builds(TcpFlags, st.integers(1, 63), st.integers(0, 63), st.booleans())
    return st.builds(TcpUdpPorts, st.just(proto), tests, tests,
                     st.none() | flags if proto is Proto.TCP else st.none())


@st.composite
def icmp_matches(draw: st.DrawFn) -> Match:
    inverted = draw(st.booleans())
    icmp_type = draw(st.none() | st.sampled_from([0, 3, 8, 254]))
    code = draw(st.none() | st.sampled_from([0, 4, 99]))
    if icmp_type is None or code is None:
        return IcmpType(icmp_type, inverted=inverted)
    return IcmpType(icmp_type, code, code, inverted)


@st.composite
def rules(draw: st.DrawFn, table: TableName = TableName.FILTER, chain: ChainName = ChainName.FORWARD) -> Rule:
    """One valid rule for this chain."""
    address = st.none() | st.builds(AddressTest, st.builds(Prefix, ADDRESSES, MASKS), st.booleans())
    iface = st.none() | st.builds(InterfaceTest, INTERFACES, st.booleans())
    has_in = chain not in (ChainName.OUTPUT, ChainName.POSTROUTING)
    has_out = chain not in (ChainName.PREROUTING, ChainName.INPUT)
    proto = draw(st.none() | st.sampled_from([*Proto, 47, 253]))
    proto_inverted = proto is not None and draw(st.booleans())
    kinds: list[st.SearchStrategy[Match]] = [
        st.builds(ConntrackState, STATES, st.booleans(), st.sampled_from(StateModule)),
        st.builds(Comment, TEXT),
    ]
    if proto in (Proto.TCP, Proto.UDP):
        kinds.append(ports_matches(Proto(proto)))
    if proto is Proto.ICMP and not proto_inverted:
        kinds.append(icmp_matches())
    targets = [st.none(), st.just(Accept()), st.just(Return())]
    targets += [st.just(Drop())] if table is TableName.FILTER else []
    if (table, chain) == (TableName.NAT, ChainName.POSTROUTING):
        ports = st.none() if proto is None else st.none() | port_ranges()
        targets.append(st.builds(Masquerade, ports, st.booleans(), st.booleans()))
    return Rule(
        src=draw(address), dst=draw(address),
        in_iface=draw(iface) if has_in else None, out_iface=draw(iface) if has_out else None,
        proto=None if proto is None else ProtocolTest(int(proto), proto_inverted),
        matches=tuple(draw(st.lists(st.one_of(kinds), max_size=3))), target=draw(st.one_of(targets)))


@st.composite
def rulesets(draw: st.DrawFn) -> tuple[RuleSet, RuleCounters]:
    """A rule set, with counters for some of its rules and policies."""
    ruleset, counters = RuleSet(), RuleCounters()
    everywhere = [(table, chain) for table in (TableName.FILTER, TableName.NAT) for chain in BUILT_IN_CHAINS[table]]
    for table, chain in draw(st.lists(st.sampled_from(everywhere), unique=True, max_size=3)):
        policies = [Accept(), Drop()] if table is TableName.FILTER else [Accept()]
        ruleset = ruleset.set_policy(table, chain, draw(st.sampled_from(policies)))
        counters.set_policy(table, chain, *draw(COUNTS))
        for rule in draw(st.lists(rules(table, chain), max_size=3)):
            counters.set_rule(ruleset.next_handle, *draw(COUNTS))
            ruleset = ruleset.append(table, chain, rule)
    return ruleset, counters


@st.composite
def facts(draw: st.DrawFn) -> PacketFacts:
    """A packet that is TCP, UDP, ICMP, another protocol or a later fragment."""
    proto = draw(st.sampled_from([*Proto, 47]))
    whole = draw(st.booleans())
    ports = whole and proto in (Proto.TCP, Proto.UDP)
    icmp = whole and proto is Proto.ICMP
    names = st.sampled_from(["", "bond0.2", "bond0.3", "bond0.def", "eth0", "bond"])
    return PacketFacts(
        draw(names), draw(names), draw(ADDRESSES), draw(ADDRESSES), int(proto),
        draw(PORTS) if ports else NO_FIELD, draw(PORTS) if ports else NO_FIELD,
        draw(st.sampled_from([0, 3, 8])) if icmp else NO_FIELD,
        draw(st.sampled_from([0, 4])) if icmp else NO_FIELD,
        draw(st.integers(0, 255)) if ports and proto is Proto.TCP else NO_FIELD,
        length=draw(st.integers(20, 65535)), ctstate=draw(st.sampled_from(list(CtState))))
