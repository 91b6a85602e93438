"""The pump: one thread that owns the engine and does one thing at a time.

Packets, control requests, interface changes and the clock are all dealt with here, in turns.  Other
threads hand work in with `call`, and wait for its result.  (With several queues others deal with
packets too; the adapter's lock then keeps all of them apart.)
"""

from __future__ import annotations

import contextlib
import os
import queue
import selectors
import signal
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from natengine.adapters.base import PacketIO
from natengine.adapters.clock import now_ns
from natengine.errors import ControlError

T = TypeVar("T")

EXPIRE_EVERY_NS = 250_000_000
EXPIRE_BUDGET = 4096                # flows looked at in one go: some milliseconds in Python
STOPPING = "the engine is stopping"


class Loop:
    """Runs until `stop`."""

    def __init__(self, io: PacketIO, *, expire: Callable[[int, int], int]) -> None:
        self._io = io
        self._expire = expire
        self._selector = selectors.EpollSelector()      # has a descriptor, on which an adapter can wait
        self._tasks: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._running = True
        self._closed = False
        self._timers: list[tuple[int, Callable[[], None]]] = []
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._run_task)

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `fd` is readable."""
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def every(self, interval_ns: int, callback: Callable[[], None]) -> None:
        """Call `callback` about every `interval_ns`, at most four times a second."""
        self._timers.append((interval_ns, callback))

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` between two batches of packets; from any other thread.

        Raises whatever the function raises; TimeoutError if its turn has not come after 30 s; or

        Raises:
            ControlError: The loop has been closed.
        """
        result: Future[T] = Future()
        self._tasks.put((function, result))
        if self._closed:                # set before the queue is emptied: one of the two sees the task
            raise ControlError(STOPPING)
        self._wake()
        return result.result(timeout=30)

    def stop(self) -> None:
        """End `run` after the current turn.  Safe in a signal handler."""
        self._running = False
        self._wake()

    def run(self) -> None:
        """Go round until stopped."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)   # wakes an adapter that waits in C
        next_expiry = now_ns()
        due = [next_expiry + interval for interval, _ in self._timers]
        while self._running:
            self._io.serve(self._selector.fileno(), EXPIRE_EVERY_NS / 1e9)
            with self._io.lock:
                # Before the callbacks: after a slow one (new hooks, say) the packets that have waited come first,
                # or flows would end whose packets are there already.
                now = now_ns()
                if now >= next_expiry:
                    next_expiry = now + EXPIRE_EVERY_NS
                    self._expire(now, EXPIRE_BUDGET)
                    for i, (interval, callback) in enumerate(self._timers):
                        if now >= due[i]:
                            due[i] = now + interval
                            callback()
                for key, _ in self._selector.select(0):
                    key.data()

    def close(self) -> None:
        """Close what the loop itself opened; tasks that still wait are told."""
        signal.set_wakeup_fd(-1)
        self._closed = True
        while not self._tasks.empty():
            self._tasks.get()[1].set_exception(ControlError(STOPPING))
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):          # full: it will wake anyway; or closed: it has stopped
            os.write(self._wake_write, b"\0")

    def _run_task(self) -> None:
        """Run the next task, if there is one: packets do not wait for a hundred.  Each has a byte that wakes for it."""
        os.read(self._wake_read, 1)
        try:
            function, result = self._tasks.get_nowait()
        except queue.Empty:                         # the byte was for `stop`, or a signal's
            return
        try:
            result.set_result(function())
        except Exception as error:                  # it belongs to whoever asked
            result.set_exception(error)
