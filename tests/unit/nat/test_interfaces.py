"""`InterfaceTable`: whose addresses are whose."""

from __future__ import annotations

import pytest
from support.engines import BOND_2, BOND_3, BOND_DEF, INTERFACES
from support.packets import address

from natengine.nat.interfaces import InterfaceTable
from natengine.rules.matches import AddressType
from natengine.vocab import Interface

TABLE = InterfaceTable(INTERFACES)


@pytest.mark.parametrize(
    ("destination", "local"),
    [
        ("10.1.0.1", True), ("203.0.113.1", True), ("198.51.100.1", True),
        ("10.1.0.255", True), ("203.0.113.255", True), ("255.255.255.255", True),
        ("224.0.0.1", True), ("239.255.255.255", True), ("127.0.0.1", True), ("127.255.255.254", True),
        ("10.1.0.11", False), ("203.0.113.2", False), ("223.255.255.255", False), ("240.0.0.1", False),
        ("126.255.255.255", False), ("128.0.0.0", False), ("0.0.0.0", False),
    ],
)
def test_is_local(destination: str, local: bool) -> None:
    """The host's own addresses, broadcasts, multicast and loopback."""
    assert TABLE.is_local(address(destination)) is local


def test_owns_unicast_only() -> None:
    """A broadcast address is local, but it is nobody's own."""
    assert TABLE.owns(address("203.0.113.1"))
    assert not TABLE.owns(address("203.0.113.255"))
    assert not TABLE.owns(address("224.0.0.1"))


def test_names() -> None:
    """ "" for no interface and for one that is gone."""
    assert [TABLE.name(i) for i in (BOND_DEF, BOND_2, 0, 99)] == ["bond0.def", "bond0.2", "", ""]
    assert TABLE.get(BOND_3) == INTERFACES[3]
    assert TABLE.get(99) is None
    assert list(TABLE) == list(INTERFACES)
    assert list(InterfaceTable()) == []


def test_outside_address() -> None:
    """The primary one, unless the source already is one of the interface's."""
    first, second, worker = address("203.0.113.1"), address("203.0.113.50"), address("10.1.0.11")
    table = InterfaceTable([Interface(BOND_2, "bond0.2", (first, second)), Interface(BOND_3, "bond0.3")])
    assert table.outside_address(BOND_2, worker) == first
    assert table.outside_address(BOND_2, second) == second
    assert table.outside_address(BOND_3, worker) is None
    assert table.outside_address(99, worker) is None


@pytest.mark.parametrize(("text", "name", "kind"), [
    ("203.0.113.1", "", AddressType.LOCAL), ("127.9.9.9", "", AddressType.LOCAL),
    ("203.0.113.2", "", AddressType.UNICAST),
    ("203.0.113.255", "", AddressType.BROADCAST), ("255.255.255.255", "", AddressType.BROADCAST),
    ("0.0.0.0", "", AddressType.BROADCAST), ("224.0.0.1", "", AddressType.MULTICAST),
    # asked about one interface only
    ("203.0.113.1", "bond0.2", AddressType.LOCAL), ("203.0.113.1", "bond0.3", AddressType.UNICAST),
    ("203.0.113.255", "bond0.3", AddressType.UNICAST), ("127.0.0.1", "bond0.3", AddressType.UNICAST),
])
def test_kinds_of_address(text: str, name: str, kind: AddressType) -> None:
    """As the kernel's inet_addr_type() has them."""
    assert TABLE.kind(address(text), name) == kind
