"""Hairpinning: two hosts inside that know each other by their outside endpoints.

    w1 10.1.0.11:5000 = G:5000      w2 10.1.0.12:6000 = G:6000      G = 203.0.113.1, each packet meets both hooks
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
from support.engines import BOND_2, BOND_3, BOND_DEF, INSIDE_2, OWNER_RULES, Gateway, reason_of
from support.packets import (
    address,
    assert_checksums,
    assert_error_checksums,
    describe,
    fragments,
    icmp_error,
    joined,
    ping,
    quote_of,
    source_port,
    tcp,
    udp,
)

from natengine.rules.model import ChainName, TableName
from natengine.settings import FilteringBehaviour, MappingBehaviour, Settings
from natengine.vocab import Hook, Interface, Reason

Build = Callable[..., bytearray]

ASKED, ANSWERED = "10.1.0.11:5000 > 203.0.113.1:6000", "10.1.0.12:6000 > 203.0.113.1:5000"
SEEN_BY_W2, SEEN_BY_W1 = "203.0.113.1:5000 > 10.1.0.12:6000", "203.0.113.1:6000 > 10.1.0.11:5000"
both = pytest.mark.parametrize("build", [udp, tcp], ids=["udp", "tcp"])


def across(gateway: Gateway, packet: bytearray, came: int = BOND_DEF, via: int = BOND_DEF) -> bytearray:
    """Take a packet through both hooks, as the kernel does; return it."""
    for hook, out in ((Hook.PREROUTING, 0), (Hook.POSTROUTING, via)):
        decision = gateway.process(packet, hook, came, out)
        assert decision.packet is packet, decision.reason.name
        assert int.from_bytes(packet[12:16], "big") != address("203.0.113.1") or hook is Hook.POSTROUTING
    return packet


@pytest.fixture
def mapped(gateway: Gateway) -> Gateway:
    """w2 has a mapping of each protocol."""
    with_mapping(gateway)
    return gateway


def with_mapping(gateway: Gateway) -> None:
    gateway.through(udp("10.1.0.12:6000 > 203.0.113.2:7"))
    gateway.through(tcp("10.1.0.12:6000 > 203.0.113.2:7", "S"))


@both
def test_rfc4787_req9_hairpinning(mapped: Gateway, build: Build) -> None:
    """There and back; each sees the other's outside endpoint (REQ-9a; RFC 5382 REQ-8)."""
    packet = across(mapped, build(ASKED))
    assert describe(packet) == SEEN_BY_W2
    assert_checksums(packet)
    flags = () if build is udp else ("SA",)
    packet = across(mapped, build(ANSWERED, *flags))
    assert describe(packet) == SEEN_BY_W1
    assert_checksums(packet)


def test_rfc5382_req8_a_whole_connection(mapped: Gateway) -> None:
    """Both flows follow it: state, windows, and its end."""
    for text, *segment in (
        (ASKED, "S"), (ANSWERED, "SA"), (ASKED, "A"), (ASKED, "PA", b"hello"),
        (ANSWERED, "FA"), (ASKED, "FA"), (ANSWERED, "A"),
    ):
        numbers = {"seq": 1006, "ack": 1002} if segment == ["FA"] and text == ASKED else {}
        if segment == ["A"] and text == ANSWERED:
            numbers = {"seq": 1002, "ack": 1007}
        across(mapped, tcp(text, *segment, **numbers))
    pair = [flow for flow in mapped.engine.flows() if flow.spec.peer_ip >> 24 == 10]
    assert [flow.tcp_state for flow in pair] == [pair[0].tcp_state] * 2
    assert [flow.spec.from_inside for flow in pair] == [False, True]
    assert all(flow.seen_reply and flow.assured for flow in pair)


@both
def test_one_outside_endpoint_whoever_looks(mapped: Gateway, build: Build) -> None:
    """RFC 4787 REQ-1: what w2 sees of w1 is what a host outside sees, before and after."""
    mapped.through(build("10.1.0.12:5000 > 203.0.113.2:7"))             # so w1 cannot have 5000
    port = source_port(across(mapped, build(ASKED)))
    assert port != 5000
    assert source_port(mapped.through(build("10.1.0.11:5000 > 203.0.113.9:80"))) == port


