"""Services behind the head: DNAT, REDIRECT and NETMAP, reached from outside, from inside, and from the head.

    G = 203.0.113.1      w1 10.1.0.11 serves port 80      w2 10.1.0.12 and c 203.0.113.2 are its clients
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
from support.engines import (
    BOND_2,
    BOND_3,
    BOND_DEF,
    INTERFACES,
    LO,
    Gateway,
    reason_of,
    translated,
)
from support.packets import (
    address,
    assert_checksums,
    assert_error_checksums,
    describe,
    icmp_error,
    ping,
    pong,
    quote_of,
    source_port,
    tcp,
    udp,
)

from natengine.nat.destination import Answering, Taken, taken_by
from natengine.nat.interfaces import InterfaceTable
from natengine.rules.matches import AddressRange, PortRange, PortTest, TcpUdpPorts
from natengine.rules.model import AddressTest, ChainName, InterfaceTest, ProtocolTest, Rule, RuleSet, TableName
from natengine.rules.targets import Accept, Dnat, Drop, Jump, Masquerade, Netmap, Redirect, Snat, Target
from natengine.settings import FilteringBehaviour, Settings
from natengine.vocab import Hook, Interface, Proto, Reason, Route
from natengine.wire.addr import ALL_ONES, Prefix, mask_of_length

Build = Callable[..., bytearray]

ROUTES = tuple(
    Route(address(network), mask_of_length(length), ifindex) for network, length, ifindex in (
        ("10.1.0.0", 24, BOND_DEF), ("10.2.0.0", 24, 5), ("203.0.113.0", 24, BOND_2), ("0.0.0.0", 0, BOND_2),
    )
)
G, W1 = address("203.0.113.1"), address("10.1.0.11")
TO_W1 = Dnat(AddressRange(W1, W1), PortRange(80, 80))
FROM_C, TO_C = "203.0.113.2:4000 > 203.0.113.1:80", "10.1.0.11:80 > 203.0.113.2:4000"
both = pytest.mark.parametrize("build", [udp, tcp], ids=["udp", "tcp"])


def add(gateway: Gateway, target: Target, chain: ChainName = ChainName.PREROUTING, **tests: object) -> None:
    """Append a rule to a chain of table nat; it is for G unless something else is said."""
    tests.setdefault("dst", AddressTest(Prefix(G)))
    rules = gateway.engine.ruleset.append(TableName.NAT, chain, Rule(target=target, **tests))  # type: ignore[arg-type]
    gateway.engine.replace_ruleset(rules)


@pytest.fixture
def service(fastpath_backend: ModuleType) -> Gateway:
    """G:80 is w1:80, for everybody."""
    return with_service(Gateway(fastpath_backend))


def with_service(gateway: Gateway, target: Target = TO_W1) -> Gateway:
    gateway.engine.replace_interfaces(InterfaceTable(INTERFACES, ROUTES), 0)
    add(gateway, target)
    return gateway


def across(gateway: Gateway, packet: bytearray, came: int = BOND_DEF, via: int = BOND_DEF) -> bytearray:
    """Through both hooks, changed at each."""
    translated(gateway.process(packet, Hook.PREROUTING, came, 0))
    return translated(gateway.process(packet, Hook.POSTROUTING, came, via))


# ── from outside ────────────────────────────────────────────────────────────────────────────────


@both
def test_from_outside(service: Gateway, build: Build) -> None:
    packet = service.returned(build(FROM_C))
    assert describe(packet) == "203.0.113.2:4000 > 10.1.0.11:80"
    assert_checksums(packet)
    answer = service.through(build(TO_C, *([] if build is udp else ["SA"])))
    assert describe(answer) == "203.0.113.1:80 > 203.0.113.2:4000"
    spec = service.flow().spec
    assert (spec.from_inside, spec.inside_ifindex, spec.uplink_ifindex) == (False, BOND_DEF, BOND_2)


def test_a_whole_connection(service: Gateway) -> None:
    service.returned(tcp(FROM_C, "S"))
    service.through(tcp(TO_C, "SA"))
    service.returned(tcp(FROM_C, "PA", b"GET /"))
    service.through(tcp(TO_C, "A", ack=1006))
    assert service.flow().assured
    assert reason_of(service.back(tcp(FROM_C, "R", seq=99_999_999))) is Reason.TCP_WINDOW


def test_a_segment_of_no_connection(service: Gateway) -> None:
    """It is not for the head's own stack: that would reset a connection of which it knows nothing."""
    assert reason_of(service.back(tcp(FROM_C, "A"))) is Reason.TCP_STATE
    assert service.engine.flows() == []


