"""Real programs through a running gateway with the owner's rules, on both fast paths."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_tools import (
    ADDRESS,
    DEADLINE_S,
    ECHO,
    INSIDE_HEAD,
    PYTHON,
    UPLINK,
    connect,
    conntrack_lines,
    curl,
    dropped,
    echo,
    echo_server,
    is_silent,
    ping,
    send_raw,
    sha256,
    udp_socket,
    udp_whoami,
    wait_for,
    whoami,
)
from natlab import CommandFailed, Lab
from natlab.engine import Engine
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, TCPerror
from scapy.packet import Raw

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("gateway", "no_icmp_rate_limit")]

WORKERS = ("worker1", "worker2")
HOSTS = tuple(UPLINK)
PAIRS = [(worker, host) for worker in WORKERS for host in HOSTS]
SSH = 2222
SMALL_MTU = 1200
# what else has an MTU between worker1 and inet2: lower interfaces first; a bond hands it down to its legs
UNDERNEATH = {
    "veth": [("switch", "head")],
    "bond/vlan": [("switch", "head-leg1"), ("switch", "head-leg2"), ("head", "bond0"), ("switch", "inet2")],
    "lacp/vlan": [("switch", "head"), ("head", "bond0"), ("switch", "inet2")],
}


@pytest.fixture(scope="module")
def no_icmp_rate_limit(lab: Lab) -> Iterator[None]:
    """Let the head and the hosts send every ICMP error; the tests ask for more than a few a second."""
    before = {node: lab.node(node).sysctl("net/ipv4/icmp_ratelimit") for node in ("head", *HOSTS)}
    for node in before:
        lab.node(node).sysctl("net/ipv4/icmp_ratelimit", 0)
    yield
    for node, limit in before.items():
        lab.node(node).sysctl("net/ipv4/icmp_ratelimit", limit)


def http_whoami(link: socket.socket) -> tuple[str, int]:
    """What the server sees of a connection that stays open."""
    link.sendall(b"GET /whoami HTTP/1.1\r\nHost: lab\r\n\r\n")
    answer = b""
    while not answer.partition(b"\r\n\r\n")[2].endswith(b"\n"):
        piece = link.recv(4096)
        assert piece
        answer += piece
    address, port = answer.split()[-2:]
    return address.decode(), int(port)


def download(lab: Lab, path: Path, size: int = 500_000) -> None:
    """Let worker1 fetch a file from inet2, and compare the digest with the one that the server names."""
    url = f"http://{ADDRESS['inet2']}/bytes/{size}"
    headers = curl(lab.node("worker1"), url, "-D", "-", "-o", str(path))
    assert f"X-Sha256: {sha256(path)}" in headers


@contextlib.contextmanager
def mtu(lab: Lab, *interfaces: tuple[str, str], bytes: int = SMALL_MTU) -> Iterator[None]:
    """Make interfaces narrow, or wide, for a while; veth wants the same at both ends of a link."""
    try:
        for node, name in interfaces:
            lab.node(node).run(["ip", "link", "set", name, "mtu", str(bytes)], timeout=10)
        yield
    finally:
        for node, name in interfaces:
            lab.node(node).run(["ip", "link", "set", name, "mtu", "1500"], timeout=10)
        for node in ("worker1", "inet2", "head"):       # what path MTU discovery has learnt
            lab.node(node).run(["ip", "route", "flush", "cache"], timeout=10)


# ── workers to the internet ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("worker", "host"), PAIRS)
def test_icmp_echo(lab: Lab, worker: str, host: str) -> None:
    """Every worker pings every host, over the uplink that leads there; no answer comes twice."""
    output = ping(lab.node(worker), ADDRESS[host], count=5)
    assert "5 packets transmitted, 5 received" in output
    assert "DUP" not in output


@pytest.mark.parametrize(("worker", "host"), PAIRS)
def test_tcp_is_masqueraded(lab: Lab, worker: str, host: str) -> None:
    """The server sees the address of the uplink that leads to it."""
    assert whoami(lab.node(worker), host)[0] == UPLINK[host]


@pytest.mark.parametrize(("worker", "host"), PAIRS)
def test_udp_is_masqueraded(lab: Lab, worker: str, host: str) -> None:
    """So it is with UDP, and a source port that is free is kept (RFC 4787, port preservation)."""
    port = 31_000 + PAIRS.index((worker, host))
    with udp_socket(lab.node(worker), source_port=port) as link:
        assert udp_whoami(link, host) == (UPLINK[host], port)


def test_both_directions_of_a_connection(lab: Lab) -> None:
    """Bytes come back as they were sent, small and large."""
    with connect(lab.node("worker1"), ADDRESS["inet2"], ECHO) as link:
        for size in (1, 1000, 200_000):
            echo(link, bytes(i % 251 for i in range(size)))


def test_connection_is_closed_at_both_ends(lab: Lab, gateway: Engine) -> None:
    """FINs are translated too: the connection ends, and the table knows it."""
    port = 31_100
    link = connect(lab.node("worker1"), ADDRESS["inet2"], ECHO, source_port=port)
    with link:
        link.shutdown(socket.SHUT_WR)
        assert link.recv(1) == b""
    wait_for("TIME_WAIT", lambda: conntrack_lines(gateway, "--sport", str(port), "--state", "TIME_WAIT"))


def test_refused_connection(lab: Lab) -> None:
    """A closed port's RST comes back: refused at once and not a timeout."""
    with pytest.raises(ConnectionRefusedError):
        connect(lab.node("worker1"), ADDRESS["inet3"], 9)


