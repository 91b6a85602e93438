"""A natengine in the lab's head, as its user would run it: a process, and its command line."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from . import interrupts
from .errors import LabError
from .lab import Lab
from .patience import PATIENCE

START_DEADLINE_S = 30.0 * PATIENCE
STOP_DEADLINE_S = 20.0 * PATIENCE
COMMAND_DEADLINE_S = 60.0 * PATIENCE

# what the owner's guide says, with natengine in front
OWNERS_COMMANDS = (
    "iptables --table nat --append POSTROUTING --out-interface bond0.2 -j MASQUERADE",
    "iptables --table nat --append POSTROUTING --out-interface bond0.3 -j MASQUERADE",
    "iptables --append FORWARD --in-interface bond0.def -j ACCEPT",
)


class Engine:
    """`natengine run` in the head of a lab, from the start of the block to its end.

    Attributes:
        run_dir: Its run directory, new and its own.
        process: The running process; None before and after.
    """

    def __init__(self, lab: Lab, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        """Say how it will be started.

        Args:
            arguments: What follows `natengine run`.
            env: Additions to the environment, such as NATENGINE_FASTPATH.
        """
        self._head = lab.node("head")
        self._arguments = arguments
        self._made_dir: Path | None = None
        self._env = dict(env or {})
        self.run_dir = Path()
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Engine:
        try:
            with interrupts.deferred():     # a directory that no attribute names would stay for ever
                self._made_dir = Path(tempfile.mkdtemp(prefix="natengine-lab-"))
                self.run_dir = self._made_dir / "run"
                self._env.setdefault("NATENGINE_RULES", str(self._made_dir / "rules.v4"))
            self.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        """Stop it and remove its directory, whatever signal comes meanwhile."""
        with interrupts.deferred():
            try:
                self.stop()
            finally:
                self._forget()

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the engine and of its commands."""
        return {**os.environ, "NATENGINE_RUN_DIR": str(self.run_dir), **self._env}

    @property
    def rules_file(self) -> Path:
        """Where `natengine save` writes to and `natengine run` reads from."""
        return Path(self._env["NATENGINE_RULES"])

    def start(self) -> None:
        """Start it and wait until it says `ready`.

        Raises:
            LabError: It ended or was silent instead; the message has what it said.
        """
        with open(self._log, "w") as log, interrupts.deferred():
            self.process = self._head.popen(
                [sys.executable, "-m", "natengine", "run", *self._arguments],
                stdout=subprocess.PIPE, stderr=log, text=True, env=self.environment,
            )
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], START_DEADLINE_S)
        if not ready or self.process.stdout.readline() != "ready\n":
            self.stop()
            raise LabError(f"the engine did not get ready: {self.log() or 'no reason given'}")

    def stop(self, number: int = signal.SIGTERM) -> int | None:
        """Send a signal, wait for the end and return the exit status; None if it is not running."""
        process, self.process = self.process, None
        if process is None:
            return None
        if process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise LabError(f"the engine did not stop within {STOP_DEADLINE_S:.0f} s: {self.log()}") from None
        finally:
            if process.stdout is not None:
                process.stdout.close()
        return process.returncode

    def log(self) -> str:
        """What the engine has said on standard error."""
        return self._log.read_text().strip() if self._log.exists() else ""

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one natengine command against this engine: `engine.run("iptables", "-L")`."""
        argv = [sys.executable, "-m", "natengine", *words]
        return self._head.run(argv, timeout=COMMAND_DEADLINE_S, check=check, env=self.environment)

    def type(self, commands: Sequence[str] = OWNERS_COMMANDS) -> None:
        """Run several commands, each written as one would type it."""
        for command in commands:
            self.run(*command.split())

    @property
    def _log(self) -> Path:
        assert self._made_dir is not None
        return self._made_dir / "log"

    def _forget(self) -> None:
        if self._made_dir is not None:
            shutil.rmtree(self._made_dir)
            self._made_dir = None
