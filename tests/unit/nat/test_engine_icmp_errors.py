"""ICMP errors (RFC 5508 REQ-3 to 6): the outer packet, the quoted one, and the sums over both.

    worker ── router 10.1.0.9 ── head ── 203.0.113.9 ── peer 203.0.113.2
"""

from __future__ import annotations

import pytest
from support.engines import BOND_2, BOND_DEF, Gateway, reason_of
from support.packets import (
    assert_error_checksums,
    describe,
    fragments,
    icmp,
    icmp_error,
    ones_sum,
    other,
    ping,
    pong,
    quote_of,
    source_port,
    tcp,
    udp,
)

from natengine.vocab import Reason

OUT, BACK = "10.1.0.11:5000 > 203.0.113.2:53", "203.0.113.2:53 > 203.0.113.1:5000"
ARRIVED = "203.0.113.2:53 > 10.1.0.11:5000"             # BACK, as the worker sees it
BUILDERS = {"udp": udp, "udp without checksum": lambda text, **how: udp(text, checksum=False, **how), "tcp": tcp}

# type, code: unreachable (port; fragmentation needed), time exceeded, parameter problem
TYPES = [(3, 3), (3, 4), (11, 0), (12, 0)]


@pytest.fixture
def clashing(gateway: Gateway) -> Gateway:
    """A gateway on which the worker's port 5000 has become another one, for UDP, TCP and echo 5000."""
    for packet in (
        udp("10.1.0.12:5000 > 203.0.113.8:1"), tcp("10.1.0.12:5000 > 203.0.113.8:1"),
        ping("10.1.0.12 > 203.0.113.8", 5000),
    ):
        gateway.through(packet)
    return gateway


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize(("icmp_type", "code"), TYPES)
def test_error_from_outside(
    clashing: Gateway, name: str, icmp_type: int, code: int
) -> None:
    """A router on the way complains about what the worker sent: the worker recognises its own packet."""
    inside = BUILDERS[name](OUT)
    sent = clashing.through(bytearray(inside))
    assert source_port(sent) != 5000
    mtu = b"\0\0\5\xdc"
    packet = icmp_error("203.0.113.9 > 203.0.113.1", sent, icmp_type, code, rest=mtu)
    decision = clashing.back(packet)
    assert reason_of(decision) is Reason.ICMP_ERROR
    assert decision.packet == icmp_error("203.0.113.9 > 10.1.0.11", inside, icmp_type, code, rest=mtu)
    assert_error_checksums(packet)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("origin", ["10.1.0.11", "10.1.0.9"])
def test_error_from_inside(gateway: Gateway, name: str, origin: str) -> None:
    """The worker, or a router before it, refuses a reply: the peer recognises its own packet."""
    build = BUILDERS[name]
    gateway.through(build(OUT))
    reply = tcp(BACK, "SA") if name == "tcp" else build(BACK)
    arrived = gateway.returned(bytearray(reply))
    packet = icmp_error(f"{origin} > 203.0.113.2", arrived, code=3)
    assert reason_of(gateway.out(packet)) is Reason.ICMP_ERROR
    assert packet == icmp_error("203.0.113.1 > 203.0.113.2", reply, code=3)
    assert_error_checksums(packet)


def test_error_from_inside_about_a_renumbered_flow(clashing: Gateway) -> None:
    """The quoted port becomes the one that the peer knows."""
    port = source_port(clashing.through(udp(OUT)))
    reply = udp(f"203.0.113.2:53 > 203.0.113.1:{port}")
    packet = icmp_error("10.1.0.11 > 203.0.113.2", clashing.returned(bytearray(reply)), code=3)
    assert reason_of(clashing.out(packet)) is Reason.ICMP_ERROR
    assert packet == icmp_error("203.0.113.1 > 203.0.113.2", reply, code=3)


