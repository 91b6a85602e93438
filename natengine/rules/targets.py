"""What a rule does with a packet that it matches, as frozen values: one class for each target.

    TERMINATING     the walk of the table ends, and this is the answer
    PASSING         something is noted, and the next rule is asked
    Jump, Goto      another chain is asked; after a Goto, its end is the end of this chain, too
    Return          back to the chain that jumped here; in a built-in chain that means the policy
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from natengine.rules.matches import ALL_BITS, AddressRange, PortRange
from natengine.wire.addr import Prefix


@dataclass(frozen=True, slots=True)
class Accept:
    """End the walk of this table; the packet goes on."""


@dataclass(frozen=True, slots=True)
class Drop:
    """End the walk; the packet is dropped."""


class RejectWith(enum.StrEnum):
    """How a refused sender is told: an ICMP error (RFC 792, 1812), or a TCP reset."""

    NET_UNREACHABLE = "icmp-net-unreachable"
    HOST_UNREACHABLE = "icmp-host-unreachable"
    PROTO_UNREACHABLE = "icmp-proto-unreachable"
    PORT_UNREACHABLE = "icmp-port-unreachable"
    NET_PROHIBITED = "icmp-net-prohibited"
    HOST_PROHIBITED = "icmp-host-prohibited"
    TCP_RESET = "tcp-reset"
    ADMIN_PROHIBITED = "icmp-admin-prohibited"


@dataclass(frozen=True, slots=True)
class Reject:
    """End the walk; the packet is dropped and its sender is told."""

    how: RejectWith = RejectWith.PORT_UNREACHABLE


@dataclass(frozen=True, slots=True)
class Masquerade:
    """Give the flow the outgoing interface's address.

    Attributes:
        to_ports: Outside ports to choose from; None for the kernel's rule (keep the port if possible).
        random: `--random`.
        random_fully: `--random-fully`.
    """

    to_ports: PortRange | None = None
    random: bool = False
    random_fully: bool = False


@dataclass(frozen=True, slots=True)
class Snat:
    """Give the flow a source out of `addresses` and `ports`; None leaves that part as it is."""

    addresses: AddressRange | None = None
    ports: PortRange | None = None
    random: bool = False
    random_fully: bool = False
    persistent: bool = False


@dataclass(frozen=True, slots=True)
class Dnat:
    """Give the flow a destination out of `addresses` and `ports`; None leaves that part as it is.

    Attributes:
        base_port: `--to-destination ADDRESS:PORTS/BASE`: a packet for BASE gets the first of the ports,
            one for BASE + 1 the second.
    """

    addresses: AddressRange | None = None
    ports: PortRange | None = None
    base_port: int | None = None
    random: bool = False
    persistent: bool = False


@dataclass(frozen=True, slots=True)
class Redirect:
    """Give the flow the address of the interface that it came in by as its destination."""

    to_ports: PortRange | None = None
    random: bool = False


@dataclass(frozen=True, slots=True)
class Netmap:
    """Exchange the network part of the destination (PREROUTING, OUTPUT) or source, 1:1."""

    to: Prefix


@dataclass(frozen=True, slots=True)
class Log:
    """Write a line to the log.

    Attributes:
        level: As syslog(3) has them, 0 (emergency) to 7 (debug).
    """

    level: int = 4
    prefix: str = ""
    tcp_sequence: bool = False
    tcp_options: bool = False
    ip_options: bool = False
    uid: bool = False
    mac_decode: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """The packet's mark becomes `mark & ~mask ^ value`: that is all of --set-mark, --or-mark, …."""

    value: int
    mask: int = ALL_BITS

    def applied(self, mark: int) -> int:
        """Return what a mark becomes."""
        return (mark & ~self.mask) ^ self.value


class ConnmarkMode(enum.StrEnum):
    """What CONNMARK does; the value is its option."""

    SET = "set-xmark"
    SAVE = "save-mark"
    RESTORE = "restore-mark"


@dataclass(frozen=True, slots=True)
class Connmark:
    """Set the flow's mark, or copy it from the packet's (SAVE) or to it (RESTORE)."""

    mode: ConnmarkMode
    value: int = 0
    ct_mask: int = ALL_BITS
    nf_mask: int = ALL_BITS

    def applied(self, mark: int, value: int) -> int:
        """Return what a flow's mark becomes by a value: the target's own, or what it saves."""
        return (mark & ~self.ct_mask) ^ value


@dataclass(frozen=True, slots=True)
class Jump:
    """Ask a user-defined chain, and go on here when it says nothing."""

    chain: str


@dataclass(frozen=True, slots=True)
class Goto:
    """Ask a user-defined chain in the place of the rest of this one."""

    chain: str


@dataclass(frozen=True, slots=True)
class Return:
    """Leave this chain; from a built-in one that means its policy."""


ACCEPT = Accept()

Policy = Accept | Drop
Terminating = Accept | Drop | Reject | Masquerade | Snat | Dnat | Redirect | Netmap
Passing = Log | Mark | Connmark
Target = Terminating | Passing | Jump | Goto | Return
