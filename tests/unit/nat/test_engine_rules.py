"""FORWARD, changes of the rules and of the interfaces, and rules without an out-interface."""

from __future__ import annotations

from types import ModuleType

import pytest
from support.engines import BOND_2, BOND_3, BOND_DEF, INSIDE_2, OWNER_RULES, Gateway, is_held, reason_of
from support.packets import (
    AH,
    address,
    assert_checksums,
    assert_error_checksums,
    describe,
    fragments,
    icmp_error,
    other,
    ping,
    pong,
    quote_of,
    source_port,
    tcp,
    udp,
)

from natengine.rules.counters import RuleCounters
from natengine.rules.model import ChainName, TableName
from natengine.vocab import Hook, Interface, Reason

OUT, BACK = "10.1.0.11:5000 > 203.0.113.2:80", "203.0.113.2:80 > 203.0.113.1:5000"
ANY_INTERFACE = "-t nat -A POSTROUTING -j MASQUERADE"


# ── FORWARD ─────────────────────────────────────────────────────────────────────────────────────


def test_policy_drop_stops_everything(gateway: Gateway) -> None:
    """`-P FORWARD DROP` alone: nothing begins."""
    gateway.rules("-P FORWARD DROP")
    assert reason_of(gateway.out(udp(OUT))) is Reason.FORWARD_DROP
    assert gateway.engine.stats()[:2] == (0, 0)


def test_policy_drop_and_inside_accepted(gateway: Gateway) -> None:
    """`-i bond0.def -j ACCEPT` lets the questions out, and nothing lets the answers in."""
    gateway.rules("-P FORWARD DROP", "-A FORWARD -i bond0.def -j ACCEPT")
    assert reason_of(gateway.out(udp(OUT))) is Reason.NEW_FLOW
    assert reason_of(gateway.back(udp(BACK))) is Reason.FORWARD_DROP
    assert not gateway.flow().seen_reply


def test_policy_drop_and_established_accepted(gateway: Gateway) -> None:
    """With ctstate ESTABLISHED the answers come in, and only those."""
    gateway.rules(
        "-P FORWARD DROP", "-A FORWARD -i bond0.def -j ACCEPT",
        "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
    )
    gateway.through(udp(OUT))
    assert gateway.returned(udp(BACK))
    assert reason_of(gateway.back(udp("203.0.113.2:81 > 203.0.113.1:5000"))) is Reason.FILTERED
    assert reason_of(gateway.back(udp("203.0.113.2:81 > 10.1.0.11:5000"))) is Reason.UNSOLICITED


def test_only_new_is_dropped(gateway: Gateway) -> None:
    """A rule against ctstate NEW stops what begins and what nobody has answered, not what goes on."""
    gateway.through(udp(OUT))
    gateway.rules("-A FORWARD -m conntrack --ctstate NEW -j DROP")
    assert reason_of(gateway.out(udp("10.1.0.11:6000 > 203.0.113.2:80"))) is Reason.FORWARD_DROP
    assert reason_of(gateway.out(udp(OUT))) is Reason.FORWARD_DROP
    gateway.returned(udp(BACK))
    assert gateway.through(udp(OUT))


@pytest.mark.parametrize(
    ("rule", "drops"),
    [
        ("-s 10.1.0.11", (True, False)), ("-d 10.1.0.11", (False, True)),
        ("-d 203.0.113.2", (True, False)), ("-s 203.0.113.2", (False, True)),
        ("-i bond0.def", (True, False)), ("-o bond0.def", (False, True)),
        ("-o bond0.2", (True, False)), ("-i bond0.2", (False, True)),
        ("-p tcp --dport 80", (True, False)), ("-p tcp --sport 80", (False, True)),
        ("-p tcp --sport 5000", (True, False)), ("-p udp", (False, False)),
        ("-d 203.0.113.1", (False, False)), ("-i bond0.3", (False, False)),
    ],
)
def test_forward_sees_inside_addresses_both_ways(
    gateway: Gateway, rule: str, drops: tuple[bool, bool]
) -> None:
    """The chain is between the two translations, as in the kernel: no outside address gets there."""
    gateway.through(tcp(OUT, "S"))
    gateway.returned(tcp(BACK, "SA"))
    gateway.rules(f"-A FORWARD {rule} -j DROP")
    got = (gateway.out(tcp(OUT, "A")), gateway.back(tcp(BACK, "A")))
    assert tuple(reason_of(decision) is Reason.FORWARD_DROP for decision in got) == drops


