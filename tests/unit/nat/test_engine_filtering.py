"""Who may send to a mapped port, and what becomes of those who may not (RFC 4787 5, RFC 5382 4)."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
from support.engines import BOND_3, Gateway, reason_of
from support.packets import describe, fragments, source_port, tcp, udp

from natengine.settings import FilteringBehaviour, MappingBehaviour, Settings
from natengine.vocab import Proto, Reason, Verdict

OUT = "10.1.0.11:5000 > 203.0.113.2:53"
MAPPED = "203.0.113.1:5000"
SAME, OTHER_PORT, OTHER_HOST = "203.0.113.2:53", "203.0.113.2:54", "203.0.113.3:53"
F = FilteringBehaviour

SETTINGS = Settings(max_flows=64)


def filtering(backend: ModuleType, behaviour: FilteringBehaviour, **changes: object) -> Gateway:
    return Gateway(backend, settings=replace(SETTINGS, filtering=behaviour, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("build", [udp, tcp])
@pytest.mark.parametrize(("behaviour", "let_in"), [
    (F.ENDPOINT_INDEPENDENT, {SAME, OTHER_PORT, OTHER_HOST}),
    (F.ADDRESS_DEPENDENT, {SAME, OTHER_PORT}),
    (F.ADDRESS_AND_PORT_DEPENDENT, {SAME}),
])
def test_rfc4787_req8_filtering(
    fastpath_backend: ModuleType, behaviour: FilteringBehaviour, let_in: set[str], build: object
) -> None:
    """The nine cells; who is let in reaches the worker's own port, and gets its answers from the mapped one."""
    gateway = filtering(fastpath_backend, behaviour)
    gateway.through(build(OUT))  # type: ignore[operator]
    for peer in (SAME, OTHER_PORT, OTHER_HOST):
        letters = {} if build is udp else {"flags": "SA" if peer == SAME else "S"}
        packet = build(f"{peer} > {MAPPED}", **letters)  # type: ignore[operator]
        decision = gateway.back(packet)
        if peer in let_in:
            assert describe(packet) == f"{peer} > 10.1.0.11:5000", decision.reason
            answer = build(f"10.1.0.11:5000 > {peer}", **({} if build is udp else {"flags": "SA"}))  # type: ignore[operator]
            if peer != SAME or build is udp:
                assert describe(gateway.through(answer)) == f"{MAPPED} > {peer}"
        else:
            assert reason_of(decision) in (Reason.FILTERED, Reason.SYN_HELD)


def test_what_is_let_in_passes_forward(fastpath_backend: ModuleType) -> None:
    gateway = filtering(fastpath_backend, F.ENDPOINT_INDEPENDENT)
    gateway.through(udp(OUT))
    gateway.rules("-A FORWARD -i bond0.2 -p udp --sport 54 -j DROP")
    assert reason_of(gateway.back(udp(f"{OTHER_PORT} > {MAPPED}"))) is Reason.FORWARD_DROP
    assert gateway.returned(udp(f"{OTHER_HOST} > {MAPPED}"))


def test_a_flow_from_outside_keeps_the_mapping(fastpath_backend: ModuleType) -> None:
    """The worker's own flow has ended; its port stays its own until the other one has ended as well."""
    gateway = filtering(fastpath_backend, F.ENDPOINT_INDEPENDENT)
    gateway.through(udp(OUT))
    first = gateway.flow().flow_id
    gateway.returned(udp(f"{OTHER_HOST} > {MAPPED}"))
    gateway.engine.remove_flow(first, gateway.clock.now_ns)
    assert gateway.returned(udp(f"{OTHER_PORT} > {MAPPED}"))
    assert gateway.expire_all() == 2
    assert gateway.engine.stats().mappings == 0
    assert reason_of(gateway.back(udp(f"{OTHER_PORT} > {MAPPED}"))) is Reason.LOCAL_IN


def test_address_dependent_filtering_forgets(fastpath_backend: ModuleType) -> None:
    gateway = filtering(fastpath_backend, F.ADDRESS_DEPENDENT)
    gateway.through(udp(OUT))
    gateway.through(udp("10.1.0.11:5000 > 203.0.113.9:53"))
    first = min(flow.flow_id for flow in gateway.engine.flows())
    gateway.engine.remove_flow(first, gateway.clock.now_ns)
    assert reason_of(gateway.back(udp(f"{OTHER_PORT} > {MAPPED}"))) is Reason.FILTERED
    assert gateway.returned(udp(f"203.0.113.9:99 > {MAPPED}"))


def test_only_a_syn_begins_a_connection_from_outside(fastpath_backend: ModuleType) -> None:
    gateway = filtering(fastpath_backend, F.ENDPOINT_INDEPENDENT)
    gateway.through(tcp(OUT))
    for letters in ("A", "SA", "FA", "R"):
        assert reason_of(gateway.back(tcp(f"{OTHER_HOST} > {MAPPED}", letters))) is Reason.FILTERED
    assert gateway.returned(tcp(f"{OTHER_HOST} > {MAPPED}", "S"))


