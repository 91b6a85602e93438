"""From the tests of a rule to one closure that says whether a packet passes them all.

1. A test that every packet passes costs nothing: its predicate is None.
2. A field that the packet does not have is NO_FIELD, and a test of it fails, inverted or not: xt_tcp,
   xt_udp and icmp let no later fragment and no other protocol pass either.
3. `-f` matches nothing, and `! -f` everything: only first fragments come to the rules, and whole packets, as with a
   kernel that translates, for its conntrack puts fragments together before any rule sees them.
4. A new match is one function here (or in `flow_predicates.py`) and one line in COMPILERS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any, NamedTuple

from natengine.rules.facts import NO_FIELD, NOWHERE, PacketFacts, Surroundings
from natengine.rules.field_tests import Number, Predicate, address, all_of, interface, never, port, protocol
from natengine.rules.flow_predicates import connection_mark, conntrack_state, conntrack_tuple
from natengine.rules.matches import (
    AddressKind,
    AddressTypeTest,
    Comment,
    ConntrackState,
    ConntrackTuple,
    EveryNth,
    IcmpType,
    IpRange,
    Limit,
    MacSource,
    MarkTest,
    Match,
    Multiport,
    PortSide,
    RandomSample,
    TcpFlags,
    TcpUdpPorts,
)
from natengine.rules.model import Rule
from natengine.vocab import Proto

_WITH_PORTS = (Proto.TCP, Proto.UDP)
_LIMIT_UNIT_NS = 100_000            # 1/10000 s: see `matches.Limit`


class Where(NamedTuple):
    """Where a match stands: what is around it, and the key under which it remembers."""

    around: Surroundings
    key: tuple[int, int]            # the rule's handle, the match's place in it


def compile_rule(rule: Rule, around: Surroundings = NOWHERE) -> Predicate | None:
    """Return one predicate for the whole rule, or None if every packet matches."""
    return all_of([
        interface(rule.in_iface, attrgetter("in_name")),
        interface(rule.out_iface, attrgetter("out_name")),
        protocol(rule.proto),
        never if rule.fragment else None,
        address(rule.src, attrgetter("src")),
        address(rule.dst, attrgetter("dst")),
        *(COMPILERS[type(match)](match, Where(around, (rule.handle, place)))
          for place, match in enumerate(rule.matches)),
    ])


# --- the protocol's own -----------------------------------------------------------------------------


def _tcp_udp(match: TcpUdpPorts, where: Where) -> Predicate | None:
    number = int(match.proto)
    # The protocol is asked here too: without it `-m tcp --dport 53` would let UDP pass, and an
    # option-less `-m tcp` is true for every packet of the protocol that has its header.
    return all_of([
        lambda facts: facts.proto == number and facts.sport != NO_FIELD,
        port(match.sport, attrgetter("sport")),
        port(match.dport, attrgetter("dport")),
        None if match.flags is None else _tcp_flags(match.flags),
    ])


def _tcp_flags(test: TcpFlags) -> Predicate:
    mask, expected, inverted = test.mask, test.expected, test.inverted
    return lambda facts: (facts.tcp_flags & mask == expected) is not inverted


def _multiport(match: Multiport, where: Where) -> Predicate:
    ports, inverted = match.ports, match.inverted
    source, destination = match.side is not PortSide.DESTINATION, match.side is not PortSide.SOURCE

    def listed(number: int) -> bool:
        return any(first <= number <= last for first, last in ports)

    def predicate(facts: PacketFacts) -> bool:
        if facts.sport == NO_FIELD:
            return False
        found = (source and listed(facts.sport)) or (destination and listed(facts.dport))
        return found is not inverted

    return predicate


def _icmp_type(match: IcmpType, where: Where) -> Predicate:
    number = int(Proto.ICMP)
    wanted, first, last, inverted = match.type, match.first_code, match.last_code, match.inverted

    def predicate(facts: PacketFacts) -> bool:
        if facts.proto != number or facts.icmp_type == NO_FIELD:
            return False
        same = wanted is None or (facts.icmp_type == wanted and first <= facts.icmp_code <= last)
        return same is not inverted

    return predicate


# --- others -----------------------------------------------------------------------------------------


def _mark(match: MarkTest, where: Where) -> Predicate:
    if match.connection:
        return connection_mark(match)
    value, mask, inverted = match.value, match.mask, match.inverted
    return lambda facts: (facts.mark & mask == value) is not inverted


def _limit(match: Limit, where: Where) -> Predicate | None:
    if where.around.memory is None:
        return None
    buckets, key = where.around.memory.buckets, where.key
    interval_ns = match.interval * _LIMIT_UNIT_NS
    full_ns = match.burst * interval_ns

    def predicate(facts: PacketFacts) -> bool:
        # the bucket holds the time since it was last empty
        empty_ns = max(buckets.get(key, -full_ns), facts.now_ns - full_ns)
        if facts.now_ns - empty_ns < interval_ns:
            return False
        buckets[key] = empty_ns + interval_ns
        return True

    return predicate


def _random_sample(match: RandomSample, where: Where) -> Predicate | None:
    if where.around.memory is None:
        return never
    rng, probability, inverted = where.around.memory.rng, match.probability, match.inverted
    return lambda facts: (rng.randrange(0, 1 << 31) < probability) is not inverted


def _every_nth(match: EveryNth, where: Where) -> Predicate | None:
    if where.around.memory is None:
        return never
    turns, key = where.around.memory.turns, where.key
    every, packet, inverted = match.every, match.packet, match.inverted

    def predicate(facts: PacketFacts) -> bool:
        turn = turns.get(key, 0)
        turns[key] = (turn + 1) % every
        return (turn == packet) is not inverted

    return predicate


def _address_kind(match: AddressKind, where: Where) -> Predicate | None:
    kind_of = where.around.address_kind

    def test(wanted: AddressTypeTest | None, address_of: Number) -> Predicate | None:
        if wanted is None:
            return None
        kinds, inverted, limit_in, limit_out = wanted.kinds, wanted.inverted, match.limit_in, match.limit_out

        def predicate(facts: PacketFacts) -> bool:
            name = facts.in_name if limit_in else facts.out_name if limit_out else ""
            return bool(kind_of(address_of(facts), name) & kinds) is not inverted

        return predicate

    return all_of([test(match.src, attrgetter("src")), test(match.dst, attrgetter("dst"))])


def _ip_range(match: IpRange, where: Where) -> Predicate | None:
    predicates: list[Predicate | None] = []
    for test, address_of in ((match.src, attrgetter("src")), (match.dst, attrgetter("dst"))):
        if test is not None:
            predicates.append(_in_range(test.addresses.first, test.addresses.last, test.inverted, address_of))
    return all_of(predicates)


def _in_range(first: int, last: int, inverted: bool, address_of: Number) -> Predicate:
    return lambda facts: (first <= address_of(facts) <= last) is not inverted


def _mac_source(match: MacSource, where: Where) -> Predicate:
    wanted, inverted = match.address, match.inverted
    # as xt_mac: what has no Ethernet header is not "from another address" either
    return lambda facts: bool(facts.link_src) and (facts.link_src == wanted) is not inverted


COMPILERS: Mapping[type[Match], Callable[[Any, Where], Predicate | None]] = MappingProxyType({
    TcpUdpPorts: _tcp_udp,
    Multiport: _multiport,
    IcmpType: _icmp_type,
    ConntrackState: lambda match, where: conntrack_state(match),
    ConntrackTuple: lambda match, where: conntrack_tuple(match),
    MarkTest: _mark,
    Limit: _limit,
    AddressKind: _address_kind,
    IpRange: _ip_range,
    RandomSample: _random_sample,
    EveryNth: _every_nth,
    MacSource: _mac_source,
    Comment: lambda match, where: None,
})
