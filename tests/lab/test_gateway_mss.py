"""MSS clamping with real connections over an uplink with a small MTU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import NewEngine
from gateway_tools import ADDRESS, UPLINK, curl, sha256
from natlab import Lab
from scapy.layers.inet import ICMP, IP, TCP
from scapy.packet import Packet

pytestmark = pytest.mark.lab


@pytest.fixture
def narrow_uplink(lab: Lab) -> Iterator[int]:
    """An uplink that takes 1300 bytes, as behind a tunnel; gives the largest segment that fits."""
    head = lab.node("head")
    (link,) = json.loads(head.run(["ip", "-json", "link", "show", "bond0.2"], timeout=20).stdout)
    head.run(["ip", "link", "set", "bond0.2", "mtu", "1300"], timeout=20)
    yield 1260
    head.run(["ip", "link", "set", "bond0.2", "mtu", str(link["mtu"])], timeout=20)


def offered(packets: list[Packet], host: str) -> set[object]:
    """The maximum segment sizes in the SYNs of a host."""
    return {
        dict(each[TCP].options).get("MSS") for each in packets if each[IP].src == host and each[TCP].flags.S
    }


def test_both_sides_are_told_what_fits_a_narrow_uplink(
    lab: Lab, new_engine: NewEngine, owners_rules: Path, narrow_uplink: int, tmp_path: Path
) -> None:
    """`clamp_mss_to_pmtu`: the interface's MTU is read from the kernel, and a download needs no ICMP 3/4."""
    config = tmp_path / "natengine.toml"
    config.write_text('clamp_mss_to_pmtu = ["bond0.2"]\n')
    engine = new_engine("--rules", owners_rules, "--config", config)
    worker, inet2 = lab.node("worker1"), ADDRESS["inet2"]
    with lab.capture("worker1", "eth0", "tcp port 80 or icmp") as inside, \
         lab.capture("inet2", "eth0", "tcp port 80 or icmp") as outside:
        path = tmp_path / "down"
        headers = curl(worker, f"http://{inet2}/bytes/100000", "-D", "-", "-o", str(path))
        assert f"X-Sha256: {sha256(path)}" in headers
    arrived, sent = inside.packets(), outside.packets()
    assert offered(sent, UPLINK["inet2"]) == {narrow_uplink}
    assert offered(arrived, inet2) == {narrow_uplink}
    assert not [each for each in (*arrived, *sent) if ICMP in each]
    assert engine.run("conntrack", "-L", "-p", "tcp").stdout