def test_rfc4787_req1_an_early_packet_from_the_peer_spoils_nothing(gateway: Gateway) -> None:
    """Hole punching: both send, theirs comes first; ours keeps the port (the kernel takes another one)."""
    assert source_port(gateway.through(udp(OUT))) == 5000
    assert reason_of(gateway.back(udp(f"{OTHER_HOST} > {MAPPED}"))) is Reason.FILTERED
    assert source_port(gateway.through(udp("10.1.0.11:5000 > 203.0.113.3:53"))) == 5000
    assert gateway.returned(udp(f"{OTHER_HOST} > {MAPPED}"))


def test_a_port_that_the_head_uses_is_the_heads(gateway: Gateway) -> None:
    """A worker that had it before goes on; who has no flow means the head."""
    gateway.through(udp(OUT))
    gateway.engine.replace_local_ports({Proto.UDP: frozenset({5000})})
    assert reason_of(gateway.back(udp(f"{OTHER_HOST} > {MAPPED}"))) is Reason.LOCAL_IN
    assert gateway.returned(udp(f"{SAME} > {MAPPED}"))
    assert source_port(gateway.through(udp("10.1.0.12:5000 > 198.51.100.2:53"), BOND_3)) != 5000


# ── held SYNs ────────────────────────────────────────────────────────────────────────────────────

SYN = f"{OTHER_HOST} > {MAPPED}"


def told(gateway: Gateway) -> list[tuple[str, int, int]]:
    gateway.engine.expire(gateway.clock.now_ns)
    return [(describe(error), error[20], error[21]) for error in gateway.engine.outbox.take()]


def test_rfc5382_req4_a_syn_for_a_mapped_port_is_answered_after_six_seconds(gateway: Gateway) -> None:
    gateway.through(tcp(OUT))
    assert reason_of(gateway.back(tcp(SYN))) is Reason.SYN_HELD
    gateway.clock.advance(3)
    assert reason_of(gateway.back(tcp(SYN))) is Reason.SYN_HELD, "sent again: it does not wait longer"
    gateway.clock.advance(2)
    assert told(gateway) == []
    gateway.clock.advance(1)
    assert told(gateway) == [("203.0.113.1 > 203.0.113.3", 3, 3)]
    gateway.clock.advance(100)
    assert told(gateway) == []


def test_rfc5382_req4_not_when_a_connection_comes_of_it(gateway: Gateway) -> None:
    """Simultaneous open: the worker's SYN goes out meanwhile, and the peer's is sent again."""
    gateway.through(tcp(OUT))
    assert reason_of(gateway.back(tcp(SYN))) is Reason.SYN_HELD
    gateway.clock.advance(3)
    gateway.through(tcp("10.1.0.11:5000 > 203.0.113.3:53"))
    assert gateway.returned(tcp(SYN))
    gateway.clock.advance(10)
    assert told(gateway) == []


def test_rfc5382_req4_also_for_a_port_that_nobody_has(gateway: Gateway) -> None:
    """Once it is known what the head listens on: its own ports answer at once, the others wait."""
    assert reason_of(gateway.back(tcp(SYN))) is Reason.LOCAL_IN, "nothing is known yet"
    gateway.engine.replace_local_ports({Proto.TCP: frozenset({22})})
    assert reason_of(gateway.back(tcp(f"{OTHER_HOST} > 203.0.113.1:22"))) is Reason.LOCAL_IN
    assert reason_of(gateway.back(tcp(SYN, "A"))) is Reason.LOCAL_IN, "no SYN"
    assert reason_of(gateway.back(udp(SYN))) is Reason.LOCAL_IN
    assert reason_of(gateway.back(tcp(SYN))) is Reason.SYN_HELD


def test_a_service_of_the_heads_own_that_is_new(fastpath_backend: ModuleType) -> None:
    """Nobody has told of its port yet: the ports are looked at once more before the first SYN to it is held."""
    ports, looks = {22}, []
    knock = f"{OTHER_HOST} > 203.0.113.1:8080"

    def look() -> bool:
        looks.append(len(ports))
        gateway.engine.replace_local_ports({Proto.TCP: frozenset(ports)})
        return True

    gateway = Gateway(fastpath_backend, look_at_ports=look)
    gateway.engine.replace_local_ports({Proto.TCP: frozenset(ports)})
    assert reason_of(gateway.back(tcp(knock))) is Reason.SYN_HELD
    ports.add(8080)
    assert reason_of(gateway.back(tcp(knock))) is Reason.LOCAL_IN
    assert reason_of(gateway.back(tcp(knock))) is Reason.LOCAL_IN
    assert looks == [1, 2], "and not for a port that is known"
    gateway.clock.advance(10)
    assert told(gateway) == [], "the one that was held is not refused any more"


