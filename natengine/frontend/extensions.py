"""Readers of the options that a match (`-m`) or a target (`-j`) brings along.

One class per kind.  A reader gets its options one at a time, while the command line is read, and
builds the frozen value of `rules/model.py` at the end.  A new match or target is a class here and one
line in MATCHES or TARGETS (and one each in `printers.py`, `rules/predicates.py`).
Messages are iptables' own, its double blanks included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import ClassVar, Generic, NamedTuple, TypeVar

from natengine.errors import RuleSyntaxError
from natengine.frontend.names import (
    ALL_TCP_FLAGS,
    ICMP_NAMES,
    STATES,
    SYN_MASK,
    TCP_FLAGS,
    Lookups,
    parse_number,
)
from natengine.rules.model import (
    Accept,
    Comment,
    ConntrackState,
    Drop,
    IcmpType,
    Masquerade,
    Match,
    PortRange,
    PortTest,
    Return,
    StateModule,
    Target,
    TcpFlags,
    TcpUdpPorts,
)
from natengine.rules.validate import MAX_PORT
from natengine.vocab import CtState, Proto

Value = TypeVar("Value")

_ANY_ICMP = 255             # as a number, `--icmp-type any`


class ExtensionOption(NamedTuple):
    """One option of a match or a target; `names[0]` is the one in messages."""

    names: tuple[str, ...]
    arguments: int = 1
    invertible: bool = False


class Reader(Generic[Value]):
    """Base of all readers: says which options there are, and refuses a second time or a `!`."""

    options: ClassVar[tuple[ExtensionOption, ...]] = ()

    def __init__(self, name: str, lookups: Lookups) -> None:
        self.name = name
        self.lookups = lookups
        self.seen: set[str] = set()

    def read(self, option: ExtensionOption, inverted: bool, values: list[str]) -> None:
        """Take one option with its arguments."""
        if inverted and not option.invertible:
            raise RuleSyntaxError(f'{self.name}: option "--{option.names[0]}" cannot be inverted.')
        if option.names[0] in self.seen:
            raise RuleSyntaxError(self.repeated(option.names[0]))
        self.seen.add(option.names[0])
        self.store(option.names[0], inverted, values)

    def repeated(self, option: str) -> str:
        """Return the message for an option that was given before."""
        return f'{self.name}: option "--{option}" can only be used once.'

    def missing(self, option: str) -> RuleSyntaxError:
        """Return the error for an option that had to be given."""
        return RuleSyntaxError(f'{self.name}: option "--{option}" must be specified')

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        """Keep what one option says."""
        raise NotImplementedError

    def finish(self) -> Value:
        """Return the value that the options describe."""
        raise NotImplementedError


# --- matches ----------------------------------------------------------------------------------------


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

    def finish(self) -> Match:
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
    port = parse_number(text, MAX_PORT)
    if port is None and text and lookups.service is not None:
        port = lookups.service(text, proto)
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

    options = (ExtensionOption(("icmp-type",), invertible=True),)
    value: IcmpType | None = None

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        icmp_type, first, last = _icmp_type(values[0])
        self.value = IcmpType(icmp_type, first, last, inverted)

    def finish(self) -> Match:
        if self.value is None:
            raise self.missing("icmp-type")
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


class StateReader(Reader[Match]):
    """`-m conntrack --ctstate` and `-m state --state`."""

    module: ClassVar = StateModule.STATE
    options = (ExtensionOption(("state",), invertible=True),)
    value: ConntrackState | None = None

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        states = CtState(0)
        for name in values[0].upper().split(","):
            known = [state for state in STATES if state.name == name]
            if not known:
                raise RuleSyntaxError(self.bad_state(option, name))
            states |= known[0]
        self.value = ConntrackState(states, inverted, self.module)

    def bad_state(self, option: str, name: str) -> str:
        """Return the message for a state that is not one."""
        if not name:
            return f'"--{option}" requires a list of states with no spaces, e.g. ESTABLISHED,RELATED'
        return f'Bad {option} "{name}"'

    def finish(self) -> Match:
        if self.value is None:
            raise self.missing("state")
        return self.value


class ConntrackReader(StateReader):
    """`-m conntrack`; of its many options only `--ctstate`."""

    module = StateModule.CONNTRACK
    options = (ExtensionOption(("ctstate",), invertible=True),)

    def bad_state(self, option: str, name: str) -> str:
        return f'Bad {option} "{name}"'

    def missing(self, option: str) -> RuleSyntaxError:
        return RuleSyntaxError("conntrack: At least one option is required")


class CommentReader(Reader[Match]):
    """`-m comment`."""

    options = (ExtensionOption(("comment",)),)
    value: Comment | None = None

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        self.value = Comment(values[0])

    def finish(self) -> Match:
        if self.value is None:
            raise self.missing("comment")
        return self.value


# --- targets ----------------------------------------------------------------------------------------


class StandardReader(Reader[Target]):
    """A target without options."""

    def __init__(self, name: str, lookups: Lookups, *, target: Target) -> None:
        super().__init__(name, lookups)
        self.target = target

    def finish(self) -> Target:
        return self.target


class MasqueradeReader(Reader[Target]):
    """`-j MASQUERADE`."""

    options = (
        ExtensionOption(("to-ports",)),
        ExtensionOption(("random",), arguments=0),
        ExtensionOption(("random-fully",), arguments=0),
    )
    ports: PortRange | None = None

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        if option == "to-ports":
            self.ports = _to_ports(values[0], self.lookups)

    def finish(self) -> Target:
        return Masquerade(self.ports, "random" in self.seen, "random-fully" in self.seen)


def _to_ports(text: str, lookups: Lookups) -> PortRange:
    if ":" in text:
        raise RuleSyntaxError("Invalid port:port syntax - use dash")
    first_text, dash, rest = text.partition("-")
    last_text, more, garbage = rest.partition("-")
    first = _to_port(first_text, lookups)
    last = _to_port(last_text, lookups) if dash else first
    if first > last:
        raise RuleSyntaxError(f"Port range `{last_text}' funky")
    if more:
        raise RuleSyntaxError(f"Garbage after port range: `-{garbage}'")
    return PortRange(first, last)


def _to_port(text: str, lookups: Lookups) -> int:
    port = parse_number(text, MAX_PORT)
    if port is None and text and lookups.service is not None:
        port = lookups.service(text, "tcp")
        if port is None:
            port = lookups.service(text, "udp")
    if port is None:
        raise RuleSyntaxError(f"Port `{text}' not valid")
    return port


# --- the tables -------------------------------------------------------------------------------------

MATCHES: Mapping[str, Callable[[str, Lookups], Reader[Match]]] = MappingProxyType({
    "tcp": TcpReader,
    "udp": UdpReader,
    "icmp": IcmpReader,
    "conntrack": ConntrackReader,
    "state": StateReader,
    "comment": CommentReader,
})

TARGETS: Mapping[str, Callable[[str, Lookups], Reader[Target]]] = MappingProxyType({
    "ACCEPT": partial(StandardReader, target=Accept()),
    "DROP": partial(StandardReader, target=Drop()),
    "RETURN": partial(StandardReader, target=Return()),
    "MASQUERADE": MasqueradeReader,
})

# Targets that iptables has and natengine does not, so that the message can say so.
MISSING_TARGETS = frozenset({
    "SNAT", "DNAT", "REDIRECT", "NETMAP", "REJECT", "LOG", "MARK", "CONNMARK", "TCPMSS", "NFQUEUE", "NOTRACK",
    "CT", "TPROXY", "NFLOG", "QUEUE",
})
