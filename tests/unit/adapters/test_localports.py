"""The ports of real sockets."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable

import pytest

from natengine.adapters import localports
from natengine.adapters.localports import read_local_ports, read_proc_net

TCP, UDP = 6, 17


@pytest.mark.parametrize("read", [read_local_ports, read_proc_net])
@pytest.mark.parametrize(("kind", "proto"), [(socket.SOCK_STREAM, TCP), (socket.SOCK_DGRAM, UDP)])
@pytest.mark.parametrize(("address", "seen"), [("0.0.0.0", True), ("127.0.0.1", False), ("127.9.9.9", False)])
def test_a_bound_port_is_there_as_long_as_its_socket(
    read: Callable[[], dict[int, frozenset[int]]], kind: socket.SocketKind, proto: int, address: str, seen: bool
) -> None:
    with socket.socket(socket.AF_INET, kind) as bound:
        bound.bind((address, 0))
        if kind == socket.SOCK_STREAM:
            bound.listen()
        port = bound.getsockname()[1]
        assert (port in read()[proto]) is seen
    assert port not in read()[proto]


def test_a_socket_for_both_families() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("needs IPv6")
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as both:
        assert both.getsockname()[1] in read_local_ports()[TCP]


def test_more_sockets_than_one_answer_holds() -> None:
    with contextlib.ExitStack() as stack:
        ports = set()
        for _ in range(800):            # the kernel tells of 300 or so at once
            each = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            each.bind(("0.0.0.0", 0))
            ports.add(each.getsockname()[1])
        assert ports <= read_local_ports()[UDP]


def test_a_kernel_without_sock_diag(monkeypatch: pytest.MonkeyPatch) -> None:
    """There /proc/net is read; but not where a file descriptor is missing, of which it needs one as well."""
    monkeypatch.setattr(localports, "NETLINK_SOCK_DIAG", 31)            # no such family
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert server.getsockname()[1] in read_local_ports()[TCP]

    def without_descriptors(*_: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(localports.socket, "socket", without_descriptors)
    with pytest.raises(OSError, match="too many open files"):
        read_local_ports()
