"""What a rule may ask about a packet, about its flow, and about the world around."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from natengine.rules.matches import NOT_TRANSLATED, AddressType, CtDirection, CtStatus, Translated
from natengine.vocab import CtState, Rng

NO_FIELD: Final = -1            # a port, ICMP type or flag byte that the packet does not have


class FlowFacts(NamedTuple):
    """The flow that a packet belongs to: what `-m conntrack` and `-m connmark` look at.

    `orig_*` is the tuple of the flow's first packet before any translation, `repl_*` that of its
    answers as the other side sends them.  Host order.
    """

    orig_src: int
    orig_dst: int
    repl_src: int
    repl_dst: int
    orig_sport: int = NO_FIELD
    orig_dport: int = NO_FIELD
    repl_sport: int = NO_FIELD
    repl_dport: int = NO_FIELD
    status: CtStatus = CtStatus(0)
    direction: CtDirection = CtDirection.ORIGINAL
    translated: Translated = NOT_TRANSLATED
    mark: int = 0


class PacketFacts(NamedTuple):
    """One packet, as rules see it.

    Interface names are "" where there is none.  Addresses, ports and the mark are host order.
    Ports are NO_FIELD unless the packet is TCP or UDP and not a later fragment; `icmp_type` and
    `icmp_code` unless it is ICMP and not one; `tcp_flags` (one byte, FIN is 1) unless it is TCP.
    `ctstate` is exactly one state.  `length` is the packet's in bytes, from the IP header on.
    `now_ns` is when it came.  `link_src` is the Ethernet address that it came from, b"" where there is none.
    `flow` None: the packet begins one and is translated nowhere yet.
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
    now_ns: int = 0
    link_src: bytes = b""
    flow: FlowFacts | None = None

    def flow_or_own(self) -> FlowFacts:
        """Return the packet's flow; of a packet that begins one, the flow that its own tuple makes."""
        return self.flow or FlowFacts(
            self.src, self.dst, self.dst, self.src, self.sport, self.dport, self.dport, self.sport
        )

    def with_flow_mark(self, mark: int) -> PacketFacts:
        """Return the packet with another mark on its flow."""
        return self._replace(flow=self.flow_or_own()._replace(mark=mark))


class RuleMemory:
    """What rules remember from packet to packet, by handle: it outlives changes of other rules.

    Attributes:
        rng: The dice of `-m statistic`.
        buckets: When each bucket of `-m limit` was last empty, in nanoseconds.
        turns: How many packets each `--mode nth` has counted.
    """

    def __init__(self, rng: Rng) -> None:
        self.rng = rng
        self.buckets: dict[tuple[int, int], int] = {}
        self.turns: dict[tuple[int, int], int] = {}

    def forget_missing(self, handles: set[int]) -> None:
        """Forget what rules remembered that are gone."""
        for known in (self.buckets, self.turns):
            for key in [key for key in known if key[0] not in handles]:
                del known[key]


class Surroundings(NamedTuple):
    """What some matches need beside the packet.

    Attributes:
        address_kind: (address, interface name or "" for any) to the address's kind, as a route has it.
        memory: None: nobody counts; a limit is never reached, and chance chooses nobody.
    """

    address_kind: Callable[[int, str], AddressType] = lambda address, name: AddressType.UNICAST
    memory: RuleMemory | None = None


NOWHERE = Surroundings()