def test_what_no_rule_is_about(gateway: Gateway) -> None:
    """It is no different from before."""
    gateway.engine.replace_interfaces(InterfaceTable(INTERFACES, ROUTES), 0)
    add(gateway, TO_W1, proto=ProtocolTest(6))
    assert reason_of(gateway.back(udp(FROM_C))) is Reason.LOCAL_IN
    assert reason_of(gateway.back(tcp(FROM_C, "S"))) is Reason.NEW_FLOW


def test_forward_is_asked(service: Gateway) -> None:
    """About the packet as it goes on: with the inside address, and the interface that a route leads to."""
    service.rules("-A FORWARD -i bond0.2 -o bond0.def -d 10.1.0.11 -p udp --dport 80 -j ACCEPT", "-P FORWARD DROP")
    assert reason_of(service.back(udp(FROM_C))) is Reason.NEW_FLOW
    assert reason_of(service.back(tcp(FROM_C))) is Reason.FORWARD_DROP
    assert reason_of(service.out(udp(TO_C))) is Reason.FORWARD_DROP


def test_drop_and_accept_before_it(service: Gateway) -> None:
    """First match wins; ACCEPT is "leave the destination"."""
    for target, reason in ((Drop(), Reason.RULE_DROP), (Accept(), Reason.LOCAL_IN)):
        rule = Rule(target=target, src=AddressTest(Prefix(address("203.0.113.2"))))
        service.engine.replace_ruleset(service.engine.ruleset.insert(TableName.NAT, ChainName.PREROUTING, rule))
        assert reason_of(service.back(udp(FROM_C))) is reason


def test_no_way_there(fastpath_backend: ModuleType) -> None:
    """Whose FORWARD rules would count if nobody knows the interface?"""
    gateway = Gateway(fastpath_backend)
    add(gateway, TO_W1)
    assert reason_of(gateway.back(udp(FROM_C))) is Reason.NO_ROUTE
    assert gateway.engine.stats()[:2] == (0, 0)


def test_the_rule_goes_and_its_flows_stay(service: Gateway) -> None:
    """As in the kernel: rules are for what begins."""
    service.returned(udp(FROM_C))
    service.engine.replace_ruleset(service.engine.ruleset.flush(TableName.NAT, ChainName.PREROUTING))
    assert describe(service.through(udp(TO_C))) == "203.0.113.1:80 > 203.0.113.2:4000"
    assert describe(service.returned(udp(FROM_C))) == "203.0.113.2:4000 > 10.1.0.11:80"


def test_pings_too(service: Gateway) -> None:
    """A rule without -p: the echo request goes to w1, and its answer comes from G."""
    assert describe(service.returned(ping("203.0.113.2 > 203.0.113.1", 7))) == "203.0.113.2 > 10.1.0.11 id 7"
    assert describe(service.through(pong("10.1.0.11 > 203.0.113.2", 7))) == "203.0.113.1 > 203.0.113.2 id 7"


def test_error_from_the_service(service: Gateway) -> None:
    """RFC 5508 REQ-5: the client sees G, and the packet that it sent."""
    sent = udp(FROM_C)
    received = service.returned(bytearray(sent))
    error = service.through(icmp_error("10.1.0.11 > 203.0.113.2", received, 3, 3))
    assert describe(error) == "203.0.113.1 > 203.0.113.2"
    assert quote_of(error) == sent
    assert_error_checksums(error)


# ── ports and addresses ─────────────────────────────────────────────────────────────────────────