def test_forward_sees_the_first_packet_whole(gateway: Gateway) -> None:
    """TCP flags, ICMP type and code are there when a flow begins."""
    gateway.rules(
        "-P FORWARD DROP", "-A FORWARD -p tcp --syn -j ACCEPT", "-A FORWARD -p icmp --icmp-type 8 -j ACCEPT",
        "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT",
    )
    assert gateway.through(tcp(OUT, "S"))
    assert gateway.through(tcp(OUT, "S"))       # sent again: the answer to the first one stands
    assert gateway.returned(tcp(BACK, "SA"))
    assert gateway.through(tcp(OUT, "A"))
    assert gateway.through(ping("10.1.0.11 > 203.0.113.2", 7))
    assert gateway.returned(pong("203.0.113.2 > 203.0.113.1", 7))
    assert reason_of(gateway.out(udp(OUT))) is Reason.FORWARD_DROP


# ── changes of the rules ────────────────────────────────────────────────────────────────────────


def test_rule_changes_keep_flows(gateway: Gateway) -> None:
    """Adding, deleting, flushing: known flows go on, with their ports."""
    gateway.through(tcp(OUT, "S"))
    gateway.returned(tcp(BACK, "SA"))
    for line in ("-A FORWARD -p udp -j DROP", "-F FORWARD", "-t nat -F", OWNER_RULES[0]):
        gateway.rules(line)
        assert gateway.through(tcp(OUT, "A"))
        assert gateway.returned(tcp(BACK, "A"))


def test_forward_is_asked_again_and_again(gateway: Gateway) -> None:
    """A flow stops when FORWARD changes its mind, and goes on when it changes back."""
    gateway.through(udp(OUT))
    for _ in range(3):
        gateway.rules("-P FORWARD DROP")
        assert reason_of(gateway.out(udp(OUT))) is Reason.FORWARD_DROP
        assert reason_of(gateway.back(udp(BACK))) is Reason.FORWARD_DROP
        gateway.rules("-P FORWARD ACCEPT")
        assert gateway.through(udp(OUT))
        assert gateway.returned(udp(BACK))


def test_flush_leaks_nothing(gateway: Gateway) -> None:
    """An interface stays an uplink when its last rule is gone: what would leak is dropped."""
    gateway.rules("-t nat -F")
    for via in (BOND_2, BOND_3):
        for packet in (udp(OUT), tcp(OUT), ping("10.1.0.11 > 203.0.113.2", 7)):
            assert reason_of(gateway.out(packet, via)) is Reason.NO_RULE
        assert reason_of(gateway.out(other("10.1.0.11 > 203.0.113.2"), via)) is Reason.NO_RULE
        for piece in fragments(udp(OUT, bytes(64)), 32, ident=via):
            assert reason_of(gateway.out(piece, via)) is Reason.NO_RULE
        assert reason_of(gateway.back(udp("203.0.113.2:1 > 10.1.0.11:1"), via)) is Reason.UNSOLICITED
    assert reason_of(gateway.head(udp("203.0.113.1:7 > 203.0.113.2:7"))) is Reason.UNCHANGED
    assert gateway.engine.uplinks.patterns == ("bond0.2", "bond0.3")


def test_uplinks_of_a_pattern(gateway: Gateway) -> None:
    """`-o bond0.+` makes every interface of that name an uplink, the inside one too."""
    gateway.rules("-t nat -A POSTROUTING -o bond0.+ -s 10.1.0.0/24 -j MASQUERADE", fresh=True)
    assert gateway.through(udp(OUT))
    assert reason_of(gateway.back(udp("10.1.0.12:1 > 10.2.0.11:1"), BOND_DEF)) is Reason.UNSOLICITED


def test_accept_rule_passes_untranslated(gateway: Gateway) -> None:
    """A nat ACCEPT rule before MASQUERADE exempts: tracked, with the inside address outside."""
    gateway.rules("-t nat -I POSTROUTING -d 203.0.113.2 -j ACCEPT")
    decision = gateway.out(tcp(OUT, "S"))
    assert (decision.reason, decision.packet) == (Reason.UNCHANGED, None)
    assert reason_of(gateway.back(tcp("203.0.113.2:80 > 10.1.0.11:5000", "SA"))) is Reason.UNCHANGED
    assert reason_of(gateway.out(tcp("10.1.0.11:5001 > 203.0.113.2:80", "A"))) is Reason.TCP_STATE
    assert gateway.engine.stats().mappings == 0


def test_return_rule_means_the_policy(gateway: Gateway) -> None:
    """RETURN before MASQUERADE is no exemption on an uplink: no rule has said that it may leak."""
    gateway.rules("-t nat -I POSTROUTING -d 203.0.113.2 -j RETURN")
    assert reason_of(gateway.out(udp(OUT))) is Reason.NO_RULE


