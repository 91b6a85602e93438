"""Floods from one worker, and what the other one notices of them.

Rates are compared within one run, and what is measured is a conversation at a modest rate: two cores have to do for
the flood, the engine and both ends, and for what else the machine does.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import NewEngine
from gateway_tools import (
    ADDRESS,
    DEADLINE_S,
    ECHO,
    PYTHON,
    UPLINK,
    connect,
    dropped,
    echo,
    send_raw,
    udp_socket,
    wait_for,
    whoami,
)
from natlab import Lab
from natlab.engine import Engine
from natlab.patience import PATIENCE
from scapy.layers.inet import IP, UDP

from natengine.app.client import ask
from natengine.settings import Settings

# The promise is the batched adapter's: the other one, and the pure path, are not as fast as a sender can be.
pytestmark = [pytest.mark.lab, pytest.mark.parametrize("fast_path", ["cython"], indirect=True)]

FLOOD = Path(__file__).with_name("flood.py")
MAX_FLOWS, MAX_FLOWS_PER_HOST = 6000, 2000
EXCHANGE = b"conversation" * 4096           # 48 KiB, there and back
A_SECOND = 20                               # exchanges; when it is late it does not hurry
BEFORE_S, FLOOD_S = 1.5, 3.0
ATTEMPTS = 3


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """What a sender may begin: on a processor that is emulated, as much less as that is slower."""
    path = tmp_path / "natengine.toml"
    path.write_text(f"new_flows_when_busy = {Settings().new_flows_when_busy / PATIENCE:.0f}\n")
    return path


@contextlib.contextmanager
def flood(lab: Lab, kind: str) -> Iterator[None]:
    """worker1 sends new flows as fast as it can."""
    process = lab.node("worker1").popen([*PYTHON, str(FLOOD), kind, ADDRESS["worker1"], ADDRESS["inet2"]])
    try:
        yield
        assert process.poll() is None, "the flood has ended by itself"
    finally:
        process.kill()
        process.wait()


def exchanges(lab: Lab, seconds: float) -> float:
    """How many exchanges a second an established connection of worker2 gets done; every byte is compared."""
    with connect(lab.node("worker2"), ADDRESS["inet2"], ECHO) as link:
        link.settimeout(DEADLINE_S)
        return exchanges_over(link, seconds)


def exchanges_over(link: socket.socket, seconds: float) -> float:
    began, done = time.monotonic(), 0
    while time.monotonic() < began + seconds:
        slot = time.monotonic()
        echo(link, EXCHANGE)
        done += 1
        time.sleep(max(0.0, slot + 1 / A_SECOND - time.monotonic()))
    return done / (time.monotonic() - began)


def memory_kb(engine: Engine) -> int:
    """What the engine has in memory."""
    assert engine.process is not None
    match = re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{engine.process.pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1])


@pytest.mark.parametrize("kind", ["scan", "spray"])
def test_a_flood_leaves_others_their_share(
    lab: Lab, new_engine: NewEngine, owners_rules: Path, config: Path, kind: str
) -> None:
    """Half the rate of an established connection at least, room in the table, and afterwards everything as before."""
    engine = new_engine(
        "--rules", owners_rules, "--config", config,
        "--max-flows", MAX_FLOWS, "--max-flows-per-host", MAX_FLOWS_PER_HOST,
    )
    assert whoami(lab.node("worker2"), "inet2")
    at_first = memory_kb(engine)
    for _attempt in range(ATTEMPTS):
        with connect(lab.node("worker2"), ADDRESS["inet2"], ECHO) as link:
            before = exchanges_over(link, BEFORE_S)
            with flood(lab, kind):
                meanwhile = exchanges_over(link, FLOOD_S)
                assert whoami(lab.node("worker2"), "inet2")[0] == UPLINK["inet2"], "a new connection, too"
            over = time.monotonic()
            echo(link, EXCHANGE)
            recovered = time.monotonic() - over
        if meanwhile >= before / 2 and recovered < 5:
            break
    else:
        pytest.fail(f"{before:.1f} exchanges a second, then {meanwhile:.1f}; the first after it took {recovered:.1f} s")
    status = json.loads(engine.run("status", "--json").stdout)
    assert status["flows"] <= MAX_FLOWS_PER_HOST + 50, "of worker1 the most it may have, and a few of worker2"
    assert status["packets_by_reason"]["TABLE_FULL"] == 0
    assert memory_kb(engine) < at_first + 30_000


@pytest.mark.skipif(
    PATIENCE > 1, reason="emulated, a sender (2500 packets a second) does not outrun the engine: nobody is to be shed"
)
@pytest.mark.parametrize("kind", ["scan", "spray"])
def test_a_flood_is_shed_before_it_is_queued(
    lab: Lab, new_engine: NewEngine, owners_rules: Path, config: Path, kind: str
) -> None:
    """Nobody but who sends it is shed, and not his own connection; five seconds later nobody is."""
    engine = new_engine("--rules", owners_rules, "--config", config)

    def status() -> dict[str, Any]:
        return dict(json.loads(engine.run("status", "--json").stdout))

    def is_shed() -> bool:
        now = status()
        assert set(now["senders_shed"]) <= {ADDRESS["worker1"]}
        return bool(now["senders_shed"]) and now["packets_shed"] > 1000

    with (
        connect(lab.node("worker1"), ADDRESS["inet2"], ECHO) as his,
        connect(lab.node("worker2"), ADDRESS["inet2"], ECHO) as others,
        transfer(others) as exchanges_done,
    ):
        assert status()["packets_shed"] == 0
        with flood(lab, kind):
            wait_for("the flood is shed", is_shed)
            before = exchanges_done()
            echo(his, EXCHANGE)
            assert whoami(lab.node("worker2"), "inet2")[0] == UPLINK["inet2"]
            wait_for("the transfer", lambda: exchanges_done() > before)
        wait_for("nobody is shed", lambda: status()["senders_shed"] == [])
        shed = status()["packets_shed"]
        assert whoami(lab.node("worker1"), "inet2")[0] == UPLINK["inet2"]
        echo(his, EXCHANGE)
        assert status()["packets_shed"] == shed
    assert f"last {ADDRESS['worker1']}" in engine.log()


@contextlib.contextmanager
def transfer(link: socket.socket) -> Iterator[Callable[[], int]]:
    """Exchanges without a pause in the background, every byte compared; gives a function that counts them."""
    failures: list[BaseException] = []
    counted = 0
    over = threading.Event()

    def exchange() -> None:
        nonlocal counted
        try:
            while not over.is_set():
                echo(link, EXCHANGE)
                counted += 1
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        yield lambda: counted
    finally:
        over.set()
        thread.join(DEADLINE_S)
    assert failures == []


def test_a_hundred_clients_of_the_control_socket(lab: Lab, new_engine: NewEngine, owners_rules: Path) -> None:
    """All of them get their answers, and the connection of worker2 hardly notices."""
    engine = new_engine("--rules", owners_rules)
    failures: list[BaseException] = []
    over = threading.Event()

    def client() -> None:
        try:
            while not over.is_set():
                assert ask(engine.run_dir, "status")["status"]
        except BaseException as error:
            failures.append(error)

    for _attempt in range(ATTEMPTS):
        before = exchanges(lab, BEFORE_S)
        over.clear()
        threads = [threading.Thread(target=client) for _ in range(100)]
        for thread in threads:
            thread.start()
        try:
            meanwhile = exchanges(lab, FLOOD_S)
        finally:
            over.set()
            for thread in threads:
                thread.join(3 * DEADLINE_S)
        assert failures == []
        if meanwhile >= before / 2:
            return
    pytest.fail(f"{before:.1f} exchanges a second, with the clients {meanwhile:.1f}")


@pytest.mark.parametrize(("rules", "options", "reason", "provoke"), [
    ("-o bond0.2 -j MASQUERADE", ["--max-flows", "8"], "table full", "ask"),
    ("-o bond0.2 -p udp -j MASQUERADE --to-ports 6000-6003", [], "out of ports", "spray"),
    ("-o bond0.2 -j MASQUERADE", ["--max-flows-per-host", "8"], "host limit", "spray"),
    ("-o bond0.2 -j MASQUERADE", [], "fragment limit", "fragments"),
])
def test_what_runs_out_is_counted_and_told(
    lab: Lab, new_engine: NewEngine, tmp_path: Path, rules: str, options: list[str], reason: str, provoke: str
) -> None:
    """A counter, and a line that says what helps; and once there is room again, all is as before."""
    path, config = tmp_path / "rules.v4", tmp_path / "natengine.toml"
    path.write_text(f"*nat\n-A POSTROUTING {rules}\nCOMMIT\n")
    config.write_text("max_fragment_trains = 2\n[timeouts]\nudp = 3\ntcp_transitory = 3\n")
    engine = new_engine("--rules", path, "--config", config, *options)
    target = {"src": ADDRESS["worker1"], "dst": ADDRESS["inet2"]}
    if provoke == "ask":                            # answered flows, which nobody evicts
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                echo(stack.enter_context(connect(lab.node("worker1"), ADDRESS["inet2"], ECHO)), b"x")
            send_raw(lab, "worker1", *(IP(**target) / UDP(sport=7000 + n, dport=9) / b"x" for n in range(20)))
            wait_for("the counter", lambda: dropped(engine, reason))
    else:
        more = {"frag": 2} if provoke == "fragments" else {}        # without a first one, so they wait
        send_raw(lab, "worker1", *(
            IP(**target, id=n + 1, **more) / UDP(sport=7000 + n, dport=9) / bytes(8) for n in range(40)
        ))
        wait_for("the counter", lambda: dropped(engine, reason))
    wait_for("the line", lambda: f"natengine: {reason}: " in engine.log())
    with udp_socket(lab.node("worker2")) as link:
        wait_for("room for others", lambda: reachable(link))


def reachable(link: socket.socket) -> bool:
    """Whether a datagram is answered within a moment."""
    link.settimeout(0.2)
    with contextlib.suppress(OSError):              # silence, or the engine's "prohibited"
        link.sendto(b"x", (ADDRESS["inet2"], ECHO))
        return bool(link.recv(100))
    return False


class DeafEngine(Engine):
    """One whose standard error is a disk that is full."""

    @property
    def _log(self) -> Path:
        return Path("/dev/full")

    def log(self) -> str:
        return ""


def test_a_full_log_disk_stops_nobody(lab: Lab, owners_rules: Path, fast_path: str) -> None:
    """Lines are lost and counted, packets are not."""
    options = ["--rules", str(owners_rules), "--max-flows-per-host", "4"]
    with DeafEngine(lab, *options, env={"NATENGINE_FASTPATH": fast_path}) as engine:
        target = {"src": ADDRESS["worker1"], "dst": ADDRESS["inet2"]}
        send_raw(lab, "worker1", *(IP(**target) / UDP(sport=7000 + n, dport=9) / b"x" for n in range(20)))
        wait_for("a lost line", lambda: json.loads(engine.run("status", "--json").stdout)["log_lines_lost"])
        assert whoami(lab.node("worker2"), "inet2")[0] == UPLINK["inet2"]
