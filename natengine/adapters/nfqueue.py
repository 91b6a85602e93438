"""NFQUEUE through the NetfilterQueue package: simple, portable, one system call a packet each way.

NetfilterQueue 1.1.0 asks for the first 4016 bytes of a packet and receives into 4096.  That is too
little: the head's own datagrams come here before they are cut into fragments, up to 64 KiB, and a
verdict with a shorter payload would cut them off.  So the kernel is asked for whole packets behind
its back, and the receiving is done here.

Limit: it cannot ask for GSO packets, so the kernel segments large TCP sends before they come here
and completes their checksums.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import time
from contextlib import AbstractContextManager

from netfilterqueue import NetfilterQueue, Packet

from natengine.adapters.base import SIDE_OF_HOOK, Decide, IoStats, no_queue, queue_taken
from natengine.errors import HostError
from natengine.vocab import Decision, PacketMeta, Verdict

PACKETS_PER_TURN = 256              # then somebody else may have a turn
BUSY_AFTER = 64                     # packets of one turn: more of them are waiting
QUEUE_LENGTH = 8192                 # packets the kernel holds for us before it drops
RECEIVE_BUFFER = 8 << 20            # bytes; a packet with its meta data takes up to about 2.5 KB of it
SO_RCVBUFFORCE = 33                 # linux/asm-generic/socket.h; not in the socket module

NLM_F_REQUEST = 1                   # linux/netlink.h
# linux/netfilter/nfnetlink_queue.h
NFNL_SUBSYS_QUEUE, NFQNL_MSG_CONFIG, NFQA_CFG_PARAMS, NFQNL_COPY_PACKET = 3, 2, 2, 2
ETH_ALEN = 6
COPY_RANGE = 65531                  # the longest payload that fits into a netlink attribute
MESSAGE_MAX = COPY_RANGE + 4096     # a packet, and what the kernel says about it


def _ask_for_whole_packets(link: socket.socket, queue_num: int) -> None:
    """Set the copy range of a queue that is bound to this netlink socket."""
    params = struct.pack("!IB3x", COPY_RANGE, NFQNL_COPY_PACKET)
    body = struct.pack("!BBH", socket.AF_UNSPEC, 0, queue_num)
    body += struct.pack("=HH", 4 + 5, NFQA_CFG_PARAMS) + params
    kind = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_CONFIG
    link.send(struct.pack("=IHHII", 16 + len(body), kind, NLM_F_REQUEST, 0, 0) + body)


def _link_source(packet: Packet) -> bytes:
    """Return `PacketMeta.link_src`, of a field of 8 bytes that an Ethernet address does not fill."""
    field = packet.get_hw() or b""
    return field[:ETH_ALEN] if field[ETH_ALEN:] == bytes(2) else b""


def _carry_out(packet: Packet, decision: Decision) -> None:
    if decision.verdict is Verdict.DROP:
        packet.drop()
        return
    if decision.packet is not None:
        packet.set_payload(bytes(decision.packet))
    packet.accept()


class _LimitedSocket:
    """Gives NetfilterQueue.run_socket() a bounded number of whole messages, then says there are no more.

    `run()` goes on for as long as packets come; under load nobody else would ever get a turn.
    """

    def __init__(self, fd: int) -> None:
        self.socket = socket.socket(fileno=fd)
        self.left = 0
        self.received = self.overruns = 0

    def recv(self, _size: int) -> bytes:
        if not self.left:
            raise BlockingIOError(errno.EAGAIN, "this turn is over")
        self.left -= 1
        try:
            data = self.socket.recv(MESSAGE_MAX, socket.MSG_DONTWAIT)
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                self.overruns += 1
            raise
        self.received += 1
        return data


class NetfilterQueueIO:
    """One NFQUEUE queue."""

    name = "netfilterqueue"

    def __init__(self, queue_num: int, decide: Decide) -> None:
        """Bind the queue in the current network namespace.

        Raises:
            HostError: Not root, no NFQUEUE in this kernel, or the queue belongs to another program.
        """
        self._decide = decide
        self._held: dict[int, Packet] = {}              # by ticket
        self._late: list[tuple[Packet, Decision]] = []  # released while another packet was being decided about
        self._asking = False
        self.queues = (queue_num, queue_num)
        # nothing to lock: everything happens in the thread that calls `serve`
        self.lock: AbstractContextManager[object] = contextlib.nullcontext()
        try:
            self._queue = NetfilterQueue()
        except OSError as error:
            raise HostError(no_queue(error)) from None
        try:
            self._queue.bind(queue_num, self._callback, max_len=QUEUE_LENGTH, sock_len=1 << 17)
        except OSError:
            raise HostError(queue_taken(queue_num)) from None
        # NetfilterQueue warns when net.core.rmem_max is small; root may go past that limit
        self._socket = _LimitedSocket(self._queue.get_fd())
        self._socket.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        _ask_for_whole_packets(self._socket.socket, queue_num)

    def _callback(self, packet: Packet) -> None:
        data = bytearray(packet.get_payload())
        hook = SIDE_OF_HOOK.get(packet.hook, packet.hook)
        meta = PacketMeta(hook, packet.indev, packet.outdev, packet.mark, _link_source(packet))
        self._asking = True
        try:
            decision = self._decide(data, meta, self._socket.left <= PACKETS_PER_TURN - BUSY_AFTER)
        finally:
            self._asking = False
        if decision.verdict is Verdict.HELD:
            self._held[decision.ticket] = packet
        else:
            _carry_out(packet, decision)
        late, self._late = self._late, []
        for released, answer in late:
            _carry_out(released, answer)

    def release(self, decision: Decision) -> None:
        """Carry out the decision about a held packet: at once, or after that which is being made."""
        packet = self._held.pop(decision.ticket)
        if self._asking:
            self._late.append((packet, decision))
        else:
            _carry_out(packet, decision)

    def serve(self, wake_fd: int, timeout_s: float) -> None:
        """Deal with packets until `wake_fd` is readable or the time is over."""
        end = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._queue.get_fd(), select.POLLIN)
        poll.register(wake_fd, select.POLLIN)
        while (left := end - time.monotonic()) > 0:
            ready = [fd for fd, _ in poll.poll(left * 1000)]
            if self._queue.get_fd() in ready:
                self._socket.left = PACKETS_PER_TURN
                self._queue.run_socket(self._socket)
            if wake_fd in ready:
                return

    def take_settled(self) -> list[int]:
        """Return nothing: the engine was asked about every packet."""
        return []

    def stats(self) -> IoStats:
        return IoStats(self._socket.received, self._socket.overruns, 0)

    def close(self) -> None:
        """Unbind: from now on the kernel drops what the hooks queue, and at once what is still held."""
        self._queue.unbind()
        self._socket.socket.detach()            # the descriptor is NetfilterQueue's, which closes it
