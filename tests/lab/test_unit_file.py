"""The systemd unit: systemd accepts it, and an engine runs under the restrictions that it sets."""

from __future__ import annotations

import configparser
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from gateway_tools import (
    ADDRESS,
    NATENGINE,
    PROJECT,
    UPLINK,
    head_state,
    ping,
    whoami,
)
from natlab import Lab
from natlab.patience import PATIENCE

pytestmark = pytest.mark.lab

UNIT = PROJECT / "systemd" / "natengine.service"


class _Unit(configparser.RawConfigParser):
    optionxform = staticmethod(str)  # type: ignore[assignment]


@pytest.fixture(scope="module")
def unit() -> _Unit:
    """The unit file, read; a setting that comes twice is an error."""
    parser = _Unit(delimiters="=", comment_prefixes="#", interpolation=None, strict=True)
    parser.read(UNIT)
    return parser


def test_systemd_accepts_it(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say, not even a warning."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / UNIT.name
    shutil.copy(UNIT, copy)
    argv = ["systemd-analyze", "verify", "--man=no", str(copy)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60 * PATIENCE, check=False)
    if "Failed to initialize manager" in done.stderr:
        pytest.skip(done.stderr.strip())
    said = [line for line in done.stderr.splitlines() if UNIT.stem in line]
    assert (done.returncode, said) == (0, [])


def test_sections_and_service(unit: _Unit) -> None:
    """What the program counts on: notification, a watchdog, its run directory, and that it comes back."""
    assert unit.sections() == ["Unit", "Service", "Install"]
    service = unit["Service"]
    assert service["Type"] == "notify" and int(service["WatchdogSec"]) > 0
    assert (service["RuntimeDirectory"], service["RuntimeDirectoryMode"]) == ("natengine", "0700")
    assert service["RuntimeDirectoryPreserve"] == "restart"         # else ip_forward stays on after a crash
    assert service["Restart"] == "always"
    assert service["ExecStart"].split()[-3:] == ["natengine", "run", "--guard"]      # stopped is closed
    assert service["RestartPreventExitStatus"] == "2"               # a mistake in the rules: no use in trying


def test_its_program_is_found(unit: _Unit, tmp_path: Path) -> None:
    """A `natengine` in /usr/local/bin, perhaps a link into a virtual environment, is what ExecStart runs."""
    program, *arguments = unit["Service"]["ExecStart"].split()
    installed = shutil.which("natengine", path=f"{Path(NATENGINE[0]).parent}")
    if installed is None:
        pytest.skip("natengine is not installed in this environment")
    (tmp_path / "natengine").symlink_to(installed)
    argv = [program, *arguments, "--help"]
    # systemd's own PATH, with our directory in the place of /usr/local/bin
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60 * PATIENCE, check=False)
    assert done.returncode == 0 and "natengine run" in done.stdout, done.stderr


def restricted(unit: _Unit) -> list[str]:
    """The unit's capabilities and no more, and no new ones, as a command in front of another."""
    capabilities = unit["Service"]["CapabilityBoundingSet"].lower().replace("cap_", "").split()
    assert unit["Service"]["NoNewPrivileges"] == "yes"
    bounding = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    return ["setpriv", f"--bounding-set={bounding}", "--inh-caps=-all", "--no-new-privs"]


def test_its_capabilities_suffice(lab: Lab, unit: _Unit, owners_rules: Path, tmp_path: Path) -> None:
    """With them, an engine starts, is told rules, translates, is killed, takes over, and cleans up."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    before, head, run_dir = head_state(lab), lab.node("head"), tmp_path / "run"
    env = {**os.environ, "NATENGINE_RUN_DIR": str(run_dir)}
    argv = [*restricted(unit), *NATENGINE]
    for number, status in ((signal.SIGKILL, -9), (signal.SIGTERM, 0)):
        process = head.popen(
            [*argv, "run", "--rules", str(owners_rules)], env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, umask=int(unit["Service"]["UMask"], 8),
        )
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        assert capabilities_of(process.pid) == set(unit["Service"]["CapabilityBoundingSet"].split())
        for host, address in UPLINK.items():
            assert whoami(lab.node("worker1"), host)[0] == address
        head.run([*argv, "iptables", "-A", "FORWARD", "-p", "icmp", "-j", "ACCEPT"], timeout=60, env=env)
        assert "1 received" in ping(lab.node("worker2"), ADDRESS["inet3"])
        process.send_signal(number)
        assert process.communicate(timeout=60 * PATIENCE) == ("", "")
        assert process.returncode == status
    assert head_state(lab) == before
    assert [each.name for each in run_dir.iterdir()] == ["flows.state"]     # for the next one


# What ProtectSystem=strict and ReadWritePaths=/run do, without a systemd to do it
PROTECTED = """
set -e
mount --bind /run /run
mount --rbind / /mnt
mount -o remount,bind,ro /mnt
if touch /mnt/etc/natengine.trial 2>/dev/null; then exit 1; fi
exec chroot /mnt "$@"
"""


def test_its_file_system_suffices(lab: Lab, unit: _Unit, owners_rules: Path) -> None:
    """With nothing to write to but /run, and /proc and /sys."""
    assert (unit["Service"]["ProtectSystem"], unit["Service"]["ReadWritePaths"]) == ("strict", "/run")
    if shutil.which("unshare") is None or not os.access("/run", os.W_OK):
        pytest.skip("no mount namespace can be made here")
    before, head = head_state(lab), lab.node("head")
    run_dir = Path(f"/run/ltunit{os.getpid()}")
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", PROTECTED, "sh", *NATENGINE]
    process = head.popen(
        [*argv, "--run-dir", str(run_dir), "run", "--rules", str(owners_rules)], text=True, cwd="/",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    for host, address in UPLINK.items():
        assert whoami(lab.node("worker1"), host)[0] == address
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60 * PATIENCE) == ("", "")
    assert process.returncode == 0
    assert head_state(lab) == before
    assert [left.name for left in run_dir.iterdir()] == ["flows.state"]        # the flows, for the next engine
    shutil.rmtree(run_dir)


CAPABILITY_NUMBERS = {12: "CAP_NET_ADMIN", 13: "CAP_NET_RAW"}


def capabilities_of(pid: int) -> set[str]:
    """The capabilities that a process really has."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            mask = int(line.split()[1], 16)
    return {CAPABILITY_NUMBERS.get(bit, str(bit)) for bit in range(64) if mask >> bit & 1}
