"""The run directory of one engine: control socket, pid file, what has to be put back.

Mode 0700.  The pid file is locked for as long as the engine lives; that, and not its presence, says
whether an engine is running.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from natengine.errors import HostError

DEFAULT = Path("/run/natengine")
PID_NAME = "pid"


class RunDir:
    """Holds a run directory for one engine."""

    def __init__(self, path: Path) -> None:
        """Make the directory and take the lock.

        Raises:
            HostError: It cannot be made, or another engine has it.
        """
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
            self._pid_fd = os.open(path / PID_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(
                f"cannot use the run directory {path}: {error.strerror}; name another one with --run-dir DIR"
            ) from None
        try:
            fcntl.flock(self._pid_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(self._pid_fd, 32).decode().strip()
            os.close(self._pid_fd)
            raise HostError(
                f"an engine (pid {pid}) is running with {path} already; for a second one name another "
                "directory: natengine --run-dir DIR run"
            ) from None
        os.truncate(self._pid_fd, 0)
        os.write(self._pid_fd, f"{os.getpid()}\n".encode())

    def close(self) -> None:
        """Give the directory up; it is removed if nothing is left in it."""
        (self.path / PID_NAME).unlink(missing_ok=True)
        os.close(self._pid_fd)
        try:
            self.path.rmdir()
        except OSError:
            pass                        # somebody else's files, or the service manager's directory
