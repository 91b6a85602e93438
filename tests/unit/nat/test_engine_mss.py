"""MSS clamping: the SYNs of both sides offer no more than the uplink takes (iptables' TCPMSS --clamp-mss-to-pmtu)."""

from __future__ import annotations

from types import ModuleType

import pytest
from support.engines import BOND_2, BOND_3, INTERFACES, Gateway, reason_of, translated
from support.packets import assert_checksums, tcp

from natengine.settings import Settings
from natengine.vocab import Reason

OUT, BACK = "10.1.0.11:5000 > 203.0.113.2:80", "203.0.113.2:80 > 203.0.113.1:5000"
PPPOE = INTERFACES[2]._replace(mtu=1492)        # bond0.2
MSS = b"\2\4\5\xb4"                             # 1460
TIMESTAMPS = b"\1\1\x08\x0a" + bytes(8)


def clamping(backend: ModuleType, *patterns: str, rules: tuple[str, ...] | None = None) -> Gateway:
    settings = Settings(max_flows=16, clamp_mss_to_pmtu=patterns)
    gateway = Gateway(backend, settings=settings) if rules is None else Gateway(backend, rules, settings=settings)
    gateway.interfaces(PPPOE)
    return gateway


def options_of(packet: bytearray) -> bytes:
    return bytes(packet[40:20 + (packet[32] >> 4) * 4])


@pytest.mark.parametrize(("before", "after"), [
    (MSS, b"\2\4\5\xac"),                                           # 1452 = 1492 - 40
    (MSS + TIMESTAMPS, b"\2\4\5\xac" + TIMESTAMPS),
    (TIMESTAMPS + MSS, TIMESTAMPS + b"\2\4\5\xac"),
    (b"\1" + MSS + b"\1\1\1", b"\1\2\4\5\xac\1\1\1"),               # at an odd place
    (b"\2\4\5\x0a", b"\2\4\5\x0a"),                                 # less already
    (b"\2\4\5\xac", b"\2\4\5\xac"),                                 # just that
    (TIMESTAMPS, TIMESTAMPS),                                       # none: 536 counts
    (b"\0" + MSS + b"\1\1\1", b"\0" + MSS + b"\1\1\1"),             # behind the end of the list
    (b"\2\3\5\xb4", b"\2\3\5\xb4"),                                 # malformed
    (b"", b""),
])
def test_syns_of_both_sides_fit_the_uplink(fastpath_backend: ModuleType, before: bytes, after: bytes) -> None:
    """The packet is what a sender with that option would have made, checksum and all."""
    gateway = clamping(fastpath_backend, "bond0.2")
    sent = gateway.through(tcp(OUT, "S", tcp_options=before))
    assert sent == tcp("203.0.113.1:5000 > 203.0.113.2:80", "S", tcp_options=after)
    again = gateway.through(tcp(OUT, "S", tcp_options=before))
    assert again == sent
    answer = gateway.returned(tcp(BACK, "SA", tcp_options=before))
    assert answer == tcp("203.0.113.2:80 > 10.1.0.11:5000", "SA", tcp_options=after)


def test_only_syns_are_looked_at(fastpath_backend: ModuleType) -> None:
    gateway = clamping(fastpath_backend, "bond0.2")
    gateway.through(tcp(OUT, "S"))
    gateway.returned(tcp(BACK, "SA"))
    assert options_of(gateway.through(tcp(OUT, "A", tcp_options=MSS))) == MSS


@pytest.mark.parametrize("patterns", [(), ("bond0.3",), ("ppp+",)])
def test_uplinks_that_nobody_named_clamp_nothing(fastpath_backend: ModuleType, patterns: tuple[str, ...]) -> None:
    gateway = clamping(fastpath_backend, *patterns)
    assert options_of(gateway.through(tcp(OUT, "S", tcp_options=MSS))) == MSS


def test_each_uplink_has_its_own_limit(fastpath_backend: ModuleType) -> None:
    gateway = clamping(fastpath_backend, "bond0.+")
    gateway.interfaces(INTERFACES[3]._replace(mtu=1280))
    assert options_of(gateway.through(tcp(OUT, "S", tcp_options=MSS), BOND_2)) == b"\2\4\5\xac"
    other = tcp("10.1.0.11:5001 > 198.51.100.2:80", "S", tcp_options=MSS)
    assert options_of(gateway.through(other, BOND_3)) == b"\2\4\4\xd8"      # 1240


def test_another_mtu_counts_from_the_next_syn(fastpath_backend: ModuleType) -> None:
    gateway = clamping(fastpath_backend, "bond0.2")
    gateway.interfaces(PPPOE._replace(mtu=1400))
    assert options_of(gateway.through(tcp(OUT, "S", tcp_options=MSS))) == b"\2\4\5\x50"


def test_untranslated_connections_are_clamped_too(fastpath_backend: ModuleType) -> None:
    """An ACCEPT rule: the addresses stay, the packet has changed all the same."""
    gateway = clamping(fastpath_backend, "bond0.2", rules=("-t nat -A POSTROUTING -o bond0.2 -j ACCEPT",))
    sent = translated(gateway.out(tcp(OUT, "S", tcp_options=MSS)))
    assert sent == tcp(OUT, "S", tcp_options=b"\2\4\5\xac")
    assert reason_of(gateway.out(tcp(OUT, "S", tcp_options=b"\2\4\1\0"))) is Reason.UNCHANGED


def test_a_refused_syn_is_not_changed(fastpath_backend: ModuleType) -> None:
    gateway = clamping(fastpath_backend, "bond0.2")
    gateway.through(tcp(OUT, "S"))
    gateway.returned(tcp(BACK, "SA"))
    gateway.through(tcp(OUT, "A"))
    packet = tcp(BACK, "S", seq=5, tcp_options=MSS)
    before = bytes(packet)
    assert reason_of(gateway.back(packet)) is Reason.TCP_STATE
    assert bytes(packet) == before


def test_a_wrong_checksum_stays_wrong(fastpath_backend: ModuleType) -> None:
    """RFC 1624: what was damaged on its way in can still be seen to be."""
    gateway = clamping(fastpath_backend, "bond0.2")
    packet = tcp(OUT, "S", tcp_options=MSS)
    packet[-1] ^= 1                 # the last byte of the option: 1461
    with pytest.raises(AssertionError):
        assert_checksums(gateway.through(packet))
