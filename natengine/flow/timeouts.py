"""How long flows of each protocol live, as data: both fast paths receive the table at construction.

TCP's times go by its state (`flow.tcp_state.timeouts_by_state`).
"""

from __future__ import annotations

from natengine.settings import Timeouts
from natengine.vocab import Proto

PROTOCOLS = 256                     # RFC 791: the field has 8 bits

DNS_PORT = 53                       # a well-known port with a time of its own (RFC 4787 REQ-5a)

NEVER_NS = 2**62                    # a timeout longer than any: one that does not apply


def timeouts_by_protocol(timeouts: Timeouts) -> tuple[int, ...]:
    """Return the idle timeout in nanoseconds of each protocol, by its number; TCP's is not used."""
    own: dict[int, int] = {
        Proto.UDP: timeouts.udp_ns,
        Proto.ICMP: timeouts.icmp_query_ns,
        Proto.UDPLITE: timeouts.udplite_ns,
        Proto.DCCP: timeouts.dccp_ns,
        Proto.SCTP: timeouts.sctp_ns,
        Proto.GRE: timeouts.gre_ns,
    }
    return tuple(own.get(proto, timeouts.generic_ns) for proto in range(PROTOCOLS))
