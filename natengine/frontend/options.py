"""The options of a rule command, and finding them by what a person typed.

As getopt_long finds them: a short option by its letter, a long one by its name or by any beginning
of it that only one option has.  Options of matches and targets join in when the match is loaded.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import NamedTuple

from natengine.frontend.command import Kind
from natengine.frontend.readers import ExtensionOption, Reader
from natengine.rules.model import Match, Target

AnyReader = Reader[Match] | Reader[Target]


class Argument(enum.Enum):
    """Whether an option takes an argument; an OPTIONAL one must be attached (`--list=CHAIN`)."""

    NONE = 0
    REQUIRED = 1
    OPTIONAL = 2


class Option(NamedTuple):
    """An option that needs no match; `letter` is its short form and what it is called inside."""

    letter: str
    names: tuple[str, ...]
    argument: Argument = Argument.NONE


class ExtensionUse(NamedTuple):
    """An option of a match or target, and the reader that wants it."""

    reader: AnyReader
    option: ExtensionOption


OPTIONS = (
    Option("A", ("append",), Argument.REQUIRED),
    Option("C", ("check",), Argument.REQUIRED),
    Option("D", ("delete",), Argument.REQUIRED),
    Option("I", ("insert",), Argument.REQUIRED),
    Option("R", ("replace",), Argument.REQUIRED),
    Option("P", ("policy",), Argument.REQUIRED),
    Option("L", ("list",), Argument.OPTIONAL),
    Option("S", ("list-rules",), Argument.OPTIONAL),
    Option("F", ("flush",), Argument.OPTIONAL),
    Option("Z", ("zero",), Argument.OPTIONAL),
    Option("N", ("new-chain",), Argument.REQUIRED),
    Option("X", ("delete-chain",), Argument.OPTIONAL),
    Option("E", ("rename-chain",), Argument.REQUIRED),
    Option("t", ("table",), Argument.REQUIRED),
    Option("s", ("source", "src"), Argument.REQUIRED),
    Option("d", ("destination", "dst"), Argument.REQUIRED),
    Option("i", ("in-interface",), Argument.REQUIRED),
    Option("o", ("out-interface",), Argument.REQUIRED),
    Option("p", ("protocol",), Argument.REQUIRED),
    Option("m", ("match",), Argument.REQUIRED),
    Option("j", ("jump",), Argument.REQUIRED),
    Option("c", ("set-counters",), Argument.REQUIRED),
    Option("g", ("goto",), Argument.REQUIRED),
    Option("f", ("fragments",)),
    Option("n", ("numeric",)),
    Option("v", ("verbose",)),
    Option("x", ("exact",)),
    Option("0", ("line-numbers",)),
    Option("1", ("flush-flows",)),
    Option("w", ("wait",), Argument.OPTIONAL),
    Option("W", ("wait-interval",), Argument.REQUIRED),
    Option("M", ("modprobe",), Argument.REQUIRED),
    Option("4", ("ipv4",)),
    Option("6", ("ipv6",)),
    Option("h", ("help",)),
    Option("V", ("version",)),
)
COMMAND_LETTERS = frozenset("ACDIRPLSFZNXE")
INVERTIBLE = frozenset("sdiopf")

_ONLY_LONG = "01"
_BY_LETTER = {option.letter: option for option in OPTIONS if option.letter not in _ONLY_LONG}
_NOT_IPTABLES = ("flush-flows",)        # must be written out, so that iptables' abbreviations stay what they are

# Which options a command takes, beside those that go with each of them (-t, -v, -w, …).  Looked through in this order
# for one that does not belong, so that the same one is named as in iptables.
_CHECK_ORDER = "nsdpjxio0cfm"
_RULE_OPTIONS = frozenset("sdpjiomf")
_ALLOWED = {
    Kind.APPEND: _RULE_OPTIONS | {"c"},
    Kind.INSERT: _RULE_OPTIONS | {"c"},
    Kind.REPLACE: _RULE_OPTIONS | {"c"},
    Kind.DELETE: _RULE_OPTIONS,
    Kind.CHECK: _RULE_OPTIONS,
    Kind.LIST: frozenset("nx0"),
}


def by_letter(letter: str) -> Option | None:
    """Return the option with this short form."""
    return _BY_LETTER.get(letter)


def by_name(name: str, readers: Iterable[AnyReader]) -> Option | ExtensionUse | None:
    """Return the option with this long name or unambiguous beginning of one, or None.

    Of readers that offer the same name the last one gets it.
    """
    known: dict[str, Option | ExtensionUse] = {each: option for option in OPTIONS for each in option.names}
    for reader in readers:
        known |= {each: ExtensionUse(reader, option) for option in reader.options for each in option.names}
    if name in known:
        return known[name]
    found = [option for each, option in known.items() if each.startswith(name) and each not in _NOT_IPTABLES]
    return found[0] if found and all(option == found[0] for option in found) else None


def misplaced(kind: Kind, number: int | None, given: Iterable[str]) -> str | None:
    """Return the letter of the first option that this command does not take, or None."""
    allowed = _ALLOWED.get(kind, frozenset())
    if kind is Kind.DELETE and number is not None:
        allowed = frozenset()
    wrong = set(given) - allowed
    return next((letter for letter in _CHECK_ORDER if letter in wrong), None)
