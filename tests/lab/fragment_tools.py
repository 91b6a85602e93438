"""Datagrams in pieces, sent one by one behind the back of the sender's stack, and a worker's socket to receive them."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator, Sequence

from gateway_tools import UPLINK, udp_socket, udp_whoami
from natlab import Lab
from natlab.engine import Engine
from scapy.layers.inet import IP, UDP, fragment
from scapy.packet import Packet, Raw

DATA = bytes(i % 251 for i in range(8000))
SIZE = 1400                         # bytes of a piece: six of them


def pieces_of(source: str, sport: int, destination: str, dport: int, data: bytes, ident: int) -> list[Packet]:
    """Return the fragments of a UDP datagram."""
    packet = IP(src=source, dst=destination, id=ident) / UDP(sport=sport, dport=dport) / Raw(data)
    return list(fragment(IP(bytes(packet)), SIZE))


def in_the_order(pieces: list[Packet], order: Sequence[int]) -> list[Packet]:
    return [pieces[i] for i in order]


@contextlib.contextmanager
def mapped(lab: Lab, worker: str, port: int) -> Iterator[tuple[socket.socket, int]]:
    """A worker's socket that has talked to inet2's echo service, and the port it has outside."""
    with udp_socket(lab.node(worker), source_port=port) as link:
        address, outside = udp_whoami(link, "inet2")
        assert address == UPLINK["inet2"]
        link.settimeout(20)
        yield link, outside


def held(engine: Engine) -> int:
    """How many fragments wait for their first one."""
    return int(json.loads(engine.run("status", "--json").stdout)["fragments"]["held"])


def queued(lab: Lab) -> int:
    """How many packets wait in the kernel for a verdict."""
    lines = lab.node("head").run(["cat", "/proc/net/netfilter/nfnetlink_queue"], timeout=20).stdout.splitlines()
    return sum(int(line.split()[2]) for line in lines)