def test_udp_to_a_closed_port(lab: Lab) -> None:
    """The host's "port unreachable" reaches the worker's socket: the error's insides are translated too."""
    with udp_socket(lab.node("worker2")) as link:
        link.connect((ADDRESS["inet2"], 9))
        link.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            link.recv(100)


def test_uploads_and_downloads_arrive_whole(lab: Lab, tmp_path: Path) -> None:
    """10 MB down, and the same 10 MB up, with the digests that the server names."""
    worker, url = lab.node("worker1"), f"http://{ADDRESS['inet2']}"
    path = tmp_path / "download"
    download(lab, path, 10_000_000)
    assert curl(worker, f"{url}/sink", "--data-binary", f"@{path}") == f"{sha256(path)} 10000000\n"


def test_four_hundred_downloads_at_once(lab: Lab, gateway: Engine) -> None:
    """200 connections from each worker to the same server, all at the same time, every hash right."""
    script = str(Path(__file__).with_name("parallel_get.py"))
    running = [
        lab.node(worker).popen(
            [*PYTHON, script, ADDRESS["inet2"], "200", "20000"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for worker in WORKERS
    ]
    answers = [process.communicate(timeout=5 * DEADLINE_S) for process in running]
    assert answers == [("200\n", "")] * 2
    for worker in WORKERS:
        flows = conntrack_lines(gateway, "-p", "tcp", "-s", ADDRESS[worker], "-d", ADDRESS["inet2"])
        assert len(flows) >= 200


# ── two that look the same ──────────────────────────────────────────────────────────────────────


def test_same_source_port_tcp(lab: Lab) -> None:
    """Two workers talk to one server from the same port; to the server they are two ports."""
    with contextlib.ExitStack() as stack:
        links = [
            stack.enter_context(connect(lab.node(worker), ADDRESS["inet2"], 80, source_port=32_001))
            for worker in WORKERS
        ]
        seen = [http_whoami(link) for link in links]
        again = [http_whoami(link) for link in links]
    assert [UPLINK["inet2"]] * 2 == [address for address, _ in seen]
    assert len({port for _, port in seen}) == 2
    assert seen == again
    assert seen[0][1] == 32_001             # the first one keeps its port


def test_same_source_port_udp(lab: Lab) -> None:
    """The same with UDP; and one socket has one outside port, whoever it talks to (RFC 4787 REQ-1)."""
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(udp_socket(lab.node(worker), source_port=32_002)) for worker in WORKERS]
        seen = [udp_whoami(link, "inet3") for link in links]
        assert len({port for _, port in seen}) == 2
        assert seen == [udp_whoami(link, "inet3") for link in links]


def test_same_icmp_identifier(lab: Lab, gateway: Engine) -> None:
    """Two pings with one identifier to one host: each worker gets its own answers."""
    argv = ["ping", "-n", "-e", "4711", "-c5", "-i0.3", "-W5", ADDRESS["inet2"]]
    running = [
        lab.node(worker).popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for worker in WORKERS
    ]
    for process in running:
        output, _ = process.communicate(timeout=3 * DEADLINE_S)
        assert "5 received" in output and "DUP" not in output, output
    identifiers = [re.findall(r" id=(\d+)", line) for line in conntrack_lines(gateway, "-p", "icmp")]
    outside = [reply for original, reply in identifiers if original == "4711"]
    assert len(outside) == len(set(outside)) == 2


# ── fragments, path MTU, traceroute ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [1472, 1473, 4000, 20_000, 65_000])
def test_large_ping(lab: Lab, size: int) -> None:
    """Echo requests and replies of up to 44 fragments."""
    for _ in range(3):
        output = ping(lab.node("worker1"), ADDRESS["inet2"], "-s", str(size))
        assert output.count(f"{size + 8} bytes from {ADDRESS['inet2']}") == 1


def test_large_datagram(lab: Lab) -> None:
    """UDP in fragments, there and back; the ports are in the first one only."""
    data = bytes(i % 251 for i in range(30_000))
    with udp_socket(lab.node("worker2"), source_port=32_003) as link:
        link.sendto(data, (ADDRESS["inet3"], ECHO))
        assert data == link.recv(65_535)


def test_fragmentation_needed(lab: Lab) -> None:
    """A narrow uplink: the worker is told, with the MTU, and what is small enough goes through."""
    worker = lab.node("worker1")
    with mtu(lab, ("head", "bond0.2"), ("inet2", "eth0")):
        refused = worker.run(
            ["ping", "-n", "-c1", "-W5", "-M", "do", "-s", "1400", ADDRESS["inet2"]], timeout=20, check=False
        )
        assert refused.returncode == 1
        told = rf"From {INSIDE_HEAD} .*Frag needed and DF set \(mtu = {SMALL_MTU}\)"
        assert re.search(told, refused.stdout)
        assert "1 received" in ping(worker, ADDRESS["inet2"], "-M", "do", "-s", str(SMALL_MTU - 28))


def test_narrow_uplink_carries_both_ways(lab: Lab, tmp_path: Path) -> None:
    """TCP finds out how much fits into the uplink, down and up."""
    path = tmp_path / "download"
    with mtu(lab, ("head", "bond0.2"), ("inet2", "eth0")):
        download(lab, path)
        answer = curl(lab.node("worker1"), f"http://{ADDRESS['inet2']}/sink", "--data-binary", f"@{path}")
    assert answer == f"{sha256(path)} 500000\n"


def test_narrow_inside_link(lab: Lab, tmp_path: Path) -> None:
    """The head tells the server that its segments are too large, and quotes the packet that the server sent.

    The head makes that error about the packet as it is behind the translation, with the worker's
    address in it; what the server gets must be about its own connection, or the download stalls.
    """
    path = tmp_path / "download"
    narrow = [("head", "bond0.def"), *([("switch", "head")] if lab.status()["links"] == "veth" else [])]
    with lab.capture("inet2", "eth0", "icmp[icmptype] == 3") as errors, mtu(lab, *narrow):
        download(lab, path)
    packets = errors.packets()
    assert len(packets) > 0
    for packet in packets:
        assert (packet[ICMP].code, packet[ICMP].nexthopmtu) == (4, SMALL_MTU)
        assert (packet[IP].src, packet[IPerror].src) == (UPLINK["inet2"], ADDRESS["inet2"])
        assert (packet[IPerror].dst, packet[TCPerror].sport) == (UPLINK["inet2"], 80)


def test_jumbo_frames(lab: Lab, tmp_path: Path) -> None:
    """9000 bytes on the wire, more than the 4 KB that the NetfilterQueue package copies by itself."""
    path = tmp_path / "download"
    links = [("worker1", "eth0"), ("switch", "worker1"), *UNDERNEATH[lab.status()["links"]], ("head", "bond0.def")]
    with mtu(lab, *links, ("head", "bond0.2"), ("inet2", "eth0"), bytes=9000):
        assert "1 received" in ping(lab.node("worker1"), ADDRESS["inet2"], "-M", "do", "-s", "8972")
        download(lab, path)


@pytest.mark.parametrize("method", [(), ("-I",), ("-T", "-p", "80")], ids=["udp", "icmp", "tcp"])
def test_traceroute(lab: Lab, method: tuple[str, ...]) -> None:
    """Two hops from a worker to a host: the head and the host."""
    argv = ["traceroute", "-n", "-w", "5", "-q", "2", "-m", "5", *method, ADDRESS["inet2"]]
    try:
        output = lab.node("worker1").run(argv, timeout=60).stdout
    except FileNotFoundError:
        pytest.skip("traceroute is not installed")
    hops = [line.split()[1] for line in output.splitlines()[1:]]
    assert [INSIDE_HEAD, ADDRESS["inet2"]] == hops, output


# ── the head itself ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("host", HOSTS)
def test_heads_own_traffic(lab: Lab, host: str) -> None:
    """What the head does itself goes on as if there were no gateway."""
    head = lab.node("head")
    assert "3 received" in ping(head, ADDRESS[host], count=3)
    assert whoami(head, host)[0] == UPLINK[host]
    with udp_socket(head, source_port=23_000) as link:
        assert udp_whoami(link, host) == (UPLINK[host], 23_000)
    assert "1 received" in ping(head, ADDRESS[host], "-s", "5000")


def test_heads_port_is_not_given_away(lab: Lab) -> None:
    """A port that the head itself talks from is not an outside port of a worker at the same time."""
    with contextlib.ExitStack() as stack:
        head, worker = (
            stack.enter_context(connect(lab.node(node), ADDRESS["inet2"], 80, source_port=23_001))
            for node in ("head", "worker1")
        )
        seen = [http_whoami(head), http_whoami(worker)]
    assert seen[0] == (UPLINK["inet2"], 23_001)
    assert seen[1][0] == UPLINK["inet2"] and seen[1][1] != 23_001


def test_inbound_to_the_head(lab: Lab) -> None:
    """A service of the head's is reached from outside on either uplink, and from inside."""
    with echo_server(lab.node("head"), SSH):
        for node, address in (
            ("inet2", UPLINK["inet2"]), ("inet3", UPLINK["inet3"]), ("worker1", INSIDE_HEAD),
            ("worker2", UPLINK["inet2"]),
        ):
            with connect(lab.node(node), address, SSH) as link:
                echo(link, b"x" * 50_000)
    assert "1 received" in ping(lab.node("inet2"), UPLINK["inet2"])
    assert "1 received" in ping(lab.node("inet3"), UPLINK["inet3"], "-s", "5000")
    with pytest.raises(ConnectionRefusedError):         # the head's own RST gets out
        connect(lab.node("inet2"), UPLINK["inet2"], 9)


# ── what must not pass ──────────────────────────────────────────────────────────────────────────


def test_outsiders_cannot_address_the_inside(lab: Lab) -> None:
    """inet2 is given a route to the workers; nothing that it begins gets there."""
    inet2 = lab.node("inet2")
    inet2.run(["ip", "route", "add", "10.1.0.0/24", "via", UPLINK["inet2"]], timeout=10)
    try:
        with lab.capture("worker1", "eth0", "src 203.0.113.2") as arrived:
            assert is_silent(inet2, ADDRESS["worker1"])
            send_raw(
                lab, "inet2",
                *(IP(src=ADDRESS["inet2"], dst=ADDRESS["worker1"]) / each for each in (
                    TCP(sport=80, dport=4000, flags="S"), TCP(sport=80, dport=4000, flags="SA"),
                    TCP(sport=80, dport=4000, flags="R"), UDP(sport=ECHO, dport=4000) / b"x",
                    ICMP(type=0, id=4711), ICMP(type=3, code=3) / IP(src=ADDRESS["worker1"]) / UDP(),
                )),
            )
            assert "1 received" in ping(inet2, UPLINK["inet2"])     # behind the others in the queue
        assert len(arrived.packets()) == 0
    finally:
        inet2.run(["ip", "route", "del", "10.1.0.0/24"], timeout=10)


def test_nothing_odd_leaks(lab: Lab, gateway: Engine) -> None:
    """What kernel MASQUERADE lets out untranslated does not get out here; the capture would see it."""
    to_host = {"src": ADDRESS["worker1"], "dst": ADDRESS["inet2"]}
    odd_flags = ("R", "F", "A", "FA", "SA", "", "FPU")
    # below the ephemeral ports: no connection of an earlier test may be what they belong to
    segments = [TCP(sport=20_000 + i, dport=80, flags=flags) for i, flags in enumerate(odd_flags)]
    quoted = IP(src=ADDRESS["inet2"], dst=ADDRESS["worker1"]) / UDP(sport=1, dport=2)
    before = dropped(gateway)
    send_raw(
        lab, "worker1",
        *(IP(**to_host) / segment for segment in segments),
        IP(**to_host, frag=100) / Raw(b"a later fragment of nothing"),      # waits half a minute before it is dropped
        IP(**to_host, proto=51) / Raw(bytes(20)),                   # AH
        IP(**to_host, proto=132) / Raw(b"short"),
        IP(**to_host) / ICMP(type=0, id=1) / b"an answer that nobody asked for",
        IP(**to_host) / ICMP(type=3, code=1) / quoted,
        IP(**to_host) / ICMP(type=15),
        IP(**to_host, proto=6) / Raw(b"short"),
    )
    wait_for("all of them dropped", lambda: dropped(gateway) >= before + len(segments) + 6)


def test_wrong_checksum_stays_wrong(lab: Lab) -> None:
    """A damaged datagram is translated, and not repaired: the receiver still throws it away."""
    with lab.capture("inet2", "eth0", "udp dst port 24100") as capture:
        damaged = UDP(sport=24_100, dport=24_100, chksum=0x1234)
        packet = IP(src=ADDRESS["worker1"], dst=ADDRESS["inet2"]) / damaged / b"x"
        send_raw(lab, "worker1", packet, packet / b"yz")
        wait_for("two packets", lambda: capture.path.stat().st_size > 24 + 2 * (16 + 14 + 28))
    for seen in capture.packets():
        assert seen[IP].src == UPLINK["inet2"]
        found = seen[UDP].chksum
        del seen[UDP].chksum
        assert IP(bytes(seen[IP]))[UDP].chksum != found


def test_everything_again_after_the_odd_ones(lab: Lab) -> None:
    """Whatever this module has sent, ordinary traffic still works."""
    for worker, host in PAIRS:
        assert whoami(lab.node(worker), host)[0] == UPLINK[host]
        with pytest.raises(CommandFailed):
            curl(lab.node(worker), f"http://{ADDRESS[host]}:9/")
