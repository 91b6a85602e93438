"""Later fragments that come before the first one: they wait, and it decides about them; none waits for ever."""

from __future__ import annotations

from itertools import permutations
from types import ModuleType

import pytest
from support.engines import BOND_2, BOND_DEF, Gateway, is_held, reason_of
from support.packets import assert_checksums, describe, fragments, ipv4, joined, ping, pong, tcp, udp

from natengine.nat.fragment_path import HELD_BYTES, HELD_LEAST, HELD_SHARE
from natengine.settings import SECOND_NS, Settings
from natengine.vocab import Decision, Hook, Reason, Verdict
from natengine.wire.ipv4 import parse_ipv4_untrusted

OUT, BACK = "10.1.0.11:5000 > 203.0.113.2:53", "203.0.113.2:53 > 203.0.113.1:5000"
DATA = bytes(range(256)) * 2
OUTSIDE = "203.0.113.1:5000 > 203.0.113.2:53"
INSIDE = "203.0.113.2:53 > 10.1.0.11:5000"


def identification(packet: bytearray) -> int:
    return parse_ipv4_untrusted(packet).identification


def passed(gateway: Gateway, pieces: list[bytearray], hook: Hook = Hook.POSTROUTING) -> list[bytearray]:
    """Let pieces through in this order; return what was accepted, in the order of the verdicts."""
    place = (BOND_2, 0) if hook == Hook.PREROUTING else (BOND_DEF, BOND_2)
    result = []
    for piece in pieces:
        decision = gateway.process(piece, hook, *place)
        for each in ([] if is_held(decision) else [decision], gateway.released()):
            result += [one.packet for one in each if one.verdict is Verdict.ACCEPT and one.packet is not None]
    return result


def in_order(pieces: list[bytearray]) -> list[bytearray]:
    return sorted(pieces, key=lambda piece: parse_ipv4_untrusted(piece).fragment_offset)


ORDERS = list(permutations(range(3)))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        (udp(OUT, DATA), udp(OUTSIDE, DATA)), (tcp(OUT, "S", DATA), tcp(OUTSIDE, "S", DATA)),
        (ping("10.1.0.11 > 203.0.113.2", 7, DATA), ping("203.0.113.1 > 203.0.113.2", 7, DATA)),
    ],
    ids=["udp", "tcp", "icmp"],
)
def test_rfc4787_req14_leaving_in_any_order(
    gateway: Gateway, order: tuple[int, ...], inside: bytearray, outside: bytearray
) -> None:
    """RFC 4787 REQ-14: out of order too, the receiver gets the datagram that a whole one would have become."""
    pieces = fragments(inside, 200)
    out = passed(gateway, [pieces[i] for i in order])
    assert len({identification(piece) for piece in out}) == 1
    assert joined(in_order(out)) == outside
    for piece in out:
        assert_checksums(piece, transport=False)
    assert gateway.engine.stats()[2:4] == (0, 0)            # nothing is kept of it
    assert sum(gateway.engine.stats().by_reason.values()) == gateway.count(Reason.FRAGMENT) == 3


@pytest.mark.parametrize("order", ORDERS)
def test_rfc4787_req14_arriving_in_any_order(gateway: Gateway, order: tuple[int, ...]) -> None:
    """The same the other way, and with the identification that the sender gave it."""
    gateway.through(udp(OUT))
    gateway.through(ping("10.1.0.11 > 203.0.113.2", 7))
    for answer, wanted in (
        (udp(BACK, DATA), udp(INSIDE, DATA)),
        (pong("203.0.113.2 > 203.0.113.1", 7, DATA), pong("203.0.113.2 > 10.1.0.11", 7, DATA)),
    ):
        pieces = fragments(answer, 200, ident=77)
        out = passed(gateway, [pieces[i] for i in order], Hook.PREROUTING)
        assert {identification(piece) for piece in out} == {77}
        assert joined(in_order(out)) == wanted


