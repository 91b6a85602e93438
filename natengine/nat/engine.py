"""`NatEngine`: one packet in, one decision out.

    packet ─> fast path ── known flow ──> rewritten, or refused by its state or by FORWARD
                 │ MISS ───> slow path: rules, outside port ──> a new flow ──> fast path again
                 │ STALE ──> FORWARD asked again ──> fast path again
                 └ SPECIAL > ICMP errors, fragments

It performs no I/O and reads no clock: the time, the interfaces and the dice are arguments.  The
same packets at the same times with the same dice give the same bytes.  One thread owns it.
"""

from __future__ import annotations

from natengine.errors import BadPacket, Truncated
from natengine.fastpath import FULL, FastPath
from natengine.flow.records import Allow, FlowInfo, FlowSpec, Path
from natengine.nat.arriving import LocalPorts, LookAtPorts, never_look
from natengine.nat.fragment_path import FragmentPath, translate_first
from natengine.nat.fragments import HeldFragment
from natengine.nat.hairpin import second_half
from natengine.nat.icmp_errors import TRANSLATED_TYPES, QuotedPacket, find_flow, translate_error
from natengine.nat.interfaces import InterfaceTable, join_uplinks
from natengine.nat.marks import FlowMarks
from natengine.nat.mss import mss_limits
from natengine.nat.notices import Notices
from natengine.nat.outbox import ADMINISTRATIVELY_PROHIBITED, UNREACHABLE, Outbox
from natengine.nat.outcomes import NO_ROOM, REWRITTEN, SETTLED, EngineStats
from natengine.nat.packet import NewPacket
from natengine.nat.policy import Policy
from natengine.nat.pptp import Calls
from natengine.nat.protocols import peer_taken
from natengine.nat.rates import Turns
from natengine.nat.said import LogBook, carry_out
from natengine.nat.slowpath import SlowPath
from natengine.nat.takeover import take_over
from natengine.nat.vanished import VanishedAddresses
from natengine.rules.counters import RuleCounters
from natengine.rules.facts import RuleMemory
from natengine.rules.model import RuleSet, Uplinks
from natengine.settings import Settings
from natengine.vocab import VERDICTS, CtState, Decision, Hook, PacketMeta, Proto, Reason, Rng, Verdict
from natengine.wire.pptp import PPTP_PORT


