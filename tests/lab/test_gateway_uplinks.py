"""Uplinks that change under a running gateway: addresses come and go, links flap, routes move."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator

import pytest
from conftest import NewEngine
from gateway_tools import (
    ADDRESS,
    DEADLINE_S,
    ECHO,
    UPLINK,
    answers,
    connect,
    conntrack_lines,
    dropped,
    echo,
    head_state,
    udp_socket,
    udp_whoami,
    wait_for,
)
from natlab import Lab
from natlab.engine import Engine

pytestmark = pytest.mark.lab

ANYCAST = "192.0.2.9"               # is at inet2 and at inet3; the head's routes say which one is meant


@contextlib.contextmanager
def extra_address(lab: Lab, node: str, address: str, interface: str) -> Iterator[None]:
    """Another address for a while."""
    lab.node(node).run(["ip", "address", "add", address, "dev", interface], timeout=10)
    try:
        yield
    finally:
        lab.node(node).run(["ip", "address", "del", address, "dev", interface], timeout=10)


@pytest.fixture
def anycast(lab: Lab) -> Iterator[str]:
    """An address that both providers know; its route on the head goes by inet2 to begin with."""
    with contextlib.ExitStack() as stack:
        for host in UPLINK:
            stack.enter_context(extra_address(lab, host, f"{ANYCAST}/32", "lo"))
        lab.node("head").run(["ip", "route", "add", ANYCAST, "via", ADDRESS["inet2"]], timeout=10)
        try:
            yield ANYCAST
        finally:
            lab.node("head").run(["ip", "route", "del", ANYCAST], timeout=10)


def bound_socket(lab: Lab, node: str, address: str, port: int) -> socket.socket:
    """A UDP socket with one of a node's addresses."""
    with lab.node(node).enter():
        link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    link.settimeout(DEADLINE_S)
    link.bind((address, port))
    return link


def test_route_moves_to_the_other_uplink(lab: Lab, engine: Engine, anycast: str) -> None:
    """UDP goes on from the new address, a connection ends, and nothing shows one provider the other's address."""
    head, worker, port = lab.node("head"), lab.node("worker1"), 31_800
    foreign = lab.capture("inet3", "eth0", f"src host {UPLINK['inet2']}")
    with contextlib.ExitStack() as stack:
        capture = stack.enter_context(foreign)
        client = stack.enter_context(udp_socket(worker, source_port=port))
        link = stack.enter_context(connect(worker, anycast, ECHO))
        server = {host: stack.enter_context(bound_socket(lab, host, anycast, port)) for host in UPLINK}

        def talks_to(host: str) -> None:
            client.sendto(b"question", (anycast, port))
            data, seen = server[host].recvfrom(100)
            assert (data, seen) == (b"question", (UPLINK[host], port))
            server[host].sendto(b"answer", seen)
            assert client.recv(100) == b"answer"

        echo(link, b"before")
        talks_to("inet2")
        head.run(["ip", "route", "replace", anycast, "via", ADDRESS["inet3"]], timeout=10)
        talks_to("inet3")
        link.sendall(b"after")
        wait_for("the end of the connection", lambda: dropped(engine, "uplink changed"))
        assert not conntrack_lines(engine, "-p", "tcp")
        with connect(worker, anycast, ECHO) as new:
            echo(new, b"a new one")
        head.run(["ip", "route", "replace", anycast, "via", ADDRESS["inet2"]], timeout=10)
        talks_to("inet2")
    assert not capture.packets()


def test_link_goes_down_and_up(lab: Lab, engine: Engine) -> None:
    """The address stays, and the connections with it; the other uplink does not notice."""
    head = lab.node("head")
    with (
        connect(lab.node("worker1"), ADDRESS["inet3"], ECHO) as link,
        connect(lab.node("worker2"), ADDRESS["inet2"], ECHO) as other,
    ):
        echo(link, b"before")
        head.run(["ip", "link", "set", "bond0.3", "down"], timeout=10)
        try:
            echo(other, b"meanwhile")
        finally:
            head.run(["ip", "link", "set", "bond0.3", "up"], timeout=10)
        wait_for("the link", lambda: answers(lab.node("worker1"), ADDRESS["inet3"]))
        echo(link, b"after")
        echo(other, b"after")


def test_one_of_several_addresses_goes(lab: Lab, engine: Engine) -> None:
    """Only the flows on it end."""
    with udp_socket(lab.node("worker1")) as datagrams:
        with extra_address(lab, "head", "198.51.100.50/24", "bond0.3"):
            assert udp_whoami(datagrams, "inet3")[0] == UPLINK["inet3"]
            with bound_socket(lab, "head", "198.51.100.50", 0) as bound:
                assert udp_whoami(bound, "inet3")[0] == "198.51.100.50"
            assert conntrack_lines(engine, "-q", "198.51.100.50")
        wait_for("the end of its flow", lambda: not conntrack_lines(engine, "-q", "198.51.100.50"))
        assert conntrack_lines(engine, "-q", UPLINK["inet3"])
        assert udp_whoami(datagrams, "inet3")[0] == UPLINK["inet3"]


# ── what the hooks of hairpinning do meanwhile ──────────────────────────────────────────────────


def test_hooks_follow_the_addresses(lab: Lab, engine: Engine) -> None:
    """An address more on an uplink: what is for it is taken; and no longer when it is gone."""
    head = lab.node("head")

    def is_taken() -> bool:
        return any(re.search(r"\b203\.0\.113\.50\b", line) for line in head_state(lab).rules)

    assert not is_taken()
    head.run(["ip", "address", "add", "203.0.113.50/24", "dev", "bond0.2"], timeout=10)
    try:
        wait_for("the hook", is_taken)
    finally:
        head.run(["ip", "address", "del", "203.0.113.50/24", "dev", "bond0.2"], timeout=10)
    wait_for("no hook", lambda: not is_taken())


def test_a_rule_without_an_interface(lab: Lab, new_engine: NewEngine) -> None:
    """Everything is taken at both hooks then; hairpinning is the same."""
    new_engine().type(["iptables -t nat -A POSTROUTING -j MASQUERADE"])
    with udp_socket(lab.node("worker1")) as one, udp_socket(lab.node("worker2")) as two:
        first, second = udp_whoami(one, "inet2"), udp_whoami(two, "inet2")
        two.settimeout(DEADLINE_S)
        one.sendto(b"question", second)
        assert two.recvfrom(100) == (b"question", first)
