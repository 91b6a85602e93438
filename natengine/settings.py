"""Settings of the engine: frozen values with a source for each default.  No parsing here.

Times are nanoseconds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

SECOND_NS = 1_000_000_000


@dataclass(frozen=True)
class Timeouts:
    """How long an idle flow is kept, per protocol and state; states are named as by conntrack."""

    tcp_established_ns: int = 7440 * SECOND_NS     # RFC 5382 REQ-5: 2 h 4 min at least
    tcp_transitory_ns: int = 240 * SECOND_NS       # RFC 5382 REQ-5: 4 min at least; RFC 7857 2.2 after RST
    # of one state; None: as tcp_established while one side is open (RFC 6146 3.5.2.2), else as tcp_transitory
    tcp_syn_sent_ns: int | None = None
    tcp_syn_recv_ns: int | None = None
    tcp_fin_wait_ns: int | None = None
    tcp_close_wait_ns: int | None = None
    tcp_last_ack_ns: int | None = None
    tcp_time_wait_ns: int | None = None
    tcp_close_ns: int | None = None
    tcp_unacknowledged_ns: int | None = None       # at most, while data awaits its ACK; None: as ever (RFC 5382 REQ-5)
    udp_ns: int = 300 * SECOND_NS                  # RFC 4787 REQ-5c: 5 min recommended, 2 min at least
    udp_dns_ns: int = 10 * SECOND_NS               # after an answer from port 53 (RFC 4787 REQ-5a)
    icmp_query_ns: int = 60 * SECOND_NS            # RFC 5508 REQ-2: 60 s at least
    udplite_ns: int = 300 * SECOND_NS              # as UDP
    dccp_ns: int = 7440 * SECOND_NS                # RFC 5597, as RFC 5382 REQ-5; its states are not followed
    sctp_ns: int = 600 * SECOND_NS                 # more than heartbeats are apart (RFC 9260 8.3: 30 s and more)
    gre_ns: int = 600 * SECOND_NS
    generic_ns: int = 600 * SECOND_NS              # all other protocols: nf_conntrack_generic_timeout


class MappingBehaviour(enum.Enum):
    """Which flows of an inside endpoint share an outside port (RFC 4787 4.1)."""

    ENDPOINT_INDEPENDENT = "endpoint-independent"                   # all of them
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"       # none has to: the kernel's way


class FilteringBehaviour(enum.Enum):
    """Who may send to a mapped outside port (RFC 4787 5)."""

    ENDPOINT_INDEPENDENT = "endpoint-independent"                   # anybody
    ADDRESS_DEPENDENT = "address-dependent"                         # any port of a host that was written to
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"       # just who was written to: the kernel's way


class HookBackEnd(enum.Enum):
    """Which of the kernel's languages the hooks are installed in."""

    AUTO = "auto"                                  # the first that the kernel has, nft before iptables
    NFT = "nft"
    IPTABLES = "iptables"


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
    max_fragment_trains: int = 4096                # datagrams under way in pieces, of all senders; of one a quarter
    tcp_liberal: bool = False                      # nf_conntrack_tcp_be_liberal: only RSTs must be in the window
    tcp_loose: bool = False                        # nf_conntrack_tcp_loose: an ACK may begin a flow, mid-stream
    pptp: bool = True                              # translate call ids (RFC 2637); RFC 5382 REQ-6: can be off
    clamp_mss_to_pmtu: tuple[str, ...] = ()        # uplinks, as `-o` has them, whose SYNs are made to fit their MTU
    udp_inbound_refresh: bool = True               # RFC 4787 REQ-6: outbound packets always refresh; inbound ones too
    hairpin_mark: int = 1 << 28                    # set in the packet mark between two hooks; 0: no hairpinning
    fragment_timeout_ns: int = 30 * SECOND_NS      # net.ipv4.ipfrag_time; RFC 6146 wants 2 s at least
    hooks: HookBackEnd = HookBackEnd.AUTO
