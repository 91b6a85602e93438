"""Rules as text: the words of a rule (`-S`, save files) and its columns in a listing (`-L`)."""

from __future__ import annotations

from dataclasses import replace

from natengine.frontend.lexer import quote_name
from natengine.frontend.match_printers import MATCH_PRINTERS
from natengine.frontend.names import protocol_name
from natengine.frontend.printing import QuotedWord, Style, negation, plain
from natengine.frontend.target_printers import TARGET_PRINTERS, target_name
from natengine.rules.matches import AddressTest, InterfaceTest
from natengine.rules.model import Rule
from natengine.rules.targets import Goto, Target


def rule_words(rule: Rule) -> list[QuotedWord]:
    """Return the words of a rule, without its target (iptables puts counters between the two)."""
    words: list[QuotedWord] = []
    for option, address in (("-s", rule.src), ("-d", rule.dst)):
        if address is not None:
            words += [*negation(address.inverted), *plain(option, str(address.prefix))]
    for option, iface in (("-i", rule.in_iface), ("-o", rule.out_iface)):
        if iface is not None:
            name = QuotedWord(iface.pattern, quote_name(iface.pattern))
            words += [*negation(iface.inverted), *plain(option), name]
    if rule.proto is not None:
        words += [*negation(rule.proto.inverted), *plain("-p", protocol_name(rule.proto.number))]
    if rule.fragment is not None:
        words += [*negation(not rule.fragment), *plain("-f")]
    for match in rule.matches:
        words += MATCH_PRINTERS[type(match)].words(match)
    return words


def target_words(target: Target | None) -> list[QuotedWord]:
    """Return the words of `-j` or `-g`, or none."""
    if target is None:
        return []
    option = "-g" if isinstance(target, Goto) else "-j"
    return [*plain(option, target_name(target)), *TARGET_PRINTERS[type(target)].printer.words(target)]


def rule_text(rule: Rule, style: Style) -> str:
    """Return what a listing prints behind the addresses, each part with a blank before it."""
    style = replace(style, proto=protocol_name(rule.proto.number) if rule.proto is not None else "")
    parts = [MATCH_PRINTERS[type(match)].text(match, style) for match in rule.matches]
    if rule.target is not None:
        parts.append(TARGET_PRINTERS[type(rule.target)].printer.text(rule.target, style))
    goto = "[goto] " if isinstance(rule.target, Goto) else ""
    return goto + "".join(f" {part}" for part in parts if part)


def address_text(test: AddressTest | None, style: Style) -> str:
    """Return one address column, its `!` or blank included."""
    if test is None or test.prefix.mask == 0:
        text = "0.0.0.0/0" if style.numeric else "anywhere"
    else:
        address, _, length = str(test.prefix).partition("/")
        name = None if style.numeric or style.host is None else style.host(address)
        text = (name or address) + ("" if length == "32" else f"/{length}")
    flag = "!" if test is not None and test.inverted else " "
    return f"{flag}{text:<19} "


def options_text(rule: Rule) -> str:
    """Return what stands in the column `opt`."""
    return "--" if rule.fragment is None else "-f" if rule.fragment else "!f"


def interface_text(test: InterfaceTest | None, style: Style) -> str:
    """Return what `-v` writes for `-i` or `-o`."""
    if test is None:
        return "*" if style.numeric else "any"
    return ("!" if test.inverted else "") + test.pattern
