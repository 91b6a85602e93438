"""What the tests of the running gateway share: what must come back, waiting, and traffic in a few words.

    worker1 10.1.0.11 ─┐                       ┌─ bond0.2 203.0.113.1  ── inet2 203.0.113.2
                       ├─ bond0.def ─ head ────┤
    worker2 10.1.0.12 ─┘   10.1.0.1            └─ bond0.3 198.51.100.1 ── inet3 198.51.100.2
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from natlab import Lab, LabError, Node
from natlab.engine import Engine
from natlab.patience import PATIENCE
from scapy.layers.inet import IP
from scapy.packet import Packet

ADDRESS = {"worker1": "10.1.0.11", "worker2": "10.1.0.12", "inet2": "203.0.113.2", "inet3": "198.51.100.2"}
UPLINK = {"inet2": "203.0.113.1", "inet3": "198.51.100.1"}      # the head, as that host sees it
INSIDE_HEAD = "10.1.0.1"
HTTP, ECHO = 80, 7
INSIDE = "ip src net 10.0.0.0/8"            # what must never be seen at inet2 and inet3
DEADLINE_S = 20.0 * PATIENCE                # for what takes milliseconds: the machine may be busy
PYTHON = [sys.executable, "-I", "-S"]
NATENGINE = [sys.executable, "-m", "natengine"]
PROJECT = Path(__file__).parents[2]

OWNERS_RULES = """\
*filter
-A FORWARD -i bond0.def -j ACCEPT
COMMIT
*nat
-A POSTROUTING -o bond0.2 -j MASQUERADE
-A POSTROUTING -o bond0.3 -j MASQUERADE
COMMIT
"""

Done = subprocess.CompletedProcess[str]


# ── before and after ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class HeadState:
    """What an engine may change on the head, and has to put back."""

    rules: tuple[str, ...]
    ip_forward: str
    queues: str


def head_state(lab: Lab) -> HeadState:
    """Read the head's state.

    `iptables -L` alone makes the table that it looks at, so chains of the kernel's own that are empty
    and accept everything do not count.
    """
    head = lab.node("head")
    saved = head.run(["iptables-save"], timeout=20).stdout.splitlines()
    rules = tuple(
        re.sub(r"\[\d+:\d+\]", "", line).strip() for line in saved
        if line.startswith((":", "-")) and not re.fullmatch(r":[A-Z]+ ACCEPT \[.*\]", line)
    )
    rules += tuple(nft_hooks(lab))
    queues = head.run(["cat", "/proc/net/netfilter/nfnetlink_queue"], timeout=20).stdout
    return HeadState(rules, head.sysctl("net/ipv4/ip_forward"), queues)


def nft_hooks(lab: Lab) -> list[str]:
    """The lines of the table that the nft back end makes; none where there is no such table."""
    if shutil.which("nft") is None:
        return []
    listing = lab.node("head").run(["nft", "list", "table", "ip", "natengine"], timeout=20, check=False)
    return [line.strip() for line in listing.stdout.splitlines()]


NFT_TRIAL = """
add table ip trial
add chain ip trial arriving { type filter hook prerouting priority -300; }
add rule ip trial arriving queue num 1
"""


def missing_nft(lab: Lab) -> str | None:
    """Why the head cannot have nft hooks, found out by trying; None if it can."""
    if shutil.which("nft") is None:
        return "nft is not installed"
    trial = lab.node("head").run(["nft", "-f", "-"], timeout=20, check=False, input=NFT_TRIAL)
    if trial.returncode:
        return f"no nft queue expression: {trial.stderr.strip().splitlines()[0]}"
    lab.node("head").run(["nft", "delete", "table", "ip", "trial"], timeout=20)
    return None


def wait_for(what: str, condition: Callable[[], object]) -> None:
    """Return as soon as the condition is true; fail after a time that only an error takes."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {DEADLINE_S:.0f} s"
        time.sleep(0.01)


