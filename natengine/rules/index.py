"""Which rules of a long chain can match a packet at all, without asking each of them.

Every rule is one bit.  For each field that rules test (interfaces, protocol, addresses, destination port)
there is a table from the packet's value to the bits of the rules that let it pass; their AND has the bits
of those that are worth asking, the lowest first.  Known as bit vector packet classification (Lakshman and
Stiliadis, 1998); Python's long integers do the work.  What no table knows (states, flags, …) is asked
of the rules that are left, as in a short chain.

A chain is cut into pieces of PIECE rules, so that the tables grow with the rules and not with their square.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, Generic, TypeVar

from natengine.rules.facts import PacketFacts
from natengine.rules.field_tests import Predicate, interface, protocol
from natengine.rules.matches import AddressTest, Multiport, PortSide, TcpUdpPorts
from natengine.rules.model import Rule
from natengine.wire.addr import ALL_ONES

Step = TypeVar("Step")
Range = tuple[int, int]                 # both ends inclusive

PIECE = 1024
_MAX_REMEMBERED = 1024                  # names and protocols; more come only from somebody who plays with them


class _ByValue:
    """From the values that packets have to bits; each is worked out when it comes for the first time."""

    def __init__(self, field: str, tests: Sequence[Predicate | None]) -> None:
        self._field = field
        self._tests = tests
        self._known: dict[Any, int] = {}

    def bits(self, facts: PacketFacts) -> int:
        """Return the bits of the rules that let this packet pass."""
        value = getattr(facts, self._field)
        bits = self._known.get(value)
        if bits is None:
            bits = sum(1 << n for n, test in enumerate(self._tests) if test is None or test(facts))
            if len(self._known) < _MAX_REMEMBERED:
                self._known[value] = bits
        return bits


class _ByRange:
    """From numbers to bits: where ranges begin and end, and the bits in between."""

    def __init__(self, field: str, ranges: Sequence[Sequence[Range] | None]) -> None:
        """Work out the table; None for a rule that does not test the field, else disjoint ranges."""
        self._number = attrgetter(field)
        bits = sum(1 << n for n, each in enumerate(ranges) if each is None)
        changes: dict[int, int] = {}
        for n, each in enumerate(ranges):
            for first, last in each or ():
                changes[first] = changes.get(first, 0) ^ (1 << n)
                changes[last + 1] = changes.get(last + 1, 0) ^ (1 << n)
        self._starts = sorted(changes)
        self._bits = [bits]
        for start in self._starts:
            bits ^= changes[start]
            self._bits.append(bits)

    def bits(self, facts: PacketFacts) -> int:
        """Return the bits of the rules that let this packet pass."""
        return self._bits[bisect_right(self._starts, self._number(facts))]


class Index(Generic[Step]):
    """Finds the steps of rules that can match a packet, in order."""

    def __init__(self, rules: Sequence[tuple[Rule, Step]]) -> None:
        self._pieces = [_Piece(rules[start:start + PIECE]) for start in range(0, len(rules), PIECE)]

    def candidates(self, facts: PacketFacts) -> Iterator[Step]:
        """Yield the steps that are worth asking."""
        for piece in self._pieces:
            bits = piece.bits(facts)
            steps = piece.steps
            while bits:
                lowest = bits & -bits
                yield steps[lowest.bit_length() - 1]
                bits ^= lowest


class _Piece(Generic[Step]):
    """Up to PIECE rules, and the tables of the fields that any of them tests."""

    def __init__(self, pairs: Sequence[tuple[Rule, Step]]) -> None:
        rules = [rule for rule, _ in pairs]
        self.steps = [step for _, step in pairs]
        self._all = (1 << len(rules)) - 1
        by_value = {
            "in_name": [interface(rule.in_iface, attrgetter("in_name")) for rule in rules],
            "out_name": [interface(rule.out_iface, attrgetter("out_name")) for rule in rules],
            "proto": [protocol(rule.proto) for rule in rules],
        }
        by_range = {
            "src": [_address_ranges(rule.src) for rule in rules],
            "dst": [_address_ranges(rule.dst) for rule in rules],
            "dport": [_port_ranges(rule) for rule in rules],
        }
        self._tables: list[Callable[[PacketFacts], int]] = [
            *(_ByValue(field, tests).bits for field, tests in by_value.items() if _tested(tests)),
            *(_ByRange(field, ranges).bits for field, ranges in by_range.items() if _tested(ranges)),
        ]

    def bits(self, facts: PacketFacts) -> int:
        """Return the bits of the rules that are worth asking."""
        bits = self._all
        for table in self._tables:
            bits &= table(facts)
            if not bits:
                break
        return bits


def _tested(tests: Iterable[object]) -> bool:
    return any(test is not None for test in tests)


def _address_ranges(test: AddressTest | None) -> list[Range] | None:
    """Return the addresses that pass, or None for a test that no ranges express."""
    if test is None or test.prefix.length is None:
        return None
    first = test.prefix.network
    last = first | ~test.prefix.mask & ALL_ONES
    if not test.inverted:
        return [(first, last)]
    return [each for each in ((0, first - 1), (last + 1, ALL_ONES)) if each[0] <= each[1]]


def _port_ranges(rule: Rule) -> list[Range] | None:
    """Return the destination ports that the first match about them lets pass, or None."""
    for match in rule.matches:
        if isinstance(match, TcpUdpPorts) and match.dport is not None and not match.dport.inverted:
            return [(match.dport.ports.first, match.dport.ports.last)]
        if isinstance(match, Multiport) and match.side is PortSide.DESTINATION and not match.inverted:
            return _disjoint(match.ports)
    return None


def _disjoint(ranges: Iterable[Range]) -> list[Range]:
    """Return the same numbers in ranges that do not touch."""
    found: list[Range] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found
