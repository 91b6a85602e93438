"""Changes of the rules: what is done in the asking thread, what in a turn of the packet thread, what comes of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

import pytest
from support.backends import KEY, NAMES, load_backend

from natengine.app import changes
from natengine.app.changes import Changes
from natengine.errors import ConfigError, ControlError, HostError, RuleApplyError
from natengine.fastpath import configure
from natengine.frontend.save import RestoreOptions
from natengine.nat.engine import NatEngine
from natengine.nat.policy import Policy
from natengine.rules.counters import RuleCounters
from natengine.rules.model import RuleSet, TableName
from natengine.settings import Settings

T = TypeVar("T")

RULES = "*filter\n-A FORWARD -s 1.1.1.1 -j DROP\n-A FORWARD -s 2.2.2.2 -j DROP\nCOMMIT\n"


class FakeGateway:
    """An engine, and turns of a packet thread: `between` is what happens there before the next one."""

    def __init__(self) -> None:
        settings = Settings(max_flows=16)
        fast = load_backend(NAMES[0]).FastPath(configure(settings, KEY))
        self.engine = NatEngine(fast, settings=settings, rng=random.Random(1))
        self.in_a_turn = False
        self.between: list[Callable[[], object]] = []
        self.flushed = 0
        self.failure: Exception | None = None

    def call(self, function: Callable[[], T]) -> T:
        if self.between:
            self.between.pop(0)()
        self.in_a_turn = True
        try:
            return function()
        finally:
            self.in_a_turn = False

    def put_in_force(
        self, ruleset: RuleSet, counters: RuleCounters | None = None, made: Policy | None = None
    ) -> list[str]:
        assert self.in_a_turn and made is not None
        if self.failure is not None:
            raise self.failure
        self.engine.replace_ruleset(ruleset, counters, made)
        return ["put in force"]

    def flush_flows(self) -> None:
        assert self.in_a_turn
        self.flushed += 1


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
def changed(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> Changes:
    """Reading, compiling and writing rules is nothing for the packet thread."""
    for name in ("parse_command", "parse_restore", "dump", "check_executable"):
        work = getattr(changes, name)

        def outside(*args: object, work: Callable[..., object] = work, **more: object) -> object:
            assert not gateway.in_a_turn
            return work(*args, **more)

        monkeypatch.setattr(changes, name, outside)

    def compile_outside(*args: RuleSet, made: Callable[..., Policy] = gateway.engine.compile) -> Policy:
        assert not gateway.in_a_turn
        return made(*args)

    monkeypatch.setattr(gateway.engine, "compile", compile_outside)
    return Changes(gateway)  # type: ignore[arg-type]


def count(gateway: FakeGateway, rule: int, packets: int) -> None:
    """Let packets of 100 bytes pass a rule of FORWARD."""
    add = gateway.engine.counters.adder(TableName.FILTER, "FORWARD")
    for _ in range(packets):
        add(gateway.engine.ruleset.chain(TableName.FILTER, "FORWARD").rules[rule].handle, 100)


def test_a_command_is_worked_out_outside(gateway: FakeGateway, changed: Changes) -> None:
    assert changed.change(["-A", "FORWARD", "-j", "DROP"]) == ["put in force"]
    assert "-A FORWARD -j DROP\n" in changed.save_text(counters=False)
    assert changed.change(["-A", "FORWARD", "-j", "LOG", "--flush-flows"]) == ["put in force"]
    assert gateway.flushed == 1
    with pytest.raises(RuleApplyError):
        changed.change(["-D", "FORWARD", "-j", "REJECT"])


def test_a_text_is_worked_out_outside(gateway: FakeGateway, changed: Changes) -> None:
    """What has been counted meanwhile is not lost; of rules that are gone it is."""
    changed.restore(RULES)
    count(gateway, 0, 1)
    gateway.between = [lambda: None, lambda: (count(gateway, 0, 2), count(gateway, 1, 1))]
    assert changed.restore("*filter\n-D FORWARD 2\n-A FORWARD -j LOG\nCOMMIT\n", RestoreOptions(flush=False)) == [
        "put in force"
    ]
    saved = changed.save_text(counters=True, table=TableName.FILTER)
    assert [line for line in saved.splitlines() if "-A" in line] == [
        "[3:300] -A FORWARD -s 1.1.1.1/32 -j DROP", "[0:0] -A FORWARD -j LOG",
    ]


def test_a_text_is_tried(gateway: FakeGateway, changed: Changes) -> None:
    before = gateway.engine.ruleset
    assert changed.restore(RULES, test=True) == []
    with pytest.raises(ConfigError):
        changed.restore("*filter\n-A FORWARD -j NOSUCH\nCOMMIT\n")
    assert gateway.engine.ruleset is before


def test_rules_that_somebody_else_has_changed_are_not_overwritten(gateway: FakeGateway, changed: Changes) -> None:
    """A change that came late, after its asker had given up."""
    other = RuleSet().new_chain(TableName.FILTER, "other")
    for between, work in (
        ([lambda: gateway.engine.replace_ruleset(other)], lambda: changed.change(["-N", "mine"])),
        ([lambda: None, lambda: gateway.engine.replace_ruleset(RuleSet())], lambda: changed.restore(RULES)),
    ):
        gateway.between = list(between)
        with pytest.raises(ControlError, match="try again"):
            work()
    assert gateway.engine.ruleset == RuleSet()


def test_hooks_that_cannot_be_had_change_nothing(gateway: FakeGateway, changed: Changes) -> None:
    """And the next change has its turn."""
    gateway.failure = HostError("no hooks")
    with pytest.raises(HostError):
        changed.restore(RULES)
    assert gateway.engine.ruleset == RuleSet()
    gateway.failure = None
    assert changed.restore(RULES, flush_flows=True) == ["put in force"]
    assert gateway.flushed == 1
