"""Nothing is lost when the engine is killed, or stopped, and started again: real connections, every byte looked at.

No packet with an inside source address gets to the internet meanwhile: the fixture `lab` captures there.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import selectors
import shutil
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import NewEngine
from gateway_tools import (
    ADDRESS,
    DEADLINE_S,
    ECHO,
    PROJECT,
    UPLINK,
    answers,
    connect,
    conntrack_lines,
    echo,
    echo_server,
    head_state,
    is_silent,
    kill,
    ping,
    send_raw,
    udp_socket,
    wait_for,
    whoami,
)
from natlab import Lab
from natlab.engine import Engine
from natlab.patience import PATIENCE
from scapy.layers.inet import IP, UDP
from support.backends import NAMES

pytestmark = pytest.mark.lab
one_fast_path = pytest.mark.parametrize("fast_path", [NAMES[-1]], indirect=True)

CONNECTIONS = 200
PATIENCE_S = 60 * PATIENCE          # a sender waits up to twice as long as the engine was away before it tries again
AHEAD = 4096                        # bytes that a connection may be ahead of its echo
RESTART_S = 5 * PATIENCE            # of processor time until it is ready: others may be using the processors
NEXT_VERSION = "99.0"
PORT_FOR_BOTH, PEER_PORT, PING_ID = 40404, 5353, 404
SSH = 2222

Restart = Callable[[Engine], None]


class EchoedStream:
    """A connection to an echo server; bytes at random go out, and have to come back."""

    def __init__(self, link: socket.socket, seed: int) -> None:
        self.link = link
        self.link.setblocking(False)
        self._out, self._expected = random.Random(seed), random.Random(seed)
        self._unsent = self._due = b""
        self.sent = self.received = 0

    def send(self) -> None:
        """Send some more."""
        self._unsent = self._unsent or self._out.randbytes(256)
        with contextlib.suppress(BlockingIOError):
            n = self.link.send(self._unsent)
            self._unsent, self.sent = self._unsent[n:], self.sent + n

    def receive(self) -> None:
        """Take what has come, and compare every byte."""
        with contextlib.suppress(BlockingIOError):
            data = self.link.recv(65536)
            assert data, "the connection was closed"
            while len(self._due) < len(data):
                self._due += self._expected.randbytes(256)
            assert data == self._due[:len(data)], f"wrong bytes behind byte {self.received}"
            self._due, self.received = self._due[len(data):], self.received + len(data)


class EchoedStreams:
    """Many of them at once, in a thread of their own, until told to finish."""

    def __init__(self, links: list[socket.socket]) -> None:
        self._streams = [EchoedStream(link, seed) for seed, link in enumerate(links)]
        self._sending = True
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            with selectors.DefaultSelector() as selector:
                for stream in self._streams:
                    selector.register(stream.link, selectors.EVENT_READ, stream)
                while self._sending or self.under_way:
                    for stream in self._streams:
                        if self._sending and stream.sent - stream.received < AHEAD:
                            stream.send()
                    for key, _ in selector.select(0.02):
                        key.data.receive()
        except BaseException as error:
            self.failure = error

    @property
    def under_way(self) -> int:
        """Bytes whose echo has not come back."""
        return sum(stream.sent - stream.received for stream in self._streams)

    def all_go_on(self) -> None:
        """Wait until every single connection has taken some more bytes there and back."""
        before = [stream.received for stream in self._streams]

        def have_moved() -> bool:
            assert self.failure is None, self.failure
            return all(
                stream.received > start + AHEAD for stream, start in zip(self._streams, before, strict=True)
            )

        deadline = time.monotonic() + PATIENCE_S
        while not have_moved():
            assert time.monotonic() < deadline, "not every connection goes on"
            time.sleep(0.05)

    def finish(self) -> None:
        """Send no more, and wait until all that was sent has come back."""
        self._sending = False
        self._thread.join(PATIENCE_S)
        assert self.failure is None, self.failure
        assert not self._thread.is_alive() and self.under_way == 0, f"{self.under_way} bytes are lost"


def kill_and_start(engine: Engine) -> None:
    """`kill -9`, and a new one."""
    kill(engine)
    engine.start()


def stop_and_start(engine: Engine) -> None:
    """`systemctl restart`."""
    assert engine.stop(signal.SIGTERM) == 0
    engine.start()


def upgrade(engine: Engine) -> None:
    """A new version is put in its place while the old one runs; then `systemctl restart`."""
    place = Path(engine.environment["PYTHONPATH"]) / "natengine"
    shutil.copytree(PROJECT / "natengine", place, ignore=shutil.ignore_patterns("__pycache__"))
    module = place / "__init__.py"
    version = f'__version__ = "{NEXT_VERSION}"\n'
    module.write_text(module.read_text() + version)
    stop_and_start(engine)
    assert json.loads(engine.run("status", "--json").stdout)["version"] == NEXT_VERSION


@pytest.fixture(params=[kill_and_start, stop_and_start, upgrade], ids=["killed", "stopped", "upgraded"])
def restart(request: pytest.FixtureRequest) -> Restart:
    """The ways of starting again."""
    return request.param  # type: ignore[no-any-return]


def processor_s(engine: Engine) -> float:
    """What the engine has used of the processors since it was started."""
    assert engine.process is not None
    stat_line = Path(f"/proc/{engine.process.pid}/stat").read_text()
    user, system = stat_line.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def engine(lab: Lab, new_engine: NewEngine, owners_rules: Path, tmp_path: Path) -> Iterator[Engine]:
    """An engine that leaves a guard behind, which goes with the test; the head has a service that is older."""
    env = {"PYTHONPATH": str(tmp_path / "next"), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with echo_server(lab.node("head"), SSH):
        engine = new_engine("--rules", owners_rules, "--guard", env=env)
        try:
            yield engine
        finally:
            engine.stop()
            engine.run("hooks", "remove")


@pytest.fixture
def connections(lab: Lab, engine: Engine) -> Iterator[list[socket.socket]]:
    """Connections of both workers through both uplinks."""
    ways = [(worker, host) for worker in ("worker1", "worker2") for host in UPLINK]
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(connect(lab.node(worker), ADDRESS[host], ECHO))
            for worker, host in ways for _ in range(CONNECTIONS // len(ways))
        ]


@one_fast_path
@pytest.mark.timeout(300)
def test_two_hundred_connections(engine: Engine, connections: list[socket.socket], restart: Restart) -> None:
    """With data moving both ways: each goes on and finishes with the right bytes."""
    streams = EchoedStreams(connections)
    try:
        streams.all_go_on()
        restart(engine)
        assert processor_s(engine) < RESTART_S
        streams.all_go_on()
    finally:
        streams.finish()
    established = conntrack_lines(engine, "-p", "tcp", "--state", "ESTABLISHED")
    assert len(established) == CONNECTIONS


def without_time(line: str) -> str:
    """A line of `conntrack -L` without what time changes: the timeout."""
    words = line.split()
    return " ".join(word for i, word in enumerate(words) if i != 2)


def test_mappings_of_udp_and_icmp(lab: Lab, engine: Engine, restart: Restart) -> None:
    """Both workers use one port and one identifier, so that one of each was changed: it stays what it was.

    The mapping is open from outside before its worker has said anything again; the head's own service goes on.
    """
    workers = [lab.node("worker1"), lab.node("worker2")]
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(udp_socket(lab.node("inet2"), source_port=PEER_PORT))
        links = [stack.enter_context(udp_socket(worker, source_port=PORT_FOR_BOTH)) for worker in workers]
        mapped = []
        for link in links:
            link.sendto(b"first", (ADDRESS["inet2"], PEER_PORT))
            mapped.append(peer.recvfrom(100)[1])
            peer.sendto(b"answer", mapped[-1])
            assert link.recv(100) == b"answer"
        assert mapped[0] != mapped[1]
        for worker in workers:
            ping(worker, ADDRESS["inet2"], "-e", str(PING_ID))
        own = stack.enter_context(connect(lab.node("inet2"), UPLINK["inet2"], SSH))
        echo(own, b"the head's own service")
        listed = sorted(map(without_time, conntrack_lines(engine)))
        restart(engine)
        assert sorted(map(without_time, conntrack_lines(engine))) == listed
        for number, (link, outside) in enumerate(zip(links, mapped, strict=True)):
            peer.sendto(b"%d" % number, outside)
            assert link.recv(100) == b"%d" % number
            link.sendto(b"again", (ADDRESS["inet2"], PEER_PORT))
            assert peer.recvfrom(100) == (b"again", outside)
        for worker in workers:
            ping(worker, ADDRESS["inet2"], "-e", str(PING_ID))
        echo(own, b"goes on")
        assert len(conntrack_lines(engine)) == len(listed)
        assert engine.log() == ""


def test_closed_while_it_is_stopped(lab: Lab, lab_forwards: None, engine: Engine) -> None:
    """With the guard nothing passes in either direction, although the kernel forwards; `hooks remove` opens it.

    Pings go on all the time, also while an engine starts.  The head itself can be reached but for a killed one.
    """
    worker, head = lab.node("worker1"), lab.node("head")
    with udp_socket(worker, source_port=PORT_FOR_BOTH) as link, way_inside(lab):
        assert answers(worker, ADDRESS["inet2"])
        link.sendto(b"out", (ADDRESS["inet2"], PEER_PORT))      # its mapping is another way in
        with pings(lab):
            for end in (kill, Engine.stop):
                end(engine)
                assert is_silent(worker, ADDRESS["inet2"]) and not comes_in(lab, link)
                engine.start()
            engine.stop()
            assert is_silent(worker, ADDRESS["inet2"]) and not comes_in(lab, link)
        with connect(lab.node("inet2"), UPLINK["inet2"], SSH) as own:
            echo(own, b"the head's own service")
        assert answers(head, ADDRESS["inet2"])
        engine.run("hooks", "remove")
        assert head_state(lab).rules == ()
        wait_for("what an open head lets in", lambda: comes_in(lab, link))


@contextlib.contextmanager
def way_inside(lab: Lab) -> Iterator[None]:
    """inet2 believes that the head routes to worker1."""
    way = [f"{ADDRESS['worker1']}/32", "via", UPLINK["inet2"]]
    lab.node("inet2").run(["ip", "route", "add", *way], timeout=10)
    try:
        yield
    finally:
        lab.node("inet2").run(["ip", "route", "del", *way], timeout=10)


def comes_in(lab: Lab, link: socket.socket) -> bool:
    """Whether a datagram from outside gets to worker1, sent in either's name."""
    send_raw(lab, "inet2", *(
        IP(src=source, dst=target) / UDP(sport=PEER_PORT, dport=PORT_FOR_BOTH) / b"in"
        for target in (ADDRESS["worker1"], UPLINK["inet2"])
        for source in (ADDRESS["inet2"], ADDRESS["worker2"])
    ))
    link.settimeout(0.2)
    with contextlib.suppress(TimeoutError):
        return bool(link.recv(100))
    return False


