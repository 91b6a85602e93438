"""The run directory of one engine: control socket, pid file, what has to be put back.

Mode 0700, or 0710 for a group that may ask the engine.  The pid file is locked for as long as the
engine lives; that, and not its presence, says whether an engine is running.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from natengine.errors import HostError

DEFAULT = Path("/run/natengine")
PID_NAME = "pid"
OWN_FILES = {PID_NAME, "control.sock", "ip_forward.before", "flows.state", "flows.state.new", "flows.state.aside"}


class RunDir:
    """Holds a run directory for one engine."""

    def __init__(self, path: Path, readers: int | None = None) -> None:
        """Make the directory and take the lock.

        Args:
            readers: A group, by its number, whose members may reach the control socket.

        Raises:
            HostError: It cannot be made, or another engine has it.
        """
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_private()
            if readers is not None:
                os.chown(path, -1, readers)
                path.chmod(0o710)
            self._pid_fd = self._open_locked()
            self._write_pid()
        except HostError:
            raise
        except OSError as error:
            raise HostError(
                f"cannot use the run directory {path}: {error.strerror}; name another one with --run-dir DIR"
            ) from None

    def _write_pid(self) -> None:
        try:
            os.truncate(self._pid_fd, 0)
            os.write(self._pid_fd, f"{os.getpid()}\n".encode())
        except OSError:                 # the disk is full
            self.close()
            raise

    def _make_private(self) -> None:
        """Close the directory to everybody else, unless it is one that others use (/tmp, say)."""
        if self.path.stat().st_mode & 0o777 == 0o700:
            return
        foreign = {entry.name for entry in self.path.iterdir()} - OWN_FILES
        if foreign:
            raise HostError(
                f"cannot use the run directory {self.path}: it would be closed to everybody else, and has other "
                f"files in it ({min(foreign)}); name one of its own with --run-dir DIR"
            )
        self.path.chmod(0o700)

    def _open_locked(self) -> int:
        path = self.path / PID_NAME
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
            except BlockingIOError:
                pid = os.read(descriptor, 32).decode().strip()
                os.close(descriptor)
                raise HostError(
                    f"an engine (pid {pid}) is running with {self.path} already; for a second one name another "
                    "directory: natengine --run-dir DIR run"
                ) from None
            os.close(descriptor)            # its owner removed it, on the way out, before we had the lock

    def close(self) -> None:
        """Give the directory up; it is removed if nothing is left in it."""
        (self.path / PID_NAME).unlink(missing_ok=True)
        os.close(self._pid_fd)
        with contextlib.suppress(OSError):          # somebody else's files, or the service manager's directory
            self.path.rmdir()
