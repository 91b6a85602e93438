"""`NatEngine`: one packet in, one decision out.

    packet ─> fast path ── known flow ──> rewritten, or refused by its state or by FORWARD
                 │ MISS ───> slow path: rules, outside port ──> a new flow ──> fast path again
                 │ STALE ──> FORWARD asked again ──> fast path again
                 └ SPECIAL > ICMP errors, fragments, other protocols

It performs no I/O and reads no clock: the time, the interfaces and the dice are arguments.  The
same packets at the same times with the same dice give the same bytes.  One thread owns it.
"""

from __future__ import annotations

from typing import NamedTuple

from natengine.errors import BadPacket, Truncated
from natengine.fastpath import FULL, NOT_FOUND, FastPath
from natengine.flow.records import Allow, FlowInfo, Path
from natengine.nat.arriving import LocalPorts
from natengine.nat.fragments import DatagramKey, FragmentTable, contradicts_itself
from natengine.nat.icmp_errors import TRANSLATED_TYPES, QuotedPacket, find_flow, translate_error
from natengine.nat.interfaces import InterfaceTable
from natengine.nat.outbox import ADMINISTRATIVELY_PROHIBITED, UNREACHABLE, Outbox
from natengine.nat.packet import NewPacket
from natengine.nat.policy import Policy, join_uplinks
from natengine.nat.rates import RateLimit
from natengine.nat.slowpath import TRANSLATABLE, SlowPath
from natengine.rules.counters import RuleCounters
from natengine.rules.model import RuleSet, Uplinks
from natengine.settings import Settings
from natengine.vocab import VERDICTS, CtState, Decision, Hook, PacketMeta, Proto, Reason, Rng, Verdict
from natengine.wire.ipv4 import ICMP_ECHO_REPLY, ICMP_ECHO_REQUEST
from natengine.wire.rewrite import rewrite_destination, rewrite_source

# what the fast path says that needs nobody else
_SETTLED: dict[int, Reason] = {
    Path.TRANSLATED: Reason.TRANSLATED,
    Path.UNCHANGED: Reason.UNCHANGED,
    Path.REFUSED_STATE: Reason.TCP_STATE,
    Path.REFUSED_WINDOW: Reason.TCP_WINDOW,
    Path.REFUSED_FORWARD: Reason.FORWARD_DROP,
    Path.BAD_HEADER: Reason.BAD_HEADER,
    Path.TRUNCATED: Reason.TRUNCATED,
    Path.REFUSED_RATE: Reason.RATE_LIMIT,
}
_REWRITTEN = frozenset({Reason.TRANSLATED, Reason.NEW_FLOW, Reason.ICMP_ERROR, Reason.FRAGMENT})
FRAGMENTS_A_FLOW = 10               # so many more fragments than new flows a sender may have while others wait
_NO_ROOM = frozenset({Reason.OUT_OF_PORTS, Reason.TABLE_FULL, Reason.HOST_LIMIT})


class EngineStats(NamedTuple):
    """A snapshot of the engine's gauges and counters."""

    flows: int
    mappings: int
    fragment_trains: int
    overloaded: int                     # flows so far that had to share an outside port
    by_reason: dict[str, int]           # packets, by the name of their `Reason`


