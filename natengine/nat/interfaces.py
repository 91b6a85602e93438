"""The host's interfaces as a value, supplied from outside (rtnetlink in the running engine)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from natengine.rules.matches import AddressType
from natengine.rules.model import Uplinks
from natengine.vocab import Interface, Route
from natengine.wire.addr import Prefix

LOOPBACK = Prefix.of_length(127 << 24, 8)
MULTICAST = Prefix.of_length(224 << 24, 4)
LIMITED_BROADCAST = 0xFFFF_FFFF


class InterfaceTable:
    """Every interface at one moment, and the routes; replaced as a whole when anything changes."""

    def __init__(self, interfaces: Iterable[Interface] = (), routes: Iterable[Route] = ()) -> None:
        """Take the interfaces, and the routes of the main table, the better one of two to a prefix first."""
        self._by_index = {each.ifindex: each for each in interfaces}
        self.addresses = frozenset(ip for each in self._by_index.values() for ip in each.addresses)
        self._broadcasts = frozenset(ip for each in self._by_index.values() for ip in each.broadcasts)

        self._routes: dict[int, dict[int, int]] = {}        # by mask, by network: the interface
        for network, mask, ifindex in routes:
            self._routes.setdefault(mask, {}).setdefault(network, ifindex)
        self._masks = sorted(self._routes, reverse=True)    # the longest prefix first

    def __eq__(self, other: object) -> bool:
        """Whether the interfaces are the same: flows do not hang on the routes."""
        return isinstance(other, InterfaceTable) and self._by_index == other._by_index

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[Interface]:
        return iter(self._by_index.values())

    def get(self, ifindex: int) -> Interface | None:
        """Return one interface, or None."""
        return self._by_index.get(ifindex)

    def name(self, ifindex: int) -> str:
        """Return the name, or "" for 0 and for an interface that is gone."""
        interface = self._by_index.get(ifindex)
        return "" if interface is None else interface.name

    def address(self, ifindex: int) -> int | None:
        """Return the primary address of an interface, or None."""
        interface = self._by_index.get(ifindex)
        return interface.addresses[0] if interface is not None and interface.addresses else None

    def owns(self, address: int) -> bool:
        """Say whether a unicast address belongs to the host itself."""
        return address in self.addresses

    def is_local(self, destination: int) -> bool:
        """Say whether a packet to `destination` is for the host: its own, broadcast, multicast, loopback."""
        return (
            destination in self.addresses
            or destination in self._broadcasts
            or destination == LIMITED_BROADCAST
            or MULTICAST.contains(destination)
            or LOOPBACK.contains(destination)
        )

    def kind(self, address: int, name: str = "") -> AddressType:
        """Return the kind of an address as the kernel's routes have it (inet_addr_type(9), `-m addrtype`).

        Args:
            name: Ask this interface's own addresses only; "" for all of them.
        """
        if address == LIMITED_BROADCAST or address >> 24 == 0:
            return AddressType.BROADCAST
        if MULTICAST.contains(address):
            return AddressType.MULTICAST
        if LOOPBACK.contains(address):
            return AddressType.LOCAL if name in ("", "lo") else AddressType.UNICAST
        asked = [each for each in self if name in ("", each.name)]
        if any(address in each.addresses for each in asked):
            return AddressType.LOCAL
        return AddressType.BROADCAST if any(address in each.broadcasts for each in asked) else AddressType.UNICAST

    def way_to(self, destination: int) -> int:
        """Return the index of the interface by which a packet to `destination` goes out.

        0: it is for the host itself, or nobody knows.
        """
        if destination in self.addresses:
            return 0
        for mask in self._masks:
            ifindex = self._routes[mask].get(destination & mask)
            if ifindex is not None:
                return ifindex
        return 0

    def outside_address(self, ifindex: int, source: int) -> int | None:
        """Return the address that MASQUERADE gives a packet from `source` on this interface.

        The interface's primary address, as the kernel takes it; but a packet of the head's own that
        already has one of the interface's addresses keeps it.  None if the interface has none.
        """
        interface = self._by_index.get(ifindex)
        if interface is None or not interface.addresses:
            return None
        return source if source in interface.addresses else interface.addresses[0]


# ── uplinks ─────────────────────────────────────────────────────────────────────────────────────────


def interface_matches(pattern: str, name: str) -> bool:
    """Whether an interface name fits an iptables pattern (`bond0.2`, `bond0.+`)."""
    return name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern


def is_uplink(interface: Interface, uplinks: Uplinks) -> bool:
    """Whether this interface is guarded: a rule names it, or a rule names none and the default route goes out here."""
    if uplinks.any_interface and interface.default_route:
        return True
    return any(interface_matches(pattern, interface.name) for pattern in uplinks.patterns)


def join_uplinks(before: Uplinks, now: Uplinks) -> Uplinks:
    """Return the uplinks of two rule sets together.

    An interface stays an uplink when the last rule that named it is deleted: what would then leave
    over it untranslated is dropped (`Reason.NO_RULE`), where a kernel without rules lets it leak.
    """
    patterns = dict.fromkeys(before.patterns + now.patterns)
    return Uplinks(tuple(patterns), before.any_interface or now.any_interface)
