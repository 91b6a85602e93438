"""`natengine conntrack` and `natengine status` with real flows, beside conntrack(8) and the kernel's NAT.

The same programs send the same packets from the same ports, first through kernel MASQUERADE and then
through the engine; the lines of the two tables are compared word by word.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import NewEngine
from gateway_tools import (
    ADDRESS,
    ECHO,
    UPLINK,
    Done,
    connect,
    conntrack_lines,
    echo,
    ping,
    settle,
    udp_socket,
    udp_whoami,
    wait_for,
)
from natlab import CommandFailed, Lab
from natlab.engine import OWNERS_COMMANDS, Engine

pytestmark = pytest.mark.lab

MARKING = "iptables -t nat -I POSTROUTING -s 10.1.0.11 -j CONNMARK --set-mark 0x25"
NOBODY = "203.0.113.77"         # an address of inet2's network that no host has


@contextlib.contextmanager
def flows(lab: Lab) -> Iterator[socket.socket]:
    """One flow of each kind, on ports of their own, until the block ends; gives the socket that waits for an answer."""
    worker1, worker2 = lab.node("worker1"), lab.node("worker2")
    with contextlib.ExitStack() as stack:
        ping(worker1, ADDRESS["inet2"], "-e", "4001", count=3)
        datagrams = stack.enter_context(udp_socket(worker2, source_port=4002))
        udp_whoami(datagrams, "inet3")
        unanswered = stack.enter_context(udp_socket(worker1, source_port=4003))
        unanswered.sendto(b"anybody?", (ADDRESS["inet2"], 4003))
        established = stack.enter_context(connect(worker2, ADDRESS["inet2"], ECHO, source_port=4004))
        echo(established, b"hello")
        closed = stack.enter_context(connect(worker1, ADDRESS["inet3"], ECHO, source_port=4005))
        closed.shutdown(socket.SHUT_WR)
        assert closed.recv(1) == b""
        with worker1.enter():
            hopeful = stack.enter_context(socket.socket())
        hopeful.bind(("", 4006))
        hopeful.setblocking(False)
        hopeful.connect_ex((NOBODY, 80))
        with contextlib.suppress(CommandFailed):
            ping(worker2, NOBODY, "-e", "4007", wait=1)
        yield hopeful


def pattern(line: str) -> str:
    """A line of conntrack -L without what depends on the moment.

    That is the seconds, how many hold the entry just now, and what TCP happened to send.
    """
    line = re.sub(r"use=\d+$", "use=N", line)
    line = re.sub(r"^(\w+ +\d+) \d+ ", r"\1 SECONDS ", line)
    return re.sub(r"packets=\d+ bytes=\d+", "packets=N bytes=N", line) if line.startswith("tcp") else line


def ours(lines: list[str]) -> list[str]:
    """The lines about the flows of this module, in order."""
    return sorted(pattern(line) for line in lines if re.search(r"(sport|id)=400\d ", line))


@pytest.fixture(scope="module")
def kernel_lines(lab: Lab) -> list[str]:
    """What conntrack -L says about the flows when the kernel translates them."""
    if shutil.which("conntrack") is None:
        pytest.skip("conntrack is not installed")
    head = lab.node("head")
    commands = [line.split() for line in (*OWNERS_COMMANDS, MARKING)]
    try:
        for command in commands:
            head.run(command, timeout=20)
        head.sysctl("net/netfilter/nf_conntrack_acct", 1)
        head.sysctl("net/ipv4/ip_forward", 1)
        with flows(lab):
            lines: list[str] = []

            def listed() -> bool:
                lines[:] = head.run(["conntrack", "-L"], timeout=20).stdout.splitlines()
                return "TIME_WAIT" in "".join(lines)

            wait_for("the closed connection", listed)
            return lines
    except (CommandFailed, FileNotFoundError) as error:
        pytest.skip(f"no NAT in this kernel to compare with: {error}")
    finally:
        settle(lab)
        head.sysctl("net/ipv4/ip_forward", 0)
        for command in commands:
            undo = [{"--append": "--delete", "-I": "-D"}.get(word, word) for word in command]
            head.run(undo, timeout=20, check=False)


def test_listing_is_conntracks(lab: Lab, kernel_lines: list[str], engine: Engine) -> None:
    """The same flows, word for word as conntrack(8) shows them; packets and bytes of UDP and ICMP, and marks, too."""
    engine.type([MARKING])
    with flows(lab):
        wait_for("the closed connection", lambda: "TIME_WAIT" in "".join(conntrack_lines(engine)))
        expected = ours(kernel_lines)
        assert len(expected) == 7
        assert ours(conntrack_lines(engine)) == expected


def test_count_delete_flush(lab: Lab, engine: Engine) -> None:
    """-C counts, -D takes out what matches and -F everything; connections that are cut do not leak."""

    def conntrack(*words: str, check: bool = True) -> Done:
        return engine.run("conntrack", *words, check=check)

    assert conntrack("-C").stdout == "0\n"
    with flows(lab) as hopeful:
        assert conntrack("-C").stdout == "7\n"
        assert conntrack("-L").stderr.endswith("7 flow entries have been shown.\n")
        assert len(conntrack_lines(engine, "-p", "tcp")) == 3
        assert len(conntrack_lines(engine, "-p", "tcp", "--state", "ESTABLISHED")) == 1
        assert len(conntrack_lines(engine, "-s", "10.1.0.11", "-q", UPLINK["inet2"])) == 3
        assert len(conntrack_lines(engine, "--mark", "0")) == 7
        assert len(conntrack_lines(engine, "-d", "198.51.100.0/24")) == 2
        deleted = conntrack("-D", "-p", "udp")
        assert len(deleted.stdout.splitlines()) == 2
        assert deleted.stderr.endswith("2 flow entries have been deleted.\n")
        again = conntrack("-D", "-p", "udp", check=False)
        assert (again.returncode, again.stdout) == (1, "")
        assert conntrack("-C").stdout == "5\n"
        hopeful.close()                         # or its SYN, sent again, begins the flow anew
        assert conntrack("-F").stderr.endswith("connection tracking table has been emptied.\n")
        assert conntrack("-C").stdout == "0\n"
    with connect(lab.node("worker1"), ADDRESS["inet2"], ECHO) as link:
        echo(link, b"before")
        conntrack("-F")
        link.settimeout(0.5)
        with pytest.raises(TimeoutError):       # no flow, no SYN: dropped, where the kernel would pick it up
            echo(link, b"after")


def test_wrong_conntrack_commands(engine: Engine) -> None:
    """Mistakes have status 2 and change nothing."""
    for words in (["-X"], [], ["-L", "-p", "tpc"], ["-L", "-s", "10.1.0.300"], ["-D", "--state", "NOWHERE"]):
        done = engine.run("conntrack", *words, check=False)
        assert done.returncode == 2 and done.stdout == "" and done.stderr, words


def test_status(lab: Lab, new_engine: NewEngine, fast_path: str) -> None:
    """For people and for programs: interfaces, flows, and what became of every packet."""
    engine = new_engine()
    engine.type()
    ping(lab.node("worker1"), ADDRESS["inet2"], count=3)
    status = json.loads(engine.run("status", "--json").stdout)
    assert engine.process is not None
    assert (status["fastpath"], status["pid"], status["flows"]) == (fast_path, engine.process.pid, 1)
    uplinks = {each["name"]: each["addresses"] for each in status["interfaces"] if each["uplink"]}
    assert uplinks == {"bond0.2": [UPLINK["inet2"]], "bond0.3": [UPLINK["inet3"]]}
    reasons = status["packets_by_reason"]
    assert (reasons["NEW_FLOW"], reasons["TRANSLATED"]) == (1, 5)
    assert sum(reasons.values()) == status["io"]["packets"] == 6
    page = engine.run("status").stdout
    assert f"{fast_path} fast path" in page and "\x1b" not in page
    assert re.search(r"^bond0\.3 +uplink +up +198\.51\.100\.1 *$", page, re.MULTILINE)
    assert re.search(r"^bond0\.def +inside +up +10\.1\.0\.1 *$", page, re.MULTILINE)
    assert re.search(r"^accept +translated +5 *$", page, re.MULTILINE)


def test_rule_counters(lab: Lab, engine: Engine) -> None:
    """`iptables -L -v` counts: a MASQUERADE rule once a flow, as in the kernel."""
    for _ in range(2):
        ping(lab.node("worker1"), ADDRESS["inet2"], count=3)
    listing = engine.run("iptables", "-t", "nat", "-nvxL", "POSTROUTING").stdout
    assert re.search(r"^ +2 +168 MASQUERADE .* bond0\.2 ", listing, re.MULTILINE), listing
    assert re.search(r"^ +0 +0 MASQUERADE .* bond0\.3 ", listing, re.MULTILINE), listing
    engine.run("iptables", "-t", "nat", "-Z")
    assert " 168 " not in engine.run("iptables", "-t", "nat", "-nvxL", "POSTROUTING").stdout


@pytest.mark.parametrize("fast_path", ["cython"], indirect=True)
def test_compiled_fast_path_with_the_simple_adapter(
    lab: Lab, new_engine: NewEngine, owners_rules: Path
) -> None:
    """`--io netfilterqueue` goes with either fast path."""
    engine = new_engine("--rules", owners_rules, "--io", "netfilterqueue")
    with connect(lab.node("worker1"), ADDRESS["inet2"], ECHO) as link:
        echo(link, b"x" * 100_000)
    ping(lab.node("worker2"), ADDRESS["inet3"], "-s", "20000")
    status = json.loads(engine.run("status", "--json").stdout)
    assert (status["fastpath"], status["io"]["name"]) == ("cython", "netfilterqueue")


@pytest.mark.parametrize("fast_path", ["cython"], indirect=True)
def test_several_queues(lab: Lab, new_engine: NewEngine, owners_rules: Path) -> None:
    """`--queues 3`: connections spread over threads, one table, and it stops as cleanly."""
    engine = new_engine("--rules", owners_rules, "--queues", "3")
    with contextlib.ExitStack() as stack:
        for node in ("worker1", "worker2") * 6:
            echo(stack.enter_context(connect(lab.node(node), ADDRESS["inet2"], ECHO)), b"x" * 20_000)
        assert len(conntrack_lines(engine, "-p", "tcp", "--state", "ESTABLISHED")) == 12
    assert engine.stop() == 0
