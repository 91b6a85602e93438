"""What a flow table is told when it is made: both fast paths take the same."""

from __future__ import annotations

from operator import index
from typing import NamedTuple

from natengine.flow.tcp_state import REFUSED, SEGMENTS, STATES

_CAPACITY = range(1, 2**28 + 1)     # an index of 4 entries a flow still counts in 32 bits
_TIMEOUT_NS = range(2**62 + 1)      # so that a deadline fits into 64 bits


class TableConfig(NamedTuple):
    """What a fast path is told at construction; the tables are those of `flow.tcp_state`."""

    capacity: int
    tcp_timeouts_ns: tuple[int, ...]    # by TcpState
    udp_timeout_ns: int
    icmp_timeout_ns: int
    transitions: bytes
    segment_of_flags: bytes
    hash_key: bytes                     # 16 random bytes: nobody outside may choose collisions
    tcp_liberal: bool = False           # let segments outside the window pass, but for RSTs

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
        if index(self.capacity) not in _CAPACITY:
            raise ValueError(f"the capacity is 1..{_CAPACITY[-1]}, not {self.capacity}")
        if len(self.hash_key) != 16 or len(self.tcp_timeouts_ns) != STATES:
            raise ValueError("the key has 16 bytes, and every TCP state has a timeout")
        for timeout_ns in (*self.tcp_timeouts_ns, self.udp_timeout_ns, self.icmp_timeout_ns):
            if index(timeout_ns) not in _TIMEOUT_NS:
                raise ValueError(f"a timeout is 0..{_TIMEOUT_NS[-1]} ns, not {timeout_ns}")
        if len(self.transitions) != 2 * SEGMENTS * STATES or len(self.segment_of_flags) != 256:
            raise ValueError("the TCP tables are not those of flow.tcp_state")
        states = {*range(STATES), REFUSED}
        if not set(self.transitions) <= states or max(self.segment_of_flags) >= SEGMENTS:
            raise ValueError("the TCP tables name a state or a segment that does not exist")