def test_its_port_is_nobody_elses(service: Gateway) -> None:
    """While a client is there; and the service itself keeps it when it speaks first (a SIP server, say)."""
    service.returned(udp(FROM_C))
    assert source_port(service.through(udp("10.1.0.12:80 > 203.0.113.9:9"))) != 80
    assert source_port(service.through(udp("10.1.0.11:80 > 203.0.113.9:9"))) == 80
    service.expire_all()
    assert service.engine.stats()[:2] == (0, 0)
    assert source_port(service.through(udp("10.1.0.12:80 > 203.0.113.9:9"))) == 80


def test_somebody_has_the_port_already(service: Gateway) -> None:
    """A worker's flows go on with it, towards other peers; when all has ended nothing is held."""
    service.through(udp("10.1.0.12:80 > 203.0.113.9:9"))
    service.returned(udp(FROM_C))
    assert describe(service.returned(udp("203.0.113.9:9 > 203.0.113.1:80"))) == "203.0.113.9:9 > 10.1.0.12:80"
    service.expire_all()
    assert service.engine.stats()[:2] == (0, 0)


def test_a_rule_says_who_may(fastpath_backend: ModuleType) -> None:
    """Endpoint-independent filtering opens mappings, not services."""
    settings = Settings(max_flows=64, filtering=FilteringBehaviour.ENDPOINT_INDEPENDENT)
    gateway = with_service(Gateway(fastpath_backend, settings=settings), Accept())
    gateway.engine.replace_ruleset(gateway.engine.ruleset.flush(TableName.NAT, ChainName.PREROUTING))
    add(gateway, TO_W1, src=AddressTest(Prefix(address("203.0.113.2"))))
    gateway.returned(udp(FROM_C))
    assert reason_of(gateway.back(udp("203.0.113.66:4000 > 203.0.113.1:80"))) is Reason.LOCAL_IN


def test_port_stays_without_one(fastpath_backend: ModuleType) -> None:
    """`--to-destination ADDRESS`: the port is that of the packet."""
    gateway = with_service(Gateway(fastpath_backend), Dnat(AddressRange(W1, W1)))
    assert describe(gateway.returned(udp("203.0.113.2:4000 > 203.0.113.1:8080"))).endswith("10.1.0.11:8080")


def test_port_range(fastpath_backend: ModuleType) -> None:
    """The packet's own port if it is one of them and free for this client, otherwise another one of them."""
    gateway = with_service(Gateway(fastpath_backend), Dnat(AddressRange(W1, W1), PortRange(8080, 8081)))
    assert describe(gateway.returned(udp("203.0.113.2:4000 > 203.0.113.1:8081"))).endswith(":8081")
    assert describe(gateway.returned(udp("203.0.113.2:4000 > 203.0.113.1:9999"))).endswith(":8080")
    assert reason_of(gateway.back(udp("203.0.113.2:4000 > 203.0.113.1:9998"))) is Reason.OUT_OF_PORTS


def test_ports_shifted(fastpath_backend: ModuleType) -> None:
    """`--to-destination ADDRESS:8000-8009/5000`: 5003 becomes 8003."""
    target = Dnat(AddressRange(W1, W1), PortRange(8000, 8009), 5000)
    gateway = with_service(Gateway(fastpath_backend), target)
    for asked, wanted in ((5000, 8000), (5003, 8003), (5010, 8000)):
        packet = gateway.returned(udp(f"203.0.113.2:{asked} > 203.0.113.1:{asked}"))
        assert describe(packet).endswith(f"10.1.0.11:{wanted}")


def test_address_range(fastpath_backend: ModuleType) -> None:
    """A client always comes to the same server, and clients are spread over all of them."""
    gateway = with_service(Gateway(fastpath_backend), Dnat(AddressRange(W1, W1 + 2)))
    servers = []
    for client in range(2, 60):
        pair = [
            describe(gateway.returned(udp(f"203.0.113.{client}:{port} > 203.0.113.1:80"))).split(" > ")[1]
            for port in (1, 2)
        ]
        assert pair[0] == pair[1]
        servers.append(pair[0])
    assert set(servers) == {f"10.1.0.{11 + n}:80" for n in range(3)}


