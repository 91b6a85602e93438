"""What a flow is: three endpoints and what happened between them.

    inside endpoint  ──────  outside endpoint  ──────  peer endpoint
    10.1.0.11:40000          203.0.113.1:40000         203.0.113.2:80
    (the worker)             (what the peer sees)      (the server)

Whoever began it, and whatever rule made it, a NAT flow is these three (RFC 2663: inside local,
inside global, outside).  It follows what is to be done with a packet:

    leaving  (POSTROUTING)   inside  -> peer      the source becomes the outside endpoint
    arriving (PREROUTING)    peer    -> outside   the destination becomes the inside endpoint

MASQUERADE, SNAT, DNAT, REDIRECT and the head's own connections (inside = outside) are all of this
shape; they differ in who chose which endpoint, and in who sent the first packet (`from_inside`).

A PPTP call is this shape, too, with call ids for ports.  But its packets carry one of them, the receiver's; in the
tuples PPP_IN_GRE stands for the other one.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from natengine.flow.tcp_window import Sides
from natengine.vocab import Hook, Proto
from natengine.wire.ipv4 import ICMP_COUNTERPART, PPP_IN_GRE


class Path(enum.IntEnum):
    """What the fast path did with a packet."""

    TRANSLATED = 1          # known flow, rewritten in place
    UNCHANGED = 2           # known flow whose inside and outside endpoints are the same
    MISS = 3                # no such flow: the engine decides
    SPECIAL = 4             # not for the fast path: a fragment, an ICMP error
    STALE = 5               # known flow, but the rules changed since it was last allowed, its route did, or `Allow.ASK`
    REFUSED_STATE = 6       # known flow, TCP segment against its state: drop
    REFUSED_FORWARD = 7     # known flow, the FORWARD chain does not let this direction pass: drop
    BAD_HEADER = 8          # the headers contradict each other: drop
    TRUNCATED = 9           # the headers promise more bytes than there are: drop
    REFUSED_WINDOW = 10     # known flow, TCP segment with sequence numbers that do not belong to it: drop
    REFUSED_RATE = 11       # dropped unasked, like its sender's last one; said by a batched adapter, never by the table


class Allow(enum.IntFlag):
    """What the FORWARD chain said about a flow, asked when it began and whenever the rules change."""

    NEW = 1                 # original direction while no reply has been seen (ctstate NEW)
    ORIGINAL = 2            # original direction afterwards (ctstate ESTABLISHED)
    REPLY = 4               # reply direction
    ALL = 7                 # each of the three kinds
    ASK = 8                 # a kind that is not allowed is STALE: rules judge it packet by packet


class FlowKey(NamedTuple):
    """A tuple by which a packet finds its flow; `hook` says from which side."""

    hook: int
    proto: int
    src: int
    src_port_or_icmp_id: int
    dst: int
    dst_port_or_icmp_id: int


class FlowSpec(NamedTuple):
    """A flow to install.  Addresses and ports host order; a protocol without ports has 0 for them."""

    proto: int
    inside_ip: int
    inside_port: int        # ICMP: the identifier (RFC 5508 3.1)
    outside_ip: int
    outside_port: int       # ICMP: the identifier
    peer_ip: int
    peer_port: int          # ICMP: `icmp_query_port`
    from_inside: bool       # whether the inside sent the first packet
    inside_ifindex: int     # 0: the head itself
    uplink_ifindex: int
    allow: int              # bits of Allow

    @property
    def is_call(self) -> bool:
        """Whether this is GRE that is told apart by call ids (RFC 2637): of all other GRE the ports are 0."""
        return self.proto == Proto.GRE and (self.inside_port | self.outside_port | self.peer_port) != 0

    @property
    def leaving(self) -> FlowKey:
        """The tuple of packets that leave over the uplink."""
        port = PPP_IN_GRE if self.is_call else self.inside_port
        return FlowKey(Hook.POSTROUTING, self.proto, self.inside_ip, port, self.peer_ip, self.peer_port)

    @property
    def arriving(self) -> FlowKey:
        """The tuple of packets that arrive from the uplink."""
        port = PPP_IN_GRE if self.is_call else self.peer_port
        return FlowKey(Hook.PREROUTING, self.proto, self.peer_ip, port, self.outside_ip, self.outside_port)


class FlowInfo(NamedTuple):
    """A flow as it stands in the table: a copy, not a handle."""

    flow_id: int
    spec: FlowSpec
    tcp_state: int
    seen_reply: bool
    assured: bool           # TCP: was established; UDP: the opener answered a reply
    deadline_ns: int        # when it ends if nothing more comes
    sides: Sides            # TCP: the sequence numbers of the opener and of the other
    original_packets: int
    original_bytes: int
    reply_packets: int
    reply_bytes: int
    mark: int = 0           # kept outside of the table: `nat/marks.py`

    def kind(self, hook: int) -> Allow:
        """Return of which kind a packet of this flow is that is taken at `hook` now."""
        if (hook == Hook.POSTROUTING) != self.spec.from_inside:
            return Allow.REPLY
        return Allow.ORIGINAL if self.seen_reply else Allow.NEW


def without_call(key: FlowKey) -> FlowKey | None:
    """Return the tuple that a PPTP packet has where its call is not known: that of all GRE of two hosts; else None."""
    if key.proto != Proto.GRE or key.src_port_or_icmp_id != PPP_IN_GRE:
        return None
    return key._replace(src_port_or_icmp_id=0, dst_port_or_icmp_id=0)


def icmp_query_port(hook: int, icmp_type: int) -> int:
    """Return what stands for the peer's port in an ICMP query flow: the type that the inside sends.

    A request that we send and a request that the peer sends may carry the same identifier; they
    are two sessions (RFC 5508 REQ-1), and this keeps them apart.
    """
    return icmp_type if hook == Hook.POSTROUTING else ICMP_COUNTERPART.get(icmp_type, icmp_type)


def flow_key(hook: int, proto: int, src: int, src_port: int, dst: int, dst_port: int, icmp_type: int) -> FlowKey:
    """Return the tuple of a packet taken at `hook`."""
    if proto != Proto.ICMP:
        return FlowKey(hook, proto, src, src_port, dst, dst_port)
    query = icmp_query_port(hook, icmp_type)
    if hook == Hook.POSTROUTING:
        return FlowKey(hook, proto, src, src_port, dst, query)
    return FlowKey(hook, proto, src, query, dst, dst_port)
