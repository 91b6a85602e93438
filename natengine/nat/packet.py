"""A packet that the fast path has left to the engine."""

from __future__ import annotations

from typing import NamedTuple

from natengine.flow.records import FlowKey, flow_key
from natengine.vocab import PacketMeta
from natengine.wire.ipv4 import Ipv4Fields, Transport


class NewPacket(NamedTuple):
    """A packet that belongs to no known flow, read once."""

    ip: Ipv4Fields
    transport: Transport
    meta: PacketMeta

    @property
    def from_head(self) -> bool:
        """Whether the head itself sent it: nothing received it, so it has no in-interface."""
        return self.meta.in_ifindex == 0

    @property
    def key(self) -> FlowKey:
        """The tuple by which the flow table knows it."""
        ip, transport = self.ip, self.transport
        return flow_key(
            self.meta.hook, ip.proto, ip.src, transport.src_port_or_icmp_id, ip.dst,
            transport.dst_port_or_icmp_id, transport.icmp_type,
        )
