"""Hypothesis strategies for rules, rule sets, counters and packets: what the front end can produce."""

from __future__ import annotations

import functools

from hypothesis import strategies as st

from natengine.rules.counters import RuleCounters
from natengine.rules.evaluate import NO_FIELD, PacketFacts
from natengine.rules.matches import (
    AddressKind,
    AddressRange,
    AddressRangeTest,
    AddressTest,
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
    SecondsTest,
    StateModule,
    StatusTest,
    TcpFlags,
    TcpUdpPorts,
    Translated,
)
from natengine.rules.model import BUILT_IN_CHAINS, LEFT_ALONE, ChainName, Rule, RuleSet, TableName
from natengine.rules.targets import (
    Accept,
    Connmark,
    ConnmarkMode,
    Dnat,
    Drop,
    Goto,
    Jump,
    Log,
    Mark,
    Masquerade,
    Netmap,
    Redirect,
    Reject,
    RejectWith,
    Return,
    Snat,
    Target,
)
from natengine.vocab import CtState, Proto
from natengine.wire.addr import Prefix, mask_of_length

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


MARKS = st.sampled_from([0, 1, 0x10, 0xFF, 0xFFFFFFFF])
# as rates are written, and can be read back: see `names.rate_text`
LIMITS = st.builds(Limit, st.sampled_from([33, 291, 2000, 10_000, 12_000_000, 864_000_000]), st.integers(1, 10_000))
RANGES = st.tuples(ADDRESSES, ADDRESSES).map(sorted).map(lambda ends: AddressRange(*ends))
FLOW_ADDRESSES = st.builds(FlowAddressTest, ADDRESSES, st.sampled_from([8, 24, 32]).map(mask_of_length), st.booleans())


def multiports() -> st.SearchStrategy[Match]:
    ranges = st.sampled_from([PortRange(1, 1), PortRange(80, 443), PortRange(65535, 65535)])
    return st.builds(Multiport, st.sampled_from(PortSide), st.lists(ranges, min_size=1, max_size=3).map(tuple),
                     st.booleans())


_PORT_TESTS = st.none() | st.builds(PortTest, port_ranges(), st.booleans())
# `-m conntrack` with something beside the state
CONNTRACK = st.builds(
    ConntrackTuple,
    st.none() | st.builds(ConntrackState, STATES, st.booleans(), translated=st.integers(0, 3).map(Translated)),
    st.none() | st.builds(ProtocolTest, st.sampled_from([0, 6, 253]), st.booleans()),
    orig_dst=st.none() | FLOW_ADDRESSES, repl_src=st.none() | FLOW_ADDRESSES,
    orig_sport=_PORT_TESTS, repl_dport=_PORT_TESTS,
    status=st.none() | st.builds(StatusTest, st.integers(0, 15).map(CtStatus), st.booleans()),
    expire=st.none() | st.just(SecondsTest(3, 5)), direction=st.sampled_from(CtDirection),
)


@functools.cache
def matches(number: int | None, has_mac: bool, inverted: bool) -> st.SearchStrategy[Match]:
    """Matches that go with a protocol."""
    kinds = st.builds(AddressTypeTest, st.integers(1, 0xFFF).map(AddressType), st.booleans())
    ranges = st.builds(AddressRangeTest, RANGES, st.booleans())
    found: list[st.SearchStrategy[Match]] = [
        st.builds(ConntrackState, STATES, st.booleans(), st.sampled_from(StateModule)),
        CONNTRACK, st.builds(Comment, TEXT), LIMITS,
        st.builds(MarkTest, MARKS, MARKS, st.booleans(), st.booleans()),
        st.builds(AddressKind, kinds, st.none() | kinds),
        st.builds(IpRange, st.none() | ranges, ranges),
        st.builds(RandomSample, st.integers(0, 1 << 31), st.booleans()),
        st.just(EveryNth(3, 1, True)) | st.just(EveryNth(1)),
    ]
    if has_mac:
        found.append(st.just(MacSource(bytes(range(6)))))
    if number in (Proto.TCP, Proto.UDP):
        found += [ports_matches(Proto(number)), *([] if inverted else [multiports()])]
    if number == Proto.ICMP and not inverted:
        found.append(icmp_matches())
    return st.one_of(found)


def log_targets() -> st.SearchStrategy[Target]:
    prefixes = st.text(st.characters(max_codepoint=126, min_codepoint=32), max_size=29)
    flags = [st.booleans()] * 5
    return st.builds(Log, st.integers(0, 7), prefixes, *flags)


def mark_targets() -> list[st.SearchStrategy[Target]]:
    return [
        st.builds(Mark, MARKS, MARKS),
        st.builds(Connmark, st.just(ConnmarkMode.SET), MARKS, MARKS),
        st.builds(Connmark, st.sampled_from([ConnmarkMode.SAVE, ConnmarkMode.RESTORE]), st.just(0), MARKS, MARKS),
    ]


