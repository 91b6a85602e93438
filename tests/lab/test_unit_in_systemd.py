"""The unit, started by a real systemd with every restriction that it sets, in the lab's head.

A systemd takes over the machine that it is process 1 of, so this runs only in one of its own (netns-lab/vm), where it
is process 1 of a PID namespace.  Nothing of the distribution's is started: no target but ours, no D-Bus, no journal.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_tools import (
    ADDRESS,
    DEADLINE_S,
    ECHO,
    NATENGINE,
    PROJECT,
    UPLINK,
    connect,
    echo,
    head_state,
    is_silent,
    wait_for,
    whoami,
)
from natlab import Lab
from natlab.patience import PATIENCE

pytestmark = pytest.mark.lab

SYSTEMD = Path("/usr/lib/systemd/systemd")
UNIT = PROJECT / "systemd" / "natengine.service"
UNITS = Path("/run/systemd/system")
LOG, ENGINE_LOG = Path("/run/systemd.log"), Path("/run/natengine.log")
RULES, RUN_DIR = Path("/etc/natengine/rules.v4"), Path("/run/natengine")

BOOT = """
set -e
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /usr/lib/systemd/systemd --system --unit=lab.target --log-target=console --show-status=no
"""
LAB_TARGET = "[Unit]\nDescription=the lab\nDefaultDependencies=no\n"


# What lies in a home directory, ProtectHome hides from the unit; then it has to be a little weaker here.
USED = (PROJECT, Path(sys.executable), Path(sys.executable).resolve())
IN_A_HOME = any(path.is_relative_to(home) for path in USED for home in ("/root", "/home"))


def drop_in(lab: Lab) -> str:
    """What only the lab needs: the head's namespace, this environment's natengine, and more time."""
    return f"""
        [Unit]
        DefaultDependencies=no
        [Service]
        NetworkNamespacePath={lab.node("head").netns_path}
        Environment=PATH={Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin
        WatchdogSec={30 * PATIENCE:.0f}
        TimeoutSec={90 * PATIENCE:.0f}
        StandardError=append:{ENGINE_LOG}
        {"ProtectHome=read-only" if IN_A_HOME else ""}
    """


class Systemd:
    """A running systemd, seen from outside its namespaces."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def pid(self) -> str:
        """Return the number that its process 1 has outside; empty before it has one."""
        assert self._process.poll() is None, f"systemd has ended: {LOG.read_text()}"
        return Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().strip()

    def is_up(self) -> bool:
        """Whether it has reached its target."""
        return self.pid() != "" and self.run("systemctl", "is-system-running").stdout.strip() == "running"

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside."""
        return subprocess.run(
            ["nsenter", "--target", self.pid(), "--mount", "--pid", *argv],
            capture_output=True, text=True, timeout=200 * PATIENCE, check=False,
        )

    def ctl(self, *words: str) -> str:
        """Run systemctl, which has to succeed, and return what it says."""
        done = self.run("systemctl", *words)
        assert done.returncode == 0, (done.stdout + done.stderr, ENGINE_LOG.exists() and ENGINE_LOG.read_text())
        return done.stdout.strip()

    def show(self, name: str) -> str:
        """Return a property of the service."""
        return self.ctl("show", "--value", "--property", name, "natengine")

    def status(self) -> dict[str, str]:
        """Return what /proc/PID/status says of the engine."""
        lines = self.run("cat", f"/proc/{self.show('MainPID')}/status").stdout.splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@pytest.fixture
def systemd(lab: Lab, owners_rules: Path) -> Iterator[Systemd]:
    """A systemd that knows the unit, and the owner's rules where the unit looks for them."""
    if "NATLAB_VM" not in os.environ:
        pytest.skip("a systemd is started in a virtual machine only (make test-vm)")
    if not SYSTEMD.exists() or not shutil.which("unshare") or not shutil.which("nsenter"):
        pytest.skip("systemd, unshare or nsenter is not installed")
    if RULES.parent.exists():
        pytest.skip(f"{RULES.parent} is somebody's")
    (UNITS / "natengine.service.d").mkdir(parents=True)
    shutil.copy(UNIT, UNITS)
    (UNITS / "natengine.service.d" / "lab.conf").write_text(drop_in(lab))
    (UNITS / "lab.target").write_text(LAB_TARGET)
    (UNITS / "network-online.target").symlink_to("/dev/null")      # the lab is there; nobody else's network is wanted
    RULES.parent.mkdir()
    shutil.copy(owners_rules, RULES)
    namespaces = ["--mount", "--pid", "--uts", "--ipc", "--cgroup", "--mount-proc", "--fork", "--kill-child"]
    with LOG.open("w") as log:
        process = subprocess.Popen(["unshare", *namespaces, "sh", "-c", BOOT], stdout=log, stderr=log, text=True)
    try:
        made = Systemd(process)
        wait_for("systemd", made.is_up)
        yield made
    finally:
        process.kill()
        process.wait(DEADLINE_S)
        shutil.rmtree(UNITS)
        shutil.rmtree(RULES.parent)


def test_the_unit_works_as_it_is(lab: Lab, systemd: Systemd) -> None:
    """Started, killed and started again by systemd, stopped; connections go on, and stopped is closed."""
    before, head, worker = head_state(lab), lab.node("head"), lab.node("worker1")
    systemd.ctl("start", "natengine")
    assert systemd.show("ProtectHome") == ("read-only" if IN_A_HOME else "yes")
    status = systemd.status()
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 1 << 12 | 1 << 13      # NET_ADMIN, NET_RAW
    for host, address in UPLINK.items():
        assert whoami(worker, host)[0] == address
    with connect(worker, ADDRESS["inet2"], ECHO) as link:
        echo(link, b"before")
        systemd.ctl("kill", "--signal=KILL", "--kill-who=main", "natengine")
        wait_for("the next engine", lambda: systemd.show("NRestarts") == "1" and systemd.show("SubState") == "running")
        echo(link, b"after")
    systemd.ctl("stop", "natengine")
    assert systemd.show("Result") == "success"
    assert is_silent(worker, ADDRESS["inet2"])
    head.run([*NATENGINE, "hooks", "remove"], timeout=60)
    assert head_state(lab) == before
    assert not RUN_DIR.exists()
