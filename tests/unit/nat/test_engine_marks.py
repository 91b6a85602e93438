"""Marks: MARK and `-m mark` for a packet, CONNMARK and `-m connmark` for its flow."""

from __future__ import annotations

import mmap
import random
from types import ModuleType

import pytest
from support.backends import KEY
from support.engines import BOND_2, BOND_DEF, INTERFACES, OWNER_RULES, Gateway, reason_of, ruleset
from support.packets import describe, icmp_error, ping, pong, tcp, udp

from natengine.app.conntrack import run
from natengine.fastpath import configure
from natengine.flow.image import RECORD_BYTES
from natengine.flow.records import Allow
from natengine.nat.engine import NatEngine
from natengine.nat.interfaces import InterfaceTable
from natengine.rules.model import TableName
from natengine.settings import Settings
from natengine.vocab import Decision, Hook, PacketMeta, Reason, Route, Verdict
from natengine.wire.addr import parse_ipv4

OUT, BACK = "10.1.0.11:5000 > 203.0.113.2:80", "203.0.113.2:80 > 203.0.113.1:5000"
OTHER = "10.1.0.12:5000 > 203.0.113.2:80"
ESTABLISHED = "-m conntrack --ctstate ESTABLISHED"


def marked(gateway: Gateway, packet: bytearray, mark: int, hook: Hook = Hook.POSTROUTING) -> Decision:
    """Send a packet that the kernel has marked."""
    ways = {Hook.POSTROUTING: (BOND_DEF, BOND_2), Hook.PREROUTING: (BOND_2, 0)}
    return gateway.engine.process(packet, PacketMeta(hook, *ways[hook], mark), gateway.clock.now_ns)


def passes(decision: Decision) -> bool:
    assert reason_of(decision) in (Reason.NEW_FLOW, Reason.TRANSLATED, Reason.FORWARD_DROP)
    return decision.verdict is Verdict.ACCEPT


def marks(gateway: Gateway) -> list[int]:
    return [flow.mark for flow in gateway.engine.flows()]


# ── the flow's ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("where", ["-t nat -I POSTROUTING", "-t nat -A PREROUTING", "-A FORWARD"])
def test_connmark_marks_the_flow_wherever_it_is_said(gateway: Gateway, where: str) -> None:
    """Also in PREROUTING, where packets of such flows are not taken: it is asked when the flow begins."""
    gateway.rules(f"{where} -s 10.1.0.11 -j CONNMARK --set-mark 0x25")
    gateway.through(udp(OUT))
    gateway.through(udp(OTHER))
    assert marks(gateway) == [0x25, 0]
    listed = run(["-L"], gateway.engine.flows, lambda ids: 0, 0).stdout
    assert [line.split()[-2] for line in listed.splitlines()] == ["mark=37", "mark=0"]


def test_conntrack_finds_flows_by_their_mark(gateway: Gateway) -> None:
    gateway.rules("-A FORWARD -s 10.1.0.11 -j CONNMARK --set-mark 0x25",
                  "-A FORWARD -s 10.1.0.12 -j CONNMARK --set-mark 0x26")
    gateway.through(udp(OUT))
    gateway.through(udp(OTHER))

    def found(*words: str) -> list[str]:
        text = run(["-L", *words], gateway.engine.flows, lambda ids: 0, 0).stdout
        return [line.split()[-2] for line in text.splitlines()]

    assert found("-m", "37") == found("--mark", "0x25") == ["mark=37"]
    assert found("--mark", "0x24/0xfc") == ["mark=37", "mark=38"]
    assert found("-m", "1") == []


def test_a_marked_flow_is_not_asked_about_again(gateway: Gateway) -> None:
    """The rule that has marked it has nothing more to do; both directions have their answer."""
    gateway.rules("-P FORWARD DROP", "-A FORWARD -s 10.1.0.11 -m conntrack --ctstate NEW -j CONNMARK --set-mark 1",
                  "-A FORWARD -m connmark --mark 1 -j ACCEPT")
    gateway.through(tcp(OUT, "S"))
    assert not passes(gateway.out(tcp(OTHER, "S")))
    assert gateway.returned(tcp(BACK, "SA"))
    assert gateway.through(tcp(OUT, "A"))
    assert gateway.flow().spec.allow == Allow.ALL
    rules = gateway.engine.ruleset.chain(TableName.FILTER, "FORWARD").rules
    assert [gateway.engine.counters.rule(rule.handle).packets for rule in rules] == [1, 1]