def settle(lab: Lab) -> None:
    """Wait until no TCP socket of a worker still has to say something (FIN_WAIT1, LAST_ACK, CLOSING).

    A FIN that got no answer would be repeated while the next engine is still being told its rules.
    """
    deadline = time.monotonic() + DEADLINE_S
    for worker in ("worker1", "worker2"):
        while time.monotonic() < deadline:
            lines = lab.node(worker).run(["cat", "/proc/net/tcp"], timeout=10).stdout.splitlines()[1:]
            if not {line.split()[3] for line in lines} & {"04", "09", "0B"}:
                break
            time.sleep(0.01)


def mac_address(node: Node, interface: str = "eth0") -> str:
    """The Ethernet address of a node."""
    return node.run(["ip", "-br", "link", "show", interface], timeout=10).stdout.split()[2]


@contextlib.contextmanager
def leak_check(lab: Lab) -> Iterator[None]:
    """Fail at the end of the block if a packet with an inside source address got to inet2 or inet3."""
    with contextlib.ExitStack() as stack:
        captures = [
            stack.enter_context(lab.capture(host, "eth0", f"{INSIDE} and not ether src {mac_address(lab.node(host))}"))
            for host in UPLINK
        ]
        yield
    leaks = [packet.summary() for capture in captures for packet in capture.packets()]
    assert leaks == [], f"inside addresses on the internet: {leaks[:10]}"


# ── the engine ──────────────────────────────────────────────────────────────────────────────────


def natengine(lab: Lab, *words: str, env: Mapping[str, str], argv: Sequence[str] = NATENGINE) -> Done:
    """Run natengine on the head to its end, with additions to the environment."""
    return lab.node("head").run([*argv, *words], timeout=60, check=False, env={**os.environ, **env})


def start_process(lab: Lab, *words: str, env: dict[str, str], **options: object) -> subprocess.Popen[str]:
    """Start natengine on the head without waiting for anything."""
    return lab.node("head").popen(
        [*NATENGINE, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **env}, **options,
    )


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal; False for one that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    match = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)
    return match is not None and bool(int(match[1], 16) >> (number - 1) & 1)


def kill(engine: Engine) -> None:
    """End an engine so that it cannot clean up."""
    process = engine.process
    assert process is not None and process.stdout is not None
    process.send_signal(signal.SIGKILL)
    process.wait(DEADLINE_S)
    process.stdout.close()
    engine.process = None


def conntrack_lines(engine: Engine, *words: str) -> list[str]:
    """What `natengine conntrack -L` lists."""
    return engine.run("conntrack", "-L", *words).stdout.splitlines()


def dropped(engine: Engine, reason: str | None = None) -> int:
    """How many packets the engine has refused so far, in all or for one reason (its name as `status` has it)."""
    rows = [line.split() for line in engine.run("status").stdout.splitlines()]
    return sum(
        int(row[-1]) for row in rows if row[:1] == ["drop"] and reason in (None, " ".join(row[1:-1]))
    )


# ── traffic ─────────────────────────────────────────────────────────────────────────────────────


def ping(node: Node, address: str, *options: str, count: int = 1, wait: int = 5) -> str:
    """Ping and return what it prints; CommandFailed unless there is an answer.

    For the first answer it waits as long as it is told, but for the last only twice the longest round trip so far, or
    the interval, if that is more: so the interval is one that a busy machine keeps.
    """
    argv = ["ping", "-n", "-c", str(count), "-i", "0.3", "-W", str(wait), *options, address]
    return node.run(argv, timeout=60).stdout


def answers(node: Node, address: str) -> bool:
    """Whether a ping is answered; True as soon as it is."""
    return node.run(["ping", "-n", "-c1", "-W5", address], timeout=20, check=False).returncode == 0


def is_silent(node: Node, address: str) -> bool:
    """Whether none of three pings is answered within a moment."""
    argv = ["ping", "-n", "-c3", "-i0.02", "-W0.3", address]
    return node.run(argv, timeout=20, check=False).returncode == 1


def curl(node: Node, url: str, *options: str) -> str:
    """Fetch a URL and return what it has; CommandFailed unless it is fetched."""
    return node.run(["curl", "-sS", "-m", str(60 * PATIENCE), *options, url], timeout=90).stdout


