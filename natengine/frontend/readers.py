"""What readers of options have in common: the options that a match (`-m`) or a target (`-j`) brings along.

One class per kind.  A reader gets its options one at a time, while the command line is read, and
builds the frozen value of `rules/` at the end.  Messages are iptables' own, its double blanks included.
"""

from __future__ import annotations

import re
from typing import ClassVar, Generic, NamedTuple, NoReturn, TypeVar

from natengine.errors import RuleSyntaxError
from natengine.frontend.names import Lookups, parse_number
from natengine.rules.matches import ALL_BITS, PortRange
from natengine.rules.validate import MAX_PORT

Value = TypeVar("Value")

MAX_U32 = 2**32 - 1


class ExtensionOption(NamedTuple):
    """One option of a match or a target; `names[0]` is the one in messages.

    Attributes:
        also: Options that have to be there, too.
        excludes: Options that may not.
    """

    names: tuple[str, ...]
    arguments: int = 1
    invertible: bool = False
    mandatory: bool = False
    also: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()


class Reader(Generic[Value]):
    """Base of all readers: says which options there are, and refuses a second time or a `!`."""

    options: ClassVar[tuple[ExtensionOption, ...]] = ()

    def __init__(self, name: str, lookups: Lookups) -> None:
        self.name = name
        self.lookups = lookups
        self.seen: set[str] = set()

    def read(self, option: ExtensionOption, inverted: bool, values: list[str]) -> None:
        """Take one option with its arguments."""
        if option.names[0] in self.seen:
            raise RuleSyntaxError(self.repeated(option.names[0]))
        if inverted and not option.invertible:
            self.refuse(f'option "--{option.names[0]}" cannot be inverted.')
        self.seen.add(option.names[0])
        self.store(option.names[0], inverted, values)

    def repeated(self, option: str) -> str:
        """Return the message for an option that was given before."""
        return f'{self.name}: option "--{option}" can only be used once.'

    def refuse(self, message: str) -> NoReturn:
        """Raise with the name of the match or target in front."""
        raise RuleSyntaxError(f"{self.name}: {message}")

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        """Keep what one option says."""
        raise NotImplementedError

    def finish(self) -> Value:
        """Return the value that the options describe."""
        self.check()
        for option in self.options:
            self._check_together(option)
        return self.build()

    def check(self) -> None:
        """Refuse what this match or target refuses before it is looked at which options belong together."""

    def build(self) -> Value:
        """Return the value that the options describe; they belong together."""
        raise NotImplementedError

    def _check_together(self, option: ExtensionOption) -> None:
        name = option.names[0]
        if name not in self.seen:
            if option.mandatory:
                self.refuse(f'option "--{name}" must be specified')
            return
        for other in option.also:
            if other not in self.seen:
                self.refuse(f'option "--{name}" also requires "--{other}".')
        for other in option.excludes:
            if other in self.seen:
                self.refuse(f'option "--{name}" cannot be used together with "--{other}".')

    # --- values -------------------------------------------------------------------------------------

    def number(self, option: str, text: str, first: int = 0, last: int = MAX_U32) -> int:
        """Return a number `first`..`last`."""
        value = parse_number(text, last)
        if value is None or value < first:
            self.refuse(f'bad value for option "--{option}", or out of range ({first}-{last}).')
        return value

    def mark(self, option: str, text: str) -> tuple[int, int]:
        """Return VALUE and MASK of `VALUE[/MASK]`."""
        value_text, slash, mask_text = text.partition("/")
        value = parse_number(value_text, MAX_U32)
        mask = parse_number(mask_text, MAX_U32) if slash else ALL_BITS
        if value is None or mask is None:
            self.refuse(f'bad integer value for option "--{option}", or out of range.')
        return value, mask


def service_port(text: str, proto: str, lookups: Lookups) -> int | None:
    """Return a port given by number or by name, None if it is neither."""
    port = parse_number(text, MAX_PORT)
    if port is None and text and lookups.service is not None:
        port = lookups.service(text, proto)
    return port


# --- ports to translate to --------------------------------------------------------------------------

_LEADING_NUMBER = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)?(.*)", re.DOTALL)


class NewPorts(NamedTuple):
    """`PORT[-PORT[/BASE]]`."""

    ports: PortRange
    base: int | None = None


def new_ports(text: str, lookups: Lookups) -> NewPorts:
    """Read the ports to which a target translates."""
    first, rest = _new_port(text, lookups)
    if not rest:
        return NewPorts(PortRange(first, first))
    if rest[0] == ":":
        raise RuleSyntaxError("Invalid port:port syntax - use dash")
    if rest[0] != "-":
        raise RuleSyntaxError(f"Garbage after port value: `{rest}'")
    last, more = _new_port(rest[1:], lookups)
    if first > last:
        raise RuleSyntaxError(f"Port range `{rest[1:]}' funky")
    if not more:
        return NewPorts(PortRange(first, last))
    if more[0] != "/":
        raise RuleSyntaxError(f"Garbage after port range: `{more}'")
    base, garbage = _new_port(more[1:], lookups)
    if garbage or not base:
        raise RuleSyntaxError(f"Port `{more[1:]}' not valid")
    return NewPorts(PortRange(first, last), base)


def _new_port(text: str, lookups: Lookups) -> tuple[int, str]:
    """Return the port at the beginning of a text, and the rest; a name takes all of it."""
    number, rest = _LEADING_NUMBER.fullmatch(text).groups()  # type: ignore[union-attr]     # matches any text
    port = parse_number(number, MAX_PORT) if number else None
    if port is not None:
        return port, rest
    for proto in ("tcp", "udp"):
        port = service_port(text, proto, lookups)
        if port is not None:
            return port, ""
    raise RuleSyntaxError(f"Port `{text}' not valid")
