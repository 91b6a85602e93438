"""Rules as values: tables, chains and rules, all frozen.  Matches are in `matches.py`, targets in `targets.py`.

1. A `RuleSet` is never changed.  Every edit returns another one; whoever holds the old one keeps a
   consistent view, and a command that fails half-way has changed nothing.
2. A rule that enters a rule set gets a `handle` and keeps it for life.  Counters are kept by handle,
   outside (`rules/counters.py`), so a walk never writes to a rule.  Equality ignores handles.
3. One class per kind of match and target, no dictionaries of options; ARCHITECTURE.md says what a new one takes.
4. Chains come in the order iptables lists them: the built-in ones, then the user's by name.

What combinations make sense is decided in `rules/validate.py`, before a rule gets here; what the engine
carries out, in `rules/executable.py`, before a rule set gets there.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from natengine.errors import RuleApplyError

# this module is the door to the other two
from natengine.rules.matches import *  # noqa: F403
from natengine.rules.matches import ANY_INTERFACE, AddressTest, InterfaceTest, Match, ProtocolTest
from natengine.rules.targets import *  # noqa: F403
from natengine.rules.targets import ACCEPT, Accept, Goto, Jump, Masquerade, Netmap, Policy, Snat, Target

NO_CHAIN = "No chain/target/match by that name."
NO_RULE = "Bad rule (does a matching rule exist in that chain?)."
INSERT_TOO_BIG = "Index of insertion too big."
DELETE_TOO_BIG = "Index of deletion too big."
REPLACE_TOO_BIG = "Index of replacement too big."
CHAIN_EXISTS = "Chain already exists."
NEW_NAME_EXISTS = "File exists."
IN_USE = " CHAIN_DEL failed (Device or resource busy): chain {}"
EXIT_KERNEL_REFUSES = 4         # what iptables ends with when the kernel says no


class TableName(enum.StrEnum):
    """The tables of iptables.  All but SECURITY hold rules; only those of FILTER and NAT are carried out."""

    FILTER = "filter"
    NAT = "nat"
    MANGLE = "mangle"
    RAW = "raw"
    SECURITY = "security"


class ChainName(enum.StrEnum):
    """The built-in chains.  A StrEnum: user-defined names stand beside it."""

    PREROUTING = "PREROUTING"
    INPUT = "INPUT"
    FORWARD = "FORWARD"
    OUTPUT = "OUTPUT"
    POSTROUTING = "POSTROUTING"


BUILT_IN_CHAINS = {
    TableName.FILTER: (ChainName.INPUT, ChainName.FORWARD, ChainName.OUTPUT),
    TableName.NAT: (ChainName.PREROUTING, ChainName.INPUT, ChainName.OUTPUT, ChainName.POSTROUTING),
    TableName.MANGLE: (ChainName.PREROUTING, ChainName.INPUT, ChainName.FORWARD, ChainName.OUTPUT,
                       ChainName.POSTROUTING),
    TableName.RAW: (ChainName.PREROUTING, ChainName.OUTPUT),
}
LEFT_ALONE = frozenset({TableName.MANGLE, TableName.RAW})       # kept and listed, not carried out


# --- rules, chains, tables, the rule set ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a chain.  `target` None counts the packet and goes on to the next rule.

    `fragment` True: `-f`, later fragments only; False: `! -f`, all others only.
    `handle` is given by the rule set that the rule is put into; 0 means that it is in none yet.
    """

    src: AddressTest | None = None
    dst: AddressTest | None = None
    in_iface: InterfaceTest | None = None
    out_iface: InterfaceTest | None = None
    proto: ProtocolTest | None = None
    fragment: bool | None = None
    matches: tuple[Match, ...] = ()
    target: Target | None = None
    handle: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Chain:
    """An ordered list of rules and what happens when none of them decides.

    `policy` None: a user-defined chain, which goes back to where the walk came from.
    """

    name: str
    policy: Policy | None = ACCEPT
    rules: tuple[Rule, ...] = ()

    def position(self, rule: Rule) -> int | None:
        """Return the number (from 1) of the first rule equal to `rule`, or None."""
        return self.rules.index(rule) + 1 if rule in self.rules else None


