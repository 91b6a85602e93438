"""What somebody should hear of: lines for the log, few of each kind, which the program around the engine writes."""

from __future__ import annotations

from natengine.settings import SECOND_NS
from natengine.vocab import Reason

EVERY_NS = 10 * SECOND_NS           # so often, at most, for the same reason


class Notices:
    """Lines waiting to be written."""

    def __init__(self) -> None:
        self._waiting: list[str] = []
        self._said_ns: dict[Reason, int] = {}
        self._unsaid: dict[Reason, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def say(self, reason: Reason, line: str, now_ns: int) -> None:
        """Say this, unless something was said for the same reason a moment ago: then it is only counted."""
        said_ns = self._said_ns.get(reason)
        if said_ns is not None and now_ns - said_ns < EVERY_NS:
            self._unsaid[reason] = self._unsaid.get(reason, 0) + 1
            return
        self._said_ns[reason] = now_ns
        unsaid = self._unsaid.pop(reason, 0)
        self._waiting.append(f"{line} (and {unsaid} more like it before)" if unsaid else line)

    def take(self) -> list[str]:
        """Return what is to be written, in order, and forget it."""
        waiting, self._waiting = self._waiting, []
        return waiting
