"""The first packet of a flow: what is to become of it.

    arriving   `nat/arriving.py`

    leaving    a destination from PREROUTING .. hairpinned (`nat/hairpin.py`), or ROUTED
               FORWARD says no ................ FORWARD_DROP
               TCP, but not the opening SYN ... TCP_STATE (with `tcp_loose` an ACK will do)
               no nat rule .................... NO_RULE on an uplink; the head's own: unchanged
               enough flows, no port .......... HOST_LIMIT, OUT_OF_PORTS
               no ports, and the peer taken ... PEER_TAKEN
               MASQUERADE ..................... a new flow

Nothing is rewritten here: the answer is a `FlowSpec` to install, or a `Reason`.
"""

from __future__ import annotations

from natengine.fastpath import NOT_FOUND, FastPath
from natengine.flow.mappings import Endpoint, MappingTable, MayShare, NoPort, Wanted
from natengine.flow.records import Allow, FlowKey, FlowSpec, icmp_query_port
from natengine.nat.arriving import Arriving
from natengine.nat.destination import DestinationRules
from natengine.nat.hairpin import find_aimed, second_half
from natengine.nat.icmp_errors import QuotedCalls
from natengine.nat.marks import FlowMarks
from natengine.nat.packet import NewPacket
from natengine.nat.policy import ASK_FORWARD, Policy, is_drop
from natengine.nat.protocols import MAPPED, UNTRANSLATABLE, WITH_FILTERING
from natengine.nat.source import SourceNat, SourceTarget
from natengine.rules.evaluate import POLICY_HANDLE, PacketFacts
from natengine.rules.targets import Accept
from natengine.settings import Settings
from natengine.vocab import CtState, Hook, Proto, Reason, Rng
from natengine.wire.ipv4 import ICMP_REPLY_TO, Transport
from natengine.wire.tcp import ACK, FIN, RST, SYN

ALLOW_NEW = Allow.NEW.value

NO_PORT = {NoPort.OUT_OF_PORTS: Reason.OUT_OF_PORTS, NoPort.HOST_LIMIT: Reason.HOST_LIMIT}