def test_error_from_the_head(clashing: Gateway) -> None:
    """The head finds no way to the worker, or the reply's TTL ends: the peer hears of its own packet."""
    port = source_port(clashing.through(udp(OUT)))
    reply = udp(f"203.0.113.2:53 > 203.0.113.1:{port}")
    arrived = clashing.returned(bytearray(reply))
    packet = icmp_error("203.0.113.1 > 203.0.113.2", arrived, icmp_type=11, code=0)
    assert reason_of(clashing.head(packet)) is Reason.ICMP_ERROR
    assert packet == icmp_error("203.0.113.1 > 203.0.113.2", reply, icmp_type=11, code=0)
    assert_error_checksums(packet)


def test_error_from_the_head_about_itself(gateway: Gateway) -> None:
    """Port unreachable to a stranger who knocked at the head: nothing to hide in that."""
    packet = icmp_error("203.0.113.1 > 203.0.113.2", udp("203.0.113.2:9 > 203.0.113.1:9"), code=3)
    assert reason_of(gateway.head(packet)) is Reason.LOCAL_OUT


def test_error_from_the_head_must_not_show_an_inside_address(gateway: Gateway) -> None:
    """The flow has ended meanwhile: the quote cannot be translated any more."""
    packet = icmp_error("203.0.113.1 > 203.0.113.2", udp(ARRIVED))
    assert reason_of(gateway.head(packet)) is Reason.ICMP_UNRELATED


def test_error_about_the_heads_own(gateway: Gateway) -> None:
    """The head's connection is tracked; the error comes to it as it is."""
    gateway.head(udp("203.0.113.1:5000 > 203.0.113.2:53"))
    packet = icmp_error("203.0.113.9 > 203.0.113.1", udp("203.0.113.1:5000 > 203.0.113.2:53"))
    before = bytes(packet)
    assert reason_of(gateway.back(packet)) is Reason.ICMP_ERROR
    assert bytes(packet) == before


def test_error_about_an_echo_request(clashing: Gateway) -> None:
    """The identifier is translated like a port; ICMP has no pseudo-header."""
    inside = ping("10.1.0.11 > 203.0.113.2", 5000)
    sent = clashing.through(bytearray(inside))
    assert source_port(sent) != 5000
    packet = icmp_error("203.0.113.9 > 203.0.113.1", sent, icmp_type=11, code=0)
    assert reason_of(clashing.back(packet)) is Reason.ICMP_ERROR
    assert packet == icmp_error("203.0.113.9 > 10.1.0.11", inside, icmp_type=11, code=0)
    assert_error_checksums(packet)


def test_error_about_an_echo_reply(clashing: Gateway) -> None:
    """The other way round: the worker's side cannot deliver the answer."""
    ident = source_port(clashing.through(ping("10.1.0.11 > 203.0.113.2", 5000)))
    reply = pong("203.0.113.2 > 203.0.113.1", ident)
    packet = icmp_error("10.1.0.9 > 203.0.113.2", clashing.returned(bytearray(reply)))
    assert reason_of(clashing.out(packet)) is Reason.ICMP_ERROR
    assert packet == icmp_error("203.0.113.1 > 203.0.113.2", reply)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("quote_len", [28, 30, 32, 36, 38, 40])
def test_cut_quote(clashing: Gateway, name: str, quote_len: int) -> None:
    """RFC 792 asks for 8 bytes of the quoted transport header: of TCP that is without its checksum."""
    inside = BUILDERS[name](OUT)
    packet = icmp_error("203.0.113.9 > 203.0.113.1", clashing.through(bytearray(inside)), quote_len=quote_len)
    assert reason_of(clashing.back(packet)) is Reason.ICMP_ERROR
    assert packet == icmp_error("203.0.113.9 > 10.1.0.11", inside, quote_len=quote_len)
    assert_error_checksums(packet)


def test_quote_without_ports(gateway: Gateway) -> None:
    """Less than RFC 792 demands: nobody can say what it was about."""
    sent = gateway.through(udp(OUT))
    for length in (0, 19, 20, 27):
        packet = icmp_error("203.0.113.9 > 203.0.113.1", sent, quote_len=length)
        assert reason_of(gateway.back(packet)) is Reason.LOCAL_IN       # the head's stack drops it
        packet = icmp_error("10.1.0.11 > 203.0.113.2", udp(ARRIVED), quote_len=length)
        assert reason_of(gateway.out(packet)) is Reason.ICMP_UNRELATED


