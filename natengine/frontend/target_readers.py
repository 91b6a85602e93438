"""Readers of the targets (`-j`); a new one is a class here and one line in `extensions.TARGETS`."""

from __future__ import annotations

from typing import ClassVar

from natengine.errors import ConfigError, RuleSyntaxError
from natengine.frontend.addresses import network_prefix
from natengine.frontend.names import LOG_LEVELS, Lookups, parse_number
from natengine.frontend.readers import ExtensionOption, NewPorts, Reader, new_ports
from natengine.rules.matches import ALL_BITS, AddressRange, PortRange
from natengine.rules.targets import (
    Connmark,
    ConnmarkMode,
    Dnat,
    Log,
    Mark,
    Masquerade,
    Netmap,
    Redirect,
    Reject,
    RejectWith,
    Snat,
    Target,
)
from natengine.wire.addr import Prefix, parse_ipv4

MAX_LOG_PREFIX = 29
_FLAG = 0                   # arguments of an option that only says yes


class StandardReader(Reader[Target]):
    """A target without options."""

    def __init__(self, name: str, lookups: Lookups, *, target: Target) -> None:
        super().__init__(name, lookups)
        self.target = target

    def build(self) -> Target:
        return self.target


# --- translation ------------------------------------------------------------------------------------


class MasqueradeReader(Reader[Target]):
    """`-j MASQUERADE`."""

    options: ClassVar[tuple[ExtensionOption, ...]] = (
        ExtensionOption(("to-ports",)),
        ExtensionOption(("random",), _FLAG),
        ExtensionOption(("random-fully",), _FLAG),
    )
    ports: PortRange | None = None

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        if option == "to-ports":
            self.ports, base = new_ports(values[0], self.lookups)
            if base is not None:
                raise RuleSyntaxError("Shifted portmap ranges not supported with this kernel")

    def build(self) -> Target:
        return Masquerade(self.ports, "random" in self.seen, "random-fully" in self.seen)


class RedirectReader(MasqueradeReader):
    """`-j REDIRECT`."""

    options = MasqueradeReader.options[:2]

    def build(self) -> Target:
        return Redirect(self.ports, "random" in self.seen)


class SnatReader(Reader[Target]):
    """`-j SNAT`."""

    options: ClassVar[tuple[ExtensionOption, ...]] = (
        ExtensionOption(("to-source",), mandatory=True),
        ExtensionOption(("random",), _FLAG),
        ExtensionOption(("random-fully",), _FLAG),
        ExtensionOption(("persistent",), _FLAG),
    )
    addresses: AddressRange | None = None
    ports: NewPorts | None = None

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        if option == self.options[0].names[0]:
            self.addresses, self.ports = _new_endpoint(values[0], self.lookups)

    def build(self) -> Target:
        if self.ports is not None and self.ports.base is not None:
            raise RuleSyntaxError("Shifted portmap ranges not supported with this kernel")
        return Snat(self.addresses, self.ports and self.ports.ports, "random" in self.seen,
                    "random-fully" in self.seen, "persistent" in self.seen)


class DnatReader(SnatReader):
    """`-j DNAT`."""

    options = (
        ExtensionOption(("to-destination",), mandatory=True),
        ExtensionOption(("random",), _FLAG),
        ExtensionOption(("persistent",), _FLAG),
    )

    def build(self) -> Target:
        return Dnat(self.addresses, self.ports and self.ports.ports, self.ports and self.ports.base,
                    "random" in self.seen, "persistent" in self.seen)


def _new_endpoint(text: str, lookups: Lookups) -> tuple[AddressRange | None, NewPorts | None]:
    """Read `[ADDRESS[-ADDRESS]][:PORTS]`."""
    addresses, colon, ports = text.partition(":")
    if ":" in ports:
        raise RuleSyntaxError(f'Bad IP address "{text}"')       # iptables takes it for an IPv6 address
    found = new_ports(ports, lookups) if colon else None
    if colon and not addresses:
        return None, found
    first, dash, last = addresses.partition("-")
    low = _address(first)
    return AddressRange(low, _address(last) if dash else low), found


def _address(text: str) -> int:
    try:
        return parse_ipv4(text)
    except ConfigError:
        raise RuleSyntaxError(f'Bad IP address "{text}"') from None


class NetmapReader(Reader[Target]):
    """`-j NETMAP`."""

    options = (ExtensionOption(("to",), mandatory=True),)
    prefix: Prefix

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        address, mask = network_prefix(self.name, option, values[0], self.lookups.host)
        self.prefix = Prefix(address, mask)

    def build(self) -> Target:
        return Netmap(self.prefix)


# --- filter -----------------------------------------------------------------------------------------

# in iptables' order: the first name that begins with what was typed is meant
_REJECT_NAMES = (
    (RejectWith.NET_UNREACHABLE, "net-unreach"), (RejectWith.HOST_UNREACHABLE, "host-unreach"),
    (RejectWith.PROTO_UNREACHABLE, "proto-unreach"), (RejectWith.PORT_UNREACHABLE, "port-unreach"),
    (RejectWith.NET_PROHIBITED, "net-prohib"), (RejectWith.HOST_PROHIBITED, "host-prohib"),
    (RejectWith.TCP_RESET, "tcp-rst"), (RejectWith.ADMIN_PROHIBITED, "admin-prohib"),
)


