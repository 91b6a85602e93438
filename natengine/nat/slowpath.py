"""The first packet of a flow: what is to become of it.

    arriving   for the head itself ............ LOCAL_IN, no state: a stranger's packet makes none
               from an uplink, for others ..... UNSOLICITED
               anything else .................. ROUTED: POSTROUTING will see it

    leaving    FORWARD says no ................ FORWARD_DROP
               a reply translated already ..... ROUTED
               TCP, but not the opening SYN ... TCP_STATE
               no nat rule .................... NO_RULE on an uplink; the head's own: unchanged
               MASQUERADE ..................... a new flow

Nothing is rewritten here: the answer is a `FlowSpec` to install, or a `Reason`.
"""

from __future__ import annotations

from typing import NamedTuple

from natengine.fastpath import NOT_FOUND, FastPath
from natengine.flow.mappings import Endpoint, MappingTable
from natengine.flow.records import Allow, FlowSpec, flow_key, icmp_query_port
from natengine.nat.policy import ASK_FORWARD, Policy, SourceNat, is_drop
from natengine.rules.evaluate import POLICY_HANDLE, PacketFacts
from natengine.rules.model import Masquerade
from natengine.vocab import CtState, Hook, PacketMeta, Proto, Reason
from natengine.wire.ipv4 import ICMP_ECHO_REQUEST, Ipv4Fields, Transport
from natengine.wire.tcp import ACK, FIN, RST, SYN

ALLOW_NEW = Allow.NEW.value

TRANSLATABLE = frozenset({Proto.TCP, Proto.UDP, Proto.ICMP})


class NewPacket(NamedTuple):
    """A packet that belongs to no known flow, read once."""

    ip: Ipv4Fields
    transport: Transport
    meta: PacketMeta

    @property
    def from_head(self) -> bool:
        """Whether the head itself sent it: nothing received it, so it has no in-interface."""
        return self.meta.in_ifindex == 0


