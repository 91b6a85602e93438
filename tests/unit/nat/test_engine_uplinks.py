"""Uplinks whose address changes, and flows that the routing table sends over another uplink."""

from __future__ import annotations

from types import ModuleType

import pytest
from support.engines import BOND_2, BOND_3, BOND_DEF, INSIDE_2, OWNER_RULES, Gateway, reason_of
from support.packets import address, describe, fragments, icmp_error, ping, tcp, udp

from natengine.nat import vanished
from natengine.settings import Settings
from natengine.vocab import Interface, Reason

OUT, BACK = "10.1.0.11:5000 > 192.0.2.9:80", "192.0.2.9:80 > 203.0.113.1:5000"
MOVED_OUT = "198.51.100.1:5000 > 192.0.2.9:80"

NO_ADDRESS = Interface(BOND_2, "bond0.2", default_route=True)
HERE = Interface(BOND_2, "bond0.2", (address("203.0.113.1"),), default_route=True)
ELSEWHERE = Interface(BOND_2, "bond0.2", (address("203.0.113.77"),), default_route=True)


def established(gateway: Gateway, out: str = OUT) -> None:
    """A TCP connection over bond0.2."""
    sent = describe(gateway.through(tcp(out, "S")))
    gateway.returned(tcp(" > ".join(reversed(sent.split(" > "))), "SA"))
    gateway.through(tcp(out, "A"))


# ── addresses ───────────────────────────────────────────────────────────────────────────────────


def test_address_disappears_and_comes_back(gateway: Gateway) -> None:
    """In between there is none to translate to; then all begins anew, but for connections, which the head resets."""
    gateway.through(udp(OUT))
    gateway.through(tcp(OUT, "S"))
    assert gateway.interfaces(NO_ADDRESS) == 2
    assert reason_of(gateway.out(udp(OUT))) is Reason.NO_ADDRESS
    assert reason_of(gateway.back(tcp(BACK, "SA"))) is Reason.UNSOLICITED
    assert gateway.interfaces(HERE) == 0
    assert reason_of(gateway.back(tcp(BACK, "SA"))) is Reason.LOCAL_IN
    assert reason_of(gateway.out(udp(OUT))) is Reason.NEW_FLOW
    assert gateway.returned(udp(BACK))


def test_one_of_several_addresses_goes(gateway: Gateway) -> None:
    """Only the flows on that one end."""
    both = HERE._replace(addresses=(address("203.0.113.1"), address("203.0.113.50")))
    gateway.interfaces(both)
    gateway.through(udp(OUT))
    gateway.head(udp("203.0.113.50:9 > 203.0.113.2:9"))
    assert gateway.interfaces(HERE) == 1
    assert gateway.flow().spec.outside_ip == address("203.0.113.1")


def test_interface_goes_down_and_up(gateway: Gateway) -> None:
    """It keeps its address, and its flows with it."""
    established(gateway)
    assert gateway.interfaces(HERE._replace(up=False, default_route=False)) == 0
    assert gateway.interfaces(HERE) == 0
    assert gateway.returned(tcp(BACK, "PA", b"x"))
    assert gateway.through(tcp(OUT, "A", ack=1002))


