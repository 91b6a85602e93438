"""The topology, as data.  Nothing here touches the machine.

        worker1 10.1.0.11 ──┐                              ┌── inet2 203.0.113.2
                            ├─ switch ─ bond0.def    bond0.2
        worker2 10.1.0.12 ──┘          10.1.0.1  head  203.0.113.1      (default route: 203.0.113.2)
                                                     bond0.3
                                                  198.51.100.1
                                                           └── inet3 198.51.100.2

Rule 1: the head's interface names and addresses are the same whatever they are made of.
Rule 2: inet2 and inet3 know only their own network.  A packet that leaves an uplink with an inside
        source address can therefore never be answered: a missing translation shows as a timeout.

The head's three interfaces are made of one of three things (`LinkKind`):

    BOND_VLAN   VLANs 1000 (def), 2 and 3 on bond0, an active-backup bond of two veth legs that end
                at a VLAN-aware bridge in `switch`; every other node is an untagged port there.
    LACP_VLAN   the same on an 802.3ad bond, whose other end is such a bond in `switch`.
    VETH        a veth each, for kernels without bonding or 802.1Q: bond0.def ends at a plain bridge
                in `switch` with the workers, the uplinks end directly at inet2 and inet3.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

NODES = ("switch", "head", "worker1", "worker2", "inet2", "inet3")
BRIDGE = "br0"   # in the switch
BOND = "bond0"   # on the head
TRUNK = "head"   # in the switch, what the legs of an 802.3ad bond are together


class LinkKind(enum.StrEnum):
    """What the head's three interfaces are made of."""

    BOND_VLAN = "bond/vlan"
    LACP_VLAN = "lacp/vlan"
    VETH = "veth"


@dataclass(frozen=True)
class Interface:
    """An interface that has an address.

    Attributes:
        vlan: The VLAN that connects it to the others of its network, where there are VLANs.
        gateway: Next hop of the node's default route, if it has one.
    """

    node: str
    name: str
    address: str
    prefix_len: int
    vlan: int
    gateway: str | None = None


# 802.1Q has no name for "default"; 1000 stands in for the inside network, away from 1, which
# a Linux bridge gives to every port by itself.
INSIDE_VLAN = 1000

INTERFACES = (
    Interface("head", "bond0.def", "10.1.0.1", 24, INSIDE_VLAN),
    Interface("head", "bond0.2", "203.0.113.1", 24, 2, gateway="203.0.113.2"),
    Interface("head", "bond0.3", "198.51.100.1", 24, 3),
    Interface("worker1", "eth0", "10.1.0.11", 24, INSIDE_VLAN, gateway="10.1.0.1"),
    Interface("worker2", "eth0", "10.1.0.12", 24, INSIDE_VLAN, gateway="10.1.0.1"),
    Interface("inet2", "eth0", "203.0.113.2", 24, 2),
    Interface("inet3", "eth0", "198.51.100.2", 24, 3),
)
HEAD_INTERFACES = tuple(interface for interface in INTERFACES if interface.node == "head")
HOST_INTERFACES = tuple(interface for interface in INTERFACES if interface.node != "head")


@dataclass(frozen=True)
class Cable:
    """One veth pair: (node, interface) at either end."""

    node: str
    interface: str
    peer_node: str
    peer_interface: str


VETH_CABLES = (
    Cable("head", "bond0.def", "switch", "head"),
    Cable("worker1", "eth0", "switch", "worker1"),
    Cable("worker2", "eth0", "switch", "worker2"),
    Cable("head", "bond0.2", "inet2", "eth0"),
    Cable("head", "bond0.3", "inet3", "eth0"),
)
BOND_LEGS = (
    Cable("head", "leg1", "switch", "head-leg1"),
    Cable("head", "leg2", "switch", "head-leg2"),
)
BOND_CABLES = BOND_LEGS + tuple(
    Cable(interface.node, interface.name, "switch", interface.node) for interface in HOST_INTERFACES
)

HTTP_PORT = 80
ECHO_PORT = 7
IPERF_PORT = 5201
SERVER_NODES = ("inet2", "inet3")
