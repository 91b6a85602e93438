"""What commands that change something say with `-v`, to the last blank as iptables 1.8.9 does."""

from __future__ import annotations

from natengine.frontend.command import Command, Kind
from natengine.frontend.names import protocol_name
from natengine.frontend.printers import address_text, interface_text, options_text, rule_text
from natengine.frontend.printing import Style
from natengine.frontend.target_printers import target_name
from natengine.rules.matches import AddressTest, ProtocolTest
from natengine.rules.model import Rule, RuleSet
from natengine.vocab import Proto

_NUMERIC = Style(numeric=True)
# the protocols that iptables knows by name without a file
_NAMED = (0, Proto.ICMP, Proto.TCP, Proto.UDP, Proto.ESP, Proto.AH, 58, Proto.SCTP, Proto.UDPLITE)
_WITH_RULE = (Kind.APPEND, Kind.INSERT, Kind.REPLACE, Kind.DELETE, Kind.CHECK)
_CHAIN_BY_CHAIN = {Kind.FLUSH: "Flushing", Kind.ZERO: "Zeroing", Kind.DELETE_CHAIN: "Deleting"}


def say(command: Command, before: RuleSet) -> str:
    """Return what a command says that has been done to these rules; nothing without `-v`."""
    if not command.verbose:
        return ""
    if command.kind in _WITH_RULE:
        return "".join(f"{_rule_line(rule)}\n" for rule in command.rules)
    kind = Kind.ZERO if command.zero else command.kind
    one_rule = command.zeroes_rule if command.zero else command.number is not None
    if kind not in _CHAIN_BY_CHAIN or one_rule:
        return ""
    names = [
        chain.name for chain in before.table(command.table)
        if command.chain in (None, chain.name) and (kind is not Kind.DELETE_CHAIN or chain.policy is None)
    ]
    return "".join(f"{_CHAIN_BY_CHAIN[kind]} chain `{name}'\n" for name in names)


def _rule_line(rule: Rule) -> str:
    """Return a rule as one line without columns; `!` takes the place of a blank."""
    number = 0 if rule.proto is None else rule.proto.number
    proto = protocol_name(number) if number in _NAMED else str(number)
    source, destination = (address_text(test, _NUMERIC).strip(" !") for test in (rule.src, rule.dst))
    return (
        f"{target_name(rule.target)} {_flag(rule.proto)}{proto} opt {options_text(rule)}"
        f" in {interface_text(rule.in_iface, _NUMERIC)} out {interface_text(rule.out_iface, _NUMERIC)}"
        f" {_flag(rule.src)}{source} {_flag(rule.dst)}-> {destination}  {rule_text(rule, _NUMERIC)}"
    )


def _flag(test: AddressTest | ProtocolTest | None) -> str:
    return "!" if test is not None and test.inverted else " "
