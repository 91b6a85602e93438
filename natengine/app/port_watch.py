"""The head's own ports, kept up to date: looked at now and then, and when somebody knocks where nobody seems to be."""

from __future__ import annotations

from collections.abc import Callable

from natengine.adapters.clock import now_ns
from natengine.adapters.localports import read_local_ports
from natengine.app.log import Log
from natengine.nat.arriving import LocalPorts

INTERVAL_NS = 5_000_000_000
SHARE = 20                          # looks for who knocks take a twentieth of the time at most


class PortWatch:
    """Tells the engine which ports the head's own sockets are bound to."""

    def __init__(self, tell: Callable[[LocalPorts], None], log: Log) -> None:
        """`tell` is called with the ports after each look."""
        self._tell = tell
        self._log = log
        self._again_ns = 0
        self._failed = False

    def look(self) -> None:
        """Look now.  What cannot be read stays as it was last seen; the log hears of it once."""
        try:
            ports = read_local_ports()
        except OSError as error:
            if not self._failed:
                self._log.write(f"cannot see which ports the head's own sockets use: {error.strerror}")
            self._failed = True
            return
        self._failed = False
        self._tell(ports)

    def look_for_knock(self) -> bool:
        """Look, unless too much time has gone into that of late; return whether it was done (`LookAtPorts`)."""
        began_ns = now_ns()
        if began_ns < self._again_ns:
            return False
        self.look()
        ended_ns = now_ns()
        self._again_ns = ended_ns + SHARE * (ended_ns - began_ns)
        return True
