"""The engine's log: lines on standard error, which a service manager keeps; to the journal with their level in front.

A line that cannot be written at once (the disk is full, nobody reads the pipe) is lost, and counted: packets
do not wait for it.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterable, Mapping

from natengine.nat.said import WARNING, LogLine

STDERR = 2
QUIET_NS = 10_000_000_000           # after a line about one reason

# counter of the engine's or of the adapter's -> what it means that it grows, and what an operator can do
ADVICE = {
    "TABLE_FULL": "the connection table is full of answered flows; raise max_flows, or shorten timeouts",
    "OUT_OF_PORTS": "no outside port is left; give the uplink another address, or widen --to-ports",
    "HOST_LIMIT": "a host inside has all it may have (max_flows_per_host, max_ports_per_host); see conntrack -L",
    "FRAGMENT_LIMIT": "too many datagrams in fragments (max_fragment_trains); see why they are cut up at all",
    "RATE_LIMIT": "somebody sends new flows faster than they can be begun (new_flows_when_busy); see conntrack -L",
    "SPOOFED": "sources that are ours come from an uplink; somebody forges them, or a cable is in the wrong socket",
    "NO_ADDRESS": "an uplink has no address, so nothing can leave over it; see ip address",
    "queue_full": "more packets were waiting than the queue has room for; the machine is too busy",
    "overruns": "the kernel had no memory to hand packets over; the machine is too busy",
    "errors": "the kernel refused verdicts; those packets wait in the queue until it ends",
}


class Log:
    """Writes lines.

    Attributes:
        lost: How many could not be written.
    """

    def __init__(self) -> None:
        self.lost = 0
        self._told: dict[str, tuple[int, int]] = {}         # by name, the count by then, and when

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

    def tell_refusals(self, counters: Mapping[str, int], now_ns: int) -> None:
        """Say once that packets are refused for want of something, and every ten seconds that they still are."""
        for name, advice in ADVICE.items():
            words = name.lower().replace("_", " ")
            self.tell(name, counters.get(name, 0), f"{words}: %d packets refused; {advice}", now_ns)

    def tell(self, name: str, total: int, line: str, now_ns: int) -> None:
        """Write a line when a count grows, and every ten seconds while it does.

        Args:
            name: Of the count.
            line: With %d for by how much it has grown since the last line.
        """
        told, at_ns = self._told.get(name, (0, now_ns - QUIET_NS))
        if total > told and now_ns - at_ns >= QUIET_NS:
            self._told[name] = total, now_ns
            self.write(line % (total - told))


def _is_journal() -> bool:
    """Whether standard error is what systemd made it (sd-daemon(3)), and no file or pipe that was put there since."""
    try:
        status = os.fstat(STDERR)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
