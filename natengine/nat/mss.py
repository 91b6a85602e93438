"""Which uplinks limit the segments that a connection may agree upon, and to what.

Where path-MTU discovery fails (somebody drops ICMP 3/4), a connection over a link with a small MTU hangs as soon
as it has something to say.  A SYN that offers no more than fits avoids that; both sides' SYNs pass here.

As iptables' `-j TCPMSS --clamp-mss-to-pmtu` in mangle POSTROUTING and PREROUTING, with the MTU of the uplink for
that of the path.
"""

from __future__ import annotations

from natengine.nat.interfaces import InterfaceTable, interface_matches

HEADERS = 20 + 20                   # of IP and TCP: what RFC 9293 3.7.1 does not count
LARGEST = 0xFFFF


def mss_limits(patterns: tuple[str, ...], interfaces: InterfaceTable) -> dict[int, int]:
    """Return the largest segment by the ifindex of each interface that a pattern (`ppp+`) names."""
    return {
        each.ifindex: min(each.mtu - HEADERS, LARGEST)
        for each in interfaces
        if each.mtu > HEADERS and any(interface_matches(pattern, each.name) for pattern in patterns)
    }
