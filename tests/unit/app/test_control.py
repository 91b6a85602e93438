"""The control socket: whatever comes in, one answer goes out, and the next client is served."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from natengine.app import client, control
from natengine.app.client import SOCKET_NAME, ask
from natengine.app.control import ControlServer
from natengine.app.log import Log
from natengine.app.peer import Rights, rights_of
from natengine.app.rundir import RunDir
from natengine.errors import (
    ConfigError,
    ControlError,
    HostError,
    NatengineError,
    RuleApplyError,
    RuleSyntaxError,
)
from natengine.frontend.save import REPLACE, RestoreOptions
from natengine.rules.model import TableName

STATUS = {"flows": 3, "packets_shed": 5, "control_clients_sent_away": 0}


class FakeGateway:
    """What the server asks of a gateway and its `Changes`; `failure` is raised by the next request."""

    def __init__(self) -> None:
        self.log = Log()
        self.failure: Exception | None = None
        self.threads: set[str] = set()
        self.seen: list[object] = []
        self.changes = self

    def call(self, function: Callable[[], Any]) -> Any:
        self.threads.add(threading.current_thread().name)
        if self.failure is not None:
            raise self.failure
        return function()

    def change(self, argv: list[str]) -> list[str]:
        self.call(lambda: None)
        self.seen.append(argv)
        return ["a warning"]

    def save_text(self, *, counters: bool, table: TableName | None) -> str:
        self.call(lambda: None)
        return f"counters={counters} {table}\n"

    def restore(self, text: str, options: RestoreOptions, *, test: bool, flush_flows: bool) -> list[str]:
        self.call(lambda: None)
        how = (options, test, flush_flows)
        self.seen += [text] if how == (REPLACE, False, False) else [text, how]
        return []

    def shed_packets(self) -> int:
        return 5

    def status(self) -> dict[str, object]:
        return {"flows": 3}

    def flows(self, first_id: int) -> tuple[list[object], int | None]:
        return [], None if first_id else 1

    def delete_flows(self, ids: list[int]) -> int:
        return len(ids)


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
def server(gateway: FakeGateway, tmp_path: Path) -> Iterator[Path]:
    """Serve in the background; return the run directory."""
    running = ControlServer(gateway, tmp_path)  # type: ignore[arg-type]
    running.start()
    yield tmp_path
    running.close()


def talk(run_dir: Path, *chunks: bytes) -> bytes:
    """Send raw bytes and return everything that comes back."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(10)
        link.connect(str(run_dir / SOCKET_NAME))
        for chunk in chunks:
            link.sendall(chunk)
        received = b""
        while chunk := link.recv(65536):
            received += chunk
        return received


def test_every_command(server: Path, gateway: FakeGateway) -> None:
    """Requests reach the gateway, through `call`; answers come back."""
    assert ask(server, "change", argv=["-A", "FORWARD"])["warnings"] == ["a warning"]
    assert ask(server, "save")["text"] == "counters=False None\n"
    assert ask(server, "save", counters=True, table="nat")["text"] == "counters=True nat\n"
    assert ask(server, "restore", text="*nat\nCOMMIT\n")["warnings"] == []
    assert ask(server, "status")["status"] == STATUS
    assert ask(server, "conntrack", argv=["-C"])["stdout"] == "0\n"
    assert gateway.seen == [["-A", "FORWARD"], "*nat\nCOMMIT\n"]
    ask(server, "restore", text="", counters=False, flush=False, only="nat", test=True, flush_flows=True)
    assert gateway.seen[2:] == ["", (RestoreOptions(False, False, TableName.NAT), True, True)]
    assert gateway.threads == {"control client"}


def test_text_that_is_not_ascii(server: Path, gateway: FakeGateway) -> None:
    """Comments may be in any script, and in no encoding at all."""
    for text in ("Grüße", "行", "\udcff"):
        ask(server, "restore", text=text)
        assert gateway.seen.pop() == text


def test_socket_is_for_root_only(server: Path) -> None:
    """Mode 0600, from the first moment on."""
    assert stat.S_IMODE((server / SOCKET_NAME).stat().st_mode) == 0o600


def allow(monkeypatch: pytest.MonkeyPatch, rights: Rights) -> None:
    """Let the kernel say that this is somebody else."""
    monkeypatch.setattr(control, "rights_of", lambda _link, _readers: rights)


LOOKS = [("status", {}), ("save", {"counters": True}), ("conntrack", {"argv": ["-L"]}), ("conntrack", {"argv": ["-C"]})]
CHANGES = [
    ("change", {"argv": ["-F"]}), ("restore", {"text": ""}), ("conntrack", {"argv": ["-D"]}),
    ("conntrack", {"argv": ["--flush"]}), ("conntrack", {"argv": "-F"}), ("conntrack", {}),
]