def test_the_first_goes_first_then_the_others_as_they_came(gateway: Gateway) -> None:
    """Whoever only takes fragments in order, behind us, has a chance."""
    pieces = fragments(udp(OUT, DATA), 104)
    tickets = [gateway.out(pieces[i]).ticket for i in (4, 2, 1)]
    assert gateway.released() == []
    assert gateway.engine.stats()[2:4] == (1, 3)
    decision = gateway.out(pieces[0])
    assert (decision.reason, decision.ticket) == (Reason.FRAGMENT, 0)
    assert [(each.ticket, each.reason) for each in gateway.released()] == [(n, Reason.FRAGMENT) for n in tickets]
    assert gateway.through(pieces[3])
    assert gateway.engine.stats()[2:4] == (0, 0)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("-P FORWARD DROP", Reason.FORWARD_DROP), ("-t nat -F", Reason.NO_RULE),
    ],
)
def test_refused_with_the_first_one(gateway: Gateway, rule: str, reason: Reason) -> None:
    """What waits goes the way of the first fragment, also when that is no way at all."""
    first, *later = fragments(udp(OUT, DATA), 200)
    gateway.rules(rule)
    assert all(is_held(gateway.out(piece)) for piece in later)
    assert reason_of(gateway.out(first)) is reason
    assert [(each.verdict, each.reason) for each in gateway.released()] == [(Verdict.DROP, reason)] * 2
    assert gateway.engine.stats()[2:4] == (0, 0)


def test_for_the_head_itself(gateway: Gateway) -> None:
    """Before the first one comes nobody knows that they are not a worker's; then they are the head's, as they are."""
    for pieces, decide, reason in (
        (fragments(udp("203.0.113.2:9 > 203.0.113.1:9", DATA), 200), gateway.back, Reason.LOCAL_IN),
        (fragments(ping("203.0.113.2 > 203.0.113.1", 9, DATA), 200), gateway.back, Reason.LOCAL_IN),
        (fragments(udp("203.0.113.1:9 > 203.0.113.2:9", DATA), 200), gateway.head, Reason.FRAGMENT),
    ):
        before = [bytes(piece) for piece in pieces]
        assert all(is_held(decide(piece)) for piece in pieces[1:])
        assert reason_of(decide(pieces[0])) is reason
        assert [each.reason for each in gateway.released()] == [reason] * 2
        assert [bytes(piece) for piece in pieces] == before


def test_rfc6146_held_for_30_seconds(gateway: Gateway) -> None:
    """RFC 6146 wants 2 s at least; then they are dropped, and nobody is told: fragment zero was never seen."""
    later = fragments(udp(OUT, DATA), 200)[1:]
    gateway.out(later[0])
    gateway.clock.advance(2)
    gateway.out(later[1])
    gateway.clock.advance(ns=28 * SECOND_NS - 1)
    gateway.engine.expire(gateway.clock.now_ns)
    assert gateway.released() == []
    gateway.clock.advance(ns=1)
    gateway.engine.expire(gateway.clock.now_ns)
    assert [each.reason for each in gateway.released()] == [Reason.FRAGMENT_ORPHAN] * 2
    assert gateway.engine.stats()[2:4] == (0, 0)
    assert not gateway.engine.outbox


def test_the_flow_ends_while_fragments_wait(gateway: Gateway) -> None:
    """The first one begins it anew."""
    gateway.through(udp(OUT))
    first, *later = fragments(udp(OUT, DATA), 200)
    for piece in later:
        gateway.out(piece)
    gateway.engine.remove_flow(gateway.flow().flow_id, gateway.clock.now_ns)
    assert gateway.through(first)
    assert [each.reason for each in gateway.released()] == [Reason.FRAGMENT] * 2


# ── fragments that contradict each other ────────────────────────────────────────────────────────


def test_rfc5722_an_overlap_ends_the_datagram(gateway: Gateway) -> None:
    """Nothing of it passes any more, in whichever order it comes; another one does."""
    gateway.through(udp(OUT))
    pieces = fragments(udp(OUT, DATA), 104)
    overlapping = ipv4("10.1.0.11", "203.0.113.2", 17, bytes(104), ident=7, fragment=0x2000 | 20)
    gateway.through(pieces[0][:])
    gateway.through(pieces[1])
    assert reason_of(gateway.out(overlapping)) is Reason.FRAGMENT_OVERLAP
    for piece in (pieces[2], pieces[3], pieces[4], pieces[0]):
        assert reason_of(gateway.out(piece[:])) is Reason.FRAGMENT_OVERLAP
    for piece in fragments(udp(OUT, DATA), 104, ident=8):
        assert gateway.through(piece)


