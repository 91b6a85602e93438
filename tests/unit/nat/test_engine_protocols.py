"""Protocols beside TCP, UDP and echo: which have a port or identifier to translate, and what becomes of the others."""

from __future__ import annotations

import struct
from types import ModuleType

import pytest
from support.engines import BOND_3, Gateway, reason_of
from support.packets import (
    AH,
    DCCP,
    ESP,
    GRE,
    SCTP,
    UDPLITE,
    assert_error_checksums,
    dccp,
    icmp,
    icmp_error,
    ipv4,
    other,
    ping,
    pong,
    quote_of,
    sctp,
    source_port,
    udplite,
)

from natengine.settings import FilteringBehaviour, Settings
from natengine.vocab import Reason, Verdict

W1, W2, HEAD, PEER = "10.1.0.11", "10.1.0.12", "203.0.113.1", "203.0.113.2"
OUT, BACK = f"{W1} > {PEER}", f"{PEER} > {HEAD}"
IPIP = 4
WITHOUT_PORTS = [GRE, ESP, IPIP, 0, 41, 112, 253, 255]


BUILD = {UDPLITE: udplite, DCCP: dccp}


# ── a port or identifier of their own ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("proto", [UDPLITE, DCCP])
def test_udplite_and_dccp_are_translated_as_udp_is(gateway: Gateway, proto: int) -> None:
    """Port kept where it is free, another one where it is not, one for all peers (RFC 5597 REQ-1)."""
    assert gateway.through(BUILD[proto](f"{W1}:5000 > {PEER}:7")) == BUILD[proto](f"{HEAD}:5000 > {PEER}:7")
    sent = gateway.through(BUILD[proto](f"{W2}:5000 > {PEER}:7"))
    port = source_port(sent)
    assert port != 5000
    assert sent == BUILD[proto](f"{HEAD}:{port} > {PEER}:7")
    assert source_port(gateway.through(BUILD[proto](f"{W2}:5000 > 203.0.113.9:8"))) == port
    assert gateway.returned(BUILD[proto](f"{PEER}:7 > {HEAD}:{port}")) == BUILD[proto](f"{PEER}:7 > {W2}:5000")
    assert reason_of(gateway.back(BUILD[proto](f"203.0.113.8:7 > {HEAD}:{port}"))) is Reason.FILTERED


@pytest.mark.parametrize("proto", [UDPLITE, DCCP])
def test_rfc4787_req8_filtering_of_udplite_and_dccp(fastpath_backend: ModuleType, proto: int) -> None:
    settings = Settings(max_flows=16, filtering=FilteringBehaviour.ENDPOINT_INDEPENDENT)
    gateway = Gateway(fastpath_backend, settings=settings)
    gateway.through(BUILD[proto](f"{W1}:5000 > {PEER}:7"))
    arrived = gateway.returned(BUILD[proto](f"203.0.113.8:9 > {HEAD}:5000"))
    assert arrived == BUILD[proto](f"203.0.113.8:9 > {W1}:5000")


def test_udplite_checksum_never_becomes_zero(gateway: Gateway) -> None:
    """RFC 3828 3.1: as in UDP; but a zero is not "none", and what is wrong stays so."""
    sums = set()
    for port in range(5000, 5256):
        for low in range(0, 256, 17):
            packet = udplite(f"{W1}:{port} > {PEER}:{low}")
            sums.add(bytes(gateway.through(packet)[26:28]))
    assert b"\0\0" not in sums
    packet = udplite(f"{W1}:5000 > {PEER}:7")
    packet[26:28] = b"\0\0"
    assert gateway.through(packet)[26:28] != b"\0\0"


QUERIES = {"timestamp": (13, 14, bytes(12)), "address mask": (17, 18, bytes(4))}


@pytest.mark.parametrize("name", QUERIES)
def test_rfc5508_req1_queries_from_inside_and_their_replies(gateway: Gateway, name: str) -> None:
    """The identifier is translated as that of an echo, and serves all peers (REQ-1a)."""
    request, reply, data = QUERIES[name]

    def query(text: str, ident: int, kind: int = request) -> bytearray:
        return icmp(text, kind, struct.pack("!HH", ident, 1), data)

    gateway.through(query(f"{W2} > {PEER}", 77))
    sent = gateway.through(query(OUT, 77))
    ident = source_port(sent)
    assert sent == query(f"{HEAD} > {PEER}", ident)
    assert ident != 77
    assert source_port(gateway.through(query(f"{W1} > 203.0.113.9", 77))) == ident
    assert gateway.returned(query(BACK, ident, reply)) == query(f"{PEER} > {W1}", 77, reply)
    assert reason_of(gateway.back(query(BACK, ident))) is Reason.LOCAL_IN       # a request is the head's own business


