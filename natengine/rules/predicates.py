"""From the tests of a rule to one closure that says whether a packet passes them all.

1. A test that every packet passes costs nothing: its predicate is None.
2. A field that the packet does not have is NO_FIELD, and a test of it fails, inverted or not: xt_tcp,
   xt_udp and icmp let no later fragment and no other protocol pass either.
3. A new match is one function here and one line in COMPILERS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from natengine.rules.facts import NO_FIELD, PacketFacts
from natengine.rules.model import (
    ANY_INTERFACE,
    AddressTest,
    Comment,
    ConntrackState,
    IcmpType,
    InterfaceTest,
    Match,
    PortTest,
    ProtocolTest,
    Rule,
    TcpFlags,
    TcpUdpPorts,
)
from natengine.vocab import CtState, Proto

Predicate = Callable[[PacketFacts], bool]

_ANY_PROTOCOL = 0
_NEVER: Predicate = lambda facts: False  # noqa: E731    (a constant; it stands beside its users)


def compile_rule(rule: Rule) -> Predicate | None:
    """Return one predicate for the whole rule, or None if every packet matches."""
    predicates = [
        _interface(rule.in_iface, attrgetter("in_name")),
        _interface(rule.out_iface, attrgetter("out_name")),
        _protocol(rule.proto),
        _address(rule.src, attrgetter("src")),
        _address(rule.dst, attrgetter("dst")),
        *(COMPILERS[type(match)](match) for match in rule.matches),
    ]
    return _all_of([predicate for predicate in predicates if predicate is not None])


def _all_of(predicates: list[Predicate]) -> Predicate | None:
    """Join predicates.  The short cases are written out: they are nearly all there are."""
    match predicates:
        case []:
            return None
        case [only]:
            return only
        case [first, second]:
            return lambda facts: first(facts) and second(facts)
    every = tuple(predicates)
    return lambda facts: all(predicate(facts) for predicate in every)


def _always_or_never(always: bool) -> Predicate | None:
    return None if always else _NEVER


def _interface(test: InterfaceTest | None, name_of: Callable[[PacketFacts], str]) -> Predicate | None:
    if test is None:
        return None
    pattern, inverted = test.pattern, test.inverted
    if pattern == ANY_INTERFACE:
        return _always_or_never(not inverted)
    if pattern.endswith("+"):
        stem = pattern[:-1]
        return lambda facts: name_of(facts).startswith(stem) is not inverted
    if inverted:
        return lambda facts: name_of(facts) != pattern
    return lambda facts: name_of(facts) == pattern


def _protocol(test: ProtocolTest | None) -> Predicate | None:
    if test is None:
        return None
    number, inverted = test.number, test.inverted
    if number == _ANY_PROTOCOL:
        return _always_or_never(not inverted)
    if inverted:
        return lambda facts: facts.proto != number
    return lambda facts: facts.proto == number


def _address(test: AddressTest | None, address_of: Callable[[PacketFacts], int]) -> Predicate | None:
    if test is None:
        return None
    network, mask, inverted = test.prefix.network, test.prefix.mask, test.inverted
    if mask == 0:
        return _always_or_never(not inverted)
    if inverted:
        return lambda facts: address_of(facts) & mask != network
    return lambda facts: address_of(facts) & mask == network


# --- matches ----------------------------------------------------------------------------------------


def _tcp_udp(match: TcpUdpPorts) -> Predicate | None:
    number = int(match.proto)
    # The protocol is asked here too: without it `-m tcp --dport 53` would let UDP pass, and an
    # option-less `-m tcp` is true for every packet of the protocol that has its header.
    predicates: list[Predicate] = [lambda facts: facts.proto == number and facts.sport != NO_FIELD]
    if match.sport is not None:
        predicates.append(_port(match.sport, attrgetter("sport")))
    if match.dport is not None:
        predicates.append(_port(match.dport, attrgetter("dport")))
    if match.flags is not None:
        predicates.append(_tcp_flags(match.flags))
    return _all_of(predicates)


def _port(test: PortTest, port_of: Callable[[PacketFacts], int]) -> Predicate:
    (first, last), inverted = test.ports, test.inverted
    return lambda facts: (first <= port_of(facts) <= last) is not inverted


def _tcp_flags(test: TcpFlags) -> Predicate:
    mask, expected, inverted = test.mask, test.expected, test.inverted
    return lambda facts: (facts.tcp_flags & mask == expected) is not inverted


def _icmp_type(match: IcmpType) -> Predicate | None:
    number = int(Proto.ICMP)
    wanted, first, last, inverted = match.type, match.first_code, match.last_code, match.inverted

    def predicate(facts: PacketFacts) -> bool:
        if facts.proto != number or facts.icmp_type == NO_FIELD:
            return False
        same = wanted is None or (facts.icmp_type == wanted and first <= facts.icmp_code <= last)
        return same is not inverted

    return predicate


def _ctstate(match: ConntrackState) -> Predicate | None:
    # A tuple, and not `states & facts.ctstate`: `in` compares by identity first, the flags' own `&` is
    # Python code that costs more than all the rest of the rule.
    wanted = tuple(state for state in CtState if (state in match.states) is not match.inverted)
    return lambda facts: facts.ctstate in wanted


def _comment(match: Comment) -> Predicate | None:
    return None


COMPILERS: Mapping[type[Match], Callable[[Any], Predicate | None]] = MappingProxyType({
    TcpUdpPorts: _tcp_udp,
    IcmpType: _icmp_type,
    ConntrackState: _ctstate,
    Comment: _comment,
})
