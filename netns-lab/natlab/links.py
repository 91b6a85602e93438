"""The plan turned into interfaces, by rtnetlink.

Every veth pair is made with both ends in their final namespaces under their final names
(IFLA_NET_NS_FD), so nothing ever appears in the root namespace and labs cannot collide.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from . import interrupts
from .errors import LabError
from .node import Node
from .patience import PATIENCE
from .plan import (
    BOND,
    BOND_CABLES,
    BOND_LEGS,
    BRIDGE,
    HEAD_INTERFACES,
    HOST_INTERFACES,
    INTERFACES,
    TRUNK,
    VETH_CABLES,
    Cable,
    Interface,
    LinkKind,
)

ACTIVE_BACKUP = 1          # <linux/if_bonding.h> BOND_MODE_ACTIVEBACKUP
LACP = 4                   # BOND_MODE_8023AD
LACP_RATE_FAST = 1         # a LACPDU every second, not every 30 s
HASH_LAYER_3_4 = 1         # BOND_XMIT_POLICY_LAYER34: flows spread over the legs
BOND_MIIMON_MS = 100       # how often the bond looks at the carrier of its legs
LOOPBACK_INDEX = 1         # in every namespace
CARRIER_DEADLINE_S = 10.0 * PATIENCE
POLL_INTERVAL_S = 0.005
PVID_UNTAGGED = ["pvid", "untagged"]


class Builder:
    """Makes the links of one lab.  Removing the namespaces removes them all."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self._nodes = nodes
        self._sockets = contextlib.ExitStack()
        self._netlink: dict[str, IPRoute] = {}

    def __enter__(self) -> Builder:
        with contextlib.ExitStack() as stack:
            for name, node in self._nodes.items():
                with node.enter():   # a netlink socket belongs to the namespace it was made in
                    self._netlink[name] = stack.enter_context(contextlib.closing(IPRoute()))
            self._sockets = stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._sockets.close()

    def supports_bond_vlan(self) -> bool:
        """Ask the kernel, by making a bond, a VLAN and a VLAN-aware bridge and deleting them again."""
        _load_bonding()
        head, switch = self._netlink["head"], self._netlink["switch"]
        with contextlib.ExitStack() as trials:
            try:
                trials.enter_context(_trial(switch, "trial", kind="bridge", br_vlan_filtering=1))
                bond = trials.enter_context(_trial(head, "trial", kind="bond", bond_mode=ACTIVE_BACKUP))
                trials.enter_context(_trial(head, "trial.2", kind="vlan", vlan_id=2, link=bond))
            except NetlinkError as error:
                if error.code == errno.EOPNOTSUPP:   # not built into this kernel, and no module for it
                    return False
                raise LabError(f"the kernel refused a trial link: {error}") from error
        return True

    def build(self, kind: LinkKind) -> None:
        """Make every interface of the plan, give it its address and set it up.

        Raises:
            LabError: The kernel refuses a step.
        """
        try:
            for netlink in self._netlink.values():
                netlink.link("set", index=LOOPBACK_INDEX, state="up")
            if kind is LinkKind.VETH:
                self._make_veth()
            else:
                self._make_bond_vlan(lacp=kind is LinkKind.LACP_VLAN)
            for interface in INTERFACES:
                self._configure(interface)
        except NetlinkError as error:
            raise LabError(f"the kernel refused a {kind} link: {error}") from error

    def wait_for_carrier(self) -> None:
        """Return when every interface of the plan is operational.

        Raises:
            LabError: One is not, before the deadline.
        """
        deadline = time.monotonic() + CARRIER_DEADLINE_S
        waiting = list(INTERFACES)
        while waiting := [interface for interface in waiting if not self._is_operational(interface)]:
            if time.monotonic() > deadline:
                names = ", ".join(f"{interface.node} {interface.name}" for interface in waiting)
                raise LabError(f"no carrier after {CARRIER_DEADLINE_S:.0f} s: {names}")
            interrupts.check()
            time.sleep(POLL_INTERVAL_S)

    def _make_veth(self) -> None:
        switch = self._netlink["switch"]
        bridge = _add(switch, BRIDGE, kind="bridge")
        for cable in VETH_CABLES:
            self._lay(cable)
            if cable.peer_node == "switch":
                port = _index(switch, cable.peer_interface)
                switch.link("set", index=port, master=bridge, state="up")
        switch.link("set", index=bridge, state="up")

    def _make_bond_vlan(self, *, lacp: bool) -> None:
        switch, head = self._netlink["switch"], self._netlink["head"]
        # Default PVID 0: a port belongs to the VLANs named below and to no other.
        bridge = _add(switch, BRIDGE, kind="bridge", br_vlan_filtering=1, br_vlan_default_pvid=0)
        bond = _add_bond(head, BOND, lacp=lacp)
        trunk = _add_bond(switch, TRUNK, lacp=True) if lacp else None
        access_vlan = {interface.node: interface.vlan for interface in HOST_INTERFACES}
        for cable in BOND_CABLES:
            self._lay(cable)
            port = _index(switch, cable.peer_interface)
            if cable in BOND_LEGS:
                # A leg must be down when it joins; the bond sets it up.
                head.link("set", index=_index(head, cable.interface), master=bond)
                if trunk is None:
                    self._make_trunk_port(port, bridge)
                else:
                    switch.link("set", index=port, master=trunk)
            else:
                switch.link("set", index=port, master=bridge, state="up")
                vlan = access_vlan[cable.node]
                switch.vlan_filter("add", index=port, vlan_info={"vid": vlan, "flags": PVID_UNTAGGED})
        if trunk is not None:
            self._make_trunk_port(trunk, bridge)
        switch.link("set", index=bridge, state="up")
        head.link("set", index=bond, state="up")
        for interface in HEAD_INTERFACES:
            _add(head, interface.name, kind="vlan", link=bond, vlan_id=interface.vlan)

    def _make_trunk_port(self, port: int, bridge: int) -> None:
        switch = self._netlink["switch"]
        switch.link("set", index=port, master=bridge, state="up")
        for interface in HEAD_INTERFACES:
            switch.vlan_filter("add", index=port, vlan_info={"vid": interface.vlan})

    def _lay(self, cable: Cable) -> None:
        peer_netns = os.open(self._nodes[cable.peer_node].netns_path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            peer = {"ifname": cable.peer_interface, "net_ns_fd": peer_netns}
            self._netlink[cable.node].link("add", ifname=cable.interface, kind="veth", peer=peer)
        finally:
            os.close(peer_netns)

    def _configure(self, interface: Interface) -> None:
        netlink = self._netlink[interface.node]
        index = _index(netlink, interface.name)
        netlink.addr("add", index=index, address=interface.address, prefixlen=interface.prefix_len)
        netlink.link("set", index=index, state="up")
        if interface.gateway is not None:
            netlink.route("add", dst="default", gateway=interface.gateway, oif=index)

    def _is_operational(self, interface: Interface) -> bool:
        netlink = self._netlink[interface.node]
        (link,) = netlink.get_links(ifname=interface.name)
        return bool(link.get_attr("IFLA_OPERSTATE") == "UP")


def describe(node: Node) -> dict[str, dict[str, Any]]:
    """The interfaces of a node as the kernel has them now, but for the loopback.

    Returns:
        By interface name: {"kind": …, "addresses": ["10.1.0.1/24"], "state": "UP"}, where kind is
        "bond/vlan" or "lacp/vlan" for a VLAN interface on a bond and the kernel's own word for any other.
    """
    with node.enter(), contextlib.closing(IPRoute()) as netlink:
        links = {link["index"]: link for link in netlink.get_links()}
        addresses: dict[int, list[str]] = {}
        for item in netlink.get_addr(family=2):
            text = f"{item.get_attr('IFA_ADDRESS')}/{item['prefixlen']}"
            addresses.setdefault(item["index"], []).append(text)
    found = {}
    for index, link in links.items():
        kind = _kind(link)
        lower = links.get(link.get_attr("IFLA_LINK"))
        if kind == "vlan" and lower is not None and _kind(lower) == "bond":
            kind = (LinkKind.LACP_VLAN if _bond_mode(lower) == LACP else LinkKind.BOND_VLAN).value
        if index != LOOPBACK_INDEX:
            found[link.get_attr("IFLA_IFNAME")] = {
                "kind": kind,
                "addresses": addresses.get(index, []),
                "state": link.get_attr("IFLA_OPERSTATE"),
            }
    return found


def _kind(link: Any) -> str | None:
    info = link.get_attr("IFLA_LINKINFO")
    return info.get_attr("IFLA_INFO_KIND") if info is not None else None


def _bond_mode(link: Any) -> int | None:
    return link.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA").get_attr("IFLA_BOND_MODE")


def _add_bond(netlink: IPRoute, name: str, *, lacp: bool) -> int:
    if not lacp:
        return _add(netlink, name, kind="bond", bond_mode=ACTIVE_BACKUP, bond_miimon=BOND_MIIMON_MS)
    return _add(
        netlink, name, kind="bond", bond_mode=LACP, bond_miimon=BOND_MIIMON_MS,
        bond_ad_lacp_rate=LACP_RATE_FAST, bond_xmit_hash_policy=HASH_LAYER_3_4,
    )


def _add(netlink: IPRoute, name: str, **attributes: Any) -> int:
    netlink.link("add", ifname=name, **attributes)
    return _index(netlink, name)


def _index(netlink: IPRoute, name: str) -> int:
    return int(netlink.link_lookup(ifname=name)[0])


@contextlib.contextmanager
def _trial(netlink: IPRoute, name: str, **attributes: Any) -> Iterator[int]:
    index = _add(netlink, name, **attributes)
    try:
        yield index
    finally:
        netlink.link("del", index=index)


def _load_bonding() -> None:
    """Load the module before the kernel does it by itself.

    Loaded without max_bonds=0 it puts a bond0 of its own into the root namespace, which is not ours to do.
    """
    if not Path("/sys/module/bonding").exists() and shutil.which("modprobe"):
        subprocess.run(["modprobe", "--quiet", "bonding", "max_bonds=0"], check=False, capture_output=True)
