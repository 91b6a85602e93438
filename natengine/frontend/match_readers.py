"""Readers of the matches that are about no protocol: marks, limits, kinds and ranges of addresses, and so on."""

from __future__ import annotations

import re

from natengine.errors import ConfigError, RuleSyntaxError
from natengine.frontend.names import LIMIT_UNITS, Lookups
from natengine.frontend.readers import ExtensionOption, Reader
from natengine.rules.matches import (
    AddressKind,
    AddressRange,
    AddressRangeTest,
    AddressType,
    AddressTypeTest,
    Comment,
    EveryNth,
    IpRange,
    Limit,
    MacSource,
    MarkTest,
    Match,
    RandomSample,
)
from natengine.wire.addr import parse_ipv4

MAX_BURST = 10_000
PROBABILITY_ONE = 1 << 31


class MarkMatchReader(Reader[Match]):
    """`-m mark` and `-m connmark`."""

    options = (ExtensionOption(("mark",), invertible=True, mandatory=True),)
    value: MarkTest

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        value, mask = self.mark(option, values[0])
        self.value = MarkTest(value, mask, inverted, connection=self.name == "connmark")

    def build(self) -> Match:
        return self.value


class LimitReader(Reader[Match]):
    """`-m limit`."""

    options = (ExtensionOption(("limit",)), ExtensionOption(("limit-burst",)))
    interval = Limit().interval
    burst = Limit().burst

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        if option == "limit":
            self.interval = _interval(values[0])
        else:
            self.burst = self.number(option, values[0], last=MAX_BURST)

    def build(self) -> Match:
        return Limit(self.interval, self.burst)


def _interval(text: str) -> int:
    """Return what lies between two packets at a rate `NUMBER[/UNIT]`, in 1/10000 s."""
    number, slash, unit = text.partition("/")
    units = [length for name, length in LIMIT_UNITS if name.startswith(unit.lower())]
    digits = re.match("-?[0-9]+", number)
    rate = int(digits[0]) if digits else 0
    if rate == 0 or (slash and not (unit and units)):
        raise RuleSyntaxError(f'bad rate "{text}"\'')
    interval = (units[0] if slash else LIMIT_UNITS[0][1]) // rate
    if interval <= 0:
        raise RuleSyntaxError(f'Rate too fast "{text}"')
    return interval


class AddrtypeReader(Reader[Match]):
    """`-m addrtype`."""

    options = (
        ExtensionOption(("src-type",), invertible=True),
        ExtensionOption(("dst-type",), invertible=True),
        ExtensionOption(("limit-iface-in",), arguments=0, excludes=("limit-iface-out",)),
        ExtensionOption(("limit-iface-out",), arguments=0, excludes=("limit-iface-in",)),
    )

    def __init__(self, name: str, lookups: Lookups) -> None:
        super().__init__(name, lookups)
        self.tests: dict[str, AddressTypeTest] = {}

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        if not values:
            return
        kinds = AddressType(0)
        for part in values[0].split(","):
            found = [kind for kind in AddressType if part and str(kind.name).startswith(part.upper())]
            if not found:
                self.refuse(f'bad type "{part}"')
            kinds |= found[0]
        self.tests[option] = AddressTypeTest(kinds, inverted)

    def check(self) -> None:
        if not self.tests:
            self.refuse("you must specify --src-type or --dst-type")

    def build(self) -> Match:
        return AddressKind(self.tests.get("src-type"), self.tests.get("dst-type"),
                           "limit-iface-in" in self.seen, "limit-iface-out" in self.seen)


class IpRangeReader(Reader[Match]):
    """`-m iprange`."""

    options = (ExtensionOption(("src-range",), invertible=True), ExtensionOption(("dst-range",), invertible=True))

    def __init__(self, name: str, lookups: Lookups) -> None:
        super().__init__(name, lookups)
        self.tests: dict[str, AddressRangeTest] = {}

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        first, dash, last = values[0].partition("-")
        low = self._address(option, first)
        self.tests[option] = AddressRangeTest(
            AddressRange(low, self._address(option, last) if dash else low), inverted
        )

    def _address(self, option: str, text: str) -> int:
        try:
            return parse_ipv4(text)
        except ConfigError:
            self.refuse(f'Bad value for "--{option}" option: "{text}"')

    def check(self) -> None:
        if not self.tests:
            raise RuleSyntaxError("iprange match: You must specify `--src-range' or `--dst-range'")

    def build(self) -> Match:
        return IpRange(self.tests.get("src-range"), self.tests.get("dst-range"))


class StatisticReader(Reader[Match]):
    """`-m statistic`."""

    options = (
        ExtensionOption(("mode",), mandatory=True),
        ExtensionOption(("probability",), invertible=True, excludes=("every", "packet")),
        ExtensionOption(("every",), invertible=True, also=("packet",), excludes=("probability",)),
        ExtensionOption(("packet",), excludes=("probability",)),
    )
    mode = "random"             # to iptables, too, as long as it has not been told
    probability = every = packet = 0
    inverted = False

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        text = values[0]
        self.inverted |= inverted
        match option:
            case "mode":
                if text not in ("random", "nth"):
                    raise RuleSyntaxError(f'Bad mode "{text}"')
                self.mode = text
            case "probability":
                self.probability = self._probability(text)
            case "every":
                self.every = self.number(option, text, first=1)
            case "packet":
                self.packet = self.number(option, text)

    def _probability(self, text: str) -> int:
        """Return a probability 0..1 in 2**31sts, rounded as iptables rounds it."""
        if not re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text) or float(text) > 1:
            self.refuse('bad value for option "--probability", or out of range (0-1).')
        return int(float(text) * PROBABILITY_ONE + 0.5)

    def check(self) -> None:
        if self.mode == "random" and "probability" not in self.seen:
            raise RuleSyntaxError("--probability must be specified when using random mode")
        if self.mode == "nth" and not self.seen & {"every", "packet"}:
            raise RuleSyntaxError("--every and --packet must be specified when using nth mode")
        if self.mode == "nth" and self.packet >= max(self.every, 1):
            raise RuleSyntaxError("the --packet p must be 0 <= p <= n-1")

    def build(self) -> Match:
        if self.mode == "random":
            return RandomSample(self.probability, self.inverted)
        return EveryNth(self.every, self.packet, self.inverted)


class MacReader(Reader[Match]):
    """`-m mac`."""

    options = (ExtensionOption(("mac-source",), invertible=True, mandatory=True),)
    value: MacSource

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        if not re.fullmatch("[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2}){5}", values[0]):
            raise RuleSyntaxError("Invalid MAC address specified.")
        self.value = MacSource(bytes(int(part, 16) for part in values[0].split(":")), inverted)

    def build(self) -> Match:
        return self.value


class CommentReader(Reader[Match]):
    """`-m comment`."""

    options = (ExtensionOption(("comment",), mandatory=True),)
    value: Comment

    def store(self, option: str, inverted: bool, values: list[str]) -> None:
        self.value = Comment(values[0])

    def build(self) -> Match:
        return self.value
