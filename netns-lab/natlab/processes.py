"""Detached processes: started, recognised, awaited, stopped.

Rule 1: a process is known by (pid, start time, boot); a pid alone is given out again.
Rule 2: nothing is stopped by name, and a signal goes through a pidfd, which cannot hit a successor.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import interrupts
from .errors import LabError
from .patience import PATIENCE

if TYPE_CHECKING:
    from .node import Node

POLL_INTERVAL_S = 0.005
LISTEN_DEADLINE_S = 30.0 * PATIENCE   # a Python start takes 30 ms here and several seconds in an emulator
STOP_DEADLINE_S = 5.0 * PATIENCE

# `$0` is the log.  The shell ends at once, so the server belongs to init and never becomes
# somebody's zombie; setsid(1) replaces itself, so `$!` is the server's own pid.
DETACH = 'setsid "$@" >>"$0" 2>&1 </dev/null & echo $!'

# The state column of /proc/PID/net/tcp and udp: TCP_LISTEN, and what an unconnected UDP socket has.
SOCKET_STATE = {"tcp": "0A", "udp": "07"}


def boot_id() -> str:
    """A text that differs from one boot to the next."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int | None:
    """Start of the process in clock ticks since boot; None if it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name, in parentheses, may itself have spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    state, started = fields[0], fields[19]   # fields 3 and 22 in proc(5)
    return None if state in "ZX" else int(started)


def start_detached(node: Node, argv: Sequence[str], log: Path) -> int:
    """Start `argv` inside the node, in a session of its own, and return its pid."""
    return int(node.run(["sh", "-c", DETACH, str(log), *argv], timeout=LISTEN_DEADLINE_S).stdout)


def wait_until_listening(pid: int, ports: Sequence[tuple[str, int]], log: Path) -> None:
    """Return when the namespace of `pid` has a listening socket on each of `ports`.

    Args:
        ports: Pairs of "tcp" or "udp" and the port.

    Raises:
        LabError: The process ended, or the deadline passed; the message has the log's last line.
    """
    deadline = time.monotonic() + LISTEN_DEADLINE_S
    while not all(_is_open(pid, protocol, port) for protocol, port in ports):
        interrupts.check()
        if start_time(pid) is None:
            raise LabError(f"the server ended at once: {_last_line(log)}")
        if time.monotonic() > deadline:
            raise LabError(f"no server on {ports} after {LISTEN_DEADLINE_S:.0f} s: {_last_line(log)}")
        time.sleep(POLL_INTERVAL_S)


def stop(pid: int, started: int) -> None:
    """End the process that started at `started`; a process that merely has its pid is left alone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # Checked after the open: from here on the pidfd can only mean this process.
        if start_time(pid) != started:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)
            if _ended(pidfd):
                return
        raise LabError(f"process {pid} does not end")
    finally:
        os.close(pidfd)


def writing_to(directory: Path) -> list[int]:
    """The pids of all processes whose standard output is a file in `directory`, also a deleted one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/fd/1"):
        with contextlib.suppress(OSError):   # it ended meanwhile
            if str(path.readlink()).startswith(f"{directory}/"):
                found.append(int(path.parts[2]))
    return found


def _is_open(pid: int, protocol: str, port: int) -> bool:
    for table in (protocol, f"{protocol}6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if state == SOCKET_STATE[protocol] and int(local.rpartition(":")[2], 16) == port:
                    return True
    return False


def _ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(STOP_DEADLINE_S * 1000))


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "its log is empty")
