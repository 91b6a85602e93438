"""Later fragments follow the first one.

Only the first fragment of a datagram has ports.  What was done to it is remembered under the
datagram's identity (RFC 791: source, destination, protocol, identification) and done to the rest.

Limits: fragments that come before the first one are dropped, not held.
"""

from __future__ import annotations

from typing import NamedTuple

from natengine.flow.records import FlowInfo, FlowKey
from natengine.wire.ipv4 import MIN_TRANSPORT, Ipv4Fields

MAX_DATAGRAM = 65535                # RFC 791: header and all fragments together


def contradicts_itself(ip: Ipv4Fields) -> bool:
    """Whether no honest sender makes such a fragment.

    It ends behind the largest datagram (the "ping of death"), or not at a multiple of 8 though more
    follow (RFC 791); or it begins inside the transport header, part of which the first fragment
    has shown us, and would rewrite that at the receiver (RFC 1858).
    """
    length = ip.total_len - ip.header_len
    return (
        ip.header_len + ip.fragment_offset + length > MAX_DATAGRAM
        or (ip.more_fragments and length % 8 > 0)
        or 0 < ip.fragment_offset < MIN_TRANSPORT.get(ip.proto, 0)      # type: ignore[call-overload]
    )


class DatagramKey(NamedTuple):
    """A datagram in pieces, as it looks at one hook."""

    hook: int
    src: int
    dst: int
    proto: int
    identification: int

    @classmethod
    def of(cls, hook: int, ip: Ipv4Fields) -> DatagramKey:
        """Return the key of a fragment with this header, taken at `hook`."""
        return cls(hook, ip.src, ip.dst, ip.proto, ip.identification)


class Train(NamedTuple):
    """What the first fragment of a datagram was part of."""

    flow_id: int
    arriving: FlowKey           # tells whether the id still means the same flow
    deadline_ns: int


class FragmentTable:
    """The flows of datagrams whose first fragment went through; bounded in number and in time."""

    def __init__(self, limit: int, timeout_ns: int) -> None:
        self._limit, self._timeout_ns = limit, timeout_ns
        self._trains: dict[DatagramKey, Train] = {}               # oldest first

    def __len__(self) -> int:
        return len(self._trains)

    def has_room(self, key: DatagramKey, now_ns: int) -> bool:
        """Whether a first fragment's flow could be remembered."""
        self.expire(now_ns)
        return key in self._trains or len(self._trains) < self._limit

    def remember(self, key: DatagramKey, flow: FlowInfo, now_ns: int) -> bool:
        """Note the flow of a first fragment; False if there is no room."""
        if not self.has_room(key, now_ns):
            return False
        self._trains.pop(key, None)                               # to the end: the order is by deadline
        self._trains[key] = Train(flow.flow_id, flow.spec.arriving, now_ns + self._timeout_ns)
        return True

    def find(self, key: DatagramKey, now_ns: int) -> Train | None:
        """Return what is known of a datagram, if it is not too old."""
        train = self._trains.get(key)
        return train if train is not None and train.deadline_ns > now_ns else None

    def expire(self, now_ns: int) -> None:
        """Drop what is too old."""
        while self._trains:
            key = next(iter(self._trains))
            if self._trains[key].deadline_ns > now_ns:
                return
            del self._trains[key]