@pytest.mark.parametrize("icmp_type", [3, 11])
def test_rfc5508_req4_an_error_that_quotes_a_first_fragment(clashing: Gateway, icmp_type: int) -> None:
    """It has the ports: the receiver could not put the datagram together (11/1), or a router could not pass it on."""
    first, *_ = fragments(udp(OUT, bytes(64)), 40)
    sent = clashing.through(first[:])
    packet = icmp_error("203.0.113.2 > 203.0.113.1", sent, icmp_type, 1)
    assert reason_of(clashing.back(packet)) is Reason.ICMP_ERROR
    assert describe(packet) == "203.0.113.2 > 10.1.0.11"
    assert describe(quote_of(packet)) == OUT
    assert quote_of(packet)[20:] == first[20:]
    assert_error_checksums(packet)


def test_rfc5508_req5_a_worker_says_that_a_datagram_was_never_whole(gateway: Gateway) -> None:
    """ICMP 11/1 on its way out, about the first fragment of an answer."""
    gateway.through(udp(OUT))
    first, *_ = fragments(udp(BACK, bytes(64)), 40)
    arrived = gateway.returned(first[:])
    packet = icmp_error("10.1.0.11 > 203.0.113.2", arrived, 11, 1)
    assert reason_of(gateway.out(packet)) is Reason.ICMP_ERROR
    assert packet == icmp_error("203.0.113.1 > 203.0.113.2", first, 11, 1)
    assert_error_checksums(packet)


def test_an_error_that_quotes_a_later_fragment(gateway: Gateway) -> None:
    """There must be none (RFC 1122 3.2.2), and it has no ports: nobody inside is told."""
    pieces = [gateway.through(piece) for piece in fragments(udp(OUT, bytes(64)), 40)]
    about_the_second = icmp_error("203.0.113.2 > 203.0.113.1", pieces[1], 11, 1)
    assert reason_of(gateway.back(about_the_second)) is Reason.LOCAL_IN
    assert reason_of(gateway.out(icmp_error("10.1.0.9 > 203.0.113.2", pieces[1]))) is Reason.ICMP_UNRELATED


def test_quote_with_ip_options(clashing: Gateway) -> None:
    """RFC 5508 REQ-3b: the quoted ports are behind the quoted options."""
    inside = udp(OUT, options=b"\7\7\4\0\0\0\0\0")
    packet = icmp_error("203.0.113.9 > 203.0.113.1", clashing.through(bytearray(inside)))
    assert reason_of(clashing.back(packet)) is Reason.ICMP_ERROR
    assert packet == icmp_error("203.0.113.9 > 10.1.0.11", inside)


def test_extensions_behind_the_quote(clashing: Gateway) -> None:
    """RFC 5508 REQ-3d: padding and the RFC 4884 extensions behind it stay as they are."""
    inside = udp(OUT)
    behind = bytes(128 - len(inside)) + b"\x20\0\xdf\x53\0\x08\1\1\x12\x34\x51\x40"
    packet = icmp_error("203.0.113.9 > 203.0.113.1", clashing.through(bytearray(inside)) + behind, 11, 0)
    assert reason_of(clashing.back(packet)) is Reason.ICMP_ERROR
    assert packet == icmp_error("203.0.113.9 > 10.1.0.11", inside + behind, 11, 0)


@pytest.mark.parametrize("name", [*BUILDERS, "echo"])
@pytest.mark.parametrize("options", [b"\1" * 4, b"\7\x27\4" + bytes(36) + b"\0"])
def test_rfc5508_req3b_options_in_any_quoted_packet_cut_off_behind_its_ports(
    clashing: Gateway, name: str, options: bytes
) -> None:
    """The longest header there is, and 8 bytes: all that a router has to quote."""
    if name == "echo":
        inside = ping("10.1.0.11 > 203.0.113.2", 5000, options=options)
    else:
        inside = BUILDERS[name](OUT, options=options)
    quote_len = (inside[0] & 15) * 4 + 8
    packet = icmp_error("203.0.113.9 > 203.0.113.1", clashing.through(bytearray(inside)), quote_len=quote_len)
    assert reason_of(clashing.back(packet)) is Reason.ICMP_ERROR
    assert packet == icmp_error("203.0.113.9 > 10.1.0.11", inside, quote_len=quote_len)
    assert_error_checksums(packet)


