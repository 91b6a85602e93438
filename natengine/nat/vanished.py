"""Flows that have lost their uplink: its address is gone, or their route leads over another one now.

A flow ends with its outside address, for answers to it go nowhere any more.  With a million flows on that
address nobody could wait until all of them have ended, so they end a few at a time; whose packet comes
first ends then.  An address that comes back meanwhile keeps the flows that are left.

A flow does not go to another uplink: the peer knows it by its address, and that address belongs to one
provider and must not leave over another's line.  It ends, as in the kernel (nf_nat_oif_changed), and its
packet begins a new one where that is possible.  Only packets of the side that opened it count: an answer
may go another way than the question came.
"""

from __future__ import annotations

from natengine.fastpath import NOT_FOUND, FastPath
from natengine.flow.records import FlowSpec
from natengine.vocab import Hook, PacketMeta

FLOWS_AT_ONCE = 1024                # to end: some milliseconds in Python
_LOOKS, _LOOKS_AT_ONCE = 1024, 65_536


class VanishedAddresses:
    """Addresses that the head no longer has, as long as there may be flows on them."""

    def __init__(self, fast: FastPath) -> None:
        self._fast = fast
        self._next_id: dict[int, int] = {}          # by address: the flow to look at next

    def note(self, before: frozenset[int], now: frozenset[int]) -> None:
        """Take notice of which addresses there were and which there are."""
        for address in now:
            self._next_id.pop(address, None)
        for address in before - now:
            self._next_id[address] = 0

    def find_flows(self, at_most: int = FLOWS_AT_ONCE) -> list[int]:
        """Return the ids of about `at_most` flows on them, for the caller to end; the next call goes on from there."""
        found: list[int] = []
        looks_left = _LOOKS_AT_ONCE
        while self._next_id and len(found) < at_most and looks_left > 0:
            address, first_id = next(iter(self._next_id.items()))
            ids, next_id = self._fast.find_on(address, first_id, _LOOKS)
            found += ids
            looks_left -= _LOOKS
            if next_id == NOT_FOUND:
                del self._next_id[address]
            else:
                self._next_id[address] = next_id
        return found

    def end(self, spec: FlowSpec, meta: PacketMeta) -> bool:
        """Whether this flow has lost its uplink, as a packet of it shows."""
        return spec.outside_ip in self._next_id or (_has_moved(spec, meta) and not _is_exempt(spec))


def _has_moved(spec: FlowSpec, meta: PacketMeta) -> bool:
    leaves = meta.hook == Hook.POSTROUTING and spec.from_inside
    return leaves and meta.out_ifindex not in (0, spec.uplink_ifindex)


def _is_exempt(spec: FlowSpec) -> bool:
    """Whether a rule has kept a forwarded flow from being translated: it has its own address on any uplink."""
    return (
        spec.inside_ifindex != 0
        and (spec.inside_ip, spec.inside_port) == (spec.outside_ip, spec.outside_port)
    )
