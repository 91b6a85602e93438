"""Destinations that rules translate: DNAT, REDIRECT and NETMAP in nat PREROUTING and OUTPUT.

A rule chooses the inside endpoint; the packet's destination is the outside one.  The flow is as any other, begun
by its peer:

    from outside   one flow               client > G:80  ──>  client > w1:80
    from inside    and a second one       w2 > G:80      ──>  w2 > w1:80   ──>  G > w1:80     `nat/hairpin.py`
    from the head  and its own            G > G:80       ──>  G > w1:80

For the head's own packets OUTPUT is what PREROUTING is for others, and INPUT what POSTROUTING is: there an answer
gets the source that was asked.  Where the destination is the head itself (REDIRECT) there is only the first one; both
ways then lead over the loopback, whatever address was asked:

    from the head  to itself          G > X:80       ──>  G > 127.0.0.1:8080

Limit: one client endpoint cannot reach one inside endpoint through two outside ones at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from natengine.fastpath import NOT_FOUND, FastPath
from natengine.flow.mappings import Endpoint, MappingTable
from natengine.flow.records import Allow, FlowKey, FlowSpec, icmp_query_port
from natengine.nat.interfaces import InterfaceTable
from natengine.nat.packet import NewPacket
from natengine.nat.policy import Policy, is_drop
from natengine.nat.protocols import UNTRANSLATABLE, WITH_FILTERING
from natengine.nat.source import pick_address
from natengine.rules.matches import AddressRange, PortRange, TcpUdpPorts
from natengine.rules.model import ChainName, InterfaceTest, Rule, RuleSet, TableName
from natengine.rules.targets import Dnat, Goto, Jump, Netmap, Redirect
from natengine.vocab import CtState, Hook, Proto, Reason, Rng
from natengine.wire.addr import ALL_ONES, Prefix
from natengine.wire.ipv4 import ICMP_REPLY_TO
from natengine.wire.tcp import ACK, FIN, RST, SYN

DestinationTarget = Dnat | Redirect | Netmap
PORTS_TRIED = 128                       # as nf_nat_l4proto_unique_tuple() does
_EVERYWHERE = Prefix(0, 0)
_LOCALHOST = 0x7F000001


class DestinationRules:
    """Decides about packets before routing that begin a flow: does a rule send them elsewhere?"""

    def __init__(self, fast: FastPath, mappings: MappingTable, rng: Rng) -> None:
        self._fast, self._mappings, self._rng = fast, mappings, rng

    def decide(self, packet: NewPacket, policy: Policy, now_ns: int) -> FlowSpec | Reason | None:
        """Return the flow that this packet begins by a rule, why it begins none, or None: no rule is about it.

        The spec holds a mapping.
        """
        facts = policy.facts(packet.ip, packet.transport, packet.meta, CtState.NEW)
        outcome = policy.output(facts) if packet.from_head else policy.prerouting(facts)
        if is_drop(outcome):
            return Reason.RULE_DROP
        if not isinstance(outcome.target, DestinationTarget):
            return None
        as_leaving = packet._replace(meta=packet.meta._replace(hook=Hook.POSTROUTING))
        if self._fast.find(as_leaving.key) != NOT_FOUND:
            return Reason.ROUTED            # of a flow that began before the rule was there
        if policy.is_uplink(packet.meta.in_ifindex) and policy.is_spoofed(packet.ip.src):
            return Reason.SPOOFED
        refusal = _why_not_new(packet)
        if refusal is not None:
            return refusal
        inside = self._choose(outcome.target, packet, policy.interfaces)
        return inside if isinstance(inside, Reason) else self._flow(packet, inside, policy, now_ns)

    def _choose(self, target: DestinationTarget, packet: NewPacket, interfaces: InterfaceTable) -> Endpoint | Reason:
        """Return the endpoint that a rule means for a packet."""
        ip, port = packet.ip, packet.transport.dst_port_or_icmp_id
        match target:
            case Netmap(to):
                return Endpoint(ip.proto, to.network | ip.dst & ~to.mask, port)
            case Redirect(ports):
                base = None
                address = _LOCALHOST if packet.from_head else interfaces.address(packet.meta.in_ifindex)
                if address is None:
                    return Reason.NO_ADDRESS
            case Dnat(addresses, ports, base):
                address = ip.dst if addresses is None else pick_address(addresses, ip.src)
        if ports is None or ip.proto not in WITH_FILTERING:
            return Endpoint(ip.proto, address, port)
        peer = ip.src, packet.transport.src_port_or_icmp_id
        chosen = self._pick_port(
            ports, base, port, keep=not target.random,
            is_free=lambda free: self._fast.find(
                FlowKey(Hook.POSTROUTING, ip.proto, address, free, *peer)
            ) == NOT_FOUND,
        )
        return Reason.OUT_OF_PORTS if chosen is None else Endpoint(ip.proto, address, chosen)

    def _pick_port(
        self, ports: PortRange, base: int | None, port: int, *, keep: bool, is_free: Callable[[int], bool]
    ) -> int | None:
        """Return one of the ports of a rule, as the kernel chooses it; None if all that were tried are taken."""
        count = ports.last - ports.first + 1
        if base is not None:
            return ports.first + (port - base) % count
        if keep and ports.first <= port <= ports.last and (count == 1 or is_free(port)):
            return port
        start = self._rng.randrange(0, count)
        tried = (ports.first + (start + n) % count for n in range(min(count, PORTS_TRIED)))
        return next(filter(is_free, tried), None)

    def _flow(self, packet: NewPacket, inside: Endpoint, policy: Policy, now_ns: int) -> FlowSpec | Reason:
        ip, transport, meta = packet
        interfaces, port = policy.interfaces, inside.port_or_icmp_id
        ifindex = interfaces.way_to(inside.ip)
        if not ifindex and not interfaces.owns(inside.ip):
            return Reason.NO_ROUTE
        if ifindex and not packet.from_head:
            there = meta._replace(out_ifindex=ifindex)
            facts = policy.facts(
                ip._replace(dst=inside.ip), transport._replace(dst_port_or_icmp_id=port), there, CtState.NEW
            )
            if not policy.forwards(facts):
                return Reason.FORWARD_DROP
        outside = Endpoint(ip.proto, ip.dst, transport.dst_port_or_icmp_id)
        spec = FlowSpec(
            ip.proto, inside.ip, port, ip.dst, outside.port_or_icmp_id, ip.src, _peer_port(packet),
            False, ifindex, meta.in_ifindex, Allow.NEW,
        )
        make = ip.proto in WITH_FILTERING and interfaces.owns(ip.dst)
        self._mappings.hold(inside, outside, ifindex, now_ns, make=make)
        return policy.begin(spec)


def _peer_port(packet: NewPacket) -> int:
    if packet.ip.proto == Proto.ICMP:
        return icmp_query_port(Hook.PREROUTING, packet.transport.icmp_type)
    return packet.transport.src_port_or_icmp_id


def _why_not_new(packet: NewPacket) -> Reason | None:
    """Return why a packet cannot begin a flow to where a rule would send it, or None if it can."""
    ip, transport = packet.ip, packet.transport
    if ip.proto == Proto.TCP and transport.tcp_flags & (SYN | ACK | RST | FIN) != SYN:
        return Reason.TCP_STATE
    if ip.proto in UNTRANSLATABLE:
        return Reason.UNKNOWN_PROTOCOL
    if ip.proto == Proto.ICMP and transport.icmp_type not in ICMP_REPLY_TO:
        return Reason.ICMP_UNRELATED
    return None


# ── where packets have to be taken ──────────────────────────────────────────────────────────────────


class Answering(NamedTuple):
    """Who answers the head's own packets after a rule: the inside endpoint, as far as the rule says."""

    address: int
    proto: int                          # 0: any
    ports: PortRange | None             # of TCP or UDP