@dataclass(frozen=True, slots=True)
class Table:
    """The chains of one table, in the order iptables lists them."""

    name: TableName
    chains: tuple[Chain, ...]

    def __iter__(self) -> Iterator[Chain]:
        return iter(self.chains)

    @property
    def untouched(self) -> bool:
        """Whether nobody has ever said anything about this table."""
        return all(chain.policy == Accept() and not chain.rules for chain in self.chains)

    def reachable(self, name: str) -> Iterator[Rule]:
        """Yield every rule that a packet in this chain may come to, in the chains that it leads to as well."""
        by_name = {chain.name: chain for chain in self}
        names = [name]
        for each in names:              # grows as it goes
            for rule in by_name[each].rules:
                yield rule
                if isinstance(rule.target, Jump | Goto) and rule.target.chain not in names:
                    names.append(rule.target.chain)

    def references(self, name: str) -> int:
        """Return how many rules jump or go to a chain."""
        return sum(
            isinstance(rule.target, Jump | Goto) and rule.target.chain == name
            for chain in self.chains for rule in chain.rules
        )


@dataclass(frozen=True, slots=True)
class Uplinks:
    """The interfaces that MASQUERADE and SNAT rules of nat POSTROUTING name.

    Attributes:
        patterns: Each `-o` pattern once, in rule order.
        any_interface: Whether some such rule names no interface (no `-o`, `! -o`, or `-o +`).
    """

    patterns: tuple[str, ...] = ()
    any_interface: bool = False


