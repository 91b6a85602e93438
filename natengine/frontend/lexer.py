"""Words of one line of a rules file, with their columns, and the quoting that makes such words.

As iptables-restore reads them: blanks separate; double quotes join; inside quotes a backslash takes
the next character as it is.  A single quote is a character like any other.
Unlike it, a quote that is never closed is an error here: iptables-restore lets it run into the
end of the line.
"""

from __future__ import annotations

import string
from typing import NamedTuple

from natengine.errors import RuleSyntaxError

_BLANKS = " \t\r\n"
_PLAIN = frozenset(string.ascii_letters + string.digits + "_-")     # what iptables-save leaves unquoted
_ESCAPED = "\"\\'"


class Word(NamedTuple):
    """A word and the column (from 1) of its first character in the line."""

    text: str
    column: int


def split_words(line: str, first_column: int = 1) -> list[Word]:
    """Split one line into words.

    Raises:
        RuleSyntaxError: A quote is not closed.
    """
    words: list[Word] = []
    text: list[str] = []
    start = opened = 0              # columns; 0: not inside a word, not inside quotes
    escaped = False
    for column, character in enumerate(line, first_column):
        if not opened and character in _BLANKS:
            if start:
                words.append(Word("".join(text), start))
            text, start = [], 0
            continue
        start = start or column
        if escaped:
            text.append(character)
            escaped = False
        elif opened and character == "\\":
            escaped = True
        elif character == '"':
            opened = 0 if opened else column
        else:
            text.append(character)
    if opened:
        raise RuleSyntaxError(f"the quote in column {opened} is not closed")
    if start:
        words.append(Word("".join(text), start))
    return words


def quote_text(text: str) -> str:
    """Quote free text (a comment) exactly as iptables-save does."""
    if text and _PLAIN.issuperset(text):
        return text
    return '"' + "".join("\\" + each if each in _ESCAPED else each for each in text) + '"'


def quote_name(name: str) -> str:
    """Quote an interface name only if it could not be read back otherwise; iptables-save never does."""
    return quote_text(name) if not name or any(each in _BLANKS + '"\\' for each in name) else name
