"""Mappings: which outside endpoint stands for which inside endpoint, and for how many flows.

    inside endpoint, outside address  ──>  outside port        (one port for all peers: RFC 4787 REQ-1)
    outside endpoint                  ──>  inside endpoint     (one owner at a time: REQ-3)

A mapping is there as long as a flow holds it.  Two ways to hold one:

    owner   its inside endpoint is the mapping's: what comes from outside without a flow is for it
    guest   another inside endpoint shares the port, towards another peer than any flow that has it
            (port overlapping, RFC 7857 3): where no port is left, or where each flow has a mapping
            of its own, which is the kernel's way
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

from natengine.flow.ports import PortPool
from natengine.settings import MappingBehaviour, Settings
from natengine.vocab import Proto, Rng


class Endpoint(NamedTuple):
    """An address with a port (ICMP: an identifier) of one protocol.  Host order."""

    proto: int
    ip: int
    port_or_icmp_id: int


class NoPort(enum.Enum):
    """Why there is no outside port."""

    OUT_OF_PORTS = 1                # none of those that would do is left
    HOST_LIMIT = 2                  # the inside host has as many as it may have (RFC 6888 REQ-4)


class Wanted(NamedTuple):
    """What a flow wants of its outside port."""

    inside: Endpoint
    outside_ip: int
    keep_port: bool = True                      # the inside port, if it may be had
    ports: tuple[int, int] | None = None        # first and last that will do (`--to-ports`)
    ifindex: int = 0                            # the inside interface; 0: the head itself
    by_rule: bool = False                       # somebody else has chosen the port: a rule, or the head itself

    @property
    def for_head(self) -> bool:
        """Whether reserved ports will do, too: they are the head's own, or a rule has given one away."""
        return self.ifindex == 0 or self.by_rule


class Owner(NamedTuple):
    """Whom an outside endpoint stands for."""

    inside: Endpoint
    ifindex: int                                # of the interface it was last heard on


# whether a flow with this outside port could be told from all others by its peer
MayShare = Callable[[int], bool]


class _Mapping:
    __slots__ = ("by_rule", "flows", "guests", "ifindex", "inside", "outside")

    def __init__(self, inside: Endpoint, outside: Endpoint, ifindex: int, by_rule: bool) -> None:
        self.inside, self.outside, self.ifindex, self.by_rule = inside, outside, ifindex, by_rule
        self.flows, self.guests = 1, 0


