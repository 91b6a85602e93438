"""The command line: exit statuses and messages.  Nothing here needs root, nor an engine."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from natengine import __version__
from natengine.app import client
from natengine.app.cli import COMMANDS, USAGE, main
from natengine.app.daemon import RulesFile, allow_open_files
from natengine.errors import ConfigError, HostError


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine of this machine is ever asked."""
    monkeypatch.setenv("NATENGINE_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("NATENGINE_RULES", raising=False)


def natengine(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run the program."""
    command = [sys.executable, "-m", "natengine", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    """They are answers: standard output, status 0."""
    assert main(["--help"]) == main(["-h"]) == 0
    assert capsys.readouterr().out == USAGE * 2
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"natengine {__version__}\n"


def test_usage_names_every_command() -> None:
    """And every command has a help of its own."""
    for command in COMMANDS:
        assert f"\n  {command} " in USAGE


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in ("conntrack",)])
def test_help_of_each_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without an engine."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        try:
            status = main([command, "--help"])
        except SystemExit as left:
            status = int(left.code or 0)
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
            signal.signal(number, handler)
    assert status == 0
    assert command in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        ["frobnicate"], ["--bogus"], ["--run-dir"], ["status", "extra"], ["status", "--bogus"],
        ["save", "--bogus"], ["restore", "extra"], ["iptables", "--bogus"], ["iptables", "-A"],
    ],
)
def test_wrong_commands(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, one line or two on standard error, and nothing on standard output."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(("natengine: ", "natengine iptables"))
    assert "Traceback" not in err


def test_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The usage, on standard error."""
    assert main([]) == 2
    assert capsys.readouterr() == ("", USAGE)


@pytest.mark.parametrize(
    "argv",
    [["status"], ["status", "--json"], ["conntrack", "-L"], ["save"], ["iptables", "-L"], ["iptables", "-F"]],
)
def test_no_engine(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1, and what to do about it."""
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "no engine is running on" in err
    assert "--run-dir" in err


def test_run_dir_of_option_and_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The option wins; it may be written either way."""
    for argv in (["--run-dir", str(tmp_path / "a"), "status"], [f"--run-dir={tmp_path / 'a'}", "status"]):
        assert main(argv) == 1
        assert str(tmp_path / "a" / "control.sock") in capsys.readouterr().err
    assert main(["status"]) == 1
    assert str(tmp_path / "run" / "control.sock") in capsys.readouterr().err


def test_restore_of_a_file_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Found before the engine is asked: file and line are named."""
    path = tmp_path / "rules.v4"
    path.write_text("*nat\n-A POSTROUTING -j NOWHERE\nCOMMIT\n")
    assert main(["restore", "--file", str(path)]) == 2
    err = capsys.readouterr().err
    assert str(path) in err
    assert "2" in err
    assert main(["restore", "--file", str(tmp_path / "missing")]) == 2


def test_conntrack_passes_the_answer_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both streams and the status are the engine's."""
    answer = {"ok": True, "stdout": "a flow\n", "stderr": "shown\n", "exit_status": 1}
    monkeypatch.setattr(client, "ask", lambda _run_dir, _command, argv: answer)
    assert main(["conntrack", "-D"]) == 1
    assert capsys.readouterr() == ("a flow\n", "shown\n")


def test_status_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """For programs: what the engine said, nothing else."""
    monkeypatch.setattr(client, "ask", lambda *_: {"ok": True, "status": {"flows": 3}})
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"flows": 3}


# ── as a program ────────────────────────────────────────────────────────────────────────────────


def test_as_a_program() -> None:
    """The statuses are the process's."""
    done = natengine("frobnicate")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("natengine: unknown command 'frobnicate'")


def test_run_wants_root() -> None:
    """Status 1 and one line; nothing is made.  In a process of its own, for it installs signal handlers."""
    script = "import os, sys; os.geteuid = lambda: 1000; from natengine.app.cli import main; sys.exit(main(['run']))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "natengine: natengine run must be root: it takes packets from the kernel\n"
    assert not Path(os.environ["NATENGINE_RUN_DIR"]).exists()


@pytest.mark.parametrize(
    "argv", [["--queue-num", "65536"], ["--queue-num", "x"], ["--io", "magic"], ["--bogus"], ["extra"]]
)
def test_run_with_wrong_options(argv: list[str]) -> None:
    """Status 2, whoever one is."""
    done = natengine("run", *argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("natengine: ")
    assert "Traceback" not in done.stderr


def test_a_pipe_that_closes(tmp_path: Path) -> None:
    """`natengine --help | head -0` ends quietly."""
    done = subprocess.run(
        [
            sys.executable, "-c",
            "import os, sys; from natengine.app.cli import main; "
            "r, w = os.pipe(); os.close(r); os.dup2(w, 1); "
            "status = main(['--help']); sys.stdout.flush(); sys.exit(status)",
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )
    assert "Traceback" not in done.stderr


# ── the rules file of `run` ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("limits", "allowed"), [((20, 64), None), ((20, 4096), 128), ((1024, 4096), 1024)])
def test_a_low_limit_of_open_files(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], allowed: int | None
) -> None:
    """It is raised as far as it has to be; who may not do that is told what to write, and not by a traceback later."""
    now = [limits]

    def set_limits(_what: int, wanted: tuple[int, int]) -> None:
        if wanted[1] > limits[1]:
            raise ValueError("not allowed to raise maximum limit")
        now.append(wanted)

    monkeypatch.setattr(resource, "getrlimit", lambda _what: now[-1])
    monkeypatch.setattr(resource, "setrlimit", set_limits)
    if allowed is None:
        with pytest.raises(HostError, match="ulimit -n 128"):
            allow_open_files()
    else:
        allow_open_files()
        assert now[-1] == (allowed, limits[1])


def test_rules_file(tmp_path: Path) -> None:
    """The usual file may be missing; one that somebody named may not."""
    path = tmp_path / "rules.v4"
    assert RulesFile(path, required=False).read() is None
    with pytest.raises(ConfigError, match="natengine save"):
        RulesFile(path, required=True).read()
    path.write_text("*nat\nCOMMIT\n")
    for required in (True, False):
        assert RulesFile(path, required=required).read() == "*nat\nCOMMIT\n"


@pytest.mark.parametrize("required", [True, False])
def test_rules_file_that_cannot_be_read(tmp_path: Path, required: bool) -> None:
    """Running without the rules that are there would be worse than not running."""
    path = tmp_path / "rules.v4"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"rules\.v4"):
        RulesFile(path, required=required).read()
    with pytest.raises(ConfigError):
        RulesFile(tmp_path, required=required).read()