@pytest.fixture
def crowd(fastpath_backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    """Forty flows on bond0.2, one on bond0.3; ten at most may end at once."""
    monkeypatch.setattr(vanished, "_LOOKS", 5)
    monkeypatch.setattr(vanished, "_LOOKS_AT_ONCE", 10)
    gateway = Gateway(fastpath_backend, settings=Settings(max_flows=64))
    for port in range(6000, 6040):
        gateway.through(udp(f"10.1.0.11:{port} > 203.0.113.2:80"))
    gateway.through(udp("10.1.0.11:5000 > 198.51.100.2:80"), BOND_3)
    return gateway


def test_many_flows_end_in_turns(crowd: Gateway) -> None:
    """No turn takes long, however many flows there are; the other uplink's stays."""
    ended = [crowd.interfaces(NO_ADDRESS)]
    while count := crowd.engine.expire(crowd.clock.now_ns):
        ended.append(count)
    assert ended == [10, 10, 10, 10]
    assert crowd.flow().spec.uplink_ifindex == BOND_3
    assert crowd.engine.stats().mappings == 1


def test_whose_packet_comes_first_ends_first(crowd: Gateway) -> None:
    """Nothing more leaves with the old address, although its flow has not had its turn yet."""
    crowd.interfaces(ELSEWHERE)
    packet = crowd.through(udp("10.1.0.11:6039 > 203.0.113.2:80"))
    assert describe(packet) == "203.0.113.77:6039 > 203.0.113.2:80"
    assert reason_of(crowd.back(udp("203.0.113.2:80 > 203.0.113.1:6038"))) is Reason.UNSOLICITED
    while crowd.engine.expire(crowd.clock.now_ns):
        pass
    assert {flow.spec.outside_ip for flow in crowd.engine.flows()} == {
        address("203.0.113.77"), address("198.51.100.1")
    }


def test_address_comes_back_before_all_have_ended(crowd: Gateway) -> None:
    """Those that are left go on: their address is there."""
    assert crowd.interfaces(NO_ADDRESS) == 10
    assert crowd.interfaces(HERE) == 0
    assert crowd.engine.expire(crowd.clock.now_ns) == 0
    assert crowd.returned(udp("203.0.113.2:80 > 203.0.113.1:6039"))


def test_connection_without_its_address(crowd: Gateway) -> None:
    """A segment cannot begin a connection on the new address; it is counted, and so is the next one."""
    established(crowd, "10.1.0.11:5000 > 203.0.113.2:80")
    crowd.interfaces(ELSEWHERE)
    segment = tcp("10.1.0.11:5000 > 203.0.113.2:80", "PA", b"x")
    assert reason_of(crowd.out(bytearray(segment))) is Reason.UPLINK_CHANGED
    assert reason_of(crowd.out(segment)) is Reason.TCP_STATE


# ── routes ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("build", [udp, tcp], ids=["udp", "tcp"])
def test_route_moves_to_the_other_uplink(gateway: Gateway, build: object) -> None:
    """No packet leaves with the other provider's address: a new flow has this uplink's own."""
    gateway.through(build(OUT))  # type: ignore[operator]
    assert describe(gateway.through(build(OUT), BOND_3)) == MOVED_OUT  # type: ignore[operator]
    assert gateway.flow().spec.uplink_ifindex == BOND_3
    assert describe(gateway.through(build(OUT), BOND_2)).startswith("203.0.113.1:")  # type: ignore[operator]


def test_echo_whose_route_moves(gateway: Gateway) -> None:
    gateway.through(ping("10.1.0.11 > 192.0.2.9", 7))
    assert describe(gateway.through(ping("10.1.0.11 > 192.0.2.9", 7), BOND_3)).startswith("198.51.100.1 ")


def test_connection_whose_route_moves(gateway: Gateway) -> None:
    """It ends with a reason of its own, and the next one begins on the new uplink."""
    established(gateway)
    assert reason_of(gateway.out(tcp(OUT, "PA", b"x"), BOND_3)) is Reason.UPLINK_CHANGED
    assert gateway.engine.stats()[:2] == (0, 0)
    assert describe(gateway.through(tcp(OUT, "S"), BOND_3)) == MOVED_OUT


def test_fragments_whose_route_moves(gateway: Gateway) -> None:
    gateway.through(udp(OUT))
    for piece in fragments(udp(OUT, bytes(60)), 24):
        assert describe(gateway.through(piece, BOND_3)).startswith("198.51.100.1")


def test_an_answer_may_come_over_any_uplink(gateway: Gateway) -> None:
    """Only the opener's packets say which uplink a flow has."""
    gateway.through(udp(OUT))
    assert describe(gateway.returned(udp(BACK), BOND_3)) == "192.0.2.9:80 > 10.1.0.11:5000"
    assert gateway.through(udp(OUT))
    assert len(gateway.engine.flows()) == 1


def test_an_answer_may_leave_over_any_uplink(gateway: Gateway) -> None:
    """A client came over bond0.2; the head's answers leave as its routes say, with the address that was asked."""
    gateway.back(tcp("192.0.2.9:4000 > 203.0.113.1:22", "S"))
    for via, flags in ((BOND_2, "SA"), (BOND_3, "A")):
        assert reason_of(gateway.head(tcp("203.0.113.1:22 > 192.0.2.9:4000", flags), via)) is Reason.UNCHANGED
    assert len(gateway.engine.flows()) == 1


def test_the_heads_own_flow_moves(gateway: Gateway) -> None:
    """A socket that is bound to one uplink's address: over the other one it is translated, as any inside address."""
    gateway.head(udp("203.0.113.1:5000 > 192.0.2.9:80"))
    assert describe(gateway.through(udp("203.0.113.1:5000 > 192.0.2.9:80"), BOND_3, came=0)) == MOVED_OUT


def test_an_exempt_flow_goes_on(gateway: Gateway) -> None:
    """A rule leaves it as it is: its address is its own on any uplink, and FORWARD is asked about the new one."""
    exempt = [f"-t nat -I POSTROUTING -o {name} -d 192.0.2.9 -j ACCEPT" for name in ("bond0.2", "bond0.3")]
    gateway.rules(*exempt, "-A FORWARD -s 10.1.0.12 -o bond0.3 -j DROP")
    for worker, outcome in (("10.1.0.11", Reason.UNCHANGED), ("10.1.0.12", Reason.FORWARD_DROP)):
        text = f"{worker}:5000 > 192.0.2.9:80"
        assert reason_of(gateway.out(tcp(text, "S"))) is Reason.UNCHANGED
        gateway.back(tcp(f"192.0.2.9:80 > {worker}:5000", "SA"))
        for _ in range(2):
            assert reason_of(gateway.out(tcp(text, "A"), BOND_3)) is outcome


def test_an_error_does_not_move_a_flow(gateway: Gateway) -> None:
    """An ICMP error of a worker about what it received says nothing about the route of its flow."""
    gateway.through(udp(OUT))
    received = gateway.returned(udp(BACK))
    assert reason_of(gateway.out(icmp_error("10.1.0.11 > 192.0.2.9", received), BOND_3)) is Reason.ICMP_ERROR
    assert gateway.flow().spec.uplink_ifindex == BOND_2


def test_route_into_an_inside_network(gateway: Gateway) -> None:
    """No uplink at all any more: what leaves there is as the hosts sent it."""
    gateway.rules("-t nat -A POSTROUTING -j MASQUERADE", *OWNER_RULES)
    gateway.through(udp(OUT))
    assert describe(gateway.through(udp(OUT), INSIDE_2, came=BOND_DEF)).startswith("10.2.0.1:")
