"""Lines for the log."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from natengine.app.journal import write_lines
from natengine.nat.said import LogLine

LINES = [LogLine(4, "one"), LogLine(7, "two")]


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
        monkeypatch.setattr("sys.stderr", file)
        write_lines(LINES)
    assert path.read_text() == text


def test_a_log_that_nobody_reads_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as file:
        monkeypatch.setattr("sys.stderr", file)
        write_lines(LINES)
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)   # what is left in the buffer goes there