def test_a_later_packet_may_change_the_mark(gateway: Gateway) -> None:
    """The packet that does is asked about, and what follows has an answer for the new mark."""
    gateway.rules("-A FORWARD -j CONNMARK --set-mark 1",
                  f"-A FORWARD {ESTABLISHED} -m connmark --mark 1 -j CONNMARK --set-mark 2",
                  "-A FORWARD -m connmark --mark 2 -i bond0.def -j DROP")
    gateway.through(udp(OUT))
    assert marks(gateway) == [1]
    assert gateway.returned(udp(BACK))
    assert marks(gateway) == [2]
    assert not passes(gateway.out(udp(OUT)))


def test_bits_that_change_with_each_packet(gateway: Gateway) -> None:
    """--xor-mark: there is never a mark that stays, so each packet is asked about."""
    gateway.rules("-A FORWARD -m connmark --mark 1 -j DROP", "-A FORWARD -j CONNMARK --xor-mark 1")
    assert passes(gateway.out(udp(OUT)))
    assert [passes(gateway.out(udp(OUT))) for _ in range(2)] == [False, False]
    gateway.rules("-F FORWARD", "-A FORWARD -j CONNMARK --xor-mark 1", "-A FORWARD -m connmark --mark 1 -j DROP")
    assert [passes(gateway.out(udp(OUT))) for _ in range(4)] == [True, False, True, False]


def test_save_and_restore(gateway: Gateway) -> None:
    """The flow keeps its first packet's mark, and gives it to the others, the answers too."""
    gateway.rules("-P FORWARD DROP", "-A FORWARD -j CONNMARK --restore-mark",
                  "-A FORWARD -m mark --mark 7 -j ACCEPT")
    gateway.rules("-t nat -I POSTROUTING -j CONNMARK --save-mark")
    assert not passes(marked(gateway, udp(OTHER), 6))
    assert not passes(marked(gateway, udp(OUT), 0))
    gateway.rules("-I FORWARD -m conntrack --ctstate NEW -m mark --mark 7 -j ACCEPT")
    assert passes(marked(gateway, udp(OUT), 7))
    assert marks(gateway) == [7]
    assert passes(gateway.back(udp(BACK)))
    assert passes(gateway.out(udp(OUT)))


def test_under_a_mask(gateway: Gateway) -> None:
    gateway.rules("-A FORWARD -j CONNMARK --save-mark --nfmask 0xff --ctmask 0xff",
                  "-A FORWARD -p udp -j CONNMARK --or-mark 0x100")
    marked(gateway, udp(OUT), 0x1234)
    assert marks(gateway) == [0x134]


def test_the_mark_ends_with_the_flow(gateway: Gateway) -> None:
    gateway.rules("-A FORWARD -j CONNMARK --set-mark 1")
    gateway.through(udp(OUT))
    assert gateway.expire_all() == 1
    gateway.rules("-F FORWARD")
    gateway.through(udp(OUT))
    assert marks(gateway) == [0]


def test_other_rules_leave_marks_alone(gateway: Gateway) -> None:
    """They are asked about it, and do not take it away."""
    gateway.rules("-A FORWARD -j CONNMARK --set-mark 1")
    gateway.through(udp(OUT))
    gateway.rules("-F FORWARD", "-A FORWARD -m connmark ! --mark 1 -j DROP")
    assert passes(gateway.out(udp(OUT)))
    assert not passes(gateway.out(udp(OTHER)))
    assert marks(gateway) == [1]


def test_errors_about_a_flow_have_its_mark(gateway: Gateway) -> None:
    """As in the kernel, where the packet that they are about brings its connection."""
    gateway.rules("-A FORWARD -p udp -j CONNMARK --set-mark 1", "-A FORWARD -p icmp -m connmark --mark 1 -j DROP")
    sent = gateway.through(udp(OUT))
    error = icmp_error("203.0.113.9 > 203.0.113.1", sent, 3, 4)
    assert reason_of(gateway.back(error[:])) is Reason.FORWARD_DROP
    gateway.rules("-R FORWARD 2 -p icmp -m connmark --mark 2 -j DROP")
    assert reason_of(gateway.back(error)) is Reason.ICMP_ERROR


