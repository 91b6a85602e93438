"""The seam between the program and whatever brings packets.

An adapter takes packets from the kernel and carries decisions back; it does not know what decides.
It says, too, whether it is busy: packets wait, and among them are some of known flows.
There are two ways to ask: `Decide` for an adapter that hands over every packet, and `Settle` for one
that has been through the flow table itself and asks about the rest.

A packet may be HELD: it stays in the kernel's queue, and the adapter keeps what it needs to give it a verdict later.
Who decides calls `release` then, in the middle of a question about another packet or at any other time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from natengine.vocab import Decision, Hook, PacketMeta

# The head's own packets are looked at before their way is known and behind it, as those of others are.
SIDE_OF_HOOK = {Hook.OUTPUT: Hook.PREROUTING, Hook.INPUT: Hook.POSTROUTING}

Decide = Callable[[bytearray, PacketMeta, bool], Decision]      # packet, meta, busy

# what `Settle` answers beside the verdicts: drop it, and for a moment, unasked, all that its sender has without
# a flow (`Path.MISS`)
DROP_AND_HUSH = 3

# path, packet, hook, in_ifindex, out_ifindex, mark, link_src, now_ns, busy
# -> verdict, the packet if rewritten, the ticket if held
Settle = Callable[[int, bytearray, int, int, int, int, bytes, int, bool], tuple[int, bytearray | None, int]]


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

    def release(self, decision: Decision) -> None:
        """Carry out the decision about the held packet with its ticket.  The caller holds the lock.

        Asked about another packet meanwhile, the adapter carries that one's decision out first.
        """
        ...

    def take_settled(self) -> list[int]:
        """Return how many packets ended with each `Path` unasked, and forget it.  The caller holds the lock."""
        ...

    def stats(self) -> IoStats: ...

    def close(self) -> None:
        """Unbind: from now on the kernel drops what the hooks queue, and at once what is still held."""
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