class MappingTable:
    """All mappings and the port pools they draw from."""

    def __init__(self, rng: Rng, settings: Settings) -> None:
        self._rng = rng
        self._hold_down_ns = settings.port_hold_down_ns
        self._max_ports = settings.max_ports_per_host
        self._overloading = settings.port_overloading
        self._for_all_peers = settings.mapping is MappingBehaviour.ENDPOINT_INDEPENDENT
        self._pools: dict[tuple[int, int], PortPool] = {}               # by protocol, outside address
        self._by_inside: dict[tuple[Endpoint, int], _Mapping] = {}      # with the outside address
        self._by_outside: dict[Endpoint, _Mapping] = {}
        self._ports_of: dict[int, int] = {}                             # by inside address
        self._unheld: dict[tuple[Endpoint, Endpoint], int] = {}         # `hold`s that came too late
        self._reserved: dict[int, frozenset[int]] = {}                  # by protocol
        self.overloaded = 0                                             # flows that had to share a port

    def __len__(self) -> int:
        return len(self._by_outside)

    # ── outside ports for flows that leave ───────────────────────────────────────────────────────

    def join_own(self, inside: Endpoint, outside_ip: int, ports: tuple[int, int] | None, ifindex: int) -> int | None:
        """Hold the mapping that an inside endpoint has, for one flow more, and return its outside port.

        None if it has none, if its port is not one of `ports`, or if each flow is to have a mapping of its own.
        """
        mapping = self._by_inside.get((inside, outside_ip))
        if mapping is None or not self._for_all_peers:
            return None
        port = mapping.outside.port_or_icmp_id
        if not _fits(ports, port):
            return None
        mapping.flows += 1
        mapping.ifindex, mapping.by_rule = ifindex, False
        return port

    def acquire(self, wanted: Wanted, may_share: MayShare, now_ns: int) -> int | NoPort:
        """Return an outside port and hold it for one flow; each call that does wants a `release`.

        A mapping that exists is used, unless its port lies outside `wanted.ports`; then a new one is made.
        """
        if self._for_all_peers:
            port = self.join_own(wanted.inside, wanted.outside_ip, wanted.ports, wanted.ifindex)
        else:
            port = self._as_the_kernel_does(wanted, may_share)
        if port is not None:
            return port
        answer = self._make(wanted, now_ns)
        return self.share(wanted, may_share) if answer is NoPort.OUT_OF_PORTS else answer

    def share(self, wanted: Wanted, may_share: MayShare) -> int | NoPort:
        """Return the port of somebody else's mapping and hold it as a guest, if that is allowed and one can be had."""
        pool = self._pool(wanted.inside.proto, wanted.outside_ip)
        if not self._overloading:
            return NoPort.OUT_OF_PORTS
        port = pool.share(
            wanted.inside.port_or_icmp_id, self._rng,
            lambda port: self._takes_guests(self._at(wanted, port)) and may_share(port), wanted.ports,
        )
        if port is None:
            return NoPort.OUT_OF_PORTS
        self.overloaded += 1
        return self._be_guest(self._at(wanted, port))

    def _as_the_kernel_does(self, wanted: Wanted, may_share: MayShare) -> int | None:
        """Keep the port although somebody has it, as long as the peer tells the flows apart."""
        port = wanted.inside.port_or_icmp_id
        if not wanted.keep_port or not _fits(wanted.ports, port):
            return None
        mapping = self._by_outside.get(Endpoint(wanted.inside.proto, wanted.outside_ip, port))
        if mapping is None or not self._takes_guests(mapping) or not may_share(port):
            return None
        return self._be_guest(mapping)

    def _at(self, wanted: Wanted, port: int) -> _Mapping:
        return self._by_outside[Endpoint(wanted.inside.proto, wanted.outside_ip, port)]

    @staticmethod
    def _takes_guests(mapping: _Mapping) -> bool:
        """Not the head's own, nor a rule's: their peers are chosen without asking."""
        return mapping.inside.ip != mapping.outside.ip and not mapping.by_rule

    @staticmethod
    def _be_guest(mapping: _Mapping) -> int:
        mapping.guests += 1
        return mapping.outside.port_or_icmp_id

    def _make(self, wanted: Wanted, now_ns: int) -> int | NoPort:
        """Make a mapping with one flow."""
        inside, outside_ip = wanted[:2]
        used = self._ports_of.get(inside.ip, 0)
        if self._max_ports and used >= self._max_ports and not wanted.for_head:
            return NoPort.HOST_LIMIT
        port = self._pool(inside.proto, outside_ip).take(
            self._best_port(wanted), self._rng, host=inside.ip, now_ns=now_ns,
            keep=wanted.keep_port, ports=wanted.ports, for_head=wanted.for_head,
        )
        if port is None:
            return NoPort.OUT_OF_PORTS
        mapping = _Mapping(inside, Endpoint(inside.proto, outside_ip, port), wanted.ifindex, wanted.by_rule)
        self._by_outside[mapping.outside] = mapping
        if not wanted.by_rule or (inside, outside_ip) not in self._by_inside:
            self._by_inside[inside, outside_ip] = mapping
        self._ports_of[inside.ip] = used + 1
        return port

    def _best_port(self, wanted: Wanted) -> int:
        """Return the inside port; but where its neighbour got another one, the neighbour of that.

        So RTP and RTCP, which use an even port and the next one, stay neighbours (RFC 4787 4.2.2).
        """
        inside, outside_ip = wanted[:2]
        port = inside.port_or_icmp_id
        if inside.proto != Proto.UDP:
            return port
        neighbour = self._by_inside.get((Endpoint(inside.proto, inside.ip, port ^ 1), outside_ip))
        return port if neighbour is None else neighbour.outside.port_or_icmp_id ^ 1

    def _pool(self, proto: int, outside_ip: int) -> PortPool:
        pool = self._pools.get((proto, outside_ip))
        if pool is None:
            pool = self._pools[proto, outside_ip] = PortPool(proto, self._hold_down_ns)
            pool.reserve(self._reserved.get(proto, frozenset()))
        return pool

    # ── flows that arrive, and flows that are not translated ─────────────────────────────────────

    def owner(self, outside: Endpoint) -> Owner | None:
        """Return whom an outside endpoint stands for, or None.

        What a rule has made stands for nobody: the rule says who may use it.
        """
        mapping = self._by_outside.get(outside)
        if mapping is None or mapping.by_rule or not mapping.flows:
            return None
        return Owner(mapping.inside, mapping.ifindex)

    def inside_of(self, outside: Endpoint) -> Endpoint | None:
        """Return the inside endpoint that a mapping was made for, whoever made it; None: there is none."""
        mapping = self._by_outside.get(outside)
        return None if mapping is None else mapping.inside

    def outside_port_of(self, inside: Endpoint, outside_ip: int) -> int | None:
        """Return the outside port that an inside endpoint has on an address, or None; nothing is held."""
        mapping = self._by_inside.get((inside, outside_ip))
        return None if mapping is None else mapping.outside.port_or_icmp_id

    def join(self, outside: Endpoint) -> None:
        """Hold a mapping that exists for one more flow of its owner; wants a `release`."""
        self._by_outside[outside].flows += 1

    def adopt(self, inside: Endpoint, outside: Endpoint, ifindex: int, now_ns: int) -> None:
        """Hold an outside endpoint for a flow that has it already; who comes first is the owner.

        Wants a `release`.  A port that the head itself uses by now is nobody's mapping; the flow goes on without.
        """
        mapping = self._by_outside.get(outside)
        if mapping is None:
            port = outside.port_or_icmp_id
            # as for the head, who is under no limit: the flow is there
            if isinstance(self._make(Wanted(inside, outside.ip, ports=(port, port)), now_ns), NoPort):
                return
            mapping = self._by_outside[outside]
        elif mapping.inside == inside:
            mapping.flows += 1
        else:
            mapping.guests += 1
        if mapping.inside == inside:
            mapping.ifindex = ifindex

    def hold(
        self, inside: Endpoint, outside: Endpoint, ifindex: int, now_ns: int, *, make: bool = True
    ) -> None:
        """Hold the outside port of a flow that has it already, if nobody else has it.

        For what the head itself sends without translation, and for what a rule sends on to an inside
        endpoint: it goes on with this port in either case.  Each call wants a `release` too.

        Args:
            make: Whether to make a mapping, as is needed where others take ports of the same address.
        """
        mapping = self._by_outside.get(outside)
        if mapping is not None and mapping.inside == inside:
            mapping.flows += 1
            return
        port = outside.port_or_icmp_id
        wanted = Wanted(inside, outside.ip, ports=(port, port), ifindex=ifindex, by_rule=True)
        if not make or mapping is not None or isinstance(self._make(wanted, now_ns), NoPort):
            self._unheld[inside, outside] = self._unheld.get((inside, outside), 0) + 1

    def release(self, inside: Endpoint, outside: Endpoint, now_ns: int) -> None:
        """Let go of one flow's hold; the last one gives the port back.

        A flow that holds no mapping (a rule exempts it from translation) may call this too.
        """
        pair = inside, outside
        if pair in self._unheld:
            self._unheld[pair] -= 1             # whose hold it was does not matter, only their number
            if not self._unheld[pair]:
                del self._unheld[pair]
            return
        mapping = self._by_outside.get(outside)
        if mapping is None:
            return
        if mapping.inside == inside and mapping.flows:
            mapping.flows -= 1
        elif mapping.guests:
            mapping.guests -= 1
        else:
            return
        if not mapping.flows and not mapping.guests:
            self._end(mapping, now_ns)

    def _end(self, mapping: _Mapping, now_ns: int) -> None:
        inside, outside = mapping.inside, mapping.outside
        del self._by_outside[outside]
        if self._by_inside.get((inside, outside.ip)) is mapping:
            del self._by_inside[inside, outside.ip]
        left = self._ports_of.pop(inside.ip) - 1
        if left:
            self._ports_of[inside.ip] = left
        self._pools[outside.proto, outside.ip].release(outside.port_or_icmp_id, host=inside.ip, now_ns=now_ns)

    def reserve(self, ports: dict[int, frozenset[int]]) -> None:
        """Keep these ports, by protocol, for the head itself, whatever its address."""
        self._reserved = ports
        for (proto, _), pool in self._pools.items():
            pool.reserve(ports.get(proto, frozenset()))


def _fits(ports: tuple[int, int] | None, port: int) -> bool:
    return ports is None or ports[0] <= port <= ports[1]
