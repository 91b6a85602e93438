"""What `Policy` says about uplinks, flows and MASQUERADE."""

from __future__ import annotations

import pytest
from support.engines import BOND_2, BOND_3, BOND_DEF, INTERFACES, ruleset
from support.packets import address

from natengine.flow.records import Allow, FlowSpec
from natengine.nat.interfaces import InterfaceTable, interface_matches, join_uplinks
from natengine.nat.policy import Policy, SourceNat
from natengine.rules.counters import RuleCounters
from natengine.rules.evaluate import POLICY_HANDLE
from natengine.rules.facts import PacketFacts
from natengine.rules.model import ChainName, Masquerade, PortRange, TableName, Uplinks
from natengine.vocab import CtState, Proto

INSIDE, OUTSIDE, PEER = address("10.1.0.11"), address("203.0.113.1"), address("203.0.113.2")
SPEC = FlowSpec(Proto.TCP, INSIDE, 5000, OUTSIDE, 5000, PEER, 80, True, BOND_DEF, BOND_2, 0)


def policy(*lines: str, uplinks: Uplinks | None = None) -> Policy:
    rules = ruleset(lines)
    return Policy(rules, InterfaceTable(INTERFACES), RuleCounters(), uplinks or rules.uplinks())


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("bond0.2", "bond0.2", True), ("bond0.2", "bond0.22", False), ("bond0.2", "bond0", False),
        ("bond0.+", "bond0.2", True), ("bond0.+", "bond0.", True), ("bond0.+", "bond0", False),
        ("+", "x", True),
    ],
)
def test_interface_patterns(pattern: str, name: str, matches: bool) -> None:
    """A trailing + is a wildcard, nothing else is."""
    assert interface_matches(pattern, name) is matches


def test_uplinks_add_up() -> None:
    """Each once, in the order they came; any_interface stays once it was said."""
    before, now = Uplinks(("a", "b"), any_interface=True), Uplinks(("b", "c"))
    assert join_uplinks(before, now) == Uplinks(("a", "b", "c"), any_interface=True)
    assert join_uplinks(Uplinks(), Uplinks()) == Uplinks()


@pytest.mark.parametrize(
    ("uplinks", "found"),
    [
        (Uplinks(), set()),
        (Uplinks(("bond0.2",)), {BOND_2}),
        (Uplinks(("bond0.+",)), {BOND_2, BOND_3, BOND_DEF, 5}),
        (Uplinks((), any_interface=True), {BOND_2}),            # where the default route goes
        (Uplinks(("bond0.3",), any_interface=True), {BOND_2, BOND_3}),
        (Uplinks(("eth0",)), set()),
    ],
)
def test_is_uplink(uplinks: Uplinks, found: set[int]) -> None:
    """By name, or by the default route; 0 and unknown indexes are none."""
    asked = policy(uplinks=uplinks)
    assert {ifindex for ifindex in range(100) if asked.is_uplink(ifindex)} == found


