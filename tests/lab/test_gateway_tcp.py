"""TCP connections, and who tries to break into them without seeing them (RFC 5961)."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_tools import (
    ADDRESS,
    ECHO,
    UPLINK,
    connect,
    conntrack_lines,
    curl,
    dropped,
    echo,
    send_raw,
    sha256,
    wait_for,
)
from natlab import CommandFailed, Lab
from natlab.capture import Capture
from natlab.engine import Engine
from scapy.layers.inet import IP, TCP
from scapy.packet import Packet

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("gateway")]

GUESSES = 300


@pytest.fixture
def connection(lab: Lab) -> Iterator[socket.socket]:
    """From worker1 to inet2's echo service, with something said already."""
    with connect(lab.node("worker1"), ADDRESS["inet2"], ECHO, source_port=31_200) as link:
        echo(link, b"x" * 5000)
        yield link


def forged(flags: str, seq: int, ack: int = 0, data: bytes = b"") -> Packet:
    """A segment from inet2's echo service, as far as its addresses and ports tell."""
    segment = TCP(sport=ECHO, dport=31_200, flags=flags, seq=seq % 2**32, ack=ack % 2**32)
    return IP(src=ADDRESS["inet2"], dst=UPLINK["inet2"]) / segment / data


def reply_number(connection: socket.socket, capture: Capture) -> int:
    """The sequence number of what inet2 has just answered; the question has the same bytes and is seen first."""
    echo(connection, b"known")

    def numbers() -> list[int]:
        return [
            each[TCP].seq for each in capture.packets()
            if each[IP].src == ADDRESS["inet2"] and bytes(each[TCP].payload) == b"known"
        ]

    wait_for("the answer in the capture", numbers)
    return numbers()[-1]


@pytest.mark.parametrize(("flags", "data"), [("R", b""), ("RA", b""), ("A", b"injected"), ("FA", b"")])
def test_guesses_do_not_get_through(
    lab: Lab, gateway: Engine, connection: socket.socket, flags: str, data: bytes
) -> None:
    """Numbers from all over the circle, but not from near the connection's own, which the capture tells."""
    with lab.capture("worker1", "eth0", f"tcp port {ECHO}") as capture:
        now = reply_number(connection, capture)
        rng = random.Random(5)
        before = dropped(gateway, "tcp window")
        send_raw(lab, "inet2", *(
            forged(flags, now + rng.randrange(2**27, 2**32 - 2**27), rng.getrandbits(32), data)
            for _ in range(GUESSES)
        ))
        wait_for("all of them dropped", lambda: dropped(gateway, "tcp window") >= before + GUESSES)
        echo(connection, b"y" * 50_000)
        assert conntrack_lines(gateway, "--sport", "31200", "--state", "ESTABLISHED")
    arrived = [each for each in capture.packets() if each[IP].src == ADDRESS["inet2"]]
    assert not any(each[TCP].flags.R or each[TCP].flags.F or b"injected" in bytes(each) for each in arrived)


def test_who_knows_the_numbers_resets(lab: Lab, gateway: Engine, connection: socket.socket) -> None:
    """The other side of the same coin: a real reset arrives, and the table takes notice."""
    connection.close()                      # SO_LINGER 0
    wait_for("CLOSE", lambda: conntrack_lines(gateway, "--sport", "31200", "--state", "CLOSE"))


def test_a_guess_in_the_window_is_for_the_receiver_to_question(
    lab: Lab, gateway: Engine, connection: socket.socket
) -> None:
    """RFC 5961 3.2: worker1 answers with a challenge ACK and stays; so does the state."""
    with lab.capture("worker1", "eth0", f"tcp port {ECHO}") as capture:
        send_raw(lab, "inet2", forged("R", reply_number(connection, capture) + 1000))
        wait_for("the RST", lambda: any(each[TCP].flags.R for each in capture.packets()))
        assert conntrack_lines(gateway, "--sport", "31200", "--state", "ESTABLISHED")
        echo(connection, b"still here")


@contextlib.contextmanager
def loss(lab: Lab, *nodes: str) -> Iterator[None]:
    """Let nodes lose a packet in 50 of those they receive."""
    rule = ["INPUT", "-p", "tcp", "-m", "statistic", "--mode", "random", "--probability", "0.02", "-j", "DROP"]
    with contextlib.ExitStack() as stack:
        for node in map(lab.node, nodes):
            try:
                node.run(["iptables", "-w", "-I", *rule], timeout=20)
            except CommandFailed as error:
                pytest.skip(f"this kernel has no xt_statistic: {error}")
            stack.callback(node.run, ["iptables", "-w", "-D", *rule], timeout=20)
        yield


@pytest.mark.parametrize("sack", [1, 0])
def test_losses_on_both_sides_are_no_reason_to_refuse_anything(
    lab: Lab, gateway: Engine, tmp_path: Path, sack: int
) -> None:
    """Retransmissions, duplicate ACKs, SACK, windows that grow: all of it is honest, none of it is dropped."""
    worker = lab.node("worker1")
    before = dropped(gateway, "tcp window")
    usual = worker.sysctl("net/ipv4/tcp_sack")
    worker.sysctl("net/ipv4/tcp_sack", sack)
    try:
        with loss(lab, "worker1", "inet2"):
            for _ in range(3):
                path, url = tmp_path / "down", f"http://{ADDRESS['inet2']}/bytes/3000000"
                headers = curl(worker, url, "-D", "-", "-o", str(path))
                assert f"X-Sha256: {sha256(path)}" in headers
    finally:
        worker.sysctl("net/ipv4/tcp_sack", usual)
    assert dropped(gateway, "tcp window") == before
