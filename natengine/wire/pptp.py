"""PPTP's control messages: where their call ids are (RFC 2637 2).

Each message has a fixed size and its call ids at fixed places, so that a new one never changes a length.  A message is
known by its first bytes wherever it begins in a segment, so nothing has to be remembered of earlier segments:
one sent again, out of order, together with others or with its end in the next segment is read like any other.
Limit: one that is cut within its first 16 bytes is not seen.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import NamedTuple

from natengine.wire.ipv4 import Buffer, Ipv4Fields

PPTP_PORT = 1723

_CONTROL_MESSAGE = b"\0\1\x1a\x2b\x3c\x4d"      # type 1 and the magic cookie, behind the length
_LENGTH_BYTES = 2
_KIND, _FIRST_ID, _SECOND_ID, _RESULT = 8, 12, 14, 16
_CONNECTED = 1                                  # a result code


class Message(enum.IntEnum):
    """The control messages that name a call."""

    OUTGOING_CALL_REQUEST = 7
    OUTGOING_CALL_REPLY = 8
    INCOMING_CALL_REQUEST = 9
    INCOMING_CALL_REPLY = 10
    INCOMING_CALL_CONNECTED = 11
    CALL_CLEAR_REQUEST = 12
    CALL_DISCONNECT_NOTIFY = 13
    WAN_ERROR_NOTIFY = 14
    SET_LINK_INFO = 15


REQUESTS = frozenset({Message.OUTGOING_CALL_REQUEST, Message.INCOMING_CALL_REQUEST})
REPLIES = frozenset({Message.OUTGOING_CALL_REPLY, Message.INCOMING_CALL_REPLY})


class _Layout(NamedTuple):
    length: int
    sender_at: int | None                       # where the sender's own call id is
    receiver_at: int | None                     # where the call id is that the receiver has chosen


_LAYOUTS = {
    Message.OUTGOING_CALL_REQUEST:   _Layout(168, _FIRST_ID, None),
    Message.OUTGOING_CALL_REPLY:     _Layout(32, _FIRST_ID, _SECOND_ID),
    Message.INCOMING_CALL_REQUEST:   _Layout(220, _FIRST_ID, None),
    Message.INCOMING_CALL_REPLY:     _Layout(24, _FIRST_ID, _SECOND_ID),
    Message.INCOMING_CALL_CONNECTED: _Layout(28, None, _FIRST_ID),
    Message.CALL_CLEAR_REQUEST:      _Layout(16, _FIRST_ID, None),
    Message.CALL_DISCONNECT_NOTIFY:  _Layout(148, _FIRST_ID, None),
    Message.WAN_ERROR_NOTIFY:        _Layout(40, None, _FIRST_ID),
    Message.SET_LINK_INFO:           _Layout(24, None, _FIRST_ID),
}


class ControlMessage(NamedTuple):
    """A message in a segment; the places are offsets from the start of the IP header."""

    kind: Message
    sender_at: int | None
    receiver_at: int | None
    connects: bool                              # a reply that says yes


def find_messages(packet: Buffer, ip: Ipv4Fields) -> Iterator[ControlMessage]:
    """Yield the control messages in a whole TCP segment that name a call, in order."""
    data = bytes(packet[:ip.total_len])
    start = ip.header_len + (data[ip.header_len + 12] >> 4) * 4
    at = data.find(_CONTROL_MESSAGE, start + _LENGTH_BYTES)
    while at >= 0:
        begins, following = at - _LENGTH_BYTES, at + 1
        kind = int.from_bytes(data[begins + _KIND:begins + _KIND + 2], "big")
        layout = _LAYOUTS.get(kind)             # type: ignore[call-overload]
        if layout is not None and layout.length == int.from_bytes(data[begins:at], "big"):
            if begins + _RESULT <= len(data):
                yield ControlMessage(
                    Message(kind), _place(begins, layout.sender_at), _place(begins, layout.receiver_at),
                    kind in REPLIES and data[begins + _RESULT:begins + _RESULT + 1] == bytes([_CONNECTED]),
                )
            following = begins + layout.length
        at = data.find(_CONTROL_MESSAGE, following)


def _place(begins: int, offset: int | None) -> int | None:
    return None if offset is None else begins + offset