def test_ports_are_those_of_the_rule(gateway: Gateway) -> None:
    """As if the packet left over the uplink whose address was asked."""
    gateway.rules("-t nat -I POSTROUTING -o bond0.2 -p udp -j MASQUERADE --to-ports 7000-7001")
    port = source_port(gateway.through(udp("10.1.0.12:6000 > 203.0.113.2:7")))
    assert source_port(across(gateway, udp(f"10.1.0.11:5000 > 203.0.113.1:{port}"))) in {7000, 7001} - {port}


def test_through_the_other_uplinks_address(gateway: Gateway) -> None:
    """Each uplink has its own mappings; the one that was asked is the one that is shown."""
    gateway.through(udp("10.1.0.12:6000 > 198.51.100.2:7"), BOND_3)
    packet = across(gateway, udp("10.1.0.11:5000 > 198.51.100.1:6000"))
    assert describe(packet) == "198.51.100.1:5000 > 10.1.0.12:6000"
    assert reason_of(gateway.back(udp(ASKED), BOND_DEF)) is Reason.LOCAL_IN


def test_the_second_flow_ends_with_the_first(mapped: Gateway) -> None:
    """An answer that met it alone would show w2's inside address."""
    across(mapped, udp(ASKED))
    first = next(flow for flow in mapped.engine.flows() if not flow.spec.from_inside)
    assert mapped.engine.remove_flow(first.flow_id, mapped.clock.now_ns)
    assert mapped.engine.stats().flows == 2
    assert reason_of(mapped.process(udp(ANSWERED), Hook.PREROUTING, BOND_DEF, 0)) is Reason.LOCAL_IN
    assert describe(across(mapped, udp(ASKED))) == SEEN_BY_W2


def test_the_second_flow_does_not_take_the_place_of_the_first(fastpath_backend: ModuleType) -> None:
    """In a table that is full but for the first one there is no room for the second, and the sender is told."""
    gateway = Gateway(fastpath_backend, settings=Settings(max_flows=2))
    gateway.through(udp("10.1.0.12:6000 > 203.0.113.2:7"))
    gateway.returned(udp("203.0.113.2:7 > 203.0.113.1:6000"))
    packet = udp(ASKED)
    assert gateway.process(packet, Hook.PREROUTING, BOND_DEF, 0).packet is packet
    assert reason_of(gateway.process(packet, Hook.POSTROUTING, BOND_DEF, BOND_DEF)) is Reason.TABLE_FULL
    assert gateway.engine.outbox


def test_between_two_inside_networks(mapped: Gateway) -> None:
    packet = across(mapped, udp("10.2.0.7:5000 > 203.0.113.1:6000"), INSIDE_2, BOND_DEF)
    assert describe(packet) == SEEN_BY_W2
    assert describe(across(mapped, udp(ANSWERED), BOND_DEF, INSIDE_2)) == "203.0.113.1:6000 > 10.2.0.7:5000"


def test_a_host_may_talk_to_itself(mapped: Gateway) -> None:
    """From one of its sockets to the outside endpoint of another one (RFC 5780 4.5: a hairpin test)."""
    packet = across(mapped, udp("10.1.0.12:5999 > 203.0.113.1:6000"))
    assert describe(packet) == "203.0.113.1:5999 > 10.1.0.12:6000"


@pytest.mark.parametrize("filtering", FilteringBehaviour)
def test_filtering_is_for_who_comes_from_outside(fastpath_backend: ModuleType, filtering: FilteringBehaviour) -> None:
    """REQ-9 without extra rules: whatever the filtering, hosts inside reach each other's mappings."""
    gateway = Gateway(fastpath_backend, settings=Settings(max_flows=64, filtering=filtering))
    with_mapping(gateway)
    assert describe(across(gateway, udp(ASKED))) == SEEN_BY_W2
    assert describe(across(gateway, udp(ANSWERED))) == SEEN_BY_W1