def test_counters_of_the_rules(gateway: Gateway) -> None:
    """nat counts flows, as in the kernel; FORWARD counts what it was asked about."""
    for _ in range(3):
        gateway.out(udp(OUT))
    rule = gateway.engine.ruleset.chain(TableName.NAT, ChainName.POSTROUTING).rules[0]
    assert gateway.engine.counters.rule(rule.handle) == (1, 32)
    gateway.engine.replace_ruleset(gateway.engine.ruleset, RuleCounters())
    assert gateway.engine.counters.rule(rule.handle) == (0, 0)


# ── interfaces ──────────────────────────────────────────────────────────────────────────────────


def test_flows_end_with_their_address(gateway: Gateway) -> None:
    """The peer's answers go nowhere any more: flows on that address end, those on the other stay."""
    gateway.through(udp(OUT), BOND_2)
    gateway.through(udp("10.1.0.11:5000 > 198.51.100.2:80"), BOND_3)
    gateway.head(udp("203.0.113.1:7 > 203.0.113.2:7"))
    assert gateway.interfaces(Interface(BOND_2, "bond0.2", (address("203.0.113.77"),))) == 2
    assert gateway.flow().spec.uplink_ifindex == BOND_3
    assert gateway.engine.stats().mappings == 1
    assert describe(gateway.through(udp(OUT))) == "203.0.113.77:5000 > 203.0.113.2:80"


def test_address_moves_to_another_interface(gateway: Gateway) -> None:
    """The host still has it: the flows stay."""
    gateway.through(udp(OUT))
    moved = Interface(BOND_3, "bond0.3", (address("198.51.100.1"), address("203.0.113.1")))
    assert gateway.interfaces(moved, Interface(BOND_2, "bond0.2")) == 0
    assert gateway.returned(udp(BACK), BOND_3)


def test_interface_vanishes(gateway: Gateway) -> None:
    """Its flows end; packets with its index are nobody's."""
    gateway.through(udp(OUT))
    assert gateway.interfaces(without=BOND_2) == 1
    assert gateway.engine.flows() == []


def test_secondary_address_appears(gateway: Gateway) -> None:
    """The primary one is used (as inet_select_addr does), and known flows do not move."""
    gateway.through(udp(OUT))
    both = (address("203.0.113.1"), address("203.0.113.50"))
    assert gateway.interfaces(Interface(BOND_2, "bond0.2", both)) == 0
    packet = gateway.through(udp("10.1.0.12:6000 > 203.0.113.2:80"))
    assert describe(packet).startswith("203.0.113.1:")
    assert reason_of(gateway.head(udp("203.0.113.50:9 > 203.0.113.2:9"))) is Reason.UNCHANGED


# ── a rule without -o ───────────────────────────────────────────────────────────────────────────


@pytest.fixture
def anywhere(fastpath_backend: ModuleType) -> Gateway:
    """MASQUERADE on every interface: packets are taken at both hooks of each."""
    return Gateway(fastpath_backend, [ANY_INTERFACE])


def arrives_and_leaves(gateway: Gateway, packet: bytearray, came: int, via: int) -> tuple[Reason, Reason]:
    """Take a packet through both hooks, in place, as the kernel does for these rules."""
    first = reason_of(gateway.process(packet, Hook.PREROUTING, came, 0))
    return first, reason_of(gateway.process(packet, Hook.POSTROUTING, came, via))


def test_anywhere_both_ways(anywhere: Gateway) -> None:
    """A reply is translated when it arrives, and passes POSTROUTING as it is."""
    packet = tcp(OUT, "S")
    assert arrives_and_leaves(anywhere, packet, BOND_DEF, BOND_2) == (Reason.ROUTED, Reason.NEW_FLOW)
    packet = tcp(BACK, "SA")
    assert arrives_and_leaves(anywhere, packet, BOND_2, BOND_DEF) == (Reason.TRANSLATED, Reason.ROUTED)
    assert packet == tcp("203.0.113.2:80 > 10.1.0.11:5000", "SA")
    anywhere.through(ping("10.1.0.11 > 203.0.113.2", 7))
    packet = pong("203.0.113.2 > 203.0.113.1", 7)
    assert arrives_and_leaves(anywhere, packet, BOND_2, BOND_DEF) == (Reason.TRANSLATED, Reason.ROUTED)
    assert packet == pong("203.0.113.2 > 10.1.0.11", 7)


