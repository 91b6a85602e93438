"""Busy minutes: traffic of all kinds, while rules, addresses and the engine itself change.

`make soak` takes SOAK_SECONDS=600; the test suite a minute of it.  It goes in rounds.  In each, all kinds of traffic
run at once and every byte is compared, while one thing happens to the engine; between some, the engine is ended, in
turns by a signal that it can obey and by one that it cannot, and started again.  What an engine has when it is ended is
counted: no flow and no mapping a few seconds after the last packet, and little more memory than after its first rounds.
Nobody resets a download: a capture shows who would have.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import NewEngine
from gateway_tools import (
    ADDRESS,
    ECHO,
    UPLINK,
    connect,
    curl,
    echo,
    kill,
    ping,
    sha256,
    udp_socket,
    udp_whoami,
    wait_for,
    whoami,
)
from natlab import Lab, Node
from natlab.capture import Capture
from natlab.engine import Engine
from scapy.layers.inet import IP

SECONDS = int(os.environ.get("SOAK_SECONDS", "60"))
ROUND_S = 4.0
LIVES = 3                           # engines, one after the other
WARM = 4                            # rounds, in which each event has come once: then the memory is what it will be
GROWTH_KB = 16_000                  # what the allocator keeps for each thread that has been; a leak of minutes is more

pytestmark = [
    pytest.mark.lab, pytest.mark.timeout(SECONDS * 3 + 240),
    pytest.mark.parametrize("fast_path", ["cython"], indirect=True),
]


# ── traffic ─────────────────────────────────────────────────────────────────────────────────────


def downloads(node: Node, path: Path) -> None:
    headers = curl(node, f"http://{ADDRESS['inet2']}/bytes/2000000?seed=7", "-D", "-", "-o", str(path))
    assert f"X-Sha256: {sha256(path)}" in headers


def conversations(node: Node, dice: random.Random) -> None:
    with connect(node, ADDRESS["inet2"], ECHO) as link:
        for _ in range(10):
            echo(link, dice.randbytes(dice.choice((1, 100, 1460, 30_000))))


def questions(node: Node) -> None:
    """A datagram there, one back, from a new port each time: what a resolver does."""
    with udp_socket(node) as link:
        assert udp_whoami(link, "inet2")[0] == UPLINK["inet2"]


def bulk(node: Node) -> None:
    """Asked again where the server is just closing its socket after the last one, which resets who waits there."""
    argv = ["iperf3", "-c", ADDRESS["inet2"], "-t", "2"]
    wait_for("a transfer", lambda: node.run(argv, timeout=60, check=False).returncode == 0)


def traffic(lab: Lab, tmp_path: Path, dice: random.Random) -> dict[str, Callable[[], object]]:
    """By name, what goes on at once; each is called again and again."""
    worker1, worker2 = lab.node("worker1"), lab.node("worker2")
    kinds: dict[str, Callable[[], object]] = {
        "http": lambda: downloads(worker1, tmp_path / "download"),
        "tcp": lambda: conversations(worker2, dice),
        "udp": lambda: questions(worker1),
        "ping": lambda: ping(worker2, ADDRESS["inet2"], count=5),
        "fragments": lambda: ping(worker1, ADDRESS["inet2"], "-s", "5000", count=3),
    }
    if shutil.which("iperf3"):
        kinds["iperf3"] = lambda: bulk(worker2)
    return kinds


def run_round(kinds: dict[str, Callable[[], object]], event: Callable[[], object], resets: Capture) -> None:
    """Let everything run for a round, one event in the middle of it; raise what went wrong, with who said it."""
    failures: list[str] = []
    end = time.monotonic() + ROUND_S

    def repeat(name: str, call: Callable[[], object]) -> None:
        try:
            while time.monotonic() < end:
                call()
        except BaseException as error:
            failures.append(f"{name}: {error!r}")

    threads = [threading.Thread(target=repeat, args=each) for each in kinds.items()]
    for thread in threads:
        thread.start()
    try:
        while time.monotonic() < end:
            event()
    finally:
        for thread in threads:
            thread.join()
    # with its TTL: 64 is of inet2 itself, or of the head; 63 has come through the head
    told = [(packet[IP].ttl, packet.summary()) for packet in resets.packets()]
    assert (failures, told) == ([], [])


# ── what happens meanwhile ──────────────────────────────────────────────────────────────────────


def events(lab: Lab, engine: Engine) -> Iterator[Callable[[], object]]:
    """One after the other, over and over."""
    head = lab.node("head")

    def rules() -> None:
        engine.type(["iptables -I FORWARD -s 10.9.9.9 -j DROP", "iptables -D FORWARD 1"])

    def restore() -> None:
        engine.run("save", "--file", str(engine.run_dir / "saved"))
        engine.run("restore", "--file", str(engine.run_dir / "saved"))
        (engine.run_dir / "saved").unlink()

    def listings() -> None:
        engine.type(["conntrack -L", "iptables -nvL", "iptables -t nat -S", "status", "status --json"])

    def flap() -> None:
        """The other uplink loses its address, with flows on it, and gets it back."""
        with udp_socket(lab.node("worker1")) as link:
            udp_whoami(link, "inet3")
            head.run(["ip", "address", "del", f"{UPLINK['inet3']}/24", "dev", "bond0.3"], timeout=10)
            head.run(["ip", "address", "add", f"{UPLINK['inet3']}/24", "dev", "bond0.3"], timeout=10)
        wait_for("the address", lambda: whoami(lab.node("worker1"), "inet3")[0] == UPLINK["inet3"])

    return itertools.cycle((rules, listings, flap, restore))


def memory_kb(engine: Engine) -> int:
    assert engine.process is not None
    match = re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{engine.process.pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1])


def left(engine: Engine) -> tuple[int, int]:
    """Flows and mappings."""
    status = json.loads(engine.run("status", "--json").stdout)
    return status["flows"], status["mappings"]


def test_soak(lab: Lab, new_engine: NewEngine, owners_rules: Path, tmp_path: Path) -> None:
    config = tmp_path / "natengine.toml"
    config.write_text("[timeouts]\nudp = 3\nicmp_query = 3\ntcp_transitory = 3\n")
    engine = new_engine("--rules", owners_rules, "--config", config)
    kinds = traffic(lab, tmp_path, random.Random(1))
    with lab.capture("inet2", "eth0", "tcp port 80 and tcp[tcpflags] & tcp-rst != 0") as resets:
        for life in range(LIVES):
            until = time.monotonic() + SECONDS / LIVES
            happening, at_first = events(lab, engine), 0
            for rounds in itertools.count(1):
                run_round(kinds, next(happening), resets)
                if rounds == WARM:
                    at_first = memory_kb(engine)
                if rounds > WARM and time.monotonic() > until:
                    break
            assert memory_kb(engine) < at_first + GROWTH_KB
            wait_for("the last flow to end", lambda: left(engine) == (0, 0))
            print(f"{rounds} rounds; {at_first} KB after {WARM} of them, {memory_kb(engine)} KB at the end")
            if life < LIVES - 1:
                if life % 2:
                    engine.stop()
                else:
                    kill(engine)
                engine.start()
