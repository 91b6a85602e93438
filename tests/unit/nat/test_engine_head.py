"""The head itself: what it sends, what it serves, what is sent to it."""

from __future__ import annotations

from types import ModuleType

import pytest
from support.engines import BOND_2, BOND_3, BOND_DEF, HOLD_DOWN, OWNER_RULES, Gateway, reason_of
from support.packets import AH, address, describe, icmp, other, ping, pong, source_port, tcp, udp

from natengine.vocab import Reason


def test_own_connection_is_tracked_and_left_alone(gateway: Gateway) -> None:
    """An identity mapping: nothing is rewritten, and the answers are recognised."""
    decision = gateway.head(udp("203.0.113.1:5000 > 203.0.113.2:53"))
    assert (decision.reason, decision.packet) == (Reason.UNCHANGED, None)
    assert reason_of(gateway.back(udp("203.0.113.2:53 > 203.0.113.1:5000"))) is Reason.UNCHANGED
    assert gateway.flow().seen_reply


def test_a_worker_never_gets_a_port_that_the_head_uses(gateway: Gateway) -> None:
    """RFC 6056: the head's connection holds its port as a worker's does."""
    gateway.head(udp("203.0.113.1:5000 > 203.0.113.2:53"))
    assert source_port(gateway.through(udp("10.1.0.11:5000 > 203.0.113.2:53"))) != 5000


def test_head_is_renumbered_where_a_worker_was_first(gateway: Gateway) -> None:
    """As the kernel's null binding does."""
    gateway.through(udp("10.1.0.11:5000 > 203.0.113.2:53"))
    port = source_port(gateway.through(udp("203.0.113.1:5000 > 203.0.113.2:53"), came=0))
    assert port != 5000
    answer = gateway.returned(udp(f"203.0.113.2:53 > 203.0.113.1:{port}"))
    assert describe(answer) == "203.0.113.2:53 > 203.0.113.1:5000"


def test_head_with_its_inside_address_is_translated(gateway: Gateway) -> None:
    """A program bound to 10.1.0.1 must not show that address outside."""
    packet = gateway.through(udp("10.1.0.1:5000 > 203.0.113.2:53"), came=0)
    assert describe(packet) == "203.0.113.1:5000 > 203.0.113.2:53"


@pytest.mark.parametrize("build", [udp, tcp, other])
def test_inbound_to_the_head_makes_no_state(gateway: Gateway, build: object) -> None:
    """A stranger's packet goes to the head's own stack as it is, and leaves no trace in the table."""
    packet = build("203.0.113.2:4000 > 203.0.113.1:22")  # type: ignore[operator]
    decision = gateway.back(packet)
    assert (decision.reason, decision.packet) == (Reason.LOCAL_IN, None)
    assert gateway.engine.flows() == []


@pytest.mark.parametrize(
    "destination", ["203.0.113.255", "255.255.255.255", "224.0.0.251", "127.0.0.1", "10.1.0.1", "10.1.0.255"]
)
def test_every_address_of_the_head_is_local(gateway: Gateway, destination: str) -> None:
    """Broadcast, multicast, loopback and the addresses of other interfaces: the head's stack decides."""
    assert reason_of(gateway.back(udp(f"203.0.113.2:9 > {destination}:9"))) is Reason.LOCAL_IN


def test_server_keeps_its_port(gateway: Gateway) -> None:
    """A connection to the head: its SYN+ACK begins the flow, from outside, and nothing is rewritten."""
    out, back = "203.0.113.1:22 > 203.0.113.2:4000", "203.0.113.2:4000 > 203.0.113.1:22"
    assert reason_of(gateway.back(tcp(back, "S"))) is Reason.LOCAL_IN
    assert reason_of(gateway.head(tcp(out, "SA"))) is Reason.UNCHANGED
    assert not gateway.flow().spec.from_inside
    assert reason_of(gateway.back(tcp(back, "A"))) is Reason.UNCHANGED
    assert gateway.flow().tcp_state == 3      # ESTABLISHED
    assert source_port(gateway.through(tcp("10.1.0.11:22 > 203.0.113.2:9", "S"))) != 22