def test_anywhere_between_inside_networks(anywhere: Gateway) -> None:
    """The kernel masquerades there too, since the rule names no interface."""
    packet = udp("10.1.0.11:5000 > 10.2.0.11:53")
    assert arrives_and_leaves(anywhere, packet, BOND_DEF, INSIDE_2) == (Reason.ROUTED, Reason.NEW_FLOW)
    assert describe(packet) == "10.2.0.1:5000 > 10.2.0.11:53"
    packet = udp("10.2.0.11:53 > 10.2.0.1:5000")
    assert arrives_and_leaves(anywhere, packet, INSIDE_2, BOND_DEF) == (Reason.TRANSLATED, Reason.ROUTED)
    assert describe(packet) == "10.2.0.11:53 > 10.1.0.11:5000"


def test_anywhere_fragments(anywhere: Gateway) -> None:
    """Later fragments pass where there is nothing to translate, in both directions."""
    for piece in fragments(udp(OUT, bytes(100)), 48):
        assert arrives_and_leaves(anywhere, piece, BOND_DEF, BOND_2) == (Reason.ROUTED, Reason.FRAGMENT)
        assert describe(piece).startswith("203.0.113.1")
    for piece in fragments(udp(BACK, bytes(100)), 48):
        assert arrives_and_leaves(anywhere, piece, BOND_2, BOND_DEF) == (Reason.FRAGMENT, Reason.ROUTED)
        assert describe(piece).split(" > ")[1].startswith("10.1.0.11")
    orphan = fragments(udp(OUT, bytes(100)), 48, ident=8)[1]
    assert is_held(anywhere.out(orphan))


def test_anywhere_icmp_errors(anywhere: Gateway) -> None:
    """An error is translated once, at the side of the uplink, and routed on the other one."""
    sent = anywhere.through(udp(OUT))
    packet = icmp_error("203.0.113.9 > 203.0.113.1", sent)
    assert arrives_and_leaves(anywhere, packet, BOND_2, BOND_DEF) == (Reason.ICMP_ERROR, Reason.ROUTED)
    assert describe(quote_of(packet)) == OUT
    anywhere.returned(udp(BACK))
    packet = icmp_error("10.1.0.11 > 203.0.113.2", udp("203.0.113.2:80 > 10.1.0.11:5000"), code=3)
    assert arrives_and_leaves(anywhere, packet, BOND_DEF, BOND_2) == (Reason.ROUTED, Reason.ICMP_ERROR)
    assert_error_checksums(packet)
    unknown = icmp_error("10.1.0.11 > 203.0.113.2", udp("203.0.113.2:9 > 10.1.0.11:9"))
    assert reason_of(anywhere.out(unknown)) is Reason.ICMP_UNRELATED


def test_anywhere_errors_of_the_head(anywhere: Gateway) -> None:
    """Time exceeded to a worker (traceroute) quotes its inside address; outside nobody may see that."""
    packet = icmp_error("10.1.0.1 > 10.1.0.11", udp(OUT), icmp_type=11, code=0)
    assert reason_of(anywhere.head(packet, BOND_DEF)) is Reason.LOCAL_OUT
    assert reason_of(anywhere.head(packet, BOND_2)) is Reason.ICMP_UNRELATED


def test_anywhere_other_protocols(anywhere: Gateway) -> None:
    """As TCP and UDP: translated, if FORWARD allows it; what cannot be is never let out."""
    packet = other("10.1.0.11 > 10.2.0.11")
    assert arrives_and_leaves(anywhere, packet, BOND_DEF, INSIDE_2) == (Reason.ROUTED, Reason.NEW_FLOW)
    assert packet == other("10.2.0.1 > 10.2.0.11")
    assert reason_of(anywhere.out(other("10.1.0.11 > 203.0.113.2", AH))) is Reason.UNKNOWN_PROTOCOL
    anywhere.rules("-P FORWARD DROP")
    assert reason_of(anywhere.out(other("10.1.0.12 > 10.2.0.12"), INSIDE_2)) is Reason.FORWARD_DROP


def test_anywhere_stranger(anywhere: Gateway) -> None:
    """The uplink is where the default route goes: nobody gets in from there."""
    assert reason_of(anywhere.back(udp("203.0.113.2:1 > 10.1.0.11:1"))) is Reason.UNSOLICITED


def test_anywhere_clash(anywhere: Gateway) -> None:
    """A reply to a renumbered flow passes POSTROUTING too."""
    anywhere.through(udp("10.1.0.12:5000 > 203.0.113.2:80"))
    port = source_port(anywhere.through(udp(OUT)))
    packet = udp(f"203.0.113.2:80 > 203.0.113.1:{port}")
    assert arrives_and_leaves(anywhere, packet, BOND_2, BOND_DEF) == (Reason.TRANSLATED, Reason.ROUTED)
    assert_checksums(packet)
    assert describe(packet) == "203.0.113.2:80 > 10.1.0.11:5000"