def test_rfc5722_an_overlap_ends_what_waits(gateway: Gateway) -> None:
    """Also the fragments that came before it."""
    pieces = fragments(udp(OUT, DATA), 104)
    held = [gateway.out(piece) for piece in pieces[2:]]
    overlapping = ipv4("10.1.0.11", "203.0.113.2", 17, bytes(104), ident=7, fragment=0x2000 | 20)
    assert reason_of(gateway.out(overlapping)) is Reason.FRAGMENT_OVERLAP
    assert [each.ticket for each in gateway.released()] == [each.ticket for each in held]
    assert gateway.count(Reason.FRAGMENT_OVERLAP) == 4
    assert reason_of(gateway.out(pieces[0])) is Reason.FRAGMENT_OVERLAP
    assert gateway.engine.flows() == []


def test_rfc3128_a_second_first_fragment(gateway: Gateway) -> None:
    """One that would rewrite the header which the rules have seen: it is shorter, or longer, or has other ports."""
    gateway.through(fragments(tcp(OUT, "S", DATA), 200)[0])
    short = fragments(tcp(OUT, "A", DATA), 104)[0]
    assert reason_of(gateway.out(short)) is Reason.FRAGMENT_DUPLICATE
    long = fragments(tcp(OUT, "A", DATA), 400)[0]
    assert reason_of(gateway.out(long)) is Reason.FRAGMENT_OVERLAP


def test_a_repeated_fragment_that_waits(gateway: Gateway) -> None:
    """It waits once."""
    pieces = fragments(udp(OUT, DATA), 200)
    assert is_held(gateway.out(pieces[1][:]))
    assert reason_of(gateway.out(pieces[1][:])) is Reason.FRAGMENT_DUPLICATE
    assert gateway.engine.stats().held_fragments == 1


# ── identifications ─────────────────────────────────────────────────────────────────────────────


def test_rfc6864_two_hosts_with_one_identification(gateway: Gateway) -> None:
    """RFC 3022 6.3, RFC 7857 10: to one destination, piece by piece in turns; the receiver can tell them apart."""
    mine = fragments(udp("10.1.0.11:5000 > 203.0.113.2:53", DATA), 200)
    theirs = fragments(udp("10.1.0.12:6000 > 203.0.113.2:53", DATA[::-1]), 200)
    out = passed(gateway, [mine[1], theirs[0], mine[0], theirs[2], mine[2], theirs[1]])
    by_identification: dict[int, list[bytearray]] = {}
    for piece in out:
        by_identification.setdefault(identification(piece), []).append(piece)
    datagrams = [joined(in_order(pieces)) for pieces in by_identification.values()]
    assert udp(OUTSIDE, DATA) in datagrams
    assert udp("203.0.113.1:6000 > 203.0.113.2:53", DATA[::-1]) in datagrams
    assert len(datagrams) == 2
    first, second = by_identification
    assert (second - first) & 0xFFFF == 1


def test_rfc6864_one_host_never_repeats_itself(gateway: Gateway) -> None:
    """Not even when it sends the same identification each time."""
    gateway.through(udp(OUT))
    found = set()
    for _ in range(300):
        for piece in fragments(udp(OUT, DATA), 400):
            found.add(identification(gateway.through(piece)))
    assert len(found) == 300


def test_an_identification_that_needs_no_change(gateway: Gateway) -> None:
    """The head's own datagrams, and what a rule lets out as it is."""
    for piece in fragments(udp(OUTSIDE, DATA), 200, ident=77):
        assert reason_of(gateway.head(piece)) is Reason.FRAGMENT
        assert identification(piece) == 77
    gateway.rules("-t nat -I POSTROUTING -d 203.0.113.2 -j ACCEPT")
    for piece in fragments(udp("10.1.0.12:1 > 203.0.113.2:53", DATA), 200, ident=78):
        assert identification(gateway.through(piece)) == 78


# ── bounded memory ──────────────────────────────────────────────────────────────────────────────


def lone(source: str, ident: int, size: int = 64, *, offset: int = 8) -> bytearray:
    """A later fragment whose first one never comes."""
    return ipv4(source, "203.0.113.2", 17, bytes(size), ident=ident, fragment=0x2000 | offset)


