"""What does not pass, why, and that it leaves nothing behind."""

from __future__ import annotations

from types import ModuleType

import pytest
from support.engines import BOND_2, BOND_3, BOND_DEF, INSIDE_2, Gateway, reason_of
from support.packets import describe, icmp, ipv4, other, ping, pong, source_port, tcp, udp

from natengine.rules.model import ChainName, Drop, TableName
from natengine.settings import Settings
from natengine.vocab import Hook, Interface, Reason


@pytest.mark.parametrize("build", [udp, tcp, other])
def test_unsolicited(gateway: Gateway, build: object) -> None:
    """From an uplink, for an inside host, without a flow: dropped, whatever it is."""
    packet = build("203.0.113.2:53 > 10.1.0.11:5000")  # type: ignore[operator]
    assert reason_of(gateway.back(packet)) is Reason.UNSOLICITED


def test_another_peer_does_not_get_in(gateway: Gateway) -> None:
    """Address- and port-dependent filtering: only whom the worker wrote to may answer; others get no answer."""
    gateway.through(udp("10.1.0.11:5000 > 203.0.113.2:53"))
    for stranger in ("203.0.113.3:53", "203.0.113.2:54"):
        assert reason_of(gateway.back(udp(f"{stranger} > 203.0.113.1:5000"))) is Reason.FILTERED
    assert not gateway.flow().seen_reply
    assert reason_of(gateway.back(udp("203.0.113.3:53 > 203.0.113.1:5001"))) is Reason.LOCAL_IN


def test_an_answer_on_the_other_uplink_is_still_one(gateway: Gateway) -> None:
    """Routing may be asymmetric: a flow is known by its addresses, not by its interface."""
    gateway.through(udp("10.1.0.11:5000 > 198.51.100.2:53"), BOND_2)
    assert gateway.returned(udp("198.51.100.2:53 > 203.0.113.1:5000"), BOND_3)


def test_no_rule(gateway: Gateway) -> None:
    """An uplink, and no rule covers the packet: it would leak an inside address."""
    gateway.rules("-t nat -A POSTROUTING -p tcp -o bond0.2 -j MASQUERADE", fresh=True)
    assert reason_of(gateway.out(udp("10.1.0.11:5000 > 203.0.113.2:53"))) is Reason.NO_RULE
    assert gateway.engine.flows() == []


def test_between_inside_networks(gateway: Gateway) -> None:
    """What never touches an uplink is not ours, if it should come by at all."""
    packet = udp("10.1.0.11:5000 > 10.2.0.11:53")
    assert reason_of(gateway.back(packet, BOND_DEF)) is Reason.ROUTED
    assert reason_of(gateway.out(packet, INSIDE_2)) is Reason.ROUTED


def test_no_address(gateway: Gateway) -> None:
    """MASQUERADE on an interface that has no address."""
    gateway.interfaces(Interface(BOND_2, "bond0.2", ()))
    assert reason_of(gateway.out(udp("10.1.0.11:5000 > 203.0.113.2:53"))) is Reason.NO_ADDRESS


def test_rule_drop(gateway: Gateway) -> None:
    """A DROP policy of nat POSTROUTING stops the new flows that no rule takes, the head's own too."""
    gateway.rules("-t nat -A POSTROUTING -p udp -o bond0.2 -j MASQUERADE", fresh=True)
    # a rule set that is made by hand: the command line refuses DROP in nat, as iptables does
    rules = gateway.engine.ruleset.set_policy(TableName.NAT, ChainName.POSTROUTING, Drop())
    gateway.engine.replace_ruleset(rules)
    assert reason_of(gateway.out(udp("10.1.0.11:5000 > 203.0.113.2:53"))) is Reason.NEW_FLOW
    assert reason_of(gateway.out(tcp("10.1.0.11:5000 > 203.0.113.2:53"))) is Reason.RULE_DROP
    assert reason_of(gateway.head(tcp("203.0.113.1:5000 > 203.0.113.2:53"))) is Reason.RULE_DROP


def test_out_of_ports(gateway: Gateway) -> None:
    """Each port of `--to-ports` goes to one mapping; then there are none, until one ends."""
    gateway.rules("-t nat -A POSTROUTING -p udp -o bond0.2 -j MASQUERADE --to-ports 6000-6001", fresh=True)
    for host in (11, 12):
        gateway.through(udp(f"10.1.0.{host}:5000 > 203.0.113.2:53"))
    third = udp("10.1.0.13:5000 > 203.0.113.2:53")
    assert reason_of(gateway.out(bytearray(third))) is Reason.OUT_OF_PORTS
    assert reason_of(gateway.out(udp("10.1.0.11:5000 > 203.0.113.9:53"))) is Reason.NEW_FLOW
    gateway.expire_all()
    assert gateway.through(third)