@contextlib.contextmanager
def pings(lab: Lab) -> Iterator[None]:
    """worker2 pings both hosts outside, some hundred times a second."""
    argv = ["ping", "-n", "-q", "-i", "0.004"]
    processes = [lab.node("worker2").popen([*argv, ADDRESS[host]], stdout=-3) for host in UPLINK]
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.wait(DEADLINE_S)


@pytest.fixture
def lab_forwards(lab: Lab) -> Iterator[None]:
    """The head's kernel forwards whether or not an engine runs, as on a host of containers."""
    head = lab.node("head")
    head.sysctl("net/ipv4/ip_forward", 1)
    yield
    head.sysctl("net/ipv4/ip_forward", 0)


def test_closed_while_the_queue_is_full(lab: Lab, engine: Engine) -> None:
    """An engine that does nothing: the kernel drops what the queue has no room for, and lets none of it pass."""
    worker, of_what_is_sent = lab.node("worker1"), f"udp and dst port {PEER_PORT}"
    assert engine.process is not None
    engine.process.send_signal(signal.SIGSTOP)
    try:
        with udp_socket(worker) as link, lab.capture("inet2", "eth0", of_what_is_sent) as seen:
            while not dropped_by_kernel(lab):
                for _ in range(1000):
                    link.sendto(b"x", (ADDRESS["inet2"], PEER_PORT))
            assert is_silent(worker, ADDRESS["inet2"])
        assert len(seen.packets()) == 0
    finally:
        engine.process.send_signal(signal.SIGCONT)
    assert whoami(worker, "inet2")[0] == UPLINK["inet2"]
    if json.loads(engine.run("status", "--json").stdout)["io"]["queue_full"]:       # else the socket's buffer was
        wait_for("the line", lambda: "natengine: queue full: " in engine.log())