class SlowPath:
    """Decides about packets without a flow."""

    def __init__(self, fast: FastPath, policy: Policy, marks: FlowMarks, settings: Settings, rng: Rng) -> None:
        self._fast, self._marks = fast, marks
        self.policy = policy
        self.mappings = MappingTable(rng, settings)
        self.arriving = Arriving(fast, self.mappings, settings)
        self._destinations = DestinationRules(fast, self.mappings, rng)
        self._max_flows = settings.max_flows_per_host
        self._loose = settings.tcp_loose
        self.quoted_calls = QuotedCalls()
        self._flows_of: dict[int, int] = {}             # that inside hosts have begun, by their address

    def decide(self, packet: NewPacket, now_ns: int) -> FlowSpec | Reason:
        """Return the flow that this packet begins, or why it begins none.

        A spec holds a mapping: install it, or `release` it.
        """
        if packet.ip.proto == Proto.GRE:        # PPTP without a known call begins a flow as all other GRE
            packet = packet._replace(transport=Transport(0, 0, 0, 0, 0))
        arrives = packet.meta.hook == Hook.PREROUTING
        spec = self._arriving(packet, now_ns) if arrives else self._leaving(packet, now_ns)
        if isinstance(spec, FlowSpec):
            self._count(spec)
        return spec

    def _count(self, spec: FlowSpec) -> None:
        if spec.is_call:
            self.quoted_calls.begin(spec)
        if self.arriving.counts_peers:
            self.arriving.flow_begins(spec)
        if spec.from_inside and spec.inside_ifindex:
            self._flows_of[spec.inside_ip] = self._flows_of.get(spec.inside_ip, 0) + 1

    def judge_next(self, flow_id: int) -> None:
        """Allow a flow what FORWARD allows its next packet, the first one having passed."""
        flow = self._fast.info(flow_id)
        if flow is not None:
            self._fast.approve(flow_id, self.policy.allow_later(flow.spec), flow.spec.uplink_ifindex)

    def adopt(self, spec: FlowSpec, now_ns: int) -> None:
        """Hold what a flow holds that an earlier engine began; wants a `release` as any other."""
        self._count(spec)
        inside = Endpoint(spec.proto, spec.inside_ip, spec.inside_port)
        outside = Endpoint(spec.proto, spec.outside_ip, spec.outside_port)
        if inside == outside:
            if not spec.inside_ifindex:
                self.mappings.hold(inside, inside, 0, now_ns)
        elif spec.from_inside:
            self.mappings.adopt(inside, outside, spec.inside_ifindex, now_ns)
        else:       # its mapping is there by now; or a rule sent it on, and says who else may come
            self.mappings.hold(inside, outside, spec.inside_ifindex, now_ns, make=spec.proto in WITH_FILTERING)

    def end(self, spec: FlowSpec, now_ns: int) -> None:
        """Let go of what a flow holds that has ended."""
        self._marks.end(spec)
        self.release(spec, now_ns)

    def release(self, spec: FlowSpec, now_ns: int) -> None:
        """Let go of what a flow holds, which was never installed or has ended (then see `end`)."""
        if spec.is_call:
            self.quoted_calls.end(spec)
        if self.arriving.counts_peers:
            self.arriving.flow_ends(spec)
        if spec.from_inside and spec.inside_ifindex:
            left = self._flows_of.pop(spec.inside_ip) - 1
            if left:
                self._flows_of[spec.inside_ip] = left
        self.mappings.release(
            Endpoint(spec.proto, spec.inside_ip, spec.inside_port),
            Endpoint(spec.proto, spec.outside_ip, spec.outside_port), now_ns,
        )
        self.end_second_half(spec, now_ns)

    def end_second_half(self, spec: FlowSpec, now_ns: int) -> None:
        """End the flow that hangs on one that a peer inside has begun (`nat/hairpin.py`), if there is one."""
        if not spec.from_inside:
            other = self._fast.remove(self._fast.find(second_half(spec)))
            if other is not None:
                self.end(other.spec, now_ns)

    def _arriving(self, packet: NewPacket, now_ns: int) -> FlowSpec | Reason:
        by_rule = self._destinations.decide(packet, self.policy, now_ns)
        if by_rule is not None:
            return by_rule
        return Reason.LOCAL_OUT if packet.from_head else self.arriving.decide(packet, self.policy)

    def _leaving(self, packet: NewPacket, now_ns: int) -> FlowSpec | Reason:
        if packet.meta.out_ifindex == 0:
            return Reason.LOCAL_IN
        way = self.policy.way(packet.meta.in_ifindex, packet.meta.out_ifindex)
        if way is None:
            return self._ask_rules(packet, now_ns)
        way.note(packet.ip.total_len)
        refusal = self._why_not_new(packet)
        return self._new_flow(packet, way.nat, now_ns, way.allow) if refusal is None else refusal

    def _ask_rules(self, packet: NewPacket, now_ns: int) -> FlowSpec | Reason:
        """Walk FORWARD, then nat POSTROUTING."""
        facts = self.policy.facts(packet.ip, packet.transport, packet.meta, CtState.NEW)
        aimed = None if packet.from_head else find_aimed(self._fast, packet)
        if aimed is not None and not (aimed.from_inside and self._is_forged(packet, aimed)):
            return self._second_half(packet, self.policy.go_on_with_mark(facts, aimed), aimed, now_ns)
        facts = self.policy.marked_before_routing(facts, own=packet.from_head)
        if packet.from_head:
            if self.policy.is_in_anothers_name(packet.ip.src, packet.meta.out_ifindex):
                refusal = self._why_not_new(packet)
                if refusal is not None:
                    return refusal
            elif not self._is_trackable(packet):
                return Reason.LOCAL_OUT
            return self._source_nat(packet, facts, now_ns)
        outcome = self.policy.forward(facts)
        if not isinstance(outcome.target, Accept):
            return Reason.FORWARD_DROP
        facts = outcome.marked(facts)
        return self._source_nat(packet, facts, now_ns)

    def _source_nat(self, packet: NewPacket, facts: PacketFacts, now_ns: int) -> FlowSpec | Reason:
        """Walk nat POSTROUTING and act on what it says."""
        outcome = self.policy.postrouting(facts)
        if is_drop(outcome):
            return Reason.RULE_DROP
        if isinstance(outcome.target, SourceTarget):
            refusal = None if packet.from_head else self._why_not_new(packet)
            if refusal is not None:
                return refusal
            nat = self.policy.source_nat(
                outcome.target, packet.meta.out_ifindex, packet.ip.src, packet.transport.src_port_or_icmp_id
            )
            if nat is None:
                return Reason.NO_ADDRESS
            return self._new_flow(packet, nat, now_ns)
        if packet.from_head and not self.policy.is_in_anothers_name(packet.ip.src, packet.meta.out_ifindex):
            return self._own_flow(packet, now_ns)
        if outcome.handle == POLICY_HANDLE:
            return Reason.NO_RULE if self.policy.is_uplink(packet.meta.out_ifindex) else Reason.ROUTED
        refusal = self._why_not_new(packet)             # an ACCEPT rule: not translated, on purpose
        return self._unchanged_flow(packet) if refusal is None else refusal

    def _second_half(self, packet: NewPacket, facts: PacketFacts, aimed: FlowSpec, now_ns: int) -> FlowSpec | Reason:
        """PREROUTING has given the packet its destination, and FORWARD was asked then; what about its source?

        What leaves over an uplink is translated as the rules say; what came from inside and was for an address
        of the head's is hairpinned; any other source stays.
        """
        if aimed.from_inside:
            return Reason.ROUTED
        if self.policy.is_uplink(packet.meta.out_ifindex):
            return self._source_nat(packet, facts, now_ns)
        asked = aimed.outside_ip
        if self.policy.is_uplink(packet.meta.in_ifindex) or not self.policy.interfaces.owns(asked):
            return Reason.ROUTED
        refusal = self._why_not_new(packet)
        if refusal is not None:
            return refusal
        return self._new_flow(packet, self.policy.hairpin_nat(facts, asked), now_ns)

    def _is_forged(self, packet: NewPacket, aimed: FlowSpec) -> bool:
        """Whether what looks like the answer to a flow from inside comes from inside itself, on its way out.

        An answer to the head's own flow (its inside interface is 0) stops here, and has no way out.
        """
        came, via, inside = packet.meta.in_ifindex, packet.meta.out_ifindex, aimed.inside_ifindex
        comes_from_outside = inside != 0 and came != inside and self.policy.is_uplink(came)
        return self.policy.is_uplink(via) and via != inside and not comes_from_outside

    def _is_trackable(self, packet: NewPacket) -> bool:
        """Whether a packet of the head's own begins (or goes on with) a flow that is worth a record."""
        ip, transport = packet.ip, packet.transport
        interfaces = self.policy.interfaces
        if ip.proto in UNTRANSLATABLE or ip.src == 0 or interfaces.is_local(ip.dst):
            return False
        if ip.proto == Proto.TCP:
            return not transport.tcp_flags & RST        # the answer to a stranger's SYN begins nothing
        return ip.proto != Proto.ICMP or transport.icmp_type in ICMP_REPLY_TO

    def _why_not_new(self, packet: NewPacket) -> Reason | None:
        """Return why a forwarded packet cannot begin a flow, or None if it can."""
        ip, transport = packet.ip, packet.transport
        if ip.proto in UNTRANSLATABLE:
            return Reason.UNKNOWN_PROTOCOL
        if ip.proto == Proto.TCP:
            flags = transport.tcp_flags & (SYN | ACK | RST | FIN)
            return None if flags == SYN or (flags == ACK and self._loose) else Reason.TCP_STATE
        if ip.proto == Proto.ICMP and transport.icmp_type not in ICMP_REPLY_TO:
            return Reason.ICMP_UNRELATED
        return None

    def _new_flow(
        self, packet: NewPacket, nat: SourceNat, now_ns: int, allow: int = ASK_FORWARD
    ) -> FlowSpec | Reason:
        """Give the packet's source an outside endpoint."""
        ip, transport, meta = packet
        from_head = meta.in_ifindex == 0
        if from_head and _answers_a_stranger(packet) and not self.policy.is_in_anothers_name(ip.src, meta.out_ifindex):
            # a service: the peer knows its address and port, so they stay
            return self._own_flow(packet, now_ns)
        if self._max_flows and not from_head and self._flows_of.get(ip.src, 0) >= self._max_flows:
            return Reason.HOST_LIMIT
        if ip.proto not in MAPPED:
            return self._flow_of_its_peer(packet, nat.outside_ip, allow)
        inside, outside_ip = Endpoint(ip.proto, ip.src, transport.src_port_or_icmp_id), nat.outside_ip
        port = self.mappings.join_own(inside, outside_ip, nat.ports, meta.in_ifindex)
        if port is None:
            wanted = Wanted(inside, outside_ip, nat.keep_port, nat.ports, meta.in_ifindex, nat.by_rule)
            answer = self.mappings.acquire(wanted, self._may_share(packet, outside_ip), now_ns)
            if isinstance(answer, NoPort):
                return NO_PORT[answer]
            port = answer
        return self._flow(packet, outside_ip, port, allow=allow)

    def _may_share(self, packet: NewPacket, outside_ip: int) -> MayShare:
        """Return what tells whether no other flow has this packet's peer on an outside port."""
        ip, peer_port, find = packet.ip, _peer_port(packet), self._fast.find
        return lambda port: find(
            FlowKey(Hook.PREROUTING, ip.proto, ip.dst, peer_port, outside_ip, port)
        ) == NOT_FOUND

    def _flow_of_its_peer(self, packet: NewPacket, outside_ip: int, allow: int = ASK_FORWARD) -> FlowSpec | Reason:
        """Return the flow of a protocol without a port that could be changed, if no other has this peer."""
        port = packet.transport.src_port_or_icmp_id
        if not self._may_share(packet, outside_ip)(port):
            return Reason.PEER_TAKEN
        return self._flow(packet, outside_ip, port, allow=allow)

    def _own_flow(self, packet: NewPacket, now_ns: int) -> FlowSpec | Reason:
        """Return the flow of a packet of the head's own that is not to be translated.

        Its port is held if it can be, so that no worker gets it while the head talks.  What is in another host's
        name (on its way inside) has none: that host's own packets would follow it, untranslated.
        """
        if not self.policy.interfaces.owns(packet.ip.src):
            return Reason.LOCAL_OUT
        if packet.ip.proto not in MAPPED:
            return self._flow_of_its_peer(packet, packet.ip.src)
        spec = self._unchanged_flow(packet, from_inside=not _answers_a_stranger(packet))
        own = Endpoint(spec.proto, spec.inside_ip, spec.inside_port)
        self.mappings.hold(own, own, 0, now_ns)
        return spec

    def _unchanged_flow(self, packet: NewPacket, *, from_inside: bool = True) -> FlowSpec:
        """Return a flow whose outside endpoint is its inside endpoint."""
        return self._flow(packet, packet.ip.src, packet.transport.src_port_or_icmp_id, from_inside=from_inside)

    def _flow(
        self, packet: NewPacket, outside_ip: int, outside_port: int, *,
        from_inside: bool = True, allow: int = ASK_FORWARD,
    ) -> FlowSpec:
        """Return the flow of a leaving packet with this outside endpoint."""
        ip, transport, meta = packet
        if allow == ASK_FORWARD:
            allow = self.policy.allow_by_interface(meta.in_ifindex, meta.out_ifindex, from_inside)
        spec = FlowSpec(
            ip.proto, ip.src, transport.src_port_or_icmp_id, outside_ip, outside_port, ip.dst, _peer_port(packet),
            from_inside, meta.in_ifindex, meta.out_ifindex, allow,
        )
        if allow == ASK_FORWARD:
            # FORWARD, or nobody for the head's own, has let this packet pass: NEW is allowed
            spec = self.policy.begin(spec)
        return spec


def _peer_port(packet: NewPacket) -> int:
    if packet.ip.proto == Proto.ICMP:
        return icmp_query_port(Hook.POSTROUTING, packet.transport.icmp_type)
    return packet.transport.dst_port_or_icmp_id


def _answers_a_stranger(packet: NewPacket) -> bool:
    """Whether this is from a TCP service of the head's own, to a peer that opened the connection."""
    return packet.from_head and packet.ip.proto == Proto.TCP and bool(packet.transport.tcp_flags & ACK)