def test_readers_may_look_and_no_more(
    server: Path, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changes something is root's, however it is spelt."""
    allow(monkeypatch, Rights.LOOK)
    for command, arguments in LOOKS:
        ask(server, command, **arguments)
    for command, arguments in CHANGES:
        with pytest.raises(ControlError, match="you must be root"):
            ask(server, command, **arguments)
    assert gateway.seen == []


def test_strangers_hear_only_why(server: Path, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the mode of the socket ever let one in."""
    allow(monkeypatch, Rights.NOTHING)
    for command, arguments in (*LOOKS, *CHANGES):
        with pytest.raises(ControlError):
            ask(server, command, **arguments)
    assert gateway.threads == set()


def test_readers_do_not_take_root_s_places(
    server: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A hundred that say nothing: most are sent away at once, which is counted and told, and root is served."""
    allow(monkeypatch, Rights.LOOK)
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(100)]
        for link in links:
            link.settimeout(10)
            link.connect(str(server / SOCKET_NAME))
        refused = links[control.MAX_READERS:]
        assert all(b"too many" in link.recv(65536) for link in refused)
        allow(monkeypatch, Rights.CHANGE)
        assert ask(server, "status")["status"] == {**STATUS, "control_clients_sent_away": len(refused)}
    assert capfd.readouterr().err.count("control socket: 1 sent away") == 1


def test_a_reader_s_long_question(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hung up on much earlier than root."""
    allow(monkeypatch, Rights.LOOK)
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(10)
        link.connect(str(server / SOCKET_NAME))
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            for _ in range(100):
                link.sendall(b"x" * control.MAX_QUESTION)


def test_a_client_that_dawdles(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not buy time without end."""
    monkeypatch.setattr(control, "PATIENCE_S", 0.3)
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(10)
        link.connect(str(server / SOCKET_NAME))
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            while True:
                link.sendall(b"x")
                time.sleep(0.05)


def test_who_is_there() -> None:
    """The kernel's word: user, group, and the other groups."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert rights_of(ours, None) is Rights.CHANGE


AS_SOMEBODY = """
import os, socket, sys
name, group, *others = sys.argv[1:]
os.setgroups([int(each) for each in others])
os.setgid(int(group))
os.setuid(65534)
link = socket.socket(socket.AF_UNIX)
link.connect("\\0" + name)
link.recv(1)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
@pytest.mark.parametrize(
    ("group", "others", "rights"),
    [(65533, [], Rights.LOOK), (65534, [7, 65533], Rights.LOOK), (65534, [7], Rights.NOTHING)],
)
def test_who_is_there_as_somebody_else(group: int, others: list[int], rights: Rights) -> None:
    """A member by its group, by another one of its groups, and none."""
    name = f"\0natengine-{os.getpid()}-{rights.name}-{len(others)}"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(name)
        listening.listen()
        client = subprocess.Popen([sys.executable, "-I", "-c", AS_SOMEBODY, name[1:], str(group), *map(str, others)])
        link, _ = listening.accept()
        with link:
            assert rights_of(link, 65533) is rights
            assert rights_of(link, None) is Rights.NOTHING
        assert client.wait(10) == 0


def test_socket_of_a_group(gateway: FakeGateway, tmp_path: Path) -> None:
    """Mode 0660 and the group's; the directory lets it through and shows nothing."""
    group = os.getgroups()[0] if os.getgroups() else os.getgid()
    held = RunDir(tmp_path / "run", group)
    running = ControlServer(gateway, tmp_path / "run", group)  # type: ignore[arg-type]
    about = (tmp_path / "run" / SOCKET_NAME).stat()
    assert (stat.S_IMODE(about.st_mode), about.st_gid) == (0o660, group)
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o710
    running.close()
    held.close()


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{", b"null", b"3", b"[]", b'"status"', b"{}",
        b'{"command": "reboot"}', b'{"command": ["status"]}', b'{"command": null}',
        b"\xff\xfe", b'{"command": "status"} {"command": "status"}', b"[" * 100_000,
        b'{"command": "change"}', b'{"command": "change", "argv": 3}', b'{"command": "restore"}',
        b'{"command": "conntrack", "argv": ["--bogus"]}',
    ],
)
def test_bad_requests(server: Path, line: bytes) -> None:
    """Refused with a reason, and the server lives on."""
    answer = json.loads(talk(server, line + b"\n"))
    assert answer["ok"] is False
    assert (answer["kind"], answer["exit_status"]) == ("ConfigError", 2)
    assert answer["error"]
    assert ask(server, "status")["status"] == STATUS


def test_a_request_in_pieces(server: Path) -> None:
    """The line ends where its newline is, however it was cut."""
    pieces = [bytes([byte]) for byte in b'{"command": "status"}\n']
    assert json.loads(talk(server, *pieces)) == {"ok": True, "status": STATUS}


def test_clients_that_never_finish(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are hung up on after a while, and nobody waits for them."""
    monkeypatch.setattr(control, "PATIENCE_S", 0.2)
    with socket.socket(socket.AF_UNIX) as slow:
        slow.connect(str(server / SOCKET_NAME))
        slow.sendall(b'{"command":')
        assert ask(server, "status")["status"] == STATUS
        slow.settimeout(10)
        assert slow.recv(1) == b""


def test_more_clients_than_slots(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle ones give their places up in time."""
    monkeypatch.setattr(control, "PATIENCE_S", 0.2)
    idle = [socket.socket(socket.AF_UNIX) for _ in range(control.MAX_CLIENTS)]
    try:
        for link in idle:
            link.connect(str(server / SOCKET_NAME))
        assert ask(server, "status")["status"] == STATUS
    finally:
        for link in idle:
            link.close()


def test_a_request_that_is_too_long(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hung up on: a line without an end must not fill the memory."""
    monkeypatch.setattr(control, "MAX_REQUEST", 100_000)
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(10)
        link.connect(str(server / SOCKET_NAME))
        try:
            for _ in range(100):
                link.sendall(b"x" * 65536)
        except OSError:
            pass
        else:
            pytest.fail("everything was read")
    assert ask(server, "status")["status"] == STATUS


def test_a_client_that_hangs_up(server: Path) -> None:
    """Before it said anything, and before it heard the answer."""
    for line in (b"", b'{"command": "status"}\n'):
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(server / SOCKET_NAME))
            link.sendall(line)
    assert ask(server, "status")["status"] == STATUS


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (ConfigError("wrong"), ConfigError), (RuleSyntaxError("wrong"), RuleSyntaxError),
        (RuleApplyError("wrong"), RuleApplyError), (HostError("wrong"), ControlError),
        (ControlError("wrong"), ControlError),
    ],
)
def test_errors_keep_their_kind(
    server: Path, gateway: FakeGateway, failure: NatengineError, kind: type[NatengineError]
) -> None:
    """The asking side raises what the engine raised, so that it ends with the same status."""
    gateway.failure = failure
    with pytest.raises(kind, match=r"^wrong$") as caught:
        ask(server, "status")
    assert type(caught.value) is kind
    assert caught.value.exit_status == failure.exit_status


def test_an_engine_that_does_not_answer(server: Path, gateway: FakeGateway) -> None:
    """The packet thread is stuck: the client is told, and not hung up on."""
    gateway.failure = TimeoutError()
    with pytest.raises(ControlError, match="busy"):
        ask(server, "status")


def test_no_engine(tmp_path: Path) -> None:
    """Nobody there, or a socket that nobody listens on any more."""
    with pytest.raises(ControlError, match="no engine is running on"):
        ask(tmp_path, "status")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / SOCKET_NAME))
    with pytest.raises(ControlError, match="no engine is running on"):
        ask(tmp_path, "status")


def test_a_run_directory_that_cannot_be_one(tmp_path: Path) -> None:
    """A path too long for a socket; a file in the way."""
    with pytest.raises(ControlError):
        ask(tmp_path / ("x" * 200), "status")
    (tmp_path / "file").write_text("")
    with pytest.raises(ControlError):
        ask(tmp_path / "file", "status")


@pytest.mark.parametrize("answer", [b"", b"nonsense\n", b"[]\n", b'{"ok": tr'])
def test_an_answer_that_is_none(tmp_path: Path, answer: bytes) -> None:
    """The engine died in the middle of it, or it is not an engine."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / SOCKET_NAME))
        listener.listen()

        def serve() -> None:
            link, _ = listener.accept()
            with link:
                link.recv(65536)
                link.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with pytest.raises(ControlError):
                ask(tmp_path, "status")
        finally:
            thread.join()


def test_an_engine_that_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience ends with an error message, not with a traceback."""
    monkeypatch.setattr(client, "PATIENCE_S", 0.1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / SOCKET_NAME))
        listener.listen()
        with pytest.raises(ControlError):
            ask(tmp_path, "status")


def test_the_socket_of_a_killed_engine_is_taken_over(gateway: FakeGateway, tmp_path: Path) -> None:
    """It is still there, and nobody listens."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / SOCKET_NAME))
    server = ControlServer(gateway, tmp_path)  # type: ignore[arg-type]
    server.start()
    assert ask(tmp_path, "status")["status"] == STATUS
    server.close()
    assert not (tmp_path / SOCKET_NAME).exists()
    with pytest.raises(ControlError):
        ask(tmp_path, "status")


def test_a_directory_that_is_not_there(gateway: FakeGateway, tmp_path: Path) -> None:
    """An error that names the path; the umask is as before."""
    before = os.umask(0o22)
    os.umask(before)
    with pytest.raises(HostError, match="missing"):
        ControlServer(gateway, tmp_path / "missing")  # type: ignore[arg-type]
    assert os.umask(before) == before
