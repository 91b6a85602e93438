"""PPTP: call ids for ports, so that several hosts inside can have calls with one server (RFC 2637).

                      control connection, TCP 1723                        the call's packets, GRE
    inside ─ request  "my id is C"  ─> "… is O"  ─> peer         inside ─ to P ─────────────────> peer
    inside <─ reply   "mine P, yours C" <─ "… O" ── peer         inside <─ to C <───── to O ───── peer

O is this call's on the outside address: a mapping like any other, with C as its inside port.  When a reply has named
both ids, the call becomes a flow of three endpoints (`FlowSpec.is_call`), and the fast path does the rest.  Whoever
asks, inside or outside, and whoever is the server: a message's ids are its sender's and its receiver's.

Every packet of a control connection comes here, for its flow is never approved for more than one (`FastPath.doubt`).

An id that was heard is held for HOLD_NS without a flow: the reply may take its time, and what is sent again
must get the same id again, also after the call's end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from natengine.fastpath import FastPath
from natengine.flow.mappings import Endpoint, NoPort, Wanted
from natengine.flow.records import FlowInfo, FlowSpec
from natengine.nat.fair_store import FairStore
from natengine.nat.packet import NewPacket
from natengine.nat.slowpath import NO_PORT, SlowPath
from natengine.settings import Settings
from natengine.vocab import Hook, Proto, Reason, Verdict
from natengine.wire.pptp import PPTP_PORT, REQUESTS, ControlMessage, Message, find_messages
from natengine.wire.rewrite import get16
from natengine.wire.tcp import replace_word

HOLD_NS = 240 * 10**9               # as a TCP connection that is being opened or closed
HOLDS, HOLDS_OF_A_HOST = 4096, 64
CALL_IDS = (1, 65535)               # 0 is no call's: its packets stay as they are


class _Hold(NamedTuple):
    inside: Endpoint
    outside: Endpoint


def is_control(spec: FlowSpec) -> bool:
    """Whether a flow is a control connection whose addresses are translated, or the head's own."""
    port = spec.peer_port if spec.from_inside else spec.outside_port
    exempt = spec.inside_ip == spec.outside_ip and spec.inside_ifindex != 0
    return spec.proto == Proto.TCP and port == PPTP_PORT and not exempt


