"""A gateway comes and goes: what it installs and puts back, whom it tells, and whom it disturbs."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import NewEngine
from gateway_tools import (
    ADDRESS,
    DEADLINE_S,
    ECHO,
    UPLINK,
    answers,
    catches,
    connect,
    conntrack_lines,
    echo,
    echo_server,
    head_state,
    is_silent,
    kill,
    ping,
    start_process,
    udp_socket,
    udp_whoami,
    wait_for,
    whoami,
)
from natlab import Lab, unique_prefix
from natlab.engine import Engine
from support.backends import NAMES

pytestmark = pytest.mark.lab
one_fast_path = pytest.mark.parametrize("fast_path", [NAMES[-1]], indirect=True)

SSH = 2222


# ── start and stop ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_start_and_stop(lab: Lab, engine: Engine, number: signal.Signals) -> None:
    """Hooks and forwarding are there while it runs; afterwards all is as it was, and the status is 0."""
    assert any("natengine" in rule for rule in head_state(lab).rules)
    assert head_state(lab).ip_forward == "1"
    assert stat.S_IMODE(engine.run_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE((engine.run_dir / "control.sock").stat().st_mode) == 0o600
    run_dir = engine.run_dir
    assert engine.stop(number) == 0
    assert not run_dir.exists()
    after = head_state(lab)
    assert (after.rules, after.ip_forward, after.queues) == ((), "0", "")
    assert engine.log() == ""


@one_fast_path
def test_forwarding_that_was_on_stays_on(lab: Lab, new_engine: NewEngine, owners_rules: Path) -> None:
    """A head that forwarded before forwards after; nothing is sent in between, it would leak."""
    head = lab.node("head")
    head.sysctl("net/ipv4/ip_forward", 1)
    try:
        engine = new_engine("--rules", owners_rules)
        engine.stop()
        assert head.sysctl("net/ipv4/ip_forward") == "1"
    finally:
        head.sysctl("net/ipv4/ip_forward", 0)


@one_fast_path
def test_rules_of_others_stay(lab: Lab, new_engine: NewEngine, owners_rules: Path) -> None:
    """Firewall rules that were there, also in the tables of the hooks, are neither changed nor moved."""
    head = lab.node("head")
    line = ["PREROUTING", "-i", "bond0.2", "-p", "tcp", "--dport", "1", "-j", "DROP"]
    for table in ("raw", "mangle"):
        head.run(["iptables", "-w", "-t", table, "-A", *line], timeout=20)
    try:
        before = head_state(lab)
        engine = new_engine("--rules", owners_rules)
        assert set(before.rules) < set(head_state(lab).rules)
        engine.stop()
        assert head_state(lab) == before
    finally:
        for table in ("raw", "mangle"):
            head.run(["iptables", "-w", "-t", table, "-D", *line], timeout=20)


@one_fast_path
@pytest.mark.parametrize("to_group", [False, True], ids=["process", "group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_while_it_starts(
    lab: Lab, owners_rules: Path, tmp_path: Path, number: signal.Signals, to_group: bool, fast_path: str
) -> None:
    """At whatever moment of the start the signal comes: nothing is left, and the status is 0.

    A Ctrl-C goes to the whole process group, with it to the iptables that is just at work.
    """
    before, chance = head_state(lab), random.Random(number)
    env = {"NATENGINE_FASTPATH": fast_path}
    for _ in range(7):
        delay = chance.uniform(0, 0.5)
        run_dir = tmp_path / "run"
        process = start_process(
            lab, "--run-dir", str(run_dir), "run", "--rules", str(owners_rules), env=env, process_group=0
        )
        # Before it has a handler a signal simply ends a process; nothing has been made by then.
        wait_for("a handler", lambda process=process: catches(process.pid, signal.SIGTERM))
        time.sleep(delay)
        (os.killpg if to_group else os.kill)(process.pid, number)
        _, said = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, said) == (0, ""), f"after {delay:.3f} s"
        assert head_state(lab) == before, f"after {delay:.3f} s"
        assert list(tmp_path.iterdir()) == []


@one_fast_path
def test_very_early_signal(lab: Lab, owners_rules: Path, tmp_path: Path, fast_path: str) -> None:
    """A signal that comes while Python itself starts ends it; nothing is left then either."""
    before, chance = head_state(lab), random.Random(1)
    for number in (signal.SIGTERM, signal.SIGINT) * 4:
        process = start_process(
            lab, "--run-dir", str(tmp_path / "run"), "run", "--rules", str(owners_rules),
            env={"NATENGINE_FASTPATH": fast_path},
        )
        time.sleep(chance.uniform(0, 0.1))
        for _ in range(3):              # Python loses an interrupt that meets a callback: one presses Ctrl-C again
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=DEADLINE_S / 4)
                break
        assert process.returncode in (0, -number, 130, 1)
        assert list(tmp_path.iterdir()) == []
    assert head_state(lab) == before


# ── the service manager ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def notifications(tmp_path: Path) -> Iterator[tuple[Path, socket.socket]]:
    """What a service manager listens on."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        link.bind(str(path))
        link.settimeout(DEADLINE_S)
        yield path, link
    path.unlink()


