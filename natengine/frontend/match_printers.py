"""How each match is written: as options (`-S`, save files) and in a listing (`-L`)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from natengine.frontend.conntrack_printers import state_text, state_words, tuple_text, tuple_words
from natengine.frontend.names import ICMP_NAMES, rate_text, tcp_flag_names
from natengine.frontend.printing import Printer, QuotedWord, Style, negation, plain, port_range, quoted
from natengine.rules.matches import (
    ALL_BITS,
    AddressKind,
    AddressRangeTest,
    AddressType,
    AddressTypeTest,
    Comment,
    ConntrackState,
    ConntrackTuple,
    EveryNth,
    IcmpType,
    IpRange,
    Limit,
    MacSource,
    MarkTest,
    Match,
    Multiport,
    PortRange,
    RandomSample,
    TcpUdpPorts,
)
from natengine.wire.addr import format_ipv4

_DEFAULT_BURST = Limit().burst
_PROBABILITY_ONE = 1 << 31

# --- the protocol's own -----------------------------------------------------------------------------


def _ports_words(match: TcpUdpPorts) -> list[QuotedWord]:
    words = plain("-m", match.proto.name.lower())
    for option, test in (("--sport", match.sport), ("--dport", match.dport)):
        if test is not None:
            words += [*negation(test.inverted), *plain(option, port_range(test.ports, ":"))]
    if match.flags is not None:
        masks = tcp_flag_names(match.flags.mask), tcp_flag_names(match.flags.expected)
        words += [*negation(match.flags.inverted), *plain("--tcp-flags", *masks)]
    return words


def _ports_text(match: TcpUdpPorts, style: Style) -> str:
    proto = match.proto.name.lower()

    text = proto
    for label, test in (("spt", match.sport), ("dpt", match.dport)):
        if test is not None:
            first, last = test.ports
            several = first != last
            text += f" {label}{'s' if several else ''}:{'!' if test.inverted else ''}{style.port(first, proto)}"
            text += f":{style.port(last, proto)}" if several else ""
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
    return [*plain("-m", "icmp"), *negation(match.inverted), *plain("--icmp-type", text)]


def _icmp_text(match: IcmpType, style: Style) -> str:
    flag = "!" if match.inverted else ""
    wanted = (match.type, match.first_code, match.last_code)
    for known in ICMP_NAMES:
        if known[1:] == wanted and not style.numeric:
            return f"icmp {flag}{known.name}"
    text = f"icmp{' !' if match.inverted else ''}type {255 if match.type is None else match.type}"
    return text if wanted[1:] == (0, 255) else f"{text} code {match.first_code}"


def _multiport_words(match: Multiport) -> list[QuotedWord]:
    ports = ",".join(port_range(each, ":") for each in match.ports)
    return [*plain("-m", "multiport"), *negation(match.inverted), *plain(f"--{match.side}", ports)]


def _multiport_text(match: Multiport, style: Style) -> str:
    def text(ports: PortRange) -> str:
        return ":".join(dict.fromkeys(style.port(port, style.proto) for port in ports))

    return f"multiport {match.side} {' !' if match.inverted else ''}{','.join(map(text, match.ports))}"


# --- others -----------------------------------------------------------------------------------------


def _mark_value(match: MarkTest) -> str:
    return f"{match.value:#x}" if match.mask == ALL_BITS else f"{match.value:#x}/{match.mask:#x}"


def _mark_words(match: MarkTest) -> list[QuotedWord]:
    module = "connmark" if match.connection else "mark"
    return [*plain("-m", module), *negation(match.inverted), *plain("--mark", _mark_value(match))]


def _mark_text(match: MarkTest, style: Style) -> str:
    flag = "! " if match.inverted else " " if match.connection else ""
    return f"{'connmark' if match.connection else 'mark'} match {flag}{_mark_value(match)}"


def _limit_words(match: Limit) -> list[QuotedWord]:
    burst = [] if match.burst == _DEFAULT_BURST else plain("--limit-burst", str(match.burst))
    return [*plain("-m", "limit", "--limit", rate_text(match.interval)), *burst]


def _limit_text(match: Limit, style: Style) -> str:
    return f"limit: avg {rate_text(match.interval)} burst {match.burst}"


def _kind_names(kinds: AddressType) -> str:
    return ",".join(str(kind.name) for kind in AddressType if kind in kinds)


def _address_kind_tests(match: AddressKind) -> list[tuple[str, AddressTypeTest]]:
    return [(name, test) for name, test in (("src-type", match.src), ("dst-type", match.dst)) if test is not None]


def _address_kind_words(match: AddressKind) -> list[QuotedWord]:
    words = plain("-m", "addrtype")
    for option, test in _address_kind_tests(match):
        words += [*negation(test.inverted), *plain(f"--{option}", _kind_names(test.kinds))]
    return words + plain(*["--limit-iface-in"] * match.limit_in, *["--limit-iface-out"] * match.limit_out)


def _address_kind_text(match: AddressKind, style: Style) -> str:
    parts = [f"{option} {'!' if test.inverted else ''}{_kind_names(test.kinds)}"
             for option, test in _address_kind_tests(match)]
    return " ".join(["ADDRTYPE match", *parts, *["limit-in"] * match.limit_in, *["limit-out"] * match.limit_out])


def _range_text(test: AddressRangeTest) -> str:
    return f"{format_ipv4(test.addresses.first)}-{format_ipv4(test.addresses.last)}"


def _ip_range_words(match: IpRange) -> list[QuotedWord]:
    words = plain("-m", "iprange")
    for option, test in (("--src-range", match.src), ("--dst-range", match.dst)):
        if test is not None:
            words += [*negation(test.inverted), *plain(option, _range_text(test))]
    return words


def _ip_range_text(match: IpRange, style: Style) -> str:
    return " ".join(
        f"{side} IP range {'! ' if test.inverted else ''}{_range_text(test)}"
        for side, test in (("source", match.src), ("destination", match.dst)) if test is not None
    )


def _random_words(match: RandomSample) -> list[QuotedWord]:
    return [*plain("-m", "statistic", "--mode", "random"), *negation(match.inverted),
            *plain("--probability", _probability(match))]


def _random_text(match: RandomSample, style: Style) -> str:
    return f"statistic mode random {'! ' if match.inverted else ''}probability {_probability(match)}"


def _probability(match: RandomSample) -> str:
    return f"{match.probability / _PROBABILITY_ONE:.11f}"


def _nth_words(match: EveryNth) -> list[QuotedWord]:
    return [*plain("-m", "statistic", "--mode", "nth"), *negation(match.inverted),
            *plain("--every", str(match.every), "--packet", str(match.packet))]


def _nth_text(match: EveryNth, style: Style) -> str:
    packet = f" packet {match.packet}" if match.packet else ""
    return f"statistic mode nth {'! ' if match.inverted else ''}every {match.every}{packet}"


def _mac_words(match: MacSource) -> list[QuotedWord]:
    return [*plain("-m", "mac"), *negation(match.inverted), *plain("--mac-source", match.address.hex(":"))]


def _mac_text(match: MacSource, style: Style) -> str:
    return f"MAC {'! ' if match.inverted else ''}{match.address.hex(':')}"


def _comment_words(match: Comment) -> list[QuotedWord]:
    return [*plain("-m", "comment", "--comment"), quoted(match.text)]


def _comment_text(match: Comment, style: Style) -> str:
    return f"/* {match.text} */"


MATCH_PRINTERS: Mapping[type[Match], Printer] = MappingProxyType({
    TcpUdpPorts: Printer(_ports_words, _ports_text),
    Multiport: Printer(_multiport_words, _multiport_text),
    IcmpType: Printer(_icmp_words, _icmp_text),
    ConntrackState: Printer(state_words, state_text),
    ConntrackTuple: Printer(tuple_words, tuple_text),
    MarkTest: Printer(_mark_words, _mark_text),
    Limit: Printer(_limit_words, _limit_text),
    AddressKind: Printer(_address_kind_words, _address_kind_text),
    IpRange: Printer(_ip_range_words, _ip_range_text),
    RandomSample: Printer(_random_words, _random_text),
    EveryNth: Printer(_nth_words, _nth_text),
    MacSource: Printer(_mac_words, _mac_text),
    Comment: Printer(_comment_words, _comment_text),
})
