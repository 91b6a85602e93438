"""Named network namespaces: made, told apart, entered, removed.

Rule 1: making a namespace and entering one are different calls; entering never makes one, so a
        misspelt name is an error.
Rule 2: a namespace is known by its identity, never by its name alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import config, netns

from .errors import LabError
from .patience import PATIENCE

NETNS_DIR = Path("/run/netns")
CLONE_NEWNET = 0x40000000    # <linux/sched.h>
SO_NETNS_COOKIE = 71         # <asm-generic/socket.h>; Linux 5.14

CHILD_DEADLINE_S = 20.0 * PATIENCE
# pyroute2 makes a namespace in a child process, for which 2 s are not enough on a busy machine
config.default_communicate_timeout = CHILD_DEADLINE_S

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Identity:
    """Which namespace this is, within one boot.

    Attributes:
        inode: Of the namespace's file.  The kernel gives a freed number out again, hence:
        cookie: The kernel's own number for it, never given out twice; 0 where it has none.
    """

    inode: int
    cookie: int


def path_of(name: str) -> Path:
    """Where the namespace `name` is bound; it need not exist."""
    return NETNS_DIR / name


def identity_of(name: str) -> Identity | None:
    """The identity of the namespace called `name`, or None if there is no such namespace."""
    path = path_of(name)
    try:
        inode = path.stat().st_ino
        with entered(path):
            return Identity(inode, _own_cookie())
    except (OSError, LabError):
        return None


def create(name: str) -> Identity:
    """Make the namespace `name`.

    Raises:
        LabError: There is something of that name already, or the kernel refuses.
    """
    require_free(name)
    try:
        with _directory_lock():
            netns.create(name)
    except (OSError, RuntimeError) as error:   # RuntimeError: pyroute2's helper process was killed
        if not isinstance(error, FileExistsError):
            remove_mount_point(name)
        raise LabError(f"cannot make the namespace {name}: {error}") from error
    identity = identity_of(name)
    if identity is None:
        raise LabError(f"the namespace {name} was made, but cannot be entered")
    return identity


def require_free(name: str) -> None:
    """Return if nothing is called `name`.

    Raises:
        LabError: Something is.
    """
    if path_of(name).exists():
        raise LabError(
            f"the namespace {name} exists already and is not this lab's: "
            f"choose another prefix, or delete it yourself (ip netns delete {name})"
        )


def remove_mount_point(name: str) -> None:
    """Delete the file `name` if no namespace is bound to it (any more)."""
    if identity_of(name) is None:
        path_of(name).unlink(missing_ok=True)


def remove(name: str) -> None:
    """Remove the name; the kernel drops the namespace when its last process is gone."""
    with contextlib.suppress(FileNotFoundError):
        netns.remove(name)


@contextlib.contextmanager
def entered(path: Path) -> Iterator[None]:
    """Run the block with the calling thread inside the namespace; other threads stay where they are.

    Only the network namespace changes: /sys goes on showing the interfaces of the namespace in which
    it was mounted, whereas /proc/sys/net and /proc/self/net follow the thread.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        switch_to(path)
        try:
            yield
        finally:
            _setns(home, "the namespace it came from")
    finally:
        os.close(home)


def switch_to(path: Path) -> None:
    """Move the calling thread into the namespace for good."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise LabError(f"there is no namespace {path.name}: is the lab up?") from None
    except OSError as error:
        raise LabError(f"cannot open {path}: {error.strerror}") from error
    try:
        _setns(descriptor, path.name)
    finally:
        os.close(descriptor)


def _setns(descriptor: int, what: str) -> None:
    # os.setns came with Python 3.12; one way for every version is simpler than two.
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise LabError(f"cannot enter {what}: {os.strerror(ctypes.get_errno())}")


def _own_cookie() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")
        except OSError:
            return 0


@contextlib.contextmanager
def _directory_lock() -> Iterator[None]:
    """Hold the lock that iproute2 takes too, so that two first users do not both mount /run/netns."""
    NETNS_DIR.mkdir(mode=0o755, exist_ok=True)
    descriptor = os.open(NETNS_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
