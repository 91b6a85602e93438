"""Lines for the operator: few, never waited for, and never the end of the engine."""

from __future__ import annotations

import os

import pytest

from natengine.app import log
from natengine.app.log import QUIET_NS, Log
from natengine.vocab import Reason

NOTHING = {reason.name: 0 for reason in Reason}


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    written: list[str] = []
    monkeypatch.setattr(Log, "write", lambda _self, line: written.append(line))
    return written


def test_one_line_and_then_one_in_ten_seconds(lines: list[str]) -> None:
    """However many packets are refused; and it says how many since the last line."""
    told = Log()
    for second in range(25):
        told.tell_refusals({**NOTHING, "TABLE_FULL": 100 * (second + 1)}, second * 1_000_000_000)
    assert [line.split(":")[0] for line in lines] == [f"{n} packets refused" for n in (100, 1000, 1000)]


def test_each_reason_has_its_line(lines: list[str]) -> None:
    """One does not silence another; what has stopped is not told again."""
    told = Log()
    for at_ns in (0, QUIET_NS, 2 * QUIET_NS):
        told.tell_refusals({**NOTHING, "OUT_OF_PORTS": 1, "HOST_LIMIT": 2, "NO_RULE": 7}, at_ns)
    assert len(lines) == 2 and "--to-ports" in lines[0] and "max_flows_per_host" in lines[1]


@pytest.mark.parametrize("stuck", ["pipe", "full"])
def test_a_log_that_cannot_be_written(stuck: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that nobody reads, a disk that is full: the line is lost, and counted."""
    read, write = os.pipe() if stuck == "pipe" else (-1, os.open("/dev/full", os.O_WRONLY))
    if stuck == "pipe":
        os.set_blocking(write, False)
        try:
            while True:
                os.write(write, bytes(4096))
        except BlockingIOError:
            os.set_blocking(write, True)
    monkeypatch.setattr(log, "STDERR", write)
    told = Log()
    told.write("one")
    told.write("two")
    assert told.lost == 2
    os.close(write)
    told.write("three")
    assert told.lost == 3
    if read >= 0:
        os.close(read)
