"""`natengine iptables`, `save` and `restore`, with a fake engine to ask."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import pytest

from natengine.app import rules_cli
from natengine.app.rules_cli import write_atomically
from natengine.errors import ConfigError, ControlError

TEXT = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o bond0.2 -j MASQUERADE\nCOMMIT\n"


class FakeEngine:
    """Stands where `ask` does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, dict[str, object]]] = []
        self.warnings: list[str] = []
        monkeypatch.setattr(rules_cli, "ask", self)

    def __call__(self, _run_dir: Path, command: str, **arguments: object) -> dict[str, object]:
        self.asked.append((command, arguments))
        return {"text": TEXT, "warnings": self.warnings}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    return FakeEngine(monkeypatch)


RUN_DIR = Path("/nowhere")


def test_a_change_is_sent_in_canonical_form(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """Read here, so that the engine gets numbers and no names to look up; warnings are shown."""
    engine.warnings = ["no such interface"]
    argv = ["-t", "nat", "-A", "POSTROUTING", "-o", "bond0.2", "-j", "MASQUERADE"]
    assert rules_cli.iptables(argv, RUN_DIR) == 0
    ((command, arguments),) = engine.asked
    assert command == "change"
    assert "MASQUERADE" in arguments["argv"]  # type: ignore[operator]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("warning: no such interface\n")


def test_a_change_says_what_it_does(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """With -v, and once it is done."""
    assert rules_cli.iptables(["-t", "nat", "-v", "-F", "POSTROUTING"], RUN_DIR) == 0
    assert [command for command, _ in engine.asked] == ["save", "change"]
    assert capsys.readouterr().out == "Flushing chain `POSTROUTING'\n"


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["-A", "FORWARD", "-j", "ACCEPT", "--nowhere"], 2), (["-A"], 2), (["--bogus"], 2), (["-t", "nut", "-L"], 1),
        (["-L", "NOCHAIN"], 1), (["-D", "FORWARD", "1"], 0),
    ],
)
def test_mistakes_are_found_here(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str], argv: list[str], status: int
) -> None:
    """iptables' exit statuses and its way to complain; the engine hears only of what is well formed."""
    got = rules_cli.iptables(argv, RUN_DIR)
    assert (got != 0) == (status != 0)
    assert bool(capsys.readouterr().err) == (status != 0)
    assert not engine.asked or status != 2