def test_rfc6888_one_host_may_hold_an_eighth(gateway: Gateway) -> None:
    """What is more costs its own oldest; another host has all the room that it wants."""
    other = fragments(udp("10.1.0.12:1 > 203.0.113.2:53", DATA), 200)
    assert is_held(gateway.out(other[1]))
    share = HELD_BYTES // HELD_SHARE // HELD_LEAST
    held = [gateway.out(lone("10.1.0.11", ident)).ticket for ident in range(share)]
    assert gateway.released() == []
    for ident in range(100):
        assert is_held(gateway.out(lone("10.1.0.11", share + ident)))
        (gone,) = gateway.released()
        if ident < share:
            assert gone == Decision(Verdict.DROP, Reason.FRAGMENT_LIMIT, None, held[ident])
    assert gateway.engine.stats().held_fragments == share + 1
    assert gateway.through(other[0])
    assert [each.reason for each in gateway.released()] == [Reason.FRAGMENT]


def test_rfc4787_req14a_a_flood_does_not_stop_others(gateway: Gateway) -> None:
    """RFC 4787 REQ-14a: fragments of nothing, from anywhere; in-order ones and whole packets pass all the time."""
    room = HELD_BYTES // HELD_LEAST
    for ident in range(3000):
        source = f"198.18.{ident >> 8}.{ident & 255}"
        assert is_held(gateway.back(lone(source, ident)))
        assert len(gateway.released()) == (1 if ident >= room else 0)
        if ident % 500 == 0:
            for piece in fragments(udp(OUT, DATA), 200, ident=ident):
                assert gateway.through(piece)
            assert gateway.through(udp(OUT))
    assert gateway.engine.stats().held_fragments == room


def test_first_fragments_of_nothing(fastpath_backend: ModuleType) -> None:
    """A host that never sends the rest has a quarter of the datagrams; the others do not notice."""
    gateway = Gateway(fastpath_backend, settings=Settings(max_flows=64, max_fragment_trains=16))
    other = fragments(udp("10.1.0.12:1 > 203.0.113.2:53", DATA), 200)
    gateway.through(other[0])
    for ident in range(500):
        gateway.through(fragments(udp(OUT, DATA), 200, ident=ident)[0])
        assert gateway.engine.stats().fragment_trains <= 1 + 4
    assert gateway.through(other[1])
    assert gateway.through(other[2])
    for host in range(20, 60):
        gateway.through(fragments(udp(f"10.1.0.{host}:1 > 203.0.113.2:53", DATA), 200)[0])
        assert gateway.engine.stats().fragment_trains <= 16


def test_the_largest_datagram_backwards(gateway: Gateway) -> None:
    """64 KiB in 45 pieces, the last one first: that is what must find room."""
    data = bytes(range(251)) * 260
    pieces = fragments(udp(OUT, data), 1480)
    out = passed(gateway, pieces[::-1])
    assert describe(out[0]) == OUTSIDE
    assert joined(in_order(out)) == udp(OUTSIDE, data)


def test_too_many_small_pieces_backwards(gateway: Gateway) -> None:
    """More than a host may hold is refused as a whole, once and for all; forwards it may come."""
    pieces = fragments(udp(OUT, bytes(2000)), 8)
    reasons = [reason_of(gateway.out(piece[:])) for piece in pieces[::-1]]
    assert reasons[:64] == [Reason.FRAGMENT_ORPHAN] * 64        # they wait
    assert set(reasons[64:]) == {Reason.FRAGMENT_LIMIT}
    assert {each.reason for each in gateway.released()} == {Reason.FRAGMENT_LIMIT}
    assert gateway.engine.stats().held_fragments == 0
    forwards = fragments(udp(OUT, bytes(2000)), 8, ident=9)
    assert {reason_of(gateway.out(piece)) for piece in forwards} == {Reason.FRAGMENT}


def test_what_is_whole_takes_no_room(fastpath_backend: ModuleType) -> None:
    """So how many datagrams a second come in pieces does not matter, only how many of them at the same time."""
    gateway = Gateway(fastpath_backend, settings=Settings(max_flows=64, max_fragment_trains=1))
    for number in range(200):
        for piece in fragments(udp(OUT, DATA), 400, ident=number):
            assert gateway.through(piece)
        assert gateway.engine.stats().fragment_trains == 0
