"""Predicates of single fields, from which those of rules and matches are put together.

A test that every packet passes costs nothing: its predicate is None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from natengine.rules.facts import PacketFacts
from natengine.rules.matches import ANY_INTERFACE, AddressTest, InterfaceTest, PortTest, ProtocolTest

Predicate = Callable[[PacketFacts], bool]
Number = Callable[[PacketFacts], int]

_ANY_PROTOCOL = 0


def never(facts: PacketFacts) -> bool:
    """Match no packet."""
    return False


def all_of(predicates: Iterable[Predicate | None]) -> Predicate | None:
    """Join predicates.  The short cases are written out: they are nearly all there are."""
    match [predicate for predicate in predicates if predicate is not None]:
        case []:
            return None
        case [only]:
            return only
        case [first, second]:
            return lambda facts: first(facts) and second(facts)
        case several:
            every = tuple(several)
    return lambda facts: all(predicate(facts) for predicate in every)


def _always_or_never(always: bool) -> Predicate | None:
    return None if always else never


def interface(test: InterfaceTest | None, name_of: Callable[[PacketFacts], str]) -> Predicate | None:
    """Return what tests an interface name."""
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


def protocol(test: ProtocolTest | None) -> Predicate | None:
    """Return what tests the protocol number."""
    if test is None:
        return None
    number, inverted = test.number, test.inverted
    if number == _ANY_PROTOCOL:
        return _always_or_never(not inverted)
    if inverted:
        return lambda facts: facts.proto != number
    return lambda facts: facts.proto == number


def address(test: AddressTest | None, address_of: Number) -> Predicate | None:
    """Return what tests an address against a prefix."""
    if test is None:
        return None
    network, mask, inverted = test.prefix.network, test.prefix.mask, test.inverted
    if mask == 0:
        return _always_or_never(not inverted)
    if inverted:
        return lambda facts: address_of(facts) & mask != network
    return lambda facts: address_of(facts) & mask == network


def port(test: PortTest | None, port_of: Number) -> Predicate | None:
    """Return what tests a port against a range; the caller sees to it that there is a port."""
    if test is None:
        return None
    (first, last), inverted = test.ports, test.inverted
    return lambda facts: (first <= port_of(facts) <= last) is not inverted