@pytest.mark.parametrize("build", [udp, lambda text, data: ping("10.1.0.11 > 203.0.113.2", 5000, data)])
def test_rfc5508_req4_a_quoted_first_fragment(clashing: Gateway, build: object) -> None:
    """Its sum covers what was in the other fragments: it is updated like any (REQ-3c)."""
    pieces = fragments(build(OUT, bytes(range(100))), 48)                      # type: ignore[operator]
    sent = clashing.through(bytearray(pieces[0]))
    packet = icmp_error("203.0.113.9 > 203.0.113.1", sent, 3, 4, rest=b"\0\0\2\0")
    assert reason_of(clashing.back(packet)) is Reason.ICMP_ERROR
    assert quote_of(packet)[12:] == pieces[0][12:]
    assert ones_sum(packet[20:]) == 0xFFFF


def test_rfc5508_req4_a_quoted_later_fragment_of_a_protocol_without_ports(gateway: Gateway) -> None:
    """Its addresses and its protocol are all that a flow without ports has anyhow."""
    first, later, *_ = fragments(other("10.1.0.11 > 203.0.113.2", data=bytes(100)), 48)
    gateway.through(first)
    packet = icmp_error("203.0.113.9 > 203.0.113.1", gateway.through(bytearray(later)), 3, 4)
    assert reason_of(gateway.back(packet)) is Reason.ICMP_ERROR
    assert quote_of(packet)[12:] == later[12:]


def test_rfc5508_req4_a_quote_as_short_as_its_packet(gateway: Gateway) -> None:
    """A protocol without ports may have less than 8 bytes of data to quote."""
    inside = other("10.1.0.11 > 203.0.113.2", 253, b"ab")
    packet = icmp_error("203.0.113.9 > 203.0.113.1", gateway.through(bytearray(inside)), 3, 2)
    assert reason_of(gateway.back(packet)) is Reason.ICMP_ERROR
    assert packet == icmp_error("203.0.113.9 > 10.1.0.11", inside, 3, 2)


def test_the_quoted_transport_checksum_is_not_judged(clashing: Gateway) -> None:
    """RFC 5508 REQ-3c: what was damaged before it was quoted stays damaged, and is passed on."""
    inside = udp(OUT)
    inside[-1] ^= 1
    packet = icmp_error("203.0.113.9 > 203.0.113.1", clashing.through(bytearray(inside)))
    assert reason_of(clashing.back(packet)) is Reason.ICMP_ERROR
    assert packet == icmp_error("203.0.113.9 > 10.1.0.11", inside)


@pytest.mark.parametrize("inbound", [True, False])
@pytest.mark.parametrize("where", ["ICMP", "quoted header"])
def test_damaged(gateway: Gateway, where: str, inbound: bool) -> None:
    """RFC 5508 REQ-3 and 3a: a wrong ICMP checksum, or a wrong one in the quoted IP header: dropped."""
    sent = gateway.through(udp(OUT))
    arrived = gateway.returned(udp(BACK))
    quoted = sent if inbound else arrived
    if where == "quoted header":
        quoted[10] ^= 1
    packet = icmp_error("203.0.113.9 > 203.0.113.1" if inbound else "10.1.0.11 > 203.0.113.2", quoted)
    if where == "ICMP":
        packet[23] ^= 1
    decision = gateway.back(packet) if inbound else gateway.out(packet)
    assert reason_of(decision) is Reason.BAD_CHECKSUM


