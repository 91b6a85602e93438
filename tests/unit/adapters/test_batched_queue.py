"""The batched loop, fed through a pair of sockets instead of by the kernel: which verdicts it sends, and when.

The messages are those of linux/netfilter/nfnetlink_queue.h.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import pytest
from support.backends import load_backend, table_config
from support.packets import fragments, tcp, udp

from natengine.flow.records import Path
from natengine.vocab import Hook, Verdict

_nfqueue = pytest.importorskip("natengine.adapters._nfqueue", reason="the extension is not built")

PACKET, VERDICT = 3 << 8, 3 << 8 | 1            # NFNL_SUBSYS_QUEUE; NFQNL_MSG_PACKET, NFQNL_MSG_VERDICT
PACKET_HDR, VERDICT_HDR, HWADDR, PAYLOAD, SKB_INFO = 1, 2, 9, 10, 14     # NFQA_*
CSUMNOTREADY, GSO = 1, 2                        # NFQA_SKB_*
QUEUE, CUTTING_QUEUE = 7, 9
NF_QUEUE = 3
PIECES = [bytes(each) for each in fragments(udp("10.1.0.11:5000 > 203.0.113.2:53", bytes(600)), 200)]

Answer = tuple[int, bytearray | None, int]


class Sent(NamedTuple):
    """A verdict, as it came to the kernel's end."""

    packet_id: int
    verdict: int
    packet: bytes | None


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


class Kernel:
    """The other end: hands packets over and takes verdicts.  `settle` is what the queue asks about each packet."""

    def __init__(self, settle: Callable[[bytearray], Answer]) -> None:
        self.end, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ours, self.lock = ours, _nfqueue.TableLock()
        self.wake_read, self.wake_write = os.pipe()
        fast = load_backend("cython").FastPath(table_config(4))
        self.asked: list[int] = []
        self.links: list[bytes] = []

        def ask(path: int, packet: bytearray, *place: object) -> Answer:
            self.asked.append(path)
            self.links.append(cast(bytes, place[4]))
            return settle(packet)

        self.queue = _nfqueue.BatchedQueue(ours.fileno(), QUEUE, fast, ask, self.lock, CUTTING_QUEUE)

    def hand_over(self, packet_id: int, packet: bytes, *, skb_info: int = 0, link: bytes = b"") -> None:
        body = struct.pack("!BBH", socket.AF_INET, 0, QUEUE)
        body += attribute(PACKET_HDR, struct.pack("!IHB", packet_id, 0x0800, Hook.POSTROUTING))
        body += attribute(HWADDR, link) if link else b""
        body += attribute(SKB_INFO, struct.pack("!I", skb_info))
        body += attribute(PAYLOAD, packet)
        self.end.send(struct.pack("=IHHII", 16 + len(body), PACKET, 0, 0, 0) + body)

    def serve(self) -> None:
        """Let the queue deal with what has been handed over, and return."""
        os.write(self.wake_write, b"\0")
        while select.select([self.ours], [], [], 0)[0]:
            self.queue.serve(self.wake_read, 5.0)

    def verdicts(self) -> list[Sent]:
        """Return what has been sent until now."""
        found = []
        while select.select([self.end], [], [], 0)[0]:
            data = self.end.recv(1 << 20)
            while data:
                length, kind = struct.unpack_from("=IH", data)
                assert (kind, data[16:20]) == (VERDICT, struct.pack("!BBH", 0, 0, QUEUE))
                attributes = dict(read_attributes(data[20:length]))
                verdict, packet_id = struct.unpack("!II", attributes[VERDICT_HDR])
                found.append(Sent(packet_id, verdict, attributes.get(PAYLOAD)))
                data = data[length + -length % 4:]
        return found

    def close(self) -> None:
        for each in (self.end, self.ours):
            each.close()
        os.close(self.wake_read)
        os.close(self.wake_write)


def read_attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        length, kind = struct.unpack_from("=HH", data)
        yield kind, data[4:length]
        data = data[length + -length % 4:]


@contextlib.contextmanager
def kernel(settle: Callable[[bytearray], Answer]) -> Iterator[Kernel]:
    made = Kernel(settle)
    try:
        yield made
    finally:
        made.close()


def ticket_of(packet: bytearray) -> int:
    """In these tests: the fragment's offset."""
    return int.from_bytes(packet[6:8], "big") & 0x1FFF


def hold_all(packet: bytearray) -> Answer:
    return Verdict.HELD, None, ticket_of(packet)


def test_a_held_packet_has_no_verdict() -> None:
    """Until it is released: then that which is said, with the bytes that are given, and no second one."""
    with kernel(hold_all) as made:
        made.hand_over(31, PIECES[1])
        made.hand_over(32, PIECES[2])
        made.serve()
        assert made.asked == [Path.SPECIAL] * 2
        assert made.verdicts() == []
        assert made.queue.release(25, Verdict.ACCEPT, bytearray(PIECES[1][::-1]))
        assert made.verdicts() == [Sent(31, Verdict.ACCEPT, PIECES[1][::-1])]
        assert made.queue.release(50, Verdict.DROP, None)
        assert made.verdicts() == [Sent(32, Verdict.DROP, None)]
        assert not made.queue.release(50, Verdict.DROP, None)
        assert made.verdicts() == []
        assert made.queue.errors == 0


