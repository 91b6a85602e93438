"""Many connections to echo servers at once, with data moving both ways and every byte looked at."""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import threading
import time

PATIENCE_S = 60                     # a sender waits up to twice as long as the engine was away before it tries again
AHEAD = 4096                        # bytes that a connection may be ahead of its echo


class EchoedStream:
    """A connection to an echo server; bytes at random go out, and have to come back."""

    def __init__(self, link: socket.socket, seed: int) -> None:
        self.link = link
        self.link.setblocking(False)
        self._out, self._expected = random.Random(seed), random.Random(seed)
        self._unsent = self._due = b""
        self.sent = self.received = 0

    def send(self) -> None:
        """Send some more."""
        self._unsent = self._unsent or self._out.randbytes(256)
        with contextlib.suppress(BlockingIOError):
            n = self.link.send(self._unsent)
            self._unsent, self.sent = self._unsent[n:], self.sent + n

    def receive(self) -> None:
        """Take what has come, and compare every byte."""
        with contextlib.suppress(BlockingIOError):
            data = self.link.recv(65536)
            assert data, "the connection was closed"
            while len(self._due) < len(data):
                self._due += self._expected.randbytes(256)
            assert data == self._due[:len(data)], f"wrong bytes behind byte {self.received}"
            self._due, self.received = self._due[len(data):], self.received + len(data)


class EchoedStreams:
    """Many of them at once, in a thread of their own, until told to finish."""

    def __init__(self, links: list[socket.socket]) -> None:
        self._streams = [EchoedStream(link, seed) for seed, link in enumerate(links)]
        self._sending = True
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            with selectors.DefaultSelector() as selector:
                for stream in self._streams:
                    selector.register(stream.link, selectors.EVENT_READ, stream)
                while self._sending or self.under_way:
                    for stream in self._streams:
                        if self._sending and stream.sent - stream.received < AHEAD:
                            stream.send()
                    for key, _ in selector.select(0.02):
                        key.data.receive()
        except BaseException as error:
            self.failure = error

    @property
    def under_way(self) -> int:
        """Bytes whose echo has not come back."""
        return sum(stream.sent - stream.received for stream in self._streams)

    def all_go_on(self) -> None:
        """Wait until every single connection has taken some more bytes there and back."""
        before = [stream.received for stream in self._streams]

        def have_moved() -> bool:
            assert self.failure is None, self.failure
            return all(
                stream.received > start + AHEAD for stream, start in zip(self._streams, before, strict=True)
            )

        deadline = time.monotonic() + PATIENCE_S
        while not have_moved():
            assert time.monotonic() < deadline, "not every connection goes on"
            time.sleep(0.05)

    def finish(self) -> None:
        """Send no more, and wait until all that was sent has come back."""
        self._sending = False
        self._thread.join(PATIENCE_S)
        assert self.failure is None, self.failure
        assert not self._thread.is_alive() and self.under_way == 0, f"{self.under_way} bytes are lost"
