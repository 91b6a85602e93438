"""The checksum that an offloading sender left out: both twins, and scapy, come to the same bytes."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
from differential.strategies import payloads
from hypothesis import given, settings
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
@settings(deadline=None)
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


@pytest.mark.parametrize("name", NAMES)
@given(payload=payloads, left=st.binary(min_size=4, max_size=4), padding=st.binary(max_size=9))
@settings(deadline=None)
def test_scapy_comes_to_the_same_crc_of_sctp(inet: Any, name: str, payload: bytes, left: bytes, padding: bytes) -> None:
    """A veth leaves SCTP's out, too."""
    from scapy.layers.sctp import SCTP

    right = bytes(inet.IP(src="10.1.0.11", dst="203.0.113.2") / SCTP(sport=5000, dport=2905, tag=7) / payload)
    copy = bytearray(right + padding)
    copy[28:32] = left
    load_backend(name).complete_checksum(copy)
    assert copy == right + padding


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("around", [
    (4, b""), (47, b"\0\0\x08\0"), (47, b"\x20\0\x08\0key!"), (47, b"\xb0\0\x08\0sum0key!seq!"),
])
@given(payload=payloads, left=ports)
@settings(deadline=None)
def test_of_a_tunnels_packet_it_is_the_inner_one(
    inet: Any, name: str, around: tuple[int, bytes], payload: bytes, left: int
) -> None:
    """IPIP and GRE, with and without options; the tunnel's own headers stay."""
    proto, header = around
    inside = inet.IP(src="10.9.0.1", dst="10.9.0.2") / inet.TCP(sport=5000, dport=80) / payload
    right = bytes(inet.IP(src="10.1.0.11", dst="203.0.113.2", proto=proto) / (header + bytes(inside)))
    inside[inet.TCP].chksum = left
    copy = bytearray(bytes(inet.IP(src="10.1.0.11", dst="203.0.113.2", proto=proto) / (header + bytes(inside))))
    load_backend(name).complete_checksum(copy)
    assert copy == right


@st.composite
def something(draw: st.DrawFn) -> bytearray:
    """Bytes at random behind an IP header, or behind two of them, one in the other, that may lie."""
    rest = draw(st.binary(max_size=60))
    for _ in range(draw(st.integers(0, 2))):
        gre = draw(st.sampled_from((b"", b"", b"\0\0\x08\0", b"\xa0\0\x08\0", b"\x10\1\x08\0")))
        proto = 47 if gre else draw(st.sampled_from((4, 6, 17, 47, 132)))
        ihl, lie = draw(st.sampled_from((5, 5, 5, 6, 15))), draw(st.sampled_from((0, 0, 0, 1, -1, 30)))
        total = max(0, 20 + len(gre) + len(rest) + lie)
        rest = bytes([0x40 | ihl, 0, *total.to_bytes(2, "big"), 0, 0, 0, 0, 64, proto]) + bytes(10) + gre + rest
    return bytearray(rest)


@given(something())
@settings(deadline=None)
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
