"""Attacks by name, on the whole engine.  docs/reliability.md has the table, with those that are tested elsewhere."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections import Counter
from dataclasses import replace
from types import ModuleType

import pytest
from support.backends import load_backend, table_config
from support.engines import BOND_2, BOND_3, BOND_DEF, INTERFACES, OWNER_RULES, Gateway, reason_of, translated
from support.packets import describe, fragments, icmp_error, ping, quote_of, source_port, tcp, udp

from natengine.flow.records import FlowSpec, Path
from natengine.nat.arriving import MAX_HELD_SYNS
from natengine.nat.outbox import ALL_A_SECOND, EACH_AT_ONCE
from natengine.settings import FilteringBehaviour, Settings
from natengine.vocab import Hook, Interface, Proto, Reason, Verdict

OUT, BACK = "10.1.0.11:5000 > 203.0.113.2:80", "203.0.113.2:80 > 203.0.113.1:5000"
OPEN_DOOR = replace(Settings(max_flows=1024), filtering=FilteringBehaviour.ENDPOINT_INDEPENDENT)


# ── addresses that cannot be ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("source", [
    "10.1.0.11", "10.1.0.200", "10.2.0.7",      # inside; of a host that has flows, and not
    "10.1.0.1", "203.0.113.1", "198.51.100.1",  # the head's own
    "127.0.0.1",
])
@pytest.mark.parametrize("to", ["10.1.0.12:5000", "203.0.113.1:5000", "203.0.113.1:22", "203.0.113.255:5000"])
@pytest.mark.parametrize("build", [udp, tcp, ping])
def test_rfc2827_spoofed_inside_source_from_the_uplink(
    fastpath_backend: ModuleType, source: str, to: str, build: object
) -> None:
    """Neither a worker with the most open filtering nor the head hears of it; nobody is told, either."""
    gateway = Gateway(fastpath_backend, settings=OPEN_DOOR)
    gateway.through(udp(OUT))
    gateway.through(tcp(OUT))
    text = f"{source}:80 > {to}"
    packet = ping(text.replace(":80", "").rpartition(":")[0], 5000) if build is ping else build(text)  # type: ignore[operator]
    before = bytes(packet)
    assert reason_of(gateway.back(packet)) is Reason.SPOOFED
    assert packet == before and len(gateway.engine.flows()) == 2
    gateway.clock.advance(10)
    gateway.engine.expire(gateway.clock.now_ns)
    assert gateway.engine.outbox.take() == []


@pytest.mark.parametrize("build", [udp, tcp])
def test_land(fastpath_backend: ModuleType, build: object) -> None:
    """Source and destination are one and the same endpoint, be it a worker's or nobody's."""
    gateway = Gateway(fastpath_backend, settings=OPEN_DOOR)
    gateway.through(build(OUT))  # type: ignore[operator]
    for endpoint in ("203.0.113.1:5000", "203.0.113.1:139", "198.51.100.1:5000"):
        assert reason_of(gateway.back(build(f"{endpoint} > {endpoint}"))) is Reason.SPOOFED  # type: ignore[operator]
    assert len(gateway.engine.flows()) == 1


def test_an_uplinks_own_neighbours_are_nobodys_spoof(fastpath_backend: ModuleType) -> None:
    """An inside network that is part of the uplink's, and the other way round: the smaller one counts."""
    campus = Interface(BOND_2, "bond0.2", INTERFACES[2].addresses, networks=((10 << 24, 0xFF00_0000),))
    gateway = Gateway(fastpath_backend)
    gateway.interfaces(campus)
    assert reason_of(gateway.back(udp("10.9.0.1:1 > 203.0.113.1:2"))) is Reason.LOCAL_IN
    assert reason_of(gateway.back(udp("10.1.0.9:1 > 203.0.113.1:2"))) is Reason.SPOOFED
    gateway.interfaces(campus._replace(networks=((10 << 24 | 1 << 16, 0xFFFF_FF00),)))
    assert reason_of(gateway.back(udp("10.1.0.9:1 > 203.0.113.1:2"))) is Reason.LOCAL_IN


def test_the_other_uplinks_neighbours_may_come_this_way(gateway: Gateway) -> None:
    """Two uplinks are two ways to one internet."""
    assert reason_of(gateway.back(udp("198.51.100.2:1 > 203.0.113.1:2"))) is Reason.LOCAL_IN
    assert reason_of(gateway.back(udp("203.0.113.2:1 > 203.0.113.1:2"), BOND_3)) is Reason.LOCAL_IN


