"""Mixed traffic for as long as NATENGINE_SOAK_SECONDS says, through a gateway that is changed, listed and restarted.

Nothing leaks (the fixture `lab` captures on the internet), no byte is wrong, no flow and no mapping stays, and the
engine does not grow.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import time
from pathlib import Path

import pytest
from conftest import NewEngine
from echoed_streams import EchoedStreams
from gateway_tools import ADDRESS, ECHO, UPLINK, connect, kill, ping, udp_socket, udp_whoami, wait_for, whoami
from natlab import Lab
from natlab.engine import Engine
from support.backends import NAMES

SECONDS = float(os.environ.get("NATENGINE_SOAK_SECONDS", "10"))
GROWTH_MIB = 32                     # of what an engine had after its first round

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300 + 3 * SECONDS)]


def resident_mib(engine: Engine) -> int:
    """How much memory the engine has."""
    assert engine.process is not None
    for line in Path(f"/proc/{engine.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) // 1024
    raise AssertionError("no VmRSS")


def change_rules(engine: Engine) -> None:
    """A rule comes and goes; every flow is asked about again."""
    rule = ["FORWARD", "-p", "tcp", "--dport", "9", "-j", "DROP"]
    engine.run("iptables", "-I", *rule)
    engine.run("iptables", "-D", *rule)


def list_all(engine: Engine) -> None:
    engine.run("conntrack", "-L")
    engine.run("status")


def restart(engine: Engine) -> None:
    assert engine.stop() == 0
    engine.start()


def kill_and_start(engine: Engine) -> None:
    kill(engine)
    engine.start()


def some_of_everything(lab: Lab, chance: random.Random) -> None:
    """HTTP, UDP, pings small and in fragments."""
    worker, host = lab.node(chance.choice(("worker1", "worker2"))), chance.choice(sorted(UPLINK))
    assert whoami(worker, host)[0] == UPLINK[host]
    with udp_socket(worker) as link:
        assert udp_whoami(link, host)[0] == UPLINK[host]
    ping(worker, ADDRESS[host], count=5)
    ping(worker, ADDRESS[host], "-s", "5000", count=3)


@pytest.mark.parametrize("fast_path", [NAMES[-1]], indirect=True)
def test_soak(lab: Lab, new_engine: NewEngine, owners_rules: Path) -> None:
    """Round after round, with a disturbance in each."""
    engine = new_engine("--rules", owners_rules, "--guard", "--max-flows", 16384)
    chance, end = random.Random(1), time.monotonic() + SECONDS
    disturbances = itertools.cycle((change_rules, list_all, kill_and_start, change_rules, restart))
    at_first: dict[int, int] = {}           # by pid
    with contextlib.ExitStack() as stack:
        stack.callback(engine.run, "hooks", "remove")
        stack.callback(engine.stop)
        links = [
            stack.enter_context(connect(lab.node(worker), ADDRESS[host], ECHO))
            for worker in ("worker1", "worker2") for host in UPLINK for _ in range(10)
        ]
        streams = EchoedStreams(links)
        try:
            while time.monotonic() < end:
                some_of_everything(lab, chance)
                next(disturbances)(engine)
                streams.all_go_on()
                assert engine.process is not None
                size = resident_mib(engine)
                assert size < at_first.setdefault(engine.process.pid, size) + GROWTH_MIB
        finally:
            streams.finish()
        for link in links:
            link.close()
        engine.run("conntrack", "-F")

        def is_empty() -> bool:
            engine.run("conntrack", "-F")       # a last FIN may have begun something
            status = json.loads(engine.run("status", "--json").stdout)
            return status["flows"] == status["mappings"] == 0

        wait_for("no flow and no mapping is left", is_empty)
