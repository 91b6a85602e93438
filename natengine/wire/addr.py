"""IPv4 addresses as host-order integers, and prefixes of them.

1. Inside the core an address is an `int`, 0..0xFFFFFFFF, host order.  Dotted quads are read and
   written here and nowhere else.
2. A prefix keeps its mask, not its length: iptables takes masks with holes (`255.0.255.0`), which
   no length can express.
3. `Prefix.network` is already masked, so two prefixes that match the same addresses are equal.

Limits: IPv4 only; exactly four decimal parts (`10.1` is not `10.0.0.1` here, though inet_aton
thinks so).
"""

from __future__ import annotations

from dataclasses import dataclass

from natengine.errors import ConfigError

ALL_ONES = 0xFFFF_FFFF


def parse_ipv4(text: str) -> int:
    """Return the host-order integer of a dotted quad.

    Raises:
        ConfigError: Not four decimal numbers 0..255 with dots between them.
    """
    parts = text.split(".")
    if len(parts) != 4 or len(text) > len("255.255.255.255"):
        raise ConfigError(f"{text!r} is not an IPv4 address")
    value = 0
    for part in parts:
        # "010" is refused: inet_aton reads it as 8, people as 10.  isdigit() alone takes any script.
        if not (part.isascii() and part.isdigit()) or part != str(int(part)) or int(part) > 255:
            raise ConfigError(f"{text!r} is not an IPv4 address")
        value = value << 8 | int(part)
    return value


def format_ipv4(address: int) -> str:
    """Return `address` (host order) as a dotted quad."""
    return f"{address >> 24 & 255}.{address >> 16 & 255}.{address >> 8 & 255}.{address & 255}"


def mask_of_length(length: int) -> int:
    """Return the contiguous mask with `length` leading ones, 0..32."""
    if not 0 <= length <= 32:
        raise ConfigError(f"a prefix length is 0..32, not {length}")
    return ALL_ONES << (32 - length) & ALL_ONES


@dataclass(frozen=True, slots=True)
class Prefix:
    """The addresses that agree with `network` wherever `mask` has a one.

    Attributes:
        network: Host order; bits outside the mask are cleared on construction.
        mask: Host order; any bit pattern.
    """

    network: int
    mask: int = ALL_ONES

    def __post_init__(self) -> None:
        object.__setattr__(self, "network", self.network & self.mask)

    @classmethod
    def of_length(cls, network: int, length: int) -> Prefix:
        """Return the prefix NETWORK/LENGTH, `length` 0..32."""
        return cls(network, mask_of_length(length))

    @property
    def length(self) -> int | None:
        """The prefix length, or None for a mask with holes."""
        holes = ~self.mask & ALL_ONES
        return self.mask.bit_count() if holes & (holes + 1) == 0 else None

    def contains(self, address: int) -> bool:
        """Say whether `address` (host order) belongs to this prefix."""
        return address & self.mask == self.network

    def __str__(self) -> str:
        """NETWORK/LENGTH as `iptables -S` prints it, or NETWORK/MASK for a mask with holes."""
        length = self.length
        return f"{format_ipv4(self.network)}/{format_ipv4(self.mask) if length is None else length}"


def parse_prefix(text: str) -> Prefix:
    """Return the prefix of `A.B.C.D`, `A.B.C.D/LENGTH` or `A.B.C.D/MASK`.

    Raises:
        ConfigError: The address or the mask cannot be read.
    """
    address, slash, mask = text.partition("/")
    return Prefix(parse_ipv4(address), parse_mask(mask) if slash else ALL_ONES)


def parse_mask(text: str) -> int:
    """Return the mask of a length `0`..`32` or of a dotted quad (which may have holes)."""
    if text.isascii() and text.isdigit() and len(text) <= 2:
        return mask_of_length(int(text))
    return parse_ipv4(text)
