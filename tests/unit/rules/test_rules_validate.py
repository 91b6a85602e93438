"""Combinations that make no sense are found when a rule is loaded."""

from __future__ import annotations

import pytest
from hypothesis import given
from unit.rules.rule_strategies import rulesets

from natengine.errors import ConfigError, RuleApplyError
from natengine.rules.counters import RuleCounters
from natengine.rules.model import (
    Accept,
    AddressTest,
    Chain,
    ChainName,
    Comment,
    Drop,
    IcmpType,
    InterfaceTest,
    Jump,
    Masquerade,
    PortRange,
    PortTest,
    ProtocolTest,
    Rule,
    RuleSet,
    Table,
    TableName,
    TcpFlags,
    TcpUdpPorts,
)
from natengine.rules.validate import check_jumps, check_rule, check_ruleset
from natengine.vocab import Proto
from natengine.wire.addr import Prefix

FILTER, NAT = TableName.FILTER, TableName.NAT
UDP = ProtocolTest(17)
ELSEWHERE = "MASQUERADE works in the POSTROUTING chain of table nat only"
ETH0 = InterfaceTest("eth0")


def udp_port(first: int, last: int) -> TcpUdpPorts:
    return TcpUdpPorts(Proto.UDP, dport=PortTest(PortRange(first, last)))


@pytest.mark.parametrize("table,chain,rule,message,status", [
    # interfaces that the hook does not have
    (NAT, "POSTROUTING", Rule(in_iface=ETH0), "Can't use -i with POSTROUTING", 2),
    (FILTER, "OUTPUT", Rule(in_iface=ETH0), "Can't use -i with OUTPUT", 2),
    (NAT, "PREROUTING", Rule(out_iface=ETH0), "Can't use -o with PREROUTING", 2),
    (FILTER, "INPUT", Rule(out_iface=ETH0), "Can't use -o with INPUT", 2),
    # interface names
    (FILTER, "FORWARD", Rule(in_iface=InterfaceTest("")), "Empty interface is likely to be undesired", 2),
    (FILTER, "FORWARD", Rule(in_iface=InterfaceTest("a b")), "weird character in interface `a b' "
     "('/' and ' ' are not allowed by the kernel).", 2),
    # protocols and ports
    (FILTER, "FORWARD", Rule(proto=ProtocolTest(0, True)), "rule would never match protocol", 2),
    (FILTER, "FORWARD", Rule(matches=(udp_port(5, 6),)), "UDP match requires '-p udp'", 2),
    (FILTER, "FORWARD", Rule(proto=ProtocolTest(6), matches=(udp_port(5, 6),)),
     "UDP match requires '-p udp'", 2),
    (FILTER, "FORWARD", Rule(matches=(TcpUdpPorts(Proto.TCP),)), "TCP match requires '-p tcp'", 4),
    (FILTER, "FORWARD", Rule(proto=UDP, matches=(TcpUdpPorts(Proto.TCP),)), "TCP match requires '-p tcp'", 4),
    (FILTER, "FORWARD", Rule(proto=UDP, matches=(TcpUdpPorts(Proto.UDP, flags=TcpFlags(2, 2)),)),
     "TCP flags belong to '-p tcp'", 2),
    (FILTER, "FORWARD", Rule(proto=UDP, matches=(udp_port(5, 1),)), "invalid portrange (min > max)", 2),
    (FILTER, "FORWARD", Rule(proto=UDP, matches=(udp_port(5, 65536),)),
     "invalid port/service `65536' specified", 2),
    (FILTER, "FORWARD", Rule(matches=(Comment("two\nlines"),)), "comment: must be one line of text", 2),
    (FILTER, "FORWARD", Rule(matches=(Comment("\u20ac" * 86),)), "comment: at most 256 bytes", 2),
    (FILTER, "FORWARD", Rule(matches=(IcmpType(8),)), "ICMP match requires '-p icmp'", 4),
    (FILTER, "FORWARD", Rule(proto=ProtocolTest(1, True), matches=(IcmpType(8),)),
     "ICMP match requires '-p icmp'", 4),
    # addresses
    (FILTER, "FORWARD", Rule(dst=AddressTest(Prefix(0, 0), True)), "! -d 0.0.0.0/0 would never match", 4),
    # targets
    (NAT, "OUTPUT", Rule(target=Drop()), 'The "nat" table is not intended for filtering, '
     "the use of DROP is therefore inhibited.", 2),
    (NAT, "PREROUTING", Rule(target=Masquerade()), ELSEWHERE, 4),
    (FILTER, "FORWARD", Rule(target=Masquerade()), ELSEWHERE, 4),
    (NAT, "POSTROUTING", Rule(target=Masquerade(PortRange(1, 2))),
     "Need TCP, UDP, SCTP or DCCP with port specification", 2),
    (NAT, "POSTROUTING", Rule(proto=UDP, target=Masquerade(PortRange(0, 2))), "Port `0' not valid", 2),
    (NAT, "POSTROUTING", Rule(proto=UDP, target=Masquerade(PortRange(3, 2))), "Port range `2' funky", 2),
])
def test_refused(table: TableName, chain: str, rule: Rule, message: str, status: int) -> None:
    with pytest.raises(ConfigError) as caught:
        check_rule(table, chain, rule)
    assert (str(caught.value), caught.value.exit_status) == (message, status)


@given(rulesets())
def test_valid_rule_sets_pass(pair: tuple[RuleSet, RuleCounters]) -> None:
    check_ruleset(pair[0])


def test_a_rule_set_from_elsewhere_is_checked_too() -> None:
    """A rule set that was not made by commands: TOML, a program."""
    for bad in (RuleSet().append(FILTER, ChainName.INPUT, Rule(out_iface=ETH0)),
                RuleSet().set_policy(NAT, ChainName.OUTPUT, Drop())):
        with pytest.raises(ConfigError):
            check_ruleset(bad)


def chains(**jumps: str) -> Table:
    """A table in which each of these chains has one rule, which jumps to that chain."""
    rules = {name: (Rule(target=Jump(to)),) if to else () for name, to in jumps.items()}
    return Table(TableName.FILTER, tuple(
        Chain(name, Accept() if name == "FORWARD" else None, each) for name, each in rules.items()
    ))


def ladder(length: int) -> Table:
    steps = {f"c{n}": f"c{n - 1}" if n else "" for n in range(length)}
    return chains(FORWARD=f"c{length - 1}", **steps)


@pytest.mark.parametrize("table", [chains(FORWARD="a", a="b", b=""), chains(FORWARD="", a="b", b=""), ladder(15)])
def test_jumps_that_come_to_an_end(table: Table) -> None:
    check_jumps(table)


@pytest.mark.parametrize(("table", "message"), [
    (chains(FORWARD="", a="a"), " RULE_APPEND failed (Too many links): rule in chain a"),
    (chains(FORWARD="a", a="b", b="a"), " RULE_APPEND failed (Too many links): rule in chain b"),
    (ladder(16), " RULE_APPEND failed (Too many links): rule in chain FORWARD"),
    (chains(FORWARD="x"), " RULE_APPEND failed (No such file or directory): rule in chain FORWARD"),
    (chains(FORWARD="", a="FORWARD"), " RULE_APPEND failed (No such file or directory): rule in chain a"),
])
def test_jumps_that_do_not(table: Table, message: str) -> None:
    """The kernel's limit is 16 chains within each other (measured with iptables 1.8.9)."""
    with pytest.raises(RuleApplyError) as caught:
        check_jumps(table)
    assert (str(caught.value), caught.value.exit_status) == (message, 4)
