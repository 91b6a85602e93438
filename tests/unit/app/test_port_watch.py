"""When the head's own ports are looked at, and what becomes of a look that fails."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from natengine.app import port_watch
from natengine.app.log import Log
from natengine.app.port_watch import INTERVAL_NS, SHARE, PortWatch
from natengine.nat.arriving import LocalPorts

PORTS = {6: frozenset({22}), 17: frozenset({53})}
LOOK_NS = 1_000_000


class Clock:
    """A look takes a millisecond of it."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.error: OSError | None = None

    def read(self) -> LocalPorts:
        self.now_ns += LOOK_NS
        if self.error is not None:
            raise self.error
        return PORTS


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(port_watch, "now_ns", lambda: clock.now_ns)
    monkeypatch.setattr(port_watch, "read_local_ports", clock.read)
    return clock


def test_a_knock_is_a_look_but_not_each(clock: Clock) -> None:
    """A twentieth of the time at most; the regular looks are not counted, so the first knock after one is a look."""
    told: list[LocalPorts] = []
    watch = PortWatch(told.append, Log())
    watch.look()
    assert watch.look_for_knock()
    assert told == [PORTS, PORTS]
    assert not watch.look_for_knock()
    clock.now_ns += SHARE * LOOK_NS - 1
    assert not watch.look_for_knock()
    clock.now_ns += 1
    assert watch.look_for_knock()
    assert len(told) == 3


def test_somebody_who_knocks_all_the_time(clock: Clock) -> None:
    watch = PortWatch(lambda ports: None, Log())
    looks, until_ns = 0, clock.now_ns + INTERVAL_NS
    while clock.now_ns < until_ns:
        looks += watch.look_for_knock()
        clock.now_ns += 1000
    assert looks * LOOK_NS * (SHARE - 1) < INTERVAL_NS


def test_a_look_that_fails(clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is raised, nothing is told; the log hears of it once, and again when it has worked in between."""
    told: list[LocalPorts] = []
    watch = PortWatch(told.append, Log())
    failure = OSError(errno.EMFILE, "Too many open files")
    lines_so_far = 0
    for clock.error, lines in [(failure, 1), (failure, 1), (None, 1), (failure, 2)]:
        watch.look()
        clock.now_ns += INTERVAL_NS
        watch.look_for_knock()
        clock.now_ns += INTERVAL_NS
        lines_so_far += capfd.readouterr().err.count("Too many open files")
        assert lines_so_far == lines
    assert told == [PORTS, PORTS]
