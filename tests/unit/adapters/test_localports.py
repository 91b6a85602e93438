"""The ports of real sockets."""

from __future__ import annotations

import socket

import pytest

from natengine.adapters.localports import read_local_ports

TCP, UDP = 6, 17


@pytest.mark.parametrize(("kind", "proto"), [(socket.SOCK_STREAM, TCP), (socket.SOCK_DGRAM, UDP)])
@pytest.mark.parametrize(("address", "seen"), [("0.0.0.0", True), ("127.0.0.1", False), ("127.9.9.9", False)])
def test_a_bound_port_is_there_as_long_as_its_socket(
    kind: socket.SocketKind, proto: int, address: str, seen: bool
) -> None:
    with socket.socket(socket.AF_INET, kind) as bound:
        bound.bind((address, 0))
        if kind == socket.SOCK_STREAM:
            bound.listen()
        port = bound.getsockname()[1]
        assert (port in read_local_ports()[proto]) is seen
    assert port not in read_local_ports()[proto]
