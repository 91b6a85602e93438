"""What `-s` and `-d` take: a list of addresses, prefixes and host names.

Departures: a number in hexadecimal (`0x0a000001`) and parts in octal are not addresses here.
"""

from __future__ import annotations

from natengine.errors import ConfigError, RuleSyntaxError
from natengine.frontend.names import HostLookup, parse_number
from natengine.rules.model import AddressTest
from natengine.wire.addr import ALL_ONES, Prefix, mask_of_length, parse_ipv4


def parse_addresses(text: str, inverted: bool, host: HostLookup | None) -> tuple[AddressTest | None, ...]:
    """Return one test for each address that `text` lists; None stands for "anywhere".

    Raises:
        RuleSyntaxError: A host is not found, a mask is none, or `!` is put before several addresses.
    """
    tests: list[AddressTest | None] = []
    for part in text.split(","):
        name, slash, last = part.rpartition("/")
        mask = _mask(last) if slash else ALL_ONES
        for address in _addresses(name if slash else last, host):
            everything = mask == 0 and not inverted
            tests.append(None if everything else AddressTest(Prefix(address, mask), inverted))
    if inverted and len(tests) > 1:
        raise RuleSyntaxError("! not allowed with multiple source or destination IP addresses")
    return tuple(tests)


def network_prefix(extension: str, option: str, text: str, host: HostLookup | None) -> tuple[int, int]:
    """Return address and mask of the one `ADDRESS[/MASK]` that an option of a match or target takes.

    Stricter than iptables: of a mask with holes, or a length beyond 32, it makes 32.
    """
    name, slash, last = text.rpartition("/")
    mask = ALL_ONES
    if slash:
        try:
            mask = _mask(last)
        except RuleSyntaxError:
            mask = -1
        if mask < 0 or Prefix(0, mask).length is None:
            raise RuleSyntaxError(
                f'{extension}: bad value for option "--{option}", neither a valid network mask nor valid CIDR (0-32).'
            )
    found = _addresses(_as_inet_aton(name if slash else last), host)
    if len(found) > 1:
        raise RuleSyntaxError(f'{extension}: option "--{option}" takes one address, and "{text}" has several')
    return found[0], mask


def _as_inet_aton(name: str) -> str:
    """Fill a short address up before its last part: here, 10.1 is 10.0.0.1, other than for `-s`."""
    *parts, last = name.split(".")
    if len(parts) < 3 and all(part.isascii() and part.isdigit() for part in (*parts, last)):
        return ".".join([*parts, *["0"] * (3 - len(parts)), last])
    return name


def _mask(text: str) -> int:
    length = parse_number(text, 32)
    if length is not None:
        return mask_of_length(length)
    try:
        return parse_ipv4(text)
    except ConfigError:
        raise RuleSyntaxError(f"invalid mask `{text}' specified") from None


def _addresses(name: str, host: HostLookup | None) -> list[int]:
    """Return the address that `name` is, or those that the resolver knows for it."""
    parts = name.split(".")
    if all(part.isascii() and part.isdigit() for part in parts) and len(parts) <= 4:
        # iptables fills a short network up at the end: 10.1/16 is 10.1.0.0/16 (inet_aton would not)
        name += ".0" * (4 - len(parts))
    try:
        return [parse_ipv4(name)]
    except ConfigError:
        found = host(name) if host is not None and name else ()
        if not found:
            raise RuleSyntaxError(f"host/network `{name}' not found") from None
        return [parse_ipv4(address) for address in found]
