"""The lab from below: packets are made by hand and seen as they are on the wire.

    w1 10.1.0.11 ─┐           ┌─ U0 203.0.113.2   (U1, U2, U3 are .3, .4, .5: the same host)
                  ├─ gateway ─┤
    w2 10.1.0.12 ─┘    G 203.0.113.1

The stacks of these hosts see nothing of it (INPUT drops), so they answer nothing.

Silence is not waited for, but for a moment: after the packets of an exchange a mark goes each way through flows of its
own.  All is in order, so what has not been seen when the marks are there does not come.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import select
import socket
import time
from collections.abc import Callable, Iterator

from natlab import Lab, Node
from support.packets import address, ping, source_port, udp

from conformance.subjects import Subject

W1, W2, G, INSIDE_G = "10.1.0.11", "10.1.0.12", "203.0.113.1", "10.1.0.1"
U0, U1, U2, U3 = "203.0.113.2", "203.0.113.3", "203.0.113.4", "203.0.113.5"
INSIDE = address("10.0.0.0") >> 24

ETH_P_IP, PACKET_OUTGOING = 0x0800, 4       # linux/if_ether.h, linux/if_packet.h
DEADLINE_S = 20.0                           # for what takes milliseconds: the machine may be busy
A_MOMENT_S = 0.2
PASSES_S = 5
MARK_PORT, MARKED = 4998, 9

Packets = list[bytearray]


class Tap:
    """A host's cable: what arrives on it, and a way to send."""

    def __init__(self, node: Node) -> None:
        self.node = node
        with node.enter():
            self.seen = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))
            self._out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self.seen.bind(("eth0", ETH_P_IP))
        self.seen.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)

    def send(self, packet: bytes | bytearray) -> None:
        self._out.sendto(packet, (socket.inet_ntoa(bytes(packet[16:20])), 0))

    def next(self, timeout: float) -> bytearray | None:
        """The next packet to arrive, without what the link pads it with; None if none comes."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0 or timeout == 0:
            self.seen.settimeout(max(left, 0) if timeout else 0)
            try:
                packet, sender = self.seen.recvfrom(65536)
            except (TimeoutError, BlockingIOError):
                return None
            if sender[2] != PACKET_OUTGOING:
                return bytearray(packet[:int.from_bytes(packet[2:4], "big")])
        return None

    def drain(self) -> Packets:
        """What has arrived already."""
        return list(iter(lambda: self.next(0), None))

    def close(self) -> None:
        self.seen.close()
        self._out.close()


class Network:
    """Two hosts inside and one outside, around the gateway that is tested."""

    def __init__(self, lab: Lab, taps: dict[str, Tap], subject: Subject, ports: Iterator[int]) -> None:
        self.lab, self.subject, self._ports = lab, subject, ports
        self._inside = {W1: taps["worker1"], W2: taps["worker2"]}
        self._outside = taps["inet2"]
        self._numbers = itertools.count()
        self._mark_port = 0

    def port(self) -> int:
        """A port of its own for a test: even, and the nine after it are nobody's either."""
        return next(self._ports)

    # ── one packet ───────────────────────────────────────────────────────────────────────────────

    def out(self, packet: bytearray) -> bytearray | None:
        """Send a packet from inside, and return what arrives outside for it; None for nothing."""
        seen = self.exchange(packet).outside
        return seen[0] if seen else None

    def back(self, packet: bytearray) -> bytearray | None:
        """Send a packet from outside, and return what arrives inside for it; None for nothing."""
        seen = self.exchange(packet).inside
        return seen[0] if seen else None

    def mapped(self, text: str, build: Callable[[str], bytearray] = udp) -> int | None:
        """The outside port (or identifier) that "A:1 > B:2" leaves with."""
        sent = self.out(build(text))
        return None if sent is None else source_port(sent)

    # ── several ──────────────────────────────────────────────────────────────────────────────────

    def exchange(self, *packets: bytearray) -> Exchange:
        """Send packets, each from the side that its source is on, and return what either side has seen."""
        self._mark_flow()
        for tap in (*self._inside.values(), self._outside):
            tap.drain()
        for packet in packets:
            self._tap_of(packet).send(packet)
        inside: Packets = []
        number = next(self._numbers)
        outward, inward = (b"mark %d %d" % (way, number) for way in (1, 2))
        self._outside.send(udp(f"{U0}:{MARKED} > {G}:{self._mark_port}", inward))
        inside += self._until(self._inside[W1], inward) + self._inside[W2].drain()
        self._inside[W1].send(udp(f"{W1}:{MARK_PORT} > {U0}:{MARKED}", outward))
        outside = self._until(self._outside, outward)
        if not inside and not outside:
            self._wait_a_moment()
        inside += self._inside[W1].drain() + self._inside[W2].drain()
        return Exchange(inside, outside + self._outside.drain())

    def _wait_a_moment(self) -> None:
        """Where nothing came before the marks: they might have overtaken it, from one processor to another."""
        select.select([tap.seen for tap in (*self._inside.values(), self._outside)], [], [], A_MOMENT_S)

    def exchange_without_marks(self, *packets: bytearray) -> Packets:
        """Send packets from inside and return what comes out of it, where no mark would.

        A last packet, to the gateway's own echo, has been answered when they have been dealt with.
        """
        self._outside.drain()
        for packet in packets:
            self._tap_of(packet).send(packet)
        number = next(self._numbers)
        self._inside[W1].send(ping(f"{W1} > {INSIDE_G}", number))
        _wait(self._inside[W1], lambda packet: packet[9] == 1 and packet[20] == 0 and source_port(packet) == number)
        return self._outside.drain()

    def wait_outside(self, wanted: Callable[[bytearray], bool]) -> bytearray:
        """The next packet to arrive outside that is wanted."""
        return _wait(self._outside, wanted)

    def _mark_flow(self) -> None:
        if self._mark_port:
            return
        self._inside[W1].send(udp(f"{W1}:{MARK_PORT} > {U0}:{MARKED}", b"mark"))
        self._mark_port = source_port(_wait(self._outside, lambda packet: packet.endswith(b"mark")))

    def forget_marks(self) -> None:
        """The gateway's table was emptied."""
        self._mark_port = 0

    def _until(self, tap: Tap, mark: bytes) -> Packets:
        seen: Packets = []

        def is_mark(packet: bytearray) -> bool:
            if packet.endswith(mark):
                return True
            seen.append(packet)
            return False

        _wait(tap, is_mark)
        return seen

    def _tap_of(self, packet: bytearray) -> Tap:
        if packet[12] != INSIDE:
            return self._outside
        return self._inside.get(socket.inet_ntoa(bytes(packet[12:16])), self._inside[W1])

    # ── the gateway's own view ───────────────────────────────────────────────────────────────────

    def left(self, proto: str, port: int | None = None) -> int:
        """The seconds that a flow of w1's has left, by its source port; 0 if there is none."""
        words = ["-L", "-p", proto, "-s", W1, *(() if port is None else ("--sport", str(port)))]
        lines = self.subject.conntrack(*words).splitlines()
        return int(lines[0].split()[2]) if lines else 0

    def later(self, proto: str, port: int) -> int:
        """Wait until so much time has passed for a flow that a refresh shows; return what it has left then."""
        deadline = time.monotonic() + DEADLINE_S
        fresh = self.left(proto, port)
        while (left := self.left(proto, port)) > fresh - PASSES_S:
            assert time.monotonic() < deadline, "its time does not pass"
            time.sleep(0.2)
        return left

    def forget(self, proto: str, port: int) -> None:
        """End a flow of w1's, as if its time had come."""
        self.subject.conntrack("-D", "-p", proto, "-s", W1, "--sport", str(port))

    @contextlib.contextmanager
    def mtu(self, node: str, interface: str, mtu: int) -> Iterator[None]:
        """A link that takes smaller packets."""
        set_to = ["ip", "link", "set", interface, "mtu"]
        found = self.lab.node(node).run(["ip", "-o", "link", "show", interface], timeout=20).stdout
        before = re.search(r"mtu (\d+)", found)
        assert before is not None
        self.lab.node(node).run([*set_to, str(mtu)], timeout=20)
        try:
            yield
        finally:
            self.lab.node(node).run([*set_to, before[1]], timeout=20)


class Exchange:
    """What was seen on either side, marks left out."""

    def __init__(self, inside: Packets, outside: Packets) -> None:
        self.inside, self.outside = inside, outside


def _wait(tap: Tap, wanted: Callable[[bytearray], bool]) -> bytearray:
    deadline = time.monotonic() + DEADLINE_S
    while (left := deadline - time.monotonic()) > 0:
        packet = tap.next(left)
        if packet is not None and wanted(packet):
            return packet
    raise TimeoutError("a packet that has to come does not come")
