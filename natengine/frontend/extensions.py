"""The matches (`-m`) and targets (`-j`) that the language has: their names, and who reads their options.

A new one is a class in one of the readers' modules and a line here (and one each in `match_printers.py`
or `target_printers.py`, and `rules/predicates.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from natengine.frontend.conntrack_readers import ConntrackReader, StateReader
from natengine.frontend.match_readers import (
    AddrtypeReader,
    CommentReader,
    IpRangeReader,
    LimitReader,
    MacReader,
    MarkMatchReader,
    StatisticReader,
)
from natengine.frontend.names import Lookups
from natengine.frontend.protocol_readers import IcmpReader, MultiportReader, TcpReader, UdpReader
from natengine.frontend.readers import Reader
from natengine.frontend.target_readers import (
    ConnmarkReader,
    DnatReader,
    LogReader,
    MarkReader,
    MasqueradeReader,
    NetmapReader,
    RedirectReader,
    RejectReader,
    SnatReader,
    StandardReader,
)
from natengine.rules.matches import Match
from natengine.rules.targets import Accept, Drop, Return, Target

MATCHES: Mapping[str, Callable[[str, Lookups], Reader[Match]]] = MappingProxyType({
    "tcp": TcpReader,
    "udp": UdpReader,
    "icmp": IcmpReader,
    "multiport": MultiportReader,
    "conntrack": ConntrackReader,
    "state": StateReader,
    "mark": MarkMatchReader,
    "connmark": MarkMatchReader,
    "limit": LimitReader,
    "addrtype": AddrtypeReader,
    "iprange": IpRangeReader,
    "statistic": StatisticReader,
    "mac": MacReader,
    "comment": CommentReader,
})

TARGETS: Mapping[str, Callable[[str, Lookups], Reader[Target]]] = MappingProxyType({
    "ACCEPT": partial(StandardReader, target=Accept()),
    "DROP": partial(StandardReader, target=Drop()),
    "RETURN": partial(StandardReader, target=Return()),
    "MASQUERADE": MasqueradeReader,
    "SNAT": SnatReader,
    "DNAT": DnatReader,
    "REDIRECT": RedirectReader,
    "NETMAP": NetmapReader,
    "REJECT": RejectReader,
    "LOG": LogReader,
    "MARK": MarkReader,
    "CONNMARK": ConnmarkReader,
})

# What iptables has and natengine does not, so that the message can say so, and what to write instead.
MISSING_TARGETS = frozenset({
    "AUDIT", "CHECKSUM", "CLASSIFY", "CLUSTERIP", "CT", "DSCP", "ECN", "HL", "HMARK", "IDLETIMER", "NFLOG", "NFQUEUE",
    "NOTRACK", "QUEUE", "SET", "SYNPROXY", "TCPMSS", "TCPOPTSTRIP", "TEE", "TOS", "TPROXY", "TRACE", "TTL",
})
MISSING_MATCHES: Mapping[str, str] = MappingProxyType({
    "set": "write -s or -d with a list of addresses, or a chain with one rule for each member",
    "owner": "natengine sees packets, not processes",
    "recent": "write -m limit",
    "hashlimit": "write -m limit",
    "connlimit": "set max_flows_per_host in natengine.toml",
    "physdev": "write -i or -o",
    "geoip": "write -s or -d",
    "length": "leave it out",
    "time": "change the rules when it is time",
    "string": "natengine does not look into what packets carry",
})
