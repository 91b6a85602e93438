"""The batched NFQUEUE adapter: sets a queue up, and leaves its packets to `_nfqueue`.

Of known flows nothing reaches Python; see `_nfqueue.pyx`.  Packets come whole, up to 64 KiB, with
GSO: what TCP sends in one piece crosses the queue in one piece.  What others do (UDP_SEGMENT) must not be
changed in one piece, and takes a turn through one more queue, for which the kernel cuts it up.
"""

from __future__ import annotations

import errno
import os
import queue
import select
import socket
import struct
import threading
from contextlib import AbstractContextManager

from natengine.adapters import _nfqueue
from natengine.adapters.base import IoStats, Settle, no_queue, queue_taken
from natengine.adapters.queuedrops import QUEUES
from natengine.errors import HostError
from natengine.vocab import Decision

NETLINK_NETFILTER = 12              # linux/netlink.h
SOL_NETLINK, NETLINK_NO_ENOBUFS = 270, 5
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
NLM_F_REQUEST, NLM_F_ACK, NLMSG_ERROR = 1, 4, 2

# linux/netfilter/nfnetlink_queue.h
NFNL_SUBSYS_QUEUE, NFQNL_MSG_CONFIG = 3, 2
NFQA_CFG_CMD, NFQA_CFG_PARAMS, NFQA_CFG_QUEUE_MAXLEN, NFQA_CFG_MASK, NFQA_CFG_FLAGS = 1, 2, 3, 4, 5
NFQNL_CFG_CMD_BIND, NFQNL_COPY_PACKET, NFQA_CFG_F_GSO = 1, 2, 4

COPY_RANGE = 65531                  # the longest payload that fits into a netlink attribute
QUEUE_LENGTH = 8192                 # packets the kernel holds for us before it drops
RECEIVE_BUFFER = 64 << 20           # bytes; a message of 64 KiB counts for more than its size
SEND_BUFFER = 8 << 20
RECEIVE_TIMEOUT_US = 1000           # when nothing comes, control requests wait this long (and two ticks at most)
ROUND_S = 3600.0                    # an extra thread's turn; it ends earlier only when told to


def open_queue(queue_num: int, *, gso: bool) -> socket.socket:
    """Return a netlink socket that is bound to a queue of the current network namespace.

    With `gso` the kernel hands large sends over in one piece, else cut up and with their checksums.

    Raises:
        HostError: Not root, no NFQUEUE in this kernel, or the queue belongs to another program.
    """
    try:
        link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    except OSError as error:
        raise HostError(no_queue(error)) from None
    try:
        link.bind((0, 0))
        link.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        link.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER)
        # An overrun loses packets with or without an error; with one, a receive is wasted to learn of it.
        link.setsockopt(SOL_NETLINK, NETLINK_NO_ENOBUFS, 1)
        _configure(link, queue_num, NFQA_CFG_CMD, struct.pack("!BBH", NFQNL_CFG_CMD_BIND, 0, socket.AF_INET))
        _configure(link, queue_num, NFQA_CFG_PARAMS, struct.pack("!IB", COPY_RANGE, NFQNL_COPY_PACKET))
        _configure(link, queue_num, NFQA_CFG_QUEUE_MAXLEN, struct.pack("!I", QUEUE_LENGTH))
        if gso:
            flags = struct.pack("!I", NFQA_CFG_F_GSO)
            _configure(link, queue_num, NFQA_CFG_FLAGS, flags, NFQA_CFG_MASK, flags)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, RECEIVE_TIMEOUT_US))
    except OSError as error:
        link.close()
        raise HostError(_explain(error, queue_num)) from None
    return link


