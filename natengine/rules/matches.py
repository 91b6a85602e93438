"""What a rule asks about a packet, as frozen values: one class for each kind of test.

Ranges are inclusive at both ends; addresses are host-order integers.  `predicates.py` says what each
one means for a packet.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from natengine.vocab import CtState, Proto
from natengine.wire.addr import Prefix

ANY_INTERFACE = "+"
ALL_BITS = 0xFFFF_FFFF          # the mask of a mark that is looked at as a whole


class PortRange(NamedTuple):
    """Ports `first`..`last`, both inclusive."""

    first: int
    last: int


class AddressRange(NamedTuple):
    """Addresses `first`..`last`, both inclusive."""

    first: int
    last: int


# --- what every rule can say about a packet ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AddressTest:
    """`-s` or `-d`."""

    prefix: Prefix
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class InterfaceTest:
    """`-i` or `-o`.  A pattern that ends in `+` matches every name that begins with the rest."""

    pattern: str
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class ProtocolTest:
    """`-p`, by number."""

    number: int
    inverted: bool = False


# --- the protocol's own (-m tcp, udp, multiport, icmp) ----------------------------------------------


@dataclass(frozen=True, slots=True)
class PortTest:
    """`--sport` or `--dport`."""

    ports: PortRange
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class TcpFlags:
    """`--tcp-flags MASK SET`: of the flags in `mask`, exactly those in `expected` are set."""

    mask: int
    expected: int
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class TcpUdpPorts:
    """`-m tcp` or `-m udp`; `flags` is for TCP only.  Without any field it is written, and matches."""

    proto: Proto
    sport: PortTest | None = None
    dport: PortTest | None = None
    flags: TcpFlags | None = None


class PortSide(enum.StrEnum):
    """Which port `-m multiport` looks at; the value is its option."""

    SOURCE = "sports"
    DESTINATION = "dports"
    EITHER = "ports"


@dataclass(frozen=True, slots=True)
class Multiport:
    """`-m multiport`: the port is in one of these ranges."""

    side: PortSide
    ports: tuple[PortRange, ...]
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class IcmpType:
    """`-m icmp --icmp-type`; `type` None is `any`.  Codes `first_code`..`last_code` inclusive."""

    type: int | None = None
    first_code: int = 0
    last_code: int = 255
    inverted: bool = False


# --- connections (-m conntrack, state, connmark) ----------------------------------------------------


class StateModule(enum.StrEnum):
    """The two spellings of one match: `-m conntrack --ctstate` and `-m state --state`."""

    CONNTRACK = "conntrack"
    STATE = "state"


class Translated(enum.Flag):
    """The two states of `--ctstate` that are no states: the flow's source or destination is translated."""

    SNAT = enum.auto()
    DNAT = enum.auto()


NOT_TRANSLATED = Translated(0)


@dataclass(frozen=True, slots=True)
class ConntrackState:
    """The packet's connection state is one of `states`, or its flow is translated as in `translated`."""

    states: CtState
    inverted: bool = False
    module: StateModule = StateModule.CONNTRACK
    translated: Translated = NOT_TRANSLATED


class CtStatus(enum.Flag):
    """`--ctstatus`; an empty value is NONE."""

    EXPECTED = enum.auto()
    SEEN_REPLY = enum.auto()
    ASSURED = enum.auto()
    CONFIRMED = enum.auto()


@dataclass(frozen=True, slots=True)
class StatusTest:
    """The flow has one of these marks of its life."""

    status: CtStatus
    inverted: bool = False


class CtDirection(enum.StrEnum):
    """`--ctdir`: which way of its flow the packet goes."""

    ORIGINAL = "ORIGINAL"
    REPLY = "REPLY"


@dataclass(frozen=True, slots=True)
class SecondsTest:
    """`--ctexpire`: from `first` to `last` seconds."""

    first: int
    last: int
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class FlowAddressTest:
    """An address of a flow.  It is kept as it was written, bits outside the mask included: iptables prints it so."""

    address: int
    mask: int = ALL_BITS
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class ConntrackTuple:
    """The options of `-m conntrack` about the flow's tuples; each that is given has to be true.

    `orig_src` is the source of the flow's first packet before any translation, `repl_src` that of the
    packets that answer it, and so on.
    """

    state: ConntrackState | None = None
    proto: ProtocolTest | None = None
    orig_src: FlowAddressTest | None = None
    orig_dst: FlowAddressTest | None = None
    repl_src: FlowAddressTest | None = None
    repl_dst: FlowAddressTest | None = None
    orig_sport: PortTest | None = None
    orig_dport: PortTest | None = None
    repl_sport: PortTest | None = None
    repl_dport: PortTest | None = None
    status: StatusTest | None = None
    expire: SecondsTest | None = None
    direction: CtDirection | None = None


@dataclass(frozen=True, slots=True)
class MarkTest:
    """`-m mark --mark VALUE/MASK`; with `connection`, `-m connmark`."""

    value: int
    mask: int = ALL_BITS
    inverted: bool = False
    connection: bool = False


# --- others -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limit:
    """`-m limit`: a token bucket of `burst`, filled with one token every `interval`.

    Attributes:
        interval: In units of 1/10000 s, as iptables rounds it (XT_LIMIT_SCALE).
    """

    interval: int = 12_000_000          # 3/hour
    burst: int = 5


class AddressType(enum.IntFlag):
    """The kinds of address of `-m addrtype`: a route's type (linux/rtnetlink.h), as a bit."""

    UNSPEC = 1 << 0
    UNICAST = 1 << 1
    LOCAL = 1 << 2
    BROADCAST = 1 << 3
    ANYCAST = 1 << 4
    MULTICAST = 1 << 5
    BLACKHOLE = 1 << 6
    UNREACHABLE = 1 << 7
    PROHIBIT = 1 << 8
    THROW = 1 << 9
    NAT = 1 << 10
    XRESOLVE = 1 << 11


@dataclass(frozen=True, slots=True)
class AddressTypeTest:
    """`--src-type` or `--dst-type`: the address is of one of these kinds."""

    kinds: AddressType
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class AddressKind:
    """`-m addrtype`.  `limit_in`, `limit_out`: asked of the packet's own interface only."""

    src: AddressTypeTest | None = None
    dst: AddressTypeTest | None = None
    limit_in: bool = False
    limit_out: bool = False


@dataclass(frozen=True, slots=True)
class AddressRangeTest:
    """`--src-range` or `--dst-range`."""

    addresses: AddressRange
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class IpRange:
    """`-m iprange`."""

    src: AddressRangeTest | None = None
    dst: AddressRangeTest | None = None


@dataclass(frozen=True, slots=True)
class RandomSample:
    """`-m statistic --mode random`: `probability` of 2**31 packets match."""

    probability: int
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class EveryNth:
    """`-m statistic --mode nth`: one packet of `every`, beginning after `packet` others."""

    every: int
    packet: int = 0
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class MacSource:
    """`-m mac --mac-source`: the six bytes of an Ethernet address."""

    address: bytes
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class Comment:
    """`-m comment --comment TEXT`; matches everything."""

    text: str


Match = (
    TcpUdpPorts | Multiport | IcmpType | ConntrackState | ConntrackTuple | MarkTest | Limit | AddressKind
    | IpRange | RandomSample | EveryNth | MacSource | Comment
)
