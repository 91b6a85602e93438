"""ICMP errors: the packet that caused one is quoted inside it, and both are translated (RFC 5508).

    arriving   outer: router -> outside endpoint      quoted: outside endpoint -> peer   (it had left)
    leaving    outer: inside router -> peer           quoted: peer -> inside endpoint    (it had arrived)

The quoted packet is translated back to what its sender, or the peer, knows; the outer address to
that of the host concerned.  An error neither refreshes nor ends a flow (RFC 4787 REQ-12, RFC 5508
REQ-6).  The quoted transport checksum is updated, not checked (REQ-3c).
"""

from __future__ import annotations

from natengine.errors import BadPacket
from natengine.fastpath import FastPath
from natengine.flow.records import FlowInfo, FlowKey, FlowSpec, flow_key
from natengine.vocab import Hook, Proto
from natengine.wire.checksum import checksum, update
from natengine.wire.ipv4 import (
    ICMP_COUNTERPART,
    MIN_TRANSPORT,
    PPP_IN_GRE,
    WITH_PORTS,
    Ipv4Fields,
    Transport,
    parse_header_untrusted,
    read_call,
)
from natengine.wire.rewrite import get16, put16, rewrite_destination, rewrite_source

ICMP_HEADER = 8
QUOTED_TRANSPORT = 8        # RFC 792: the header and 64 bits of what follows
ICMP_CHECKSUM = 2

DEST_UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM = 3, 11, 12
TRANSLATED_TYPES = frozenset({DEST_UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM})


class QuotedPacket:
    """The packet inside an ICMP error, in a buffer of its own."""

    def __init__(self, packet: bytearray, ip: Ipv4Fields) -> None:
        """Read the quote.

        Raises:
            BadPacket: It should have ports, but is cut off before them or a later fragment; or it is an ICMP error.
        """
        self.start = ip.header_len + ICMP_HEADER
        self.bytes = packet[self.start:ip.total_len]
        self.ip = parse_header_untrusted(self.bytes)
        at = self.ip.header_len
        # RFC 5508 REQ-3 and 3a: the checksums of the error and of the quoted IP header must be right
        self.damaged = bool(checksum(packet[ip.header_len:ip.total_len]) or checksum(self.bytes[:at]))
        has_header = self.ip.proto in MIN_TRANSPORT             # to all other protocols these bytes are data
        if has_header and (len(self.bytes) < at + QUOTED_TRANSPORT or self.ip.fragment_offset):
            raise BadPacket("the quoted packet has no ports")
        if self.ip.proto == Proto.ICMP:
            ident = get16(self.bytes, at + 4)
            self.transport = Transport(ident, ident, 0, self.bytes[at], self.bytes[at + 1])
            if self.transport.icmp_type not in ICMP_COUNTERPART:
                raise BadPacket("the quoted packet is not a query")
        elif self.ip.proto in WITH_PORTS:
            self.transport = Transport(get16(self.bytes, at), get16(self.bytes, at + 2), 0, 0, 0)
        elif self.ip.proto == Proto.GRE and not self.ip.fragment_offset:
            self.transport = read_call(self.bytes, at, len(self.bytes) - at)
        else:
            self.transport = Transport(0, 0, 0, 0, 0)


class QuotedCalls:
    """Finds PPTP's calls by a quoted packet, which has the call id of the wrong side for the flow table."""

    def __init__(self) -> None:
        self._calls: dict[FlowKey, FlowKey] = {}

    def begin(self, spec: FlowSpec) -> None:
        """Remember a call by the packets of either direction."""
        for key in _quoted_keys(spec):
            self._calls[key] = spec.arriving

    def end(self, spec: FlowSpec) -> None:
        """Forget it again."""
        for key in _quoted_keys(spec):
            if self._calls.get(key) == spec.arriving:
                del self._calls[key]

    def tuple_of(self, key: FlowKey) -> FlowKey:
        """Return the tuple under which the table knows the flow of a quoted packet."""
        return self._calls.get(key, key)


def _quoted_keys(spec: FlowSpec) -> tuple[FlowKey, FlowKey]:
    """Return the tuples of answers to a call's two kinds of packet, as `find_flow` makes them."""
    return (
        FlowKey(Hook.PREROUTING, spec.proto, spec.peer_ip, spec.peer_port, spec.outside_ip, PPP_IN_GRE),
        FlowKey(Hook.POSTROUTING, spec.proto, spec.inside_ip, spec.inside_port, spec.peer_ip, PPP_IN_GRE),
    )


def find_flow(fast: FastPath, calls: QuotedCalls, quoted: QuotedPacket, hook: int) -> FlowInfo | None:
    """Return the flow that the quoted packet belonged to, which went the other way."""
    inner, transport = quoted.ip, quoted.transport
    icmp_type = transport.icmp_type
    if inner.proto == Proto.ICMP:
        # seen from the other direction: an answer to the quoted packet, were there one
        icmp_type = ICMP_COUNTERPART[icmp_type]
    key = flow_key(
        hook, inner.proto, inner.dst, transport.dst_port_or_icmp_id, inner.src, transport.src_port_or_icmp_id, icmp_type
    )
    if inner.proto == Proto.GRE:
        key = calls.tuple_of(key)
        if key.dst_port_or_icmp_id == PPP_IN_GRE:       # of no call that is known
            key = key._replace(src_port_or_icmp_id=0, dst_port_or_icmp_id=0)
    return fast.info(fast.find(key))


def translate_error(
    packet: bytearray, ip: Ipv4Fields, quoted: QuotedPacket, flow: FlowInfo, hook: int
) -> None:
    """Rewrite an ICMP error in place: the quoted packet, the checksum over it, the outer address."""
    spec = flow.spec
    if hook == Hook.PREROUTING:
        change = rewrite_source(quoted.bytes, quoted.ip, spec.inside_ip, spec.inside_port)
        rewrite_destination(packet, ip, spec.inside_ip, None)
    else:
        change = rewrite_destination(quoted.bytes, quoted.ip, spec.outside_ip, spec.outside_port)
        rewrite_source(packet, ip, spec.outside_ip, None)
    packet[quoted.start:ip.total_len] = quoted.bytes
    sum_at = ip.header_len + ICMP_CHECKSUM
    put16(packet, sum_at, update(get16(packet, sum_at), change))

