"""PPTP between real sockets: a control connection over TCP 1723 and GRE beside it, small programs at both ends."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from gateway_tools import ADDRESS, DEADLINE_S, UPLINK, conntrack_lines, dropped, wait_for
from natlab import Lab, Node
from natlab.engine import Engine
from support.pptp import (
    CALL_DISCONNECT_NOTIFY,
    LENGTHS,
    OUTGOING_CALL_REPLY,
    OUTGOING_CALL_REQUEST,
    call_id,
    control,
)

pytestmark = pytest.mark.lab

PPTP, GRE, PPP = 1723, 47, 0x880B
WORKERS = ("worker1", "worker2")
SAME_ID = 7


def open_socket(node: Node, kind: socket.SocketKind, proto: int = 0) -> socket.socket:
    with node.enter():
        link = socket.socket(socket.AF_INET, kind, proto)
    link.settimeout(DEADLINE_S)
    return link


def read_message(link: socket.socket, kind: int) -> bytes:
    """Read one control message, however TCP has cut it."""
    message = b""
    while len(message) < LENGTHS[kind]:
        part = link.recv(LENGTHS[kind] - len(message))
        assert part, "the other end has closed"
        message += part
    assert int.from_bytes(message[8:10], "big") == kind
    return message


def send_gre(link: socket.socket, to: str, call: int, data: bytes) -> None:
    """Send a packet of a call, as RFC 2637 4.1 has it."""
    link.sendto(struct.pack("!HHHHI", 0x3001, PPP, len(data), call, 1) + data, (to, 0))


def read_gre(link: socket.socket, data: bytes) -> tuple[str, int]:
    """Wait for the packet with this data; return its source and its call id."""
    while True:
        packet, (source, _) = link.recvfrom(2048)
        header = packet[(packet[0] & 15) * 4:]
        if header[12:] == data:
            return source, int.from_bytes(header[6:8], "big")


class Call(NamedTuple):
    """Both ends of a call that is up."""

    worker: str
    near: socket.socket                         # the worker's end of the control connection, and the server's
    far: socket.socket
    gre: socket.socket                          # the worker's
    outside_id: int                             # the worker's call id, as the server knows it
    server_id: int


@contextlib.contextmanager
def placed(lab: Lab, listener: socket.socket, worker: str, server_id: int) -> Iterator[Call]:
    """A call from a worker to the server on inet2."""
    with (
        open_socket(lab.node(worker), socket.SOCK_RAW, GRE) as gre,
        open_socket(lab.node(worker), socket.SOCK_STREAM) as near,
    ):
        near.connect((ADDRESS["inet2"], PPTP))
        far, (source, _) = listener.accept()
        assert source == UPLINK["inet2"]
        with far:
            far.settimeout(DEADLINE_S)
            near.sendall(control(OUTGOING_CALL_REQUEST, SAME_ID))
            outside_id = call_id(read_message(far, OUTGOING_CALL_REQUEST))
            far.sendall(control(OUTGOING_CALL_REPLY, server_id, outside_id))
            assert read_message(near, OUTGOING_CALL_REPLY) == control(OUTGOING_CALL_REPLY, server_id, SAME_ID)
            yield Call(worker, near, far, gre, outside_id, server_id)


def assert_talks(call: Call, server: socket.socket, round_trip: int) -> None:
    """A packet each way: each end sees its own call id, and nobody an address that is not for it."""
    question, answer = (f"{call.worker} {way} {round_trip}".encode() for way in ("asks", "is told"))
    send_gre(call.gre, ADDRESS["inet2"], call.server_id, question)
    assert read_gre(server, question) == (UPLINK["inet2"], call.server_id)
    send_gre(server, UPLINK["inet2"], call.outside_id, answer)
    assert read_gre(call.gre, answer) == (ADDRESS["inet2"], SAME_ID)


def call_lines(gateway: Engine) -> list[str]:
    return [line for line in conntrack_lines(gateway, "-p", "gre") if "srckey=0x0" not in line]


def test_two_workers_call_one_server_with_the_same_id(lab: Lab, gateway: Engine) -> None:
    """Both tunnels carry packets at once; one ends, the other goes on."""
    before = dropped(gateway, "peer taken")
    with (
        open_socket(lab.node("inet2"), socket.SOCK_RAW, GRE) as server,
        open_socket(lab.node("inet2"), socket.SOCK_STREAM) as listener,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ADDRESS["inet2"], PPTP))
        listener.listen()
        with placed(lab, listener, "worker1", 900) as one, placed(lab, listener, "worker2", 901) as two:
            assert one.outside_id != two.outside_id
            for round_trip in range(3):
                for call in (one, two):
                    assert_talks(call, server, round_trip)
            keys = [f"src={ADDRESS[call.worker]} dst={ADDRESS['inet2']} srckey=0x7 dstkey={call.server_id:#x}"
                    for call in (one, two)]
            lines = call_lines(gateway)
            assert all(any(key in line and "[ASSURED]" in line for line in lines) for key in keys), lines
            one.far.sendall(control(CALL_DISCONNECT_NOTIFY, one.server_id))
            read_message(one.near, CALL_DISCONNECT_NOTIFY)
            wait_for("the end of the call", lambda: not any(keys[0] in line for line in call_lines(gateway)))
            assert_talks(two, server, 9)
    assert dropped(gateway, "peer taken") == before
