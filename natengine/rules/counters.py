"""How many packets and bytes each rule and each policy has seen.

The only mutable thing about rules, and kept outside them.  One owner (the packet thread) adds; who
wants to look takes a `copy()`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple, TypeVar

from natengine.rules.model import RuleSet, TableName

Key = TypeVar("Key", bound=Hashable)


class Count(NamedTuple):
    """A reading: packets, and their bytes counted from the IP header on."""

    packets: int = 0
    bytes: int = 0


class RuleCounters:
    """Counters of rules by handle, and of policies by (table, chain).

    Two counters objects are equal when they hold the same numbers; a counter that was never touched
    is the same as one at zero.
    """

    def __init__(self) -> None:
        self._rules: dict[int, list[int]] = {}
        self._policies: dict[tuple[str, str], list[int]] = {}

    def rule(self, handle: int) -> Count:
        """Return the reading of one rule."""
        return Count(*self._rules.get(handle, (0, 0)))

    def policy(self, table: str, chain: str) -> Count:
        """Return the reading of one chain's policy."""
        return Count(*self._policies.get((table, chain), (0, 0)))

    def set_rule(self, handle: int, packets: int, bytes_: int) -> None:
        """Set the counter of one rule."""
        self._rules.setdefault(handle, [0, 0])[:] = [packets, bytes_]

    def set_policy(self, table: str, chain: str, packets: int, bytes_: int) -> None:
        """Set the counter of one chain's policy."""
        self._policies.setdefault((table, chain), [0, 0])[:] = [packets, bytes_]

    def adder(self, table: str, chain: str) -> Callable[[int, int], None]:
        """Return the `count` argument of `compile_chain` for one chain: `add(handle, length)`.

        A negative handle (`evaluate.POLICY_HANDLE`) counts for the policy.  An adder stays good when
        counters are set, zeroed or forgotten: lists are changed in place, never exchanged.
        """
        rules = self._rules
        policy = self._policies.setdefault((table, chain), [0, 0])

        def add(handle: int, length: int) -> None:
            if handle < 0:
                counter = policy
            else:
                try:
                    counter = rules[handle]
                except KeyError:
                    counter = rules[handle] = [0, 0]
            counter[0] += 1
            counter[1] += length

        return add

    def zero_rule(self, handle: int) -> None:
        """Set the counter of one rule to zero."""
        if handle in self._rules:
            self._rules[handle][:] = [0, 0]

    def zero_policy(self, table: str, chain: str) -> None:
        """Set the counter of one chain's policy to zero."""
        if (table, chain) in self._policies:
            self._policies[table, chain][:] = [0, 0]

    def zero_chain(self, ruleset: RuleSet, table: TableName, chain: str) -> None:
        """Set every counter of one chain to zero."""
        for rule in ruleset.chain(table, chain).rules:
            self.zero_rule(rule.handle)
        self.zero_policy(table, chain)

    def add_since(self, reading: RuleCounters, now: RuleCounters) -> None:
        """Add what `now` has counted since `reading`, a copy of it, was taken; see `forget_missing`."""
        _add_since(self._rules, reading._rules, now._rules)
        _add_since(self._policies, reading._policies, now._policies)

    def forget_missing(self, ruleset: RuleSet) -> None:
        """Drop the counters of rules that `ruleset` no longer has."""
        for handle in self._rules.keys() - ruleset.handles():
            del self._rules[handle]

    def copy(self) -> RuleCounters:
        """Return an independent copy."""
        twin = RuleCounters()
        twin._rules = {handle: list(counter) for handle, counter in self._rules.items()}
        twin._policies = {key: list(counter) for key, counter in self._policies.items()}
        return twin

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RuleCounters):
            return NotImplemented
        return self._nonzero() == other._nonzero()

    __hash__ = None  # type: ignore[assignment]    # mutable: not a dictionary key

    def __repr__(self) -> str:
        return f"RuleCounters(rules={self._rules!r}, policies={self._policies!r})"

    def _nonzero(self) -> dict[object, list[int]]:
        both = itertools.chain(self._rules.items(), self._policies.items())
        return {key: counter for key, counter in both if any(counter)}


def _add_since(counters: dict[Key, list[int]], before: Mapping[Key, list[int]], now: Mapping[Key, list[int]]) -> None:
    for key, counted in now.items():
        counter, known = counters.setdefault(key, [0, 0]), before.get(key, (0, 0))
        counter[:] = [mine + count - already for mine, count, already in zip(counter, counted, known, strict=True)]
