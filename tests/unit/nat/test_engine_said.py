"""What rules say beside yes and no: REJECT tells the sender, LOG writes a line."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, IPerror
from support.engines import BOND_2, BOND_DEF, Gateway, reason_of
from support.packets import assert_checksums, icmp_error, ping, tcp, udp

from natengine.nat.said import LINES_AT_ONCE
from natengine.rules.targets import RejectWith
from natengine.settings import FilteringBehaviour, Settings
from natengine.vocab import Hook, PacketMeta, Reason

OUT, BACK = "10.1.0.11:5000 > 203.0.113.2:80", "203.0.113.2:80 > 203.0.113.1:5000"


def sent(gateway: Gateway) -> list[IP]:
    """What the engine has to say, its checksums right."""
    waiting = gateway.engine.outbox.take()
    for packet in waiting:
        assert_checksums(packet)
    return [IP(bytes(packet)) for packet in waiting]


# RFC 792, RFC 1812 5.2.7.1
@pytest.mark.parametrize(("how", "code"), [
    ("icmp-net-unreachable", 0), ("icmp-host-unreachable", 1), ("icmp-proto-unreachable", 2),
    ("icmp-port-unreachable", 3), ("icmp-net-prohibited", 9), ("icmp-host-prohibited", 10),
    ("icmp-admin-prohibited", 13),
])
def test_reject_tells_the_sender_why(gateway: Gateway, how: str, code: int) -> None:
    """From the head's address on its side, quoting what it sent; each time it tries."""
    gateway.rules(f"-A FORWARD -p udp -j REJECT --reject-with {how}")
    for _ in range(2):
        assert reason_of(gateway.out(udp(OUT))) is Reason.FORWARD_DROP
        (error,) = sent(gateway)
        assert (error.src, error.dst, error[ICMP].type, error[ICMP].code) == ("10.1.0.1", "10.1.0.11", 3, code)
        assert (error[IPerror].src, error[IPerror].dst) == ("10.1.0.11", "203.0.113.2")
    assert gateway.engine.flows() == []


def test_every_kind_of_reject_is_sent() -> None:
    """The table above has them all but the reset."""
    tested = {mark.args[1][n][0] for mark in test_reject_tells_the_sender_why.pytestmark  # type: ignore[attr-defined]
              for n in range(len(mark.args[1]))}
    assert tested == set(RejectWith) - {RejectWith.TCP_RESET}


def test_reject_resets(gateway: Gateway) -> None:
    """As if it came from the peer; a RST is not answered."""
    gateway.rules("-A FORWARD -p tcp -j REJECT --reject-with tcp-reset")
    assert reason_of(gateway.out(tcp(OUT, "S"))) is Reason.FORWARD_DROP
    (reset,) = sent(gateway)
    assert (reset.src, reset[TCP].sport, reset.dst, reset[TCP].dport) == ("203.0.113.2", 80, "10.1.0.11", 5000)
    assert reset[TCP].flags == "RA" and reset[TCP].ack == 1001
    gateway.out(tcp(OUT, "R"))
    assert sent(gateway) == []


def test_reject_from_outside(fastpath_backend: object) -> None:
    """The stranger hears it from the address it wrote to."""
    settings = Settings(max_flows=64, filtering=FilteringBehaviour.ENDPOINT_INDEPENDENT)
    gateway = Gateway(fastpath_backend, settings=settings)  # type: ignore[arg-type]
    gateway.rules("-A FORWARD -i bond0.2 -s 203.0.113.9 -j REJECT --reject-with icmp-host-prohibited")
    gateway.through(udp(OUT))
    assert reason_of(gateway.back(udp("203.0.113.9:53 > 203.0.113.1:5000"))) is Reason.FORWARD_DROP
    (error,) = sent(gateway)
    assert (error.src, error.dst, error[ICMP].code) == ("203.0.113.1", "203.0.113.9", 10)
    assert error[IPerror].dst == "203.0.113.1"          # never the inside address


def test_a_known_flow_that_a_new_rule_refuses_is_told_once(gateway: Gateway) -> None:
    """The packet that finds the rules changed; the ones after it are dropped where known flows are."""
    gateway.through(tcp(OUT, "S"))
    gateway.rules("-I FORWARD -p tcp -s 10.1.0.11 -j REJECT --reject-with tcp-reset")
    assert [reason_of(gateway.out(tcp(OUT, "S"))) for _ in range(2)] == [Reason.FORWARD_DROP] * 2
    assert len(sent(gateway)) == 1


@pytest.mark.parametrize("packet", [
    udp("10.1.0.11:5000 > 224.0.0.1:80"), icmp_error("10.1.0.11 > 203.0.113.2", udp("203.0.113.2:80 > 10.1.0.11:5000")),
])
def test_nobody_is_told_about_what_must_not_have_an_answer(gateway: Gateway, packet: bytearray) -> None:
    """A multicast packet, an ICMP error (RFC 1812 4.3.2.7)."""
    gateway.rules("-A FORWARD -j REJECT")
    gateway.out(packet)
    assert sent(gateway) == []


