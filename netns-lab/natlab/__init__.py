"""The NAT lab: a cluster head with two uplinks, two workers and two internet hosts, in network namespaces."""

from __future__ import annotations

from .capture import Capture
from .errors import CommandFailed, LabError
from .lab import DEFAULT_PREFIX, Lab, unique_prefix
from .node import Node
from .plan import NODES, LinkKind

__all__ = [
    "DEFAULT_PREFIX",
    "NODES",
    "Capture",
    "CommandFailed",
    "Lab",
    "LabError",
    "LinkKind",
    "Node",
    "unique_prefix",
]
