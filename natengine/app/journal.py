"""What the engine says on standard error while it runs: that packets are lost for want of something, and what helps.

Nothing is said packet by packet.  Once a second the counters are looked at; one that has grown is a line, and then
none of its kind for ten seconds: what came meanwhile is in the next one.  A line that cannot be written (the disk is
full, the pipe is closed) is counted, and nothing waits for it.
"""

from __future__ import annotations

import os
import select
from collections.abc import Mapping

QUIET_NS = 10_000_000_000

# counter of `NatEngine.stats` or of the adapter -> what it means, and what to do
ADVICE = {
    "TABLE_FULL": "the connection table is full of answered flows; a larger --max-flows, or shorter timeouts, helps",
    "OUT_OF_PORTS": "all outside ports are taken; more addresses, a wider --to-ports or shorter timeouts help",
    "FRAGMENT_LIMIT": "too many datagrams in fragments; see max_fragment_trains, and why they are cut up at all",
    "HOST_LIMIT": "a host inside has all the flows or ports it may have; see conntrack -L, max_flows_per_host",
    "RATE_LIMIT": "somebody sends new flows faster than they can be begun; see conntrack -L, new_flows_when_busy",
    "SPOOFED": "sources that are ours come from an uplink; somebody forges them, or a cable is in the wrong socket",
    "NO_ADDRESS": "an uplink has no address, so nothing can leave over it; see ip address",
    "overruns": "the kernel had no memory to hand packets over; the machine is too busy",
    "errors": "the kernel refused verdicts; packets wait in the queue until they are dropped",
}


class Journal:
    """Turns counters that grow into lines."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._said: dict[str, int] = {}                 # the counter, when it was last spoken of
        self._quiet_until: dict[str, int] = {}
        self.lost_lines = 0

    def look(self, counters: Mapping[str, int], now_ns: int) -> None:
        """Say what has grown since it was last spoken of."""
        for name, advice in ADVICE.items():
            count = counters.get(name, 0)
            more = count - self._said.get(name, 0)
            if more > 0 and now_ns >= self._quiet_until.get(name, 0):
                self._said[name] = count
                self._quiet_until[name] = now_ns + QUIET_NS
                self._say(f"{name.lower().replace('_', ' ')}: {more} more packets; {advice}")

    def _say(self, line: str) -> None:
        """Write a line, if that is possible at once: a pipe that nobody reads must not stop the packets."""
        try:
            if not self._poll.poll(0):
                raise BlockingIOError
            os.write(self._fd, f"natengine: {line}\n".encode())      # short enough to be written whole
        except OSError:
            self.lost_lines += 1
