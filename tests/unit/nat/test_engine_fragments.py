"""Datagrams in pieces: the later ones follow the first, in the translation and in the verdict."""

from __future__ import annotations

from types import ModuleType

import pytest
from support.clock import SECOND_NS
from support.engines import INSIDE_2, Gateway, is_held, reason_of
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

from natengine.flow.tcp_state import TcpState
from natengine.settings import Settings
from natengine.vocab import Reason, Verdict

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
    """After the first one their order does not matter; what comes again goes nowhere."""
    pieces = fragments(udp(OUT, DATA), 104)
    gateway.through(pieces[0][:])
    assert reason_of(gateway.out(pieces[0])) is Reason.FRAGMENT_DUPLICATE
    for i in (4, 2, 1):
        assert describe(gateway.through(pieces[i][:])) == "203.0.113.1 > 203.0.113.2"
        assert reason_of(gateway.out(pieces[i][:])) is Reason.FRAGMENT_DUPLICATE
    assert gateway.through(pieces[3])
    assert gateway.engine.stats().fragment_trains == 0


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
    assert is_held(gateway.out(stranger))


def test_identification_is_used_again(gateway: Gateway) -> None:
    """A datagram that is whole is forgotten, and the next one may have its identification."""
    for piece in fragments(udp(OUT, DATA), 200):
        gateway.through(piece)
    gateway.through(udp("10.1.0.12:6000 > 203.0.113.2:53"))
    pieces = fragments(udp("10.1.0.11:6000 > 203.0.113.2:53", DATA), 200)
    for piece in pieces:
        gateway.through(piece)
    assert_checksums(joined(pieces))
    assert gateway.engine.stats().fragment_trains == 0


def test_the_flow_has_ended_meanwhile(gateway: Gateway) -> None:
    """Another flow has got its id; the fragment must not follow that one."""
    pieces = fragments(udp(OUT, DATA), 200)
    gateway.through(pieces[0])
    gateway.engine.remove_flow(gateway.flow().flow_id, gateway.clock.now_ns)
    gateway.through(udp("10.1.0.12:6000 > 203.0.113.2:53"))
    assert gateway.flow().flow_id == 0
    assert reason_of(gateway.out(pieces[1])) is Reason.FRAGMENT_ORPHAN


def test_rfc792_a_datagram_that_is_never_whole(gateway: Gateway) -> None:
    """What is remembered ends after 30 s; RFC 6146 asks for 2 s at least."""
    pieces = fragments(udp(OUT, DATA), 200)
    gateway.through(pieces[0])
    gateway.clock.advance(ns=30 * SECOND_NS - 1)
    assert gateway.through(pieces[1])
    gateway.clock.advance(ns=1)
    assert is_held(gateway.out(pieces[2]))
    gateway.clock.advance(30)
    gateway.engine.expire(gateway.clock.now_ns)
    assert gateway.engine.stats().fragment_trains == 0
    assert not gateway.engine.outbox                # no ICMP 11/1: nobody has fragment zero any more


def test_no_room_for_fragments(fastpath_backend: ModuleType) -> None:
    """A limit of 0 refuses them all, and begins no flow for them; whole packets still pass."""
    gateway = Gateway(fastpath_backend, settings=Settings(max_flows=16, max_fragment_trains=0))
    first, later, _ = fragments(udp(OUT, DATA), 200)
    assert reason_of(gateway.out(first)) is Reason.FRAGMENT_LIMIT
    assert reason_of(gateway.out(later)) is Reason.FRAGMENT_LIMIT
    assert gateway.engine.stats()[:4] == (0, 0, 0, 0)
    assert gateway.through(udp(OUT))


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
    """A datagram in pieces is refused for the same reasons as a whole packet, every piece of it."""
    for piece in fragments(tcp(OUT, "A", DATA), 200):
        assert reason_of(gateway.out(piece)) is Reason.TCP_STATE
    gateway.rules("-t nat -F")
    for piece in fragments(udp(OUT, DATA), 200):
        assert reason_of(gateway.out(piece)) is Reason.NO_RULE
    assert gateway.engine.stats()[:4] == (0, 0, 0, 0)