def test_rfc5508_req8_whom_there_is_no_port_for_is_told(gateway: Gateway) -> None:
    """ICMP 3/13 from the head's inside address, quoting the packet; the head's own has no other end to tell."""
    gateway.rules("-t nat -A POSTROUTING -p udp -o bond0.2 -j MASQUERADE --to-ports 6000-6000", fresh=True)
    gateway.through(udp("10.1.0.11:5000 > 203.0.113.2:53"))
    assert not gateway.engine.outbox
    refused = udp("10.1.0.12:5000 > 203.0.113.2:53")
    gateway.out(bytearray(refused))
    (error,) = gateway.engine.outbox.take()
    assert describe(error) == "10.1.0.1 > 10.1.0.12"
    assert (3, 13, bytes(refused)) == (error[20], error[21], bytes(error[28:]))
    gateway.head(udp("203.0.113.1:5000 > 203.0.113.2:53"))
    assert not gateway.engine.outbox


def test_table_full_evicts_the_idlest_flow_without_an_answer(fastpath_backend: ModuleType) -> None:
    """A flow that was answered is never thrown out; one that was not, in order of last use."""
    gateway = Gateway(fastpath_backend, settings=Settings(max_flows=3))
    for host in (11, 12, 13):
        gateway.through(udp(f"10.1.0.{host}:5000 > 203.0.113.2:{host}"))
    gateway.returned(udp("203.0.113.2:11 > 203.0.113.1:5000"))          # 11 is answered
    gateway.through(udp("10.1.0.12:5000 > 203.0.113.2:12"))             # 12 is used once more
    gateway.through(udp("10.1.0.14:5000 > 203.0.113.2:14"))             # so 13 has to go
    assert {flow.spec.inside_ip & 255 for flow in gateway.engine.flows()} == {11, 12, 14}
    assert gateway.engine.stats().mappings == 3


def test_table_full_of_answered_flows(fastpath_backend: ModuleType) -> None:
    """Nobody may be thrown out: the new one is refused, and holds no port."""
    gateway = Gateway(fastpath_backend, settings=Settings(max_flows=2))
    for port in (1, 2):
        gateway.through(udp(f"10.1.0.11:{port} > 203.0.113.2:53"))
        gateway.returned(udp(f"203.0.113.2:53 > 203.0.113.1:{port}"))
    assert reason_of(gateway.out(udp("10.1.0.12:3 > 203.0.113.2:53"))) is Reason.TABLE_FULL
    assert gateway.engine.stats()[:2] == (2, 2)


@pytest.mark.parametrize("flags", ["A", "PA", "FA", "SA", "R", "RA", "SF", "SR", "SFRPAU", "", "F", "U"])
def test_a_connection_begins_with_syn(gateway: Gateway, flags: str) -> None:
    """Anything else without a flow is refused; a kernel would let it leak."""
    assert reason_of(gateway.out(tcp("10.1.0.11:5000 > 203.0.113.2:80", flags))) is Reason.TCP_STATE
    assert gateway.engine.flows() == []


def test_segments_against_the_state(gateway: Gateway) -> None:
    """A known connection refuses what its state does not allow, and stays as it is."""
    gateway.through(tcp("10.1.0.11:5000 > 203.0.113.2:80", "S"))
    before = gateway.flow()
    refused = (
        gateway.out(tcp("10.1.0.11:5000 > 203.0.113.2:80", "SF")),
        gateway.out(tcp("10.1.0.11:5000 > 203.0.113.2:80", "A")),
        gateway.back(tcp("203.0.113.2:80 > 203.0.113.1:5000", "FA")),
    )
    assert [reason_of(decision) for decision in refused] == [Reason.TCP_STATE] * 3
    assert gateway.flow() == before


@pytest.mark.parametrize("packet", [
    pong("10.1.0.11 > 203.0.113.2", 7),
    icmp("10.1.0.11 > 203.0.113.2", 14),        # timestamp reply
    icmp("10.1.0.11 > 203.0.113.2", 15),        # information request (REQ-10c)
    icmp("10.1.0.11 > 203.0.113.2", 5),         # redirect
    icmp("10.1.0.11 > 203.0.113.2", 4),         # source quench
    icmp("10.1.0.11 > 203.0.113.2", 200),
])
def test_icmp_that_nat_has_no_business_with(gateway: Gateway, packet: bytearray) -> None:
    """RFC 5508 REQ-11: it does not leave untranslated."""
    assert reason_of(gateway.out(packet)) is Reason.ICMP_UNRELATED


