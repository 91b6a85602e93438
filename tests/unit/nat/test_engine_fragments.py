"""Datagrams in pieces: the later ones follow the first, in the translation and in the verdict."""

from __future__ import annotations

from types import ModuleType

import pytest
from support.clock import SECOND_NS
from support.engines import Gateway, reason_of
from support.packets import (
    AH,
    assert_checksums,
    describe,
    fragments,
    icmp_error,
    ipv4,
    joined,
    other,
    ping,
    pong,
    source_port,
    tcp,
    udp,
)

from natengine.settings import Settings
from natengine.vocab import Reason

OUT, BACK = "10.1.0.11:5000 > 203.0.113.2:53", "203.0.113.2:53 > 203.0.113.1:5000"
DATA = bytes(range(256)) * 2

BUILDERS = {
    "udp": (lambda: udp(OUT, DATA), lambda: udp("203.0.113.1:5000 > 203.0.113.2:53", DATA)),
    "udp without checksum": (
        lambda: udp(OUT, DATA, checksum=False),
        lambda: udp("203.0.113.1:5000 > 203.0.113.2:53", DATA, checksum=False),
    ),
    "tcp": (lambda: tcp(OUT, "S", DATA), lambda: tcp("203.0.113.1:5000 > 203.0.113.2:53", "S", DATA)),
    "ping": (
        lambda: ping("10.1.0.11 > 203.0.113.2", 7, DATA), lambda: ping("203.0.113.1 > 203.0.113.2", 7, DATA)
    ),
}


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("size", [48, 200, 400])
def test_outbound(gateway: Gateway, name: str, size: int) -> None:
    """The pieces, put together by the receiver, are the datagram translated as a whole."""
    inside, outside = BUILDERS[name]
    pieces = fragments(inside(), size)
    reasons = [reason_of(gateway.out(piece)) for piece in pieces]
    assert reasons == [Reason.FRAGMENT] * len(pieces)
    for piece in pieces:
        assert_checksums(piece, transport=False)
    # the builders give a whole datagram the identification 1, as `joined` does
    assert joined(pieces) == outside()


def test_inbound(gateway: Gateway) -> None:
    """Answers in pieces."""
    gateway.through(udp(OUT))
    pieces = fragments(udp(BACK, DATA), 200)
    assert [reason_of(gateway.back(piece)) for piece in pieces] == [Reason.FRAGMENT] * 3
    assert joined(pieces) == udp("203.0.113.2:53 > 10.1.0.11:5000", DATA)
    gateway.through(ping("10.1.0.11 > 203.0.113.2", 7))
    pieces = fragments(pong("203.0.113.2 > 203.0.113.1", 7, DATA), 200)
    assert [reason_of(gateway.back(piece)) for piece in pieces] == [Reason.FRAGMENT] * 3
    assert joined(pieces) == pong("203.0.113.2 > 10.1.0.11", 7, DATA)


def test_renumbered(gateway: Gateway) -> None:
    """The first fragment has the ports, and the checksum over all of them."""
    gateway.through(udp("10.1.0.12:5000 > 203.0.113.2:53"))
    pieces = fragments(udp(OUT, DATA), 200)
    for piece in pieces:
        gateway.through(piece)
    whole = joined(pieces)
    assert source_port(whole) != 5000
    assert_checksums(whole)


def test_later_fragments_in_any_order(gateway: Gateway) -> None:
    """After the first one their order does not matter, nor do repetitions."""
    pieces = fragments(udp(OUT, DATA), 104)
    gateway.through(pieces[0])
    for piece in (pieces[4], pieces[2], pieces[2][:], pieces[1], pieces[3]):
        assert describe(gateway.through(piece[:])) == "203.0.113.1 > 203.0.113.2"


