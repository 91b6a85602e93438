"""How each target is written: as options (`-S`, save files) and in a listing (`-L`)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from natengine.frontend.names import LOG_LEVEL_NAMES
from natengine.frontend.printing import Printer, QuotedWord, Style, plain, port_range, quoted
from natengine.rules.matches import ALL_BITS, AddressRange, PortRange
from natengine.rules.targets import (
    Accept,
    Connmark,
    ConnmarkMode,
    Dnat,
    Drop,
    Goto,
    Jump,
    Log,
    Mark,
    Masquerade,
    Netmap,
    Redirect,
    Reject,
    Return,
    Snat,
    Target,
)
from natengine.wire.addr import format_ipv4


class TargetPrinter(NamedTuple):
    """A target's name and its options."""

    name: str
    printer: Printer


def _flags(target: Masquerade | Redirect | Snat | Dnat) -> list[str]:
    """Return the names of the options that say how a port or an address is chosen."""
    return [name for name in ("random", "random-fully", "persistent") if getattr(target, name.replace("-", "_"), False)]


def _options(target: Masquerade | Redirect | Snat | Dnat) -> list[QuotedWord]:
    return plain(*(f"--{name}" for name in _flags(target)))


# --- translation ------------------------------------------------------------------------------------


def _to_ports_words(target: Masquerade | Redirect) -> list[QuotedWord]:
    words = [] if target.to_ports is None else plain("--to-ports", port_range(target.to_ports, "-"))
    return words + _options(target)


def _to_ports_text(target: Masquerade | Redirect, style: Style) -> str:
    label = "masq ports: " if isinstance(target, Masquerade) else "redir ports "
    parts = [] if target.to_ports is None else [label + port_range(target.to_ports, "-")]
    return " ".join([*parts, *_flags(target)])


def _endpoint(addresses: AddressRange | None, ports: PortRange | None, base: int | None = None) -> str:
    text = ""
    if addresses is not None:
        text = "-".join(dict.fromkeys(map(format_ipv4, addresses)))
    if ports is not None:
        text += f":{port_range(ports, '-')}"
    return text if base is None else f"{text}/{base}"


def _snat_words(target: Snat) -> list[QuotedWord]:
    return [*plain("--to-source", _endpoint(target.addresses, target.ports)), *_options(target)]


def _snat_text(target: Snat, style: Style) -> str:
    return " ".join([f"to:{_endpoint(target.addresses, target.ports)}", *_flags(target)])


def _dnat_words(target: Dnat) -> list[QuotedWord]:
    text = _endpoint(target.addresses, target.ports, target.base_port)
    return [*plain("--to-destination", text), *_options(target)]


def _dnat_text(target: Dnat, style: Style) -> str:
    return " ".join([f"to:{_endpoint(target.addresses, target.ports, target.base_port)}", *_flags(target)])


# --- filter -----------------------------------------------------------------------------------------


# field of Log, its option, its name in a listing, its bit
_LOG_FLAGS = (
    ("tcp_sequence", "--log-tcp-sequence", "tcp-sequence", 1), ("tcp_options", "--log-tcp-options", "tcp-options", 2),
    ("ip_options", "--log-ip-options", "ip-options", 4), ("uid", "--log-uid", "uid", 8),
    ("mac_decode", "--log-macdecode", "macdecode", 32),
)


def _log_words(target: Log) -> list[QuotedWord]:
    words = [*plain("--log-prefix"), quoted(target.prefix)] if target.prefix else []
    if target.level != Log().level:
        words += plain("--log-level", str(target.level))
    return words + plain(*(option for field, option, _, _ in _LOG_FLAGS if getattr(target, field)))


def _log_text(target: Log, style: Style) -> str:
    flags = [(name, bit) for field, _, name, bit in _LOG_FLAGS if getattr(target, field)]
    if style.numeric:
        parts = [f"LOG flags {sum(bit for _, bit in flags)} level {target.level}"]
    else:
        parts = [f"LOG level {LOG_LEVEL_NAMES[target.level]}", *(name for name, _ in flags)]
    return " ".join([*parts, *([f'prefix "{target.prefix}"'] if target.prefix else [])])


# --- marks ------------------------------------------------------------------------------------------


def _set_mark_text(name: str, value: int, mask: int) -> str:
    """Return the shortest way to say what becomes of a mark, as iptables looks for it."""
    if value == 0:
        return f"{name} and {~mask & ALL_BITS:#x}"
    if value == mask:
        return f"{name} or {value:#x}"
    if mask == 0:
        return f"{name} xor {value:#x}"
    if mask == ALL_BITS:
        return f"{name} set {value:#x}"
    return f"{name} xset {value:#x}/{mask:#x}"


def _connmark_words(target: Connmark) -> list[QuotedWord]:
    if target.mode is ConnmarkMode.SET:
        return plain("--set-xmark", f"{target.value:#x}/{target.ct_mask:#x}")
    return plain(f"--{target.mode}", "--nfmask", f"{target.nf_mask:#x}", "--ctmask", f"{target.ct_mask:#x}")


def _connmark_text(target: Connmark, style: Style) -> str:
    if target.mode is ConnmarkMode.SET:
        return _set_mark_text("CONNMARK", target.value, target.ct_mask)
    masks = [("nfmask", target.nf_mask), ("ctmask", target.ct_mask)]
    if target.mode is ConnmarkMode.RESTORE:
        masks.reverse()
    (first, left), (second, right) = masks
    text = f"CONNMARK {target.mode.removesuffix('-mark')}"
    if left == right:
        return text if left == ALL_BITS else f"{text} mask {left:#x}"
    return f"{text} {first} {left:#x} {second} ~{right:#x}"


_NO_OPTIONS = Printer(lambda target: [], lambda target, style: "")

TARGET_PRINTERS: Mapping[type[Target], TargetPrinter] = MappingProxyType({
    Accept: TargetPrinter("ACCEPT", _NO_OPTIONS),
    Drop: TargetPrinter("DROP", _NO_OPTIONS),
    Return: TargetPrinter("RETURN", _NO_OPTIONS),
    Jump: TargetPrinter("", _NO_OPTIONS),
    Goto: TargetPrinter("", _NO_OPTIONS),
    Masquerade: TargetPrinter("MASQUERADE", Printer(_to_ports_words, _to_ports_text)),
    Redirect: TargetPrinter("REDIRECT", Printer(_to_ports_words, _to_ports_text)),
    Snat: TargetPrinter("SNAT", Printer(_snat_words, _snat_text)),
    Dnat: TargetPrinter("DNAT", Printer(_dnat_words, _dnat_text)),
    Netmap: TargetPrinter("NETMAP", Printer(
        lambda target: plain("--to", str(target.to)), lambda target, style: f"to:{target.to}")),
    Reject: TargetPrinter("REJECT", Printer(
        lambda target: plain("--reject-with", target.how), lambda target, style: f"reject-with {target.how}")),
    Log: TargetPrinter("LOG", Printer(_log_words, _log_text)),
    Mark: TargetPrinter("MARK", Printer(
        lambda target: plain("--set-xmark", f"{target.value:#x}/{target.mask:#x}"),
        lambda target, style: _set_mark_text("MARK", target.value, target.mask))),
    Connmark: TargetPrinter("CONNMARK", Printer(_connmark_words, _connmark_text)),
})


def target_name(target: Target | None) -> str:
    """Return the name after `-j` or `-g`, "" where there is no target."""
    if isinstance(target, Jump | Goto):
        return target.chain
    return "" if target is None else TARGET_PRINTERS[type(target)].name