def test_rfc5508_req1_queries_of_different_kinds_are_different_sessions(gateway: Gateway) -> None:
    """One identifier, one mapping; an echo reply is no answer to who has asked for the time."""
    gateway.through(icmp(OUT, 13, b"\0\7\0\1", bytes(12)))
    assert reason_of(gateway.back(pong(BACK, 7))) is Reason.LOCAL_IN
    assert source_port(gateway.through(ping(OUT, 7))) == 7
    assert len(gateway.engine.flows()) == 2
    assert gateway.engine.stats().mappings == 1
    assert reason_of(gateway.back(pong(BACK, 7))) is Reason.TRANSLATED


def test_rfc5508_req2_every_query_lives_a_minute(gateway: Gateway) -> None:
    gateway.through(icmp(OUT, 17, b"\0\7\0\1", bytes(4)))
    assert gateway.flow().deadline_ns == 60 * 10**9


@pytest.mark.parametrize("kind", [15, 16])
def test_rfc5508_req10c_information_is_neither_asked_nor_given(gateway: Gateway, kind: int) -> None:
    assert reason_of(gateway.out(icmp(OUT, kind, b"\0\7\0\1"))) is Reason.ICMP_UNRELATED


# ── the address alone ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("proto", WITHOUT_PORTS)
def test_only_the_address_is_translated(gateway: Gateway, proto: int) -> None:
    """What is behind the IP header is nobody's business here, even if there is nothing."""
    for data in (b"\0\0\x08\0payload", b"", b"\xff"):
        assert gateway.through(other(OUT, proto, data)) == other(f"{HEAD} > {PEER}", proto, data)
        assert gateway.returned(other(BACK, proto, data)) == other(f"{PEER} > {W1}", proto, data)
    assert gateway.flow().deadline_ns == 600 * 10**9


@pytest.mark.parametrize("proto", WITHOUT_PORTS)
def test_a_second_host_to_the_same_peer_is_refused_and_told(gateway: Gateway, proto: int) -> None:
    """Where a kernel drops in silence: a reason with a counter, ICMP 3/13, a line for the log (RFC 5508 REQ-8)."""
    gateway.through(other(OUT, proto))
    refused = other(f"{W2} > {PEER}", proto)
    assert reason_of(gateway.out(bytearray(refused))) is Reason.PEER_TAKEN
    assert gateway.count(Reason.PEER_TAKEN) == 1
    assert gateway.engine.outbox.take() == [told(refused)]
    (line,) = gateway.engine.log.take()
    assert f"from {W2} to {PEER} dropped" in line.text
    # other peers, other protocols and other uplinks are free
    assert gateway.through(other(f"{W2} > 203.0.113.9", proto)) == other(f"{HEAD} > 203.0.113.9", proto)
    assert gateway.through(other(f"{W2} > {PEER}", 200)) == other(f"{HEAD} > {PEER}", 200)
    assert gateway.through(other(f"{W2} > {PEER}", proto), BOND_3) == other(f"198.51.100.1 > {PEER}", proto)
    # and what comes back is still the first one's
    assert gateway.returned(other(BACK, proto)) == other(f"{PEER} > {W1}", proto)


def told(refused: bytearray) -> bytearray:
    """ICMP 3/13 from the head about a packet, as the engine makes it."""
    error = icmp_error("10.1.0.1 > 10.1.0.12", refused, 3, 13)
    return ipv4("10.1.0.1", "10.1.0.12", 1, bytes(error[20:]), ident=0, tos=0xC0, fragment=0x4000)


def test_the_log_hears_of_it_rarely(gateway: Gateway) -> None:
    """A line in ten seconds, and how many there were."""
    gateway.through(other(OUT))
    for _ in range(5):
        gateway.out(other(f"{W2} > {PEER}"))
    assert len(gateway.engine.log.take()) == 1
    gateway.clock.advance(11)
    gateway.out(other(f"{W2} > {PEER}"))
    (line,) = gateway.engine.log.take()
    assert line.text.startswith("natengine: gre from 10.1.0.12 to 203.0.113.2 dropped")
    assert line.text.endswith("(and 4 more like it before)")
    assert gateway.count(Reason.PEER_TAKEN) == 6


def test_the_peer_is_free_again_when_the_flow_has_ended(gateway: Gateway) -> None:
    gateway.through(other(OUT))
    assert gateway.expire_all() == 1
    assert gateway.through(other(f"{W2} > {PEER}"))


