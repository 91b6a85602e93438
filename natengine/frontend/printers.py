"""Rules as text: the words of a rule (`-S`, save files) and its columns in a listing (`-L`).

One entry in MATCH_PRINTERS or TARGET_PRINTERS per class of `rules/model.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from natengine.frontend.lexer import quote_name, quote_text
from natengine.frontend.names import (
    ICMP_NAMES,
    HostName,
    ServiceName,
    protocol_name,
    state_names,
    tcp_flag_names,
)
from natengine.rules.model import (
    Accept,
    AddressTest,
    Comment,
    ConntrackState,
    Drop,
    IcmpType,
    Masquerade,
    Match,
    PortTest,
    Return,
    Rule,
    StateModule,
    Target,
    TcpUdpPorts,
)


class QuotedWord(NamedTuple):
    """A word of a rule, as it is and as it is written in a file."""

    text: str
    quoted: str


@dataclass(frozen=True, slots=True)
class Style:
    """How a listing writes numbers: with -n as numbers, else by name where there is one."""

    numeric: bool = False
    host: HostName | None = None
    service: ServiceName | None = None


class Printer(NamedTuple):
    """`words` writes a value as options, `text` as the end of a listing's line."""

    words: Callable[[Any], list[QuotedWord]]
    text: Callable[[Any, Style], str]


def plain(*words: str) -> list[QuotedWord]:
    """Return words that never need quotes."""
    return [QuotedWord(word, word) for word in words]


def _not(inverted: bool) -> list[QuotedWord]:
    return plain("!") if inverted else []


# --- whole rules ------------------------------------------------------------------------------------


def rule_words(rule: Rule) -> list[QuotedWord]:
    """Return the words of a rule, without its target (iptables puts counters between the two)."""
    words: list[QuotedWord] = []
    for option, address in (("-s", rule.src), ("-d", rule.dst)):
        if address is not None:
            words += [*_not(address.inverted), *plain(option, str(address.prefix))]
    for option, iface in (("-i", rule.in_iface), ("-o", rule.out_iface)):
        if iface is not None:
            name = QuotedWord(iface.pattern, quote_name(iface.pattern))
            words += [*_not(iface.inverted), *plain(option), name]
    if rule.proto is not None:
        words += [*_not(rule.proto.inverted), *plain("-p", protocol_name(rule.proto.number))]
    for match in rule.matches:
        words += MATCH_PRINTERS[type(match)].words(match)
    return words


def target_words(target: Target | None) -> list[QuotedWord]:
    """Return the words of `-j`, or none."""
    if target is None:
        return []
    return [*plain("-j", target_name(target)), *TARGET_PRINTERS[type(target)].printer.words(target)]


def target_name(target: Target | None) -> str:
    """Return the name after `-j`, "" where there is no target."""
    return "" if target is None else TARGET_PRINTERS[type(target)].name


def rule_text(rule: Rule, style: Style) -> str:
    """Return what a listing prints behind the addresses, each part with a blank before it."""
    parts = [MATCH_PRINTERS[type(match)].text(match, style) for match in rule.matches]
    if rule.target is not None:
        parts.append(TARGET_PRINTERS[type(rule.target)].printer.text(rule.target, style))
    return "".join(f" {part}" for part in parts if part)


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


# --- matches ----------------------------------------------------------------------------------------


def _ports_words(match: TcpUdpPorts) -> list[QuotedWord]:
    words = plain("-m", match.proto.name.lower())
    for option, test in (("--sport", match.sport), ("--dport", match.dport)):
        if test is not None:
            words += [*_not(test.inverted), *plain(option, _range(test, ":"))]
    if match.flags is not None:
        masks = tcp_flag_names(match.flags.mask), tcp_flag_names(match.flags.expected)
        words += [*_not(match.flags.inverted), *plain("--tcp-flags", *masks)]
    return words


def _range(test: PortTest, separator: str) -> str:
    first, last = test.ports
    return str(first) if first == last else f"{first}{separator}{last}"


