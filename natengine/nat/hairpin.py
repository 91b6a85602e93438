"""Hairpinning: two hosts inside talk through an outside address (RFC 4787 REQ-9, RFC 5382 REQ-8, RFC 5508 REQ-7).

w1 sends to G:P2, which is w2's outside endpoint.  The session is two ordinary flows, each of three endpoints,
and each packet of it meets both, one at each hook:

                          PREROUTING                        POSTROUTING
                          the destination                   the source
    w1 -> w2   w1 > G:P2  ── B ──>  w1 > w2:p2              ── A ──>  G:P1 > w2:p2
    w2 -> w1   w2 > G:P1  ── A ──>  w2 > w1:p1              ── B ──>  G:P2 > w1:p1

    B   inside w2:p2, outside G:P2, peer w1:p1, begun by the peer      `nat/arriving.py`
    A   inside w1:p1, outside G:P1, peer w2:p2, begun by the inside    here

So either host sees the other's outside endpoint, as any peer outside would, and an ICMP error about such a packet
is translated by the same two flows.  The destination has to come first: a source that is the head's own
address is a martian to its routing.

A ends with B: by itself it would hand w1 the answer under w2's inside address.

Limits: an error of the head itself about such a packet (TTL, size) quotes it as it is between the two hooks.
Echo requests are not hairpinned (RFC 7857 12): whoever pings an outside address pings the head.
"""

from __future__ import annotations

from natengine.fastpath import FastPath
from natengine.flow.records import FlowKey, FlowSpec, flow_key, icmp_query_port
from natengine.nat.packet import NewPacket
from natengine.vocab import Hook, Proto


def find_aimed(fast: FastPath, packet: NewPacket) -> FlowSpec | None:
    """Return the flow by which PREROUTING has given a packet its destination, or None.

    At POSTROUTING such a packet looks like one of the flow's inside tuple, the other way round.
    """
    ip, transport = packet.ip, packet.transport
    if ip.proto == Proto.ICMP:
        ident, query = transport.src_port_or_icmp_id, icmp_query_port(Hook.PREROUTING, transport.icmp_type)
        key = flow_key(Hook.POSTROUTING, ip.proto, ip.dst, ident, ip.src, 0, query)
    else:
        key = flow_key(
            Hook.POSTROUTING, ip.proto, ip.dst, transport.dst_port_or_icmp_id,
            ip.src, transport.src_port_or_icmp_id, 0,
        )
    flow = fast.info(fast.find(key))
    return None if flow is None else flow.spec


def second_half(first: FlowSpec) -> FlowKey:
    """Return the leaving tuple of the flow A to the flow B; there is one only if the peer of B is inside."""
    return FlowKey(
        Hook.POSTROUTING, first.proto, first.peer_ip, first.peer_port, first.inside_ip, first.inside_port
    )
