"""The run directory: one engine each, private, and nobody else's."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from natengine.app.rundir import RunDir
from natengine.errors import HostError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_made_and_removed(tmp_path: Path) -> None:
    """With its parents, closed to others, and with our pid in it; nothing is left."""
    path = tmp_path / "some" / "where"
    held = RunDir(path)
    assert mode(path) == 0o700
    assert (path / "pid").read_text() == f"{os.getpid()}\n"
    assert mode(path / "pid") == 0o600
    held.close()
    assert not path.exists()


def test_the_second_engine_is_refused(tmp_path: Path) -> None:
    """It is told who is there and what to do, and the first one's pid stays."""
    held = RunDir(tmp_path / "run")
    with pytest.raises(HostError, match=rf"pid {os.getpid()}.*--run-dir"):
        RunDir(tmp_path / "run")
    assert (tmp_path / "run" / "pid").read_text() == f"{os.getpid()}\n"
    held.close()
    RunDir(tmp_path / "run").close()


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to do is said, and nothing is left."""
    def full(*_arguments: object) -> int:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch, pytest.raises(HostError, match=r"No space left.*--run-dir"):
        patch.setattr(os, "write", full)
        RunDir(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_side_by_side(tmp_path: Path) -> None:
    """A directory each."""
    held = [RunDir(tmp_path / name) for name in "ab"]
    for each in held:
        each.close()


def test_what_a_killed_engine_left(tmp_path: Path) -> None:
    """A pid file without a lock means nothing; a longer pid leaves no digits behind."""
    path = tmp_path / "run"
    path.mkdir(0o700)
    (path / "pid").write_text("1234567890123\n")
    (path / "ip_forward.before").write_text("0\n")
    held = RunDir(path)
    assert (path / "pid").read_text() == f"{os.getpid()}\n"
    held.close()
    assert [entry.name for entry in path.iterdir()] == ["ip_forward.before"]


def test_a_directory_that_others_use(tmp_path: Path) -> None:
    """`--run-dir /tmp` must not close /tmp to everybody else."""
    tmp_path.chmod(0o1777)
    (tmp_path / "somebody's").write_text("")
    with pytest.raises(HostError, match="--run-dir"):
        RunDir(tmp_path)
    assert mode(tmp_path) == 0o1777


def test_an_open_directory_that_is_empty(tmp_path: Path) -> None:
    """The service manager may have made it; it becomes private."""
    path = tmp_path / "run"
    path.mkdir(0o755)
    held = RunDir(path)
    assert mode(path) == 0o700
    held.close()


def test_where_none_can_be(tmp_path: Path) -> None:
    """An error that names the path, and a way out."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/nothing/run")):
        with pytest.raises(HostError, match="--run-dir"):
            RunDir(path)
