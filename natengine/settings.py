"""Settings of the engine: frozen values with a source for each default.  No parsing here.

Times are nanoseconds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

SECOND_NS = 1_000_000_000


@dataclass(frozen=True)
class Timeouts:
    """How long an idle flow is kept, per protocol and state."""

    tcp_established_ns: int = 7440 * SECOND_NS     # RFC 5382 REQ-5: 2 h 4 min at least
    tcp_transitory_ns: int = 240 * SECOND_NS       # RFC 5382 REQ-5: 4 min at least; RFC 7857 2.2 after RST
    udp_ns: int = 300 * SECOND_NS                  # RFC 4787 REQ-5c: 5 min recommended, 2 min at least
    icmp_query_ns: int = 60 * SECOND_NS            # RFC 5508 REQ-2: 60 s at least


class MappingBehaviour(enum.Enum):
    """Which flows of an inside endpoint share an outside port (RFC 4787 4.1)."""

    ENDPOINT_INDEPENDENT = "endpoint-independent"                   # all of them
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"       # none has to: the kernel's way


class FilteringBehaviour(enum.Enum):
    """Who may send to a mapped outside port (RFC 4787 5)."""

    ENDPOINT_INDEPENDENT = "endpoint-independent"                   # anybody
    ADDRESS_DEPENDENT = "address-dependent"                         # any port of a host that was written to
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"       # just who was written to: the kernel's way


@dataclass(frozen=True)
class Settings:
    """Everything about the engine that is not a rule."""

    timeouts: Timeouts = Timeouts()
    max_flows: int = 262_144                       # nf_conntrack_max of a common kernel
    mapping: MappingBehaviour = MappingBehaviour.ENDPOINT_INDEPENDENT           # RFC 4787 REQ-1, RFC 5382 REQ-1
    filtering: FilteringBehaviour = FilteringBehaviour.ADDRESS_AND_PORT_DEPENDENT
    port_overloading: bool = True                  # RFC 7857 3: share ports when there are none left
    port_hold_down_ns: int = 120 * SECOND_NS       # RFC 6888 REQ-8
    max_ports_per_host: int = 0                    # RFC 6888 REQ-4; 0: as many as there are
    max_flows_per_host: int = 131_072              # half of the table; 0: as many as there is room for
    new_flows_when_busy: int = 1000                # a second, of one host, while packets wait; 0: as many as come
    syn_hold_ns: int = 6 * SECOND_NS               # RFC 5382 REQ-4; 0: a SYN from outside is the head's own business
    max_fragment_trains: int = 4096                # datagrams in flight as fragments, all hosts together
    tcp_liberal: bool = False                      # nf_conntrack_tcp_be_liberal: only RSTs must be in the window
    fragment_timeout_ns: int = 30 * SECOND_NS      # net.ipv4.ipfrag_time; RFC 6146 wants 2 s at least