# ── what is forged in a connection of others ─────────────────────────────────────────────────────


def established(gateway: Gateway) -> None:
    gateway.through(tcp(OUT, "S"))
    gateway.returned(tcp(BACK, "SA"))
    gateway.through(tcp(OUT, "A"))


def guesses(n: int) -> list[int]:
    """Sequence numbers from all over the circle, but for a little around the connection's own."""
    dice = random.Random(5)
    return [dice.randrange(1001 + 2**17, 2**32 - 2**17) for _ in range(n)]


@pytest.mark.parametrize("flags", ["R", "RA", "FA", "A", "PA"])
def test_rfc5961_3_blind_reset_and_blind_data(gateway: Gateway, flags: str) -> None:
    """Of a thousand guesses none gets through, and the connection is as it was."""
    established(gateway)
    before = gateway.flow()
    for seq in guesses(1000):
        assert reason_of(gateway.back(tcp(BACK, flags, seq=seq))) is Reason.TCP_WINDOW
    assert gateway.flow() == before


def test_rfc5961_3_a_reset_in_the_window_ends_nothing_here(gateway: Gateway) -> None:
    """Only its receiver can ask back, so it gets the RST; our own record stays for the answer."""
    established(gateway)
    before = gateway.flow()
    assert gateway.returned(tcp(BACK, "R", seq=1300))
    after = gateway.flow()
    assert (after.tcp_state, after.sides) == (before.tcp_state, before.sides)
    assert gateway.through(tcp(OUT, "A"))               # the challenge ACK


@pytest.mark.parametrize("seq", [1, 1100, 1400, 2**31, 2**32 - 1])
def test_rfc5961_4_blind_syn(gateway: Gateway, seq: int) -> None:
    """A SYN in the middle moves neither state nor numbers, whatever its own."""
    established(gateway)
    before = gateway.flow()
    gateway.back(tcp(BACK, "S", seq=seq, ack=0))
    after = gateway.flow()
    assert (after.tcp_state, after.sides) == (before.tcp_state, before.sides)
    assert gateway.through(tcp(OUT, "PA", b"goes on"))
    assert gateway.returned(tcp(BACK, "PA", b"this, too"))


@pytest.mark.parametrize(("kind", "code"), [(3, 1), (3, 3), (3, 4), (11, 0), (12, 0), (4, 0), (5, 1)])
def test_rfc5927_forged_icmp_errors(gateway: Gateway, kind: int, code: int) -> None:
    """One that quotes no flow of ours goes to nobody inside; one that does ends nothing."""
    established(gateway)
    before = gateway.flow()
    guess = icmp_error("203.0.113.9 > 203.0.113.1", tcp("203.0.113.1:5001 > 203.0.113.2:80"), kind, code)
    assert reason_of(gateway.back(guess)) is Reason.LOCAL_IN
    wrong_way = icmp_error("203.0.113.9 > 203.0.113.1", tcp("10.1.0.11:5000 > 203.0.113.2:80"), kind, code)
    assert reason_of(gateway.back(wrong_way)) is Reason.LOCAL_IN
    gateway.back(icmp_error("203.0.113.9 > 203.0.113.1", tcp("203.0.113.1:5000 > 203.0.113.2:80"), kind, code))
    assert gateway.flow() == before


# ── storms ───────────────────────────────────────────────────────────────────────────────────────


def test_icmp_error_storm(gateway: Gateway) -> None:
    """Errors about flows that are not there cost nothing that grows, and the engine answers none of them."""
    established(gateway)
    before = gateway.engine.stats()
    for n in range(5000):
        quoted = tcp(f"203.0.113.1:{n % 60000 + 1} > 198.51.100.7:{n % 999 + 1}")
        gateway.back(icmp_error(f"203.0.113.{n % 200 + 2} > 203.0.113.1", quoted, 3, n % 16))
        gateway.out(icmp_error(f"10.1.0.{n % 200 + 2} > 198.51.100.7", quoted, 3, n % 16))
    after = gateway.engine.stats()
    assert (after.flows, after.mappings, after.fragment_trains) == (
        before.flows, before.mappings, before.fragment_trains
    )
    assert gateway.engine.outbox.take() == []
    assert gateway.through(tcp(OUT, "PA", b"goes on"))


