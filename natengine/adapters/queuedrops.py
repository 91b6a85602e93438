"""Packets for which a queue had no room, as the kernel counts them in /proc/net: no message tells of them."""

from __future__ import annotations

from pathlib import Path

QUEUES = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")      # a line for each queue of the namespace
_NUMBER, _DROPPED = 0, 5            # columns: queue, port id, waiting, copy mode, copy range, dropped, …


def packets_without_room(first: int, last: int) -> int:
    """Return how many packets the queues from `first` to `last` of the current network namespace had no room for."""
    try:
        rows = [line.split() for line in QUEUES.read_text().splitlines()]
    except OSError:                     # a kernel without this file
        return 0
    return sum(int(row[_DROPPED]) for row in rows if first <= int(row[_NUMBER]) <= last)
