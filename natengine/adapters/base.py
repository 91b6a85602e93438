"""The seam between the program and whatever brings packets.

An adapter takes packets from the kernel and carries decisions back; it does not know what decides.
It says, too, whether it is busy: packets wait, and among them are some of known flows.
There are two ways to ask: `Decide` for an adapter that hands over every packet, and `Settle` for one
that has been through the flow table itself and asks about the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from natengine.vocab import Decision, PacketMeta

Decide = Callable[[bytearray, PacketMeta, bool], Decision]      # packet, meta, busy

# what `Settle` answers beside NF_DROP and NF_ACCEPT: drop it, and for a moment, unasked, all that its sender
# has without a flow (`Path.MISS`)
DROP_AND_HUSH = 2

# path, packet, hook, in_ifindex, out_ifindex, mark, now_ns, busy -> verdict, and the packet if rewritten
Settle = Callable[[int, bytearray, int, int, int, int, int, bool], tuple[int, bytearray | None]]


class IoStats(NamedTuple):
    """What an adapter has seen."""

    packets: int
    overruns: int               # times the receive buffer was full: packets were lost
    errors: int                 # verdicts that the kernel refused, messages that made no sense


class PacketIO(Protocol):
    """A source of packets and a sink of verdicts.

    Attributes:
        name: As in `--io`.
        queues: First and last queue number, both inclusive.
        lock: Held while a packet is dealt with, if that may happen in another thread than the
            caller's of `serve`; whoever touches the engine takes it.
    """

    name: str
    queues: tuple[int, int]
    lock: AbstractContextManager[object]

    def serve(self, wake_fd: int, timeout_s: float) -> None:
        """Deal with packets until `wake_fd` is readable or the time is over."""
        ...

    def take_settled(self) -> list[int]:
        """Return how many packets ended with each `Path` unasked, and forget it.  The caller holds the lock."""
        ...

    def stats(self) -> IoStats: ...

    def close(self) -> None:
        """Unbind: from now on the kernel drops what the hooks queue."""
        ...


def queue_taken(queue_num: int) -> str:
    """Return what to tell a user whose queue is another program's."""
    return (
        f"NFQUEUE number {queue_num} is taken by another program in this namespace "
        "(see /proc/net/netfilter/nfnetlink_queue); choose another one with --queue-num"
    )


def no_queue(error: OSError) -> str:
    """Return what to tell a user who cannot have a queue at all."""
    return (
        f"cannot open NFQUEUE ({error.strerror or error}): run as root on a kernel with nfnetlink_queue "
        "(try: modprobe nfnetlink_queue)"
    )