def test_orphans(gateway: Gateway) -> None:
    """A later fragment without its first: dropped; for the head itself, the head's business."""
    later = fragments(udp(OUT, DATA), 200)[1]
    assert reason_of(gateway.out(later)) is Reason.FRAGMENT_ORPHAN
    later = fragments(udp("203.0.113.2:53 > 10.1.0.11:5000", DATA), 200)[1]
    assert reason_of(gateway.back(later)) is Reason.FRAGMENT_ORPHAN
    later = fragments(udp(BACK, DATA), 200)[1]
    assert reason_of(gateway.back(later)) is Reason.LOCAL_IN
    later = fragments(udp("203.0.113.1:9 > 203.0.113.2:9", DATA), 200)[1]
    assert reason_of(gateway.head(later)) is Reason.LOCAL_OUT


def test_inbound_to_the_head(gateway: Gateway) -> None:
    """A stranger's datagram in pieces makes no state."""
    for piece in fragments(udp("203.0.113.2:9 > 203.0.113.1:9", DATA), 200):
        assert reason_of(gateway.back(piece)) is Reason.LOCAL_IN
    assert gateway.engine.stats()[:3] == (0, 0, 0)


@pytest.mark.parametrize("field", ["identification", "source", "protocol"])
def test_another_datagram(gateway: Gateway, field: str) -> None:
    """RFC 791: source, destination, protocol and identification tell datagrams apart."""
    first = fragments(udp(OUT, DATA), 200)[0]
    gateway.through(first)
    stranger = {
        "identification": fragments(udp(OUT, DATA), 200, ident=8)[1],
        "source": fragments(udp("10.1.0.12:5000 > 203.0.113.2:53", DATA), 200)[1],
        "protocol": fragments(ping("10.1.0.11 > 203.0.113.2", 7, DATA), 200)[1],
    }[field]
    assert reason_of(gateway.out(stranger)) is Reason.FRAGMENT_ORPHAN


def test_identification_is_used_again(gateway: Gateway) -> None:
    """The latest first fragment is the one that counts."""
    for piece in fragments(udp(OUT, DATA), 200):
        gateway.through(piece)
    gateway.through(udp("10.1.0.12:6000 > 203.0.113.2:53"))
    pieces = fragments(udp("10.1.0.11:6000 > 203.0.113.2:53", DATA), 200)
    for piece in pieces:
        gateway.through(piece)
    assert_checksums(joined(pieces))
    assert gateway.engine.stats().fragment_trains == 1


def test_the_flow_has_ended_meanwhile(gateway: Gateway) -> None:
    """Another flow has got its id; the fragment must not follow that one."""
    pieces = fragments(udp(OUT, DATA), 200)
    gateway.through(pieces[0])
    gateway.engine.remove_flow(gateway.flow().flow_id, gateway.clock.now_ns)
    gateway.through(udp("10.1.0.12:6000 > 203.0.113.2:53"))
    assert gateway.flow().flow_id == 0
    assert reason_of(gateway.out(pieces[1])) is Reason.FRAGMENT_ORPHAN


def test_first_fragment_too_late(gateway: Gateway) -> None:
    """What is remembered ends after 30 s; RFC 6146 asks for 2 s at least."""
    pieces = fragments(udp(OUT, DATA), 200)
    gateway.through(pieces[0])
    gateway.clock.advance(ns=30 * SECOND_NS - 1)
    assert gateway.through(pieces[1])
    gateway.clock.advance(ns=1)
    assert reason_of(gateway.out(pieces[2])) is Reason.FRAGMENT_ORPHAN
    gateway.engine.expire(gateway.clock.now_ns)
    assert gateway.engine.stats().fragment_trains == 0


def test_limit(fastpath_backend: ModuleType) -> None:
    """Bounded memory: one datagram too many is refused, and its flow too; whole packets still pass."""
    gateway = Gateway(fastpath_backend, settings=Settings(max_flows=16, max_fragment_trains=2))
    for port in (1, 2):
        gateway.through(fragments(udp(f"10.1.0.11:{port} > 203.0.113.2:53", DATA), 200, ident=port)[0])
    third = fragments(udp(OUT, DATA), 200)[0]
    assert reason_of(gateway.out(third[:])) is Reason.FRAGMENT_LIMIT
    assert gateway.engine.stats()[:3] == (2, 2, 2)
    assert gateway.through(udp(OUT))
    assert reason_of(gateway.out(third[:])) is Reason.FRAGMENT_LIMIT
    assert gateway.engine.stats()[:3] == (3, 3, 2)
    gateway.clock.advance(31)
    assert gateway.through(third)


