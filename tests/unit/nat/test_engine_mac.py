"""`-m mac`: the Ethernet address that each packet came from, whatever its flow's other packets came from."""

from __future__ import annotations

import pytest
from support.engines import BOND_2, BOND_DEF, INTERFACES, Gateway, reason_of
from support.packets import address, describe, fragments, icmp_error, ping, pong, tcp, udp
from support.pptp import ControlConnection, call

from natengine.flow.records import Allow
from natengine.nat.interfaces import InterfaceTable
from natengine.vocab import Decision, Hook, Reason, Route, Verdict

OURS, OTHERS, ROUTER = (bytes.fromhex(digits) for digits in ("020000000011", "020000000012", "020000000099"))
OUT, BACK = "10.1.0.11:5000 > 203.0.113.2:80", "203.0.113.2:80 > 203.0.113.1:5000"
ONLY_OURS = ("-P FORWARD DROP", "-A FORWARD -i bond0.def -m mac --mac-source 02:00:00:00:00:11 -j ACCEPT")
ANSWERS_TOO = (*ONLY_OURS, "-A FORWARD -i bond0.2 -m mac --mac-source 02:00:00:00:00:99 -j ACCEPT")
TO_WORKERS = Route(address("10.1.0.0"), 0xFFFF_FF00, BOND_DEF)
NOT_OURS = ("-A FORWARD -m mac ! --mac-source 02:00:00:00:00:11 -j DROP",)


def out(gateway: Gateway, packet: bytearray, link_src: bytes) -> Decision:
    return gateway.process(packet, Hook.POSTROUTING, BOND_DEF, BOND_2, link_src)


def back(gateway: Gateway, packet: bytearray, link_src: bytes, came: int = BOND_2) -> Decision:
    return gateway.process(packet, Hook.PREROUTING, came, 0, link_src)


def passed(decision: Decision) -> bool:
    assert reason_of(decision) in (
        Reason.NEW_FLOW, Reason.TRANSLATED, Reason.FRAGMENT, Reason.ICMP_ERROR, Reason.FORWARD_DROP
    )
    return decision.verdict is Verdict.ACCEPT


@pytest.mark.parametrize(("rules", "expected"), [
    (ONLY_OURS, [True, False, False]),
    (NOT_OURS, [True, False, True]),            # without an Ethernet header it is not from another address either
])
def test_who_may_begin_a_flow(gateway: Gateway, rules: tuple[str, ...], expected: list[bool]) -> None:
    gateway.rules(*rules)
    decisions = [out(gateway, udp(f"10.1.0.{n}:5000 > 203.0.113.2:80"), mac)
                 for n, mac in enumerate((OURS, OTHERS, b""), 11)]
    assert [passed(each) for each in decisions] == expected


def test_each_packet_of_a_known_flow_is_asked_about(gateway: Gateway) -> None:
    """Who takes a worker's address does not get his connections with it."""
    gateway.rules(*ANSWERS_TOO)
    assert passed(out(gateway, tcp(OUT, "S"), OURS))
    assert gateway.flow().spec.allow == Allow.ASK
    assert not passed(back(gateway, tcp(BACK, "SA"), OTHERS))
    assert passed(back(gateway, tcp(BACK, "SA"), ROUTER))
    assert not passed(out(gateway, tcp(OUT, "A"), OTHERS))
    assert passed(out(gateway, tcp(OUT, "A"), OURS))


def test_a_rule_before_it_spares_the_known_ones(gateway: Gateway) -> None:
    gateway.rules("-P FORWARD DROP", "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT", *ONLY_OURS[1:])
    assert passed(out(gateway, udp(OUT), OURS))
    assert passed(back(gateway, udp(BACK), ROUTER))
    assert passed(out(gateway, udp(OUT), OTHERS))
    assert gateway.flow().spec.allow == Allow.ORIGINAL | Allow.REPLY | Allow.ASK


def test_a_log_rule_tells_of_the_right_ones(gateway: Gateway) -> None:
    gateway.rules("-A FORWARD -m mac --mac-source 02:00:00:00:00:11 -j LOG --log-prefix ours")
    out(gateway, udp(OUT), OURS)
    out(gateway, udp("10.1.0.12:5000 > 203.0.113.2:80"), OTHERS)
    (line,) = gateway.engine.log.take()
    assert "ours" in line.text and "SRC=10.1.0.11" in line.text


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
@pytest.mark.parametrize("mac", [OURS, OTHERS])
def test_fragments_go_by_the_first_ones_address(gateway: Gateway, order: tuple[int, ...], mac: bytes) -> None:
    """Also those that came before it, and whatever their own is: the kernel puts them together and sees one header."""
    gateway.rules(*ONLY_OURS)
    pieces = fragments(udp(OUT, bytes(3000)), 1200)
    decisions = [out(gateway, pieces[place], OTHERS if place else mac) for place in order]
    decided = [each for each in decisions if each.verdict is not Verdict.HELD] + gateway.released()
    assert [passed(each) for each in decided] == [mac == OURS] * 3


def test_an_error_is_asked_about_by_its_own_address(gateway: Gateway) -> None:
    """Not by that of the packet it quotes."""
    gateway.rules(*ANSWERS_TOO)
    sent = out(gateway, udp(OUT), OURS).packet
    assert sent is not None
    unreachable = icmp_error("203.0.113.2 > 203.0.113.1", sent, code=3)
    assert not passed(back(gateway, unreachable[:], OURS))
    assert passed(back(gateway, unreachable[:], ROUTER))


def test_so_are_the_packets_of_a_pptp_call(gateway: Gateway) -> None:
    """Though the call begins by its control connection."""
    ControlConnection(gateway, "10.1.0.11:40001", "203.0.113.1:40001").place_call(7, 900)
    gateway.rules(*ANSWERS_TOO)
    for way, text, call_id, right in ((out, "10.1.0.11 > 203.0.113.2", 900, OURS),
                                      (back, "203.0.113.2 > 203.0.113.1", 7, ROUTER)):
        assert [passed(way(gateway, call(text, call_id), mac)) for mac in (right, OTHERS, right)] == [True, False, True]


def test_nat_prerouting_asks_the_first_packet(gateway: Gateway) -> None:
    """What a flow's first packet came from decides where it goes; the rest follow, wherever they come from."""
    gateway.engine.replace_interfaces(InterfaceTable(INTERFACES, [TO_WORKERS]), 0)
    gateway.rules("-t nat -A PREROUTING -i bond0.2 -p udp -m mac --mac-source 02:00:00:00:00:99 "
                  "-j DNAT --to-destination 10.1.0.12:9")
    service, other = "203.0.113.2:80 > 203.0.113.1:53", "203.0.113.2:81 > 203.0.113.1:53"
    first = back(gateway, udp(service), ROUTER)
    assert first.packet is not None
    assert describe(first.packet) == "203.0.113.2:80 > 10.1.0.12:9"
    assert reason_of(back(gateway, udp(service), OTHERS)) is Reason.TRANSLATED
    assert reason_of(back(gateway, udp(other), OTHERS)) is Reason.LOCAL_IN


def test_without_a_rule_the_answers_of_ping_are_not_asked_about(gateway: Gateway) -> None:
    """The address alone sends nothing to Python."""
    out(gateway, ping("10.1.0.11 > 203.0.113.2", 7), OURS)
    assert reason_of(back(gateway, pong("203.0.113.2 > 203.0.113.1", 7), OTHERS)) is Reason.TRANSLATED
    assert gateway.flow().spec.allow == Allow.ALL
