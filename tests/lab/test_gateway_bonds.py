"""The lab with real parts: VLANs on a bond whose legs fail, one after the other, while the gateway translates.

                                   ┌─ leg1 ─┐
    worker1, worker2 ── head bond0 ┤        ├ switch (VLANs 2, 3, 1000) ── inet2, inet3
                                   └─ leg2 ─┘
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator

import pytest
from gateway_tools import (
    ADDRESS,
    ECHO,
    HTTP,
    OWNERS_RULES,
    UPLINK,
    connect,
    conntrack_lines,
    echo,
    leak_check,
    missing,
    udp_socket,
    udp_whoami,
    wait_for,
    whoami,
)
from natlab import Lab, LabError, LinkKind, unique_prefix
from natlab.engine import Engine
from natlab.servers import body_sha256

pytestmark = pytest.mark.lab

LEGS = ("leg1", "leg2")
TRANSFER_BYTES = 16 << 20       # more than the sockets' buffers hold: it is not over when the leg fails


@pytest.fixture(scope="module", params=[LinkKind.BOND_VLAN, LinkKind.LACP_VLAN], ids=["active-backup", "802.3ad"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab on such a bond; nothing leaks to inet2 and inet3 in the whole module."""
    lab = Lab(unique_prefix("ltbond"), links=request.param)
    try:
        lab.up()
    except LabError as error:
        if "lacks bonding" in str(error) or "needs root" in str(error):
            pytest.skip(str(error))
        raise
    try:
        if reason := missing(lab):
            pytest.skip(reason)
        wait_for("both legs in use", lambda: usable_legs(lab) == set(LEGS))
        with leak_check(lab):
            yield lab
    finally:
        lab.down()


@pytest.fixture(scope="module")
def gateway(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine with the owner's rules."""
    rules = tmp_path_factory.mktemp("rules") / "owners.v4"
    rules.write_text(OWNERS_RULES)
    with Engine(lab, "--rules", str(rules)) as engine:
        yield engine


def usable_legs(lab: Lab) -> set[str]:
    """The legs over which the bond can send now: up, and with 802.3ad in the aggregator that is in use."""
    text = lab.node("head").run(["cat", "/proc/net/bonding/bond0"], timeout=10).stdout
    general, *legs = re.split(r"^Slave Interface: ", text, flags=re.M)
    active = re.search(r"^\tAggregator ID: (\d+)", general, re.M)
    found = set()
    for leg in legs:
        aggregator = re.search(r"^Aggregator ID: (\d+)", leg, re.M)
        if "MII Status: up" in leg and (aggregator and aggregator[1]) == (active and active[1]):
            found.add(leg.split()[0])
    return found


@contextlib.contextmanager
def failed(lab: Lab, leg: str) -> Iterator[None]:
    """One leg loses its carrier, and has it again afterwards."""
    switch = lab.node("switch")
    switch.run(["ip", "link", "set", f"head-{leg}", "down"], timeout=10)
    try:
        wait_for(f"{leg} is out", lambda: leg not in usable_legs(lab))
        yield
    finally:
        switch.run(["ip", "link", "set", f"head-{leg}", "up"], timeout=10)
        wait_for(f"{leg} is back", lambda: usable_legs(lab) == set(LEGS))


def test_the_parts_are_real(lab: Lab, gateway: Engine) -> None:
    """Every interface is a VLAN on the bond, and every worker gets out over both uplinks."""
    kinds = {item["kind"] for name, item in lab.status()["nodes"]["head"]["interfaces"].items() if "." in name}
    assert kinds == {lab.status()["links"]} and kinds <= {"bond/vlan", "lacp/vlan"}
    for worker in ("worker1", "worker2"):
        for host, address in UPLINK.items():
            assert whoami(lab.node(worker), host)[0] == address


def test_failover_loses_no_connection(lab: Lab, gateway: Engine) -> None:
    """Each leg fails once, while connections are open: all of them go on, with the same outside ports."""
    with contextlib.ExitStack() as stack:
        links = [
            stack.enter_context(connect(lab.node(worker), ADDRESS[host], ECHO))
            for worker in ("worker1", "worker2") for host in UPLINK for _ in range(4)
        ]
        datagrams = stack.enter_context(udp_socket(lab.node("worker1")))
        outside = udp_whoami(datagrams, "inet3")
        for leg in LEGS:
            with failed(lab, leg):
                for link in links:
                    echo(link, leg.encode() * 500)
                assert udp_whoami(datagrams, "inet3") == outside
        for link in links:
            echo(link, b"after")
        established = conntrack_lines(gateway, "-p", "tcp", "--dport", str(ECHO), "--state", "ESTABLISHED")
        assert len(established) == len(links)


def test_failover_in_the_middle_of_a_transfer(lab: Lab, gateway: Engine) -> None:
    """Both legs fail in turn during one download; it ends with the right bytes."""
    digest, received = hashlib.sha256(), 0
    with connect(lab.node("worker1"), ADDRESS["inet2"], HTTP) as link:
        link.sendall(f"GET /bytes/{TRANSFER_BYTES}?seed=7 HTTP/1.0\r\n\r\n".encode())
        stream = link.makefile("rb")
        while stream.readline() != b"\r\n":
            pass
        for leg in (*LEGS, None):
            with failed(lab, leg) if leg else contextlib.nullcontext():
                while received < TRANSFER_BYTES * (LEGS.index(leg) + 1 if leg else 3) // 3:
                    piece = stream.read1(65536)
                    assert piece, "the connection was closed"
                    digest.update(piece)
                    received += len(piece)
    assert (received, digest.hexdigest()) == (TRANSFER_BYTES, body_sha256(TRANSFER_BYTES, 7))
