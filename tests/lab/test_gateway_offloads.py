"""What senders leave to the hardware: large sends that the kernel segments, checksums that are not there yet."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from conftest import NewEngine
from natlab import Lab
from natlab.engine import Engine
from natlab.patience import PATIENCE

pytestmark = pytest.mark.lab

UDP_SEGMENT = 103                   # linux/udp.h; not in the socket module
SEGMENT, SEGMENTS = 1000, 10
ANSWER_S = 10.0 * PATIENCE


def send_large(lab: Lab, bind_to: int) -> None:
    """Make a large UDP send twice, and expect every datagram of it back."""
    with lab.node("worker1").enter():
        link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with link:
        link.bind(("", bind_to))
        link.connect(("203.0.113.2", 7))
        link.settimeout(ANSWER_S)
        link.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, SEGMENT)
        for turn in range(2):
            payload = b"".join(bytes([turn, number]) * (SEGMENT // 2) for number in range(SEGMENTS))
            assert link.send(payload) == len(payload)
            answers = {link.recv(2 * SEGMENT) for _ in range(SEGMENTS)}
            assert answers == {payload[at:at + SEGMENT] for at in range(0, len(payload), SEGMENT)}


def test_udp_gso_cut_up_before_it_is_queued(lab: Lab, new_engine: NewEngine, owners_rules: Path) -> None:
    """The NetfilterQueue adapter gets it in pieces.  First here, as its engine is not the one that the others share."""
    new_engine("--rules", owners_rules, "--io", "netfilterqueue")
    send_large(lab, 7779)


@pytest.mark.parametrize("bind_to", [0, 7777])
def test_udp_gso(lab: Lab, gateway: Engine, bind_to: int) -> None:
    """A QUIC sender's large send: every datagram of it arrives, with a right checksum, and is answered.

    The kernel cuts it up, on its way through the cutting queue.  The first send begins the flow (Python decides
    about it), the second goes the fast way.
    """
    send_large(lab, bind_to)


def test_udp_gso_after_a_port_was_changed(lab: Lab, gateway: Engine) -> None:
    """Two workers, one source port: the second one's outside port differs, and its checksums are right."""
    for worker in ("worker1", "worker2"):
        with lab.node(worker).enter():
            link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with link:
            link.bind(("", 7778))
            link.connect(("203.0.113.2", 7))
            link.settimeout(ANSWER_S)
            link.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, SEGMENT)
            for _ in range(2):
                link.send(b"x" * SEGMENT * SEGMENTS)
                assert [len(link.recv(2 * SEGMENT)) for _ in range(SEGMENTS)] == [SEGMENT] * SEGMENTS