def test_fragments_refresh_and_count(gateway: Gateway) -> None:
    """Every piece counts as a packet of the flow, and keeps it alive."""
    for piece in fragments(udp(OUT, DATA), 200):
        gateway.through(piece)
        gateway.clock.advance(1)
    flow = gateway.flow()
    assert (flow.original_packets, flow.original_bytes) == (3, 520 + 3 * 20)
    assert flow.deadline_ns == gateway.clock.now_ns + 299 * SECOND_NS


def test_head_in_fragments(gateway: Gateway) -> None:
    """The head's own datagrams are tracked like whole ones."""
    pieces = fragments(udp("203.0.113.1:5000 > 203.0.113.2:53", DATA), 200)
    for piece in pieces:
        assert reason_of(gateway.head(piece)) is Reason.FRAGMENT
    assert joined(pieces) == udp("203.0.113.1:5000 > 203.0.113.2:53", DATA)


def test_no_rule_no_fragment(gateway: Gateway) -> None:
    """A first fragment is refused for the same reasons as a whole packet."""
    pieces = fragments(tcp(OUT, "A", DATA), 200)
    assert reason_of(gateway.out(pieces[0])) is Reason.TCP_STATE
    assert reason_of(gateway.out(pieces[1])) is Reason.FRAGMENT_ORPHAN
    gateway.rules("-t nat -F")
    assert reason_of(gateway.out(fragments(udp(OUT, DATA), 200)[0])) is Reason.NO_RULE


def test_other_protocols(gateway: Gateway) -> None:
    """They are translated in pieces as they are whole, or not at all; the head's own pass."""
    outside = fragments(other("203.0.113.1 > 203.0.113.2", data=DATA), 200)
    pieces = fragments(other("10.1.0.11 > 203.0.113.2", data=DATA), 200)
    assert [gateway.through(piece)[12:] for piece in pieces] == [piece[12:] for piece in outside]
    first, later, *_ = fragments(other("10.1.0.11 > 203.0.113.2", AH, data=DATA), 200)
    assert reason_of(gateway.out(first)) is Reason.UNKNOWN_PROTOCOL
    assert reason_of(gateway.out(later)) is Reason.FRAGMENT_ORPHAN
    for piece in fragments(other("203.0.113.1 > 203.0.113.2", AH, data=DATA), 200):
        assert reason_of(gateway.head(piece)) is Reason.LOCAL_OUT


def test_icmp_error_in_fragments(gateway: Gateway) -> None:
    """Nobody sends that: its checksum cannot be checked, so it is not translated."""
    sent = gateway.through(udp(OUT, DATA))
    pieces = fragments(icmp_error("203.0.113.9 > 203.0.113.1", sent), 200)
    assert reason_of(gateway.back(pieces[0])) is Reason.LOCAL_IN
    assert reason_of(gateway.back(pieces[1])) is Reason.LOCAL_IN


# ── FORWARD ─────────────────────────────────────────────────────────────────────────────────────


PASSED, STOPPED, ORPHAN, LOCAL = (
    Reason.FRAGMENT, Reason.FORWARD_DROP, Reason.FRAGMENT_ORPHAN, Reason.LOCAL_IN,
)
NOT_NEW = "-A FORWARD -m conntrack --ctstate NEW -j DROP"
NOT_ESTABLISHED = "-A FORWARD -i bond0.def -m conntrack --ctstate ESTABLISHED -j DROP"