def test_redirect(fastpath_backend: ModuleType) -> None:
    """To a service of the head's own on another port; its answers come from the one that was asked."""
    gateway = with_service(Gateway(fastpath_backend), Redirect(PortRange(8080, 8080)))
    gateway.rules("-P FORWARD DROP")                            # it is not forwarded
    assert describe(gateway.returned(tcp(FROM_C, "S"))) == "203.0.113.2:4000 > 203.0.113.1:8080"
    answer = gateway.through(tcp("203.0.113.1:8080 > 203.0.113.2:4000", "SA"), came=0)
    assert describe(answer) == "203.0.113.1:80 > 203.0.113.2:4000"


def test_redirect_to_one_of_several_ports(fastpath_backend: ModuleType) -> None:
    """The one that was asked, if it is one of them."""
    gateway = with_service(Gateway(fastpath_backend), Redirect(PortRange(8000, 8009)))
    assert reason_of(gateway.back(udp("203.0.113.2:4000 > 203.0.113.1:8004"))) is Reason.UNCHANGED
    packet = gateway.returned(udp("203.0.113.2:4001 > 203.0.113.1:80"))
    assert 8000 <= int(describe(packet).split(":")[-1]) <= 8009


def test_redirect_from_inside(fastpath_backend: ModuleType) -> None:
    """A transparent proxy: what was for a server outside comes to the head, which answers in its name."""
    gateway = with_service(Gateway(fastpath_backend), Accept())
    add(gateway, Redirect(PortRange(53, 53)), dst=None, in_iface=InterfaceTest("bond0.def"), proto=ProtocolTest(17))
    asked = gateway.process(udp("10.1.0.11:5000 > 192.0.2.9:53"), Hook.PREROUTING, BOND_DEF, 0)
    assert describe(translated(asked)) == "10.1.0.11:5000 > 10.1.0.1:53"
    answer = gateway.process(udp("10.1.0.1:53 > 10.1.0.11:5000"), Hook.POSTROUTING, 0, BOND_DEF)
    assert describe(translated(answer)) == "192.0.2.9:53 > 10.1.0.11:5000"
    gateway.expire_all()
    assert gateway.engine.stats()[:2] == (0, 0)


def test_to_another_server_outside(fastpath_backend: ModuleType) -> None:
    """From inside to outside, but elsewhere: both hooks, and MASQUERADE for the source."""
    gateway = with_service(Gateway(fastpath_backend), Accept())
    resolver = address("203.0.113.53")
    add(gateway, Dnat(AddressRange(resolver, resolver)), dst=None, in_iface=InterfaceTest("bond0.def"))
    packet = across(gateway, udp("10.1.0.11:5000 > 192.0.2.9:53"), BOND_DEF, BOND_2)
    assert describe(packet) == "203.0.113.1:5000 > 203.0.113.53:53"
    answer = across(gateway, udp("203.0.113.53:53 > 203.0.113.1:5000"), BOND_2, BOND_DEF)
    assert describe(answer) == "192.0.2.9:53 > 10.1.0.11:5000"


def test_a_flow_that_is_older_than_the_rule(fastpath_backend: ModuleType) -> None:
    """It goes on where it went."""
    gateway = with_service(Gateway(fastpath_backend), Accept())
    gateway.through(tcp("10.1.0.11:5000 > 203.0.113.2:80", "S"))
    add(gateway, Redirect(PortRange(3128, 3128)), dst=None, in_iface=InterfaceTest("bond0.def"))
    assert reason_of(gateway.back(tcp("10.1.0.11:5000 > 203.0.113.2:80", "S"), BOND_DEF)) is Reason.ROUTED


