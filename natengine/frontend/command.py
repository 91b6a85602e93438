"""A rule command as a value: what `natengine iptables …` asks for, and what it does to a rule set.

`apply` is pure.  `to_argv` gives the canonical arguments: numeric, names resolved, so that the daemon
that parses them again needs no resolver and comes to the same Command.
"""

from __future__ import annotations

import enum
import itertools
from dataclasses import dataclass, replace

from natengine.errors import RuleApplyError, RuleSyntaxError
from natengine.frontend.printers import rule_words, target_words
from natengine.frontend.target_printers import target_name
from natengine.rules.counters import Count, RuleCounters
from natengine.rules.matches import AddressTest, Limit
from natengine.rules.model import NO_RULE, Chain, Rule, RuleSet, TableName
from natengine.rules.targets import Goto, Jump, Policy, Target
from natengine.rules.validate import check_placement, check_table


class Kind(enum.Enum):
    """What a command does; the value is its letter."""

    APPEND = "A"
    INSERT = "I"
    DELETE = "D"
    REPLACE = "R"
    CHECK = "C"
    LIST = "L"
    LIST_RULES = "S"
    FLUSH = "F"
    ZERO = "Z"
    POLICY = "P"
    NEW_CHAIN = "N"
    DELETE_CHAIN = "X"
    RENAME_CHAIN = "E"
    IPV6 = "6"              # a line of a restored text that is not for us
    HELP = "h"
    VERSION = "V"


