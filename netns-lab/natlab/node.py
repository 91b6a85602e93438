"""One node of the lab: a namespace, and how to act inside it."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import namespace
from .errors import CommandFailed
from .patience import PATIENCE

CHILD_DEADLINE_S = 5.0 * PATIENCE


class Node:
    """A namespace of the lab, by name.  Holds no resource; it may be made before the lab is up.

    A child process is started by entering the namespace in the calling thread and forking there: a child
    begins where its parent thread is.  So no wrapper program is needed, `Popen.pid` is the command
    itself, and a command that does not exist is a FileNotFoundError as usual.
    """

    def __init__(self, name: str, netns: str) -> None:
        self.name = name
        self.netns = netns
        self._children: list[subprocess.Popen[Any]] = []
        self._children_lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Node({self.name!r}, {self.netns!r})"

    @property
    def netns_path(self) -> Path:
        """The file that `nsenter --net=` takes."""
        return namespace.path_of(self.netns)

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Run the block with the calling thread inside the node; sockets made there stay there.

        Raises:
            LabError: The namespace does not exist (it is never created here), or no permission.
        """
        with namespace.entered(self.netns_path):
            yield

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start `argv` inside the node; `options` are those of `subprocess.Popen`.

        The child is the caller's.  One that still runs when the lab goes down is terminated then.
        """
        with self.enter():
            child = subprocess.Popen(list(argv), **options)
        with self._children_lock:
            self._children = [*(old for old in self._children if old.poll() is None), child]
        return child

    def end_children(self) -> None:
        """End what `popen` started and what still runs; the lab does this on its way down."""
        with self._children_lock:
            running = [child for child in self._children if child.poll() is None]
            self._children = []
        for child in running:
            child.terminate()
        for child in running:
            try:
                child.wait(CHILD_DEADLINE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        check: bool = True,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` inside the node and return its status and output as text.

        Args:
            timeout: Seconds after which it is killed, on a machine of usual speed (see `patience.py`).
            env: The whole environment; None for the caller's.

        Raises:
            CommandFailed: With `check`, a status other than 0; the message has its last line.
            subprocess.TimeoutExpired: As `subprocess.run`.
        """
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
        pipe = subprocess.PIPE
        with self.popen(argv, stdin=stdin, stdout=pipe, stderr=pipe, text=True, env=env) as child:
            try:
                stdout, stderr = child.communicate(input, timeout=timeout * PATIENCE)
            except BaseException:
                child.kill()
                raise
        if check and child.returncode != 0:
            raise CommandFailed(self.name, argv, child.returncode, stdout, stderr)
        return subprocess.CompletedProcess(list(argv), child.returncode, stdout, stderr)

    def sysctl(self, key: str, value: str | int | None = None) -> str:
        """Set a sysctl of the namespace if `value` is given, and return what it is now.

        Args:
            key: With slashes, below /proc/sys: "net/ipv4/conf/bond0.2/rp_filter".  The dot in an
                interface name makes the dotted form ambiguous.
        """
        path = Path("/proc/sys", key)
        with self.enter():
            if value is not None:
                path.write_text(f"{value}\n")
            return path.read_text().strip()
