"""The seam between the program and whatever brings packets.

An adapter takes packets from the kernel, hands each one's bytes and meta data to a function, and
carries the function's decision back.  It does not know what decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from natengine.vocab import Decision, PacketMeta

Decide = Callable[[bytearray, PacketMeta], Decision]


class IoStats(NamedTuple):
    """What an adapter has seen: packets in, and receive-buffer overruns (each at least one packet lost)."""

    packets: int
    overruns: int


class PacketIO(Protocol):
    """A source of packets and a sink of verdicts."""

    name: str

    def fileno(self) -> int:
        """Return the descriptor to poll; readable when packets wait."""
        ...

    def pump(self, budget: int) -> int:
        """Decide about the packets that wait, at most `budget` of them, and return how many it were."""
        ...

    def stats(self) -> IoStats: ...

    def close(self) -> None: ...
