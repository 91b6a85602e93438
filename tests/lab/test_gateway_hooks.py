"""The hooks in the kernel, by both back ends: installed, changed, taken over and removed, among the rules of others."""

from __future__ import annotations

import contextlib
import os
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
    connect,
    echo,
    head_state,
    is_silent,
    kill,
    ping,
    send_raw,
    wait_for,
    whoami,
)
from natlab import Lab
from natlab.engine import Engine
from natlab.patience import PATIENCE
from scapy.layers.inet import IP, TCP, UDP
from support.backends import NAMES

from natengine.adapters.hook_backends import BACK_ENDS
from natengine.adapters.hook_plan import Flood, Flooder, HookPlan
from natengine.adapters.hooks_nft import NftHooks
from natengine.app.client import ask
from natengine.errors import HostError
from natengine.wire.addr import parse_ipv4

pytestmark = [pytest.mark.lab, pytest.mark.parametrize("fast_path", [NAMES[-1]], indirect=True)]

QUEUES = {
    "iptables": ("-A natengine-in -i bond0.2 -j NFQUEUE", "-A natengine-out -o bond0.3 -j NFQUEUE"),
    "nft": ('iifname "bond0.2" queue', 'oifname "bond0.3" queue'),
}


def back_ends(lab: Lab) -> set[str]:
    """Whose hooks are in force on the head."""
    rules = "\n".join(head_state(lab).rules)
    return {name for name, lines in QUEUES.items() if any(line in rules for line in lines)}


def translates(lab: Lab) -> None:
    """Fail unless both workers get out over both uplinks."""
    for worker in ("worker1", "worker2"):
        for host, address in UPLINK.items():
            assert whoami(lab.node(worker), host)[0] == address


def test_installed_and_removed(lab: Lab, new_engine: NewEngine, owners_rules: Path, hooks: str) -> None:
    """Each uplink is hooked in both directions; `status` says by whom; afterwards nothing is there."""
    before = head_state(lab)
    engine = new_engine("--rules", owners_rules, "--hooks", hooks)
    rules = "\n".join(head_state(lab).rules)
    assert all(line in rules for line in QUEUES[hooks])
    assert "bypass" not in rules
    assert f"hooks by {hooks}" in engine.run("status").stdout
    translates(lab)
    engine.stop()
    assert head_state(lab) == before


def test_auto_asks_the_kernel(
    lab: Lab, new_engine: NewEngine, owners_rules: Path, tmp_path: Path, nft_is_missing: str | None
) -> None:
    """nft if the kernel has all it needs, else iptables; the settings file may say otherwise."""
    engine = new_engine("--rules", owners_rules)
    assert f"hooks by {'iptables' if nft_is_missing else 'nft'}" in engine.run("status").stdout
    engine.stop()
    settings = tmp_path / "natengine.toml"
    settings.write_text('hooks = "iptables"\n')
    engine = new_engine("--rules", owners_rules, "--config", settings)
    assert "hooks by iptables" in engine.run("status").stdout


@pytest.fixture
def rules_of_others(lab: Lab, nft_is_missing: str | None) -> Iterator[None]:
    """Rules at the same places: what arrives for a worker, and leaves from an uplink's address, is counted."""
    head = lab.node("head")
    rules = [
        ("raw", "PREROUTING", "-i", "bond0.2", "-d", ADDRESS["worker1"]),
        ("mangle", "POSTROUTING", "-o", "bond0.2", "-s", UPLINK["inet2"]),
        ("mangle", "FORWARD", "-i", "bond0.2", "-d", ADDRESS["worker1"]),
    ]
    for table, *rule in rules:
        head.run(["iptables", "-w", "-t", table, "-A", *rule], timeout=20)
    if not nft_is_missing:
        head.run(["nft", "-f", "-"], timeout=20, input=f"""
            table ip theirs {{
                chain arriving {{ type filter hook prerouting priority raw + 10;
                    iifname "bond0.2" ip daddr {ADDRESS["worker1"]} counter; }}
                chain leaving {{ type filter hook postrouting priority mangle + 10;
                    oifname "bond0.2" ip saddr {UPLINK["inet2"]} counter; }}
            }}
            """)
    try:
        yield
    finally:
        for table, *rule in rules:
            head.run(["iptables", "-w", "-t", table, "-D", *rule], timeout=20)
        if not nft_is_missing:
            head.run(["nft", "delete", "table", "ip", "theirs"], timeout=20)


