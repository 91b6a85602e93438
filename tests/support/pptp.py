"""PPTP as text books have it: control messages and GRE packets (RFC 2637), and a gateway to send them through."""

from __future__ import annotations

import struct

from support.engines import Gateway
from support.packets import GRE, ipv4, tcp

OUTGOING_CALL_REQUEST, OUTGOING_CALL_REPLY, INCOMING_CALL_REQUEST, INCOMING_CALL_REPLY = 7, 8, 9, 10
INCOMING_CALL_CONNECTED, CALL_CLEAR_REQUEST, CALL_DISCONNECT_NOTIFY, WAN_ERROR_NOTIFY, SET_LINK_INFO = range(11, 16)
LENGTHS = {7: 168, 8: 32, 9: 220, 10: 24, 11: 28, 12: 16, 13: 148, 14: 40, 15: 24}


def control(kind: int, *ids: int, result: int = 1) -> bytes:
    """Return a control message with its one or two call ids, in the order in which it has them."""
    head = struct.pack("!HHIHH", LENGTHS[kind], 1, 0x1A2B3C4D, kind, 0) + struct.pack(f"!{len(ids)}H", *ids)
    if len(ids) == 2:
        head += bytes([result])
    return head.ljust(LENGTHS[kind], b"\0")


def call(text: str, call_id: int, data: bytes = b"ppp!", *, sequence: int = 1, ack: bool = False) -> bytearray:
    """Return a packet of a call: the receiver's call id, a sequence number, and an acknowledgement if need be."""
    src, dst = text.split(" > ")
    header = struct.pack("!HHHHI", 0x3081 if ack else 0x3001, 0x880B, len(data), call_id, sequence)
    return ipv4(src, dst, GRE, header + (b"\0\0\0\1" if ack else b"") + data)


class ControlConnection:
    """Both ends of a TCP connection through a gateway, established."""

    def __init__(self, gateway: Gateway, inside: str, outside: str, *, by_peer: bool = False) -> None:
        """Shake hands; endpoints are ADDRESS:PORT, and the server's is 203.0.113.2:1723.

        Args:
            by_peer: The peer opens it, and the server is inside.
        """
        self.gateway = gateway
        self.inside, self.outside = inside, outside
        self.peer = "203.0.113.2:5000" if by_peer else "203.0.113.2:1723"
        self.sent, self.received = 1001, 1001               # the next sequence numbers
        if by_peer:
            gateway.returned(tcp(f"{self.peer} > {outside}", "S"))
            gateway.through(tcp(f"{inside} > {self.peer}", "SA"))
            gateway.returned(tcp(f"{self.peer} > {outside}", "A"))
        else:
            gateway.through(tcp(f"{inside} > {self.peer}", "S"))
            gateway.returned(tcp(f"{self.peer} > {outside}", "SA"))
            gateway.through(tcp(f"{inside} > {self.peer}", "A"))

    def says(self, data: bytes) -> bytearray:
        """Return the next segment of the inside, not sent yet."""
        packet = tcp(f"{self.inside} > {self.peer}", "PA", data, seq=self.sent, ack=self.received)
        self.sent += len(data)
        return packet

    def hears(self, data: bytes) -> bytearray:
        """Return the next segment of the peer, not sent yet."""
        packet = tcp(f"{self.peer} > {self.outside}", "PA", data, seq=self.received, ack=self.sent)
        self.received += len(data)
        return packet

    def out(self, data: bytes) -> bytes:
        """Send from the inside, and return what the peer gets to read."""
        return bytes(self.gateway.through(self.says(data))[40:])

    def back(self, data: bytes) -> bytes:
        """Send from the peer, and return what the inside gets to read."""
        return bytes(self.gateway.returned(self.hears(data))[40:])

    def place_call(self, ours: int, theirs: int) -> int:
        """Place a call from inside and have it taken; return our id as the peer has been told it."""
        outside = call_id(self.out(control(OUTGOING_CALL_REQUEST, ours)))
        answer = self.back(control(OUTGOING_CALL_REPLY, theirs, outside))
        assert answer == control(OUTGOING_CALL_REPLY, theirs, ours)
        return outside


def call_id(message: bytes, n: int = 0) -> int:
    """Return the first call id of a message, or the one after it."""
    return int.from_bytes(message[12 + 2 * n:14 + 2 * n], "big")