def _configure(link: socket.socket, queue_num: int, *attributes: int | bytes) -> None:
    """Send one configuration message, made of attribute types and values in turns, and await its ack."""
    body = struct.pack("!BBH", socket.AF_UNSPEC, 0, queue_num)
    for kind, value in zip(attributes[::2], attributes[1::2], strict=True):
        assert isinstance(value, bytes)
        body += struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)
    kind = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_CONFIG
    link.send(struct.pack("=IHHII", 16 + len(body), kind, NLM_F_REQUEST | NLM_F_ACK, 0, 0) + body)
    while True:                         # packets may come before the ack; the kernel holds them
        message = link.recv(65536)
        if struct.unpack_from("=H", message, 4)[0] == NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", message, 16)
            if code:
                raise OSError(-code, os.strerror(-code))
            return


def _explain(error: OSError, queue_num: int) -> str:
    # Somebody else's queue is EPERM, and so is a lack of CAP_NET_ADMIN.
    if error.errno in (errno.EBUSY, errno.EEXIST) or (error.errno == errno.EPERM and _is_bound(queue_num)):
        return queue_taken(queue_num)
    return no_queue(error)


def _is_bound(queue_num: int) -> bool:
    try:
        return any(int(line.split()[0]) == queue_num for line in QUEUES.read_text().splitlines())
    except OSError:
        return False


class BatchedIO:
    """A range of queues over one table, and behind it the cutting queue; each in a thread of its own but the first."""

    name = "batched"

    def __init__(
        self, queue_num: int, table: object, settle: Settle, *, queue_count: int = 1, busy_poll_us: int = 0
    ) -> None:
        """Bind `queue_count` queues from `queue_num`, and one more; see `open_queue` for the errors.

        Args:
            table: The compiled flow table.
            settle: Asked about the packets that the table does not know.
            busy_poll_us: How long to ask the kernel again and again before sleeping.
        """
        cutting_queue = queue_num + queue_count         # the hooks do not know it
        self.queues = (queue_num, cutting_queue - 1)
        lock = _nfqueue.TableLock()
        self.lock: AbstractContextManager[object] = lock
        self._links: list[socket.socket] = []
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC)
        self._threads: list[threading.Thread] = []
        self._failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        try:
            for number in range(queue_num, cutting_queue + 1):
                self._links.append(open_queue(number, gso=number != cutting_queue))
        except BaseException:
            self.close()
            raise
        self._workers = [
            _nfqueue.BatchedQueue(link.fileno(), number, table, settle, lock, cutting_queue, busy_poll_us)
            for number, link in enumerate(self._links, queue_num)
        ]
        for worker in self._workers[1:]:
            thread = threading.Thread(target=self._work, args=(worker,), name="packets", daemon=True)
            self._threads.append(thread)
            thread.start()

    def serve(self, wake_fd: int, timeout_s: float) -> None:
        """Deal with the first queue's packets; raise what went wrong with any."""
        if not self._failures.empty():
            raise self._failures.get()
        self._workers[0].serve(wake_fd, timeout_s)

    def _work(self, worker: _nfqueue.BatchedQueue) -> None:
        """Serve one more queue until the pipe is written to."""
        try:
            while not select.select([self._stop_read], [], [], 0)[0]:
                worker.serve(self._stop_read, ROUND_S)
        except BaseException as error:  # `serve` raises it, where somebody is listening
            self._failures.put(error)

    def release(self, decision: Decision) -> None:
        """Carry out the decision about a held packet, through the queue that it came from."""
        found = any(
            worker.release(decision.ticket, decision.verdict, decision.packet) for worker in self._workers
        )
        assert found, f"nothing is held with ticket {decision.ticket}"

    def take_settled(self) -> list[int]:
        """Return how many packets ended with each `Path`, over all queues.  The caller holds the lock."""
        return [sum(counts) for counts in zip(*(each.take_settled() for each in self._workers), strict=True)]

    def stats(self) -> IoStats:
        return IoStats(
            sum(each.packets for each in self._workers), sum(each.overruns for each in self._workers),
            sum(each.errors for each in self._workers),
        )

    def close(self) -> None:
        """End the threads and unbind: the kernel drops what is held, and from now on what the hooks queue."""
        os.write(self._stop_write, b"\0")
        for thread in self._threads:
            thread.join()
        for link in self._links:
            link.close()
        os.close(self._stop_read)
        os.close(self._stop_write)
