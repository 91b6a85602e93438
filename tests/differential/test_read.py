"""What the two twins read of a packet: the same fields, of the same types, or the same refusal."""

from __future__ import annotations

from typing import Any

from differential.strategies import damage, random_bytes
from hypothesis import given
from hypothesis import strategies as st
from support.backends import load_both, table_config
from support.packets import ping, tcp, udp

from natengine.errors import BadPacket

WAY = "10.1.0.11:4000 > 203.0.113.2:53"
whole_packets = (
    st.builds(udp, st.just(WAY), st.binary(max_size=9))
    | st.builds(tcp, st.just(WAY), st.sampled_from(["S", "SA", "A", "R"]), options=st.sampled_from([b"", b"\1" * 4]))
    | st.builds(ping, st.just("10.1.0.11 > 203.0.113.2"), st.integers(0, 65535))
)
TABLES = [backend.FastPath(table_config()) for backend in load_both()]


def outcome(table: Any, packet: bytearray) -> object:
    """The fields, or the exception with its words."""
    try:
        ip, transport = table.read(packet)
    except BadPacket as error:
        return type(error), str(error)
    return ip, transport, [type(each) for each in (ip, transport, *ip, *transport)]


@given(whole_packets.flatmap(damage) | random_bytes)
def test_same_fields(packet: bytearray) -> None:
    """Whole packets, broken ones, and bytes that never were one."""
    before = bytes(packet)
    python, cython = (outcome(table, packet) for table in TABLES)
    assert python == cython
    assert bytes(packet) == before