def test_other_protocols(gateway: Gateway) -> None:
    """They are translated in pieces as they are whole, or not at all; the head's own pass."""
    outside = fragments(other("203.0.113.1 > 203.0.113.2", data=DATA), 200)
    pieces = fragments(other("10.1.0.11 > 203.0.113.2", data=DATA), 200)
    assert [gateway.through(piece)[12:] for piece in pieces] == [piece[12:] for piece in outside]
    first, later, *_ = fragments(other("10.1.0.11 > 203.0.113.2", AH, data=DATA), 200)
    assert reason_of(gateway.out(first)) is Reason.UNKNOWN_PROTOCOL
    assert reason_of(gateway.out(later)) is Reason.UNKNOWN_PROTOCOL
    for piece in fragments(other("203.0.113.1 > 203.0.113.2", AH, data=DATA), 200):
        assert reason_of(gateway.head(piece)) is Reason.LOCAL_OUT


def test_icmp_error_in_fragments(gateway: Gateway) -> None:
    """Nobody sends that: its checksum cannot be checked, so it is not translated."""
    sent = gateway.through(udp(OUT, DATA))
    pieces = fragments(icmp_error("203.0.113.9 > 203.0.113.1", sent), 200)
    assert reason_of(gateway.back(pieces[0])) is Reason.LOCAL_IN
    assert reason_of(gateway.back(pieces[1])) is Reason.LOCAL_IN


# ── FORWARD ─────────────────────────────────────────────────────────────────────────────────────


PASSED, STOPPED = (Reason.FRAGMENT,) * 2, (Reason.FORWARD_DROP,) * 2
NOT_NEW = "-A FORWARD -m conntrack --ctstate NEW -j DROP"
NOT_ESTABLISHED = "-A FORWARD -i bond0.def -m conntrack --ctstate ESTABLISHED -j DROP"


@pytest.mark.parametrize(
    ("rule", "replied", "out", "back"),
    [
        ("-P FORWARD ACCEPT", False, PASSED, PASSED),
        ("-P FORWARD DROP", True, STOPPED, STOPPED),
        ("-A FORWARD -i bond0.2 -j DROP", True, PASSED, STOPPED),
        (NOT_NEW, False, STOPPED, PASSED),
        (NOT_NEW, True, PASSED, PASSED),
        (NOT_ESTABLISHED, False, PASSED, PASSED),
        (NOT_ESTABLISHED, True, STOPPED, PASSED),
    ],
)
def test_forward_asks_fragments_what_it_asks_whole_packets(
    gateway: Gateway, rule: str, replied: bool, out: tuple[Reason, ...], back: tuple[Reason, ...]
) -> None:
    """NEW until an answer was seen, then ESTABLISHED."""
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


def test_later_fragments_are_dropped_with_the_first_one(gateway: Gateway) -> None:
    """Those of a datagram that FORWARD stopped go nowhere, even after a change of the rules."""
    gateway.through(udp(OUT))
    gateway.rules("-P FORWARD DROP")
    pieces = fragments(udp(OUT, DATA), 200)
    assert reason_of(gateway.out(pieces[0])) is Reason.FORWARD_DROP
    gateway.rules("-P FORWARD ACCEPT")
    assert reason_of(gateway.out(pieces[1])) is Reason.FORWARD_DROP


def test_a_datagram_is_allowed_as_a_whole(gateway: Gateway) -> None:
    """What only its first fragment can tell (the flags) is asked of that one, once, and answered for all."""
    gateway.rules("-P FORWARD DROP", "-A FORWARD -p tcp --syn -j ACCEPT")
    for piece in fragments(tcp(OUT, "S", DATA), 200):
        assert gateway.through(piece)


def test_an_answer_between_two_fragments(gateway: Gateway) -> None:
    """The datagram was NEW when it began, and goes on as that."""
    pieces = fragments(udp(OUT, DATA), 200)
    gateway.rules("-A FORWARD -i bond0.def -m conntrack --ctstate ESTABLISHED -j DROP")
    gateway.through(pieces[0])
    gateway.returned(udp(BACK))
    assert gateway.through(pieces[1])
    assert reason_of(gateway.out(udp(OUT))) is Reason.FORWARD_DROP