def test_with_the_kernels_mapping(fastpath_backend: ModuleType) -> None:
    """`address-and-port-dependent`: whoever has the port has it."""
    settings = Settings(max_flows=64, mapping=MappingBehaviour.ADDRESS_AND_PORT_DEPENDENT)
    gateway = Gateway(fastpath_backend, settings=settings)
    with_mapping(gateway)
    assert describe(across(gateway, udp(ASKED))) == SEEN_BY_W2
    assert describe(across(gateway, udp(ANSWERED))) == SEEN_BY_W1


# ── the head's own stack ────────────────────────────────────────────────────────────────────────


@both
def test_without_a_mapping_it_is_the_heads(gateway: Gateway, build: Build) -> None:
    """Nobody inside has that port: the head's own stack answers at once, as ever; no SYN is held."""
    decision = gateway.back(build(ASKED), BOND_DEF)
    assert (decision.reason, decision.packet) == (Reason.LOCAL_IN, None)
    assert gateway.engine.flows() == []


def test_a_port_of_the_heads_own_is_not_hairpinned(mapped: Gateway) -> None:
    """A socket of the head has it, or the head's own flow."""
    mapped.engine.replace_local_ports({17: frozenset({6000}), 6: frozenset()})
    assert reason_of(mapped.back(udp(ASKED), BOND_DEF)) is Reason.LOCAL_IN
    mapped.head(udp("203.0.113.1:6001 > 203.0.113.2:53"))
    assert reason_of(mapped.back(udp("10.1.0.11:5000 > 203.0.113.1:6001"), BOND_DEF)) is Reason.LOCAL_IN


def test_a_segment_of_no_connection_is_the_heads(mapped: Gateway) -> None:
    """It answers with a RST, which tells the host."""
    assert reason_of(mapped.back(tcp(ASKED, "PA", b"x"), BOND_DEF)) is Reason.LOCAL_IN


def test_rfc7857_12_pings_are_answered_by_the_head(mapped: Gateway) -> None:
    """Its address is its own; that some host's echo happens to have this identifier does not matter."""
    mapped.through(ping("10.1.0.12 > 203.0.113.2", 77))
    assert reason_of(mapped.back(ping("10.1.0.11 > 203.0.113.1", 77), BOND_DEF)) is Reason.LOCAL_IN


def test_the_inside_address_of_the_head(mapped: Gateway) -> None:
    assert reason_of(mapped.back(udp("10.1.0.11:5000 > 10.1.0.1:6000"), BOND_DEF)) is Reason.LOCAL_IN


# ── who may ─────────────────────────────────────────────────────────────────────────────────────


def test_forward_is_asked(mapped: Gateway) -> None:
    """With the interfaces and addresses that a packet between the two has; counted once."""
    mapped.rules("-A FORWARD -i bond0.def -o bond0.def -s 10.1.0.11 -d 10.1.0.12 -p udp -j ACCEPT", "-P FORWARD DROP")
    across(mapped, udp(ASKED))
    (rule,) = mapped.engine.ruleset.chain(TableName.FILTER, ChainName.FORWARD).rules
    assert mapped.engine.counters.rule(rule.handle)[0] == 1
    assert reason_of(mapped.back(udp(ANSWERED), BOND_DEF)) is Reason.FORWARD_DROP           # it says nothing of replies
    assert reason_of(mapped.back(tcp(ASKED), BOND_DEF)) is Reason.FORWARD_DROP
    mapped.rules("-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT")
    assert describe(across(mapped, udp(ANSWERED))) == SEEN_BY_W1


def test_no_port_for_the_source(fastpath_backend: ModuleType) -> None:
    """Nothing inside shows its inside address to the other; the sender is told."""
    rules = ["-t nat -A POSTROUTING -o bond0.2 -p udp -j MASQUERADE --to-ports 6000-6000"]
    gateway = Gateway(fastpath_backend, rules, settings=Settings(max_flows=64, port_overloading=False))
    gateway.through(udp("10.1.0.12:6000 > 203.0.113.2:7"))
    packet = udp(ASKED)
    assert gateway.back(packet, BOND_DEF).packet is packet
    assert reason_of(gateway.out(packet, BOND_DEF)) is Reason.OUT_OF_PORTS
    assert len(gateway.engine.outbox) == 1


