"""Rule sets as values: edits, handles, uplinks."""

from __future__ import annotations

import pytest
from hypothesis import given
from unit.rules.rule_strategies import rulesets

from natengine.errors import RuleApplyError
from natengine.rules.counters import RuleCounters
from natengine.rules.model import (
    Accept,
    ChainName,
    Drop,
    Goto,
    InterfaceTest,
    Jump,
    Masquerade,
    Return,
    Rule,
    RuleSet,
    Snat,
    TableName,
    Uplinks,
)

FILTER, NAT, FORWARD, POSTROUTING = (
    TableName.FILTER, TableName.NAT, ChainName.FORWARD, ChainName.POSTROUTING)
NOT_THERE = "Bad rule (does a matching rule exist in that chain?)."
A, B, C = Rule(target=Accept()), Rule(target=Drop()), Rule(target=Return())


def forward(*rules: Rule) -> RuleSet:
    ruleset = RuleSet()
    for rule in rules:
        ruleset = ruleset.append(FILTER, FORWARD, rule)
    return ruleset


def test_built_in_chains_come_as_iptables_lists_them() -> None:
    chains = {table.name: " ".join(chain.name for chain in table.chains) for table in RuleSet().tables}
    assert chains == {
        FILTER: "INPUT FORWARD OUTPUT", NAT: "PREROUTING INPUT OUTPUT POSTROUTING",
        TableName.MANGLE: "PREROUTING INPUT FORWARD OUTPUT POSTROUTING", TableName.RAW: "PREROUTING OUTPUT",
    }
    assert all(chain.policy == Accept() for table in RuleSet().tables for chain in table.chains)


@pytest.mark.parametrize("edited,expected", [
    (forward(A, B).insert(FILTER, FORWARD, C), (C, A, B)),
    (forward(A, B).insert(FILTER, FORWARD, C, 2), (A, C, B)),
    (forward(A, B).insert(FILTER, FORWARD, C, 3), (A, B, C)),
    (forward(A, B, C).delete(FILTER, FORWARD, 2), (A, C)),
    (forward(A, B, A).delete_rule(FILTER, FORWARD, A), (B, A)),
    (forward(A, B).replace(FILTER, FORWARD, 1, C), (C, B)),
    (forward(A, B).flush(FILTER), ()),
    (forward(A, B).flush(FILTER, FORWARD), ()),
    (forward(A, B).flush(FILTER, "INPUT"), (A, B)),
])
def test_edits(edited: RuleSet, expected: tuple[Rule, ...]) -> None:
    assert edited.chain(FILTER, FORWARD).rules == expected


@pytest.mark.parametrize("edit,message", [
    (lambda rules: rules.insert(FILTER, FORWARD, A, 4), "Index of insertion too big."),
    (lambda rules: rules.insert(FILTER, FORWARD, A, 0), "Index of insertion too big."),
    (lambda rules: rules.delete(FILTER, FORWARD, 3), "Index of deletion too big."),
    (lambda rules: rules.replace(FILTER, FORWARD, 3, A), "Index of replacement too big."),
    (lambda rules: rules.delete_rule(FILTER, FORWARD, C), NOT_THERE),
    (lambda rules: rules.check(FILTER, FORWARD, C), NOT_THERE),
    (lambda rules: rules.append(FILTER, "INTPUT", A), "No chain/target/match by that name."),
    (lambda rules: rules.append(NAT, FORWARD, A), "No chain/target/match by that name."),
    (lambda rules: rules.flush(TableName.SECURITY),
     "table security holds no rules in natengine"),
])
def test_refused_edits(edit: object, message: str) -> None:
    with pytest.raises(RuleApplyError) as caught:
        edit(forward(A, B))  # type: ignore[operator]
    assert (str(caught.value), caught.value.exit_status) == (message, 1)


def test_an_edit_leaves_the_old_rule_set_alone() -> None:
    before = forward(A)
    before.append(FILTER, FORWARD, B).set_policy(FILTER, FORWARD, Drop()).flush(FILTER)
    assert before == forward(A)


def test_a_handle_stays_with_its_rule_and_is_never_given_twice() -> None:
    ruleset = forward(A, B)
    first, second = (rule.handle for rule in ruleset.chain(FILTER, FORWARD).rules)
    ruleset = ruleset.delete(FILTER, FORWARD, 1).append(NAT, POSTROUTING, C).insert(FILTER, FORWARD, A)
    again, kept = (rule.handle for rule in ruleset.chain(FILTER, FORWARD).rules)
    assert kept == second
    assert again not in (first, second, ruleset.chain(NAT, POSTROUTING).rules[0].handle)


def test_equality_ignores_handles() -> None:
    assert forward(A, B) == forward(A, C, B).delete(FILTER, FORWARD, 2)


def masquerading(*tests: InterfaceTest | None) -> RuleSet:
    ruleset = RuleSet()
    for test in tests:
        ruleset = ruleset.append(NAT, POSTROUTING, Rule(out_iface=test, target=Masquerade()))
    return ruleset


@pytest.mark.parametrize("tests,expected", [
    ((), Uplinks()),
    ((InterfaceTest("bond0.2"), InterfaceTest("bond0.3"), InterfaceTest("bond0.2")),
     Uplinks(("bond0.2", "bond0.3"))),
    ((InterfaceTest("ppp+"),), Uplinks(("ppp+",))),
    ((None,), Uplinks(any_interface=True)),
    ((InterfaceTest("bond0.2"), InterfaceTest("lo", inverted=True)), Uplinks(("bond0.2",), True)),
    ((InterfaceTest("+"),), Uplinks(any_interface=True)),
])
def test_uplinks(tests: tuple[InterfaceTest | None, ...], expected: Uplinks) -> None:
    assert masquerading(*tests).uplinks() == expected