def test_pptp_passes_for_one_host_and_peer(gateway: Gateway) -> None:
    """RFC 2637: the call ids of the two directions differ, so they cannot tell hosts apart; they stay."""
    ours, theirs = (struct.pack("!HHHHI", 0x3081, 0x880B, 4, call, 1) + b"ppp!" for call in (7, 900))
    assert gateway.through(other(OUT, GRE, ours)) == other(f"{HEAD} > {PEER}", GRE, ours)
    assert gateway.returned(other(BACK, GRE, theirs)) == other(f"{PEER} > {W1}", GRE, theirs)
    assert reason_of(gateway.out(other(f"{W2} > {PEER}", GRE, theirs))) is Reason.PEER_TAKEN


def test_sctp_keeps_its_ports_and_its_crc32c(gateway: Gateway) -> None:
    """The CRC covers the ports and not the addresses (RFC 9260 6.8): not a byte behind the IP header changes."""
    sent = gateway.through(sctp(f"{W1}:5000 > {PEER}:2905"))
    assert sent == sctp(f"{HEAD}:5000 > {PEER}:2905")
    assert gateway.returned(sctp(f"{PEER}:2905 > {HEAD}:5000")) == sctp(f"{PEER}:2905 > {W1}:5000")
    wrong = sctp(f"{W1}:5000 > {PEER}:2905")
    wrong[-1] ^= 1
    assert gateway.through(bytearray(wrong))[20:] == wrong[20:]         # its receiver will see


def test_sctp_hosts_are_told_apart_by_their_ports(gateway: Gateway) -> None:
    """More than one association with a peer, unless two hosts have chosen the same ports."""
    gateway.through(sctp(f"{W1}:5000 > {PEER}:2905"))
    gateway.through(sctp(f"{W2}:5001 > {PEER}:2905"))
    gateway.through(sctp(f"{W2}:5000 > {PEER}:2906"))
    assert reason_of(gateway.out(sctp(f"{W2}:5000 > {PEER}:2905"))) is Reason.PEER_TAKEN
    assert gateway.returned(sctp(f"{PEER}:2905 > {HEAD}:5001")) == sctp(f"{PEER}:2905 > {W2}:5001")


def test_ah_is_refused(gateway: Gateway) -> None:
    """RFC 4302 3.3.3.1.1: it signs the addresses; the head's own passes, and what is for the head comes in."""
    assert reason_of(gateway.out(other(OUT, AH))) is Reason.UNKNOWN_PROTOCOL
    assert reason_of(gateway.head(other(f"{HEAD} > {PEER}", AH))) is Reason.LOCAL_OUT
    assert reason_of(gateway.back(other(BACK, AH))) is Reason.LOCAL_IN


@pytest.mark.parametrize("proto", [*WITHOUT_PORTS, SCTP])
def test_strangers_are_the_heads_own_business(gateway: Gateway, proto: int) -> None:
    data = bytes(12)
    assert reason_of(gateway.back(other(BACK, proto, data))) is Reason.LOCAL_IN
    assert reason_of(gateway.back(other(f"{PEER} > {W1}", proto, data))) is Reason.UNSOLICITED
    assert gateway.engine.flows() == []


@pytest.mark.parametrize("first", ["head", "worker"])
def test_the_heads_own_tunnel_and_a_workers_to_one_peer(gateway: Gateway, first: str) -> None:
    """Who came first has the peer: the head's tunnel is not taken away from it."""
    own, workers = other(f"{HEAD} > {PEER}", ESP), other(OUT, ESP)
    if first == "head":
        assert reason_of(gateway.head(own)) is Reason.UNCHANGED
        assert reason_of(gateway.out(workers)) is Reason.PEER_TAKEN
        assert reason_of(gateway.back(other(BACK, ESP))) is Reason.UNCHANGED
    else:
        assert reason_of(gateway.out(workers)) is Reason.NEW_FLOW
        assert reason_of(gateway.head(own)) is Reason.PEER_TAKEN
        assert gateway.returned(other(BACK, ESP)) == other(f"{PEER} > {W1}", ESP)


def test_the_heads_multicast_is_not_tracked(gateway: Gateway) -> None:
    """OSPF and VRRP of the head's own."""
    for proto, group in ((89, "224.0.0.5"), (112, "224.0.0.18")):
        assert reason_of(gateway.head(other(f"{HEAD} > {group}", proto))) is Reason.LOCAL_OUT


def test_rules_and_limits_are_for_all_protocols(fastpath_backend: ModuleType) -> None:
    """FORWARD by protocol, nat rules by protocol, RFC 6888 REQ-5's limit of flows."""
    gateway = Gateway(fastpath_backend, settings=Settings(max_flows=16, max_flows_per_host=2))
    gateway.rules("-A FORWARD -p 47 -j DROP")
    assert reason_of(gateway.out(other(OUT, GRE))) is Reason.FORWARD_DROP
    gateway.through(other(OUT, ESP))
    gateway.rules("-A FORWARD -p 50 -j DROP")
    assert reason_of(gateway.out(other(OUT, ESP))) is Reason.FORWARD_DROP
    gateway.through(other(OUT, IPIP))
    assert reason_of(gateway.out(other(OUT, 253))) is Reason.HOST_LIMIT


