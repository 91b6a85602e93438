"""Listings.  tests/lab/test_iptables_parity.py compares every kind of line with iptables, byte for byte."""

from __future__ import annotations

import pytest

from natengine.errors import RuleApplyError
from natengine.frontend.iptables import parse_command
from natengine.frontend.listing import format_count, list_chains, list_specs, show
from natengine.rules.counters import RuleCounters
from natengine.rules.model import RuleSet, TableName


def loaded(*lines: str) -> RuleSet:
    ruleset = RuleSet()
    for line in lines:
        ruleset = parse_command(line.split()).apply(ruleset)
    return ruleset


UPLINK = "-t nat -A POSTROUTING -o bond0.2 -j MASQUERADE"


def test_the_owners_listing() -> None:
    """`iptables -L -t nat`."""
    blank = " " * 9
    heading = f"target     prot opt source               destination{blank}"
    expected = [
        "Chain PREROUTING (policy ACCEPT)", heading, "",
        "Chain INPUT (policy ACCEPT)", heading, "",
        "Chain OUTPUT (policy ACCEPT)", heading, "",
        "Chain POSTROUTING (policy ACCEPT)", heading,
        "MASQUERADE  all  --  anywhere             anywhere            ", ""]
    assert list_chains(loaded(UPLINK), table=TableName.NAT).split("\n") == expected


def test_verbose_listing_has_counters_and_interfaces() -> None:
    ruleset = loaded(UPLINK)
    counters = RuleCounters()
    counters.set_rule(ruleset.chain(TableName.NAT, "POSTROUTING").rules[0].handle, 100_000, 99_999)
    counters.set_policy("nat", "POSTROUTING", 12_345_678, 1)
    command = parse_command(["-t", "nat", "-nvL", "POSTROUTING", "--line-numbers"])
    heading, _, line = show(command, ruleset, counters).splitlines()
    assert heading == "Chain POSTROUTING (policy ACCEPT 12M packets, 1 bytes)"
    assert line == ("1     100K 99999 MASQUERADE  0    --  *      bond0.2  0.0.0.0/0            0.0.0.0/0"
                    "           ")


def test_specs() -> None:
    ruleset = loaded(UPLINK, "-A FORWARD -i a -m state --state NEW -j DROP", "-P FORWARD DROP")
    assert list_specs(ruleset, table=TableName.FILTER, chain="FORWARD") == (
        "-P FORWARD DROP\n-A FORWARD -i a -m state --state NEW -j DROP\n")
    assert list_specs(ruleset, table=TableName.NAT, chain="POSTROUTING", number=1, verbose=True) == (
        "-A POSTROUTING -o bond0.2 -c 0 0 -j MASQUERADE\n")


@pytest.mark.parametrize("numeric,text", [(False, "head.lab"), (True, "10.0.0.1")])
def test_names_are_asked_for_only_without_n(numeric: bool, text: str) -> None:
    ruleset = loaded("-A FORWARD -s 10.0.0.1 -p udp --dport 53")
    line = list_chains(ruleset, table=TableName.FILTER, chain="FORWARD", numeric=numeric,
                       reverse_lookup=lambda address: "head.lab", service_lookup=lambda port, proto: "domain")
    assert text in line
    assert ("dpt:53" in line) is numeric


def test_a_chain_that_is_not_there() -> None:
    with pytest.raises(RuleApplyError, match="No chain/target/match by that name"):
        list_chains(RuleSet(), table=TableName.NAT, chain="FORWARD")


@pytest.mark.parametrize("value,text", [
    (0, "0"), (99_999, "99999"), (100_000, "100K"), (100_499, "100K"), (9_999_499, "9999K"),
    (9_999_500, "10M"),
    (99_999_999, "100M"), (9_999_999_999, "10G"), (9_999_999_999_999, "10T"), (10**16, "10000T"),
])
def test_counts_are_rounded_as_iptables_rounds_them(value: int, text: str) -> None:
    assert (format_count(value), format_count(value, exact=True)) == (text, str(value))