def _empty_tables() -> tuple[Table, ...]:
    return tuple(Table(name, tuple(map(Chain, chains))) for name, chains in BUILT_IN_CHAINS.items())


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All tables.  `RuleSet()` has the built-in chains, empty, with policy ACCEPT.

    Every method that edits returns a new rule set and raises RuleApplyError, with iptables' wording,
    where iptables refuses.  Rule numbers count from 1.
    """

    tables: tuple[Table, ...] = field(default_factory=_empty_tables)
    next_handle: int = field(default=1, compare=False)

    def table(self, table: TableName) -> Table:
        """Return one table."""
        for candidate in self.tables:
            if candidate.name is table:
                return candidate
        raise RuleApplyError(f"table {table} holds no rules in natengine")

    def chain(self, table: TableName, name: str) -> Chain:
        """Return one chain of one table."""
        for candidate in self.table(table).chains:
            if candidate.name == name:
                return candidate
        raise RuleApplyError(NO_CHAIN)

    def handles(self) -> set[int]:
        """Return the handles of all rules."""
        return {rule.handle for table in self.tables for chain in table for rule in chain.rules}

    def append(self, table: TableName, name: str, rule: Rule) -> RuleSet:
        """Put `rule` at the end of a chain."""
        return self.insert(table, name, rule, len(self.chain(table, name).rules) + 1)

    def insert(self, table: TableName, name: str, rule: Rule, number: int = 1) -> RuleSet:
        """Put `rule` before the rule that has `number` now, or at the end for the first free number."""
        rules = self.chain(table, name).rules
        if not 1 <= number <= len(rules) + 1:
            raise RuleApplyError(INSERT_TOO_BIG)
        return self._splice(table, name, number - 1, number - 1, rule)

    def delete(self, table: TableName, name: str, number: int) -> RuleSet:
        """Remove the rule with this number."""
        self._require_number(table, name, number, DELETE_TOO_BIG)
        return self._splice(table, name, number - 1, number)

    def delete_rule(self, table: TableName, name: str, rule: Rule) -> RuleSet:
        """Remove the first rule that is equal to `rule`."""
        return self.delete(table, name, self.check(table, name, rule))

    def replace(self, table: TableName, name: str, number: int, rule: Rule) -> RuleSet:
        """Put `rule`, as a new rule with its own counters, in the place of the one with this number."""
        self._require_number(table, name, number, REPLACE_TOO_BIG)
        return self._splice(table, name, number - 1, number, rule)

    def check(self, table: TableName, name: str, rule: Rule) -> int:
        """Return the number of the first rule equal to `rule`; refuse if there is none."""
        number = self.chain(table, name).position(rule)
        if number is None:
            raise RuleApplyError(NO_RULE)
        return number

    def flush(self, table: TableName, name: str | None = None) -> RuleSet:
        """Remove every rule of a chain, or of every chain of the table.  Policies stay."""
        names = [chain.name for chain in self.table(table).chains] if name is None else [name]
        result = self
        for each in names:
            result = result._with_chain(table, replace(result.chain(table, each), rules=()))
        return result

    def empty_table(self, table: TableName) -> RuleSet:
        """Make a table what it was in the beginning: built-in chains, no rules, policy ACCEPT."""
        return self._with_chains(table, tuple(map(Chain, BUILT_IN_CHAINS[table])))

    def set_policy(self, table: TableName, name: str, policy: Policy) -> RuleSet:
        """Say what happens to packets that no rule of the chain decides."""
        return self._with_chain(table, replace(self.chain(table, name), policy=policy))

    def new_chain(self, table: TableName, name: str) -> RuleSet:
        """Make an empty user-defined chain."""
        if any(chain.name == name for chain in self.table(table)):
            raise RuleApplyError(CHAIN_EXISTS)
        return self._with_chains(table, (*self.table(table).chains, Chain(name, None)))

    def delete_chain(self, table: TableName, name: str | None = None) -> RuleSet:
        """Remove a user-defined chain, or all of them; each has to be empty, and no rule may lead to it."""
        old = self.table(table)
        gone = [chain for chain in old if chain.policy is None] if name is None else [self.chain(table, name)]
        for chain in gone:
            if chain.policy is not None or chain.rules or old.references(chain.name):
                error = RuleApplyError(IN_USE.format(chain.name))
                error.exit_status = EXIT_KERNEL_REFUSES
                raise error
        return self._with_chains(table, tuple(chain for chain in old if chain not in gone))

    def rename_chain(self, table: TableName, old: str, new: str) -> RuleSet:
        """Give a user-defined chain, and every jump to it, another name."""
        if self.chain(table, old).policy is not None:
            raise RuleApplyError(f"{old} is built in and keeps its name")
        if any(chain.name == new for chain in self.table(table)):
            raise RuleApplyError(NEW_NAME_EXISTS)
        chains = tuple(
            replace(chain, name=new if chain.name == old else chain.name,
                    rules=tuple(_renamed(rule, old, new) for rule in chain.rules))
            for chain in self.table(table)
        )
        return self._with_chains(table, chains)

    def uplinks(self) -> Uplinks:
        """Return the out-interfaces of the MASQUERADE and SNAT rules that nat POSTROUTING comes to."""
        patterns: dict[str, None] = {}      # a dict keeps the order and drops repetitions
        any_interface = False
        for test in self._out_interfaces(self.chain(TableName.NAT, ChainName.POSTROUTING), None):
            if test is None or test.inverted or test.pattern == ANY_INTERFACE:
                any_interface = True
            else:
                patterns[test.pattern] = None
        return Uplinks(tuple(patterns), any_interface)

    def _out_interfaces(self, chain: Chain, outer: InterfaceTest | None) -> Iterator[InterfaceTest | None]:
        """Yield the `-o` of each source-translating rule; a chain has that of the rule that jumps to it."""
        for rule in chain.rules:
            test = rule.out_iface or outer
            if isinstance(rule.target, Masquerade | Snat | Netmap):
                yield test
            elif isinstance(rule.target, Jump | Goto):
                yield from self._out_interfaces(self.chain(TableName.NAT, rule.target.chain), test)

    def _require_number(self, table: TableName, name: str, number: int, message: str) -> None:
        if not 1 <= number <= len(self.chain(table, name).rules):
            raise RuleApplyError(message)

    def _splice(self, table: TableName, name: str, start: int, stop: int, *new: Rule) -> RuleSet:
        """Replace rules[start:stop] by `new`, each with a fresh handle."""
        chain = self.chain(table, name)
        fresh = tuple(replace(rule, handle=self.next_handle + i) for i, rule in enumerate(new))
        rules = chain.rules[:start] + fresh + chain.rules[stop:]
        edited = self._with_chain(table, replace(chain, rules=rules))
        return replace(edited, next_handle=self.next_handle + len(new))

    def _with_chain(self, table: TableName, changed: Chain) -> RuleSet:
        chains = (changed if chain.name == changed.name else chain for chain in self.table(table))
        return self._with_chains(table, tuple(chains))

    def _with_chains(self, table: TableName, chains: tuple[Chain, ...]) -> RuleSet:
        old = self.table(table)
        built_in = len(BUILT_IN_CHAINS[table])
        by_name = sorted(chains[built_in:], key=lambda chain: chain.name.encode())
        new = Table(table, (*chains[:built_in], *by_name))
        return replace(self, tables=tuple(new if each is old else each for each in self.tables))


def _renamed(rule: Rule, old: str, new: str) -> Rule:
    target = rule.target
    if not isinstance(target, Jump | Goto) or target.chain != old:
        return rule
    return replace(rule, target=replace(target, chain=new))
