"""Readers of the matches that are about a protocol's own fields: ports, TCP flags, ICMP types."""

from __future__ import annotations

from typing import ClassVar

from natengine.errors import RuleSyntaxError
from natengine.frontend.names import (
    ALL_TCP_FLAGS,
    ICMP_NAMES,
    SYN_MASK,
    TCP_FLAGS,
    Lookups,
    parse_number,
)
from natengine.frontend.readers import ExtensionOption, Reader, service_port
from natengine.rules.matches import (
    IcmpType,
    Match,
    Multiport,
    PortRange,
    PortSide,
    PortTest,
    TcpFlags,
    TcpUdpPorts,
)
from natengine.rules.validate import MAX_PORT
from natengine.vocab import Proto

MAX_PORTS = 15              # XT_MULTI_PORTS; a range counts twice
_ANY_ICMP = 255             # as a number, `--icmp-type any`


class UdpReader(Reader[Match]):
    """`-m udp`."""

    proto: ClassVar = Proto.UDP
    options: ClassVar[tuple[ExtensionOption, ...]] = (
        ExtensionOption(("source-port", "sport"), invertible=True),
        ExtensionOption(("destination-port", "dport"), invertible=True),
    )

    def __init__(self, name: str, lookups: Lookups) -> None:
        super().__init__(name, lookups)
        self.ports: dict[str, PortTest | None] = {}
        self.flags: TcpFlags | None = None

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        ports = _port_range(values[0], self.name, self.lookups)
        everything = ports == (0, MAX_PORT) and not inverted
        self.ports[option] = None if everything else PortTest(ports, inverted)

    def build(self) -> Match:
        return TcpUdpPorts(self.proto, self.ports.get("source-port"), self.ports.get("destination-port"),
                           self.flags)


class TcpReader(UdpReader):
    """`-m tcp`."""

    proto = Proto.TCP
    options = (
        *UdpReader.options,
        ExtensionOption(("tcp-flags",), arguments=2, invertible=True),
        ExtensionOption(("syn",), arguments=0, invertible=True),
    )

    def repeated(self, option: str) -> str:
        if option in ("syn", "tcp-flags"):
            return "Only one of `--syn' or `--tcp-flags'  allowed"
        return f"Only one `--{option}' allowed"

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        if option not in ("syn", "tcp-flags"):
            super().store(option, inverted, values)
            return
        self.seen |= {"syn", "tcp-flags"}       # two spellings of one test
        mask, expected = map(_tcp_flags, values) if values else (SYN_MASK, TCP_FLAGS["SYN"])
        everything = mask == expected == 0 and not inverted
        self.flags = None if everything else TcpFlags(mask, expected, inverted)


def _port_range(text: str, proto: str, lookups: Lookups) -> PortRange:
    first_text, colon, last_text = text.partition(":")
    first = _port(first_text, proto, lookups) if first_text or not colon else 0
    if not colon:
        return PortRange(first, first)
    last = _port(last_text, proto, lookups) if last_text else MAX_PORT
    if first > last:
        raise RuleSyntaxError("invalid portrange (min > max)")
    return PortRange(first, last)


def _port(text: str, proto: str, lookups: Lookups) -> int:
    port = service_port(text, proto, lookups)
    if port is None:
        raise RuleSyntaxError(f"invalid port/service `{text}' specified")
    return port


def _tcp_flags(text: str) -> int:
    bits = 0
    for name in text.upper().split(","):
        if name not in TCP_FLAGS and name not in ("ALL", "NONE"):
            raise RuleSyntaxError(f"Unknown TCP flag `{name}'")
        bits |= ALL_TCP_FLAGS if name == "ALL" else TCP_FLAGS.get(name, 0)
    return bits


class IcmpReader(Reader[Match]):
    """`-m icmp`."""

    options = (ExtensionOption(("icmp-type",), invertible=True, mandatory=True),)
    value: IcmpType

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        icmp_type, first, last = _icmp_type(values[0])
        self.value = IcmpType(icmp_type, first, last, inverted)

    def build(self) -> Match:
        return self.value


def _icmp_type(text: str) -> tuple[int | None, int, int]:
    """Return (type, first code, last code) of a name, an unambiguous beginning of one, or TYPE[/CODE]."""
    found = [each for each in ICMP_NAMES if each.name.lower().startswith(text.lower())]
    if len(found) > 1:
        raise RuleSyntaxError(f"Ambiguous ICMP type `{text}': `{found[0].name}' or `{found[1].name}'?")
    if found:
        return found[0][1:]
    type_text, slash, code_text = text.partition("/")
    icmp_type = parse_number(type_text, 255)
    if icmp_type is None:
        raise RuleSyntaxError(f"Unknown ICMP type `{text}'")
    code = parse_number(code_text, 255)
    if slash and code is None:
        raise RuleSyntaxError(f"Unknown ICMP code `{text}'")
    if icmp_type == _ANY_ICMP:
        return None, 0, 255
    return (icmp_type, 0, 255) if code is None else (icmp_type, code, code)


_SIDES = {"source-ports": PortSide.SOURCE, "destination-ports": PortSide.DESTINATION, "ports": PortSide.EITHER}


class MultiportReader(Reader[Match]):
    """`-m multiport`."""

    options = (
        ExtensionOption(("source-ports", "sports"), invertible=True, excludes=("destination-ports", "ports")),
        ExtensionOption(("destination-ports", "dports"), invertible=True, excludes=("source-ports", "ports")),
        ExtensionOption(("ports",), invertible=True, excludes=("source-ports", "destination-ports")),
    )
    value: Multiport

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        self.value = Multiport(_SIDES[option], _port_list(values[0], self.lookups), inverted)

    def check(self) -> None:
        if not self.seen:
            raise RuleSyntaxError("multiport expection an option")      # iptables' own spelling

    def build(self) -> Match:
        return self.value


def _port_list(text: str, lookups: Lookups) -> tuple[PortRange, ...]:
    found: list[PortRange] = []
    room = MAX_PORTS
    for part in text.split(","):
        first_text, colon, last_text = part.partition(":")
        room -= 2 if colon else 1
        if room < 0:
            raise RuleSyntaxError("too many ports specified")
        first = _listed_port(first_text, lookups)
        last = _listed_port(last_text, lookups) if colon else first
        if colon and first >= last:
            raise RuleSyntaxError("invalid portrange specified")
        found.append(PortRange(first, last))
    return tuple(found)


def _listed_port(text: str, lookups: Lookups) -> int:
    """Return one port; a name is looked for as TCP's, then as UDP's: `-p` may stand behind the list."""
    port = service_port(text, "tcp", lookups)
    return _port(text, "udp", lookups) if port is None else port
