"""Changes of the rules: worked out in the thread that asks, put in force in one turn of the packet thread.

    asking thread                       packet thread
    read text or command line
    apply it to the rules there are
    compile them                        (packets go on)
                                  ──>   hooks, rules, counters exchanged

A thousand rules take a tenth of a second to read and a tenth of that to compile; the exchange takes two milliseconds.
One change at a time: each begins with the rules that the last one has made.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from natengine.errors import ControlError
from natengine.frontend.iptables import Kind, parse_command
from natengine.frontend.save import REPLACE, RestoreOptions, dump, parse_restore
from natengine.frontend.wording import only_kept
from natengine.rules.counters import RuleCounters
from natengine.rules.executable import check_executable
from natengine.rules.model import RuleSet, TableName

if TYPE_CHECKING:
    from natengine.app.gateway import Gateway


class Changes:
    """Changes the rules of one gateway.  Its methods are for any thread but the packet thread."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._one_at_a_time = threading.Lock()

    def change(self, argv: list[str]) -> list[str]:
        """Carry out one iptables command that changes something; return warnings.

        Raises:
            ConfigError: It cannot be read, or the rule set refuses it.
            HostError: The hooks it needs cannot be installed.
        """
        gateway = self._gateway
        command = parse_command(argv)
        with self._one_at_a_time:
            before = gateway.engine.ruleset
            after = command.apply(before)
            if after is not before:
                check_executable(after)
            made = None if after is before else gateway.engine.compile(after)

            def exchange() -> list[str]:
                self._check_unchanged(before)
                warnings = [] if after is before else gateway.put_in_force(after, made=made)
                command.touch_counters(before, after, gateway.engine.counters)
                if command.flush_flows:
                    gateway.flush_flows()
                return warnings

            warnings = gateway.call(exchange)
        if command.adds_rules or command.kind is Kind.POLICY:
            warnings = [*warnings, *only_kept(after.table(command.table), command.chain)]
        return warnings

    def restore(
        self, text: str, options: RestoreOptions = REPLACE, *, test: bool = False, flush_flows: bool = False
    ) -> list[str]:
        """Replace the tables that iptables-save text names, or add to them; return warnings.

        Args:
            test: Only find out whether it can be done.
            flush_flows: End every flow afterwards.

        Raises:
            ConfigError, HostError: As for `change`.
        """
        gateway = self._gateway
        warnings: list[str] = []
        with self._one_at_a_time:
            before, counted = gateway.call(self._rules)
            ruleset, counters = parse_restore(
                text, base=before, base_counters=counted, options=options, report=warnings.append,
            )
            check_executable(ruleset)
            if test:
                return warnings
            made = gateway.engine.compile(ruleset, counters)

            def exchange() -> list[str]:
                self._check_unchanged(before)
                counters.add_since(counted, gateway.engine.counters)
                missing = gateway.put_in_force(ruleset, counters, made)
                if flush_flows:
                    gateway.flush_flows()
                return missing

            return warnings + gateway.call(exchange)

    def save_text(self, *, counters: bool, table: TableName | None = None) -> str:
        """Return the rule set, or one table of it, as iptables-save text."""
        ruleset, counted = self._gateway.call(self._rules)
        return dump(ruleset, counted, rule_counters=counters, tables=None if table is None else [table])

    def _rules(self) -> tuple[RuleSet, RuleCounters]:
        engine = self._gateway.engine
        return engine.ruleset, engine.counters.copy()

    def _check_unchanged(self, before: RuleSet) -> None:
        """Refuse a change of rules that are not in force any more: one that was given up may have come late."""
        if self._gateway.engine.ruleset is not before:
            raise ControlError("the rules have changed meanwhile; try again")