LISTINGS = (Kind.LIST, Kind.LIST_RULES)
_ODD_CHAIN_OPTIONS = {Kind.LIST: "--list", Kind.LIST_RULES: "--list-rules", Kind.FLUSH: "--flush",
                      Kind.ZERO: "--zero", Kind.DELETE_CHAIN: "--delete-chain"}


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        chain: None: every chain of the table.
        number: The rule number, from 1; None where the command has a rule instead, or none.
        rule: The rule without its addresses.
        sources, destinations: What `-s` and `-d` list; the command is about every pair of them.
        counters: What `-c` sets the new rules' counters to.
        new_name: What `-E` renames the chain to.
        zero: `-Z` beside `-L` or `-S`: zero the chain, whatever rule of it was listed, afterwards.
        zeroes_rule: That `-Z` has the number: only this rule is zeroed.
        flush_flows: End every flow when the rules have changed; else they stay.
    """

    kind: Kind
    table: TableName = TableName.FILTER
    chain: str | None = None
    number: int | None = None
    rule: Rule | None = None
    sources: tuple[AddressTest | None, ...] = (None,)
    destinations: tuple[AddressTest | None, ...] = (None,)
    policy: Policy | None = None
    counters: Count | None = None
    new_name: str | None = None
    numeric: bool = False
    verbose: bool = False
    exact: bool = False
    line_numbers: bool = False
    zero: bool = False
    zeroes_rule: bool = False
    flush_flows: bool = False

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules that the command is about, in the order iptables makes them."""
        if self.rule is None:
            return ()
        pairs = itertools.product(self.sources, self.destinations)
        return tuple(replace(self.rule, src=src, dst=dst) for src, dst in pairs)

    @property
    def changes_rules(self) -> bool:
        """Whether `apply` can return another rule set."""
        return self.kind in (Kind.APPEND, Kind.INSERT, Kind.DELETE, Kind.REPLACE, Kind.FLUSH, Kind.POLICY,
                             Kind.NEW_CHAIN, Kind.DELETE_CHAIN, Kind.RENAME_CHAIN)

    @property
    def adds_rules(self) -> bool:
        """Whether a rule is there afterwards that was not before."""
        return self.kind in (Kind.APPEND, Kind.INSERT, Kind.REPLACE)

    def apply(self, ruleset: RuleSet, *, more_follow: bool = False) -> RuleSet:
        """Return the rule set after this command; the same one for a command that only looks.

        Args:
            more_follow: Do not look yet where jumps lead; the caller does, after all commands (`check_table`).

        Raises:
            RuleSyntaxError: The rule jumps to a chain that is not there.
            RuleApplyError: The rule set does not allow it; exit status and words as iptables has them.
        """
        if isinstance(self._target, Jump | Goto):
            self._check_jump(ruleset, self._target.chain)
        if self.chain is not None and self.kind not in (Kind.POLICY, Kind.NEW_CHAIN):
            self._find_chain(ruleset)
        match self.kind:
            case Kind.APPEND | Kind.INSERT | Kind.REPLACE:
                after = self._put(ruleset)
                if not more_follow and self._leads_on(after):
                    check_table(after.table(self.table), self._chain)
                return after
            case Kind.NEW_CHAIN:
                return ruleset.new_chain(self.table, self._chain)
            case Kind.DELETE_CHAIN:
                return ruleset.delete_chain(self.table, self.chain)
            case Kind.RENAME_CHAIN:
                return ruleset.rename_chain(self.table, self._chain, self.new_name or "")
            case Kind.DELETE:
                return self._delete(ruleset)
            case Kind.CHECK:
                for rule in self.rules:
                    ruleset.check(self.table, self._chain, rule)
                return ruleset
            case Kind.FLUSH:
                return ruleset.flush(self.table, self.chain)
            case Kind.POLICY:
                return self._set_policy(ruleset)
        return ruleset

    def touch_counters(self, before: RuleSet, after: RuleSet, counters: RuleCounters) -> None:
        """Do to the counters what the command says: `-Z`, `-c`, and forgetting rules that are gone.

        For a listing with `-Z`, call it after the listing was printed.
        """
        if self.counters is not None:
            for handle in range(before.next_handle, after.next_handle):
                counters.set_rule(handle, *self.counters)
        if self.kind is Kind.ZERO or self.zero:
            self._zero(after, counters)
        if self.kind in (Kind.DELETE, Kind.REPLACE, Kind.FLUSH):
            counters.forget_missing(after)

    def to_argv(self) -> list[str]:
        """Return arguments that parse to this command again, without any lookup of names."""
        if self.kind in (Kind.HELP, Kind.VERSION):
            return [f"-{self.kind.value}"]
        words = ["-t", self.table.value, *self._command_words()]
        if self.number is not None:
            words.append(str(self.number))
        if self.policy is not None:
            words.append(target_name(self.policy))
        if self.new_name is not None:
            words.append(self.new_name)
        if self.rule is not None:
            for option, tests in (("-s", self.sources), ("-d", self.destinations)):
                words += _address_words(option, tests)
            words += [word.text for word in (*rule_words(self.rule), *target_words(self.rule.target))]
        if self.counters is not None:
            words += ["-c", str(self.counters.packets), str(self.counters.bytes)]
        # only behind -Z and its number -L is one more
        flags = {f"-{self.kind.value}": self.zeroes_rule, "-n": self.numeric, "-v": self.verbose, "-x": self.exact,
                 "--line-numbers": self.line_numbers, "-Z": self.zero and not self.zeroes_rule,
                 "--flush-flows": self.flush_flows}
        return words + [flag for flag, given in flags.items() if given]

    def _command_words(self) -> list[str]:
        if self.chain is None:
            return [f"-{self.kind.value}"]
        if self.zeroes_rule:
            return [f"{_ODD_CHAIN_OPTIONS[Kind.ZERO]}={self.chain}"]
        # An optional argument that looks like an option must be attached, and only a long option can
        # attach an empty one.
        if self.kind in _ODD_CHAIN_OPTIONS and (not self.chain or self.chain[0] in "-!"):
            return [f"{_ODD_CHAIN_OPTIONS[self.kind]}={self.chain}"]
        return [f"-{self.kind.value}", self.chain]

    @property
    def _chain(self) -> str:
        if self.chain is None:
            raise RuleSyntaxError(f"-{self.kind.value} requires a chain")
        return self.chain

    @property
    def _target(self) -> Target | None:
        return None if self.rule is None else self.rule.target

    def _check_jump(self, ruleset: RuleSet, chain: str) -> None:
        if all(chain != known.name for known in ruleset.table(self.table)):
            raise RuleSyntaxError(f"Chain '{chain}' does not exist")

    def _leads_on(self, ruleset: RuleSet) -> bool:
        """Whether other chains may come to this rule, or this rule to other chains."""
        return isinstance(self._target, Jump | Goto) or ruleset.chain(self.table, self._chain).policy is None

    def _find_chain(self, ruleset: RuleSet) -> Chain:
        try:
            return ruleset.chain(self.table, self._chain)
        except RuleApplyError:
            # iptables looks for a rule in a chain that is not there, and does not find it
            if self.rule is not None and self.kind in (Kind.DELETE, Kind.CHECK):
                raise RuleApplyError(NO_RULE) from None
            if self.kind in LISTINGS:
                raise RuleApplyError(
                    f"chain `{self.chain}' in table `{self.table}' is incompatible, use 'nft' tool."
                ) from None         # so it says
            raise

    def _put(self, ruleset: RuleSet) -> RuleSet:
        for rule in map(_as_kept, self.rules):
            check_placement(self.table, self._chain, rule)
            if self.kind is Kind.APPEND:
                ruleset = ruleset.append(self.table, self._chain, rule)
            elif self.kind is Kind.INSERT:
                ruleset = ruleset.insert(self.table, self._chain, rule, self.number or 1)
            else:
                ruleset = ruleset.replace(self.table, self._chain, self.number or 1, rule)
        return ruleset

    def _delete(self, ruleset: RuleSet) -> RuleSet:
        if self.number is not None:
            return ruleset.delete(self.table, self._chain, self.number)
        for rule in self.rules:
            ruleset = ruleset.delete_rule(self.table, self._chain, rule)
        return ruleset

    def _set_policy(self, ruleset: RuleSet) -> RuleSet:
        if self.policy is None:
            raise RuleSyntaxError("-P requires a chain and a policy")
        if all(chain.name != self.chain or chain.policy is None for chain in ruleset.table(self.table)):
            raise RuleApplyError("Bad built-in chain name.")
        return ruleset.set_policy(self.table, self._chain, self.policy)

    def _zero(self, ruleset: RuleSet, counters: RuleCounters) -> None:
        for chain in ruleset.table(self.table).chains:
            if self.chain not in (None, chain.name):
                continue
            if self.number is None or (self.zero and not self.zeroes_rule):
                counters.zero_chain(ruleset, self.table, chain.name)
            elif self.number <= len(chain.rules):
                counters.zero_rule(chain.rules[self.number - 1].handle)


def _as_kept(rule: Rule) -> Rule:
    """Return a rule as the kernel keeps it: to it a burst of 0 means the usual one."""
    limits = [each for each in rule.matches if isinstance(each, Limit) and not each.burst]
    matches = tuple(replace(each, burst=Limit().burst) if each in limits else each for each in rule.matches)
    return replace(rule, matches=matches) if limits else rule


def _address_words(option: str, tests: tuple[AddressTest | None, ...]) -> list[str]:
    """Write a list of addresses as one option; none for "anywhere"."""
    if tests == (None,):
        return []
    inverted = tests[0] is not None and tests[0].inverted
    text = ",".join("0.0.0.0/0" if test is None else str(test.prefix) for test in tests)
    return [*(["!"] if inverted else []), option, text]