def test_netmap(fastpath_backend: ModuleType) -> None:
    """1:1, both ways: 192.0.2.x is 10.1.0.x, also the ports that the head uses itself."""
    gateway = with_service(Gateway(fastpath_backend, []), Accept())
    public, private = (Prefix.of_length(address(net), 24) for net in ("192.0.2.0", "10.1.0.0"))
    add(gateway, Netmap(private), dst=AddressTest(public))
    add(gateway, Netmap(public), ChainName.POSTROUTING, dst=None, out_iface=InterfaceTest("bond0.2"))
    gateway.engine.replace_local_ports({17: frozenset({53}), 6: frozenset()})
    arrived = gateway.returned(udp("203.0.113.2:9 > 192.0.2.11:53"))
    assert describe(arrived) == "203.0.113.2:9 > 10.1.0.11:53"
    assert describe(gateway.through(udp("10.1.0.11:53 > 203.0.113.2:9"))) == "192.0.2.11:53 > 203.0.113.2:9"
    assert describe(gateway.through(udp("10.1.0.12:53 > 203.0.113.2:9"))) == "192.0.2.12:53 > 203.0.113.2:9"
    gateway.expire_all()
    assert gateway.engine.stats()[:2] == (0, 0)


# ── sources ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("target", "seen"),
    [
        (Snat(AddressRange(G + 7, G + 7)), "203.0.113.8:5000"),
        (Snat(AddressRange(G + 7, G + 7), PortRange(7000, 7000)), "203.0.113.8:7000"),
        (Snat(None, PortRange(7000, 7000)), "10.1.0.11:7000"),
    ],
)
def test_snat(fastpath_backend: ModuleType, target: Snat, seen: str) -> None:
    gateway = Gateway(fastpath_backend, [])
    add(gateway, target, ChainName.POSTROUTING, dst=None, out_iface=InterfaceTest("bond0.2"))
    assert describe(gateway.through(udp("10.1.0.11:5000 > 203.0.113.2:80"))) == f"{seen} > 203.0.113.2:80"
    assert gateway.engine.uplinks.patterns == ("bond0.2",)


def test_rfc4787_req2_a_host_has_one_outside_address(fastpath_backend: ModuleType) -> None:
    """SNAT to a range: hosts are spread over it, and none has two, whomever it talks to."""
    gateway = Gateway(fastpath_backend, [], settings=Settings(max_flows=512))
    add(gateway, Snat(AddressRange(G + 7, G + 9)), ChainName.POSTROUTING, dst=None)
    seen = {}
    for host in range(11, 60):
        for peer in (2, 3):
            source = describe(gateway.through(udp(f"10.1.0.{host}:5000 > 203.0.113.{peer}:80"))).split(":")[0]
            assert seen.setdefault(host, source) == source
    assert set(seen.values()) == {"203.0.113.8", "203.0.113.9", "203.0.113.10"}


# ── from inside ─────────────────────────────────────────────────────────────────────────────────


@both
def test_from_inside(service: Gateway, build: Build) -> None:
    """Hairpinning: two flows, and the service sees G."""
    packet = across(service, build("10.1.0.12:4000 > 203.0.113.1:80"))
    assert describe(packet) == "203.0.113.1:4000 > 10.1.0.11:80"
    assert_checksums(packet)
    answer = across(service, build("10.1.0.11:80 > 203.0.113.1:4000", *([] if build is udp else ["SA"])))
    assert describe(answer) == "203.0.113.1:80 > 10.1.0.12:4000"
    service.expire_all()
    assert service.engine.stats()[:2] == (0, 0)


def test_the_service_itself_by_its_outside_address(service: Gateway) -> None:
    packet = across(service, udp("10.1.0.11:4000 > 203.0.113.1:80"))
    assert describe(packet) == "203.0.113.1:4000 > 10.1.0.11:80"


def test_ping_from_inside(service: Gateway) -> None:
    packet = across(service, ping("10.1.0.12 > 203.0.113.1", 7))
    assert describe(packet) == "203.0.113.1 > 10.1.0.11 id 7"
    assert describe(across(service, pong("10.1.0.11 > 203.0.113.1", 7))) == "203.0.113.1 > 10.1.0.12 id 7"