def test_a_rule_that_does_not_masquerade_names_no_uplink() -> None:
    rule = Rule(out_iface=InterfaceTest("bond0.2"), target=Accept())
    assert RuleSet().append(NAT, POSTROUTING, rule).uplinks() == Uplinks()


def test_uplinks_of_a_chain_are_those_of_the_jump_to_it() -> None:
    ruleset = RuleSet().new_chain(NAT, "out")
    ruleset = ruleset.append(NAT, "out", Rule(target=Masquerade()))
    assert ruleset.uplinks() == Uplinks()               # nobody comes there
    ruleset = ruleset.append(NAT, POSTROUTING, Rule(out_iface=InterfaceTest("bond0.2"), target=Jump("out")))
    ruleset = ruleset.append(NAT, POSTROUTING, Rule(out_iface=InterfaceTest("bond0.3"), target=Snat()))
    assert ruleset.uplinks() == Uplinks(("bond0.2", "bond0.3"))


# --- user-defined chains ----------------------------------------------------------------------------


def with_chains(*names: str) -> RuleSet:
    ruleset = RuleSet()
    for name in names:
        ruleset = ruleset.new_chain(FILTER, name)
    return ruleset


def names(ruleset: RuleSet) -> list[str]:
    return [chain.name for chain in ruleset.table(FILTER) if chain.policy is None]


def test_user_chains_follow_the_built_in_ones_by_name() -> None:
    ruleset = with_chains("b", "Z", "a")
    assert [chain.name for chain in ruleset.table(FILTER)] == ["INPUT", "FORWARD", "OUTPUT", "Z", "a", "b"]
    assert names(ruleset.delete_chain(FILTER, "a")) == ["Z", "b"]
    assert names(ruleset.delete_chain(FILTER)) == []


def test_a_renamed_chain_takes_its_jumps_along() -> None:
    ruleset = with_chains("a").append(FILTER, FORWARD, Rule(target=Jump("a"))).append(FILTER, FORWARD, Rule(
        target=Goto("a")))
    handles = [rule.handle for rule in ruleset.chain(FILTER, FORWARD).rules]
    renamed = ruleset.rename_chain(FILTER, "a", "b").chain(FILTER, FORWARD).rules
    assert [rule.target for rule in renamed] == [Jump("b"), Goto("b")]
    assert [rule.handle for rule in renamed] == handles


BUSY = " CHAIN_DEL failed (Device or resource busy): chain {}"


@pytest.mark.parametrize(("edit", "message", "status"), [
    (lambda rules: rules.new_chain(FILTER, "a"), "Chain already exists.", 1),
    (lambda rules: rules.new_chain(FILTER, FORWARD), "Chain already exists.", 1),
    (lambda rules: rules.rename_chain(FILTER, "a", "b"), "File exists.", 1),
    (lambda rules: rules.rename_chain(FILTER, "c", "d"), "No chain/target/match by that name.", 1),
    (lambda rules: rules.rename_chain(FILTER, FORWARD, "d"), "FORWARD is built in and keeps its name", 1),
    (lambda rules: rules.delete_chain(FILTER, "c"), "No chain/target/match by that name.", 1),
    (lambda rules: rules.delete_chain(FILTER, FORWARD), BUSY.format("FORWARD"), 4),
    (lambda rules: rules.append(FILTER, "a", A).delete_chain(FILTER, "a"), BUSY.format("a"), 4),
    (lambda rules: rules.append(FILTER, FORWARD, Rule(target=Goto("b"))).delete_chain(FILTER), BUSY.format("b"), 4),
])
def test_refused_edits_of_chains(edit: object, message: str, status: int) -> None:
    with pytest.raises(RuleApplyError) as caught:
        edit(with_chains("a", "b"))  # type: ignore[operator]
    assert (str(caught.value), caught.value.exit_status) == (message, status)


# --- counters ---------------------------------------------------------------------------------------


def test_adder_counts_rules_and_policies_apart() -> None:
    counters = RuleCounters()
    add = counters.adder("filter", "FORWARD")
    add(7, 40)
    add(7, 60)
    add(-1, 1500)
    assert (counters.rule(7), counters.policy("filter", "FORWARD")) == ((2, 100), (1, 1500))
    assert (counters.rule(8), counters.policy("filter", "INPUT")) == ((0, 0), (0, 0))


def test_an_adder_outlives_zeroing_and_forgetting() -> None:
    counters = RuleCounters()
    add = counters.adder(FILTER, FORWARD)
    ruleset = forward(A)
    handle = ruleset.chain(FILTER, FORWARD).rules[0].handle
    add(handle, 40)
    add(-1, 40)
    counters.zero_chain(ruleset, FILTER, FORWARD)
    counters.set_policy(FILTER, FORWARD, 5, 6)
    counters.forget_missing(RuleSet())
    add(handle, 40)
    add(-1, 40)
    assert (counters.rule(handle), counters.policy(FILTER, FORWARD)) == ((1, 40), (6, 46))


@given(rulesets())
def test_a_copy_is_equal_and_independent(pair: tuple[RuleSet, RuleCounters]) -> None:
    _, counters = pair
    copy = counters.copy()
    assert copy == counters
    copy.adder("filter", "INPUT")(-1, 1)
    assert copy != counters
