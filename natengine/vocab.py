"""The nouns that every layer shares.  Values are the kernel's wherever the kernel has one.

Addresses are host-order integers inside the core; dotted quads exist at the edges only.
Times are integers in nanoseconds on one clock (CLOCK_BOOTTIME in the running engine).
"""

from __future__ import annotations

import enum
from typing import NamedTuple, Protocol


class Hook(enum.IntEnum):
    """Where in the kernel's packet path a packet was taken (linux/netfilter.h, NF_INET_*)."""

    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3
    POSTROUTING = 4


class Proto(enum.IntEnum):
    """IP protocol numbers that the engine knows by name."""

    ICMP = 1
    IPIP = 4
    TCP = 6
    UDP = 17
    DCCP = 33
    GRE = 47
    ESP = 50
    AH = 51
    SCTP = 132
    UDPLITE = 136


class Verdict(enum.IntEnum):
    """What the kernel does with the packet (linux/netfilter.h, NF_DROP, NF_ACCEPT and NF_STOLEN)."""

    DROP = 0
    ACCEPT = 1
    HELD = 2                # nothing yet: it stays in the queue until it is released with one of the others


class CtState(enum.Flag):
    """Connection state of a packet as `-m conntrack --ctstate` names it."""

    INVALID = enum.auto()
    NEW = enum.auto()
    ESTABLISHED = enum.auto()
    RELATED = enum.auto()
    UNTRACKED = enum.auto()


class Reason(enum.IntEnum):
    """Why a packet got its verdict.  Exactly one a packet; each is a counter in `natengine status`."""

    # accepted
    TRANSLATED = 1          # a known flow; addresses rewritten
    NEW_FLOW = 2            # the first packet of a flow that was just created
    UNCHANGED = 3           # a known flow whose inside and outside endpoints are the same
    ICMP_ERROR = 4          # an ICMP error about a known flow, rewritten inside and out (RFC 5508)
    FRAGMENT = 5            # a fragment, the first one or a later one, rewritten as the whole datagram would be
    LOCAL_IN = 6            # for the head itself, no flow: handed to its own stack as it is
    LOCAL_OUT = 7           # the head's own, nothing to track or to rewrite
    ROUTED = 8              # not (or not yet) for translation: on its way between two inside networks
    # dropped
    FORWARD_DROP = 16       # the FORWARD chain said so
    RULE_DROP = 17          # a DROP rule or policy in the nat table
    NO_RULE = 18            # forwarded to an uplink and no nat rule covers it: it would leak
    NO_ADDRESS = 19         # MASQUERADE on an uplink that has no address
    OUT_OF_PORTS = 20       # every outside port of the range is taken
    TABLE_FULL = 21         # no room, and nothing that may be evicted
    UNSOLICITED = 22        # from an uplink, for somebody else than the head, and no flow
    TCP_STATE = 23          # a segment that the connection's state does not allow (conntrack: INVALID)
    ICMP_UNRELATED = 24     # an ICMP error about nothing we know, or a type NAT has no business with
    FRAGMENT_ORPHAN = 25    # a later fragment whose first one did not come in time, or whose flow has ended since
    UNKNOWN_PROTOCOL = 26   # a protocol that cannot be translated (AH signs the addresses)
    BAD_HEADER = 27         # a header that contradicts itself
    TRUNCATED = 28          # fewer bytes captured than the headers promise
    FRAGMENT_LIMIT = 29     # of a datagram for which there is no more memory, in all or for its sender
    BAD_CHECKSUM = 30       # an ICMP error whose own checksum, or that of the header it quotes, is wrong
    TCP_WINDOW = 31         # a segment whose sequence numbers do not belong to the connection (RFC 5961)
    HOST_LIMIT = 32         # an inside host has as many flows or outside ports as it may have (RFC 6888 REQ-4)
    FILTERED = 33           # for a mapped port, from somebody whom the filtering does not let in
    SYN_HELD = 34           # a SYN from outside that nobody waits for; its sender is told in 6 s (RFC 5382 REQ-4)
    UPLINK_CHANGED = 35     # a segment of a connection whose address is gone, or whose route leads over another uplink
    FRAGMENT_TINY = 36      # a fragment that ends or begins inside the transport header (RFC 1858, RFC 3128)
    FRAGMENT_OVERLAP = 37   # of a datagram whose fragments contradict each other (RFC 5722)
    FRAGMENT_DUPLICATE = 38 # a fragment that brings nothing new
    SPOOFED = 39            # from an uplink, with a source that is the head's own or inside (RFC 2827)
    PEER_TAKEN = 40         # another inside host talks to that peer, and the protocol has no ports to tell them apart
    NO_ROUTE = 41           # a rule sends it to an address to which no route leads
    RATE_LIMIT = 42         # packets are waiting, and this sender has begun enough flows for now

    @property
    def verdict(self) -> Verdict:
        """What happens to a packet for this reason: numbers below 16 are reasons to accept."""
        return Verdict.ACCEPT if self < 16 else Verdict.DROP


# the same as a table: it is read for every packet that comes to Python
VERDICTS = {reason: reason.verdict for reason in Reason}


class PacketMeta(NamedTuple):
    """What the kernel says about a packet beside its bytes.

    Interface indexes are 0 where there is none: `in_ifindex` of the head's own packets,
    `out_ifindex` before routing.  `link_src` is the Ethernet address that it came from, b"" where there
    is none: the head's own packets, and links of other kinds.
    """

    hook: int
    in_ifindex: int
    out_ifindex: int
    mark: int
    link_src: bytes = b""


class Decision(NamedTuple):
    """The engine's answer to one packet."""

    verdict: Verdict
    reason: Reason
    packet: bytearray | None    # None: the kernel's own copy goes on as it is
    ticket: int = 0             # of a packet that is or was held: by it the two decisions about it find each other


class Interface(NamedTuple):
    """One network interface.  Addresses are host-order integers."""

    ifindex: int
    name: str
    addresses: tuple[int, ...] = ()     # the primary one first, as inet_select_addr() would take it
    broadcasts: tuple[int, ...] = ()
    default_route: bool = False         # a default route goes out here
    up: bool = True
    networks: tuple[tuple[int, int], ...] = ()      # (address, mask) of those that it is directly in
    mtu: int = 65535                    # the largest packet that it takes


class Route(NamedTuple):
    """One destination of the routing table: the addresses that agree with `network` wherever `mask` has a one."""

    network: int
    mask: int
    ifindex: int            # where packets to it go out


class Rng(Protocol):
    """The one kind of chance the core uses.  `random.Random` and `random.SystemRandom` satisfy it."""

    def randrange(self, start: int, stop: int, /) -> int: ...