def test_an_address_that_is_not_the_heads(service: Gateway) -> None:
    """Its clients inside are seen with their own address, as in the kernel: nothing would come back to that one."""
    add(service, TO_W1, dst=AddressTest(Prefix(address("192.0.2.9"))))
    packet = udp("10.2.0.7:4000 > 192.0.2.9:80")
    translated(service.process(packet, Hook.PREROUTING, 5, 0))
    assert reason_of(service.process(packet, Hook.POSTROUTING, 5, BOND_DEF)) is Reason.ROUTED
    assert describe(packet) == "10.2.0.7:4000 > 10.1.0.11:80"


def test_masquerade_towards_the_service(service: Gateway) -> None:
    """A server that does not answer by way of the head: a rule for the inside interface gives it the head's address."""
    add(service, Masquerade(), ChainName.POSTROUTING, dst=None, out_iface=InterfaceTest("bond0.def"))
    packet = across(service, udp(FROM_C), BOND_2, BOND_DEF)
    assert describe(packet) == "10.1.0.1:4000 > 10.1.0.11:80"


# ── from the head ───────────────────────────────────────────────────────────────────────────────


@both
def test_from_the_head(service: Gateway, build: Build) -> None:
    """OUTPUT and POSTROUTING on the way there, PREROUTING and INPUT on the way back; FORWARD is not asked."""
    service.rules("-P FORWARD DROP")
    add(service, TO_W1, ChainName.OUTPUT)
    packet = build("203.0.113.1:4000 > 203.0.113.1:80")
    assert describe(translated(service.process(packet, Hook.PREROUTING, 0, 1))) == "203.0.113.1:4000 > 10.1.0.11:80"
    assert reason_of(service.process(packet, Hook.POSTROUTING, 0, BOND_DEF)) is Reason.UNCHANGED
    answer = build("10.1.0.11:80 > 203.0.113.1:4000", *([] if build is udp else ["SA"]))
    assert reason_of(service.process(answer, Hook.PREROUTING, BOND_DEF, 0)) is Reason.UNCHANGED
    assert describe(translated(service.process(answer, Hook.POSTROUTING, BOND_DEF, 0))) == (
        "203.0.113.1:80 > 203.0.113.1:4000"
    )
    error = icmp_error("10.1.0.11 > 203.0.113.1", packet, 3, 3)
    assert reason_of(service.process(error, Hook.PREROUTING, BOND_DEF, 0)) is Reason.ICMP_ERROR
    assert reason_of(service.process(error, Hook.POSTROUTING, BOND_DEF, 0)) is Reason.ICMP_ERROR
    assert describe(quote_of(error)) == "203.0.113.1:4000 > 203.0.113.1:80"
    service.expire_all()
    assert service.engine.stats()[:2] == (0, 0)


@both
def test_from_the_head_to_itself(gateway: Gateway, build: Build) -> None:
    """OUTPUT on the way there and INPUT on the way back, both over the loopback."""
    add(gateway, Redirect(PortRange(8080, 8080)), ChainName.OUTPUT)
    packet = build("203.0.113.1:4000 > 203.0.113.1:443")
    assert describe(translated(gateway.process(packet, Hook.PREROUTING, 0, BOND_2))) == (
        "203.0.113.1:4000 > 127.0.0.1:8080"
    )
    answer = build("127.0.0.1:8080 > 203.0.113.1:4000", *([] if build is udp else ["SA"]))
    assert describe(translated(gateway.process(answer, Hook.POSTROUTING, LO, 0))) == (
        "203.0.113.1:443 > 203.0.113.1:4000"
    )
    error = icmp_error("127.0.0.1 > 203.0.113.1", packet, 3, 3)
    assert reason_of(gateway.process(error, Hook.POSTROUTING, LO, 0)) is Reason.ICMP_ERROR
    assert describe(quote_of(error)) == "203.0.113.1:4000 > 203.0.113.1:443"
    gateway.expire_all()
    assert gateway.engine.stats()[:2] == (0, 0)


