"""`-L` and `-S`: what iptables 1.8.9 prints, to the last blank.

Oddities kept, because scripts cut these columns: 1.8.9 prints protocol numbers with -n (names before
and after it); the heading for -x is two columns wider than the numbers below; lines of the table end
in a blank where nothing follows the destination.
"""

from __future__ import annotations

from natengine.frontend.command import Command, Kind
from natengine.frontend.names import HostName, ServiceName, protocol_name
from natengine.frontend.printers import (
    address_text,
    interface_text,
    options_text,
    rule_text,
    rule_words,
    target_words,
)
from natengine.frontend.printing import Style
from natengine.frontend.target_printers import target_name
from natengine.rules.counters import Count, RuleCounters
from natengine.rules.model import Chain, Rule, RuleSet, TableName

_MAX_PLAIN_COUNT = 99_999       # five digits; the next ones are rounded to K
_MAX_UNIT_COUNT = 9_999         # four digits and a unit
_UNITS = "KMGT"


def show(command: Command, ruleset: RuleSet, counters: RuleCounters, *,
         reverse_lookup: HostName | None = None, service_lookup: ServiceName | None = None) -> str:
    """Return what a `-L` or `-S` command prints."""
    if command.kind is Kind.LIST_RULES:
        return list_specs(ruleset, counters, table=command.table, chain=command.chain, number=command.number,
                          verbose=command.verbose)
    return list_chains(
        ruleset, counters, table=command.table, chain=command.chain, number=command.number,
        numeric=command.numeric, verbose=command.verbose, exact=command.exact,
        line_numbers=command.line_numbers, reverse_lookup=reverse_lookup, service_lookup=service_lookup)


def list_specs(ruleset: RuleSet, counters: RuleCounters | None = None, *, table: TableName,
               chain: str | None = None, number: int | None = None, verbose: bool = False) -> str:
    """Return `-S`: policies first, then rules as commands; `-v` puts counters in.

    Args:
        counters: None: all zero.
        chain: None: every chain of the table.
        number: Only this rule, and no policy; nothing if there is none.
    """
    counters = counters or RuleCounters()
    chains = _chains(ruleset, table, chain)
    lines: list[str] = []
    if number is None:
        for each in chains:
            count = _counter_option(counters.policy(table, each.name)) if verbose else ""
            lines.append(f"-N {each.name}" if each.policy is None else
                         f"-P {each.name} {target_name(each.policy)}{count}")
    for each in chains:
        for rule in _rules(each, number):
            lines.append(rule_line(each.name, rule, counters.rule(rule.handle) if verbose else None))
    return "".join(f"{line}\n" for line in lines)


def rule_line(chain: str, rule: Rule, count: Count | None = None) -> str:
    """Return a rule as an append command, without a newline; with `-c` if there is a count."""
    words = " ".join(word.quoted for word in rule_words(rule))
    target = " ".join(word.quoted for word in target_words(rule.target))
    counter = "" if count is None else _counter_option(count)
    return f"-A {chain}{' ' if words else ''}{words}{counter}{' ' if target else ''}{target}"


def list_chains(ruleset: RuleSet, counters: RuleCounters | None = None, *, table: TableName,
                chain: str | None = None, number: int | None = None, numeric: bool = False,
                verbose: bool = False, exact: bool = False, line_numbers: bool = False,
                reverse_lookup: HostName | None = None, service_lookup: ServiceName | None = None) -> str:
    """Return `-L`.

    Args:
        counters: None: all zero.
        chain: None: every chain of the table, with an empty line between two.
        number: Only the line of this rule, without headings; nothing if there is none.
        reverse_lookup, service_lookup: Names of addresses and ports, used unless `numeric`.
    """
    columns = _Columns(Style(numeric, reverse_lookup, service_lookup), verbose, exact, line_numbers)
    counters = counters or RuleCounters()
    blocks: list[str] = []
    for each in _chains(ruleset, table, chain):
        lines = [] if number is not None else columns.heading(
            each, counters.policy(table, each.name), ruleset.table(table).references(each.name))
        first = number or 1
        for position, rule in enumerate(_rules(each, number), first):
            lines.append(columns.line(position, rule, counters.rule(rule.handle)))
        blocks.append("".join(f"{line}\n" for line in lines))
    return "\n".join(blocks)


def _chains(ruleset: RuleSet, table: TableName, chain: str | None) -> tuple[Chain, ...]:
    return ruleset.table(table).chains if chain is None else (ruleset.chain(table, chain),)


def _rules(chain: Chain, number: int | None) -> tuple[Rule, ...]:
    return chain.rules if number is None else chain.rules[number - 1:number]


def _counter_option(count: Count) -> str:
    return f" -c {count.packets} {count.bytes}"


class _Columns:
    """The layout of one listing."""

    def __init__(self, style: Style, verbose: bool, exact: bool, line_numbers: bool) -> None:
        self.style = style
        self.verbose = verbose
        self.exact = exact
        self.line_numbers = line_numbers

    def heading(self, chain: Chain, count: Count, references: int) -> list[str]:
        """Return the chain's line and the line of column names."""
        counted = ""
        if self.verbose:
            packets, bytes_ = (format_count(value, exact=self.exact) for value in count)
            counted = f" {packets} packets, {bytes_} bytes"
        names = "num  " if self.line_numbers else ""
        if self.verbose:
            names += "    pkts      bytes " if self.exact else " pkts bytes "
        names += "target     prot opt "
        names += "in     out     " if self.verbose else ""
        about = f"{references} references" if chain.policy is None else f"policy {target_name(chain.policy)}{counted}"
        return [f"Chain {chain.name} ({about})",
                f"{names}source               destination         "]

    def line(self, number: int, rule: Rule, count: Count) -> str:
        """Return the line of one rule."""
        text = f"{number:<4} " if self.line_numbers else ""
        if self.verbose:
            width = 8 if self.exact else 5
            text += "".join(f"{format_count(value, exact=self.exact):>{width}} " for value in count)
        text += f"{target_name(rule.target):<9} {self._protocol(rule)}{options_text(rule)} "
        if self.verbose:
            text += "".join(f" {interface_text(test, self.style):<6}" for test in (rule.in_iface, rule.out_iface)) + " "
        addresses = address_text(rule.src, self.style) + address_text(rule.dst, self.style)
        return text + addresses + rule_text(rule, self.style)

    def _protocol(self, rule: Rule) -> str:
        number, inverted = (0, False) if rule.proto is None else (rule.proto.number, rule.proto.inverted)
        name = str(number) if self.style.numeric else protocol_name(number)
        return f"{'!' if inverted else ' '}{name:<4} "


def format_count(value: int, *, exact: bool = False) -> str:
    """Return a counter in at most five characters, rounded to K, M, G or T; or all its digits."""
    if exact or value <= _MAX_PLAIN_COUNT:
        return str(value)
    for unit in _UNITS:
        value = (value + 500) // 1000
        if value <= _MAX_UNIT_COUNT or unit == _UNITS[-1]:
            break
    return f"{value}{unit}"
