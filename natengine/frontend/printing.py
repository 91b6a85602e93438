"""What printers of matches and targets have in common: words that are quoted or not, and the style of a listing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from natengine.frontend.lexer import quote_text
from natengine.frontend.names import HostName, ServiceName
from natengine.rules.matches import PortRange


class QuotedWord(NamedTuple):
    """A word of a rule, as it is and as it is written in a file."""

    text: str
    quoted: str


@dataclass(frozen=True, slots=True)
class Style:
    """How a listing writes numbers: with -n as numbers, else by name where there is one."""

    numeric: bool = False
    host: HostName | None = None
    service: ServiceName | None = None
    proto: str = ""             # that of the rule being printed, by name

    def port(self, number: int, proto: str) -> str:
        """Return a port as this listing writes it."""
        found = None if self.numeric or self.service is None else self.service(number, proto)
        return found or str(number)


class Printer(NamedTuple):
    """`words` writes a value as options, `text` as the end of a listing's line."""

    words: Callable[[Any], list[QuotedWord]]
    text: Callable[[Any, Style], str]


def plain(*words: str) -> list[QuotedWord]:
    """Return words that never need quotes."""
    return [QuotedWord(word, word) for word in words]


def negation(inverted: bool) -> list[QuotedWord]:
    """Return the word before what is inverted."""
    return plain("!") if inverted else []


def quoted(text: str) -> QuotedWord:
    """Return free text as a word."""
    return QuotedWord(text, quote_text(text))


def port_range(ports: PortRange, separator: str) -> str:
    """Return `FIRST-LAST`, or the one port that it is."""
    first, last = ports
    return str(first) if first == last else f"{first}{separator}{last}"
