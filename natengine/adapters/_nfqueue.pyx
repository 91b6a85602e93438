# cython: language_level=3, binding=True, annotation_typing=False, auto_pickle=False
# cython: cdivision=True
"""NFQUEUE in batches: packets of known flows go from the kernel and back without Python.

    recvmmsg ── up to BATCH messages, each a packet with its meta data, into buffers of our own
       │
       ├─ prepare, finish: the flow table rewrites the packet where it lies, in the receive buffer
       │     └─ what it does not know goes to Python, one call a packet, with the GIL
       │
    sendmsg ─── all verdicts at once; each one's header is written over the meta data that was in
                front of the packet, so one iovec a packet and no byte is copied here

GSO.  With NFQA_CFG_F_GSO a packet may be up to 64 KiB and its L4 checksum not there yet
(NFQA_SKB_CSUMNOTREADY).  After a verdict with a payload the kernel takes the checksum as it stands
(CHECKSUM_NONE), but when it segments TCP it computes each segment's from nothing.  UDP's, and a
tunnel's, it goes on from, and before Linux 6.11 leaves to a device that does not do it either.

    GSO, but not TCP       passed on, as it is, to the cutting queue: one without GSO, for which the
                           kernel segments first; the pieces come from there, each with its checksum
    GSO, TCP               the kernel computes it
    GSO, TCP, to the head  compute it here: nobody cuts it up any more, and the head's stack looks at it whole
    CSUMNOTREADY alone     compute it here, after the rewrite
    neither                it is right, and was updated with the rewrite

Threads.  Several queues can share one table, each served by a thread of its own, for the table has
one lock and a batch holds it once.  Who waits for the lock does not hold the GIL (else the one who
has the lock and wants the GIL would wait for ever); who has the lock may wait for the GIL.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize, PyByteArray_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, ENOBUFS, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from natengine._fastpath cimport FastPath
from natengine._wire cimport (
    PATH_MISS, PATH_REFUSED_RATE, PATH_SPECIAL, PATH_STALE, PATH_TRANSLATED, PATH_UNCHANGED,
    complete_transport_checksum,
)
from natengine.adapters._hush cimport PLACES, Hushed, hush, is_hushed, sender_of
from natengine.adapters._message cimport (
    PAYLOAD_HEADER, VERDICT_SIZE, Packet, lacks_checksum, link_source, must_be_cut, parse,
)

import os

cdef enum:
    BATCH = 64                          # messages a recvmmsg
    MESSAGE_MAX = 65536 + 512           # a packet of 64 KiB and everything the kernel says about it
    # Not a multiple of a page: buffers at the same offset in their pages would share cache sets.
    STRIDE = MESSAGE_MAX + 64 * 37
    SEND_MAX = 65536                    # bytes a sendmsg: the kernel copies them into one buffer
    PATHS = 12
    LOOK_UP_EVERY_NS = 1000000
    LIVELY_NS = 10000000                # so long after a packet the next one is expected soon
    BUSY_FOR_NS = 1000000000            # so long after a packet of a known flow more of them are expected

    DROP = 0                            # NF_DROP, NF_ACCEPT
    ACCEPT = 1
    QUEUE = 3                           # NF_QUEUE; the number of the queue in the upper 16 bits
    HELD = 2
    DROP_AND_HUSH = 3                   # `adapters.base`


cdef inline uint64_t sender(const Packet *packet) noexcept nogil:
    return sender_of(packet.hook, packet.in_ifindex, packet.payload, packet.length)


cdef class TableLock:
    """The lock of a table that several threads use.  A context manager; waits without the GIL."""

    cdef pthread_mutex_t mutex

    def __cinit__(self):
        pthread_mutex_init(&self.mutex, NULL)

    def __dealloc__(self):
        pthread_mutex_destroy(&self.mutex)

    def __enter__(self):
        with nogil:
            pthread_mutex_lock(&self.mutex)
        return self

    def __exit__(self, *_exception):
        pthread_mutex_unlock(&self.mutex)


cdef class BatchedQueue:
    """One NFQUEUE queue over a netlink socket that is bound and configured already.

    Args:
        fd: The socket.  It stays the caller's.
        queue_num: Its queue.
        table: The flow table.
        settle: Called with the GIL, and with the lock held, for each packet that the table does not
            settle: settle(path, packet, hook, in_ifindex, out_ifindex, mark, link_src, now_ns, busy) with
            the packet as a bytearray; returns (verdict, rewritten, ticket), `rewritten` being None or the bytearray.
            With the verdict HELD there is none to send yet, but when `release` is called with the ticket.
        lock: The table's; all who use the table share it.
        cutting_queue: The number of one that is bound without GSO; it may be this one.
        busy_poll_us: How long to ask again and again before sleeping; 0 for never.
    """

    cdef int fd
    cdef uint16_t queue_num
    cdef uint16_t cutting_queue
    cdef int64_t busy_poll_ns
    cdef FastPath table
    cdef object settle
    cdef TableLock lock
    cdef uint8_t *buffers
    cdef mmsghdr messages[BATCH]
    cdef iovec receive[BATCH]
    cdef iovec verdicts[BATCH]
    cdef Packet work[BATCH]
    cdef uint32_t verdict_count
    cdef size_t verdict_bytes
    cdef uint64_t settled[PATHS]
    cdef dict held                      # packet ids, by ticket
    cdef list late                      # verdicts about held packets, to be sent after the one that Python is asked for
    cdef uint32_t late_count
    cdef bint asking
    cdef object failure                 # what `settle` raised, for `serve` to raise
    cdef bint failed
    cdef bint busy                      # packets wait, and some of known flows have been among them
    cdef int64_t last_known
    cdef Hushed hushed[PLACES]
    cdef readonly uint64_t packets
    cdef readonly uint64_t overruns
    cdef readonly uint64_t errors       # verdicts or configuration that the kernel refused

    def __cinit__(self, int fd, uint16_t queue_num, FastPath table, object settle, TableLock lock,
                  uint16_t cutting_queue, int64_t busy_poll_us=0):
        self.fd, self.queue_num, self.cutting_queue = fd, queue_num, cutting_queue
        self.busy_poll_ns = busy_poll_us * 1000
        self.table, self.settle, self.lock = table, settle, lock
        self.held, self.late = {}, []
        self.buffers = <uint8_t *>calloc(BATCH, STRIDE)
        if self.buffers == NULL:
            raise MemoryError("no memory for receive buffers")
        cdef int i
        memset(self.messages, 0, sizeof(self.messages))
        for i in range(BATCH):
            self.receive[i].iov_base = self.buffers + <size_t>i * STRIDE
            self.receive[i].iov_len = MESSAGE_MAX
            self.messages[i].msg_hdr.msg_iov = &self.receive[i]
            self.messages[i].msg_hdr.msg_iovlen = 1

    def __dealloc__(self):
        free(self.buffers)

    def take_settled(self):
        """Return how many packets ended with each Path since the last call, and start over."""
        counts = [self.settled[i] for i in range(PATHS)]
        memset(self.settled, 0, sizeof(self.settled))
        return counts

    def serve(self, int wake_fd, double timeout_s):
        """Deal with packets until `wake_fd` is readable or the time is over.

        Raises:
            OSError: The socket is broken.
            Whatever `settle` raised; the packet it was called for has been dropped.
        """
        cdef int64_t until = now_ns() + <int64_t>(timeout_s * 1e9)
        cdef int error
        with nogil:
            error = self.run(wake_fd, until)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if error:
            raise OSError(error, os.strerror(error))

    cdef int run(self, int wake_fd, int64_t until) noexcept nogil:
        """Go round until it is time to return; 0, or the errno of a broken socket.

        While packets keep coming it sleeps in the receive itself, one system call a batch, and looks
        at `wake_fd` in between; later in a poll of both.
        """
        cdef int64_t now = now_ns(), look_up = now, last = now - LIVELY_NS
        cdef int received, error
        cdef bint asleep
        cdef pollfd waiting[2]
        waiting[0].fd, waiting[1].fd = wake_fd, self.fd
        waiting[0].events = waiting[1].events = POLLIN
        while now < until and not self.failed:
            asleep = self.busy_poll_ns == 0 and now - last < LIVELY_NS
            received = recvmmsg(self.fd, self.messages, BATCH, MSG_WAITFORONE if asleep else MSG_DONTWAIT, NULL)
            error = errno
            now = now_ns()
            if received > 0:
                self.batch(received, now)
                last = now
            elif error == ENOBUFS:
                self.overruns += 1
            elif error != EAGAIN and error != EINTR:
                return error
            elif not asleep and now - last >= self.busy_poll_ns:
                if now < until:                     # a negative time-out would be none: wait for ever
                    poll(waiting, 2, <int>((until - now) // 1000000) + 1)
                    look_up = now
            if now >= look_up:                      # under load too, others get their turn
                look_up = now + LOOK_UP_EVERY_NS
                if poll(waiting, 1, 0) > 0:
                    break
        return 0

    cdef void batch(self, int received, int64_t now) noexcept nogil:
        """Settle a batch and send its verdicts.

        The table is asked in three rounds, so that the memory which all its packets need is on its
        way together: with many flows a packet's time is spent waiting for it.
        """
        cdef int i, count = 0
        cdef Packet *packet
        for i in range(received):
            count += self.read(<uint8_t *>self.receive[i].iov_base, self.messages[i].msg_len, &self.work[count])
        self.busy = received == BATCH and now - self.last_known < BUSY_FOR_NS
        pthread_mutex_lock(&self.lock.mutex)
        for i in range(count):
            packet = &self.work[i]
            packet.path = self.table.prepare(packet.payload, packet.length, packet.hook, &packet.headers)
        for i in range(count):
            if self.work[i].path == 0:
                self.table.fetch(&self.work[i].headers)
        for i in range(count):
            self.settle_one(&self.work[i], now)
        pthread_mutex_unlock(&self.lock.mutex)
        self.send()

    cdef bint read(self, uint8_t *data, uint32_t length, Packet *packet) noexcept nogil:
        """Read one message from the kernel; 0 if there is no packet in it to settle, but, mostly, an error."""
        if length < sizeof(nlmsghdr):
            return False
        if (<nlmsghdr *>data).nlmsg_type != (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET):
            self.errors += (<nlmsghdr *>data).nlmsg_type == NLMSG_ERROR
            return False
        if not parse(data, length, packet):
            self.errors += 1
            return False
        if must_be_cut(packet) and self.queue_num != self.cutting_queue:
            self.verdict(packet, QUEUE | <int>self.cutting_queue << 16, False)
            return False
        self.packets += 1
        return True

    cdef void settle_one(self, Packet *packet, int64_t now) noexcept nogil:
        """Let the table, or Python, decide about a packet, and write its verdict."""
        cdef int path = packet.path
        if path == 0:
            path = self.table.finish(packet.payload, &packet.headers, packet.out_ifindex, now)
        cdef bint rewritten = path == PATH_TRANSLATED
        cdef int verdict = ACCEPT if rewritten or path == PATH_UNCHANGED else DROP
        cdef bint asked = path == PATH_MISS or path == PATH_SPECIAL or path == PATH_STALE
        if path == PATH_MISS and is_hushed(self.hushed, sender(packet), now):
            self.settled[PATH_REFUSED_RATE] += 1
        elif asked:
            with gil:
                verdict, rewritten = self.ask(path, packet, now)
        else:
            self.settled[path] += 1
            self.last_known = now
            if rewritten and lacks_checksum(packet):
                complete_transport_checksum(packet.payload, packet.length)
        if verdict != HELD:
            self.verdict(packet, verdict, rewritten)
        if self.late_count:
            self.send()                             # what was decided before is on its way before them
            with gil:
                self.send_late()

    cdef (int, bint) ask(self, int path, Packet *packet, int64_t now) noexcept:
        """Let Python decide; returns the verdict, and whether the packet was rewritten.

        The core sees every checksum as it will be on the wire, so one that is missing is computed
        first; but that of a GSO packet is the kernel's.
        """
        cdef bytearray copy
        if lacks_checksum(packet):
            complete_transport_checksum(packet.payload, packet.length)
        self.asking = True
        try:
            copy = PyByteArray_FromStringAndSize(<char *>packet.payload, packet.length)
            verdict, rewritten, ticket = self.settle(
                path, copy, packet.hook, packet.in_ifindex, packet.out_ifindex, packet.mark,
                link_source(packet), now, self.busy,
            )
            if verdict == HELD:
                self.held[ticket] = packet.packet_id
            elif verdict == DROP_AND_HUSH:
                hush(self.hushed, sender(packet), now)
                return DROP, False
            if rewritten is None:
                return verdict, False
            copy = rewritten
            if PyByteArray_GET_SIZE(copy) != <Py_ssize_t>packet.length:
                raise ValueError("a rewritten packet has another length than the packet")
            memcpy(packet.payload, PyByteArray_AS_STRING(copy), packet.length)
            return verdict, True
        except BaseException as error:              # a bug, or Ctrl-C: `serve` raises it
            self.failure, self.failed = error, True
            return DROP, False
        finally:
            self.asking = False

    def release(self, ticket, int verdict, packet):
        """Give a held packet its verdict, after that of the packet which Python is being asked about, if it is.

        The caller has the lock; it may be another thread.  False if this queue holds nothing with the ticket.
        """
        packet_id = self.held.pop(ticket, None)
        if packet_id is None:
            return False
        payload = packet or b""
        cdef bytearray message = bytearray(VERDICT_SIZE + PAYLOAD_HEADER) + payload + bytes(3)
        cdef Packet released
        released.packet_id, released.length = packet_id, <uint32_t>len(payload)
        released.payload = <uint8_t *>PyByteArray_AS_STRING(message) + VERDICT_SIZE + PAYLOAD_HEADER
        self.late.append(message[:self.write_verdict(&released, verdict, packet is not None)])
        self.late_count += 1
        if not self.asking:
            self.send_late()
        return True

    cdef void send_late(self) noexcept:
        """Send the verdicts about held packets."""
        for message in self.late:
            try:
                os.write(self.fd, message)
            except OSError:                         # as in `send`
                self.errors += 1
        self.late.clear()
        self.late_count = 0

    cdef void verdict(self, Packet *packet, int verdict, bint with_payload) noexcept nogil:
        """Write a verdict and have it ready for `send`."""
        cdef size_t size = self.write_verdict(packet, verdict, with_payload)
        if self.verdict_bytes + size > SEND_MAX:
            self.send()
        self.verdicts[self.verdict_count].iov_base = packet.payload - PAYLOAD_HEADER - VERDICT_SIZE
        self.verdicts[self.verdict_count].iov_len = size
        self.verdict_count += 1
        self.verdict_bytes += size

    cdef size_t write_verdict(self, Packet *packet, int verdict, bint with_payload) noexcept nogil:
        """Write a verdict in front of the payload, over what the kernel said about the packet; returns its size.

        `parse` has seen to it that there is room: at least the message's own headers are there.
        """
        cdef uint8_t *at = packet.payload - PAYLOAD_HEADER - VERDICT_SIZE
        cdef size_t size = VERDICT_SIZE
        cdef nlattr *attribute = <nlattr *>(at + VERDICT_SIZE)
        if with_payload and verdict == ACCEPT:
            attribute.nla_type = NFQA_PAYLOAD
            attribute.nla_len = <uint16_t>(PAYLOAD_HEADER + packet.length)
            size += PAYLOAD_HEADER + packet.length
        cdef nlmsghdr *header = <nlmsghdr *>at
        header.nlmsg_len = <uint32_t>size
        header.nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_VERDICT
        header.nlmsg_flags = NLM_F_REQUEST
        header.nlmsg_seq = header.nlmsg_pid = 0
        cdef nfgenmsg *general = <nfgenmsg *>(at + sizeof(nlmsghdr))
        general.nfgen_family = general.version = 0
        general.res_id = htons(self.queue_num)
        attribute = <nlattr *>(at + sizeof(nlmsghdr) + sizeof(nfgenmsg))
        attribute.nla_type = NFQA_VERDICT_HDR
        attribute.nla_len = sizeof(nlattr) + sizeof(nfqnl_msg_verdict_hdr)
        cdef nfqnl_msg_verdict_hdr *decision = <nfqnl_msg_verdict_hdr *>(attribute + 1)
        decision.verdict = htonl(verdict)
        decision.id = packet.packet_id
        return (size + 3) & ~<size_t>3              # messages in one datagram start at multiples of 4

    cdef void send(self) noexcept nogil:
        """Send the verdicts that are ready.  The kernel carries them out before sendmsg returns."""
        cdef msghdr message
        if self.verdict_count == 0:
            return
        memset(&message, 0, sizeof(message))
        message.msg_iov = self.verdicts
        message.msg_iovlen = self.verdict_count
        while sendmsg(self.fd, &message, 0) < 0:
            if errno != EINTR:                      # the kernel goes on holding those packets
                self.errors += 1
                break
        self.verdict_count = 0
        self.verdict_bytes = 0
