"""What the engine carries out of all that the language can say.

Everything else is refused before it comes into force, with what to write instead; nothing is taken and
then ignored.  The chains that are the kernel's business (filter INPUT and OUTPUT, the tables mangle and
raw) are kept and listed, and whoever writes there is told so.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from natengine.errors import RuleApplyError
from natengine.rules.matches import ConntrackTuple, MarkTest, Match
from natengine.rules.model import LEFT_ALONE, ChainName, Rule, RuleSet, TableName
from natengine.rules.targets import (
    Accept,
    Connmark,
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
    Return,
    Snat,
    Target,
)

_GOES_ON = (Accept, Return, Jump, Goto, Log, Mark, Connmark)

# The targets that the engine carries out, by the chain that a packet of its comes to.  To make another one
# work is to write the code for it and then its name here.
CARRIED_OUT: Mapping[tuple[TableName, ChainName], tuple[type[Target], ...]] = MappingProxyType({
    (TableName.FILTER, ChainName.FORWARD): (*_GOES_ON, Drop, Reject),
    (TableName.NAT, ChainName.INPUT): (Accept, Return, Jump, Goto),       # no packet comes there: nothing is to be done
    (TableName.NAT, ChainName.PREROUTING): (*_GOES_ON, Dnat, Redirect, Netmap),
    (TableName.NAT, ChainName.OUTPUT): (*_GOES_ON, Dnat, Redirect, Netmap),
    (TableName.NAT, ChainName.POSTROUTING): (*_GOES_ON, Masquerade, Snat, Netmap),
})

_DECIDES = (Drop, Reject)
_MARKS = (Mark, Connmark)


def check_executable(ruleset: RuleSet) -> None:
    """Refuse a rule set that says what the engine would not do.

    Raises:
        RuleApplyError: With the rule's target or match, and what to write instead.
    """
    for (table, chain), targets in CARRIED_OUT.items():
        for rule in ruleset.table(table).reachable(chain):
            _check_rule(rule, targets, f"{table} {chain}")
    _check_left_alone(ruleset)


def _check_left_alone(ruleset: RuleSet) -> None:
    """Refuse what would make a difference, in tables that are not carried out."""
    by_mark = any(
        isinstance(match, MarkTest) and _matters(rule.target)
        for rule in ruleset.table(TableName.FILTER).reachable(ChainName.FORWARD) for match in rule.matches
    )
    for name in LEFT_ALONE:
        for each in ruleset.table(name):
            if by_mark and any(isinstance(rule.target, _MARKS) for rule in each.rules):
                raise RuleApplyError(
                    f"natengine leaves table {name} alone, and filter FORWARD asks for a mark that chain {each.name} "
                    "sets: write MARK and CONNMARK in nat PREROUTING or filter FORWARD instead"
                )
            if isinstance(each.policy, Drop) or any(isinstance(rule.target, _DECIDES) for rule in each.rules):
                raise RuleApplyError(
                    f"natengine leaves table {name} alone, and a packet that chain {each.name} drops would pass: "
                    "write that in table filter, chain FORWARD, instead"
                )


def _check_rule(rule: Rule, targets: tuple[type[Target], ...], where: str) -> None:
    target = rule.target
    if target is not None and not isinstance(target, targets):
        raise RuleApplyError(f"natengine does not carry out {type(target).__name__.upper()} in {where} yet")
    for match in rule.matches:
        why = _why_not(match)
        if why is not None:
            raise RuleApplyError(why)


def _matters(target: Target | None) -> bool:
    """Whether what becomes of the packet hangs on this rule."""
    return target is not None and not isinstance(target, Log)


def _why_not(match: Match) -> str | None:
    """Return why a match cannot be had, or None."""
    if isinstance(match, ConntrackTuple) and match.expire is not None:
        return "natengine does not look at --ctexpire: leave it out"
    return None
