"""A TCP header in sequence space."""

from __future__ import annotations

import pytest
from differential.packets import ACK, FIN, SYN, ipv4, tcp_payload

from natengine.wire.ipv4 import parse_ipv4_untrusted
from natengine.wire.tcp import MAX_SCALE, NO_SCALE, TcpSegment, read_segment


def read(flags: int, data: bytes = b"", *, padding: bytes = b"", **how: int | bytes) -> TcpSegment:
    packet = ipv4(6, 1, 2, tcp_payload(1, 2, 3, 4, flags, data, **how), options=b"\1" * 4) + padding  # type: ignore[arg-type]
    return read_segment(packet, parse_ipv4_untrusted(packet))


@pytest.mark.parametrize(("flags", "data", "length"), [
    (ACK, b"", 0), (ACK, b"hello", 5), (SYN, b"", 1), (FIN | ACK, b"hello", 6), (SYN | ACK, b"x", 2),
])
def test_syn_and_fin_take_a_number_each(flags: int, data: bytes, length: int) -> None:
    segment = read(flags, data, seq=1000, ack=77, window=99, options=b"\1" * 8, padding=b"padding")
    assert segment == TcpSegment(1000, 1000 + length, 77, flags, 99, NO_SCALE)


def test_numbers_are_a_circle() -> None:
    assert read(ACK, b"abcd", seq=0xFFFF_FFFE).end == 2


@pytest.mark.parametrize(("options", "scale"), [
    (b"", NO_SCALE),
    (b"\3\3\7\0", 7),
    (b"\3\3\0\0", 0),
    (b"\2\4\5\xb4\1\3\3\x0e", 14),
    (b"\2\4\5\xb4\4\2\x08\x0a" + bytes(8) + b"\1\3\3\7", 7),       # as Linux sends it
    (b"\3\3\xff\0", MAX_SCALE),                 # RFC 7323 2.3
    (b"\0\3\3\7", NO_SCALE),                    # behind the end of the list
    (b"\3\4\7\0", NO_SCALE),                    # another length
    (b"\3\1\3\3\7\0\0\0", NO_SCALE),            # a length that leads nowhere
    (b"\1\1\1\3", NO_SCALE), (b"\1\1\3\3", NO_SCALE), (b"\x08\xff\3\3", NO_SCALE),     # cut off
])
def test_window_scale_option(options: bytes, scale: int) -> None:
    assert read(SYN, options=options).scale == scale
    assert read(ACK, options=options).scale == NO_SCALE, "only a SYN offers one"
