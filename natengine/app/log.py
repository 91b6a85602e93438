"""The engine's log: lines on standard error, which a service manager keeps; to the journal with their level in front.

A line that cannot be written at once (the disk is full, nobody reads the pipe) is lost, and counted: packets
do not wait for it.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterable, Mapping

from natengine.nat.said import WARNING, LogLine
from natengine.vocab import Reason

STDERR = 2
QUIET_NS = 10_000_000_000           # after a line about one reason

# what an operator can do about packets that are refused for want of room
ADVICE = {
    Reason.TABLE_FULL: "the connection table is full of answered flows; raise max_flows",
    Reason.OUT_OF_PORTS: "no outside port is left; give the uplink another address, or widen --to-ports",
    Reason.HOST_LIMIT: "an inside host has as many as it may have (max_flows_per_host, max_ports_per_host)",
    Reason.FRAGMENT_LIMIT: "the memory for fragments is full (max_fragment_trains)",
}


class Log:
    """Writes lines.

    Attributes:
        lost: How many could not be written.
    """

    def __init__(self) -> None:
        self.lost = 0
        self._told: dict[Reason, tuple[int, int]] = {}      # packets by then, and when

    def write(self, line: str) -> None:
        """Write a warning of the engine's own, as `write_lines`."""
        self.write_lines([LogLine(WARNING, f"natengine: {line}")])

    def write_lines(self, lines: Iterable[LogLine]) -> None:
        """Write lines, or count them as lost; never wait, never raise."""
        level_in_front = _is_journal()
        for line in lines:
            text = f"<{line.level}>{line.text}\n" if level_in_front else f"{line.text}\n"
            try:
                if select.select([], [STDERR], [], 0)[1]:
                    os.write(STDERR, text.encode(errors="backslashreplace"))
                    continue
            except OSError:
                pass
            self.lost += 1

    def tell_refusals(self, by_reason: Mapping[str, int], now_ns: int) -> None:
        """Say once that packets are refused for want of room, and at most every ten seconds that they still are."""
        for reason, advice in ADVICE.items():
            packets = by_reason[reason.name]
            told, at_ns = self._told.get(reason, (0, now_ns - QUIET_NS))
            if packets > told and now_ns - at_ns >= QUIET_NS:
                self._told[reason] = packets, now_ns
                self.write(f"{packets - told} packets refused: {advice}")


def _is_journal() -> bool:
    """Whether standard error is what systemd made it (sd-daemon(3)), and no file or pipe that was put there since."""
    try:
        status = os.fstat(STDERR)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
