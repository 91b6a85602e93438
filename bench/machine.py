"""The machine that the figures are from: what it is, who runs where, and how much of it was ours."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from natlab.errors import LabError

ROOT = Path(__file__).resolve().parent.parent
AUTOGROUP = Path("/proc/self/autogroup")
NEEDED = {
    "cc": "gcc", "iptables": "iptables", "iperf3": "iperf3", "ping": "iputils-ping", "nft": "nftables",
}
SOURCES = ("nfq_nat", "udp_load", "udp_count")


@dataclass(frozen=True)
class Cores:
    """Which processor does what."""

    engine: int
    sender: int


@dataclass(frozen=True)
class Scheduled:
    """How long a process has run, and how long it was ready and another one ran; all its threads together."""

    ran_ns: int
    waited_ns: int

    def __sub__(self, earlier: Scheduled) -> Scheduled:
        return Scheduled(self.ran_ns - earlier.ran_ns, self.waited_ns - earlier.waited_ns)


def scheduled(pid: int) -> Scheduled:
    """Read what the scheduler knows about a process."""
    ran = waited = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):    # a thread that has just ended
            fields = path.read_text().split()
            ran, waited = ran + int(fields[0]), waited + int(fields[1])
    return Scheduled(ran, waited)


def pin(pid: int, core: int) -> None:
    """Keep all threads of a process, and those it will start, on one core."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


def choose_cores(engine: int | None, sender: int | None) -> Cores:
    """Return the wanted cores, or the first two there are.

    Raises:
        LabError: There is only one, or a wanted one is not there.
    """
    there = sorted(os.sched_getaffinity(0))
    if len(there) < 2:
        raise LabError("this benchmark needs two processors, one for the sender and one for the engine")
    cores = Cores(there[0] if engine is None else engine, there[1] if sender is None else sender)
    if not {cores.engine, cores.sender} <= set(there) or cores.engine == cores.sender:
        raise LabError(f"engine and sender need two different ones of the processors {there}")
    return cores


@contextlib.contextmanager
def favoured(nice: int) -> Iterator[None]:
    """Run the block, and what it starts, at this niceness; afterwards everything is as it was.

    Where the kernel schedules sessions as groups (autogroup) a process's own niceness counts only
    within its session, so the session gets it too.
    """
    own = os.getpriority(os.PRIO_PROCESS, 0)
    group = AUTOGROUP.read_text().split()[-1] if AUTOGROUP.exists() else None
    if nice == own:
        yield
        return
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
        if group is not None:
            AUTOGROUP.write_text(f"{nice}\n")
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, own)
        if group is not None:
            with contextlib.suppress(OSError):      # the kernel limits how often; it ends with the session
                AUTOGROUP.write_text(f"{group}\n")


def facts() -> dict[str, object]:
    """Return what a figure cannot be understood without."""
    return {
        "commit": _git("rev-parse", "--short=12", "HEAD") + ("+" if _git("status", "--porcelain") else ""),
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }


def require_tools() -> None:
    """Return if every program that is needed is installed and we are root.

    Raises:
        LabError: One is not, or we are not.
    """
    if os.geteuid() != 0:
        raise LabError("the benchmark makes network namespaces and takes packets: run it as root")
    missing = {program: package for program, package in NEEDED.items() if shutil.which(program) is None}
    if missing:
        raise LabError(f"not installed: {', '.join(missing)} (Debian: apt-get install {' '.join(missing.values())})")
    version = subprocess.run(["iptables", "-V"], capture_output=True, text=True, check=False).stdout
    if "nf_tables" not in version:
        raise LabError(
            f"{version.strip() or 'iptables'} cannot take the kernel's connection tracking out again: "
            "choose the other one (update-alternatives --set iptables /usr/sbin/iptables-nft)"
        )


def build(directory: Path) -> None:
    """Compile the C programs into a directory.

    Raises:
        LabError: The compiler refuses.
    """
    for name in SOURCES:
        argv = ["cc", "-O3", "-o", str(directory / name), str(ROOT / "bench" / f"{name}.c")]
        result = subprocess.run(argv, capture_output=True, text=True, check=False)
        if result.returncode:
            raise LabError(f"cc could not build {name}.c: {(result.stderr.strip() or '?').splitlines()[0]}")


def _git(*words: str) -> str:
    argv = ["git", "--no-optional-locks", "-C", str(ROOT), *words]
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