def dropped_by_kernel(lab: Lab) -> int:
    """How many packets had no room, in the queue or in the socket's buffer (/proc/net/netfilter/nfnetlink_queue)."""
    listing = lab.node("head").run(["cat", "/proc/net/netfilter/nfnetlink_queue"], timeout=20).stdout
    return sum(sum(map(int, line.split()[5:7])) for line in listing.splitlines())


@one_fast_path
def test_hooks_of_a_running_engine_stay(engine: Engine) -> None:
    """`hooks remove` would let untranslated packets out."""
    done = engine.run("hooks", "remove", check=False)
    assert done.returncode == 1 and "is running" in done.stderr


@one_fast_path
def test_file_is_private_and_goes_when_it_is_empty(engine: Engine, lab: Lab) -> None:
    """Mode 0600; with flows in it it stays, and `natengine state check` has a look at it."""
    path = engine.run_dir / "flows.state"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    ping(lab.node("worker1"), ADDRESS["inet2"])
    assert "using it" in engine.run("state", "check", check=False).stderr
    engine.stop()
    assert [each.name for each in engine.run_dir.iterdir()] == [path.name]
    assert "sound, 1 flows" in engine.run("state", "check").stdout
    engine.start()
    engine.run("conntrack", "-F")
    engine.stop()
    assert not engine.run_dir.exists()


@one_fast_path
def test_damaged_file_is_set_aside(engine: Engine, lab: Lab) -> None:
    """One clear line, and the engine starts without flows."""
    path = engine.run_dir / "flows.state"
    ping(lab.node("worker1"), ADDRESS["inet2"])
    engine.stop()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff")
    engine.start()
    assert len(engine.log().splitlines()) == 1 and "set aside as flows.state.aside" in engine.log()
    assert conntrack_lines(engine) == []
    assert (engine.run_dir / "flows.state.aside").exists()
    ping(lab.node("worker1"), ADDRESS["inet2"])


@one_fast_path
def test_without_state(new_engine: NewEngine, owners_rules: Path, lab: Lab) -> None:
    """`--state none`: as if it had never been."""
    engine = new_engine("--rules", owners_rules, "--state", "none")
    ping(lab.node("worker1"), ADDRESS["inet2"])
    assert not (engine.run_dir / "flows.state").exists()
    kill(engine)
    engine.start()
    assert conntrack_lines(engine) == []