class NatEngine:
    """Decide and rewrite, one packet at a time."""

    def __init__(self, fast: FastPath, *, settings: Settings, rng: Rng) -> None:
        """Start with no rules and no interfaces; see `replace_ruleset` and `replace_interfaces`."""
        self._fast = fast
        self._fragments = FragmentTable(settings.max_fragment_trains, settings.fragment_timeout_ns)
        self._by_reason = [0] * (max(Reason) + 1)
        self.outbox = Outbox()
        self.ruleset = RuleSet()
        self.counters = RuleCounters()
        self.interfaces = InterfaceTable()
        self._uplinks = Uplinks()
        self._slow = SlowPath(fast, self._policy(), settings, rng)
        share = settings.new_flows_when_busy
        self._busy_rate = RateLimit(each=(share, share), all=(8 * share, 8 * share)) if share else None
        many = FRAGMENTS_A_FLOW * share
        self._busy_fragments = RateLimit(each=(many, many), all=(8 * many, 8 * many)) if share else None

    # ── packets ──────────────────────────────────────────────────────────────────────────────────

    def process(self, packet: bytearray, meta: PacketMeta, now_ns: int, *, busy: bool = False) -> Decision:
        """Decide about one packet and rewrite it in place.

        Args:
            packet: From the IP header on.  Changed only if the decision holds it.
            meta: Where it was taken; `meta.hook` is PREROUTING or POSTROUTING.
            now_ns: Nanoseconds on any clock that never goes back.
            busy: Whether packets of known flows have to wait for this one.
        """
        return self.settle(self._fast.translate(packet, meta.hook, now_ns), packet, meta, now_ns, busy=busy)

    def settle(self, path: int, packet: bytearray, meta: PacketMeta, now_ns: int, *, busy: bool = False) -> Decision:
        """Decide about a packet that has been through the fast path, with this `Path`; else as `process`."""
        reason = _SETTLED.get(path)
        if reason is None:
            if busy and path != Path.STALE and not self._may_ask(packet, meta, now_ns):
                reason = Reason.RATE_LIMIT
            else:
                reason = self._unsettled(path, packet, meta, now_ns)
        self._by_reason[reason] += 1
        return Decision(VERDICTS[reason], reason, packet if reason in _REWRITTEN else None)

    def note_settled(self, by_path: list[int]) -> None:
        """Count packets that an adapter has settled through the fast path by itself, by `Path`."""
        for path, packets in enumerate(by_path):
            if packets:
                self._by_reason[_SETTLED[path]] += packets

    def _may_ask(self, packet: bytearray, meta: PacketMeta, now_ns: int) -> bool:
        """Whether it is this sender's turn, so that a flood of new flows does not keep the known ones waiting.

        From inside each host is a sender; from outside, where sources are forged, each uplink.
        """
        rate = self._busy_fragments if int.from_bytes(packet[6:8], "big") & 0x3FFF else self._busy_rate
        if rate is None:
            return True
        if meta.hook == Hook.PREROUTING:
            return rate.take(meta.in_ifindex, now_ns)
        return meta.in_ifindex == 0 or rate.take(int.from_bytes(packet[12:16], "big"), now_ns)

    def _unsettled(self, path: int, packet: bytearray, meta: PacketMeta, now_ns: int) -> Reason:
        """Deal with what the fast path could not."""
        try:
            ip, transport = self._fast.read(packet)
        except Truncated:
            return Reason.TRUNCATED
        except BadPacket:
            return Reason.BAD_HEADER
        new = NewPacket(ip, transport, meta)
        if path == Path.MISS:               # never a fragment
            return self._begin(packet, new, now_ns)
        if ip.is_fragment:
            return self._fragment(packet, new, now_ns)
        if path == Path.STALE:
            return self._ask_again(packet, new, now_ns)
        if ip.proto == Proto.ICMP:
            return self._icmp(packet, new)
        return self._other_protocol(new)

    def _begin(self, packet: bytearray, new: NewPacket, now_ns: int) -> Reason:
        """Let the rules decide about a packet without a flow."""
        flow_id = self._create(packet, new, now_ns)
        if isinstance(flow_id, Reason):
            return flow_id
        reason = _SETTLED[self._fast.translate(packet, new.meta.hook, now_ns)]
        if VERDICTS[reason] is Verdict.DROP:
            self._remove(flow_id, now_ns)
        return Reason.NEW_FLOW if reason is Reason.TRANSLATED else reason

    def _tell_sender(self, packet: bytearray, new: NewPacket, now_ns: int) -> None:
        """Tell a host inside that there is no room for its flow (RFC 5508 REQ-8)."""
        own = self.interfaces.address(new.meta.in_ifindex)
        if own is not None:
            self.outbox.error(own, UNREACHABLE, ADMINISTRATIVELY_PROHIBITED, packet, new.ip, now_ns)

    def _refuse(self, reason: Reason, packet: bytearray, new: NewPacket, now_ns: int) -> Reason:
        """Do what goes with some reasons for not beginning a flow; return the reason."""
        if reason in _NO_ROOM:
            self._tell_sender(packet, new, now_ns)
        elif reason is Reason.SYN_HELD:
            self._slow.arriving.held.hold(packet, new.key, now_ns)
        return reason

    def _create(self, packet: bytearray, new: NewPacket, now_ns: int) -> int | Reason:
        """Install the flow that a packet begins and return its id, or why there is none."""
        answer = self._slow.decide(new, now_ns)
        if isinstance(answer, Reason):
            return self._refuse(answer, packet, new, now_ns)
        flow_id = self._fast.install(answer, now_ns)
        if flow_id == FULL and self._evict(now_ns):
            flow_id = self._fast.install(answer, now_ns)
        if flow_id >= 0:
            return flow_id
        self._slow.release(answer, now_ns)
        reason = Reason.TABLE_FULL if flow_id == FULL else Reason.OUT_OF_PORTS
        return self._refuse(reason, packet, new, now_ns)

    def _ask_again(self, packet: bytearray, new: NewPacket, now_ns: int) -> Reason:
        """The rules have changed since FORWARD last allowed this flow."""
        flow_id = self._fast.find(new.key)
        self._approve(flow_id)
        return _SETTLED[self._fast.translate(packet, new.meta.hook, now_ns)]

    def _approve(self, flow_id: int) -> None:
        info = self._fast.info(flow_id)
        assert info is not None
        self._fast.approve(flow_id, self._slow.policy.allow_later(info.spec))

    def _other_protocol(self, new: NewPacket) -> Reason:
        """A protocol without ports that we know: the head's own passes, the rest cannot be translated."""
        if new.meta.hook == Hook.PREROUTING:
            return self._without_flow(new, Reason.UNSOLICITED)
        if new.from_head:
            return Reason.LOCAL_OUT
        if not self._routed(new):
            return Reason.UNKNOWN_PROTOCOL
        facts = self._slow.policy.facts(new.ip, new.transport, new.meta, CtState.NEW)
        return Reason.ROUTED if self._slow.policy.forwards(facts) else Reason.FORWARD_DROP

    def _routed(self, new: NewPacket) -> bool:
        """Whether the packet is at an interface that is no uplink.

        They are taken there where a rule names no out-interface.  What needs translation has had it
        at PREROUTING, or will have it at POSTROUTING.
        """
        leaving = new.meta.hook == Hook.POSTROUTING
        return not self._slow.policy.is_uplink(new.meta.out_ifindex if leaving else new.meta.in_ifindex)

    # ── ICMP errors ──────────────────────────────────────────────────────────────────────────────

    def _icmp(self, packet: bytearray, new: NewPacket) -> Reason:
        """ICMP other than echo: errors about our flows, and the head's own business."""
        if new.transport.icmp_type in TRANSLATED_TYPES:
            try:
                quoted = QuotedPacket(packet, new.ip)
            except BadPacket:
                return self._icmp_unrelated(new)
            if quoted.damaged:
                return Reason.BAD_CHECKSUM
            flow = find_flow(self._fast, quoted, new.meta.hook)
            if flow is not None:
                return self._icmp_error(packet, new, quoted, flow)
            if new.from_head and new.meta.hook == Hook.POSTROUTING:
                # the head's error about a packet it refused; never one that shows an inside address
                own = self.interfaces.owns(quoted.ip.dst)
                return Reason.LOCAL_OUT if own or self._routed(new) else Reason.ICMP_UNRELATED
        return self._icmp_unrelated(new)

    def _icmp_error(self, packet: bytearray, new: NewPacket, quoted: QuotedPacket, flow: FlowInfo) -> Reason:
        spec, arriving = flow.spec, new.meta.hook == Hook.PREROUTING
        if spec.inside_ifindex and not new.from_head:
            meta = new.meta._replace(out_ifindex=spec.inside_ifindex) if arriving else new.meta
            facts = self._slow.policy.facts(new.ip, new.transport, meta, CtState.RELATED)
            if not self._slow.policy.forwards(facts._replace(dst=spec.inside_ip) if arriving else facts):
                return Reason.FORWARD_DROP
        translate_error(packet, new.ip, quoted, flow, new.meta.hook)
        return Reason.ICMP_ERROR

    def _icmp_unrelated(self, new: NewPacket) -> Reason:
        return self._without_flow(new, Reason.ICMP_UNRELATED)

    def _without_flow(self, new: NewPacket, refusal: Reason) -> Reason:
        """What begins no flow and belongs to none: the head's own business, routed, or refused."""
        if new.meta.hook == Hook.PREROUTING and self.interfaces.is_local(new.ip.dst):
            return Reason.LOCAL_IN
        if new.meta.hook == Hook.POSTROUTING and new.from_head:
            return Reason.LOCAL_OUT
        return Reason.ROUTED if self._routed(new) else refusal

    # ── fragments ────────────────────────────────────────────────────────────────────────────────

    def _fragment(self, packet: bytearray, new: NewPacket, now_ns: int) -> Reason:
        """A fragment: the first one finds or begins the flow, the later ones follow it."""
        ip = new.ip
        if contradicts_itself(ip):
            return Reason.BAD_HEADER
        if ip.fragment_offset:
            return self._later_fragment(packet, new, now_ns)
        if ip.proto == Proto.ICMP and new.transport.icmp_type not in (ICMP_ECHO_REPLY, ICMP_ECHO_REQUEST):
            return self._icmp_unrelated(new)
        if ip.proto not in TRANSLATABLE:
            return self._other_protocol(new)
        return self._first_fragment(packet, new, now_ns)

    def _first_fragment(self, packet: bytearray, new: NewPacket, now_ns: int) -> Reason:
        flow_id = self._fast.find(new.key)
        begins = flow_id == NOT_FOUND
        if begins:
            created = self._create(packet, new, now_ns)
            if isinstance(created, Reason):
                return created
            flow_id = created
        flow = self._fast.info(flow_id)
        assert flow is not None
        # who begins a flow has just been asked about; the answer may hang on what only this packet has
        if not (begins or self._allows(flow, new.meta)):
            return Reason.FORWARD_DROP
        if not self._fragments.remember(DatagramKey.of(new.meta.hook, new.ip), flow, now_ns):
            if begins:
                self._remove(flow_id, now_ns)
            return Reason.FRAGMENT_LIMIT
        return self._rewrite_fragment(packet, new, flow, now_ns)

    def _later_fragment(self, packet: bytearray, new: NewPacket, now_ns: int) -> Reason:
        train = self._fragments.find(DatagramKey.of(new.meta.hook, new.ip), now_ns)
        flow = None if train is None else self._fast.info(train.flow_id)
        if train is None or flow is None or flow.spec.arriving != train.arriving:
            return self._without_flow(new, Reason.FRAGMENT_ORPHAN)
        if not self._allows(flow, new.meta):
            return Reason.FORWARD_DROP
        return self._rewrite_fragment(packet, new, flow, now_ns)

    def _allows(self, flow: FlowInfo, meta: PacketMeta) -> bool:
        """Ask what the fast path asks of a whole packet, of the FORWARD chain as it stands now."""
        is_reply = (meta.hook == Hook.POSTROUTING) != flow.spec.from_inside
        needed = Allow.REPLY if is_reply else Allow.ORIGINAL if flow.seen_reply else Allow.NEW
        return bool(self._slow.policy.allow_later(flow.spec) & needed)

    def _rewrite_fragment(self, packet: bytearray, new: NewPacket, flow: FlowInfo, now_ns: int) -> Reason:
        """Do to a fragment what the fast path does to a whole packet.

        Limit: a fragmented segment does not move the TCP state.
        """
        ip, spec, has_ports = new.ip, flow.spec, new.ip.fragment_offset == 0
        self._fast.touch(flow.flow_id, new.meta.hook, ip.total_len, now_ns)
        if new.meta.hook == Hook.POSTROUTING:
            rewrite_source(packet, ip, spec.outside_ip, spec.outside_port if has_ports else None)
        else:
            rewrite_destination(packet, ip, spec.inside_ip, spec.inside_port if has_ports else None)
        return Reason.FRAGMENT

    # ── flows ────────────────────────────────────────────────────────────────────────────────────

    def expire(self, now_ns: int, budget: int = 1024) -> int:
        """End the flows that have been idle too long, looking at `budget` at most; return how many."""
        ended = self._fast.expire(now_ns, budget)
        for info in ended:
            self._slow.release(info.spec, now_ns)
        self._fragments.expire(now_ns)
        self._slow.arriving.held.expire(now_ns, self.outbox)
        return len(ended)

    def flows(self) -> list[FlowInfo]:
        """Return a copy of every flow."""
        return self._fast.snapshot()

    def remove_flow(self, flow_id: int, now_ns: int) -> bool:
        """End one flow (`conntrack -D`); False if there is none."""
        return self._remove(flow_id, now_ns) is not None

    def _remove(self, flow_id: int, now_ns: int) -> FlowInfo | None:
        info = self._fast.remove(flow_id)
        if info is not None:
            self._slow.release(info.spec, now_ns)
        return info

    def _evict(self, now_ns: int) -> bool:
        """Make room: the flow without an answer that has been idle longest goes, never another."""
        oldest = self._fast.oldest_unreplied()
        return oldest != NOT_FOUND and self._remove(oldest, now_ns) is not None

    # ── rules and interfaces ─────────────────────────────────────────────────────────────────────

    @property
    def uplinks(self) -> Uplinks:
        """The interfaces to take packets from: those of the rules, and those of earlier rules."""
        return self._uplinks

    def replace_ruleset(self, ruleset: RuleSet, counters: RuleCounters | None = None) -> None:
        """Put other rules in force.  Flows stay; FORWARD is asked again about each."""
        self.ruleset = ruleset
        if counters is not None:
            self.counters = counters
        self.counters.forget_missing(ruleset)
        self._uplinks = join_uplinks(self._uplinks, ruleset.uplinks())
        self._renew_policy()

    def replace_local_ports(self, ports: LocalPorts) -> None:
        """Take notice of the ports that the head's own sockets use, by protocol; no worker gets one of them."""
        self._slow.mappings.reserve(ports)
        self._slow.arriving.replace_local_ports(ports)

    def replace_interfaces(self, interfaces: InterfaceTable, now_ns: int) -> int:
        """Take notice of interfaces and addresses; flows on an address that is gone end.

        Returns:
            How many flows ended.
        """
        if interfaces == self.interfaces:
            return 0                        # an event that changes nothing must not make flows STALE
        vanished = {ip for ip in _addresses(self.interfaces) if not interfaces.owns(ip)}
        self.interfaces = interfaces
        self._renew_policy()
        if not vanished:
            return 0
        gone = [info.flow_id for info in self._fast.snapshot() if info.spec.outside_ip in vanished]
        return sum(self.remove_flow(flow_id, now_ns) for flow_id in gone)

    def _policy(self) -> Policy:
        return Policy(self.ruleset, self.interfaces, self.counters, self._uplinks)

    def _renew_policy(self) -> None:
        self._slow.policy = self._policy()
        self._fast.invalidate()

    def stats(self) -> EngineStats:
        """Return gauges and counters as they are now."""
        return EngineStats(
            len(self._fast), len(self._slow.mappings), len(self._fragments), self._slow.mappings.overloaded,
            {reason.name: self._by_reason[reason] for reason in Reason},
        )


def _addresses(interfaces: InterfaceTable) -> set[int]:
    return {ip for interface in interfaces for ip in interface.addresses}