def test_both_flows_end_with_the_address(mapped: Gateway) -> None:
    across(mapped, udp(ASKED))
    assert mapped.interfaces(Interface(BOND_2, "bond0.2")) == 4
    assert mapped.engine.stats()[:2] == (0, 0)


def test_when_all_has_ended_every_port_is_free(mapped: Gateway) -> None:
    for build in (udp, tcp):
        across(mapped, build(ASKED))
    mapped.expire_all()
    assert mapped.engine.stats()[:3] == (0, 0, 0)


def test_rules_change(mapped: Gateway) -> None:
    """Both flows are asked about again, and go on."""
    across(mapped, udp(ASKED))
    mapped.rules("-A FORWARD -p tcp -j DROP")
    assert describe(across(mapped, udp(ANSWERED))) == SEEN_BY_W1
    assert describe(across(mapped, udp(ASKED))) == SEEN_BY_W2


def test_a_rule_without_an_interface(fastpath_backend: ModuleType) -> None:
    """All interfaces are taken at both hooks: replies from outside pass the second one, hairpinned packets do not."""
    gateway = Gateway(fastpath_backend, ["-t nat -A POSTROUTING -j MASQUERADE"])
    with_mapping(gateway)
    assert describe(across(gateway, udp(ASKED))) == SEEN_BY_W2
    assert describe(across(gateway, udp(ANSWERED))) == SEEN_BY_W1
    reply = gateway.returned(udp("203.0.113.2:7 > 203.0.113.1:6000"))
    assert reason_of(gateway.process(reply, Hook.POSTROUTING, BOND_2, BOND_DEF)) is Reason.ROUTED


# ── errors and fragments ────────────────────────────────────────────────────────────────────────


@both
def test_rfc5508_req7_error_about_a_hairpinned_packet(mapped: Gateway, build: Build) -> None:
    """w2 has no such port any more: w1 hears it from the address it asked, about the packet that it sent."""
    sent = build(ASKED)
    received = across(mapped, bytearray(sent))
    error = across(mapped, icmp_error("10.1.0.12 > 203.0.113.1", received, 3, 3))
    assert describe(error) == "203.0.113.1 > 10.1.0.11"
    assert quote_of(error) == sent
    assert_error_checksums(error)


def test_error_about_an_answer(mapped: Gateway) -> None:
    """And the other way round; FORWARD may forbid it."""
    across(mapped, udp(ASKED))
    sent = udp(ANSWERED)
    received = across(mapped, bytearray(sent))
    error = icmp_error("10.1.0.11 > 203.0.113.1", received, 3, 3)
    assert quote_of(across(mapped, bytearray(error))) == sent
    mapped.rules("-P FORWARD DROP")
    assert reason_of(mapped.back(error, BOND_DEF)) is Reason.FORWARD_DROP


def test_error_about_nothing(mapped: Gateway) -> None:
    error = icmp_error("10.1.0.12 > 203.0.113.1", udp("203.0.113.1:9 > 10.1.0.12:9"), 3, 3)
    assert reason_of(mapped.back(error, BOND_DEF)) is Reason.LOCAL_IN


def test_fragments(mapped: Gateway) -> None:
    pieces = fragments(udp(ASKED, bytes(60)), 24)
    whole = joined([across(mapped, piece) for piece in pieces])
    assert describe(whole) == SEEN_BY_W2
    assert_checksums(whole)


def test_without_masquerade_there_is_nothing_to_hairpin(gateway: Gateway) -> None:
    """Two hosts of different inside networks talk directly, as ever."""
    gateway.rules(*OWNER_RULES)
    assert reason_of(gateway.back(udp("10.1.0.11:5000 > 10.2.0.7:80"), BOND_DEF)) is Reason.ROUTED
