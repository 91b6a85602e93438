"""A flow while it is in the table of the Python fast path: what `FlowInfo` is a copy of."""

from __future__ import annotations

from natengine.flow.records import FlowInfo, FlowSpec
from natengine.flow.table_config import TableConfig
from natengine.flow.tcp_state import TcpState
from natengine.flow.tcp_window import UNHEARD_SIDES, has_unacknowledged
from natengine.flow.timeouts import DNS_PORT
from natengine.vocab import Proto


class Entry:
    """One flow of the table; its fields are those of `FlowInfo`."""

    __slots__ = (
        "allow", "assured", "deadline_ns", "filed_slot", "flow_id", "generation",
        "original_bytes", "original_packets", "reply_bytes", "reply_packets", "seen_reply", "sides", "spec",
        "tcp_state",
    )

    def __init__(self, flow_id: int, spec: FlowSpec, generation: int, now_ns: int) -> None:
        """Begin a flow; `generation` is that of the rules that have approved it."""
        self.flow_id = flow_id
        self.spec = spec
        self.allow = spec.allow
        self.generation = generation
        self.tcp_state = int(TcpState.NONE)
        self.seen_reply = self.assured = False
        self.sides = UNHEARD_SIDES
        self.deadline_ns = now_ns
        self.filed_slot = 0
        self.original_packets = self.original_bytes = self.reply_packets = self.reply_bytes = 0

    @classmethod
    def of(cls, info: FlowInfo) -> Entry:
        """Return the record of a flow that an earlier engine has left, not approved yet."""
        flow = cls(info.flow_id, info.spec, 0, info.deadline_ns)
        (
            _, _, flow.tcp_state, flow.seen_reply, flow.assured, _, flow.sides,
            flow.original_packets, flow.original_bytes, flow.reply_packets, flow.reply_bytes, _,
        ) = info
        return flow

    def info(self) -> FlowInfo:
        """Return a copy."""
        return FlowInfo(
            self.flow_id, self.spec._replace(allow=self.allow), self.tcp_state, self.seen_reply, self.assured,
            self.deadline_ns, self.sides,
            self.original_packets, self.original_bytes, self.reply_packets, self.reply_bytes,
        )

    def next_deadline(self, config: TableConfig, is_reply: bool, now_ns: int) -> int:
        """Return when the flow ends if the packet that has just been counted is its last one."""
        spec = self.spec
        if spec.proto == Proto.TCP:
            timeout = config.tcp_timeouts_ns[self.tcp_state]
            if timeout > config.tcp_unacknowledged_ns and has_unacknowledged(self.sides):
                timeout = config.tcp_unacknowledged_ns
            return now_ns + timeout
        timeout = config.timeouts_ns[spec.proto]
        arrives = is_reply == spec.from_inside
        if spec.proto != Proto.UDP or not arrives:
            return now_ns + timeout
        if spec.peer_port == DNS_PORT:
            timeout = min(timeout, config.dns_timeout_ns)
        begins = self.original_packets + self.reply_packets == 1
        if config.udp_inbound_refresh or begins:
            return now_ns + timeout
        return min(now_ns + timeout, self.deadline_ns)