def test_listing(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """The engine's rules, with counters; nothing is changed."""
    assert rules_cli.iptables(["-t", "nat", "-S", "POSTROUTING"], RUN_DIR) == 0
    assert engine.asked == [("save", {"counters": True})]
    assert capsys.readouterr().out == "-P POSTROUTING ACCEPT\n-A POSTROUTING -o bond0.2 -j MASQUERADE\n"


def test_list_and_zero(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """`-L -Z` shows, then zeroes."""
    assert rules_cli.iptables(["-t", "nat", "-L", "-n", "-Z"], RUN_DIR) == 0
    assert [command for command, _ in engine.asked] == ["save", "change"]
    assert "MASQUERADE" in capsys.readouterr().out


def test_help_and_version_need_no_engine(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody is asked."""
    for argv in (["-h"], ["--version"]):
        assert rules_cli.iptables(argv, RUN_DIR) == 0
        assert capsys.readouterr().out
    assert engine.asked == []


def test_errors_of_the_engine_are_shown_as_iptables_would(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No engine is another matter: `main` says that."""
    def refuse(*_: object, **__: object) -> None:
        raise ControlError("no engine")

    monkeypatch.setattr(rules_cli, "ask", refuse)
    with pytest.raises(ControlError):
        rules_cli.iptables(["-F"], RUN_DIR)
    assert capsys.readouterr().err == ""


def test_save(engine: FakeEngine, tmp_path: Path) -> None:
    """Text as it comes, counters if they are wanted."""
    path = tmp_path / "etc" / "rules.v4"
    assert rules_cli.save(path, RUN_DIR, counters=True) == 0
    assert path.read_text() == TEXT
    assert engine.asked == [("save", {"counters": True})]


REPLACE = {"counters": True, "flush": True, "only": None, "test": False, "flush_flows": False}


def test_restore(engine: FakeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file's text goes to the engine, unless something is wrong with it."""
    path = tmp_path / "rules.v4"
    path.write_text(TEXT)
    engine.warnings = ["look out"]
    assert rules_cli.restore(path, RUN_DIR) == 0
    assert engine.asked == [("restore", {"text": TEXT, **REPLACE})]
    assert "warning: look out" in capsys.readouterr().err


def test_restore_sends_numbers(engine: FakeEngine, tmp_path: Path) -> None:
    """Names are looked up here: the engine waits for nobody."""
    path = tmp_path / "rules.v4"
    path.write_text("*filter\n-A FORWARD -s localhost -p tcp --dport ssh -j DROP\nCOMMIT\n")
    assert rules_cli.restore(path, RUN_DIR) == 0
    text = "*filter\n-A FORWARD -s 127.0.0.1/32 -p tcp -m tcp --dport 22 -j DROP\nCOMMIT\n"
    ((_, arguments),) = engine.asked
    assert str(arguments["text"]).replace('"', "") == text


@pytest.mark.parametrize(
    "content", [b"*nat\n-A POSTROUTING -j NOWHERE\nCOMMIT\n", b"nonsense\n", b"\xff\xfe\x00", None]
)
def test_restore_of_what_cannot_be_read(engine: FakeEngine, tmp_path: Path, content: bytes | None) -> None:
    """The message names the file; the engine is not asked."""
    path = tmp_path / "rules.v4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"rules\.v4"):
        rules_cli.restore(path, RUN_DIR)
    assert engine.asked == []


# ── iptables-save and iptables-restore ──────────────────────────────────────────────────────────


def test_iptables_save(engine: FakeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The engine's text between two comments, on the screen or in a file; one table, or all."""
    assert rules_cli.iptables_save(["-c", "-t", "nat"], RUN_DIR) == 0
    lines = capsys.readouterr().out.splitlines(keepends=True)
    assert lines[0].startswith("# Generated by natengine iptables-save on ") and lines[-1].startswith("# Completed on ")
    assert "".join(lines[1:-1]) == TEXT
    assert engine.asked == [("save", {"counters": True, "table": "nat"})]
    assert rules_cli.iptables_save(["--file", str(tmp_path / "x")], RUN_DIR) == 0
    assert TEXT in (tmp_path / "x").read_text()


def test_iptables_restore(engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From standard input or a file; counters only with -c."""
    monkeypatch.setattr("sys.stdin", io.StringIO(TEXT))
    assert rules_cli.iptables_restore(["-w", "--test"], RUN_DIR) == 0
    path = tmp_path / "rules"
    path.write_text(TEXT)
    assert rules_cli.iptables_restore(["-c", "-T", "nat", "--flush-flows", str(path)], RUN_DIR) == 0
    first, second = engine.asked
    assert first == ("restore", {"text": TEXT, **REPLACE, "counters": False, "test": True})
    assert second == ("restore", {"text": TEXT, **REPLACE, "only": "nat", "flush_flows": True})


def test_noflush_is_read_against_what_is_there(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "*nat\n-D POSTROUTING 1\nCOMMIT\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert rules_cli.iptables_restore(["--noflush"], RUN_DIR) == 0
    assert engine.asked[-1] == ("restore", {"text": text, **REPLACE, "counters": False, "flush": False})


@pytest.mark.parametrize(("argv", "status", "message"), [
    (["--nosuch"], 2, "natengine iptables-restore: unrecognized arguments: --nosuch\nTry `"),
    (["/nosuch"], 1, "natengine iptables-restore: Can't open /nosuch: No such file or directory\n"),
    (["-T", "nosuch"], 3, "natengine iptables-restore: table 'nosuch' does not exist\n"),
    ([], 2, "natengine iptables-restore: line 1: `nonsense' outside a table"),
])
def test_iptables_restore_refuses(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str],
    status: int, message: str,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("nonsense\n"))
    assert rules_cli.iptables_restore(argv, RUN_DIR) == status
    assert capsys.readouterr().err.startswith(message)
    assert engine.asked == []


# ── write_atomically ────────────────────────────────────────────────────────────────────────────


def test_write_replaces(tmp_path: Path) -> None:
    """Old or new, never half; mode 0600 whatever it was; no other file is left."""
    path = tmp_path / "rules.v4"
    path.write_text("old")
    path.chmod(0o666)
    with path.open() as reader:
        write_atomically(path, "new\n")
        assert reader.read() == "old"           # who has it open has the old one, whole
    assert path.read_text() == "new\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["rules.v4"]


def test_write_makes_directories(tmp_path: Path) -> None:
    """/etc/natengine may not be there yet."""
    write_atomically(tmp_path / "a" / "b" / "rules.v4", "x")
    assert (tmp_path / "a" / "b" / "rules.v4").read_text() == "x"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """A full disk, say: the old file stays, the half-written one goes."""
    path = tmp_path / "rules.v4"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rules_cli.os, failing, fail)
    with pytest.raises(ConfigError, match="No space left on device"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["rules.v4"]


def test_text_without_an_encoding(tmp_path: Path) -> None:
    """Bytes of a comment that were never text: an error, and nothing is left behind."""
    path = tmp_path / "rules.v4"
    path.write_text("old")
    with pytest.raises(ConfigError, match="cannot write"):
        write_atomically(path, "\udcff")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["rules.v4"]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    """A file in the way of a directory, a directory in the way of the file."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "rules.v4", tmp_path):
        with pytest.raises(ConfigError, match="cannot write"):
            write_atomically(path, "x")
    assert os.listdir(tmp_path) == ["file"]