# ── fragments that no honest host sends ─────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "packet", "reason"),
    [
        ("ping of death", ipv4("10.1.0.11", "203.0.113.2", 17, bytes(64), fragment=8189), Reason.BAD_HEADER),
        ("not a multiple of 8", ipv4("10.1.0.11", "203.0.113.2", 17, bytes(33), fragment=0x2014), Reason.BAD_HEADER),
        ("empty", ipv4("10.1.0.11", "203.0.113.2", 17, b"", fragment=0x2014), Reason.BAD_HEADER),
        ("over the TCP flags", ipv4("10.1.0.11", "203.0.113.2", 6, bytes(64), fragment=1), Reason.FRAGMENT_TINY),
        ("within the TCP header", ipv4("10.1.0.11", "203.0.113.2", 6, bytes(64), fragment=2), Reason.FRAGMENT_TINY),
        ("half a TCP header", ipv4("10.1.0.11", "203.0.113.2", 6, bytes(16), fragment=0x2000), Reason.FRAGMENT_TINY),
    ],
)
def test_rfc1858_what_no_honest_host_sends(gateway: Gateway, name: str, packet: bytearray, reason: Reason) -> None:
    """RFC 791, RFC 1858: refused, whether their first one is known or not."""
    assert reason_of(gateway.out(packet)) is reason, name
    data = bytes(6000)
    first = {17: udp(OUT, data, ident=1), 6: tcp(OUT, "S", data, ident=1)}[packet[9]]
    gateway.through(fragments(first, 800, ident=1)[0])
    assert reason_of(gateway.out(packet)) is reason, name


def test_tiny_fragments_of_the_largest_datagram(gateway: Gateway) -> None:
    """Up to 65535 bytes all is well; a UDP fragment may begin right behind its header."""
    pieces = fragments(udp(OUT, bytes(65535 - 28)), 8)
    gateway.through(pieces[0])
    assert gateway.through(pieces[1])
    assert gateway.through(pieces[-1])


def test_rfc6864_the_other_bits_stay(gateway: Gateway) -> None:
    """A host may forbid fragments to be cut again: DF is not touched, nor anything else in the header."""
    for piece in fragments(udp(OUT, DATA), 200):
        piece[6] |= 0x40
        before = bytes(piece)
        sent = gateway.through(piece)
        assert sent[6:8] == before[6:8] and sent[6] & 0x40
        assert (sent[:4], sent[8:10], sent[16:20]) == (before[:4], before[8:10], before[16:20])


# ── TCP ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_fragmented_segment_moves_the_state(gateway: Gateway) -> None:
    """Its first fragment has the flags: SYN, SYN with ACK and RST count like those of whole segments."""
    answer = "203.0.113.2:53 > 203.0.113.1:5000"
    for piece in fragments(tcp(OUT, "S", DATA), 200):
        gateway.through(piece)
    assert gateway.flow().tcp_state == TcpState.SYN_SENT
    for piece in fragments(tcp(answer, "SA", DATA, ack=1001 + len(DATA)), 200):
        gateway.returned(piece)
    assert gateway.flow().tcp_state == TcpState.SYN_RECV
    gateway.through(tcp(OUT, "A", seq=1001 + len(DATA), ack=1001 + len(DATA)))
    assert gateway.flow().tcp_state == TcpState.ESTABLISHED
    for piece in fragments(tcp(OUT, "R", DATA, seq=1001 + len(DATA)), 200):
        gateway.through(piece)
    assert gateway.flow().tcp_state == TcpState.CLOSE


def test_a_first_fragment_outside_the_window(gateway: Gateway) -> None:
    """RFC 5961: whoever does not know the numbers cannot reset a connection in pieces either."""
    gateway.through(tcp(OUT, "S"))
    gateway.returned(tcp("203.0.113.2:53 > 203.0.113.1:5000", "SA"))
    gateway.through(tcp(OUT, "A"))
    first = fragments(tcp("203.0.113.2:53 > 203.0.113.1:5000", "R", DATA, seq=900_000), 200)[0]
    assert reason_of(gateway.back(first)) is Reason.TCP_WINDOW
    assert gateway.flow().tcp_state == TcpState.ESTABLISHED


def test_what_is_routed_inside_opens_no_way_out(gateway: Gateway) -> None:
    """A route that changes between two pieces of one datagram, from a network inside to an uplink: no leak."""
    first, second, third = fragments(udp(OUT, DATA), 200)
    assert reason_of(gateway.out(first, INSIDE_2)) is Reason.ROUTED
    assert reason_of(gateway.out(second, INSIDE_2)) is Reason.ROUTED
    assert reason_of(gateway.out(third)) is Reason.UPLINK_CHANGED


@pytest.mark.parametrize(("option", "passes"), [("-f", True), ("! -f", False)])
def test_to_the_rules_a_datagram_is_whole(gateway: Gateway, option: str, passes: bool) -> None:
    """As to those of a kernel with conntrack: nothing that they see is a later fragment."""
    gateway.rules(f"-A FORWARD {option} -j DROP")
    decisions = [gateway.out(piece) for piece in fragments(udp("10.1.0.11:5000 > 203.0.113.2:53", bytes(600)), 200)]
    assert {each.verdict is Verdict.ACCEPT for each in decisions} == {passes}