def test_unknown_flow(gateway: Gateway) -> None:
    """From outside it is for the head, if for anybody; from inside it does not get out (REQ-5)."""
    unknown = udp("203.0.113.1:5000 > 203.0.113.2:53")
    assert reason_of(gateway.back(icmp_error("203.0.113.9 > 203.0.113.1", unknown))) is Reason.LOCAL_IN
    packet = icmp_error("203.0.113.9 > 10.1.0.11", unknown)
    assert reason_of(gateway.back(packet)) is Reason.ICMP_UNRELATED
    packet = icmp_error("10.1.0.11 > 203.0.113.2", udp(ARRIVED))
    assert reason_of(gateway.out(packet)) is Reason.ICMP_UNRELATED


@pytest.mark.parametrize("quoted", [
    icmp_error("203.0.113.1 > 203.0.113.2", udp("203.0.113.2:53 > 203.0.113.1:5000")),
    icmp("203.0.113.1 > 203.0.113.2", 13),
    other("203.0.113.1 > 203.0.113.2"),
])
def test_errors_about_what_has_no_flow(gateway: Gateway, quoted: bytearray) -> None:
    """About another error, another query, another protocol: nothing we know."""
    gateway.through(udp(OUT))
    assert reason_of(gateway.back(icmp_error("203.0.113.9 > 203.0.113.1", quoted))) is Reason.LOCAL_IN
    packet = icmp_error("10.1.0.11 > 203.0.113.2", quoted)
    assert reason_of(gateway.out(packet)) is Reason.ICMP_UNRELATED


def test_an_error_that_quotes_the_wrong_direction(gateway: Gateway) -> None:
    """From outside, about a packet that came from outside: no router sends that."""
    gateway.through(udp(OUT))
    packet = icmp_error("203.0.113.9 > 203.0.113.1", udp(BACK))
    assert reason_of(gateway.back(packet)) is Reason.LOCAL_IN


def test_redirect_is_not_translated(gateway: Gateway) -> None:
    """5/1 about a flow: for the head's own stack, and never for the worker."""
    sent = gateway.through(udp(OUT))
    packet = icmp("203.0.113.9 > 203.0.113.1", 5, b"\1\2\3\4", bytes(sent), code=1)
    assert reason_of(gateway.back(packet)) is Reason.LOCAL_IN


def test_forward_is_asked_about_errors(gateway: Gateway) -> None:
    """ctstate RELATED, with the worker as destination; the head's own flows are not forwarded."""
    sent = gateway.through(udp(OUT))
    gateway.head(udp("203.0.113.1:77 > 203.0.113.2:77"))
    gateway.rules("-A FORWARD -d 10.1.0.11 -o bond0.def -m conntrack --ctstate RELATED -j DROP")
    packet = icmp_error("203.0.113.9 > 203.0.113.1", sent)
    assert reason_of(gateway.back(packet)) is Reason.FORWARD_DROP
    packet = icmp_error("203.0.113.9 > 203.0.113.1", udp("203.0.113.1:77 > 203.0.113.2:77"))
    assert reason_of(gateway.back(packet)) is Reason.ICMP_ERROR
    gateway.rules("-A FORWARD -i bond0.def -p icmp -j DROP")
    packet = icmp_error("10.1.0.11 > 203.0.113.2", gateway.returned(udp(BACK)))
    assert reason_of(gateway.out(packet)) is Reason.FORWARD_DROP


def test_error_travels_by_the_other_interface(gateway: Gateway) -> None:
    """Where it came in does not matter: the quote says whose it is."""
    sent = gateway.through(udp(OUT), BOND_2)
    packet = icmp_error("10.1.0.9 > 203.0.113.1", sent)
    assert reason_of(gateway.back(packet, BOND_DEF)) is Reason.ICMP_ERROR
    assert describe(quote_of(packet)) == OUT


def test_checksum_of_an_odd_quote(clashing: Gateway) -> None:
    """An odd number of quoted bytes: the last one counts as the high half of a word."""
    inside = udp(OUT, b"odd")
    packet = icmp_error("203.0.113.9 > 203.0.113.1", clashing.through(bytearray(inside)))
    assert reason_of(clashing.back(packet)) is Reason.ICMP_ERROR
    assert ones_sum(packet[20:]) == 0xFFFF
