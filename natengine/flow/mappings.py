"""Mappings: which outside endpoint an inside endpoint has, whoever it talks to.

A mapping is made by the first flow of an inside endpoint and used by all others of it
(endpoint-independent mapping: RFC 4787 REQ-1, RFC 5382 REQ-1, RFC 5508 REQ-1a).  It lives as long
as one of its flows does, and holds its outside port for that long.
"""

from __future__ import annotations

from typing import NamedTuple

from natengine.flow.ports import PortPool
from natengine.vocab import Rng


class Endpoint(NamedTuple):
    """An address with a port (ICMP: an identifier) of one protocol.  Host order."""

    proto: int
    ip: int
    port_or_icmp_id: int


class _Mapping:
    __slots__ = ("flows", "inside", "outside")

    def __init__(self, inside: Endpoint, outside: Endpoint) -> None:
        self.inside, self.outside = inside, outside
        self.flows = 0


class MappingTable:
    """All mappings and the port pools they draw from."""

    def __init__(self, rng: Rng) -> None:
        self._rng = rng
        self._pools: dict[tuple[int, int], PortPool] = {}               # by protocol, outside address
        self._by_inside: dict[tuple[Endpoint, int], _Mapping] = {}      # with the outside address
        self._by_outside: dict[Endpoint, _Mapping] = {}
        self._unheld: dict[Endpoint, int] = {}                          # `hold`s that came too late

    def __len__(self) -> int:
        return len(self._by_outside)

    def acquire(
        self, inside: Endpoint, outside_ip: int, *,
        keep_port: bool = True, ports: tuple[int, int] | None = None,
    ) -> int | None:
        """Return the outside port of `inside` on `outside_ip` and hold it for one more flow.

        A mapping that exists is used, unless its port lies outside `ports` (`--to-ports`); then a
        new one is made.  None when no port is left.  Each call wants a `release`.
        """
        mapping = self._by_inside.get((inside, outside_ip))
        if mapping is None or (ports and not ports[0] <= mapping.outside.port_or_icmp_id <= ports[1]):
            pool = self._pools.get((inside.proto, outside_ip))
            if pool is None:
                pool = self._pools[inside.proto, outside_ip] = PortPool(inside.proto)
            port = pool.take(inside.port_or_icmp_id, self._rng, keep=keep_port, ports=ports)
            if port is None:
                return None
            mapping = _Mapping(inside, Endpoint(inside.proto, outside_ip, port))
            self._by_inside[inside, outside_ip] = self._by_outside[mapping.outside] = mapping
        mapping.flows += 1
        return mapping.outside.port_or_icmp_id

    def hold(self, endpoint: Endpoint) -> None:
        """Hold the port of a flow whose outside endpoint is its inside endpoint, if nobody else has it.

        For what the head itself sends without translation: it goes on with its port in either case.
        Each call wants a `release` too.
        """
        port = endpoint.port_or_icmp_id
        if self.acquire(endpoint, endpoint.ip, ports=(port, port)) is None:
            self._unheld[endpoint] = self._unheld.get(endpoint, 0) + 1

    def release(self, inside: Endpoint, outside: Endpoint) -> None:
        """Let go of one flow's hold; the last one gives the port back.

        A flow that holds no mapping (a rule exempts it from translation) may call this too.
        """
        if inside == outside and inside in self._unheld:
            self._unheld[inside] -= 1           # whose hold it was does not matter, only their number
            if not self._unheld[inside]:
                del self._unheld[inside]
            return
        mapping = self._by_outside.get(outside)
        if mapping is None or mapping.inside != inside:
            return
        mapping.flows -= 1
        if mapping.flows:
            return
        del self._by_outside[outside]
        if self._by_inside.get((inside, outside.ip)) is mapping:
            del self._by_inside[inside, outside.ip]
        self._pools[outside.proto, outside.ip].release(outside.port_or_icmp_id)