@functools.cache
def targets(table: TableName, chain: str, proto: ProtocolTest | None) -> st.SearchStrategy[Target | None]:
    """What a rule may do in this chain, of all that the language has."""
    found: list[st.SearchStrategy[Target | None]] = [
        st.none(), st.just(Accept()), st.just(Return()), log_targets(), *mark_targets(),
    ]
    if table is not TableName.NAT:
        found.append(st.just(Drop()))
    if table is TableName.FILTER:
        tcp = proto == ProtocolTest(Proto.TCP)
        found.append(st.builds(Reject, st.sampled_from([how for how in RejectWith if tcp or how != "tcp-reset"])))
    if table is not TableName.NAT:
        return st.one_of(found)
    translated = proto is not None and proto.number in (Proto.TCP, Proto.UDP, Proto.ICMP)
    ports = st.none() | port_ranges() if translated else st.none()
    if chain == ChainName.POSTROUTING:
        found.append(st.builds(Masquerade, ports, st.booleans(), st.booleans()))
    if chain in (ChainName.POSTROUTING, ChainName.INPUT):
        found.append(st.builds(Snat, RANGES, ports, st.booleans(), st.booleans(), st.booleans()))
    if chain in (ChainName.PREROUTING, ChainName.OUTPUT):
        found.append(st.builds(Dnat, RANGES, ports, st.none(), st.booleans(), st.booleans()))
        found.append(st.builds(Redirect, ports, st.booleans()))
        if translated:
            found.append(st.just(Dnat(None, PortRange(1000, 1010), 5000)))
    found.append(st.builds(Netmap, st.builds(Prefix, ADDRESSES, st.sampled_from([8, 24, 32]).map(mask_of_length))))
    return st.one_of(found)


_ADDRESS_TESTS = st.none() | st.builds(AddressTest, st.builds(Prefix, ADDRESSES, MASKS), st.booleans())
_INTERFACE_TESTS = st.none() | st.builds(InterfaceTest, INTERFACES, st.booleans())
_PROTOCOLS = st.none() | st.builds(ProtocolTest, st.sampled_from([*map(int, Proto), 47, 253]), st.booleans())


@st.composite
def rules(draw: st.DrawFn, table: TableName = TableName.FILTER, chain: str = ChainName.FORWARD) -> Rule:
    """One valid rule for this chain."""
    has_in = chain not in (ChainName.OUTPUT, ChainName.POSTROUTING)
    has_out = chain not in (ChainName.PREROUTING, ChainName.INPUT)
    proto = draw(_PROTOCOLS)
    has_mac = has_in and chain in ChainName.__members__.values()
    known = matches(proto and proto.number, has_mac, proto is not None and proto.inverted)
    return Rule(
        src=draw(_ADDRESS_TESTS), dst=draw(_ADDRESS_TESTS),
        in_iface=draw(_INTERFACE_TESTS) if has_in else None, out_iface=draw(_INTERFACE_TESTS) if has_out else None,
        proto=proto, fragment=draw(st.sampled_from([None, None, None, True, False])),
        matches=tuple(draw(st.lists(known, max_size=2))), target=draw(targets(table, chain, proto)))


EVERYWHERE = [(table, chain) for table, chains in BUILT_IN_CHAINS.items() for chain in chains]
USER_CHAINS = ("workers", "Guests", "\u00e9")


@st.composite
def rulesets(draw: st.DrawFn) -> tuple[RuleSet, RuleCounters]:
    """A rule set, with counters for some of its rules and policies."""
    ruleset, counters = RuleSet(), RuleCounters()
    for table, chain in draw(st.lists(st.sampled_from(EVERYWHERE), unique=True, max_size=3)):
        policies = [Accept()] if table is TableName.NAT else [Accept(), Drop()]
        ruleset = ruleset.set_policy(table, chain, draw(st.sampled_from(policies)))
        if table not in LEFT_ALONE:         # nobody counts there
            counters.set_policy(table, chain, *draw(COUNTS))
        ruleset = _fill(draw, ruleset, counters, table, chain, USER_CHAINS)
    return ruleset, counters


def _fill(draw: st.DrawFn, ruleset: RuleSet, counters: RuleCounters, table: TableName, chain: str,
          below: tuple[str, ...]) -> RuleSet:
    """Put some rules into a chain; some of them lead to one of the chains `below`, which is then filled, too."""
    for rule in draw(st.lists(rules(table, chain), max_size=2)):
        counters.set_rule(ruleset.next_handle, *draw(COUNTS))
        ruleset = ruleset.append(table, chain, rule)
    if not below or not draw(st.booleans()):
        return ruleset
    first, *rest = below
    if all(known.name != first for known in ruleset.table(table)):
        ruleset = _fill(draw, ruleset.new_chain(table, first), counters, table, first, tuple(rest))
    return ruleset.append(table, chain, Rule(target=draw(st.sampled_from([Jump(first), Goto(first)]))))


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
