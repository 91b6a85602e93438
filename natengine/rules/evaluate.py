"""Walk a chain for a packet: first match wins, then the policy.

1. A chain is compiled once per rule-set change (`predicates.py`).  A walk calls closures and nothing
   else.
2. Rules that no packet can reach are left out; so is, when nobody counts, a rule that changes nothing
   (no target, or a last RETURN).
3. RETURN in a built-in chain means the policy; both the rule and the policy are counted then.

Limits: no jumps (built-in chains only).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from natengine.rules.facts import NO_FIELD, PacketFacts
from natengine.rules.model import Accept, Chain, ConntrackState, Drop, Masquerade, Return, Rule
from natengine.rules.predicates import Predicate, compile_rule

__all__ = ["NO_FIELD", "POLICY_HANDLE", "CountFunction", "Outcome", "PacketFacts", "Program", "compile_chain"]

POLICY_HANDLE: Final = -1       # the handle of an outcome, or of a count, that is the policy's

CountFunction = Callable[[int, int], None]


class Outcome(NamedTuple):
    """What a chain says about a packet.

    Attributes:
        target: What to do.  Never Return: leaving a built-in chain is its policy.
        handle: The rule that said so, or POLICY_HANDLE.
    """

    target: Masquerade | Accept | Drop
    handle: int


class _Step(NamedTuple):
    """One rule: its test (None: anything matches), its handle, its outcome (None: go on)."""

    predicate: Predicate | None
    handle: int
    outcome: Outcome | None


class Program:
    """A compiled chain.  Call it with `PacketFacts`; it answers with an `Outcome`.

    Attributes:
        uses_ctstate: Whether `facts.ctstate` is looked at.  If not, the caller need not know it.
        constant: The outcome of every packet, where neither it nor the counting depends on the packet
            (no rules; or the first one decides for everything).  A caller may then skip the call, and
            counts `(constant.handle, length)` itself.
    """

    __slots__ = ("_count", "_policy", "_steps", "constant", "uses_ctstate")

    def __init__(self, steps: tuple[_Step, ...], policy: Outcome, count: CountFunction | None,
                 *, uses_ctstate: bool) -> None:
        self._steps = steps
        self._policy = policy
        self._count = count
        self.uses_ctstate = uses_ctstate
        self.constant = _constant(steps, policy)

    def __call__(self, facts: PacketFacts) -> Outcome:
        """Return what the chain says about this packet, and count it."""
        count = self._count
        for predicate, handle, outcome in self._steps:
            if predicate is None or predicate(facts):
                if count is not None:
                    count(handle, facts.length)
                if outcome is not None:
                    if outcome.handle == handle:
                        return outcome
                    break               # RETURN: the policy decides, and is counted too
        if count is not None:
            count(POLICY_HANDLE, facts.length)
        return self._policy

    def counted(self, facts: PacketFacts) -> tuple[int, ...]:
        """Return the handles that a call would count, in order; nothing is counted."""
        handles = []
        for predicate, handle, outcome in self._steps:
            if predicate is None or predicate(facts):
                handles.append(handle)
                if outcome is not None:
                    if outcome.handle == handle:
                        return tuple(handles)
                    break
        return (*handles, POLICY_HANDLE)


def compile_chain(chain: Chain, count: CountFunction | None = None) -> Program:
    """Compile a chain into a program.

    Args:
        chain: Validated rules (`rules/validate.py`).
        count: Called as `count(handle, length)` for every rule that matches, and with POLICY_HANDLE
            when the policy decides; `RuleCounters.adder()` makes one.  None: nobody counts.
    """
    policy = Outcome(chain.policy, POLICY_HANDLE)
    kept = _needed(chain, counted=count is not None)
    steps = tuple(_Step(predicate, rule.handle, _outcome(rule, policy)) for rule, predicate in kept)
    uses_ctstate = any(isinstance(match, ConntrackState) for rule, _ in kept for match in rule.matches)
    return Program(steps, policy, count, uses_ctstate=uses_ctstate)


def _needed(chain: Chain, *, counted: bool) -> list[tuple[Rule, Predicate | None]]:
    """Return the rules that can make a difference, each with its predicate."""
    kept: list[tuple[Rule, Predicate | None]] = []
    for rule in chain.rules:
        if rule.target is None and not counted:
            continue
        predicate = compile_rule(rule)
        kept.append((rule, predicate))
        if predicate is None and rule.target is not None:
            break                       # nothing gets past this rule
    while kept and not counted and isinstance(kept[-1][0].target, Return):
        kept.pop()
    return kept


def _outcome(rule: Rule, policy: Outcome) -> Outcome | None:
    if rule.target is None:
        return None
    return policy if isinstance(rule.target, Return) else Outcome(rule.target, rule.handle)


def _constant(steps: tuple[_Step, ...], policy: Outcome) -> Outcome | None:
    if not steps:
        return policy
    predicate, handle, outcome = steps[0]
    decides = predicate is None and outcome is not None and outcome.handle == handle
    return outcome if decides else None
