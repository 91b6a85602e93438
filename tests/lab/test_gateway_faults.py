"""What runs full under load: who is refused is counted and told, who was there before goes on."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import NewEngine
from gateway_tools import (
    ADDRESS,
    DEADLINE_S,
    ECHO,
    NATENGINE,
    OWNERS_RULES,
    connect,
    dropped,
    echo,
    natengine,
    udp_socket,
    wait_for,
)
from natlab import Lab
from natlab.engine import Engine
from support.backends import NAMES

pytestmark = [pytest.mark.lab, pytest.mark.parametrize("fast_path", [NAMES[-1]], indirect=True)]

ROOM = 32
PORTS = "*filter\n-A FORWARD -i bond0.def -j ACCEPT\nCOMMIT\n*nat\n" + "".join(
    f"-A POSTROUTING -o {uplink} -p udp -j MASQUERADE --to-ports 6000-{6000 + ROOM - 1}\n"
    f"-A POSTROUTING -o {uplink} -j MASQUERADE\n" for uplink in ("bond0.2", "bond0.3")
) + "COMMIT\n"


@contextlib.contextmanager
def answered(lab: Lab, n: int) -> Iterator[list[socket.socket]]:
    """UDP sockets of worker1 that have talked to the echo server, each a flow that may not be evicted."""
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(udp_socket(lab.node("worker1"))) for _ in range(n)]
        for link in links:
            ask_echo(link)
        yield links


def ask_echo(link: socket.socket) -> None:
    """Send to the echo server until it answers."""
    link.settimeout(1)
    for _ in range(int(DEADLINE_S)):
        link.sendto(b"whoami", (ADDRESS["inet2"], ECHO))
        with contextlib.suppress(TimeoutError):
            link.recv(100)
            return
    raise AssertionError("no UDP echo")


def refuse_more(lab: Lab, engine: Engine, reason: str, packets: int = 200) -> None:
    """Send what there is no room for, until the engine has counted it and has said so in its log."""
    with udp_socket(lab.node("worker2")) as link:
        before = dropped(engine, reason)
        for port in range(2000, 2000 + packets):
            with contextlib.suppress(OSError):                  # it is told, by ICMP
                link.sendto(b"x", (ADDRESS["inet2"], port))
        wait_for(f"{reason} is counted", lambda: dropped(engine, reason) > before)


def log_lines(engine: Engine) -> list[str]:
    return engine.log().splitlines()


def test_table_is_full(lab: Lab, new_engine: NewEngine, owners_rules: Path) -> None:
    """The flows that are there go on; one line in the log, however many packets there are; later there is room."""
    engine = new_engine("--rules", owners_rules, "--max-flows", ROOM, "--max-flows-per-host", 0)
    with connect(lab.node("worker1"), ADDRESS["inet2"], ECHO) as link:
        echo(link, b"before")
        with answered(lab, ROOM - 1) as links:
            refuse_more(lab, engine, "table full")
            wait_for("a line in the log", lambda: log_lines(engine))
            refuse_more(lab, engine, "table full")
            echo(link, b"during")
            ask_echo(links[0])
            assert [line for line in log_lines(engine) if "raise max_flows" not in line] == []
        engine.run("conntrack", "-D", "-p", "udp")
        with udp_socket(lab.node("worker2")) as other:
            ask_echo(other)
        echo(link, b"after")


def test_ports_are_exhausted(lab: Lab, new_engine: NewEngine, tmp_path: Path) -> None:
    """Without port sharing: those who have a port keep it, the next one is refused, other protocols go on."""
    rules, settings = tmp_path / "rules.v4", tmp_path / "natengine.toml"
    rules.write_text(PORTS)
    settings.write_text("port_overloading = false\n")
    engine = new_engine("--rules", rules, "--config", settings)
    with answered(lab, ROOM) as links:
        refuse_more(lab, engine, "out of ports")
        wait_for("a line in the log", lambda: log_lines(engine))
        assert all("--to-ports" in line for line in log_lines(engine))
        ask_echo(links[-1])
        with connect(lab.node("worker2"), ADDRESS["inet2"], ECHO) as link:
            echo(link, b"TCP has its own")
    engine.run("conntrack", "-D", "-p", "udp")
    with udp_socket(lab.node("worker1")) as same_host:          # the ports rest, but not for who had them
        ask_echo(same_host)


def test_log_disk_is_full(lab: Lab, tmp_path: Path, fast_path: str) -> None:
    """Standard error goes to a disk without room: the line is lost and counted, the engine goes on."""
    rules = tmp_path / "rules.v4"
    rules.write_text(OWNERS_RULES)
    env = {"NATENGINE_RUN_DIR": str(tmp_path / "run"), "NATENGINE_FASTPATH": fast_path}
    words = ["run", "--rules", str(rules), "--max-flows", str(ROOM), "--max-flows-per-host", "0"]
    with open("/dev/full", "w") as full:
        process = lab.node("head").popen(
            [*NATENGINE, *words], stdout=subprocess.PIPE, stderr=full, text=True, env={**os.environ, **env},
        )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"

        def status() -> dict[str, object]:
            answer: dict[str, object] = json.loads(natengine(lab, "status", "--json", env=env).stdout)
            return answer

        with answered(lab, ROOM), udp_socket(lab.node("worker2")) as other:
            def lost() -> bool:
                with contextlib.suppress(OSError):
                    other.sendto(b"x", (ADDRESS["inet2"], 2000))
                return status()["log_lines_lost"] == 1

            wait_for("a line is lost", lost)
            natengine(lab, "conntrack", "-F", env=env)
            ask_echo(other)
    finally:
        process.terminate()
        process.wait(DEADLINE_S)
        assert process.stdout is not None
        process.stdout.close()
    assert process.returncode == 0
