"""A packet without a flow before routing: is it for somebody inside, for the head itself, or for nobody?

    a source from here ................... SPOOFED (RFC 2827)
    no mapping at its destination ........ the head's own business; but see "held"
    a port that the head uses itself ..... the head's own business
    a mapping, and filtering lets it in .. a new flow of the mapping's owner
    a mapping, and filtering does not .... FILTERED: dropped in silence

From inside (hairpinning, RFC 4787 REQ-9) a mapping takes whoever writes to it, and nothing is held: the head
answers for its own ports as ever.  `nat/hairpin.py` does the rest of it.

Filtering (RFC 4787 5, RFC 5382 4.3) is who may send to a mapped port: anybody, any port of a host that was
written to, or just who was written to, for whom there is a flow already.

Held (RFC 5382 REQ-4): a SYN that nobody waits for may be the other half of a simultaneous open.  It is dropped and
remembered; if no flow has come of it in six seconds, its sender is told (`HeldSyns`).  First the head's ports are
looked at anew: its service may be younger than the last look.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from natengine.fastpath import NOT_FOUND, FastPath
from natengine.flow.mappings import Endpoint, MappingTable, Owner
from natengine.flow.records import Allow, FlowKey, FlowSpec
from natengine.nat.outbox import PORT_UNREACHABLE, UNREACHABLE, Outbox
from natengine.nat.packet import NewPacket
from natengine.nat.policy import Policy
from natengine.nat.protocols import WITH_FILTERING
from natengine.settings import FilteringBehaviour, Settings
from natengine.vocab import CtState, Proto, Reason
from natengine.wire.ipv4 import parse_ipv4_untrusted
from natengine.wire.tcp import ACK, FIN, RST, SYN

MAX_HELD_SYNS = 1024

# by protocol, the ports that the head's own sockets are bound to; None: nobody has told us
LocalPorts = dict[int, frozenset[int]]
# has `replace_local_ports` called with what is so now, and returns True; False: that was done just before
LookAtPorts = Callable[[], bool]


def never_look() -> bool:
    """The `LookAtPorts` of an engine whose ports nobody knows."""
    return False


class Arriving:
    """Decides about packets at PREROUTING that belong to no flow."""

    def __init__(self, fast: FastPath, mappings: MappingTable, settings: Settings) -> None:
        self._mappings = mappings
        self._filtering = settings.filtering
        self._local_ports: LocalPorts | None = None
        self._hold = settings.syn_hold_ns > 0
        self._loose = settings.tcp_loose
        self.held = HeldSyns(fast, settings.syn_hold_ns)
        self.look_at_ports: LookAtPorts = never_look
        self.counts_peers = settings.filtering is FilteringBehaviour.ADDRESS_DEPENDENT
        self._peers: Counter[tuple[Endpoint, int]] = Counter()      # flows of an outside endpoint with a host

    def decide(self, packet: NewPacket, policy: Policy) -> FlowSpec | Reason:
        """Return the flow that this packet begins, or why it begins none; the spec holds a mapping."""
        answer = self._answer(packet, policy)
        return self._answer(packet, policy) if answer is Reason.SYN_HELD and self.look_at_ports() else answer

    def _answer(self, packet: NewPacket, policy: Policy) -> FlowSpec | Reason:
        from_outside = policy.is_uplink(packet.meta.in_ifindex)
        if from_outside and policy.is_spoofed(packet.ip.src):
            return Reason.SPOOFED
        if not policy.interfaces.is_local(packet.ip.dst):
            return Reason.UNSOLICITED if from_outside else Reason.ROUTED
        if packet.ip.proto not in WITH_FILTERING:
            return Reason.LOCAL_IN
        outside = Endpoint(packet.ip.proto, packet.ip.dst, packet.transport.dst_port_or_icmp_id)
        owner = self._owner(outside)
        if not from_outside:
            return Reason.LOCAL_IN if owner is None or not _begins(packet) else self._new_flow(
                packet, outside, owner, policy
            )
        if owner is None:
            waits = self._local_ports is not None and not self._is_reserved(outside)
            if waits and self._loose and not _begins(packet):
                return Reason.TCP_STATE     # of a connection to be picked up when the inside speaks: no RST to it
            return Reason.SYN_HELD if waits and self._may_be_held(packet) else Reason.LOCAL_IN
        if self._lets_in(outside, packet.ip.src) and _begins(packet):
            return self._new_flow(packet, outside, owner, policy)
        return Reason.SYN_HELD if self._may_be_held(packet) else Reason.FILTERED

    def _owner(self, outside: Endpoint) -> Owner | None:
        """Return who inside has this outside endpoint; None if that is the head itself, or nobody."""
        owner = self._mappings.owner(outside)
        is_heads = owner is not None and owner.inside.ip == outside.ip
        return None if is_heads or self._is_reserved(outside) else owner

    def _is_reserved(self, outside: Endpoint) -> bool:
        return self._local_ports is not None and outside.port_or_icmp_id in self._local_ports.get(outside.proto, ())

    def _lets_in(self, outside: Endpoint, peer_ip: int) -> bool:
        if self._filtering is FilteringBehaviour.ADDRESS_DEPENDENT:
            return (outside, peer_ip) in self._peers
        return self._filtering is FilteringBehaviour.ENDPOINT_INDEPENDENT

    def _may_be_held(self, packet: NewPacket) -> bool:
        return self._hold and packet.ip.proto == Proto.TCP and _opens(packet)

    def _new_flow(self, packet: NewPacket, outside: Endpoint, owner: Owner, policy: Policy) -> FlowSpec | Reason:
        ip, inside = packet.ip, owner.inside
        transport = packet.transport._replace(dst_port_or_icmp_id=inside.port_or_icmp_id)
        meta = packet.meta._replace(out_ifindex=owner.ifindex)
        if not policy.forwards(policy.facts(ip._replace(dst=inside.ip), transport, meta, CtState.NEW)):
            return Reason.FORWARD_DROP
        spec = FlowSpec(
            ip.proto, inside.ip, inside.port_or_icmp_id, outside.ip, outside.port_or_icmp_id,
            ip.src, packet.transport.src_port_or_icmp_id, False, owner.ifindex, packet.meta.in_ifindex, Allow.NEW,
        )
        self._mappings.join(outside)
        return policy.begin(spec)

    # ── told by others ───────────────────────────────────────────────────────────────────────────

    def replace_local_ports(self, ports: LocalPorts) -> None:
        """Take notice of the ports that the head's own sockets are bound to."""
        self._local_ports = ports
        self.held.forget(ports)

    def flow_begins(self, spec: FlowSpec) -> None:
        """Remember whom a mapping talks to; only where `counts_peers`."""
        self._peers[_outside(spec), spec.peer_ip] += 1

    def flow_ends(self, spec: FlowSpec) -> None:
        """Forget it again."""
        pair = _outside(spec), spec.peer_ip
        self._peers[pair] -= 1
        if not self._peers[pair]:
            del self._peers[pair]