def whoami(node: Node, host: str) -> tuple[str, int]:
    """The address and the port that a server sees of a TCP connection from a node."""
    address, port = curl(node, f"http://{ADDRESS[host]}/whoami").split()
    return address, int(port)


def connect(node: Node, address: str, port: int, *, source_port: int = 0) -> socket.socket:
    """Open a TCP connection from a node."""
    with node.enter():
        link = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    link.settimeout(DEADLINE_S)
    try:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Closing resets: a FIN that is not answered would be repeated into the next test.
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        link.bind(("", source_port))
        link.connect((address, port))
    except OSError:
        link.close()
        raise
    return link


def udp_socket(node: Node, *, source_port: int = 0) -> socket.socket:
    """Make a UDP socket on a node."""
    with node.enter():
        link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    link.settimeout(DEADLINE_S)
    link.bind(("", source_port))
    return link


def udp_whoami(link: socket.socket, host: str) -> tuple[str, int]:
    """The address and port that a UDP echo server sees; asks again if the network loses a datagram."""
    for _ in range(10):
        link.settimeout(2)
        link.sendto(b"whoami", (ADDRESS[host], ECHO))
        with contextlib.suppress(TimeoutError):
            address, port, _ = link.recv(2048).split()
            return address.decode(), int(port)
    raise AssertionError(f"no UDP echo from {host}")


def echo(link: socket.socket, data: bytes) -> None:
    """Send data to an echo server and expect it back."""
    link.sendall(data)
    expect(link, data)


def expect(link: socket.socket, data: bytes) -> None:
    """Receive just these bytes."""
    received = b""
    while len(received) < len(data):
        piece = link.recv(65536)
        assert piece, "the connection was closed"
        received += piece
    assert data == received


def make_socket(node: Node, kind: int, proto: int) -> socket.socket:
    """A socket of the node's, which reuses addresses and waits no longer than a test should."""
    with node.enter():
        try:
            link = socket.socket(socket.AF_INET, kind, proto)
        except OSError as error:
            pytest.skip(f"this kernel has no sockets of protocol {proto}: {error}")
    link.settimeout(DEADLINE_S)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return link


def send_raw(lab: Lab, node: str, *packets: Packet) -> None:
    """Put packets on the wire just as they are, behind the back of the node's own stack."""
    with lab.node(node).enter():
        link = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with link:
        for packet in packets:
            link.sendto(bytes(packet), (packet[IP].dst, 0))


class _EchoHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.request.recv(65536):
                self.request.sendall(data)


class _EchoServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


@contextlib.contextmanager
def echo_server(node: Node, port: int) -> Iterator[None]:
    """A service on a node (the head's sshd, say) that sends back what it gets."""
    with node.enter():
        server = _EchoServer(("", port), _EchoHandler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def sha256(path: Path) -> str:
    """The digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ── what the machine must have ──────────────────────────────────────────────────────────────────

NFQUEUE_TRIAL = """
from netfilterqueue import NetfilterQueue
queue = NetfilterQueue()
queue.bind(1, print)
queue.unbind()
"""


def missing(lab: Lab) -> str | None:
    """Say what the head lacks for a gateway, found out by trying; None if it lacks nothing."""
    head = lab.node("head")
    for program in ("iptables", "iptables-restore", "iptables-save", "ping", "curl", "tcpdump", "ip"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    trial = head.run([sys.executable, "-c", NFQUEUE_TRIAL], timeout=60, check=False)
    if trial.returncode:
        return f"no NFQUEUE: {trial.stderr.strip().splitlines()[-1]}"
    rule = ["PREROUTING", "-i", "none", "-j", "NFQUEUE", "--queue-num", "1"]
    for change in ("-A", "-D"):
        trial = head.run(["iptables", "-w", "-t", "raw", change, *rule], timeout=60, check=False)
        if trial.returncode:
            return f"no NFQUEUE target: {trial.stderr.strip()}"
    return None


def try_up(lab: Lab) -> str | None:
    """Take a lab up; return why it cannot be, or None."""
    if os.geteuid() != 0:
        return "needs root"
    try:
        lab.up()
    except LabError as error:
        return str(error)
    return None
