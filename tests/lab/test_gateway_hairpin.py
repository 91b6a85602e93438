"""Hairpinning with real sockets: two workers that know each other by the head's outside address only."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest
from gateway_tools import (
    ADDRESS,
    DEADLINE_S,
    ECHO,
    UPLINK,
    connect,
    conntrack_lines,
    udp_socket,
    udp_whoami,
    wait_for,
)
from natlab import Lab, Node
from natlab.engine import Engine

pytestmark = pytest.mark.lab

OUTSIDE = UPLINK["inet2"]
PORT = 31_900                       # below the ephemeral ones
UDP_SEGMENT = 103                   # linux/udp.h; not in the socket module
MEGABYTE = bytes(range(256)) * 4096


def reusable(node: Node, port: int) -> socket.socket:
    """A TCP socket with a port that others of its kind may have too."""
    with node.enter():
        link = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    link.settimeout(DEADLINE_S)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    link.bind(("", port))
    return link


def receive(link: socket.socket, size: int) -> bytes:
    """Read so many bytes."""
    data = bytearray()
    while len(data) < size:
        piece = link.recv(1 << 16)
        assert piece, f"closed after {len(data)} bytes"
        data += piece
    return bytes(data)


def exchange(one: socket.socket, other: socket.socket) -> None:
    """A megabyte each way, at the same time."""
    senders = [threading.Thread(target=link.sendall, args=(MEGABYTE,)) for link in (one, other)]
    for sender in senders:
        sender.start()
    for link in (one, other):
        assert receive(link, len(MEGABYTE)) == MEGABYTE
    for sender in senders:
        sender.join()


def wait_until_refused(link: socket.socket) -> None:
    """Send until an ICMP error comes back: a kernel says only so much a second."""
    link.settimeout(0.5)

    def is_refused() -> bool:
        link.send(b"anybody there")
        try:
            link.recv(100)
        except TimeoutError:
            return False
        except ConnectionRefusedError:
            return True
        raise AssertionError("somebody is there")

    wait_for("the refusal", is_refused)


@pytest.mark.usefixtures("gateway")
def test_rfc4787_req9_hairpinning(lab: Lab) -> None:
    """UDP, there and back; each sees what a host outside sees of the other."""
    with udp_socket(lab.node("worker1")) as one, udp_socket(lab.node("worker2")) as two:
        first, second = udp_whoami(one, "inet2"), udp_whoami(two, "inet2")
        one.settimeout(DEADLINE_S)
        two.settimeout(DEADLINE_S)
        one.sendto(b"question", second)
        assert two.recvfrom(100) == (b"question", first)
        two.sendto(b"answer", first)
        assert one.recvfrom(100) == (b"answer", second)


@pytest.mark.usefixtures("gateway")
def test_rfc4787_req9_one_host_with_itself(lab: Lab) -> None:
    """The way an application finds out whether there is hairpinning (RFC 5780 4.5)."""
    with udp_socket(lab.node("worker1")) as one, udp_socket(lab.node("worker1")) as two:
        first, second = udp_whoami(one, "inet2"), udp_whoami(two, "inet2")
        two.settimeout(DEADLINE_S)
        one.sendto(b"is it me", second)
        assert two.recvfrom(100) == (b"is it me", first)


@pytest.mark.usefixtures("gateway")
def test_udp_gso_between_two_workers(lab: Lab) -> None:
    """A QUIC sender's large send crosses the queue twice: every datagram of it arrives, with a right checksum."""
    segment, count = 1000, 10
    with udp_socket(lab.node("worker1")) as one, udp_socket(lab.node("worker2")) as two:
        first, second = udp_whoami(one, "inet2"), udp_whoami(two, "inet2")
        two.settimeout(DEADLINE_S)
        one.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, segment)
        for turn in range(2):
            payload = b"".join(bytes([turn, number]) * (segment // 2) for number in range(count))
            one.sendto(payload, second)
            received = {two.recvfrom(2 * segment) for _ in range(count)}
            assert received == {(payload[at:at + segment], first) for at in range(0, len(payload), segment)}


@pytest.mark.usefixtures("gateway")
def test_rfc5382_req8_hairpinning(lab: Lab) -> None:
    """TCP: a peer that listens where it has a mapping; a megabyte each way."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(reusable(lab.node("worker2"), PORT))
        mapping = stack.enter_context(reusable(lab.node("worker2"), PORT))
        mapping.connect((ADDRESS["inet2"], ECHO))
        server.listen()
        client = stack.enter_context(connect(lab.node("worker1"), OUTSIDE, PORT, source_port=PORT + 1))
        accepted, peer = server.accept()
        stack.enter_context(accepted).settimeout(DEADLINE_S)
        assert peer == (OUTSIDE, PORT + 1)
        exchange(client, accepted)


def test_rfc5508_req7_error_about_a_hairpinned_packet(lab: Lab, gateway: Engine) -> None:
    """The peer has gone: an error comes back from the address that was asked, and reaches the socket."""
    with udp_socket(lab.node("worker2")) as gone:
        mapped = udp_whoami(gone, "inet2")
    with udp_socket(lab.node("worker1")) as link:
        link.connect(mapped)
        wait_until_refused(link)
    assert any(ADDRESS["worker1"] in line for line in conntrack_lines(gateway, "-d", OUTSIDE))


@pytest.mark.usefixtures("gateway")
def test_without_a_mapping_the_head_answers(lab: Lab) -> None:
    """At once, as it does without a gateway."""
    with pytest.raises(ConnectionRefusedError):
        connect(lab.node("worker1"), OUTSIDE, PORT + 2)
    with udp_socket(lab.node("worker1")) as link:
        link.connect((OUTSIDE, PORT + 2))
        wait_until_refused(link)