def _cut(packet: bytearray, length: int) -> bytearray:
    """Cut a packet and make its total length agree."""
    cut = packet[:length]
    cut[2:4] = length.to_bytes(2, "big")
    return cut


UDP, TCP = udp("10.1.0.11:5000 > 203.0.113.2:53"), tcp("10.1.0.11:5000 > 203.0.113.2:80")
MALFORMED = {
    "nothing": (bytearray(), Reason.TRUNCATED),
    "a byte": (bytearray(b"\x45"), Reason.TRUNCATED),
    "half a header": (UDP[:19], Reason.TRUNCATED),
    "less than the total length": (UDP[:-1], Reason.TRUNCATED),
    "IPv6": (bytearray(b"\x60" + bytes(47)), Reason.BAD_HEADER),
    "IHL 4": (bytearray(b"\x44") + UDP[1:], Reason.BAD_HEADER),
    "IHL 15, no such bytes": (bytearray(b"\x4f") + UDP[1:], Reason.BAD_HEADER),
    "total length 0": (UDP[:2] + b"\0\0" + UDP[4:], Reason.BAD_HEADER),
    "total length 19": (UDP[:2] + b"\0\x13" + UDP[4:], Reason.BAD_HEADER),
    "no UDP header": (_cut(UDP, 20), Reason.BAD_HEADER),
    "7 bytes of UDP header": (_cut(UDP, 27), Reason.BAD_HEADER),
    "UDP length 7": (UDP[:24] + b"\0\7" + UDP[26:], Reason.BAD_HEADER),
    "UDP length beyond the packet": (UDP[:24] + b"\0\xff" + UDP[26:], Reason.BAD_HEADER),
    "19 bytes of TCP header": (_cut(TCP, 39), Reason.BAD_HEADER),
    "TCP data offset 4": (TCP[:32] + b"\x40" + TCP[33:], Reason.BAD_HEADER),
    "TCP data offset beyond the packet": (TCP[:32] + b"\x60" + TCP[33:], Reason.BAD_HEADER),
    "7 bytes of ICMP": (_cut(ping("10.1.0.11 > 203.0.113.2", 7), 27), Reason.BAD_HEADER),
    "a first fragment without ports": (
        ipv4("10.1.0.11", "203.0.113.2", 6, bytes(16), fragment=0x2000), Reason.FRAGMENT_TINY,
    ),
}


@pytest.mark.parametrize("hook", [Hook.PREROUTING, Hook.POSTROUTING])
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(gateway: Gateway, name: str, hook: Hook) -> None:
    """Headers that lie: a verdict and a reason, never an exception, and the bytes are not touched."""
    original, reason = MALFORMED[name]
    packet = bytearray(original)
    ifindexes = (BOND_2, 0) if hook == Hook.PREROUTING else (BOND_DEF, BOND_2)
    assert reason_of(gateway.process(packet, hook, *ifindexes)) is reason
    assert packet == original
    assert gateway.engine.flows() == []


def test_each_packet_is_counted_once(gateway: Gateway) -> None:
    """The counters of all reasons add up to the packets, and each goes where its decision says."""
    sent = udp("10.1.0.11:5000 > 203.0.113.2:53")
    decisions = [
        gateway.out(bytearray(sent)),
        gateway.out(bytearray(sent)),
        gateway.back(udp("203.0.113.2:53 > 203.0.113.1:5000")),
        gateway.back(udp("203.0.113.2:53 > 10.1.0.11:5000")),
        gateway.out(other("10.1.0.11 > 203.0.113.2")),
        gateway.out(bytearray()),
        gateway.head(udp("203.0.113.1:9 > 203.0.113.2:53")),
    ]
    by_reason = gateway.engine.stats().by_reason
    assert sum(by_reason.values()) == len(decisions)
    assert set(by_reason) == {reason.name for reason in Reason}
    for decision in decisions:
        wanted = sum(each.reason is decision.reason for each in decisions)
        assert by_reason[decision.reason.name] == wanted, decision.reason.name


def test_a_refused_packet_is_not_changed(gateway: Gateway) -> None:
    """What is dropped or passed as it is leaves the caller's buffer alone."""
    packet = tcp("10.1.0.11:5000 > 203.0.113.2:80", "A")
    before = bytes(packet)
    gateway.out(packet)
    assert bytes(packet) == before


def test_ports_of_refused_flows_are_free_again(gateway: Gateway) -> None:
    """A flow that its own first packet fails to begin holds nothing."""
    for flags in ("A", "SF"):
        gateway.out(tcp("10.1.0.11:5000 > 203.0.113.2:80", flags))
    assert gateway.engine.stats().mappings == 0
    assert source_port(gateway.through(tcp("10.1.0.12:5000 > 203.0.113.2:80", "S"))) == 5000
