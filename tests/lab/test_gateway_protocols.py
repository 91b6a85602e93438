"""Protocols beside TCP, UDP and echo, with real sockets where the kernel has them."""

from __future__ import annotations

import socket
import struct

import pytest
from gateway_tools import ADDRESS, UPLINK, conntrack_lines, dropped, make_socket, send_raw, wait_for
from natlab import Lab
from natlab.engine import Engine
from scapy.layers.inet import ICMP, IP

pytestmark = pytest.mark.lab

UDPLITE, ESP = 136, 50
UDPLITE_SEND_CSCOV = 10             # linux/udp.h
TIMESTAMP, TIMESTAMP_REPLY = 13, 14


@pytest.mark.parametrize("coverage", [0, 8])
def test_udplite_there_and_back(lab: Lab, gateway: Engine, coverage: int) -> None:
    """The whole datagram under its checksum, or the header alone: both stacks accept what arrives."""
    with (
        make_socket(lab.node("worker1"), socket.SOCK_DGRAM, UDPLITE) as worker,
        make_socket(lab.node("inet2"), socket.SOCK_DGRAM, UDPLITE) as server,
    ):
        server.bind(("", 3100))
        for link in (worker, server):
            link.setsockopt(UDPLITE, UDPLITE_SEND_CSCOV, coverage)
        worker.sendto(b"question", (ADDRESS["inet2"], 3100))
        question, sender = server.recvfrom(100)
        assert (question, sender[0]) == (b"question", UPLINK["inet2"])
        server.sendto(b"answer", sender)
        assert worker.recvfrom(100) == (b"answer", (ADDRESS["inet2"], 3100))
        assert any(line.startswith("udplite  136 ") for line in conntrack_lines(gateway))


def test_a_worker_may_ask_for_the_time(lab: Lab, gateway: Engine) -> None:
    """ICMP timestamp: inet2's own stack answers, to the identifier that was asked with."""
    with make_socket(lab.node("worker1"), socket.SOCK_RAW, socket.IPPROTO_ICMP) as link:
        request = bytes(ICMP(type=TIMESTAMP, id=3101, seq=5, ts_ori=1, ts_rx=0, ts_tx=0))
        link.sendto(request, (ADDRESS["inet2"], 0))
        while True:
            packet = link.recv(100)
            if packet[20] == TIMESTAMP_REPLY:
                break
    assert struct.unpack_from("!HHI", packet, 24) == (3101, 5, 1)
    assert any("type=13 code=0 id=3101" in line for line in conntrack_lines(gateway, "-p", "icmp"))


def test_a_second_host_to_one_peer_is_in_status_and_in_the_log(lab: Lab, gateway: Engine) -> None:
    """ESP: listed as conntrack lists what it has no name for; refused for a reason, and with a line."""
    packets = [
        IP(src=ADDRESS[worker], dst=ADDRESS["inet3"], proto=ESP) / (b"spi!" + bytes(28))
        for worker in ("worker1", "worker2")
    ]
    before = dropped(gateway, "peer taken")
    send_raw(lab, "worker1", packets[0])
    ends = f"src={ADDRESS['worker1']} dst={ADDRESS['inet3']}"
    wait_for("the flow", lambda: conntrack_lines(gateway, "-p", "50"))
    (line,) = conntrack_lines(gateway, "-p", "50")
    assert line.startswith("unknown  50 ") and ends in line and "[UNREPLIED]" in line
    send_raw(lab, "worker2", packets[1])
    wait_for("the reason", lambda: dropped(gateway, "peer taken") > before)
    wait_for("the line", lambda: f"esp from {ADDRESS['worker2']} to {ADDRESS['inet3']} dropped" in gateway.log())