class SlowPath:
    """Decides about packets without a flow."""

    def __init__(self, fast: FastPath, mappings: MappingTable, policy: Policy) -> None:
        self._fast = fast
        self._mappings = mappings
        self.policy = policy

    def decide(self, packet: NewPacket) -> FlowSpec | Reason:
        """Return the flow that this packet begins, or why it begins none.

        A spec holds a mapping: install it, or `release` it.
        """
        if packet.meta.hook == Hook.PREROUTING:
            return self._arriving(packet)
        return self._leaving(packet)

    def release(self, spec: FlowSpec) -> None:
        """Let go of the mapping of a flow that has ended or was never installed."""
        self._mappings.release(
            Endpoint(spec.proto, spec.inside_ip, spec.inside_port),
            Endpoint(spec.proto, spec.outside_ip, spec.outside_port),
        )

    def _arriving(self, packet: NewPacket) -> Reason:
        if self.policy.interfaces.is_local(packet.ip.dst):
            return Reason.LOCAL_IN
        if self.policy.is_uplink(packet.meta.in_ifindex):
            return Reason.UNSOLICITED
        return Reason.ROUTED

    def _leaving(self, packet: NewPacket) -> FlowSpec | Reason:
        facts = self.policy.facts(packet.ip, packet.transport, packet.meta, CtState.NEW)
        if packet.from_head:
            if not self._is_trackable(packet):
                return Reason.LOCAL_OUT
        elif self.policy.uplinks.any_interface and self._was_translated(packet):
            return Reason.ROUTED
        elif not self.policy.forwards(facts):
            return Reason.FORWARD_DROP
        return self._source_nat(packet, facts)

    def _source_nat(self, packet: NewPacket, facts: PacketFacts) -> FlowSpec | Reason:
        """Walk nat POSTROUTING and act on what it says."""
        outcome = self.policy.postrouting(facts)
        if is_drop(outcome):
            return Reason.RULE_DROP
        if isinstance(outcome.target, Masquerade):
            refusal = None if packet.from_head else _why_not_new(packet)
            if refusal is not None:
                return refusal
            nat = self.policy.source_nat(outcome.target, packet.meta.out_ifindex, packet.ip.src)
            if nat is None:
                return Reason.NO_ADDRESS
            return self._new_flow(packet, nat)
        if packet.from_head:
            return self._own_flow(packet)
        if outcome.handle == POLICY_HANDLE:
            return Reason.NO_RULE if self.policy.is_uplink(packet.meta.out_ifindex) else Reason.ROUTED
        refusal = _why_not_new(packet)                  # an ACCEPT rule: not translated, on purpose
        return self._unchanged_flow(packet) if refusal is None else refusal

    def _was_translated(self, packet: NewPacket) -> bool:
        """Whether this is a reply that PREROUTING has turned to its inside host already.

        It passes POSTROUTING once more where a rule without an out-interface makes every interface
        an uplink.  It then looks like a packet of the flow's inside tuple, the other way round.
        """
        ip, transport = packet.ip, packet.transport
        if ip.proto == Proto.ICMP:
            return self._fast.find(
                flow_key(
                    Hook.POSTROUTING, ip.proto, ip.dst, transport.src_port_or_icmp_id, ip.src, 0,
                    icmp_query_port(Hook.PREROUTING, transport.icmp_type),
                )
            ) != NOT_FOUND
        return self._fast.find(
            flow_key(
                Hook.POSTROUTING, ip.proto, ip.dst, transport.dst_port_or_icmp_id,
                ip.src, transport.src_port_or_icmp_id, 0,
            )
        ) != NOT_FOUND

    def _is_trackable(self, packet: NewPacket) -> bool:
        """Whether a packet of the head's own begins (or goes on with) a flow that is worth a record."""
        ip, transport = packet.ip, packet.transport
        interfaces = self.policy.interfaces
        if ip.proto not in TRANSLATABLE or ip.src == 0 or interfaces.is_local(ip.dst):
            return False
        if ip.proto == Proto.TCP:
            return not transport.tcp_flags & RST        # the answer to a stranger's SYN begins nothing
        return ip.proto != Proto.ICMP or transport.icmp_type == ICMP_ECHO_REQUEST

    def _new_flow(self, packet: NewPacket, nat: SourceNat) -> FlowSpec | Reason:
        """Give the packet's source an outside endpoint."""
        if _answers_a_stranger(packet):
            return self._own_flow(packet)       # a service: the peer knows its address and port, so they stay
        ip, transport, _ = packet
        inside = Endpoint(ip.proto, ip.src, transport.src_port_or_icmp_id)
        port = self._mappings.acquire(inside, nat.outside_ip, keep_port=nat.keep_port, ports=nat.ports)
        if port is None:
            return Reason.OUT_OF_PORTS
        return self._flow(packet, nat.outside_ip, port)

    def _own_flow(self, packet: NewPacket) -> FlowSpec:
        """Return the flow of a packet of the head's own that is not to be translated.

        Its port is held if it can be, so that no worker gets it while the head talks.
        """
        spec = self._unchanged_flow(packet)
        if self.policy.interfaces.owns(spec.inside_ip):
            self._mappings.hold(Endpoint(spec.proto, spec.inside_ip, spec.inside_port))
        return spec

    def _unchanged_flow(self, packet: NewPacket) -> FlowSpec:
        """Return a flow whose outside endpoint is its inside endpoint."""
        return self._flow(packet, packet.ip.src, packet.transport.src_port_or_icmp_id)

    def _flow(self, packet: NewPacket, outside_ip: int, outside_port: int) -> FlowSpec:
        """Return the flow of a leaving packet with this outside endpoint."""
        ip, transport, meta = packet
        peer_port = transport.dst_port_or_icmp_id
        if ip.proto == Proto.ICMP:
            peer_port = icmp_query_port(Hook.POSTROUTING, transport.icmp_type)
        from_inside = not _answers_a_stranger(packet)
        spec = FlowSpec(
            ip.proto, ip.src, transport.src_port_or_icmp_id, outside_ip, outside_port, ip.dst, peer_port,
            from_inside, meta.in_ifindex, meta.out_ifindex,
            self.policy.allow_by_interface(meta.in_ifindex, meta.out_ifindex, from_inside),
        )
        if spec.allow == ASK_FORWARD:
            # FORWARD, or nobody for the head's own, has let this packet pass: NEW is allowed
            spec = spec._replace(allow=ALLOW_NEW | self.policy.allow_later(spec))
        return spec


def _answers_a_stranger(packet: NewPacket) -> bool:
    """Whether this is from a TCP service of the head's own, to a peer that opened the connection."""
    return packet.from_head and packet.ip.proto == Proto.TCP and bool(packet.transport.tcp_flags & ACK)


def _why_not_new(packet: NewPacket) -> Reason | None:
    """Return why a forwarded packet cannot begin a flow, or None if it can."""
    ip, transport = packet.ip, packet.transport
    if ip.proto not in TRANSLATABLE:
        return Reason.UNKNOWN_PROTOCOL
    if ip.proto == Proto.TCP and transport.tcp_flags & (SYN | ACK | RST | FIN) != SYN:
        return Reason.TCP_STATE
    if ip.proto == Proto.ICMP and transport.icmp_type != ICMP_ECHO_REQUEST:
        return Reason.ICMP_UNRELATED
    return None
