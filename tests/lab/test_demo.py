"""The demonstration, `netns-lab/lab demo`: it works, and whenever it is interrupted nothing is left."""

from __future__ import annotations

import contextlib
import os
import random
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_tools import PROJECT, catches, wait_for
from natlab import DEFAULT_PREFIX, unique_prefix
from natlab.engine import OWNERS_COMMANDS
from natlab.namespace import NETNS_DIR
from natlab.record import RUN_DIR

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("gateway_lab")]

MARK = "NATLAB_TEST_MARK"
DEMO_DEADLINE_S = 100.0


class Demos:
    """Starts demonstrations, and finds whatever is left of them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mark = secrets.token_hex(8)
        self._names_before = self._names()
        self._prefixes: tuple[str, ...] = ()
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, prefix: str = DEFAULT_PREFIX) -> subprocess.Popen[str]:
        """Start one, as a shell does: in a process group of its own."""
        options = [] if prefix == DEFAULT_PREFIX else ["--prefix", prefix]
        self._prefixes += (prefix,)
        process = subprocess.Popen(
            [sys.executable, str(PROJECT / "netns-lab" / "lab"), *options, "demo"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            process_group=0, env={**os.environ, MARK: self._mark, "TMPDIR": str(self._directory)},
        )
        self._processes.append(process)
        return process

    def remains(self) -> list[str]:
        """Processes, namespaces, records and files of demonstrations that have ended."""
        found = [f"{path}" for path in self._directory.iterdir()]
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):      # it ended meanwhile
                if f"{MARK}={self._mark}".encode() in path.read_bytes().split(b"\0"):
                    found.append(path.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode())
        new = self._names() - self._names_before
        records = tuple(path.stem for path in RUN_DIR.glob("*.json"))
        # a lab that has a record is somebody else's, unless we named it
        found += [name for name in new if name.startswith(self._prefixes) or not name.startswith(records)]
        return found

    def end(self) -> None:
        """Kill what a failed test has left running."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.communicate()

    @staticmethod
    def _names() -> set[str]:
        folders = (NETNS_DIR, RUN_DIR, Path("/dev/shm"))
        return {path.name for folder in folders for path in folder.glob("*demo*")}


@pytest.fixture
def demos(tmp_path: Path) -> Iterator[Demos]:
    """Demonstrations of which nothing is left at the end of the test."""
    demos = Demos(tmp_path)
    try:
        yield demos
    finally:
        demos.end()
    wait_for("nothing left", lambda: not demos.remains())    # demonstrations of others come and go as well


def check_story(output: str) -> None:
    """Compare what a demonstration has printed with what it promises to show."""
    assert "\x1b" not in output                 # plain: this is no terminal
    steps = re.findall(r"^(\d+)\. ", output, re.MULTILINE)
    assert steps == [str(number) for number in range(1, len(steps) + 1)] and len(steps) >= 9
    lines = [line.strip() for line in output.splitlines()]
    for command in OWNERS_COMMANDS:
        assert f"head$ natengine {command}" in lines
    assert sum(line.startswith("MASQUERADE ") for line in lines) == 2
    assert output.count("3 packets transmitted, 3 received, 0% packet loss") == 2
    for address in ("203.0.113.1", "198.51.100.1"):
        assert any(re.fullmatch(rf"{re.escape(address)} \d+", line) for line in lines)
    assert len([line for line in lines if re.fullmatch(r"[0-9a-f]{64}", line)]) == 2
    assert len(re.findall(r"MB received, \d+\.\d+ Gbit/s", output)) == 2
    for protocol in ("icmp     1 ", "tcp      6 "):
        assert any(line.startswith(protocol) and "mark=0 use=1" in line for line in lines)
    assert any(line.endswith("0 packets") and line.startswith("tcpdump") for line in lines)
    assert "-P POSTROUTING ACCEPT" in lines
    assert "-A POSTROUTING -o bond0.2 -j MASQUERADE" in lines
    assert lines[-1] == "All of it worked."


def test_two_demos_at_once(demos: Demos) -> None:
    """Two at the same time, without options: each has a lab of its own, both work and exit with 0."""
    running = [demos.start(), demos.start()]
    for process in running:
        output, _ = process.communicate(timeout=DEMO_DEADLINE_S)
        assert process.returncode == 0, output
        check_story(output)


@pytest.mark.parametrize(
    ("moment", "to_group"),
    [
        ("1. ", True), ("2. ", False), ("2. ", True), ("3. ", True), ("3. ", False),
        ("4. ", True), ("5. ", False), ("5. ", True), ("6. ", True),
    ],
)
def test_interrupted(demos: Demos, moment: str, to_group: bool) -> None:
    """Ctrl-C in the middle of a step: everything is taken down again, and the status is 130."""
    process = demos.start(unique_prefix("ltdemo"))
    assert process.stdout is not None
    told = ""
    while f"\n{moment}" not in told:
        line = process.stdout.readline()
        assert line, told
        told += line
    delay = random.Random(f"{moment}{to_group}").uniform(0, 0.4)
    time.sleep(delay)
    (os.killpg if to_group else os.kill)(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=DEMO_DEADLINE_S)
    assert process.returncode == 130, f"{delay:.3f} s after {moment}: {told}{output}"
    assert "Interrupted" in output and "Traceback" not in output


def test_interrupted_twice(demos: Demos) -> None:
    """An impatient second and third Ctrl-C do not stop the taking down."""
    process = demos.start(unique_prefix("ltdemo"))
    assert process.stdout is not None
    while not process.stdout.readline().startswith("4. "):
        assert process.poll() is None
    for _ in range(3):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.02)
    output, _ = process.communicate(timeout=DEMO_DEADLINE_S)
    assert process.returncode == 130, output


def test_interrupted_while_it_begins(demos: Demos) -> None:
    """Before there is anything: it ends at once, as a shell reports with 130, and quietly."""
    chance = random.Random(3)
    for _ in range(6):
        process = demos.start(unique_prefix("ltdemo"))
        wait_for("a handler", lambda pid=process.pid: catches(pid, signal.SIGINT))
        time.sleep(chance.uniform(0, 0.5))
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=DEMO_DEADLINE_S)
        if "init_import_site" in output:
            continue                    # Python itself had not begun yet, and says so at length
        assert process.returncode in (130, -signal.SIGINT), output
        assert "Traceback" not in output


def test_terminated(demos: Demos) -> None:
    """SIGTERM ends it as well, and takes everything down."""
    process = demos.start(unique_prefix("ltdemo"))
    assert process.stdout is not None
    while not process.stdout.readline().startswith("3. "):
        assert process.poll() is None
    process.terminate()
    output, _ = process.communicate(timeout=DEMO_DEADLINE_S)
    assert process.returncode in (130, 143), output
