"""What the engine says itself: to whom, about what, and how often."""

from __future__ import annotations

import pytest
from support.packets import address, dotted, icmp, icmp_error, ipv4, ping, tcp, udp

from natengine.nat.outbox import ALL_AT_ONCE, EACH_AT_ONCE, Outbox
from natengine.nat.rates import TokenBucket
from natengine.settings import SECOND_NS
from natengine.wire.ipv4 import parse_ipv4_untrusted

HEAD = address("10.1.0.1")
ABOUT = "10.1.0.11:5000 > 203.0.113.2:53"


def tell(outbox: Outbox, packet: bytearray, now_ns: int = 0) -> bool:
    return outbox.error(HEAD, 3, 13, packet, parse_ipv4_untrusted(packet), now_ns)


def test_an_error_waits_until_it_is_taken() -> None:
    outbox = Outbox()
    assert not outbox
    assert tell(outbox, udp(ABOUT))
    assert len(outbox) == 1
    (error,) = outbox.take()
    assert dotted(int.from_bytes(error[16:20], "big")) == "10.1.0.11"
    assert not outbox


@pytest.mark.parametrize("packet", [
    icmp_error("10.1.0.11 > 203.0.113.2", udp(ABOUT), 3),
    icmp_error("10.1.0.11 > 203.0.113.2", udp(ABOUT), 11),
    icmp("10.1.0.11 > 203.0.113.2", 5),
    udp("10.1.0.11:5000 > 255.255.255.255:67"),
    udp("10.1.0.11:5000 > 224.0.0.251:5353"),
    udp("0.0.0.0:68 > 203.0.113.2:67"),
    udp("127.0.0.1:68 > 203.0.113.2:67"),
    udp("224.0.0.1:68 > 203.0.113.2:67"),
    udp("240.0.0.1:68 > 203.0.113.2:67"),
    ipv4("10.1.0.11", "203.0.113.2", 17, b"12345678", fragment=1),
    ipv4("10.1.0.11", "203.0.113.2", 1, b""),
])
def test_rfc1812_no_error_about_these(packet: bytearray) -> None:
    outbox = Outbox()
    assert not tell(outbox, packet)
    assert not outbox and not outbox.suppressed


@pytest.mark.parametrize("packet", [udp(ABOUT), tcp(ABOUT), ping("10.1.0.11 > 203.0.113.2", 7)])
def test_an_error_about_these(packet: bytearray) -> None:
    assert tell(Outbox(), packet)


@pytest.mark.parametrize("start_ns", [0, 2**62])
def test_one_host_gets_six_at_once_and_one_a_second(start_ns: int) -> None:
    outbox = Outbox()
    assert [tell(outbox, udp(ABOUT), start_ns) for _ in range(EACH_AT_ONCE + 1)] == [True] * EACH_AT_ONCE + [False]
    assert outbox.suppressed == 1
    assert not tell(outbox, udp(ABOUT), start_ns + SECOND_NS - 1)
    assert tell(outbox, udp(ABOUT), start_ns + SECOND_NS)
    assert not tell(outbox, udp(ABOUT), start_ns + SECOND_NS)
    assert tell(outbox, udp("10.1.0.12:5000 > 203.0.113.2:53"), start_ns + SECOND_NS), "another host"


def test_all_hosts_together_get_fifty_at_once() -> None:
    outbox = Outbox()
    told = [tell(outbox, udp(f"10.2.{n // 200}.{n % 200 + 1}:5000 > 203.0.113.2:53")) for n in range(5000)]
    assert sum(told) == ALL_AT_ONCE


def test_a_bucket_fills_again_but_not_over() -> None:
    bucket = TokenBucket(10, 3)
    assert [bucket.take(0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(SECOND_NS // 10) for _ in range(2)] == [True, False]
    assert [bucket.take(100 * SECOND_NS) for _ in range(4)] == [True, True, True, False]
