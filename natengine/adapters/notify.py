"""sd_notify(3): tell the service manager, if there is one, how we are."""

from __future__ import annotations

import os
import socket


def notify(*states: str) -> bool:
    """Send states such as "READY=1" to the socket in NOTIFY_SOCKET; False without a service manager."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):                 # the abstract namespace
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
        try:
            link.sendto("\n".join(states).encode(), address)
        except OSError:
            return False
    return True


def watchdog_interval_s() -> float | None:
    """Return how often the service manager wants to hear WATCHDOG=1 (half of what it allows), or None."""
    if (os.environ.get("WATCHDOG_PID") or str(os.getpid())) != str(os.getpid()):
        return None                             # it is our parent's
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 2_000_000 if text.isdigit() and int(text) else None
