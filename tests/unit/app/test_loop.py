"""The pump: packets, tasks, timers and expiry take turns in one thread."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from natengine.app import loop as loop_module
from natengine.app.loop import Loop
from natengine.errors import ConfigError, ControlError


class QuietIO:
    """An adapter to which no packets come."""

    name, queues = "quiet", (0, 0)

    def __init__(self) -> None:
        self.lock = contextlib.nullcontext()
        self.turns = 0

    def serve(self, wake_fd: int, timeout_s: float) -> None:
        self.turns += 1
        select.select([wake_fd], [], [], timeout_s)


class Running:
    """A loop in the main thread's place: pytest's own thread runs it, others use it."""

    def __init__(self) -> None:
        self.io = QuietIO()
        self.expired: list[tuple[int, int]] = []
        self.loop = Loop(self.io, expire=self.expire)  # type: ignore[arg-type]

    def expire(self, now_ns: int, budget: int) -> int:
        self.expired.append((now_ns, budget))
        return 0

    def while_running(self, *work: object) -> None:
        """Run the loop until every function of `work` has returned in a thread of its own."""
        def others() -> None:
            try:
                for each in work:
                    each()  # type: ignore[operator]
            finally:
                self.loop.stop()

        thread = threading.Thread(target=others)
        thread.start()
        self.loop.run()
        thread.join()


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(loop_module, "EXPIRE_EVERY_NS", 2_000_000)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    result = Running()
    yield result
    with contextlib.suppress(OSError, ValueError):
        result.loop.close()
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), handlers, strict=True):
        signal.signal(number, handler)


def test_call_runs_in_the_loops_thread(running: Running) -> None:
    """Whoever calls waits for the result."""
    results: list[object] = []
    running.while_running(lambda: results.append(running.loop.call(threading.get_ident)))
    assert results == [threading.get_ident()]


def test_call_raises_what_the_function_raises(running: Running) -> None:
    """The loop goes on; it is the asker's mistake."""
    raised: list[BaseException] = []

    def fail() -> None:
        raise ConfigError("wrong")

    def ask() -> None:
        for _ in range(3):
            with pytest.raises(ConfigError) as caught:
                running.loop.call(fail)
            raised.append(caught.value)

    running.while_running(ask)
    assert [str(error) for error in raised] == ["wrong"] * 3


def test_calls_come_in_order(running: Running) -> None:
    """One after the other, each once."""
    seen: list[int] = []
    running.while_running(*[lambda i=i: running.loop.call(lambda: seen.append(i)) for i in range(50)])
    assert seen == list(range(50))


def test_packets_have_a_turn_between_two_tasks(running: Running) -> None:
    """However many ask at once: what has to be answered one after the other keeps no packet waiting for all of it."""
    turns: list[int] = []

    def first() -> None:
        deadline = time.monotonic() + 10
        while running.loop._tasks.qsize() < 20 and time.monotonic() < deadline:
            time.sleep(0.001)
        turns.append(running.io.turns)

    def ask() -> None:
        tasks = [first] + [lambda: turns.append(running.io.turns)] * 20
        askers = [threading.Thread(target=running.loop.call, args=(task,)) for task in tasks]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()

    running.while_running(ask)
    assert len(turns) == len(set(turns)) == 21


def test_watched_descriptors(running: Running) -> None:
    """A callback for whatever is readable."""
    read, write = os.pipe()
    done = threading.Event()

    def readable() -> None:
        os.read(read, 16)
        done.set()

    running.loop.watch(read, readable)
    running.while_running(lambda: os.write(write, b"x"), lambda: done.wait(10))
    assert done.is_set()
    os.close(read)
    os.close(write)


def test_expiry_and_timers(running: Running) -> None:
    """The engine's clock ticks although nothing comes in; timers come round again."""
    often, rarely = threading.Event(), []
    ticks: list[int] = []

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == 3:
            often.set()

    running.loop.every(1_000_000, tick)
    running.loop.every(3_600_000_000_000, lambda: rarely.append(1))
    running.while_running(lambda: often.wait(10))
    assert often.is_set()
    assert rarely == []
    times = [now_ns for now_ns, _ in running.expired]
    assert times == sorted(times)
    assert {budget for _, budget in running.expired} == {loop_module.EXPIRE_BUDGET}


def test_packets_that_waited_come_before_expiry(running: Running) -> None:
    """A callback that took long: whose packet is there already does not end for having been idle."""
    order: list[str] = []
    read, write = os.pipe()
    serve, expire = running.io.serve, running.expire

    def slow() -> None:
        os.read(read, 1)
        order.append("slow")
        time.sleep(0.005)               # longer than from one expiry to the next

    running.io.serve = lambda *args: (order.append("packets"), serve(*args))        # type: ignore[method-assign]
    running.loop._expire = lambda *args: (order.append("expiry"), expire(*args))[1]
    running.loop.watch(read, slow)
    running.while_running(lambda: os.write(write, b"x" * 20), lambda: time.sleep(0.2))
    os.close(read)
    os.close(write)
    after = [order[at + 1] for at, what in enumerate(order[:-1]) if what == "slow"]
    assert after and set(after) == {"packets"}


def test_stop_before_run(running: Running) -> None:
    """A signal may come that early."""
    running.loop.stop()
    running.loop.run()
    assert running.io.turns <= 1


def test_close_tells_those_who_wait(running: Running) -> None:
    """They get an error that the control socket can pass on."""
    answers: list[str] = []

    def ask() -> None:
        with pytest.raises(ControlError, match="stopping"):
            running.loop.call(lambda: None)
        answers.append("told")

    thread = threading.Thread(target=ask)
    thread.start()
    while running.loop._tasks.empty():
        time.sleep(0.001)
    running.loop.close()
    thread.join(10)
    assert answers == ["told"]


def test_call_after_close(running: Running) -> None:
    """Told at once, and not after half a minute."""
    running.loop.close()
    with pytest.raises(ControlError, match="stopping"):
        running.loop.call(lambda: None)
