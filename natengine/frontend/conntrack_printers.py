"""How `-m conntrack` and `-m state` are written; the options of conntrack in iptables' order."""

from __future__ import annotations

from collections.abc import Iterator

from natengine.frontend.names import state_names, status_names
from natengine.frontend.printing import QuotedWord, Style, negation, plain, port_range
from natengine.rules.matches import (
    ALL_BITS,
    ConntrackState,
    ConntrackTuple,
    FlowAddressTest,
    PortRange,
    StateModule,
)
from natengine.wire.addr import Prefix, format_ipv4


def _state_option(match: ConntrackState) -> str:
    return "state" if match.module is StateModule.STATE else "ctstate"


def state_words(match: ConntrackState) -> list[QuotedWord]:
    """Return a test of the state as options."""
    option = plain(f"--{_state_option(match)}", state_names(match.states, match.translated))
    return [*plain("-m", match.module.value), *negation(match.inverted), *option]


def state_text(match: ConntrackState, style: Style) -> str:
    """Return a test of the state as a listing has it."""
    names = state_names(match.states, match.translated)
    return f"{'! ' if match.inverted else ''}{_state_option(match)} {names}"


def tuple_words(match: ConntrackTuple) -> list[QuotedWord]:
    """Return tests of the flow as options."""
    words = plain("-m", "conntrack")
    for inverted, option, value in _tests(match, Style(numeric=True), anywhere="0.0.0.0/0"):
        words += [*negation(inverted), *plain(f"--{option}", value)]
    return words


def tuple_text(match: ConntrackTuple, style: Style) -> str:
    """Return tests of the flow as a listing has them."""
    anywhere = "0.0.0.0/0" if style.numeric else "anywhere"
    return " ".join(
        f"{'! ' if inverted else ''}{option} {value}" for inverted, option, value in _tests(match, style, anywhere)
    )


def _tests(match: ConntrackTuple, style: Style, anywhere: str) -> Iterator[tuple[bool, str, str]]:
    """Yield (inverted, option, value) for each test that is there."""
    if match.state is not None:
        yield match.state.inverted, "ctstate", state_names(match.state.states, match.state.translated)
    if match.proto is not None:
        yield match.proto.inverted, "ctproto", str(match.proto.number)
    for option, address in (("ctorigsrc", match.orig_src), ("ctorigdst", match.orig_dst),
                            ("ctreplsrc", match.repl_src), ("ctrepldst", match.repl_dst)):
        if address is not None:
            yield address.inverted, option, _address(address, style, anywhere)
    for option, port in (("ctorigsrcport", match.orig_sport), ("ctorigdstport", match.orig_dport),
                         ("ctreplsrcport", match.repl_sport), ("ctrepldstport", match.repl_dport)):
        if port is not None:
            yield port.inverted, option, port_range(port.ports, ":")
    if match.status is not None:
        yield match.status.inverted, "ctstatus", status_names(match.status.status)
    if match.expire is not None:
        yield match.expire.inverted, "ctexpire", port_range(PortRange(match.expire.first, match.expire.last), ":")
    if match.direction is not None:
        yield False, "ctdir", match.direction


def _address(test: FlowAddressTest, style: Style, anywhere: str) -> str:
    if test.mask == 0:
        return anywhere
    text = format_ipv4(test.address)
    if test.mask != ALL_BITS:
        return f"{text}/{Prefix(0, test.mask).length}"
    return (None if style.numeric or style.host is None else style.host(text)) or text
