"""The engine's log: lines on standard error, which a service manager keeps.

A line that cannot be written at once (the disk is full, nobody reads the pipe) is lost, and counted: packets
do not wait for it.
"""

from __future__ import annotations

import os
import select
from collections.abc import Mapping

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
        """Write one line, or count it as lost; never wait, never raise."""
        try:
            if select.select([], [STDERR], [], 0)[1]:
                os.write(STDERR, f"natengine: {line}\n".encode(errors="backslashreplace"))
                return
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
