"""Who is measured.  Every subject is started and stopped in the same head, one at a time.

    kernel    iptables -j MASQUERADE; default sysctls, no filter rules
    c         nfq_nat.c: rewrites every packet and does nothing else; NFQUEUE's own limit
    nop       nfq_nat.c -a: every packet crosses the queue and is accepted as it is
    c:poll    nfq_nat.c -p 50: looks for the next packet for 50 us before it sleeps
    natengine:ADAPTER    `natengine run --io ADAPTER`, one subject for each adapter it has

Rule: nothing of one subject is left when the next one starts.  The head is a namespace of our own
lab, so its whole rule set is flushed; that also unregisters the kernel's connection tracking, which
would otherwise go on costing the subjects that do not use it.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from natlab import Lab
from natlab.engine import Engine
from natlab.errors import LabError

from .machine import Cores, pin

UPLINK = "bond0.2"
INSIDE, OUTSIDE = "10.1.0.11", "203.0.113.1"
QUEUE = "2663"
START_DEADLINE_S = 10.0
HOOKS = (
    ("mangle", "POSTROUTING", "-o"),
    ("raw", "PREROUTING", "-i"),
)
RULES = f"*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o {UPLINK} -j MASQUERADE\nCOMMIT\n"


@dataclass(frozen=True)
class Place:
    """Where a subject works."""

    lab: Lab
    cores: Cores
    programs: Path              # directory of the compiled ones, and of other scratch files


@dataclass
class Running:
    """A subject at work.

    Attributes:
        pid: Its process; None for the kernel, which works in whoever sends.
        backend: What it really is, as it says itself.
        engine: For natengine, to ask it questions.
    """

    pid: int | None
    backend: str
    engine: Engine | None = None
    said: list[str] = field(default_factory=list)


class Subject(Protocol):
    """Something that forwards packets from worker1 to inet2."""

    name: str
    translates: bool            # whether inet2 sees OUTSIDE

    def running(self, place: Place) -> contextlib.AbstractContextManager[Running]:
        """Start it, and stop it at the end of the block."""
        ...


class Kernel:
    """MASQUERADE by the kernel."""

    name = "kernel"
    translates = True

    @contextlib.contextmanager
    def running(self, place: Place) -> Iterator[Running]:
        head = place.lab.node("head")
        with _clean(place):
            head.run(_iptables("nat", "POSTROUTING", "-o", UPLINK, "-j", "MASQUERADE"), timeout=10)
            head.sysctl("net/ipv4/ip_forward", 1)
            yield Running(None, "iptables MASQUERADE")


class Minimal:
    """The C program."""

    def __init__(self, name: str, *, translates: bool, options: Sequence[str] = ()) -> None:
        self.name = name
        self.translates = translates
        self._options = options

    @contextlib.contextmanager
    def running(self, place: Place) -> Iterator[Running]:
        head = place.lab.node("head")
        argv = [str(place.programs / "nfq_nat"), *self._options, QUEUE, f"{UPLINK}={INSIDE}/{OUTSIDE}"]
        with contextlib.ExitStack() as stack:
            stack.enter_context(_clean(place))
            if not self.translates:
                stack.enter_context(_inside_route(place))
            pipe = subprocess.PIPE
            process = stack.enter_context(head.popen(argv, stdout=pipe, stderr=pipe, text=True))
            stack.callback(process.kill)
            _wait_ready(process, argv[0])
            pin(process.pid, place.cores.engine)
            for table, chain, option in HOOKS:
                head.run(_iptables(table, chain, option, UPLINK, "-j", "NFQUEUE", "--queue-num", QUEUE), timeout=10)
            head.sysctl("net/ipv4/ip_forward", 1)
            running = Running(process.pid, " ".join(["nfq_nat", *self._options]))
            yield running
            process.send_signal(signal.SIGTERM)
            running.said.append(process.communicate(timeout=START_DEADLINE_S)[1].strip())


class Natengine:
    """The engine with one of its adapters."""

    translates = True

    def __init__(self, adapter: str, options: Sequence[str] = ()) -> None:
        self.name = f"natengine:{adapter}"
        self._arguments = ["--io", adapter, *options]

    def with_options(self, *options: str) -> Natengine:
        """Return one that is started with additional options."""
        return Natengine(self._arguments[1], [*self._arguments[2:], *options])

    @contextlib.contextmanager
    def running(self, place: Place) -> Iterator[Running]:
        rules = place.programs / "rules.v4"
        rules.write_text(RULES)
        engine = Engine(place.lab, *self._arguments, env={"NATENGINE_RULES": str(rules)})
        with _clean(place), engine:
            assert engine.process is not None
            pin(engine.process.pid, place.cores.engine)
            status = json.loads(engine.run("status", "--json").stdout)
            backend = f"{status['io']['name']}, {status['fastpath']} fast path"
            yield Running(engine.process.pid, backend, engine)


def adapters() -> list[str]:
    """Ask the program itself which adapters it has, simplest first."""
    match = re.search(r"--io \{([^}]*)\}", _run_help())
    return [] if match is None else [name for name in match[1].split(",") if name != "auto"]


def has_option(option: str) -> bool:
    """Whether `natengine run` has this option."""
    return option in _run_help()


def all_subjects() -> dict[str, Subject]:
    """Every subject there is here, by name; the two yardsticks first."""
    subjects: list[Subject] = [Kernel(), Minimal("c", translates=True)]
    subjects += [Natengine(adapter) for adapter in adapters()]
    subjects.append(Minimal("nop", translates=False, options=["-a"]))
    subjects.append(Minimal("c:poll", translates=True, options=["-p", "50"]))
    return {subject.name: subject for subject in subjects}


def _run_help() -> str:
    argv = [sys.executable, "-m", "natengine", "run", "--help"]
    return subprocess.run(argv, capture_output=True, text=True, check=False, env={"COLUMNS": "200"}).stdout


def _iptables(table: str, chain: str, *rule: str) -> list[str]:
    return ["iptables", "-w", "-t", table, "-A", chain, *rule]


def _wait_ready(process: subprocess.Popen[str], name: str) -> None:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], START_DEADLINE_S)
    if not ready or process.stdout.readline() != "ready\n":
        process.kill()
        raise LabError((process.communicate()[1].strip() or f"{name} did not get ready").splitlines()[-1])


@contextlib.contextmanager
def _clean(place: Place) -> Iterator[None]:
    """Have nothing in the head's netfilter before the block, and nothing after it."""
    _sweep(place)
    try:
        yield
    finally:
        _sweep(place)


def _sweep(place: Place) -> None:
    head = place.lab.node("head")
    head.sysctl("net/ipv4/ip_forward", 0)
    head.run(["nft", "flush", "ruleset"], timeout=10)
    if shutil.which("conntrack"):       # else they expire by themselves, and the kernel's collector runs meanwhile
        head.run(["conntrack", "-F"], timeout=10, check=False)


@contextlib.contextmanager
def _inside_route(place: Place) -> Iterator[None]:
    """Let inet2 answer inside addresses, for a subject that does not translate."""
    inet2 = place.lab.node("inet2")
    route = ["10.1.0.0/24", "via", OUTSIDE]
    inet2.run(["ip", "route", "add", *route], timeout=5)
    try:
        yield
    finally:
        inet2.run(["ip", "route", "del", *route], timeout=5)
