"""What can go wrong in a lab.

    LabError               one sentence for a person; the command line prints it and exits with 1
    └── CommandFailed      a command inside a node ended with a status other than 0
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence


class LabError(RuntimeError):
    """The lab cannot do what was asked; the message says why and, where it is known, what to do."""


class CommandFailed(LabError):
    """A command inside a node failed.

    Attributes:
        argv: The command.
        returncode: Its exit status; negative for a signal, as in `subprocess`.
        stdout, stderr: What it wrote.
    """

    def __init__(self, node: str, argv: Sequence[str], returncode: int, stdout: str, stderr: str) -> None:
        said = (stderr.strip() or stdout.strip() or "it wrote nothing").splitlines()[-1]
        super().__init__(f"on {node}: {shlex.join(argv)}: exit status {returncode}: {said}")
        self.argv = list(argv)
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr
