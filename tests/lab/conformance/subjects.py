"""What is tested: natengine, and the kernel's own MASQUERADE, each the gateway of the same lab."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from gateway_tools import OWNERS_RULES
from natlab import Lab
from natlab.engine import OWNERS_COMMANDS, Engine

from conformance.rows import Requirement


class Subject(Protocol):
    """A gateway that runs."""

    def conntrack(self, *words: str) -> str:
        """What `conntrack` with these words says."""

    def iptables(self, command: str) -> None:
        """Change a rule."""


class Natengine:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def conntrack(self, *words: str) -> str:
        return self.engine.run("conntrack", *words, check=False).stdout

    def iptables(self, command: str) -> None:
        self.engine.run("iptables", *shlex.split(command))


class Kernel:
    def __init__(self, lab: Lab) -> None:
        self.head = lab.node("head")

    def conntrack(self, *words: str) -> str:
        return self.head.run(["conntrack", *words], timeout=20, check=False).stdout

    def iptables(self, command: str) -> None:
        self.head.run(["iptables", "-w", *shlex.split(command)], timeout=20)


@contextlib.contextmanager
def natengine(lab: Lab, wanted: Requirement) -> Iterator[Natengine]:
    """natengine with the owner's rules, those of the requirement before them."""
    with tempfile.TemporaryDirectory() as directory:
        config, rules = Path(directory) / "natengine.toml", Path(directory) / "rules.v4"
        config.write_text(wanted.settings)
        rules.write_text(OWNERS_RULES)
        with Engine(lab, "--config", str(config), "--rules", str(rules)) as engine:
            subject = Natengine(engine)
            for rule in wanted.rules:
                subject.iptables(rule)
            yield subject


@contextlib.contextmanager
def kernel(lab: Lab, wanted: Requirement) -> Iterator[Kernel]:
    """The kernel with the same rules."""
    subject = Kernel(lab)
    head = lab.node("head")
    head.sysctl("net/ipv4/ip_forward", 1)
    try:
        for command in (*OWNERS_COMMANDS, *wanted.rules):
            subject.iptables(command.removeprefix("iptables "))
        yield subject
    finally:
        subject.iptables("-t nat -F")
        subject.iptables("-F")
        head.sysctl("net/ipv4/ip_forward", 0)
        subject.conntrack("-F")


START = {"natengine": natengine, "kernel": kernel}
