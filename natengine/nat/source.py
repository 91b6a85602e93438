"""What the targets of nat POSTROUTING make of a source: MASQUERADE, SNAT, NETMAP."""

from __future__ import annotations

from typing import NamedTuple

from natengine.rules.matches import AddressRange
from natengine.rules.targets import Masquerade, Netmap, Snat

SourceTarget = Masquerade | Snat | Netmap


class SourceNat(NamedTuple):
    """How the source of a new flow is to be translated."""

    outside_ip: int
    keep_port: bool = True
    ports: tuple[int, int] | None = None
    by_rule: bool = False               # 1:1: the rule has chosen the port, too


def source_nat(target: SourceTarget, source: int, port: int, own: int | None) -> SourceNat | None:
    """Return what a target means for a packet.

    Args:
        source: Its address.
        port: Its port, or ICMP identifier.
        own: What MASQUERADE gives it: an address of the interface that it leaves by; None if there is none.

    Returns:
        None where MASQUERADE has no address to give.
    """
    match target:
        case Masquerade():
            return None if own is None else with_ports_of(target, own)
        case Snat(addresses):
            return with_ports_of(target, source if addresses is None else pick_address(addresses, source))
        case Netmap(to):
            return SourceNat(to.network | source & ~to.mask, True, (port, port), True)


def with_ports_of(target: Masquerade | Snat, outside_ip: int) -> SourceNat:
    """Return the translation to this address with the ports that a target says."""
    wanted = target.to_ports if isinstance(target, Masquerade) else target.ports
    ports = None if wanted is None else (wanted.first, wanted.last)
    return SourceNat(outside_ip, not (target.random or target.random_fully), ports)


def pick_address(addresses: AddressRange, host: int) -> int:
    """Return one of several addresses, for one host always the same (RFC 4787 REQ-2).

    The kernel looks at the destination, too, unless the rule says --persistent; then an inside endpoint
    would have several outside addresses, and peers that compare what they see would not find each other.
    """
    count = addresses.last - addresses.first + 1
    scattered = host * 0x9E37_79B1 & 0xFFFF_FFFF        # neighbours do not stay neighbours
    return addresses.first + (scattered * count >> 32)


def is_same_for_all(target: object) -> bool:
    """Whether a target translates all sources to one address."""
    if isinstance(target, Snat):
        return target.addresses is not None and target.addresses.first == target.addresses.last
    return isinstance(target, Masquerade)
