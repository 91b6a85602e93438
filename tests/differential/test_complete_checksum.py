"""The checksum that an offloading sender left out: both twins, and scapy, come to the same bytes."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
from differential.strategies import payloads
from hypothesis import given
from hypothesis import strategies as st
from support.backends import NAMES, load_backend, load_both

from natengine.vocab import Proto

addresses = st.integers(0, 2**32 - 1)
ports = st.integers(0, 65535)


@pytest.fixture(scope="module")
def inet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("scapy.layers.inet")


@pytest.mark.parametrize("name", NAMES)
@given(src=addresses, dst=addresses, sport=ports, dport=ports, payload=payloads, left=ports,
       proto=st.sampled_from([Proto.TCP, Proto.UDP]), padding=st.binary(max_size=9))
def test_scapy_comes_to_the_same(
    inet: Any, name: str, src: int, dst: int, sport: int, dport: int, payload: bytes, left: int,
    proto: Proto, padding: bytes,
) -> None:
    """Whatever stands in the field (a driver leaves the pseudo-header's sum), and whatever follows the packet."""
    layer = inet.TCP if proto == Proto.TCP else inet.UDP
    quad = [".".join(str(each) for each in address.to_bytes(4, "big")) for address in (src, dst)]
    packet = inet.IP(src=quad[0], dst=quad[1]) / layer(sport=sport, dport=dport) / payload
    right = bytes(packet)
    packet[layer].chksum = left
    copy = bytearray(bytes(packet) + padding)
    load_backend(name).complete_checksum(copy)
    assert copy == right + padding


@given(st.binary(max_size=80).map(bytearray) | st.binary(min_size=20, max_size=80).map(
    lambda raw: bytearray(b"\x45\0\0" + bytes([len(raw)]) + b"\0\0\0\0\x40\x06" + raw[10:])))
def test_twins_agree_on_anything(packet: bytearray) -> None:
    """Bytes that are no packet included."""
    results = []
    for backend in load_both():
        copy = bytearray(packet)
        backend.complete_checksum(copy)
        results.append(copy)
    assert results[0] == results[1]


def test_same_signature() -> None:
    python, cython = load_both()
    assert inspect.signature(python.complete_checksum) == inspect.signature(cython.complete_checksum)
    assert inspect.getdoc(python.complete_checksum) == inspect.getdoc(cython.complete_checksum)