@pytest.mark.parametrize(
    ("rule", "replied", "out", "back"),
    [
        ("-P FORWARD ACCEPT", False, (PASSED, PASSED), (PASSED, PASSED)),
        ("-P FORWARD DROP", True, (STOPPED, ORPHAN), (STOPPED, LOCAL)),
        ("-A FORWARD -i bond0.2 -j DROP", True, (PASSED, PASSED), (STOPPED, LOCAL)),
        (NOT_NEW, False, (STOPPED, ORPHAN), (PASSED, PASSED)),
        (NOT_NEW, True, (PASSED, PASSED), (PASSED, PASSED)),
        (NOT_ESTABLISHED, False, (PASSED, PASSED), (PASSED, PASSED)),
        (NOT_ESTABLISHED, True, (STOPPED, ORPHAN), (PASSED, PASSED)),
    ],
)
def test_forward_asks_fragments_what_it_asks_whole_packets(
    gateway: Gateway, rule: str, replied: bool, out: tuple[Reason, ...], back: tuple[Reason, ...]
) -> None:
    """NEW until an answer was seen, then ESTABLISHED; what is stopped is not remembered."""
    gateway.through(udp(OUT))
    if replied:
        gateway.returned(udp(BACK))
    gateway.rules(rule)
    assert tuple(reason_of(gateway.out(piece)) for piece in fragments(udp(OUT, DATA), 400)) == out
    assert tuple(reason_of(gateway.back(piece)) for piece in fragments(udp(BACK, DATA), 400)) == back


def test_forward_changes_its_mind_between_fragments(gateway: Gateway) -> None:
    """Later fragments are asked about as the rules stand when they come."""
    pieces = fragments(udp(OUT, DATA), 200)
    gateway.through(pieces[0])
    gateway.rules("-P FORWARD DROP")
    assert reason_of(gateway.out(pieces[1])) is Reason.FORWARD_DROP
    gateway.rules("-P FORWARD ACCEPT")
    assert gateway.through(pieces[2])


def test_a_dropped_first_fragment_is_not_remembered(gateway: Gateway) -> None:
    """Later fragments of a datagram that FORWARD stopped go nowhere, even after a change of the rules."""
    gateway.through(udp(OUT))
    gateway.rules("-P FORWARD DROP")
    pieces = fragments(udp(OUT, DATA), 200)
    assert reason_of(gateway.out(pieces[0])) is Reason.FORWARD_DROP
    gateway.rules("-P FORWARD ACCEPT")
    assert reason_of(gateway.out(pieces[1])) is Reason.FRAGMENT_ORPHAN


def test_the_first_of_a_flow_is_asked_whole(gateway: Gateway) -> None:
    """What only the packet that begins a flow can tell (its flags) is asked of it, once."""
    gateway.rules("-P FORWARD DROP", "-A FORWARD -p tcp --syn -j ACCEPT")
    assert gateway.through(fragments(tcp(OUT, "S", DATA), 200)[0])


# ── fragments that no honest host sends ─────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "packet"),
    [
        ("ping of death", ipv4("10.1.0.11", "203.0.113.2", 17, bytes(64), fragment=8189)),
        ("not a multiple of 8", ipv4("10.1.0.11", "203.0.113.2", 17, bytes(33), fragment=0x2000 | 20)),
        ("over the TCP flags", ipv4("10.1.0.11", "203.0.113.2", 6, bytes(64), fragment=1)),
        ("within the TCP header", ipv4("10.1.0.11", "203.0.113.2", 6, bytes(64), fragment=2)),
    ],
)
def test_contradictions(gateway: Gateway, name: str, packet: bytearray) -> None:
    """RFC 791, RFC 1858: refused, whether their first one is known or not."""
    data = bytes(6000)
    first = {17: udp(OUT, data, ident=1), 6: tcp(OUT, "S", data, ident=1)}[packet[9]]
    gateway.through(fragments(first, 800, ident=1)[0])
    assert reason_of(gateway.out(packet)) is Reason.BAD_HEADER, name


def test_tiny_fragments_of_the_largest_datagram(gateway: Gateway) -> None:
    """Up to 65535 bytes all is well; a UDP fragment may begin right behind its header."""
    pieces = fragments(udp(OUT, bytes(65535 - 28)), 8)
    gateway.through(pieces[0])
    assert gateway.through(pieces[1])
    assert gateway.through(pieces[-1])
