"""net.ipv4.ip_forward of the current network namespace: switched on, and put back as it was.

What it was is kept in a file in the run directory, so that an engine that was killed does not make
its successor believe that forwarding had always been on.
"""

from __future__ import annotations

from pathlib import Path

IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


class Forwarding:
    """Holds IPv4 forwarding on."""

    def __init__(self, run_dir: Path) -> None:
        self._memory = run_dir / "ip_forward.before"

    def enable(self) -> None:
        """Switch forwarding on and remember how it was."""
        before = IP_FORWARD.read_text().strip()
        if not self._memory.exists():
            self._memory.write_text(before + "\n")
        if before == "0":
            IP_FORWARD.write_text("1\n")

    def restore(self) -> None:
        """Put forwarding back as it was before `enable`; without one nothing happens."""
        if self._memory.exists():
            before = self._memory.read_text().strip()
            if IP_FORWARD.read_text().strip() != before:
                IP_FORWARD.write_text(before + "\n")
            self._memory.unlink()
