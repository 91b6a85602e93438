"""What the rules see of a packet, and of a flow when no packet of it is at hand."""

from __future__ import annotations

from natengine.flow.records import FlowSpec
from natengine.nat.interfaces import InterfaceTable
from natengine.rules.facts import NO_FIELD, FlowFacts, PacketFacts
from natengine.rules.matches import NOT_TRANSLATED, CtDirection, CtStatus, Translated
from natengine.vocab import CtState, PacketMeta, Proto
from natengine.wire.ipv4 import ICMP_COUNTERPART, Ipv4Fields, Transport
from natengine.wire.tcp import ACK, SYN


def facts_of_packet(
    interfaces: InterfaceTable, ip: Ipv4Fields, transport: Transport, meta: PacketMeta, state: CtState, mark: int,
    now_ns: int,
) -> PacketFacts:
    """Return what rules see of a packet with this mark that comes now."""
    icmp = ip.proto == Proto.ICMP
    ports = ip.proto in (Proto.TCP, Proto.UDP)
    return PacketFacts(
        interfaces.name(meta.in_ifindex), interfaces.name(meta.out_ifindex),
        ip.src, ip.dst, ip.proto,
        transport.src_port_or_icmp_id if ports else NO_FIELD,
        transport.dst_port_or_icmp_id if ports else NO_FIELD,
        transport.icmp_type if icmp else NO_FIELD,
        transport.icmp_code if icmp else NO_FIELD,
        transport.tcp_flags if ip.proto == Proto.TCP else NO_FIELD,
        mark, ip.total_len, state, now_ns, meta.link_src,
    )


def facts_of_flow(
    interfaces: InterfaceTable, spec: FlowSpec, state: CtState, *, leaving: bool, mark: int
) -> PacketFacts:
    """Return what FORWARD sees of a packet of this flow: inside addresses, both ways.

    The flags of a TCP packet are those that nearly all have: SYN while no reply has been seen, ACK afterwards.
    """
    inside, uplink = interfaces.name(spec.inside_ifindex), interfaces.name(spec.uplink_ifindex)
    near, far = (spec.inside_ip, spec.inside_port), (spec.peer_ip, spec.peer_port)
    source, destination = (near, far) if leaving else (far, near)
    flow = flow_facts(spec, state, original=leaving == spec.from_inside, mark=mark)
    names = (inside, uplink) if leaving else (uplink, inside)
    if spec.proto == Proto.ICMP:
        icmp_type = spec.peer_port if leaving else ICMP_COUNTERPART.get(spec.peer_port, spec.peer_port)
        return PacketFacts(
            *names, source[0], destination[0], spec.proto, icmp_type=icmp_type, icmp_code=0, ctstate=state, flow=flow,
        )
    flags = NO_FIELD
    if spec.proto == Proto.TCP:
        flags = SYN if state is CtState.NEW else ACK
    return PacketFacts(
        *names, source[0], destination[0], spec.proto, source[1], destination[1],
        tcp_flags=flags, ctstate=state, flow=flow,
    )


def flow_facts(spec: FlowSpec, state: CtState, *, original: bool, mark: int) -> FlowFacts:
    """Return what `-m conntrack` and `-m connmark` see of a flow."""
    inside, outside = (spec.inside_ip, spec.inside_port), (spec.outside_ip, spec.outside_port)
    peer = (spec.peer_ip, spec.peer_port)
    opener, aim, answerer, back = (inside, peer, peer, outside) if spec.from_inside else (peer, outside, inside, peer)
    translated = NOT_TRANSLATED if inside == outside else Translated.SNAT if spec.from_inside else Translated.DNAT
    begins = state is not CtState.ESTABLISHED
    # who has been answered is taken for assured, as TCP is in the kernel
    return FlowFacts(
        opener[0], aim[0], answerer[0], back[0], opener[1], aim[1], answerer[1], back[1],
        CtStatus(0) if begins else CtStatus.SEEN_REPLY | CtStatus.ASSURED | CtStatus.CONFIRMED,
        CtDirection.ORIGINAL if original else CtDirection.REPLY, translated, mark,
    )