def test_ttl_expiry_storm(gateway: Gateway) -> None:
    """The head's own errors about expired packets reach whom they are for, and show no inside address."""
    sent = gateway.through(udp(OUT, ttl=1))
    dice = random.Random(9)
    for _ in range(2000):
        answer = icmp_error(f"203.0.113.{dice.randrange(2, 250)} > 203.0.113.1", sent, 11, 0)
        back = gateway.returned(answer)
        assert describe(quote_of(back)) == OUT
    for _ in range(2000):                               # about what came in and went no further
        told = icmp_error("203.0.113.1 > 203.0.113.2", udp("203.0.113.2:80 > 10.1.0.11:5000"), 11, 0)
        assert describe(quote_of(translated(gateway.head(told)))) == BACK
    assert len(gateway.engine.flows()) == 1


def test_refusals_cannot_be_used_to_flood_others(fastpath_backend: ModuleType) -> None:
    """What the engine says itself is bounded for each host and for all, however much it refuses (RFC 1812 4.3.2.8)."""
    rule = "-t nat -A POSTROUTING -o bond0.2 -p udp -j MASQUERADE --to-ports 6000-6000"
    gateway = Gateway(fastpath_backend, [rule])
    gateway.through(udp(OUT))
    told: Counter[int] = Counter()
    for n in range(20_000):
        gateway.out(udp(f"10.1.{n % 100 + 1}.9:{n % 60_000 + 1} > 203.0.113.2:80"))
        told.update(int.from_bytes(error[16:20], "big") for error in gateway.engine.outbox.take())
        gateway.clock.now_ns += 100_000                 # 10,000 a second
    assert 0 < max(told.values()) <= EACH_AT_ONCE + 2
    assert told.total() <= 2 * ALL_A_SECOND


def test_syn_flood_from_outside_is_bounded(gateway: Gateway) -> None:
    """Memory for held SYNs has a bound, and the flows of workers do not notice."""
    established(gateway)
    for n in range(3 * MAX_HELD_SYNS):
        gateway.back(tcp(f"203.0.113.{n % 250 + 2}:{n % 60_000 + 1} > 203.0.113.1:5000"))
    gateway.clock.advance(7)
    gateway.engine.expire(gateway.clock.now_ns)
    assert len(gateway.engine.outbox.take()) <= MAX_HELD_SYNS
    assert len(gateway.engine.flows()) == 1
    assert gateway.through(tcp(OUT, "PA", b"goes on"))


# ── fragments ────────────────────────────────────────────────────────────────────────────────────


def test_rfc1858_tiny_fragment(gateway: Gateway) -> None:
    """A first fragment without the whole TCP header shows no flags: it begins nothing and does not leave."""
    pieces = fragments(tcp(OUT, "S"), 8)
    assert reason_of(gateway.out(pieces[0])).verdict is Verdict.DROP
    assert all(reason_of(gateway.out(piece)).verdict is Verdict.DROP for piece in pieces[1:])
    assert gateway.engine.flows() == []


def test_rfc3128_overlap_that_rewrites_the_header(gateway: Gateway) -> None:
    """A fragment at offset 8 would put other flags behind a first one that was let in."""
    evil = tcp(OUT, "S", bytes(40))
    first = fragments(evil, 24, ident=9)[0]
    assert reason_of(gateway.out(first)).verdict is Verdict.ACCEPT
    over = fragments(evil, 8, ident=9)[1]
    assert reason_of(gateway.out(over)) is Reason.FRAGMENT_TINY
    assert len(gateway.engine.flows()) == 1


# ── what can be guessed ──────────────────────────────────────────────────────────────────────────


def ports_given(backend: ModuleType, n: int) -> list[int]:
    """The outside ports of flows of many hosts that all come from one port, so that each but one is chosen."""
    gateway = Gateway(backend, OWNER_RULES, settings=Settings(max_flows=8192), seed=11)
    return [
        source_port(gateway.through(udp(f"10.1.{n >> 8}.{n & 255}:5001 > 203.0.113.2:53"))) for n in range(n)
    ][1:]


