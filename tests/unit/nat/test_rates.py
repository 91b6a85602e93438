"""`RateLimit`, and what it is for: floods of new flows."""

from __future__ import annotations

from types import ModuleType

from support.engines import BOND_DEF, Gateway, reason_of
from support.packets import fragments, tcp, udp

from natengine.nat.rates import FRAGMENTS_A_FLOW, MEMBERS_REMEMBERED, RateLimit
from natengine.settings import SECOND_NS, Settings
from natengine.vocab import Decision, Hook, PacketMeta, Reason

SHARE = 100
SETTINGS = Settings(max_flows=4096, new_flows_when_busy=SHARE)
AT_ONCE = SHARE


def test_each_and_all() -> None:
    """Two a second each, three in all: the third member gets what the first two have left."""
    limit = RateLimit(each=(2, 2), all=(3, 3))
    assert [limit.take(member, 0) for member in (1, 1, 1, 2, 2)] == [True, True, False, True, False]
    assert [limit.take(member, SECOND_NS) for member in (3, 2, 1, 1)] == [True, True, True, False]


def test_members_are_forgotten_in_the_order_of_their_silence() -> None:
    limit = RateLimit(each=(1, 1), all=(10**6, 10**6))
    assert limit.take(0, 0) and not limit.take(0, 0)
    for member in range(1, MEMBERS_REMEMBERED):
        assert limit.take(member, 0)
    assert not limit.take(0, 0)                         # heard of again: the oldest is now 1
    assert limit.take(MEMBERS_REMEMBERED, 0)
    assert not limit.take(0, 0)
    assert limit.take(1, 0)
    assert len(limit) == MEMBERS_REMEMBERED, "memory is bounded"


def offer(gateway: Gateway, packet: bytearray, *, busy: bool = True, came: int = BOND_DEF) -> Decision:
    """A packet on its way out, as an adapter with packets waiting hands it over."""
    meta = PacketMeta(Hook.POSTROUTING, came, 3, 0)
    return gateway.engine.process(packet, meta, gateway.clock.now_ns, busy=busy)


def scan(
    gateway: Gateway, n: int, *, source: str = "10.1.0.11", first: int = 5000, busy: bool = True, came: int = BOND_DEF
) -> int:
    """Begin `n` flows at this moment; return how many were let."""
    reasons = [
        reason_of(offer(gateway, udp(f"{source}:{first + i} > 203.0.113.2:53"), busy=busy, came=came)) for i in range(n)
    ]
    assert set(reasons) <= {Reason.NEW_FLOW, Reason.TRANSLATED, Reason.UNCHANGED, Reason.RATE_LIMIT}
    return len(reasons) - reasons.count(Reason.RATE_LIMIT)


def test_a_flood_takes_no_more_than_its_senders_share(fastpath_backend: ModuleType) -> None:
    """Another host begins its flows meanwhile, and known flows of the flooding one itself go on."""
    gateway = Gateway(fastpath_backend, settings=SETTINGS)
    known = tcp("10.1.0.11:4000 > 203.0.113.2:80")
    assert reason_of(offer(gateway, bytearray(known))) is Reason.NEW_FLOW
    assert scan(gateway, 1000) == AT_ONCE - 1
    assert scan(gateway, AT_ONCE, source="10.1.0.12") == AT_ONCE
    assert reason_of(offer(gateway, bytearray(known))) is Reason.TRANSLATED
    assert gateway.count(Reason.RATE_LIMIT) == 1000 - AT_ONCE + 1
    gateway.clock.advance(1)
    assert scan(gateway, 1000, first=20_000) == AT_ONCE, "a second later it has its share again"


def test_who_keeps_nobody_waiting_is_not_limited(fastpath_backend: ModuleType) -> None:
    gateway = Gateway(fastpath_backend, settings=SETTINGS)
    assert scan(gateway, 1000, busy=False) == 1000
    unlimited = Gateway(fastpath_backend, settings=Settings(max_flows=4096, new_flows_when_busy=0))
    assert scan(unlimited, 1000) == 1000


def test_forged_sources_share_what_all_may_have(fastpath_backend: ModuleType) -> None:
    gateway = Gateway(fastpath_backend, settings=SETTINGS)
    let = sum(scan(gateway, 1, source=f"10.1.{n >> 8}.{n & 255}") for n in range(3000))
    assert let == 8 * SHARE


def test_strangers_share_their_uplink(fastpath_backend: ModuleType) -> None:
    """And the head's own packets are nobody's flood."""
    gateway = Gateway(fastpath_backend, settings=SETTINGS)
    meta = PacketMeta(Hook.PREROUTING, 3, 0, 0)
    let = [
        gateway.engine.process(
            udp(f"203.0.113.{2 + n % 200}:9 > 203.0.113.1:{n + 1}"), meta, gateway.clock.now_ns, busy=True
        ).reason for n in range(500)
    ]
    assert let.count(Reason.LOCAL_IN) == AT_ONCE and let.count(Reason.RATE_LIMIT) == 500 - AT_ONCE
    assert scan(gateway, 500, source="203.0.113.1", came=0) == 500


def test_a_flood_of_fragments_counts_too(fastpath_backend: ModuleType) -> None:
    """But a datagram of 64 KiB is 44 of them, so there may be more."""
    gateway = Gateway(fastpath_backend, settings=SETTINGS)
    datagram = udp("10.1.0.11:5000 > 203.0.113.2:53", bytes(64))
    pieces = [piece for n in range(700) for piece in fragments(datagram, 48, n)]
    let = [reason_of(offer(gateway, piece)) for piece in pieces].count(Reason.FRAGMENT)
    assert let == FRAGMENTS_A_FLOW * SHARE < len(pieces)


def test_known_flows_are_asked_about_again_however_busy(fastpath_backend: ModuleType) -> None:
    """After a change of the rules, FORWARD is asked about each flow: that is nobody's flood."""
    gateway = Gateway(fastpath_backend, settings=SETTINGS)
    assert scan(gateway, 3 * AT_ONCE, busy=False) == 3 * AT_ONCE
    gateway.rules("-P FORWARD ACCEPT")
    gateway.rules("-A FORWARD -i bond0.def -j ACCEPT")
    assert scan(gateway, 3 * AT_ONCE) == 3 * AT_ONCE