def test_a_service_and_its_hairpin_have_one_mark(gateway: Gateway) -> None:
    """The two halves of a hairpin are one connection to whoever wrote the rule."""
    routes = (Route(parse_ipv4("10.1.0.0"), 0xFFFF_FF00, BOND_DEF), Route(0, 0, BOND_2))
    gateway.engine.replace_interfaces(InterfaceTable(INTERFACES, routes), 0)
    to_service = "-t nat -A PREROUTING -d 203.0.113.1 -p udp --dport 80"
    gateway.rules(f"{to_service} -j CONNMARK --set-mark 9", f"{to_service} -j DNAT --to-destination 10.1.0.11",
                  "-P FORWARD DROP", "-A FORWARD -m connmark --mark 9 -j ACCEPT")
    packet = udp("10.1.0.12:6000 > 203.0.113.1:80")
    for hook, out in ((Hook.PREROUTING, 0), (Hook.POSTROUTING, BOND_DEF)):
        assert passes(gateway.process(packet, hook, BOND_DEF, out))
    assert describe(packet) == "203.0.113.1:6000 > 10.1.0.11:80"
    assert marks(gateway) == [9, 9]


def test_an_engine_that_takes_over_marks_anew(fastpath_backend: ModuleType) -> None:
    """The mark is not in the table's file; the rules say it again."""
    settings, rules = Settings(max_flows=16), ("-A FORWARD -s 10.1.0.11 -j CONNMARK --set-mark 3",
                                                "-A FORWARD -m connmark --mark 0 -j DROP")
    gateway = Gateway(fastpath_backend, settings=settings)
    memory = mmap.mmap(-1, 16 * RECORD_BYTES)

    def engine() -> NatEngine:
        table = fastpath_backend.FastPath(configure(settings, KEY), memory, 0)
        made = NatEngine(table, settings=settings, rng=random.Random(1))
        made.replace_interfaces(InterfaceTable(INTERFACES), 0)
        made.replace_ruleset(ruleset((*OWNER_RULES, *rules)))
        made.take_over(16, 0)
        return made

    gateway.engine = engine()
    gateway.through(udp(OUT))
    gateway.engine = engine()
    assert marks(gateway) == [3]
    assert passes(gateway.back(udp(BACK)))


# ── the packet's ────────────────────────────────────────────────────────────────────────────────────


def test_forward_judges_by_a_packets_mark(gateway: Gateway) -> None:
    """One of a flow's packets may have it and the next one not."""
    gateway.rules("-A FORWARD -m mark --mark 0x10/0xf0 -j DROP")
    assert [passes(marked(gateway, udp(OUT), mark)) for mark in (0, 0x1f, 0x20, 0x13, 0)] == [
        True, False, True, False, True,
    ]
    assert not passes(marked(gateway, udp(BACK), 0x10, Hook.PREROUTING))
    assert passes(gateway.back(udp(BACK)))


def test_a_mark_of_prerouting_is_seen_by_forward_and_postrouting(gateway: Gateway) -> None:
    """Whether the packet was taken there for its destination or not."""
    gateway.rules("-P FORWARD DROP", f"-A FORWARD {ESTABLISHED} -j ACCEPT", "-A FORWARD -m mark --mark 5 -j ACCEPT",
                  "-t nat -A PREROUTING -s 10.1.0.11 -j MARK --set-mark 5",
                  "-t nat -I POSTROUTING -m mark ! --mark 5 -j ACCEPT")
    assert describe(gateway.through(udp(OUT))) == "203.0.113.1:5000 > 203.0.113.2:80"
    assert not passes(gateway.out(udp(OTHER)))
    gateway.rules("-t nat -I PREROUTING -d 203.0.113.1 -p tcp -j MARK --or-mark 4",
                  "-t nat -A PREROUTING -d 203.0.113.1 -p tcp -j DNAT --to-destination 10.1.0.11")
    routes = (Route(parse_ipv4("10.1.0.0"), 0xFFFF_FF00, BOND_DEF), Route(0, 0, BOND_2))
    gateway.engine.replace_interfaces(InterfaceTable(INTERFACES, routes), 0)
    call = tcp("203.0.113.2:4000 > 203.0.113.1:80", "S")
    assert not passes(gateway.back(call[:]))
    assert passes(marked(gateway, call, 1, Hook.PREROUTING))


def test_marks_cost_others_nothing(gateway: Gateway) -> None:
    """A rule about the mark of pings leaves TCP on the fast path."""
    gateway.rules("-A FORWARD -p icmp -m mark --mark 1 -j DROP", "-A FORWARD -p icmp -j CONNMARK --save-mark")
    gateway.through(tcp(OUT, "S"))
    assert gateway.flow().spec.allow == Allow.ALL
    gateway.through(ping("10.1.0.11 > 203.0.113.2", 7))
    assert gateway.returned(pong("203.0.113.2 > 203.0.113.1", 7))
