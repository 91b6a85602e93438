"""Readers of `-m conntrack` and `-m state`."""

from __future__ import annotations

from typing import ClassVar

from natengine.errors import RuleSyntaxError
from natengine.frontend.addresses import network_prefix
from natengine.frontend.names import CT_STATUS, STATES, Lookups, parse_number, protocol_number
from natengine.frontend.readers import MAX_U32, ExtensionOption, Reader, service_port
from natengine.rules.matches import (
    NOT_TRANSLATED,
    ConntrackState,
    ConntrackTuple,
    CtDirection,
    CtStatus,
    FlowAddressTest,
    Match,
    PortRange,
    PortTest,
    ProtocolTest,
    SecondsTest,
    StateModule,
    StatusTest,
    Translated,
)
from natengine.rules.validate import MAX_PORT
from natengine.vocab import CtState

# option -> field of ConntrackTuple
_ADDRESSES = {"ctorigsrc": "orig_src", "ctorigdst": "orig_dst", "ctreplsrc": "repl_src", "ctrepldst": "repl_dst"}
_PORTS = {
    "ctorigsrcport": "orig_sport", "ctorigdstport": "orig_dport",
    "ctreplsrcport": "repl_sport", "ctrepldstport": "repl_dport",
}


class StateReader(Reader[Match]):
    """`-m state --state`."""

    module: ClassVar = StateModule.STATE
    options: ClassVar[tuple[ExtensionOption, ...]] = (ExtensionOption(("state",), invertible=True, mandatory=True),)
    states: ConntrackState | None = None

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        states, translated = CtState(0), NOT_TRANSLATED
        for name in values[0].upper().split(","):
            known = [state for state in STATES if state.name == name]
            if known:
                states |= known[0]
            elif self.module is StateModule.CONNTRACK and name in Translated.__members__:
                translated |= Translated[name]
            else:
                raise RuleSyntaxError(self.bad_state(option, name))
        self.states = ConntrackState(states, inverted, self.module, translated)

    def bad_state(self, option: str, name: str) -> str:
        """Return the message for a state that is not one."""
        if not name:
            return f'"--{option}" requires a list of states with no spaces, e.g. ESTABLISHED,RELATED'
        return f'Bad {option} "{name}"'

    def build(self) -> Match:
        assert self.states is not None          # it is mandatory
        return self.states


class ConntrackReader(StateReader):
    """`-m conntrack`."""

    module = StateModule.CONNTRACK
    options = (
        *(ExtensionOption((name,), invertible=True)
          for name in ("ctstate", "ctproto", *_ADDRESSES, "ctstatus", "ctexpire", *_PORTS)),
        ExtensionOption(("ctdir",)),
    )

    def __init__(self, name: str, lookups: Lookups) -> None:
        super().__init__(name, lookups)
        self.fields: dict[str, object] = {}

    def bad_state(self, option: str, name: str) -> str:
        return f'Bad {option} "{name}"'

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        text = values[0]
        match option:
            case "ctstate":
                super().store(option, inverted, values)
            case "ctproto":
                self.fields["proto"] = ProtocolTest(_protocol(text), inverted)
            case "ctstatus":
                self.fields["status"] = StatusTest(_status(text), inverted)
            case "ctexpire":
                self.fields["expire"] = self._seconds(option, text, inverted)
            case "ctdir":
                self.fields["direction"] = self._direction(text)
            case _ if option in _ADDRESSES:
                address, mask = network_prefix(self.name, option, text, self.lookups.host)
                self.fields[_ADDRESSES[option]] = FlowAddressTest(address, mask, inverted)
            case _:
                self.fields[_PORTS[option]] = PortTest(_ports(text, self.lookups), inverted)

    def _seconds(self, option: str, text: str, inverted: bool) -> SecondsTest:
        first_text, colon, last_text = text.partition(":")

        def seconds(part: str) -> int:
            number = parse_number(part, MAX_U32)
            if number is None:
                self.refuse(f'bad value for option "--{option}" near "{part}", or out of range (0-{MAX_U32}).')
            return number

        first = seconds(first_text) if first_text or not colon else 0
        last = (seconds(last_text) if last_text else MAX_U32) if colon else first
        return SecondsTest(first, last, inverted)

    def _direction(self, text: str) -> CtDirection:
        if text.upper() not in CtDirection.__members__:
            self.refuse(f'Bad value for "--ctdir" option: "{text}"')
        return CtDirection[text.upper()]

    def check(self) -> None:
        if not self.seen:
            self.refuse("At least one option is required")

    def build(self) -> Match:
        if self.states is not None and not self.fields:
            return self.states
        return ConntrackTuple(self.states, **self.fields)  # type: ignore[arg-type]     # by the names of its fields


def _protocol(text: str) -> int:
    number = protocol_number(text)
    if number is None:
        raise RuleSyntaxError(f'unknown protocol "{text.lower()}" specified')
    return number


def _status(text: str) -> CtStatus:
    status = CtStatus(0)
    for name in text.upper().split(","):
        if name not in CT_STATUS:
            raise RuleSyntaxError(f'Bad ctstatus "{text}"')
        status |= CT_STATUS[name]
    return status


def _ports(text: str, lookups: Lookups) -> PortRange:
    first_text, colon, last_text = text.partition(":")
    first = _port(first_text, lookups) if first_text or not colon else 0
    last = (_port(last_text, lookups) if last_text else MAX_PORT) if colon else first
    if first > last:
        raise RuleSyntaxError("invalid portrange (min > max)")
    return PortRange(first, last)


def _port(text: str, lookups: Lookups) -> int:
    for proto in ("tcp", "udp"):
        port = service_port(text, proto, lookups)
        if port is not None:
            return port
    raise RuleSyntaxError(f"invalid port/service `{text}' specified")