def counted(lab: Lab) -> dict[str, bool]:
    """Which of the rules of others have seen a packet."""
    head = lab.node("head")
    saved = head.run(["iptables-save", "-c"], timeout=20).stdout
    found = {chain: packets != "0" for packets, chain in re.findall(r"^\[(\d+):\d+\] -A ([A-Z]+) ", saved, re.M)}
    if shutil.which("nft"):
        table = head.run(["nft", "list", "table", "ip", "theirs"], timeout=20, check=False).stdout
        for key, packets in re.findall(r"([io]ifname).* packets (\d+)", table):
            found[key] = packets != "0"
    return found


def test_rules_of_others(
    lab: Lab, new_engine: NewEngine, owners_rules: Path, hooks: str, rules_of_others: None
) -> None:
    """They are neither changed nor moved, and see packets as they are inside (arriving) and outside (leaving).

    With one exception, which is NFQUEUE's: a packet that was queued goes on behind the whole table that
    queued it, so that iptables rules in raw PREROUTING and mangle POSTROUTING do not see it behind a
    rule of the iptables back end.
    """
    before = head_state(lab).rules
    engine = new_engine("--rules", owners_rules, "--hooks", hooks)
    assert set(before) < set(head_state(lab).rules)
    assert "1 received" in ping(lab.node("worker1"), ADDRESS["inet2"])
    seen = counted(lab)
    assert seen.pop("FORWARD")
    for builtin in ("PREROUTING", "POSTROUTING"):
        assert seen.pop(builtin) == (hooks == "nft")
    assert all(seen.values())
    engine.stop()
    assert head_state(lab).rules == before


@pytest.mark.parametrize("killed", ["iptables", "nft"])
def test_killed_and_taken_over(
    lab: Lab, new_engine: NewEngine, owners_rules: Path, killed: str, hooks: str, nft_is_missing: str | None
) -> None:
    """What a killed engine leaves lets nothing pass, and gives way to whichever back end comes next."""
    if killed == "nft" and nft_is_missing:
        pytest.skip(nft_is_missing)
    before = head_state(lab)
    first = new_engine("--rules", owners_rules, "--hooks", killed)
    translates(lab)
    kill(first)
    assert back_ends(lab) == {killed}
    for host in UPLINK:
        assert is_silent(lab.node("worker1"), ADDRESS[host])
    env = {"NATENGINE_RUN_DIR": str(first.run_dir)}      # as after a crash: forwarding was not on before the first one
    second = new_engine("--rules", owners_rules, "--hooks", hooks, env=env)
    assert back_ends(lab) == {hooks}
    translates(lab)
    second.stop()
    assert head_state(lab) == before


def test_changes_under_load(lab: Lab, new_engine: NewEngine, owners_rules: Path, hooks: str) -> None:
    """Uplinks come while packets flow: none is lost, and none leaves untranslated (which the whole module checks)."""
    engine = new_engine("--rules", owners_rules, "--hooks", hooks)
    assert "1 received" in ping(lab.node("worker1"), ADDRESS["inet2"])
    argv = ["ping", "-n", "-q", "-i", "0.01", "-c", str(int(300 * PATIENCE)), "-W", "20", ADDRESS["inet2"]]
    flood = lab.node("worker1").popen(argv, stdout=-1, text=True)
    changes = 0
    while flood.poll() is None and changes < 20:
        engine.run("iptables", "-t", "nat", "-A", "POSTROUTING", "-o", f"later{changes}", "-j", "MASQUERADE")
        changes += 1
    said, _ = flood.communicate(timeout=60 * PATIENCE)
    assert changes > 1 and "later1" in "\n".join(head_state(lab).rules)
    assert " 0% packet loss" in said, said


NOBODY = "203.0.113.77"     # where an uplink leads, and who does not answer
SHED_PACKETS = 100          # at rates of 2 and 10 a second: on no machine all of them pass


