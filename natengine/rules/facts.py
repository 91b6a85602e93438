"""What a rule may ask about a packet."""

from __future__ import annotations

from typing import Final, NamedTuple

from natengine.vocab import CtState

NO_FIELD: Final = -1            # a port, ICMP type or flag byte that the packet does not have


class PacketFacts(NamedTuple):
    """One packet, as rules see it.

    Interface names are "" where there is none.  Addresses, ports and the mark are host order.
    Ports are NO_FIELD unless the packet is TCP or UDP and not a later fragment; `icmp_type` and
    `icmp_code` unless it is ICMP and not one; `tcp_flags` (one byte, FIN is 1) unless it is TCP.
    `ctstate` is exactly one state.  `length` is the packet's in bytes, from the IP header on.
    """

    in_name: str
    out_name: str
    src: int
    dst: int
    proto: int
    sport: int = NO_FIELD
    dport: int = NO_FIELD
    icmp_type: int = NO_FIELD
    icmp_code: int = NO_FIELD
    tcp_flags: int = NO_FIELD
    mark: int = 0
    length: int = 0
    ctstate: CtState = CtState.UNTRACKED
