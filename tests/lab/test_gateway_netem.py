"""Bad uplinks: packets that are late, lost, out of order, there twice, or damaged, in both directions.

    worker1 ── head ── bond0.2, bond0.3 (netem) ── (netem) inet2, inet3

Retransmission is TCP's business; the gateway's is that no flow ends, no right segment is refused, and
nothing gets out untranslated, which the `lab` fixture checks for the whole module.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import socket
from collections.abc import Iterator

import pytest
from gateway_tools import ADDRESS, ECHO, UPLINK, connect, conntrack_lines, curl, echo, udp_socket
from natlab import Lab, Node
from natlab.engine import Engine
from natlab.servers import body_sha256
from support.backends import NAMES

from natengine.app.client import ask

pytestmark = [pytest.mark.lab, pytest.mark.parametrize("fast_path", [NAMES[-1]], indirect=True)]

BAD = {                             # tc's words, see tc-netem(8)
    "delay": "delay 20ms 10ms distribution normal",
    "loss": "loss 5%",
    "reordering": "delay 5ms reorder 25% 50%",
    "duplication": "duplicate 10%",
    "late, out of order and twice": "delay 10ms 5ms distribution normal reorder 25% 50% duplicate 10%",
    "corruption": "corrupt 3%",
    "all": "delay 5ms 2ms loss 1% reorder 10% 50% duplicate 2% corrupt 1%",
}
TRANSFER_BYTES = 400_000
DAMAGING = {"corruption", "all"}    # what the network has changed may be refused
ASK_AGAIN_S = 2.0                   # a lost datagram is lost


@pytest.fixture(params=BAD)
def bad_uplinks(request: pytest.FixtureRequest, lab: Lab) -> Iterator[str]:
    """Both uplinks are bad in this way, in both directions."""
    if shutil.which("tc") is None:
        pytest.skip("tc is not installed")
    with contextlib.ExitStack() as stack:
        for node, interface in (("head", "bond0.2"), ("head", "bond0.3"), ("inet2", "eth0"), ("inet3", "eth0")):
            words = ["dev", interface, "root", "netem"]
            added = lab.node(node).run(
                ["tc", "qdisc", "add", *words, *BAD[request.param].split()], timeout=10, check=False
            )
            if "qdisc kind is unknown" in added.stderr:
                pytest.skip("this kernel has no netem")
            assert added.returncode == 0, added.stderr
            stack.callback(lab.node(node).run, ["tc", "qdisc", "del", *words], timeout=10)
        yield request.param


def echo_datagram(link: socket.socket, host: str, payload: bytes) -> None:
    """Send a datagram to an echo server until it comes back whole."""
    link.settimeout(ASK_AGAIN_S)
    for _ in range(30):
        link.sendto(payload, (ADDRESS[host], ECHO))
        with contextlib.suppress(TimeoutError):
            while (answer := link.recv(65536)) != payload:      # an earlier one, late or for the second time
                assert len(answer) <= len(payload)
            return
    raise AssertionError(f"{len(payload)} bytes to {host} never came back")


def download(node: Node, host: str, seed: int) -> None:
    """Fetch some bytes and compare them."""
    url = f"http://{ADDRESS[host]}/bytes/{TRANSFER_BYTES}?seed={seed}"
    with node.popen(["curl", "-sS", "-m", "1000", url], stdout=-1) as child:
        assert child.stdout is not None
        digest = hashlib.sha256(child.stdout.read()).hexdigest()
    assert digest == body_sha256(TRANSFER_BYTES, seed)


def refused(gateway: Engine) -> int:
    """How many segments have not fitted their connection so far."""
    reasons = ask(gateway.run_dir, "status")["status"]["packets_by_reason"]
    return int(reasons.get("TCP_WINDOW", 0) + reasons.get("TCP_STATE", 0))


def test_bad_uplinks(lab: Lab, gateway: Engine, bad_uplinks: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Transfers end with the right bytes in both directions, fragments arrive, and open connections stay open."""
    worker, other = lab.node("worker1"), lab.node("worker2")
    payload = tmp_path_factory.mktemp("netem") / "payload"
    payload.write_bytes(b"0123456789" * (TRANSFER_BYTES // 10))
    expected = hashlib.sha256(payload.read_bytes()).hexdigest()
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(other, ADDRESS[host], ECHO)) for host in UPLINK]
        datagrams = stack.enter_context(udp_socket(worker))
        before = refused(gateway)
        for number, host in enumerate(UPLINK):
            download(worker, host, number)
            sent = curl(worker, f"http://{ADDRESS[host]}/sink", "--data-binary", f"@{payload}")
            assert sent.split() == [expected, str(TRANSFER_BYTES)]
            echo_datagram(datagrams, host, b"small")
            echo_datagram(datagrams, host, bytes([number]) * 4000)         # three fragments
        for link in idle:
            echo(link, b"still here" * 1000)
        flows = conntrack_lines(gateway)
        assert sum("ESTABLISHED" in line and f"dport={ECHO} " in line for line in flows) == len(idle)
        # one for each host: none has ended and begun again
        assert sum(f"sport={datagrams.getsockname()[1]} dport={ECHO} " in line for line in flows) == len(UPLINK)
        if bad_uplinks not in DAMAGING:
            assert refused(gateway) == before
