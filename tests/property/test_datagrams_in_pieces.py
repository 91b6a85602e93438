"""Random datagrams in random pieces, in any order and some of them twice: the receiver gets the right bytes or none.

scapy, which shares no code with the engine, says what the right bytes are: it makes the datagram that a whole packet
should have become, checksums and all, and puts together what came out.
"""

from __future__ import annotations

import random
import warnings
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.engines import Gateway, is_held
from support.packets import ones_sum

from natengine.vocab import Verdict
from natengine.wire.ipv4 import parse_ipv4_untrusted

WORKER, PEER, OWN = "10.1.0.11", "203.0.113.2", "203.0.113.1"
IP_HEADER = 20


@pytest.fixture(scope="module")
def inet() -> Any:
    """scapy's IPv4 layers; imported late because it is slow and warns about its own imports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("scapy.layers.inet")


def datagram(inet: Any, kind: str, source: str, destination: str, data: bytes, *, answer: bool) -> bytes:
    """What a host sends, or with other addresses: what its receiver ought to get."""
    ip = inet.IP(src=source, dst=destination, id=1)
    ports = {"sport": 53, "dport": 5000} if answer else {"sport": 5000, "dport": 53}
    if kind == "icmp":
        return bytes(ip / inet.ICMP(type=0 if answer else 8, id=5000, seq=1) / data)
    if kind == "tcp":
        return bytes(ip / inet.TCP(**ports, flags="SA" if answer else "S", seq=1000, ack=1001) / data)
    segment = ip / inet.UDP(**ports) / data
    if kind == "udp without checksum":
        segment[inet.UDP].chksum = 0
    return bytes(segment)


def cut(inet: Any, whole: bytes, ends: list[int], ident: int) -> list[bytearray]:
    """Cut at these multiples of 8 bytes."""
    payload, pieces, start = whole[IP_HEADER:], [], 0
    for end in [*(8 * each for each in ends if 8 * each < len(payload)), len(payload)]:
        ip = inet.IP(whole[:IP_HEADER])
        ip.id, ip.frag, ip.flags = ident, start // 8, "MF" if end < len(payload) else 0
        del ip.len, ip.chksum
        pieces.append(bytearray(bytes(ip / payload[start:end])))
        start = end
    return pieces


def reassembled(inet: Any, pieces: list[bytearray]) -> bytes:
    """Let scapy put the pieces of one datagram together, as its receiver would; b"" if some are missing."""
    different = [inet.IP(piece) for piece in {bytes(piece) for piece in pieces}]
    _, whole, missing = inet.defrag(sorted(different, key=lambda piece: piece.frag))
    if missing or len(whole) != 1:
        return b""
    whole[0].id, whole[0].len, whole[0].chksum = 1, None, None
    return bytes(whole[0])


def bytes_of(piece: bytearray) -> range:
    """Which bytes of its datagram a fragment has."""
    ip = parse_ipv4_untrusted(piece)
    return range(ip.fragment_offset, ip.fragment_offset + ip.total_len - ip.header_len)


class Exchange:
    """An engine, and a datagram that goes through it in pieces: from a worker, or as the answer to one."""

    def __init__(self, backend: ModuleType, inet: Any, seed: int, kind: str, data: bytes, *, answer: bool) -> None:
        self.gateway = Gateway(backend, seed=seed)
        self.answer = answer
        if answer:
            self.gateway.through(bytearray(datagram(inet, kind, WORKER, PEER, b"", answer=False)))
        self.sent = datagram(inet, kind, *((PEER, OWN) if answer else (WORKER, PEER)), data, answer=answer)
        self.wanted = datagram(inet, kind, *((PEER, WORKER) if answer else (OWN, PEER)), data, answer=answer)

    def through(self, pieces: list[bytearray]) -> dict[int, list[bytearray]]:
        """Send pieces; return what came out, by identification."""
        out: dict[int, list[bytearray]] = {}
        for piece in pieces:
            decision = self.gateway.back(piece) if self.answer else self.gateway.out(piece)
            for each in self.gateway.released() if is_held(decision) else [decision, *self.gateway.released()]:
                if each.verdict is Verdict.ACCEPT:
                    assert each.packet is not None
                    assert ones_sum(each.packet[:IP_HEADER]) == 0xFFFF
                    out.setdefault(parse_ipv4_untrusted(each.packet).identification, []).append(each.packet)
        return out

    def under_way(self) -> tuple[int, int]:
        """How many datagrams, and how many held pieces."""
        stats = self.gateway.engine.stats()
        return stats.fragment_trains, stats.held_fragments

    def after_30_seconds(self) -> tuple[int, int]:
        """The same after a while."""
        self.gateway.clock.advance(30)
        self.gateway.engine.expire(self.gateway.clock.now_ns)
        return self.under_way()


kinds = st.sampled_from(("udp", "udp without checksum", "tcp", "icmp"))
payloads = st.binary(min_size=32, max_size=300)
cuts = st.sets(st.integers(3, 40), min_size=1, max_size=8)
seeds = st.integers(0, 2**16)
examples = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@examples
@given(
    kind=kinds, answer=st.booleans(), data=payloads, ends=cuts, seed=seeds, twice=st.integers(0, 3), lost=st.booleans()
)
def test_the_right_bytes_or_none(
    fastpath_backend: ModuleType, inet: Any, *, kind: str, answer: bool, data: bytes, ends: set[int], seed: int,
    twice: int, lost: bool,
) -> None:
    """In any order, some pieces twice: the datagram that a whole one would have become; with one missing, none."""
    exchange, dice = Exchange(fastpath_backend, inet, seed, kind, data, answer=answer), random.Random(seed)
    pieces = cut(inet, exchange.sent, sorted(ends), ident=77)
    assume(len(pieces) > 1)
    if lost:
        pieces.remove(dice.choice(pieces))
    pieces += [bytearray(piece) for piece in dice.choices(pieces, k=twice)]
    dice.shuffle(pieces)
    datagrams = {reassembled(inet, out) for out in exchange.through(pieces).values()}
    # what comes again when all is whole begins another datagram: the same, or one that never will be whole
    assert datagrams - {b""} == (set() if lost else {exchange.wanted})
    assert lost or twice or exchange.under_way() == (0, 0)
    assert exchange.after_30_seconds() == (0, 0)


@examples
@given(kind=kinds, answer=st.booleans(), data=payloads, ends=cuts, other_ends=cuts, seed=seeds)
def test_no_two_pieces_overlap(
    fastpath_backend: ModuleType, inet: Any, *, kind: str, answer: bool, data: bytes, ends: set[int],
    other_ends: set[int], seed: int,
) -> None:
    """Pieces of another datagram with the same identification among them: each byte gets through once at most.

    So what the receiver puts together does not depend on what it does about overlaps (RFC 1858, RFC 5722).
    """
    exchange, dice = Exchange(fastpath_backend, inet, seed, kind, data, answer=answer), random.Random(seed)
    forged = exchange.sent[:IP_HEADER + 24] + bytes(byte ^ 0x5A for byte in exchange.sent[IP_HEADER + 24:])
    true_ones, others = (
        cut(inet, whole, sorted(where), ident=77) for whole, where in ((exchange.sent, ends), (forged, other_ends))
    )
    assume(len(true_ones) > 1 and len(others) > 1)
    pieces = true_ones + others
    dice.shuffle(pieces)
    for out in exchange.through(pieces).values():
        seen: set[int] = set()
        for piece in out:
            assert not seen & set(bytes_of(piece))
            seen |= set(bytes_of(piece))
            if reassembled(inet, out[:out.index(piece) + 1]):
                break                               # whole: the next one with this identification is another
    assert exchange.after_30_seconds() == (0, 0)