def _ports_text(match: TcpUdpPorts, style: Style) -> str:
    proto = match.proto.name.lower()

    def name(port: int) -> str:
        found = None if style.numeric or style.service is None else style.service(port, proto)
        return found or str(port)

    text = proto
    for label, test in (("spt", match.sport), ("dpt", match.dport)):
        if test is not None:
            first, last = test.ports
            several = first != last
            text += f" {label}{'s' if several else ''}:{'!' if test.inverted else ''}{name(first)}"
            text += f":{name(last)}" if several else ""
    if match.flags is not None:
        mask, expected = match.flags.mask, match.flags.expected
        text += " flags:" + ("!" if match.flags.inverted else "")
        text += (f"0x{mask:02X}/0x{expected:02X}" if style.numeric
                 else f"{tcp_flag_names(mask)}/{tcp_flag_names(expected)}")
    return text


def _icmp_words(match: IcmpType) -> list[QuotedWord]:
    text = "any" if match.type is None else str(match.type)
    if match.type is not None and (match.first_code, match.last_code) != (0, 255):
        text += f"/{match.first_code}"
    return [*plain("-m", "icmp"), *_not(match.inverted), *plain("--icmp-type", text)]


def _icmp_text(match: IcmpType, style: Style) -> str:
    flag = "!" if match.inverted else ""
    wanted = (match.type, match.first_code, match.last_code)
    for known in ICMP_NAMES:
        if known[1:] == wanted and not style.numeric:
            return f"icmp {flag}{known.name}"
    text = f"icmp{' !' if match.inverted else ''}type {255 if match.type is None else match.type}"
    return text if wanted[1:] == (0, 255) else f"{text} code {match.first_code}"


def _state_option(match: ConntrackState) -> str:
    return "state" if match.module is StateModule.STATE else "ctstate"


def _state_words(match: ConntrackState) -> list[QuotedWord]:
    option = plain(f"--{_state_option(match)}", state_names(match.states))
    return [*plain("-m", match.module.value), *_not(match.inverted), *option]


def _state_text(match: ConntrackState, style: Style) -> str:
    return f"{'! ' if match.inverted else ''}{_state_option(match)} {state_names(match.states)}"


def _comment_words(match: Comment) -> list[QuotedWord]:
    return [*plain("-m", "comment", "--comment"), QuotedWord(match.text, quote_text(match.text))]


def _comment_text(match: Comment, style: Style) -> str:
    return f"/* {match.text} */"


MATCH_PRINTERS: Mapping[type[Match], Printer] = MappingProxyType({
    TcpUdpPorts: Printer(_ports_words, _ports_text),
    IcmpType: Printer(_icmp_words, _icmp_text),
    ConntrackState: Printer(_state_words, _state_text),
    Comment: Printer(_comment_words, _comment_text),
})


# --- targets ----------------------------------------------------------------------------------------


class TargetPrinter(NamedTuple):
    """A target's name and its options."""

    name: str
    printer: Printer


def _masquerade_words(target: Masquerade) -> list[QuotedWord]:
    words = [] if target.to_ports is None else plain("--to-ports", _range(PortTest(target.to_ports), "-"))
    return words + plain(*(f"--{name}" for name in _random_options(target)))


def _masquerade_text(target: Masquerade, style: Style) -> str:
    parts = [] if target.to_ports is None else [f"masq ports: {_range(PortTest(target.to_ports), '-')}"]
    return " ".join([*parts, *_random_options(target)])


def _random_options(target: Masquerade) -> list[str]:
    return ["random"] * target.random + ["random-fully"] * target.random_fully


_NO_OPTIONS = Printer(lambda target: [], lambda target, style: "")

TARGET_PRINTERS: Mapping[type[Target], TargetPrinter] = MappingProxyType({
    Masquerade: TargetPrinter("MASQUERADE", Printer(_masquerade_words, _masquerade_text)),
    Accept: TargetPrinter("ACCEPT", _NO_OPTIONS),
    Drop: TargetPrinter("DROP", _NO_OPTIONS),
    Return: TargetPrinter("RETURN", _NO_OPTIONS),
})