@pytest.mark.parametrize(("link", "told"), [
    (bytes.fromhex("0006 0000 020000000011 0000"), "020000000011"),
    (b"", ""),
    (bytes.fromhex("0008 0000 0200000000112233"), ""),          # of a link that is no Ethernet
    (bytes.fromhex("0006 0000 0200"), ""),                      # cut off: the kernel sends no such thing
])
def test_the_address_on_the_link(link: bytes, told: str) -> None:
    """nfqnl_msg_packet_hw: its length, two bytes of padding, and eight bytes, of which Ethernet's has six."""
    with kernel(lambda packet: (Verdict.ACCEPT, None, 0)) as made:
        made.hand_over(31, PIECES[1], link=link)
        made.serve()
        assert made.links == [bytes.fromhex(told)]
        assert made.verdicts() == [Sent(31, Verdict.ACCEPT, None)]


@pytest.mark.parametrize("cut", range(5))
def test_the_kernel_s_own_copy_goes_on(cut: int) -> None:
    """Released without bytes of our own; and with a number of them that is no multiple of 4."""
    with kernel(hold_all) as made:
        made.hand_over(31, PIECES[1])
        made.serve()
        made.queue.release(25, Verdict.ACCEPT, bytearray(PIECES[1][cut:]) if cut else None)
        assert made.verdicts() == [Sent(31, Verdict.ACCEPT, PIECES[1][cut:] if cut else None)]


def test_released_behind_the_packet_that_is_asked_about() -> None:
    """And behind those before it in the batch: the first fragment leaves before the ones that waited for it."""
    def settle(packet: bytearray) -> Answer:
        if ticket_of(packet):
            return hold_all(packet)
        if packet[20:22] == b"\x13\x88":            # the first fragment, of port 5000
            for ticket in (50, 25):
                assert made.queue.release(ticket, Verdict.ACCEPT, None)
        return Verdict.ACCEPT, packet, 0

    other = bytes(udp("10.1.0.12:1 > 203.0.113.2:53"))
    with kernel(settle) as made:
        for packet_id, packet in enumerate((PIECES[2], other, PIECES[1], other, PIECES[0], other)):
            made.hand_over(packet_id, packet)
        made.serve()
        assert [(each.packet_id, each.packet) for each in made.verdicts()] == [
            (1, other), (3, other), (4, PIECES[0]), (0, None), (2, None), (5, other),
        ]


def test_a_failure_while_something_is_released() -> None:
    """What was released gets its verdict all the same; the packet that was asked about is dropped."""
    def settle(packet: bytearray) -> Answer:
        if ticket_of(packet):
            return hold_all(packet)
        made.queue.release(25, Verdict.ACCEPT, None)
        raise ZeroDivisionError

    with kernel(settle) as made:
        made.hand_over(1, PIECES[1])
        made.hand_over(2, PIECES[0])
        with pytest.raises(ZeroDivisionError):
            made.serve()
        assert made.verdicts() == [Sent(2, Verdict.DROP, None), Sent(1, Verdict.ACCEPT, None)]


def test_a_large_send_is_cut_up_first() -> None:
    """Unchanged, and unasked, it goes to the queue where the kernel cuts it up; TCP's is settled as it is."""
    large = bytes(udp("10.1.0.11:5000 > 203.0.113.2:443", bytes(3000)))
    small = bytes(udp("10.1.0.11:5000 > 203.0.113.2:53"))
    stream = bytes(tcp("10.1.0.11:5000 > 203.0.113.2:443", "S"))
    with kernel(lambda packet: (Verdict.ACCEPT, packet, 0)) as made:
        made.hand_over(1, large, skb_info=GSO | CSUMNOTREADY)
        made.hand_over(2, small, skb_info=CSUMNOTREADY)
        made.hand_over(3, stream, skb_info=GSO | CSUMNOTREADY)
        made.hand_over(4, large, skb_info=GSO)          # it has been through a verdict
        made.serve()
        elsewhere = CUTTING_QUEUE << 16 | NF_QUEUE
        assert sorted(made.verdicts()) == [
            Sent(1, elsewhere, None), Sent(2, Verdict.ACCEPT, small), Sent(3, Verdict.ACCEPT, stream),
            Sent(4, elsewhere, None),
        ]
        assert (len(made.asked), made.queue.packets) == (2, 2)


def test_a_socket_that_is_gone() -> None:
    """The verdict of a held packet cannot be sent: counted, as for any other."""
    with kernel(hold_all) as made:
        made.hand_over(1, PIECES[1])
        made.serve()
        made.end.close()
        assert made.queue.release(25, Verdict.ACCEPT, None)
        assert made.queue.errors == 1
