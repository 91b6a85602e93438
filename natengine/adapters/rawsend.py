"""A raw socket for packets that the engine itself makes, complete with their IP headers."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from natengine.errors import HostError

IP_DST = slice(16, 20)


class RawSender:
    """Sends whole IPv4 packets by the host's own routes."""

    def __init__(self) -> None:
        """Open the socket in the current network namespace.

        Raises:
            HostError: Not root.
        """
        try:
            self._socket = socket.socket(
                socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW
            )
        except OSError as error:
            raise HostError(f"cannot open a raw socket ({error.strerror}): run as root") from None
        self.sent = 0
        self.failed = 0                 # no route, or a full buffer: an error message may get lost

    def send(self, packets: Iterable[bytearray]) -> None:
        """Send each packet, or count it as failed."""
        for packet in packets:
            try:
                self._socket.sendto(packet, (socket.inet_ntoa(packet[IP_DST]), 0))
                self.sent += 1
            except OSError:
                self.failed += 1

    def close(self) -> None:
        self._socket.close()