class Taken(NamedTuple):
    """What these rules want to see beside the uplinks, and what is for an uplink's address anyway."""

    interfaces: tuple[str, ...]         # names or patterns; at both hooks
    any_interface: bool
    output: tuple[Prefix, ...]          # destinations of the head's own packets
    answering: tuple[Answering, ...] = ()       # and who has them then, be it the head itself or not


def taken_by(ruleset: RuleSet, own_addresses: frozenset[int]) -> Taken:
    """Return what the rules of a rule set that translate destinations need.

    Args:
        own_addresses: Packets for one of these are taken on every interface.
    """
    interfaces: dict[str, None] = {}
    any_interface = False
    for rule, test in _translating(ruleset, ChainName.PREROUTING):
        if test is not None and not test.inverted:
            interfaces[test.pattern] = None
        elif not (_aim(rule).mask == ALL_ONES and _aim(rule).network in own_addresses):
            any_interface = True
    own = [rule for rule, _ in _translating(ruleset, ChainName.OUTPUT)]
    output = dict.fromkeys(map(_aim, own))
    answering = dict.fromkeys(filter(None, map(_answering, own)))
    return Taken(tuple(interfaces), any_interface, tuple(output), tuple(answering))


def _aim(rule: Rule) -> Prefix:
    return _EVERYWHERE if rule.dst is None or rule.dst.inverted else rule.dst.prefix


def _answering(rule: Rule) -> Answering | None:
    """Return who answers, or None if a rule does not name one address."""
    asked, target = _aim(rule), rule.target
    match target:
        case Redirect(ports):
            address = _LOCALHOST
        case Dnat(None, ports) if asked.mask == ALL_ONES:
            address = asked.network
        case Dnat(AddressRange(address, last), ports) if address == last:
            pass
        case _:
            return None
    proto = 0 if rule.proto is None or rule.proto.inverted else rule.proto.number
    if ports is None:
        ports = next((each.dport.ports for each in rule.matches
                      if isinstance(each, TcpUdpPorts) and each.dport is not None and not each.dport.inverted), None)
    return Answering(address, proto, ports if proto in (Proto.TCP, Proto.UDP) else None)


def _translating(
    ruleset: RuleSet, chain: str, outer: InterfaceTest | None = None
) -> Iterator[tuple[Rule, InterfaceTest | None]]:
    """Yield the rules that translate destinations, each with its `-i` or that of the rule that leads to it."""
    for rule in ruleset.chain(TableName.NAT, chain).rules:
        test = rule.in_iface or outer
        if isinstance(rule.target, DestinationTarget):
            yield rule, test
        elif isinstance(rule.target, Jump | Goto):
            yield from _translating(ruleset, rule.target.chain, test)