def test_forward_sees_the_kind_of_query(gateway: Gateway) -> None:
    """--icmp-type, also when it is asked again: of each direction its own."""
    gateway.through(icmp(OUT, 13, b"\0\7\0\1", bytes(12)))
    gateway.rules("-A FORWARD -p icmp --icmp-type timestamp-request -j ACCEPT", "-P FORWARD DROP")
    assert gateway.out(icmp(OUT, 13, b"\0\7\0\1", bytes(12))).verdict is Verdict.ACCEPT
    assert reason_of(gateway.back(icmp(BACK, 14, b"\0\7\0\1", bytes(12)))) is Reason.FORWARD_DROP


# ── ICMP errors about them ───────────────────────────────────────────────────────────────────────

ABOUT = {
    "gre": (other(OUT, GRE), other(BACK, GRE)),
    "esp": (other(OUT, ESP), other(BACK, ESP)),
    "sctp": (sctp(f"{W1}:5000 > {PEER}:2905"), sctp(f"{PEER}:2905 > {HEAD}:5000")),
    "udplite": (udplite(f"{W1}:5000 > {PEER}:7"), udplite(f"{PEER}:7 > {HEAD}:5000")),
    "dccp": (dccp(f"{W1}:5000 > {PEER}:7"), dccp(f"{PEER}:7 > {HEAD}:5000")),
    "timestamp": (icmp(OUT, 13, b"\0\7\0\1", bytes(12)), icmp(BACK, 14, b"\0\7\0\1", bytes(12))),
}


@pytest.mark.parametrize("quote_len", [28, 32, None])
@pytest.mark.parametrize("name", ABOUT)
def test_rfc5508_req4_errors_from_outside_about_any_protocol(
    gateway: Gateway, name: str, quote_len: int | None
) -> None:
    """28 bytes, as little as RFC 792 asks for, or more."""
    inside, _ = ABOUT[name]
    sent = gateway.through(bytearray(inside))
    packet = icmp_error(f"203.0.113.9 > {HEAD}", sent, 11, 0, quote_len=quote_len)
    assert reason_of(gateway.back(packet)) is Reason.ICMP_ERROR
    assert packet == icmp_error(f"203.0.113.9 > {W1}", inside, 11, 0, quote_len=quote_len)
    assert_error_checksums(packet)


@pytest.mark.parametrize("name", ABOUT)
def test_rfc5508_req5_errors_from_inside_about_any_protocol(gateway: Gateway, name: str) -> None:
    inside, reply = ABOUT[name]
    gateway.through(bytearray(inside))
    packet = icmp_error(f"{W1} > {PEER}", gateway.returned(bytearray(reply)), 3, 2)
    assert reason_of(gateway.out(packet)) is Reason.ICMP_ERROR
    assert packet == icmp_error(f"{HEAD} > {PEER}", reply, 3, 2)


@pytest.mark.parametrize("name", ABOUT)
def test_rfc5508_req5_no_error_without_a_flow_leaves(gateway: Gateway, name: str) -> None:
    inside, reply = ABOUT[name]
    gateway.through(bytearray(inside))
    quoted = gateway.returned(bytearray(reply))
    gateway.expire_all()
    assert reason_of(gateway.out(icmp_error(f"{W1} > {PEER}", quoted, 3, 2))) is Reason.ICMP_UNRELATED


def test_rfc5508_req6_errors_neither_refresh_nor_end_a_flow_of_any_protocol(gateway: Gateway) -> None:
    sent = gateway.through(other(OUT))
    before = gateway.flow()
    gateway.clock.advance(100)
    assert reason_of(gateway.back(icmp_error(f"203.0.113.9 > {HEAD}", sent))) is Reason.ICMP_ERROR
    assert gateway.flow() == before


def test_an_error_about_pptp_shows_its_sender_its_own_packet(gateway: Gateway) -> None:
    inside = other(OUT, GRE, struct.pack("!HHHHI", 0x3081, 0x880B, 4, 7, 1) + b"ppp!")
    packet = icmp_error(f"203.0.113.9 > {HEAD}", gateway.through(bytearray(inside)), 3, 4, rest=b"\0\0\5\x14")
    assert reason_of(gateway.back(packet)) is Reason.ICMP_ERROR
    assert quote_of(packet) == inside
