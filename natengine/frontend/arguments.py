"""Arguments of options and lines that stand for one thing: a table, a chain's name, a policy, counters."""

from __future__ import annotations

from natengine.errors import RuleApplyError, RuleSyntaxError
from natengine.frontend.extensions import MISSING_TARGETS, TARGETS
from natengine.frontend.names import MAX_COUNTER, parse_number
from natengine.rules.counters import Count
from natengine.rules.model import BUILT_IN_CHAINS, TableName
from natengine.rules.targets import Accept, Drop, Policy

MAX_CHAIN_LEN = 28
POLICIES: dict[str, Policy] = {"ACCEPT": Accept(), "DROP": Drop()}
EXIT_NO_TABLE = 3           # what iptables ends with when a table does not exist


def table_by_name(name: str) -> TableName:
    """Return a table that can hold rules here.

    Raises:
        RuleApplyError: There is no such table, or natengine does not have it.
    """
    if name not in TableName.__members__.values():
        error = RuleApplyError(f"table '{name}' does not exist")
        error.exit_status = EXIT_NO_TABLE
        raise error
    table = TableName(name)
    if table not in BUILT_IN_CHAINS:
        held = ", ".join(BUILT_IN_CHAINS)
        raise RuleApplyError(f"table '{name}' holds no rules in natengine ({held} do)")
    return table


def check_length(chain: str) -> None:
    """Refuse the name of a chain that is too long for one."""
    if len(chain.encode()) > MAX_CHAIN_LEN:
        raise RuleSyntaxError(f"chain name `{chain}' too long (must be under {MAX_CHAIN_LEN + 1} chars)")


def check_new_chain(chain: str) -> None:
    """Refuse a name that a user-defined chain may not have."""
    check_length(chain)
    if chain[:1] in ("-", "!"):
        raise RuleSyntaxError(f"chain name not allowed to start with `{chain[0]}'")
    if not chain or chain in TARGETS or chain in MISSING_TARGETS:
        raise RuleSyntaxError("chain name may not clash with target name")
    if any(character.isspace() for character in chain):
        raise RuleSyntaxError(f"Invalid chain name `{chain}'")


def check_jump(chain: str) -> None:
    """Refuse what cannot be the name of a chain or a target."""
    if not chain:
        raise RuleSyntaxError("Invalid target name (too short)")
    if len(chain.encode()) > MAX_CHAIN_LEN:
        raise RuleSyntaxError(f"Invalid target name `{chain}' ({MAX_CHAIN_LEN} chars max)")
    if any(character.isspace() for character in chain):
        raise RuleSyntaxError(f"Invalid target name `{chain}'")


def parse_counters(packets: str, bytes_: str) -> Count:
    """Return the counters written as two decimal numbers."""
    values = []
    for text, name in ((packets, "packet"), (bytes_, "byte")):
        value = parse_number(text, MAX_COUNTER)
        if value is None:
            raise RuleSyntaxError(f"-c {name} counter not numeric")
        values.append(value)
    return Count(*values)
