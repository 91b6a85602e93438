"""Packets of the engine's own, as scapy reads them."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, IPerror, UDPerror
from support.packets import address, ipv4, tcp, udp

from natengine.wire.build import MAX_ERROR, icmp_error, tcp_reset
from natengine.wire.ipv4 import parse_ipv4_untrusted, parse_transport_untrusted
from natengine.wire.tcp import read_segment


def assert_checksums_right(packet: bytearray) -> IP:
    """Let scapy compute them again."""
    given = IP(bytes(packet))
    again = given.copy()
    del again.chksum, again.payload.chksum
    assert bytes(given) == bytes(IP(bytes(again)))
    return given


def test_an_icmp_error_quotes_what_it_is_about() -> None:
    about = udp("10.1.0.11:5000 > 203.0.113.2:53", b"query")
    error = icmp_error(address("10.1.0.1"), 3, 13, about, parse_ipv4_untrusted(about))
    read = assert_checksums_right(error)
    assert (read.src, read.dst, read.tos) == ("10.1.0.1", "10.1.0.11", 0xC0)
    assert (read[ICMP].type, read[ICMP].code) == (3, 13)
    assert (read[UDPerror].sport, read[UDPerror].dport) == (5000, 53)
    assert bytes(about) == bytes(error[28:])


def test_an_icmp_error_has_576_bytes_at_most() -> None:
    about = udp("10.1.0.11:5000 > 203.0.113.2:53", bytes(1400))
    error = icmp_error(address("10.1.0.1"), 3, 4, about, parse_ipv4_untrusted(about), rest=1280)
    assert len(error) == MAX_ERROR
    assert assert_checksums_right(error)[ICMP].nexthopmtu == 1280


def test_padding_is_not_quoted() -> None:
    about = ipv4("10.1.0.11", "203.0.113.2", 47, b"payload")
    error = icmp_error(1, 3, 2, about + bytes(20), parse_ipv4_untrusted(about))
    assert bytes(about) == bytes(error[28:])
    assert IP(bytes(error))[IPerror].proto == 47


@pytest.mark.parametrize(("flags", "data", "answer"), [
    # RFC 9293 3.10.7.1: a segment without ACK is acknowledged, one with ACK gets the number it expects
    ("S", b"", ("RA", 0, 1001)),
    ("S", b"abc", ("RA", 0, 1004)),
    ("A", b"", ("R", 7000, 0)),
    ("FA", b"abc", ("R", 7000, 0)),
])
def test_a_reset_is_one_that_the_sender_believes(flags: str, data: bytes, answer: tuple[str, int, int]) -> None:
    segment = tcp("10.1.0.11:5000 > 203.0.113.2:80", flags, data, ack=7000)
    ip = parse_ipv4_untrusted(segment)
    ports = parse_transport_untrusted(segment, ip)
    reset = assert_checksums_right(tcp_reset(
        ip, ports.src_port_or_icmp_id, ports.dst_port_or_icmp_id, read_segment(segment, ip)
    ))
    assert (reset.src, reset[TCP].sport, reset.dst, reset[TCP].dport) == ("203.0.113.2", 80, "10.1.0.11", 5000)
    assert answer == (str(reset[TCP].flags), reset[TCP].seq, reset[TCP].ack)
