"""Rule sets as files: the text of iptables-save, read and written.

1. A file names tables; each that it names is emptied and filled from the file, others stay as they were.
2. Nothing is applied in part: an error anywhere leaves only an exception behind.
3. Rule lines are rule commands (`-A`, and all others that change something) without `-t`.
4. `parse_restore(dump(x)) == x`, counters included.
5. `mangle` and `raw` are kept and listed, not carried out; a rule there that natengine has no words for is
   left out.  Both are reported.

Departures from iptables-restore: an error in one table leaves the others unchanged, too; blanks at the end
of a line do not matter; a DROP policy in `nat` is refused as with -P (there it slips through).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

from natengine.errors import RuleApplyError, RuleSyntaxError
from natengine.frontend.arguments import POLICIES, check_new_chain, parse_counters
from natengine.frontend.command import Command, Kind
from natengine.frontend.extensions import MATCHES, MISSING_TARGETS
from natengine.frontend.lexer import Word, quote_text, split_words
from natengine.frontend.listing import rule_line
from natengine.frontend.names import HostLookup, Lookups, ServiceLookup
from natengine.frontend.parser import CommandParser
from natengine.frontend.target_printers import target_name
from natengine.frontend.wording import only_kept
from natengine.rules.counters import Count, RuleCounters
from natengine.rules.model import BUILT_IN_CHAINS, LEFT_ALONE, RuleSet, TableName
from natengine.rules.validate import check_policy, check_table

P = ParamSpec("P")
R = TypeVar("R")

STDIN = "<stdin>"

_USER_CHAIN = "-"           # in the place of a policy
_COUNTERS = re.compile(r"\[(\d+):(\d+)\]")
_LOOKING = (Kind.LIST, Kind.LIST_RULES, Kind.CHECK, Kind.HELP, Kind.VERSION)
_VERDICTS = frozenset({"DROP", "REJECT", "QUEUE", "NFQUEUE"})


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
            lines.append(f":{chain.name} {target_name(chain.policy) or _USER_CHAIN} {count}")
        for chain in table.chains:
            for rule in chain.rules:
                count = f"{_bracketed(known.rule(rule.handle))} " if counters and rule_counters else ""
                lines.append(count + rule_line(chain.name, rule))
        lines.append("COMMIT")
    return "".join(f"{line}\n" for line in lines)


def _bracketed(count: Count) -> str:
    return f"[{count.packets}:{count.bytes}]"


@dataclass(frozen=True)
class RestoreOptions:
    """How a text is read; the options of iptables-restore.

    Attributes:
        counters: Take the counters, as with -c.
        flush: Empty the tables that the text names first; not so with --noflush.
        only: Read this table's lines only (-T); None for all.
    """

    counters: bool = True
    flush: bool = True
    only: TableName | None = None


REPLACE = RestoreOptions()


def parse_restore(text: str, *, source: str = STDIN, base: RuleSet | None = None,
                  base_counters: RuleCounters | None = None, resolver: HostLookup | None = None,
                  services: ServiceLookup | None = None, options: RestoreOptions = REPLACE,
                  report: Callable[[str], None] | None = None,
                  resolved: list[str] | None = None) -> tuple[RuleSet, RuleCounters]:
    """Read the text of iptables-save.

    Args:
        source: The file's name, for messages.
        base, base_counters: What tables that the text does not name keep; None for empty tables.
            Neither is changed.
        resolver, services: As for `parse_command`.
        report: Is told what of the text will not be carried out.
        resolved: Is given the lines, numbers in the place of names.

    Raises:
        RuleSyntaxError: With the line number; the message has the file and the column.
        RuleApplyError: A rule that is not there, a COMMIT that is missing; the message has the line.
    """
    reader = _RestoreReader(source, base or RuleSet(), base_counters or RuleCounters(),
                            Lookups(resolver, services), options)
    for number, line in enumerate(text.split("\n"), 1):
        reader.read_line(number, line)
    reader.finish()
    if resolved is not None:
        resolved += reader.lines
    if report is not None:
        for warning in reader.warnings:
            report(warning)
    return reader.ruleset, reader.counters


class _RestoreReader:
    """The tables read so far.  `ruleset` and `counters` are replaced, never shared with the caller's."""

    def __init__(self, source: str, ruleset: RuleSet, counters: RuleCounters, lookups: Lookups,
                 options: RestoreOptions) -> None:
        self.ruleset = ruleset
        self.counters = counters.copy()
        self.warnings: list[str] = []
        self._where = "" if source == STDIN else f"{source}, "
        self.lines: list[str] = []
        self._lookups = _NoticingLookups(lookups)
        self._options = options
        self._table: TableName | None = None
        self._number = 0

    def read_line(self, number: int, line: str) -> None:
        """Read one line, numbered from 1."""
        self._number = number
        self.lines.append(line)
        line = line.rstrip()
        if not line or line.lstrip().startswith("#"):
            return
        if self._table is None:
            if not line.startswith("*"):
                raise self._wrong(f"`{line}' outside a table: *TABLE expected", 1)
            self._open(line[1:])
        elif line == "COMMIT":
            self._commit(self._table)
        elif self._options.only not in (None, self._table):
            pass
        elif line.startswith(":"):
            self._read_chain(self._table, line)
        else:
            self._read_rule(self._table, line)

    def finish(self) -> None:
        """Refuse a text that ends inside a table."""
        if self._table is not None:
            raise RuleApplyError(f"{self._where}COMMIT expected at line {self._number}")
        self.counters.forget_missing(self.ruleset)

    # --- tables -------------------------------------------------------------------------------------

    def _open(self, name: str) -> None:
        if name not in TableName.__members__.values():
            raise self._wrong(f"table name '{name}' invalid", 2)
        self._table = TableName(name)
        if self._table not in BUILT_IN_CHAINS or not self._options.flush or self._options.only not in (
                None, self._table):
            return
        self.ruleset = self.ruleset.empty_table(self._table)
        for chain in self.ruleset.table(self._table):
            self.counters.zero_policy(self._table, chain.name)

    def _commit(self, name: TableName) -> None:
        if name in BUILT_IN_CHAINS:
            table = self.ruleset.table(name)
            try:
                check_table(table)
            except RuleApplyError as error:
                raise self._failed(error) from None
            self.warnings += only_kept(table)
        self._table = None

    # --- lines --------------------------------------------------------------------------------------

    def _read_chain(self, table: TableName, line: str) -> None:
        words = self._split(line[1:], first_column=2)
        if len(words) < 2:
            raise self._wrong("policy invalid", 1)
        chain, policy = words[0].text, words[1].text
        counters = _COUNTERS.fullmatch(words[2].text) if len(words) > 2 else None
        if len(words) > 2 and counters is None:
            raise self._wrong(f"invalid policy counters for chain '{chain}'", words[2].column)
        if policy not in POLICIES and policy != _USER_CHAIN:
            raise RuleApplyError(f"{self._where}line {self._number} failed: Bad policy name.")
        if table not in BUILT_IN_CHAINS:
            if policy == "DROP":
                raise self._wrong(f"table {table} may not drop packets in natengine", words[1].column)
            return
        try:
            if chain in BUILT_IN_CHAINS[table]:
                self._set_policy(table, chain, policy)
            else:
                self._make_chain(table, chain)
        except RuleSyntaxError as error:
            raise self._wrong(str(error), words[1].column) from None
        if counters is not None and self._options.counters and chain in BUILT_IN_CHAINS[table]:
            self.counters.set_policy(table, chain, int(counters[1]), int(counters[2]))

    def _set_policy(self, table: TableName, chain: str, name: str) -> None:
        if name != _USER_CHAIN:
            check_policy(table, POLICIES[name])
            self.ruleset = self.ruleset.set_policy(table, chain, POLICIES[name])

    def _make_chain(self, table: TableName, chain: str) -> None:
        """Make a user-defined chain, or empty the one that is there already."""
        if any(known.name == chain for known in self.ruleset.table(table)):
            self.ruleset = self.ruleset.flush(table, chain)
        else:
            check_new_chain(chain)
            self.ruleset = self.ruleset.new_chain(table, chain)

    def _read_rule(self, table: TableName, line: str) -> None:
        words = self._split(line)
        count = None
        if words[0].text.startswith("["):
            count = self._read_count(words.pop(0))
        texts = [word.text for word in words]
        left_out = self._why_left_out(table, texts)
        if left_out is not None:
            self.warnings.append(f"line {self._number} is left out: {left_out}")
            return
        parser = CommandParser(texts, self._lookups.both, fixed_table=table)
        try:
            command = parser.parse()
            if command.kind is Kind.IPV6:
                return
            if self._lookups.take_used():
                self.lines[-1] = _without_names(line, command)
            if command.kind in _LOOKING:
                raise RuleSyntaxError(f"-{command.kind.value} has no place in a rules file")
            if count is not None and self._options.counters:
                command = replace(command, counters=count)
            after = command.apply(self.ruleset, more_follow=True)
        except RuleSyntaxError as error:
            raise self._wrong(str(error), words[parser.position].column if words else 1) from None
        except RuleApplyError as error:
            raise self._failed(error) from None
        command.touch_counters(self.ruleset, after, self.counters)
        self.ruleset = after

    def _why_left_out(self, table: TableName, words: list[str]) -> str | None:
        """Return why a rule of a table that is left alone is not even kept, or None."""
        if table in BUILT_IN_CHAINS and table not in LEFT_ALONE:
            return None
        wanted = [(words[place - 1], word) for place, word in enumerate(words) if place]
        unknown = [
            f"{word} is not available in natengine" for option, word in wanted
            if (option in ("-j", "--jump") and word in MISSING_TARGETS)
            or (option in ("-m", "--match") and word not in MATCHES)
        ]
        if table not in BUILT_IN_CHAINS:
            unknown = unknown or [f"natengine has no table {table}"]
        if unknown and any(option in ("-j", "--jump") and word in _VERDICTS for option, word in wanted):
            raise self._wrong(
                f"table {table} may not drop packets in natengine: write that in table filter, chain FORWARD", 1
            )
        return unknown[0] if unknown else None

    # --- words and errors ---------------------------------------------------------------------------

    def _wrong(self, message: str, column: int) -> RuleSyntaxError:
        return RuleSyntaxError(f"{message} ({self._where}column {column})", line=self._number)

    def _failed(self, error: RuleApplyError) -> RuleApplyError:
        failed = RuleApplyError(f"{self._where}line {self._number} failed: {error}")
        failed.exit_status = error.exit_status
        return failed

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


class _NoticingLookups:
    """Lookups that know whether they were asked."""

    def __init__(self, lookups: Lookups) -> None:
        self._used = False
        self.both = Lookups(self._noticing(lookups.host), self._noticing(lookups.service))

    def _noticing(self, look_up: Callable[P, R] | None) -> Callable[P, R] | None:
        if look_up is None:
            return None

        def noticing(*question: P.args, **more: P.kwargs) -> R:
            self._used = True
            return look_up(*question, **more)

        return noticing

    def take_used(self) -> bool:
        """Whether anybody has asked since this was last called."""
        used, self._used = self._used, False
        return used


def _without_names(line: str, command: Command) -> str:
    """Return a rule line with numbers in the place of names."""
    counters = f"{line.split()[0]} " if line.startswith("[") else ""
    words = command.to_argv()[2:]           # the table is that of the lines around it
    return counters + " ".join(map(quote_text, words))
