"""`-m mac` with both adapters: real Ethernet addresses, as the kernel tells them at PREROUTING and at POSTROUTING."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import NewEngine
from gateway_tools import ADDRESS, ECHO, UPLINK, connect, dropped, echo, mac_address, send_raw, udp_socket, wait_for
from natlab import Lab
from natlab.engine import Engine
from scapy.layers.inet import ICMP, IP, TCP, UDP

pytestmark = pytest.mark.lab

Start = Callable[..., Engine]
SERVICE = 5300


@pytest.fixture
def start(new_engine: NewEngine, tmp_path: Path) -> Start:
    """A function that starts an engine with these rules beside the owner's."""

    def with_rules(*rules: str) -> Engine:
        path = tmp_path / "rules.v4"
        masquerade = ["*nat", "-A POSTROUTING -o bond0.2 -j MASQUERADE", "-A POSTROUTING -o bond0.3 -j MASQUERADE"]
        path.write_text("\n".join([*masquerade, *rules, "COMMIT", ""]))
        return new_engine("--rules", path)

    return with_rules


def test_forward_knows_a_worker_by_his_address_on_the_link(lab: Lab, start: Start) -> None:
    """Another one is refused, also under the first one's IP address, with a new flow and within a known one."""
    worker, inet = ADDRESS["worker1"], ADDRESS["inet2"]
    engine = start(
        "COMMIT", "*filter", ":FORWARD DROP [0:0]", "-A FORWARD -i bond0.2 -j ACCEPT",
        f"-A FORWARD -i bond0.def -m mac --mac-source {mac_address(lab.node('worker1'))} -j ACCEPT",
    )
    with connect(lab.node("worker1"), inet, ECHO) as link:
        echo(link, b"before")
        port = link.getsockname()[1]
        send_raw(
            lab, "worker2", IP(src=ADDRESS["worker2"], dst=inet) / ICMP(), IP(src=worker, dst=inet) / UDP(dport=ECHO),
            IP(src=worker, dst=inet) / TCP(sport=port, dport=ECHO, flags="R"),
        )
        wait_for("three packets of worker2 refused", lambda: dropped(engine, "forward drop") >= 3)
        echo(link, b"after")


def test_a_service_for_one_address_on_the_link(lab: Lab, start: Start) -> None:
    """nat PREROUTING: whose packet comes from another one is not sent on."""
    start(
        f"-A PREROUTING -p udp --dport {SERVICE} -m mac --mac-source {mac_address(lab.node('inet2'))} "
        f"-j DNAT --to-destination {ADDRESS['worker1']}",
    )
    with udp_socket(lab.node("worker1"), source_port=SERVICE) as service, \
            udp_socket(lab.node("inet3")) as stranger, udp_socket(lab.node("inet2")) as friend:
        stranger.sendto(b"stranger", (UPLINK["inet3"], SERVICE))
        friend.sendto(b"friend", (UPLINK["inet2"], SERVICE))
        data, client = service.recvfrom(100)
        assert (data, client[0]) == (b"friend", ADDRESS["inet2"])
        service.sendto(b"answer", client)
        assert friend.recvfrom(100) == (b"answer", (UPLINK["inet2"], SERVICE))
        friend.sendto(b"again", (UPLINK["inet2"], SERVICE))
        assert service.recv(100) == b"again"            # and nothing from the stranger in between
