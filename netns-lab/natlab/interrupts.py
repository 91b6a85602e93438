"""Ctrl-C, SIGTERM and SIGHUP, taken only where the lab is in a state that can be taken down.

An exception in the middle of a step could leave something behind that no record names, or break the
event loop inside pyroute2.  So `up` and `down` run with the signals held back, and `up` asks between two
steps, and while it waits, whether there was one.

What a handler raises is lost when it comes in the middle of a finalizer (`__del__`), for Python ignores exceptions
there; `keep_lost` has `check` raise it at the next step instead.

Python runs handlers in the main thread only; in any other thread there is nothing to hold back.  The
kernel's signal mask would hold them back too, but every child would inherit it for life.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Deferral:
    """The handlers that were replaced, and the signals that came since."""

    def __init__(self) -> None:
        self.previous: dict[signal.Signals, Any] = {}
        self.pending: list[int] = []

    def note(self, number: int, _frame: object) -> None:
        self.pending.append(number)


_current: _Deferral | None = None
_lost: BaseException | None = None


def keep_lost() -> None:
    """From now on, for the whole process: keep for `check` what a handler raises into a finalizer."""
    sys.unraisablehook = _keep


def _keep(ignored: sys.UnraisableHookArgs) -> None:
    global _lost
    if isinstance(ignored.exc_value, KeyboardInterrupt | SystemExit):
        _lost = ignored.exc_value
    else:
        sys.__unraisablehook__(ignored)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Hold signals back until `check` is called or the block has ended.  An inner block adds nothing."""
    global _current
    if _current is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    deferral = _current = _Deferral()
    try:
        for number in SIGNALS:
            # One that is ignored stays so; None is a handler that Python did not install.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                deferral.previous[number] = signal.signal(number, deferral.note)
        yield
    finally:
        _current = None
        for number, handler in deferral.previous.items():
            signal.signal(number, handler)
    for received in deferral.pending:
        signal.raise_signal(received)


def check() -> None:
    """Act on a signal that was held back, or whose exception was lost; for a point at which one does no harm.

    Raises:
        KeyboardInterrupt, SystemExit, …: What the handler raises.  For a signal without a handler, which
            would end the process on the spot, SystemExit, so that the lab is taken down first.
    """
    global _lost
    if threading.current_thread() is not threading.main_thread():
        return
    lost, _lost = _lost, None
    if lost is not None:
        raise lost
    deferral = _current
    if deferral is None or not deferral.pending:
        return
    number = deferral.pending.pop(0)
    handler = deferral.previous[signal.Signals(number)]
    if callable(handler):
        handler(number, None)
    else:
        raise SystemExit(128 + number)


def ignore_from_now_on() -> None:
    """Inside a deferred block: what was asked for is done, and a signal comes too late to undo it."""
    if _current is not None:
        _current.pending.clear()
        _current.previous = dict.fromkeys(_current.previous, signal.SIG_IGN)
