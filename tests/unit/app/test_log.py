"""Lines for the operator: few, never waited for, and never the end of the engine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from natengine.app import log
from natengine.app.log import QUIET_NS, Log
from natengine.nat.said import LogLine
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
    assert [line.split(";")[0] for line in lines] == [f"table full: {n} packets refused" for n in (100, 1000, 1000)]


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


@pytest.mark.parametrize(("is_journal", "text"), [(False, "one\ntwo\n"), (True, "<4>one\n<7>two\n")])
def test_levels_are_for_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_journal: bool, text: str
) -> None:
    """systemd says which file the journal is; standard error may have been sent elsewhere since."""
    path = tmp_path / "log"
    with path.open("w") as file:
        status = os.fstat(file.fileno())
        stream = f"{status.st_dev}:{status.st_ino}" if is_journal else f"{status.st_dev}:{status.st_ino + 1}"
        monkeypatch.setenv("JOURNAL_STREAM", stream)
        monkeypatch.setattr(log, "STDERR", file.fileno())
        Log().write_lines([LogLine(4, "one"), LogLine(7, "two")])
    assert path.read_text() == text