def test_log_ends_nothing(gateway: Gateway) -> None:
    """A line for the first packet of a flow, as the rule saw it; then the flow is known, and nobody is asked."""
    gateway.rules("-A FORWARD -i bond0.def -j LOG --log-prefix 'new ' --log-level info",
                  "-t nat -I POSTROUTING -p udp -j LOG --log-prefix nat:")
    gateway.through(udp(OUT))
    gateway.through(udp(OUT))
    lines = gateway.engine.log.take()
    seen = "IN=bond0.def OUT=bond0.2 SRC=10.1.0.11 DST=203.0.113.2 LEN=32 PROTO=UDP SPT=5000 DPT=80"
    assert [(line.level, line.text) for line in lines] == [(6, f"new {seen}"), (4, f"nat:{seen}")]


@pytest.mark.parametrize(("packet", "end"), [
    (tcp(OUT, "SA"), "PROTO=TCP SPT=5000 DPT=80 ACK SYN"),
    (ping("10.1.0.11 > 203.0.113.2", 7), "PROTO=ICMP TYPE=8 CODE=0"),
])
def test_what_a_line_says(gateway: Gateway, packet: bytearray, end: str) -> None:
    gateway.rules("-A FORWARD -j LOG", "-A FORWARD -j DROP")
    gateway.out(packet)
    (line,) = gateway.engine.log.take()
    assert line.text.endswith(end)


def test_a_flood_of_packets_is_no_flood_of_lines(gateway: Gateway) -> None:
    gateway.rules("-A FORWARD -j LOG", "-A FORWARD -j DROP")
    for _ in range(LINES_AT_ONCE + 10):
        gateway.out(udp(OUT))
    assert (len(gateway.engine.log.take()), gateway.engine.log.suppressed) == (LINES_AT_ONCE, 10)
    gateway.clock.advance(1)
    gateway.out(udp(OUT))
    assert len(gateway.engine.log.take()) == 1


def test_limit_keeps_its_rate_when_other_rules_change(gateway: Gateway) -> None:
    """Its bucket belongs to the rule, as its counter does."""
    gateway.rules("-A FORWARD -m limit --limit 1/minute --limit-burst 2 -j LOG", "-A FORWARD -p udp -j DROP")
    for n in range(3):
        gateway.out(udp(OUT))
        gateway.rules(f"-A FORWARD -s 1.2.3.{n} -j DROP")
    assert len(gateway.engine.log.take()) == 2
    gateway.clock.advance(60)
    gateway.out(udp(OUT))
    assert len(gateway.engine.log.take()) == 1


def test_addresses_of_the_head_are_local(gateway: Gateway) -> None:
    gateway.rules("-A FORWARD -m addrtype ! --dst-type UNICAST -j DROP",
                  "-A FORWARD -m addrtype --src-type LOCAL -j DROP")
    gateway.through(udp(OUT))
    assert reason_of(gateway.out(udp("10.1.0.11:1 > 203.0.113.255:9"))) is Reason.FORWARD_DROP
    assert reason_of(gateway.out(udp("10.1.0.1:1 > 203.0.113.2:9"), BOND_2)) is Reason.FORWARD_DROP


def test_a_mark_of_forward_is_seen_by_nat(gateway: Gateway) -> None:
    """And the kernel's own, too."""
    gateway.rules("-A FORWARD -p udp -j MARK --set-mark 7", "-t nat -I POSTROUTING -m mark --mark 7 -j ACCEPT")
    assert reason_of(gateway.out(udp(OUT))) is Reason.UNCHANGED
    assert reason_of(gateway.out(tcp(OUT, "S"))) is Reason.NEW_FLOW
    meta = PacketMeta(Hook.POSTROUTING, BOND_DEF, BOND_2, mark=7)
    assert gateway.engine.process(tcp("10.1.0.11:5001 > 203.0.113.2:80", "S"), meta, 0).reason is Reason.UNCHANGED


def test_conntrack_tuples_of_a_flow_stay_the_same(gateway: Gateway) -> None:
    """Question and answer belong to one flow; `--ctorigdst` is what the worker wrote to, `--ctdir` tells them apart."""
    gateway.rules("-P FORWARD DROP", "-A FORWARD -m conntrack --ctorigdst 203.0.113.2 --ctdir ORIGINAL -j ACCEPT",
                  "-A FORWARD -m conntrack --ctstate SNAT --ctdir REPLY --ctrepldst 203.0.113.1 -j ACCEPT")
    gateway.through(udp(OUT))
    assert gateway.returned(udp(BACK))
    assert reason_of(gateway.out(udp("10.1.0.11:5000 > 203.0.113.3:80"))) is Reason.FORWARD_DROP