class NatEngine:
    """Decide and rewrite, one packet at a time."""

    def __init__(
        self, fast: FastPath, *, settings: Settings, rng: Rng, look_at_ports: LookAtPorts = never_look
    ) -> None:
        """Start with no rules and no interfaces; see `replace_ruleset` and `replace_interfaces`."""
        self._fast = fast
        self._by_reason = [0] * (max(Reason) + 1)
        self._clamped = settings.clamp_mss_to_pmtu
        self.outbox = Outbox()
        self.log = LogBook()
        self._notices = Notices(self.log)
        self._memory = RuleMemory(rng)
        self.marks = FlowMarks()
        self.ruleset = RuleSet()
        self.counters = RuleCounters()
        self.interfaces = InterfaceTable()
        self._uplinks = Uplinks()
        self._vanished = VanishedAddresses(fast)
        self._slow = SlowPath(fast, self.compile(self.ruleset), self.marks, settings, rng)
        self._slow.arriving.look_at_ports = look_at_ports
        self._fragments = FragmentPath(fast, self._slow, settings, rng, settle_first=self._settle_first)
        self._calls = Calls(fast, self._slow, settings, install=self._install, remove=self._remove)
        self._turns = Turns(settings.new_flows_when_busy)

    # ── packets ──────────────────────────────────────────────────────────────────────────────────

    def process(self, packet: bytearray, meta: PacketMeta, now_ns: int, *, busy: bool = False) -> Decision:
        """Decide about one packet and rewrite it in place.

        Args:
            packet: From the IP header on.  Changed only if the decision holds it.  With the verdict HELD it is the
                engine's until `take_released` has another decision with the same ticket.
            meta: Where it was taken; `meta.hook` is PREROUTING or POSTROUTING.  The head's own packets at OUTPUT
                count as the first without an in-interface, those for the head at INPUT as the second without
                an out-interface.
            now_ns: Nanoseconds on any clock that never goes back.
            busy: Whether packets of known flows have to wait for this one.
        """
        path = self._fast.translate(packet, meta.hook, now_ns, meta.out_ifindex)
        return self.settle(path, packet, meta, now_ns, busy=busy)

    def settle(self, path: int, packet: bytearray, meta: PacketMeta, now_ns: int, *, busy: bool = False) -> Decision:
        """Decide about a packet that has been through the fast path, with this `Path`; else as `process`."""
        reason = SETTLED.get(path)
        if reason is None:
            if busy and path != Path.STALE and not self._turns.take(packet, meta, now_ns):
                return self._decision(Reason.RATE_LIMIT, packet)
            answer = self._unsettled(path, packet, meta, now_ns)
            if isinstance(answer, HeldFragment):
                return Decision(Verdict.HELD, Reason.FRAGMENT_ORPHAN, None, answer.ticket)
            reason = answer
        return self._decision(reason, packet)

    def take_released(self) -> list[Decision]:
        """Return the decisions about packets that were HELD, made since the last call, in order.

        To be asked for after each packet and each `expire`.
        """
        return [self._decision(each.reason, each.packet, each.ticket) for each in self._fragments.take_released()]

    def _decision(self, reason: Reason, packet: bytearray, ticket: int = 0) -> Decision:
        """Count a packet; return what is to be done with it."""
        self._by_reason[reason] += 1
        return Decision(VERDICTS[reason], reason, packet if reason in REWRITTEN else None, ticket)

    def note_settled(self, by_path: list[int]) -> None:
        """Count packets that an adapter has settled through the fast path by itself, by `Path`."""
        for path, packets in enumerate(by_path):
            if packets:
                self._by_reason[SETTLED[path]] += packets

    def _unsettled(self, path: int, packet: bytearray, meta: PacketMeta, now_ns: int) -> Reason | HeldFragment:
        """Deal with what the fast path could not, and do what the rules say beside yes and no."""
        policy = self._slow.policy
        policy.begin_packet(now_ns)
        reason = self._decide(path, packet, meta, now_ns)
        if policy.said:
            own = self.interfaces.address(meta.in_ifindex)
            carry_out(policy.take_said(), packet, own, self.outbox, self.log, now_ns)
        return reason

    def _decide(self, path: int, packet: bytearray, meta: PacketMeta, now_ns: int) -> Reason | HeldFragment:
        """Read the packet and give it to whom it concerns."""
        try:
            ip, transport = self._fast.read(packet)
            if ip.is_fragment:
                return self._fragments.settle(packet, ip, meta, now_ns)
        except Truncated:
            return Reason.TRUNCATED
        except BadPacket:
            return Reason.BAD_HEADER
        return self._by_path(path, packet, NewPacket(ip, transport, meta), now_ns)

    def _by_path(self, path: int, packet: bytearray, new: NewPacket, now_ns: int) -> Reason:
        if path == Path.MISS:
            return self._begin(packet, new, now_ns)
        if path == Path.STALE:
            return self._ask_again(packet, new, now_ns)
        return self._icmp(packet, new)

    def _settle_first(self, packet: bytearray, new: NewPacket, now_ns: int) -> Reason:
        """Do with a first fragment what is done with a whole packet."""
        path = self._translate(packet, new, now_ns)
        if path == Path.SPECIAL and new.ip.proto == Proto.ICMP:
            return self._icmp_unrelated(new)    # nobody sends errors in pieces; the checksum cannot be checked
        return SETTLED.get(path) or self._by_path(path, packet, new, now_ns)

    def _translate(self, packet: bytearray, new: NewPacket, now_ns: int) -> int:
        if new.ip.more_fragments:
            return translate_first(self._fast, packet, new, now_ns)
        return self._fast.translate(packet, new.meta.hook, now_ns, new.meta.out_ifindex)

    def _begin(self, packet: bytearray, new: NewPacket, now_ns: int) -> Reason:
        """Let the rules decide about a packet without a flow."""
        flow_id = self._create(packet, new, now_ns)
        if isinstance(flow_id, Reason):
            return flow_id
        reason = SETTLED[self._translate(packet, new, now_ns)]
        if VERDICTS[reason] is Verdict.DROP:
            self._remove(flow_id, now_ns)
        else:
            if self._slow.policy.judges_packets:        # that the first one has passed does not help the next one
                self._slow.judge_next(flow_id)
            if new.transport.dst_port_or_icmp_id == PPTP_PORT:
                reason = self._calls.follow(self._fast.info(flow_id), packet, new, reason, now_ns)
        return Reason.NEW_FLOW if reason is Reason.TRANSLATED else reason

    def _tell_sender(self, packet: bytearray, new: NewPacket, now_ns: int) -> None:
        """Tell a host inside that there is no room for its flow (RFC 5508 REQ-8)."""
        own = self.interfaces.address(new.meta.in_ifindex)
        if own is not None:
            self.outbox.error(own, UNREACHABLE, ADMINISTRATIVELY_PROHIBITED, packet, new.ip, now_ns)

    def _refuse(self, reason: Reason, packet: bytearray, new: NewPacket, now_ns: int) -> Reason:
        """Do what goes with some reasons for not beginning a flow; return the reason."""
        if reason is Reason.PEER_TAKEN:
            self._notices.say(reason, peer_taken(new), now_ns)
        if reason in NO_ROOM:
            self._tell_sender(packet, new, now_ns)
        elif reason is Reason.SYN_HELD:
            self._slow.arriving.held.hold(packet, new.key, now_ns)
        return reason

    def _create(self, packet: bytearray, new: NewPacket, now_ns: int) -> int | Reason:
        """Install the flow that a packet begins and return its id, or why there is none."""
        answer = self._slow.decide(new, now_ns)
        if isinstance(answer, Reason):
            return self._refuse(answer, packet, new, now_ns)
        flow_id = self._install(answer, now_ns)
        if flow_id >= 0:
            self._slow.policy.mark_flow(answer)
            return flow_id
        self._slow.release(answer, now_ns)
        reason = Reason.TABLE_FULL if flow_id == FULL else Reason.OUT_OF_PORTS
        return self._refuse(reason, packet, new, now_ns)

    def _install(self, spec: FlowSpec, now_ns: int) -> int:
        """Put a flow into the table, as `FastPath.install`; a full one may make room."""
        flow_id = self._fast.install(spec, now_ns)
        if flow_id == FULL and self._evict(spec, now_ns):
            flow_id = self._fast.install(spec, now_ns)
        return flow_id

    def _ask_again(self, packet: bytearray, new: NewPacket, now_ns: int) -> Reason:
        """The rules have changed since FORWARD last allowed this flow, or its route has; or they judge each packet."""
        flow, meta = self._find_flow(new, now_ns), new.meta
        if flow is None:
            reason = self._begin(packet, new, now_ns)
            return Reason.UPLINK_CHANGED if reason is Reason.TCP_STATE else reason
        spec = flow.spec
        if spec.from_inside and meta.out_ifindex:
            spec = spec._replace(uplink_ifindex=meta.out_ifindex)
        policy, kind = self._slow.policy, flow.kind(meta.hook)
        allow, passes = policy.judge(spec, kind, new)
        self._fast.approve(flow.flow_id, allow | kind if passes else allow, spec.uplink_ifindex)
        reason = SETTLED.get(self._translate(packet, new, now_ns), Reason.FORWARD_DROP)    # STALE: judged and refused
        if passes:
            self._fast.approve(flow.flow_id, allow, spec.uplink_ifindex)
        if reason is Reason.FORWARD_DROP and not allow & Allow.ASK:
            policy.refuse_later(spec, new.ip.total_len, leaving=meta.hook == Hook.POSTROUTING)
        return self._calls.follow(flow._replace(spec=spec), packet, new, reason, now_ns)

    def _find_flow(self, new: NewPacket, now_ns: int) -> FlowInfo | None:
        """Return the flow that a packet belongs to; one that has lost its uplink ends instead."""
        flow = self._fast.info(self._fast.find(new.key))
        if flow is not None and self._vanished.end(flow.spec, new.meta):
            self._remove(flow.flow_id, now_ns)
            return None
        return flow

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
            flow = find_flow(self._fast, self._slow.quoted_calls, quoted, new.meta.hook)
            if flow is not None:
                return self._icmp_error(packet, new, quoted, flow)
            if new.from_head and new.meta.hook == Hook.POSTROUTING:
                # the head's error about a packet it refused; never one that shows an inside address
                own = self.interfaces.owns(quoted.ip.dst)
                return Reason.LOCAL_OUT if own or self._routed(new) else Reason.ICMP_UNRELATED
        return self._icmp_unrelated(new)

    def _icmp_error(self, packet: bytearray, new: NewPacket, quoted: QuotedPacket, flow: FlowInfo) -> Reason:
        spec, meta, policy = flow.spec, new.meta, self._slow.policy
        forwarded = spec.inside_ifindex and not new.from_head and (meta.hook == Hook.PREROUTING or meta.out_ifindex)
        if forwarded and not policy.forwards_packet(spec, flow.kind(meta.hook), new, CtState.RELATED):
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
            anothers = self._slow.policy.is_in_anothers_name(new.ip.src, new.meta.out_ifindex)
            return refusal if anothers else Reason.LOCAL_OUT
        return Reason.ROUTED if self._routed(new) else refusal

    # ── flows ────────────────────────────────────────────────────────────────────────────────────

    def expire(self, now_ns: int, budget: int = 1024) -> int:
        """End the flows that have been idle too long, looking at `budget` at most; return how many."""
        before = len(self._fast)
        for info in self._fast.expire(now_ns, budget):
            self._slow.end(info.spec, now_ns)
        self._fragments.expire(now_ns)
        self._calls.expire(now_ns)
        self._slow.arriving.held.expire(now_ns, self.outbox)
        self._end_flows_without_address(now_ns)
        return before - len(self._fast)

    def flows(self, flow_ids: range | None = None) -> list[FlowInfo]:
        """Return a copy of every flow, or of those that have one of these ids."""
        if flow_ids is None:
            found = self._fast.snapshot()
        else:
            found = [info for info in map(self._fast.info, flow_ids) if info is not None]
        return [info._replace(mark=self.marks.of(info.spec)) for info in found] if self.marks else found

    def remove_flow(self, flow_id: int, now_ns: int) -> bool:
        """End one flow (`conntrack -D`); False if there is none."""
        return self._remove(flow_id, now_ns) is not None

    def _remove(self, flow_id: int, now_ns: int) -> FlowInfo | None:
        """End a flow, and before it what hangs on it: whoever is killed in between leaves no half of a session."""
        info = self._fast.info(flow_id)
        if info is not None:
            self._slow.end_second_half(info.spec, now_ns)
            self._fast.remove(flow_id)
            self._slow.end(info.spec, now_ns)
        return info

    def _evict(self, spec: FlowSpec, now_ns: int) -> bool:
        """Make room for a flow: the one without an answer that has been idle longest goes, never another."""
        oldest = self._fast.info(self._fast.oldest_unreplied())
        if oldest is not None and second_half(oldest.spec) != spec.leaving:     # else it would end with that one
            return self._remove(oldest.flow_id, now_ns) is not None
        return False

    # ── rules and interfaces ─────────────────────────────────────────────────────────────────────

    @property
    def uplinks(self) -> Uplinks:
        """The interfaces to take packets from: those of the rules, and those of earlier rules."""
        return self._uplinks

    def compile(self, ruleset: RuleSet, counters: RuleCounters | None = None) -> Policy:
        """Make rules ready for `replace_ruleset`, with these counters.  Changes nothing: any thread may do it."""
        uplinks = join_uplinks(self._uplinks, ruleset.uplinks())
        return Policy(ruleset, self.interfaces, counters or self.counters, uplinks, self._memory, self.marks)

    def replace_ruleset(
        self, ruleset: RuleSet, counters: RuleCounters | None = None, made: Policy | None = None
    ) -> None:
        """Put rules in force, `made` ready by `compile` or not.  Flows stay; FORWARD is asked again about each."""
        self.ruleset = ruleset
        if counters is not None:
            self.counters = counters
        self.counters.forget_missing(ruleset)
        self._memory.forget_missing(ruleset.handles())
        self._uplinks = join_uplinks(self._uplinks, ruleset.uplinks())
        self._renew_policy(made)

    def replace_local_ports(self, ports: LocalPorts) -> None:
        """Take notice of the ports that the head's own sockets use, by protocol; no worker gets one of them."""
        self._slow.mappings.reserve(ports)
        self._slow.arriving.replace_local_ports(ports)

    def replace_interfaces(self, interfaces: InterfaceTable, now_ns: int) -> int:
        """Take notice of interfaces and addresses; flows on an address that is gone end, all in all.

        Returns:
            How many have ended already.
        """
        if interfaces == self.interfaces:
            # flows must not become STALE for a route, which none of them hangs on
            self.interfaces = self._slow.policy.interfaces = interfaces
            return 0
        self._vanished.note(self.interfaces.addresses, interfaces.addresses)
        self.interfaces = interfaces
        self._renew_policy()
        before = len(self._fast)
        self._end_flows_without_address(now_ns)
        return before - len(self._fast)

    def take_over(self, capacity: int, now_ns: int) -> int:
        """Take charge of the flows that are in the table from the start; return how many there are.

        To be called when the interfaces are known, and the rules.  `capacity` is the table's.
        """
        gone = take_over(self._fast, self._slow, capacity, self.interfaces.addresses, now_ns)
        self._vanished.note(gone, frozenset())
        return len(self._fast)

    def _end_flows_without_address(self, now_ns: int) -> None:
        """End some of the flows whose outside address is gone."""
        for flow_id in self._vanished.find_flows():
            self._remove(flow_id, now_ns)

    def _renew_policy(self, made: Policy | None = None) -> None:
        if made is None or made.interfaces is not self.interfaces or made.uplinks != self._uplinks:
            made = self.compile(self.ruleset)
        self._fast.clamp(mss_limits(self._clamped, self.interfaces))
        self._slow.policy = made
        self._fast.invalidate()

    def stats(self) -> EngineStats:
        """Return gauges and counters as they are now."""
        return EngineStats(
            len(self._fast), len(self._slow.mappings), len(self._fragments), self._fragments.held,
            self._slow.mappings.overloaded,
            {reason.name: self._by_reason[reason] for reason in Reason},
        )
