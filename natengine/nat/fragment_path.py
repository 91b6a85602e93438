"""What becomes of a fragment: the first one goes the way of a whole packet, the later ones follow it.

    a first fragment ............ decided and rewritten like the whole packet; then those that waited for it
    a later one, after it ....... rewritten, accepted or refused as the first one was
    a later one, before it ...... held: it stays in the kernel's queue, for 30 s at most
    all of it was there before .. dropped, it would change nothing (RFC 5722, errata)
    some of it was .............. the whole datagram is refused from then on (RFC 5722)

Nothing is put together: a fragment leaves with the bytes that it came with.  So after 30 s there is no fragment zero
that an ICMP error (11/1) could quote, and none is sent (RFC 792, RFC 1122 3.3.2); the receiver does that.

Memory is bounded: in datagrams, and in what is held for them, each with a share for one sender (`FairStore`).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import NamedTuple

from natengine.fastpath import FastPath
from natengine.flow.records import FlowInfo
from natengine.nat.fair_store import FairStore
from natengine.nat.fragments import (
    Datagram,
    DatagramKey,
    HeldFragment,
    Identifications,
    Seen,
    Train,
    Untouched,
    fault_of,
)
from natengine.nat.packet import NewPacket
from natengine.nat.slowpath import SlowPath
from natengine.settings import Settings
from natengine.vocab import Hook, PacketMeta, Proto, Reason, Rng, Verdict
from natengine.wire.ipv4 import IP_FRAGMENT_WORD, Ipv4Fields, Transport, parse_transport_untrusted
from natengine.wire.rewrite import get16, put16, rewrite_destination, rewrite_identification, rewrite_source

# The kernel's queue has 8192 places, and older kernels look through all of it for each verdict: 512 packets are held
# at most, 64 of one sender, enough for a datagram of 64 KiB that comes the wrong way round.
HELD_BYTES = 1 << 20
HELD_LEAST = 2048                   # what a packet counts for at least: the kernel's copy takes as much
HELD_SHARE, DATAGRAM_SHARE = 8, 4   # one sender may have an eighth of the bytes, and a quarter of the datagrams

_PORTLESS = Transport(0, 0, 0, 0, 0)
_UDP_LENGTH = 4                     # offset in the UDP header
# what the way of a whole packet ends with if there is a flow to follow
_HAS_FLOW = frozenset({Reason.TRANSLATED, Reason.NEW_FLOW, Reason.UNCHANGED})

# packet, now_ns -> why: what the engine does with a whole packet
SettleFirst = Callable[[bytearray, NewPacket, int], Reason]


def translate_first(fast: FastPath, packet: bytearray, new: NewPacket, now_ns: int) -> int:
    """Let the fast path have a first fragment, which looks like a whole packet to it for the moment.

    So its flow is found, FORWARD and the TCP state have their say, and the ports are rewritten, as for any packet.
    Checksums are updated and not computed: what stands in the header meanwhile does not matter to them.

    Returns:
        The `Path`, as `FastPath.translate`.
    """
    ip, meta = new.ip, new.meta
    pretended = {IP_FRAGMENT_WORD: 0}
    if ip.proto == Proto.UDP:
        pretended[ip.header_len + _UDP_LENGTH] = ip.total_len - ip.header_len
    true = {at: get16(packet, at) for at in pretended}
    for at, value in pretended.items():
        put16(packet, at, value)
    path = fast.translate(packet, meta.hook, now_ns, meta.out_ifindex)
    for at, value in true.items():
        put16(packet, at, value)
    return path


class Released(NamedTuple):
    """What has become of a held packet."""

    ticket: int
    reason: Reason
    packet: bytearray


class FragmentPath:
    """Decides about fragments and rewrites them."""

    def __init__(
        self, fast: FastPath, slow: SlowPath, settings: Settings, rng: Rng, *,
        settle_first: SettleFirst,
    ) -> None:
        """Start with no datagram known.

        Args:
            settle_first: Decides about a first fragment as if it were the whole packet, and rewrites it.
        """
        self._fast, self._slow = fast, slow
        self._settle_first = settle_first
        self._timeout_ns = settings.fragment_timeout_ns
        self._datagrams: dict[DatagramKey, Datagram] = {}               # the oldest first
        limit = settings.max_fragment_trains
        self._known = FairStore[DatagramKey](limit, min(limit, max(1, limit // DATAGRAM_SHARE)))
        self._holding = FairStore[DatagramKey](HELD_BYTES, HELD_BYTES // HELD_SHARE)
        self._identifications = Identifications(rng)
        self._tickets = count(1)
        self._released: list[Released] = []
        self.held = 0                   # packets that wait for their first fragment

    def __len__(self) -> int:
        """Return how many datagrams are under way."""
        return len(self._datagrams)

    def settle(self, packet: bytearray, ip: Ipv4Fields, meta: PacketMeta, now_ns: int) -> Reason | HeldFragment:
        """Decide about a fragment and rewrite it in place, or hold it.

        Raises:
            BadPacket: A first fragment whose transport header contradicts itself.
        """
        fault = fault_of(packet, ip)
        if fault is not None:
            return fault
        transport = _PORTLESS if ip.fragment_offset else parse_transport_untrusted(packet, ip)
        new = NewPacket(ip, transport, meta)
        datagram = self._datagram(DatagramKey.of(meta.hook, ip), now_ns)
        if datagram is None:
            return Reason.FRAGMENT_LIMIT
        refusal = self._note(datagram, ip)
        if refusal is not None:
            return refusal
        decide = self._later if ip.fragment_offset else self._first
        answer = decide(datagram, packet, new, now_ns)
        if datagram.is_whole:
            self._forget(datagram.key)
        return answer

    # ── datagrams ────────────────────────────────────────────────────────────────────────────────

    def _datagram(self, key: DatagramKey, now_ns: int) -> Datagram | None:
        """Return the record of a datagram, a new one if need be; None if there is room for none at all."""
        self.expire(now_ns)
        if key not in self._datagrams:
            self._datagrams[key] = Datagram(key, now_ns + self._timeout_ns)
            for old in self._known.add(key, key.src):
                self._end(self._datagrams[old], Reason.FRAGMENT_LIMIT)
                self._forget(old)
        return self._datagrams.get(key)

    def _note(self, datagram: Datagram, ip: Ipv4Fields) -> Reason | None:
        """Take down which bytes have come; return why the fragment is refused for that, if it is."""
        if datagram.extent is None:
            assert isinstance(datagram.outcome, Reason)
            return datagram.outcome
        end = ip.fragment_offset + ip.total_len - ip.header_len
        seen = datagram.extent.note(ip.fragment_offset, end, more=ip.more_fragments)
        if seen is Seen.NEW:
            return None
        if seen is Seen.DUPLICATE:
            return Reason.FRAGMENT_DUPLICATE
        reason = Reason.FRAGMENT_OVERLAP if seen is Seen.OVERLAP else Reason.FRAGMENT_LIMIT
        self._end(datagram, reason)
        return reason

    def _end(self, datagram: Datagram, reason: Reason) -> None:
        """Let nothing of a datagram pass any more."""
        datagram.extent, datagram.outcome = None, reason
        for held in self._take_held(datagram):
            self._release(held, reason)

    def _forget(self, key: DatagramKey) -> None:
        del self._datagrams[key]
        self._known.remove(key)

    def expire(self, now_ns: int) -> None:
        """End the datagrams that have been under way too long."""
        while self._datagrams:
            oldest = next(iter(self._datagrams.values()))
            if oldest.deadline_ns > now_ns:
                return
            self._end(oldest, Reason.FRAGMENT_ORPHAN)
            self._forget(oldest.key)

    # ── held fragments ───────────────────────────────────────────────────────────────────────────

    def _hold(self, datagram: Datagram, packet: bytearray, new: NewPacket) -> Reason | HeldFragment:
        for key in self._holding.add(datagram.key, new.ip.src, max(len(packet), HELD_LEAST)):
            self._end(self._datagrams[key], Reason.FRAGMENT_LIMIT)
        if isinstance(datagram.outcome, Reason):        # it was itself the one to go
            return datagram.outcome
        held = HeldFragment(next(self._tickets), packet, new)
        datagram.held.append(held)
        self.held += 1
        return held

    def _take_held(self, datagram: Datagram) -> list[HeldFragment]:
        """Return what has waited for a decision about a datagram, in order of arrival; it waits no longer."""
        self._holding.remove(datagram.key)
        held, datagram.held = datagram.held, []
        return held

    def _release(self, held: HeldFragment, reason: Reason) -> None:
        self.held -= 1
        self._released.append(Released(held.ticket, reason, held.packet))

    def take_released(self) -> list[Released]:
        """Return what has become of held packets since the last call, in order."""
        released, self._released = self._released, []
        return released

    # ── decisions ────────────────────────────────────────────────────────────────────────────────

    def _first(self, datagram: Datagram, packet: bytearray, new: NewPacket, now_ns: int) -> Reason:
        reason = self._settle_first(packet, new, now_ns)
        if reason in _HAS_FLOW:
            reason = Reason.FRAGMENT
            train = self._train(new)
            rewrite_identification(packet, train.identification)
            datagram.outcome = train
        elif reason.verdict is Verdict.ACCEPT:
            datagram.outcome = Untouched(reason, new.meta.in_ifindex, new.meta.out_ifindex)
        else:
            datagram.outcome = reason
        for held in self._take_held(datagram):
            self._release(held, self._follow(datagram.outcome, held.packet, held.new, now_ns))
        return reason

    def _later(
        self, datagram: Datagram, packet: bytearray, new: NewPacket, now_ns: int
    ) -> Reason | HeldFragment:
        if datagram.outcome is None:
            return self._hold(datagram, packet, new)
        return self._follow(datagram.outcome, packet, new, now_ns)

    def _train(self, new: NewPacket) -> Train:
        """Return what the later fragments have to know of the flow that this first one belongs to."""
        flow = self._fast.info(self._fast.find(new.key))
        assert flow is not None
        spec, identification = flow.spec, new.ip.identification
        if new.meta.hook == Hook.POSTROUTING and spec.outside_ip != spec.inside_ip:
            identification = self._identifications.take(spec.outside_ip, new.ip.dst, new.ip.proto)
        return Train(flow.flow_id, spec.arriving, identification, self._slow.policy)

    def _follow(self, outcome: Train | Untouched | Reason, packet: bytearray, new: NewPacket, now_ns: int) -> Reason:
        """Do to a later fragment what was done to the first one."""
        if isinstance(outcome, Reason):
            return outcome
        if isinstance(outcome, Untouched):
            same = (new.meta.in_ifindex, new.meta.out_ifindex) == outcome[1:]
            return outcome.reason if same else Reason.UPLINK_CHANGED
        flow = self._fast.info(outcome.flow_id)
        if flow is None or flow.spec.arriving != outcome.arriving:
            return Reason.FRAGMENT_ORPHAN
        if flow.spec.from_inside and new.meta.out_ifindex not in (0, flow.spec.uplink_ifindex):
            return Reason.UPLINK_CHANGED
        if self._slow.policy is not outcome.rules and not self._allows(flow, new.meta):
            return Reason.FORWARD_DROP
        self._fast.touch(flow.flow_id, new.meta.hook, new.ip.total_len, now_ns)
        if new.meta.hook == Hook.POSTROUTING:
            rewrite_source(packet, new.ip, flow.spec.outside_ip, None)
        else:
            rewrite_destination(packet, new.ip, flow.spec.inside_ip, None)
        rewrite_identification(packet, outcome.identification)
        return Reason.FRAGMENT

    def _allows(self, flow: FlowInfo, meta: PacketMeta) -> bool:
        """Ask what the fast path asks of a whole packet, of the FORWARD chain as it stands now."""
        return bool(self._slow.policy.allow_later(flow.spec) & flow.kind(meta.hook))
