"""Predicates about a packet's flow: `-m conntrack`, `state` and `connmark`."""

from __future__ import annotations

from collections.abc import Callable

from natengine.rules.facts import FlowFacts, PacketFacts
from natengine.rules.field_tests import Number, Predicate, all_of, never, port
from natengine.rules.matches import (
    ConntrackState,
    ConntrackTuple,
    CtDirection,
    FlowAddressTest,
    MarkTest,
    ProtocolTest,
    StatusTest,
)
from natengine.vocab import CtState


def of_flow(number: Callable[[FlowFacts], int]) -> Callable[[PacketFacts], int]:
    """Return what reads a number of the packet's flow."""
    return lambda facts: number(facts.flow_or_own())


def conntrack_state(match: ConntrackState) -> Predicate:
    """`--ctstate` and `--state`."""
    # A tuple, and not `states & facts.ctstate`: `in` compares by identity first, the flags' own `&` is
    # Python code that costs more than all the rest of the rule.
    wanted = tuple(state for state in CtState if (state in match.states) is not match.inverted)
    if not match.translated:
        return lambda facts: facts.ctstate in wanted
    states = tuple(state for state in CtState if state in match.states)
    translated, inverted = match.translated, match.inverted

    def predicate(facts: PacketFacts) -> bool:
        is_one = facts.ctstate in states or bool(facts.flow_or_own().translated & translated)
        return is_one is not inverted

    return predicate


def conntrack_tuple(match: ConntrackTuple) -> Predicate | None:
    """The options of `-m conntrack`; the kernel asks for all of them together."""
    return all_of([
        None if match.state is None else conntrack_state(match.state),
        None if match.proto is None else _protocol(match.proto),
        _address(match.orig_src, of_flow(lambda flow: flow.orig_src)),
        _address(match.orig_dst, of_flow(lambda flow: flow.orig_dst)),
        _address(match.repl_src, of_flow(lambda flow: flow.repl_src)),
        _address(match.repl_dst, of_flow(lambda flow: flow.repl_dst)),
        port(match.orig_sport, of_flow(lambda flow: flow.orig_sport)),
        port(match.orig_dport, of_flow(lambda flow: flow.orig_dport)),
        port(match.repl_sport, of_flow(lambda flow: flow.repl_sport)),
        port(match.repl_dport, of_flow(lambda flow: flow.repl_dport)),
        _status(match.status),
        None if match.expire is None else never,        # refused before: see executable.py
        _direction(match.direction),
    ])


def _protocol(test: ProtocolTest) -> Predicate:
    number, inverted = test.number, test.inverted       # other than for -p, 0 is a protocol that nobody has
    return lambda facts: (facts.proto == number) is not inverted


def _address(test: FlowAddressTest | None, address_of: Number) -> Predicate | None:
    if test is None:
        return None
    network, mask, inverted = test.address & test.mask, test.mask, test.inverted
    return lambda facts: (address_of(facts) & mask == network) is not inverted


def _status(test: StatusTest | None) -> Predicate | None:
    if test is None:
        return None
    wanted, inverted = test.status, test.inverted

    def predicate(facts: PacketFacts) -> bool:
        status = facts.flow_or_own().status
        is_one = bool(status & wanted) if wanted else not status
        return is_one is not inverted

    return predicate


def _direction(wanted: CtDirection | None) -> Predicate | None:
    if wanted is None:
        return None
    return lambda facts: facts.flow_or_own().direction is wanted


def connection_mark(match: MarkTest) -> Predicate:
    """`-m connmark`."""
    value, mask, inverted = match.value, match.mask, match.inverted
    return lambda facts: (facts.flow_or_own().mark & mask == value) is not inverted