@pytest.mark.parametrize(
    ("rules", "allow"),
    [
        ((), Allow.ALL),
        (("-P FORWARD DROP",), Allow(0)),
        (("-A FORWARD -j DROP",), Allow(0)),
        (("-P FORWARD DROP", "-A FORWARD -i bond0.def -j ACCEPT"), Allow.NEW | Allow.ORIGINAL),
        (("-P FORWARD DROP", "-A FORWARD -o bond0.def -j ACCEPT"), Allow.REPLY),
        (("-P FORWARD DROP", "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT"),
         Allow.ORIGINAL | Allow.REPLY),
        (("-A FORWARD -m conntrack --ctstate NEW -j DROP",), Allow.ORIGINAL | Allow.REPLY),
        (("-P FORWARD DROP", "-A FORWARD -p tcp --sport 5000 --dport 80 -j ACCEPT"),
         Allow.NEW | Allow.ORIGINAL),
        # flags: what nearly all packets of a kind have
        (("-A FORWARD -p tcp --syn -j DROP",), Allow.ORIGINAL | Allow.REPLY),
        (("-A FORWARD -p tcp ! --syn -j DROP",), Allow.NEW),
        (("-A FORWARD -p tcp ! --syn -m conntrack --ctstate NEW -j DROP",), Allow.ALL),
        (("-A FORWARD -p tcp --tcp-flags ALL ALL -j DROP",), Allow.ALL),
        (("-A FORWARD -p tcp --tcp-flags SYN,RST SYN,RST -j DROP",), Allow.ALL),
        (("-A FORWARD -m conntrack --ctstate RELATED,INVALID -j DROP",), Allow.ALL),
        (("-A FORWARD -m limit -j DROP",), Allow.ASK),
        (("-A FORWARD -m limit -j LOG", "-A FORWARD -m limit"), Allow.ALL),
        (("-A FORWARD -p udp -m limit -j DROP",), Allow.ALL),
        (("-A FORWARD -p tcp --syn -m limit -j DROP",), Allow.ORIGINAL | Allow.REPLY | Allow.ASK),
    ],
)
def test_allow_later(rules: tuple[str, ...], allow: Allow) -> None:
    """The three kinds of packet of a flow, each as FORWARD would see it."""
    assert policy(*rules).allow_later(SPEC) == allow


def test_allow_later_of_a_flow_from_outside() -> None:
    """Original and reply change sides, the interfaces do not."""
    asked = policy("-P FORWARD DROP", "-A FORWARD -i bond0.def -j ACCEPT")
    assert asked.allow_later(SPEC._replace(from_inside=False)) == Allow.REPLY


def test_allow_later_of_the_head() -> None:
    """The head's own flows do not pass FORWARD."""
    assert policy("-P FORWARD DROP").allow_later(SPEC._replace(inside_ifindex=0)) == Allow.ALL


def test_allow_later_of_an_echo() -> None:
    """The opener sends requests, the other side replies."""
    spec = SPEC._replace(proto=Proto.ICMP, peer_port=8)
    asked = policy("-P FORWARD DROP", "-A FORWARD -p icmp --icmp-type echo-request -j ACCEPT")
    assert asked.allow_later(spec) == Allow.NEW | Allow.ORIGINAL
    asked = policy("-A FORWARD -p icmp --icmp-type echo-reply -j DROP")
    assert asked.allow_later(spec) == Allow.NEW | Allow.ORIGINAL


def test_allow_later_counts_nothing() -> None:
    """Only packets are counted, and this is none."""
    rules, counters = ruleset(["-A FORWARD -i bond0.def -j ACCEPT"]), RuleCounters()
    Policy(rules, InterfaceTable(INTERFACES), counters, Uplinks()).allow_later(SPEC)
    handle = rules.chain(TableName.FILTER, ChainName.FORWARD).rules[0].handle
    assert counters.rule(handle) == (0, 0)


def test_the_two_chains_that_choose_a_destination() -> None:
    """PREROUTING for what arrives, OUTPUT for the head's own; each is counted."""
    rules = ruleset(["-t nat -A PREROUTING -i bond0.2 -j ACCEPT", "-t nat -A OUTPUT -p udp -j ACCEPT"])
    counters = RuleCounters()
    asked = Policy(rules, InterfaceTable(INTERFACES), counters, Uplinks())
    facts = PacketFacts("bond0.2", "", PEER, OUTSIDE, Proto.UDP, length=60)
    first, second = (rules.chain(TableName.NAT, chain).rules[0].handle for chain in ("PREROUTING", "OUTPUT"))
    assert (asked.prerouting(facts).handle, asked.output(facts).handle) == (first, second)
    assert asked.prerouting(facts._replace(in_name="lo")).handle == POLICY_HANDLE
    assert (counters.rule(first), counters.rule(second)) == ((1, 60), (1, 60))


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        (Masquerade(), SourceNat(OUTSIDE, True, None)),
        (Masquerade(random=True), SourceNat(OUTSIDE, False, None)),
        (Masquerade(random_fully=True), SourceNat(OUTSIDE, False, None)),
        (Masquerade(PortRange(6000, 6001)), SourceNat(OUTSIDE, True, (6000, 6001))),
    ],
)
def test_source_nat(target: Masquerade, wanted: SourceNat) -> None:
    """Options of MASQUERADE in the words of the port pool."""
    assert policy().source_nat(target, BOND_2, INSIDE, 5000) == wanted


