"""Which ports the head's own sockets use, from /proc/net: no event of the kernel tells of a new one."""

from __future__ import annotations

import re
from pathlib import Path

NET = Path("/proc/thread-self/net")
TABLES = {6: ("tcp", "tcp6"), 17: ("udp", "udp6")}          # by protocol number
# "  0: 00000000:0016 00000000:0000 0A …": the local end; 127.0.0.0/8 is no end that anybody outside reaches
_LOCAL_END = re.compile(r"^\s*\d+: (?![0-9A-F]{6}7F:)(?:[0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) ", re.MULTILINE)


def read_local_ports() -> dict[int, frozenset[int]]:
    """Return the ports that sockets of the current network namespace are bound to, by protocol number."""
    return {
        proto: frozenset(int(port, 16) for table in tables for port in _LOCAL_END.findall(_read(table)))
        for proto, tables in TABLES.items()
    }


def _read(table: str) -> str:
    try:
        return (NET / table).read_text()
    except FileNotFoundError:           # a kernel without IPv6
        return ""