class Calls:
    """Reads control connections and begins and ends the flows of their calls."""

    def __init__(
        self, fast: FastPath, slow: SlowPath, settings: Settings, *,
        install: Callable[[FlowSpec, int], int], remove: Callable[[int, int], object],
    ) -> None:
        """Start without calls.

        Args:
            install: Puts a flow into the table, as `FastPath.install`, making room if need be.
            remove: Ends a flow, by its id.
        """
        self._fast, self._slow, self._reads = fast, slow, settings.pptp
        self._install, self._remove = install, remove
        self._holds: OrderedDict[_Hold, int] = OrderedDict()        # until when; the soonest first
        self._shares = FairStore[_Hold](HOLDS, HOLDS_OF_A_HOST)

    def follow(self, flow: FlowInfo | None, packet: bytearray, new: NewPacket, reason: Reason, now_ns: int) -> Reason:
        """Read a packet that has been translated, if it is of a control connection, and write its call ids.

        Returns:
            The reason it came with, or why the packet cannot pass.
        """
        if flow is None or reason.verdict is Verdict.DROP or not (self._reads and is_control(flow.spec)):
            return reason
        self._fast.doubt(flow.flow_id)
        leaving = new.meta.hook == Hook.POSTROUTING
        for message in find_messages(packet, new.ip):
            answer = self._translate(packet, new, flow.spec, message, leaving, now_ns)
            if isinstance(answer, NoPort):
                return NO_PORT[answer]
            if answer:
                reason = Reason.TRANSLATED
        return reason

    def _translate(
        self, packet: bytearray, new: NewPacket, control: FlowSpec, message: ControlMessage, leaving: bool, now_ns: int
    ) -> bool | NoPort:
        """Write the inside's call id, begin or end the call; say whether the packet has changed."""
        near_at, far_at = message.sender_at, message.receiver_at
        if not leaving:
            near_at, far_at = far_at, near_at
        hold, changed = None, False
        if near_at is not None and get16(packet, near_at):
            call_id = get16(packet, near_at)
            answer = self._ids(control, call_id, message, leaving, now_ns)
            if isinstance(answer, NoPort):
                return answer
            hold = answer
            if hold is not None:
                self._keep(hold, now_ns)
                new_id = (hold.outside if leaving else hold.inside).port_or_icmp_id
                changed = new_id != call_id
                replace_word(packet, new.ip, near_at, new_id)
        peer_id = None if far_at is None else get16(packet, far_at)
        if message.connects and hold is not None and peer_id is not None:
            self._begin(control, hold, peer_id, now_ns)
        elif message.kind is Message.CALL_DISCONNECT_NOTIFY:
            self._end(control, hold, peer_id, now_ns)
        return changed

    def _ids(
        self, control: FlowSpec, call_id: int, message: ControlMessage, leaving: bool, now_ns: int
    ) -> _Hold | NoPort | None:
        """Return a call's ids inside and outside, new ones if it begins here; None if it is not known."""
        mappings = self._slow.mappings
        if not leaving:
            outside = Endpoint(Proto.GRE, control.outside_ip, call_id)
            inside = mappings.inside_of(outside)
            return _Hold(inside, outside) if inside is not None and inside.ip == control.inside_ip else None
        inside = Endpoint(Proto.GRE, control.inside_ip, call_id)
        port = mappings.outside_port_of(inside, control.outside_ip)
        if port is None:
            if message.kind not in REQUESTS and not message.connects:
                return None
            wanted = Wanted(inside, control.outside_ip, ports=CALL_IDS, ifindex=control.inside_ifindex)
            answer = mappings.acquire(wanted, lambda _: False, now_ns)
            if isinstance(answer, NoPort):
                return answer
            hold = _Hold(inside, Endpoint(Proto.GRE, control.outside_ip, answer))
            self._add(hold, now_ns)
            return hold
        return _Hold(inside, Endpoint(Proto.GRE, control.outside_ip, port))

    # ── holds ────────────────────────────────────────────────────────────────────────────────────

    def _keep(self, hold: _Hold, now_ns: int) -> None:
        """Hold a mapping that exists, from now on for the usual time."""
        if hold in self._holds:
            self._holds[hold] = now_ns + HOLD_NS
            self._holds.move_to_end(hold)
        else:
            self._slow.mappings.join(hold.outside)
            self._add(hold, now_ns)

    def _add(self, hold: _Hold, now_ns: int) -> None:
        self._holds[hold] = now_ns + HOLD_NS
        for old in self._shares.add(hold, hold.inside.ip):
            self._let_go(old, now_ns)

    def _let_go(self, hold: _Hold, now_ns: int) -> None:
        del self._holds[hold]
        self._slow.mappings.release(hold.inside, hold.outside, now_ns)

    def expire(self, now_ns: int) -> None:
        """Let go of the ids that have been held long enough."""
        while self._holds and next(iter(self._holds.values())) <= now_ns:
            hold = next(iter(self._holds))
            self._shares.remove(hold)
            self._let_go(hold, now_ns)

    # ── flows ────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, control: FlowSpec, hold: _Hold, peer_id: int, now_ns: int) -> None:
        """Make a flow of a call; an older one whose ids have been given to this one has ended unseen."""
        spec = control._replace(
            proto=Proto.GRE, inside_port=hold.inside.port_or_icmp_id, outside_port=hold.outside.port_or_icmp_id,
            peer_port=peer_id,
        )
        for key in (spec.leaving, spec.arriving):
            known = self._fast.info(self._fast.find(key))
            if known is None or not known.spec.is_call:
                continue
            if (known.spec.leaving, known.spec.arriving) == (spec.leaving, spec.arriving):
                return                              # the reply has come again
            self._remove(known.flow_id, now_ns)
        policy = self._slow.policy
        spec = spec._replace(allow=policy.allow_later(spec, marked_like=control))
        if self._install(spec, now_ns) >= 0:        # else the table is full: as if the reply had not been seen
            self._slow.adopt(spec, now_ns)
            policy.mark_like(spec, control)

    def _end(self, control: FlowSpec, hold: _Hold | None, peer_id: int | None, now_ns: int) -> None:
        """End the flow of a call that one side has called off by its own id; the other side's is not in the message."""
        call = control._replace(
            proto=Proto.GRE, outside_port=0 if hold is None else hold.outside.port_or_icmp_id, peer_port=peer_id or 0
        )
        known = self._fast.info(self._fast.find(call.arriving if peer_id is None else call.leaving))
        if known is not None and known.spec.is_call:
            self._remove(known.flow_id, now_ns)
