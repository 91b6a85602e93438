"""What the rules say about a flow: asked once when it begins, and again when they change.

`Policy` is a rule set made ready for packets: its chains compiled, the interfaces looked up.  It
answers, in netfilter's order: what does nat PREROUTING (OUTPUT, for the head's own) make of the packet's
destination, does FORWARD let it pass, and what does nat POSTROUTING make of its source?

FORWARD is asked for every packet in the kernel.  Here the answers for the three kinds of packet of
a flow (`Allow`) are worked out when it begins and kept with it, so that a known flow costs nothing;
a rule change makes every flow ask again.  That is the same thing as long as FORWARD matches what
all packets of one kind share (interfaces, addresses, ports, state, the flow's mark).  Of a flow that `-m limit`,
`statistic` or `mark` may decide about, or that CONNMARK is to mark, each packet of that kind is asked about
(`Allow.ASK`).  Limit: TCP flags differ within
a kind; they are those of the packet for the one that begins a flow, and what nearly all others
have for the rest (`nat/seen.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from types import UnionType
from typing import NamedTuple

from natengine.flow.records import Allow, FlowSpec
from natengine.nat.interfaces import InterfaceTable, is_uplink
from natengine.nat.marks import FlowMarks
from natengine.nat.packet import NewPacket
from natengine.nat.said import Said
from natengine.nat.seen import facts_of_flow, facts_of_packet, flow_facts
from natengine.nat.source import SourceNat, SourceTarget, is_same_for_all, source_nat, with_ports_of
from natengine.rules.counters import RuleCounters
from natengine.rules.evaluate import UNDECIDED, Outcome, PacketFacts, Program, compile_chain
from natengine.rules.facts import RuleMemory, Surroundings
from natengine.rules.matches import (
    Comment,
    ConntrackState,
    Match,
)
from natengine.rules.model import ChainName, RuleSet, Table, TableName, Uplinks
from natengine.rules.targets import Accept, Connmark, Drop, Mark, Masquerade, Passing, Reject, Snat
from natengine.vocab import CtState, Hook, PacketMeta
from natengine.wire.ipv4 import Ipv4Fields, Transport

ALLOW_ALL = Allow.ALL.value
ASK_FORWARD = 0                     # no bits of Allow: the answer is not known beforehand
MARKING = Mark | Connmark


class Way(NamedTuple):
    """What becomes of every flow that hosts inside begin from one interface to another one.

    There is one where all rules that such a flow meets look at nothing but interfaces and state.
    """

    nat: SourceNat
    allow: int                          # bits of `Allow`
    note: Callable[[int], None]         # counts a packet of this length with the rules that it meets


class Policy:
    """A rule set together with the interfaces it talks about."""

    def __init__(
        self, ruleset: RuleSet, interfaces: InterfaceTable, counters: RuleCounters, uplinks: Uplinks,
        memory: RuleMemory | None = None, marks: FlowMarks | None = None,
    ) -> None:
        self.interfaces = interfaces
        self._marks = FlowMarks() if marks is None else marks
        self.uplinks = uplinks
        self._around = Surroundings(interfaces.kind, memory)
        filter_, nat = ruleset.table(TableName.FILTER), ruleset.table(TableName.NAT)
        self._filter, self._nat = filter_, nat
        self._count_forward = counters.adder(TableName.FILTER, ChainName.FORWARD)
        self._count_postrouting = counters.adder(TableName.NAT, ChainName.POSTROUTING)
        self._forward = self._compile(filter_, ChainName.FORWARD, counters)
        self._forward_uncounted = self._compile(filter_, ChainName.FORWARD, for_flows=True)
        self.judges_packets = self._forward_uncounted.undecided
        self._forward_by_interface = not self.judges_packets and _asks_interfaces_only(filter_, ChainName.FORWARD)
        self._known_ways: dict[tuple[int, int, bool], int] = {}
        self._prerouting = self._compile(nat, ChainName.PREROUTING, counters)
        self._output = self._compile(nat, ChainName.OUTPUT, counters)
        self._postrouting = self._compile(nat, ChainName.POSTROUTING, counters)
        self._marking = {                   # chains before routing, by whether they are the head's own packets'
            own: self._compile(nat, chain)
            for own, chain in ((False, ChainName.PREROUTING), (True, ChainName.OUTPUT)) if _notes(nat, chain, MARKING)
        }
        self._has_ways = not uplinks.any_interface and not self._marking and all(
            _asks_interfaces_only(table, chain) and not _notes(table, chain)
            for table, chain in ((filter_, ChainName.FORWARD), (nat, ChainName.POSTROUTING))
        )
        self._marks_flows = _notes(filter_, ChainName.FORWARD, Connmark) or any(
            _notes(nat, chain, Connmark) for chain in (ChainName.PREROUTING, ChainName.OUTPUT, ChainName.POSTROUTING)
        )
        self._ways: dict[tuple[int, int], Way | None] = {}
        self._networks = sorted(            # the smallest first
            ((mask, network, self.is_uplink(each.ifindex)) for each in interfaces for network, mask in each.networks),
            reverse=True,
        )
        # about the packet at hand, and nothing else: see `begin_packet`
        self.now_ns = 0
        self.said: list[Said] = []      # what the rules said beside yes and no; whoever has the packet carries it out
        self._mark: int | None = None           # what they have made of its mark
        self._flow_mark: int | None = None      # and of that of its flow

    def _compile(
        self, table: Table, chain: ChainName, counters: RuleCounters | None = None, *, for_flows: bool = False
    ) -> Program:
        """Compile a built-in chain; without counters it is one that is asked about no packet in particular."""
        count = None if counters is None else counters.adder(table.name, chain)
        around = self._around if count is not None else self._around._replace(memory=None)
        found = next(each for each in table if each.name == chain)
        return compile_chain(found, count, table=table, around=around, for_flows=for_flows)

    @cached_property
    def _forward_as_first(self) -> Program:
        """What a first packet is told; asked when flows are taken over."""
        return self._compile(self._filter, ChainName.FORWARD)

    @cached_property
    def _postrouting_uncounted(self) -> Program:
        """Asked seldom, and by few: a rule set that changes often does not pay for it."""
        return self._compile(self._nat, ChainName.POSTROUTING)

    def begin_packet(self, now_ns: int) -> None:
        """Turn to another packet, which came at this time."""
        self.now_ns = now_ns
        self._mark = self._flow_mark = None

    def is_uplink(self, ifindex: int) -> bool:
        """Whether untranslated inside addresses must not leave here, nor strangers' packets enter."""
        interface = self.interfaces.get(ifindex)
        return interface is not None and is_uplink(interface, self.uplinks)

    def is_in_anothers_name(self, source: int, out_ifindex: int) -> bool:
        """Whether what the head sends over an uplink looks like another host's packet.

        A transparent proxy does that, or a raw socket; it must not leave with that host's address either.
        """
        return source != 0 and not self.interfaces.owns(source) and self.is_uplink(out_ifindex)

    def is_spoofed(self, source: int) -> bool:
        """Whether nobody behind an uplink can have this source address: it is the head's, or an inside network's.

        As rp_filter 1 would judge it by the routes to the networks that the head is directly in.
        """
        if self.interfaces.owns(source):
            return True
        for mask, network, outside in self._networks:
            if source & mask == network:
                return not outside
        return False

    def facts(self, ip: Ipv4Fields, transport: Transport, meta: PacketMeta, state: CtState) -> PacketFacts:
        """Return what the rules see of the packet at hand, as they have marked it so far."""
        mark = meta.mark if self._mark is None else self._mark
        facts = facts_of_packet(self.interfaces, ip, transport, meta, state, mark, self.now_ns)
        return facts if self._flow_mark is None else facts.with_flow_mark(self._flow_mark)

    def _ask(self, program: Program, facts: PacketFacts) -> Outcome:
        """Walk a chain for a packet, count it, and note what the rules said on the way."""
        outcome = program(facts)
        if outcome.logs:
            self.said += [Said(log, facts) for log in outcome.logs]
        if isinstance(outcome.target, Reject):
            self.said.append(Said(outcome.target, facts))
        self._note_marks(outcome)
        return outcome

    def _note_marks(self, outcome: Outcome) -> None:
        if outcome.mark is not None:
            self._mark = outcome.mark
        if outcome.connection_mark is not None:
            self._flow_mark = outcome.connection_mark

    def take_said(self) -> list[Said]:
        """Return what the rules said, in order, and forget it."""
        said, self.said = self.said, []
        return said

    def forward(self, facts: PacketFacts) -> Outcome:
        """Ask the FORWARD chain about one packet, and count it."""
        return self._ask(self._forward, facts)

    def forwards(self, facts: PacketFacts) -> bool:
        """Whether FORWARD lets one packet pass; it is counted."""
        return isinstance(self.forward(facts).target, Accept)

    def forwards_packet(
        self, spec: FlowSpec, kind: Allow, packet: NewPacket, state: CtState | None = None
    ) -> bool:
        """Whether FORWARD lets this packet of a known flow pass; it is counted, and the flow marked.

        Args:
            kind: Which way it goes, and whether it was answered.
            state: That of the packet where it is none of the flow's own.
        """
        ip, transport, meta = packet
        leaving = meta.hook == Hook.POSTROUTING
        if not leaving:
            ip = ip._replace(dst=spec.inside_ip)
            transport = transport._replace(dst_port_or_icmp_id=spec.inside_port)
            meta = meta._replace(out_ifindex=spec.inside_ifindex)
        state = state or (CtState.NEW if kind is Allow.NEW else CtState.ESTABLISHED)
        flow = flow_facts(spec, state, original=kind is not Allow.REPLY, mark=self._marks.of(spec))
        passes = self.forwards(self.facts(ip, transport, meta, state)._replace(flow=flow))
        self.mark_flow(spec)
        return passes

    def judge(self, spec: FlowSpec, kind: Allow, packet: NewPacket) -> tuple[int, bool]:
        """Ask FORWARD about a known flow, and about this packet of it where rules judge packet by packet.

        Returns:
            What it says to the packets of the flow from now on (bits of `Allow`), and whether this one passes
            by itself.
        """
        allow = self.allow_later(spec)
        if allow & kind or not allow & Allow.ASK:
            return allow, False
        passes = self.forwards_packet(spec, kind, packet)
        return self.allow_later(spec) if self._flow_mark is not None else allow, passes

    def refuse_later(self, spec: FlowSpec, length: int, *, leaving: bool) -> None:
        """Ask FORWARD about a packet of a flow that it no longer lets pass, for what it says beside no."""
        facts = facts_of_flow(self.interfaces, spec, CtState.ESTABLISHED, leaving=leaving, mark=self._marks.of(spec))
        self.forward(facts._replace(length=length, now_ns=self.now_ns))
        self.mark_flow(spec)

    def allow_by_interface(self, inside_ifindex: int, uplink_ifindex: int, from_inside: bool) -> int:
        """Return bits of `Allow` where FORWARD looks at nothing but interfaces and state, or ASK_FORWARD.

        This is for the first packet of a flow, which has passed already, and spares most flows the
        walks of `allow_later`.  The head's own flows do not pass FORWARD.
        """
        if inside_ifindex == 0:
            return ALLOW_ALL
        return self._known_ways.get((inside_ifindex, uplink_ifindex, from_inside), ASK_FORWARD)

    def allow_later(self, spec: FlowSpec, *, marked_like: FlowSpec | None = None) -> int:
        """Return what FORWARD says to the packets of a flow (bits of `Allow`).

        The head's own flows do not pass FORWARD.  Nothing is counted.
        """
        return self._allow(spec, self._marks.of(marked_like or spec))

    def begin(self, spec: FlowSpec) -> FlowSpec:
        """Return a flow with what FORWARD says to the packets that follow its first one, which passes."""
        return spec._replace(allow=Allow.NEW.value | self._allow(spec, self._flow_mark or 0))

    def mark_flow(self, spec: FlowSpec) -> None:
        """Give the packet's flow the mark that rules have said, now that there is one."""
        if self._flow_mark is not None:
            self._marks.set(spec, self._flow_mark)

    def mark_like(self, spec: FlowSpec, other: FlowSpec) -> None:
        """Give a flow the mark of the one that it belongs to."""
        self._marks.set(spec, self._marks.of(other))

    def go_on_with_mark(self, facts: PacketFacts, first: FlowSpec) -> PacketFacts:
        """Take over the mark of the flow that has brought a packet as far as this; return the packet with it."""
        mark = self._marks.of(first)
        if not mark:
            return facts
        self._flow_mark = mark
        return facts.with_flow_mark(mark)

    def mark_anew(self, spec: FlowSpec) -> None:
        """Give a flow of an earlier engine's the mark that its first packet would get now."""
        if not self._marks_flows:
            return
        facts = facts_of_flow(self.interfaces, spec, CtState.NEW, leaving=spec.from_inside, mark=0)
        facts = self.marked_before_routing(facts, own=not spec.inside_ifindex)
        if spec.inside_ifindex:
            facts = self._forward_as_first(facts).marked(facts)
        if spec.from_inside:
            facts = self._postrouting_uncounted(facts).marked(facts)
        self._marks.set(spec, facts.flow_or_own().mark)

    def marked_before_routing(self, facts: PacketFacts, *, own: bool) -> PacketFacts:
        """Return a packet that leaves as nat PREROUTING (OUTPUT, for the head's `own`) marks it.

        Those chains are walked where packets are taken for the sake of their destination; what they say about
        others is asked here.  Nothing is counted.
        """
        program = self._marking.get(own)
        if program is None:
            return facts
        outcome = program(facts._replace(out_name="" if not own else facts.out_name))
        self._note_marks(outcome)
        return outcome.marked(facts)

    def _allow(self, spec: FlowSpec, mark: int) -> int:
        if 0 in (spec.inside_ifindex, spec.uplink_ifindex):
            return ALLOW_ALL
        allow = self._ask_forward(spec, mark)
        if self._forward_by_interface and not spec.is_call:
            self._known_ways[spec.inside_ifindex, spec.uplink_ifindex, spec.from_inside] = Allow.NEW.value | allow
        return allow

    def _ask_forward(self, spec: FlowSpec, mark: int = 0) -> int:
        """Walk FORWARD for each of the three kinds of packet of a flow with this mark."""
        allow = 0
        # a PPTP call begins by its control connection, so it is RELATED, as with the kernel's helper
        begins = CtState.RELATED if spec.is_call else CtState.NEW
        for bit, state in (
            (Allow.NEW, begins), (Allow.ORIGINAL, CtState.ESTABLISHED), (Allow.REPLY, CtState.ESTABLISHED),
        ):
            leaving = spec.from_inside == (bit is not Allow.REPLY)
            outcome = self._forward_uncounted(facts_of_flow(self.interfaces, spec, state, leaving=leaving, mark=mark))
            if isinstance(outcome.target, Accept):
                allow |= bit.value
            elif outcome.handle == UNDECIDED:
                allow |= Allow.ASK.value
        return allow

    def prerouting(self, facts: PacketFacts) -> Outcome:
        """Walk nat PREROUTING for the first packet of a flow, and count it."""
        return self._ask(self._prerouting, facts)

    def output(self, facts: PacketFacts) -> Outcome:
        """Walk nat OUTPUT for the first packet of a flow of the head's own, and count it."""
        return self._ask(self._output, facts)

    def postrouting(self, facts: PacketFacts) -> Outcome:
        """Walk nat POSTROUTING for the first packet of a flow, and count it."""
        return self._ask(self._postrouting, facts)

    def way(self, in_ifindex: int, out_ifindex: int) -> Way | None:
        """Return what becomes of every flow from one interface to another, or None: ask for each.

        Worked out once; it spares most new flows all walks of chains.  Not for the head's own flows.
        """
        try:
            return self._ways[in_ifindex, out_ifindex]
        except KeyError:
            way = self._find_way(in_ifindex, out_ifindex) if self._has_ways and in_ifindex else None
            self._ways[in_ifindex, out_ifindex] = way
            return way

    def _find_way(self, in_ifindex: int, out_ifindex: int) -> Way | None:
        facts = PacketFacts(
            self.interfaces.name(in_ifindex), self.interfaces.name(out_ifindex), 0, 0, 0, ctstate=CtState.NEW
        )
        outcome = self._postrouting_uncounted(facts)
        if not isinstance(self._forward_uncounted(facts).target, Accept):
            return None
        if not isinstance(outcome.target, SourceTarget) or not is_same_for_all(outcome.target):
            return None
        nat = self.source_nat(outcome.target, out_ifindex, 0, 0)
        if nat is None:
            return None
        calls = [(self._count_forward, handle) for handle in self._forward.counted(facts)]
        calls += [(self._count_postrouting, handle) for handle in self._postrouting.counted(facts)]

        def count(length: int) -> None:
            for add, handle in calls:
                add(handle, length)

        anybody = FlowSpec(0, 0, 0, 0, 0, 0, 0, True, in_ifindex, out_ifindex, 0)
        return Way(nat, Allow.NEW.value | self._ask_forward(anybody), count)

    def source_nat(self, target: SourceTarget, out_ifindex: int, source: int, port: int) -> SourceNat | None:
        """Return what a target means for a packet; None if MASQUERADE has no address to give."""
        return source_nat(target, source, port, self.interfaces.outside_address(out_ifindex, source))

    def hairpin_nat(self, facts: PacketFacts, outside_ip: int) -> SourceNat:
        """Return how the source of a hairpinned packet is translated to this address.

        As if it left over the uplink that has the address: so a host has one endpoint, whoever looks at it.
        Where no rule would translate it there, as a rule without options would.
        """
        (name,) = [each.name for each in self.interfaces if outside_ip in each.addresses][:1] or [""]
        target = self._postrouting_uncounted(facts._replace(out_name=name, dst=outside_ip)).target
        return with_ports_of(target if isinstance(target, Masquerade | Snat) else Masquerade(), outside_ip)


def _asks_interfaces_only(table: Table, chain: ChainName) -> bool:
    """Whether a chain looks at nothing but interfaces and state: then flows of one way have one answer."""
    return all(
        rule.src is None and rule.dst is None and rule.proto is None
        and all(isinstance(match, Comment) or _asks_state_only(match) for match in rule.matches)
        for rule in table.reachable(chain)
    )


def _asks_state_only(match: Match) -> bool:
    return isinstance(match, ConntrackState) and not match.translated


def _notes(table: Table, chain: ChainName, targets: type | UnionType = Passing) -> bool:
    """Whether something is noted about packets on their way through a chain: then each has to walk."""
    return any(isinstance(rule.target, targets) for rule in table.reachable(chain))


def is_drop(outcome: Outcome) -> bool:
    """Whether a chain ended in DROP."""
    return isinstance(outcome.target, Drop)
