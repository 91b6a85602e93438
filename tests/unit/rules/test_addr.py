"""Addresses and prefixes."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natengine.errors import ConfigError
from natengine.wire.addr import Prefix, format_ipv4, parse_ipv4, parse_prefix


@given(st.integers(0, 2**32 - 1))
def test_addresses_are_read_and_written_as_the_standard_library_does(address: int) -> None:
    text = str(ipaddress.IPv4Address(address))
    assert (parse_ipv4(text), format_ipv4(address)) == (address, text)


@pytest.mark.parametrize("text", [
    "", ".", "1.2.3", "1.2.3.4.5", "256.0.0.1", "1.2.3.-4", "1.2.3.04", "010.0.0.1", "1.2.3.4 ", "0x1.2.3.4",
    "1.2.3.\u0664", "1" * 5000, "a.b.c.d",
])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_ipv4(text)


@pytest.mark.parametrize("text,printed,length", [
    ("10.1.2.3", "10.1.2.3/32", 32),
    ("10.1.2.3/8", "10.0.0.0/8", 8),
    ("10.1.2.3/255.255.0.0", "10.1.0.0/16", 16),
    ("10.1.2.3/0", "0.0.0.0/0", 0),
    ("10.1.2.3/255.0.255.0", "10.0.2.0/255.0.255.0", None),
    ("10.1.2.3/0.0.0.1", "0.0.0.1/0.0.0.1", None),
])
def test_prefixes(text: str, printed: str, length: int | None) -> None:
    """Bits outside the mask go; a mask with holes is printed as a mask."""
    prefix = parse_prefix(text)
    assert (str(prefix), prefix.length) == (printed, length)
    assert parse_prefix(printed) == prefix


@pytest.mark.parametrize("text", ["1.2.3.4/33", "1.2.3.4/", "1.2.3.4/-1", "1.2.3.4/255.255.255", "/8", ""])
def test_what_is_no_prefix_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_prefix(text)


def test_a_mask_with_holes_looks_at_its_ones_only() -> None:
    prefix = parse_prefix("10.0.5.0/255.0.255.0")
    assert prefix.contains(parse_ipv4("10.77.5.99"))
    assert not prefix.contains(parse_ipv4("10.77.6.99"))


@given(st.integers(0, 2**32 - 1), st.integers(0, 32), st.integers(0, 2**32 - 1))
def test_containment_agrees_with_the_standard_library(network: int, length: int, address: int) -> None:
    reference = ipaddress.IPv4Address(address) in ipaddress.IPv4Network((network, length), strict=False)
    assert Prefix.of_length(network, length).contains(address) == reference
