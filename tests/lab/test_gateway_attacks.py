"""Attacks that need a wire: what the hooks see, and what others get to see meanwhile.

The rest are in tests/unit/nat/test_attacks.py, and guesses at a connection's numbers in test_gateway_tcp.py.
"""

from __future__ import annotations

import random

import pytest
from gateway_tools import (
    ADDRESS,
    ECHO,
    INSIDE_HEAD,
    UPLINK,
    connect,
    conntrack_lines,
    dropped,
    echo,
    send_raw,
    wait_for,
)
from natlab import Lab
from natlab.engine import Engine
from scapy.layers.inet import ICMP, IP, TCP, UDP

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("gateway")]

PORT = 31_300                       # below the ephemeral ones
STORM = 1500


def test_spoofed_inside_source_and_land(lab: Lab, gateway: Engine) -> None:
    """Sources that no host behind an uplink can have: none of it reaches a worker, whatever it is aimed at."""
    head = UPLINK["inet2"]
    aims = [(ADDRESS["worker2"], 9), (head, PORT), (head, 9)]
    sources = [ADDRESS["worker1"], INSIDE_HEAD, head, UPLINK["inet3"]]
    with (
        connect(lab.node("worker1"), ADDRESS["inet2"], ECHO, source_port=PORT) as link,
        lab.capture("worker2", "eth0", "ip and not icmp") as seen,
    ):
        before = dropped(gateway, "spoofed")
        inet2 = lab.node("inet2")
        inet2.run(["ip", "route", "add", "10.1.0.0/24", "via", head], timeout=10)
        try:
            send_raw(lab, "inet2", *(
                IP(src=source, dst=aim) / segment
                for source in sources for aim, port in aims
                for segment in (UDP(sport=port, dport=port) / b"x", TCP(sport=port, dport=port, flags="S"))
            ))
        finally:
            inet2.run(["ip", "route", "del", "10.1.0.0/24"], timeout=10)
        wait_for("all of them dropped", lambda: dropped(gateway, "spoofed") == before + 24)
        echo(link, b"x" * 1000)
    assert len(seen.packets()) == 0


def test_icmp_error_storm(lab: Lab, gateway: Engine) -> None:
    """Errors about a worker's connection and about nothing at all; the connection goes on, nothing is kept."""
    rng = random.Random(6)
    with connect(lab.node("worker1"), ADDRESS["inet2"], ECHO, source_port=PORT) as link:
        echo(link, b"before")
        flows = len(conntrack_lines(gateway))
        to_worker = IP(src=UPLINK["inet2"], dst=ADDRESS["inet2"])
        send_raw(lab, "inet2", *(
            IP(src=f"203.0.113.{rng.randrange(10, 250)}", dst=UPLINK["inet2"])
            / ICMP(type=3, code=rng.choice((0, 1, 3)))
            / to_worker / TCP(sport=PORT if n % 2 else rng.randrange(1024, 30_000), dport=ECHO, seq=rng.getrandbits(32))
            for n in range(STORM)
        ))
        echo(link, b"after" * 1000)
        assert len(conntrack_lines(gateway)) == flows
    assert gateway.process is not None and gateway.process.poll() is None


def test_ttl_expiry_storm(lab: Lab, gateway: Engine) -> None:
    """Packets that end at the head: it says so to the worker (at its own rate), and nothing leaves."""
    with (
        connect(lab.node("worker1"), ADDRESS["inet2"], ECHO, source_port=PORT) as link,
        lab.capture("inet2", "eth0", "udp") as outside,
    ):
        echo(link, b"before")
        flows = len(conntrack_lines(gateway))
        send_raw(lab, "worker1", *(
            IP(src=ADDRESS["worker1"], dst=ADDRESS["inet2"], ttl=1, id=n) / UDP(sport=20_000 + n, dport=33_434) / b"x"
            for n in range(STORM)
        ))
        echo(link, b"after" * 1000)
        assert len(conntrack_lines(gateway)) == flows
    assert len(outside.packets()) == 0
