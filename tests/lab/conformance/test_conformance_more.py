"""Hairpinning (RFC 4787 REQ-9, RFC 5382 REQ-8) and fragments (RFC 4787 REQ-14, RFC 6864)."""

from __future__ import annotations

import itertools

import pytest
from support.packets import describe, fragments, joined, tcp, udp

from conformance.network import U0, W1, W2, G, Network
from conformance.rows import requirement

pytestmark = pytest.mark.lab

UDP, TCP = 17, 6
IDENT = 4242


def seen_inside(net: Network, packet: bytearray) -> list[str]:
    """Who is said to have sent what a host inside gets for this packet, and to whom."""
    return [describe(each) for each in net.exchange(packet).inside if each[9] == packet[9]]


@requirement("RFC 4787 REQ-9, REQ-9a", "MUST", "two hosts inside reach each other by their outside endpoints")
def test_rfc4787_req9_hairpinning(net: Network) -> None:
    one, two = net.port(), net.port()
    outside_one, outside_two = net.mapped(f"{W1}:{one} > {U0}:7"), net.mapped(f"{W2}:{two} > {U0}:7")
    there = seen_inside(net, udp(f"{W1}:{one} > {G}:{outside_two}"))
    assert there == [f"{G}:{outside_one} > {W2}:{two}"], "it does not arrive"
    back = seen_inside(net, udp(f"{W2}:{two} > {G}:{outside_one}"))
    assert back == [f"{G}:{outside_two} > {W1}:{one}"], "the answer does not arrive"


@requirement("RFC 5382 REQ-8", "MUST", "the same with TCP")
def test_rfc5382_req8_hairpinning(net: Network) -> None:
    one, two = net.port(), net.port()
    outside_one = net.mapped(f"{W1}:{one} > {U0}:7", tcp)
    outside_two = net.mapped(f"{W2}:{two} > {U0}:7", tcp)
    there = seen_inside(net, tcp(f"{W1}:{one} > {G}:{outside_two}"))
    assert there == [f"{G}:{outside_one} > {W2}:{two}"], "it does not arrive"


@requirement("RFC 4787 REQ-14", "MUST", "fragments are passed on, in whatever order they come")
def test_rfc4787_req14_fragments_in_any_order(net: Network) -> None:
    payload = bytes(n % 251 for n in range(2400))
    for order in itertools.permutations(range(3)):
        port = net.port()
        pieces = fragments(udp(f"{W1}:{port} > {U0}:7", payload), 1000, ident=IDENT)
        seen = net.exchange(*(pieces[n] for n in order)).outside
        assert seen, "none gets out"
        whole = joined(sorted(seen, key=lambda piece: int.from_bytes(piece[6:8], "big") & 0x1FFF))
        assert describe(whole).startswith(f"{G}:")
        assert whole[28:] == payload


@requirement("RFC 6864 4", "MUST", "two hosts' fragments with one identification stay apart")
def test_rfc6864_identifications_of_two_hosts(net: Network) -> None:
    theirs = [
        fragments(udp(f"{host}:{net.port()} > {U0}:7", letter * 1800), 1000, ident=IDENT)
        for host, letter in ((W1, b"a"), (W2, b"b"))
    ]
    seen = net.exchange(*(piece for pair in zip(*theirs, strict=True) for piece in pair)).outside
    letters = {bytes(piece[4:6]): {bytes(each[-1:]) for each in seen if each[4:6] == piece[4:6]} for piece in seen}
    assert len(seen) >= 4
    assert all(len(each) == 1 for each in letters.values()), "the receiver mixes them"
