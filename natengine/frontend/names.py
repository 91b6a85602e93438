"""Numbers that have names: protocols, ICMP types, TCP flags, connection states; and plain numbers.

Sources: IANA protocol numbers as /etc/protocols spells them; ICMP types and codes as iptables names
them (RFC 792, 950, 1122, 1256, 1812); TCP flags in the order of their bits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from natengine.rules.matches import CtStatus, Translated
from natengine.vocab import CtState

HostLookup = Callable[[str], Sequence[str]]             # name -> dotted quads; none: not found
ServiceLookup = Callable[[str, str], int | None]        # (name, "tcp") -> port
HostName = Callable[[str], str | None]                  # dotted quad -> name
ServiceName = Callable[[int, str], str | None]          # (port, "tcp") -> name

MAX_COUNTER = 2**64 - 1

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*")


@dataclass(frozen=True, slots=True)
class Lookups:
    """How names in rules become numbers.  None: names are refused."""

    host: HostLookup | None = None
    service: ServiceLookup | None = None


def parse_number(text: str, last: int) -> int | None:
    """Return a number 0..`last` written in decimal, 0x hexadecimal or 0 octal; None if it is not one."""
    if not _NUMBER.fullmatch(text):
        return None
    base = 16 if text[:2] in ("0x", "0X") else 8 if text[0] == "0" else 10
    value = int(text, base)
    return value if value <= last else None


# --- protocols --------------------------------------------------------------------------------------

PROTOCOL_NAMES = {
    0: "all", 1: "icmp", 2: "igmp", 3: "ggp", 4: "ipencap", 5: "st", 6: "tcp", 8: "egp", 9: "igp",
    12: "pup", 17: "udp", 20: "hmp", 22: "xns-idp", 27: "rdp", 29: "iso-tp4", 33: "dccp", 36: "xtp",
    37: "ddp", 38: "idpr-cmtp", 41: "ipv6", 43: "ipv6-route", 44: "ipv6-frag", 45: "idrp", 46: "rsvp",
    47: "gre", 50: "esp", 51: "ah", 57: "skip", 58: "ipv6-icmp", 59: "ipv6-nonxt", 60: "ipv6-opts",
    73: "rspf", 81: "vmtp", 88: "eigrp", 89: "ospf", 93: "ax.25", 94: "ipip", 97: "etherip", 98: "encap",
    103: "pim", 108: "ipcomp", 112: "vrrp", 115: "l2tp", 124: "isis", 132: "sctp", 133: "fc",
    135: "mobility-header", 136: "udplite", 137: "mpls-in-ip", 138: "manet", 139: "hip", 140: "shim6",
    141: "wesp", 142: "rohc",
}
_PROTOCOL_NUMBERS = {name: number for number, name in PROTOCOL_NAMES.items()}
_PROTOCOL_NUMBERS |= {"ip": 0, "icmpv6": 58, "ipv6-mh": 135, "mh": 135}


def protocol_number(text: str) -> int | None:
    """Return the number of a protocol given by number or by name in any case; None if unknown."""
    number = parse_number(text, 255)
    return _PROTOCOL_NUMBERS.get(text.lower()) if number is None else number


def protocol_name(number: int) -> str:
    """Return a protocol's name, or its number in decimal where it has none."""
    return PROTOCOL_NAMES.get(number, str(number))


# --- ICMP -------------------------------------------------------------------------------------------


class IcmpName(NamedTuple):
    """A name for codes `first`..`last` of one ICMP type; `type` None is any."""

    name: str
    type: int | None
    first: int = 0
    last: int = 255


def _codes(icmp_type: int, names: str, first: int = 0) -> list[IcmpName]:
    return [IcmpName(name, icmp_type, code, code) for code, name in enumerate(names.split(), first)]


# In iptables' order: it decides which of two names for one thing is printed, and which are called ambiguous.
ICMP_NAMES: tuple[IcmpName, ...] = (
    IcmpName("any", None), IcmpName("echo-reply", 0), IcmpName("pong", 0),
    IcmpName("destination-unreachable", 3),
    *_codes(3, "network-unreachable host-unreachable protocol-unreachable port-unreachable "
               "fragmentation-needed source-route-failed network-unknown host-unknown"),
    *_codes(3, "network-prohibited host-prohibited TOS-network-unreachable TOS-host-unreachable "
               "communication-prohibited host-precedence-violation precedence-cutoff", first=9),
    IcmpName("source-quench", 4), IcmpName("redirect", 5),
    *_codes(5, "network-redirect host-redirect TOS-network-redirect TOS-host-redirect"),
    IcmpName("echo-request", 8), IcmpName("ping", 8),
    IcmpName("router-advertisement", 9), IcmpName("router-solicitation", 10),
    IcmpName("time-exceeded", 11), IcmpName("ttl-exceeded", 11),
    *_codes(11, "ttl-zero-during-transit ttl-zero-during-reassembly"),
    IcmpName("parameter-problem", 12), *_codes(12, "ip-header-bad required-option-missing"),
    IcmpName("timestamp-request", 13), IcmpName("timestamp-reply", 14),
    IcmpName("address-mask-request", 17), IcmpName("address-mask-reply", 18),
)

# --- TCP flags and connection states ----------------------------------------------------------------

TCP_FLAGS = {"FIN": 0x01, "SYN": 0x02, "RST": 0x04, "PSH": 0x08, "ACK": 0x10, "URG": 0x20}
ALL_TCP_FLAGS = 0x3F
SYN_MASK = TCP_FLAGS["SYN"] | TCP_FLAGS["RST"] | TCP_FLAGS["ACK"] | TCP_FLAGS["FIN"]


def tcp_flag_names(bits: int) -> str:
    """Return the names of the flags in `bits`, in the order of their bits, or NONE."""
    return ",".join(name for name, bit in TCP_FLAGS.items() if bits & bit) or "NONE"


# In the order iptables prints them.
STATES = (CtState.INVALID, CtState.NEW, CtState.RELATED, CtState.ESTABLISHED, CtState.UNTRACKED)


def state_names(states: CtState, translated: Translated) -> str:
    """Return the names of states, as iptables orders them."""
    named = [*(state for state in STATES if state in states), *(each for each in Translated if each in translated)]
    return ",".join(str(each.name) for each in named)


CT_STATUS = {"NONE": CtStatus(0), **CtStatus.__members__}


def status_names(status: CtStatus) -> str:
    """Return the names of marks of a flow's life, or NONE."""
    return ",".join(str(each.name) for each in CtStatus if each in status) or "NONE"


# --- LOG and limit ----------------------------------------------------------------------------------

# as iptables reads them (it writes others: see `LOG_LEVEL_NAMES`)
LOG_LEVELS = {
    "emerg": 0, "panic": 0, "alert": 1, "crit": 2, "error": 3, "warning": 4, "notice": 5, "info": 6, "debug": 7,
}
LOG_LEVEL_NAMES = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")

# what a rate is about, in 1/10000 s
LIMIT_UNITS = (("second", 10_000), ("minute", 600_000), ("hour", 36_000_000), ("day", 864_000_000))


def rate_text(interval: int) -> str:
    """Return the rate with one packet every `interval` (1/10000 s), in the unit that iptables takes for it."""
    names = ("day", "hour", "min", "sec")
    lengths = [length for _, length in reversed(LIMIT_UNITS)]
    chosen = 0
    for unit in range(1, len(names)):
        if interval > lengths[unit] or lengths[unit] // interval < lengths[unit] % interval:
            break
        chosen = unit
    return f"{lengths[chosen] // interval}/{names[chosen]}"