def test_source_nat_without_an_interface() -> None:
    """It has gone, or has no address."""
    assert policy().source_nat(Masquerade(), 99, INSIDE, 5000) is None


# ── ways ─────────────────────────────────────────────────────────────────────────────────────────

MASQUERADE_2 = "-t nat -A POSTROUTING -o bond0.2 -j MASQUERADE"
FACTS = {"in_name": "bond0.def", "out_name": "bond0.2", "src": INSIDE, "dst": PEER, "proto": int(Proto.UDP)}


@pytest.mark.parametrize("lines", [
    (MASQUERADE_2,),
    (MASQUERADE_2, "-P FORWARD DROP", "-A FORWARD -i bond0.def -j ACCEPT"),
    ("-A FORWARD -m comment --comment counted", "-A FORWARD -o bond0.3 -j DROP", MASQUERADE_2),
    ("-t nat -A POSTROUTING -o bond0.3 -j MASQUERADE", "-t nat -A POSTROUTING -m comment --comment x", MASQUERADE_2),
    ("-A FORWARD -m conntrack --ctstate NEW -j ACCEPT", "-P FORWARD DROP", MASQUERADE_2 + " --random"),
    ("-A FORWARD -i bond0.def -j RETURN", MASQUERADE_2),
])
def test_a_way_says_and_counts_what_the_walks_do(lines: tuple[str, ...]) -> None:
    by_way, by_walk = RuleCounters(), RuleCounters()
    rules = ruleset(lines)
    way = Policy(rules, InterfaceTable(INTERFACES), by_way, rules.uplinks()).way(BOND_DEF, BOND_2)
    walked = Policy(rules, InterfaceTable(INTERFACES), by_walk, rules.uplinks())
    assert way is not None
    for length in (28, 1500):
        way.note(length)
        facts = PacketFacts(**FACTS, length=length, ctstate=CtState.NEW)  # type: ignore[arg-type]
        assert walked.forwards(facts)
        target = walked.postrouting(facts).target
    assert isinstance(target, Masquerade)
    assert way.nat == walked.source_nat(target, BOND_2, INSIDE, 5000)
    assert way.allow == Allow.NEW | walked.allow_later(SPEC)
    assert by_way == by_walk


@pytest.mark.parametrize("lines", [
    (),                                                                 # no rule covers it
    (MASQUERADE_2, "-P FORWARD DROP"),
    (MASQUERADE_2, "-A FORWARD -s 10.1.0.12 -j DROP"),                  # other hosts, other answers
    (MASQUERADE_2, "-A FORWARD -p tcp -j DROP"),
    ("-t nat -A POSTROUTING -o bond0.2 -d 203.0.113.2 -j ACCEPT", MASQUERADE_2),
    ("-t nat -A POSTROUTING -o bond0.2 -j ACCEPT",),
    ("-t nat -A POSTROUTING -j MASQUERADE",),                           # replies come by here, too
])
def test_no_way_where_each_flow_has_to_ask(lines: tuple[str, ...]) -> None:
    assert policy(*lines).way(BOND_DEF, BOND_2) is None


def test_the_heads_own_flows_and_uplinks_without_address_have_no_way() -> None:
    assert policy(MASQUERADE_2).way(0, BOND_2) is None
    without = InterfaceTable(each._replace(addresses=()) if each.ifindex == BOND_2 else each for each in INTERFACES)
    rules = ruleset([MASQUERADE_2])
    assert Policy(rules, without, RuleCounters(), rules.uplinks()).way(BOND_DEF, BOND_2) is None
