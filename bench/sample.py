"""Are the packets right?  A sample, looked at byte by byte at the receiving host.

Three ways: UDP probes read from inet2's interface, with both checksums recomputed here; a TCP
transfer each way through the lab's HTTP server, compared by digest; and UDP packets that the sender
leaves to the kernel to cut up (UDP_SEGMENT, as QUIC does), counted where they arrive.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import random
import socket
import struct
import time
from dataclasses import dataclass

from natlab.errors import LabError
from natlab.node import Node

ETH_P_IP = 0x0800
SOL_PACKET = 263                # linux/socket.h
PACKET_AUXDATA = 8              # linux/if_packet.h
AUXDATA = struct.Struct("=IIIHHHH")
TP_STATUS_CSUMNOTREADY = 1 << 3
SO_RCVBUFFORCE = 33
PROBE_PORT = 9000               # udp_probe.h
SERVER = "203.0.113.2"
UDP_SEGMENT = 103               # linux/udp.h
GSO_PORT = 9001
GSO_SENDS, GSO_SEGMENTS, GSO_BYTES = 5, 40, 1200
GSO_DATAGRAMS = GSO_SENDS * GSO_SEGMENTS
DEADLINE_S = 20.0


@dataclass
class Sample:
    """What was seen of a sample of UDP probes."""

    seen: int = 0
    bad_ip_checksums: int = 0
    bad_udp_checksums: int = 0
    wrong_sources: int = 0

    def require_right(self, name: str, wanted: int) -> None:
        """Return if enough were seen and all were right.

        Raises:
            LabError: It is not so; a figure measured like this would mean nothing.
        """
        if self.seen < wanted or self.bad_ip_checksums or self.bad_udp_checksums or self.wrong_sources:
            raise LabError(f"{name}: of {wanted} sample packets: {self}")


class Sampler:
    """Collects UDP probes as they come in at a node's interface, from the start of the block on."""

    def __init__(self, node: Node, interface: str, source: str) -> None:
        self._node, self._interface = node, interface
        self._source = socket.inet_aton(source)

    def __enter__(self) -> Sampler:
        with self._node.enter():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self._socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self._socket.bind((self._interface, ETH_P_IP))
        return self

    def __exit__(self, *_exc: object) -> None:
        self._socket.close()

    def collect(self, wanted: int, timeout_s: float) -> Sample:
        """Look at packets until there were `wanted` probes or for so long."""
        sample, deadline = Sample(), time.monotonic() + timeout_s
        while sample.seen < wanted and (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            with contextlib.suppress(TimeoutError):
                self._look(sample)
        return sample

    def _look(self, sample: Sample) -> None:
        packet, ancillary, _flags, address = self._socket.recvmsg(2048, socket.CMSG_SPACE(AUXDATA.size))
        header = (packet[0] & 15) * 4
        if address[2] == socket.PACKET_OUTGOING or packet[9] != socket.IPPROTO_UDP:
            return
        datagram = packet[header : int.from_bytes(packet[2:4], "big")]
        if int.from_bytes(datagram[2:4], "big") != PROBE_PORT:
            return
        pending = any(
            int(AUXDATA.unpack(data)[0]) & TP_STATUS_CSUMNOTREADY
            for level, kind, data in ancillary if (level, kind) == (SOL_PACKET, PACKET_AUXDATA)
        )
        pseudo = packet[12:20] + struct.pack("!HH", socket.IPPROTO_UDP, len(datagram))
        if pending:                 # virtual links leave it to hardware there is none of: the pseudo header's sum
            right = ones_sum(pseudo) == int.from_bytes(datagram[6:8], "big")
        else:
            right = datagram[6:8] != b"\0\0" and ones_sum(pseudo + datagram) == 0xFFFF
        sample.seen += 1
        sample.bad_ip_checksums += ones_sum(packet[:header]) != 0xFFFF
        sample.bad_udp_checksums += not right
        sample.wrong_sources += packet[12:16] != self._source


def ones_sum(data: bytes) -> int:
    """Return the one's complement sum of 16-bit words (RFC 1071), folded."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def transfer(worker: Node, length: int, seed: int) -> None:
    """Move `length` bytes through the gateway in each direction and compare digests.

    Raises:
        LabError: Not all of them have arrived as they were.
    """
    body = random.Random(seed).randbytes(length)
    try:
        with worker.enter(), contextlib.closing(http.client.HTTPConnection(SERVER, timeout=DEADLINE_S)) as link:
            link.connect()
            link.request("GET", f"/bytes/{length}?seed={seed}")
            answer = link.getresponse()
            down = hashlib.sha256(answer.read()).hexdigest() == answer.headers["X-Sha256"]
            link.request("POST", "/sink", body)
            up = link.getresponse().read().decode() == f"{hashlib.sha256(body).hexdigest()} {length}\n"
    except (OSError, http.client.HTTPException) as error:
        raise LabError(f"the sample transfer did not get through: {error!r}") from None
    if not (down and up):
        raise LabError("the sample transfer has arrived, but not as it was sent")


def segmented_datagrams(worker: Node, inet2: Node) -> int:
    """Send GSO_DATAGRAMS in a few large packets and return how many arrived with a right checksum.

    A gateway that is given such a packet whole has to correct the pseudo header's sum in it: the
    kernel adds the rest for each datagram and does not look at the addresses again.
    """
    payload = random.Random(2).randbytes(GSO_BYTES * GSO_SEGMENTS)
    expected = [payload[at : at + GSO_BYTES] for at in range(0, len(payload), GSO_BYTES)]
    with inet2.enter():
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with worker.enter():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.bind(("", GSO_PORT))
        receiver.settimeout(0.5)
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, GSO_BYTES)
        arrived = 0
        for _ in range(GSO_SENDS):
            sender.sendto(payload, (SERVER, GSO_PORT))
            for datagram in expected:
                try:
                    arrived += receiver.recv(2048) == datagram
                except TimeoutError:
                    break
        return arrived
