"""Rules that judge packet by packet, `-m limit` and `-m statistic`: their flows are asked about each time."""

from __future__ import annotations

import pytest
from support.engines import Gateway, reason_of
from support.packets import fragments, ping, pong, tcp, udp

from natengine.flow.records import Allow
from natengine.rules.model import TableName
from natengine.vocab import Decision, Reason, Verdict

OUT, BACK = "10.1.0.11:5000 > 203.0.113.2:80", "203.0.113.2:80 > 203.0.113.1:5000"
EVERY_OTHER = "-m statistic --mode nth --every 2 --packet 1"        # the second, the fourth, …


def passed(decision: Decision) -> bool:
    assert reason_of(decision) in (Reason.NEW_FLOW, Reason.TRANSLATED, Reason.FRAGMENT, Reason.FORWARD_DROP)
    return decision.verdict is Verdict.ACCEPT


def counted(gateway: Gateway, chain: str = "FORWARD") -> list[int]:
    """Packets by rule."""
    rules = gateway.engine.ruleset.chain(TableName.FILTER, chain).rules
    return [gateway.engine.counters.rule(rule.handle).packets for rule in rules]


@pytest.mark.parametrize("rules", [
    ("-A FORWARD -p icmp -m limit --limit 1/second --limit-burst 2 -j ACCEPT", "-A FORWARD -p icmp -j DROP"),
    ("-P FORWARD DROP", "-A FORWARD -p icmp -m limit --limit 1/second --limit-burst 2 -j ACCEPT"),
    ("-N flood", "-A FORWARD -p icmp -j flood", "-A flood -m limit --limit 1/s --limit-burst 2 -j RETURN",
     "-A flood -j DROP"),
    ("-N fits", "-A fits -j ACCEPT", "-A FORWARD -m limit --limit 1/s --limit-burst 2 -g fits", "-A FORWARD -j REJECT"),
])
def test_limit_counts_packets(gateway: Gateway, rules: tuple[str, ...]) -> None:
    """As people know it: two at once, then one a second, though all are of one flow."""
    gateway.rules(*rules)
    question = ping("10.1.0.11 > 203.0.113.2", 7)
    assert [passed(gateway.out(question[:])) for _ in range(4)] == [True, True, False, False]
    gateway.clock.advance(1)
    assert [passed(gateway.out(question[:])) for _ in range(2)] == [True, False]


def test_statistic_chooses_packets_of_both_directions(gateway: Gateway) -> None:
    """One turn for all; each packet is counted with the rules that it met."""
    gateway.rules(f"-A FORWARD {EVERY_OTHER} -j DROP", "-A FORWARD -p udp")
    ways = [gateway.out, gateway.back, gateway.back, gateway.out, gateway.out, gateway.back]
    packets = {gateway.out: OUT, gateway.back: BACK}
    assert [passed(way(udp(packets[way]))) for way in ways] == [True, False] * 3
    assert counted(gateway) == [3, 3]
    flow = gateway.flow()
    assert (flow.original_packets, flow.reply_packets) == (2, 1)


def test_only_the_kind_that_is_judged_is_asked_about(gateway: Gateway) -> None:
    """What the rules before have settled is left to the fast path: nobody counts it any more."""
    gateway.rules(
        "-P FORWARD DROP", "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        "-A FORWARD -p icmp -m limit --limit 1/minute --limit-burst 1 -j ACCEPT",
    )
    gateway.through(ping("10.1.0.11 > 203.0.113.2", 7))
    assert gateway.flow().spec.allow == Allow.ORIGINAL | Allow.REPLY | Allow.ASK
    assert not passed(gateway.out(ping("10.1.0.11 > 203.0.113.2", 7)))
    for _ in range(3):
        assert gateway.returned(pong("203.0.113.2 > 203.0.113.1", 7))
        assert gateway.through(ping("10.1.0.11 > 203.0.113.2", 7))
    assert counted(gateway) == [0, 1]


def test_other_flows_are_not_asked_about(gateway: Gateway) -> None:
    """A rule about SYNs costs what follows them nothing, and one about UDP costs TCP nothing."""
    gateway.rules("-A FORWARD -p tcp --syn -m limit --limit 1/s --limit-burst 1 -j ACCEPT",
                  "-A FORWARD -p tcp --syn -j DROP", f"-A FORWARD -p udp {EVERY_OTHER} -j DROP")
    gateway.through(tcp(OUT, "S"))
    assert not passed(gateway.out(tcp(OUT, "S")))       # sent again
    gateway.returned(tcp(BACK, "SA"))
    gateway.through(tcp(OUT, "A"))
    assert counted(gateway) == [1, 1, 0]
    assert gateway.flow().spec.allow & Allow.ALL == Allow.ORIGINAL | Allow.REPLY


def test_what_is_refused_otherwise_stays_refused(gateway: Gateway) -> None:
    """Where answers are dropped for good the questions' limit lets none of them in."""
    gateway.rules(f"-A FORWARD -i bond0.def {EVERY_OTHER} -j ACCEPT", "-A FORWARD -i bond0.2 -j DROP")
    gateway.through(udp(OUT))
    assert not passed(gateway.back(udp(BACK)))
    assert not gateway.flow().seen_reply


def test_rules_without_judgement_end_it(gateway: Gateway) -> None:
    """And such a rule, when it comes, is for known flows, too."""
    gateway.through(udp(OUT))
    gateway.rules(f"-A FORWARD {EVERY_OTHER} -j DROP")
    assert [passed(gateway.out(udp(OUT))) for _ in range(4)] == [True, False, True, False]
    gateway.rules("-F FORWARD")
    assert all(passed(gateway.out(udp(OUT))) for _ in range(3))
    assert gateway.flow().spec.allow == Allow.ALL


def test_fragments_are_judged_by_their_first_one(gateway: Gateway) -> None:
    """As the kernel does it, which puts them together."""
    gateway.rules(f"-A FORWARD {EVERY_OTHER} -j DROP")
    for wanted in (True, False, True):
        pieces = fragments(udp(OUT, bytes(3000)), 1000)
        assert [passed(gateway.out(piece)) for piece in pieces] == [wanted] * len(pieces)
        gateway.clock.advance(31)


def test_a_judged_packet_that_no_connection_takes_is_not_let_in(gateway: Gateway) -> None:
    """FORWARD's yes is not the TCP window's."""
    gateway.rules("-A FORWARD -m limit --limit 100/s --limit-burst 100 -j ACCEPT", "-A FORWARD -j DROP")
    gateway.through(tcp(OUT, "S"))
    assert gateway.returned(tcp(BACK, "SA"))
    assert reason_of(gateway.back(tcp(BACK, "A", seq=2**31))) is Reason.TCP_WINDOW
    assert counted(gateway) == [3, 0]
