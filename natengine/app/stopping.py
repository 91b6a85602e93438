"""SIGTERM, SIGINT and SIGHUP (unless nohup says otherwise), from the first moment to the last.

    importing, reading files     the program ends at once: nothing has been made yet
    starting, cleaning up        remembered: a step cut in two would leave half of it behind
    running                      the loop is told
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable


class StopSignals:
    """Installs the handlers; to be made before anything that takes time."""

    def __init__(self) -> None:
        self.received = False
        self._act = _leave
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    def remember(self) -> None:
        """From now on only remember a signal."""
        self._act = _do_nothing

    def hand_over(self, stop: Callable[[], None] | None) -> None:
        """From now on call `stop`, which is safe in a signal handler; None goes back to remembering."""
        self._act = stop or _do_nothing
        if self.received:
            self._act()

    def _handle(self, _number: int, _frame: object) -> None:
        self.received = True
        self._act()


def _leave() -> None:
    # an exception would be lost, and complained of, where Python swallows them: in a callback of its imports, say
    os._exit(0)


def _do_nothing() -> None:
    pass