class RejectReader(Reader[Target]):
    """`-j REJECT`."""

    options = (ExtensionOption(("reject-with",)),)
    how = RejectWith.PORT_UNREACHABLE

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        text = values[0].lower()
        if text == "echo-reply":
            raise RuleSyntaxError("--reject-with echo-reply no longer supported")
        found = [how for how, alias in _REJECT_NAMES if how.startswith(text) or alias.startswith(text)]
        if not found:
            raise RuleSyntaxError(f'unknown reject type "{values[0]}"')
        self.how = found[0]

    def build(self) -> Target:
        return Reject(self.how)


class LogReader(Reader[Target]):
    """`-j LOG`."""

    options = (
        ExtensionOption(("log-level",)),
        ExtensionOption(("log-prefix",)),
        ExtensionOption(("log-tcp-sequence",), _FLAG),
        ExtensionOption(("log-tcp-options",), _FLAG),
        ExtensionOption(("log-ip-options",), _FLAG),
        ExtensionOption(("log-uid",), _FLAG),
        ExtensionOption(("log-macdecode",), _FLAG),
    )
    level = 4
    prefix = ""

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        if option == "log-level":
            self.level = _log_level(values[0])
        elif option == "log-prefix":
            if not values[0]:
                raise RuleSyntaxError("Argument must have a minimum length of 1 characters")
            if "\n" in values[0]:
                raise RuleSyntaxError("Newlines not allowed in --log-prefix")
            self.prefix = values[0].encode()[:MAX_LOG_PREFIX].decode(errors="ignore")

    def build(self) -> Target:
        flags = ("log-tcp-sequence", "log-tcp-options", "log-ip-options", "log-uid", "log-macdecode")
        return Log(self.level, self.prefix, *(flag in self.seen for flag in flags))


def _log_level(text: str) -> int:
    level = parse_number(text, 7)
    if level is None:
        level = LOG_LEVELS.get(text)
    if level is None:
        raise RuleSyntaxError(f'log level "{text}" unknown')
    return level


# --- marks ------------------------------------------------------------------------------------------

_SET_MARK = ("set-xmark", "set-mark", "and-mark", "or-mark", "xor-mark")


def _one_of(names: tuple[str, ...], arguments: int = 1, others: tuple[str, ...] = ()) -> tuple[ExtensionOption, ...]:
    """Return options of which only one may be given."""
    return tuple(
        ExtensionOption((name,), arguments, excludes=tuple(other for other in (*names, *others) if other != name))
        for name in names
    )


class MarkReader(Reader[Target]):
    """`-j MARK`; its five options are five ways to write value and mask."""

    options = _one_of(_SET_MARK)
    value = mask = 0

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        text = values[0]
        match option:
            case "set-xmark":
                self.value, self.mask = self.mark(option, text)
            case "set-mark":
                self.value, mask = self.mark(option, text)
                self.mask = self.value | mask
            case "and-mark":
                self.value, self.mask = 0, ~self.number(option, text) & ALL_BITS
            case "or-mark":
                self.value = self.mask = self.number(option, text)
            case "xor-mark":
                self.value, self.mask = self.number(option, text), 0

    def check(self) -> None:
        if not self.seen:
            self.refuse("One of the --set-xmark, --{and,or,xor,set}-mark options is required")

    def build(self) -> Target:
        return Mark(self.value, self.mask)


class ConnmarkReader(MarkReader):
    """`-j CONNMARK`."""

    options = (
        *_one_of(_SET_MARK, others=("save-mark", "restore-mark")),
        *_one_of(("save-mark", "restore-mark"), _FLAG),
        ExtensionOption(("ctmask",), excludes=("mask",)),
        ExtensionOption(("nfmask",), excludes=("mask",)),
        ExtensionOption(("mask",)),
    )

    def __init__(self, name: str, lookups: Lookups) -> None:
        super().__init__(name, lookups)
        self.masks: dict[str, int] = {}

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        if option.endswith("mask"):
            self.masks[option] = self.number(option, values[0])
        elif option in _SET_MARK:
            super().store(option, inverted, values)

    def check(self) -> None:
        if not self.seen & {*_SET_MARK, "save-mark", "restore-mark"}:
            raise RuleSyntaxError("CONNMARK target: No operation specified")

    def build(self) -> Target:
        both = self.masks.get("mask")
        ct_mask, nf_mask = (self.masks.get(name, both) for name in ("ctmask", "nfmask"))
        if self.seen & set(_SET_MARK):
            return Connmark(ConnmarkMode.SET, self.value, self.mask if ct_mask is None else ct_mask)
        mode = ConnmarkMode.SAVE if "save-mark" in self.seen else ConnmarkMode.RESTORE
        return Connmark(mode, 0, ALL_BITS if ct_mask is None else ct_mask, ALL_BITS if nf_mask is None else nf_mask)
