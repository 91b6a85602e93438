"""`Journal`: few lines, each with a number and with advice; and none that anybody waits for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from natengine.adapters.base import IoStats
from natengine.app.journal import ADVICE, QUIET_NS, Journal
from natengine.vocab import Reason

SECOND_NS = 1_000_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


def journal(path: Path) -> Journal:
    return Journal(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND))


def test_every_name_is_a_counter() -> None:
    """A counter that nobody has would never speak."""
    assert set(ADVICE) <= {reason.name for reason in Reason} | set(IoStats._fields)


@pytest.mark.parametrize("name", ADVICE)
def test_a_counter_that_grows_is_a_line_now_and_then(path: Path, name: str) -> None:
    """A million packets in half a minute are four lines, and no packet is forgotten."""
    log = journal(path)
    for tick in range(31):
        log.look({name: tick * 30_000, "NEW_FLOW": tick}, tick * SECOND_NS)
    log.look({name: 31 * 30_000}, 31 * SECOND_NS + QUIET_NS)
    lines = path.read_text().splitlines()
    assert len(lines) == 4
    start = f"natengine: {name.lower().replace('_', ' ')}: "
    assert all(line.startswith(start) and ADVICE[name] in line for line in lines)
    assert sum(int(line.removeprefix(start).split()[0]) for line in lines) == 31 * 30_000


def test_one_kind_does_not_silence_another(path: Path) -> None:
    log = journal(path)
    log.look({"TABLE_FULL": 5}, 0)
    log.look({"TABLE_FULL": 6, "OUT_OF_PORTS": 1}, SECOND_NS)
    assert [line.split(":")[1] for line in path.read_text().splitlines()] == [" table full", " out of ports"]


def test_nothing_amiss_nothing_said(path: Path) -> None:
    log = journal(path)
    for tick in range(100):
        log.look({"TABLE_FULL": 0, "TRANSLATED": tick * 1000}, tick * SECOND_NS)
    assert path.read_text() == ""


def test_a_full_disk_is_counted_and_does_no_harm() -> None:
    """/dev/full answers ENOSPC to each write."""
    log = Journal(os.open("/dev/full", os.O_WRONLY))
    for tick in range(3):
        log.look({"TABLE_FULL": tick + 1}, tick * QUIET_NS)
    assert log.lost_lines == 3


def test_a_pipe_that_nobody_reads_is_not_waited_for() -> None:
    reader, writer = os.pipe()
    log = Journal(writer)
    for tick in range(2000):
        log.look({"TABLE_FULL": tick + 1}, tick * QUIET_NS)
    assert log.lost_lines > 0
    os.close(reader)
    before = log.lost_lines
    log.look({"TABLE_FULL": 9999}, 5000 * QUIET_NS)
    assert log.lost_lines == before + 1, "the reader is gone"