@one_fast_path
def test_sd_notify(
    new_engine: NewEngine, owners_rules: Path, notifications: tuple[Path, socket.socket]
) -> None:
    """READY=1 when it is ready, WATCHDOG=1 again and again, STOPPING=1 at the end."""
    path, link = notifications
    env = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "600000", "WATCHDOG_PID": ""}
    engine = new_engine("--rules", owners_rules, env=env)
    assert "READY=1" in link.recv(4096).decode().splitlines()
    for _ in range(2):
        assert link.recv(4096) == b"WATCHDOG=1"
    engine.stop()
    said = b""
    while said != b"STOPPING=1":
        said = link.recv(4096)
        assert said in (b"WATCHDOG=1", b"STOPPING=1")


def test_machine_holds_its_breath(
    new_engine: NewEngine, owners_rules: Path, notifications: tuple[Path, socket.socket]
) -> None:
    """An idle engine that did not run for a moment, on a busy machine, goes on with its timers."""
    path, link = notifications
    env = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "100000"}
    engine = new_engine("--rules", owners_rules, env=env)
    assert engine.process is not None
    assert b"READY=1" in link.recv(4096)
    for _ in range(2):
        engine.process.send_signal(signal.SIGSTOP)
        time.sleep(0.3)                 # longer than any wait of its own
        engine.process.send_signal(signal.SIGCONT)
        for _ in range(2):
            assert link.recv(4096) == b"WATCHDOG=1"


@one_fast_path
def test_watchdog_of_another_process(
    new_engine: NewEngine, owners_rules: Path, notifications: tuple[Path, socket.socket]
) -> None:
    """A watchdog that waits for another process does not hear from us."""
    path, link = notifications
    env = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}
    engine = new_engine("--rules", owners_rules, env=env)
    assert b"READY=1" in link.recv(4096)
    assert not select.select([link], [], [], 0.6)[0]
    engine.stop()
    assert link.recv(4096) == b"STOPPING=1"


# ── who is disturbed ────────────────────────────────────────────────────────────────────────────


def test_ssh_to_the_head_goes_on(lab: Lab, new_engine: NewEngine, owners_rules: Path) -> None:
    """Connections to and from the head that are older than the engine go on: during it, and after it."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(echo_server(lab.node("head"), SSH))
        links = [
            stack.enter_context(connect(lab.node("inet2"), UPLINK["inet2"], SSH)),
            stack.enter_context(connect(lab.node("inet3"), UPLINK["inet3"], SSH)),
            stack.enter_context(connect(lab.node("worker1"), "10.1.0.1", SSH)),
            stack.enter_context(connect(lab.node("head"), ADDRESS["inet2"], ECHO)),
        ]
        for link in links:
            echo(link, b"before")
        engine = new_engine("--rules", owners_rules)
        for link in links * 2:
            echo(link, b"during" * 5000)
        with connect(lab.node("inet2"), UPLINK["inet2"], SSH) as new:
            echo(new, b"a new one")
            engine.stop()
            echo(new, b"goes on too")
        for link in links:
            echo(link, b"after")


def test_address_of_an_uplink_changes(lab: Lab, engine: Engine) -> None:
    """New flows use the new address, flows on the old one are gone, the other uplink's go on."""
    head, old, new = lab.node("head"), UPLINK["inet3"], "198.51.100.9"

    def change(add: str, remove: str) -> None:
        head.run(["ip", "address", "add", f"{add}/24", "dev", "bond0.3"], timeout=10)
        head.run(["ip", "address", "del", f"{remove}/24", "dev", "bond0.3"], timeout=10)
        # the kernel makes the remaining address, until then a secondary one, the primary
        if f"{add}/" not in head.run(["ip", "-4", "address", "show", "dev", "bond0.3"], timeout=10).stdout:
            head.run(["ip", "address", "add", f"{add}/24", "dev", "bond0.3"], timeout=10)

    with (
        connect(lab.node("worker1"), ADDRESS["inet2"], ECHO) as other,
        connect(lab.node("worker2"), ADDRESS["inet3"], ECHO) as doomed,
        udp_socket(lab.node("worker1")) as datagrams,
    ):
        echo(other, b"before")
        echo(doomed, b"before")
        assert udp_whoami(datagrams, "inet3")[0] == old
        try:
            change(new, old)
            wait_for("flows on the old address gone", lambda: not conntrack_lines(engine, "-q", old))
            assert udp_whoami(datagrams, "inet3")[0] == new
            assert whoami(lab.node("worker2"), "inet3")[0] == new
            assert "1 received" in ping(lab.node("worker1"), ADDRESS["inet3"])
            echo(other, b"goes on")
            assert len(conntrack_lines(engine, "-q", UPLINK["inet2"], "--state", "ESTABLISHED")) == 1
        finally:
            change(old, new)
        wait_for("the old address again", lambda: not conntrack_lines(engine, "-q", new))
        assert whoami(lab.node("worker2"), "inet3")[0] == old


