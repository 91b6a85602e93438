"""What somebody should hear of: a line in the log for some reasons, and few for each of them."""

from __future__ import annotations

from natengine.nat.said import WARNING, LogBook, LogLine
from natengine.settings import SECOND_NS
from natengine.vocab import Reason

EVERY_NS = 10 * SECOND_NS           # so often, at most, for the same reason


class Notices:
    """Says why packets are dropped, without a line for each."""

    def __init__(self, log: LogBook) -> None:
        self._log = log
        self._said_ns: dict[Reason, int] = {}
        self._unsaid: dict[Reason, int] = {}

    def say(self, reason: Reason, line: str, now_ns: int) -> None:
        """Say this, unless something was said for the same reason a moment ago: then it is only counted."""
        said_ns = self._said_ns.get(reason)
        if said_ns is not None and now_ns - said_ns < EVERY_NS:
            self._unsaid[reason] = self._unsaid.get(reason, 0) + 1
            return
        self._said_ns[reason] = now_ns
        unsaid = self._unsaid.pop(reason, 0)
        text = f"natengine: {line}" + (f" (and {unsaid} more like it before)" if unsaid else "")
        self._log.write(LogLine(WARNING, text), now_ns)