def test_first_fragments_are_refused_like_whole_packets(fastpath_backend: ModuleType) -> None:
    """A SYN in pieces is held and answered, and a host without room is told, once for each datagram."""
    gateway = Gateway(fastpath_backend, settings=Settings(max_flows=64, max_flows_per_host=1))
    gateway.through(tcp(OUT))
    first, *later = fragments(tcp(SYN, "S", bytes(60)), 40, 7)
    assert reason_of(gateway.back(first)) is Reason.SYN_HELD
    first, *later = fragments(udp("10.1.0.11:6 > 203.0.113.2:53", bytes(60)), 40, 8)
    assert reason_of(gateway.out(first)) is Reason.HOST_LIMIT
    assert all(gateway.out(piece).verdict is Verdict.DROP for piece in later)
    gateway.clock.advance(6)
    assert told(gateway) == [("10.1.0.1 > 10.1.0.11", 3, 13), ("203.0.113.1 > 203.0.113.3", 3, 3)]


def test_holding_can_be_switched_off(fastpath_backend: ModuleType) -> None:
    gateway = filtering(fastpath_backend, F.ADDRESS_AND_PORT_DEPENDENT, syn_hold_ns=0)
    gateway.through(tcp(OUT))
    assert reason_of(gateway.back(tcp(SYN))) is Reason.FILTERED
    gateway.engine.replace_local_ports({})
    assert reason_of(gateway.back(tcp(f"{OTHER_HOST} > 203.0.113.1:9"))) is Reason.LOCAL_IN


def test_a_flood_of_syns_is_bounded(gateway: Gateway) -> None:
    """Memory, and what is said: 50 at once to all, and never one to whom more than six are due."""
    gateway.through(tcp(OUT))
    for n in range(3000):
        gateway.back(tcp(f"203.0.{n >> 8}.{n & 255}:7 > {MAPPED}"))
    assert len(gateway.engine._slow.arriving.held) == 1024
    gateway.clock.advance(7)
    assert 0 < len(told(gateway)) <= 50
    assert len(gateway.engine._slow.arriving.held) == 0


# ── limits of a host, ports that run out ─────────────────────────────────────────────────────────


def test_rfc6888_req4_flows_of_one_host(fastpath_backend: ModuleType) -> None:
    """Others are not touched; the host is told, and may go on when a flow of its own has ended."""
    gateway = Gateway(fastpath_backend, settings=Settings(max_flows=64, max_flows_per_host=2))
    for port in (1, 2):
        gateway.through(udp(f"10.1.0.11:{port} > 203.0.113.2:53"))
    assert reason_of(gateway.out(udp("10.1.0.11:3 > 203.0.113.2:53"))) is Reason.HOST_LIMIT
    assert [(describe(error), error[20], error[21]) for error in gateway.engine.outbox.take()] == [
        ("10.1.0.1 > 10.1.0.11", 3, 13)
    ]
    assert gateway.through(udp("10.1.0.12:3 > 203.0.113.2:53"))
    assert gateway.expire_all() == 3
    assert gateway.through(udp("10.1.0.11:3 > 203.0.113.2:53"))


def test_rfc7857_3_new_flows_to_other_peers_when_ports_have_run_out(gateway: Gateway) -> None:
    """One port, two hosts: to the same peer there is none, to another peer it is shared, and both get their answers."""
    gateway.rules("-t nat -A POSTROUTING -p udp -o bond0.2 -j MASQUERADE --to-ports 6000-6000", fresh=True)
    gateway.through(udp("10.1.0.11:5000 > 203.0.113.2:53"))
    assert reason_of(gateway.out(udp("10.1.0.12:5000 > 203.0.113.2:53"))) is Reason.OUT_OF_PORTS
    assert source_port(gateway.through(udp("10.1.0.12:5000 > 203.0.113.3:53"))) == 6000
    assert gateway.engine.stats().overloaded == 1
    assert describe(gateway.returned(udp("203.0.113.2:53 > 203.0.113.1:6000"))).endswith("> 10.1.0.11:5000")
    assert describe(gateway.returned(udp("203.0.113.3:53 > 203.0.113.1:6000"))).endswith("> 10.1.0.12:5000")
    assert gateway.expire_all() == 2
    assert gateway.engine.stats().mappings == 0


def test_the_kernels_mapping(fastpath_backend: ModuleType) -> None:
    """`mapping = address-and-port-dependent`: two hosts keep one port, until they meet at one peer."""
    settings = replace(SETTINGS, mapping=MappingBehaviour.ADDRESS_AND_PORT_DEPENDENT)
    gateway = Gateway(fastpath_backend, settings=settings)
    assert source_port(gateway.through(udp("10.1.0.11:5000 > 203.0.113.2:53"))) == 5000
    assert source_port(gateway.through(udp("10.1.0.12:5000 > 203.0.113.3:53"))) == 5000
    assert source_port(gateway.through(udp("10.1.0.12:5000 > 203.0.113.2:53"))) != 5000
    assert gateway.engine.stats().overloaded == 0
