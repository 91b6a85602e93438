"""Rules as values: tables, chains, rules, matches and targets, all frozen.

1. A `RuleSet` is never changed.  Every edit returns another one; whoever holds the old one keeps a
   consistent view, and a command that fails half-way has changed nothing.
2. A rule that enters a rule set gets a `handle` and keeps it for life.  Counters are kept by handle,
   outside (`rules/counters.py`), so a walk never writes to a rule.  Equality ignores handles.
3. One class per kind of match and target, no dictionaries of options.  A new kind is one class here,
   one entry in `predicates.COMPILERS` (a match), one each in `frontend/extensions.py` and
   `frontend/printers.py`.
4. Chains come in the order iptables lists them.

Limits: built-in chains of `filter` and `nat` only.  What combinations make sense is decided in
`rules/validate.py`, before a rule gets here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from natengine.errors import RuleApplyError
from natengine.vocab import CtState, Proto
from natengine.wire.addr import Prefix

NO_CHAIN = "No chain/target/match by that name."
NO_RULE = "Bad rule (does a matching rule exist in that chain?)."
INSERT_TOO_BIG = "Index of insertion too big."
DELETE_TOO_BIG = "Index of deletion too big."
REPLACE_TOO_BIG = "Index of replacement too big."

ANY_INTERFACE = "+"


class TableName(enum.StrEnum):
    """The tables of iptables.  Only FILTER and NAT hold rules here."""

    FILTER = "filter"
    NAT = "nat"
    MANGLE = "mangle"
    RAW = "raw"
    SECURITY = "security"


class ChainName(enum.StrEnum):
    """The built-in chains.  A StrEnum, so that a user-defined name can stand beside it one day."""

    PREROUTING = "PREROUTING"
    INPUT = "INPUT"
    FORWARD = "FORWARD"
    OUTPUT = "OUTPUT"
    POSTROUTING = "POSTROUTING"


BUILT_IN_CHAINS = {
    TableName.FILTER: (ChainName.INPUT, ChainName.FORWARD, ChainName.OUTPUT),
    TableName.NAT: (ChainName.PREROUTING, ChainName.INPUT, ChainName.OUTPUT, ChainName.POSTROUTING),
}


class PortRange(NamedTuple):
    """Ports `first`..`last`, both inclusive."""

    first: int
    last: int


# --- what every rule can say about a packet ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AddressTest:
    """`-s` or `-d`."""

    prefix: Prefix
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class InterfaceTest:
    """`-i` or `-o`.  A pattern that ends in `+` matches every name that begins with the rest."""

    pattern: str
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class ProtocolTest:
    """`-p`, by number."""

    number: int
    inverted: bool = False


# --- matches (-m) -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PortTest:
    """`--sport` or `--dport`."""

    ports: PortRange
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class TcpFlags:
    """`--tcp-flags MASK SET`: of the flags in `mask`, exactly those in `expected` are set."""

    mask: int
    expected: int
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class TcpUdpPorts:
    """`-m tcp` or `-m udp`; `flags` is for TCP only.  Without any field it is written, and matches."""

    proto: Proto
    sport: PortTest | None = None
    dport: PortTest | None = None
    flags: TcpFlags | None = None


@dataclass(frozen=True, slots=True)
class IcmpType:
    """`-m icmp --icmp-type`; `type` None is `any`.  Codes `first_code`..`last_code` inclusive."""

    type: int | None = None
    first_code: int = 0
    last_code: int = 255
    inverted: bool = False


class StateModule(enum.StrEnum):
    """The two spellings of one match: `-m conntrack --ctstate` and `-m state --state`."""

    CONNTRACK = "conntrack"
    STATE = "state"


@dataclass(frozen=True, slots=True)
class ConntrackState:
    """The packet's connection state is one of `states`."""

    states: CtState
    inverted: bool = False
    module: StateModule = StateModule.CONNTRACK


@dataclass(frozen=True, slots=True)
class Comment:
    """`-m comment --comment TEXT`; matches everything."""

    text: str


Match = TcpUdpPorts | IcmpType | ConntrackState | Comment


# --- targets (-j) -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Masquerade:
    """Give the flow the outgoing interface's address.

    Attributes:
        to_ports: Outside ports to choose from; None for the kernel's rule (keep the port if possible).
        random: `--random`.
        random_fully: `--random-fully`.
    """

    to_ports: PortRange | None = None
    random: bool = False
    random_fully: bool = False


@dataclass(frozen=True, slots=True)
class Accept:
    """End the walk of this table; the packet goes on."""


@dataclass(frozen=True, slots=True)
class Drop:
    """End the walk; the packet is dropped."""


@dataclass(frozen=True, slots=True)
class Return:
    """Leave this chain; from a built-in one that means its policy."""


Target = Masquerade | Accept | Drop | Return
Policy = Accept | Drop


# --- rules, chains, tables, the rule set ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a chain.  `target` None counts the packet and goes on to the next rule.

    `handle` is given by the rule set that the rule is put into; 0 means that it is in none yet.
    """

    src: AddressTest | None = None
    dst: AddressTest | None = None
    in_iface: InterfaceTest | None = None
    out_iface: InterfaceTest | None = None
    proto: ProtocolTest | None = None
    matches: tuple[Match, ...] = ()
    target: Target | None = None
    handle: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Chain:
    """An ordered list of rules and what happens when none of them decides."""

    name: ChainName
    policy: Policy = Accept()
    rules: tuple[Rule, ...] = ()

    def position(self, rule: Rule) -> int | None:
        """Return the number (from 1) of the first rule equal to `rule`, or None."""
        return self.rules.index(rule) + 1 if rule in self.rules else None


@dataclass(frozen=True, slots=True)
class Table:
    """The chains of one table, in the order iptables lists them."""

    name: TableName
    chains: tuple[Chain, ...]


@dataclass(frozen=True, slots=True)
class Uplinks:
    """The interfaces that MASQUERADE rules in nat POSTROUTING name.

    Attributes:
        patterns: Each `-o` pattern once, in rule order.
        any_interface: Whether some MASQUERADE rule names no interface (no `-o`, `! -o`, or `-o +`).
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
        raise RuleApplyError(f"table {table} holds no rules in natengine (filter and nat do)")

    def chain(self, table: TableName, name: str) -> Chain:
        """Return one chain of one table."""
        for candidate in self.table(table).chains:
            if candidate.name == name:
                return candidate
        raise RuleApplyError(NO_CHAIN)

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

    def set_policy(self, table: TableName, name: str, policy: Policy) -> RuleSet:
        """Say what happens to packets that no rule of the chain decides."""
        return self._with_chain(table, replace(self.chain(table, name), policy=policy))

    def uplinks(self) -> Uplinks:
        """Return the out-interfaces of the MASQUERADE rules in nat POSTROUTING."""
        patterns: dict[str, None] = {}      # a dict keeps the order and drops repetitions
        any_interface = False
        for rule in self.chain(TableName.NAT, ChainName.POSTROUTING).rules:
            if not isinstance(rule.target, Masquerade):
                continue
            test = rule.out_iface
            if test is None or test.inverted or test.pattern == ANY_INTERFACE:
                any_interface = True
            else:
                patterns[test.pattern] = None
        return Uplinks(tuple(patterns), any_interface)

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
        old = self.table(table)
        chains = tuple(changed if chain.name == changed.name else chain for chain in old.chains)
        new = Table(table, chains)
        return replace(self, tables=tuple(new if each is old else each for each in self.tables))
