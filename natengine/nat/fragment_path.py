"""What becomes of a fragment: the first one goes the way of a whole packet, the later ones follow it."""

from __future__ import annotations

from collections.abc import Callable

from natengine.fastpath import FastPath
from natengine.flow.records import Allow, FlowInfo
from natengine.nat.fragments import DatagramKey, FragmentTable, contradicts_itself
from natengine.nat.packet import NewPacket
from natengine.nat.slowpath import TRANSLATABLE, SlowPath
from natengine.settings import Settings
from natengine.vocab import Hook, PacketMeta, Proto, Reason
from natengine.wire.ipv4 import FRAGMENT_WORD
from natengine.wire.rewrite import get16, put16, rewrite_destination, rewrite_source

_UDP_LENGTH = 4                     # offset in the UDP header
# what the way of a whole packet ends with if there is a flow to follow
_HAS_FLOW = frozenset({Reason.TRANSLATED, Reason.NEW_FLOW, Reason.UNCHANGED})

# packet, now_ns -> why: what the engine does with a whole packet, and what it says to one without a flow
Settle = Callable[[bytearray, NewPacket, int], Reason]
WithoutFlow = Callable[[NewPacket, Reason], Reason]


def translate_first(fast: FastPath, packet: bytearray, new: NewPacket, now_ns: int) -> int:
    """Let the fast path have a first fragment, which looks like a whole packet to it for the moment.

    So its flow is found, FORWARD and the TCP state have their say, and the ports are rewritten, as for any packet.
    Checksums are updated and not computed: what stands in the header meanwhile does not matter to them.

    Returns:
        The `Path`, as `FastPath.translate`.
    """
    ip, meta = new.ip, new.meta
    pretended = {FRAGMENT_WORD: 0}
    if ip.proto == Proto.UDP:
        pretended[ip.header_len + _UDP_LENGTH] = ip.total_len - ip.header_len
    true = {at: get16(packet, at) for at in pretended}
    for at, value in pretended.items():
        put16(packet, at, value)
    path = fast.translate(packet, meta.hook, now_ns, meta.out_ifindex)
    for at, value in true.items():
        put16(packet, at, value)
    return path


class FragmentPath:
    """Decides about fragments and rewrites them."""

    def __init__(
        self, fast: FastPath, slow: SlowPath, settings: Settings, settle_first: Settle, without_flow: WithoutFlow
    ) -> None:
        """Start with no datagram known.

        Args:
            settle_first: Decides about a first fragment as if it were the whole packet, and rewrites it.
            without_flow: Says why, of a packet that can have no flow.
        """
        self._fast, self._slow = fast, slow
        self._settle_first, self._without_flow = settle_first, without_flow
        self._datagrams = FragmentTable(settings.max_fragment_trains, settings.fragment_timeout_ns)

    def __len__(self) -> int:
        """Return how many datagrams are under way."""
        return len(self._datagrams)

    def settle(self, packet: bytearray, new: NewPacket, now_ns: int) -> Reason:
        """Decide about a fragment, and rewrite it in place."""
        if contradicts_itself(new.ip):
            return Reason.BAD_HEADER
        if new.ip.fragment_offset:
            return self._later_fragment(packet, new, now_ns)
        return self._first_fragment(packet, new, now_ns)

    def _first_fragment(self, packet: bytearray, new: NewPacket, now_ns: int) -> Reason:
        datagram = DatagramKey.of(new.meta.hook, new.ip)
        if new.ip.proto in TRANSLATABLE and not self._datagrams.has_room(datagram, now_ns):
            return Reason.FRAGMENT_LIMIT
        reason = self._settle_first(packet, new, now_ns)
        if reason not in _HAS_FLOW:
            return reason
        flow = self._fast.info(self._fast.find(new.key))
        assert flow is not None
        self._datagrams.remember(datagram, flow, now_ns)
        return Reason.FRAGMENT

    def _later_fragment(self, packet: bytearray, new: NewPacket, now_ns: int) -> Reason:
        train = self._datagrams.find(DatagramKey.of(new.meta.hook, new.ip), now_ns)
        flow = None if train is None else self._fast.info(train.flow_id)
        if train is None or flow is None or flow.spec.arriving != train.arriving:
            return self._without_flow(new, Reason.FRAGMENT_ORPHAN)
        if not self._allows(flow, new.meta):
            return Reason.FORWARD_DROP
        return self._rewrite(packet, new, flow, now_ns)

    def _allows(self, flow: FlowInfo, meta: PacketMeta) -> bool:
        """Ask what the fast path asks of a whole packet, of the FORWARD chain as it stands now."""
        is_reply = (meta.hook == Hook.POSTROUTING) != flow.spec.from_inside
        needed = Allow.REPLY if is_reply else Allow.ORIGINAL if flow.seen_reply else Allow.NEW
        return bool(self._slow.policy.allow_later(flow.spec) & needed)

    def _rewrite(self, packet: bytearray, new: NewPacket, flow: FlowInfo, now_ns: int) -> Reason:
        """Do to a later fragment what the fast path has done to the first one."""
        spec = flow.spec
        self._fast.touch(flow.flow_id, new.meta.hook, new.ip.total_len, now_ns)
        if new.meta.hook == Hook.POSTROUTING:
            rewrite_source(packet, new.ip, spec.outside_ip, None)
        else:
            rewrite_destination(packet, new.ip, spec.inside_ip, None)
        return Reason.FRAGMENT

    def expire(self, now_ns: int) -> None:
        """Forget the datagrams that have been under way too long."""
        self._datagrams.expire(now_ns)
