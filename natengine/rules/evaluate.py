"""Walk a chain for a packet: first match wins, then the policy.

1. A chain, and every chain it leads to, is compiled once per rule-set change (`predicates.py`).  A walk
   calls closures and nothing else; of a long chain only those that `index.py` does not rule out.
2. Rules that no packet can reach are left out; so is, when nobody counts, a rule that changes nothing
   (no target, LOG, or a last RETURN).
3. RETURN goes back to the jump that led here; in a built-in chain, or where a goto left one, it means the
   policy.  Both the rule and the policy are counted then.
4. Where the answer is to be kept for a flow, a rule that judges packet by packet (`_is_per_packet`) makes it
   UNDECIDED; so does CONNMARK, unless the flow has the mark already.
5. LOG, MARK and CONNMARK end nothing: what they say is in the outcome, and a mark is seen by the rules after it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple

from natengine.rules.facts import NO_FIELD, NOWHERE, PacketFacts, Surroundings
from natengine.rules.field_tests import Predicate
from natengine.rules.index import Index
from natengine.rules.matches import (
    ConntrackState,
    ConntrackTuple,
    EveryNth,
    Limit,
    MacSource,
    MarkTest,
    Match,
    RandomSample,
)
from natengine.rules.model import Chain, Rule, Table
from natengine.rules.predicates import compile_rule
from natengine.rules.targets import (
    ACCEPT,
    Connmark,
    ConnmarkMode,
    Drop,
    Goto,
    Jump,
    Log,
    Mark,
    Passing,
    Return,
    Target,
    Terminating,
)

__all__ = [
    "NO_FIELD", "POLICY_HANDLE", "UNDECIDED", "CountFunction", "Outcome", "PacketFacts", "Program", "compile_chain",
]

INDEX_FROM = 8                  # rules in a chain; to ask fewer one after the other is quicker
POLICY_HANDLE: Final = -1       # the handle of an outcome, or of a count, that is the policy's
UNDECIDED: Final = -2           # the handle of an outcome that no packet but the one at hand can have

CountFunction = Callable[[int, int], None]


class Outcome(NamedTuple):
    """What a chain says about a packet.

    Attributes:
        target: What to do.  Never Return: leaving a built-in chain is its policy.
        handle: The rule that said so, or POLICY_HANDLE, or UNDECIDED (the target then is Drop).
        logs: The LOG rules that matched on the way, in order.
        mark: What the packet's mark becomes; None if no rule set it.
        connection_mark: What the flow's mark becomes; None if no rule set it.
    """

    target: Terminating
    handle: int
    logs: tuple[Log, ...] = ()
    mark: int | None = None
    connection_mark: int | None = None

    def marked(self, facts: PacketFacts) -> PacketFacts:
        """Return the packet as the next chain sees it."""
        if self.mark is not None:
            facts = facts._replace(mark=self.mark)
        return facts if self.connection_mark is None else facts.with_flow_mark(self.connection_mark)


class _Walk:
    """One packet on its way: what it looks like by now, and what was noted about it."""

    __slots__ = ("connection_mark", "count", "facts", "logs", "mark", "noted")

    def __init__(self, facts: PacketFacts, count: CountFunction | None) -> None:
        self.facts = facts
        self.count = count
        self.noted = False
        self.logs: list[Log] = []
        self.mark: int | None = None
        self.connection_mark: int | None = None


class _Back(enum.Enum):
    """What a rule answers that is no outcome."""

    TO_JUMP = enum.auto()               # leave this chain


_Answer = Outcome | _Back | None        # None: ask the next rule
_Action = Outcome | Callable[[_Walk], _Answer] | None


class _Step(NamedTuple):
    """One rule: its test (None: anything matches), its handle, what it does (None: it only counts)."""

    predicate: Predicate | None
    handle: int
    action: _Action


class _Block:
    """The steps of one chain, and an index if there are many."""

    __slots__ = ("index", "steps")

    def __init__(self) -> None:
        self.steps: tuple[_Step, ...] = ()
        self.index: Index[_Step] | None = None

    def walk(self, walk: _Walk) -> Outcome | None:
        """Return what the rules say, or None at the end of the chain."""
        facts, count = walk.facts, walk.count
        for predicate, handle, action in self.steps if self.index is None else self.index.candidates(facts):
            if predicate is None or predicate(facts):
                if count is not None:
                    count(handle, facts.length)
                if action is None:
                    continue
                answer = action if isinstance(action, Outcome) else action(walk)
                if answer is _Back.TO_JUMP:
                    return None
                if answer is not None:
                    return answer
                facts = walk.facts              # a MARK changes it
        return None


class Program:
    """A compiled chain.  Call it with `PacketFacts`; it answers with an `Outcome`.

    Attributes:
        uses_ctstate: Whether `facts.ctstate` is looked at.  If not, the caller need not know it.
        constant: The outcome of every packet, where neither it nor the counting depends on the packet
            (no rules; or the first one decides for everything).  A caller may then skip the call, and
            counts `(constant.handle, length)` itself.
        undecided: Whether an outcome may be UNDECIDED.
    """

    __slots__ = ("_block", "_count", "_policy", "constant", "undecided", "uses_ctstate")

    def __init__(
        self, block: _Block, policy: Outcome, count: CountFunction | None, *, uses_ctstate: bool, undecided: bool
    ) -> None:
        self._block = block
        self._policy = policy
        self._count = count
        self.uses_ctstate = uses_ctstate
        self.undecided = undecided
        self.constant = _constant(block.steps, policy)

    def __call__(self, facts: PacketFacts) -> Outcome:
        """Return what the chain says about this packet, and count it."""
        return self._run(facts, self._count)

    def counted(self, facts: PacketFacts) -> tuple[int, ...]:
        """Return the handles that a call would count, in order; nothing is counted."""
        handles: list[int] = []
        self._run(facts, lambda handle, length: handles.append(handle))
        return tuple(handles)

    def _run(self, facts: PacketFacts, count: CountFunction | None) -> Outcome:
        walk = _Walk(facts, count)
        outcome = self._block.walk(walk)
        if outcome is None:
            outcome = self._policy
            if count is not None:
                count(POLICY_HANDLE, facts.length)
        if walk.noted:
            return Outcome(outcome.target, outcome.handle, tuple(walk.logs), walk.mark, walk.connection_mark)
        return outcome


def compile_chain(
    chain: Chain, count: CountFunction | None = None, *, table: Table | None = None, around: Surroundings = NOWHERE,
    for_flows: bool = False,
) -> Program:
    """Compile a built-in chain, and those it leads to, into a program.

    Args:
        chain: Validated rules (`rules/validate.py`).
        count: Called as `count(handle, length)` for every rule that matches, and with POLICY_HANDLE
            when the policy decides; `RuleCounters.adder()` makes one.  None: nobody counts, or hears of LOG.
        table: Where its jumps lead; None if it has none.
        around: What matches ask beside the packet.
        for_flows: Whether answers are to be kept, and may be UNDECIDED.
    """
    compiler = _Compiler(table, around, counted=count is not None, for_flows=for_flows)
    block = compiler.block(chain)
    policy = Outcome(chain.policy or ACCEPT, POLICY_HANDLE)
    return Program(block, policy, count, uses_ctstate=compiler.uses_ctstate, undecided=compiler.undecided)


class _Compiler:
    """Compiles a chain and those it leads to, each once."""

    def __init__(self, table: Table | None, around: Surroundings, *, counted: bool, for_flows: bool) -> None:
        self._chains = {} if table is None else {chain.name: chain for chain in table}
        self._around = around
        self._counted = counted
        self._for_flows = for_flows
        self._blocks: dict[str, _Block] = {}
        self.uses_ctstate = self.undecided = False

    def block(self, chain: Chain) -> _Block:
        """Return the steps of a chain.  Chains that lead in a circle are refused before (validate.py)."""
        block = self._blocks.get(chain.name)
        if block is None:
            block = self._blocks[chain.name] = _Block()
            needed = self._needed(chain)
            block.steps = tuple(_Step(predicate, rule.handle, self._action(rule)) for rule, predicate in needed)
            if len(needed) >= INDEX_FROM:
                block.index = Index([(rule, step) for (rule, _), step in zip(needed, block.steps, strict=True)])
        return block

    def _needed(self, chain: Chain) -> list[tuple[Rule, Predicate | None]]:
        """Return the rules that can make a difference, each with its predicate."""
        kept: list[tuple[Rule, Predicate | None]] = []
        for rule in chain.rules:
            if not self._counted and (rule.target is None or isinstance(rule.target, Log)):
                continue
            if self._for_flows and _marks_packet(rule.target):
                continue                    # only what is UNDECIDED looks at it
            predicate = compile_rule(self._asked(rule), self._around)
            kept.append((rule, predicate))
            if predicate is None and rule.target is not None and not isinstance(rule.target, Jump | Passing):
                break                       # nothing gets past this rule
        while kept and not self._counted and isinstance(kept[-1][0].target, Return) and not self._judges(kept[-1][0]):
            kept.pop()
        matches = [match for rule, _ in kept for match in rule.matches]
        self.uses_ctstate |= any(isinstance(match, ConntrackState | ConntrackTuple) for match in matches)
        return kept

    def _judges(self, rule: Rule) -> bool:
        """Whether a rule may say one thing about one packet of a flow and another about the next one."""
        return self._for_flows and any(map(_is_per_packet, rule.matches))

    def _asked(self, rule: Rule) -> Rule:
        """Return a rule as it is to be asked: of one that judges, which packets it is about."""
        if not self._judges(rule):
            return rule
        self.undecided = True
        return replace(rule, matches=tuple(match for match in rule.matches if not _is_per_packet(match)))

    def _action(self, rule: Rule) -> _Action:
        """Return what a rule does."""
        if self._judges(rule):
            return Outcome(Drop(), UNDECIDED)
        if self._for_flows and isinstance(rule.target, Connmark):
            self.undecided = True
            return _unless_marked(rule.target)
        match rule.target:
            case None:
                return None
            case Return():
                return lambda walk: _Back.TO_JUMP
            case Jump(name):
                return self.block(self._chains[name]).walk
            case Goto(name):
                go = self.block(self._chains[name]).walk
                return lambda walk: go(walk) or _Back.TO_JUMP
            case Log() | Mark() | Connmark() as target:
                return _noting(target)
            case target:
                return Outcome(target, rule.handle)


def _noting(target: Passing) -> Callable[[_Walk], None]:
    """Return what notes something and goes on."""
    note: Callable[[_Walk], None]
    match target:
        case Log():
            def note(walk: _Walk) -> None:
                walk.logs.append(target)
        case Mark():
            def note(walk: _Walk) -> None:
                _set_mark(walk, target.applied(walk.facts.mark))
        case Connmark():
            def note(walk: _Walk) -> None:
                _connection_mark(walk, target)

    def act(walk: _Walk) -> None:
        walk.noted = True
        note(walk)

    return act


def _is_per_packet(match: Match) -> bool:
    """Whether a match may say something else about the next packet of a flow."""
    changing = isinstance(match, Limit | RandomSample | EveryNth | MacSource)
    return changing or (isinstance(match, MarkTest) and not match.connection)


def _marks_packet(target: Target | None) -> bool:
    return isinstance(target, Mark) or (isinstance(target, Connmark) and target.mode is ConnmarkMode.RESTORE)


def _unless_marked(target: Connmark) -> Callable[[_Walk], Outcome | None]:
    """Return what goes on where a flow has the mark already, and else wants the packet that is to set it."""

    def act(walk: _Walk) -> Outcome | None:
        mark = walk.facts.flow_or_own().mark
        has_it = target.mode is ConnmarkMode.SET and target.applied(mark, target.value) == mark
        return None if has_it else Outcome(Drop(), UNDECIDED)

    return act


def _set_mark(walk: _Walk, mark: int) -> None:
    walk.mark = mark
    walk.facts = walk.facts._replace(mark=mark)


def _connection_mark(walk: _Walk, target: Connmark) -> None:
    """As xt_CONNMARK does it: what is not under a mask stays."""
    packet, flow = walk.facts.mark, walk.facts.flow_or_own()
    if target.mode is ConnmarkMode.RESTORE:
        _set_mark(walk, (packet & ~target.nf_mask) ^ (flow.mark & target.ct_mask))
        return
    value = target.value if target.mode is ConnmarkMode.SET else packet & target.nf_mask
    walk.connection_mark = target.applied(flow.mark, value)
    walk.facts = walk.facts.with_flow_mark(walk.connection_mark)


def _constant(steps: tuple[_Step, ...], policy: Outcome) -> Outcome | None:
    if not steps:
        return policy
    predicate, _, action = steps[0]
    return action if predicate is None and isinstance(action, Outcome) else None