def test_nobody_else_gets_behind_the_loopback(fastpath_backend: ModuleType) -> None:
    """A flow of the head's own opens nothing to strangers, whatever the filtering: they are the head's own business."""
    settings = Settings(max_flows=16, filtering=FilteringBehaviour.ENDPOINT_INDEPENDENT)
    gateway = Gateway(fastpath_backend, settings=settings)
    add(gateway, Redirect(PortRange(8080, 8080)), ChainName.OUTPUT)
    translated(gateway.process(tcp("203.0.113.1:4000 > 203.0.113.1:443"), Hook.PREROUTING, 0, BOND_2))
    assert reason_of(gateway.back(tcp("203.0.113.2:4000 > 203.0.113.1:443"))) is Reason.LOCAL_IN


def test_what_a_service_says_to_others_over_the_loopback(service: Gateway) -> None:
    """It is taken, too, for its port says no more; and goes on as it is."""
    add(service, Redirect(PortRange(8080, 8080)), ChainName.OUTPUT)
    answer = tcp("127.0.0.1:8080 > 127.0.0.1:4000", "SA")
    assert reason_of(service.process(answer, Hook.POSTROUTING, LO, 0)) is Reason.LOCAL_IN


def test_netmap_from_the_head(service: Gateway) -> None:
    workers = Netmap(Prefix(W1 & mask_of_length(24), mask_of_length(24)))
    add(service, workers, ChainName.OUTPUT, dst=AddressTest(Prefix(address("192.0.2.0"), mask_of_length(24))))
    packet = udp("203.0.113.1:4000 > 192.0.2.11:80")
    sent = translated(service.process(packet, Hook.PREROUTING, 0, BOND_2))
    assert describe(sent) == "203.0.113.1:4000 > 10.1.0.11:80"
    answer = udp("10.1.0.11:80 > 203.0.113.1:4000")
    assert describe(translated(service.process(answer, Hook.POSTROUTING, BOND_DEF, 0))) == (
        "192.0.2.11:80 > 203.0.113.1:4000"
    )


def test_prerouting_is_not_for_the_head(service: Gateway) -> None:
    """Its own packets have OUTPUT; without a rule there they go as they are."""
    packet = udp("203.0.113.1:4000 > 203.0.113.1:80")
    assert reason_of(service.process(packet, Hook.PREROUTING, 0, 1)) is Reason.LOCAL_OUT


def test_at_input_everything_else_passes(service: Gateway) -> None:
    service.rules("-P FORWARD DROP")
    for packet in (udp("203.0.113.2:9 > 203.0.113.1:22"), ping("203.0.113.2 > 203.0.113.1", 7)):
        assert reason_of(service.process(packet, Hook.POSTROUTING, BOND_2, 0)) is Reason.LOCAL_IN


# ── what has to be taken ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("rule", "taken"),
    [
        (Rule(target=TO_W1, dst=AddressTest(Prefix(G))), Taken((), False, ())),
        (Rule(target=TO_W1, in_iface=InterfaceTest("bond0.2")), Taken(("bond0.2",), False, ())),
        (Rule(target=TO_W1, in_iface=InterfaceTest("bond0.2", True)), Taken((), True, ())),
        (Rule(target=TO_W1), Taken((), True, ())),
        (Rule(target=TO_W1, dst=AddressTest(Prefix(G), True)), Taken((), True, ())),
        (Rule(target=TO_W1, dst=AddressTest(Prefix(address("192.0.2.9")))), Taken((), True, ())),
        (Rule(target=Drop(), in_iface=InterfaceTest("eth9")), Taken((), False, ())),
    ],
)
def test_taken_by_prerouting(gateway: Gateway, rule: Rule, taken: Taken) -> None:
    rules = gateway.engine.ruleset.append(TableName.NAT, ChainName.PREROUTING, rule)
    assert taken_by(rules, frozenset({G})) == taken


