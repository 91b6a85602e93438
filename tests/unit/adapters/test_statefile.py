"""Which state files are taken over, and what becomes of the others."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from natengine.adapters import statefile
from natengine.adapters.statefile import RECORDS_AT, Layout, StateFile, Unfit, read_records
from natengine.errors import HostError

LAYOUT = Layout(1, 128)
RECORDS = 16


def written(path: Path, records: int = RECORDS) -> Path:
    """A state file with something in it, and nobody who uses it."""
    file = StateFile(path, LAYOUT, records)
    file.memory[5] = 7
    file.close(keep=True)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flows.state"


def test_made_private_and_whole(path: Path) -> None:
    """Mode 0600, its room reserved, nothing beside it."""
    written(path)
    about = path.stat()
    assert stat.S_IMODE(about.st_mode) == 0o600 and about.st_size == RECORDS_AT + RECORDS * 128
    assert about.st_blocks * 512 >= about.st_size
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_taken_over(path: Path) -> None:
    """What was written is there, without a word."""
    file = StateFile(written(path), LAYOUT, RECORDS)
    assert (file.memory[5], len(file.memory), file.note) == (7, RECORDS * 128, "")


def test_a_larger_table(path: Path) -> None:
    """max_flows was raised: the flows stay, and there is room behind them."""
    file = StateFile(written(path), LAYOUT, 2 * RECORDS)
    assert (file.memory[5], file.memory[2 * RECORDS * 128 - 1], file.note) == (7, 0, "")
    file.close(keep=True)
    assert StateFile(path, LAYOUT, 2 * RECORDS).memory[5] == 7


def test_gone_when_nothing_is_to_be_kept(path: Path) -> None:
    file = StateFile(path, LAYOUT, RECORDS)
    file.close(keep=False)
    assert list(path.parent.iterdir()) == []


def change(at: int) -> Callable[[Path, pytest.MonkeyPatch], None]:
    def damage(path: Path, _patch: pytest.MonkeyPatch) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)
    return damage


def another(name: str, value: object) -> Callable[[Path, pytest.MonkeyPatch], None]:
    return lambda _path, patch: patch.setattr(statefile, name, lambda: value)


UNFIT: dict[str, Callable[[Path, pytest.MonkeyPatch], object]] = {
    "no state file": lambda path, _: path.write_text("hello"),
    "no state file ": change(0),
    "damaged": change(20),
    "another boot": another("_boot", bytes(16)),
    "another network namespace": another("_namespace", 1),
    "its end": lambda path, _: os.truncate(path, RECORDS_AT + 100),
    "layout 2": lambda path, _: (path.unlink(), StateFile(path, Layout(2, 128), RECORDS).close(keep=True)),
    "table of 17 flows": lambda path, _: (path.unlink(), written(path, 17)),
    "no records": lambda path, _: (path.unlink(), StateFile(path, LAYOUT, 0).close(keep=True)),
    "others than root": lambda path, _: path.chmod(0o640),
    "others than root ": lambda path, _: os.link(path, path.with_name("second")),
}


@pytest.mark.parametrize("why", UNFIT)
def test_set_aside(path: Path, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one line that says why; the file is there under another name, and a new one in its place."""
    UNFIT[why](written(path), monkeypatch)
    before = path.read_bytes()
    file = StateFile(path, LAYOUT, RECORDS)
    assert why.strip() in file.note and "set aside as flows.state.aside" in file.note and "\n" not in file.note
    assert file.memory[5] == 0
    assert path.with_name("flows.state.aside").read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_somebody_else_s(path: Path) -> None:
    """A file that another user owns may hold anything."""
    os.chown(written(path), 65534, 65534)
    assert "others than root" in StateFile(path, LAYOUT, RECORDS).note


@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_somebody_else_s_file_is_not_touched(tmp_path: Path, mode: int) -> None:
    """`--state rules.v4`, a slip of the hand: it stays where it is, and as it is."""
    path = tmp_path / "rules.v4"
    path.write_text("*nat\nCOMMIT\n" * 1000)
    path.chmod(mode)
    before = path.read_bytes()
    with pytest.raises(HostError, match="no state file, and stays as it is"):
        StateFile(path, LAYOUT, RECORDS)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_device_is_not_touched(tmp_path: Path) -> None:
    """`--state /dev/null`, for none: what programs write there must not become a file.  A pipe, here."""
    path = tmp_path / "null"
    os.mkfifo(path)
    with pytest.raises(HostError, match="no regular file, and stays as it is"):
        StateFile(path, LAYOUT, RECORDS)
    assert stat.S_ISFIFO(path.stat().st_mode) and list(tmp_path.iterdir()) == [path]


def test_no_memory_to_map_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a file system that cannot map files."""
    def refuse(*_arguments: object) -> None:
        raise OSError(19, os.strerror(19))

    monkeypatch.setattr(statefile.mmap, "mmap", refuse)
    with pytest.raises(HostError, match=r"No such device.*--state none"):
        StateFile(path, LAYOUT, RECORDS)


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    """A link to a file of ours, in a directory of somebody else's."""
    path.symlink_to(written(tmp_path / "elsewhere"))
    with pytest.raises(HostError, match="--state FILE"):
        StateFile(path, LAYOUT, RECORDS)


def test_one_engine_at_a_time(path: Path) -> None:
    """The second one is told; when the first has gone it may."""
    first = StateFile(path, LAYOUT, RECORDS)
    for attempt in (lambda: StateFile(path, LAYOUT, RECORDS), lambda: read_records(path, LAYOUT)):
        with pytest.raises(HostError, match=r"another engine|an engine is using it"):
            attempt()
    first.close(keep=True)
    StateFile(path, LAYOUT, RECORDS)


def test_no_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full file system is noticed now and not when a page is first touched; nothing is left."""
    def full(*_arguments: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(HostError, match=r"No space left.*--state"):
        StateFile(path, LAYOUT, RECORDS)
    assert list(path.parent.iterdir()) == []


def test_start_over(path: Path) -> None:
    """The records themselves turned out to be unfit."""
    file = StateFile(written(path), LAYOUT, RECORDS)
    file.start_over("record 3 is none")
    assert "record 3 is none" in file.note and file.memory[5] == 0
    with pytest.raises(HostError):
        StateFile(path, LAYOUT, RECORDS)


def test_check_changes_nothing(path: Path) -> None:
    """It reads a copy."""
    before = written(path).read_bytes()
    memory, records = read_records(path, LAYOUT)
    memory[5] = 9
    assert records == RECORDS and path.read_bytes() == before
    path.write_bytes(b"no")
    with pytest.raises(Unfit, match="no state file"):
        read_records(path, LAYOUT)
