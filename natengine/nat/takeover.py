"""Flows that an earlier engine has left in the table: what hangs on them is worked out from the flows themselves.

The outside ports and who has them, how many flows each host has begun, who talks to whom.  Not known any
more, because no flow tells: which ports were resting, which host was the owner where several share a
port (the first one found is), and marks (the rules say them anew).
"""

from __future__ import annotations

from natengine.fastpath import FastPath
from natengine.flow.records import FlowSpec
from natengine.nat.slowpath import SlowPath


def take_over(fast: FastPath, slow: SlowPath, capacity: int, addresses: frozenset[int], now_ns: int) -> frozenset[int]:
    """Give every flow of the table its place.

    Args:
        capacity: Of the table.
        addresses: Those that the head has.

    Returns:
        The outside addresses of flows that the head no longer has.
    """
    vanished, from_outside = set(), []
    for flow_id in range(capacity) if len(fast) else ():
        info = fast.info(flow_id)
        if info is None:
            continue
        spec = info.spec
        if spec.outside_ip not in addresses and not _is_exempt(spec):
            vanished.add(spec.outside_ip)
        slow.policy.mark_anew(spec)
        if spec.from_inside:
            slow.adopt(spec, now_ns)
        else:
            from_outside.append(spec)       # they come to mappings that others have made
    for spec in from_outside:
        slow.adopt(spec, now_ns)
    return frozenset(vanished)


def _is_exempt(spec: FlowSpec) -> bool:
    """Whether it is forwarded as it is, so that its outside address is the worker's own."""
    return spec.inside_ifindex != 0 and spec.inside_ip == spec.outside_ip