def test_taken_by_output_and_by_chains_of_the_users_own(gateway: Gateway) -> None:
    """A chain has the interface of the rule that leads to it."""
    rules = gateway.engine.ruleset.new_chain(TableName.NAT, "services")
    rules = rules.append(TableName.NAT, "services", Rule(target=TO_W1))
    rules = rules.append(
        TableName.NAT, ChainName.PREROUTING, Rule(target=Jump("services"), in_iface=InterfaceTest("bond0.3"))
    )
    rules = rules.append(TableName.NAT, ChainName.OUTPUT, Rule(target=TO_W1, dst=AddressTest(Prefix(G))))
    rules = rules.append(TableName.NAT, ChainName.OUTPUT, Rule(target=TO_W1))
    answering = (Answering(W1, 0, None),)
    assert taken_by(rules, frozenset()) == Taken(("bond0.3",), False, (Prefix(G), Prefix(0, 0)), answering)


HTTP = TcpUdpPorts(Proto.TCP, dport=PortTest(PortRange(80, 80)))
ANYHOW = TcpUdpPorts(Proto.TCP, dport=PortTest(PortRange(80, 80), inverted=True))
ONE, TWO = (AddressRange(G, G + more) for more in (0, 1))
LOCALHOST, TCP_ONLY = address("127.0.0.1"), ProtocolTest(Proto.TCP)


@pytest.mark.parametrize(
    ("rule", "answering"),
    [
        (Rule(target=Redirect()), Answering(LOCALHOST, 0, None)),
        (Rule(target=Redirect(), proto=TCP_ONLY), Answering(LOCALHOST, 6, None)),
        (Rule(target=Redirect(), proto=TCP_ONLY, matches=(HTTP,)), Answering(LOCALHOST, 6, PortRange(80, 80))),
        (Rule(target=Redirect(), proto=TCP_ONLY, matches=(ANYHOW,)), Answering(LOCALHOST, 6, None)),
        (Rule(target=Redirect(PortRange(1, 9)), proto=TCP_ONLY), Answering(LOCALHOST, 6, PortRange(1, 9))),
        (Rule(target=Redirect(PortRange(1, 9)), proto=ProtocolTest(Proto.DCCP)), Answering(LOCALHOST, 33, None)),
        (Rule(target=Redirect(), proto=ProtocolTest(Proto.TCP, True)), Answering(LOCALHOST, 0, None)),
        (Rule(target=Dnat(ONE, PortRange(9, 9)), proto=TCP_ONLY), Answering(G, 6, PortRange(9, 9))),
        (Rule(target=Dnat(None, PortRange(9, 9)), dst=AddressTest(Prefix(G))), Answering(G, 0, None)),
        (Rule(target=Dnat(None, PortRange(9, 9))), None),
        (Rule(target=Dnat(TWO)), None),
        (Rule(target=Netmap(Prefix(G))), None),
    ],
)
def test_who_answers_the_head(rule: Rule, answering: Answering | None) -> None:
    """Only this is taken on the loopback."""
    taken = taken_by(RuleSet().append(TableName.NAT, ChainName.OUTPUT, rule), frozenset())
    assert taken.answering == (() if answering is None else (answering,))


def test_way_to() -> None:
    """The longest prefix wins; an address of the head's own needs no way."""
    mask = mask_of_length(24)
    routes = [Route(0, 0, BOND_2), Route(W1 & mask, mask, BOND_DEF), Route(W1, ALL_ONES, BOND_3)]
    table = InterfaceTable([Interface(BOND_2, "bond0.2", (G,))], routes)
    assert [table.way_to(ip) for ip in (W1, W1 + 1, G + 1, G)] == [BOND_3, BOND_DEF, BOND_2, 0]
    assert InterfaceTable().way_to(W1) == 0


def test_a_route_that_changes_makes_no_flow_stale(service: Gateway) -> None:
    service.through(udp("10.1.0.11:5000 > 203.0.113.2:80"))
    assert service.engine.replace_interfaces(InterfaceTable(INTERFACES), 0) == 0
    assert reason_of(service.back(udp(FROM_C))) is Reason.NO_ROUTE          # it is taken notice of
    assert service.engine.replace_interfaces(InterfaceTable(INTERFACES, ROUTES), 0) == 0
    assert reason_of(service.back(udp(FROM_C))) is Reason.NEW_FLOW
