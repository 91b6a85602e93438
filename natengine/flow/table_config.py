"""What a flow table is told when it is made: capacity, timeouts and the tables of TCP, all of it data."""

from __future__ import annotations

from operator import index
from typing import NamedTuple

from natengine.flow.tcp_state import REFUSED, SEGMENTS, STATES
from natengine.flow.timeouts import NEVER_NS, PROTOCOLS

CAPACITY = range(1, 2**28 + 1)      # an index of 4 entries a flow still counts in 32 bits
TIMEOUT_NS = range(NEVER_NS + 1)    # so that a deadline fits into 64 bits


class TableConfig(NamedTuple):
    """What a fast path is told at construction; the tables are those of `flow.tcp_state`."""

    capacity: int
    tcp_timeouts_ns: tuple[int, ...]    # by TcpState
    timeouts_ns: tuple[int, ...]        # by protocol; TCP's is not used
    transitions: bytes
    segment_of_flags: bytes
    hash_key: bytes                     # 16 random bytes: nobody outside may choose collisions
    tcp_liberal: bool = False           # let segments outside the window pass, but for RSTs
    tcp_unacknowledged_ns: int = NEVER_NS       # at most, while data awaits its ACK
    dns_timeout_ns: int = NEVER_NS      # at most, after a UDP packet from port 53
    udp_inbound_refresh: bool = True    # False: what arrives does not make a UDP flow live longer

    def check(self) -> None:
        """Refuse what would make either twin read or count wrong.

        Raises:
            TypeError: A table or the key is not bytes, or a number is no integer.
            ValueError: A capacity outside 1..2**28, a timeout outside 0..2**62, or a table or key
                of the wrong size or with a value that is no state or no segment.
        """
        for table in (self.hash_key, self.transitions, self.segment_of_flags):
            if not isinstance(table, bytes):
                raise TypeError("the key and the TCP tables are bytes")
        if index(self.capacity) not in CAPACITY:
            raise ValueError(f"the capacity is 1..{CAPACITY[-1]}, not {self.capacity}")
        if len(self.hash_key) != 16 or len(self.tcp_timeouts_ns) != STATES:
            raise ValueError("the key has 16 bytes, and every TCP state has a timeout")
        if len(self.timeouts_ns) != PROTOCOLS:
            raise ValueError("every protocol has a timeout")
        at_most = self.tcp_unacknowledged_ns, self.dns_timeout_ns
        for timeout_ns in (*self.tcp_timeouts_ns, *self.timeouts_ns, *at_most):
            if index(timeout_ns) not in TIMEOUT_NS:
                raise ValueError(f"a timeout is 0..{TIMEOUT_NS[-1]} ns, not {timeout_ns}")
        if len(self.transitions) != 2 * SEGMENTS * STATES or len(self.segment_of_flags) != 256:
            raise ValueError("the TCP tables are not those of flow.tcp_state")
        states = {*range(STATES), REFUSED}
        if not set(self.transitions) <= states or max(self.segment_of_flags) >= SEGMENTS:
            raise ValueError("the TCP tables name a state or a segment that does not exist")
