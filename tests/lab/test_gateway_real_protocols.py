"""Protocols beside TCP, UDP and ICMP as two kernels speak them to each other: associations, tunnels, encryption.

    worker1 ── head (natengine) ── bond0.2 ── inet2

Each test skips, with the reason, where the kernel lacks the protocol.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator

import pytest
from gateway_tools import ADDRESS, DEADLINE_S, UPLINK, conntrack_lines, expect, make_socket, ping
from natlab import CommandFailed, Lab, Node
from natlab.engine import Engine
from natlab.patience import PATIENCE
from support.backends import NAMES

pytestmark = [pytest.mark.lab, pytest.mark.parametrize("fast_path", [NAMES[-1]], indirect=True)]

WORKER, SERVER = ADDRESS["worker1"], ADDRESS["inet2"]
PORT = 3200
SOCK_DCCP, IPPROTO_DCCP = 6, 33                     # linux/net.h, linux/in.h
SOL_DCCP, DCCP_SOCKOPT_SERVICE = 269, 2             # linux/socket.h, linux/dccp.h
SERVICE = struct.pack("!I", 42)                     # what a server listens for, beside its port
INSIDE_TUNNEL = {"worker1": "172.31.7.1", "inet2": "172.31.7.2"}
MEGABYTE = 1 << 20


def load(module: str) -> None:
    """Load a kernel module that Debian does not load by itself; whether there is one, a socket will tell."""
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "-q", module], timeout=60 * PATIENCE, check=False)


@contextlib.contextmanager
def connected(
    lab: Lab, kind: int, proto: int, prepare: Callable[[socket.socket], None] = lambda link: None
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection from worker1 to inet2, both ends of it; inet2 sees the head's address."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(make_socket(lab.node("inet2"), kind, proto))
        client = stack.enter_context(make_socket(lab.node("worker1"), kind, proto))
        for link in (listening, client):
            prepare(link)
        listening.bind((SERVER, PORT))
        listening.listen()
        client.bind((WORKER, PORT + 1))
        client.connect((SERVER, PORT))
        accepted, peer = listening.accept()
        stack.enter_context(accepted).settimeout(DEADLINE_S)
        assert peer[0] == UPLINK["inet2"]
        yield client, accepted


def exchange(one: socket.socket, other: socket.socket, data: bytes) -> None:
    """Send data one way and back, and compare it."""
    for sender, receiver in ((one, other), (other, one)):
        sender.sendall(data)
        expect(receiver, data)


@pytest.mark.parametrize("size", [10, 1400, 30_000], ids=["one chunk", "a packet of them", "many packets"])
def test_sctp_association(lab: Lab, gateway: Engine, size: int) -> None:
    """Set up, used in both directions and shut down: both ends accept every CRC-32c.

    The last size is one that the sender's kernel may leave to a device to cut up.
    """
    with connected(lab, socket.SOCK_STREAM, socket.IPPROTO_SCTP) as (client, server):
        for turn in range(2):
            exchange(client, server, bytes([turn]) * size)
        assert conntrack_lines(gateway, "-p", "sctp")
        client.shutdown(socket.SHUT_WR)
        assert server.recv(10) == b""


def test_dccp_connection(lab: Lab, gateway: Engine) -> None:
    """Request, response, data and acknowledgements, with the checksums that DCCP insists on."""
    load("dccp_ipv4")

    def prepare(link: socket.socket) -> None:
        link.setsockopt(SOL_DCCP, DCCP_SOCKOPT_SERVICE, SERVICE)

    with connected(lab, SOCK_DCCP, IPPROTO_DCCP, prepare) as (client, server):
        for sender, receiver in ((client, server), (server, client)):
            for number in range(5):
                payload = bytes([number]) * 1000
                sender.send(payload)
                assert receiver.recv(2000) == payload
        assert conntrack_lines(gateway, "-p", "dccp")


# ── tunnels ─────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def commands(node: Node, *pairs: tuple[str, str]) -> Iterator[None]:
    """Run the first command of each pair, and afterwards the second; skip if the kernel cannot do it."""
    with contextlib.ExitStack() as stack:
        for do, undo in pairs:
            try:
                node.run(do.split(), timeout=20)
            except CommandFailed as error:
                if any(words in str(error) for words in ("Unknown device type", "not supported", "not found")):
                    pytest.skip(f"this kernel cannot `{do}`: {error}")
                raise
            stack.callback(node.run, undo.split(), timeout=20)
        yield


@pytest.fixture(params=["gre", "ipip"])
def tunnel(request: pytest.FixtureRequest, lab: Lab) -> Iterator[str]:
    """A tunnel from worker1 to inet2, which takes the head for its other end."""
    with contextlib.ExitStack() as stack:
        for host, remote in (("worker1", SERVER), ("inet2", UPLINK["inet2"])):
            (peer,) = set(INSIDE_TUNNEL) - {host}
            add = f"ip link add tunnel7 type {request.param} local {ADDRESS[host]} remote {remote} ttl 64"
            address = f"ip addr add {INSIDE_TUNNEL[host]} peer {INSIDE_TUNNEL[peer]} dev tunnel7"
            stack.enter_context(commands(
                lab.node(host),
                (add, "ip link del tunnel7"), (address, "true"), ("ip link set tunnel7 up", "true"),
            ))
        yield str(request.param)


def test_tunnel(lab: Lab, gateway: Engine, tunnel: str) -> None:
    """Pings of all sizes get through, and a megabyte of TCP in each direction."""
    for size in ("56", "1300", "4000"):
        assert "1 received" in ping(lab.node("worker1"), INSIDE_TUNNEL["inet2"], "-s", size)
    assert "1 received" in ping(lab.node("inet2"), INSIDE_TUNNEL["worker1"])
    with (
        make_socket(lab.node("inet2"), socket.SOCK_STREAM, 0) as listening,
        make_socket(lab.node("worker1"), socket.SOCK_STREAM, 0) as client,
    ):
        listening.bind((INSIDE_TUNNEL["inet2"], PORT))
        listening.listen()
        client.connect((INSIDE_TUNNEL["inet2"], PORT))
        accepted, peer = listening.accept()
        with accepted:
            accepted.settimeout(DEADLINE_S)
            assert peer[0] == INSIDE_TUNNEL["worker1"]
            for _ in range(MEGABYTE // 65536):
                exchange(client, accepted, b"tunnel" * 10_000)
    assert any(f"src={WORKER} dst={SERVER}" in line for line in conntrack_lines(gateway) if "tcp" not in line)


@pytest.fixture
def encrypted(lab: Lab) -> Iterator[None]:
    """worker1 and inet2 encrypt what they send each other's inner address; to inet2 the head is the other end."""
    algorithm = "aead rfc4106(gcm(aes)) 0x" + "5a" * 20 + " 128"
    ends = {"worker1": (WORKER, SERVER, "0x71", "0x72"), "inet2": (SERVER, UPLINK["inet2"], "0x72", "0x71")}
    with contextlib.ExitStack() as stack:
        for host, (local, remote, spi_out, spi_in) in ends.items():
            (peer,) = set(INSIDE_TUNNEL) - {host}
            mine, theirs = INSIDE_TUNNEL[host], INSIDE_TUNNEL[peer]
            pairs = [(f"ip addr add {mine} dev lo", f"ip addr del {mine} dev lo"),
                     (f"ip route add {theirs} dev eth0 src {mine}", f"ip route del {theirs} dev eth0")]
            for src, dst, inner, spi, way in (
                (local, remote, (mine, theirs), spi_out, "out"), (remote, local, (theirs, mine), spi_in, "in"),
            ):
                state, selector = f"src {src} dst {dst} proto esp spi {spi}", f"src {inner[0]} dst {inner[1]} dir {way}"
                pairs += [
                    (f"ip xfrm state add {state} mode tunnel {algorithm}",
                     f"ip xfrm state delete dst {dst} proto esp spi {spi}"),
                    (f"ip xfrm policy add {selector} tmpl src {src} dst {dst} proto esp mode tunnel",
                     f"ip xfrm policy delete {selector}"),
                ]
            stack.enter_context(commands(lab.node(host), *pairs))
        yield


def test_esp(lab: Lab, gateway: Engine, encrypted: None) -> None:
    """IPsec in tunnel mode, without UDP around it: both ends decrypt what the other one has sent."""
    mine, theirs = INSIDE_TUNNEL["worker1"], INSIDE_TUNNEL["inet2"]
    for size in ("56", "1200"):
        assert "1 received" in ping(lab.node("worker1"), theirs, "-I", mine, "-s", size)
    assert "1 received" in ping(lab.node("inet2"), mine, "-I", theirs)
    (line,) = conntrack_lines(gateway, "-p", "50")
    assert f"src={WORKER} dst={SERVER}" in line and f"dst={UPLINK['inet2']}" in line and "UNREPLIED" not in line
