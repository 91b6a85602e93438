"""A second opinion on every translated packet: scapy takes the original, changes the endpoint and
computes all checksums anew.  RFC 1624 must have come to the same bytes.

And what was wrong on its way in is wrong on its way out: only the receiver may judge it.
"""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import pytest
from differential.packets import ACK, icmp_payload, ipv4, packet_of
from differential.strategies import hooks, options, payloads, specs, tcp_options
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.backends import NAMES, load_backend, table_config

from natengine.flow.records import FlowSpec, Path
from natengine.vocab import Hook, Proto
from natengine.wire.ipv4 import TRANSPORT_CHECKSUM, WITH_PORTS

CHECKSUM_AT = {Proto.TCP: 16, Proto.UDP: 6, Proto.ICMP: 2}

backends = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def inet() -> Any:
    """scapy's IPv4 layers; imported late because it is slow and warns about its own imports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("scapy.layers.inet")


def translated(backend: ModuleType, spec: FlowSpec, packet: bytearray, hook: int) -> bytes:
    """Translate a copy of `packet` on a new table that holds the one flow."""
    table = backend.FastPath(table_config(1, transitions=bytes([3] * 120)))     # any segment may pass
    assert table.install(spec._replace(allow=7), 0) == 0
    copy = bytearray(packet)
    path = table.translate(copy, hook, 0)
    assert path == Path.TRANSLATED
    return bytes(copy)


def rebuilt(inet: Any, spec: FlowSpec, packet: bytes, hook: int) -> bytes:
    """Return what scapy makes of the packet."""
    ip = inet.IP(packet)
    inner = ip.payload
    leaving = hook == Hook.POSTROUTING
    if leaving:
        ip.src, port = ip_text(spec.outside_ip), spec.outside_port
    else:
        ip.dst, port = ip_text(spec.inside_ip), spec.inside_port
    setattr(inner, "id" if spec.proto == Proto.ICMP else "sport" if leaving else "dport", port)
    del ip.chksum
    if not (spec.proto == Proto.UDP and inner.chksum == 0):     # 0: the sender computed none, and so do we
        del inner.chksum
    return bytes(ip)


def ip_text(address: int) -> str:
    return ".".join(str(byte) for byte in address.to_bytes(4, "big"))


def word(packet: bytes | bytearray, at: int) -> int:
    return int.from_bytes(packet[at:at + 2], "big")


def moves(spec: FlowSpec) -> bool:
    return (spec.inside_ip, spec.inside_port) != (spec.outside_ip, spec.outside_port)


known_to_scapy = specs(any_port=True, protos=(Proto.TCP, Proto.UDP, Proto.ICMP)).filter(
    lambda spec: moves(spec) and (spec.proto != Proto.ICMP or spec.peer_port in (0, 8))
)


@backends
@given(
    spec=known_to_scapy, hook=hooks, flags=st.integers(0, 255),
    data=payloads | st.binary(max_size=60), options=options, tcp_options=tcp_options,
    no_checksum=st.booleans(), sequence=st.integers(0, 2), padding=st.binary(max_size=6),
)
@settings(max_examples=150, deadline=None)
def test_translated_packet_is_what_scapy_makes_of_it(
    name: str, inet: Any, spec: FlowSpec, hook: int, padding: bytes, **how: Any
) -> None:
    packet = packet_of(spec, hook, **how)
    ours = translated(load_backend(name), spec, packet + padding, hook)
    assert ours == rebuilt(inet, spec, packet, hook) + padding


@backends
@given(
    spec=known_to_scapy, hook=hooks, data=payloads, error=st.integers(1, 0xFFFE),
    sequence=st.integers(0, 1),
)
@settings(max_examples=100, deadline=None)
def test_wrong_transport_checksum_stays_wrong(
    name: str, inet: Any, spec: FlowSpec, hook: int, data: bytes, error: int, sequence: int
) -> None:
    packet = packet_of(spec, hook, flags=ACK, data=data, sequence=sequence)
    at = 20 + CHECKSUM_AT[Proto(spec.proto)]
    wrong = (word(packet, at) + error) % 0xFFFF          # another one in one's complement, too
    assume(wrong or spec.proto != Proto.UDP)
    packet[at:at + 2] = wrong.to_bytes(2, "big")
    ours = translated(load_backend(name), spec, packet, hook)
    right = rebuilt(inet, spec, packet, hook)
    assert ours[:at] + ours[at + 2:] == right[:at] + right[at + 2:]
    assert word(ours, at) % 0xFFFF != word(right, at) % 0xFFFF


@backends
@given(spec=known_to_scapy, hook=hooks, error=st.integers(1, 0xFFFE))
@settings(max_examples=50, deadline=None)
def test_wrong_header_checksum_stays_wrong(
    name: str, inet: Any, spec: FlowSpec, hook: int, error: int
) -> None:
    packet = packet_of(spec, hook)
    packet[10:12] = ((word(packet, 10) + error) % 0xFFFF).to_bytes(2, "big")
    ours = translated(load_backend(name), spec, packet, hook)
    right = rebuilt(inet, spec, packet, hook)
    assert ours[:10] + ours[12:] == right[:10] + right[12:]
    assert word(ours, 10) % 0xFFFF != word(right, 10) % 0xFFFF


OTHER_PROTOCOLS = (Proto.UDPLITE, Proto.DCCP, Proto.SCTP, Proto.GRE, Proto.ESP, 253)


@backends
@given(
    spec=specs(any_port=True, protos=OTHER_PROTOCOLS).filter(moves), hook=hooks, data=payloads | st.binary(max_size=60),
    options=options, no_checksum=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_translated_packet_of_another_protocol_is_what_its_sender_would_have_made(
    name: str, spec: FlowSpec, hook: int, **how: Any
) -> None:
    """scapy knows too little of them.  UDP-Lite with part of the data covered, too; SCTP's CRC-32c stays right.

    A port that cannot be translated stays: SCTP's, for which this flow asks another one.
    """
    if spec.proto not in TRANSPORT_CHECKSUM:
        spec = spec._replace(outside_port=spec.inside_port)
        assume(moves(spec))
    if spec.proto not in WITH_PORTS:
        spec = spec._replace(inside_port=0, outside_port=0, peer_port=0)
    ours = translated(load_backend(name), spec, packet_of(spec, hook, **how), hook)
    there = spec._replace(inside_ip=spec.outside_ip, inside_port=spec.outside_port)
    here = spec._replace(outside_ip=spec.inside_ip, outside_port=spec.inside_port)
    expected = packet_of(there if hook == Hook.POSTROUTING else here, hook, **how)
    assert ours == expected


@backends
@pytest.mark.parametrize(("old_id", "new_id"), [(5, 0), (0, 5), (0, 0), (0xFFFF, 0), (0, 0xFFFF)])
@pytest.mark.parametrize("data", [b"", b"\0" * 7, b"\0\1", b"\xff\xff"])
def test_echo_reply_of_nothing_but_zeros(name: str, inet: Any, old_id: int, new_id: int, data: bytes) -> None:
    """One's complement has two zeros; over nothing but zeros only 0xFFFF is the right checksum."""
    spec = FlowSpec(Proto.ICMP, 0x0A01000B, new_id, 0xCB007101, old_id, 0xCB007102, 8, True, 3, 4, 7)
    packet = ipv4(Proto.ICMP, spec.peer_ip, spec.outside_ip, icmp_payload(0, old_id, 0, data))
    ours = translated(load_backend(name), spec, packet, Hook.PREROUTING)
    assert ours == rebuilt(inet, spec, packet, Hook.PREROUTING)


@backends
def test_checksum_stays_with_an_identifier_that_stays(name: str) -> None:
    """Even the wrong zero: what does not cover the change is not ours to repair."""
    spec = FlowSpec(Proto.ICMP, 0x0A01000B, 0, 0xCB007101, 0, 0xCB007102, 8, True, 3, 4, 7)
    for wrong in (b"\0\0", b"\x12\x34"):
        packet = ipv4(Proto.ICMP, spec.peer_ip, spec.outside_ip, icmp_payload(0, 0, 0))
        packet[22:24] = wrong
        assert translated(load_backend(name), spec, packet, Hook.PREROUTING)[20:] == packet[20:]
