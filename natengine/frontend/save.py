"""Rule sets as files: the text of iptables-save, read and written.

1. A file names tables; each that it names is emptied and filled from the file, others stay as they were.
2. Nothing is applied in part: an error anywhere leaves only an exception behind.
3. Rule lines are rule commands (`-A`, and `-I`, `-D`, `-R`, `-F`, `-P` too) without `-t`.
4. `parse_restore(dump(x)) == x`, counters included.

Departures from iptables-restore: counters are always read (it wants -c for that); blanks at the end
of a line do not matter; a DROP policy in `nat` is refused as with -P (there it slips through);
`mangle`, `raw` and `security` may be there, but may not hold a rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from natengine.errors import RuleApplyError, RuleSyntaxError
from natengine.frontend.command import Kind
from natengine.frontend.lexer import Word, split_words
from natengine.frontend.listing import rule_line
from natengine.frontend.names import HostLookup, Lookups, ServiceLookup
from natengine.frontend.parser import CommandParser, parse_counters
from natengine.frontend.printers import target_name
from natengine.rules.counters import Count, RuleCounters
from natengine.rules.model import LEFT_ALONE, Accept, Drop, Policy, RuleSet, TableName
from natengine.rules.validate import check_policy

STDIN = "<stdin>"

_FILLED = (TableName.FILTER, TableName.NAT)
_POLICIES: dict[str, Policy] = {"ACCEPT": Accept(), "DROP": Drop()}
_COUNTERS = re.compile(r"\[(\d+):(\d+)\]")
_CHANGES = (Kind.APPEND, Kind.INSERT, Kind.DELETE, Kind.REPLACE, Kind.FLUSH, Kind.POLICY, Kind.ZERO)


def dump(ruleset: RuleSet, counters: RuleCounters | None = None, *, header_lines: Iterable[str] = (),
         rule_counters: bool = True, tables: Iterable[TableName] | None = None) -> str:
    """Return the text of iptables-save.

    Args:
        counters: None: policies get `[0:0]`, rules no counters.
        header_lines: Comments for the top, without `#`.
        rule_counters: Whether rules get their counters too, as with `iptables-save -c`.
        tables: Only these; None for all that hold rules.
    """
    wanted = None if tables is None else set(tables)
    known = counters or RuleCounters()
    lines = [f"# {line}" for line in header_lines]
    for table in ruleset.tables:
        if wanted is not None and table.name not in wanted:
            continue
        if wanted is None and table.name in LEFT_ALONE and table.untouched:
            continue
        lines.append(f"*{table.name}")
        for chain in table.chains:
            count = _bracketed(known.policy(table.name, chain.name))
            lines.append(f":{chain.name} {target_name(chain.policy)} {count}")
        for chain in table.chains:
            for rule in chain.rules:
                count = f"{_bracketed(known.rule(rule.handle))} " if counters and rule_counters else ""
                lines.append(count + rule_line(chain.name, rule))
        lines.append("COMMIT")
    return "".join(f"{line}\n" for line in lines)


def _bracketed(count: Count) -> str:
    return f"[{count.packets}:{count.bytes}]"


def parse_restore(text: str, *, source: str = STDIN, base: RuleSet | None = None,
                  base_counters: RuleCounters | None = None, resolver: HostLookup | None = None,
                  services: ServiceLookup | None = None) -> tuple[RuleSet, RuleCounters]:
    """Read the text of iptables-save.

    Args:
        source: The file's name, for messages.
        base, base_counters: What tables that the text does not name keep; None for empty tables.
            Neither is changed.
        resolver, services: As for `parse_command`.

    Raises:
        RuleSyntaxError: With the line number; the message has the file and the column.
        RuleApplyError: A rule that is not there, a COMMIT that is missing; the message has the line.
    """
    reader = _RestoreReader(source, base or RuleSet(), base_counters or RuleCounters(),
                            Lookups(resolver, services))
    for number, line in enumerate(text.split("\n"), 1):
        reader.read_line(number, line)
    reader.finish()
    return reader.ruleset, reader.counters


class _RestoreReader:
    """The tables read so far.  `ruleset` and `counters` are replaced, never shared with the caller's."""

    def __init__(self, source: str, ruleset: RuleSet, counters: RuleCounters, lookups: Lookups) -> None:
        self.ruleset = ruleset
        self.counters = counters.copy()
        self._where = "" if source == STDIN else f"{source}, "
        self._lookups = lookups
        self._table: TableName | None = None
        self._number = 0

    def read_line(self, number: int, line: str) -> None:
        """Read one line, numbered from 1."""
        self._number = number
        line = line.rstrip()
        if not line or line.lstrip().startswith("#"):
            return
        if self._table is None:
            if not line.startswith("*"):
                raise self._wrong(f"`{line}' outside a table: *TABLE expected", 1)
            self._open(line[1:])
        elif line == "COMMIT":
            self._table = None
        elif line.startswith(":"):
            self._read_policy(self._table, line)
        else:
            self._read_rule(self._table, line)

    def finish(self) -> None:
        """Refuse a text that ends inside a table."""
        if self._table is not None:
            raise RuleApplyError(f"{self._where}COMMIT expected at line {self._number}")
        self.counters.forget_missing(self.ruleset)

    def _wrong(self, message: str, column: int) -> RuleSyntaxError:
        return RuleSyntaxError(f"{message} ({self._where}column {column})", line=self._number)

    def _open(self, name: str) -> None:
        if name not in TableName.__members__.values():
            raise self._wrong(f"table name '{name}' invalid", 2)
        self._table = TableName(name)
        if self._table not in _FILLED:
            return
        self.ruleset = self.ruleset.flush(self._table)
        for chain in self.ruleset.table(self._table).chains:
            self.ruleset = self.ruleset.set_policy(self._table, chain.name, Accept())
            self.counters.zero_policy(self._table, chain.name)

    def _read_policy(self, table: TableName, line: str) -> None:
        words = self._split(line[1:], first_column=2)
        if len(words) < 2:
            raise self._wrong("policy invalid", 1)
        chain, policy = words[0].text, words[1].text
        counters = _COUNTERS.fullmatch(words[2].text) if len(words) > 2 else None
        if len(words) > 2 and counters is None:
            raise self._wrong(f"invalid policy counters for chain '{chain}'", words[2].column)
        if table not in _FILLED:
            if policy != "ACCEPT":
                raise self._wrong(f"table {table} may not drop packets in natengine", words[1].column)
            return
        if all(chain != known.name for known in self.ruleset.table(table).chains):
            raise self._wrong(f"chain '{chain}' is not built in, and natengine has no others yet",
                              words[0].column)
        if policy not in _POLICIES:
            raise RuleApplyError(f"{self._where}line {self._number} failed: Bad policy name.")
        try:
            check_policy(table, _POLICIES[policy])
        except RuleSyntaxError as error:
            raise self._wrong(str(error), words[1].column) from None
        self.ruleset = self.ruleset.set_policy(table, chain, _POLICIES[policy])
        if counters is not None:
            self.counters.set_policy(table, chain, int(counters[1]), int(counters[2]))

    def _read_rule(self, table: TableName, line: str) -> None:
        if table not in _FILLED:
            raise self._wrong(f"table {table} holds no rules in natengine (filter and nat do)", 1)
        words = self._split(line)
        count = None
        if words[0].text.startswith("["):
            count = self._read_count(words.pop(0))
        parser = CommandParser([word.text for word in words], self._lookups, fixed_table=table)
        try:
            command = parser.parse()
            if command.kind not in _CHANGES:
                raise RuleSyntaxError(f"-{command.kind.value} has no place in a rules file")
            if count is not None:
                command = replace(command, counters=count)
            after = command.apply(self.ruleset)
        except RuleSyntaxError as error:
            raise self._wrong(str(error), words[parser.position].column if words else 1) from None
        except RuleApplyError as error:
            failed = RuleApplyError(f"{self._where}line {self._number} failed: {error}")
            failed.exit_status = error.exit_status
            raise failed from None
        command.touch_counters(self.ruleset, after, self.counters)
        self.ruleset = after

    def _split(self, line: str, first_column: int = 1) -> list[Word]:
        try:
            return split_words(line, first_column)
        except RuleSyntaxError as error:
            raise self._wrong(str(error), 1) from None

    def _read_count(self, word: Word) -> Count:
        if not word.text.endswith("]"):
            raise self._wrong("need ]", word.column)
        packets, _, bytes_ = word.text[1:-1].partition(":")
        try:
            return parse_counters(packets, bytes_)
        except RuleSyntaxError as error:
            raise self._wrong(str(error), word.column) from None
