"""Datagrams in pieces through a running gateway, in an order that no kernel would send them in.

Whoever gets the pieces is a real stack, which gives a socket the whole datagram or nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import pytest
from fragment_tools import DATA, SIZE, held, in_the_order, mapped, pieces_of
from gateway_tools import ADDRESS, ECHO, HTTP, UPLINK, dropped, send_raw, udp_socket, wait_for
from natlab import Lab
from natlab.engine import Engine
from scapy.layers.inet import ICMP, IP, TCP, fragment
from scapy.packet import Raw

pytestmark = pytest.mark.lab

BACKWARDS, SHUFFLED = (5, 4, 3, 2, 1, 0), (3, 0, 5, 1, 4, 2)


@pytest.mark.parametrize(
    ("order", "outside"), [(BACKWARDS, [0, 5, 4, 3, 2, 1]), (SHUFFLED, [0, 3, 5, 1, 4, 2])],
    ids=["backwards", "shuffled"],
)
def test_rfc4787_req14_out_of_order_from_inside(
    lab: Lab, gateway: Engine, order: Sequence[int], outside: list[int]
) -> None:
    """The echo service gets the whole datagram, the first piece first, and so does the worker its answer."""
    with (
        mapped(lab, "worker1", 25_000) as (link, _),
        lab.capture("inet2", "eth0", f"src {UPLINK['inet2']} and ip[6:2] & 0x3fff != 0") as capture,
    ):
        pieces = pieces_of(ADDRESS["worker1"], 25_000, ADDRESS["inet2"], ECHO, DATA, 4711)
        assert len(pieces) == len(order)
        send_raw(lab, "worker1", *in_the_order(pieces, order))
        assert link.recv(65_535) == DATA
    assert [packet[IP].frag * 8 // SIZE for packet in capture.packets()] == outside
    assert held(gateway) == 0


@pytest.mark.parametrize("order", [BACKWARDS, SHUFFLED], ids=["backwards", "shuffled"])
def test_rfc4787_req14_out_of_order_from_outside(lab: Lab, gateway: Engine, order: Sequence[int]) -> None:
    """The worker's socket gets the whole datagram."""
    with mapped(lab, "worker2", 25_001) as (link, outside):
        pieces = pieces_of(ADDRESS["inet2"], ECHO, UPLINK["inet2"], outside, DATA, 4712)
        send_raw(lab, "inet2", *in_the_order(pieces, order))
        assert link.recv(65_535) == DATA
    assert held(gateway) == 0


def test_every_order_of_three(lab: Lab, gateway: Engine) -> None:
    """Six datagrams from inside and six from outside."""
    with mapped(lab, "worker1", 25_002) as (link, outside):
        for number, order in enumerate(permutations(range(3))):
            data = bytes([number]) * 3000
            for node, ends in (
                ("worker1", (ADDRESS["worker1"], 25_002, ADDRESS["inet2"], ECHO)),
                ("inet2", (ADDRESS["inet2"], ECHO, UPLINK["inet2"], outside)),
            ):
                send_raw(lab, node, *in_the_order(pieces_of(*ends, data, 5000 + number), order))
                assert link.recv(65_535) == data
    assert held(gateway) == 0


def test_ping_out_of_order(lab: Lab, gateway: Engine) -> None:
    """ICMP echo: the host answers, though its requests come backwards."""
    packet = IP(src=ADDRESS["worker1"], dst=ADDRESS["inet2"], id=99) / ICMP(id=25_003) / Raw(DATA)
    with lab.capture("worker1", "eth0", "icmp[icmptype] == 0 and ip[6:2] & 0x1fff == 0") as capture:
        send_raw(lab, "worker1", *list(fragment(IP(bytes(packet)), SIZE))[::-1])
        wait_for("the first piece of an answer", lambda: capture.path.stat().st_size > 24 + 16 + SIZE)
    (answer,) = capture.packets()
    assert (answer[IP].src, answer[ICMP].id) == (ADDRESS["inet2"], 25_003)
    assert held(gateway) == 0


def test_a_connection_begun_in_pieces(lab: Lab, gateway: Engine) -> None:
    """A SYN with data behind it, backwards: the server answers it, and the answer finds its way."""
    syn = IP(src=ADDRESS["worker1"], dst=ADDRESS["inet2"], id=98) / TCP(sport=25_010, dport=HTTP, flags="S") / Raw(DATA)
    with lab.capture("worker1", "eth0", "tcp src port 80 and tcp dst port 25010") as capture:
        send_raw(lab, "worker1", *list(fragment(IP(bytes(syn)), SIZE))[::-1])
        wait_for("an answer", lambda: capture.path.stat().st_size > 24 + 16 + 14 + 40)
    answer = capture.packets()[0]
    assert (answer[IP].src, answer[TCP].flags) == (ADDRESS["inet2"], "SA")
    assert held(gateway) == 0


def test_out_of_order_to_the_head(lab: Lab, gateway: Engine) -> None:
    """What is for the head itself waits as well, for it might be a worker's; then the head gets it."""
    with udp_socket(lab.node("head"), source_port=25_011) as link:
        pieces = pieces_of(ADDRESS["inet2"], 25_012, UPLINK["inet2"], 25_011, DATA, 97)
        send_raw(lab, "inet2", *pieces[::-1])
        assert link.recv(65_535) == DATA
    assert held(gateway) == 0


def test_rfc6864_two_workers_with_one_identification(lab: Lab, gateway: Engine) -> None:
    """RFC 3022 6.3: interleaved, to one destination.  Each gets its own back; outside the identifications differ."""
    theirs = DATA[::-1]
    with (
        mapped(lab, "worker1", 25_004) as (one, _), mapped(lab, "worker2", 25_005) as (two, _),
        lab.capture("inet2", "eth0", f"src {UPLINK['inet2']} and ip[6:2] & 0x3fff != 0") as capture,
    ):
        ours = pieces_of(ADDRESS["worker1"], 25_004, ADDRESS["inet2"], ECHO, DATA, 77)
        others = pieces_of(ADDRESS["worker2"], 25_005, ADDRESS["inet2"], ECHO, theirs, 77)
        for mine, other in zip(ours, others[::-1], strict=True):
            send_raw(lab, "worker1", mine)
            send_raw(lab, "worker2", other)
        assert one.recv(65_535) == DATA
        assert two.recv(65_535) == theirs
    seen = [packet[IP].id for packet in capture.packets()]
    assert len(seen) == 12 and sorted(seen.count(ident) for ident in set(seen)) == [6, 6]
    assert held(gateway) == 0


def test_rfc5722_an_overlap_ends_the_datagram(lab: Lab, gateway: Engine) -> None:
    """All of it is dropped, and what comes after it, correct, arrives."""
    with mapped(lab, "worker1", 25_006) as (link, _):
        ends = ADDRESS["worker1"], 25_006, ADDRESS["inet2"], ECHO
        pieces = pieces_of(*ends, DATA, 88)
        astride = 2 * SIZE // 8 - 1         # the last 8 bytes of one piece and the first of the next
        overlap = IP(src=ends[0], dst=ends[2], id=88, proto=17, flags="MF", frag=astride) / Raw(bytes(64))
        before = dropped(gateway, "fragment overlap")
        send_raw(lab, "worker1", pieces[1], overlap, *pieces[2:], pieces[0])
        wait_for("all seven dropped", lambda: dropped(gateway, "fragment overlap") == before + 7)
        send_raw(lab, "worker1", *pieces_of(*ends, b"correct" + DATA, 89))
        assert link.recv(65_535) == b"correct" + DATA