class Shed:
    """What the hooks of an engine shed, while nobody else sends anything."""

    def __init__(self, lab: Lab, engine: Engine, hooks: str) -> None:
        self.lab, self.engine = lab, engine
        self.hooks = BACK_ENDS[hooks]((0, 0))

    def counts(self) -> tuple[int, int]:
        """How many packets have been shed, and how many came to the engine."""
        with self.lab.node("head").enter():
            shed = self.hooks.shed_packets()
        return shed, ask(self.engine.run_dir, "status")["status"]["io"]["packets"]

    def name(self, worker: str, kind: Flood) -> None:
        """As the engine does it, but that nft is waited for."""
        with self.lab.node("head").enter():
            self.hooks.shed(Flooder(parse_ipv4(ADDRESS[worker]), kind))
        for nft in getattr(self.hooks, "_naming", []):
            nft.wait()

    def of(self, worker: str, kind: Flood, named: str = "") -> int:
        """How many are shed of those that a worker sends now, just after one is named, perhaps."""
        layer = TCP if kind is Flood.SYN else UDP
        packets = [
            IP(src=ADDRESS[worker], dst=NOBODY) / layer(sport=7000 + n, dport=9) for n in range(SHED_PACKETS)
        ]
        shed, came = self.counts()
        if named:
            self.name(named, kind)
        send_raw(self.lab, worker, *packets)
        wait_for("all of them", lambda: sum(self.counts()) >= shed + came + SHED_PACKETS)
        return self.counts()[0] - shed


def test_shedding(lab: Lab, new_engine: NewEngine, owners_rules: Path, tmp_path: Path, hooks: str) -> None:
    """Who is named is shed, of the kind that he is named for; no established connection; and then no more."""
    config = tmp_path / "natengine.toml"
    config.write_text("new_flows_when_busy = 1\n")
    engine = new_engine("--rules", owners_rules, "--hooks", hooks, "--config", config)
    shed = Shed(lab, engine, hooks)
    for kind in Flood:
        assert shed.of("worker1", kind) == 0, "nobody has been named"
        wait_for("it is shed", lambda kind=kind: shed.of("worker1", kind, named="worker1"))
        assert shed.of("worker2", kind, named="worker1") == 0
        wait_for("it is over", lambda kind=kind: shed.of("worker1", kind) == 0)
    with connect(lab.node("worker1"), ADDRESS["inet2"], ECHO) as link:
        before, _ = shed.counts()
        shed.name("worker1", Flood.SYN)
        for _ in range(SHED_PACKETS):
            echo(link, b"of an established connection")
        assert shed.counts()[0] == before


@pytest.mark.skipif(not shutil.which("nft"), reason="nft is not installed")
def test_the_kernel_takes_the_sets_of_nft(lab: Lab, fast_path: str) -> None:
    """Shedding by nft needs no queue: seen on the loopback, on kernels without nft's queue expression, too."""
    loopback = Flooder(parse_ipv4("127.0.0.1"), Flood.OTHER)
    with lab.node("head").enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        nft = NftHooks((0, 0))
        nft._queue = "accept"

        def shed() -> int:
            before = nft.shed_packets()
            for _ in range(SHED_PACKETS):
                with contextlib.suppress(OSError):      # nobody listens there
                    link.sendto(b"x", ("127.0.0.1", 9))
            return nft.shed_packets() - before

        try:
            try:
                nft.sync(HookPlan(("lo",), flows_a_second=1))
            except HostError as error:
                pytest.skip(str(error))
            if nft.cannot_shed:
                pytest.skip(nft.cannot_shed)
            assert shed() == 0, "nobody has been named"
            nft.shed(loopback._replace(kind=Flood.SYN))
            nft.shed(loopback)
            wait_for("it is shed", shed)                # nft is not waited for
            nft.sync(HookPlan(("lo", "eth0"), flows_a_second=1))
            assert nft.shed_packets(), "the count goes on"
            wait_for("it is over", lambda: shed() == 0)
            taken_over = NftHooks((0, 0))
            taken_over._queue = "accept"
            taken_over.sync(HookPlan(("lo",), flows_a_second=2))
            assert taken_over.shed_packets() == 0
        finally:
            nft.remove()


@pytest.mark.parametrize("variant", ["legacy", "nft"])
def test_variants_of_iptables(
    lab: Lab, new_engine: NewEngine, owners_rules: Path, tmp_path: Path, variant: str
) -> None:
    """The iptables back end works with both programs that may be called iptables."""
    head = lab.node("head")
    for program in ("", "-restore", "-save"):
        real = shutil.which(f"iptables-{variant}{program}")
        if real is None:
            pytest.skip(f"iptables-{variant} is not installed")
        (tmp_path / f"iptables{program}").symlink_to(real)

    def saved() -> str:
        return head.run([f"iptables-{variant}-save"], timeout=20).stdout

    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    engine = new_engine("--rules", owners_rules, "--hooks", "iptables", env=env)
    assert all(line in saved() for line in QUEUES["iptables"])
    translates(lab)
    kill(engine)
    engine.start()
    translates(lab)
    engine.stop()
    assert "natengine" not in saved()
