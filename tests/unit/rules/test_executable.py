"""What the engine would not do is refused before it comes into force."""

from __future__ import annotations

import pytest

from natengine.errors import RuleApplyError
from natengine.rules.executable import check_executable
from natengine.rules.matches import ConntrackTuple, Limit, MacSource, MarkTest, SecondsTest
from natengine.rules.model import Rule, RuleSet, TableName
from natengine.rules.targets import (
    Accept,
    Connmark,
    ConnmarkMode,
    Drop,
    Goto,
    Jump,
    Log,
    Mark,
    Masquerade,
    Netmap,
    Redirect,
    Reject,
)
from natengine.wire.addr import Prefix

FILTER, NAT, MANGLE = TableName.FILTER, TableName.NAT, TableName.MANGLE
LIMITED = (Limit(),)


def with_rule(table: TableName, chain: str, rule: Rule) -> RuleSet:
    return RuleSet().append(table, chain, rule)


@pytest.mark.parametrize("ruleset", [
    RuleSet(),
    with_rule(FILTER, "FORWARD", Rule(target=Drop())),
    with_rule(FILTER, "FORWARD", Rule(matches=LIMITED, target=Log())),
    with_rule(FILTER, "FORWARD", Rule(matches=LIMITED, target=Accept())),
    with_rule(NAT, "POSTROUTING", Rule(target=Masquerade())),
    with_rule(NAT, "OUTPUT", Rule(target=Redirect())),
    with_rule(NAT, "OUTPUT", Rule(target=Netmap(Prefix(0, 0)))),
    with_rule(FILTER, "FORWARD", Rule(matches=(MacSource(bytes(6)),), target=Drop())),
    with_rule(FILTER, "INPUT", Rule(matches=(ConntrackTuple(expire=SecondsTest(1, 2)),), target=Drop())), # no packet
    with_rule(MANGLE, "FORWARD", Rule(target=Accept())),
    with_rule(MANGLE, "FORWARD", Rule(target=Mark(1))),
    with_rule(FILTER, "FORWARD", Rule(matches=(MarkTest(1),), target=Drop())),
    with_rule(NAT, "POSTROUTING", Rule(matches=(MarkTest(1, connection=True),), target=Connmark(ConnmarkMode.SAVE))),
    RuleSet().new_chain(NAT, "a").append(NAT, "a", Rule(target=Netmap(Prefix(0, 0)))),
])
def test_what_is_carried_out_or_concerns_nobody(ruleset: RuleSet) -> None:
    check_executable(ruleset)


@pytest.mark.parametrize(("ruleset", "message"), [
    (with_rule(NAT, "PREROUTING", Rule(target=Reject())), "natengine does not carry out REJECT in nat PREROUTING"),
    (with_rule(FILTER, "FORWARD", Rule(matches=(ConntrackTuple(expire=SecondsTest(1, 2)),))), "--ctexpire"),
    (with_rule(FILTER, "FORWARD", Rule(matches=(MarkTest(1),), target=Drop()))
     .append(MANGLE, "PREROUTING", Rule(target=Mark(1))), "asks for a mark that chain PREROUTING sets: write MARK and"),
    (with_rule(NAT, "INPUT", Rule(target=Netmap(Prefix(0, 0)))), "does not carry out NETMAP in nat INPUT"),
    (with_rule(NAT, "INPUT", Rule(target=Log())), "does not carry out LOG in nat INPUT"),
    (with_rule(MANGLE, "FORWARD", Rule(target=Drop())), "leaves table mangle alone"),
    (RuleSet().set_policy(TableName.RAW, "OUTPUT", Drop()), "leaves table raw alone"),
    (RuleSet().new_chain(NAT, "a").append(NAT, "a", Rule(target=Redirect()))
     .append(NAT, "POSTROUTING", Rule(target=Goto("a"))), "does not carry out REDIRECT in nat POSTROUTING"),
])
def test_what_is_not(ruleset: RuleSet, message: str) -> None:
    with pytest.raises(RuleApplyError, match=message):
        check_executable(ruleset)


def test_reachable_goes_along_every_jump_once() -> None:
    ruleset = RuleSet().new_chain(FILTER, "a").new_chain(FILTER, "b").new_chain(FILTER, "c")
    for chain, target in (("FORWARD", Jump("a")), ("FORWARD", Goto("b")), ("a", Jump("b")), ("b", Accept()),
                          ("c", Drop())):
        ruleset = ruleset.append(FILTER, chain, Rule(target=target))
    found = [rule.target for rule in ruleset.table(FILTER).reachable("FORWARD")]
    assert found == [Jump("a"), Goto("b"), Jump("b"), Accept()]