def test_server_keeps_its_port_even_if_a_worker_has_it(gateway: Gateway) -> None:
    """The peer of a service knows its port; another peer's worker may have it meanwhile."""
    gateway.through(tcp("10.1.0.11:22 > 203.0.113.9:80", "S"))
    decision = gateway.head(tcp("203.0.113.1:22 > 203.0.113.2:4000", "SA"))
    assert (decision.reason, decision.packet) == (Reason.UNCHANGED, None)
    answer = gateway.returned(tcp("203.0.113.9:80 > 203.0.113.1:22", "SA"))
    assert describe(answer) == "203.0.113.9:80 > 10.1.0.11:22"


def test_a_service_without_the_port_does_not_give_it_away(gateway: Gateway) -> None:
    """Two services on a port, only the later one holds it: the end of the first one frees nothing."""
    gateway.through(tcp("10.1.0.11:22 > 203.0.113.9:80", "S"))
    gateway.head(tcp("203.0.113.1:22 > 203.0.113.2:4000", "SA"))               # too late for the port
    worker, early = (flow.flow_id for flow in gateway.engine.flows())
    gateway.engine.remove_flow(worker, gateway.clock.now_ns)
    gateway.head(tcp("203.0.113.1:22 > 203.0.113.3:4000", "SA"))               # gets it
    gateway.engine.remove_flow(early, gateway.clock.now_ns)
    assert source_port(gateway.through(tcp("10.1.0.12:22 > 203.0.113.9:80", "S"))) != 22


def test_own_flow_without_a_rule_holds_its_port(gateway: Gateway) -> None:
    """Whether a rule covers the head's traffic or not, its end gives back what it took and no more."""
    gateway.head(udp("203.0.113.1:5000 > 203.0.113.2:53"))
    gateway.rules("-t nat -F")
    gateway.head(udp("203.0.113.1:5000 > 203.0.113.3:53"))
    first, second = (flow.flow_id for flow in gateway.engine.flows())
    gateway.engine.remove_flow(second, gateway.clock.now_ns)
    gateway.rules("-t nat -A POSTROUTING -o bond0.2 -j MASQUERADE")
    assert source_port(gateway.through(udp("10.1.0.11:5000 > 203.0.113.2:53"))) != 5000
    gateway.engine.remove_flow(first, gateway.clock.now_ns)
    gateway.clock.advance(HOLD_DOWN)
    assert source_port(gateway.through(udp("10.1.0.12:5000 > 203.0.113.2:53"))) == 5000


@pytest.mark.parametrize(
    "packet",
    [
        tcp("203.0.113.1:22 > 203.0.113.2:4000", "R"),                      # the answer to a stranger's SYN
        tcp("203.0.113.1:22 > 203.0.113.2:4000", "RA"),
        pong("203.0.113.1 > 203.0.113.2", 7),                               # a stranger's ping, answered
        icmp("203.0.113.1 > 203.0.113.2", 5),                               # a redirect
        other("203.0.113.1 > 203.0.113.2", AH),
        udp("203.0.113.1:67 > 255.255.255.255:68"),
        udp("0.0.0.0:68 > 255.255.255.255:67"),                             # DHCP
        udp("203.0.113.1:5353 > 224.0.0.251:5353"),
    ],
)
def test_what_is_not_worth_a_record(gateway: Gateway, packet: bytearray) -> None:
    """The head's own, with nothing to track: it goes out as it is."""
    before = bytes(packet)
    decision = gateway.head(packet)
    assert (decision.reason, decision.packet) == (Reason.LOCAL_OUT, None)
    assert bytes(packet) == before
    assert gateway.engine.flows() == []


@pytest.mark.parametrize("flags", ["SF", "", "FPU"])
def test_a_flow_that_its_first_segment_cannot_begin(gateway: Gateway, flags: str) -> None:
    """Nonsense from the head itself (a port scanner, say): refused, and nothing is held for it."""
    assert reason_of(gateway.head(tcp("203.0.113.1:5000 > 203.0.113.2:80", flags))) is Reason.TCP_STATE
    assert gateway.engine.stats()[:2] == (0, 0)


def test_forward_policy_is_not_for_the_head(gateway: Gateway) -> None:
    """FORWARD DROP stops the workers and leaves the head alone."""
    gateway.rules("-P FORWARD DROP")
    assert reason_of(gateway.head(ping("203.0.113.1 > 203.0.113.2", 7))) is Reason.UNCHANGED
    assert reason_of(gateway.back(pong("203.0.113.2 > 203.0.113.1", 7))) is Reason.UNCHANGED