def test_uplink_without_address_for_a_while(lab: Lab, engine: Engine) -> None:
    """A running engine outlives it: what goes to that uplink is dropped until it has an address again."""
    head = lab.node("head")
    head.run(["ip", "address", "del", f"{UPLINK['inet3']}/24", "dev", "bond0.3"], timeout=10)
    try:
        head.run(["ip", "route", "add", "198.51.100.0/24", "dev", "bond0.3"], timeout=10)
        assert is_silent(lab.node("worker1"), ADDRESS["inet3"])
        assert answers(lab.node("worker1"), ADDRESS["inet2"])
        warned = engine.run("iptables", "-t", "nat", "-A", "POSTROUTING", "-o", "bond0.3", "-j", "MASQUERADE")
        assert "bond0.3 has no IPv4 address" in warned.stderr
    finally:
        head.run(["ip", "route", "del", "198.51.100.0/24", "dev", "bond0.3"], timeout=10)
        head.run(["ip", "address", "add", f"{UPLINK['inet3']}/24", "dev", "bond0.3"], timeout=10)
    wait_for("translation", lambda: answers(lab.node("worker1"), ADDRESS["inet3"]))


# ── several, and killed ones ────────────────────────────────────────────────────────────────────


def test_engines_side_by_side(lab: Lab, engine: Engine, owners_rules: Path, fast_path: str) -> None:
    """One engine a namespace, on the same queue number: each has its own rules and flows, and stops alone."""
    with Lab(unique_prefix("lttwo")) as second:
        with Engine(second, "--rules", str(owners_rules), env={"NATENGINE_FASTPATH": fast_path}) as other:
            assert whoami(lab.node("worker1"), "inet2")[0] == UPLINK["inet2"]
            with udp_socket(second.node("worker2"), source_port=4444) as link:
                assert udp_whoami(link, "inet3") == (UPLINK["inet3"], 4444)
            assert {line.split()[0] for line in conntrack_lines(engine)} == {"tcp"}
            assert {line.split()[0] for line in conntrack_lines(other)} == {"udp"}
            engine.type(["iptables -A FORWARD -p icmp -j DROP"])
            assert "-p icmp" not in other.run("iptables", "-S").stdout
            assert other.stop() == 0
            assert is_silent(second.node("worker1"), ADDRESS["inet2"])
        assert whoami(lab.node("worker1"), "inet2")[0] == UPLINK["inet2"]


def test_killed_engine_fails_closed(lab: Lab, engine: Engine) -> None:
    """After SIGKILL nothing passes; a new start takes over, and puts back what was before the first one."""
    with connect(lab.node("worker1"), ADDRESS["inet2"], ECHO) as link:
        echo(link, b"before")
        kill(engine)
        assert head_state(lab).ip_forward == "1"
        for worker, host in (("worker1", "inet2"), ("worker2", "inet3")):
            assert is_silent(lab.node(worker), ADDRESS[host])
        link.sendall(b"into the void")
    engine.start()
    for worker in ("worker1", "worker2"):
        for host, address in UPLINK.items():
            assert whoami(lab.node(worker), host)[0] == address
    assert engine.stop() == 0
    after = head_state(lab)
    assert (after.rules, after.ip_forward, after.queues) == ((), "0", "")


def test_killed_engine_and_a_start_without_rules(lab: Lab, new_engine: NewEngine) -> None:
    """Rules that were never saved die with the engine; its successor must not become a router without NAT."""
    engine = new_engine()
    engine.type()
    assert answers(lab.node("worker1"), ADDRESS["inet2"])
    kill(engine)
    engine.start()
    assert engine.run("iptables", "-t", "nat", "-S").stdout.count("-A") == 0
    assert lab.node("head").sysctl("net/ipv4/ip_forward") == "0"
    for host in UPLINK:
        assert is_silent(lab.node("worker1"), ADDRESS[host])
    engine.type()
    assert answers(lab.node("worker1"), ADDRESS["inet2"])


@one_fast_path
def test_stop_while_packets_come(lab: Lab, new_engine: NewEngine, owners_rules: Path) -> None:
    """Stopped and started under load, ten times: it always ends with 0, and nothing leaks."""
    flood = lab.node("worker1").popen(["ping", "-n", "-q", "-i", "0.002", ADDRESS["inet2"]], stdout=-3)
    try:
        engine = new_engine("--rules", owners_rules)
        for _ in range(10):
            assert engine.stop() == 0
            engine.start()
        assert answers(lab.node("worker2"), ADDRESS["inet2"])
    finally:
        flood.terminate()
        flood.wait(DEADLINE_S)
