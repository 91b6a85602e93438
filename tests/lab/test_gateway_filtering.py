"""Who gets in at a mapped port, and what those hear who do not: with real sockets on both sides."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from pathlib import Path

import pytest
from conftest import NewEngine
from gateway_tools import ADDRESS, DEADLINE_S, UPLINK, connect, dropped, udp_socket, udp_whoami, wait_for
from natlab import Lab
from natlab.engine import Engine
from natlab.patience import PATIENCE

pytestmark = pytest.mark.lab

PORT = 31_700                       # below the ephemeral ones
IP_PKTINFO, IP_RECVERR = 8, 11      # linux/in.h; not in the socket module


def pktinfo(source: str) -> bytes:
    """Ancillary data that makes a datagram leave from this one of the node's addresses (ip(7))."""
    return struct.pack("=i4s4s", 0, socket.inet_aton(source), bytes(4))


def is_received(link: socket.socket, data: bytes, *, expected: bool = True) -> bool:
    """Whether this datagram comes; the wait is short where none is expected."""
    link.settimeout(DEADLINE_S if expected else 0.5)
    with contextlib.suppress(TimeoutError):
        return link.recv(100) == data
    return False


@pytest.mark.parametrize(("filtering", "another_port", "another_host"), [
    ("endpoint-independent", True, True),
    ("address-dependent", True, False),
    ("address-and-port-dependent", False, False),
])
def test_rfc4787_req8_filtering(
    lab: Lab, new_engine: NewEngine, owners_rules: Path, tmp_path: Path,
    filtering: str, another_port: bool, another_host: bool,
) -> None:
    config = tmp_path / "natengine.toml"
    config.write_text(f'filtering = "{filtering}"\n')
    engine = new_engine("--rules", owners_rules, "--config", config)
    inet2 = lab.node("inet2")
    inet2.run(["ip", "address", "add", "203.0.113.9/24", "dev", "eth0"], timeout=5)
    try:
        with (
            udp_socket(lab.node("worker1"), source_port=PORT) as worker,
            udp_socket(inet2) as same_host, udp_socket(inet2) as stranger,
        ):
            mapped = (UPLINK["inet2"], PORT)
            assert udp_whoami(worker, "inet2") == mapped
            for link, source, let_in in (
                (same_host, ADDRESS["inet2"], another_port), (stranger, "203.0.113.9", another_host)
            ):
                link.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
                before = dropped(engine, "filtered")
                link.sendmsg([b"knock"], [(socket.IPPROTO_IP, IP_PKTINFO, pktinfo(source))], 0, mapped)
                assert is_received(worker, b"knock", expected=let_in) is let_in
                if let_in:
                    worker.sendto(b"answer", (source, link.getsockname()[1]))
                    link.settimeout(DEADLINE_S)
                    assert link.recvfrom(100) == (b"answer", mapped)
                else:
                    assert dropped(engine, "filtered") == before + 1
                    link.settimeout(0.5)
                    with pytest.raises(TimeoutError):       # neither an answer nor an ICMP error
                        link.recv(100)
    finally:
        inet2.run(["ip", "address", "del", "203.0.113.9/24", "dev", "eth0"], timeout=5)


@pytest.mark.usefixtures("engine")
def test_rfc4787_req1_hole_punching(lab: Lab) -> None:
    """The peer's packet comes first and is refused; ours keeps its port, and the peer's next one gets in."""
    with udp_socket(lab.node("worker1"), source_port=PORT) as worker, udp_socket(lab.node("inet2")) as peer:
        there, here = (ADDRESS["inet2"], peer.getsockname()[1]), (UPLINK["inet2"], PORT)
        assert udp_whoami(worker, "inet2") == here
        peer.sendto(b"too early", here)
        worker.sendto(b"mine", there)
        assert peer.recvfrom(100) == (b"mine", here)
        peer.sendto(b"now", here)
        assert is_received(worker, b"now")


def test_rfc5382_req4_a_syn_that_nobody_waits_for(lab: Lab, engine: Engine) -> None:
    """Silence for six seconds, while the peer repeats itself; then it is refused."""
    with connect(lab.node("worker1"), ADDRESS["inet2"], 7, source_port=PORT):
        began = time.monotonic()
        with pytest.raises(ConnectionRefusedError):
            connect(lab.node("inet2"), UPLINK["inet2"], PORT)
        assert 6 <= time.monotonic() - began < 6 + 3 * PATIENCE
    assert dropped(engine, "syn held") >= 2


def test_the_heads_own_listener_answers_at_once(lab: Lab, new_engine: NewEngine, owners_rules: Path) -> None:
    """A port that a socket of the head has: no worker gets it, and who knocks reaches the head."""
    with lab.node("head").enter():
        server = socket.create_server(("", PORT))
    with server:
        new_engine("--rules", owners_rules)
        with connect(lab.node("worker1"), ADDRESS["inet2"], 7, source_port=PORT) as link:
            link.sendall(b"x")
        connect(lab.node("inet2"), UPLINK["inet2"], PORT).close()
        server.settimeout(DEADLINE_S)
        server.accept()[0].close()


def test_rfc5508_req8_whom_there_is_no_port_for_hears_of_it(lab: Lab, new_engine: NewEngine, tmp_path: Path) -> None:
    """An error on the socket instead of silence."""
    rules = tmp_path / "rules.v4"
    rules.write_text("*nat\n-A POSTROUTING -o bond0.2 -p udp -j MASQUERADE --to-ports 6000-6000\nCOMMIT\n")
    engine = new_engine("--rules", rules)
    with udp_socket(lab.node("worker1")) as first, udp_socket(lab.node("worker2")) as second:
        assert udp_whoami(first, "inet2") == (UPLINK["inet2"], 6000)
        second.connect((ADDRESS["inet2"], 7))
        second.send(b"whoami")
        with pytest.raises(OSError) as caught:
            second.recv(100)
        assert caught.value.errno == errno.EHOSTUNREACH
    wait_for("the count", lambda: dropped(engine, "out of ports"))
