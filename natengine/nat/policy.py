"""What the rules say about a flow: asked once when it begins, and again when they change.

`Policy` is a rule set made ready for packets: its chains compiled, the interfaces looked up.  It
answers, in netfilter's order: what does nat PREROUTING (OUTPUT, for the head's own) make of the packet's
destination, does FORWARD let it pass, and what does nat POSTROUTING make of its source?

FORWARD is asked for every packet in the kernel.  Here the answers for the three kinds of packet of
a flow (`Allow`) are worked out when it begins and kept with it, so that a known flow costs nothing;
a rule change makes every flow ask again.  That is the same thing as long as FORWARD matches what
all packets of one kind share (interfaces, addresses, ports, state).  Of a flow that `-m limit` or
`statistic` may decide about, each packet of that kind is asked about (`Allow.ASK`).  Limit: TCP flags differ within
a kind; they are those of the packet for the one that begins a flow, and what nearly all others
have for the rest: SYN while no reply has been seen, ACK afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

from natengine.flow.records import Allow, FlowSpec
from natengine.nat.interfaces import InterfaceTable
from natengine.nat.packet import NewPacket
from natengine.nat.said import Said
from natengine.nat.source import SourceNat, SourceTarget, is_same_for_all, source_nat, with_ports_of
from natengine.rules.counters import RuleCounters
from natengine.rules.evaluate import NO_FIELD, UNDECIDED, Outcome, PacketFacts, Program, compile_chain
from natengine.rules.facts import FlowFacts, RuleMemory, Surroundings
from natengine.rules.matches import (
    NOT_TRANSLATED,
    Comment,
    ConntrackState,
    CtDirection,
    CtStatus,
    Match,
    Translated,
)
from natengine.rules.model import ChainName, RuleSet, Table, TableName, Uplinks
from natengine.rules.targets import Accept, Drop, Masquerade, Passing, Reject, Snat
from natengine.vocab import CtState, Hook, Interface, PacketMeta, Proto
from natengine.wire.ipv4 import ICMP_COUNTERPART, Ipv4Fields, Transport
from natengine.wire.tcp import ACK, SYN

ALLOW_ALL = Allow.ALL.value
ASK_FORWARD = 0                     # no bits of Allow: the answer is not known beforehand


class Way(NamedTuple):
    """What becomes of every flow that hosts inside begin from one interface to another one.

    There is one where all rules that such a flow meets look at nothing but interfaces and state.
    """

    nat: SourceNat
    allow: int                          # bits of `Allow`
    note: Callable[[int], None]         # counts a packet of this length with the rules that it meets


def interface_matches(pattern: str, name: str) -> bool:
    """Whether an interface name fits an iptables pattern (`bond0.2`, `bond0.+`)."""
    return name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern


def is_uplink(interface: Interface, uplinks: Uplinks) -> bool:
    """Whether this interface is guarded: a rule names it, or a rule names none and the default route goes out here."""
    if uplinks.any_interface and interface.default_route:
        return True
    return any(interface_matches(pattern, interface.name) for pattern in uplinks.patterns)


def join_uplinks(before: Uplinks, now: Uplinks) -> Uplinks:
    """Return the uplinks of two rule sets together.

    An interface stays an uplink when the last rule that named it is deleted: what would then leave
    over it untranslated is dropped (`Reason.NO_RULE`), where a kernel without rules lets it leak.
    """
    patterns = dict.fromkeys(before.patterns + now.patterns)
    return Uplinks(tuple(patterns), before.any_interface or now.any_interface)


class Policy:
    """A rule set together with the interfaces it talks about."""

    def __init__(
        self, ruleset: RuleSet, interfaces: InterfaceTable, counters: RuleCounters, uplinks: Uplinks,
        memory: RuleMemory | None = None,
    ) -> None:
        self.interfaces = interfaces
        self.uplinks = uplinks
        self._around = Surroundings(interfaces.kind, memory)
        filter_, nat = ruleset.table(TableName.FILTER), ruleset.table(TableName.NAT)
        self._nat = nat
        self._count_forward = counters.adder(TableName.FILTER, ChainName.FORWARD)
        self._count_postrouting = counters.adder(TableName.NAT, ChainName.POSTROUTING)
        self._forward = self._compile(filter_, ChainName.FORWARD, counters)
        self._forward_uncounted = self._compile(filter_, ChainName.FORWARD, for_flows=True)
        self.judges_packets = self._forward_uncounted.undecided
        self._forward_by_interface = _asks_interfaces_only(filter_, ChainName.FORWARD)
        self._known_ways: dict[tuple[int, int, bool], int] = {}
        self._prerouting = self._compile(nat, ChainName.PREROUTING, counters)
        self._output = self._compile(nat, ChainName.OUTPUT, counters)
        self._postrouting = self._compile(nat, ChainName.POSTROUTING, counters)
        self._has_ways = not uplinks.any_interface and all(
            _asks_interfaces_only(table, chain) and not _notes(table, chain)
            for table, chain in ((filter_, ChainName.FORWARD), (nat, ChainName.POSTROUTING))
        )
        self._ways: dict[tuple[int, int], Way | None] = {}
        self._networks = sorted(            # the smallest first
            ((mask, network, self.is_uplink(each.ifindex)) for each in interfaces for network, mask in each.networks),
            reverse=True,
        )
        self.now_ns = 0                 # told by the engine for each packet; `-m limit` asks
        self.said: list[Said] = []      # what the rules said beside yes and no; whoever has the packet carries it out

    def _compile(
        self, table: Table, chain: ChainName, counters: RuleCounters | None = None, *, for_flows: bool = False
    ) -> Program:
        """Compile a built-in chain; without counters it is one that is asked about no packet in particular."""
        count = None if counters is None else counters.adder(table.name, chain)
        around = self._around if count is not None else self._around._replace(memory=None)
        found = next(each for each in table if each.name == chain)
        return compile_chain(found, count, table=table, around=around, for_flows=for_flows)

    @cached_property
    def _postrouting_uncounted(self) -> Program:
        """Asked seldom, and by few: a rule set that changes often does not pay for it."""
        return self._compile(self._nat, ChainName.POSTROUTING)

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
        """Return what the rules see of a packet that comes now."""
        icmp = ip.proto == Proto.ICMP
        ports = ip.proto in (Proto.TCP, Proto.UDP)
        return PacketFacts(
            self.interfaces.name(meta.in_ifindex), self.interfaces.name(meta.out_ifindex),
            ip.src, ip.dst, ip.proto,
            transport.src_port_or_icmp_id if ports else NO_FIELD,
            transport.dst_port_or_icmp_id if ports else NO_FIELD,
            transport.icmp_type if icmp else NO_FIELD,
            transport.icmp_code if icmp else NO_FIELD,
            transport.tcp_flags if ip.proto == Proto.TCP else NO_FIELD,
            meta.mark, ip.total_len, state, self.now_ns, meta.link_src,
        )

    def _ask(self, program: Program, facts: PacketFacts) -> Outcome:
        """Walk a chain for a packet, count it, and note what the rules said on the way."""
        outcome = program(facts)
        if outcome.logs:
            self.said += [Said(log, facts) for log in outcome.logs]
        if isinstance(outcome.target, Reject):
            self.said.append(Said(outcome.target, facts))
        return outcome

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

    def forwards_packet(self, spec: FlowSpec, kind: Allow, packet: NewPacket) -> bool:
        """Whether FORWARD lets this packet of a known flow pass; it is counted."""
        ip, transport, meta = packet
        leaving = meta.hook == Hook.POSTROUTING
        if not leaving:
            ip = ip._replace(dst=spec.inside_ip)
            transport = transport._replace(dst_port_or_icmp_id=spec.inside_port)
            meta = meta._replace(out_ifindex=spec.inside_ifindex)
        state = CtState.NEW if kind is Allow.NEW else CtState.ESTABLISHED
        flow = _flow_facts(spec, state, original=kind is not Allow.REPLY)
        return self.forwards(self.facts(ip, transport, meta, state)._replace(flow=flow))

    def refuse_later(self, spec: FlowSpec, length: int, *, leaving: bool) -> None:
        """Ask FORWARD about a packet of a flow that it no longer lets pass, for what it says beside no."""
        facts = self._facts_of_flow(spec, CtState.ESTABLISHED, leaving=leaving)
        self.forward(facts._replace(length=length, now_ns=self.now_ns))

    def allow_by_interface(self, inside_ifindex: int, uplink_ifindex: int, from_inside: bool) -> int:
        """Return bits of `Allow` where FORWARD looks at nothing but interfaces and state, or ASK_FORWARD.

        This is for the first packet of a flow, which has passed already, and spares most flows the
        walks of `allow_later`.  The head's own flows do not pass FORWARD.
        """
        if inside_ifindex == 0:
            return ALLOW_ALL
        return self._known_ways.get((inside_ifindex, uplink_ifindex, from_inside), ASK_FORWARD)

    def allow_later(self, spec: FlowSpec) -> int:
        """Return what FORWARD says to the packets of a flow that follow the first one (bits of `Allow`).

        The head's own flows do not pass FORWARD.  Nothing is counted.
        """
        if 0 in (spec.inside_ifindex, spec.uplink_ifindex):
            return ALLOW_ALL
        allow = self._ask_forward(spec)
        if self._forward_by_interface and not spec.is_call:
            self._known_ways[spec.inside_ifindex, spec.uplink_ifindex, spec.from_inside] = Allow.NEW.value | allow
        return allow

    def _ask_forward(self, spec: FlowSpec) -> int:
        """Walk FORWARD for each of the three kinds of packet of a flow."""
        allow = 0
        # a PPTP call begins by its control connection, so it is RELATED, as with the kernel's helper
        begins = CtState.RELATED if spec.is_call else CtState.NEW
        for bit, state in (
            (Allow.NEW, begins), (Allow.ORIGINAL, CtState.ESTABLISHED), (Allow.REPLY, CtState.ESTABLISHED),
        ):
            leaving = spec.from_inside == (bit is not Allow.REPLY)
            outcome = self._forward_uncounted(self._facts_of_flow(spec, state, leaving=leaving))
            if isinstance(outcome.target, Accept):
                allow |= bit.value
            elif outcome.handle == UNDECIDED:
                allow |= Allow.ASK.value
        return allow

    def _facts_of_flow(self, spec: FlowSpec, state: CtState, *, leaving: bool) -> PacketFacts:
        """Return what FORWARD sees of a packet of this flow: inside addresses, both ways."""
        inside, uplink = self.interfaces.name(spec.inside_ifindex), self.interfaces.name(spec.uplink_ifindex)
        near, far = (spec.inside_ip, spec.inside_port), (spec.peer_ip, spec.peer_port)
        source, destination = (near, far) if leaving else (far, near)
        flow = _flow_facts(spec, state, original=leaving == spec.from_inside)
        names = (inside, uplink) if leaving else (uplink, inside)
        if spec.proto == Proto.ICMP:
            icmp_type = spec.peer_port if leaving else ICMP_COUNTERPART.get(spec.peer_port, spec.peer_port)
            return PacketFacts(
                *names, source[0], destination[0], spec.proto, icmp_type=icmp_type, icmp_code=0, ctstate=state,
                flow=flow,
            )
        flags = NO_FIELD
        if spec.proto == Proto.TCP:
            flags = SYN if state is CtState.NEW else ACK
        return PacketFacts(
            *names, source[0], destination[0], spec.proto, source[1], destination[1],
            tcp_flags=flags, ctstate=state, flow=flow,
        )

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


def _flow_facts(spec: FlowSpec, state: CtState, *, original: bool) -> FlowFacts:
    """Return what `-m conntrack` sees of a flow."""
    inside, outside = (spec.inside_ip, spec.inside_port), (spec.outside_ip, spec.outside_port)
    peer = (spec.peer_ip, spec.peer_port)
    opener, aim, answerer, back = (inside, peer, peer, outside) if spec.from_inside else (peer, outside, inside, peer)
    translated = NOT_TRANSLATED if inside == outside else Translated.SNAT if spec.from_inside else Translated.DNAT
    begins = state is not CtState.ESTABLISHED
    # who has been answered is taken for assured, as TCP is in the kernel
    return FlowFacts(
        opener[0], aim[0], answerer[0], back[0], opener[1], aim[1], answerer[1], back[1],
        CtStatus(0) if begins else CtStatus.SEEN_REPLY | CtStatus.ASSURED | CtStatus.CONFIRMED,
        CtDirection.ORIGINAL if original else CtDirection.REPLY, translated,
    )


def _asks_interfaces_only(table: Table, chain: ChainName) -> bool:
    """Whether a chain looks at nothing but interfaces and state: then flows of one way have one answer."""
    return all(
        rule.src is None and rule.dst is None and rule.proto is None
        and all(isinstance(match, Comment) or _asks_state_only(match) for match in rule.matches)
        for rule in table.reachable(chain)
    )


def _asks_state_only(match: Match) -> bool:
    return isinstance(match, ConntrackState) and not match.translated


def _notes(table: Table, chain: ChainName) -> bool:
    """Whether something is noted about packets on their way through a chain: then each has to walk."""
    return any(isinstance(rule.target, Passing) for rule in table.reachable(chain))


def is_drop(outcome: Outcome) -> bool:
    """Whether a chain ended in DROP."""
    return isinstance(outcome.target, Drop)