class _HeldSyn(NamedTuple):
    packet: bytes
    deadline_ns: int


class HeldSyns:
    """SYNs from outside that may yet meet one from inside; bounded, and each kept for the same time."""

    def __init__(self, fast: FastPath, hold_ns: int) -> None:
        self._fast, self._hold_ns = fast, hold_ns
        self._held: dict[FlowKey, _HeldSyn] = {}        # the oldest first

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, packet: bytes | bytearray, key: FlowKey, now_ns: int) -> None:
        """Remember a SYN; one that is sent again does not wait longer.  Without room it is just forgotten."""
        if key not in self._held and len(self._held) < MAX_HELD_SYNS:
            self._held[key] = _HeldSyn(bytes(packet), now_ns + self._hold_ns)

    def forget(self, ports: LocalPorts) -> None:
        """There is somebody at these ports now: what came before him is sent again, and no error follows it."""
        self._held = {
            key: syn for key, syn in self._held.items() if key.dst_port_or_icmp_id not in ports.get(key.proto, ())
        }

    def expire(self, now_ns: int, outbox: Outbox) -> None:
        """Tell the senders of those that have waited long enough, unless a flow has come of it."""
        while self._held:
            key = next(iter(self._held))
            packet, deadline_ns = self._held[key]
            if deadline_ns > now_ns:
                return
            del self._held[key]
            if self._fast.find(key) == NOT_FOUND:
                ip = parse_ipv4_untrusted(packet)
                outbox.error(ip.dst, UNREACHABLE, PORT_UNREACHABLE, packet, ip, now_ns)


def _outside(spec: FlowSpec) -> Endpoint:
    return Endpoint(spec.proto, spec.outside_ip, spec.outside_port)


def _begins(packet: NewPacket) -> bool:
    """Whether a packet may begin a flow."""
    return packet.ip.proto != Proto.TCP or _opens(packet)


def _opens(packet: NewPacket) -> bool:
    return packet.transport.tcp_flags & (SYN | ACK | RST | FIN) == SYN
