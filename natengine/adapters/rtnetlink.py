"""Interfaces, their addresses and default routes, read live from the kernel through pyroute2."""

from __future__ import annotations

import select
from collections import defaultdict

from pyroute2 import IPRoute
from pyroute2.netlink.rtnl import RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_LINK

from natengine.vocab import Interface, Route
from natengine.wire.addr import Prefix, mask_of_length, parse_ipv4

AF_INET = 2
IFA_F_SECONDARY = 0x01              # linux/if_addr.h
IFF_UP = 0x1                        # linux/if.h
MAIN_TABLE = 254                    # linux/rtnetlink.h, RT_TABLE_MAIN
READS_AT_MOST = 5                   # while something goes on changing


class RouteSocket:
    """Reads the interfaces of the current network namespace and says when to read them again."""

    def __init__(self) -> None:
        # Two sockets: a dump on the one that gets the events would swallow those that come meanwhile.
        self._dumps = IPRoute()
        self._events = IPRoute()
        self._events.bind(groups=RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE)
        self._poll = select.poll()
        self._poll.register(self._events.fileno(), select.POLLIN)

    def fileno(self) -> int:
        """Return the descriptor that is readable when something has changed."""
        return int(self._events.fileno())

    def drain(self) -> None:
        """Take all waiting events; `read` says what they add up to."""
        while self._poll.poll(0):
            try:
                self._events.get()
            except OSError:             # ENOBUFS: some were lost; it makes no difference to a full read
                continue

    def read(self) -> tuple[list[Interface], list[Route]]:
        """Return every interface as it is now, primary addresses first, and the routes of the main table.

        What changes while it is listed can make an address be missing that is there (NLM_F_DUMP_INTR), and its flows
        would end: so it is read once more.
        """
        for _ in range(READS_AT_MOST):
            found = self._read_once()
            if not self._poll.poll(0):
                break
            self.drain()
        return found

    def _read_once(self) -> tuple[list[Interface], list[Route]]:
        addresses: dict[int, list[int]] = defaultdict(list)
        secondary: dict[int, list[int]] = defaultdict(list)
        broadcasts: dict[int, list[int]] = defaultdict(list)
        networks: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for message in self._dumps.get_addr(family=AF_INET):
            ifindex = message["index"]
            local = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            flags = message.get_attr("IFA_FLAGS") or message["flags"]
            (secondary if flags & IFA_F_SECONDARY else addresses)[ifindex].append(parse_ipv4(local))
            # of a point-to-point link it is the peer, with its prefix length; else the interface's own
            prefix = Prefix.of_length(parse_ipv4(message.get_attr("IFA_ADDRESS") or local), message["prefixlen"])
            networks[ifindex].append((prefix.network, prefix.mask))
            broadcast = message.get_attr("IFA_BROADCAST")
            if broadcast:
                broadcasts[ifindex].append(parse_ipv4(broadcast))
        routes = self._read_routes()
        default = {route.ifindex for route in routes if route.mask == 0}
        interfaces = [
            Interface(
                link["index"], link.get_attr("IFLA_IFNAME"),
                tuple(addresses[link["index"]] + secondary[link["index"]]),
                tuple(broadcasts[link["index"]]), link["index"] in default, bool(link["flags"] & IFF_UP),
                tuple(networks[link["index"]]),
                link.get_attr("IFLA_MTU"),
            )
            for link in self._dumps.get_links()
        ]
        return interfaces, routes

    def _read_routes(self) -> list[Route]:
        found = []
        for message in self._dumps.get_routes(family=AF_INET, table=MAIN_TABLE):
            hops = message.get_attr("RTA_MULTIPATH")
            ifindex = message.get_attr("RTA_OIF") or (hops[0]["oif"] if hops else 0)
            if ifindex:                 # else nobody gets there: `unreachable`, `blackhole`
                network = parse_ipv4(message.get_attr("RTA_DST") or "0.0.0.0")
                found.append(Route(network, mask_of_length(message["dst_len"]), ifindex))
        return found

    def close(self) -> None:
        """Close both sockets."""
        self._events.close()
        self._dumps.close()
