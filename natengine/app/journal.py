"""Where lines for the log go: standard error, which under systemd is the journal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable

from natengine.nat.said import LogLine


def write_lines(lines: Iterable[LogLine]) -> None:
    """Write lines to standard error; to the journal with their level in front (sd-daemon(3))."""
    with contextlib.suppress(OSError, ValueError):          # nobody reads any more: packets matter more
        level_in_front = _is_journal()
        for line in lines:
            print(f"<{line.level}>{line.text}" if level_in_front else line.text, file=sys.stderr)
        sys.stderr.flush()


def _is_journal() -> bool:
    """Whether standard error is what systemd made it, and no file or pipe that was put there since."""
    status = os.fstat(sys.stderr.fileno())
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