def test_rfc6056_port_prediction(fastpath_backend: ModuleType) -> None:
    """From the ports so far the next one cannot be told: no step is usual, no region is preferred.

    The dice are seeded, so this passes or fails the same way each time; the running engine throws the system's.
    """
    ports = ports_given(fastpath_backend, 4001)
    assert len(set(ports)) == len(ports) and all(1024 <= port <= 65535 for port in ports)
    steps = Counter((after - before) % 65536 for before, after in itertools.pairwise(ports))
    assert max(steps.values()) <= 5                                     # of 4000 among 32,256 even ones
    buckets = Counter((port - 1024) * 32 // 64512 for port in ports)
    expected = len(ports) / 32
    chi_square = sum((buckets[i] - expected) ** 2 / expected for i in range(32))
    assert 10 < chi_square < 62                                         # 31 degrees of freedom, 0.1 % at each end
    middle = statistics.median(ports)
    rising = sum(after > before for before, after in itertools.pairwise(ports))
    assert 0.46 < rising / len(ports) < 0.54 and 31_000 < middle < 35_500


WORD = 2**64 - 1


def rotate(word: int, bits: int) -> int:
    return (word << bits | word >> (64 - bits)) & WORD


def sip_rounds(v: list[int], n: int) -> None:
    for _ in range(n):
        v[0], v[2] = (v[0] + v[1]) & WORD, (v[2] + v[3]) & WORD
        v[1], v[3] = rotate(v[1], 13) ^ v[0], rotate(v[3], 16) ^ v[2]
        v[0] = rotate(v[0], 32)
        v[2], v[0] = (v[2] + v[1]) & WORD, (v[0] + v[3]) & WORD
        v[1], v[3] = rotate(v[1], 17) ^ v[2], rotate(v[3], 21) ^ v[0]
        v[2] = rotate(v[2], 32)


def hash_of(key: bytes, src: int, dst: int, src_port: int, dst_port: int) -> int:
    """SipHash-1-3 of an arriving UDP tuple, as the compiled table's index takes it: what an attacker would compute."""
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]
    for word in (src | dst << 32, src_port | dst_port << 16 | Proto.UDP << 32 | 14 << 56):
        v[3] ^= word
        sip_rounds(v, 1)
        v[0] ^= word
    v[2] ^= 0xFF
    sip_rounds(v, 3)
    return (v[0] ^ v[1] ^ v[2] ^ v[3]) & 0xFFFF_FFFF


def cost_of_a_miss(key: bytes, peer_ports: list[int], *, calls: int = 2000) -> float:
    """Seconds that a table with this key and flows with these peers needs for a packet of one more peer."""
    table = load_backend("cython").FastPath(table_config(CAPACITY, hash_key=key))
    *known, last = peer_ports
    for port in known:
        spec = FlowSpec(Proto.UDP, 0x0A01000B, 5000, OUTSIDE, 5000, PEER, port, True, BOND_DEF, BOND_2, 7)
        assert table.install(spec, 0) >= 0
    packet = udp(f"203.0.113.2:{last} > 203.0.113.1:5000")

    def once() -> float:
        began = time.perf_counter()
        for _ in range(calls):
            table.translate(packet, Hook.PREROUTING, 0)
        return time.perf_counter() - began

    assert table.translate(packet, Hook.PREROUTING, 0) == Path.MISS
    return min(once() for _ in range(15))


CAPACITY, ENTRIES = 128, 512
OUTSIDE, PEER = 0xCB007101, 0xCB007102


def test_hash_collisions_take_the_secret_key() -> None:
    """Who knows the key fills one place of the index, and a lookup there costs several times as much.

    Under another key, as each engine draws its own, the same packets are spread and cost no more than any.
    """
    load_backend("cython")                              # skips where it is not built
    known, secret = bytes(range(16)), bytes(range(16, 32))
    aimed = [port for port in range(1, 65536) if hash_of(known, PEER, OUTSIDE, port, 5000) % ENTRIES == 77]
    aimed = aimed[:CAPACITY]
    assert len(aimed) > 100
    for _ in range(5):                                  # the machine may be busy; an attack would always show
        usual = cost_of_a_miss(secret, list(range(1000, 1000 + len(aimed))))
        hit, spread = cost_of_a_miss(known, aimed), cost_of_a_miss(secret, aimed)
        if hit > 1.3 * spread and spread < 1.3 * usual:
            return
    pytest.fail(f"with the key {hit:.6f} s, without {spread:.6f} s, usually {usual:.6f} s")