def test_own_connection_that_began_before_the_engine(gateway: Gateway) -> None:
    """A connection of the head's that the engine has not seen opened goes on."""
    assert reason_of(gateway.head(tcp("203.0.113.1:22 > 203.0.113.2:4000", "PA", b"x"))) is Reason.UNCHANGED
    assert reason_of(gateway.back(tcp("203.0.113.2:4000 > 203.0.113.1:22", "A"))) is Reason.UNCHANGED


def test_out_of_the_inside_interface(gateway: Gateway) -> None:
    """Where no rule covers it, the head talks to its workers unchanged."""
    assert reason_of(gateway.head(udp("10.1.0.1:5000 > 10.1.0.11:53"), BOND_DEF)) is Reason.UNCHANGED


def test_a_source_that_nobody_owns_takes_no_ports(gateway: Gateway) -> None:
    """A transparent proxy sends with its clients' addresses; no pool is made for each."""
    gateway.rules("-t nat -F")
    for host in range(1, 20):
        gateway.head(udp(f"192.0.2.{host}:5000 > 203.0.113.2:53"), BOND_2)
    assert gateway.engine.stats().mappings == 0
    assert not any(flow.spec.outside_ip == address("203.0.113.1") for flow in gateway.engine.flows())


def test_own_connection_whose_first_sight_is_its_end(gateway: Gateway) -> None:
    """The head closes a connection that began before the engine did, with data in the same segment."""
    assert reason_of(gateway.head(tcp("203.0.113.1:22 > 203.0.113.2:4000", "FPA", b"x"))) is Reason.UNCHANGED
    assert reason_of(gateway.back(tcp("203.0.113.2:4000 > 203.0.113.1:22", "FA"))) is Reason.UNCHANGED
    assert reason_of(gateway.head(tcp("203.0.113.1:22 > 203.0.113.2:4000", "A"))) is Reason.UNCHANGED


@pytest.mark.parametrize(("packet", "reason"), [
    (tcp("10.1.0.11:5000 > 203.0.113.2:80", "A"), Reason.TCP_STATE),
    (tcp("10.1.0.11:5000 > 203.0.113.2:80", "R"), Reason.TCP_STATE),
    (tcp("10.1.0.11:5000 > 203.0.113.2:80", "S"), Reason.NEW_FLOW),
    (udp("10.1.0.11:5000 > 203.0.113.2:80"), Reason.NEW_FLOW),
])
def test_in_another_hosts_name(gateway: Gateway, packet: bytearray, reason: Reason) -> None:
    """A transparent proxy, or a raw socket: translated as the other host's own packets are, or not sent."""
    decision = gateway.head(bytearray(packet))
    assert reason_of(decision) is reason
    if decision.packet is not None:
        assert describe(decision.packet).startswith("203.0.113.1:")
    gateway.rules("-t nat -F")
    for number in (5001, 5002):
        assert reason_of(gateway.head(udp(f"10.1.0.11:{number} > 203.0.113.2:80"))) is Reason.NO_RULE


def test_what_goes_inside_in_a_workers_name_opens_it_no_way_out(gateway: Gateway) -> None:
    """A transparent proxy's packet to a worker begins no flow: the worker's own packet would follow it."""
    answer = "10.1.0.11:4723 > 203.0.113.2:1723"
    assert reason_of(gateway.head(tcp(answer, "A"), BOND_DEF)) is Reason.LOCAL_OUT
    assert reason_of(gateway.out(tcp(answer, "A"))) is Reason.TCP_STATE
    assert describe(gateway.through(tcp(answer, "S"))) == "203.0.113.1:4723 > 203.0.113.2:1723"


@pytest.mark.parametrize("inside_is_uplink", [False, True])
def test_an_answer_to_the_head_that_would_leave(fastpath_backend: ModuleType, inside_is_uplink: bool) -> None:
    """Sent by a host inside in the peer's name: it has no way out, also where `-o bond0.+` means the inside, too."""
    pattern = "bond0.+" if inside_is_uplink else "bond0.3"
    gateway = Gateway(fastpath_backend, [f"-t nat -A POSTROUTING -o {pattern} -p tcp -j MASQUERADE", OWNER_RULES[0]])
    gateway.head(udp("203.0.113.1:5000 > 203.0.113.2:53"))
    assert reason_of(gateway.out(udp("203.0.113.2:53 > 203.0.113.1:5000"), BOND_3)) is Reason.NO_RULE
    assert reason_of(gateway.back(udp("203.0.113.2:53 > 203.0.113.1:5000"))) is Reason.UNCHANGED
